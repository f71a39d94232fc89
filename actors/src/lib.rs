//! Actors: rooms, sessions and destinations; see DESIGN in ARCHITECTURE.md.

mod admission;
pub mod aliases;
pub mod appservice;
mod background;
mod budget;
pub mod delayed;
pub mod destination;
pub mod directory;
mod effects;
pub mod encryption;
pub mod env;
pub mod federation;
pub mod filter;
mod flights;
pub mod homeserver;
pub mod hub;
pub mod media;
pub mod metrics;
pub mod notices;
mod passivation;
/// What the hand-over synchronises with; `tests/passivation.rs` puts loom's in their place.
mod primitives {
    pub(crate) use std::sync::atomic::{AtomicU32, Ordering};
}
pub mod presence;
pub mod push;
pub mod reports;
mod resume;
pub mod retention;
pub mod room;
pub mod search;
pub mod session;
pub mod sliding_sync;
pub mod spaces;
pub mod sync;
pub mod token;
mod upgrade;
pub mod users;
