//! Events as readers hold them, and the caches that they come from.

use std::sync::Arc;

use engine::{
    id::{ShortEventId, ShortRoomId, TimelineIndex},
    pdu::Pdu,
    room::receive::Standing,
    state::{self, Missing, Node, NodeId, NodeSource, StateRoot},
};
use quick_cache::{Weighter, sync::Cache};
use ruma::EventId;
use storage::{
    Storage, StoreError,
    schema::{self, EventRecord, SentBy},
};

/// An event with its place in the room; immutable, shared by everyone who reads it.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    /// The event's local number.
    pub short: ShortEventId,
    /// The room's local number.
    pub room: ShortRoomId,
    /// The event.
    pub pdu: Arc<Pdu>,
    /// The place in the timeline, if it is in there.
    pub index: Option<TimelineIndex>,
    /// How it fared in the checks on receipt.
    pub standing: Standing,
    /// State before the event.
    pub before: StateRoot,
    /// The room's current state once the event was in.
    pub after: StateRoot,
    /// The state event that it replaced.
    pub replaces: Option<ShortEventId>,
    /// The event that redacted it.
    pub redacted_by: Option<ShortEventId>,
    /// The local client's transaction, if one sent it.
    pub sent_by: Option<SentBy>,
    /// One more than the highest rank of its auth events; 0 without any.
    pub rank: u64,
    /// Whether other events may relate to it.
    pub has_relations: bool,
}

impl StoredEvent {
    /// The event as the store holds it.
    pub fn from_record(short: ShortEventId, record: EventRecord) -> Result<Self, ReadError> {
        let pdu = Pdu::from_stored(record.event_id, record.json)
            .map_err(|error| ReadError::Damaged { short, reason: error.to_string() })?;
        let pdu = if record.standing == Standing::Rejected { pdu.rejected() } else { pdu };
        Ok(Self {
            short,
            room: record.room,
            pdu: Arc::new(pdu),
            index: record.index,
            standing: record.standing,
            before: record.before,
            after: record.after,
            replaces: record.replaces,
            redacted_by: record.redacted_by,
            sent_by: record.sent_by,
            rank: record.rank,
            has_relations: record.has_relations,
        })
    }

    /// The row to store.
    pub fn to_record(&self) -> EventRecord {
        EventRecord {
            room: self.room,
            event_id: self.pdu.event_id().to_owned(),
            json: self.pdu.raw().clone(),
            index: self.index,
            standing: self.standing,
            before: self.before,
            after: self.after,
            replaces: self.replaces,
            redacted_by: self.redacted_by,
            sent_by: self.sent_by.clone(),
            rank: self.rank,
            has_relations: self.has_relations,
        }
    }

    /// Whether it has a place in the graph, so that the state before it is known.
    ///
    /// An outlier has none, and neither has an event that was rejected as one.
    pub fn has_place(&self) -> bool {
        match self.standing {
            Standing::Accepted | Standing::SoftFailed => true,
            Standing::Rejected => self.before != StateRoot::default() || self.pdu.prev_events().is_empty(),
            Standing::Outlier => false,
        }
    }

    /// About how much memory it takes, in bytes.
    pub fn weight(&self) -> u64 {
        // The parsed header repeats some strings of the JSON: twice its size covers both.
        512 + 2 * self.pdu.raw().len() as u64
    }
}

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored event cannot be parsed.
    #[error("stored event {} is damaged: {reason}", short.0)]
    Damaged {
        /// The event.
        short: ShortEventId,
        /// What is wrong with it.
        reason: String,
    },
    /// A row that another one names is not there.
    #[error("the store lacks {0}; run a check of the store")]
    Lost(String),
}

#[derive(Clone)]
struct EventWeight;

impl Weighter<ShortEventId, Arc<StoredEvent>> for EventWeight {
    fn weight(&self, _key: &ShortEventId, event: &Arc<StoredEvent>) -> u64 {
        event.weight()
    }
}

#[derive(Clone)]
struct NodeWeight;

impl Weighter<NodeId, Arc<Node>> for NodeWeight {
    fn weight(&self, _key: &NodeId, node: &Arc<Node>) -> u64 {
        node.weight() as u64
    }
}

/// Events and state nodes of all rooms, cached in front of the store within a byte budget.
///
/// Both are immutable, so a cached one is never wrong; a redacted event replaces its entry.
pub struct RoomStore {
    storage: Storage,
    events: Cache<ShortEventId, Arc<StoredEvent>, EventWeight>,
    nodes: Cache<NodeId, Arc<Node>, NodeWeight>,
}

impl NodeSource for RoomStore {
    fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        self.nodes.get(&id)
    }
}

impl RoomStore {
    /// Caches in front of `storage` that together hold about `budget_bytes`.
    pub fn new(storage: Storage, budget_bytes: u64) -> Self {
        let half = (budget_bytes / 2).max(1 << 16);
        // Entry estimates only size the tables; the weights are what bounds them.
        let entries = usize::try_from(half / 2048).unwrap_or(usize::MAX).max(64);
        Self {
            storage,
            events: Cache::with_weighter(entries, half, EventWeight),
            nodes: Cache::with_weighter(entries, half, NodeWeight),
        }
    }

    /// The store behind the caches.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// An event by its local number.
    pub async fn event(&self, short: ShortEventId) -> Result<Arc<StoredEvent>, ReadError> {
        if let Some(event) = self.events.get(&short) {
            return Ok(event);
        }
        let record = self
            .storage
            .get(&schema::EVENTS, &short)
            .await?
            .ok_or_else(|| ReadError::Lost(format!("event {}", short.0)))?;
        self.keep(short, record)
    }

    /// Several events, in the order asked for, with one trip to the store.
    pub async fn events(&self, shorts: &[ShortEventId]) -> Result<Vec<Arc<StoredEvent>>, ReadError> {
        let mut found: Vec<_> = shorts.iter().map(|short| self.events.get(short)).collect();
        let absent: Vec<_> =
            shorts.iter().zip(&found).filter(|(_, hit)| hit.is_none()).map(|(short, _)| *short).collect();
        if !absent.is_empty() {
            let mut records =
                self.storage.get_many(&schema::EVENTS, absent.iter().copied()).await?.into_iter();
            let mut absent = absent.into_iter();
            for slot in found.iter_mut().filter(|slot| slot.is_none()) {
                let (Some(short), Some(Some(record))) = (absent.next(), records.next()) else {
                    return Err(ReadError::Lost("an event of the timeline or state".to_owned()));
                };
                *slot = Some(self.keep(short, record)?);
            }
        }
        Ok(found.into_iter().flatten().collect())
    }

    /// The local number of an event.
    pub async fn short_id(&self, event_id: &EventId) -> Result<Option<ShortEventId>, ReadError> {
        Ok(self.storage.get(&schema::EVENT_IDS, event_id).await?)
    }

    /// An event by its ID, if it is known.
    pub async fn event_by_id(&self, event_id: &EventId) -> Result<Option<Arc<StoredEvent>>, ReadError> {
        match self.short_id(event_id).await? {
            Some(short) => Ok(Some(self.event(short).await?)),
            None => Ok(None),
        }
    }

    /// Puts a committed event in front of the store, in place of an older version of it.
    pub fn remember(&self, event: &Arc<StoredEvent>) {
        self.events.insert(event.short, event.clone());
    }

    /// Puts a state node in front of the store.
    pub fn remember_node(&self, id: NodeId, node: Arc<Node>) {
        self.nodes.insert(id, node);
    }

    /// Runs a state operation, fetching the nodes that it asks for until it has all of them.
    pub async fn with_nodes<T>(
        &self,
        operation: impl Fn(&dyn NodeSource) -> Result<T, Missing>,
    ) -> Result<T, ReadError> {
        // What this operation fetched, so that an eviction in between cannot make it start over.
        let mut fetched = Fetched { behind: self, own: std::collections::BTreeMap::new() };
        loop {
            let Missing(ids) = match operation(&fetched) {
                Ok(value) => return Ok(value),
                Err(missing) => missing,
            };
            let rows = self.storage.get_many(&schema::STATE_NODES, ids.iter().map(|id| id.0)).await?;
            for (id, row) in ids.into_iter().zip(rows) {
                let row = row.ok_or_else(|| ReadError::Lost(format!("state node {id:?}")))?;
                let node = Node::decode(&row)
                    .map_err(|error| ReadError::Lost(format!("state node {id:?}: {error}")))?;
                if node.id() != id {
                    return Err(ReadError::Lost(format!("state node {id:?}: another one is in its place")));
                }
                let node = Arc::new(node);
                self.nodes.insert(id, node.clone());
                fetched.own.insert(id, node);
            }
        }
    }

    /// The event that holds one key of a state.
    pub async fn state_event(
        &self,
        root: StateRoot,
        kind: &str,
        state_key: &str,
    ) -> Result<Option<Arc<StoredEvent>>, ReadError> {
        let short = self.with_nodes(|nodes| state::get(nodes, root, kind, state_key)).await?;
        match short {
            Some(short) => Ok(Some(self.event(short).await?)),
            None => Ok(None),
        }
    }

    /// Drops what is cached of an event, so that the next read sees the store.
    pub fn forget(&self, short: ShortEventId) {
        self.events.remove(&short);
    }

    fn keep(&self, short: ShortEventId, record: EventRecord) -> Result<Arc<StoredEvent>, ReadError> {
        let event = Arc::new(StoredEvent::from_record(short, record)?);
        self.events.insert(short, event.clone());
        Ok(event)
    }
}

struct Fetched<'a> {
    behind: &'a RoomStore,
    own: std::collections::BTreeMap<NodeId, Arc<Node>>,
}

impl NodeSource for Fetched<'_> {
    fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        self.own.get(&id).cloned().or_else(|| self.behind.nodes.get(&id))
    }
}
