//! `ganglion notice …`: what the server says to its users.

use actors::{notices::NoticeError, session::SessionError};
use ruma::OwnedUserId;
use serde::{Deserialize, Serialize};

use crate::{app::App, control::Answer, users};

/// What to do with notices.
#[derive(Clone, Debug, PartialEq, Eq, clap::Subcommand, Serialize, Deserialize)]
pub enum NoticeCommand {
    /// Send a notice to a user, or to all of them.
    Send {
        /// What to say.
        text: String,
        /// The user's name or ID.
        #[arg(long, required_unless_present = "all")]
        to: Option<String>,
        /// Send it to all users who can log in.
        #[arg(long, conflicts_with = "to")]
        all: bool,
    },
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0:?} is not the name of a user of this server")]
    InvalidName(String),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Notice(#[from] NoticeError),
}

/// Accounts that are read at a time.
const PAGE: usize = 1000;

/// Carries out a command on this server.
pub async fn execute(app: &App, command: NoticeCommand) -> Answer {
    let NoticeCommand::Send { text, to, .. } = command;
    let done = match to {
        Some(name) => send(app, &name, &text).await,
        None => send_to_all(app, &text).await,
    };
    match done {
        Ok(lines) => Answer::Done(lines),
        Err(error) => Answer::Failed(error.to_string()),
    }
}

async fn send(app: &App, name: &str, text: &str) -> Result<Vec<String>, Failure> {
    let user_id = users::local_user(app, name).ok_or_else(|| Failure::InvalidName(name.to_owned()))?;
    app.homeserver().send_notice(&user_id, text).await?;
    Ok(vec![format!("told {user_id}")])
}

async fn send_to_all(app: &App, text: &str) -> Result<Vec<String>, Failure> {
    let homeserver = app.homeserver();
    let sender = homeserver.notice_sender().ok_or(NoticeError::Off)?;
    let mut lines = Vec::new();
    let mut after: Option<OwnedUserId> = None;
    loop {
        let page = homeserver.accounts(after.as_deref(), PAGE).await?;
        let told = page.iter().filter(|(user_id, account)| !account.is_deactivated && *user_id != sender);
        for (user_id, _) in told {
            // One who cannot be told, because they block invites, say, must not keep the others from hearing it.
            lines.push(match homeserver.send_notice(user_id, text).await {
                Ok(_) => format!("told {user_id}"),
                Err(error) => format!("could not tell {user_id}: {error}"),
            });
        }
        match page.into_iter().nth(PAGE - 1) {
            Some((last, _)) => after = Some(last),
            None => return Ok(lines),
        }
    }
}
