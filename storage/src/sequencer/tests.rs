//! The loom models run with
//! `RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test -p storage --lib sequencer::`.

#[cfg(loom)]
mod model;
#[cfg(not(loom))]
mod plain;
