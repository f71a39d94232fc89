//! The task that keeps the full-text index: it follows the events in the order in which they were stored.
//!
//! Events are numbered in that order, those of the past that are fetched later among them, so one cursor is enough. It is
//! committed with the index: after a crash, or without an index, the task starts where the index ends.
//!
//! A message is found by the text of its newest edit; the edits themselves are not in the index.
//!
//! What is purged is nothing that follows in that order: rooms note it in a table, which the task works off.

use std::{sync::Arc, time::Duration};

use engine::{
    id::{Position, ShortEventId},
    room::relation::{REPLACE, Relation},
    room_version,
};
use ruma::OwnedEventId;
use serde::Deserialize;
use storage::{
    Batch, CommitError, Direction, KeyRange, StoreError,
    schema::{self, EventRecord, Standing},
    text::{self, TextDocument, TextError, TextField, TextIndex},
};
use tokio::sync::{Notify, watch};

use crate::{
    background::Background,
    room::{ReadError, RoomShared, StoredEvent},
};

/// Events that are read at a time.
const PAGE: usize = 200;

/// Changes that are committed together, at most, while the index is far behind.
const COMMIT_AT: usize = 5000;

/// Positions that the index may be behind before its cursor is committed although nothing in it has changed.
const BEHIND_MAX: u64 = 10_000;

/// Changes come together for so long, unless somebody searches.
const GATHER: Duration = Duration::from_secs(5);

/// After so long without a change the index gives back what writing takes.
const REST_AFTER: Duration = Duration::from_secs(60);

/// How long the task waits after a failure that may pass.
const RETRY: Duration = Duration::from_secs(30);

/// How long a search waits for what is not indexed yet.
const SETTLE: Duration = Duration::from_secs(2);

/// Edits of one message that are looked at, from the newest back.
const EDITS_MAX: usize = 256;

/// The index, and the task that keeps it.
pub(crate) struct Searching {
    shared: Arc<RoomShared>,
    index: Option<Arc<TextIndex>>,
    indexed: watch::Sender<Position>,
    wanted: Notify,
    purged: Notify,
    task: Background,
}

#[derive(Debug, thiserror::Error)]
enum IndexError {
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("could not store: {0}")]
    Commit(#[from] CommitError),
}

impl IndexError {
    /// Whether it is about one row, which stays as it is: to read it again does not help.
    fn is_damage(&self) -> bool {
        match self {
            Self::Read(error) => error.is_damage(),
            Self::Store(error) => error.is_damage(),
            Self::Text(_) | Self::Commit(_) => false,
        }
    }
}

impl Searching {
    /// Starts the task, if there is an index.
    pub(crate) fn start(shared: &Arc<RoomShared>, index: Option<Arc<TextIndex>>) -> Arc<Self> {
        let searching = Arc::new(Self {
            shared: shared.clone(),
            index,
            indexed: watch::Sender::new(Position(0)),
            wanted: Notify::new(),
            purged: Notify::new(),
            task: Background::new("the full-text index"),
        });
        if let Some(index) = searching.index.clone() {
            let own = searching.clone();
            searching.task.keep(move || {
                let (own, index) = (own.clone(), index.clone());
                async move { own.run(index).await }
            });
        }
        searching
    }

    /// The index, unless search is off.
    pub(crate) fn index(&self) -> Option<&Arc<TextIndex>> {
        self.index.as_ref()
    }

    /// Ends the task.
    pub(crate) async fn stop(&self) {
        self.task.stop().await;
    }

    /// Messages of a room were purged: the index is to let go of their words.
    pub(crate) fn purged(&self) {
        self.purged.notify_one();
    }

    /// Waits until everything that has happened so far is indexed, but not for long.
    pub(super) async fn settle(&self) {
        let happened = self.shared.store.storage().watermark();
        if *self.indexed.borrow() >= happened {
            return;
        }
        self.wanted.notify_one();
        let mut indexed = self.indexed.subscribe();
        // Who cannot wait finds what is indexed.
        let _ = tokio::time::timeout(SETTLE, indexed.wait_for(|indexed| *indexed >= happened)).await;
    }

    async fn run(&self, index: Arc<TextIndex>) {
        let mut stopping = self.task.stopping();
        tokio::select! {
            biased;
            // The sender is this task's own.
            _ = stopping.wait_for(|stopping| *stopping) => {}
            () = self.keep(index) => {}
        }
    }

    async fn keep(&self, index: Arc<TextIndex>) {
        let mut changed = self.shared.store.storage().watermark_changed();
        let mut indexer = Indexer { shared: self.shared.clone(), cursor: index.cursor(), index, pending: 0 };
        loop {
            let upto = changed.see();
            match indexer.keep_up(upto).await {
                Ok(()) => {
                    self.indexed.send_replace(upto);
                }
                Err(error) => {
                    indexer.failed(&error).await;
                    continue;
                }
            }
            let mut news = async || {
                tokio::select! {
                    biased;
                    () = changed.changed() => {}
                    () = self.purged.notified() => {}
                }
            };
            if tokio::time::timeout(REST_AFTER, news()).await.is_err() {
                if let Err(error) = text::blocking(&indexer.index, TextIndex::rest).await {
                    tracing::warn!(%error, "the full-text index could not finish its work");
                }
                news().await;
            }
            let _ = tokio::time::timeout(GATHER, self.wanted.notified()).await;
        }
    }
}

/// A change of the index.
enum Change {
    Put(TextDocument),
    Delete(ShortEventId),
}

struct Indexer {
    shared: Arc<RoomShared>,
    index: Arc<TextIndex>,
    cursor: Position,
    /// Changes that are not committed.
    pending: usize,
}

impl Indexer {
    async fn keep_up(&mut self, upto: Position) -> Result<(), IndexError> {
        self.catch_up(upto).await?;
        self.drop_purged().await
    }

    /// Lets go of messages that were purged.
    async fn drop_purged(&mut self) -> Result<(), IndexError> {
        loop {
            let storage = self.shared.store.storage();
            let rows =
                storage.range(&schema::PURGED_TEXTS, KeyRange::all(), Direction::Ascending, PAGE).await?;
            if rows.is_empty() {
                return Ok(());
            }
            let mut changes = Vec::new();
            let mut batch = Batch::default();
            for (short, ()) in rows {
                self.drop_text(short, &mut changes).await?;
                batch.delete(&schema::PURGED_TEXTS, &short);
            }
            let cursor = self.cursor;
            text::blocking(&self.index, move |index| {
                write(index, &changes)?;
                index.commit(cursor)
            })
            .await?;
            self.pending = 0;
            // Only now: what is not let go of at a crash is let go of after it.
            self.shared.store.storage().commit(batch).await?;
        }
    }

    /// Takes in the events that were stored up to a position.
    async fn catch_up(&mut self, upto: Position) -> Result<(), IndexError> {
        if self.cursor > upto {
            tracing::warn!("the full-text index is of another store; it is made anew");
            self.reset().await?;
        }
        while self.cursor < upto {
            let range = KeyRange::all().after(&ShortEventId(self.cursor.0)).up_to(&ShortEventId(upto.0));
            let storage = self.shared.store.storage();
            let rows = storage.each(&schema::EVENTS, range, Direction::Ascending, PAGE).await?;
            let is_last = rows.len() < PAGE;
            let read_to = rows.last().map_or(upto, |(short, _)| Position(short.0));
            let mut changes = Vec::new();
            for (short, record) in rows {
                let taken = match record {
                    Ok(record) => self.take_in(short, record, &mut changes).await,
                    Err(error) => Err(error.into()),
                };
                match taken {
                    // What cannot be read now cannot be read later either, and must not keep all that comes after it out.
                    Err(error) if error.is_damage() => {
                        tracing::warn!(event = short.0, %error, "an event is left out of the full-text index");
                    }
                    result => result?,
                }
            }
            self.pending += changes.len();
            if !changes.is_empty() {
                text::blocking(&self.index, move |index| write(index, &changes)).await?;
            }
            self.cursor = if is_last { upto } else { read_to };
            let is_due = self.pending > 0 && (is_last || self.pending >= COMMIT_AT);
            if is_due || self.cursor.0 > self.index.cursor().0 + BEHIND_MAX {
                let cursor = self.cursor;
                text::blocking(&self.index, move |index| index.commit(cursor)).await?;
                self.pending = 0;
            }
        }
        Ok(())
    }

    async fn reset(&mut self) -> Result<(), TextError> {
        text::blocking(&self.index, TextIndex::reset).await?;
        self.cursor = Position(0);
        self.pending = 0;
        Ok(())
    }

    async fn failed(&mut self, error: &IndexError) {
        if matches!(error, IndexError::Text(error) if error.is_damage()) {
            tracing::warn!(%error, "the full-text index is damaged; it is made anew");
            match self.reset().await {
                Ok(()) => return,
                Err(error) => tracing::error!(%error, "the full-text index cannot be made anew; will retry"),
            }
        } else {
            tracing::error!(%error, "the full-text index falls behind; will retry");
        }
        // What was not committed is taken in again.
        self.cursor = self.index.cursor();
        self.pending = 0;
        tokio::time::sleep(RETRY).await;
    }

    /// What an event changes.
    async fn take_in(
        &self,
        short: ShortEventId,
        record: EventRecord,
        changes: &mut Vec<Change>,
    ) -> Result<(), IndexError> {
        let event = match record.into_event(short) {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(event = short.0, %error, "an event is left out of the full-text index");
                return Ok(());
            }
        };
        match (event.pdu.kind(), event.pdu.state_key()) {
            ("m.room.redaction", None) => self.redacted_by(&event, changes).await?,
            ("m.room.message", None) => match replaced_by(&event) {
                Some(target) => {
                    if let Some(target) = self.shared.store.event_by_id(&target).await? {
                        changes.push(self.change_to(&target).await?);
                    }
                }
                None => changes.push(self.change_to(&event).await?),
            },
            ("m.room.name" | "m.room.topic", Some("")) => changes.push(self.change_to(&event).await?),
            _ => {}
        }
        Ok(())
    }

    async fn redacted_by(
        &self,
        redaction: &StoredEvent,
        changes: &mut Vec<Change>,
    ) -> Result<(), IndexError> {
        let room = self.shared.store.storage().get(&schema::ROOMS, &redaction.room).await?;
        let rules = room.and_then(|room| room_version::rules(&room.version));
        let Some(target) = rules.and_then(|rules| redaction.pdu.redacts(rules)) else { return Ok(()) };
        let Some(target) = self.shared.store.event_by_id(target).await? else { return Ok(()) };
        if target.redacted_by.is_none() {
            return Ok(());
        }
        self.drop_text(target.short, changes).await
    }

    /// Takes an event's text out of the index.
    async fn drop_text(&self, short: ShortEventId, changes: &mut Vec<Change>) -> Result<(), IndexError> {
        changes.push(Change::Delete(short));
        // If it was an edit, the message is found by what it says without it.
        for edited in text::blocking(&self.index, move |index| index.with_source(short)).await? {
            let changed = async {
                let edited = self.shared.store.event(edited).await?;
                self.change_to(&edited).await
            };
            match changed.await {
                Ok(change) => changes.push(change),
                // What cannot be read is not to be found by what it says without the edit either.
                Err(error) if error.is_damage() => {
                    tracing::warn!(event = edited.0, %error, "an event goes out of the full-text index");
                    changes.push(Change::Delete(edited));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What the index has to say of an event.
    async fn change_to(&self, event: &StoredEvent) -> Result<Change, IndexError> {
        let is_hidden = matches!(event.standing, Standing::Rejected | Standing::SoftFailed);
        if is_hidden || event.redacted_by.is_some() {
            return Ok(Change::Delete(event.short));
        }
        let edit = self.newest_edit(event).await?;
        let found = match &edit {
            Some(edit) => new_body(edit).map(|text| (TextField::Body, text)),
            None => text_of(event),
        };
        Ok(match found {
            Some((field, text)) => Change::Put(TextDocument {
                event: event.short,
                room: event.room,
                sender: event.pdu.sender().to_string(),
                at: event.index.unwrap_or_default(),
                field,
                text,
                source: edit.map(|edit| edit.short),
            }),
            None => Change::Delete(event.short),
        })
    }

    /// The edit that a message is shown with.
    ///
    /// Spec: client-server API, "Event replacements".
    async fn newest_edit(&self, event: &StoredEvent) -> Result<Option<Arc<StoredEvent>>, IndexError> {
        if event.pdu.kind() != "m.room.message" || !event.has_relations {
            return Ok(None);
        }
        let edits = KeyRange::prefix(&(event.room, event.pdu.event_id(), REPLACE));
        let storage = self.shared.store.storage();
        let rows = storage.range(&schema::RELATIONS, edits, Direction::Descending, EDITS_MAX).await?;
        let valid = rows.into_iter().map(|(_, record)| record).filter(|record| {
            record.can_replace && record.kind == event.pdu.kind() && record.sender == event.pdu.sender()
        });
        match valid.max_by(|a, b| (a.sent_ms, &a.event_id).cmp(&(b.sent_ms, &b.event_id))) {
            Some(newest) => Ok(Some(self.shared.store.event(newest.event).await?)),
            None => Ok(None),
        }
    }
}

fn write(index: &TextIndex, changes: &[Change]) -> Result<(), TextError> {
    changes.iter().try_for_each(|change| match change {
        Change::Put(document) => index.put(document),
        Change::Delete(event) => index.delete(*event),
    })
}

/// The event that an edit replaces.
fn replaced_by(event: &StoredEvent) -> Option<OwnedEventId> {
    Relation::of(&event.pdu).filter(|relation| relation.rel_type == REPLACE).map(|relation| relation.target)
}

fn new_body(edit: &StoredEvent) -> Option<String> {
    #[derive(Deserialize)]
    struct Content {
        #[serde(rename = "m.new_content")]
        new_content: NewContent,
    }
    #[derive(Deserialize)]
    struct NewContent {
        body: String,
    }
    serde_json::from_str::<Content>(edit.pdu.content().get()).ok().map(|content| content.new_content.body)
}

/// The text that an event is found by.
///
/// Spec: client-server API, "Server Side Search", `room_events`.
fn text_of(event: &StoredEvent) -> Option<(TextField, String)> {
    #[derive(Default, Deserialize)]
    struct Topic {
        #[serde(default)]
        topic: serde_json::Value,
        #[serde(default, rename = "m.topic")]
        rich: serde_json::Value,
    }
    let text = |name| crate::room::content_string(&event.pdu, name);
    match event.pdu.kind() {
        "m.room.message" => Some((TextField::Body, text("body")?)),
        "m.room.name" => Some((TextField::Name, text("name")?)),
        "m.room.topic" => {
            let content: Topic = serde_json::from_str(event.pdu.content().get()).unwrap_or_default();
            let mut words = content.topic.as_str().unwrap_or_default().to_owned();
            let representations = content.rich["m.text"].as_array();
            let is_plain = |item: &&serde_json::Value| {
                item.get("mimetype").is_none_or(|mimetype| mimetype == "text/plain")
            };
            let plain = representations.into_iter().flatten().find(is_plain);
            if let Some(body) = plain.and_then(|item| item["body"].as_str()).filter(|body| *body != words) {
                words.push(' ');
                words.push_str(body);
            }
            (!words.is_empty()).then_some((TextField::Topic, words))
        }
        _ => None,
    }
}
