//! Asking notaries for the keys of servers that do not give them.
//!
//! Spec: server-server API, "Querying keys through another server".

use std::collections::{BTreeMap, BTreeSet};

use ruma::{OwnedServerName, ServerName};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::ASK_AGAIN_MS;
use crate::{env::has_come, federation::FederationError, homeserver::Homeserver};

/// Servers that one question to a notary names.
const NOTARY_BATCH: usize = 100;

#[derive(Deserialize)]
struct Notarised {
    #[serde(default)]
    server_keys: Vec<Box<RawValue>>,
}

impl Homeserver {
    /// Asks the notaries for the keys of servers that do not give them, all at once.
    pub(super) async fn ask_notaries(&self, servers: &[OwnedServerName]) {
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
}
