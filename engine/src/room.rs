//! Rooms, without I/O.

pub mod create;
