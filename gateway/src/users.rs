//! `ganglion user …`: accounts from the command line, whether the server runs or not.

use std::io::{BufRead, IsTerminal, Write};

use actors::session::{AccountRecord, LogOut, NewAccount, Restriction, SessionChange, SessionError};
use anyhow::{Context, ensure};
use ruma::{OwnedUserId, UserId};
use serde::{Deserialize, Serialize};
use storage::schema::ReportRecord;

use crate::{
    app::App,
    control::{self, Answer, Request},
    password::PasswordError,
    serve,
};

/// What to do with an account.
#[derive(Clone, Debug, PartialEq, Eq, clap::Subcommand, Serialize, Deserialize)]
pub enum UserCommand {
    /// Make an account; its password is the first line of standard input.
    Create {
        /// The user's name or ID.
        name: String,
        /// Whether it may use the admin API.
        #[arg(long)]
        admin: bool,
    },
    /// Set a password, the first line of standard input, and log out all devices.
    SetPassword {
        /// The user's name or ID.
        name: String,
        /// Leave the devices logged in.
        #[arg(long)]
        keep_devices: bool,
    },
    /// Deactivate an account for good.
    Deactivate {
        /// The user's name or ID.
        name: String,
        /// Note that the user asked for erasure.
        #[arg(long)]
        erase: bool,
    },
    /// Lock an account: its devices stay logged in, but nothing can be done with them.
    Lock {
        /// The user's name or ID.
        name: String,
    },
    /// Unlock an account.
    Unlock {
        /// The user's name or ID.
        name: String,
    },
    /// Suspend an account: it can read, but hardly do anything that others notice.
    Suspend {
        /// The user's name or ID.
        name: String,
    },
    /// Lift the suspension of an account.
    Unsuspend {
        /// The user's name or ID.
        name: String,
    },
    /// List all accounts.
    List,
    /// List what users reported; the same as `ganglion reports`.
    Reports,
}

/// A command with the password that it needs, if it needs one.
#[derive(Clone, Serialize, Deserialize)]
pub struct UserRequest {
    /// What to do.
    pub command: UserCommand,
    /// The password to set.
    pub password: Option<String>,
}

/// Carries out a command: through the running server, or on the store if none runs.
pub async fn run(options: serve::Options, command: UserCommand) -> anyhow::Result<()> {
    let needs_password = matches!(command, UserCommand::Create { .. } | UserCommand::SetPassword { .. });
    let makes_user = matches!(command, UserCommand::Create { .. });
    let password = if needs_password { Some(read_password()?) } else { None };
    control::run(options, Request::User(UserRequest { command, password }), makes_user).await
}

fn read_password() -> anyhow::Result<String> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        write!(std::io::stderr(), "Password (shown as you type): ").context("cannot ask for a password")?;
    }
    let mut line = String::new();
    stdin.lock().read_line(&mut line).context("cannot read the password")?;
    let password = line.trim_end_matches(['\r', '\n']);
    ensure!(!password.is_empty(), "the password, the first line of standard input, is empty");
    Ok(password.to_owned())
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
enum UserError {
    #[error("{0:?} is not the name of a user of this server")]
    InvalidName(String),
    #[error("the password is missing")]
    NoPassword,
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Password(#[from] PasswordError),
}

/// Carries out a command on this server.
pub async fn execute(app: &App, request: UserRequest) -> Answer {
    match attempt(app, request).await {
        Ok(lines) => Answer::Done(lines),
        Err(error) => Answer::Failed(error.to_string()),
    }
}

async fn attempt(app: &App, request: UserRequest) -> Result<Vec<String>, UserError> {
    let UserRequest { command, password } = request;
    match command {
        UserCommand::Create { name, admin } => {
            let user_id = user(app, &name)?;
            app.homeserver().check_free(&user_id).await?;
            let password_hash = Some(hash(app, password).await?);
            let new =
                NewAccount { user_id: user_id.clone(), password_hash, is_guest: false, is_admin: admin };
            app.homeserver().register(new).await?;
            Ok(vec![format!("created {user_id}")])
        }
        UserCommand::SetPassword { name, keep_devices } => {
            let user_id = user(app, &name)?;
            let session = app.homeserver().session(&user_id).await?;
            let log_out = if keep_devices { LogOut::Nobody } else { LogOut::Others(None) };
            session.set_password(hash(app, password).await?, log_out).await?;
            Ok(vec![format!("set the password of {user_id}")])
        }
        UserCommand::Deactivate { name, erase } => {
            let user_id = user(app, &name)?;
            app.homeserver().deactivate(&user_id, erase).await?;
            Ok(vec![format!("deactivated {user_id}")])
        }
        UserCommand::Lock { name } => restrict(app, &name, (Restriction::Lock, true), "locked").await,
        UserCommand::Unlock { name } => restrict(app, &name, (Restriction::Lock, false), "unlocked").await,
        UserCommand::Suspend { name } => {
            restrict(app, &name, (Restriction::Suspension, true), "suspended").await
        }
        UserCommand::Unsuspend { name } => {
            restrict(app, &name, (Restriction::Suspension, false), "lifted the suspension of").await
        }
        UserCommand::List => list(app).await,
        UserCommand::Reports => reports(app).await,
    }
}

/// A line for each report: when, who, what, why.
async fn reports(app: &App) -> Result<Vec<String>, UserError> {
    let reports = app.homeserver().reports().await.map_err(SessionError::Store)?;
    let line = |(reporter, report): (OwnedUserId, ReportRecord)| {
        let ids = [
            report.room_id.map(|id| id.to_string()),
            report.event_id.map(|id| id.to_string()),
            report.user_id.map(|id| id.to_string()),
        ];
        let what: Vec<_> = ids.into_iter().flatten().collect();
        // A reason may hold anything: it stays on its line.
        format!("{} {reporter} reports {}: {:?}", report.reported.get(), what.join(" "), report.reason)
    };
    Ok(reports.into_iter().map(line).collect())
}

async fn restrict(
    app: &App,
    name: &str,
    (restriction, is_on): (Restriction, bool),
    done: &str,
) -> Result<Vec<String>, UserError> {
    let user_id = user(app, name)?;
    let session = app.homeserver().session(&user_id).await?;
    session.change(SessionChange::Restrict(restriction, is_on)).await?;
    Ok(vec![format!("{done} {user_id}")])
}

/// Accounts that are read at a time.
const PAGE: usize = 1000;

async fn list(app: &App) -> Result<Vec<String>, UserError> {
    let mut lines = Vec::new();
    let mut after: Option<OwnedUserId> = None;
    loop {
        let page = app.homeserver().accounts(after.as_deref(), PAGE).await?;
        lines.extend(page.iter().map(|(user_id, account)| line(user_id, account)));
        match page.into_iter().nth(PAGE - 1) {
            Some((last, _)) => after = Some(last),
            None => return Ok(lines),
        }
    }
}

fn line(user_id: &UserId, account: &AccountRecord) -> String {
    let marks = [
        (account.is_admin, " (admin)"),
        (account.is_guest, " (guest)"),
        (account.is_deactivated, " (deactivated)"),
        (account.is_locked, " (locked)"),
        (account.is_suspended, " (suspended)"),
    ];
    let marks = marks.into_iter().filter(|(is_so, _)| *is_so).map(|(_, mark)| mark);
    std::iter::once(user_id.as_str()).chain(marks).collect()
}

fn user(app: &App, name: &str) -> Result<OwnedUserId, UserError> {
    local_user(app, name).ok_or_else(|| UserError::InvalidName(name.to_owned()))
}

/// The user of this server whom a name or ID means.
pub(crate) fn local_user(app: &App, name: &str) -> Option<OwnedUserId> {
    let server_name = app.homeserver().server_name();
    let user_id = if name.starts_with('@') {
        UserId::parse(name)
    } else {
        UserId::parse_with_server_name(name, server_name)
    };
    user_id.ok().filter(|user_id| user_id.server_name() == server_name)
}

async fn hash(app: &App, password: Option<String>) -> Result<String, UserError> {
    let password = password.filter(|password| !password.is_empty()).ok_or(UserError::NoPassword)?;
    Ok(app.passwords().hash(password).await?)
}
