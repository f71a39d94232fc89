//! Putting the configuration together: the file, the environment over it, flags over both.

use std::path::{Path, PathBuf};

use ruma::{MxcUri, ServerName};
use toml::{Table, Value};

use super::{
    Config, RTC_FOCI, Tls,
    keys::{self, FREE, KEYS},
};

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{} is not TOML: {source}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A key does not exist.
    #[error("unknown key `{key}` in {origin}; did you mean `{nearest}`?")]
    UnknownKey {
        /// The key.
        key: String,
        /// Where it stands.
        origin: String,
        /// The known key that is spelled most like it.
        nearest: &'static str,
    },
    /// A value has the wrong shape.
    #[error("a value has the wrong shape: {0}")]
    Value(String),
    /// Something is asked for that is not to be had.
    #[error("{0}")]
    Unusable(String),
}

/// What the command line sets.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--server-name`
    pub server_name: Option<String>,
    /// `--listen`
    pub listen: Option<String>,
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
}

/// What an environment variable of ours begins with.
const PREFIX: &str = "GANGLION__";

impl Config {
    /// Puts the configuration together.
    pub fn load(
        flags: &Flags,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut table = match &flags.config {
            Some(path) => read(path)?,
            None => Table::new(),
        };
        for (name, value) in environment {
            if let Some(key) = name.strip_prefix(PREFIX) {
                let key = key.to_lowercase().replace("__", ".");
                check_key(&key, &format!("the environment, as {name}"))?;
                set(&mut table, &key, literal(&value));
            }
        }
        if let Some(server_name) = &flags.server_name {
            set(&mut table, "server_name", server_name.as_str().into());
        }
        if let Some(listen) = &flags.listen {
            set(&mut table, "listen.client", Value::Array(vec![listen.as_str().into()]));
        }
        if let Some(data_dir) = &flags.data_dir {
            set(&mut table, "data_dir", data_dir.to_string_lossy().into_owned().into());
        }
        let config: Self = table
            .try_into()
            .map_err(|error: toml::de::Error| ConfigError::Value(error.message().to_owned()))?;
        config.check().map_err(ConfigError::Unusable)?;
        Ok(config)
    }

    /// Refuses what would be left undone without anybody noticing.
    fn check(&self) -> Result<(), String> {
        if self.actors.backlog_max == 0 {
            return Err("actors.backlog_max is 0: the server would refuse whatever it is asked".to_owned());
        }
        if self.retention.interval.0.is_zero() {
            return Err(
                "retention.interval is 0: set retention.enabled to false to keep all messages".to_owned()
            );
        }
        self.matrix_rtc.check()?;
        self.check_client_extra()?;
        let avatar = self.server_notices.avatar_url.as_deref().unwrap_or_default();
        let is_media = <&MxcUri>::from(avatar).media_id().is_ok_and(|media_id| !media_id.is_empty());
        if !avatar.is_empty() && !is_media {
            return Err("server_notices.avatar_url has to be an mxc:// URI".to_owned());
        }
        self.tls.as_ref().map_or(Ok(()), |tls| self.check_tls(tls))
    }

    /// Refuses what clients would not find where they look for it.
    fn check_client_extra(&self) -> Result<(), String> {
        let extra = &self.well_known.client_extra;
        let refuse = |name: &str, why: &str| Err(format!("well_known.client_extra: `{name}` {why}"));
        if let Some(name) = extra.keys().find(|name| !name.contains('.')) {
            return refuse(name, "is no name of a setting; names with dots in them are quoted");
        }
        if extra.contains_key("m.homeserver") {
            return refuse("m.homeserver", "comes from well_known.client_base_url");
        }
        if extra.contains_key(RTC_FOCI) && !self.matrix_rtc.transports.is_empty() {
            return refuse(RTC_FOCI, "comes from matrix_rtc.transports");
        }
        Ok(())
    }

    fn check_tls(&self, tls: &Tls) -> Result<(), String> {
        let Some(acme) = &tls.acme else {
            let lacks = match (&tls.certificate, &tls.private_key) {
                (Some(_), None) => "private_key",
                (None, Some(_)) => "certificate",
                _ => return Ok(()),
            };
            return Err(format!("tls.{lacks} is not set: a certificate and its private key go together"));
        };
        if tls.certificate.is_some() || tls.private_key.is_some() {
            return Err("tls.acme and tls.certificate exclude each other: remove one of them".to_owned());
        }
        let is_name = |domain: &String| {
            ServerName::parse(domain).is_ok_and(|name| name.host() == *domain && !name.is_ip_literal())
        };
        if let Some(other) = acme.domains.iter().find(|domain| !is_name(domain)) {
            return Err(format!("tls.acme.domains: `{other}` is no domain name"));
        }
        let own = &self.server_name;
        if acme.domains.is_empty() && (own.is_ip_literal() || own.host() == "localhost") {
            return Err(format!("tls.acme.domains is not set, and {} gets no certificate", own.host()));
        }
        Ok(())
    }
}

/// Reads a file; relative paths in it are relative to it.
fn read(path: &Path) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let mut table: Table = text
        .parse()
        .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source: Box::new(source) })?;
    check_table(&table, "", &path.display().to_string())?;
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    for key in [
        "data_dir",
        "tls.certificate",
        "tls.private_key",
        "tls.acme.directory_ca",
        "federation.extra_ca",
        "appservices.registrations",
    ] {
        if let Some(value) = find(&mut table, key) {
            rebase(value, folder);
        }
    }
    Ok(table)
}

fn check_table(table: &Table, prefix: &str, origin: &str) -> Result<(), ConfigError> {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(_) if FREE.contains(&key.as_str()) => {}
            Value::Table(inner) if !inner.is_empty() => {
                check_table(inner, &key, origin)?;
            }
            Value::Table(_) if KEYS.iter().any(|known| known.starts_with(&format!("{key}."))) => {}
            _ => check_key(&key, origin)?,
        }
    }
    Ok(())
}

fn check_key(key: &str, origin: &str) -> Result<(), ConfigError> {
    if KEYS.contains(&key) {
        return Ok(());
    }
    let nearest = keys::nearest(key);
    Err(ConfigError::UnknownKey { key: key.to_owned(), origin: origin.to_owned(), nearest })
}

fn find<'a>(table: &'a mut Table, key: &str) -> Option<&'a mut Value> {
    match key.split_once('.') {
        None => table.get_mut(key),
        Some((section, rest)) => find(table.get_mut(section)?.as_table_mut()?, rest),
    }
}

fn set(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => drop(table.insert(key.to_owned(), value)),
        Some((section, rest)) => {
            let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                set(inner, rest, value);
            }
        }
    }
}

fn rebase(value: &mut Value, folder: &Path) {
    match value {
        Value::String(path) => *path = folder.join(&*path).to_string_lossy().into_owned(),
        Value::Array(paths) => paths.iter_mut().for_each(|path| rebase(path, folder)),
        _ => {}
    }
}

/// The value of an environment variable: TOML if it is TOML, else text.
fn literal(text: &str) -> Value {
    let parsed = format!("value = {text}").parse::<Table>().ok();
    parsed.and_then(|mut table| table.remove("value")).unwrap_or_else(|| text.into())
}
