//! What accounts set off in many rooms, done behind the request that asked for it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use dashmap::{DashMap, mapref::entry::Entry};
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use ruma::{OwnedUserId, RoomId, UserId};
use tokio::{sync::oneshot, task::JoinSet};
use tracing::Instrument;

use super::{SessionError, SessionHandle};
use crate::{
    effects::{Effect, may_pass},
    homeserver::Homeserver,
    room::{MembershipAction, MembershipChange, RoomError, Send},
};

/// Rooms that one account works on at a time.
const ROOMS_AT_ONCE: usize = 8;

/// Work under way, owned by the server.
#[derive(Default)]
pub(super) struct Background {
    tasks: Mutex<JoinSet<()>>,
    /// Users whose rooms are being told of their profile, and whether it has changed since.
    profiles: Arc<DashMap<OwnedUserId, bool>>,
}

impl Background {
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + std::marker::Send + 'static) {
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Waits for everything that is under way.
    pub(super) async fn finish(&self) {
        loop {
            let mut tasks = std::mem::take(&mut *self.tasks.lock());
            if tasks.is_empty() {
                return;
            }
            while tasks.join_next().await.is_some() {}
        }
    }
}

/// Ends a user's turn of telling rooms, also if the task panics.
struct Turn {
    user_id: OwnedUserId,
    profiles: Arc<DashMap<OwnedUserId, bool>>,
}

impl Turn {
    /// Begins a turn, or has the present one go round again.
    fn begin(profiles: &Arc<DashMap<OwnedUserId, bool>>, user_id: OwnedUserId) -> Option<Self> {
        match profiles.entry(user_id.clone()) {
            Entry::Occupied(mut again) => {
                again.insert(true);
                None
            }
            Entry::Vacant(free) => {
                free.insert(false);
                Some(Self { user_id, profiles: profiles.clone() })
            }
        }
    }

    /// Whether the profile changed since the last look; ends the turn if not.
    fn goes_on(&self) -> bool {
        let is_over = self.profiles.remove_if(&self.user_id, |_, again| !*again).is_some();
        if !is_over && let Some(mut again) = self.profiles.get_mut(&self.user_id) {
            *again = false;
        }
        !is_over
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // After a normal end there may be a new turn already; only a panic leaves one of its own behind.
        if std::thread::panicking() {
            self.profiles.remove(&self.user_id);
        }
    }
}

impl Homeserver {
    /// Does something that does not stop half-way if whoever asked for it hangs up; none if it panicked.
    pub(crate) async fn see_through<T: std::marker::Send + 'static>(
        &self,
        work: impl Future<Output = T> + std::marker::Send + 'static,
    ) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let work = async move {
            let _ = reply.send(work.await); // whoever hung up does not care
        };
        self.session_shared().background.spawn(work.in_current_span());
        answer.await.ok()
    }

    /// Puts a user's present profile into the membership events of all joined rooms.
    ///
    /// Spec: client-server API, "Events on Change of Profile Information".
    pub(crate) fn tell_rooms_of_profile(&self, session: &SessionHandle) {
        let background = &self.session_shared().background;
        let Some(turn) = Turn::begin(&background.profiles, session.user_id().to_owned()) else { return };
        let (homeserver, session) = (self.clone(), session.clone());
        background.spawn(async move {
            loop {
                let user_id = session.user_id().as_str();
                // Read first: who changes the profile from now on has the effect stay due.
                let asked = homeserver.effect_due(Effect::Profile, user_id).await;
                if homeserver.tell_rooms_once(&session).await {
                    homeserver.effect_done(Effect::Profile, user_id, asked).await;
                }
                if !turn.goes_on() {
                    return;
                }
            }
        });
    }

    /// Whether all rooms that can be told were told.
    async fn tell_rooms_once(&self, session: &SessionHandle) -> bool {
        let is_all = AtomicBool::new(true);
        let joined = session.view().rooms().into_iter().filter(|(_, entry)| entry.is_joined());
        stream::iter(joined)
            .for_each_concurrent(ROOMS_AT_ONCE, async |(room_id, _)| {
                if let Err(error) = self.tell_room_of_profile(session, &room_id).await {
                    tracing::warn!(room.id = %room_id, %error, "a room was not told of a profile change");
                    is_all.fetch_and(!may_pass(&error), Ordering::Relaxed);
                }
            })
            .await;
        is_all.into_inner()
    }

    async fn tell_room_of_profile(&self, session: &SessionHandle, room_id: &RoomId) -> Result<(), RoomError> {
        let mut content = session.data().profile().member_content();
        content.insert("membership".to_owned(), "join".into());
        let draft = engine::pdu::Draft {
            kind: "m.room.member".into(),
            state_key: Some(session.user_id().to_string()),
            content: serde_json::value::to_raw_value(&content)
                .map_err(|error| RoomError::Invalid(error.to_string()))?,
            redacts: None,
            dated: None,
        };
        let room = self.room(room_id).await?;
        room.send(Send { sender: session.user_id().to_owned(), draft, sent_by: None }).await?;
        Ok(())
    }

    /// Takes a user out of all rooms, and back from invites and knocks.
    pub(crate) fn leave_all_rooms(&self, session: SessionHandle) {
        let homeserver = self.clone();
        self.session_shared().background.spawn(async move {
            let is_all = AtomicBool::new(true);
            let asked = homeserver.effect_due(Effect::Departure, session.user_id().as_str()).await;
            let inside = session
                .view()
                .rooms()
                .into_iter()
                .filter(|(_, entry)| ["join", "invite", "knock"].contains(&entry.membership.as_str()));
            stream::iter(inside)
                .for_each_concurrent(ROOMS_AT_ONCE, async |(room_id, _)| {
                    if let Err(error) = homeserver.leave_for_good(session.user_id(), &room_id).await {
                        tracing::warn!(room.id = %room_id, %error, "a deactivated user did not leave a room");
                        is_all.fetch_and(!may_pass(&error), Ordering::Relaxed);
                    }
                })
                .await;
            if is_all.into_inner() {
                homeserver.effect_done(Effect::Departure, session.user_id().as_str(), asked).await;
            }
        });
    }

    /// Takes a user out of a room, or rejects an invite or takes back a knock through a server that is in the room.
    async fn leave_for_good(&self, user: &UserId, room_id: &RoomId) -> Result<(), RoomError> {
        let room = self.room(room_id).await?;
        let content = serde_json::Map::new();
        if self.federates() && !self.is_resident(room_id).await? {
            let record = room.membership_record(user).await?;
            return match record.map(|record| record.membership).as_deref() {
                Some("invite" | "knock") => self.leave_remote(user, room_id, &content).await,
                // What is left of a room that nobody here is in any more.
                _ => Ok(()),
            };
        }
        let (sender, target) = (user.to_owned(), user.to_owned());
        let leave = MembershipChange { sender, target, action: MembershipAction::Leave, content };
        room.change_membership(leave).await.map(drop)
    }

    /// Deactivates an account for good: no device, no password, no profile; it leaves all rooms.
    ///
    /// Spec: client-server API, "Deactivating accounts".
    pub async fn deactivate(&self, user_id: &UserId, erase: bool) -> Result<(), SessionError> {
        let session = self.session(user_id).await?;
        session.change(super::SessionChange::Deactivate { erase }).await?;
        self.leave_all_rooms(session);
        Ok(())
    }
}
