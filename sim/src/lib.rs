//! Deterministic simulation of whole servers: the same seed gives the same run, hashed into a trace.
//!
//! A [`World`] runs the real server code on one thread, on paused time, with a seeded clock, randomness and
//! an in-memory store that loses un-synced writes in a crash.

mod trace;
mod world;

pub use self::{trace::Trace, world::World};
