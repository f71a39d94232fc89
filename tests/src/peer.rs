//! Real clients of other makers, driven over standard input and output by lines of JSON.

/// Which client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerKind {
    /// matrix-nio (Python).
    Nio,
    /// mautrix (Python).
    Mautrix,
    /// matrix-js-sdk (`JavaScript`).
    Js,
}

/// A running client.
pub struct Peer;
