//! The harness of the end-to-end tests: it starts, drives, kills and restarts the real binary.
//!
//! Nothing here knows Ganglion's insides: it speaks HTTP and looks at the process from outside. Only the events of a
//! [`Stranger`] are built with `engine`, as another server would build them.

mod callee;
mod client;
mod environment;
mod federation;
mod link;
mod peer;
mod server;
mod stranger;
mod tls;

pub use self::{
    callee::{Call, Callee},
    client::{Answer, Client, by_password, segment},
    federation::Synapse,
    link::Link,
    peer::{Peer, PeerKind},
    server::{Server, binary, free_port},
    stranger::{Guest, Presence, Stranger},
    tls::{Heard, Reply},
};
