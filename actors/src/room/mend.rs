//! States that lack events whose signatures could not be checked when they were fetched: mended once those are known.
//!
//! A server that does not answer may be back in a minute, or be gone for ever, and a room cannot wait for it: nobody
//! would have to do more than keep silent to stop it. So after some failures a state is used without what such a server
//! signed, and what it lacks is noted with the event that it is the state before (`STATE_LACKS`). As soon as a lacking
//! event is known, in whatever way, it is put into these states, before anything is judged that refers to it; what came
//! since then is judged anew.
//!
//! Spec: server-server API, "Checks performed on receipt of a PDU".

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use engine::{
    id::{ShortEventId, TimelineIndex},
    pdu::Pdu,
    room::{again::by_graph, event::Standing, mend::Mended},
};
use ruma::{OwnedEventId, OwnedServerName};
use storage::{
    Direction, KeyRange,
    schema::{self, StateLackRecord},
};

use super::{ActiveRoom, RoomError, StoredEvent, change::Change};

/// Events that a room's states lack, by the events that they are the states before; each with the server without whose
/// keys it could not be checked.
pub type Lacks = imbl::OrdMap<(OwnedEventId, ShortEventId), OwnedServerName>;

/// Events that a fetched state lacks, each with the server without whose keys it could not be checked.
pub type Lacking = BTreeMap<OwnedEventId, OwnedServerName>;

/// What is noted of the states of a room, at most: a state that lacks more is of little use anyway.
const LACKS_MAX: usize = 10_000;

/// Events of the timeline that are judged anew, at most. With more of them, only the present state is mended.
const SINCE_MAX: usize = 2000;

/// What is judged anew.
struct Since {
    /// The events, each after those that it follows.
    events: Vec<Arc<StoredEvent>>,
    /// Whether there are none too many.
    is_all: bool,
}

impl ActiveRoom {
    /// What the states of a room lack, from the store.
    pub(super) fn lacks_of(
        rows: Vec<((engine::id::ShortRoomId, OwnedEventId, ShortEventId), StateLackRecord)>,
    ) -> Lacks {
        rows.into_iter().map(|((_, lacking, event), record)| ((lacking, event), record.server)).collect()
    }

    /// Notes what the state before an event lacks.
    pub(super) fn note_lacking(&self, change: &mut Change, event: ShortEventId, lacking: &Lacking) {
        for (id, server) in lacking {
            if change.head.lacks.len() >= LACKS_MAX {
                tracing::warn!(room.id = %self.room_id, "a state lacks too many events to note them");
                return;
            }
            let record = StateLackRecord { room_id: self.room_id.clone(), server: server.clone() };
            change.batch.put(&schema::STATE_LACKS, &(self.room, id.clone(), event), &record);
            change.head.lacks.insert((id.clone(), event), server.clone());
        }
    }

    /// Those of some events that are not known, since something that could not be checked authorises them.
    pub(super) async fn unknown_for_want_of(
        &self,
        change: &Change,
        ids: &[OwnedEventId],
        unchecked: &Lacking,
    ) -> Result<Lacking, RoomError> {
        let mut unknown = Vec::new();
        for id in ids.iter().filter(|_| !unchecked.is_empty()) {
            if self.known_event(change, id).await?.is_none() {
                unknown.push(id.clone());
            }
        }
        Ok(lacking_of(&unknown, unchecked))
    }

    /// Forgets what states lack: the room starts over with another one.
    pub(super) fn forget_lacking(&self, change: &mut Change) {
        for ((lacking, event), _) in std::mem::take(&mut change.head.lacks) {
            change.batch.delete(&schema::STATE_LACKS, &(self.room, lacking, event));
        }
    }

    /// Puts events into the states that lack them, if they are known by now, and judges anew what came after that.
    pub(super) async fn mend(
        &self,
        change: &mut Change,
        known: impl IntoIterator<Item = OwnedEventId>,
    ) -> Result<(), RoomError> {
        if change.head.lacks.is_empty() {
            return Ok(());
        }
        let mut states = BTreeMap::<ShortEventId, Vec<OwnedEventId>>::new();
        for id in known {
            let from = (id.clone(), ShortEventId(0));
            let keys: Vec<_> = change
                .head
                .lacks
                .range(from..)
                .map(|(key, _)| key.clone())
                .take_while(|key| key.0 == id)
                .collect();
            if keys.is_empty() || self.known_event(change, &id).await?.is_none() {
                continue;
            }
            for (id, event) in keys {
                change.head.lacks.remove(&(id.clone(), event));
                change.batch.delete(&schema::STATE_LACKS, &(self.room, id.clone(), event));
                states.entry(event).or_default().push(id);
            }
        }
        if states.is_empty() { Ok(()) } else { self.mend_states(change, &states).await }
    }

    async fn mend_states(
        &self,
        change: &mut Change,
        states: &BTreeMap<ShortEventId, Vec<OwnedEventId>>,
    ) -> Result<(), RoomError> {
        let lacking: BTreeSet<_> = states.values().flatten().cloned().collect();
        let lacking: Vec<_> = lacking.into_iter().collect();
        let Since { events, is_all } = self.events_since(change, states.keys().copied()).await?;
        let root = change.head.root;
        let mut came = Vec::new();
        if is_all {
            came = self.judge_mended(change, states, &events).await?;
        } else {
            self.mend_tips(change, &lacking).await?;
        }
        change.head.tips = self.mended_tips(change, &events).await?;
        let tips = change.head.tips.clone();
        change.head.root = self.decide(change, |room| room.state_after_all(&tips)).await?;
        for short in &came {
            let event = self.event(change, *short).await?;
            let (after, mut tips) = self.decide(change, |room| room.follow(&event)).await?;
            let event = Arc::new(StoredEvent { after, ..(*event).clone() });
            change.replace(&event);
            tips.push(event);
            tips.sort_by_key(|tip| tip.short);
            (change.head.root, change.head.tips) = (after, tips);
        }
        self.place(change, &came).await?;
        let mended = std::mem::replace(&mut change.head.root, root);
        let ticket = self.shared.store.storage().reserve(1);
        let moves = self.decide(change, |room| room.moves(mended)).await?;
        self.move_state(change, moves, TimelineIndex::from(ticket.last())).await?;
        change.tickets.push(ticket);
        tracing::info!(
            room.id = %self.room_id, lacking = lacking.len(), states = states.len(), came = came.len(),
            "put events into states that lacked them"
        );
        Ok(())
    }

    /// Judges events by mended states; returns those that were refused and are part of the room now.
    async fn judge_mended(
        &self,
        change: &mut Change,
        states: &BTreeMap<ShortEventId, Vec<OwnedEventId>>,
        events: &[Arc<StoredEvent>],
    ) -> Result<Vec<ShortEventId>, RoomError> {
        let (mut mended, mut came) = (BTreeSet::new(), Vec::new());
        for event in events {
            let given = match states.get(&event.short) {
                Some(ids) => Some(self.decide(change, |room| room.with_lacking(event.before, ids)).await?),
                None => None,
            };
            let pdu = Pdu::from_stored(event.pdu.event_id().clone(), event.pdu.raw().clone())?;
            let event = StoredEvent { pdu: Arc::new(pdu), ..StoredEvent::clone(event) };
            match self.decide(change, |room| room.judge_mended(&event, &mended, given)).await? {
                Mended::Untouched => continue,
                Mended::Refused(refused, reason) => {
                    tracing::debug!(event_id = %event.pdu.event_id(), %reason, "refused an event after all");
                    self.refuse(change, refused).await?;
                }
                Mended::Stands(mut stands) => {
                    if event.standing == Standing::Rejected && stands.standing == Standing::Accepted {
                        came.push(event.short);
                    }
                    // What clients were told of the state by then stays, so that they are told what is different now.
                    if stands.standing != Standing::Accepted {
                        stands.after = stands.before;
                    }
                    change.replace(&Arc::new(stands));
                }
            }
            mended.insert(event.pdu.event_id().clone());
        }
        Ok(came)
    }

    /// Puts events into the states at the forward extremities.
    async fn mend_tips(&self, change: &mut Change, lacking: &[OwnedEventId]) -> Result<(), RoomError> {
        for tip in change.head.tips.clone() {
            let before = self.decide(change, |room| room.with_lacking(tip.before, lacking)).await?;
            change.replace(&Arc::new(StoredEvent { before, ..(*tip).clone() }));
        }
        Ok(())
    }

    /// The forward extremities as they are now. In the place of one that is refused come those events before it that
    /// nothing else comes after.
    async fn mended_tips(
        &self,
        change: &Change,
        events: &[Arc<StoredEvent>],
    ) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        let (mut tips, mut refused) = (BTreeMap::new(), VecDeque::new());
        for tip in &change.head.tips {
            let tip = self.event(change, tip.short).await?;
            if tip.standing == Standing::Accepted {
                tips.insert(tip.short, tip);
            } else {
                refused.push_back(tip);
            }
        }
        if refused.is_empty() {
            return Ok(tips.into_values().collect());
        }
        let mut followed = BTreeSet::new();
        for event in events {
            let event = self.event(change, event.short).await?;
            if event.standing == Standing::Accepted {
                followed.extend(event.pdu.prev_events().iter().cloned());
            }
        }
        while let Some(event) = refused.pop_front() {
            for id in event.pdu.prev_events().iter().filter(|id| !followed.contains(*id)) {
                match self.known_event(change, id).await? {
                    Some(prev) if prev.standing == Standing::Accepted => drop(tips.insert(prev.short, prev)),
                    Some(prev) if prev.has_place() => refused.push_back(prev),
                    _ => {}
                }
            }
        }
        Ok(tips.into_values().collect())
    }

    /// Some events, the events of the timeline since the first of them, and what is not shown and comes between.
    async fn events_since(
        &self,
        change: &Change,
        first: impl Iterator<Item = ShortEventId> + std::marker::Send,
    ) -> Result<Since, RoomError> {
        let storage = self.shared.store.storage();
        // What is under way is in the store then.
        storage.commit(storage::Batch::default()).await.map_err(RoomError::Commit)?;
        let mut found = BTreeMap::new();
        let mut from = TimelineIndex(i64::MAX);
        let place = |event: &StoredEvent| {
            event.index.unwrap_or_else(|| TimelineIndex::from(engine::id::Position(event.short.0)))
        };
        for event in self.events(change, first.collect::<BTreeSet<_>>()).await? {
            from = from.min(place(&event));
            found.insert(event.short, event);
        }
        let oldest = found.keys().next().copied();
        let timeline = KeyRange::prefix(&(self.room,)).from(&(self.room, from));
        let timeline =
            storage.range(&schema::TIMELINE, timeline, Direction::Ascending, SINCE_MAX + 1).await?;
        let is_all = timeline.len() <= SINCE_MAX;
        let timeline = timeline.into_iter().map(|(_, short)| short).collect::<BTreeSet<_>>();
        let mut open: VecDeque<_> = self.events(change, timeline).await?.into();
        let own = change.hidden.values().chain(&change.events);
        open.extend(own.filter(|event| event.has_place() && place(event) >= from).cloned());
        // What was refused, or waits for its target, leads on to what follows it.
        while let Some(event) = open.pop_front().filter(|_| found.len() <= 2 * SINCE_MAX) {
            let known = found.insert(event.short, event.clone());
            if known.is_some() {
                continue;
            }
            for id in event.pdu.prev_events() {
                let prev = self.known_event(change, id).await?;
                let is_between = |prev: &Arc<StoredEvent>| {
                    prev.index.is_none() && prev.has_place() && Some(prev.short) > oldest
                };
                open.extend(prev.filter(is_between));
            }
        }
        let mut events: Vec<_> = found.into_values().collect();
        events.sort_by_key(|event| place(event));
        Ok(Since { events: by_graph(&events), is_all })
    }
}

/// Those of some events of a state that are not known, with the servers whose keys are lacking: their own, or one that
/// they cannot be judged without.
pub(crate) fn lacking_of(unknown: &[OwnedEventId], unchecked: &Lacking) -> Lacking {
    let Some(any) = unchecked.values().next() else { return Lacking::new() };
    unknown.iter().map(|id| (id.clone(), unchecked.get(id).unwrap_or(any).clone())).collect()
}

/// A state as another server gave it.
#[derive(Clone, Debug, Default)]
pub struct GivenState {
    /// Its events, of which not all may be known.
    pub events: Vec<OwnedEventId>,
    /// What it lacks and may be had later.
    pub lacking: Lacking,
}
