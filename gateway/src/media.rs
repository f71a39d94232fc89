//! `ganglion media …`: media from the command line, whether the server runs or not.

use std::str::FromStr;

use actors::media::{MediaError, Removed};
use ruma::{OwnedMxcUri, OwnedServerName};
use serde::{Deserialize, Serialize};
use storage::schema::MediaRecord;

use crate::{app::App, config::Span, control::Answer, users};

/// What to do with media.
#[derive(Clone, Debug, PartialEq, Eq, clap::Subcommand, Serialize, Deserialize)]
pub enum MediaCommand {
    /// List what a user has uploaded: URI, bytes, type and name.
    List {
        /// The user's name or ID.
        user: String,
    },
    /// Remove media of this server, or copies of other servers' media, for good.
    Delete {
        /// Their URIs, as `mxc://example.org/abc`.
        #[arg(required = true)]
        uris: Vec<Uri>,
    },
    /// Remove everything that a user has uploaded, for good.
    DeleteOf {
        /// The user's name or ID.
        user: String,
    },
    /// Serve the bytes of media to nobody any more, whatever URI names them; they stay on the disk.
    Quarantine {
        /// Their URIs, as `mxc://example.org/abc`.
        #[arg(required = true)]
        uris: Vec<Uri>,
    },
    /// Serve media again.
    Unquarantine {
        /// Their URIs, as `mxc://example.org/abc`.
        #[arg(required = true)]
        uris: Vec<Uri>,
    },
    /// Remove copies of other servers' media; they are fetched again when someone wants them.
    PurgeRemote {
        /// Those that nobody asked for during this time, as in "30 d"; it is known to the day.
        #[arg(long, value_parser = age_ms)]
        older_than: u64,
    },
}

/// The URI of media.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uri {
    server_name: OwnedServerName,
    media_id: String,
}

impl FromStr for Uri {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri = OwnedMxcUri::from(text);
        let (server_name, media_id) =
            uri.parts().map_err(|error| format!("it is not like mxc://example.org/abc: {error}"))?;
        Ok(Self { server_name: server_name.to_owned(), media_id: media_id.to_owned() })
    }
}

fn age_ms(text: &str) -> Result<u64, String> {
    let age = Span::parse(text).ok_or_else(|| format!("{text:?} is not a time like \"30 d\""))?;
    Ok(u64::try_from(age.0.as_millis()).unwrap_or(u64::MAX))
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error("{0:?} is not the name of a user of this server")]
    InvalidName(String),
    #[error(transparent)]
    Media(#[from] MediaError),
}

/// Carries out a command on this server.
pub(crate) async fn execute(app: &App, command: MediaCommand) -> Answer {
    match attempt(app, command).await {
        Ok(lines) => Answer::Done(lines),
        Err(error) => Answer::Failed(error.to_string()),
    }
}

async fn attempt(app: &App, command: MediaCommand) -> Result<Vec<String>, CommandError> {
    let media = app.homeserver().media();
    let user = |name: String| users::local_user(app, &name).ok_or(CommandError::InvalidName(name));
    let own = app.homeserver().server_name();
    let mut lines = Vec::new();
    match command {
        MediaCommand::List { user: name } => {
            let uploaded = media.uploaded_by(&user(name)?).await?;
            lines.extend(uploaded.iter().map(|(media_id, record)| line(own.as_str(), media_id, record)));
        }
        MediaCommand::Delete { uris } => {
            for Uri { server_name, media_id } in uris {
                let removed = media.remove(&server_name, &media_id).await?;
                lines.push(outcome("removed", removed.as_ref(), &server_name, &media_id));
            }
        }
        MediaCommand::DeleteOf { user: name } => {
            let mut removed = Removed::default();
            for (media_id, _) in media.uploaded_by(&user(name)?).await? {
                if let Some(record) = media.remove(own, &media_id).await? {
                    removed.files += 1;
                    removed.bytes += record.content.map_or(0, |content| content.size);
                }
            }
            lines.push(count(removed));
        }
        MediaCommand::Quarantine { uris } => {
            for Uri { server_name, media_id } in uris {
                let found = media.set_quarantine(&server_name, &media_id, true).await?;
                lines.push(outcome("in quarantine:", found.as_ref(), &server_name, &media_id));
            }
        }
        MediaCommand::Unquarantine { uris } => {
            for Uri { server_name, media_id } in uris {
                let found = media.set_quarantine(&server_name, &media_id, false).await?;
                lines.push(outcome("served again:", found.as_ref(), &server_name, &media_id));
            }
        }
        MediaCommand::PurgeRemote { older_than } => {
            let before_ms = app.homeserver().env().clock.now_ms().saturating_sub(older_than);
            lines.push(count(media.purge_remote(before_ms).await?));
        }
    }
    Ok(lines)
}

fn line(server_name: &str, media_id: &str, record: &MediaRecord) -> String {
    let uri = format!("mxc://{server_name}/{media_id}");
    let Some(content) = record.content else { return format!("{uri} waits for its content") };
    // Both come from strangers, and go to a terminal.
    let shown = |text: &Option<String>| text.as_deref().unwrap_or("-").escape_debug().to_string();
    let (content_type, filename) = (shown(&record.content_type), shown(&record.filename));
    format!("{uri} {} bytes {content_type} {filename}", content.size)
}

fn outcome(
    done: &str,
    record: Option<&MediaRecord>,
    server_name: &OwnedServerName,
    media_id: &str,
) -> String {
    match record {
        Some(_) => format!("{done} mxc://{server_name}/{media_id}"),
        None => format!("not here: mxc://{server_name}/{media_id}"),
    }
}

fn count(removed: Removed) -> String {
    format!("removed {} files, {} bytes", removed.files, removed.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_and_times_are_read_as_they_are_written() {
        let uri: Uri = "mxc://example.org:8448/abc".parse().unwrap();
        assert_eq!((uri.server_name.as_str(), uri.media_id.as_str()), ("example.org:8448", "abc"));
        for wrong in ["mxc://example.org", "https://example.org/abc", "mxc://not a name/abc", "abc"] {
            assert!(wrong.parse::<Uri>().is_err(), "{wrong}");
        }
        assert_eq!(age_ms("2 d"), Ok(2 * 86_400_000));
        assert!(age_ms("soon").is_err());
    }
}
