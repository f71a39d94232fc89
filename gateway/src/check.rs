//! `ganglion check`: looks for whatever would keep a server from working, and says what to do about it.
//!
//! It changes nothing, and may run beside the server: then it also looks whether the server can be reached under its
//! name, and whether a proxy on the way changes requests. Each thing that is looked at leaves one [`Finding`].

mod certificate;
mod files;
mod network;
mod store;

use std::{fmt, path::Path};

use crate::{
    config::{Config, ConfigError},
    control, telemetry,
};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// As it should be.
    Fine,
    /// The server works, but something will go wrong, or is worse than it could be.
    Doubtful,
    /// The server does not start, or part of it does not work.
    Wrong,
}

/// What was found about one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub grade: Grade,
    /// What it is about.
    pub area: &'static str,
    /// What was found.
    pub what: String,
    /// What to do.
    pub advice: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { grade, area, what, advice } = self;
        let grade = match grade {
            Grade::Fine => "fine",
            Grade::Doubtful => "doubtful",
            Grade::Wrong => "WRONG",
        };
        write!(f, "{grade:<9} {area:<14} {what}")?;
        if advice.is_empty() { Ok(()) } else { write!(f, "\n{:25}-> {advice}", "") }
    }
}

/// All findings.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// In the order in which they were made.
    pub findings: Vec<Finding>,
}

impl Report {
    fn fine(&mut self, area: &'static str, what: impl Into<String>) {
        self.add(Grade::Fine, area, what.into(), String::new());
    }

    fn doubtful(&mut self, area: &'static str, what: impl Into<String>, advice: impl Into<String>) {
        self.add(Grade::Doubtful, area, what.into(), advice.into());
    }

    fn wrong(&mut self, area: &'static str, what: impl Into<String>, advice: impl Into<String>) {
        self.add(Grade::Wrong, area, what.into(), advice.into());
    }

    fn add(&mut self, grade: Grade, area: &'static str, what: String, advice: String) {
        self.findings.push(Finding { grade, area, what, advice });
    }

    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.findings.iter().all(|finding| finding.grade != Grade::Wrong)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.findings.iter().try_for_each(|finding| writeln!(f, "{finding}"))?;
        let count = |grade| self.findings.iter().filter(|finding| finding.grade == grade).count();
        match (count(Grade::Wrong), count(Grade::Doubtful)) {
            (0, 0) => write!(f, "Everything is fine."),
            (wrong, doubtful) => write!(f, "{wrong} wrong, {doubtful} doubtful."),
        }
    }
}

/// Looks at everything that the configuration leads to; `file` is where it was read from.
pub async fn run(config: Result<Config, ConfigError>, file: Option<&Path>) -> Report {
    let mut report = Report::default();
    let config = match config {
        Ok(config) => config,
        Err(error) => {
            report.wrong(
                "configuration",
                error.to_string(),
                "correct it; docs/configuration.md lists all keys",
            );
            return report;
        }
    };
    configuration(&mut report, &config, file);
    files::check(&mut report, &config, file);
    files::registrations(&mut report, &config);
    files::descriptors(&mut report);
    certificate::check(&mut report, &config, now_s());
    let is_running = control::is_running(&config.data_dir).await;
    files::ports(&mut report, &config, is_running);
    if is_running {
        report.fine("store", "the running server has it open; stop the server to have it looked through");
        network::check(&mut report, &config).await;
    } else {
        store::check(&mut report, &config).await;
        report.fine("network", "the server does not run: nothing to reach");
    }
    report
}

fn configuration(report: &mut Report, config: &Config, file: Option<&Path>) {
    let origin = file.map_or_else(|| "no file".to_owned(), |file| file.display().to_string());
    report.fine("configuration", format!("{origin}; this is {}", config.server_name));
    for key in config.without_effect() {
        report.doubtful("configuration", format!("{key} has no effect in this version"), "remove it");
    }
    if let Err(error) = telemetry::filter(&config.logging) {
        report.wrong("configuration", error, "write a level, as in `info`, or `info,actors=debug`");
    }
    let federates = config.federation.enabled.unwrap_or(config.tls.is_some());
    if federates && config.server_name.host() == "localhost" && !config.federation.allow_private_addresses {
        report.doubtful(
            "configuration",
            "other servers cannot find a server that is called localhost",
            "set server_name before the first start: it cannot be changed later",
        );
    }
}

/// The time, in seconds since the epoch.
fn now_s() -> i64 {
    use actors::env::Clock;
    i64::try_from(crate::serve::SystemClock.now_ms() / 1000).unwrap_or(i64::MAX)
}
