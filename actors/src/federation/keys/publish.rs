//! What this server publishes: its own keys, and those of others as their notary.
//!
//! Spec: server-server API, "Retrieving server keys".

use std::collections::BTreeMap;

use futures_util::future::join_all;
use ruma::{CanonicalJsonObject, CanonicalJsonValue, OwnedServerName, serde::Base64, signatures::sign_json};
use storage::schema::{self, ServerKeyRecord};

use super::{ASK_SOON_MS, DatedKeys};
use crate::homeserver::Homeserver;

/// Others may believe this server's keys for this long without asking again.
const OWN_VALID_MS: u64 = 24 * 3600 * 1000;

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

impl Homeserver {
    /// This server's keys, those of the past as long as they were in use.
    pub(super) fn own_dated_keys(&self) -> DatedKeys {
        let key = &self.room_shared().signing_key;
        let dated = |key: &Base64, valid_until_ms| ServerKeyRecord { key: key.encode(), valid_until_ms };
        let old = self.old_keys().iter().map(|old| (old.id.clone(), dated(&old.key, old.expired_ms)));
        old.chain([(key.id(), dated(&key.public_key(), u64::MAX))]).collect()
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
