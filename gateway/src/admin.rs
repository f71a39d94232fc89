//! Endpoints for administrators' tools.

pub mod register;
