//! From the outbox to the destinations' actors.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ruma::OwnedServerName;
use tokio::{sync::mpsc, time::Instant};

use super::{
    DestinationActor, DestinationMessage,
    missed::Handed,
    outbox::{Announcement, Outbox},
};
use crate::directory::{Directory, Place};

/// A destination that cannot be told something just now is told after this long to look for itself.
const TELL_AGAIN: Duration = Duration::from_secs(30);

/// Hands announcements to the destinations, in order, and wakes those that are to be tried again.
pub struct Dispatcher {
    announcements: mpsc::UnboundedReceiver<Announcement>,
    destinations: Directory<DestinationActor>,
    outbox: Arc<Outbox>,
    retries: Retries,
}

impl Dispatcher {
    /// A dispatcher of what comes out of an outbox.
    pub fn new(
        announcements: mpsc::UnboundedReceiver<Announcement>,
        destinations: Directory<DestinationActor>,
        outbox: Arc<Outbox>,
    ) -> Self {
        Self { announcements, destinations, outbox, retries: Retries::default() }
    }

    /// Goes on for as long as there is an outbox.
    pub async fn run(&mut self) {
        loop {
            let next = self.retries.next();
            let announcement = tokio::select! {
                biased;
                announcement = self.announcements.recv() => announcement,
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    if let Some(server) = self.retries.pop() {
                        self.tell(server, DestinationMessage::RetryDue).await;
                    }
                    continue;
                }
            };
            match announcement {
                Some(announcement) => self.deal_with(announcement).await,
                None => return,
            }
        }
    }

    async fn deal_with(&mut self, announcement: Announcement) {
        match announcement {
            Announcement::Retry(server, due) => self.retries.set(server, due),
            Announcement::Orphan(server, outcome) => {
                let pdus = outcome.transaction.pdus.iter().cloned();
                let handed: Vec<_> =
                    pdus.map(|outgoing| Handed::new(outgoing, self.outbox.clone(), server.clone())).collect();
                if self.tell(server, |place| DestinationMessage::Orphan(outcome, place)).await {
                    for handed in handed {
                        handed.take();
                    }
                }
            }
            Announcement::Pdu(outgoing, servers) => {
                for server in servers {
                    let handed = Handed::new(outgoing.clone(), self.outbox.clone(), server.clone());
                    self.tell(server, |place| DestinationMessage::Pdu(handed, place)).await;
                }
            }
            Announcement::Edu(edu, servers) => {
                for server in servers {
                    let edu = edu.clone();
                    self.tell(server, |place| DestinationMessage::Edu(edu, place)).await;
                }
            }
            Announcement::Queued(servers) => {
                for server in servers {
                    self.tell(server, DestinationMessage::Queued).await;
                }
            }
            Announcement::Alive(server) => {
                self.tell(server, DestinationMessage::Alive).await;
            }
        }
    }

    /// Tells a destination something; returns whether it was told.
    ///
    /// What it misses here it finds in the store when it next starts, or looks for at its next retry.
    async fn tell(
        &mut self,
        server: OwnedServerName,
        message: impl FnOnce(Place) -> DestinationMessage,
    ) -> bool {
        match self.destinations.get(&server).await {
            Ok(handle) => match handle.cast(message) {
                Ok(()) => return true,
                Err(error) => {
                    tracing::warn!(destination = %server, %error, "a destination is not told of something to send");
                }
            },
            Err(error) => tracing::warn!(destination = %server, %error, "a destination does not start"),
        }
        self.retries.set(server, Instant::now() + TELL_AGAIN);
        false
    }
}

/// When each server is to be tried again.
#[derive(Default)]
struct Retries {
    by_server: BTreeMap<OwnedServerName, Instant>,
    by_time: BTreeSet<(Instant, OwnedServerName)>,
}

impl Retries {
    fn set(&mut self, server: OwnedServerName, due: Instant) {
        if let Some(before) = self.by_server.insert(server.clone(), due) {
            self.by_time.remove(&(before, server.clone()));
        }
        self.by_time.insert((due, server));
    }

    fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(due, _)| *due)
    }

    fn pop(&mut self) -> Option<OwnedServerName> {
        let (_, server) = self.by_time.pop_first()?;
        self.by_server.remove(&server);
        Some(server)
    }
}
