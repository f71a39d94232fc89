//! What the killed process writes: numbered batches over several tables, each checking that it follows the one before.

use bytes::Bytes;
use engine::id::Position;
use storage::{Backend, Files, Table, schema::TEST_TABLES};

/// The position of each number.
pub(crate) static POSITIONS: Table<u64, Position> = Table::new(TEST_TABLES, "POSITIONS");
/// A body that follows from the number.
pub(crate) static BODIES: Table<u64, Bytes> = Table::new(TEST_TABLES + 1, "BODIES");
/// The last number whose remainder the key is.
pub(crate) static SLOTS: Table<u64, u64> = Table::new(TEST_TABLES + 2, "SLOTS");
/// One row: the last number.
pub(crate) static LAST: Table<(), u64> = Table::new(TEST_TABLES + 3, "LAST");

/// Numbers kept; older ones are deleted, so that the back ends have garbage to collect.
pub(crate) const KEPT: u64 = 400;

/// Rows of [`SLOTS`].
pub(crate) const SLOT_COUNT: u64 = 37;

/// Mostly as large as an event, sometimes as large as the largest.
pub(crate) fn body(number: u64) -> Bytes {
    let mixed = mix(number);
    let length = if mixed.is_multiple_of(16) { 60_000 } else { mixed % 2_000 };
    (0..length).map(|at| mix(number ^ at).to_le_bytes()[0]).collect()
}

/// One step of `SplitMix64`.
pub(crate) fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// The back end of this name.
pub(crate) fn backend(name: &str, path: std::path::PathBuf) -> Option<Backend> {
    let files = Files { path, cache_bytes: 8 << 20 };
    match name {
        "sled" => Some(Backend::Sled(files)),
        "fjall" => Some(Backend::Fjall(files)),
        _ => None,
    }
}
