//! The devices of other servers' users, kept as long as such a user shares a room with a local one.
//!
//! A list is fetched when a local user first asks for it. From then on the user's server tells what changes, each
//! change with its place in a sequence; after a gap the list is stale until it is fetched again. A task does that, with
//! back-off and from where it stopped before a restart; whoever asks in between causes it at once.
//!
//! Spec: server-server API, "Device Management".

mod refresh;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use dashmap::{DashMap, DashSet};
use parking_lot::Mutex as SyncMutex;
use ruma::{OwnedDeviceId, OwnedServerName, OwnedUserId, ServerName, UserId};
use serde::Deserialize;
use serde_json::{Value, json};
use storage::{
    Batch,
    schema::{self, RemoteDeviceListRecord},
};
use tokio::sync::{Mutex, Notify, oneshot};

use crate::{
    homeserver::Homeserver,
    session::{SessionError, SessionView},
};

/// Devices of one user that are kept; others exist only to fill our disk.
const DEVICES_MAX: usize = 1000;

/// Bytes of the keys of one device, or of one cross-signing key with its signatures.
const KEY_MAX: usize = 32 << 10;

/// Users whose turns are remembered; those that nobody waits for are let go of then.
const TURNS_MAX: usize = 20_000;

/// Rows that are read at a time.
const PAGE: usize = 500;

/// What is under way with the lists.
#[derive(Default)]
pub(crate) struct DeviceLists {
    /// One change of a user's list at a time.
    turns: DashMap<OwnedUserId, Arc<Mutex<()>>>,
    /// Lists that are being fetched.
    flights: SyncMutex<BTreeMap<OwnedUserId, Flight>>,
    /// There is something to fetch.
    work: Notify,
    /// Servers of which something was heard while lists of theirs were stale.
    alive: DashSet<OwnedServerName>,
}

#[derive(Default)]
struct Flight {
    count: usize,
    /// An update came meanwhile: the answer may or may not contain it.
    overtaken: bool,
}

/// A list is being fetched, until this is dropped.
pub(super) struct Fetching<'a> {
    lists: &'a DeviceLists,
    user_id: OwnedUserId,
}

impl Fetching<'_> {
    fn is_overtaken(&self) -> bool {
        self.lists.flights.lock().get(&self.user_id).is_some_and(|flight| flight.overtaken)
    }
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        let mut flights = self.lists.flights.lock();
        if let Some(flight) = flights.get_mut(&self.user_id) {
            flight.count -= 1;
            if flight.count == 0 {
                flights.remove(&self.user_id);
            }
        }
    }
}

impl DeviceLists {
    fn turn(&self, user_id: &UserId) -> Arc<Mutex<()>> {
        if self.turns.len() >= TURNS_MAX {
            self.turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        }
        self.turns.entry(user_id.to_owned()).or_default().clone()
    }

    pub(super) fn fetching(&self, user_id: &UserId) -> Fetching<'_> {
        self.flights.lock().entry(user_id.to_owned()).or_default().count += 1;
        Fetching { lists: self, user_id: user_id.to_owned() }
    }

    fn overtake(&self, user_id: &UserId) {
        if let Some(flight) = self.flights.lock().get_mut(user_id) {
            flight.overtaken = true;
        }
    }
}

/// An `m.device_list_update`.
#[derive(Debug, Deserialize)]
pub(super) struct DeviceListUpdate {
    user_id: OwnedUserId,
    device_id: OwnedDeviceId,
    device_display_name: Option<String>,
    stream_id: i64,
    #[serde(default)]
    prev_id: Vec<i64>,
    #[serde(default)]
    deleted: bool,
    keys: Option<Value>,
}

/// An `m.signing_key_update`.
#[derive(Debug, Deserialize)]
pub(super) struct SigningKeyUpdate {
    user_id: OwnedUserId,
    master_key: Option<Value>,
    self_signing_key: Option<Value>,
}

/// What became of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The list has it already.
    Known,
    /// It follows what the list had, which has it now.
    Applied,
    /// Something is missing before it.
    Gap,
}

/// Applies an update to a list, if it follows.
fn apply(list: &mut RemoteDeviceListRecord, update: DeviceListUpdate) -> Verdict {
    if !list.is_stale && list.stream_id == Some(update.stream_id) {
        return Verdict::Known;
    }
    // One without predecessors begins a sequence: what came before it was not for us.
    let follows = list.stream_id.is_some_and(|at| {
        at < update.stream_id && !update.prev_id.is_empty() && update.prev_id.iter().all(|prev| *prev == at)
    });
    if list.is_stale || !follows {
        list.is_stale = true;
        return Verdict::Gap;
    }
    list.stream_id = Some(update.stream_id);
    let keys = update.keys.filter(|_| !update.deleted);
    match keys.and_then(|keys| device(&update.user_id, &update.device_id, keys, update.device_display_name)) {
        Some(keys) if list.devices.len() < DEVICES_MAX || list.devices.contains_key(&update.device_id) => {
            list.devices.insert(update.device_id, keys);
        }
        _ => drop(list.devices.remove(&update.device_id)),
    }
    Verdict::Applied
}

/// A device's keys as clients get them; none if they are not that device's.
pub(super) fn device(
    user_id: &UserId,
    device_id: &OwnedDeviceId,
    mut keys: Value,
    name: Option<String>,
) -> Option<String> {
    if keys["user_id"] != user_id.as_str()
        || keys["device_id"] != device_id.as_str()
        || !keys["keys"].is_object()
    {
        return None;
    }
    if let (Some(name), Some(keys)) = (name, keys.as_object_mut()) {
        keys.insert("unsigned".to_owned(), json!({ "device_display_name": name }));
    }
    Some(keys.to_string()).filter(|json| json.len() <= KEY_MAX)
}

/// A cross-signing key; none if it is not that user's.
pub(super) fn cross_signing_key(user_id: &UserId, key: Option<Value>) -> Option<String> {
    let key = key.filter(|key| key["user_id"] == user_id.as_str() && key["keys"].is_object())?;
    Some(key.to_string()).filter(|json| json.len() <= KEY_MAX)
}

impl Homeserver {
    /// Whether another server's user is joined to a room that this server is in.
    pub(super) async fn shares_room_with(&self, user_id: &UserId) -> Result<bool, SessionError> {
        if self.is_known_to_share_room(user_id).await? {
            return Ok(true);
        }
        self.users().settle().await;
        self.is_known_to_share_room(user_id).await
    }

    async fn is_known_to_share_room(&self, user_id: &UserId) -> Result<bool, SessionError> {
        let rooms = self.joined_rooms_of(user_id).await?;
        for rooms in rooms.chunks(PAGE) {
            let keys = rooms.iter().map(|room| (*room, self.server_name().to_owned()));
            let present = self.storage().get_many(&schema::ROOM_SERVERS, keys).await?;
            if present.iter().any(Option::is_some) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What is kept of a user's devices, stale or not.
    pub(super) async fn kept_device_list(
        &self,
        user_id: &UserId,
    ) -> Result<Option<RemoteDeviceListRecord>, SessionError> {
        if self.storage().get(&schema::DEPARTED_USERS, user_id).await?.is_some() {
            return Ok(None);
        }
        Ok(self.storage().get(&schema::REMOTE_DEVICE_LISTS, user_id).await?)
    }

    /// Takes in what a server says of a device of one of its users.
    pub(super) async fn receive_device_list_update(
        &self,
        origin: &ServerName,
        update: DeviceListUpdate,
    ) -> Result<(), SessionError> {
        let user_id = update.user_id.clone();
        self.receive_list_change(origin, &user_id, |list| apply(list, update)).await
    }

    /// Takes in what a server says of the cross-signing keys of one of its users.
    pub(super) async fn receive_signing_key_update(
        &self,
        origin: &ServerName,
        update: SigningKeyUpdate,
    ) -> Result<(), SessionError> {
        let user_id = update.user_id.clone();
        let apply = |list: &mut RemoteDeviceListRecord| {
            list.master = cross_signing_key(&user_id, update.master_key).or(list.master.take());
            let self_signing = cross_signing_key(&user_id, update.self_signing_key);
            list.self_signing = self_signing.or(list.self_signing.take());
            Verdict::Applied
        };
        self.receive_list_change(origin, &user_id, apply).await
    }

    async fn receive_list_change(
        &self,
        origin: &ServerName,
        user_id: &OwnedUserId,
        apply: impl FnOnce(&mut RemoteDeviceListRecord) -> Verdict,
    ) -> Result<(), SessionError> {
        let Some(federation) = self.federation() else { return Ok(()) };
        if user_id.server_name() != origin || !self.shares_room_with(user_id).await? {
            return Ok(());
        }
        let lists = &federation.device_lists;
        let turn = lists.turn(user_id);
        let _turn = turn.lock().await;
        lists.overtake(user_id);
        let Some(mut list) = self.kept_device_list(user_id).await? else {
            // Nobody has asked for the list; who asks next gets it from there.
            return self.put_device_list(user_id, None, true).await;
        };
        let verdict = apply(&mut list);
        if verdict == Verdict::Known {
            return Ok(());
        }
        self.put_device_list(user_id, Some(&list), true).await?;
        if verdict == Verdict::Gap {
            lists.alive.insert(origin.to_owned());
            lists.work.notify_one();
        }
        Ok(())
    }

    /// Keeps a list, and tells local users who share a room with its user if it is another one.
    async fn put_device_list(
        &self,
        user_id: &OwnedUserId,
        list: Option<&RemoteDeviceListRecord>,
        is_news: bool,
    ) -> Result<(), SessionError> {
        // Reserved first: whoever begins to listen later than this finds the change in the store.
        let ticket = self.storage().reserve(1);
        let position = ticket.last();
        let mut batch = Batch::default();
        if let Some(list) = list {
            batch.put(&schema::REMOTE_DEVICE_LISTS, user_id, list);
            batch.delete(&schema::DEPARTED_USERS, user_id);
            let stale = (user_id.server_name().to_owned(), user_id.clone());
            if list.is_stale {
                batch.put(&schema::STALE_DEVICE_LISTS, &stale, &());
            } else {
                batch.delete(&schema::STALE_DEVICE_LISTS, &stale);
            }
        }
        let mut views = Vec::new();
        if is_news {
            if let Some(before) = self.storage().get(&schema::DEVICE_LISTS, user_id).await? {
                batch.delete(&schema::DEVICE_LIST_CHANGES, &before);
            }
            batch.put(&schema::DEVICE_LISTS, user_id, &position);
            batch.put(&schema::DEVICE_LIST_CHANGES, &position, user_id);
            views = self.local_neighbors(user_id).await?;
        }
        let (reply, answer) = oneshot::channel();
        let user_id = user_id.clone();
        self.storage().submit(batch, Some(ticket), move |result| {
            if result.is_ok() {
                for view in views {
                    view.mark_device_list(&user_id, position);
                    view.wake();
                }
            }
            let _ = reply.send(result); // a caller that hung up does not care
        });
        answer.await.map_err(|_| SessionError::Crashed)?.map_err(SessionError::Commit)
    }

    /// The active sessions that share a room with a user of another server.
    pub(super) async fn local_neighbors(
        &self,
        user_id: &UserId,
    ) -> Result<Vec<Arc<SessionView>>, SessionError> {
        let rooms = self.joined_rooms_of(user_id).await?;
        Ok(self.room_shared().hub.members_of(rooms))
    }

    /// Keeps a list that was fetched.
    pub(super) async fn keep_device_list(
        &self,
        fetching: &Fetching<'_>,
        mut list: RemoteDeviceListRecord,
    ) -> Result<(), SessionError> {
        let user_id = &fetching.user_id;
        let turn = fetching.lists.turn(user_id);
        let _turn = turn.lock().await;
        list.is_stale = fetching.is_overtaken();
        let known = self.kept_device_list(user_id).await?;
        let same = |known: &RemoteDeviceListRecord| {
            known.devices == list.devices
                && known.master == list.master
                && known.self_signing == list.self_signing
        };
        let is_news = known.as_ref().is_some_and(|known| !same(known));
        self.put_device_list(user_id, Some(&list), is_news).await?;
        if list.is_stale {
            fetching.lists.work.notify_one();
        }
        Ok(())
    }
}

/// Devices of a list that was answered with, as many as are kept.
pub(super) fn devices_of(
    user_id: &OwnedUserId,
    answer: BTreeMap<OwnedDeviceId, Value>,
) -> BTreeMap<OwnedDeviceId, String> {
    let devices = answer.into_iter().take(DEVICES_MAX).filter_map(|(device_id, mut keys)| {
        let name = keys.as_object_mut().and_then(|keys| keys.remove("unsigned"));
        let name = name.and_then(|unsigned| unsigned["device_display_name"].as_str().map(ToOwned::to_owned));
        let keys = device(user_id, &device_id, keys, name)?;
        Some((device_id, keys))
    });
    devices.collect()
}

/// The servers of users.
pub(super) fn servers_of<'a>(users: impl Iterator<Item = &'a OwnedUserId>) -> BTreeSet<OwnedServerName> {
    users.map(|user_id| user_id.server_name().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use ruma::{owned_device_id, owned_user_id};

    use super::*;

    fn keys() -> Value {
        json!({ "user_id": "@bob:b", "device_id": "PHONE", "algorithms": [], "keys": { "ed25519:PHONE": "a" } })
    }

    fn update(stream_id: i64, prev_id: &[i64]) -> DeviceListUpdate {
        DeviceListUpdate {
            user_id: owned_user_id!("@bob:b"),
            device_id: owned_device_id!("PHONE"),
            device_display_name: Some("phone".to_owned()),
            stream_id,
            prev_id: prev_id.to_vec(),
            deleted: false,
            keys: Some(keys()),
        }
    }

    #[test]
    fn an_update_is_applied_only_if_it_follows() {
        let list = |stream_id| RemoteDeviceListRecord { stream_id, ..Default::default() };
        for (at, stream_id, prev_id, expected) in [
            (Some(5), 6, &[5][..], Verdict::Applied),
            (Some(5), 9, &[5], Verdict::Applied),
            (Some(5), 5, &[4], Verdict::Known),
            (Some(5), 7, &[6], Verdict::Gap),
            (Some(5), 7, &[5, 6], Verdict::Gap),
            (Some(5), 7, &[], Verdict::Gap),
            (Some(5), 4, &[3], Verdict::Gap),
            (None, 6, &[5], Verdict::Gap),
        ] {
            let mut list = list(at);
            assert_eq!(
                apply(&mut list, update(stream_id, prev_id)),
                expected,
                "{at:?} {stream_id} {prev_id:?}"
            );
            assert_eq!(list.is_stale, expected == Verdict::Gap);
            assert_eq!(list.devices.len(), usize::from(expected == Verdict::Applied));
        }
        let mut stale = RemoteDeviceListRecord { is_stale: true, ..list(Some(5)) };
        assert_eq!(apply(&mut stale, update(6, &[5])), Verdict::Gap, "what is missing is still missing");
    }

    #[test]
    fn a_deleted_device_and_one_of_another_user_are_left_out() {
        let mut list = RemoteDeviceListRecord { stream_id: Some(1), ..Default::default() };
        apply(&mut list, update(2, &[1]));
        let kept: Value = serde_json::from_str(&list.devices["PHONE"]).unwrap();
        assert_eq!(kept["unsigned"]["device_display_name"], "phone");
        let deleted = DeviceListUpdate { deleted: true, ..update(3, &[2]) };
        assert_eq!(apply(&mut list, deleted), Verdict::Applied);
        assert!(list.devices.is_empty());
        let mut forged = keys();
        forged["user_id"] = "@carol:b".into();
        let forged = DeviceListUpdate { keys: Some(forged), ..update(4, &[3]) };
        assert_eq!(apply(&mut list, forged), Verdict::Applied);
        assert!(list.devices.is_empty());
    }
}
