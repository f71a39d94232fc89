//! The account side of the client-server API, on the assembled server over a memory store.

#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod devices;
mod login;
mod profile;
mod server;
mod third_party_ids;
mod uia;
mod user;
