//! A change of an account in the making: what it becomes, and the rows to store.
//!
//! It works on a copy of the data, which is cheap. If the change is refused half-way, the copy is dropped
//! and nothing has happened.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use engine::id::Position;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedRoomId, OwnedUserId, RoomId,
    push::{Action, NewPushRule, RuleKind},
};
use serde_json::{Value, value::RawValue};
use storage::{
    Batch, Ticket,
    schema::{self, AccountDataRecord, ReceiptRecord, SlidingConnectionRecord, TokenHash},
};

use super::{
    LoginTokenKey, NewPusher, PusherKey, Restriction, SessionData, SessionError, ThreadChange, Upload,
    backup::BackupChange,
    data::{PUSH_RULES, stored_json},
    inbox::ReceivedId,
    keys::ListChange,
    profile, push_rules,
    sliding::ConnectionKey,
    tags,
};
use crate::{effects::Effect, room::Receipt};

/// What a session is asked to change.
#[derive(Clone, Debug)]
pub enum SessionChange {
    /// Set the password's hash, and log out all devices but one if asked.
    SetPassword {
        /// Argon2id in PHC form.
        hash: String,
        /// Which devices to log out.
        log_out: LogOut,
    },
    /// Make a guest's account an ordinary one; the guest's devices are logged out.
    UpgradeGuest {
        /// Argon2id in PHC form; none if the account is to have no password.
        password_hash: Option<String>,
    },
    /// Make the account an admin's, or an ordinary one.
    SetAdmin(bool),
    /// Put the account under a restriction, or lift it.
    Restrict(Restriction, bool),
    /// Deactivate the account for good.
    Deactivate {
        /// The user asked for erasure.
        erase: bool,
    },
    /// Name a device.
    RenameDevice(OwnedDeviceId, Option<String>),
    /// Make a device without tokens, or name it.
    PutDevice(OwnedDeviceId, Option<String>),
    /// Log out devices and forget them.
    DeleteDevices(Vec<OwnedDeviceId>),
    /// Log out and forget all devices.
    DeleteAllDevices,
    /// Set a profile field, or remove it.
    SetProfileField(String, Option<Arc<RawValue>>),
    /// Set account data: of a room, or global.
    SetAccountData(Option<OwnedRoomId>, String, Arc<RawValue>),
    /// Set a room's tag.
    SetTag(OwnedRoomId, String, Arc<RawValue>),
    /// Remove a room's tag.
    RemoveTag(OwnedRoomId, String),
    /// Set the fully-read marker of a room.
    SetFullyRead(OwnedRoomId, Arc<RawValue>),
    /// Set a private receipt; an older one than the present is ignored.
    SetPrivateReceipt(OwnedRoomId, Box<Receipt>),
    /// Subscribe to a thread, or unsubscribe.
    Thread(ThreadChange),
    /// Keep a filter.
    AddFilter {
        /// A hash of the filter.
        id: String,
        /// The filter, JSON.
        json: String,
    },
    /// Keep an OpenID token, and let go of some that have expired.
    AddOpenIdToken {
        /// The new token.
        key: OpenIdKey,
        /// Tokens that have expired.
        expired: Vec<OpenIdKey>,
    },
    /// Keep a login token, and let go of some that have expired.
    AddLoginToken {
        /// The new token.
        key: LoginTokenKey,
        /// Tokens that have expired.
        expired: Vec<LoginTokenKey>,
    },
    /// Keep what a sliding-sync connection has sent.
    SetSlidingConnection(ConnectionKey, Arc<SlidingConnectionRecord>),
    /// Create or replace a push rule.
    SetPushRule {
        /// The rule.
        rule: Box<NewPushRule>,
        /// Give it the next lower priority than this rule's.
        after: Option<String>,
        /// Give it the next higher priority than this rule's.
        before: Option<String>,
    },
    /// Remove a push rule.
    RemovePushRule(RuleKind, String),
    /// Switch a push rule on or off.
    EnablePushRule(RuleKind, String, bool),
    /// Set what a push rule does.
    SetPushRuleActions(RuleKind, String, Vec<Action>),
    /// Create or replace a pusher.
    SetPusher(Box<NewPusher>),
    /// Remove a pusher; with a time, only one that was last set then.
    RemovePusher(PusherKey, Option<MilliSecondsSinceUnixEpoch>),
    /// Add a device's keys.
    UploadKeys(Box<Upload>),
    /// Set cross-signing keys by kind.
    SetCrossSigning(BTreeMap<String, Value>),
    /// Add signatures to one of the user's own keys, named by device ID or public key.
    SignOwn(String, Value),
    /// Keep the user's signatures on the master key of another user.
    SignOther(OwnedUserId, Value),
    /// Put to-device messages, JSON, into the inboxes of devices; of all of them where none is named.
    Deliver(Vec<(Option<OwnedDeviceId>, String)>, ReceivedId),
    /// Remember that a device has sent to-device messages, and let go of what the local recipients have noted of them.
    NoteTxn {
        /// The device.
        device_id: OwnedDeviceId,
        /// By what the transaction is known from now on.
        hash: [u8; 8],
        /// By what it is known to the recipients.
        message_id: String,
        /// The users who were sent the messages.
        recipients: Vec<OwnedUserId>,
    },
    /// Set what the algorithm of a backup needs.
    UpdateBackup(u64, String, Bytes),
    /// Delete a version of the key backup.
    DeleteBackup(u64),
    /// Change the keys of a backup.
    ChangeBackup(Box<BackupChange>),
    /// Make a dehydrated device: its name, what it is rehydrated from, its keys.
    Dehydrate(Option<String>, Value, Box<Upload>),
}

/// When an OpenID token stops working, and its hash.
pub type OpenIdKey = (u64, TokenHash);

/// Which devices a password change logs out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOut {
    /// None.
    Nobody,
    /// All but the one that changes the password, if a device does.
    Others(Option<OwnedDeviceId>),
}

/// Pieces of account data that one user may have, in all rooms together.
const ACCOUNT_DATA_MAX: usize = 100_000;

/// What they may weigh together, in bytes: a session keeps them in memory, and a first sync tells of all of them. Accounts of some
/// thousand rooms have 2 MiB; one piece has no more than a request's body.
const ACCOUNT_DATA_WEIGHT_MAX: u64 = 32 << 20;

/// Bytes of the type of a piece of account data, at most, as of an event.
const ACCOUNT_DATA_KIND_MAX: usize = 255;

/// Bytes of a user's push rules, at most: all of them are stored and sent whenever one changes. As many of rooms fit as there may be.
const PUSH_RULES_BYTES_MAX: usize = 1 << 20;

/// An account that is being changed.
pub(super) struct Draft {
    /// The account once the change is in.
    pub(super) data: SessionData,
    /// The rows to store.
    pub(super) batch: Batch,
    /// Tokens that stop working.
    pub(super) revoked: Vec<TokenHash>,
    /// Rooms whose part of `/sync` changes.
    pub(super) rooms: Vec<OwnedRoomId>,
    /// Whether the part of `/sync` outside rooms changes.
    pub(super) is_news: bool,
    /// Whether the user asks for the erasure of what they sent.
    pub(super) is_erasure: bool,
    /// Whether the user's pushers change.
    pub(super) pushers_changed: bool,
    /// What those who share rooms are to hear of the user's devices.
    pub(super) list_change: Option<ListChange>,
    /// When the change happens.
    pub(super) now: MilliSecondsSinceUnixEpoch,
    /// The positions that the change takes: one, as a rule.
    pub(super) ticket: Ticket,
}

impl Draft {
    pub(super) fn new(data: SessionData, ticket: Ticket, now: MilliSecondsSinceUnixEpoch) -> Self {
        Self {
            data,
            batch: Batch::new(),
            revoked: Vec::new(),
            rooms: Vec::new(),
            is_news: false,
            is_erasure: false,
            pushers_changed: false,
            list_change: None,
            now,
            ticket,
        }
    }

    pub(super) fn position(&self) -> Position {
        self.ticket.last()
    }

    pub(super) fn user_id(&self) -> &OwnedUserId {
        &self.data.user_id
    }

    /// Applies one change, or refuses it.
    pub(super) fn apply(&mut self, change: SessionChange) -> Result<(), SessionError> {
        match change {
            SessionChange::SetPassword { hash, log_out } => self.set_password(hash, &log_out),
            SessionChange::UpgradeGuest { password_hash } => self.upgrade_guest(password_hash),
            SessionChange::SetAdmin(is_admin) => {
                self.set_account(|account| account.is_admin = is_admin);
                Ok(())
            }
            SessionChange::Restrict(restriction, is_on) => self.restrict(restriction, is_on),
            SessionChange::Deactivate { erase } => {
                self.deactivate(erase);
                Ok(())
            }
            SessionChange::RenameDevice(device_id, name) => self.rename_device(&device_id, name),
            SessionChange::PutDevice(device_id, name) => self.put_device_of_service(device_id, name),
            SessionChange::DeleteDevices(device_ids) => {
                self.delete_devices(&device_ids);
                Ok(())
            }
            SessionChange::DeleteAllDevices => {
                self.delete_devices(&self.device_ids());
                Ok(())
            }
            SessionChange::SetProfileField(name, value) => self.set_profile_field(name, value),
            SessionChange::SetAccountData(_, kind, _) if is_server_managed(&kind) => {
                Err(SessionError::ServerManaged(kind))
            }
            SessionChange::SetAccountData(room_id, kind, content) => {
                self.set_account_data(room_id, &kind, content)
            }
            SessionChange::SetTag(room_id, tag, info) => {
                let content = tags::with(self.data.account_data(Some(&room_id), tags::KIND), &tag, &info)?;
                self.set_account_data(Some(room_id), tags::KIND, content)
            }
            SessionChange::RemoveTag(room_id, tag) => {
                match tags::without(self.data.account_data(Some(&room_id), tags::KIND), &tag) {
                    Some(content) => self.set_account_data(Some(room_id), tags::KIND, content),
                    None => Ok(()),
                }
            }
            SessionChange::SetFullyRead(room_id, content) => {
                self.set_account_data(Some(room_id), FULLY_READ, content)
            }
            SessionChange::SetPrivateReceipt(room_id, receipt) => {
                self.set_private_receipt(room_id, *receipt);
                Ok(())
            }
            SessionChange::AddFilter { id, json } => {
                self.batch.put(&schema::FILTERS, &(self.data.user_id.clone(), id), &json);
                Ok(())
            }
            SessionChange::AddOpenIdToken { key, expired } => {
                self.batch.put(&schema::OPENID_TOKENS, &key, &self.data.user_id);
                for key in &expired {
                    self.batch.delete(&schema::OPENID_TOKENS, key);
                }
                Ok(())
            }
            SessionChange::AddLoginToken { key, expired } => {
                self.batch.put(&schema::LOGIN_TOKENS, &key, &self.data.user_id);
                for key in &expired {
                    self.batch.delete(&schema::LOGIN_TOKENS, key);
                }
                Ok(())
            }
            SessionChange::SetSlidingConnection(key, record) => self.set_sliding_connection(&key, record),
            SessionChange::SetPushRule { rule, after, before } => {
                let rules = push_rules::insert(&self.data, *rule, after.as_deref(), before.as_deref())?;
                self.set_push_rules(rules)
            }
            SessionChange::RemovePushRule(kind, rule_id) => {
                let mut rules = (**self.data.push_rules()).clone();
                rules.remove(kind, rule_id)?;
                self.set_push_rules(rules)
            }
            SessionChange::EnablePushRule(kind, rule_id, enabled) => {
                let mut rules = (**self.data.push_rules()).clone();
                rules.set_enabled(kind, rule_id, enabled).map_err(|_| SessionError::PushRuleNotFound)?;
                self.set_push_rules(rules)
            }
            SessionChange::SetPushRuleActions(kind, rule_id, actions) => {
                let mut rules = (**self.data.push_rules()).clone();
                rules.set_actions(kind, rule_id, actions).map_err(|_| SessionError::PushRuleNotFound)?;
                self.set_push_rules(rules)
            }
            SessionChange::Thread(change) => self.change_thread(change),
            SessionChange::SetPusher(new) => self.set_pusher(*new),
            SessionChange::RemovePusher(key, set) => {
                self.remove_pusher(&key, set);
                Ok(())
            }
            other => self.apply_encryption(other),
        }
    }

    /// Applies one of the changes that serve end-to-end encryption; the others are dealt with already.
    fn apply_encryption(&mut self, change: SessionChange) -> Result<(), SessionError> {
        match change {
            SessionChange::UploadKeys(upload) => self.upload_keys(*upload)?,
            SessionChange::SetCrossSigning(keys) => self.set_cross_signing(keys)?,
            SessionChange::SignOwn(key_id, signatures) => self.sign_own(&key_id, &signatures)?,
            SessionChange::SignOther(target, signatures) => self.sign_other(&target, &signatures)?,
            SessionChange::Deliver(messages, received) => self.deliver(messages, received),
            SessionChange::NoteTxn { device_id, hash, message_id, recipients } => {
                self.note_txn(&device_id, hash);
                self.let_go_of_notes(&message_id, recipients);
            }
            SessionChange::UpdateBackup(version, algorithm, auth_data) => {
                self.update_backup(version, &algorithm, auth_data)?;
            }
            SessionChange::DeleteBackup(version) => self.delete_backup(version)?,
            SessionChange::ChangeBackup(change) => self.change_backup(*change)?,
            SessionChange::Dehydrate(name, data, upload) => self.dehydrate(name, &data, *upload)?,
            _ => {}
        }
        Ok(())
    }

    fn set_profile_field(&mut self, name: String, value: Option<Arc<RawValue>>) -> Result<(), SessionError> {
        let key = (self.user_id().clone(), name.clone());
        if is_in_rooms(&name) {
            self.ask_for(Effect::Profile);
        }
        profile::check(&name, value.as_deref())?;
        if name == "displayname" {
            let name = value.as_deref().and_then(|value| serde_json::from_str::<String>(value.get()).ok());
            self.index_name(name.as_deref());
        }
        if let Some(value) = value {
            self.batch.put(&schema::PROFILES, &key, &value.get().to_owned());
            self.data.profile.fields.insert(name, value);
            if self.data.profile.size() > profile::SIZE_MAX {
                return Err(SessionError::ProfileTooLarge);
            }
        } else {
            self.batch.delete(&schema::PROFILES, &key);
            self.data.profile.fields.remove(&name);
        }
        Ok(())
    }

    fn set_account_data(
        &mut self,
        room_id: Option<OwnedRoomId>,
        kind: &str,
        content: Arc<RawValue>,
    ) -> Result<(), SessionError> {
        let is_new = self.data.account_data(room_id.as_deref(), kind).is_none();
        if is_new && self.data.account_data.len() >= ACCOUNT_DATA_MAX {
            return Err(SessionError::TooMany("pieces of account data"));
        }
        if is_new && kind.len() > ACCOUNT_DATA_KIND_MAX {
            return Err(SessionError::Invalid(format!("a type has at most {ACCOUNT_DATA_KIND_MAX} bytes")));
        }
        let before = self.data.account_data.weight();
        let position = self.position();
        self.store_account_data(room_id.as_deref(), kind, &content, position);
        self.is_news |= room_id.is_none();
        self.rooms.extend(room_id.clone());
        self.data.set_account_data(room_id, kind, content, position);
        let after = self.data.account_data.weight();
        if after > before && after > ACCOUNT_DATA_WEIGHT_MAX {
            return Err(SessionError::TooMany("bytes of account data"));
        }
        Ok(())
    }

    /// Notes what the change is to bring about in rooms, in the same batch.
    pub(super) fn ask_for(&mut self, effect: Effect) {
        let position = self.position();
        self.batch.put(&schema::EFFECTS, &effect.key(self.data.user_id.as_str()), &position);
    }

    fn store_account_data(
        &mut self,
        room_id: Option<&RoomId>,
        kind: &str,
        content: &RawValue,
        position: Position,
    ) {
        let room_id = room_id.map_or_else(String::new, ToString::to_string);
        let record = AccountDataRecord { content: stored_json(content), position };
        self.batch.put(
            &schema::ACCOUNT_DATA,
            &(self.data.user_id.clone(), room_id, kind.to_owned()),
            &record,
        );
    }

    fn set_push_rules(&mut self, rules: ruma::push::Ruleset) -> Result<(), SessionError> {
        let position = self.position();
        self.is_news = true;
        let before = self.data.account_data(None, PUSH_RULES).map_or(0, |content| content.get().len());
        let content = self.data.set_push_rules(rules, position);
        let after = content.get().len();
        if after > before && after > PUSH_RULES_BYTES_MAX {
            return Err(SessionError::TooMany("bytes of push rules"));
        }
        self.store_account_data(None, PUSH_RULES, &content, position);
        Ok(())
    }

    fn set_private_receipt(&mut self, room_id: OwnedRoomId, mut receipt: Receipt) {
        let thread = receipt.thread.clone().unwrap_or_default();
        let key = (room_id.clone(), thread.clone());
        if self.data.private_receipts.get(&key).is_some_and(|held| held.index >= receipt.index) {
            return;
        }
        receipt.position = self.position();
        let record = ReceiptRecord {
            event_id: receipt.event_id.clone(),
            index: receipt.index,
            ts: receipt.ts,
            position: receipt.position,
        };
        let row = (self.user_id().clone(), room_id.clone(), thread);
        self.batch.put(&schema::PRIVATE_RECEIPTS, &row, &record);
        self.data.private_receipts.insert(key, receipt);
        self.rooms.push(room_id);
    }
}

/// Whether a profile field is part of membership events.
pub(super) fn is_in_rooms(name: &str) -> bool {
    ["displayname", "avatar_url"].contains(&name)
}

/// The type of the account data that holds a room's fully-read marker.
pub(super) const FULLY_READ: &str = "m.fully_read";

/// Spec: client-server API, "Client Config", server behaviour.
fn is_server_managed(kind: &str) -> bool {
    [FULLY_READ, PUSH_RULES].contains(&kind)
}
