//! End-to-end tests: each starts the real binary on a free port with a store of its own.
//!
//! The modules mirror the chapters of the client-server API.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod account_data;
mod accounts;
mod clients;
mod devices;
mod durability;
mod hygiene;
mod membership;
mod messages;
mod permissions;
mod profile;
mod rooms;
mod sync;
