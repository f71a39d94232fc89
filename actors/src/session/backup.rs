//! Backups of room keys.
//!
//! Spec: client-server API, "Server-side key backups".

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use ruma::{OwnedRoomId, RoomId};
use serde_json::{Map, Value};
use storage::{
    Batch, Direction, KeyRange,
    schema::{self, BackupRecord},
};

use super::{SessionChange, SessionError, SessionHandle, SessionMessage, change::Draft};

/// Versions that one user may make.
const VERSIONS_MAX: usize = 10_000;

/// Keys that are read or deleted at a time.
const PAGE: usize = 1000;

/// How often a change is tried again because another one came between.
const ATTEMPTS: usize = 50;

/// Keys by room and session.
pub type BackupKeys = BTreeMap<OwnedRoomId, BTreeMap<String, Value>>;

/// A place in a backup: all of it, a room, or a session.
pub type BackupPlace = Option<(OwnedRoomId, Option<String>)>;

/// A change of a backup's keys, decided from what is stored at `etag`.
#[derive(Clone, Debug)]
pub struct BackupChange {
    version: u64,
    etag: u64,
    count: u64,
    puts: Vec<(OwnedRoomId, String, String)>,
    deletes: Vec<(OwnedRoomId, String)>,
}

enum Request {
    Put(BackupKeys),
    Delete(BackupPlace),
}

impl BackupChange {
    fn new(version: u64, record: &BackupRecord) -> Self {
        Self { version, etag: record.etag, count: record.count, puts: Vec::new(), deletes: Vec::new() }
    }
}

impl Draft {
    fn put_backup(&mut self, version: u64, record: BackupRecord) {
        self.batch.put(&schema::BACKUPS, &(self.user_id().clone(), version), &record);
        self.data.keys.backups.insert(version, Arc::new(record));
    }

    pub(super) fn create_backup(&mut self, algorithm: String, auth_data: Bytes) -> Result<u64, SessionError> {
        if self.data.keys.backups.len() >= VERSIONS_MAX {
            return Err(SessionError::TooMany("key backups"));
        }
        let version = self.data.keys.backups.get_max().map_or(1, |(version, _)| version + 1);
        let record = BackupRecord { algorithm, auth_data, etag: 0, count: 0, is_deleted: false };
        self.put_backup(version, record);
        Ok(version)
    }

    fn backup(&self, version: u64) -> Result<BackupRecord, SessionError> {
        let backup = self.data.keys.backups.get(&version).filter(|backup| !backup.is_deleted);
        backup.map(|backup| (**backup).clone()).ok_or(SessionError::BackupNotFound)
    }

    pub(super) fn update_backup(
        &mut self,
        version: u64,
        algorithm: &str,
        auth_data: Bytes,
    ) -> Result<(), SessionError> {
        let record = self.backup(version)?;
        if record.algorithm != algorithm {
            return Err(SessionError::Invalid("a backup's algorithm cannot change".to_owned()));
        }
        self.put_backup(version, BackupRecord { auth_data, ..record });
        Ok(())
    }

    /// Deletes a version; one that was deleted before stays so.
    pub(super) fn delete_backup(&mut self, version: u64) -> Result<(), SessionError> {
        let record = self.data.keys.backups.get(&version).ok_or(SessionError::BackupNotFound)?;
        if !record.is_deleted {
            let record = BackupRecord { is_deleted: true, count: 0, ..(**record).clone() };
            self.put_backup(version, record);
        }
        Ok(())
    }

    pub(super) fn change_backup(&mut self, change: BackupChange) -> Result<(), SessionError> {
        let record = self.backup(change.version)?;
        if record.etag != change.etag {
            return Err(SessionError::Overtaken);
        }
        let user_id = self.user_id().clone();
        for (room_id, session_id, json) in change.puts {
            let row = (user_id.clone(), change.version, room_id, session_id);
            self.batch.put(&schema::BACKUP_KEYS, &row, &json);
        }
        for (room_id, session_id) in change.deletes {
            self.batch.delete(&schema::BACKUP_KEYS, &(user_id.clone(), change.version, room_id, session_id));
        }
        let record = BackupRecord { etag: record.etag + 1, count: change.count, ..record };
        self.put_backup(change.version, record);
        Ok(())
    }
}

/// Whether a key is better than the one in the backup.
///
/// Spec: client-server API, "Server-side key backups", on which of two keys is kept.
fn replaces(new: &Value, old: &Value) -> bool {
    let rank = |key: &Value| {
        let number = |name: &str| key[name].as_u64().unwrap_or(u64::MAX);
        let is_unverified = !key["is_verified"].as_bool().unwrap_or(false);
        (is_unverified, number("first_message_index"), number("forwarded_count"))
    };
    rank(new) < rank(old)
}

impl SessionHandle {
    /// Makes a new version of the key backup; returns its number.
    pub async fn create_backup(&self, algorithm: String, auth_data: Bytes) -> Result<u64, SessionError> {
        self.actor.call(|reply| SessionMessage::CreateBackup(algorithm, auth_data, reply)).await?
    }

    /// A version of the key backup, the latest if none is named.
    pub fn backup(&self, version: Option<u64>) -> Result<(u64, BackupRecord), SessionError> {
        let data = self.data();
        let mut backups = data.keys().backups();
        let found = match version {
            Some(version) => backups.find(|(known, _)| *known == version),
            None => backups.next_back(),
        };
        found.map(|(version, backup)| (version, backup.clone())).ok_or(SessionError::BackupNotFound)
    }

    /// Deletes a version of the key backup with its keys.
    pub async fn delete_backup(&self, version: u64) -> Result<(), SessionError> {
        self.change(SessionChange::DeleteBackup(version)).await?;
        // Nobody finds the keys any more; what a crash leaves of them here only takes space.
        let prefix = || KeyRange::prefix(&(self.user_id(), version));
        loop {
            let rows =
                self.shared.storage.range(&schema::BACKUP_KEYS, prefix(), Direction::Ascending, PAGE).await?;
            let is_last = rows.len() < PAGE;
            let mut batch = Batch::new();
            for (key, _) in rows {
                batch.delete(&schema::BACKUP_KEYS, &key);
            }
            self.shared.storage.commit(batch).await.map_err(SessionError::Commit)?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// The keys at a place of a backup.
    pub async fn backup_keys(&self, version: u64, place: &BackupPlace) -> Result<BackupKeys, SessionError> {
        self.backup(Some(version))?;
        let mut keys = BackupKeys::new();
        let mut put = |room_id: OwnedRoomId, session_id: String, json: &str| {
            let json =
                serde_json::from_str(json).map_err(|error| SessionError::Damaged(error.to_string()))?;
            keys.entry(room_id).or_default().insert(session_id, json);
            Ok::<_, SessionError>(())
        };
        let storage = &self.shared.storage;
        let user_id = self.user_id().to_owned();
        let range = match place {
            Some((room_id, Some(session_id))) => {
                let row = (user_id, version, room_id.clone(), session_id.clone());
                if let Some(json) = storage.get(&schema::BACKUP_KEYS, &row).await? {
                    put(row.2, row.3, &json)?;
                }
                return Ok(keys);
            }
            Some((room_id, None)) => KeyRange::prefix(&(&user_id, version, room_id)),
            None => KeyRange::prefix(&(&user_id, version)),
        };
        let rows = storage.range(&schema::BACKUP_KEYS, range, Direction::Ascending, usize::MAX).await?;
        for ((.., room_id, session_id), json) in rows {
            put(room_id, session_id, &json)?;
        }
        Ok(keys)
    }

    /// Puts keys into the latest backup, where they are better than those that are there.
    pub async fn put_backup_keys(
        &self,
        version: u64,
        keys: BackupKeys,
    ) -> Result<BackupRecord, SessionError> {
        self.change_backup(version, &Request::Put(keys)).await
    }

    /// Deletes the keys at a place of a backup.
    pub async fn delete_backup_keys(
        &self,
        version: u64,
        place: BackupPlace,
    ) -> Result<BackupRecord, SessionError> {
        self.change_backup(version, &Request::Delete(place)).await
    }

    async fn decide_put(
        &self,
        version: u64,
        record: &BackupRecord,
        keys: &BackupKeys,
    ) -> Result<BackupChange, SessionError> {
        let (latest, _) = self.backup(None)?;
        if latest != version {
            return Err(SessionError::WrongBackup(latest));
        }
        let mut change = BackupChange::new(version, record);
        let flat = || {
            let by_room = keys.iter();
            by_room.flat_map(|(room, sessions)| sessions.iter().map(move |(id, key)| (room, id, key)))
        };
        let row = |(room, id, _): (&OwnedRoomId, &String, _)| {
            (self.user_id().to_owned(), version, room.clone(), id.clone())
        };
        let rows: Vec<_> = flat().map(row).collect();
        let held = self.shared.storage.get_many(&schema::BACKUP_KEYS, rows).await?;
        for ((room, id, key), held) in flat().zip(held) {
            let held: Option<Value> = held.and_then(|json| serde_json::from_str(&json).ok());
            if held.as_ref().is_none_or(|held| replaces(key, held)) {
                change.count += u64::from(held.is_none());
                change.puts.push((room.clone(), id.clone(), key.to_string()));
            }
        }
        Ok(change)
    }

    async fn decide_delete(
        &self,
        version: u64,
        record: &BackupRecord,
        place: &BackupPlace,
    ) -> Result<BackupChange, SessionError> {
        let mut change = BackupChange::new(version, record);
        for (room, sessions) in self.backup_keys(version, place).await? {
            change.deletes.extend(sessions.into_keys().map(|id| (room.clone(), id)));
        }
        change.count = record.count.saturating_sub(change.deletes.len() as u64);
        Ok(change)
    }

    /// Decides a change from what is stored, again if another change came between.
    async fn change_backup(&self, version: u64, request: &Request) -> Result<BackupRecord, SessionError> {
        for _ in 0..ATTEMPTS {
            let (_, record) = self.backup(Some(version))?;
            let change = match request {
                Request::Put(keys) => self.decide_put(version, &record, keys).await?,
                Request::Delete(place) => self.decide_delete(version, &record, place).await?,
            };
            if change.puts.is_empty() && change.deletes.is_empty() {
                return Ok(record);
            }
            match self.change(SessionChange::ChangeBackup(Box::new(change))).await {
                // The other change is on its way: wait until it can be read.
                Err(SessionError::Overtaken) => {
                    self.shared.storage.commit(Batch::new()).await.map_err(SessionError::Commit)?;
                }
                result => {
                    result?;
                    return Ok(self.backup(Some(version))?.1);
                }
            }
        }
        Err(SessionError::Overtaken)
    }
}

/// The keys of one room of a backup, as clients get them.
pub fn room_keys(keys: &BackupKeys, room_id: &RoomId) -> Map<String, Value> {
    let sessions = keys.get(room_id).into_iter().flatten();
    sessions.map(|(id, key)| (id.clone(), key.clone())).collect()
}
