//! End-to-end tests: each starts the real binary on a free port with a store of its own.
//!
//! The modules mirror the chapters of the client-server API.
// The futures of matrix-sdk are nested deeply.
#![recursion_limit = "256"]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod account_data;
mod accounts;
mod appservices;
mod check;
mod clients;
mod damage;
mod delayed_events;
mod devices;
mod durability;
mod encryption;
mod endpoints;
mod erasure;
mod federation;
mod filters;
mod fuzz;
mod guests;
mod history_visibility;
mod hygiene;
mod ignored_users;
mod invite_permission;
mod login;
mod media;
mod membership;
mod messages;
mod metrics;
mod moderation;
mod old_endpoints;
mod permissions;
mod presence;
mod profile;
mod push;
mod push_rules;
mod receipts_typing;
mod registration;
mod relations;
mod reporting;
mod retention;
mod rooms;
mod search;
mod server_notices;
mod sliding_sync;
mod slow_clients;
mod spaces;
mod sync;
mod thread_subscriptions;
mod unread;
mod user_directory;
