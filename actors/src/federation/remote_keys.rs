//! Keys across servers: asking others for theirs, and telling them ours.
//!
//! Spec: server-server API, "End-to-End Encryption" and "Device Management".

use std::{collections::BTreeMap, time::Duration};

use engine::id::Position;
use futures_util::{StreamExt, stream};
use ruma::{OwnedDeviceId, OwnedServerName, OwnedUserId, UserId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use storage::schema::{self, RemoteDeviceListRecord};
use tokio::time::Instant;

use super::{
    FederationError,
    device_lists::{cross_signing_key, devices_of, servers_of},
};
use crate::{
    homeserver::Homeserver,
    session::{Claimed, SessionError, Wanted},
};

/// Users whose kept lists are looked up at a time.
const AT_A_TIME: usize = 16;

/// Servers that are asked at a time for one request: more than most rooms have, and few enough that nobody has this server call thousands
/// at once.
const SERVERS_AT_A_TIME: usize = 100;

/// A server that did not take the last transaction is not waited for longer: it is asked with every message otherwise.
const AWAY_TIMEOUT: Duration = Duration::from_secs(2);

/// Devices of users, all of them where none is named.
pub(crate) type WantedDevices = BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>;

/// Errors by server.
pub(crate) type Failures = BTreeMap<String, Value>;

#[derive(Debug, Deserialize)]
struct QueryAnswer {
    #[serde(default, rename = "device_keys")]
    devices: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, Value>>,
    #[serde(default, rename = "master_keys")]
    masters: BTreeMap<OwnedUserId, Value>,
    #[serde(default, rename = "self_signing_keys")]
    self_signing: BTreeMap<OwnedUserId, Value>,
}

#[derive(Debug, Deserialize)]
struct ClaimAnswer {
    #[serde(default)]
    one_time_keys: BTreeMap<OwnedUserId, Claimed>,
}

/// All devices of a local user, as other servers get them.
#[derive(Debug, Serialize)]
pub struct OwnDevices {
    user_id: OwnedUserId,
    stream_id: Position,
    devices: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    master_key: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    self_signing_key: Option<Value>,
}

/// Whether a kept list is to be had from its server, and kept.
struct Kept {
    list: Option<RemoteDeviceListRecord>,
    shares_room: bool,
}

impl Homeserver {
    /// The devices of a local user with their place in the sequence of updates.
    ///
    /// Spec: server-server API, `GET /_matrix/federation/v1/user/devices/{userId}`.
    pub async fn own_devices(&self, user_id: &UserId) -> Result<OwnDevices, SessionError> {
        if user_id.server_name() != self.server_name() {
            return Err(SessionError::NotFound);
        }
        // Read first: an update that comes between is told again, which does no harm.
        let stream_id = self.storage().get(&schema::DEVICE_STREAMS, user_id).await?.unwrap_or_default();
        let data = self.session(user_id).await?.data();
        let devices = data.keys().devices().map(|(device_id, keys)| {
            let mut device = json!({ "device_id": device_id, "keys": keys });
            if let Some(name) = self.shared_device_name(&data, device_id) {
                device["device_display_name"] = name.into();
            }
            device
        });
        Ok(OwnDevices {
            user_id: user_id.to_owned(),
            stream_id,
            devices: devices.collect(),
            master_key: data.keys().cross_signing("master").cloned(),
            self_signing_key: data.keys().cross_signing("self_signing").cloned(),
        })
    }

    /// The name of a local device, if other servers may know it.
    pub(crate) fn shared_device_name(
        &self,
        data: &crate::session::SessionData,
        device_id: &ruma::DeviceId,
    ) -> Option<String> {
        let shares = self.federation().is_some_and(|federation| federation.shares_device_names);
        data.device(device_id).filter(|_| shares).and_then(|device| device.display_name.clone())
    }

    /// The devices of other servers' users: as they are kept, or else from their servers, which get `timeout` for it.
    ///
    /// Of servers that do not answer, stale lists are better than none.
    pub(crate) async fn query_remote_keys(
        &self,
        wanted: WantedDevices,
        timeout: Duration,
    ) -> Result<(BTreeMap<OwnedUserId, RemoteDeviceListRecord>, Failures), SessionError> {
        if !self.federates() {
            return Ok((BTreeMap::new(), disabled(&wanted)));
        }
        let lookups = stream::iter(wanted.keys().cloned()).map(|user_id| async move {
            let shares_room = self.shares_room_with(&user_id).await?;
            let list = if shares_room { self.kept_device_list(&user_id).await? } else { None };
            Ok::<_, SessionError>((user_id, Kept { list, shares_room }))
        });
        let kept: Vec<_> = lookups.buffered(AT_A_TIME).collect().await;
        let kept = kept.into_iter().collect::<Result<BTreeMap<_, _>, _>>()?;
        let is_fresh = |kept: &Kept| kept.list.as_ref().is_some_and(|list| !list.is_stale);
        let mut to_ask = BTreeMap::<OwnedServerName, WantedDevices>::new();
        for (user_id, kept) in kept.iter().filter(|(_, kept)| !is_fresh(kept)) {
            // A list that is kept has to be the whole list.
            let devices = if kept.shares_room { Vec::new() } else { wanted[user_id].clone() };
            to_ask.entry(user_id.server_name().to_owned()).or_default().insert(user_id.clone(), devices);
        }
        let deadline = Instant::now() + timeout;
        let is_away = |server: &OwnedServerName| self.outbox().is_backing_off(server);
        let asked = ask_each(to_ask, is_away, |server, users| {
            let kept = &kept;
            async move {
                let answer = self.query_server(&server, users, kept, deadline).await;
                (server, answer)
            }
        });
        let answers = asked.await;
        let mut found: BTreeMap<_, _> =
            kept.into_iter().filter_map(|(user_id, kept)| Some((user_id, kept.list?))).collect();
        let mut failures = Failures::new();
        for (server, answer) in answers {
            match answer {
                Ok(lists) => found.extend(lists),
                Err(error) => drop(failures.insert(server.to_string(), failure(&error))),
            }
        }
        Ok((found, failures))
    }

    async fn query_server(
        &self,
        server: &OwnedServerName,
        wanted: WantedDevices,
        kept: &BTreeMap<OwnedUserId, Kept>,
        deadline: Instant,
    ) -> Result<BTreeMap<OwnedUserId, RemoteDeviceListRecord>, FederationError> {
        let federation = self.federation().ok_or(FederationError::Disabled)?;
        let fetching: BTreeMap<_, _> = wanted
            .keys()
            .filter(|user_id| kept.get(*user_id).is_some_and(|kept| kept.shares_room))
            .map(|user_id| (user_id.clone(), federation.device_lists.fetching(user_id)))
            .collect();
        let body = json!({ "device_keys": wanted });
        let answer: QueryAnswer = self.ask_for_keys(server, "query", &body, deadline).await?;
        let QueryAnswer { devices, mut masters, mut self_signing } = answer;
        let mut lists = BTreeMap::new();
        for (user_id, devices) in devices {
            if !wanted.contains_key(&user_id) {
                continue;
            }
            let list = RemoteDeviceListRecord {
                stream_id: None,
                is_stale: false,
                devices: devices_of(&user_id, devices),
                master: cross_signing_key(&user_id, masters.remove(&user_id)),
                self_signing: cross_signing_key(&user_id, self_signing.remove(&user_id)),
            };
            if let Some(fetching) = fetching.get(&user_id)
                && let Err(error) = self.keep_device_list(fetching, list.clone()).await
            {
                tracing::warn!(%error, "a list of devices is not kept");
            }
            lists.insert(user_id, list);
        }
        Ok(lists)
    }

    /// Takes one-time keys of other servers' users; their servers get `timeout` for it.
    pub(crate) async fn claim_remote_keys(
        &self,
        wanted: BTreeMap<OwnedUserId, Wanted>,
        timeout: Duration,
    ) -> (BTreeMap<OwnedUserId, Claimed>, Failures) {
        if !self.federates() {
            return (BTreeMap::new(), disabled(&wanted));
        }
        let mut by_server = BTreeMap::<OwnedServerName, BTreeMap<OwnedUserId, Wanted>>::new();
        for (user_id, devices) in wanted {
            by_server.entry(user_id.server_name().to_owned()).or_default().insert(user_id, devices);
        }
        let deadline = Instant::now() + timeout;
        let is_away = |server: &OwnedServerName| self.outbox().is_backing_off(server);
        let asked = ask_each(by_server, is_away, |server, wanted| async move {
            let body = json!({ "one_time_keys": wanted });
            let answer = self.ask_for_keys::<ClaimAnswer>(&server, "claim", &body, deadline).await;
            (server, wanted, answer)
        });
        let mut claimed = BTreeMap::new();
        let mut failures = Failures::new();
        for (server, wanted, answer) in asked.await {
            match answer {
                Ok(answer) => claimed.extend(as_wanted(answer.one_time_keys, &wanted)),
                Err(error) => drop(failures.insert(server.to_string(), failure(&error))),
            }
        }
        (claimed, failures)
    }

    async fn ask_for_keys<T: DeserializeOwned>(
        &self,
        server: &OwnedServerName,
        what: &str,
        body: &Value,
        deadline: Instant,
    ) -> Result<T, FederationError> {
        let now = Instant::now();
        if deadline <= now {
            return Err(FederationError::Timeout);
        }
        let path = format!("/_matrix/federation/v1/user/keys/{what}");
        let remote = self.remote(server)?;
        let is_away = self.outbox().is_backing_off(server);
        let deadline = if is_away { deadline.min(now + AWAY_TIMEOUT) } else { deadline };
        let asked = remote.post(path, body.to_string().into());
        let answer =
            tokio::time::timeout_at(deadline, asked).await.unwrap_or(Err(FederationError::Timeout))?;
        self.outbox().alive(server);
        Ok(answer)
    }
}

/// Asks servers, not too many at a time; those that seem to be away come last, so that they do not keep the others waiting.
async fn ask_each<W, F: Future>(
    questions: BTreeMap<OwnedServerName, W>,
    is_away: impl Fn(&OwnedServerName) -> bool,
    ask: impl Fn(OwnedServerName, W) -> F,
) -> Vec<F::Output> {
    let (away, there): (Vec<_>, Vec<_>) = questions.into_iter().partition(|(server, _)| is_away(server));
    let asked = there.into_iter().chain(away).map(|(server, question)| ask(server, question));
    stream::iter(asked).buffer_unordered(SERVERS_AT_A_TIME).collect().await
}

/// Of claimed keys, those that were asked for.
fn as_wanted(
    claimed: BTreeMap<OwnedUserId, Claimed>,
    wanted: &BTreeMap<OwnedUserId, Wanted>,
) -> BTreeMap<OwnedUserId, Claimed> {
    let mut kept = BTreeMap::new();
    for (user_id, mut devices) in claimed {
        let Some(wanted) = wanted.get(&user_id) else { continue };
        devices.retain(|device_id, keys: &mut Map<String, Value>| {
            wanted.contains_key(device_id) && keys.len() == 1
        });
        if !devices.is_empty() {
            kept.insert(user_id, devices);
        }
    }
    kept
}

fn failure(error: &FederationError) -> Value {
    let errcode = match error {
        FederationError::Status { errcode, .. } if !errcode.is_empty() => errcode,
        _ => "M_UNREACHABLE",
    };
    json!({ "errcode": errcode, "error": error.to_string() })
}

fn disabled<T>(wanted: &BTreeMap<OwnedUserId, T>) -> Failures {
    let failure = failure(&FederationError::Disabled);
    servers_of(wanted.keys()).into_iter().map(|server| (server.to_string(), failure.clone())).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        collections::BTreeSet,
        time::Duration,
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_servers_are_asked_at_a_time_and_those_that_are_away_come_last() {
        let servers = 3 * SERVERS_AT_A_TIME;
        let name = |number: usize| OwnedServerName::try_from(format!("s{number:04}.test")).unwrap();
        let questions: BTreeMap<_, _> = (0..servers).map(|number| (name(number), number)).collect();
        let (under_way, most, order) = (Cell::new(0), Cell::new(0), RefCell::new(Vec::new()));
        let (under_way, most, order) = (&under_way, &most, &order);
        let asked = ask_each(
            questions,
            |server| *server == name(0),
            |server, number| async move {
                under_way.set(under_way.get() + 1);
                most.set(most.get().max(under_way.get()));
                order.borrow_mut().push(number);
                tokio::time::sleep(Duration::from_secs(1)).await;
                under_way.set(under_way.get() - 1);
                server
            },
        );
        let begun = Instant::now();
        let answered: BTreeSet<_> = asked.await.into_iter().collect();
        assert_eq!((answered.len(), most.get()), (servers, SERVERS_AT_A_TIME));
        assert_eq!(begun.elapsed().as_secs(), 3);
        assert_eq!((order.borrow()[0], order.borrow().last()), (1, Some(&0)));
    }
}
