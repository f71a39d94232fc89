//! Telling other servers what changes of local users' devices.
//!
//! A session notes a change in the same batch as the change itself, and a room does when a local user joins it. The
//! announcer, a task, makes EDUs of the notes: one after the other, so that the updates of a user are one sequence, and
//! in one batch with the queues of their destinations, so that a crash loses and doubles nothing.
//!
//! Spec: server-server API, "Device Management".

use std::{collections::BTreeSet, time::Duration};

use engine::id::{Position, ShortRoomId};
use ruma::{OwnedDeviceId, OwnedServerName, OwnedUserId, RoomId, UserId};
use serde_json::{Value, json, value::RawValue};
use storage::{
    Batch, Direction, KeyRange,
    schema::{self, DeviceListOutboxRecord},
};

use crate::{
    homeserver::Homeserver,
    session::{SessionData, SessionError},
};

/// Notes that are read at a time.
const PAGE: usize = 100;

/// Devices that a server is told one by one when it comes to share a room with their user. Of more, one stands for all:
/// an update without predecessors makes a server fetch the whole list.
const DEVICES_AT_JOIN: usize = 20;

/// What could not be told is tried again after this long.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// The sequence of a user's updates.
struct Sequence {
    last: Option<Position>,
}

impl Homeserver {
    /// Makes EDUs of changes for as long as the server runs.
    pub(super) async fn announce_device_lists(&self) {
        let mut noted = self.outbox().noted_lists();
        loop {
            let newest = *noted.borrow_and_update();
            let is_durable = self.caught_up(newest).await.is_ok();
            let is_done = match self.announce_noted().await {
                Ok(is_done) => is_done && is_durable,
                Err(error) => {
                    tracing::error!(%error, "cannot read what changed of devices");
                    false
                }
            };
            tokio::select! {
                biased;
                changed = noted.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY_AFTER), if !is_done => {}
            }
        }
    }

    /// Makes EDUs of all notes; returns whether none is left.
    async fn announce_noted(&self) -> Result<bool, SessionError> {
        // What is below the watermark has been published: the session has what its note speaks of.
        let end = Position(self.storage().watermark().0 + 1);
        let mut range = KeyRange::all();
        let mut is_done = true;
        loop {
            let rows = self.storage().range(&schema::DEVICE_LIST_OUTBOX, range, Direction::Ascending, PAGE);
            let rows = rows.await?;
            let Some((last, _)) = rows.last() else { return Ok(is_done) };
            range = KeyRange::all().after(last);
            for (key, note) in rows {
                if key.0 >= end {
                    return Ok(is_done);
                }
                // One account in trouble must not keep the others' changes from being told.
                if let Err(error) = self.announce_note(key, note).await {
                    tracing::error!(%error, "cannot tell other servers what changed of a user's devices");
                    is_done = false;
                }
            }
        }
    }

    async fn announce_note(
        &self,
        key: (Position, OwnedUserId),
        note: DeviceListOutboxRecord,
    ) -> Result<(), SessionError> {
        let user_id = &key.1;
        let mut servers = self.servers_sharing_rooms(user_id, note.joined.as_deref()).await?;
        if let Some(room_id) = &note.joined {
            let known = std::mem::take(&mut servers);
            servers = self.servers_in(self.room_number(room_id).await?).await?;
            servers.retain(|server| !known.contains(server));
        } else if let Some(federation) = self.federation() {
            servers.extend(federation.askers.of(user_id, self.env().clock.now_ms()));
        }
        servers.remove(self.server_name());
        let mut batch = Batch::default();
        batch.delete(&schema::DEVICE_LIST_OUTBOX, &key);
        let servers: Vec<_> = servers.into_iter().collect();
        if !servers.is_empty() {
            match self.session(user_id).await {
                Ok(session) => self.add_updates(&mut batch, &session.data(), &note, &servers).await?,
                Err(SessionError::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        self.storage().commit(batch).await.map_err(SessionError::Commit)?;
        self.outbox().nudge(servers);
        Ok(())
    }

    async fn add_updates(
        &self,
        batch: &mut Batch,
        data: &SessionData,
        note: &DeviceListOutboxRecord,
        servers: &[OwnedServerName],
    ) -> Result<(), SessionError> {
        let user_id = data.user_id();
        let mut sequence = Sequence { last: self.storage().get(&schema::DEVICE_STREAMS, user_id).await? };
        let (mut devices, mut signing_keys) = (note.devices.clone(), note.signing_keys);
        if note.joined.is_some() {
            // For its new destinations the sequence begins here.
            let before = sequence.last.take();
            devices = data.keys().devices().map(|(device_id, _)| device_id.to_owned()).collect();
            if devices.is_empty() {
                sequence.last = before;
            } else if devices.len() > DEVICES_AT_JOIN {
                devices.truncate(1);
            }
            signing_keys = data.keys().cross_signing("master").is_some();
        }
        for device_id in devices {
            let content = self.device_update(data, &device_id, &mut sequence);
            self.enqueue_edu(batch, "m.device_list_update", &content, servers);
        }
        if let Some(last) = sequence.last {
            batch.put(&schema::DEVICE_STREAMS, user_id, &last);
        }
        if signing_keys {
            let mut content = json!({ "user_id": user_id });
            for (kind, field) in [("master", "master_key"), ("self_signing", "self_signing_key")] {
                if let Some(key) = data.keys().cross_signing(kind) {
                    content[field] = key.clone();
                }
            }
            self.enqueue_edu(batch, "m.signing_key_update", &content, servers);
        }
        Ok(())
    }

    fn device_update(&self, data: &SessionData, device_id: &OwnedDeviceId, sequence: &mut Sequence) -> Value {
        let stream_id = self.storage().reserve(1).last();
        let prev_id: Vec<_> = sequence.last.replace(stream_id).into_iter().collect();
        let mut content = json!({
            "user_id": data.user_id(), "device_id": device_id, "stream_id": stream_id, "prev_id": prev_id,
        });
        match data.keys().device(device_id) {
            Some(keys) => content["keys"] = keys.clone(),
            None => content["deleted"] = true.into(),
        }
        if let Some(name) = self.shared_device_name(data, device_id) {
            content["device_display_name"] = name.into();
        }
        content
    }

    pub(super) fn enqueue_edu(
        &self,
        batch: &mut Batch,
        edu_type: &str,
        content: &Value,
        servers: &[OwnedServerName],
    ) {
        let edu = json!({ "edu_type": edu_type, "content": content }).to_string();
        if let Ok(edu) = RawValue::from_string(edu) {
            self.outbox().enqueue(batch, &edu, servers);
        }
    }

    /// The servers of all rooms that a local user is joined to, but for one room.
    pub(super) async fn servers_sharing_rooms(
        &self,
        user_id: &UserId,
        but: Option<&RoomId>,
    ) -> Result<BTreeSet<OwnedServerName>, SessionError> {
        let mut servers = BTreeSet::new();
        let all = KeyRange::prefix(&(user_id,));
        let rows = self.storage().range(&schema::MEMBERSHIPS, all, Direction::Ascending, usize::MAX).await?;
        for ((_, room_id), record) in rows {
            if record.membership == "join" && Some(&*room_id) != but {
                servers.extend(self.servers_in(Some(record.room)).await?);
            }
        }
        Ok(servers)
    }

    async fn room_number(&self, room_id: &RoomId) -> Result<Option<ShortRoomId>, SessionError> {
        Ok(self.storage().get(&schema::ROOM_IDS, room_id).await?)
    }

    async fn servers_in(&self, room: Option<ShortRoomId>) -> Result<BTreeSet<OwnedServerName>, SessionError> {
        let Some(room) = room else { return Ok(BTreeSet::new()) };
        let all = KeyRange::prefix(&(room,));
        let rows = self.storage().range(&schema::ROOM_SERVERS, all, Direction::Ascending, usize::MAX).await?;
        Ok(rows.into_iter().map(|((_, server), _)| server).collect())
    }
}
