//! The back ends, and how one is opened.

use std::{
    error::Error,
    io::{self, ErrorKind},
    path::PathBuf,
    sync::Arc,
};

use crate::store::{Store, StoreError};

mod convert;
mod disk;
mod embedded;
mod fjall;
mod home;
mod journal;
mod memory;
mod prefixed;
mod recent;
mod sled;

pub use memory::MemoryStore;

use embedded::{Embedded, Engine};

/// Names of the back ends with files, which are also the names of their folders.
const EMBEDDED: [&str; 2] = [sled::Sled::NAME, fjall::Fjall::NAME];

/// What an engine's error at opening means: files that are not there, end early or hold something else are damage; a disk or a
/// system that refuses is not.
fn not_opened(
    backend: &'static str,
    error: impl Error + Send + Sync + 'static,
    io: Option<ErrorKind>,
) -> OpenError {
    use ErrorKind::{AlreadyExists, InvalidData, InvalidInput, NotFound, UnexpectedEof};
    match io {
        None | Some(AlreadyExists | InvalidData | InvalidInput | NotFound | UnexpectedEof) => {
            OpenError::Damaged { detail: format!("{backend} cannot read its files: {error}") }
        }
        Some(_) => StoreError::backend(backend, error).into(),
    }
}

/// Where rows are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// sled, in a folder.
    Sled(Files),
    /// fjall, in a folder.
    Fjall(Files),
    /// In memory; gone with the process.
    Memory,
}

/// The files of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Folder of the store; created if it is not there.
    pub path: PathBuf,
    /// Bytes the back end may use for its page cache.
    pub cache_bytes: u64,
}

impl Backend {
    /// Opens the store; [`crate::Storage::open`] then checks its schema.
    pub async fn open(self) -> Result<Arc<dyn Store>, OpenError> {
        Ok(match self {
            Self::Sled(files) => Arc::new(Embedded::<sled::Sled>::open(files.path, files.cache_bytes).await?),
            Self::Fjall(files) => {
                Arc::new(Embedded::<fjall::Fjall>::open(files.path, files.cache_bytes).await?)
            }
            Self::Memory => Arc::new(MemoryStore::new()),
        })
    }
}

/// A store was not opened; its files are as they were, unless a migration had begun.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another handle in this one, has the store open.
    #[error("the store in {} is in use by another process; stop that first", path.display())]
    Locked {
        /// The store's folder.
        path: PathBuf,
    },
    /// The folder holds a store of another back end.
    #[error(
        "{} holds a {found} store, the configuration says {wanted}; change the configuration, or the store with `ganglion convert`",
        path.display()
    )]
    OtherBackend {
        /// The store's folder.
        path: PathBuf,
        /// Back end that made it.
        found: &'static str,
        /// Back end asked for.
        wanted: &'static str,
    },
    /// A newer build has written the store.
    #[error(
        "the store has schema version {found}, this build knows versions up to {supported}; use a newer build"
    )]
    Newer {
        /// Version in the store.
        found: u64,
        /// Version of this build.
        supported: u64,
    },
    /// No migration leads from the store's version to this build's.
    #[error("the store has schema version {found}, and no migration leads to version {supported}")]
    TooOld {
        /// Version in the store.
        found: u64,
        /// Version of this build.
        supported: u64,
    },
    /// The store contradicts itself or lost what it had acknowledged. Nothing was repaired or reset.
    #[error("the store is damaged: {detail}; restore it from a backup")]
    Damaged {
        /// What is wrong.
        detail: String,
    },
    /// The folder cannot be used.
    #[error("cannot use {}", path.display())]
    Folder {
        /// The store's folder, or a file in it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The back end refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests;
