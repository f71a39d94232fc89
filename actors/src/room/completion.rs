//! Handing a change to the storage writer, and what becomes visible once it is durable.

use std::sync::Arc;

use engine::{id::Position, room::membership::dismissed};
use ractor::ActorRef;
use ruma::{OwnedServerName, OwnedUserId};
use storage::{
    Batch,
    schema::{self, DeviceListOutboxRecord, OutboxRecord, RoomRecord},
};

use super::{
    ActiveRoom, HOT_MAX, MERGED_MAX, Published, RoomError, RoomMessage, RoomShared, RoomSnapshot,
    StoredEvent, change::Change, extremities::is_dummy, relations::RelationChange,
};
use crate::{
    destination::Outgoing,
    effects::{Effect, closes_to_guests},
    hub::Changed,
    session::RoomEntry,
};

impl ActiveRoom {
    /// Takes the change into the hot copy and hands it to the storage writer.
    ///
    /// `done` runs once it is durable and visible, or once it has failed.
    pub(super) fn submit(
        &mut self,
        myself: &ActorRef<RoomMessage>,
        mut change: Change,
        extra: Batch,
        done: impl FnOnce(Result<(), RoomError>) + std::marker::Send + 'static,
    ) {
        let mut batch = std::mem::take(&mut change.batch);
        batch.append(extra);
        let outgoing = self.outgoing(&change, &mut batch);
        let joined = self.note_joins(&change, &mut batch);
        let closes_to_guests = change.events.iter().chain(&change.replaced).any(closes_to_guests);
        if closes_to_guests {
            batch.put(&schema::EFFECTS, &Effect::Guests.key(self.room_id.as_str()), &change.position());
        }
        self.head = change.head.clone();
        if !change.tickets.is_empty() {
            batch.put(&schema::ROOMS, &self.room, &self.record(change.position()));
        }
        self.hot = if change.hot.len() > HOT_MAX { imbl::OrdMap::new() } else { change.hot.clone() };
        self.merged =
            if change.merged.len() > MERGED_MAX { imbl::OrdMap::new() } else { change.merged.clone() };
        for (id, node) in &change.nodes {
            self.shared.store.remember_node(*id, node.clone());
        }
        let events = change.events.clone();
        let entries = change.entries();
        let is_gone = |(_, entry): &&(_, RoomEntry)| !entry.is_joined();
        let gone = entries.iter().filter(is_gone).map(|(user, _)| user.clone()).collect();
        let completion = Completion {
            shared: self.shared.clone(),
            published: self.published.clone(),
            snapshot: Arc::new(self.snapshot()),
            position: change.position(),
            hidden: change.hidden.values().cloned().collect(),
            events: change.events.iter().chain(&change.replaced).cloned().collect(),
            relations: std::mem::take(&mut change.relations),
            entries,
            newcomers: std::mem::take(&mut change.newcomers),
            joined,
            outgoing,
            closes_to_guests,
        };
        self.pending.add(&mut change);
        let tickets = std::mem::take(&mut change.tickets);
        self.mind_extremities(myself);
        let actor = myself.clone();
        self.shared.store.storage().submit(batch, None, move |result| match result {
            Ok(()) => {
                completion.publish();
                drop(tickets);
                done(Ok(()));
            }
            Err(error) => {
                let _ = actor.cast(RoomMessage::CommitFailed(error.clone()));
                done(Err(RoomError::Commit(error)));
            }
        });
        self.set_waiting_receipts(myself, &events);
        self.stop_typing(gone);
    }

    /// The change's events that other servers are to have, with those servers; notes them in the batch.
    fn outgoing(&self, change: &Change, batch: &mut Batch) -> Vec<(Outgoing, Vec<OwnedServerName>)> {
        if !self.shared.outbox.is_open() {
            return Vec::new();
        }
        let mut servers = self.shared.outbox.others(change.head.census.servers.keys());
        let removed = self.head.census.servers.keys().filter(|server| !change.head.has_server(server));
        let also = self.shared.outbox.others(removed);
        servers.extend(also.iter().cloned());
        let is_ours = |event: &&Arc<StoredEvent>| {
            let is_own = event.pdu.sender().server_name() == self.shared.server_name;
            // What ties the graph together is had by those who ask what an event comes after.
            change.relays || (is_own && !is_dummy(&event.pdu))
        };
        let mut outgoing = Vec::new();
        for event in change.events.iter().filter(is_ours) {
            let (mut servers, mut also) = (servers.clone(), also.clone());
            // Whose invite or knock ends here learns of it only from us: their server is not in the room.
            if let Some(server) =
                dismissed(&event.pdu).filter(|server| !servers.iter().any(|other| other == server))
            {
                servers.push(server.to_owned());
                also.push(server.to_owned());
            }
            if servers.is_empty() {
                continue;
            }
            let position = event.index.unwrap_or_default().into();
            let record = OutboxRecord { room_id: self.room_id.clone(), event: event.short, also };
            batch.put(&schema::OUTBOX, &position, &record);
            let event = event.clone();
            outgoing.push((Outgoing { position, room_id: self.room_id.clone(), event }, servers));
        }
        outgoing
    }

    /// Notes local users who have just joined: the room's other servers are to know their devices.
    fn note_joins(&self, change: &Change, batch: &mut Batch) -> Vec<OwnedUserId> {
        let mut joined = Vec::new();
        if !self.shared.outbox.is_open() {
            return joined;
        }
        for (user, record) in &change.memberships {
            if record.membership == "join" && record.since > self.head.latest {
                let note = DeviceListOutboxRecord {
                    joined: Some(self.room_id.clone()),
                    ..DeviceListOutboxRecord::default()
                };
                batch.put(&schema::DEVICE_LIST_OUTBOX, &(change.position(), user.clone()), &note);
                joined.push(user.clone());
            }
        }
        joined
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
            joined: head.census.joined,
            invited: head.census.invited,
        }
    }
}

/// What becomes visible when a commit is durable, in this order.
struct Completion {
    shared: Arc<RoomShared>,
    published: Arc<Published>,
    snapshot: Arc<RoomSnapshot>,
    position: Position,
    hidden: Vec<Arc<StoredEvent>>,
    events: Vec<Arc<StoredEvent>>,
    relations: Vec<RelationChange>,
    entries: Vec<(OwnedUserId, RoomEntry)>,
    /// Servers that had no members here before.
    newcomers: Vec<OwnedServerName>,
    /// Local users who have just joined.
    joined: Vec<OwnedUserId>,
    outgoing: Vec<(Outgoing, Vec<OwnedServerName>)>,
    closes_to_guests: bool,
}

impl Completion {
    fn publish(self) {
        for event in self.hidden.iter().chain(&self.events) {
            self.shared.store.remember(event);
        }
        let room_id = self.snapshot.room_id.clone();
        let room = self.snapshot.room;
        self.published.related.change(self.relations, self.position);
        let root = self.snapshot.head.root;
        let state = self.published.snapshot.swap(self.snapshot).head.root != root;
        if state {
            self.shared.changed_rooms.mark(room);
        }
        if !self.entries.is_empty() {
            self.shared.outbox.note_list(self.position);
        }
        for (user, entry) in self.entries {
            self.shared.hub.set_membership(&user, &room_id, &entry);
        }
        for user in &self.joined {
            self.shared.outbox.note_presence(user);
        }
        if !self.newcomers.is_empty() {
            self.shared.outbox.note_newcomers(&room_id, self.newcomers);
        }
        let event = !self.events.is_empty();
        if event || state {
            self.shared.hub.room_changed(room, Changed { event, state }, self.position);
        }
        if event {
            self.shared.hub.push.room_has_event(room);
        }
        for (outgoing, servers) in self.outgoing {
            self.shared.outbox.announce(outgoing, servers);
        }
        if self.closes_to_guests {
            let _ = self.shared.closed_rooms.send(room_id); // a server that stops takes it up again
        }
    }
}
