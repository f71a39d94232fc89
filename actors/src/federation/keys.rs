//! The keys that other servers sign with.
//!
//! Spec: server-server API, "Retrieving server keys".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use dashmap::DashMap;
use futures_util::future::join_all;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, MilliSecondsSinceUnixEpoch, OwnedServerName, ServerName,
    serde::Base64,
    signatures::{PublicKeyMap, PublicKeySet, sign_json, verify_json},
};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use storage::{
    Batch,
    schema::{self, ServerKeyRecord},
};
use tokio::sync::Mutex;

use super::FederationError;
use crate::{env::has_come, homeserver::Homeserver};

/// Keys are believed this long, whatever their server says.
const VALID_MAX_MS: u64 = 7 * 24 * 3600 * 1000;

/// Others may believe this server's keys for this long without asking again.
const OWN_VALID_MS: u64 = 24 * 3600 * 1000;

/// A server that answered is not asked again for this long.
const ASK_AGAIN_MS: u64 = 60 * 1000;

/// How long a server is not asked again that had the key that was wanted: it may have another one soon.
const ASK_SOON_MS: u64 = 5 * 1000;

/// Keys of one server that are kept, and that it may publish.
const KEYS_MAX: usize = 100;

/// A server that did not answer is not asked again for this long; then ever longer.
const RETRY_FIRST_MS: u64 = 2000;

/// Doublings of that after one failure after another: about an hour at most.
const DOUBLINGS_MAX: u32 = 11;

/// A server is never left alone for longer.
const PAUSE_MAX_MS: u64 = RETRY_FIRST_MS << DOUBLINGS_MAX;

/// Failures after which a server seems gone, so that nothing waits for its keys any more: a quarter of a minute or more.
const SILENCES_MAX: u32 = 3;

/// Servers that are kept in memory; strangers can name any number of them.
const KNOWN_MAX: usize = 20_000;

/// Servers that one question to a notary names.
const NOTARY_BATCH: usize = 100;

/// Keys of each server that are wanted, each with the moment that it is to be valid at, in milliseconds since the
/// epoch; 0 if that does not matter.
pub type WantedKeys = BTreeMap<OwnedServerName, BTreeMap<String, u64>>;

/// Keys of one server by their IDs, each with the time until which it is valid.
type DatedKeys = BTreeMap<String, ServerKeyRecord>;

/// Those of some keys that are valid when they are wanted to be.
fn usable(keys: &DatedKeys, wanted: &BTreeMap<String, u64>) -> PublicKeySet {
    let usable = |(id, at_ms): (&String, &u64)| {
        let key = keys.get(id).filter(|key| *at_ms <= key.valid_until_ms)?;
        Some((id.clone(), Base64::parse(&key.key).ok()?))
    };
    wanted.iter().filter_map(usable).collect()
}

/// Keys that were found.
#[derive(Debug, Default)]
pub(super) struct FoundKeys {
    keys: BTreeMap<OwnedServerName, DatedKeys>,
    /// Servers of which keys are lacking, since they do not answer.
    silent: BTreeMap<OwnedServerName, Silence>,
}

/// For how long a server has not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    /// It may answer soon.
    Brief,
    /// It seems gone: nothing waits for it any more.
    Long,
}

impl FoundKeys {
    fn add(
        &mut self,
        server: &OwnedServerName,
        wanted: &BTreeMap<String, u64>,
        (keys, silence): (DatedKeys, Option<Silence>),
    ) {
        let has_all = usable(&keys, wanted).len() == wanted.len();
        match silence.filter(|_| !has_all) {
            Some(silence) => drop(self.silent.insert(server.clone(), silence)),
            None => drop(self.silent.remove(server)),
        }
        self.keys.insert(server.clone(), keys);
    }

    fn has_all(&self, server: &ServerName, wanted: &BTreeMap<String, u64>) -> bool {
        self.usable(server, wanted).len() == wanted.len()
    }

    fn usable(&self, server: &ServerName, wanted: &BTreeMap<String, u64>) -> PublicKeySet {
        self.keys.get(server).map(|keys| usable(keys, wanted)).unwrap_or_default()
    }

    /// The keys of some servers that are valid at a moment.
    pub(super) fn valid_at(&self, servers: &BTreeSet<OwnedServerName>, at_ms: u64) -> PublicKeyMap {
        let of = |server: &OwnedServerName| {
            let keys = self.keys.get(server)?;
            let at = keys.keys().map(|id| (id.clone(), at_ms)).collect();
            Some((server.to_string(), usable(keys, &at))).filter(|(_, keys)| !keys.is_empty())
        };
        servers.iter().filter_map(of).collect()
    }

    /// One of some servers that keys are lacking of, if they may be had later; rather one that seems gone.
    pub(super) fn silent<'a>(
        &'a self,
        servers: &BTreeSet<OwnedServerName>,
    ) -> Option<(&'a OwnedServerName, Silence)> {
        let own = || self.silent.iter().filter(|(server, _)| servers.contains(*server));
        let silent = own().find(|(_, silence)| **silence == Silence::Long).or_else(|| own().next());
        silent.map(|(server, silence)| (server, *silence))
    }
}

/// A key that this server signed with once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldKey {
    /// Its ID, as in `ed25519:abc`.
    pub id: String,
    /// The public key.
    pub key: Base64,
    /// When it was last in use, in milliseconds since the epoch.
    pub expired_ms: u64,
}

/// What is known of other servers' keys.
#[derive(Default)]
pub(crate) struct KeyRing {
    known: DashMap<OwnedServerName, Arc<Mutex<Known>>>,
}

impl KeyRing {
    fn of(&self, server: &ServerName) -> Arc<Mutex<Known>> {
        if self.known.len() >= KNOWN_MAX {
            // What is not in use just now is in the store, or can be asked for again.
            self.known.retain(|_, known| Arc::strong_count(known) > 1);
        }
        self.known.entry(server.to_owned()).or_default().clone()
    }
}

#[derive(Default)]
struct Known {
    loaded: bool,
    keys: DatedKeys,
    failures: u32,
    ask_again_ms: u64,
    ask_notaries_again_ms: u64,
}

impl Known {
    /// Those of its keys that are wanted, whenever they are valid.
    fn wanted(&self, wanted: &BTreeMap<String, u64>) -> DatedKeys {
        wanted.keys().filter_map(|id| Some((id.clone(), self.keys.get(id)?.clone()))).collect()
    }

    /// Adds keys; returns those that had to go for them, which were valid for the shortest time.
    fn add(&mut self, keys: DatedKeys) -> Vec<String> {
        self.keys.extend(keys);
        let mut gone = Vec::new();
        while self.keys.len() > KEYS_MAX
            && let Some((id, _)) = self.keys.iter().min_by_key(|(_, key)| key.valid_until_ms)
        {
            let id = id.clone();
            self.keys.remove(&id);
            gone.push(id);
        }
        gone
    }

    /// For how long the server has not answered, if it did not the last time.
    fn silence(&self) -> Option<Silence> {
        match self.failures {
            0 => None,
            1..=SILENCES_MAX => Some(Silence::Brief),
            _ => Some(Silence::Long),
        }
    }

    /// Notes how asking the server went.
    fn asked(&mut self, is_success: bool, now_ms: u64) {
        self.failures = if is_success { 0 } else { self.failures.saturating_add(1) };
        let doublings = self.failures.saturating_sub(1).min(DOUBLINGS_MAX);
        let pause_ms = if is_success { ASK_AGAIN_MS } else { RETRY_FIRST_MS << doublings };
        self.ask_again_ms = now_ms + pause_ms;
    }
}

/// Keys that their server signed, as it published them.
struct Published {
    keys: DatedKeys,
    document: CanonicalJsonObject,
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
    /// The keys of other servers that are valid when they are wanted to be, as far as they can be had.
    pub async fn public_keys(&self, wanted: WantedKeys) -> PublicKeyMap {
        let found = self.find_keys(&wanted).await;
        let keys = wanted.iter().map(|(server, wanted)| (server, found.usable(server, wanted)));
        let keys = keys.filter(|(_, keys)| !keys.is_empty());
        keys.map(|(server, keys)| (server.to_string(), keys)).collect()
    }

    /// The keys of other servers, as far as they can be had: known ones, or theirs, or what notaries say.
    pub(super) async fn find_keys(&self, wanted: &WantedKeys) -> FoundKeys {
        let asked = wanted.iter().map(|(server, wanted)| self.keys_of(server, wanted));
        let mut found = FoundKeys::default();
        for ((server, wanted), known) in wanted.iter().zip(join_all(asked).await) {
            found.add(server, wanted, known);
        }
        let lacking = wanted.iter().filter(|(server, wanted)| !found.has_all(server, wanted));
        let lacking: Vec<_> = lacking.map(|(server, _)| server.clone()).collect();
        if let Some(federation) = self.federation().filter(|_| !lacking.is_empty()) {
            self.ask_notaries(&lacking).await;
            for server in &lacking {
                if let Some(wanted) = wanted.get(server).filter(|_| server != self.server_name()) {
                    let known = federation.keys.of(server);
                    let known = known.lock().await;
                    found.add(server, wanted, (known.wanted(wanted), known.silence()));
                }
            }
        }
        found
    }

    /// Those keys of one server that are wanted, known ones or what it says itself; and for how long it has not answered.
    async fn keys_of(
        &self,
        server: &OwnedServerName,
        wanted: &BTreeMap<String, u64>,
    ) -> (DatedKeys, Option<Silence>) {
        if server == self.server_name() {
            return (self.own_dated_keys(), None);
        }
        let Some(federation) = self.federation() else { return (DatedKeys::new(), None) };
        let known = federation.keys.of(server);
        // One look-up per server at a time: whoever comes meanwhile finds what it brought.
        let mut known = known.lock().await;
        self.load(server, &mut known).await;
        let has_all = |known: &Known| usable(&known.keys, wanted).len() == wanted.len();
        if !has_all(&known) {
            self.ask_server(server, &mut known).await;
            if has_all(&known) {
                // It may have other keys by the next time.
                known.ask_again_ms = self.env().clock.now_ms() + ASK_SOON_MS;
            }
        }
        (known.wanted(wanted), known.silence())
    }

    /// Whether a server answered when it was last asked for its keys, or was not asked lately.
    pub(super) async fn is_heard(&self, server: &ServerName) -> bool {
        let Some(federation) = self.federation() else { return false };
        federation.keys.of(server).lock().await.silence().is_none()
    }

    /// This server's keys, those of the past as long as they were in use.
    fn own_dated_keys(&self) -> DatedKeys {
        let key = &self.room_shared().signing_key;
        let dated = |key: &Base64, valid_until_ms| ServerKeyRecord { key: key.encode(), valid_until_ms };
        let old = self.old_keys().iter().map(|old| (old.id.clone(), dated(&old.key, old.expired_ms)));
        old.chain([(key.id(), dated(&key.public_key(), u64::MAX))]).collect()
    }

    /// Asks a server for its keys, unless that was done just now; returns what it published.
    async fn ask_server(&self, server: &ServerName, known: &mut Known) -> Option<CanonicalJsonObject> {
        let now_ms = self.env().clock.now_ms();
        if !has_come(known.ask_again_ms, now_ms, PAUSE_MAX_MS) {
            return None;
        }
        let answer = match self.remote(server) {
            Ok(remote) => remote.keys().await,
            Err(error) => Err(error),
        };
        let published = answer.and_then(|answer| self.read_keys(server, &answer));
        known.asked(published.is_ok(), now_ms);
        match published {
            Ok(published) => {
                self.keep_keys(server, known, published.keys, &published.document);
                self.keys_came(server);
                Some(published.document)
            }
            Err(error) => {
                tracing::info!(%server, %error, failures = known.failures, "cannot get the keys of a server");
                None
            }
        }
    }

    async fn load(&self, server: &ServerName, known: &mut Known) {
        if known.loaded {
            return;
        }
        let own = storage::KeyRange::prefix(&(server.to_owned(),));
        match self.storage().range(&schema::SERVER_KEYS, own, storage::Direction::Ascending, KEYS_MAX).await {
            Ok(rows) => {
                known.keys = rows.into_iter().map(|((_, id), key)| (id, key)).collect();
                known.loaded = true;
            }
            Err(error) => tracing::error!(%error, "cannot read the keys of servers"),
        }
    }

    fn keep_keys(
        &self,
        server: &ServerName,
        known: &mut Known,
        keys: DatedKeys,
        document: &CanonicalJsonObject,
    ) {
        let mut batch = Batch::default();
        for (id, key) in &keys {
            batch.put(&schema::SERVER_KEYS, &(server.to_owned(), id.clone()), key);
        }
        for id in known.add(keys) {
            batch.delete(&schema::SERVER_KEYS, &(server.to_owned(), id));
        }
        if let Ok(document) = serde_json::to_vec(document) {
            batch.put(&schema::KEY_DOCUMENTS, &server.to_owned(), &document.into());
        }
        self.storage().submit(batch, None, |_| {});
    }

    /// Asks the notaries for the keys of servers that do not give them, all at once.
    async fn ask_notaries(&self, servers: &[OwnedServerName]) {
        let Some(federation) = self.federation() else { return };
        let notaries = federation.trusted_key_servers();
        if notaries.is_empty() {
            return;
        }
        let now_ms = self.env().clock.now_ms();
        let mut missing = BTreeSet::new();
        for server in servers.iter().filter(|server| **server != *self.server_name()) {
            let known = federation.keys.of(server);
            let mut known = known.lock().await;
            if has_come(known.ask_notaries_again_ms, now_ms, ASK_AGAIN_MS) {
                known.ask_notaries_again_ms = now_ms + ASK_AGAIN_MS;
                missing.insert(server.clone());
            }
        }
        for notary in notaries {
            let asked: Vec<_> = missing.iter().cloned().collect();
            for some in asked.chunks(NOTARY_BATCH) {
                let answer = self.ask_notary(notary, some).await;
                let documents = answer
                    .inspect_err(|error| tracing::info!(%notary, %error, "a notary does not help"))
                    .unwrap_or_default();
                for document in documents {
                    let found = some
                        .iter()
                        .find_map(|server| Some((server, self.read_keys(server, &document).ok()?)));
                    let Some((server, published)) = found else { continue };
                    let known = federation.keys.of(server);
                    self.keep_keys(server, &mut *known.lock().await, published.keys, &published.document);
                    self.keys_came(server);
                    missing.remove(server);
                }
            }
        }
    }

    async fn ask_notary(
        &self,
        notary: &ServerName,
        servers: &[OwnedServerName],
    ) -> Result<Vec<Box<RawValue>>, FederationError> {
        let minimum = self.env().clock.now_ms();
        let criteria = json!({ "": { "minimum_valid_until_ts": minimum } });
        let wanted: BTreeMap<_, _> = servers.iter().map(|server| (server.as_str(), &criteria)).collect();
        let body = serde_json::to_vec(&json!({ "server_keys": wanted }))
            .map_err(|error| FederationError::BadBody(error.to_string()))?;
        let answer: Notarised =
            self.remote(notary)?.post("/_matrix/key/v2/query".to_owned(), body.into()).await?;
        Ok(answer.server_keys)
    }

    /// The keys of a document, which must be signed with one of them that is in use.
    fn read_keys(&self, server: &ServerName, document: &RawValue) -> Result<Published, FederationError> {
        read_keys(server, document.get(), self.env().clock.now_ms()).map_err(FederationError::BadBody)
    }

    /// What this server publishes of its own keys.
    pub fn own_keys(&self) -> CanonicalJsonObject {
        let key = self.signing_key();
        let number = |ms| {
            CanonicalJsonValue::Integer(js_int::Int::new_saturating(i64::try_from(ms).unwrap_or(i64::MAX)))
        };
        let entry = |key: Base64| ("key".to_owned(), CanonicalJsonValue::String(key.encode()));
        let present = CanonicalJsonObject::from([entry(key.public_key())]);
        let old = self.old_keys().iter().map(|old| {
            let expired = ("expired_ts".to_owned(), number(old.expired_ms));
            (old.id.clone(), CanonicalJsonObject::from([entry(old.key.clone()), expired]).into())
        });
        let mut document = CanonicalJsonObject::from([
            ("server_name".to_owned(), self.server_name().as_str().into()),
            ("valid_until_ts".to_owned(), number(self.env().clock.now_ms() + OWN_VALID_MS)),
            ("verify_keys".to_owned(), CanonicalJsonObject::from([(key.id(), present.into())]).into()),
            ("old_verify_keys".to_owned(), old.collect::<CanonicalJsonObject>().into()),
        ]);
        self.sign(&mut document);
        document
    }

    fn sign(&self, document: &mut CanonicalJsonObject) {
        if let Err(error) = sign_json(self.server_name().as_str(), self.signing_key(), document) {
            tracing::error!(%error, "cannot sign");
        }
    }

    /// What servers publish of their keys, signed by this one too; `wanted` says until when they should be valid at
    /// least. Servers whose keys cannot be had are left out.
    ///
    /// Spec: server-server API, "Querying keys through another server".
    pub async fn notarised_keys(&self, wanted: BTreeMap<OwnedServerName, u64>) -> Vec<CanonicalJsonObject> {
        let found = wanted.into_iter().map(|(server, minimum_ms)| self.key_document(server, minimum_ms));
        join_all(found).await.into_iter().flatten().collect()
    }

    async fn key_document(&self, server: OwnedServerName, minimum_ms: u64) -> Option<CanonicalJsonObject> {
        if server == self.server_name() {
            return Some(self.own_keys());
        }
        let known = self.federation()?.keys.of(&server);
        let mut known = known.lock().await;
        self.load(&server, &mut known).await;
        let stored = self.storage().get(&schema::KEY_DOCUMENTS, &server).await;
        let stored =
            stored.inspect_err(|error| tracing::error!(%error, "cannot read the keys of servers")).ok()?;
        let stored = stored.and_then(|json| serde_json::from_slice::<CanonicalJsonObject>(&json).ok());
        let valid_until = |document: &CanonicalJsonObject| match document.get("valid_until_ts") {
            Some(CanonicalJsonValue::Integer(until)) => u64::try_from(i64::from(*until)).unwrap_or_default(),
            _ => 0,
        };
        let good = stored.as_ref().is_some_and(|document| valid_until(document) >= minimum_ms);
        let fresh = if good { None } else { self.ask_server(&server, &mut known).await };
        if fresh.as_ref().is_some_and(|document| valid_until(document) >= minimum_ms) {
            known.ask_again_ms = self.env().clock.now_ms() + ASK_SOON_MS;
        }
        let mut document = fresh.or(stored)?;
        self.sign(&mut document);
        Some(document)
    }
}

/// The keys of a document that `server` published.
fn read_keys(server: &ServerName, document: &str, now_ms: u64) -> Result<Published, String> {
    let text = |error: serde_json::Error| error.to_string();
    let keys: ServerKeys = serde_json::from_str(document).map_err(text)?;
    if keys.server_name != server {
        return Err("the keys are another server's".to_owned());
    }
    if keys.verify_keys.len() + keys.old_verify_keys.len() > KEYS_MAX {
        return Err(format!("it has more than {KEYS_MAX} keys"));
    }
    let mut document: CanonicalJsonObject = serde_json::from_str(document).map_err(text)?;
    let own: PublicKeySet = keys
        .verify_keys
        .iter()
        .filter_map(|(id, key)| Some((id.clone(), Base64::parse(&key.key).ok()?)))
        .collect();
    // Notaries sign too, and old keys; theirs are not what makes the keys good.
    keep_signatures(&mut document, server, &own);
    verify_json(&PublicKeyMap::from([(server.to_string(), own)]), &document)
        .map_err(|error| format!("the keys are not signed by their server: {error}"))?;
    let valid_until_ms = u64::from(keys.valid_until_ts.get()).min(now_ms + VALID_MAX_MS);
    let present =
        keys.verify_keys.into_iter().map(|(id, key)| (id, ServerKeyRecord { key: key.key, valid_until_ms }));
    let old = keys
        .old_verify_keys
        .into_iter()
        .map(|(id, key)| (id, ServerKeyRecord { key: key.key, valid_until_ms: key.expired_ts.get().into() }));
    Ok(Published { keys: old.chain(present).collect(), document })
}

/// Leaves only the signatures with certain keys of `server`, and always a place for them, so that none is an error.
fn keep_signatures(object: &mut CanonicalJsonObject, server: &ServerName, keys: &PublicKeySet) {
    let own = match object.get("signatures") {
        Some(CanonicalJsonValue::Object(signatures)) => signatures.get(server.as_str()),
        _ => None,
    };
    let own = match own {
        Some(CanonicalJsonValue::Object(own)) => own.clone().into_iter(),
        _ => CanonicalJsonObject::new().into_iter(),
    };
    let own: CanonicalJsonObject = own.filter(|(id, _)| keys.contains_key(id)).collect();
    let signatures = CanonicalJsonObject::from([(server.to_string(), own.into())]);
    object.insert("signatures".to_owned(), signatures.into());
}

#[cfg(test)]
mod tests;
