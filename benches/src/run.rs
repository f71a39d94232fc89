//! One run of a profile: the load, the watch on the server's process, the report.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use serde_json::Value;

use crate::{
    Accounts, Pace, Profile, Progress,
    process::Watch,
    profile::Context,
    report::{Report, Row},
};

/// How a profile is run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Requests per second of all senders together; as fast as the server answers without.
    pub rate: Option<f64>,
    /// How long to put load on the server.
    pub length: Duration,
    /// The second homeserver.
    pub other: Option<Accounts>,
    /// The server's process.
    pub server_pid: Option<u32>,
}

/// Runs a profile against a homeserver.
pub async fn run(
    profile: &Profile,
    accounts: Accounts,
    settings: &Settings,
    progress: &Progress,
) -> Result<Report> {
    let context = Context {
        accounts,
        other: settings.other.clone(),
        pace: settings.rate.map_or(Pace::Closed, Pace::Open),
        length: settings.length,
        progress: progress.clone(),
    };
    let mut watch = None;
    // Users and rooms are made before: only the load itself is watched.
    let mut ready = || watch = settings.server_pid.map(Watch::start);
    let measured = profile.run(&context, &mut ready).await?;
    let usage = match watch {
        Some(watch) => watch.stop().await,
        None => Vec::new(),
    };
    Ok(Report {
        profile: profile.name().to_owned(),
        parameters: parameters(profile, settings)?,
        rows: measured.iter().map(Row::new).collect(),
        usage,
    })
}

fn parameters(profile: &Profile, settings: &Settings) -> Result<BTreeMap<String, String>> {
    let mut parameters = BTreeMap::new();
    if let Value::Object(variant) = serde_json::to_value(profile)? {
        let sizes = variant.into_iter().filter_map(|(_, sizes)| sizes.as_object().cloned()).flatten();
        parameters.extend(sizes.map(|(key, value)| (key, value.to_string())));
    }
    parameters.insert("seconds".to_owned(), settings.length.as_secs_f64().to_string());
    if let Some(rate) = settings.rate {
        parameters.insert("rate".to_owned(), rate.to_string());
    }
    Ok(parameters)
}
