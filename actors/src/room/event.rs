//! Events as readers hold them, and the caches that they come from.

use std::sync::Arc;

use engine::{
    id::ShortEventId,
    room::StoredEvent,
    state::{self, Missing, Node, NodeId, NodeSource, StateRoot},
};
use quick_cache::{Weighter, sync::Cache};
use ruma::{EventId, OwnedEventId};
use storage::{
    Storage, StoreError,
    schema::{self, EventRecord},
};

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

impl ReadError {
    /// Whether it is about one row, which stays as it is: to read it again does not help.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Store(error) => error.is_damage(),
            Self::Damaged { .. } | Self::Lost(_) => true,
        }
    }
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

    /// The local numbers of some events.
    pub async fn short_ids(&self, ids: &[OwnedEventId]) -> Result<Vec<Option<ShortEventId>>, ReadError> {
        Ok(self.storage.get_many(&schema::EVENT_IDS, ids.iter().cloned()).await?)
    }

    /// An event by its ID, if it is known.
    pub async fn event_by_id(&self, event_id: &EventId) -> Result<Option<Arc<StoredEvent>>, ReadError> {
        match self.short_id(event_id).await? {
            Some(short) => Ok(Some(self.event(short).await?)),
            None => Ok(None),
        }
    }

    /// An event that is cached.
    pub fn cached(&self, short: ShortEventId) -> Option<Arc<StoredEvent>> {
        self.events.get(&short)
    }

    /// The nodes of some addresses.
    pub async fn fetch_nodes(&self, ids: &[NodeId]) -> Result<Vec<Arc<Node>>, ReadError> {
        let rows = self.storage.get_many(&schema::STATE_NODES, ids.iter().map(|id| id.0)).await?;
        let mut nodes = Vec::with_capacity(ids.len());
        for (id, row) in ids.iter().zip(rows) {
            let row = row.ok_or_else(|| ReadError::Lost(format!("state node {id:?}")))?;
            let node =
                Node::decode(&row).map_err(|error| ReadError::Lost(format!("state node {id:?}: {error}")))?;
            if node.id() != *id {
                return Err(ReadError::Lost(format!("state node {id:?}: another one is in its place")));
            }
            let node = Arc::new(node);
            self.nodes.insert(*id, node.clone());
            nodes.push(node);
        }
        Ok(nodes)
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
            let nodes = self.fetch_nodes(&ids).await?;
            fetched.own.extend(ids.into_iter().zip(nodes));
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
        let event = record.into_event(short);
        let event = event.map_err(|error| ReadError::Damaged { short, reason: error.to_string() })?;
        let event = Arc::new(event);
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
