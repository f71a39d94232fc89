//! Fills a store, or opens one and reads all of it, and prints the most memory that took, in KiB.
//!
//! `memory_probe fill|read sled|fjall MIB FOLDER`

use std::{env, fs, io::Write};

use bytes::Bytes;
use storage::{Backend, Batch, Direction, Durability, Files, KeyRange, Storage, Table, schema::TEST_TABLES};

/// Rows of this table may be kept together, as those of events are.
static ROWS: Table<u64, Bytes> = Table::new(TEST_TABLES + 1, "ROWS");

/// Rows of 1 KiB, as events are, in a MiB.
const ROWS_PER_MIB: u64 = 1 << 10;

/// Bytes the back end may use for its cache.
const CACHE_BYTES: u64 = 8 << 20;

/// Rows of a batch and of a page.
const PAGE: u16 = 256;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [task, backend, mib, folder] = &arguments[..] else {
        return Err("usage: memory_probe fill|read sled|fjall MIB FOLDER".into());
    };
    let rows = mib.parse::<u64>()? * ROWS_PER_MIB;
    let files = Files { path: folder.into(), cache_bytes: CACHE_BYTES };
    let backend = if backend == "sled" { Backend::Sled(files) } else { Backend::Fjall(files) };
    let storage = Storage::open(backend.open().await?, Durability::Always).await?;
    if task == "fill" {
        fill(&storage, rows).await?;
    } else {
        read(&storage, rows).await?;
    }
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no peak in the status")?;
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse()?;
    storage.close().await?;
    writeln!(std::io::stdout(), "{peak}")?;
    Ok(())
}

/// Bytes that no compression makes less.
fn row(number: u64) -> Bytes {
    let mut mixed = number;
    let mut bytes = Vec::with_capacity(1 << 10);
    while bytes.len() < 1 << 10 {
        // One step of SplitMix64.
        mixed = mixed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_be_bytes());
    }
    bytes.into()
}

async fn fill(storage: &Storage, rows: u64) -> Result<(), Box<dyn std::error::Error>> {
    for first in (0..rows).step_by(PAGE.into()) {
        let mut batch = Batch::new();
        for number in first..first + u64::from(PAGE) {
            batch.put(&ROWS, &number, &row(number));
        }
        storage.commit(batch).await?;
    }
    Ok(())
}

async fn read(storage: &Storage, rows: u64) -> Result<(), Box<dyn std::error::Error>> {
    let (mut rest, mut count) = (KeyRange::all(), 0);
    loop {
        let page = storage.range(&ROWS, rest, Direction::Ascending, PAGE.into()).await?;
        let Some((last, _)) = page.last() else { break };
        rest = KeyRange::all().after(last);
        count += u64::try_from(page.len())?;
    }
    if count == rows { Ok(()) } else { Err(format!("{count} rows of {rows}").into()) }
}
