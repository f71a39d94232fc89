//! The registration files of application services.
//!
//! They come from the services, most of which write further keys of their own: those are passed over. Whatever is
//! wrong is told with the file and the key.
//!
//! Spec: application service API, "Registration".

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use actors::appservice::{Namespace, Pattern, Service, local_user};
use ruma::{OwnedUserId, ServerName};
use serde_json::{Map, Value};
use url::Url;

/// Why a registration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistrationError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not YAML.
    #[error("{} is not a YAML object: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// A key is missing, or is not what it has to be.
    #[error("{}: `{key}` {problem}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key, as in `namespaces.users[0].regex`.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Reads the registrations of all services of a server.
pub fn load(paths: &[PathBuf], server_name: &ServerName) -> Result<Vec<Service>, RegistrationError> {
    let mut services: Vec<Service> = Vec::new();
    for (at, path) in paths.iter().enumerate() {
        let service = read(path, server_name)?;
        for (known, other) in services.iter().zip(&paths[..at]) {
            let same = [
                ("id", known.id == service.id),
                ("as_token", known.as_token == service.as_token),
                ("sender_localpart", known.sender == service.sender),
            ];
            if let Some((key, _)) = same.into_iter().find(|(_, is_same)| *is_same) {
                let problem = format!("is the same as in {}", other.display());
                return Err(RegistrationError::Key { path: path.clone(), key: key.to_owned(), problem });
            }
        }
        services.push(service);
    }
    Ok(services)
}

fn read(path: &Path, server_name: &ServerName) -> Result<Service, RegistrationError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| RegistrationError::Read { path: path.to_owned(), source })?;
    let keys: BTreeMap<String, Value> = serde_saphyr::from_str(&text)
        .map_err(|error| RegistrationError::Syntax { path: path.to_owned(), message: error.to_string() })?;
    parse(&keys.into_iter().collect(), server_name).map_err(|Wrong { key, problem }| RegistrationError::Key {
        path: path.to_owned(),
        key,
        problem,
    })
}

/// A key that is not what it has to be.
#[derive(Debug)]
struct Wrong {
    key: String,
    problem: String,
}

impl Wrong {
    fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { key: key.into(), problem: problem.into() }
    }
}

fn parse(keys: &Map<String, Value>, server_name: &ServerName) -> Result<Service, Wrong> {
    let namespaces = match keys.get("namespaces") {
        Some(Value::Object(namespaces)) => namespaces.clone(),
        Some(Value::Null) => Map::new(),
        Some(_) => return Err(Wrong::new("namespaces", "is not an object")),
        None => return Err(Wrong::new("namespaces", "is missing")),
    };
    Ok(Service {
        id: text(keys, "id")?,
        url: url(keys)?,
        as_token: text(keys, "as_token")?,
        hs_token: text(keys, "hs_token")?,
        sender: sender(keys, server_name)?,
        users: namespace(&namespaces, "users")?,
        aliases: namespace(&namespaces, "aliases")?,
        rooms: namespace(&namespaces, "rooms")?,
        is_rate_limited: flag(keys, "rate_limited")?.unwrap_or(true),
        protocols: protocols(keys)?,
        receives_ephemeral: receives_ephemeral(keys)?,
    })
}

fn text(keys: &Map<String, Value>, key: &str) -> Result<String, Wrong> {
    match keys.get(key) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
        Some(Value::String(_)) => Err(Wrong::new(key, "is empty")),
        Some(_) => Err(Wrong::new(key, "is not text; put it into quotation marks")),
        None => Err(Wrong::new(key, "is missing")),
    }
}

fn flag(keys: &Map<String, Value>, key: &str) -> Result<Option<bool>, Wrong> {
    match keys.get(key) {
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        None | Some(Value::Null) => Ok(None),
        Some(_) => Err(Wrong::new(key, "is neither true nor false")),
    }
}

/// Also under the name that it had before it was accepted, which most services still write.
fn receives_ephemeral(keys: &Map<String, Value>) -> Result<bool, Wrong> {
    let mut wanted = false;
    for key in ["receive_ephemeral", "de.sorunome.msc2409.push_ephemeral", "push_ephemeral"] {
        wanted |= flag(keys, key)?.unwrap_or_default();
    }
    Ok(wanted)
}

fn url(keys: &Map<String, Value>) -> Result<Option<String>, Wrong> {
    let text = match keys.get("url") {
        Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) if text.is_empty() => return Ok(None),
        Some(Value::String(text)) => text,
        Some(_) => return Err(Wrong::new("url", "is not text")),
        None => {
            return Err(Wrong::new("url", "is missing; `url: null` is for a service that takes no requests"));
        }
    };
    let is_usable = Url::parse(text).is_ok_and(|url| {
        ["http", "https"].contains(&url.scheme()) && url.host().is_some() && url.query().is_none()
    });
    if is_usable {
        Ok(Some(text.trim_end_matches('/').to_owned()))
    } else {
        Err(Wrong::new("url", format!("is `{text}`, which is no URL that begins with http:// or https://")))
    }
}

fn sender(keys: &Map<String, Value>, server_name: &ServerName) -> Result<OwnedUserId, Wrong> {
    let key = "sender_localpart";
    let localpart = text(keys, key)?;
    let is_allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._=-/+".contains(&byte);
    let user = local_user(&localpart, server_name).filter(|_| localpart.bytes().all(is_allowed));
    user.ok_or_else(|| {
        Wrong::new(
            key,
            format!("is `{localpart}`; the localpart of a user ID has only a-z, 0-9 and . _ = - / +"),
        )
    })
}

fn protocols(keys: &Map<String, Value>) -> Result<Vec<String>, Wrong> {
    let wrong = || Wrong::new("protocols", "is not a list of texts");
    match keys.get("protocols") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(protocols)) => {
            let text = |protocol: &Value| protocol.as_str().map(ToOwned::to_owned).ok_or_else(wrong);
            protocols.iter().map(text).collect()
        }
        Some(_) => Err(wrong()),
    }
}

fn namespace(namespaces: &Map<String, Value>, name: &str) -> Result<Namespace, Wrong> {
    let key = format!("namespaces.{name}");
    match namespaces.get(name) {
        None | Some(Value::Null) => Ok(Namespace::default()),
        Some(Value::Array(patterns)) => {
            let pattern = |(at, value)| pattern(value, &format!("{key}[{at}]"));
            Ok(Namespace(patterns.iter().enumerate().map(pattern).collect::<Result<_, _>>()?))
        }
        Some(_) => Err(Wrong::new(key, "is not a list")),
    }
}

fn pattern(value: &Value, key: &str) -> Result<Pattern, Wrong> {
    let Some(fields) = value.as_object() else { return Err(Wrong::new(key, "is not an object")) };
    let regex_key = format!("{key}.regex");
    let regex = text(fields, "regex").map_err(|wrong| Wrong::new(&regex_key, wrong.problem))?;
    let exclusive_key = format!("{key}.exclusive");
    let is_exclusive =
        flag(fields, "exclusive").map_err(|wrong| Wrong::new(&exclusive_key, wrong.problem))?;
    let is_exclusive = is_exclusive.ok_or_else(|| Wrong::new(exclusive_key, "is missing"))?;
    Pattern::new(&regex, is_exclusive)
        .map_err(|error| Wrong::new(regex_key, format!("is no regular expression: {error}")))
}

#[cfg(test)]
mod tests {
    use ruma::server_name;

    use super::*;

    const IRC: &str = r##"
id: irc
url: http://127.0.0.1:1234/
as_token: "a"
hs_token: "h"
sender_localpart: _irc_bot
rate_limited: false
de.sorunome.msc2409.push_ephemeral: true
org.matrix.msc3202: true
io.element.msc4190: true
protocols: [irc]
namespaces:
  users:
    - exclusive: true
      regex: '^@_irc_.*:a\.example$'
  aliases:
    - { exclusive: false, regex: "#_irc_.*" }
  rooms: []
"##;

    fn load_all(texts: &[&str]) -> Result<Vec<Service>, String> {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..texts.len()).map(|at| folder.path().join(format!("{at}.yaml"))).collect();
        for (path, text) in paths.iter().zip(texts) {
            std::fs::write(path, text).unwrap();
        }
        load(&paths, server_name!("a.example")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_registration_is_read() {
        let services = load_all(&[IRC]).unwrap();
        let irc = &services[0];
        assert_eq!((irc.id.as_str(), irc.url.as_deref()), ("irc", Some("http://127.0.0.1:1234")));
        assert_eq!(irc.sender, "@_irc_bot:a.example");
        assert!(irc.receives_ephemeral && !irc.is_rate_limited);
        assert_eq!(irc.protocols, ["irc"]);
        assert!(irc.users.contains("@_irc_bob:a.example") && !irc.users.contains("@bob:a.example"));
        assert!(irc.aliases.contains("#_irc_x:a.example"));
    }

    #[test]
    fn whatever_is_wrong_is_told_with_file_and_key() {
        for (from, to, expected) in [
            ("id: irc", "", "0.yaml: `id` is missing"),
            ("\"a\"", "1", "0.yaml: `as_token` is not text"),
            ("\"h\"", "\"\"", "0.yaml: `hs_token` is empty"),
            ("url: http://127.0.0.1:1234/", "", "0.yaml: `url` is missing"),
            ("http://127.0.0.1:1234/", "127.0.0.1", "0.yaml: `url` is"),
            ("_irc_bot", "IRC", "0.yaml: `sender_localpart` is"),
            ("rate_limited: false", "rate_limited: perhaps", "0.yaml: `rate_limited` is neither"),
            ("'^@_irc_.*:a\\.example$'", "'(?!x)'", "0.yaml: `namespaces.users[0].regex` is no regular"),
            (
                "    - exclusive: true\n      regex",
                "    - regex",
                "0.yaml: `namespaces.users[0].exclusive` is missing",
            ),
            ("  rooms: []", "  rooms: all", "0.yaml: `namespaces.rooms` is not a list"),
            ("[irc]", "irc", "0.yaml: `protocols` is not a list"),
            ("id: irc", "id: [", "0.yaml is not a YAML object"),
        ] {
            let text = IRC.replacen(from, to, 1);
            assert_ne!(text, IRC, "{from}");
            let error = load_all(&[&text]).unwrap_err();
            assert!(error.contains(expected), "{error} instead of {expected}");
        }
        let missing = load(&[PathBuf::from("/nowhere/irc.yaml")], server_name!("a.example")).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/irc.yaml"));
    }

    #[test]
    fn ids_and_tokens_are_each_services_own() {
        let other = IRC.replace("id: irc", "id: two").replace("_irc_bot", "two").replace("\"a\"", "\"b\"");
        assert_eq!(load_all(&[IRC, &other]).unwrap().len(), 2);
        for (from, to, key) in [
            ("id: two", "id: irc", "`id`"),
            ("\"b\"", "\"a\"", "`as_token`"),
            ("part: two", "part: _irc_bot", "`sender"),
        ] {
            let error = load_all(&[IRC, &other.replacen(from, to, 1)]).unwrap_err();
            assert!(error.contains("1.yaml") && error.contains("0.yaml") && error.contains(key), "{error}");
        }
        let silent = IRC.replacen("http://127.0.0.1:1234/", "null", 1);
        assert_eq!(load_all(&[&silent]).unwrap()[0].url, None);
    }
}
