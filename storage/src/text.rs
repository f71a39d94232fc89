//! The full-text index: which documents have which words. It knows nothing of what the documents are.
//!
//! It can be made anew from what it was made of, so nothing in it is precious: a folder that cannot be read is emptied.
//! With each commit goes a cursor, which says how far its maker had come; after a crash it is as of the last commit.
//!
//! Its functions block: they are called from threads that may.

use std::{
    fmt,
    ops::Bound,
    path::{Path, PathBuf},
    sync::Arc,
};

use engine::id::{Position, ShortEventId, ShortRoomId, TimelineIndex};
use parking_lot::Mutex;
use tantivy::{
    Index, IndexReader, IndexWriter, Order, ReloadPolicy, Searcher, TantivyDocument, TantivyError, Term,
    collector::{Count, TopDocs},
    directory::{MmapDirectory, error::OpenReadError},
    merge_policy::LogMergePolicy,
    query::{BooleanQuery, ConstScoreQuery, Occur, Query, RangeQuery, TermQuery, TermSetQuery},
    schema::{FAST, Field, INDEXED, IndexRecordOption, STRING, Schema, TextFieldIndexing, TextOptions},
};

mod words;

pub use words::words;

use words::analyzer;

/// Bytes that the index may hold before it writes them out; the library takes no less.
const WRITER_BYTES: usize = 16 << 20;

/// Words of a search.
const WORDS_MAX: usize = 32;

/// Files of which more than this share is deleted are written anew without it, so that words do not stay for ever.
const DELETED_SHARE_MAX: f32 = 0.1;

/// Changes when the fields do: an index with others is made anew.
const FORMAT: &str = "v1";

/// Why the index did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The folder cannot be used.
    #[error("the full-text index's folder cannot be used: {0}")]
    Folder(#[from] std::io::Error),
    /// The index failed.
    #[error("the full-text index failed: {0}")]
    Index(#[from] TantivyError),
}

impl TextError {
    /// Whether the files are not what they were: the index has to be made anew.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Folder(_) => false,
            Self::Index(error) => matches!(
                error,
                TantivyError::DataCorruption(_)
                    | TantivyError::IncompatibleIndex(_)
                    | TantivyError::SchemaError(_)
                    | TantivyError::OpenReadError(
                        OpenReadError::FileDoesNotExist(_) | OpenReadError::IncompatibleIndex(_)
                    )
            ),
        }
    }
}

/// The parts of a document that are searched apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TextField {
    /// A message.
    Body,
    /// A name.
    Name,
    /// A topic.
    Topic,
}

/// A document: one text, and what it is filtered by.
#[derive(Clone, Debug)]
pub struct TextDocument {
    /// Names it.
    pub event: ShortEventId,
    /// Where it is.
    pub room: ShortRoomId,
    /// Who wrote it.
    pub sender: String,
    /// When it was written, in the order of the room.
    pub at: TimelineIndex,
    /// What kind of text it is.
    pub field: TextField,
    /// The text.
    pub text: String,
    /// The other event that the text comes from.
    pub source: Option<ShortEventId>,
}

/// The order of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextOrder {
    /// The best first.
    Rank,
    /// The newest first.
    Recent,
}

/// What is searched for.
#[derive(Clone, Debug)]
pub struct TextQuery {
    /// Words, all of which must be there; see [`words`].
    pub words: Vec<String>,
    /// Where they may be.
    pub fields: Vec<TextField>,
    /// The rooms that are searched.
    pub rooms: Vec<ShortRoomId>,
    /// Whose documents are searched; none for everybody's.
    pub senders: Option<Vec<String>>,
    /// Only documents before this place.
    pub before: Option<TimelineIndex>,
    /// The order of the results.
    pub order: TextOrder,
    /// Results that are left out, of the first ones.
    pub skip: usize,
    /// Most results to return.
    pub limit: usize,
}

/// A document that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TextHit {
    /// Which one.
    pub event: ShortEventId,
    /// Where it is.
    pub room: ShortRoomId,
    /// When it was written.
    pub at: TimelineIndex,
    /// How well it matches; 0 in results that are ordered by time.
    pub score: f32,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TextHits {
    /// The results.
    pub hits: Vec<TextHit>,
    /// How many there are in all.
    pub count: usize,
}

#[derive(Clone, Copy)]
struct Fields {
    event: Field,
    room: Field,
    sender: Field,
    at: Field,
    source: Field,
    body: Field,
    name: Field,
    topic: Field,
}

impl Fields {
    fn text(&self, field: TextField) -> Field {
        match field {
            TextField::Body => self.body,
            TextField::Name => self.name,
            TextField::Topic => self.topic,
        }
    }
}

const TOKENIZER: &str = "words";

fn schema() -> (Schema, Fields) {
    let mut builder = Schema::builder();
    let indexing = TextFieldIndexing::default()
        .set_tokenizer(TOKENIZER)
        .set_index_option(IndexRecordOption::WithFreqs)
        .set_fieldnorms(true);
    let text = TextOptions::default().set_indexing_options(indexing);
    let fields = Fields {
        event: builder.add_u64_field("event", INDEXED | FAST),
        room: builder.add_u64_field("room", INDEXED | FAST),
        sender: builder.add_text_field("sender", STRING),
        at: builder.add_i64_field("at", INDEXED | FAST),
        source: builder.add_u64_field("source", INDEXED),
        body: builder.add_text_field("body", text.clone()),
        name: builder.add_text_field("name", text.clone()),
        topic: builder.add_text_field("topic", text),
    };
    (builder.build(), fields)
}

struct Open {
    index: Index,
    reader: IndexReader,
    /// Made when there is something to write: it has a thread and memory of its own.
    writer: Option<IndexWriter>,
    cursor: Position,
}

/// The full-text index in a folder.
pub struct TextIndex {
    folder: PathBuf,
    fields: Fields,
    open: Mutex<Open>,
}

impl fmt::Debug for TextIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextIndex").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl TextIndex {
    /// Opens the index of a folder; one that is damaged, or of another format, is emptied first.
    pub fn open(folder: &Path) -> Result<Self, TextError> {
        let folder = folder.join(FORMAT);
        let (_, fields) = schema();
        let open = match open(&folder) {
            Ok(open) => open,
            Err(error) => {
                tracing::warn!(%error, "the full-text index cannot be read; it is made anew");
                std::fs::remove_dir_all(&folder)?;
                open(&folder)?
            }
        };
        Ok(Self { folder, fields, open: Mutex::new(open) })
    }

    /// How far whoever makes the index had come with the last commit.
    pub fn cursor(&self) -> Position {
        self.open.lock().cursor
    }

    /// Empties the index: it has to be made anew.
    pub fn reset(&self) -> Result<(), TextError> {
        let mut held = self.open.lock();
        held.writer = None;
        std::fs::remove_dir_all(&self.folder)?;
        *held = open(&self.folder)?;
        Ok(())
    }

    /// Puts a document in the place of its former self; it is found after the next commit.
    pub fn put(&self, document: &TextDocument) -> Result<(), TextError> {
        let fields = self.fields;
        let mut stored = TantivyDocument::default();
        stored.add_u64(fields.event, document.event.0);
        stored.add_u64(fields.room, document.room.0);
        stored.add_text(fields.sender, &document.sender);
        stored.add_i64(fields.at, document.at.0);
        if let Some(source) = document.source {
            stored.add_u64(fields.source, source.0);
        }
        stored.add_text(fields.text(document.field), words(&document.text).join(" "));
        self.write(|writer| {
            writer.delete_term(Term::from_field_u64(fields.event, document.event.0));
            writer.add_document(stored).map(drop)
        })
    }

    /// Takes a document away; it is not found any more after the next commit.
    pub fn delete(&self, event: ShortEventId) -> Result<(), TextError> {
        let event = Term::from_field_u64(self.fields.event, event.0);
        self.write(|writer| {
            writer.delete_term(event);
            Ok(())
        })
    }

    /// Changes the index with its writer.
    ///
    /// A writer that failed is let go of: it may have lost threads, and would drop what it is given without a word. The next one
    /// begins at the last commit, and so has whoever makes the index.
    fn write(&self, write: impl FnOnce(&IndexWriter) -> Result<(), TantivyError>) -> Result<(), TextError> {
        let mut open = self.open.lock();
        let writer = if let Some(writer) = open.writer.take() {
            writer
        } else {
            let mut policy = LogMergePolicy::default();
            policy.set_del_docs_ratio_before_merge(DELETED_SHARE_MAX);
            let writer = open.index.writer_with_num_threads(1, WRITER_BYTES)?;
            writer.set_merge_policy(Box::new(policy));
            writer
        };
        write(&writer)?;
        open.writer = Some(writer);
        Ok(())
    }

    /// Makes all changes so far durable and visible, with how far whoever makes the index has come.
    pub fn commit(&self, cursor: Position) -> Result<(), TextError> {
        self.write(|_| Ok(()))?;
        let mut open = self.open.lock();
        // Put back only once it has succeeded, see `write`.
        if let Some(mut writer) = open.writer.take() {
            let mut commit = writer.prepare_commit()?;
            commit.set_payload(&cursor.0.to_string());
            commit.commit()?;
            open.writer = Some(writer);
        }
        open.reader.reload()?;
        open.cursor = cursor;
        Ok(())
    }

    /// Gives back the memory that writing takes, until something is written again.
    pub fn rest(&self) -> Result<(), TextError> {
        let writer = self.open.lock().writer.take();
        if let Some(writer) = writer {
            writer.wait_merging_threads()?;
        }
        Ok(())
    }

    fn searcher(&self) -> Searcher {
        self.open.lock().reader.searcher()
    }

    /// The documents whose text comes from another event.
    pub fn with_source(&self, source: ShortEventId) -> Result<Vec<ShortEventId>, TextError> {
        let searcher = self.searcher();
        let term = Term::from_field_u64(self.fields.source, source.0);
        let query = TermQuery::new(term, IndexRecordOption::Basic);
        let found = searcher.search(&query, &TopDocs::with_limit(16).order_by_score())?;
        let mut events = Vec::with_capacity(found.len());
        for (_, address) in found {
            let column = searcher.segment_reader(address.segment_ord).fast_fields().u64("event")?;
            events.extend(column.first(address.doc_id).map(ShortEventId));
        }
        Ok(events)
    }

    /// Searches as of the last commit.
    pub fn search(&self, query: &TextQuery) -> Result<TextHits, TextError> {
        let Some(matching) = self.query(query) else { return Ok(TextHits::default()) };
        let searcher = self.searcher();
        // A limit of none is not one that the library takes.
        let top = TopDocs::with_limit(query.limit.max(1)).and_offset(query.skip);
        let (scored, count) = match query.order {
            TextOrder::Rank => searcher.search(&matching, &(top.order_by_score(), Count))?,
            TextOrder::Recent => {
                let (found, count) = searcher
                    .search(&matching, &(top.order_by_fast_field::<i64>("at", Order::Desc), Count))?;
                (found.into_iter().map(|(_, address)| (0.0, address)).collect(), count)
            }
        };
        let mut hits = Vec::with_capacity(scored.len());
        for (score, address) in scored {
            let fast = searcher.segment_reader(address.segment_ord).fast_fields();
            let (event, room) =
                (fast.u64("event")?.first(address.doc_id), fast.u64("room")?.first(address.doc_id));
            let at = fast.i64("at")?.first(address.doc_id).unwrap_or_default();
            if let (Some(event), Some(room)) = (event, room) {
                let (event, room, at) = (ShortEventId(event), ShortRoomId(room), TimelineIndex(at));
                hits.push(TextHit { event, room, at, score });
            }
        }
        Ok(TextHits { hits, count })
    }

    /// The index's form of a query; none if nothing can match.
    fn query(&self, query: &TextQuery) -> Option<BooleanQuery> {
        let fields = self.fields;
        let mut analyzer = analyzer();
        let mut clauses: Vec<(Occur, Box<dyn Query>)> = Vec::new();
        for word in query.words.iter().take(WORDS_MAX) {
            let mut folded = String::new();
            analyzer.token_stream(word).process(&mut |token| folded.clone_from(&token.text));
            let of_field = |field: &TextField| -> (Occur, Box<dyn Query>) {
                let term = Term::from_field_text(fields.text(*field), &folded);
                (Occur::Should, Box::new(TermQuery::new(term, IndexRecordOption::WithFreqs)))
            };
            let anywhere = BooleanQuery::new(query.fields.iter().map(of_field).collect());
            clauses.push((Occur::Must, Box::new(anywhere)));
        }
        if clauses.is_empty() || query.rooms.is_empty() || query.fields.is_empty() {
            return None;
        }
        // What only filters has no part in the score.
        let mut filter = |query: Box<dyn Query>| {
            clauses.push((Occur::Must, Box::new(ConstScoreQuery::new(query, 0.0))));
        };
        let rooms = query.rooms.iter().map(|room| Term::from_field_u64(fields.room, room.0));
        filter(Box::new(TermSetQuery::new(rooms)));
        if let Some(senders) = &query.senders {
            let senders = senders.iter().map(|sender| Term::from_field_text(fields.sender, sender));
            filter(Box::new(TermSetQuery::new(senders)));
        }
        if let Some(before) = query.before {
            let before = Term::from_field_i64(fields.at, before.0);
            filter(Box::new(RangeQuery::new(Bound::Unbounded, Bound::Excluded(before))));
        }
        Some(BooleanQuery::new(clauses))
    }
}

fn open(folder: &Path) -> Result<Open, TextError> {
    std::fs::create_dir_all(folder)?;
    let directory = MmapDirectory::open(folder).map_err(TantivyError::from)?;
    let index = Index::open_or_create(directory, schema().0)?;
    index.tokenizers().register(TOKENIZER, analyzer());
    let cursor = index.load_metas()?.payload.and_then(|payload| payload.parse().ok());
    let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
    Ok(Open { index, reader, writer: None, cursor: Position(cursor.unwrap_or_default()) })
}

/// Runs something of the index's on a thread that may block.
pub async fn blocking<T: Send + 'static>(
    index: &Arc<TextIndex>,
    run: impl FnOnce(&TextIndex) -> Result<T, TextError> + Send + 'static,
) -> Result<T, TextError> {
    let index = index.clone();
    #[expect(clippy::disallowed_methods, reason = "the index reads and writes files")]
    let ran = tokio::task::spawn_blocking(move || run(&index)).await;
    ran.unwrap_or_else(|error| Err(TextError::Index(TantivyError::ErrorInThread(error.to_string()))))
}

#[cfg(test)]
mod tests;
