//! A room as each of its servers knows it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use engine::{id::TimelineIndex, pdu::Pdu};
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, RoomId};
use storage::schema::Standing;

use actors::room::{RoomHandle, StoredEvent};

use crate::{host::Boot, world::World};

/// Holes of a timeline that are filled, at most.
const GAPS_MAX: usize = 1000;

/// A room as each of its servers knows it.
pub struct History {
    /// The room.
    pub room: OwnedRoomId,
    /// The servers that are in it.
    pub sides: Vec<Side>,
}

/// A room as one server knows it.
pub struct Side {
    /// The server.
    pub host: OwnedServerName,
    /// The room's handle there.
    pub handle: RoomHandle,
    /// The graph, from the forward extremities on, and what is missing of it.
    pub graph: BTreeMap<OwnedEventId, Option<Arc<StoredEvent>>>,
    /// The forward extremities.
    pub tips: BTreeSet<OwnedEventId>,
    /// The current state.
    pub state: BTreeMap<(String, String), OwnedEventId>,
}

impl History {
    /// Reads a room from all servers that are in it; each first fills the holes of its timeline, as paging back does.
    pub async fn read(world: &World, room: &RoomId) -> Result<Self> {
        let (mut sides, mut shared) = (Vec::new(), Shared::new());
        for (host, boot) in world.boots() {
            let Ok(handle) = boot.homeserver().room(room).await else { continue };
            if !handle.snapshot().head.has_server(&host) {
                continue;
            }
            fill_holes(&boot, &handle).await.with_context(|| format!("{host} fills the holes of {room}"))?;
            let graph = graph(&handle, &mut shared).await?;
            let state = handle.state(handle.snapshot().head.root, None).await?;
            let state = state.iter().map(|event| {
                let key = event.pdu.state_key().unwrap_or_default().to_owned();
                ((event.pdu.kind().to_owned(), key), event.pdu.event_id().clone())
            });
            let state = state.collect();
            let tips = handle.snapshot().head.tips.iter().map(|tip| tip.pdu.event_id().clone()).collect();
            sides.push(Side { host, handle, graph, tips, state });
        }
        Ok(Self { room: room.to_owned(), sides })
    }
}

/// Fills the holes of a timeline, the newest first; one that cannot be filled stays.
async fn fill_holes(boot: &Boot, room: &RoomHandle) -> Result<()> {
    let (first, mut until) = (TimelineIndex(i64::MIN), TimelineIndex(i64::MAX));
    for _ in 0..GAPS_MAX {
        let Some(newest) = room.newest_gap(first, until) else { return Ok(()) };
        if !boot.homeserver().fill_gap(room, first, until).await? {
            until = TimelineIndex(newest.0 - 1);
        }
    }
    bail!("it never comes to the end")
}

/// Events that several servers have alike: a thousand servers' graphs would not fit into memory otherwise.
type Shared = BTreeMap<OwnedEventId, Arc<Pdu>>;

async fn graph(
    handle: &RoomHandle,
    shared: &mut Shared,
) -> Result<BTreeMap<OwnedEventId, Option<Arc<StoredEvent>>>> {
    let mut graph = BTreeMap::new();
    let mut open: Vec<_> = handle.snapshot().head.tips.iter().map(|tip| tip.pdu.event_id().clone()).collect();
    while let Some(id) = open.pop() {
        if graph.contains_key(&id) {
            continue;
        }
        let event = handle.any_event(&id).await?.filter(|event| event.standing != Standing::Outlier);
        let event = event.map(|event| {
            open.extend(event.pdu.prev_events().iter().cloned());
            let pdu = shared.entry(id.clone()).or_insert_with(|| event.pdu.clone());
            if pdu.raw() != event.pdu.raw() {
                return event;
            }
            Arc::new(StoredEvent { pdu: pdu.clone(), ..(*event).clone() })
        });
        graph.insert(id, event);
    }
    Ok(graph)
}

impl Side {
    /// Events of the graph with one standing.
    pub fn with_standing(
        &self,
        standing: Standing,
    ) -> impl Iterator<Item = (&OwnedEventId, &Arc<StoredEvent>)> {
        self.graph
            .iter()
            .filter_map(|(id, event)| Some((id, event.as_ref()?)))
            .filter(move |(_, event)| event.standing == standing)
    }
}
