//! Every table of the store, in one place.
//!
//! A table's number is the first byte of its rows' keys in the back ends: never change or reuse one. A change of a
//! key layout or record that older builds cannot read raises [`crate::migrate::SCHEMA_VERSION`].

use std::{fmt, marker::PhantomData};

use bytes::Bytes;
use engine::id::{Position, ShortEventId, ShortRoomId, TimelineIndex};
use ruma::{OwnedDeviceId, OwnedEventId, OwnedRoomAliasId, OwnedRoomId, OwnedServerName, OwnedUserId};

mod delayed;
mod federation;
mod keys;
mod media;
mod push;
mod reports;
mod rooms;
mod services;
mod users;

use crate::{key::EventIdHash, store::StoreError, verify::read_row};

pub use self::{
    delayed::*, federation::*, keys::*, media::*, push::*, reports::*, rooms::*, services::*, users::*,
};

/// The number of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(pub u8);

impl TableId {
    /// Whether each event adds rows to the table, which mostly stay as they are and follow others of their kind: a back end may
    /// keep many of them together. So it may those of the odd tables of tests.
    pub(crate) fn is_packed(self) -> bool {
        if self.0 >= TEST_TABLES {
            return self.0 % 2 == 1;
        }
        let packed = [
            OLD_EVENT_IDS.id,
            EVENT_IDS.id,
            EVENTS.id,
            TIMELINE.id,
            OLD_TXN_IDS.id,
            TXN_IDS.id,
            EVENTS_BY_TIME.id,
        ];
        packed.contains(&self)
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match TABLES.iter().find(|table| table.id == *self) {
            Some(table) => f.write_str(table.name),
            None => write!(f, "number {}", self.0),
        }
    }
}

/// A table with typed rows; made by `tables!` below.
pub struct Table<K, V> {
    pub(crate) id: TableId,
    pub(crate) name: &'static str,
    row: PhantomData<fn() -> (K, V)>,
}

impl<K, V> Table<K, V> {
    /// A table outside the schema, as tests of the store need. Numbers from [`TEST_TABLES`] on are free for that.
    pub const fn new(id: u8, name: &'static str) -> Self {
        Self { id: TableId(id), name, row: PhantomData }
    }

    /// The table's number.
    pub const fn id(&self) -> TableId {
        self.id
    }

    /// The table's name in the schema.
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

/// First table number that the schema never uses.
pub const TEST_TABLES: u8 = 240;

/// What is known of a table without its types.
#[derive(Clone, Copy, Debug)]
pub struct TableInfo {
    /// The table's number.
    pub id: TableId,
    /// The table's name.
    pub name: &'static str,
    /// The key's type, as written in the schema.
    pub key: &'static str,
    /// The value's type, as written in the schema.
    pub value: &'static str,
    /// Reads one of its rows, to see whether that can be read.
    pub(crate) read_row: fn(TableId, &[u8], Bytes) -> Result<(), StoreError>,
}

/// Declares the tables: `/// docs` and then `12 => TIMELINE: (ShortRoomId, TimelineIndex) => ShortEventId;`.
macro_rules! tables {
    ($($(#[$docs:meta])+ $id:literal => $name:ident : $key:ty => $value:ty;)+) => {
        $($(#[$docs])+ pub static $name: Table<$key, $value> = Table::new($id, stringify!($name));)+

        /// All tables, in the order of this file.
        pub static TABLES: &[TableInfo] = &[$(TableInfo {
            id: TableId($id),
            name: stringify!($name),
            key: stringify!($key),
            value: stringify!($value),
            read_row: read_row::<$key, $value>,
        }),+];

        const _: () = check_ids(&[$($id),+]);
    };
}

/// Refuses to compile a schema with a number that is taken, kept for tests, or 0 (the back ends' own).
const fn check_ids(ids: &[u8]) {
    let mut taken = [false; TEST_TABLES as usize];
    let mut at = 0;
    while at < ids.len() {
        assert!(ids[at] != 0 && ids[at] < TEST_TABLES, "table number outside 1 to 239");
        assert!(!taken[ids[at] as usize], "two tables have the same number");
        taken[ids[at] as usize] = true;
        at += 1;
    }
}

tables! {
    /// What the store knows of itself: `schema_version` and `position_ceiling`, both 8 bytes, big-endian.
    ///
    /// Key: name, as text. Writer: the storage writer, and `migrate` at start-up. Changes: overwritten.
    1 => META: String => Bytes;

    /// The local number of each room.
    ///
    /// Key: room ID. Writer: `RoomActor`, with the room's first events. Changes: never.
    2 => ROOM_IDS: OwnedRoomId => ShortRoomId;

    /// The head of each room: current state, forward extremities, member counts.
    ///
    /// Key: room. Writer: `RoomActor`, with every event. Changes: overwritten.
    3 => ROOMS: ShortRoomId => RoomRecord;

    /// What [`EVENT_IDS`] was before schema version 5, with whole IDs.
    ///
    /// Key: event ID. Writer: none. Changes: deletion, by `migrate` at start-up.
    4 => OLD_EVENT_IDS: OwnedEventId => ShortEventId;

    /// The local number of each known event.
    ///
    /// Key: hash of the event ID. Writer: `RoomActor`, in the same batch as `EVENTS`. Changes: never.
    17 => EVENT_IDS: EventIdHash => ShortEventId;

    /// Each known event with its place in the room.
    ///
    /// Key: event. Writer: `RoomActor`. Changes: once, when the event is redacted.
    5 => EVENTS: ShortEventId => EventRecord;

    /// A room's timeline in local order, for `/messages` and `/sync`.
    ///
    /// Key: room, place; one room is one range. Writer: `RoomActor`, in the same batch as `EVENTS`. Changes: append.
    6 => TIMELINE: (ShortRoomId, TimelineIndex) => ShortEventId;

    /// Nodes of the rooms' state trees, shared by all states that contain them.
    ///
    /// Key: hash of the node. Writer: `RoomActor`, in the same batch as the event that made it. Changes: never.
    7 => STATE_NODES: [u8; 16] => Bytes;

    /// What [`TXN_IDS`] was before schema version 4, without groups. Nothing is looked up in it any more.
    ///
    /// Key: room, user, device, event type and transaction ID. Writer: none. Changes: deletion, by `Txns`.
    8 => OLD_TXN_IDS: TxnKey => OwnedEventId;

    /// The event that a device's transaction made, so that a retry makes no second one.
    ///
    /// Key: the group (100,000 to a day since 1970), room, user, device, event type and transaction ID: an ID is good for one
    /// endpoint. Writer: `RoomActor`, in the same batch as `EVENTS`. Changes: deletion after a week, by `Txns`.
    15 => TXN_IDS: (u32, TxnKey) => OwnedEventId;

    /// The Bloom filter of a group of [`TXN_IDS`] that gets no more rows: its words of 64 bits, big-endian.
    ///
    /// Key: the group. Writer: `Txns`. Changes: deletion after a week.
    16 => TXN_FILTERS: u32 => Bytes;

    /// Each local user's relation to each room that they were ever in, invited to or knocked on.
    ///
    /// Key: user, room ID; one user is one range. Writer: `RoomActor`. Changes: overwritten.
    9 => MEMBERSHIPS: (OwnedUserId, OwnedRoomId) => MembershipRecord;

    /// Public receipts.
    ///
    /// Key: room, user, thread (empty: the whole room). Writer: `RoomActor`. Changes: overwritten; deletion of the
    /// oldest of a user who has them in too many threads.
    10 => RECEIPTS: (ShortRoomId, OwnedUserId, String) => ReceiptRecord;

    /// The room that each local alias names.
    ///
    /// Key: alias. Writer: whoever creates it, under the condition that it is absent. Changes: deletion.
    11 => ALIASES: OwnedRoomAliasId => AliasRecord;

    /// The local aliases of each room.
    ///
    /// Key: room ID, alias. Writer: with `ALIASES`, in the same batch. Changes: deletion.
    12 => ROOM_ALIASES: (OwnedRoomId, OwnedRoomAliasId) => ();

    /// The rooms that this server's directory lists.
    ///
    /// Key: room ID. Writer: `RoomActor` at creation, the directory handlers later. Changes: deletion.
    13 => PUBLIC_ROOMS: OwnedRoomId => ();

    /// A room's timeline by the time that events state, for `/timestamp_to_event`.
    ///
    /// Key: room, `origin_server_ts`, event. Writer: `RoomActor`, in the same batch as `TIMELINE`. Changes: append.
    14 => EVENTS_BY_TIME: (ShortRoomId, u64, ShortEventId) => ();

    /// What changes have yet to bring about in rooms, so that a crash does not cut it short.
    ///
    /// Key: kind (`profile`, `departure`, `guests`, `upgrade`), the user's or room's ID, or an upgrade's rooms, the old and the new one.
    /// Value: when it was last asked for.
    /// Writer: `SessionActor` and `RoomActor`, with the change. Changes: overwritten; deletion by whoever has brought
    /// it about, under the condition that it was not asked for again.
    70 => EFFECTS: (String, String) => Position;

    /// The users who asked for the erasure of what they sent, and when.
    ///
    /// Key: user. Writer: `SessionActor`, with the deactivation. Changes: overwritten.
    71 => ERASED_USERS: OwnedUserId => Position;

    /// What the directory says of each room that it lists, as of one state.
    ///
    /// Key: room. Writer: whoever lists the directory and finds that the room's state is another one, under the condition
    /// that no event came meanwhile. Changes: overwritten; deletion by `RoomActor`, in the batch in which a state event
    /// changes (is redacted).
    72 => PUBLIC_FACES: ShortRoomId => PublicFaceRecord;

    /// What the filters of sliding sync ask of each room that a local user is in, as of one state.
    ///
    /// Key: room. Writer: whoever needs it and finds that the room's state is another one. Changes: overwritten.
    73 => ROOM_FACTS: ShortRoomId => RoomFactsRecord;

    /// The events that relate to each event.
    ///
    /// Key: room, target, relation type, place in the timeline. Writer: `RoomActor`, in the same batch as `TIMELINE`.
    /// Changes: deletion, once the relating event is redacted.
    48 => RELATIONS: (ShortRoomId, OwnedEventId, String, TimelineIndex) => RelationRecord;

    /// Who annotated which event with what, so that nobody does so twice.
    ///
    /// Key: room, target, sender, SHA-256 of event type and annotation key. Writer: `RoomActor`, in the same batch as
    /// `RELATIONS`. Changes: overwritten; deletion with the row of `RELATIONS`.
    49 => ANNOTATIONS: (ShortRoomId, OwnedEventId, OwnedUserId, [u8; 32]) => ShortEventId;

    /// The thread of which a place in the timeline is the latest one.
    ///
    /// Key: room, place. Value: the thread's root. Writer: `RoomActor`, in the same batch as `RELATIONS`. Changes:
    /// deletion, once the thread goes on elsewhere.
    50 => THREADS: (ShortRoomId, TimelineIndex) => OwnedEventId;

    /// The words that the members of each room are found by: of their display names there, and of their IDs.
    ///
    /// Key: word in lower case, user ID, room. Writer: the user directory, behind `ROOMS`. Changes: deletion.
    51 => USER_WORDS: (String, String, ShortRoomId) => ();

    /// How far each room's members are known to the user directory.
    ///
    /// Key: room. Writer: the user directory, in the same batch as `USER_WORDS`. Changes: overwritten.
    52 => DIRECTORY_ROOMS: ShortRoomId => DirectoryRoomRecord;

    /// The joined rooms of each user, local or not, with their membership events.
    ///
    /// Key: user, room. Writer: the user directory, in the same batch as `USER_WORDS`. Changes: overwritten; deletion.
    53 => USER_ROOMS: (OwnedUserId, ShortRoomId) => ShortEventId;

    /// How many joined members each server has in each room.
    ///
    /// Key: room, server. Writer: `RoomActor`, with the membership event. Changes: overwritten; deletion at none.
    57 => ROOM_SERVERS: (ShortRoomId, OwnedServerName) => u64;

    /// The stripped state that came with a local user's invite to, or knock on, a room that this server is not in.
    ///
    /// Key: user, room ID. Writer: `RoomActor`, in the same batch as `MEMBERSHIPS`. Changes: overwritten.
    58 => STRIPPED_STATES: (OwnedUserId, OwnedRoomId) => StrippedStateRecord;

    /// The first redaction of each event that is not known yet.
    ///
    /// Key: room, target. Writer: `RoomActor`, with the redaction. Changes: deletion, once the target is there.
    59 => EARLY_REDACTIONS: (ShortRoomId, OwnedEventId) => ShortEventId;

    /// Further redactions of events that are not known yet: which of them are permitted is seen once the target is there.
    ///
    /// Key: room, target, redaction. Writer: `RoomActor`, with the redaction. Changes: as of `EARLY_REDACTIONS`.
    189 => FURTHER_REDACTIONS: (ShortRoomId, OwnedEventId, ShortEventId) => ();

    /// Events that are sent later.
    ///
    /// Key: the delay's ID. Writer: whoever schedules or changes it, under the condition that it is as it was read.
    /// Changes: overwritten; deletion, once it is over and others are.
    121 => DELAYED_EVENTS: String => DelayedEventRecord;

    /// The delayed events of each local user.
    ///
    /// Key: user, the delay's ID. Writer: with `DELAYED_EVENTS`, in the same batch. Changes: deletion.
    122 => DELAYED_OF_USERS: (OwnedUserId, String) => ();

    /// When delayed events are due.
    ///
    /// Key: milliseconds since the epoch, the delay's ID. Writer: with `DELAYED_EVENTS`, in the same batch. Changes:
    /// deletion, once it is over or put off.
    123 => DELAYED_DUE: (u64, String) => ();

    /// The room in which each local user gets the server's notices.
    ///
    /// Key: user. Writer: whoever sends the first notice, under the condition that it is absent. Changes: overwritten.
    124 => NOTICE_ROOMS: OwnedUserId => OwnedRoomId;

    /// The keys of other servers.
    ///
    /// Key: server, key ID. Writer: the key ring. Changes: overwritten.
    60 => SERVER_KEYS: (OwnedServerName, String) => ServerKeyRecord;

    /// What other servers published of their keys last, canonical JSON with their signatures, for those who ask us.
    ///
    /// Key: server. Writer: the key ring, in the same batch as `SERVER_KEYS`. Changes: overwritten.
    61 => KEY_DOCUMENTS: OwnedServerName => Bytes;

    /// Holes in the known timelines.
    ///
    /// Key: room, the place after the hole. Writer: `RoomActor`. Changes: overwritten; deletion once it is filled.
    64 => GAPS: (ShortRoomId, TimelineIndex) => GapRecord;

    /// State resolutions that went back to older state without a reason, with their inputs, as JSON.
    ///
    /// Key: room, when. Writer: `RoomActor`. Changes: none.
    140 => STATE_RESETS: (ShortRoomId, Position) => Bytes;

    /// Received events that are not dealt with yet, as JSON text.
    ///
    /// Key: room ID, when it came, its server. Writer: the receiving of transactions. Changes: deletion, once dealt with.
    65 => STAGED: (OwnedRoomId, Position, OwnedServerName) => Bytes;

    /// Events that other servers are to have and do not have yet, as far as it is known.
    ///
    /// Key: position. Writer: `RoomActor`, in the same batch as `EVENTS`. Changes: deletion, by the outbox.
    66 => OUTBOX: Position => OutboxRecord;

    /// Servers that did not take the last transaction.
    ///
    /// Key: server. Writer: `DestinationActor`. Changes: overwritten; deletion once the server takes events again.
    67 => DESTINATIONS: OwnedServerName => DestinationRecord;

    /// Rooms that have events which a server missed, and where the first of them is.
    ///
    /// Key: server, room ID. Writer: `DestinationActor`. Changes: overwritten; deletion once it has caught up.
    68 => CATCH_UP: (OwnedServerName, OwnedRoomId) => Position;

    /// EDUs that must not be lost, as JSON text.
    ///
    /// Key: server, position. Writer: whoever has one to send. Changes: deletion, by `DestinationActor`, once it is sent, or by
    /// the sweep of old EDUs.
    69 => EDU_QUEUE: (OwnedServerName, Position) => Bytes;

    /// Rooms that were joined with a state that lacked members.
    ///
    /// Key: room. Writer: `RoomActor`, in the same batch as the join. Changes: overwritten, when the members are there.
    110 => PARTIAL_ROOMS: ShortRoomId => PartialRoomRecord;

    /// Events that were refused while the room's state lacked members, to be judged anew.
    ///
    /// Key: room, position. Writer: `RoomActor`, in the same batch as the event. Changes: deletion, when the members
    /// are there or the room is joined anew.
    185 => PARTIAL_REFUSED: (ShortRoomId, Position) => ShortEventId;

    /// Events that came while the room's state lacked members and have their place in the graph, but are not to be
    /// shown: redactions without a target, and what a policy server advised against. The states at them are to be
    /// worked out anew.
    ///
    /// Key: room, position. Writer: `RoomActor`, in the same batch as the event. Changes: as of `PARTIAL_REFUSED`.
    187 => PARTIAL_HIDDEN: (ShortRoomId, Position) => ShortEventId;

    /// What was redacted while the room's state lacked members, as it was before, canonical JSON: the redaction may not
    /// stand.
    ///
    /// Key: room, the redacted event. Writer: `RoomActor`, with the redaction. Changes: as of `PARTIAL_REFUSED`.
    188 => PARTIAL_REDACTED: (ShortRoomId, ShortEventId) => Bytes;

    /// The forward extremities of rooms that were left and joined again without their members: whether the servers there
    /// know them is seen by these.
    ///
    /// Key: room, event. Writer: `RoomActor`, with the join. Changes: as of `PARTIAL_REFUSED`.
    190 => PARTIAL_TIPS: (ShortRoomId, ShortEventId) => ();

    /// Events that the states before some others lack, since they could not be checked when the states were fetched.
    ///
    /// Key: room, the event that is lacking, the event before which it is. Writer: `RoomActor`, in the same batch as
    /// the latter. Changes: deletion, when the former is known, or the room is joined anew.
    191 => STATE_LACKS: (ShortRoomId, OwnedEventId, ShortEventId) => StateLackRecord;

    /// Local accounts; the row makes the user exist, and stays when the account is deactivated.
    ///
    /// Key: user. Writer: `SessionActor`; registration, under the condition that it is absent. Changes: overwritten.
    20 => ACCOUNTS: OwnedUserId => AccountRecord;

    /// The devices of each local user.
    ///
    /// Key: user, device; one user is one range. Writer: `SessionActor`. Changes: overwritten; deletion at logout.
    21 => DEVICES: (OwnedUserId, OwnedDeviceId) => DeviceRecord;

    /// Access and refresh tokens, as hashes.
    ///
    /// Key: SHA-256 of the token. Writer: `SessionActor`, in the same batch as `DEVICES`. Changes: deletion.
    22 => TOKENS: [u8; 32] => TokenRecord;

    /// OpenID tokens, as hashes.
    ///
    /// Key: when it stops working in milliseconds since the epoch (as the token says), SHA-256 of the token; what has
    /// expired is one range. Writer: `SessionActor`. Changes: deletion, by any session, once expired.
    23 => OPENID_TOKENS: (u64, [u8; 32]) => OwnedUserId;

    /// Tokens that are good for one log-in, as hashes.
    ///
    /// Key: when it stops working in milliseconds since the epoch (as the token says), SHA-256 of the token; what has
    /// expired is one range. Writer: `SessionActor`. Changes: deletion, by whoever uses it, under the condition that it
    /// is there; by any session, once expired.
    120 => LOGIN_TOKENS: (u64, [u8; 32]) => OwnedUserId;

    /// Account data, push rules among it.
    ///
    /// Key: user, room ID (empty: global), type; one user is one range. Writer: `SessionActor`. Changes: overwritten.
    24 => ACCOUNT_DATA: (OwnedUserId, String, String) => AccountDataRecord;

    /// Profile fields, each as JSON text.
    ///
    /// Key: user, field; one user is one range. Writer: `SessionActor`. Changes: overwritten; deletion.
    25 => PROFILES: (OwnedUserId, String) => String;

    /// The words of the display names in `PROFILES`, by which local users are found whatever they are called in rooms.
    ///
    /// Key: word in lower case, user ID. Writer: `SessionActor`, in the same batch as `PROFILES`; names of before this table
    /// have no rows until they change. Changes: deletion.
    39 => PROFILE_WORDS: (String, String) => ();

    /// Filters that clients uploaded, as JSON text; the ID is a hash of it, so that a filter is kept once.
    ///
    /// Key: user, filter ID. Writer: `SessionActor`. Changes: never.
    26 => FILTERS: (OwnedUserId, String) => String;

    /// Private receipts.
    ///
    /// Key: user, room ID, thread (empty: the whole room). Writer: `SessionActor`. Changes: overwritten.
    27 => PRIVATE_RECEIPTS: (OwnedUserId, OwnedRoomId, String) => ReceiptRecord;

    /// What a user wants to hear of threads, once they said so.
    ///
    /// Key: user, room ID, the thread's root. Writer: `SessionActor`. Changes: overwritten.
    186 => THREAD_SUBSCRIPTIONS: (OwnedUserId, OwnedRoomId, OwnedEventId) => ThreadSubscriptionRecord;

    /// What each sliding-sync connection has sent to its client.
    ///
    /// Key: user, device, connection ID. Writer: `SessionActor`. Changes: overwritten; deletion with the device.
    38 => SLIDING_CONNECTIONS: (OwnedUserId, OwnedDeviceId, String) => SlidingConnectionRecord;

    /// The identity keys of each device, as JSON text.
    ///
    /// Key: user, device; one user is one range. Writer: `SessionActor`. Changes: overwritten; deletion with the device.
    28 => DEVICE_KEYS: (OwnedUserId, OwnedDeviceId) => String;

    /// One-time keys that nobody has claimed.
    ///
    /// Key: user, device, algorithm, key ID. Writer: `SessionActor`. Changes: deletion, before a claim is answered.
    29 => ONE_TIME_KEYS: (OwnedUserId, OwnedDeviceId, String, String) => OneTimeKeyRecord;

    /// What is claimed where no one-time key is left.
    ///
    /// Key: user, device, algorithm. Writer: `SessionActor`. Changes: overwritten; deletion with the device.
    30 => FALLBACK_KEYS: (OwnedUserId, OwnedDeviceId, String) => FallbackKeyRecord;

    /// To-device messages, as JSON text.
    ///
    /// Key: user, device, position. Writer: `SessionActor` of the user who gets it. Changes: deletion, once the device
    /// has acknowledged it.
    31 => TO_DEVICE: (OwnedUserId, OwnedDeviceId, Position) => String;

    /// Cross-signing keys, and the signatures that the user put on keys of others, as JSON text.
    ///
    /// Key: user, kind (`master`, `self_signing`, `user_signing` or `signature`), whose master key is signed (else empty).
    /// Writer: `SessionActor` of the user. Changes: overwritten; deletion.
    32 => CROSS_SIGNING: (OwnedUserId, String, String) => String;

    /// When each user's device list last changed.
    ///
    /// Key: user. Writer: `SessionActor` for local users, the remote device lists for others. Changes: overwritten.
    33 => DEVICE_LISTS: OwnedUserId => Position;

    /// The same by position: what a client missed is one range.
    ///
    /// Key: position. Writer: as of `DEVICE_LISTS`, in the same batch. Changes: deletion at the next change.
    34 => DEVICE_LIST_CHANGES: Position => OwnedUserId;

    /// Versions of key backups; one that is deleted stays, so that its number is not used again.
    ///
    /// Key: user, version. Writer: `SessionActor`. Changes: overwritten.
    35 => BACKUPS: (OwnedUserId, u64) => BackupRecord;

    /// Keys in backups, as JSON text.
    ///
    /// Key: user, version, room ID, session ID. Writer: `SessionActor`. Changes: overwritten; deletion.
    36 => BACKUP_KEYS: (OwnedUserId, u64, OwnedRoomId, String) => String;

    /// What else belongs to a device: `dehydrated`, the JSON that it is rehydrated from; `txns`, 8 bytes of the hash of
    /// each of the last transactions of its to-device messages; `claimed`, the same of the last one-time keys given away.
    ///
    /// Key: user, device, kind. Writer: `SessionActor`. Changes: overwritten; deletion with the device.
    37 => DEVICE_DATA: (OwnedUserId, OwnedDeviceId, String) => Bytes;

    /// What each `mxc://` URI names.
    ///
    /// Key: server, media ID. Writer: `Media`. Changes: once, when the bytes come; deletion.
    40 => MEDIA: (OwnedServerName, String) => MediaRecord;

    /// Who needs the bytes of a hash: media (`mxc://…`) and thumbnails (`thumbnail of …`).
    ///
    /// Key: hash, user of the bytes. Writer: `Media`, in the same batch as what uses them. Changes: deletion.
    41 => CONTENT_USES: (ContentHash, String) => ();

    /// What each local user has uploaded.
    ///
    /// Key: user. Writer: `Media`, in the same batch as `MEDIA`. Changes: overwritten.
    42 => UPLOADERS: OwnedUserId => UploaderRecord;

    /// Thumbnails that were made.
    ///
    /// Key: hash of the image, the thumbnail's kind (`96x96-crop`). Writer: `Media`. Changes: deletion, with the image.
    43 => THUMBNAILS: (ContentHash, String) => ThumbnailRecord;

    /// Previews of pages.
    ///
    /// Key: URL. Writer: `Media`. Changes: overwritten; deletion when they are old.
    44 => URL_PREVIEWS: String => UrlPreviewRecord;

    /// Thumbnails that other servers made of images that this one did not get or cannot read.
    ///
    /// Key: server, media ID, the thumbnail's kind. Writer: `Media`. Changes: deletion when they are old.
    45 => REMOTE_THUMBNAILS: (OwnedServerName, String, String) => RemoteThumbnailRecord;

    /// Images of previews of pages, by when they go.
    ///
    /// Key: milliseconds since the epoch, media ID. Writer: `Media`, with the preview. Changes: deletion.
    46 => PREVIEW_IMAGES: (u64, String) => ();

    /// Bytes that are not served any more, whatever URI names them, and since when in milliseconds since the epoch.
    ///
    /// Key: hash. Writer: `Media`, for an administrator. Changes: deletion.
    47 => QUARANTINE: ContentHash => u64;

    /// Where each user's notifications go.
    ///
    /// Key: user, app ID, pushkey; one user is one range. Writer: `SessionActor`. Changes: overwritten; deletion with the
    /// device, or once a push gateway rejects the pushkey.
    80 => PUSHERS: (OwnedUserId, String, String) => PusherRecord;

    /// The users of each pushkey.
    ///
    /// Key: app ID, pushkey, user. Writer: `SessionActor`, in the same batch as `PUSHERS`. Changes: deletion.
    81 => PUSHKEYS: (String, String, OwnedUserId) => ();

    /// How far each pusher has come.
    ///
    /// Key: user, app ID, pushkey. Writer: pushing; of a pusher without a row all begins with its `since`. Changes:
    /// overwritten; deletion by `SessionActor`, with the row of `PUSHERS`.
    82 => PUSH_CURSORS: (OwnedUserId, String, String) => PushCursorRecord;

    /// What users with pushers have not read, by room; where there is nothing there is no row.
    ///
    /// Key: user, room ID. Writer: pushing. Changes: overwritten; deletion.
    83 => PUSH_UNREAD: (OwnedUserId, OwnedRoomId) => PushUnreadRecord;

    /// As of when `PUSH_UNREAD` counts.
    ///
    /// Key: user. Writer: pushing, in the same batch as `PUSH_UNREAD`. Changes: overwritten.
    84 => PUSH_COUNTED: OwnedUserId => Position;

    /// Devices and cross-signing keys of other servers' users who share a room with a local one, as far as asked for.
    ///
    /// Key: user. Writer: the remote device lists. Changes: overwritten; deletion once no room is shared.
    100 => REMOTE_DEVICE_LISTS: OwnedUserId => RemoteDeviceListRecord;

    /// Users whose row of `REMOTE_DEVICE_LISTS` is out of date, to be fetched again.
    ///
    /// Key: server, user. Writer: the remote device lists, in the same batch. Changes: deletion, once fetched.
    101 => STALE_DEVICE_LISTS: (OwnedServerName, OwnedUserId) => ();

    /// Users of other servers who have shared no room for a moment at least, so that nothing was heard of their devices.
    ///
    /// Key: user. Writer: the user directory, in the same batch as `USER_ROOMS`. Changes: deletion, by the remote device
    /// lists, once the row of `REMOTE_DEVICE_LISTS` is gone.
    102 => DEPARTED_USERS: OwnedUserId => ();

    /// Changes of local users' devices that other servers are to be told of.
    ///
    /// Key: position, user. Writer: `SessionActor`, in the same batch as `DEVICE_LISTS`; `RoomActor`, with the join of a
    /// user. Changes: deletion, by the announcer, in the same batch as the rows of `EDU_QUEUE`.
    103 => DEVICE_LIST_OUTBOX: (Position, OwnedUserId) => DeviceListOutboxRecord;

    /// The `stream_id` of the last `m.device_list_update` of each local user.
    ///
    /// Key: user. Writer: the announcer, in the same batch as the rows of `EDU_QUEUE`. Changes: overwritten.
    104 => DEVICE_STREAMS: OwnedUserId => Position;

    /// To-device messages that were delivered, and when, in milliseconds since the epoch: those of other servers, and those of this
    /// server's devices for as long as their transaction is not done.
    ///
    /// Key: server, message ID, recipient. Writer: `SessionActor` of the recipient, in the same batch as `TO_DEVICE`.
    /// Changes: deletion, by the sweep of the remote device lists, when the sender will not try again any more; by the
    /// `SessionActor` of a local sender, in the batch that says that the transaction is done.
    105 => RECEIVED_MESSAGES: (OwnedServerName, String, OwnedUserId) => u64;

    /// When each local user last signed the master key of another user.
    ///
    /// Key: user, whose key. Writer: `SessionActor`, in the same batch as `CROSS_SIGNING`. Changes: overwritten.
    106 => SIGNED_USERS: (OwnedUserId, OwnedUserId) => Position;

    /// Positions that had been reached by some moments, in milliseconds since the epoch: how old the rows of `EDU_QUEUE` are.
    ///
    /// Key: moment. Writer: the sweep of old EDUs. Changes: append; deletion of what is older than is needed.
    107 => EDU_DATES: u64 => Position;

    /// How far each application service has come.
    ///
    /// Key: the service's ID. Writer: the service's task. Changes: overwritten.
    108 => SERVICE_CURSORS: String => ServiceCursorRecord;

    /// The transaction of each application service that it has not acknowledged.
    ///
    /// Key: the service's ID. Writer: the service's task. Changes: deletion, in the batch that moves its cursor.
    109 => SERVICE_TXNS: String => ServiceTxnRecord;

    /// Events that got their place in a timeline later than their number, while there are application services.
    ///
    /// Key: the position of the place. Writer: `RoomActor`, in the same batch as `TIMELINE`. Changes: deletion, by the task
    /// of the service that is the last to pass it.
    112 => LATE_EVENTS: Position => ShortEventId;

    /// The rooms that application services list for their networks.
    ///
    /// Key: the network's `instance_id`, room ID. Writer: the directory handlers. Changes: deletion.
    111 => SERVICE_ROOMS: (String, OwnedRoomId) => ();

    /// What users reported to the administrators.
    ///
    /// Key: reporter, position. Writer: reporting. Changes: append.
    85 => REPORTS: (OwnedUserId, Position) => ReportRecord;

    /// Purged messages whose words the full-text index may still hold.
    ///
    /// Key: event. Writer: `RoomActor`, in the same batch as the purge. Changes: deletion, by the index's task, once the
    /// index has let go of them.
    175 => PURGED_TEXTS: ShortEventId => ();
}

/// A room, a user, a device, and an event type with the client's transaction ID.
pub type TxnKey = (ShortRoomId, OwnedUserId, OwnedDeviceId, String);

#[cfg(test)]
mod tests;
