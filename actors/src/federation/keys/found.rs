//! Keys that were found for a question, and whose are lacking.

use std::collections::{BTreeMap, BTreeSet};

use ruma::{
    OwnedServerName, ServerName,
    serde::Base64,
    signatures::{PublicKeyMap, PublicKeySet},
};

use super::{DatedKeys, Silence};

/// Keys that were found.
#[derive(Debug, Default)]
pub(in crate::federation) struct FoundKeys {
    keys: BTreeMap<OwnedServerName, DatedKeys>,
    /// Servers of which keys are lacking, since they do not answer.
    silent: BTreeMap<OwnedServerName, Silence>,
}

impl FoundKeys {
    pub(super) fn add(
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

    pub(super) fn has_all(&self, server: &ServerName, wanted: &BTreeMap<String, u64>) -> bool {
        self.usable(server, wanted).len() == wanted.len()
    }

    pub(super) fn usable(&self, server: &ServerName, wanted: &BTreeMap<String, u64>) -> PublicKeySet {
        self.keys.get(server).map(|keys| usable(keys, wanted)).unwrap_or_default()
    }

    /// The keys of some servers that are valid at a moment.
    pub(in crate::federation) fn valid_at(
        &self,
        servers: &BTreeSet<OwnedServerName>,
        at_ms: u64,
    ) -> PublicKeyMap {
        let of = |server: &OwnedServerName| {
            let keys = self.keys.get(server)?;
            let at = keys.keys().map(|id| (id.clone(), at_ms)).collect();
            Some((server.to_string(), usable(keys, &at))).filter(|(_, keys)| !keys.is_empty())
        };
        servers.iter().filter_map(of).collect()
    }

    /// One of some servers that keys are lacking of, if they may be had later; rather one that seems gone.
    pub(in crate::federation) fn silent<'a>(
        &'a self,
        servers: &BTreeSet<OwnedServerName>,
    ) -> Option<(&'a OwnedServerName, Silence)> {
        let own = || self.silent.iter().filter(|(server, _)| servers.contains(*server));
        let silent = own().find(|(_, silence)| **silence == Silence::Long).or_else(|| own().next());
        silent.map(|(server, silence)| (server, *silence))
    }
}

/// Those of some keys that are valid when they are wanted to be.
pub(super) fn usable(keys: &DatedKeys, wanted: &BTreeMap<String, u64>) -> PublicKeySet {
    let usable = |(id, at_ms): (&String, &u64)| {
        let key = keys.get(id).filter(|key| *at_ms <= key.valid_until_ms)?;
        Some((id.clone(), Base64::parse(&key.key).ok()?))
    };
    wanted.iter().filter_map(usable).collect()
}
