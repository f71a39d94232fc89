//! Records of local users.

use std::collections::BTreeMap;

use bytes::Bytes;
use engine::id::{Position, ShortRoomId};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedUserId};
use serde::{Deserialize, Serialize};

use crate::Record;

/// The SHA-256 of a token: what the store knows of it.
pub type TokenHash = [u8; 32];

/// A local user's account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct AccountRecord {
    /// Argon2id in PHC form; none if the account has no password.
    pub password_hash: Option<String>,
    /// When it was made.
    pub created: MilliSecondsSinceUnixEpoch,
    /// A guest account.
    pub is_guest: bool,
    /// May use the admin API.
    pub is_admin: bool,
    /// Deactivated for good.
    pub is_deactivated: bool,
    /// The user asked for erasure when it was deactivated.
    pub is_erased: bool,
    /// An administrator has locked it.
    #[serde(default)]
    pub is_locked: bool,
    /// An administrator has suspended it.
    #[serde(default)]
    pub is_suspended: bool,
}

/// A login.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRecord {
    /// The name that the user gave it.
    pub display_name: Option<String>,
    /// When it was last seen.
    pub last_seen: Option<MilliSecondsSinceUnixEpoch>,
    /// Where it was last seen.
    pub last_seen_ip: Option<String>,
    /// Its present access token.
    pub access_token: Option<TokenHash>,
    /// Its present refresh token.
    pub refresh_token: Option<TokenHash>,
    /// The refresh token before that, which works until one of the present tokens is used.
    #[serde(default)]
    pub previous_refresh_token: Option<TokenHash>,
}

/// What a token is good for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Whose it is.
    pub user_id: OwnedUserId,
    /// The device that it belongs to.
    pub device_id: OwnedDeviceId,
    /// Access or refresh.
    pub kind: TokenKind,
    /// When it stops working, if ever.
    pub expires: Option<MilliSecondsSinceUnixEpoch>,
    /// The account is a guest's.
    #[serde(default)]
    pub is_guest: bool,
}

/// The kinds of token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenKind {
    /// Authenticates requests.
    Access,
    /// Exchanged for a new access token.
    Refresh,
}

/// A piece of account data; an empty content marks a deleted one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountDataRecord {
    /// The content, JSON.
    pub content: Bytes,
    /// When it was set.
    pub position: Position,
}

/// Whether a user wants to hear of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadSubscriptionRecord {
    /// When that last changed.
    pub position: Position,
    /// Whether they do.
    pub status: ThreadStatus,
}

/// Whether, and why, a user hears of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ThreadStatus {
    /// The user subscribed.
    Manual,
    /// A client subscribed on its own.
    Automatic,
    /// The user unsubscribed, the last time at this position.
    Unsubscribed(Position),
}

/// A sliding-sync connection: what its client was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlidingConnectionRecord {
    /// When it last changed.
    pub touched: Position,
    /// The state that the client last confirmed, and the one that it has been offered since.
    pub generations: Vec<SlidingGenerationRecord>,
}

/// One state of a sliding-sync connection; a client names it in its `pos`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlidingGenerationRecord {
    /// Names it.
    pub id: u64,
    /// The required state that rooms were sent with: pairs of event type and state key.
    pub required: Vec<Vec<(String, String)>>,
    /// The rooms that were sent.
    pub rooms: BTreeMap<ShortRoomId, SlidingRoomRecord>,
}

/// A room that a sliding-sync connection has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "SlidingRoomFields", into = "SlidingRoomFields")]
pub struct SlidingRoomRecord {
    /// Up to where the client knows it; none if it is as of the client's `pos`.
    pub upto: Option<Position>,
    /// The number of timeline events that it was sent with.
    pub limit: u32,
    /// The index of its required state.
    pub required: u32,
    /// Whether it was shown as a direct chat.
    pub is_direct: bool,
}

/// A connection has many of these: no names are stored.
type SlidingRoomFields = (Option<Position>, u32, u32, bool);

impl From<SlidingRoomFields> for SlidingRoomRecord {
    fn from((upto, limit, required, is_direct): SlidingRoomFields) -> Self {
        Self { upto, limit, required, is_direct }
    }
}

impl From<SlidingRoomRecord> for SlidingRoomFields {
    fn from(record: SlidingRoomRecord) -> Self {
        (record.upto, record.limit, record.required, record.is_direct)
    }
}

impl Record for SlidingConnectionRecord {
    const VERSION: u8 = 1;
}

impl Record for AccountRecord {
    const VERSION: u8 = 1;
}

impl Record for DeviceRecord {
    const VERSION: u8 = 1;
}

impl Record for TokenRecord {
    const VERSION: u8 = 1;
}

impl Record for AccountDataRecord {
    const VERSION: u8 = 1;
}

impl Record for ThreadSubscriptionRecord {
    const VERSION: u8 = 1;
}
