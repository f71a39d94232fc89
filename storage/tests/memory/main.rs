//! Opening and reading a store that is much larger than its cache must not take memory for all of it.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "all of this file is a test")]

use std::{path::Path, process::Command};

/// Peak memory in MiB of a process that does `task`.
fn peak(task: &str, backend: &str, mib: u64, folder: &Path) -> u64 {
    let mut probe = Command::new(env!("CARGO_BIN_EXE_memory_probe"));
    let output = probe.args([task, backend, &mib.to_string()]).arg(folder).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{task}: {}", String::from_utf8_lossy(&output.stderr));
    text.trim().parse::<u64>().unwrap() >> 10
}

/// Fills a store with `mib` of rows and an 8 MiB cache, then opens and reads all of it, each within `limit` MiB.
fn check(backend: &str, mib: u64, limit: u64) {
    let folder = tempfile::tempdir().unwrap();
    let filling = peak("fill", backend, mib, folder.path());
    let reading = peak("read", backend, mib, folder.path());
    println!("{backend}: {filling} MiB while filling, {reading} MiB while opening and reading");
    assert!(filling < limit && reading < limit, "{backend}: {filling} MiB filling, {reading} MiB reading");
}

/// sled evicts late: beyond its cache it keeps some hundred MiB of what was just read, whatever the store's size.
#[test]
fn sled_stays_in_bounds() {
    check("sled", 512, 400);
}

#[test]
fn fjall_stays_in_bounds() {
    check("fjall", 96, 92);
}
