//! What a server process uses, read from `/proc`.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio::{task::JoinHandle, time::Instant};

/// How often a process is looked at while it is under load.
const EVERY: Duration = Duration::from_millis(500);

/// A server process's use of the machine.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    /// When it was looked at, in milliseconds from the start of the run.
    pub at_ms: u64,
    /// Resident memory, in KiB.
    pub resident_kib: u64,
    /// Its share of resident memory, in KiB; 0 where that may not be read.
    pub proportional_kib: u64,
    /// CPU time since the process's start, in milliseconds.
    pub cpu_ms: u64,
    /// Open file descriptors.
    pub descriptors: u64,
    /// Bytes written to files since the process's start; 0 where that may not be read.
    pub written: u64,
}

/// Reads the use of process `pid`.
pub fn usage(pid: u32) -> Result<Usage> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
    let status = read("status").context("no such process")?;
    let resident_kib = field(&status, "VmRSS:").context("/proc/PID/status lacks VmRSS")?;
    let proportional_kib = read("smaps_rollup").ok().and_then(|text| field(&text, "Pss:")).unwrap_or(0);
    let written = read("io").ok().and_then(|text| field(&text, "wchar:")).unwrap_or(0);
    let stat = read("stat")?;
    // The name in parentheses may hold spaces: count the fields after it.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    // Linux counts in 1/100 s on every platform that this runs on.
    let cpu_ms = (ticks(11) + ticks(12)) * 10;
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;
    Ok(Usage { at_ms: 0, resident_kib, proportional_kib, cpu_ms, descriptors, written })
}

fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Looks at a process again and again until it is told to stop.
pub struct Watch(JoinHandle<Vec<Usage>>, tokio::sync::oneshot::Sender<()>);

impl Watch {
    /// Starts looking.
    pub fn start(pid: u32) -> Self {
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let start = Instant::now();
        let look = move || {
            let at_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            usage(pid).map(|usage| Usage { at_ms, ..usage })
        };
        let task = tokio::spawn(async move {
            let mut samples = Vec::new();
            loop {
                samples.extend(look());
                if tokio::time::timeout(EVERY, &mut stopped).await.is_ok() {
                    samples.extend(look());
                    return samples;
                }
            }
        });
        Self(task, stop)
    }

    /// Stops and answers what was seen, oldest first.
    pub async fn stop(self) -> Vec<Usage> {
        let _ = self.1.send(()); // a watch that ended by itself has its samples all the same
        self.0.await.unwrap_or_default()
    }
}
