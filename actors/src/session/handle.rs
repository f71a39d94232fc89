//! What others hold of a session: writes go to its actor, reads to its published views and the store.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use engine::id::Position;
use ruma::{
    OwnedDeviceId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId,
    api::client::filter::FilterDefinition,
    presence::PresenceState,
    push::{Action, NewPushRule, RuleKind},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json, value::RawValue};
use sha2::{Digest, Sha256};
use storage::{
    Direction, KeyRange,
    schema::{self, SlidingConnectionRecord},
};

use super::{
    Claimed, ConnectionKey, LogOut, LoggedIn, Login, OpenIdToken, Published, RoomEntry, RoomFacts,
    SessionActor, SessionChange, SessionData, SessionError, SessionMessage, SessionShared, SessionView, Told,
    Unread, Wanted, change::FULLY_READ, tags, token::hash_token, unread::ReadUpTo,
};
use crate::{
    directory::{Directory, Handle},
    presence::UserPresence,
    room::{Receipt, RoomError, RoomHandle},
};

/// The session of a local user who has an account.
///
/// It is a lease: the session stays in memory as long as a handle exists.
#[derive(Clone)]
pub struct SessionHandle {
    pub(super) actor: Handle<SessionActor>,
    published: Arc<Published>,
    pub(super) shared: Arc<SessionShared>,
}

/// Filters that one user may have.
const FILTERS_MAX: usize = 1000;

/// Expired OpenID tokens that are let go of with each new one: faster than they come.
const OPENID_SWEEP: usize = 10;

impl SessionHandle {
    pub(crate) async fn open(
        shared: &Arc<SessionShared>,
        sessions: &Directory<SessionActor>,
        user_id: &UserId,
    ) -> Result<Self, SessionError> {
        // Looked up first: a user without an account costs no actor.
        if !shared.published.contains_key(user_id)
            && shared.storage.get(&schema::ACCOUNTS, user_id).await?.is_none()
        {
            return Err(SessionError::NotFound);
        }
        let actor = sessions.get(&user_id.to_owned()).await.map_err(SessionError::Activate)?;
        let published = shared.published.get(user_id).map(|published| published.clone());
        Ok(Self { actor, published: published.ok_or(SessionError::Crashed)?, shared: shared.clone() })
    }

    /// Whose session it is.
    pub fn user_id(&self) -> &UserId {
        self.published.view.user_id()
    }

    /// The account as of its last durable change.
    pub fn data(&self) -> Arc<SessionData> {
        self.published.data.load_full()
    }

    /// The user's rooms, and the signal of changes.
    pub fn view(&self) -> &Arc<SessionView> {
        &self.published.view
    }

    /// Tells the actor something that needs no answer.
    pub(super) fn cast(&self, message: SessionMessage) {
        let _ = self.published.actor.cast(message); // an actor that has crashed starts over from the store
    }

    /// Changes the account.
    pub async fn change(&self, change: SessionChange) -> Result<(), SessionError> {
        self.actor.call(|reply| SessionMessage::Change(Box::new(change), reply)).await?
    }

    /// Logs in on a device; a known one loses its former tokens.
    pub async fn log_in(&self, login: Login) -> Result<LoggedIn, SessionError> {
        self.actor.call(|reply| SessionMessage::Login(Box::new(login), reply)).await?
    }

    /// Takes one-time keys, which nobody gets again.
    ///
    /// Spec: client-server API, `POST /_matrix/client/v3/keys/claim`.
    pub async fn claim(&self, wanted: Wanted) -> Result<Claimed, SessionError> {
        self.actor.call(|reply| SessionMessage::Claim(wanted, reply)).await?
    }

    /// Deletes the dehydrated device; returns its ID.
    pub async fn delete_dehydrated(&self) -> Result<OwnedDeviceId, SessionError> {
        self.actor.call(SessionMessage::DeleteDehydrated).await?
    }

    /// Exchanges a refresh token of this user.
    pub async fn refresh(&self, token: &str) -> Result<LoggedIn, SessionError> {
        let hash = hash_token(token);
        self.actor.call(|reply| SessionMessage::Refresh(hash, reply)).await?
    }

    /// Logs out devices and forgets them.
    pub async fn delete_devices(&self, device_ids: Vec<OwnedDeviceId>) -> Result<(), SessionError> {
        self.change(SessionChange::DeleteDevices(device_ids)).await
    }

    /// Logs out and forgets all devices.
    pub async fn delete_all_devices(&self) -> Result<(), SessionError> {
        self.change(SessionChange::DeleteAllDevices).await
    }

    /// Names a device.
    pub async fn rename_device(
        &self,
        device_id: OwnedDeviceId,
        name: Option<String>,
    ) -> Result<(), SessionError> {
        self.change(SessionChange::RenameDevice(device_id, name)).await
    }

    /// Sets the password's hash, Argon2id in PHC form.
    pub async fn set_password(&self, hash: String, log_out: LogOut) -> Result<(), SessionError> {
        self.change(SessionChange::SetPassword { hash, log_out }).await
    }

    /// Sets account data: of a room, or global.
    pub async fn set_account_data(
        &self,
        room_id: Option<OwnedRoomId>,
        kind: String,
        content: Box<RawValue>,
    ) -> Result<(), SessionError> {
        self.change(SessionChange::SetAccountData(room_id, kind, content.into())).await
    }

    /// The tags of a room.
    pub fn tags(&self, room_id: &RoomId) -> serde_json::Map<String, serde_json::Value> {
        tags::read(self.data().account_data(Some(room_id), tags::KIND))
    }

    /// Sets the fully-read marker of a room.
    pub async fn set_fully_read(
        &self,
        room_id: OwnedRoomId,
        event_id: &ruma::EventId,
    ) -> Result<(), SessionError> {
        let content = json!({ "event_id": event_id });
        let content = serde_json::value::to_raw_value(&content).expect("a JSON value serialises");
        self.change(SessionChange::SetFullyRead(room_id, content.into())).await
    }

    /// Where the user's fully-read marker of a room is.
    pub fn fully_read(&self, room_id: &RoomId) -> Option<OwnedEventId> {
        #[derive(Deserialize)]
        struct Marker {
            event_id: OwnedEventId,
        }
        let data = self.data();
        let content = data.account_data(Some(room_id), FULLY_READ)?;
        serde_json::from_str::<Marker>(content.get()).ok().map(|marker| marker.event_id)
    }

    /// Sets a private receipt; an older one than the present is ignored.
    pub async fn set_private_receipt(
        &self,
        room_id: OwnedRoomId,
        receipt: Receipt,
    ) -> Result<(), SessionError> {
        self.change(SessionChange::SetPrivateReceipt(room_id, Box::new(receipt))).await
    }

    /// The private receipts of a room that are newer than `since`.
    pub fn private_receipts(&self, room_id: &RoomId, since: Position) -> Vec<Receipt> {
        let data = self.data();
        data.private_receipts(room_id).filter(|receipt| receipt.position > since).cloned().collect()
    }

    /// Creates or replaces a push rule, next to another one if asked.
    pub async fn set_push_rule(
        &self,
        rule: NewPushRule,
        after: Option<String>,
        before: Option<String>,
    ) -> Result<(), SessionError> {
        self.change(SessionChange::SetPushRule { rule: Box::new(rule), after, before }).await
    }

    /// Removes a push rule.
    pub async fn remove_push_rule(&self, kind: RuleKind, rule_id: String) -> Result<(), SessionError> {
        self.change(SessionChange::RemovePushRule(kind, rule_id)).await
    }

    /// Switches a push rule on or off.
    pub async fn enable_push_rule(
        &self,
        kind: RuleKind,
        rule_id: String,
        enabled: bool,
    ) -> Result<(), SessionError> {
        self.change(SessionChange::EnablePushRule(kind, rule_id, enabled)).await
    }

    /// Sets what a push rule does.
    pub async fn set_push_rule_actions(
        &self,
        kind: RuleKind,
        rule_id: String,
        actions: Vec<Action>,
    ) -> Result<(), SessionError> {
        self.change(SessionChange::SetPushRuleActions(kind, rule_id, actions)).await
    }

    /// Keeps a filter, as its client spelled it, and returns its ID; the same filter has the same ID.
    pub async fn add_filter(&self, filter: Map<String, Value>) -> Result<String, SessionError> {
        let json = Value::Object(filter).to_string();
        let id = BASE64_URL_SAFE_NO_PAD.encode(&Sha256::digest(json.as_bytes())[..12]);
        let user_id = self.user_id().to_owned();
        let storage = &self.shared.storage;
        if storage.get(&schema::FILTERS, &(&user_id, &id)).await?.is_some() {
            return Ok(id);
        }
        let all = KeyRange::prefix(&(&user_id,));
        if storage.range(&schema::FILTERS, all, Direction::Ascending, FILTERS_MAX).await?.len() >= FILTERS_MAX
        {
            return Err(SessionError::TooMany("filters"));
        }
        self.change(SessionChange::AddFilter { id: id.clone(), json }).await?;
        Ok(id)
    }

    /// A filter of this user.
    pub async fn filter(&self, id: &str) -> Result<Option<FilterDefinition>, SessionError> {
        self.stored_filter(id).await
    }

    /// A filter of this user, as it was uploaded.
    pub async fn filter_as_uploaded(&self, id: &str) -> Result<Option<Box<RawValue>>, SessionError> {
        self.stored_filter(id).await
    }

    async fn stored_filter<T: DeserializeOwned>(&self, id: &str) -> Result<Option<T>, SessionError> {
        let json = self.shared.storage.get(&schema::FILTERS, &(self.user_id(), id)).await?;
        json.map(|json| serde_json::from_str(&json).map_err(|error| SessionError::Damaged(error.to_string())))
            .transpose()
    }

    /// Makes a token with which a third party can learn the user's ID.
    ///
    /// Spec: client-server API, "OpenID".
    pub async fn open_id_token(&self) -> Result<OpenIdToken, SessionError> {
        let now_ms = self.shared.env.clock.now_ms();
        let token = OpenIdToken::new(&*self.shared.env.entropy, now_ms);
        let old = KeyRange::all().before(&(now_ms, [0; 32]));
        let storage = &self.shared.storage;
        let expired = storage.range(&schema::OPENID_TOKENS, old, Direction::Ascending, OPENID_SWEEP).await?;
        let expired = expired.into_iter().map(|(key, _)| key).collect();
        self.change(SessionChange::AddOpenIdToken { key: token.key(), expired }).await?;
        Ok(token)
    }

    /// Keeps what a sliding-sync connection has sent.
    pub async fn set_sliding_connection(
        &self,
        key: ConnectionKey,
        record: SlidingConnectionRecord,
    ) -> Result<(), SessionError> {
        self.change(SessionChange::SetSlidingConnection(key, Arc::new(record))).await
    }

    /// What a sliding-sync connection has sent besides, as of a `pos`.
    pub(crate) fn told(&self, key: &ConnectionKey, pos: &str) -> Told {
        self.published.sliding.told(key, pos)
    }

    /// Notes what a response sends besides: `before` is its request's `pos`, `after` its own.
    pub(crate) fn set_told(&self, key: &ConnectionKey, before: Option<&str>, after: &str, told: Told) {
        self.published.sliding.set_told(&self.data(), key, before, after, told);
    }

    /// What is known of rooms for the filters of lists.
    pub(crate) fn room_facts(&self, entries: &[RoomEntry]) -> Vec<Option<RoomFacts>> {
        self.published.sliding.facts(entries)
    }

    /// Keeps what was found out of rooms.
    pub(crate) fn set_room_facts(&self, facts: impl IntoIterator<Item = RoomFacts>) {
        self.published.sliding.set_facts(facts);
    }

    /// What the user has not read of a room.
    pub async fn unread(&self, room: &RoomHandle) -> Result<Unread, RoomError> {
        let push_events = &self.shared.push_events;
        self.published.unread.count(&self.data(), self.view(), room, push_events).await
    }

    /// How far the user has read a room.
    pub(super) async fn read_up_to(&self, room: &RoomHandle) -> Result<ReadUpTo, RoomError> {
        let push_events = &self.shared.push_events;
        self.published.unread.read_up_to(&self.data(), self.view(), room, push_events).await
    }

    /// Sets the user's presence.
    pub fn set_presence(&self, state: PresenceState, status_msg: Option<String>) {
        let now_ms = self.shared.env.clock.now_ms();
        let outcome = self.shared.presence.set(self.user_id(), state, status_msg, now_ms);
        self.shared.tell_presence(self.user_id(), outcome);
    }

    /// Shows the user as `state` while a client waits for news; none if the client wants no part in it.
    ///
    /// Spec: client-server API, `set_presence` of `GET /_matrix/client/v3/sync`.
    pub fn connect(&self, state: &PresenceState) -> Option<Connected> {
        if *state == PresenceState::Offline {
            return None;
        }
        let outcome = self.shared.presence.connect(self.user_id(), state, self.shared.env.clock.now_ms());
        self.shared.tell_presence(self.user_id(), outcome);
        let (user_id, state) = (self.user_id().to_owned(), state.clone());
        Some(Connected { user_id, state, shared: self.shared.clone() })
    }

    /// The user's presence as others see it.
    pub fn presence(&self) -> UserPresence {
        self.shared.presence.of(self.user_id(), self.shared.env.clock.now_ms())
    }

    /// The presence of those whose presence changed after `since`; at first, of all who are not offline.
    pub fn presence_since(&self, since: Position) -> Vec<UserPresence> {
        let is_first = since == Position(0);
        let users: Vec<OwnedUserId> = if is_first {
            let neighbors = self.shared.hub().neighbors(self.view());
            neighbors.iter().map(|view| view.user_id().to_owned()).collect()
        } else {
            self.view().presence_changed(since)
        };
        let now_ms = self.shared.env.clock.now_ms();
        let presence = users.iter().map(|user_id| self.shared.presence.of(user_id, now_ms));
        presence.filter(|presence| !is_first || presence.state != PresenceState::Offline).collect()
    }

    /// The presence of those of some users who are not offline.
    pub(crate) fn presence_of<'a>(&self, users: impl Iterator<Item = &'a OwnedUserId>) -> Vec<UserPresence> {
        let now_ms = self.shared.env.clock.now_ms();
        let presence = users.map(|user_id| self.shared.presence.of(user_id, now_ms));
        presence.filter(|presence| presence.state != PresenceState::Offline).collect()
    }
}

/// A client waits for news; dropping it ends that.
#[must_use = "the user is shown as connected as long as this exists"]
pub struct Connected {
    user_id: OwnedUserId,
    state: PresenceState,
    shared: Arc<SessionShared>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        let outcome =
            self.shared.presence.disconnect(&self.user_id, &self.state, self.shared.env.clock.now_ms());
        self.shared.tell_presence(&self.user_id, outcome);
    }
}
