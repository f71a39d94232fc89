//! Reports as a page that needs nothing else.

use std::fmt::Write;

use super::{
    Report, memory_mib, number,
    plot::{Labels, Line, escape, plot},
    table,
};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}\
pre{overflow:auto;background:#f5f5f5;padding:1em;font-size:12px}figure{margin:2em 0}figcaption{font-weight:600}\
svg{width:100%;max-width:640px;font:11px system-ui,sans-serif}polyline{fill:none;stroke-width:1.8}\
.grid{stroke:#ddd}text.y{text-anchor:end}text.x{text-anchor:middle}ul{list-style:none;padding:0;font-size:13px}\
li{display:inline-block;margin-right:1.5em}li span{display:inline-block;width:.8em;height:.8em;margin-right:.4em}";

/// The page of one run.
pub fn page(report: &Report) -> String {
    let mut plots = vec![latencies(report), rates(report)];
    if !report.usage.is_empty() {
        plots.push(memory(report));
        plots.push(cpu(report));
    }
    let parameters: Vec<_> =
        report.parameters.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    document(&report.profile, &parameters.join(", "), &table::lines(report), &plots)
}

/// The page of a sweep: the first row of each run against the value.
pub fn sweep_page(key: &str, reports: &[(String, Report)]) -> String {
    let names: Vec<_> = reports.iter().map(|(value, _)| value.clone()).collect();
    let line = |name: &str, of: &dyn Fn(&Report) -> Option<f64>| Line {
        name: name.to_owned(),
        points: (0_u32..)
            .zip(reports)
            .filter_map(|(at, (_, report))| Some((f64::from(at), of(report)?)))
            .collect(),
    };
    let quantile = |part: f64| move |report: &Report| Some(report.rows.first()?.quantile(part));
    let draw = |title: &str, unit: &str, lines: &[Line]| {
        plot(&Labels { title, x: key, y: unit, places: Some(&names) }, lines)
    };
    let plots = [
        draw("Throughput", "per second", &[line("successes", &|report| Some(report.rows.first()?.rate))]),
        draw(
            "Latency",
            "ms",
            &[line("p50", &quantile(0.5)), line("p90", &quantile(0.9)), line("p99", &quantile(0.99))],
        ),
        draw("Memory at most", "MiB", &[line("server", &Report::peak_mib)]),
        draw("CPU time of each", "ms", &[line("server", &Report::cpu_ms_each)]),
    ];
    document(&format!("Sweep of {key}"), &names.join(", "), &table::sweep_lines(key, reports), &plots)
}

fn document(title: &str, about: &str, lines: &[String], plots: &[String]) -> String {
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title><style>{STYLE}</style></head>\
         <body><h1>{0}</h1><p>{1}</p><pre>{2}</pre>",
        escape(title),
        escape(about),
        escape(&lines.join("\n"))
    );
    for plot in plots {
        let _ = write!(html, "{plot}");
    }
    html.push_str("</body></html>\n");
    html
}

fn latencies(report: &Report) -> String {
    let line = |row: &super::Row| Line {
        name: row.name.clone(),
        points: row.quantiles.iter().map(|(part, latency)| (part * 100.0, *latency)).collect(),
    };
    let lines: Vec<_> = report.rows.iter().map(line).collect();
    plot(&Labels { title: "Latency by percentile", x: "percentile", y: "ms", places: None }, &lines)
}

fn rates(report: &Report) -> String {
    let line = |row: &super::Row| Line {
        name: row.name.clone(),
        points: (0_u32..)
            .zip(&row.per_second)
            .map(|(second, count)| (f64::from(second), number(*count)))
            .collect(),
    };
    let lines: Vec<_> = report.rows.iter().map(line).collect();
    plot(&Labels { title: "Throughput", x: "seconds", y: "per second", places: None }, &lines)
}

fn memory(report: &Report) -> String {
    let points = report.usage.iter().map(|usage| (number(usage.at_ms) / 1e3, memory_mib(usage))).collect();
    let line = Line { name: "server".to_owned(), points };
    plot(&Labels { title: "Memory", x: "seconds", y: "MiB", places: None }, &[line])
}

fn cpu(report: &Report) -> String {
    let busy = report.usage.windows(2).filter_map(|pair| {
        let elapsed = pair[1].at_ms.checked_sub(pair[0].at_ms).filter(|elapsed| *elapsed > 0)?;
        let used = pair[1].cpu_ms.saturating_sub(pair[0].cpu_ms);
        Some((number(pair[1].at_ms) / 1e3, number(used) / number(elapsed) * 100.0))
    });
    let line = Line { name: "server".to_owned(), points: busy.collect() };
    plot(&Labels { title: "CPU", x: "seconds", y: "% of one core", places: None }, &[line])
}
