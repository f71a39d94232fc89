//! From the JSON that a peer sent to events whose signatures and hashes hold.
//!
//! Spec: server-server API, "Checks performed on receipt of a PDU", steps 1 to 3.

use engine::{
    pdu::{self, Pdu, PduError, Verified},
    room_version::RoomVersion,
};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue,
    signatures::{PublicKeyMap, required_server_signatures_to_verify_event},
};
use serde_json::value::RawValue;

use tokio::runtime::{Handle, RuntimeFlavor};

use super::keys::WantedKeys;

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
pub(super) struct Unverified {
    object: CanonicalJsonObject,
    /// The event, as it would be if its content hash matches.
    pub(super) pdu: Pdu,
}

impl Unverified {
    /// Parses an event.
    pub(super) fn parse(json: &RawValue, version: &RoomVersion) -> Result<Self, PduError> {
        let mut object: CanonicalJsonObject =
            serde_json::from_str(json.get()).map_err(|error| PduError::Json(error.to_string()))?;
        // Not signed, and nothing that another server says there is of use here.
        object.remove("unsigned");
        let bytes = serde_json::to_vec(&object).map_err(|error| PduError::Json(error.to_string()))?;
        Ok(Self { pdu: Pdu::parse(&bytes, version)?, object })
    }

    /// Notes which keys the event's signatures need.
    pub(super) fn want_keys(&self, wanted: &mut WantedKeys, version: &RoomVersion) {
        let Ok(servers) = required_server_signatures_to_verify_event(&self.object, &version.signatures)
        else {
            return;
        };
        // Before room version 5 it does not matter whether a key was valid when it signed.
        let valid_at_ms =
            if version.enforce_key_validity { u64::from(self.pdu.origin_server_ts().get()) } else { 0 };
        let signatures = match self.object.get("signatures") {
            Some(CanonicalJsonValue::Object(signatures)) => Some(signatures),
            _ => None,
        };
        for server in servers {
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
    pub(super) fn verify(self, keys: &PublicKeyMap, version: &RoomVersion) -> Result<Pdu, PduError> {
        match pdu::verify(&self.object, keys, version)? {
            Verified::All => Ok(self.pdu),
            Verified::Signatures => pdu::redact(&self.pdu, version),
        }
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
