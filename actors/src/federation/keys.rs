//! The keys that other servers sign with.
//!
//! Spec: server-server API, "Retrieving server keys".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use dashmap::DashMap;
use futures_util::future::join_all;
use http::Method;
use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedServerName, ServerName,
    serde::Base64,
    signatures::{PublicKeyMap, PublicKeySet, verify_json},
};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use storage::{
    Batch,
    schema::{self, ServerKeyRecord},
};
use tokio::sync::Mutex;

use super::{FederationError, remote::Remote};
use crate::homeserver::Homeserver;

/// Keys are believed this long, whatever their server says.
const VALID_MAX_MS: u64 = 7 * 24 * 3600 * 1000;

/// A server whose keys cannot be had is not asked again for this long.
const ASK_AGAIN_MS: u64 = 60 * 1000;

/// Keys of each server that are wanted, each with the moment that it is to be valid at, in milliseconds since the
/// epoch; 0 if that does not matter.
pub type WantedKeys = BTreeMap<OwnedServerName, BTreeMap<String, u64>>;

/// What is known of other servers' keys.
#[derive(Default)]
pub(crate) struct KeyRing {
    known: DashMap<OwnedServerName, Arc<Mutex<Known>>>,
}

#[derive(Default)]
struct Known {
    loaded: bool,
    keys: BTreeMap<String, ServerKeyRecord>,
    ask_again_ms: u64,
}

impl Known {
    fn usable(&self, wanted: &BTreeMap<String, u64>) -> PublicKeySet {
        let usable = |key: &ServerKeyRecord, at_ms: u64| at_ms <= key.valid_until_ms;
        wanted
            .iter()
            .filter_map(|(id, at_ms)| Some((id, self.keys.get(id).filter(|key| usable(key, *at_ms))?)))
            .filter_map(|(id, key)| Some((id.clone(), Base64::parse(&key.key).ok()?)))
            .collect()
    }
}

/// What a server says of its keys.
#[derive(Deserialize)]
struct ServerKeys {
    server_name: OwnedServerName,
    #[serde(default)]
    verify_keys: BTreeMap<String, VerifyKey>,
    #[serde(default)]
    old_verify_keys: BTreeMap<String, OldVerifyKey>,
    valid_until_ts: MilliSecondsSinceUnixEpoch,
}

#[derive(Deserialize)]
struct VerifyKey {
    key: String,
}

#[derive(Deserialize)]
struct OldVerifyKey {
    key: String,
    expired_ts: MilliSecondsSinceUnixEpoch,
}

#[derive(Deserialize)]
struct Notarised {
    #[serde(default)]
    server_keys: Vec<Box<RawValue>>,
}

impl Homeserver {
    /// The keys of other servers, as far as they can be had: known ones, or theirs, or what notaries say.
    pub async fn public_keys(&self, wanted: WantedKeys) -> PublicKeyMap {
        let found = wanted.into_iter().map(|(server, wanted)| self.keys_of(server, wanted));
        join_all(found).await.into_iter().filter(|(_, keys)| !keys.is_empty()).collect()
    }

    async fn keys_of(
        &self,
        server: OwnedServerName,
        wanted: BTreeMap<String, u64>,
    ) -> (String, PublicKeySet) {
        let name = server.to_string();
        if server == *self.server_name() {
            let key = &self.room_shared().signing_key;
            return (name, PublicKeySet::from([(key.id(), key.public_key())]));
        }
        let Some(federation) = self.federation() else { return (name, PublicKeySet::new()) };
        let known = federation.keys.known.entry(server.clone()).or_default().clone();
        // One look-up per server at a time: whoever comes meanwhile finds what it brought.
        let mut known = known.lock().await;
        if !known.loaded {
            known.keys = self.stored_keys(&server).await;
            known.loaded = true;
        }
        let usable = known.usable(&wanted);
        let now_ms = self.env().clock.now_ms();
        if usable.len() == wanted.len() || now_ms < known.ask_again_ms {
            return (name, usable);
        }
        match self.fetch_keys(&server).await {
            Ok(keys) => {
                self.store_keys(&server, &keys);
                known.keys.extend(keys);
            }
            Err(error) => tracing::info!(%server, %error, "cannot get the keys of a server"),
        }
        let usable = known.usable(&wanted);
        known.ask_again_ms = if usable.len() == wanted.len() { 0 } else { now_ms + ASK_AGAIN_MS };
        (name, usable)
    }

    async fn stored_keys(&self, server: &ServerName) -> BTreeMap<String, ServerKeyRecord> {
        let own = storage::KeyRange::prefix(&(server.to_owned(),));
        let rows = self.storage().range(&schema::SERVER_KEYS, own, storage::Direction::Ascending, 100).await;
        let rows = rows.inspect_err(|error| tracing::error!(%error, "cannot read the keys of servers"));
        rows.unwrap_or_default().into_iter().map(|((_, id), key)| (id, key)).collect()
    }

    fn store_keys(&self, server: &ServerName, keys: &BTreeMap<String, ServerKeyRecord>) {
        let mut batch = Batch::default();
        for (id, key) in keys {
            batch.put(&schema::SERVER_KEYS, &(server.to_owned(), id.clone()), key);
        }
        self.storage().submit(batch, None, |_| {});
    }

    async fn fetch_keys(
        &self,
        server: &ServerName,
    ) -> Result<BTreeMap<String, ServerKeyRecord>, FederationError> {
        let direct = self.remote(server)?.get::<Box<RawValue>>("/_matrix/key/v2/server".to_owned()).await;
        let failure = match direct.and_then(|answer| self.read_keys(server, &answer)) {
            Ok(keys) => return Ok(keys),
            Err(error) => error,
        };
        for notary in self.trusted_key_servers() {
            match self.ask_notary(notary, server).await {
                Ok(keys) => return Ok(keys),
                Err(error) => tracing::debug!(%notary, %server, %error, "a notary does not help"),
            }
        }
        Err(failure)
    }

    async fn ask_notary(
        &self,
        notary: &ServerName,
        server: &ServerName,
    ) -> Result<BTreeMap<String, ServerKeyRecord>, FederationError> {
        let remote: Remote<'_> = self.remote(notary)?;
        let minimum = self.env().clock.now_ms();
        let body =
            json!({ "server_keys": { server.as_str(): { "": { "minimum_valid_until_ts": minimum } } } });
        let body = serde_json::to_vec(&body).map_err(|error| FederationError::BadBody(error.to_string()))?;
        let answer: Notarised =
            remote.send(Method::POST, "/_matrix/key/v2/query".to_owned(), body.into()).await?;
        let keys = answer.server_keys.iter().find_map(|keys| self.read_keys(server, keys).ok());
        keys.ok_or_else(|| FederationError::BadBody("no keys of the server".to_owned()))
    }

    /// The keys of a document, which must be signed with all of them that are in use.
    fn read_keys(
        &self,
        server: &ServerName,
        document: &RawValue,
    ) -> Result<BTreeMap<String, ServerKeyRecord>, FederationError> {
        let bad = |error: String| FederationError::BadBody(error);
        let keys: ServerKeys =
            serde_json::from_str(document.get()).map_err(|error| bad(error.to_string()))?;
        if keys.server_name != server {
            return Err(bad("the keys are another server's".to_owned()));
        }
        let object: CanonicalJsonObject =
            serde_json::from_str(document.get()).map_err(|error| bad(error.to_string()))?;
        let own: PublicKeySet = keys
            .verify_keys
            .iter()
            .filter_map(|(id, key)| Some((id.clone(), Base64::parse(&key.key).ok()?)))
            .collect();
        // Notaries sign too; theirs are not what makes the keys good.
        let mut object = object;
        keep_signatures_of(&mut object, server);
        verify_json(&PublicKeyMap::from([(server.to_string(), own)]), &object)
            .map_err(|error| bad(format!("the keys are not signed by their server: {error}")))?;
        let now_ms = self.env().clock.now_ms();
        let valid_until_ms = u64::from(keys.valid_until_ts.get()).min(now_ms + VALID_MAX_MS);
        let present = keys
            .verify_keys
            .into_iter()
            .map(|(id, key)| (id, ServerKeyRecord { key: key.key, valid_until_ms }));
        let old = keys.old_verify_keys.into_iter().map(|(id, key)| {
            (id, ServerKeyRecord { key: key.key, valid_until_ms: key.expired_ts.get().into() })
        });
        Ok(old.chain(present).collect())
    }
}

fn keep_signatures_of(object: &mut CanonicalJsonObject, server: &ServerName) {
    use ruma::CanonicalJsonValue;
    if let Some(CanonicalJsonValue::Object(signatures)) = object.get_mut("signatures") {
        let others: BTreeSet<String> =
            signatures.keys().filter(|signer| *signer != server.as_str()).cloned().collect();
        for signer in others {
            signatures.remove(&signer);
        }
    }
}
