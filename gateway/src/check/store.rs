//! The store of a stopped server.

use storage::{OpenError, verify};

use super::Report;
use crate::{
    config::Config,
    serve::{self, Options},
};

/// Unreadable rows that are named.
const NAMED_MAX: usize = 5;

/// Opens the store and reads every row of it.
pub(super) async fn check(report: &mut Report, config: &Config) {
    let options = Options::new(config);
    if options.store == serve::StoreKind::Memory {
        report.doubtful("store", "it is in memory: nothing survives the process", "set storage.backend");
        return;
    }
    if !options.data_dir.join("store").exists() {
        report.fine("store", "there is none yet; the first start makes it");
        return;
    }
    let store = match serve::open_store(&options).await {
        Ok(store) => store,
        Err(error) => {
            report.wrong("store", format!("{error:#}"), advice(error.downcast_ref()));
            return;
        }
    };
    match verify::verify(store.as_ref()).await {
        Ok(verified) if verified.unreadable.is_empty() => report.fine(
            "store",
            format!("schema version {}, {} rows, all readable", verified.schema_version, verified.rows),
        ),
        Ok(verified) => {
            let count = verified.unreadable.len();
            for what in verified.unreadable.iter().take(NAMED_MAX) {
                report.wrong("store", what, "");
            }
            let what = format!("{count} of {} rows cannot be read", verified.rows);
            report.wrong("store", what, "restore the store from a backup");
        }
        Err(error) => report.wrong("store", error.to_string(), advice(Some(&error))),
    }
    if let Err(error) = store.close().await {
        report.wrong("store", format!("it does not close: {error}"), "look at the disk's health");
    }
}

fn advice(error: Option<&OpenError>) -> &'static str {
    match error {
        Some(OpenError::Locked { .. }) => "stop the process that has it open",
        Some(OpenError::OtherBackend { .. }) => "set storage.backend to what the store was made with",
        Some(OpenError::Newer { .. }) => "use the build that wrote it, or a newer one",
        Some(OpenError::TooOld { .. }) => "start a build between the two first, which migrates it",
        Some(OpenError::Damaged { .. }) => "restore the store from a backup",
        Some(OpenError::Folder { .. }) => "make the server's user the owner of the data directory",
        Some(OpenError::Store(_)) | None => "look at the disk's health and free space",
    }
}
