//! The harness of the end-to-end tests: it starts, drives, kills and restarts the real binary.
//!
//! Nothing here knows Ganglion's insides: it speaks HTTP and looks at the process from outside.

mod client;
mod environment;
mod federation;
mod peer;
mod server;

pub use self::{
    client::{Answer, Client, segment},
    federation::Synapse,
    peer::{Peer, PeerKind},
    server::{Server, free_port},
};
