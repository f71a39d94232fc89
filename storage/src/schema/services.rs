//! Records of application services.

use bytes::Bytes;
use engine::id::Position;
use serde::{Deserialize, Serialize};

use crate::Record;

/// How far an application service has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCursorRecord {
    /// What happened up to here is dealt with.
    pub upto: Position,
    /// What the IDs of its transactions begin with: a store that is made anew does not use old ones again.
    pub epoch: String,
    /// Transactions that were begun.
    pub begun: u64,
}

/// A transaction that an application service has not acknowledged: it is sent as it is until it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceTxnRecord {
    /// Its ID.
    pub id: String,
    /// What happened up to here is dealt with once it is acknowledged.
    pub upto: Position,
    /// The number of its events.
    pub events: u64,
    /// The body, JSON.
    pub body: Bytes,
}

impl Record for ServiceCursorRecord {
    const VERSION: u8 = 1;
}

impl Record for ServiceTxnRecord {
    const VERSION: u8 = 1;
}
