//! Reports as lines of text.

use super::{Report, Row, memory_mib, number};

/// The table of a run.
pub fn lines(report: &Report) -> Vec<String> {
    let mut lines = vec![format!(
        "{:<44} {:>9} {:>7} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
        report.profile, "requests", "failed", "per s", "mean", "p50", "p90", "p99", "max"
    )];
    lines.extend(report.rows.iter().map(|row| {
        let at = |part| latency(row.quantile(part));
        format!(
            "{:<44} {:>9} {:>7} {:>10.1} {:>10} {:>10} {:>10} {:>10} {:>10}",
            row.name,
            row.count,
            row.failed,
            row.rate,
            latency(row.mean_ms),
            at(0.5),
            at(0.9),
            at(0.99),
            at(1.0)
        )
    }));
    let failures = report.rows.iter().filter_map(|row| Some((row, row.failure.as_ref()?)));
    lines.extend(failures.map(|(row, failure)| format!("the first failure of {}: {failure}", row.name)));
    lines.extend(server(report));
    lines
}

/// What the server used, if it was looked at.
fn server(report: &Report) -> Option<String> {
    let (first, last) = (report.usage.first()?, report.usage.last()?);
    let each = report.cpu_ms_each().map_or_else(String::new, |cpu| format!(" ({cpu:.3} ms each)"));
    let written = report.written_each().map_or_else(String::new, |bytes| format!(" ({bytes:.0} B each)"));
    Some(format!(
        "server: {:.0} MiB before, {:.0} MiB at most, {:.0} MiB after; {} ms of CPU{each}; {:.1} MiB written{written}; {} descriptors",
        memory_mib(first),
        report.peak_mib().unwrap_or(0.0),
        memory_mib(last),
        last.cpu_ms.saturating_sub(first.cpu_ms),
        number(last.written.saturating_sub(first.written)) / f64::from(1 << 20),
        last.descriptors,
    ))
}

fn latency(ms: f64) -> String {
    if ms < 1.0 {
        format!("{:.0} µs", ms * 1e3)
    } else if ms < 1000.0 {
        format!("{ms:.1} ms")
    } else {
        format!("{:.2} s", ms / 1e3)
    }
}

/// Two runs beside each other: the second as a multiple of the first.
pub fn compare(a: &Report, b: &Report) -> Vec<String> {
    let mut lines = vec![
        format!("{:<44} {:>26} {:>26} {:>26}", "", "per s", "p50", "p99"),
        format!(
            "{:<44} {:>9} {:>9} {:>6} {:>9} {:>9} {:>6} {:>9} {:>9} {:>6}",
            "B as a multiple of A", "A", "B", "B/A", "A", "B", "B/A", "A", "B", "B/A"
        ),
    ];
    for row in &a.rows {
        let Some(other) = counterpart(row, a, b) else {
            lines.push(format!("{:<44} only in A", row.name));
            continue;
        };
        let latencies = |part| {
            let (a, b) = (row.quantile(part), other.quantile(part));
            format!("{:>9} {:>9} {:>6.2}", latency(a), latency(b), b / a.max(1e-9))
        };
        lines.push(format!(
            "{:<44} {:>9.1} {:>9.1} {:>6.2} {} {}",
            row.name,
            row.rate,
            other.rate,
            other.rate / row.rate.max(1e-9),
            latencies(0.5),
            latencies(0.99)
        ));
    }
    if let (Some(cpu_a), Some(cpu_b)) = (a.cpu_ms_each(), b.cpu_ms_each()) {
        lines.push(format!(
            "CPU per request of the first row: {cpu_a:.3} ms, {cpu_b:.3} ms: {:.2}",
            cpu_b / cpu_a.max(1e-9)
        ));
    }
    if let (Some(memory_a), Some(memory_b)) = (a.peak_mib(), b.peak_mib()) {
        lines.push(format!(
            "memory at most: {memory_a:.0} MiB, {memory_b:.0} MiB: {:.2}",
            memory_b / memory_a.max(1e-9)
        ));
    }
    lines
}

/// The row of the other report that is about the same: by name, or by place if the reports have the same shape.
fn counterpart<'a>(row: &Row, a: &Report, b: &'a Report) -> Option<&'a Row> {
    let by_name = b.rows.iter().find(|other| other.name == row.name);
    by_name.or_else(|| {
        let place = a.rows.iter().position(|own| own.name == row.name)?;
        if a.rows.len() == b.rows.len() { b.rows.get(place) } else { None }
    })
}

/// One line for each value of a sweep.
pub fn sweep_lines(key: &str, reports: &[(String, Report)]) -> Vec<String> {
    let mut lines = vec![format!(
        "{key:<20} {:<40} {:>10} {:>8} {:>10} {:>10} {:>12} {:>10}",
        "", "per s", "failed", "p50", "p99", "CPU each", "memory"
    )];
    for (value, report) in reports {
        let Some(row) = report.rows.first() else { continue };
        lines.push(format!(
            "{value:<20} {:<40} {:>10.1} {:>8} {:>10} {:>10} {:>12} {:>10}",
            row.name,
            row.rate,
            row.failed,
            latency(row.quantile(0.5)),
            latency(row.quantile(0.99)),
            report.cpu_ms_each().map_or_else(String::new, latency),
            report.peak_mib().map_or_else(String::new, |peak| format!("{peak:.0} MiB")),
        ));
    }
    lines
}
