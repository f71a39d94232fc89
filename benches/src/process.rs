//! What a server process uses, read from `/proc`.

use anyhow::{Context, Result};

/// A server process's use of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Resident memory, in KiB.
    pub resident_kib: u64,
    /// CPU time since its start, in milliseconds.
    pub cpu_ms: u64,
    /// Open file descriptors.
    pub descriptors: usize,
}

/// Reads the use of process `pid`.
pub fn usage(pid: u32) -> Result<Usage> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("no such process")?;
    let resident_kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
        .context("/proc/PID/status lacks VmRSS")?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold spaces: count the fields after it.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    // Linux counts in 1/100 s on every platform that this runs on.
    let cpu_ms = (ticks(11) + ticks(12)) * 10;
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    Ok(Usage { resident_kib, cpu_ms, descriptors })
}
