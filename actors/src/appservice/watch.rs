//! What rooms and sessions tell the tasks of application services of, beside their events.
//!
//! Nothing here costs anything while there are no services, and nothing waits: a service that does not keep up misses
//! typing, receipts and presence, which are out of date by then anyway.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};

use engine::id::ShortRoomId;
use ruma::{OwnedRoomId, OwnedUserId};
use tokio::sync::mpsc;

use crate::room::Receipt;

/// Ephemeral news that wait for one service.
const WAITING_MAX: usize = 1000;

/// What is not an event of a room.
#[derive(Clone)]
pub(crate) enum EphemeralNews {
    /// Who is typing in a room.
    Typing(ShortRoomId, OwnedRoomId, Arc<[OwnedUserId]>),
    /// Somebody has read something.
    Receipt(ShortRoomId, OwnedRoomId, Arc<Receipt>),
    /// A user's presence is another one.
    Presence(OwnedUserId),
}

/// The tasks of the services that are told.
#[derive(Default)]
pub struct ServiceWatch {
    /// Set once, when the server starts with services.
    listeners: OnceLock<Vec<mpsc::Sender<EphemeralNews>>>,
    /// How often the aliases of rooms have changed.
    aliases: AtomicU64,
}

impl ServiceWatch {
    /// From now on there are services; as many of them as asked are told of ephemeral news.
    pub(super) fn start(&self, listeners: usize) -> Vec<mpsc::Receiver<EphemeralNews>> {
        let (senders, receivers) = (0..listeners).map(|_| mpsc::channel(WAITING_MAX)).unzip();
        let _ = self.listeners.set(senders); // a server starts once
        receivers
    }

    /// Whether there are services.
    pub(crate) fn is_on(&self) -> bool {
        self.listeners.get().is_some()
    }

    /// Tells the services that want to know.
    pub(crate) fn tell(&self, news: impl FnOnce() -> EphemeralNews) {
        let Some(listeners) = self.listeners.get().filter(|listeners| !listeners.is_empty()) else { return };
        let news = news();
        for listener in listeners {
            let _ = listener.try_send(news.clone()); // see the module
        }
    }

    /// A room has an alias more or less.
    pub(crate) fn aliases_changed(&self) {
        self.aliases.fetch_add(1, Ordering::SeqCst);
    }

    /// How often the aliases of rooms have changed.
    pub(super) fn aliases(&self) -> u64 {
        self.aliases.load(Ordering::SeqCst)
    }
}
