//! Load against a homeserver through the plain client-server API.
//!
//! Everything that the binary `loadtest` does is here. A [`Profile`] makes its users and rooms through
//! [`Accounts`], puts load on the server and answers with [`Measurement`]s; a [`report::Report`] holds them with
//! what the server's process used meanwhile, and is shown as a table, JSON or HTML. Nothing here knows which
//! homeserver it is, except [`launch`], which starts a Ganglion of its own.

pub mod account;
pub mod client;
pub mod goals;
pub mod launch;
mod measure;
mod pace;
pub mod process;
mod profile;
mod progress;
pub mod report;
pub mod run;
pub mod sweep;

pub use self::{
    account::Accounts,
    client::Client,
    measure::Measurement,
    pace::{Pace, Schedule},
    profile::{Context, Profile},
    progress::Progress,
};
