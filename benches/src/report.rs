//! What a run found out: a table, JSON, HTML, and the comparison of two.

mod html;
mod plot;
mod table;

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

pub use self::{
    html::{page, sweep_page},
    table::{compare, lines, sweep_lines},
};
use crate::{Measurement, process::Usage};

/// The quantiles that a report keeps of each measurement.
const QUANTILES: [f64; 16] =
    [0.0, 0.1, 0.25, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0];

/// One run against one server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The profile's name.
    pub profile: String,
    /// The profile's sizes and the run's settings.
    pub parameters: BTreeMap<String, String>,
    /// What was measured.
    pub rows: Vec<Row>,
    /// What the server's process used meanwhile, oldest first; empty if it was not looked at.
    pub usage: Vec<Usage>,
}

/// One kind of request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// Successes.
    pub count: u64,
    /// Failures.
    pub failed: u64,
    /// Why the first of them failed.
    pub failure: Option<String>,
    /// Successes per second.
    pub rate: f64,
    /// Mean latency, in milliseconds.
    pub mean_ms: f64,
    /// Latencies in milliseconds that this part of the requests did not exceed, by parts from 0 to 1.
    pub quantiles: Vec<(f64, f64)>,
    /// Successes in each second of the run.
    pub per_second: Vec<u64>,
}

impl Row {
    /// What a measurement found out.
    pub fn new(measured: &Measurement) -> Self {
        let ms = |latency: Duration| latency.as_secs_f64() * 1e3;
        let (failed, failure) = measured.failed();
        Self {
            name: measured.name().to_owned(),
            count: measured.count(),
            failed,
            failure: failure.map(ToOwned::to_owned),
            rate: number(measured.count()) / measured.elapsed().as_secs_f64().max(1e-6),
            mean_ms: ms(measured.mean()),
            quantiles: QUANTILES.iter().map(|part| (*part, ms(measured.quantile(*part)))).collect(),
            per_second: measured.per_second().to_vec(),
        }
    }

    /// The latency in milliseconds that this part of the requests did not exceed.
    pub fn quantile(&self, part: f64) -> f64 {
        let at = self.quantiles.iter().find(|(known, _)| *known >= part);
        at.map_or(0.0, |(_, latency)| *latency)
    }
}

impl Report {
    /// Successes of all kinds.
    pub fn requests(&self) -> u64 {
        self.rows.iter().map(|row| row.count).sum()
    }

    /// CPU time per success of the first row, in milliseconds.
    pub fn cpu_ms_each(&self) -> Option<f64> {
        let (first, last) = (self.usage.first()?, self.usage.last()?);
        let count = self.rows.first().map_or(0, |row| row.count);
        (count > 0).then(|| number(last.cpu_ms.saturating_sub(first.cpu_ms)) / number(count))
    }

    /// Bytes that the server wrote per success of the first row.
    pub fn written_each(&self) -> Option<f64> {
        let (first, last) = (self.usage.first()?, self.usage.last()?);
        let count = self.rows.first().map_or(0, |row| row.count);
        (count > 0).then(|| number(last.written.saturating_sub(first.written)) / number(count))
    }

    /// The most memory that was resident, in MiB: the proportional share where it is known.
    pub fn peak_mib(&self) -> Option<f64> {
        self.usage.iter().map(memory_mib).max_by(f64::total_cmp)
    }

    /// Writes the report as JSON.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads a report that was saved.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no report", path.display()))
    }
}

/// A process's memory in MiB: its proportional share where that is known.
pub fn memory_mib(usage: &Usage) -> f64 {
    let kib = if usage.proportional_kib > 0 { usage.proportional_kib } else { usage.resident_kib };
    number(kib) / 1024.0
}

#[expect(clippy::cast_precision_loss, reason = "counts and sizes are far below 2^52")]
fn number(count: u64) -> f64 {
    count as f64
}
