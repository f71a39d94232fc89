//! Rooms, without I/O: what becomes of events, of members, of holes in the timeline, decided from values.
//!
//! The [`Room`] is a machine. Its owner asks what becomes of a received event ([`receive`]), how a local user's event is
//! to be ([`local`]), what follows from taking an event in ([`admit`]); it answers with what is to be stored and whom
//! that concerns, or with what it [`Need`]s to know first. States that disagree are merged on the way ([`merge`]), and
//! what a merge took back without a reason is recorded ([`reset`]); [`again`] and [`mend`] judge events once more.
//! [`membership`], [`relation`] and [`create`] decide what a local user may ask for; [`census`], [`graph`], [`hole`] and
//! [`partial`] say what follows for the counts, the extremities and the timeline.

pub mod admit;
pub mod again;
pub mod census;
pub mod content;
pub mod create;
pub mod event;
pub mod graph;
pub mod hole;
pub mod local;
mod machine;
pub mod membership;
pub mod mend;
pub mod merge;
pub mod partial;
pub mod receive;
mod redaction;
mod rejoin;
pub mod relation;
pub mod reset;

pub use self::{
    event::StoredEvent,
    machine::{Context, Findings, Head, LookUp, Merged, Need, Room},
};

#[cfg(test)]
mod tests;
