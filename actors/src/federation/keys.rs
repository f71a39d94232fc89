//! The keys that other servers sign with.
//!
//! Spec: server-server API, "Retrieving server keys".

mod document;
mod found;
mod notaries;
mod publish;
mod ring;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use futures_util::future::join_all;
use ruma::{CanonicalJsonObject, OwnedServerName, ServerName, signatures::PublicKeyMap};
use serde_json::value::RawValue;
use storage::{
    Batch, Direction, KeyRange,
    schema::{self, ServerKeyRecord},
};

pub use self::publish::OldKey;
pub(crate) use self::ring::KeyRing;
use self::{
    document::{Published, read_keys},
    found::usable,
    ring::{Known, PAUSE_MAX_MS},
};
pub(super) use self::{found::FoundKeys, ring::Silence};
use super::FederationError;
use crate::{env::has_come, homeserver::Homeserver};

/// A server that answered is not asked again for this long.
const ASK_AGAIN_MS: u64 = 60 * 1000;

/// How long a server is not asked again that had the key that was wanted: it may have another one soon.
const ASK_SOON_MS: u64 = 5 * 1000;

/// Keys of one server that are kept, and that it may publish.
const KEYS_MAX: usize = 100;

/// Keys of each server that are wanted, each with the moment that it is to be valid at, in milliseconds since the
/// epoch; 0 if that does not matter.
pub type WantedKeys = BTreeMap<OwnedServerName, BTreeMap<String, u64>>;

/// Keys of one server by their IDs, each with the time until which it is valid.
type DatedKeys = BTreeMap<String, ServerKeyRecord>;

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

    /// The keys of a document, which must be signed with one of them that is in use.
    fn read_keys(&self, server: &ServerName, document: &RawValue) -> Result<Published, FederationError> {
        read_keys(server, document.get(), self.env().clock.now_ms()).map_err(FederationError::BadBody)
    }

    async fn load(&self, server: &ServerName, known: &mut Known) {
        if known.loaded {
            return;
        }
        let own = KeyRange::prefix(&(server.to_owned(),));
        match self.storage().range(&schema::SERVER_KEYS, own, Direction::Ascending, KEYS_MAX).await {
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
}
