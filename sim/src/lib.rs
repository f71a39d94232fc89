//! Deterministic simulation of whole federations: the same seed gives the same run, hashed into a trace.
//!
//! A [`World`](world::World) holds [`Host`](host::Host)s, each the real server (actors, and the gateway's router called
//! as a service) on a disk that may lose power, with a clock and randomness that follow from the seed. Their requests to
//! each other are signed as the gateway signs them and pass through a [`Network`](network::Network) that delays, loses,
//! repeats and reorders them. A [`Scenario`](scenario::Scenario) lets users work while faults happen; then everything
//! heals, and the [`invariant`]s are checked. All of it runs on one thread, on paused time.

pub mod client;
pub mod disk;
pub mod fault;
pub mod follower;
pub mod host;
pub mod hostile;
pub mod invariant;
pub mod minimise;
pub mod network;
pub mod plant;
pub mod pulse;
pub mod report;
pub mod resolution;
pub mod run;
pub mod scenario;
pub mod seed;
pub mod storm;
pub mod trace;
pub mod workload;
pub mod world;
