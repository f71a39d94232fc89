//! Presence between servers: told to those who share a room with the user, and believed of those.
//!
//! Spec: server-server API, "Presence".

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ruma::{OwnedServerName, OwnedUserId, RoomId, ServerName, presence::PresenceState};
use serde::Deserialize;
use serde_json::{json, value::to_raw_value};

use crate::{
    appservice::EphemeralNews,
    destination::{Ephemeral, EphemeralContent, PresenceNews},
    homeserver::Homeserver,
    presence::UserPresence,
    session::SessionError,
};

/// Users in one EDU that are looked at.
const PUSH_MAX: usize = 1000;

/// Bytes of a status message, as for local users.
const STATUS_MAX: usize = 4096;

/// Changes that come at once are told at once.
const GATHER_FOR: Duration = Duration::from_millis(100);

/// Others forget a user of whom they hear nothing for half an hour.
const TELL_AGAIN_MS: u64 = 20 * 60 * 1000;

/// How often it is looked who has to be told of again.
const LOOK_EVERY: Duration = Duration::from_millis(LOOK_EVERY_MS);
const LOOK_EVERY_MS: u64 = 60 * 1000;

/// An `m.presence`.
#[derive(Debug, Deserialize)]
pub(super) struct PresenceEdu {
    push: Vec<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct Pushed {
    user_id: OwnedUserId,
    presence: PresenceState,
    status_msg: Option<String>,
    last_active_ago: Option<u64>,
    #[serde(default)]
    currently_active: bool,
}

impl Homeserver {
    /// Takes in what another server says of its users.
    pub(super) async fn receive_presence(
        &self,
        origin: &ServerName,
        edu: PresenceEdu,
    ) -> Result<(), SessionError> {
        for pushed in edu.push.into_iter().take(PUSH_MAX) {
            let Ok(pushed) = serde_json::from_value::<Pushed>(pushed) else { continue };
            let is_known = matches!(
                pushed.presence,
                PresenceState::Online | PresenceState::Unavailable | PresenceState::Offline
            );
            if !is_known
                || pushed.user_id.server_name() != origin
                || !self.shares_room_with(&pushed.user_id).await?
            {
                continue;
            }
            let views = self.local_neighbors(&pushed.user_id).await?;
            let user_id = pushed.user_id.clone();
            let presence = UserPresence {
                user_id: pushed.user_id,
                state: pushed.presence,
                status_msg: pushed.status_msg.filter(|status| status.len() <= STATUS_MAX),
                last_active_ago: pushed.last_active_ago,
                currently_active: pushed.currently_active,
            };
            self.session_shared().presence.set_remote(presence, self.env().clock.now_ms());
            let hub = &self.room_shared().hub;
            hub.services.tell(|| EphemeralNews::Presence(user_id.clone()));
            // Not durable: the position only orders the change among what sync clients have seen.
            let ticket = self.storage().reserve(1);
            for view in views {
                view.mark_presence(&user_id, ticket.last());
                view.wake();
            }
        }
        Ok(())
    }

    /// Tells other servers of local users' presence for as long as the server runs.
    pub(super) async fn announce_presence(&self) {
        let mut told = BTreeMap::<OwnedUserId, u64>::new();
        let mut look_at_ms = 0;
        loop {
            let PresenceNews { mut users, newcomers } = tokio::select! {
                biased;
                news = self.outbox().changed_presence() => news,
                () = tokio::time::sleep(LOOK_EVERY) => PresenceNews::default(),
            };
            tokio::time::sleep(GATHER_FOR).await;
            let now_ms = self.env().clock.now_ms();
            if look_at_ms <= now_ms {
                look_at_ms = now_ms + LOOK_EVERY_MS;
                let there = self.session_shared().presence.local_users(now_ms);
                told.retain(|user_id, _| there.binary_search(user_id).is_ok());
                let is_due = |user_id: &OwnedUserId| {
                    told.get(user_id).is_none_or(|told_ms| told_ms + TELL_AGAIN_MS <= now_ms)
                };
                users.extend(there.into_iter().filter(is_due));
            }
            for user_id in users {
                if let Err(error) = self.tell_others_presence(&user_id).await {
                    tracing::warn!(%error, "cannot tell other servers of a user's presence");
                }
                told.insert(user_id, now_ms);
            }
            for (room_id, servers) in newcomers {
                self.tell_newcomers(&room_id, &servers);
            }
        }
    }

    /// Tells servers that are new in a room of those local users in it who are there.
    fn tell_newcomers(&self, room_id: &RoomId, servers: &BTreeSet<OwnedServerName>) {
        let servers = self.outbox().others(servers.iter());
        let there = self.session_shared().presence.local_users(self.env().clock.now_ms());
        let is_joined = |user_id: &OwnedUserId| {
            let entry = self.room_shared().hub.session(user_id).and_then(|view| view.room(room_id));
            entry.is_some_and(|entry| entry.is_joined())
        };
        for user_id in there.into_iter().filter(is_joined).take(PUSH_MAX) {
            self.tell_presence(&user_id, servers.clone());
        }
    }

    async fn tell_others_presence(&self, user_id: &OwnedUserId) -> Result<(), SessionError> {
        let servers = self.servers_sharing_rooms(user_id, None).await?;
        let servers = self.outbox().others(servers.iter());
        self.tell_presence(user_id, servers);
        Ok(())
    }

    fn tell_presence(&self, user_id: &OwnedUserId, servers: Vec<OwnedServerName>) {
        if servers.is_empty() {
            return;
        }
        let presence = self.presence(user_id);
        let mut pushed = json!({
            "user_id": user_id,
            "presence": presence.state,
            "last_active_ago": presence.last_active_ago.unwrap_or(0),
            "currently_active": presence.currently_active,
        });
        if let Some(status) = presence.status_msg {
            pushed["status_msg"] = status.into();
        }
        if let Ok(pushed) = to_raw_value(&pushed) {
            let content = EphemeralContent::Presence(pushed.into());
            self.outbox().send_ephemeral(Ephemeral { key: format!("presence {user_id}"), content }, servers);
        }
    }

    /// Users of other servers who share a room with a local user and are not offline.
    pub(crate) async fn present_remote_users(
        &self,
        session: &crate::session::SessionHandle,
    ) -> Result<Vec<UserPresence>, SessionError> {
        let now_ms = self.env().clock.now_ms();
        let presence = &self.session_shared().presence;
        let mut present = Vec::new();
        let joined: BTreeSet<_> = {
            let rooms = session.view().rooms().into_iter();
            rooms.filter(|(_, entry)| entry.is_joined()).map(|(_, entry)| entry.room).collect()
        };
        for user_id in presence.remote_users(now_ms, PUSH_MAX) {
            if self.joined_rooms_of(&user_id).await?.iter().any(|room| joined.contains(room)) {
                present.push(presence.of(&user_id, now_ms));
            }
        }
        Ok(present)
    }
}
