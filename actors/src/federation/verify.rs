//! From the JSON that a peer sent to events whose signatures and hashes hold.
//!
//! Spec: server-server API, "Checks performed on receipt of a PDU", steps 1 to 3.

use engine::{
    pdu::{self, Pdu, PduError, Unchecked, Verified},
    room_version::RoomVersion,
};
use ruma::{CanonicalJsonValue, OwnedEventId, OwnedServerName};
use serde_json::value::RawValue;
use tokio::runtime::{Handle, RuntimeFlavor};

use super::{
    FederationError,
    keys::{FoundKeys, Silence, WantedKeys},
};
use crate::{
    homeserver::Homeserver,
    room::{Lacking, RoomError},
};

/// Events that are parsed, or whose signatures are checked, before others get their turn.
const CHUNK: usize = 64;

/// Fewer events than this take less long than moving the thread's other tasks elsewhere.
const MANY: usize = 8;

/// Computes something about a number of events; for many, the thread's other tasks go on on another one.
///
/// The simulator's runtime has only one thread, so that there the order of things stays what it is.
pub(super) fn computing<T>(events: usize, work: impl FnOnce() -> T) -> T {
    if events >= MANY && Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread {
        tokio::task::block_in_place(work)
    } else {
        work()
    }
}

/// A received event whose signatures are not checked yet.
pub(super) struct Unverified(Unchecked);

impl Unverified {
    /// Parses an event.
    pub(super) fn parse(json: &RawValue, version: &RoomVersion) -> Result<Self, PduError> {
        Unchecked::parse(json.get().as_bytes(), version).map(Self)
    }

    /// The event, as it would be if its content hash matches.
    pub(super) fn into_pdu(self) -> Pdu {
        self.0.pdu
    }

    /// When its keys must be valid: before room version 5 that does not matter.
    fn signed_at_ms(&self, version: &RoomVersion) -> u64 {
        if version.enforce_key_validity { u64::from(self.0.pdu.origin_server_ts().get()) } else { 0 }
    }

    /// Notes which keys the event's signatures need.
    fn want_keys(&self, wanted: &mut WantedKeys, version: &RoomVersion) {
        let valid_at_ms = self.signed_at_ms(version);
        let signatures = match self.0.form.get("signatures") {
            Some(CanonicalJsonValue::Object(signatures)) => Some(signatures),
            _ => None,
        };
        for server in pdu::signers(&self.0.form, version) {
            if let Some(CanonicalJsonValue::Object(keys)) =
                signatures.and_then(|signatures| signatures.get(server.as_str()))
            {
                let wanted = wanted.entry(server).or_default();
                for id in keys.keys() {
                    let at_ms = wanted.entry(id.clone()).or_default();
                    *at_ms = (*at_ms).max(valid_at_ms);
                }
            }
        }
    }

    /// Checks signatures and content hash; an event whose hash does not match is redacted.
    fn verify(self, keys: &FoundKeys, version: &RoomVersion) -> Result<Pdu, Unverifiable> {
        let signers = pdu::signers(&self.0.form, version);
        let own = keys.valid_at(&signers, self.signed_at_ms(version));
        match self.0.verify(&own, version) {
            Ok(Verified::All) => Ok(self.0.pdu),
            Ok(Verified::Signatures) => Ok(pdu::redact(&self.0.pdu, version)?),
            Err(error) => match keys.silent(&signers) {
                Some((server, Silence::Brief)) => Err(Unverifiable::NoKeys(server.clone())),
                Some((server, Silence::Long)) => Err(Unverifiable::Gone(server.clone())),
                None => Err(error.into()),
            },
        }
    }
}

/// What checking some events came to.
#[derive(Default)]
pub(super) struct SoFar {
    /// Those whose signatures hold.
    pub(super) pdus: Vec<Pdu>,
    /// Those that may be checked soon, each with the server whose keys are lacking.
    pub(super) waiting: Lacking,
    /// Those whose servers seem gone.
    pub(super) gone: Lacking,
}

/// Why an event that another server sent is not taken in.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unverifiable {
    /// The keys of a server that signed it cannot be had now, but perhaps later.
    #[error("the keys of {0} cannot be had now")]
    NoKeys(OwnedServerName),
    /// The same, but the server has been silent for so long that nothing waits for it.
    #[error("the keys of {0} cannot be had, it seems gone")]
    Gone(OwnedServerName),
    /// It is not an event of those that are said to have signed it.
    #[error(transparent)]
    Bad(#[from] PduError),
}

impl From<Unverifiable> for RoomError {
    fn from(error: Unverifiable) -> Self {
        match error {
            Unverifiable::NoKeys(server) => Self::Remote(FederationError::NoKeys(server)),
            Unverifiable::Gone(_) | Unverifiable::Bad(_) => Self::Invalid(error.to_string()),
        }
    }
}

impl Homeserver {
    /// Parses events and checks their signatures and hashes; what has no event ID is left out.
    pub(super) async fn verify(
        &self,
        events: &[Box<RawValue>],
        rules: &'static RoomVersion,
    ) -> Vec<(OwnedEventId, Result<Pdu, Unverifiable>)> {
        let mut parsed = Vec::with_capacity(events.len());
        let mut checked = Vec::with_capacity(events.len());
        for some in events.chunks(CHUNK) {
            let parse = |json: &RawValue| Unverified::parse(json, rules);
            let results = computing(some.len(), || some.iter().map(|json| parse(json)).collect::<Vec<_>>());
            for (json, result) in some.iter().zip(results) {
                match result {
                    Ok(event) => parsed.push(event),
                    Err(error) => {
                        tracing::debug!(%error, "received something that is no event");
                        let id = Pdu::id_of(json.get().as_bytes(), rules);
                        checked.extend(id.map(|id| (id, Err(error.into()))));
                    }
                }
            }
            tokio::task::yield_now().await;
        }
        let mut wanted = WantedKeys::new();
        for event in &parsed {
            event.want_keys(&mut wanted, rules);
        }
        let keys = self.find_keys(&wanted).await;
        let check = |event: Unverified| (event.0.pdu.event_id().clone(), event.verify(&keys, rules));
        let mut parsed = parsed.into_iter().peekable();
        while parsed.peek().is_some() {
            let some: Vec<_> = parsed.by_ref().take(CHUNK).collect();
            checked.extend(computing(some.len(), || some.into_iter().map(check).collect::<Vec<_>>()));
            tokio::task::yield_now().await;
        }
        checked
    }

    /// Those of some events whose signatures hold.
    pub(super) async fn verified(&self, events: &[Box<RawValue>], rules: &'static RoomVersion) -> Vec<Pdu> {
        self.verified_so_far(events, rules).await.pdus
    }

    /// Those of some events whose signatures hold, and those of which that cannot be said yet.
    pub(super) async fn verified_so_far(
        &self,
        events: &[Box<RawValue>],
        rules: &'static RoomVersion,
    ) -> SoFar {
        let mut so_far = SoFar { pdus: Vec::with_capacity(events.len()), ..SoFar::default() };
        for (event_id, checked) in self.verify(events, rules).await {
            match checked {
                Ok(pdu) => so_far.pdus.push(pdu),
                Err(error) => {
                    tracing::debug!(%event_id, %error, "left out an event");
                    match error {
                        Unverifiable::NoKeys(server) => drop(so_far.waiting.insert(event_id, server)),
                        Unverifiable::Gone(server) => drop(so_far.gone.insert(event_id, server)),
                        Unverifiable::Bad(_) => {}
                    }
                }
            }
        }
        so_far
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn other_tasks_go_on_while_many_events_are_checked() {
        let (told, hear) = std::sync::mpsc::channel();
        let other = async move { told.send(()).unwrap() };
        tokio::spawn(async move {
            tokio::spawn(other);
            // The only worker computes until the other task has run.
            computing(MANY, || hear.recv_timeout(std::time::Duration::from_secs(30))).unwrap();
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn a_single_thread_computes_in_place() {
        assert_eq!(computing(MANY, || 1), 1);
    }
}
