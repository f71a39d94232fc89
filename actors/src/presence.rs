//! Presence of local users: who is online, idle or away. In memory only; after a restart everyone is offline.
//!
//! What is shown follows from what the clients asked for, when the user was last active, and whether a
//! client is connected. Time changes it too: the user's session looks again when that is due. Others hear
//! of a change if they share a room with the user and have an active session.
//!
//! Spec: client-server API, "Presence".

use std::time::Duration;

use dashmap::DashMap;
use js_int::UInt;
use ruma::{
    OwnedUserId, UserId,
    events::presence::{PresenceEvent, PresenceEventContent},
    presence::PresenceState,
};
use serde_json::value::RawValue;

use crate::session::Profile;

/// Without activity for this long an online user is shown as unavailable.
const IDLE_AFTER_MS: u64 = 5 * 60 * 1000;

/// Activity less than this ago makes a user "currently active".
const ACTIVE_FOR_MS: u64 = 60 * 1000;

/// Without a connection for this long a user is shown as offline; clients reconnect faster.
const OFFLINE_AFTER_MS: u64 = 30 * 1000;

/// Nothing heard of another server's user for this long means that the user, or the server, is gone.
const REMOTE_FOR_MS: u64 = 30 * 60 * 1000;

/// Users of other servers whose presence is kept; the oldest news give way.
const REMOTE_MAX: usize = 100_000;

/// What others see of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shown {
    state: PresenceState,
    currently_active: bool,
    status_msg: Option<String>,
}

impl Shown {
    fn offline() -> Self {
        Self { state: PresenceState::Offline, currently_active: false, status_msg: None }
    }
}

#[derive(Debug)]
struct Entry {
    /// What a client last asked for.
    asked: PresenceState,
    status_msg: Option<String>,
    last_active_ms: u64,
    last_connected_ms: u64,
    connections: u32,
    /// The connections that ask for "online", and when the last of them ended.
    online: u32,
    last_online_ms: u64,
    shown: Shown,
    /// Whether somebody looks again when time may have changed what is shown.
    is_watched: bool,
}

impl Entry {
    fn new() -> Self {
        Self {
            asked: PresenceState::Offline,
            status_msg: None,
            last_active_ms: 0,
            last_connected_ms: 0,
            connections: 0,
            online: 0,
            last_online_ms: 0,
            shown: Shown::offline(),
            is_watched: false,
        }
    }

    fn offline_in_ms(&self, now_ms: u64) -> u64 {
        if self.connections > 0 {
            return u64::MAX;
        }
        (self.last_connected_ms + OFFLINE_AFTER_MS).saturating_sub(now_ms)
    }

    /// Whether a client that wants the user online waits, or waited just now: it decides, whatever others say.
    fn has_online_client(&self, now_ms: u64) -> bool {
        self.online > 0 || now_ms.saturating_sub(self.last_online_ms) < OFFLINE_AFTER_MS
    }

    fn show(&self, now_ms: u64) -> Shown {
        let inactive_ms = now_ms.saturating_sub(self.last_active_ms);
        let state = match &self.asked {
            _ if self.offline_in_ms(now_ms) == 0 => PresenceState::Offline,
            PresenceState::Online if inactive_ms >= IDLE_AFTER_MS => PresenceState::Unavailable,
            asked => asked.clone(),
        };
        let currently_active = state == PresenceState::Online && inactive_ms < ACTIVE_FOR_MS;
        Shown { state, currently_active, status_msg: self.status_msg.clone() }
    }

    /// When time alone may next change what is shown.
    fn due_in_ms(&self, now_ms: u64) -> Option<u64> {
        if self.shown.state == PresenceState::Offline {
            return None;
        }
        let since_active = |after_ms: u64| (self.last_active_ms + after_ms).saturating_sub(now_ms);
        let idle = [since_active(ACTIVE_FOR_MS), since_active(IDLE_AFTER_MS)].into_iter();
        let idle = idle.filter(|in_ms| *in_ms > 0 && self.asked == PresenceState::Online).min();
        // A connection that ends is seen when its time would be over at the earliest.
        let offline = if self.connections > 0 { OFFLINE_AFTER_MS } else { self.offline_in_ms(now_ms) };
        Some(idle.unwrap_or(u64::MAX).min(offline).max(1000))
    }
}

/// What became of a user's presence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Others see something else than before.
    pub(crate) is_news: bool,
    /// Somebody has to start looking again when time may have changed it.
    pub(crate) needs_watch: bool,
}

/// What another server last said of one of its users.
#[derive(Clone, Debug)]
struct Remote {
    shown: Shown,
    last_active_ms: u64,
    heard_ms: u64,
}

/// The presence of all local users, and of users of other servers who share rooms with them.
#[derive(Default)]
pub(crate) struct Presence {
    entries: DashMap<OwnedUserId, Entry>,
    remote: DashMap<OwnedUserId, Remote>,
}

impl Presence {
    /// A client sets the user's presence.
    pub(crate) fn set(
        &self,
        user_id: &UserId,
        state: PresenceState,
        status_msg: Option<String>,
        now_ms: u64,
    ) -> Outcome {
        self.change(user_id, now_ms, |entry| {
            if state == PresenceState::Online {
                entry.last_active_ms = now_ms;
            }
            entry.last_connected_ms = now_ms;
            entry.asked = state;
            entry.status_msg = status_msg;
        })
    }

    /// A client begins to wait for news, and says how the user is to be shown meanwhile.
    pub(crate) fn connect(&self, user_id: &UserId, state: &PresenceState, now_ms: u64) -> Outcome {
        self.change(user_id, now_ms, |entry| {
            entry.connections += 1;
            if *state == PresenceState::Online {
                entry.online += 1;
                let was_away = entry.shown.state == PresenceState::Offline;
                if was_away || entry.asked != PresenceState::Online {
                    entry.last_active_ms = now_ms;
                }
                entry.asked = PresenceState::Online;
            } else if !entry.has_online_client(now_ms) {
                entry.asked = state.clone();
            }
        })
    }

    /// A client's wait, begun with the same state, has ended.
    pub(crate) fn disconnect(&self, user_id: &UserId, state: &PresenceState, now_ms: u64) -> Outcome {
        self.change(user_id, now_ms, |entry| {
            entry.connections = entry.connections.saturating_sub(1);
            entry.last_connected_ms = now_ms;
            if *state == PresenceState::Online {
                entry.online = entry.online.saturating_sub(1);
                entry.last_online_ms = now_ms;
            }
        })
    }

    /// The user did something.
    pub(crate) fn active(&self, user_id: &UserId, now_ms: u64) -> Outcome {
        self.change(user_id, now_ms, |entry| {
            entry.last_active_ms = now_ms;
            entry.last_connected_ms = now_ms;
            if entry.asked == PresenceState::Unavailable {
                entry.asked = PresenceState::Online;
            }
        })
    }

    /// The user's session ends.
    pub(crate) fn leave(&self, user_id: &UserId, now_ms: u64) -> Outcome {
        self.change(user_id, now_ms, |entry| {
            (entry.connections, entry.online) = (0, 0);
            entry.asked = PresenceState::Offline;
            entry.is_watched = false;
        })
    }

    /// Time may have changed what is shown; answers when to look again, if at all.
    pub(crate) fn look_again(&self, user_id: &UserId, now_ms: u64) -> (Outcome, Option<Duration>) {
        let outcome = self.change(user_id, now_ms, |_| {});
        let Some(mut entry) = self.entries.get_mut(user_id) else { return (outcome, None) };
        let due = entry.due_in_ms(now_ms).map(Duration::from_millis);
        entry.is_watched = due.is_some();
        (outcome, due)
    }

    fn change(&self, user_id: &UserId, now_ms: u64, change: impl FnOnce(&mut Entry)) -> Outcome {
        let mut entry = self.entries.entry(user_id.to_owned()).or_insert_with(Entry::new);
        change(&mut entry);
        let shown = entry.show(now_ms);
        let is_news = shown != entry.shown;
        entry.shown = shown;
        let needs_watch = !entry.is_watched && entry.shown.state != PresenceState::Offline;
        entry.is_watched |= needs_watch;
        Outcome { is_news, needs_watch }
    }

    /// Takes note of what another server says of one of its users.
    pub(crate) fn set_remote(&self, presence: UserPresence, now_ms: u64) {
        if self.remote.len() >= REMOTE_MAX {
            self.remote.retain(|_, remote| now_ms.saturating_sub(remote.heard_ms) < REMOTE_FOR_MS);
        }
        if self.remote.len() >= REMOTE_MAX {
            return;
        }
        let UserPresence { user_id, state, status_msg, last_active_ago, currently_active } = presence;
        let last_active_ms = last_active_ago.map_or(0, |ago| now_ms.saturating_sub(ago));
        let shown = Shown { state, currently_active, status_msg };
        self.remote.insert(user_id, Remote { shown, last_active_ms, heard_ms: now_ms });
    }

    /// Users of other servers who are not offline, some of them if they are very many.
    pub(crate) fn remote_users(&self, now_ms: u64, most: usize) -> Vec<OwnedUserId> {
        let is_there = |remote: &Remote| {
            remote.shown.state != PresenceState::Offline
                && now_ms.saturating_sub(remote.heard_ms) < REMOTE_FOR_MS
        };
        let there = self.remote.iter().filter(|entry| is_there(entry.value()));
        let mut users: Vec<_> = there.map(|entry| entry.key().clone()).collect();
        users.sort();
        users.truncate(most);
        users
    }

    /// Local users who are not offline.
    pub(crate) fn local_users(&self, now_ms: u64) -> Vec<OwnedUserId> {
        let there = self.entries.iter().filter(|entry| entry.show(now_ms).state != PresenceState::Offline);
        let mut users: Vec<_> = there.map(|entry| entry.key().clone()).collect();
        users.sort();
        users
    }

    /// What others see of a user; offline if nothing is known.
    pub(crate) fn of(&self, user_id: &UserId, now_ms: u64) -> UserPresence {
        let is_known = |remote: &Remote| now_ms.saturating_sub(remote.heard_ms) < REMOTE_FOR_MS;
        let remote = self.remote.get(user_id).filter(|remote| is_known(remote));
        let (shown, last_active_ms) = match (self.entries.get(user_id), remote) {
            (Some(entry), _) => (entry.show(now_ms), entry.last_active_ms),
            (None, Some(remote)) => (remote.shown.clone(), remote.last_active_ms),
            (None, None) => (Shown::offline(), 0),
        };
        let last_active_ago = (last_active_ms > 0).then(|| now_ms.saturating_sub(last_active_ms));
        let Shown { state, currently_active, status_msg } = shown;
        UserPresence { user_id: user_id.to_owned(), state, status_msg, last_active_ago, currently_active }
    }
}

/// A user's presence at some moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserPresence {
    /// Whose it is.
    pub user_id: OwnedUserId,
    /// Online, unavailable or offline.
    pub state: PresenceState,
    /// What the user says of it.
    pub status_msg: Option<String>,
    /// When the user was last active, in milliseconds before that moment.
    pub last_active_ago: Option<u64>,
    /// Whether the user is active right then.
    pub currently_active: bool,
}

impl UserPresence {
    /// The event that clients get, with name and avatar if the profile is known.
    ///
    /// Spec: client-server API, `m.presence`.
    pub(crate) fn to_event(&self, profile: Option<&Profile>) -> Box<RawValue> {
        let mut content = PresenceEventContent::new(self.state.clone());
        content.status_msg.clone_from(&self.status_msg);
        content.last_active_ago = self.last_active_ago.and_then(|ago| UInt::try_from(ago).ok());
        content.currently_active = (self.state == PresenceState::Online).then_some(self.currently_active);
        content.displayname = profile.and_then(|profile| profile.text("displayname"));
        content.avatar_url = profile.and_then(|profile| profile.text("avatar_url")).map(Into::into);
        let event = PresenceEvent { content, sender: self.user_id.clone() };
        serde_json::value::to_raw_value(&event).expect("a presence event serialises")
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;

    #[test]
    fn an_online_user_becomes_idle_and_then_offline() {
        let presence = Presence::default();
        let alice = user_id!("@alice:a");
        let now_ms = 1_000_000;
        let outcome = presence.connect(alice, &PresenceState::Online, now_ms);
        assert_eq!(outcome, Outcome { is_news: true, needs_watch: true });
        assert!(presence.of(alice, now_ms).currently_active);

        let (outcome, due) = presence.look_again(alice, now_ms + ACTIVE_FOR_MS);
        assert!(outcome.is_news, "no longer currently active");
        assert!(due.is_some());
        assert_eq!(presence.of(alice, now_ms + ACTIVE_FOR_MS).state, PresenceState::Online);

        let idle_ms = now_ms + IDLE_AFTER_MS;
        assert!(presence.look_again(alice, idle_ms).0.is_news);
        assert_eq!(presence.of(alice, idle_ms).state, PresenceState::Unavailable);
        assert!(!presence.connect(alice, &PresenceState::Online, idle_ms).is_news, "waiting is not activity");
        presence.disconnect(alice, &PresenceState::Online, idle_ms);
        assert!(presence.active(alice, idle_ms).is_news);
        assert_eq!(presence.of(alice, idle_ms).state, PresenceState::Online);

        presence.disconnect(alice, &PresenceState::Online, idle_ms);
        let gone_ms = idle_ms + OFFLINE_AFTER_MS;
        let (outcome, due) = presence.look_again(alice, gone_ms);
        assert!(outcome.is_news);
        assert_eq!((presence.of(alice, gone_ms).state, due), (PresenceState::Offline, None));
        assert!(presence.set(alice, PresenceState::Online, None, gone_ms).needs_watch, "watched anew");
    }

    #[test]
    fn one_online_client_is_enough() {
        let presence = Presence::default();
        let (alice, now_ms) = (user_id!("@alice:a"), 1_000_000);
        presence.connect(alice, &PresenceState::Online, now_ms);
        assert!(!presence.connect(alice, &PresenceState::Unavailable, now_ms).is_news);
        presence.disconnect(alice, &PresenceState::Online, now_ms);
        presence.disconnect(alice, &PresenceState::Unavailable, now_ms);
        assert!(
            !presence.connect(alice, &PresenceState::Unavailable, now_ms + 1).is_news,
            "between two polls"
        );
        let later_ms = now_ms + OFFLINE_AFTER_MS;
        assert!(presence.connect(alice, &PresenceState::Unavailable, later_ms).is_news);
        assert_eq!(presence.of(alice, later_ms).state, PresenceState::Unavailable);
    }

    #[test]
    fn a_user_of_another_server_is_offline_when_nothing_is_heard() {
        let presence = Presence::default();
        let (bob, now_ms) = (user_id!("@bob:b"), 10_000_000);
        let online = UserPresence {
            user_id: bob.to_owned(),
            state: PresenceState::Online,
            status_msg: Some("lunch".to_owned()),
            last_active_ago: Some(5000),
            currently_active: true,
        };
        presence.set_remote(online.clone(), now_ms);
        assert_eq!(presence.of(bob, now_ms), online);
        assert_eq!(presence.of(bob, now_ms + 1000).last_active_ago, Some(6000));
        assert_eq!(presence.remote_users(now_ms, 10), [bob]);
        let later_ms = now_ms + REMOTE_FOR_MS;
        assert_eq!(presence.of(bob, later_ms).state, PresenceState::Offline);
        assert!(presence.remote_users(later_ms, 10).is_empty());
    }

    #[test]
    fn a_status_message_is_news() {
        let presence = Presence::default();
        let alice = user_id!("@alice:a");
        presence.set(alice, PresenceState::Online, None, 1);
        assert!(presence.set(alice, PresenceState::Online, Some("lunch".to_owned()), 2).is_news);
        assert!(!presence.set(alice, PresenceState::Online, Some("lunch".to_owned()), 3).is_news);
    }
}
