//! A local user's session: the single writer of the account and all that belongs to it.
//!
//! Owns the user's rows in `ACCOUNTS`, `DEVICES`, `TOKENS`, `OPENID_TOKENS`, `LOGIN_TOKENS`, `ACCOUNT_DATA`, `PROFILES`,
//! `PROFILE_WORDS`, `FILTERS`, `PRIVATE_RECEIPTS`, `THREAD_SUBSCRIPTIONS`, `SLIDING_CONNECTIONS` and `PUSHERS`, and all that serves
//! end-to-end encryption. It exists only for users who have an account. The directory starts it
//! under the session supervisor and passivates it when it is idle or memory is short; whoever waits in
//! `/sync` holds a lease on it. A restart costs one read of each of those ranges and of the user's
//! memberships; what was not durable has not been seen by anybody. The backlog limit is `[actors]`'s.
//!
//! Writes are pipelined as in a room: applied to the hot copy, handed to the storage writer with the
//! reply, published by the completion.

mod account;
mod background;
mod backup;
mod change;
mod data;
mod dehydrated;
mod device;
mod error;
mod handle;
mod ignored;
mod inbox;
mod index;
mod keys;
mod load;
mod login_token;
mod moderation;
mod notices;
mod profile;
mod push_rules;
mod pushers;
mod sliding;
pub(crate) mod tags;
#[cfg(test)]
mod tests;
mod threads;
mod token;
mod unread;

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use dashmap::DashMap;
use engine::id::Position;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ruma::{OwnedDeviceId, OwnedUserId, UserId, presence::PresenceState};
pub use storage::schema::{AccountRecord, DeviceRecord};
use storage::{
    CommitError, Storage,
    schema::{self, DeviceListOutboxRecord, TokenHash},
};

pub use self::{
    account::{NewAccount, OpenIdToken},
    backup::{BackupKeys, BackupPlace, room_keys},
    change::{LogOut, OpenIdKey, SessionChange},
    data::{Profile, SessionData},
    device::{LoggedIn, Login},
    error::SessionError,
    handle::{Connected, SessionHandle},
    ignored::Ignored,
    inbox::{PAGE as INBOX_PAGE, ReceivedId, Waiting},
    index::{RoomEntry, SessionView},
    keys::{CROSS_SIGNING, Claimed, Keys, Upload, Wanted},
    login_token::{LoginToken, LoginTokenKey},
    moderation::Restriction,
    notices::Notice,
    push_rules::by_kind as push_rules_by_kind,
    pushers::{NewPusher, PusherKey},
    sliding::{ConnectionKey, RoomFacts, Told},
    threads::{ThreadChange, ThreadChanges, ThreadWish, Threads},
    token::{AuthenticationFailure, Requester, hash_token},
    unread::{Unread, UnreadCounts},
};
use self::{
    background::Background,
    change::Draft,
    keys::ListChange,
    sliding::SlidingMemory,
    token::TokenCache,
    unread::{PushEvents, UnreadCache},
};
pub(crate) use self::{
    ignored::IGNORED_USERS, keys::merge_signatures, moderation::own_membership, profile::is_text_field,
};
use crate::{
    appservice::EphemeralNews,
    directory::{DirectoryActor, Meter},
    encryption::Sending,
    env::Env,
    hub::Hub,
    presence::{Outcome, Presence},
    room::RoomShared,
};

/// What all sessions share.
pub struct SessionShared {
    env: Env,
    storage: Storage,
    rooms: Arc<RoomShared>,
    published: DashMap<OwnedUserId, Arc<Published>>,
    tokens: TokenCache,
    pub(crate) presence: Presence,
    background: Background,
    pub(crate) sending: Sending,
    push_events: PushEvents,
    /// Whether threads can be subscribed to here.
    has_threads: bool,
}

impl SessionShared {
    /// What the sessions of a server share.
    pub fn new(env: Env, storage: Storage, rooms: Arc<RoomShared>, has_threads: bool) -> Self {
        Self {
            env,
            storage,
            rooms,
            published: DashMap::new(),
            tokens: TokenCache::new(),
            presence: Presence::default(),
            background: Background::default(),
            sending: Sending::default(),
            push_events: PushEvents::new(),
            has_threads,
        }
    }

    /// Waits for what goes on in the background: profile changes that are told to rooms, and leaves.
    pub(crate) async fn finish_background(&self) {
        self.background.finish().await;
    }

    /// Does something in the background, which the server waits for before it stops.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + std::marker::Send + 'static) {
        self.background.spawn(task);
    }

    /// The account of a user whose session is active.
    pub(crate) fn data(&self, user_id: &UserId) -> Option<Arc<SessionData>> {
        self.published.get(user_id).map(|published| published.data.load_full())
    }

    fn hub(&self) -> &Hub {
        &self.rooms.hub
    }

    /// Has the rooms tell of their events whoever has pushers.
    fn watch_for_pushers(&self, published: &Published) {
        let keys = published.data.load().pushers().map(|(key, _)| key.clone()).collect();
        let rooms = published.view.rooms().into_iter().map(|(_, entry)| entry);
        let joined = rooms.filter(RoomEntry::is_joined).map(|entry| entry.room);
        self.hub().push.set(published.view.user_id(), keys, joined);
    }

    /// Tells those who share a room with a user, and the user, that the user's devices changed.
    fn tell_device_list(&self, view: &Arc<SessionView>, position: Position) {
        for other in self.hub().neighbors(view).iter().chain([view]) {
            other.mark_device_list(view.user_id(), position);
            other.wake();
        }
    }

    /// Tells those who share a room with a user of a change of the user's presence.
    fn tell_presence(&self, user_id: &UserId, outcome: Outcome) {
        if outcome.needs_watch
            && let Some(published) = self.published.get(user_id)
        {
            let _ = published.actor.cast(SessionMessage::PresenceDue);
        }
        if !outcome.is_news {
            return;
        }
        self.rooms.outbox.note_presence(user_id);
        self.mark_presence(user_id);
    }

    /// Tells those who share a room with a user of the user's new name or avatar, if the user is there: both are part of
    /// the presence that clients get, but not of what other servers do.
    ///
    /// Spec: client-server API, "Events on Change of Profile Information".
    fn tell_profile(&self, user_id: &UserId) {
        if self.presence.of(user_id, self.env.clock.now_ms()).state != PresenceState::Offline {
            self.mark_presence(user_id);
        }
    }

    /// Has the syncs of those who share a room with a user say what the user's presence is.
    fn mark_presence(&self, user_id: &UserId) {
        self.hub().services.tell(|| EphemeralNews::Presence(user_id.to_owned()));
        let Some(view) = self.hub().session(user_id) else { return };
        // Not durable: the position only orders the change among what sync clients have seen.
        let ticket = self.storage.reserve(1);
        for other in self.hub().neighbors(&view) {
            other.mark_presence(user_id, ticket.last());
            other.wake();
        }
    }
}

/// Where a session publishes its views.
struct Published {
    data: ArcSwap<SessionData>,
    view: Arc<SessionView>,
    unread: UnreadCache,
    sliding: SlidingMemory,
    actor: ActorRef<SessionMessage>,
}

/// What a session is asked to do.
pub enum SessionMessage {
    /// Change the account.
    Change(Box<SessionChange>, RpcReplyPort<Result<(), SessionError>>),
    /// Log in.
    Login(Box<Login>, RpcReplyPort<Result<LoggedIn, SessionError>>),
    /// Exchange a refresh token.
    Refresh(TokenHash, RpcReplyPort<Result<LoggedIn, SessionError>>),
    /// Take one-time keys.
    Claim(Wanted, RpcReplyPort<Result<Claimed, SessionError>>),
    /// Make a new version of the key backup: its algorithm, and what that needs.
    CreateBackup(String, Bytes, RpcReplyPort<Result<u64, SessionError>>),
    /// Delete the dehydrated device.
    DeleteDehydrated(RpcReplyPort<Result<OwnedDeviceId, SessionError>>),
    /// Let go of the to-device messages that a device has.
    Acknowledge {
        /// The device.
        device_id: OwnedDeviceId,
        /// The last of the messages.
        upto: Position,
    },
    /// Note that a device was used.
    Seen {
        /// The device.
        device_id: OwnedDeviceId,
        /// Where it was used.
        ip: Option<String>,
    },
    /// Time may have changed the user's presence.
    PresenceDue,
    /// A commit failed: what is in memory is ahead of the store.
    CommitFailed(CommitError),
}

/// The actor; see the module's documentation.
pub struct SessionActor;

/// A session in memory.
pub struct ActiveSession {
    shared: Arc<SessionShared>,
    meter: Meter,
    data: SessionData,
    published: Arc<Published>,
}

impl Actor for SessionActor {
    type Msg = SessionMessage;
    type State = ActiveSession;
    type Arguments = (OwnedUserId, Arc<SessionShared>, Meter);

    async fn pre_start(
        &self,
        myself: ActorRef<SessionMessage>,
        (user_id, shared, meter): Self::Arguments,
    ) -> Result<ActiveSession, ActorProcessingErr> {
        let session = ActiveSession::load(myself, user_id.clone(), shared, meter).await?;
        session.meter.set_bytes(session.data.weight());
        session.shared.published.insert(user_id, session.published.clone());
        Ok(session)
    }

    async fn handle(
        &self,
        myself: ActorRef<SessionMessage>,
        message: SessionMessage,
        session: &mut ActiveSession,
    ) -> Result<(), ActorProcessingErr> {
        session.handle(&myself, message)?;
        session.meter.set_bytes(session.data.weight());
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<SessionMessage>,
        session: &mut ActiveSession,
    ) -> Result<(), ActorProcessingErr> {
        let ActiveSession { shared, published, data, .. } = session;
        let user_id = &data.user_id;
        let outcome = shared.presence.leave(user_id, shared.env.clock.now_ms());
        shared.tell_presence(user_id, outcome);
        shared.hub().remove_session(&published.view);
        shared.published.remove_if(user_id, |_, known| Arc::ptr_eq(known, published));
        Ok(())
    }
}

impl DirectoryActor for SessionActor {
    type Key = OwnedUserId;
    type Context = Arc<SessionShared>;
    const CLASS: &'static str = "session";

    fn new() -> Self {
        Self
    }

    fn arguments(key: &OwnedUserId, context: &Arc<SessionShared>, meter: Meter) -> Self::Arguments {
        (key.clone(), context.clone(), meter)
    }

    fn is_damage(error: &(dyn std::error::Error + 'static)) -> bool {
        error.downcast_ref::<SessionError>().is_some_and(SessionError::is_damage)
    }
}

impl ActiveSession {
    fn handle(
        &mut self,
        myself: &ActorRef<SessionMessage>,
        message: SessionMessage,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SessionMessage::Change(change, reply) => {
                let draft = self.draft(change.positions());
                self.perform_in(draft, myself, reply, |draft| draft.apply(*change));
            }
            SessionMessage::Login(login, reply) => {
                let entropy = self.shared.env.entropy.clone();
                self.perform(myself, reply, |draft| draft.log_in(*login, &*entropy));
            }
            SessionMessage::Refresh(token, reply) => {
                let entropy = self.shared.env.entropy.clone();
                self.perform(myself, reply, |draft| draft.refresh(&token, &*entropy));
            }
            SessionMessage::Claim(wanted, reply) => {
                self.perform(myself, reply, |draft| Ok(draft.claim_keys(wanted)));
            }
            SessionMessage::CreateBackup(algorithm, auth_data, reply) => {
                self.perform(myself, reply, |draft| draft.create_backup(algorithm, auth_data));
            }
            SessionMessage::DeleteDehydrated(reply) => {
                self.perform(myself, reply, Draft::delete_dehydrated);
            }
            SessionMessage::Acknowledge { device_id, upto } => {
                let mut draft = self.draft(1);
                draft.acknowledge(&device_id, upto);
                self.submit(myself, draft, |_| {});
            }
            SessionMessage::Seen { device_id, ip } => {
                let mut draft = self.draft(1);
                draft.seen(&device_id, ip);
                self.submit(myself, draft, |_| {});
            }
            SessionMessage::PresenceDue => self.look_at_presence(myself),
            // The hot copy holds what the store does not: start over from the store.
            SessionMessage::CommitFailed(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn draft(&self, positions: u64) -> Draft {
        let ticket = self.shared.storage.reserve(positions);
        Draft::new(self.data.clone(), ticket, self.shared.env.clock.now())
    }

    /// Makes a change, or refuses it and leaves everything as it is.
    fn perform<T: Send + 'static>(
        &mut self,
        myself: &ActorRef<SessionMessage>,
        reply: RpcReplyPort<Result<T, SessionError>>,
        change: impl FnOnce(&mut Draft) -> Result<T, SessionError>,
    ) {
        self.perform_in(self.draft(1), myself, reply, change);
    }

    fn perform_in<T: Send + 'static>(
        &mut self,
        mut draft: Draft,
        myself: &ActorRef<SessionMessage>,
        reply: RpcReplyPort<Result<T, SessionError>>,
        change: impl FnOnce(&mut Draft) -> Result<T, SessionError>,
    ) {
        match change(&mut draft) {
            Ok(answer) => self.submit(myself, draft, move |result| {
                let _ = reply.send(result.map(|()| answer)); // a caller that hung up does not care
            }),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// Takes the change into the hot copy and hands it to the storage writer.
    ///
    /// `done` runs once it is durable and visible, or once it has failed.
    fn submit(
        &mut self,
        myself: &ActorRef<SessionMessage>,
        draft: Draft,
        done: impl FnOnce(Result<(), SessionError>) + Send + 'static,
    ) {
        let Draft {
            data,
            mut batch,
            revoked,
            rooms,
            is_news,
            list_change,
            pushers_changed,
            ticket,
            is_erasure,
            ..
        } = draft;
        self.data = data;
        let position = ticket.last();
        let outbox = &self.shared.rooms.outbox;
        if let Some(ListChange { devices, signing_keys }) = list_change.clone().filter(|_| outbox.is_open()) {
            let devices = devices.into_iter().collect();
            let note = DeviceListOutboxRecord { devices, signing_keys, joined: None };
            batch.put(&schema::DEVICE_LIST_OUTBOX, &(position, self.data.user_id.clone()), &note);
        }
        let (shared, published) = (self.shared.clone(), self.published.clone());
        let data = Arc::new(self.data.clone());
        let myself = myself.clone();
        self.shared.storage.submit(batch, Some(ticket), move |result| match result {
            Ok(()) => {
                published.view.set_ignored(data.ignored().clone());
                published.data.store(data);
                for token in &revoked {
                    shared.tokens.revoke(token);
                }
                for room_id in &rooms {
                    published.view.mark_room(room_id, position);
                }
                if is_news {
                    published.view.mark_own(position);
                    shared.hub().services.mail(published.view.user_id());
                }
                if is_news || !rooms.is_empty() {
                    published.view.wake();
                }
                if is_erasure {
                    shared.rooms.erasures.add(published.view.user_id(), position);
                }
                if pushers_changed {
                    shared.watch_for_pushers(&published);
                } else if !rooms.is_empty() {
                    shared.hub().push.nudge(published.view.user_id());
                }
                if list_change.is_some() {
                    shared.tell_device_list(&published.view, position);
                    shared.rooms.outbox.note_list(position);
                }
                done(Ok(()));
            }
            Err(error) => {
                let _ = myself.cast(SessionMessage::CommitFailed(error.clone()));
                done(Err(SessionError::Commit(error)));
            }
        });
    }

    fn look_at_presence(&self, myself: &ActorRef<SessionMessage>) {
        let user_id = &self.data.user_id;
        let now_ms = self.shared.env.clock.now_ms();
        let (outcome, due) = self.shared.presence.look_again(user_id, now_ms);
        self.shared.tell_presence(user_id, Outcome { needs_watch: false, ..outcome });
        if let Some(due) = due {
            myself.send_after(due, || SessionMessage::PresenceDue);
        }
    }
}
