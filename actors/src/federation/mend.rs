//! Getting what states lack once the server that signed it is back.
//!
//! A state is used without what servers signed that seem gone (`STATE_LACKS`). When the keys of such a server come, be it
//! because it sent something itself, the lacking events are fetched; the room then puts them into its states.

use std::collections::{BTreeMap, BTreeSet};

use dashmap::DashMap;
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, ServerName};
use storage::{Direction, KeyRange, schema};

use crate::{
    homeserver::Homeserver,
    room::{Lacking, RoomError, RoomHandle},
};

/// Events that are fetched together.
const TOGETHER: usize = 50;

/// Rooms whose states lack something, with the servers whose keys it needs.
#[derive(Default)]
pub(super) struct Mending(DashMap<OwnedRoomId, BTreeSet<OwnedServerName>>);

impl Mending {
    /// Notes servers that states of a room wait for.
    pub(super) fn wait<'a>(&self, room_id: &RoomId, servers: impl IntoIterator<Item = &'a OwnedServerName>) {
        let servers: BTreeSet<_> = servers.into_iter().cloned().collect();
        if !servers.is_empty() {
            self.0.entry(room_id.to_owned()).or_default().extend(servers);
        }
    }

    /// Takes the rooms that wait for a server; whoever takes them sees to them.
    fn take(&self, server: &ServerName) -> BTreeSet<OwnedRoomId> {
        let mut rooms = BTreeSet::new();
        self.0.retain(|room_id, servers| {
            if servers.remove(server) {
                rooms.insert(room_id.clone());
            }
            !servers.is_empty()
        });
        rooms
    }
}

impl Homeserver {
    /// Takes up what states lacked when the server stopped.
    pub(crate) async fn resume_mending(&self) -> Result<(), RoomError> {
        let Some(federation) = self.federation() else { return Ok(()) };
        let rows = self
            .storage()
            .range(&schema::STATE_LACKS, KeyRange::all(), Direction::Ascending, usize::MAX)
            .await?;
        let mut servers = BTreeSet::new();
        for (_, record) in rows {
            federation.mending.wait(&record.room_id, [&record.server]);
            servers.insert(record.server);
        }
        for server in servers {
            // Its keys may have come just before the server stopped.
            let keys = KeyRange::prefix(&(server.clone(),));
            if !self.storage().range(&schema::SERVER_KEYS, keys, Direction::Ascending, 1).await?.is_empty() {
                self.keys_came(&server);
            }
        }
        Ok(())
    }

    /// Keys of a server came: what it signed may be checked now. A shutdown leaves that to the next start.
    pub(super) fn keys_came(&self, server: &ServerName) {
        let Some(federation) = self.federation() else { return };
        let rooms = federation.mending.take(server);
        if rooms.is_empty() {
            return;
        }
        let (homeserver, server) = (self.clone(), server.to_owned());
        tokio::spawn(async move {
            let mend = async {
                for room_id in &rooms {
                    if let Err(error) = homeserver.fetch_lacking_of(room_id, &server).await {
                        tracing::info!(%room_id, %server, %error, "cannot get what the states of a room lack");
                    }
                }
            };
            tokio::select! {
                biased;
                () = homeserver.stopping() => {}
                () = mend => {}
            }
        });
    }

    /// Fetches what the states of a room lack of a server.
    async fn fetch_lacking_of(&self, room_id: &RoomId, server: &OwnedServerName) -> Result<(), RoomError> {
        let room = self.room(room_id).await?;
        if !room.snapshot().head.has_server(self.server_name()) {
            return Ok(());
        }
        let mut lacking = self.lacking_here(&room, server).await;
        let mut last = Ok(());
        for candidate in self.candidates(&room, server) {
            for some in lacking.chunks(TOGETHER) {
                if let Err(error) = self.fetch_events(&room, &candidate, some).await {
                    last = Err(error);
                    break;
                }
            }
            lacking = room.unknown_events(&lacking).await?;
            if lacking.is_empty() {
                return Ok(());
            }
        }
        if let (Err(_), Some(federation)) = (&last, self.federation()) {
            // Nobody could be asked, or somebody else is silent: its next keys are another occasion.
            federation.mending.wait(room_id, [server]);
        }
        last
    }

    /// What the states of a room lack of a server, and of others that do not seem gone (any more).
    async fn lacking_here(&self, room: &RoomHandle, server: &ServerName) -> Vec<OwnedEventId> {
        let snapshot = room.snapshot();
        let mut heard: BTreeMap<&OwnedServerName, bool> = BTreeMap::new();
        let mut lacking = BTreeSet::new();
        for ((event_id, _), needed) in &snapshot.head.lacks {
            let is_heard = match heard.get(needed) {
                Some(is_heard) => *is_heard,
                None => *needed == *server || self.is_heard(needed).await,
            };
            heard.insert(needed, is_heard);
            if is_heard {
                lacking.insert(event_id.clone());
            }
        }
        lacking.into_iter().collect()
    }

    /// Waits for the servers of what a room has noted as lacking; one that was heard of meanwhile is waited for no more.
    pub(super) async fn wait_for_keys(&self, room_id: &RoomId, lacking: &Lacking) {
        let Some(federation) = self.federation() else { return };
        let servers: BTreeSet<_> = lacking.values().cloned().collect();
        federation.mending.wait(room_id, &servers);
        for server in servers {
            if self.is_heard(&server).await {
                self.keys_came(&server);
            }
        }
    }
}
