//! Rooms, without I/O: what becomes of an event, of members, of holes in the timeline, decided from values.
//!
//! A room's owner fetches what a decision needs, asks, and does what it says: [`receive`] takes an event of another
//! server from its arrival over "these are to be fetched first" to its verdict; [`local`] makes and authorises one of
//! a local user; [`membership`], [`relation`] and [`create`] decide what such a user may ask for; [`census`],
//! [`graph`], [`hole`] and [`partial`] say what follows for the counts, the extremities and the timeline.

pub mod census;
pub mod content;
pub mod create;
pub mod graph;
pub mod hole;
pub mod local;
pub mod membership;
pub mod partial;
pub mod receive;
pub mod relation;

#[cfg(test)]
mod tests;
