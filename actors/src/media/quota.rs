//! What each local user has uploaded, and what they may.

use std::time::Duration;

use ruma::{MilliSecondsSinceUnixEpoch, UserId};
use storage::{
    Batch, CommitError,
    schema::{self, UploaderRecord},
};

use super::{MediaError, MediaRepository};

/// Times that a change of a user's record is tried while others change it.
const TRIES_MAX: usize = 32;

impl MediaRepository {
    /// What a user has uploaded.
    pub async fn uploads_of(&self, user_id: &UserId) -> Result<UploaderRecord, MediaError> {
        Ok(self.0.storage.get(&schema::UPLOADERS, user_id).await?.unwrap_or_default())
    }

    /// Refuses bytes beyond what a user may upload.
    pub(super) fn check_quota(&self, record: &UploaderRecord, more: u64) -> Result<(), MediaError> {
        match self.0.config.user_quota {
            Some(max) if record.bytes.saturating_add(more) > max => Err(MediaError::QuotaReached { max }),
            _ => Ok(()),
        }
    }

    /// Refuses one more URI without bytes beyond what a user may have.
    pub(super) fn check_pending(
        &self,
        record: &UploaderRecord,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<(), MediaError> {
        match record.pending.values().min() {
            Some(first) if record.pending.len() >= self.0.config.pending_max => {
                let wait = u64::from(first.get()).saturating_sub(u64::from(now.get()));
                Err(MediaError::TooManyPending { retry_after: Duration::from_millis(wait.max(1000)) })
            }
            _ => Ok(()),
        }
    }

    /// Changes a user's record together with the rest of a batch.
    ///
    /// `change` may be asked several times, as other uploads of the user go on.
    pub(super) async fn commit_with_uploader(
        &self,
        user_id: &UserId,
        rest: Batch,
        change: impl Fn(&mut UploaderRecord) -> Result<(), MediaError>,
    ) -> Result<(), MediaError> {
        for _ in 0..TRIES_MAX {
            let old = self.0.storage.get(&schema::UPLOADERS, user_id).await?;
            let now = self.0.env.clock.now();
            let mut new = old.clone().unwrap_or_default();
            new.pending.retain(|_, expires| *expires > now);
            change(&mut new)?;
            let mut batch = rest.clone();
            match &old {
                Some(old) => batch.expect(&schema::UPLOADERS, user_id, old),
                None => batch.expect_absent(&schema::UPLOADERS, user_id),
            };
            batch.put(&schema::UPLOADERS, user_id, &new);
            match self.0.storage.commit(batch).await {
                Err(CommitError::Refused(refused)) if refused.table == schema::UPLOADERS.id() => {}
                Err(CommitError::Refused(_)) => return Err(MediaError::AlreadyUploaded),
                result => return Ok(result?),
            }
        }
        Err(MediaError::TooManyPending { retry_after: Duration::from_secs(1) })
    }
}
