//! A change in the making: events that a room appends together, in one atomic batch.
//!
//! It works on a copy of the room's head, which is cheap. If an event is refused half-way, the copy is
//! dropped and nothing has happened.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use engine::{
    auth::{self, Powers},
    id::{Position, ShortEventId, ShortRoomId, TimelineIndex},
    pdu::{self, BuildContext, Draft, Pdu},
    room_version::RoomVersion,
    state::{self, Missing, Node, NodeId, NodeSource, StateRoot},
};
use ruma::{EventId, OwnedEventId, OwnedServerName, OwnedUserId, ServerName, UserId, events::StateEventType};
use storage::{
    Batch, Ticket,
    schema::{self, MembershipRecord, RoomRecord, SentBy, Standing, TxnKey},
};

use super::{
    ActiveRoom, RoomError, RoomHead, StateKey, StoredEvent, content, extremities::PREV_EVENTS_MAX,
    relations::RelationChange,
};
use crate::session::RoomEntry;

/// Events that are appended together, and what follows from them.
pub(super) struct Change {
    /// The room's head once the change is in.
    pub(super) head: RoomHead,
    /// The state events that the change set.
    pub(super) hot: imbl::OrdMap<StateKey, Arc<StoredEvent>>,
    /// The rows to store.
    pub(super) batch: Batch,
    /// The new events, in order.
    pub(super) events: Vec<Arc<StoredEvent>>,
    /// Events that are stored without a place in the timeline.
    pub(super) hidden: BTreeMap<ShortEventId, Arc<StoredEvent>>,
    /// Their numbers.
    pub(super) hidden_ids: BTreeMap<OwnedEventId, ShortEventId>,
    /// Older events that changed (were redacted).
    pub(super) replaced: Vec<Arc<StoredEvent>>,
    /// What relates to other events now, or does no more.
    pub(super) relations: Vec<RelationChange>,
    /// New nodes of the state tree.
    pub(super) nodes: BTreeMap<NodeId, Arc<Node>>,
    /// New relations of local users to the room.
    pub(super) memberships: Vec<(OwnedUserId, MembershipRecord)>,
    /// Whether this server passes events of others on to the servers in the room: it let them in.
    pub(super) relays: bool,
    /// Other servers that have members here now, and had none before.
    pub(super) newcomers: Vec<OwnedServerName>,
    /// The positions that the change takes.
    pub(super) tickets: Vec<Ticket>,
    /// States that were resolved from others.
    pub(super) merged: imbl::OrdMap<Vec<StateRoot>, StateRoot>,
}

impl Change {
    pub(super) fn new(room: &ActiveRoom) -> Self {
        Self {
            head: room.head.clone(),
            hot: room.hot.clone(),
            batch: Batch::default(),
            events: Vec::new(),
            hidden: BTreeMap::new(),
            hidden_ids: BTreeMap::new(),
            replaced: Vec::new(),
            relations: Vec::new(),
            nodes: BTreeMap::new(),
            memberships: Vec::new(),
            relays: false,
            newcomers: Vec::new(),
            tickets: Vec::new(),
            merged: room.merged.clone(),
        }
    }

    /// Takes a new root with the nodes that it needs.
    pub(super) fn set_nodes(&mut self, applied: state::Applied) -> StateRoot {
        for (id, node) in applied.new_nodes {
            self.batch.put(&schema::STATE_NODES, &id.0, &node.encode().into());
            self.nodes.insert(id, node);
        }
        applied.root
    }

    /// Puts a changed event in the place of its former self.
    pub(super) fn replace(&mut self, event: &Arc<StoredEvent>) {
        self.batch.put(&schema::EVENTS, &event.short, &event.to_record());
        if let Some(state_key) = event.pdu.state_key() {
            let key = (event.pdu.kind().to_owned(), state_key.to_owned());
            if self.hot.get(&key).is_some_and(|held| held.short == event.short) {
                self.hot.insert(key, event.clone());
            }
        }
        self.head.replace_recent(event);
        if let Some(held) = self.hidden.get_mut(&event.short) {
            *held = event.clone();
        }
        self.replaced.retain(|held| held.short != event.short);
        self.replaced.push(event.clone());
    }

    /// The newest position of the change.
    pub(super) fn position(&self) -> Position {
        self.tickets.last().map_or(Position(0), Ticket::last)
    }

    /// What to tell active sessions about their memberships.
    pub(super) fn entries(&self) -> Vec<(OwnedUserId, RoomEntry)> {
        let position = self.position();
        self.memberships
            .iter()
            .map(|(user, record)| (user.clone(), RoomEntry::new(record.clone(), position)))
            .collect()
    }
}

/// A member whose event in the current state changed.
pub(super) struct MemberChange<'a> {
    /// The event that held the place before.
    pub(super) before: Option<&'a StoredEvent>,
    /// The event that holds it now.
    pub(super) after: Option<&'a StoredEvent>,
    /// Where in the timeline it changed.
    pub(super) at: TimelineIndex,
}

/// What a local user's relation to the room becomes.
pub(super) struct Membership {
    /// Whose it is.
    pub(super) user: OwnedUserId,
    /// The membership event.
    pub(super) event: ShortEventId,
    /// Where in the timeline it changes.
    pub(super) at: TimelineIndex,
    /// What it becomes.
    pub(super) after: String,
}

/// Nodes of a change that is not stored yet, in front of the room's own.
struct NodesOf<'a> {
    change: &'a BTreeMap<NodeId, Arc<Node>>,
    pending: &'a Pending,
    behind: &'a dyn NodeSource,
}

impl NodeSource for NodesOf<'_> {
    fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        let cached = self.change.get(&id).cloned().or_else(|| self.behind.node(id));
        cached.or_else(|| self.pending.node(id))
    }
}

/// What the room appended and the store has not confirmed yet.
#[derive(Default)]
pub(super) struct Pending(VecDeque<InFlight>);

struct InFlight {
    position: Position,
    events: Vec<Arc<StoredEvent>>,
    nodes: BTreeMap<NodeId, Arc<Node>>,
}

impl Pending {
    /// Keeps what a submitted change wrote until it is durable.
    pub(super) fn add(&mut self, change: &mut Change) {
        let hidden = std::mem::take(&mut change.hidden).into_values();
        let events = hidden.chain(change.events.iter().chain(&change.replaced).cloned()).collect();
        let nodes = std::mem::take(&mut change.nodes);
        self.0.push_back(InFlight { position: change.position(), events, nodes });
    }

    /// Lets go of what the store can give by now.
    pub(super) fn confirm(&mut self, watermark: Position) {
        while self.0.front().is_some_and(|oldest| oldest.position <= watermark) {
            self.0.pop_front();
        }
    }

    fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        self.0.iter().rev().find_map(|change| change.nodes.get(&id).cloned())
    }

    /// Events that are not durable yet, the newest form of each first.
    pub(super) fn events(&self) -> impl Iterator<Item = &Arc<StoredEvent>> {
        self.0.iter().rev().flat_map(|change| change.events.iter().rev())
    }

    fn find(&self, is_it: impl Fn(&StoredEvent) -> bool) -> Option<&Arc<StoredEvent>> {
        self.events().find(|event| is_it(event))
    }
}

impl ActiveRoom {
    /// Builds, authorises and appends one event of a local user.
    pub(super) async fn append(
        &self,
        change: &mut Change,
        sender: &UserId,
        draft: Draft,
        sent_by: Option<SentBy>,
    ) -> Result<OwnedEventId, RoomError> {
        self.check_membership(change, sender, &draft).await?;
        // An event that comes after all others is judged alike everywhere; who may not make that so goes on without.
        self.tie_down_to(change, sender, PREV_EVENTS_MAX).await?;
        let auth_events = self.auth_events(change, sender, &draft).await?;
        let pdu = self.build(change, sender, draft, &auth_events)?;
        self.admit(change, pdu, &auth_events, sent_by).await
    }

    /// Builds and authorises an event without appending it.
    pub(super) async fn prepare(
        &self,
        change: &Change,
        sender: &UserId,
        draft: Draft,
    ) -> Result<Pdu, RoomError> {
        let auth_events = self.auth_events(change, sender, &draft).await?;
        let pdu = self.build(change, sender, draft, &auth_events)?;
        let create = self.current(change, "m.room.create", "").await?;
        check(&pdu, &auth_events, create.as_deref(), self.rules)?;
        Ok(pdu)
    }

    /// Authorises and appends an event that is already built.
    pub(super) async fn admit(
        &self,
        change: &mut Change,
        pdu: Pdu,
        auth_events: &BTreeMap<StateKey, Arc<StoredEvent>>,
        sent_by: Option<SentBy>,
    ) -> Result<OwnedEventId, RoomError> {
        // From version 12 on the create event authorises everything without being an auth event.
        let create = self.current(change, "m.room.create", "").await?;
        check(&pdu, auth_events, create.as_deref(), self.rules)?;
        let target = self.redaction_target(change, &pdu).await?;
        let rank = auth_events.values().map(|event| event.rank + 1).max().unwrap_or(0);
        let event = self.insert(change, Arc::new(pdu), rank, sent_by).await?;
        if let Some(target) = target {
            self.redact(change, &target, &event).await?;
        }
        Ok(event.pdu.event_id().to_owned())
    }

    /// The current state events that authorise an event.
    pub(super) async fn auth_events(
        &self,
        change: &Change,
        sender: &UserId,
        draft: &Draft,
    ) -> Result<BTreeMap<StateKey, Arc<StoredEvent>>, RoomError> {
        let keys =
            auth::auth_keys(&draft.kind, sender, draft.state_key.as_deref(), &draft.content, self.rules)?;
        let mut events = BTreeMap::new();
        for (kind, state_key) in keys {
            if let Some(event) = self.current(change, &kind.to_string(), &state_key).await? {
                events.insert((kind.to_string(), state_key), event);
            }
        }
        Ok(events)
    }

    /// One key of the current state, as the change has it.
    pub(super) async fn current(
        &self,
        change: &Change,
        kind: &str,
        state_key: &str,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        let key = (kind.to_owned(), state_key.to_owned());
        if let Some(event) = change.hot.get(&key) {
            return Ok(Some(event.clone()));
        }
        let root = change.head.root;
        let short = self.with_nodes(change, |nodes| state::get(nodes, root, kind, state_key)).await?;
        match short {
            None => Ok(None),
            Some(short) => Ok(Some(self.event(change, short).await?)),
        }
    }

    /// Runs a state operation on stored nodes and those that are still in the making.
    pub(super) async fn with_nodes<T>(
        &self,
        change: &Change,
        operation: impl Fn(&dyn NodeSource) -> Result<T, Missing>,
    ) -> Result<T, RoomError> {
        let read = self.shared.store.with_nodes(|behind| {
            operation(&NodesOf { change: &change.nodes, pending: &self.pending, behind })
        });
        Ok(read.await?)
    }

    /// A state with some keys changed.
    pub(super) async fn apply(
        &self,
        change: &mut Change,
        root: StateRoot,
        entries: &BTreeMap<StateKey, Option<ShortEventId>>,
    ) -> Result<StateRoot, RoomError> {
        let applied = self.with_nodes(change, |nodes| state::apply(nodes, root, self.salt, entries)).await?;
        Ok(change.set_nodes(applied))
    }

    /// What users may do, by the current state; none in a room without a create event.
    pub(super) async fn powers(&self, change: &Change) -> Result<Option<Powers>, RoomError> {
        let Some(create) = self.current(change, "m.room.create", "").await? else { return Ok(None) };
        let power_levels = self.current(change, "m.room.power_levels", "").await?;
        let power_levels = power_levels.map(|event| event.pdu.clone());
        Ok(Some(Powers::new(create.pdu.clone(), power_levels, self.rules)))
    }

    pub(super) async fn event(
        &self,
        change: &Change,
        short: ShortEventId,
    ) -> Result<Arc<StoredEvent>, RoomError> {
        let own = change.replaced.iter().chain(&change.events).find(|event| event.short == short);
        let own = own.or_else(|| change.hidden.get(&short));
        match own.or_else(|| self.pending.find(|event| event.short == short)) {
            Some(event) => Ok(event.clone()),
            None => Ok(self.shared.store.event(short).await?),
        }
    }

    fn build(
        &self,
        change: &Change,
        sender: &UserId,
        draft: Draft,
        auth_events: &BTreeMap<StateKey, Arc<StoredEvent>>,
    ) -> Result<Pdu, RoomError> {
        let newest = change.head.tips.iter().rev().take(PREV_EVENTS_MAX);
        let prev_events: Vec<_> = newest.map(|tip| tip.pdu.clone()).collect();
        let auth_events: Vec<_> = auth_events.values().map(|event| event.pdu.clone()).collect();
        let seed = self.shared.env.entropy.token(18);
        let context = BuildContext {
            room_id: Some(&self.room_id),
            sender,
            origin_server_ts: self.shared.env.clock.now(),
            prev_events: &prev_events,
            auth_events: &auth_events,
            event_id_localpart: &seed,
            rules: self.rules,
            key: &self.shared.signing_key,
            server_name: &self.shared.server_name,
        };
        Ok(pdu::build(draft, &context)?)
    }

    /// Adds an accepted event: to the timeline, to the graph, to the state.
    async fn insert(
        &self,
        change: &mut Change,
        pdu: Arc<Pdu>,
        rank: u64,
        sent_by: Option<SentBy>,
    ) -> Result<Arc<StoredEvent>, RoomError> {
        let ticket = self.shared.store.storage().reserve(1);
        let short = ShortEventId(ticket.last().0);
        let index = TimelineIndex::from(ticket.last());
        let before = change.head.root;
        let replaces = self.set_state(change, &pdu, short).await?;
        let event = Arc::new(StoredEvent {
            short,
            room: self.room,
            pdu,
            index: Some(index),
            standing: Standing::Accepted,
            before,
            after: change.head.root,
            replaces: replaces.as_ref().map(|event| event.short),
            redacted_by: None,
            sent_by,
            rank,
            has_relations: false,
        });
        self.count_members(change, &event, replaces.as_deref()).await?;
        if let Some(state_key) = event.pdu.state_key() {
            change.hot.insert((event.pdu.kind().to_owned(), state_key.to_owned()), event.clone());
        }
        change.head.tips.retain(|tip| !event.pdu.prev_events().contains(tip.pdu.event_id()));
        change.head.tips.push(event.clone());
        change.head.latest = index;
        change.head.push_recent(event.clone());
        self.store_event(change, &event);
        change.tickets.push(ticket);
        change.events.push(event.clone());
        self.relate(change, &event).await?;
        Ok(event)
    }

    /// Writes an event's rows.
    pub(super) fn store_event(&self, change: &mut Change, event: &StoredEvent) {
        let batch = &mut change.batch;
        batch.put(&schema::EVENT_IDS, event.pdu.event_id(), &event.short);
        batch.put(&schema::EVENTS, &event.short, &event.to_record());
        if let Some(index) = event.index {
            batch.put(&schema::TIMELINE, &(self.room, index), &event.short);
            let sent_ms = u64::from(event.pdu.origin_server_ts().get());
            batch.put(&schema::EVENTS_BY_TIME, &(self.room, sent_ms, event.short), &());
        }
        if let Some(sent_by) = &event.sent_by {
            let key = txn_key(self.room, event.pdu.sender(), event.pdu.kind(), sent_by);
            batch.put(&schema::TXN_IDS, &key, event.pdu.event_id());
        }
    }

    /// Points the event's key of the state at it; returns the event that held the key before.
    async fn set_state(
        &self,
        change: &mut Change,
        pdu: &Pdu,
        short: ShortEventId,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        let Some(state_key) = pdu.state_key() else { return Ok(None) };
        let replaces = self.current(change, pdu.kind(), state_key).await?;
        let changes = BTreeMap::from([((pdu.kind().to_owned(), state_key.to_owned()), Some(short))]);
        let root = change.head.root;
        change.head.root = self.apply(change, root, &changes).await?;
        Ok(replaces)
    }

    /// Keeps the member counts and local users' memberships in step with a membership event.
    async fn count_members(
        &self,
        change: &mut Change,
        event: &StoredEvent,
        replaces: Option<&StoredEvent>,
    ) -> Result<(), RoomError> {
        if event.pdu.kind() != "m.room.member" {
            return Ok(());
        }
        let moved =
            MemberChange { before: replaces, after: Some(event), at: event.index.unwrap_or_default() };
        self.member_changed(change, &moved).await
    }

    /// Takes note of a changed member: in the counts, in the list of servers, in a local user's rooms.
    pub(super) async fn member_changed(
        &self,
        change: &mut Change,
        member: &MemberChange<'_>,
    ) -> Result<(), RoomError> {
        let membership = |event: Option<&StoredEvent>| {
            event.map_or_else(|| "leave".to_owned(), |event| content::membership(&event.pdu))
        };
        let (before, after) = (membership(member.before), membership(member.after));
        let Some(held) = member.after.or(member.before) else { return Ok(()) };
        let Some(user) = held.pdu.state_key().and_then(|key| UserId::parse(key).ok()) else { return Ok(()) };
        for (name, count) in [("join", &mut change.head.joined), ("invite", &mut change.head.invited)] {
            *count += u64::from(after == name);
            *count -= u64::from(before == name).min(*count);
        }
        let joined_before = before == "join";
        if joined_before != (after == "join") {
            self.count_server(change, user.server_name(), joined_before);
        }
        if user.server_name() == self.shared.server_name {
            let membership = Membership { user, event: held.short, at: member.at, after };
            self.set_membership(change, membership, &before).await?;
        }
        Ok(())
    }

    fn count_server(&self, change: &mut Change, server: &ServerName, leaves: bool) {
        let held = change.head.servers.get(server).copied().unwrap_or(0);
        let mut count = if leaves { held.saturating_sub(1) } else { held + 1 };
        // A server may have members that are not known here yet.
        if change.head.lacks_members && server != self.shared.server_name {
            count = count.max(1);
        }
        let key = (self.room, server.to_owned());
        if count == 0 {
            change.head.servers.remove(server);
            change.batch.delete(&schema::ROOM_SERVERS, &key);
        } else {
            if held == 0 && server != self.shared.server_name {
                change.newcomers.push(server.to_owned());
            }
            change.head.servers.insert(server.to_owned(), count);
            change.batch.put(&schema::ROOM_SERVERS, &key, &count);
        }
    }

    /// Stores a local user's relation to the room.
    pub(super) async fn set_membership(
        &self,
        change: &mut Change,
        membership: Membership,
        before: &str,
    ) -> Result<(), RoomError> {
        let Membership { user, event, at: index, after } = membership;
        let known = match change.memberships.iter().rev().find(|(known, _)| *known == user) {
            Some((_, record)) => Some(record.clone()),
            None => self.membership_record(&user).await?,
        };
        let record = MembershipRecord {
            room: self.room,
            membership: after.clone(),
            event,
            since: known
                .as_ref()
                .filter(|known| known.membership == after)
                .map_or(index, |known| known.since),
            left: if before == "join" && after != "join" {
                Some(index)
            } else {
                known.and_then(|known| known.left)
            },
            forgotten: false,
        };
        change.batch.put(&schema::MEMBERSHIPS, &(user.clone(), self.room_id.clone()), &record);
        change.memberships.push((user, record));
        Ok(())
    }

    /// The row to store for the room's head.
    pub(super) fn record(&self, touched: Position) -> RoomRecord {
        let head = &self.head;
        RoomRecord {
            room_id: self.room_id.clone(),
            version: self.version.clone(),
            salt: self.salt,
            root: head.root,
            tips: head.tips.iter().map(|tip| tip.short).collect(),
            latest: head.latest,
            touched,
            joined: head.joined,
            invited: head.invited,
        }
    }

    /// The event that a local user's redaction is to strip, if it is known and the sender may.
    ///
    /// Spec: client-server API, "Redactions"; room version 3, "Handling redactions".
    pub(super) async fn redaction_target(
        &self,
        change: &Change,
        redaction: &Pdu,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        if redaction.kind() != "m.room.redaction" {
            return Ok(None);
        }
        let Some(target_id) = redaction.redacts() else {
            return Err(RoomError::Invalid("the redaction names no event".to_owned()));
        };
        let Some(target) = self.known_event(change, target_id).await? else {
            return Err(RoomError::EventNotFound);
        };
        let Some(powers) = self.powers(change).await? else { return Err(RoomError::NotFound) };
        if !auth::redaction_applies(redaction, &target.pdu, &powers) {
            return Err(RoomError::NotAllowed("you may not redact this event".to_owned()));
        }
        Ok(Some(target))
    }

    /// Strips an event in place: its ID, hashes and signatures hold for the stripped form too.
    pub(super) async fn redact(
        &self,
        change: &mut Change,
        target: &Arc<StoredEvent>,
        redaction: &Arc<StoredEvent>,
    ) -> Result<(), RoomError> {
        if target.redacted_by.is_some() {
            return Ok(());
        }
        self.unrelate(change, target).await?;
        let stripped = Arc::new(StoredEvent {
            pdu: Arc::new(pdu::redact(&target.pdu, self.rules)?),
            redacted_by: Some(redaction.short),
            sent_by: target.sent_by.clone(),
            ..**target
        });
        change.replace(&stripped);
        Ok(())
    }

    /// An event of this room by its ID, whether it is stored already or still in the making.
    pub(super) async fn known_event(
        &self,
        change: &Change,
        event_id: &EventId,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        let own = change.replaced.iter().rev().chain(change.events.iter().rev());
        let recent = change.head.recent.iter().rev();
        let hot = own.chain(recent).find(|event| event.pdu.event_id() == event_id);
        let hidden = || change.hidden_ids.get(event_id).and_then(|short| change.hidden.get(short));
        let hot = hot.or_else(hidden);
        let event = match hot.or_else(|| self.pending.find(|event| event.pdu.event_id() == event_id)) {
            Some(event) => Some(event.clone()),
            None => self.shared.store.event_by_id(event_id).await?,
        };
        Ok(event.filter(|event| event.room == self.room))
    }
}

/// The key of a client's transaction, whose ID is good for one room and endpoint.
///
/// Spec: client-server API, "Transaction identifiers".
pub(super) fn txn_key(room: ShortRoomId, sender: &UserId, kind: &str, sent_by: &SentBy) -> TxnKey {
    (room, sender.to_owned(), sent_by.device_id.clone(), format!("{kind} {}", sent_by.txn_id))
}

fn check(
    pdu: &Pdu,
    auth_events: &BTreeMap<StateKey, Arc<StoredEvent>>,
    create: Option<&StoredEvent>,
    rules: &RoomVersion,
) -> Result<(), RoomError> {
    let by_id = |id: &EventId| {
        // Since version 12 the create event is known by the room's ID and is no auth event.
        let known = auth_events.values().map(|event| &**event).chain(create);
        known.into_iter().find(|event| event.pdu.event_id() == id).map(|event| event.pdu.clone())
    };
    let by_key = |kind: &StateEventType, state_key: &str| {
        if *kind == StateEventType::RoomCreate {
            return create.map(|event| event.pdu.clone());
        }
        auth_events.get(&(kind.to_string(), state_key.to_owned())).map(|event| event.pdu.clone())
    };
    Ok(auth::check(pdu, by_id, by_key, rules)?)
}
