//! Load against a homeserver through the plain client-server API.
//!
//! Everything that the binary `loadtest` does is here, so that it can be pointed at any homeserver by URL.

mod client;
pub mod process;
pub mod scenario;
mod summary;

pub use self::{client::Client, summary::Summary};
