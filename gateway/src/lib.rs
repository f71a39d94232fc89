//! HTTP in and out of a Ganglion homeserver.
//!
//! A request enters through the router, is authenticated and parsed by an extractor, and reaches a handler
//! that makes one call to an actor or reads one snapshot. Nothing here names a table or a back end, except
//! the wiring in [`serve`].

pub mod admin;
pub mod app;
pub mod bodies;
pub mod check;
pub mod client;
pub mod config;
pub mod control;
pub mod error;
pub mod extract;
pub mod federation;
pub mod guests;
pub mod media;
pub mod metrics;
pub mod notices;
pub mod outbound;
pub mod password;
pub mod rate_limit;
pub mod router;
pub mod serve;
pub mod signing;
pub mod suspension;
pub mod telemetry;
pub mod tls;
pub mod told;
pub mod uia;
pub mod users;
mod x_matrix;
