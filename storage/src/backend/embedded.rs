//! What the back ends with files share: blocking calls off the async threads, panics caught, the folder and its witness.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::{OpenError, home::Home};
use crate::{
    schema::TableId,
    store::{Batch, Due, Refused, Row, Scan, Store, StoreError, Sync, Writes, settle},
};

/// A library that keeps rows in files, called from threads that may block.
pub(super) trait Engine: Send + std::marker::Sync + Sized + 'static {
    /// Name in the configuration, in errors, and of the folder.
    const NAME: &'static str;

    fn open(folder: &Path, cache_bytes: u64) -> Result<Self, OpenError>;

    /// Values as of one moment.
    fn read(&self, table: TableId, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, StoreError>;

    /// A page as of one moment; the range is not empty.
    fn scan(&self, scan: &Scan) -> Result<Vec<Row>, StoreError>;

    /// Writes all or nothing, as the store's commit of this number; on the disk on return if `sync` says so.
    fn apply(&self, number: u64, writes: Writes, sync: Sync) -> Result<(), StoreError>;

    fn sync(&self) -> Result<(), StoreError>;

    fn size(&self) -> Result<u64, StoreError>;

    /// As [`Store::rearrange`]; nothing else is under way.
    fn rearrange(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// As [`Store::compact`], where the library does not do it by itself; nothing else is under way.
    fn compact(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// As [`Store::checkpoint_due`].
    fn checkpoint_due(&self) -> Due {
        Due::NotYet
    }

    /// As [`Store::checkpoint`]; no commit is under way.
    fn checkpoint(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// The table of the back ends' own rows; the schema begins at 1.
pub(super) const OWN_TABLE: TableId = TableId(0);

/// How many commits the store has seen; compared with the witness file.
pub(super) const COMMITS_ROW: Bytes = Bytes::from_static(b"commits");

/// How many commits are in the engine's files.
pub(super) fn commit_count(engine: &impl Engine) -> Result<u64, OpenError> {
    let row = engine.read(OWN_TABLE, &[COMMITS_ROW])?.into_iter().next().flatten();
    let Some(value) = row else { return Ok(0) };
    let count = value.as_ref().try_into().map(u64::from_be_bytes);
    count.map_err(|_| OpenError::Damaged { detail: "its count of commits is no number".into() })
}

/// A store in files. Every call is one hop to a thread that may block.
pub(super) struct Embedded<E> {
    /// None once closed. Calls hold it shared while they run.
    open: Arc<RwLock<Option<Handle<E>>>>,
}

pub(super) struct Handle<E> {
    pub(super) engine: E,
    /// Commits so far; locked for the whole of a commit.
    pub(super) commits: Mutex<u64>,
    /// After the engine, so that the lock is released last.
    pub(super) home: Home,
}

impl<E: Engine> Embedded<E> {
    /// Opens the store in `path`, creating it if nothing is there.
    pub(super) async fn open(path: PathBuf, cache_bytes: u64) -> Result<Self, OpenError> {
        let opened = blocking(move || {
            catch_unwind(AssertUnwindSafe(|| Handle::<E>::open(&path, cache_bytes))).unwrap_or_else(|panic| {
                let detail = StoreError::panicked(E::NAME, panic.as_ref()).to_string();
                Err(OpenError::Damaged { detail })
            })
        });
        let open = opened.await??;
        Ok(Self { open: Arc::new(RwLock::new(Some(open))) })
    }

    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Handle<E>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let open = self.open.clone();
        blocking(move || {
            let open = open.read();
            let open = open.as_ref().ok_or(StoreError::Closed)?;
            catch_unwind(AssertUnwindSafe(|| work(open)))
                .unwrap_or_else(|panic| Err(StoreError::panicked(E::NAME, panic.as_ref())))
        })
        .await?
    }
}

/// Runs `work` on a thread that may block; fails when the runtime is going away.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where the back ends leave the async threads"
    )]
    let handle = tokio::task::spawn_blocking(work);
    handle.await.map_err(|_| StoreError::Closed)
}

impl<E: Engine> Handle<E> {
    pub(super) fn open(path: &Path, cache_bytes: u64) -> Result<Self, OpenError> {
        let home = Home::open(path, E::NAME)?;
        let engine = E::open(&home.folder(E::NAME), cache_bytes)?;
        home.sync_names(E::NAME).map_err(|source| OpenError::Folder { path: path.to_owned(), source })?;
        let commits = commit_count(&engine)?;
        if commits < home.witnessed() {
            let detail =
                format!("it acknowledged {} commits and holds only {commits} of them", home.witnessed());
            return Err(OpenError::Damaged { detail });
        }
        Ok(Self { engine, commits: Mutex::new(commits), home })
    }

    fn commit(&self, batches: Vec<Batch>, sync: Sync) -> Result<Vec<Result<(), Refused>>, StoreError> {
        let mut commits = self.commits.lock();
        let (mut writes, verdicts) = settle(batches, |table, key| {
            Ok(self.engine.read(table, std::slice::from_ref(key))?.into_iter().next().flatten())
        })?;
        if !writes.is_empty() {
            let count = *commits + 1;
            writes.insert((OWN_TABLE, COMMITS_ROW), Some(Bytes::copy_from_slice(&count.to_be_bytes())));
            self.engine.apply(count, writes, sync)?;
            *commits = count;
        } else if sync == Sync::Now {
            self.engine.sync()?;
        }
        if sync == Sync::Now {
            self.home.witness(E::NAME, *commits)?;
        }
        Ok(verdicts)
    }

    fn sync(&self) -> Result<(), StoreError> {
        let commits = self.commits.lock();
        self.engine.sync()?;
        self.home.witness(E::NAME, *commits)
    }

    fn checkpoint(&self) -> Result<(), StoreError> {
        let _no_commit = self.commits.lock();
        self.engine.checkpoint()
    }

    fn compact(&self) -> Result<(), StoreError> {
        let _no_commit = self.commits.lock();
        self.engine.compact()
    }

    /// Whatever was written, the next start has nothing to do again.
    fn finish(&self) -> Result<(), StoreError> {
        self.sync()?;
        self.checkpoint()
    }
}

#[async_trait]
impl<E: Engine> Store for Embedded<E> {
    async fn read(&self, table: TableId, keys: Vec<Bytes>) -> Result<Vec<Option<Bytes>>, StoreError> {
        self.call(move |open| open.engine.read(table, &keys)).await
    }

    async fn scan(&self, scan: Scan) -> Result<Vec<Row>, StoreError> {
        self.call(move |open| if scan.is_empty() { Ok(Vec::new()) } else { open.engine.scan(&scan) }).await
    }

    async fn commit(&self, batches: Vec<Batch>, sync: Sync) -> Result<Vec<Result<(), Refused>>, StoreError> {
        self.call(move |open| open.commit(batches, sync)).await
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.call(Handle::sync).await
    }

    fn checkpoint_due(&self) -> Due {
        let open = self.open.try_read();
        let due = open.and_then(|open| open.as_ref().map(|open| open.engine.checkpoint_due()));
        due.unwrap_or(Due::NotYet)
    }

    async fn checkpoint(&self) -> Result<(), StoreError> {
        self.call(Handle::checkpoint).await
    }

    async fn rearrange(&self) -> Result<(), StoreError> {
        self.call(|open| open.engine.rearrange()).await
    }

    async fn compact(&self) -> Result<(), StoreError> {
        self.call(Handle::compact).await
    }

    async fn size(&self) -> Result<u64, StoreError> {
        self.call(|open| open.engine.size()).await
    }

    async fn close(&self) -> Result<(), StoreError> {
        let finished = self.call(Handle::finish).await;
        let open = self.open.clone();
        let released = blocking(move || {
            let open = open.write().take();
            catch_unwind(AssertUnwindSafe(|| drop(open)))
                .map_err(|panic| StoreError::panicked(E::NAME, panic.as_ref()))
        });
        finished.and(released.await?)
    }
}
