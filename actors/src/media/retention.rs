//! What does not stay for ever: other servers' media, URIs that wait in vain, previews of pages.
//!
//! One task sweeps through the tables, a page at a time. Media of local users are never removed by it.

use std::{collections::BTreeMap, time::Duration};

use storage::{
    Batch, Direction, Key, KeyRange, Value,
    schema::{self, MediaRecord, Table, UrlPreviewRecord},
};

use super::{
    MediaError, MediaRepository,
    removal::{PAGE, Removed},
};

/// How often is swept.
const SWEEP_EVERY: Duration = Duration::from_secs(6 * 3600);

/// When is swept first: the start has other things to do.
const SWEEP_FIRST: Duration = Duration::from_secs(5 * 60);

/// Sweeps after which files are looked through that nothing names: a listing of all of them.
const ORPHANS_EVERY: u64 = 4;

/// How long a thumbnail that another server made is kept.
const REMOTE_THUMBNAIL_AGE_MAX_MS: u64 = 30 * DAY_MS;

/// How long what is known of a page is kept after it is out of date: none is made again while its site is away.
pub(super) const PREVIEW_AGE_MAX_MS: u64 = 7 * DAY_MS;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// Where a walk through a table is; nowhere any more at its end.
struct Walk<K>(Option<KeyRange<K>>);

impl<K> Default for Walk<K> {
    fn default() -> Self {
        Self(Some(KeyRange::all()))
    }
}

/// What a sweep has seen.
#[derive(Default)]
struct Seen {
    /// Bytes of other servers' media, by the day of their last use.
    by_day: BTreeMap<u64, u64>,
}

impl Seen {
    fn total(&self) -> u64 {
        self.by_day.values().sum()
    }

    /// The bytes to remove, and the newest day of last use among them, so that 9 of 10 allowed bytes stay.
    fn excess(&self, max: u64) -> Option<(u64, u64)> {
        let total = self.total();
        if total <= max {
            return None;
        }
        let excess = total - (max - max / 10);
        let mut sum = 0;
        let day = self.by_day.iter().find_map(|(day, bytes)| {
            sum += bytes;
            (sum >= excess).then_some(*day)
        });
        Some((excess, day.unwrap_or(u64::MAX)))
    }
}

/// The day that media were last used, in days since the epoch.
fn day(record: &MediaRecord) -> u64 {
    u64::from(record.last_used.get()) / DAY_MS
}

impl MediaRepository {
    /// Sweeps from time to time, until the server stops.
    pub(crate) async fn keep_sweeping(self) {
        let mut stopping = self.0.stopping.watch();
        let mut wait = SWEEP_FIRST;
        for round in 0_u64.. {
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stopping| *stopping) => return,
                () = self.0.fetched_much.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
            wait = SWEEP_EVERY;
            let sweep = async {
                let removed = self.sweep().await?;
                let orphans =
                    if round.is_multiple_of(ORPHANS_EVERY) { self.collect_orphans().await? } else { 0 };
                Ok::<_, MediaError>((removed, orphans))
            };
            let swept = tokio::select! {
                biased;
                _ = stopping.wait_for(|stopping| *stopping) => return,
                swept = sweep => swept,
            };
            match swept {
                Ok((Removed { files: 0, .. }, 0)) => {}
                Ok((removed, orphans)) => {
                    tracing::info!(files = removed.files, bytes = removed.bytes, orphans, "removed media");
                }
                Err(error) => tracing::error!(%error, "cannot remove old media"),
            }
        }
    }

    /// Removes what is too old or too much.
    pub async fn sweep(&self) -> Result<Removed, MediaError> {
        let now_ms = self.0.env.clock.now_ms();
        let oldest = self.0.config.remote_age_max.map(|age| now_ms.saturating_sub(millis(age)));
        let (mut removed, mut seen) = (Removed::default(), Seen::default());
        let mut walk = Walk::default();
        while let Some(page) = self.next_page(&schema::MEDIA, &mut walk).await? {
            for ((server_name, media_id), record) in page {
                let is_remote = !self.is_local(&server_name);
                // Uses are known to the day.
                let is_old = oldest.is_some_and(|oldest| (day(&record) + 1) * DAY_MS <= oldest);
                let waits_in_vain = record.content.is_none()
                    && record.expires.is_some_and(|expires| u64::from(expires.get()) <= now_ms);
                if waits_in_vain || (is_remote && is_old) {
                    self.remove(&server_name, &media_id).await?;
                    removed.count(&record);
                } else if is_remote {
                    let size = record.content.map_or(0, |content| content.size);
                    *seen.by_day.entry(day(&record)).or_default() += size;
                }
            }
        }
        if let Some((excess, newest)) = self.0.config.remote_size_max.and_then(|max| seen.excess(max)) {
            self.remove_excess(excess, newest, &mut removed).await?;
        }
        self.sweep_thumbnails(now_ms.saturating_sub(REMOTE_THUMBNAIL_AGE_MAX_MS)).await?;
        self.sweep_previews(now_ms).await?;
        Ok(removed)
    }

    /// Removes other servers' media that were last used before a time, in milliseconds since the epoch.
    pub async fn purge_remote(&self, before_ms: u64) -> Result<Removed, MediaError> {
        let mut removed = Removed::default();
        let mut walk = Walk::default();
        while let Some(page) = self.next_page(&schema::MEDIA, &mut walk).await? {
            for ((server_name, media_id), record) in page {
                if !self.is_local(&server_name) && u64::from(record.last_used.get()) <= before_ms {
                    self.remove(&server_name, &media_id).await?;
                    removed.count(&record);
                }
            }
        }
        self.sweep_thumbnails(before_ms).await?;
        Ok(removed)
    }

    /// Removes other servers' media of the days up to `newest` until `excess` bytes are gone.
    async fn remove_excess(&self, excess: u64, newest: u64, removed: &mut Removed) -> Result<(), MediaError> {
        let mut gone = 0;
        // All of the older days go; of the newest, as many as it takes.
        for is_newest in [false, true] {
            let mut walk = Walk::default();
            while let Some(page) = self.next_page(&schema::MEDIA, &mut walk).await? {
                for ((server_name, media_id), record) in page {
                    let is_due = if is_newest { day(&record) == newest } else { day(&record) < newest };
                    if is_due && gone < excess && !self.is_local(&server_name) {
                        self.remove(&server_name, &media_id).await?;
                        gone += record.content.map_or(0, |content| content.size);
                        removed.count(&record);
                    }
                }
            }
        }
        Ok(())
    }

    /// The next page of a table; none at its end.
    async fn next_page<K: Key, V: Value>(
        &self,
        table: &Table<K, V>,
        walk: &mut Walk<K>,
    ) -> Result<Option<Vec<(K, V)>>, MediaError> {
        let Some(range) = walk.0.take() else { return Ok(None) };
        let page = self.0.storage.range(table, range, Direction::Ascending, PAGE).await?;
        walk.0 = page.get(PAGE - 1).map(|(last, _)| KeyRange::all().after(last));
        Ok(Some(page))
    }

    async fn sweep_thumbnails(&self, before_ms: u64) -> Result<(), MediaError> {
        let mut walk = Walk::default();
        while let Some(page) = self.next_page(&schema::REMOTE_THUMBNAILS, &mut walk).await? {
            for (key, record) in page {
                if u64::from(record.created.get()) <= before_ms {
                    self.remove_remote_thumbnail(&key, record.thumbnail.content.hash).await?;
                }
            }
        }
        Ok(())
    }

    /// Removes previews of pages that nobody wanted for long, and images of previews that are due.
    async fn sweep_previews(&self, now_ms: u64) -> Result<(), MediaError> {
        let mut walk = Walk(Some(KeyRange::all().before(&(now_ms, String::new()))));
        while let Some(page) = self.next_page(&schema::PREVIEW_IMAGES, &mut walk).await? {
            for (key, ()) in page.into_iter().take_while(|((due_ms, _), ())| *due_ms < now_ms) {
                self.remove(&self.0.server_name, &key.1).await?;
                let mut batch = Batch::new();
                batch.delete(&schema::PREVIEW_IMAGES, &key);
                self.0.storage.commit(batch).await?;
            }
        }
        let kept_ms = millis(self.0.config.preview_expiry) + PREVIEW_AGE_MAX_MS;
        let is_old = |record: &UrlPreviewRecord| u64::from(record.fetched.get()) + kept_ms <= now_ms;
        let mut walk = Walk::default();
        while let Some(page) = self.next_page(&schema::URL_PREVIEWS, &mut walk).await? {
            let mut batch = Batch::new();
            for (url, _) in page.iter().filter(|(_, record)| is_old(record)) {
                batch.delete(&schema::URL_PREVIEWS, url);
            }
            if !batch.is_empty() {
                self.0.storage.commit(batch).await?;
            }
        }
        Ok(())
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests;
