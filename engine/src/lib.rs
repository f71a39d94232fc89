//! Pure room logic: no async, no clock, no randomness, no I/O; they are passed in as values.

pub mod auth;
pub mod canonical;
pub mod id;
pub mod pdu;
pub mod push;
pub mod resolve;
pub mod room;
pub mod room_version;
pub mod state;
pub mod visibility;
