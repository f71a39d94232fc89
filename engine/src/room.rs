//! Rooms, without I/O.

pub mod create;
pub mod receive;
