//! Fetching stale lists again, and letting go of those that nobody needs any more.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt, stream};
use http::StatusCode;
use ruma::{OwnedDeviceId, OwnedServerName, OwnedUserId, ServerName};
use serde::Deserialize;
use serde_json::Value;
use storage::{
    Batch, Direction, KeyRange,
    schema::{self, RemoteDeviceListRecord},
};

use super::{DEVICES_MAX, PAGE, cross_signing_key, device};
use crate::{
    env::has_come,
    federation::{FederationError, remote::encode, unsent::forget_unsent_edus},
    homeserver::Homeserver,
    session::SessionError,
};

/// The first attempt to fetch stale lists again comes after about this long.
const RETRY_FIRST: Duration = Duration::from_secs(2);

/// Attempts are never further apart than this.
const RETRY_MAX: Duration = Duration::from_secs(3600);

/// The same in milliseconds, with the fifth that chance may add.
const DELAY_MAX_MS: u64 = RETRY_MAX.as_secs() * 1200;

/// Users who departed are let go of this often, at least.
const ROUND_MAX: Duration = Duration::from_secs(60);

/// The IDs of received to-device messages, and EDUs that wait for their servers, are gone through this often.
const SWEEP_EVERY_MS: u64 = 24 * 3600 * 1000;

/// Servers that stale lists are fetched from at a time.
const SERVERS_AT_A_TIME: usize = 8;

/// The answer to `GET /user/devices/{userId}`.
#[derive(Debug, Deserialize)]
struct UserDevices {
    stream_id: i64,
    #[serde(default)]
    devices: Vec<UserDevice>,
    master_key: Option<Value>,
    self_signing_key: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct UserDevice {
    device_id: OwnedDeviceId,
    keys: Option<Value>,
    device_display_name: Option<String>,
}

/// When a server is asked again.
#[derive(Clone, Copy, Debug, Default)]
struct BackOff {
    failures: u32,
    retry_at_ms: u64,
}

impl Homeserver {
    /// Fetches stale lists again, for as long as the server runs.
    pub(in crate::federation) async fn refresh_device_lists(&self) {
        let Some(federation) = self.federation() else { return };
        let mut back_offs = BTreeMap::new();
        let mut sweep_at_ms = 0;
        loop {
            let now_ms = self.env().clock.now_ms();
            if has_come(sweep_at_ms, now_ms, SWEEP_EVERY_MS) {
                sweep_at_ms = now_ms + SWEEP_EVERY_MS;
                if let Err(error) = self.forget_received_messages().await {
                    tracing::error!(%error, "cannot let go of the IDs of old to-device messages");
                }
                if let Err(error) = forget_unsent_edus(self.storage(), self.env().clock.now_ms()).await {
                    tracing::error!(%error, "cannot let go of EDUs that no server takes");
                }
            }
            if let Err(error) = self.forget_departed().await {
                tracing::error!(%error, "cannot let go of the devices of users who departed");
            }
            let now_ms = self.env().clock.now_ms();
            let wait = match self.refresh_round(&mut back_offs, now_ms).await {
                Ok(wait) => wait,
                Err(error) => {
                    tracing::error!(%error, "cannot read which device lists are stale");
                    ROUND_MAX
                }
            };
            tokio::select! {
                biased;
                () = federation.device_lists.work.notified() => {}
                () = tokio::time::sleep(wait.min(ROUND_MAX)) => {}
            }
        }
    }

    /// Fetches the stale lists of the servers whose turn it is; returns when there is more to do.
    async fn refresh_round(
        &self,
        back_offs: &mut BTreeMap<OwnedServerName, BackOff>,
        now_ms: u64,
    ) -> Result<Duration, SessionError> {
        let Some(federation) = self.federation() else { return Ok(ROUND_MAX) };
        let all = KeyRange::all();
        let rows =
            self.storage().range(&schema::STALE_DEVICE_LISTS, all, Direction::Ascending, usize::MAX).await?;
        let mut by_server = BTreeMap::<_, Vec<_>>::new();
        for ((server, user_id), ()) in rows {
            by_server.entry(server).or_default().push(user_id);
        }
        back_offs.retain(|server, _| by_server.contains_key(server));
        for server in by_server.keys() {
            if federation.device_lists.alive.remove(server).is_some() {
                back_offs.remove(server);
            }
        }
        let is_due = |server: &OwnedServerName| {
            back_offs.get(server).is_none_or(|back_off| has_come(back_off.retry_at_ms, now_ms, DELAY_MAX_MS))
        };
        let due: Vec<_> = by_server.into_iter().filter(|(server, _)| is_due(server)).collect();
        let fetches = due.into_iter().map(|(server, users)| async move {
            let result = self.refresh_lists_of(&server, users).await;
            (server, result)
        });
        let results: Vec<_> = stream::iter(fetches).buffered(SERVERS_AT_A_TIME).collect().await;
        for (server, result) in results {
            let Err(error) = result else {
                back_offs.remove(&server);
                continue;
            };
            // After a restart each server gets one chance, and then goes on where it was as a destination.
            let known = match back_offs.get(&server) {
                Some(back_off) => back_off.failures,
                None => self
                    .storage()
                    .get(&schema::DESTINATIONS, &server)
                    .await?
                    .map_or(0, |record| record.failures),
            };
            let back_off = back_offs.entry(server.clone()).or_default();
            back_off.failures = known.saturating_add(1);
            let doubled = RETRY_FIRST.saturating_mul(1 << (back_off.failures - 1).min(16)).min(RETRY_MAX);
            let delay_ms = u64::try_from(doubled.as_millis()).unwrap_or(u64::MAX);
            // A fifth more at most, so that not all of a server's friends come back at once.
            let delay_ms = delay_ms + self.env().entropy.next_u64() % (delay_ms / 5);
            back_off.retry_at_ms = self.env().clock.now_ms() + delay_ms;
            tracing::info!(server.name = %server, %error, delay_ms, "cannot fetch device lists; will retry");
        }
        let next_ms = back_offs.values().map(|back_off| back_off.retry_at_ms).min();
        let now_ms = self.env().clock.now_ms();
        Ok(next_ms.map_or(ROUND_MAX, |at_ms| Duration::from_millis(at_ms.saturating_sub(now_ms).max(50))))
    }

    /// Fetches the stale lists of a server's users, or lets go of them.
    ///
    /// A server that cannot be reached is asked no further; one that answers badly for one user may answer well for the others.
    async fn refresh_lists_of(&self, server: &ServerName, users: Vec<OwnedUserId>) -> Result<(), Unfetched> {
        let mut outcome = Ok(());
        for user_id in users {
            if !self.shares_room_with(&user_id).await? {
                self.forget_device_list(&user_id).await?;
                continue;
            }
            match self.refresh_device_list(server, &user_id).await {
                Err(Unfetched::Remote(error)) if error.concerns_request() => {
                    tracing::debug!(user.id = %user_id, %error, "a device list was not given");
                    outcome = Err(error.into());
                }
                result => result?,
            }
        }
        outcome
    }

    async fn refresh_device_list(&self, server: &ServerName, user_id: &OwnedUserId) -> Result<(), Unfetched> {
        let Some(federation) = self.federation() else { return Ok(()) };
        let fetching = federation.device_lists.fetching(user_id);
        let path = format!("/_matrix/federation/v1/user/devices/{}", encode(user_id.as_str()));
        let list = match self.remote(server)?.get::<UserDevices>(path).await {
            Ok(answer) => list_of(user_id, answer),
            // There is no such user (any more).
            Err(FederationError::Status { status: StatusCode::NOT_FOUND, .. }) => {
                RemoteDeviceListRecord::default()
            }
            Err(error) => return Err(error.into()),
        };
        Ok(self.keep_device_list(&fetching, list).await?)
    }

    /// Forgets the devices of users with whom no room was shared for a while.
    async fn forget_departed(&self) -> Result<(), SessionError> {
        loop {
            let all = KeyRange::all();
            let rows = self.storage().range(&schema::DEPARTED_USERS, all, Direction::Ascending, PAGE).await?;
            for (user_id, ()) in &rows {
                self.forget_device_list(user_id).await?;
            }
            if rows.len() < PAGE {
                return Ok(());
            }
        }
    }

    async fn forget_device_list(&self, user_id: &OwnedUserId) -> Result<(), SessionError> {
        let Some(federation) = self.federation() else { return Ok(()) };
        let turn = federation.device_lists.turn(user_id);
        let _turn = turn.lock().await;
        let mut batch = Batch::default();
        batch.delete(&schema::REMOTE_DEVICE_LISTS, user_id);
        batch.delete(&schema::STALE_DEVICE_LISTS, &(user_id.server_name().to_owned(), user_id.clone()));
        batch.delete(&schema::DEPARTED_USERS, user_id);
        self.storage().commit(batch).await.map_err(SessionError::Commit)
    }
}

fn list_of(user_id: &OwnedUserId, answer: UserDevices) -> RemoteDeviceListRecord {
    let devices = answer.devices.into_iter().take(DEVICES_MAX).filter_map(|found| {
        let keys = device(user_id, &found.device_id, found.keys?, found.device_display_name)?;
        Some((found.device_id, keys))
    });
    RemoteDeviceListRecord {
        stream_id: Some(answer.stream_id),
        is_stale: false,
        devices: devices.collect(),
        master: cross_signing_key(user_id, answer.master_key),
        self_signing: cross_signing_key(user_id, answer.self_signing_key),
    }
}

/// Why a list was not fetched.
#[derive(Debug, thiserror::Error)]
enum Unfetched {
    /// Its server did not give it.
    #[error(transparent)]
    Remote(#[from] FederationError),
    /// It could not be kept.
    #[error(transparent)]
    Session(#[from] SessionError),
}
