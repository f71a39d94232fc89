//! What readers see of an account: published after each durable commit, never changed.

use std::{
    ops::Bound,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use engine::{id::Position, push::CompiledRules};
use ruma::{DeviceId, OwnedDeviceId, OwnedRoomId, OwnedUserId, RoomId, UserId, push::Ruleset};
use serde_json::value::RawValue;
use storage::schema::{AccountRecord, DeviceRecord, PusherRecord, SlidingConnectionRecord};

use super::{
    IGNORED_USERS, Ignored, Keys, PusherKey, Threads, push_rules,
    sliding::{self, ConnectionKey, Connections},
};
use crate::room::{INVITE_PERMISSION, Receipt, blocks_invites};

/// An account with everything that belongs to it. Cloning shares all of it.
#[derive(Clone)]
pub struct SessionData {
    pub(super) user_id: OwnedUserId,
    pub(super) account: Arc<AccountRecord>,
    pub(super) devices: imbl::OrdMap<OwnedDeviceId, Arc<DeviceRecord>>,
    pub(super) profile: Profile,
    pub(super) account_data: AccountData,
    pub(super) private_receipts: imbl::OrdMap<(OwnedRoomId, String), Receipt>,
    pub(super) keys: Keys,
    pub(super) pushers: imbl::OrdMap<PusherKey, Arc<PusherRecord>>,
    pub(super) threads: Threads,
    /// Whether threads can be subscribed to here.
    pub(super) has_threads: bool,
    ignored: Arc<Ignored>,
    push_rules: Arc<Ruleset>,
    /// The rules, compiled when they are first applied.
    compiled_rules: Arc<OnceLock<CompiledRules>>,
    pub(super) sliding: Connections,
}

impl SessionData {
    /// An account that has nothing yet but the predefined push rules.
    pub(super) fn new(user_id: OwnedUserId, account: AccountRecord, has_threads: bool) -> Self {
        let mut data = Self {
            ignored: Arc::default(),
            push_rules: Arc::default(),
            compiled_rules: Arc::default(),
            user_id,
            account: Arc::new(account),
            devices: imbl::OrdMap::new(),
            profile: Profile::default(),
            account_data: AccountData::default(),
            private_receipts: imbl::OrdMap::new(),
            sliding: Connections::new(),
            keys: Keys::default(),
            pushers: imbl::OrdMap::new(),
            threads: Threads::default(),
            has_threads,
        };
        // Before everything that a client may have seen: it is news to a first sync only.
        data.set_push_rules(push_rules::predefined(&data.user_id, has_threads), Position(1));
        data
    }

    /// Whose account it is.
    pub fn user_id(&self) -> &UserId {
        &self.user_id
    }

    /// The account itself.
    pub fn account(&self) -> &AccountRecord {
        &self.account
    }

    /// A device.
    pub fn device(&self, device_id: &DeviceId) -> Option<&DeviceRecord> {
        self.devices.get(device_id).map(|device| &**device)
    }

    /// All devices, in the order of their IDs.
    pub fn devices(&self) -> impl Iterator<Item = (&DeviceId, &DeviceRecord)> {
        self.devices.iter().map(|(id, device)| (&**id, &**device))
    }

    /// Keys, key backups and inboxes.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The profile.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The user's push rules, predefined ones included.
    pub fn push_rules(&self) -> &Arc<Ruleset> {
        &self.push_rules
    }

    /// The user's push rules, ready to be applied.
    pub fn compiled_rules(&self) -> &CompiledRules {
        self.compiled_rules.get_or_init(|| CompiledRules::new(&self.push_rules))
    }

    /// A piece of account data: of a room, or global.
    pub fn account_data(&self, room_id: Option<&RoomId>, kind: &str) -> Option<&RawValue> {
        self.account_data.get(room_id, kind)
    }

    /// Whether the user wants no invites.
    ///
    /// Spec: client-server API, "Invite permission".
    pub fn blocks_invites(&self) -> bool {
        let content = self.account_data(None, INVITE_PERMISSION);
        content.is_some_and(|content| blocks_invites(content.get().as_bytes()))
    }

    /// Whether the user ignores another one.
    ///
    /// Spec: client-server API, "Ignoring Users".
    pub fn ignores(&self, user_id: &UserId) -> bool {
        self.ignored.contains(user_id)
    }

    /// Users whom the user ignores.
    pub fn ignored(&self) -> &Arc<Ignored> {
        &self.ignored
    }

    /// Sets a piece of account data: of a room, or global.
    pub(super) fn set_account_data(
        &mut self,
        room_id: Option<OwnedRoomId>,
        kind: &str,
        content: Arc<RawValue>,
        position: Position,
    ) {
        if room_id.is_none() && kind == IGNORED_USERS {
            self.ignored = Arc::new(Ignored::read(&self.user_id, content.get().as_bytes()));
        }
        self.account_data.set(room_id, kind, content, position);
    }

    /// Account data that was set after `since`, oldest first: of a room, or global.
    pub fn account_data_since(
        &self,
        room_id: Option<&RoomId>,
        since: Position,
    ) -> impl Iterator<Item = (&str, &RawValue)> {
        self.account_data.since(room_id, since)
    }

    /// When the user last changed what decides which events count as unread: in all rooms alike.
    pub fn counting_changed(&self) -> Position {
        let of = |kind| self.account_data.position(kind);
        of(PUSH_RULES).max(of(IGNORED_USERS))
    }

    /// When the user last changed what decides which events of a room count as unread.
    pub(super) fn settings_changed(&self, room_id: &RoomId) -> Position {
        self.counting_changed().max(self.threads.changed(room_id))
    }

    /// The private receipts of a room.
    pub fn private_receipts(&self, room_id: &RoomId) -> impl Iterator<Item = &Receipt> {
        let from = (room_id.to_owned(), String::new());
        self.private_receipts.range(from..).take_while(move |((room, _), _)| room == room_id).map(|(_, r)| r)
    }

    /// The threads that the user has subscribed to or unsubscribed from.
    pub fn threads(&self) -> &Threads {
        &self.threads
    }

    /// What a sliding-sync connection of a device has sent.
    pub fn sliding_connection(&self, key: &ConnectionKey) -> Option<&Arc<SlidingConnectionRecord>> {
        self.sliding.get(key)
    }

    /// Sets the push rules and makes them visible as account data.
    pub(super) fn set_push_rules(&mut self, rules: Ruleset, position: Position) -> Arc<RawValue> {
        self.push_rules = Arc::new(rules);
        self.compiled_rules = Arc::default();
        let content: Arc<RawValue> = push_rules_content(&self.push_rules).into();
        self.account_data.set(None, PUSH_RULES, content.clone(), position);
        content
    }

    /// About how much memory it takes, in bytes.
    pub(super) fn weight(&self) -> u64 {
        let devices = 512 * self.devices.len() as u64;
        let receipts = 512 * self.private_receipts.len() as u64;
        let sliding = self.sliding.values().map(|record| sliding::weight(record)).sum::<u64>();
        BASE_WEIGHT
            + devices
            + receipts
            + sliding
            + self.profile.size() as u64
            + self.account_data.weight
            + self.keys.weight()
            + self.threads.weight()
    }
}

/// Bytes of a session apart from what is counted: its task, its mailbox, its view and the parsed push rules. With those that a new
/// account has it comes to 22 KiB, the difference that a thousand of them made to the process.
const BASE_WEIGHT: u64 = 18 << 10;

/// The type of the account data that holds the push rules.
pub(super) const PUSH_RULES: &str = "m.push_rules";

fn push_rules_content(rules: &Ruleset) -> Box<RawValue> {
    let content = serde_json::json!({ "global": push_rules::by_kind(rules) });
    serde_json::value::to_raw_value(&content).expect("JSON serialises")
}

/// A user's profile: field names and JSON values.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    pub(super) fields: imbl::OrdMap<String, Arc<RawValue>>,
}

impl Profile {
    /// A field.
    pub fn get(&self, name: &str) -> Option<&RawValue> {
        self.fields.get(name).map(|value| &**value)
    }

    /// A field that is a string.
    pub fn text(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.get(name)?.get()).ok()
    }

    /// All fields, in the order of their names.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &RawValue)> {
        self.fields.iter().map(|(name, value)| (name.as_str(), &**value))
    }

    /// Bytes of names and values.
    pub(super) fn size(&self) -> usize {
        self.fields().map(|(name, value)| name.len() + value.get().len() + 6).sum()
    }

    /// The part of a membership event's content that a profile decides.
    pub fn member_content(&self) -> serde_json::Map<String, serde_json::Value> {
        let fields = ["displayname", "avatar_url"].into_iter();
        fields.filter_map(|name| Some((name.to_owned(), self.text(name)?.into()))).collect()
    }
}

pub(super) type DataKey = (Option<OwnedRoomId>, String);

#[derive(Clone, Debug)]
struct Datum {
    content: Arc<RawValue>,
    position: Position,
}

/// Account data. Each piece has a position of its own, or shares it with pieces set in the same batch.
#[derive(Clone, Default)]
pub(super) struct AccountData {
    by_key: imbl::OrdMap<DataKey, Datum>,
    by_position: imbl::OrdSet<(Option<OwnedRoomId>, Position, String)>,
    weight: u64,
}

impl AccountData {
    fn get(&self, room_id: Option<&RoomId>, kind: &str) -> Option<&RawValue> {
        let key = (room_id.map(ToOwned::to_owned), kind.to_owned());
        self.by_key.get(&key).map(|datum| &*datum.content)
    }

    /// When a global piece was last set; 0 if never.
    fn position(&self, kind: &str) -> Position {
        self.by_key.get(&(None, kind.to_owned())).map_or(Position(0), |datum| datum.position)
    }

    fn since(&self, room_id: Option<&RoomId>, since: Position) -> impl Iterator<Item = (&str, &RawValue)> {
        let room_id = room_id.map(ToOwned::to_owned);
        let from = (room_id.clone(), Position(since.0.saturating_add(1)), String::new());
        self.by_position
            .range((Bound::Included(from), Bound::Unbounded))
            .take_while(move |(room, ..)| *room == room_id)
            .filter_map(|(room, _, kind)| {
                let datum = self.by_key.get(&(room.clone(), kind.clone()))?;
                Some((kind.as_str(), &*datum.content))
            })
    }

    pub(super) fn set(
        &mut self,
        room_id: Option<OwnedRoomId>,
        kind: &str,
        content: Arc<RawValue>,
        position: Position,
    ) {
        let key = (room_id.clone(), kind.to_owned());
        self.weight += 256 + content.get().len() as u64;
        if let Some(old) = self.by_key.insert(key, Datum { content, position }) {
            self.weight = self.weight.saturating_sub(256 + old.content.get().len() as u64);
            self.by_position.remove(&(room_id.clone(), old.position, kind.to_owned()));
        }
        self.by_position.insert((room_id, position, kind.to_owned()));
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// About how much memory it takes, in bytes.
    pub(super) fn weight(&self) -> u64 {
        self.weight
    }

    /// When each piece was set.
    pub(super) fn positions(&self) -> impl Iterator<Item = (Option<OwnedRoomId>, Position)> {
        self.by_position.iter().map(|(room_id, position, _)| (room_id.clone(), *position))
    }

    /// Forgets everything; returns what there was.
    pub(super) fn clear(&mut self) -> impl Iterator<Item = DataKey> {
        std::mem::take(self).by_key.into_iter().map(|(key, _)| key)
    }
}

/// Stored JSON text, shared from now on.
pub(super) fn shared_json(text: impl Into<String>) -> Result<Arc<RawValue>, serde_json::Error> {
    RawValue::from_string(text.into()).map(Arc::from)
}

/// JSON as the store keeps it.
pub(super) fn stored_json(value: &RawValue) -> Bytes {
    Bytes::copy_from_slice(value.get().as_bytes())
}
