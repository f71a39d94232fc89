//! The same load against servers that differ in one setting.

use std::{path::Path, str::FromStr};

use anyhow::{Context, Result};

use crate::{
    Accounts, Profile, Progress,
    launch::Launched,
    report::Report,
    run::{Settings, run},
};

/// A setting and the values to try, as in `room_memory=32MiB,128MiB`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sweep {
    /// The setting; without a section it is one of `[actors]`.
    pub key: String,
    /// Its values.
    pub values: Vec<String>,
}

impl FromStr for Sweep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, values) = text.split_once('=').ok_or("a sweep is KEY=VALUE,VALUE,…")?;
        let values: Vec<_> = values.split(',').map(|value| value.trim().to_owned()).collect();
        if key.is_empty() || values.iter().any(String::is_empty) {
            return Err("a sweep is KEY=VALUE,VALUE,…".to_owned());
        }
        Ok(Self { key: key.to_owned(), values })
    }
}

impl Sweep {
    /// Runs the profile against a new server for each value.
    pub async fn run(
        &self,
        binary: &Path,
        fixed: &[(String, String)],
        profile: &Profile,
        settings: &Settings,
        progress: &Progress,
    ) -> Result<Vec<(String, Report)>> {
        let mut reports = Vec::new();
        for value in &self.values {
            let mut all = fixed.to_vec();
            all.push((self.key.clone(), value.clone()));
            let server = Launched::start(binary, &all, None).await?;
            let accounts =
                Accounts { base: server.url.clone(), shared_secret: None, run: "sweep".to_owned() };
            let settings = Settings { server_pid: Some(server.pid()), ..settings.clone() };
            let report = run(profile, accounts, &settings, progress).await;
            let mut report = report.with_context(|| format!("with {} = {value}", self.key))?;
            report.parameters.insert(self.key.clone(), value.clone());
            reports.push((value.clone(), report));
            server.stop().await?;
        }
        Ok(reports)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_names_a_key_and_its_values() {
        let sweep = Sweep { key: "room_memory".to_owned(), values: vec!["1MiB".into(), "2 MiB".into()] };
        assert_eq!("room_memory=1MiB, 2 MiB".parse(), Ok(sweep));
        for wrong in ["room_memory", "=1", "a=", "a=1,,2"] {
            assert!(wrong.parse::<Sweep>().is_err(), "{wrong}");
        }
    }
}
