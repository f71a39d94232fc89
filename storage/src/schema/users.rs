//! Records of local users.

use bytes::Bytes;
use engine::id::Position;
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
