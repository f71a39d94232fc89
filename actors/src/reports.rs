//! What users report to the server's administrators.
//!
//! Spec: client-server API, "Reporting Content".

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, UserId};
use storage::{
    Batch, CommitError, Direction, KeyRange, StoreError,
    schema::{self, ReportRecord},
};

use crate::{homeserver::Homeserver, room::RoomError};

/// Reports of one user that are kept; more are refused until an administrator has dealt with them.
const REPORTS_MAX: usize = 1000;

/// Bytes of a reason.
const REASON_MAX: usize = 4096;

/// Why a report was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// There is nothing of the kind, or not for this user.
    #[error("{0} not found")]
    NotFound(&'static str),
    /// The reason is too long.
    #[error("a reason has at most {REASON_MAX} bytes")]
    ReasonTooLong,
    /// The user has reported more than one user may.
    #[error("you have reported too much for now")]
    TooMany,
    /// A room could not be read.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The report is not durable.
    #[error("could not store: {0}")]
    Commit(#[from] CommitError),
}

/// What is reported.
#[derive(Clone, Debug)]
pub enum Reported {
    /// A room.
    Room(OwnedRoomId),
    /// An event of a room that the user is in.
    Event(OwnedRoomId, OwnedEventId),
    /// A user.
    User(OwnedUserId),
}

impl Homeserver {
    /// Keeps a user's report for the administrators, and tells them in the log.
    pub async fn report(
        &self,
        reporter: &UserId,
        reported: Reported,
        reason: String,
    ) -> Result<(), ReportError> {
        if reason.len() > REASON_MAX {
            return Err(ReportError::ReasonTooLong);
        }
        self.check_reported(reporter, &reported).await?;
        let own = KeyRange::prefix(&(reporter,));
        let storage = self.storage();
        if storage.range(&schema::REPORTS, own, Direction::Ascending, REPORTS_MAX).await?.len() == REPORTS_MAX
        {
            return Err(ReportError::TooMany);
        }
        let (room_id, event_id, user_id) = match reported {
            Reported::Room(room_id) => (Some(room_id), None, None),
            Reported::Event(room_id, event_id) => (Some(room_id), Some(event_id), None),
            Reported::User(user_id) => (None, None, Some(user_id)),
        };
        let record = ReportRecord { room_id, event_id, user_id, reason, reported: self.env().clock.now() };
        let ticket = storage.reserve(1);
        let mut batch = Batch::default();
        batch.put(&schema::REPORTS, &(reporter.to_owned(), ticket.last()), &record);
        storage.commit(batch).await?;
        let text = |id: Option<&str>| id.unwrap_or_default().to_owned();
        tracing::warn!(
            reporter.id = %reporter,
            room.id = text(record.room_id.as_ref().map(|id| id.as_str())),
            event.id = text(record.event_id.as_ref().map(|id| id.as_str())),
            user.id = text(record.user_id.as_ref().map(|id| id.as_str())),
            "a user reports something; `ganglion reports` lists what was reported"
        );
        Ok(())
    }

    async fn check_reported(&self, reporter: &UserId, reported: &Reported) -> Result<(), ReportError> {
        match reported {
            Reported::Room(room_id) => match self.room(room_id).await {
                Err(RoomError::NotFound) => Err(ReportError::NotFound("room")),
                result => Ok(result.map(drop)?),
            },
            Reported::Event(room_id, event_id) => {
                // One answer for all, so that nobody learns of rooms that they are not in.
                let unknown = || ReportError::NotFound("event");
                let room = match self.room(room_id).await {
                    Err(RoomError::NotFound) => return Err(unknown()),
                    result => result?,
                };
                if !room.is_joined(reporter).await? {
                    return Err(unknown());
                }
                let event = room.event(event_id).await?.ok_or_else(unknown)?;
                if room.may_see(reporter, &event).await? { Ok(()) } else { Err(unknown()) }
            }
            Reported::User(user_id) if user_id.server_name() == self.server_name() => {
                let account = self.storage().get(&schema::ACCOUNTS, user_id).await?;
                account.map(drop).ok_or(ReportError::NotFound("user"))
            }
            // Of the users of other servers not all are known.
            Reported::User(_) => Ok(()),
        }
    }

    /// All reports with their reporters, the oldest first.
    pub async fn reports(&self) -> Result<Vec<(OwnedUserId, ReportRecord)>, StoreError> {
        let storage = self.storage();
        let mut rows =
            storage.range(&schema::REPORTS, KeyRange::all(), Direction::Ascending, usize::MAX).await?;
        rows.sort_by_key(|((_, position), _)| *position);
        Ok(rows.into_iter().map(|((reporter, _), record)| (reporter, record)).collect())
    }
}
