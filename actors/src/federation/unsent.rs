//! EDUs that their servers do not take: they do not wait for ever, since anybody can name servers that do not exist.

use std::collections::BTreeMap;

use engine::id::Position;
use ruma::OwnedServerName;
use storage::{Batch, Direction, KeyRange, Storage, schema};

use crate::session::SessionError;

/// How long an EDU waits for its server. One that is back after a longer time asks anew for the devices that it follows, and what was
/// said to its users' devices is of no use to them any more.
const WAIT_MS: u64 = 30 * DAY_MS;

/// Positions are dated this often, so that an EDU may wait as much longer.
const DAY_MS: u64 = 24 * 3600 * 1000;

/// Rows that the sweep reads at a time, of up to the size of an event each.
const PAGE: usize = 100;

/// Lets go of EDUs that have waited for too long, and notes which are there by now.
pub(super) async fn forget_unsent_edus(storage: &Storage, now_ms: u64) -> Result<(), SessionError> {
    let all = KeyRange::all();
    let dates = storage.range(&schema::EDU_DATES, all, Direction::Ascending, usize::MAX).await?;
    let mut batch = Batch::default();
    if dates.last().is_none_or(|(last_ms, _)| last_ms.saturating_add(DAY_MS) <= now_ms) {
        batch.put(&schema::EDU_DATES, &now_ms, &storage.watermark());
    }
    let mut due = None;
    for (dated_ms, position) in dates {
        if dated_ms.saturating_add(WAIT_MS) <= now_ms {
            batch.delete(&schema::EDU_DATES, &dated_ms);
            due = Some(position);
        }
    }
    if let Some(position) = due {
        forget_up_to(storage, position).await?;
    }
    storage.commit(batch).await.map_err(SessionError::Commit)
}

async fn forget_up_to(storage: &Storage, position: Position) -> Result<(), SessionError> {
    let mut forgotten = BTreeMap::<OwnedServerName, usize>::new();
    let mut range = KeyRange::all();
    loop {
        let rows = storage.range(&schema::EDU_QUEUE, range, Direction::Ascending, PAGE).await?;
        let Some((last, _)) = rows.last() else { break };
        range = KeyRange::all().after(last);
        let mut batch = Batch::default();
        for (key, _) in rows.into_iter().filter(|(key, _)| key.1 <= position) {
            batch.delete(&schema::EDU_QUEUE, &key);
            *forgotten.entry(key.0).or_default() += 1;
        }
        storage.commit(batch).await.map_err(SessionError::Commit)?;
    }
    for (server, edus) in forgotten {
        tracing::warn!(destination = %server, edus, "let go of EDUs that a server has not taken for a month");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use ruma::owned_server_name;
    use storage::{Durability, MemoryStore};

    use super::*;

    async fn enqueue(storage: &Storage, server: &str) {
        let ticket = storage.reserve(1);
        let mut batch = Batch::default();
        let row = (OwnedServerName::try_from(server).unwrap(), ticket.last());
        batch.put(&schema::EDU_QUEUE, &row, &Bytes::from_static(b"{}"));
        storage.commit(batch).await.unwrap();
    }

    async fn waiting(storage: &Storage) -> Vec<OwnedServerName> {
        let all = KeyRange::all();
        let rows = storage.range(&schema::EDU_QUEUE, all, Direction::Ascending, usize::MAX).await.unwrap();
        rows.into_iter().map(|((server, _), _)| server).collect()
    }

    #[tokio::test]
    async fn edus_wait_for_a_month() {
        let storage = Storage::open(Arc::new(MemoryStore::new()), Durability::Always).await.unwrap();
        let start_ms = 1_700_000_000_000;
        for number in 0..2 * PAGE {
            enqueue(&storage, &format!("old{number}")).await;
        }
        forget_unsent_edus(&storage, start_ms).await.unwrap();
        enqueue(&storage, "new").await;
        for day in 1..30 {
            forget_unsent_edus(&storage, start_ms + day * DAY_MS).await.unwrap();
        }
        assert_eq!(waiting(&storage).await.len(), 2 * PAGE + 1);
        forget_unsent_edus(&storage, start_ms + 30 * DAY_MS).await.unwrap();
        assert_eq!(waiting(&storage).await, [owned_server_name!("new")]);
        forget_unsent_edus(&storage, start_ms + 31 * DAY_MS).await.unwrap();
        assert!(waiting(&storage).await.is_empty());
        let all = KeyRange::all();
        let dates = storage.range(&schema::EDU_DATES, all, Direction::Ascending, usize::MAX).await.unwrap();
        assert_eq!(dates.len(), 30, "no more dates are kept than are needed");
    }
}
