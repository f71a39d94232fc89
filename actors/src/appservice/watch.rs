//! What rooms and sessions tell the tasks of application services of, beside their events.
//!
//! Nothing here costs anything while there are no services, and nothing waits: a service that does not keep up misses
//! typing, receipts and presence, which are out of date by then anyway.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use engine::id::ShortRoomId;
use parking_lot::Mutex;
use ruma::{OwnedRoomId, OwnedUserId, UserId};
use tokio::sync::mpsc;

use super::Service;
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

/// A service that is told of what is ephemeral.
struct Listener {
    service: Arc<Service>,
    news: mpsc::Sender<EphemeralNews>,
    mail: Arc<Mutex<BTreeSet<OwnedUserId>>>,
}

/// What a service is told.
pub(super) struct Heard {
    /// What is ephemeral.
    pub(super) news: mpsc::Receiver<EphemeralNews>,
    /// Its users who were sent something to their devices.
    pub(super) mail: Arc<Mutex<BTreeSet<OwnedUserId>>>,
}

/// The tasks of the services that are told.
#[derive(Default)]
pub struct ServiceWatch {
    /// Set once, when the server starts with services.
    listeners: OnceLock<Vec<Listener>>,
    /// How often the aliases of rooms have changed.
    aliases: AtomicU64,
}

impl ServiceWatch {
    /// From now on there are services; these of them are told of ephemeral news.
    pub(super) fn start<'a>(&self, listeners: impl Iterator<Item = &'a Arc<Service>>) -> Vec<Heard> {
        let (listeners, heard) = listeners
            .map(|service| {
                let (sender, news) = mpsc::channel(WAITING_MAX);
                let mail = Arc::<Mutex<BTreeSet<OwnedUserId>>>::default();
                let listener = Listener { service: service.clone(), news: sender, mail: mail.clone() };
                (listener, Heard { news, mail })
            })
            .unzip();
        let _ = self.listeners.set(listeners); // a server starts once
        heard
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
            let _ = listener.news.try_send(news.clone()); // see the module
        }
    }

    /// A local user may have been sent something to a device.
    pub(crate) fn mail(&self, user_id: &UserId) {
        for listener in self.listeners.get().into_iter().flatten() {
            if listener.service.has_user(user_id) {
                listener.mail.lock().insert(user_id.to_owned());
            }
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
