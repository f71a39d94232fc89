//! What others hold of a room: writes go to its actor, reads to its published views and the store.

use std::{ops::Bound, sync::Arc, time::Duration};

use engine::{
    auth::Powers,
    id::{ShortEventId, ShortRoomId, TimelineIndex},
    pdu::Pdu,
    room::content,
    state::{self, StateRoot},
};
use ruma::{EventId, OwnedEventId, OwnedServerName, OwnedUserId, ServerName, UserId};
use storage::{
    Direction, KeyRange,
    schema::{self, MembershipRecord, SentBy},
};

use super::{
    Backfill, Erasures, MembershipAction, MembershipChange, Published, Receipt, Receipts, Receive, Received,
    RelatedCache, RoomActor, RoomError, RoomMessage, RoomShared, RoomSnapshot, RoomStore, Send, StoredEvent,
    Typing, heroes::HeroesCache, send::draft_txn,
};
use crate::{directory::Handle, federation::FederationClient, hub::Hub};

/// A room that exists here.
#[derive(Clone)]
pub struct RoomHandle {
    pub(super) actor: Handle<RoomActor>,
    published: Arc<Published>,
    shared: Arc<RoomShared>,
}

/// How long a change of a membership waits for the members of a room that was joined just now.
const MEMBERS_MAX: Duration = Duration::from_secs(20);

/// Keys of the state tree that are read at a time.
const STATE_PAGE: usize = 1000;

impl RoomHandle {
    pub(crate) fn new(actor: Handle<RoomActor>, published: Arc<Published>, shared: Arc<RoomShared>) -> Self {
        Self { actor, published, shared }
    }

    /// The room as of its last durable change.
    pub fn snapshot(&self) -> Arc<RoomSnapshot> {
        self.published.snapshot.load_full()
    }

    /// The public receipts of the room.
    pub fn receipts(&self) -> Arc<Receipts> {
        self.published.receipts.load_full()
    }

    /// Who is typing.
    pub fn typing(&self) -> Arc<Typing> {
        self.published.typing.load_full()
    }

    /// Appends an event of a local user; a transaction that was done before gives its event again.
    ///
    /// Spec: client-server API, "Transaction identifiers".
    pub async fn send(&self, send: Send) -> Result<OwnedEventId, RoomError> {
        if let Some(sent_by) = &send.sent_by
            && let Some(event_id) = self.sent_before(&send, sent_by).await?
        {
            return Ok(event_id);
        }
        self.send_advised(send).await
    }

    async fn sent_before(&self, send: &Send, sent_by: &SentBy) -> Result<Option<OwnedEventId>, RoomError> {
        let room = self.snapshot().room;
        let key = draft_txn(room, &send.sender, &send.draft, sent_by);
        Ok(self.shared.txns.find(&key).await?)
    }

    /// Changes a membership; `None` if it is so already.
    pub async fn change_membership(
        &self,
        change: MembershipChange,
    ) -> Result<Option<OwnedEventId>, RoomError> {
        let is_own_leave = change.sender == change.target && change.action == MembershipAction::Leave;
        if !is_own_leave {
            // Whether somebody is banned, say, is not known before.
            self.wait_for_members(MEMBERS_MAX).await?;
        }
        self.change_membership_advised(change).await
    }

    /// A membership event as it would be now, signed by this server, without appending it.
    pub async fn prepare_membership(&self, change: MembershipChange) -> Result<Pdu, RoomError> {
        self.actor.call(|reply| RoomMessage::Prepare(Box::new(change), reply)).await?
    }

    /// Those of some events that are not known here, not even as outliers.
    pub async fn unknown_events(&self, ids: &[OwnedEventId]) -> Result<Vec<OwnedEventId>, RoomError> {
        let known = self.shared.store.storage().get_many(&schema::EVENT_IDS, ids.iter().cloned()).await?;
        Ok(ids.iter().zip(known).filter(|(_, known)| known.is_none()).map(|(id, _)| id.clone()).collect())
    }

    /// Whether an event has a place in the graph here.
    pub async fn is_placed(&self, event_id: &EventId) -> Result<bool, RoomError> {
        Ok(self.any_event(event_id).await?.is_some_and(|event| event.has_place()))
    }

    /// An event of this room, wherever it stands.
    pub async fn any_event(&self, event_id: &EventId) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        let room = self.snapshot().room;
        let event = self.shared.store.event_by_id(event_id).await?;
        Ok(event.filter(|event| event.room == room))
    }

    /// Whether a user is joined.
    pub async fn is_joined(&self, user: &UserId) -> Result<bool, RoomError> {
        let member = self.current("m.room.member", user.as_str()).await?;
        Ok(member.is_some_and(|event| super::membership_of(&event.pdu) == "join"))
    }

    /// The server of whoever invited a local user, or of whom the user knocked with.
    pub(crate) async fn inviting_server(&self, user: &UserId) -> Result<Option<OwnedServerName>, RoomError> {
        let Some(event) = self.membership_event(user).await? else { return Ok(None) };
        let server = event.pdu.sender().server_name().to_owned();
        Ok((server != self.shared.server_name).then_some(server))
    }

    /// A local user's membership event, also if this server is not in the room.
    pub async fn membership_event(&self, user: &UserId) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        let Some(record) = self.membership_record(user).await? else { return Ok(None) };
        Ok(Some(self.shared.store.event(record.event).await?))
    }

    /// Whether the room's access control list lets a server take part.
    ///
    /// Spec: client-server API, "Server Access Control Lists (ACLs) for rooms".
    pub async fn admits_server(&self, server: &ServerName) -> Result<bool, RoomError> {
        let Some(acl) = self.current("m.room.server_acl", "").await? else { return Ok(true) };
        Ok(content::server_acl(&acl.pdu).is_allowed(server))
    }

    /// Whether users of other servers may be in the room.
    ///
    /// Spec: client-server API, `m.room.create`, `m.federate`.
    pub async fn federates(&self) -> Result<bool, RoomError> {
        let create = self.current("m.room.create", "").await?;
        Ok(create.is_none_or(|create| content::federates(&create.pdu)))
    }

    /// Takes in an event from another server, whose signatures and hashes are checked.
    pub async fn receive(&self, receive: Receive) -> Result<Received, RoomError> {
        self.actor.call(|reply| RoomMessage::Receive(Box::new(receive), reply)).await?
    }

    /// Keeps events that others refer to, without a place in the graph.
    pub async fn keep_outliers(&self, pdus: Vec<Pdu>) -> Result<(), RoomError> {
        self.actor.call(|reply| RoomMessage::Outliers(pdus, reply)).await?
    }

    /// Fills a hole in the timeline; returns with how many events.
    pub async fn backfill(&self, backfill: Backfill) -> Result<usize, RoomError> {
        self.actor.call(|reply| RoomMessage::Backfill(Box::new(backfill), reply)).await?
    }

    /// Hides the room from a user who has left it.
    pub async fn forget(&self, user: OwnedUserId) -> Result<(), RoomError> {
        self.actor.call(|reply| RoomMessage::Forget(user, reply)).await?
    }

    /// Sets a public receipt of a local user.
    pub async fn set_receipt(&self, receipt: Receipt) -> Result<(), RoomError> {
        self.actor.call(|reply| RoomMessage::Receipt(Box::new(receipt), reply)).await?
    }

    /// Starts, prolongs or (with `None`) ends a user's typing notice.
    pub async fn set_typing(&self, user: OwnedUserId, timeout: Option<Duration>) -> Result<(), RoomError> {
        self.actor.call(|reply| RoomMessage::Typing(user, timeout, reply)).await?
    }

    /// The relation of a local user to the room.
    pub async fn membership_record(&self, user: &UserId) -> Result<Option<MembershipRecord>, RoomError> {
        let room_id = &self.snapshot().room_id;
        // An active session knows what is durable, without a trip to the store.
        if let Some(view) = self.shared.hub.session(user)
            && let Some(entry) = view.room(room_id)
        {
            return Ok(Some(entry.into()));
        }
        let key = (user.to_owned(), room_id.clone());
        Ok(self.shared.store.storage().get(&schema::MEMBERSHIPS, &key).await?)
    }

    /// The active sessions.
    pub(super) fn hub(&self) -> &Hub {
        &self.shared.hub
    }

    /// The users whose messages newcomers get redacted.
    pub(super) fn erasures(&self) -> &Erasures {
        &self.shared.erasures
    }

    /// Events and state, cached.
    pub(crate) fn store(&self) -> &RoomStore {
        &self.shared.store
    }

    /// The room's actor.
    pub(super) fn actor(&self) -> &Handle<RoomActor> {
        &self.actor
    }

    /// Sends requests to other servers.
    pub(super) fn client(&self) -> Option<&Arc<dyn FederationClient>> {
        self.shared.client.as_ref()
    }

    /// The store, for the reads of this module.
    pub(super) fn storage(&self) -> &storage::Storage {
        self.shared.store.storage()
    }

    /// What relates to the events that were lately looked at.
    pub(super) fn related_cache(&self) -> &RelatedCache {
        &self.published.related
    }

    /// The members that the room is named after.
    pub(super) fn heroes_cache(&self) -> &HeroesCache {
        &self.published.heroes
    }

    /// The time, in milliseconds since the epoch.
    pub(super) fn now_ms(&self) -> u64 {
        self.shared.env.clock.now_ms()
    }

    /// One key of the current state.
    pub async fn current(&self, kind: &str, state_key: &str) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        self.state_event(self.snapshot().head.root, kind, state_key).await
    }

    /// One key of a state.
    pub async fn state_event(
        &self,
        root: StateRoot,
        kind: &str,
        state_key: &str,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        Ok(self.shared.store.state_event(root, kind, state_key).await?)
    }

    /// All events of a state, or those of one type, ordered by type and state key.
    pub async fn state(
        &self,
        root: StateRoot,
        kind: Option<&str>,
    ) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        let entries = self.state_entries(root, kind).await?;
        let shorts: Vec<_> = entries.into_iter().map(|entry| entry.event).collect();
        Ok(self.shared.store.events(&shorts).await?)
    }

    /// All events of a state but for its members.
    pub async fn state_without_members(&self, root: StateRoot) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        const MEMBER: &str = "m.room.member";
        // The least type after that of members.
        const NEXT: &str = "m.room.member\0";
        let mut entries: Vec<state::Entry> = Vec::new();
        let mut last = (String::new(), String::new());
        loop {
            let page = self
                .shared
                .store
                .with_nodes(|nodes| {
                    let from = Bound::Excluded((last.0.as_str(), last.1.as_str()));
                    state::range(nodes, root, from, None, STATE_PAGE)
                })
                .await?;
            let reached_members = page.iter().any(|entry| entry.kind == MEMBER);
            let is_last = page.len() < STATE_PAGE;
            last = match page.last() {
                // From the first member on, the rest of them is skipped.
                Some(entry) if reached_members && entry.kind == MEMBER => (NEXT.to_owned(), String::new()),
                Some(entry) => (entry.kind.clone(), entry.state_key.clone()),
                None => break,
            };
            entries.extend(page.into_iter().filter(|entry| entry.kind != MEMBER));
            if is_last {
                break;
            }
        }
        let shorts: Vec<_> = entries.into_iter().map(|entry| entry.event).collect();
        self.events(&shorts).await
    }

    pub(super) async fn state_entries(
        &self,
        root: StateRoot,
        kind: Option<&str>,
    ) -> Result<Vec<state::Entry>, RoomError> {
        let mut entries: Vec<state::Entry> = Vec::new();
        loop {
            let page = self
                .shared
                .store
                .with_nodes(|nodes| {
                    let from = entries.last().map_or(Bound::Unbounded, |last| {
                        Bound::Excluded((last.kind.as_str(), last.state_key.as_str()))
                    });
                    state::range(nodes, root, from, kind, STATE_PAGE)
                })
                .await?;
            let is_last = page.len() < STATE_PAGE;
            entries.extend(page);
            if is_last {
                return Ok(entries);
            }
        }
    }

    async fn state_changes_from_nothing(&self, root: StateRoot) -> Result<Vec<state::Change>, RoomError> {
        let entries = self.state_entries(root, None).await?;
        let change = |entry: state::Entry| {
            let state::Entry { kind, state_key, event } = entry;
            state::Change { kind, state_key, before: None, after: Some(event) }
        };
        Ok(entries.into_iter().map(change).collect())
    }

    /// What users may do, by the current state; none in a room without a create event.
    pub async fn powers(&self) -> Result<Option<Powers>, RoomError> {
        let snapshot = self.snapshot();
        let Some(create) = self.state_event(snapshot.head.root, "m.room.create", "").await? else {
            return Ok(None);
        };
        let power_levels = self.state_event(snapshot.head.root, "m.room.power_levels", "").await?;
        let power_levels = power_levels.map(|event| event.pdu.clone());
        Ok(Some(Powers::new(create.pdu.clone(), power_levels, snapshot.rules)))
    }

    /// The differences from one state to another.
    pub async fn state_diff(&self, from: StateRoot, to: StateRoot) -> Result<Vec<state::Change>, RoomError> {
        if from.is_empty() {
            // A listing fetches many nodes at a time, where a comparison descends one by one.
            return self.state_changes_from_nothing(to).await;
        }
        Ok(self.shared.store.with_nodes(|nodes| state::diff(nodes, from, to)).await?)
    }

    /// Events by their local numbers.
    pub async fn events(&self, shorts: &[ShortEventId]) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        Ok(self.shared.store.events(shorts).await?)
    }

    /// An event of this room that is in its graph.
    pub async fn event(&self, event_id: &EventId) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        let room = self.snapshot().room;
        let event = self.shared.store.event_by_id(event_id).await?;
        Ok(event.filter(|event| event.room == room && event.index.is_some()))
    }

    /// Up to `limit` events that end at `until`, newest first.
    pub async fn timeline_back(
        &self,
        until: TimelineIndex,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        let snapshot = self.snapshot();
        let recent = &snapshot.head.recent;
        let hot: Vec<_> =
            recent.iter().rev().filter(|event| event.index <= Some(until)).take(limit).cloned().collect();
        if hot.len() == limit || snapshot.head.recent_is_all {
            return Ok(hot);
        }
        let newest = until.min(snapshot.head.latest);
        let range = KeyRange::prefix(&(snapshot.room,)).up_to(&(snapshot.room, newest));
        self.timeline(range, Direction::Descending, limit).await
    }

    /// Up to `limit` events after `from`, oldest first.
    pub async fn timeline_forward(
        &self,
        from: TimelineIndex,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        let snapshot = self.snapshot();
        let recent = &snapshot.head.recent;
        let covered = snapshot.head.recent_is_all
            || recent
                .front()
                .is_some_and(|oldest| oldest.index <= Some(TimelineIndex(from.0.saturating_add(1))));
        if covered {
            return Ok(recent.iter().filter(|event| event.index > Some(from)).take(limit).cloned().collect());
        }
        // What is stored past the snapshot is not published yet.
        let range = KeyRange::prefix(&(snapshot.room,))
            .after(&(snapshot.room, from))
            .up_to(&(snapshot.room, snapshot.head.latest));
        self.timeline(range, Direction::Ascending, limit).await
    }

    async fn timeline(
        &self,
        range: KeyRange<(ShortRoomId, TimelineIndex)>,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        let rows = self.shared.store.storage().range(&schema::TIMELINE, range, direction, limit).await?;
        let shorts: Vec<_> = rows.into_iter().map(|(_, short)| short).collect();
        self.events(&shorts).await
    }

    /// The room's current state as it was once everything up to `index` was in.
    pub async fn root_at(&self, index: TimelineIndex) -> Result<StateRoot, RoomError> {
        if let Some(newest) = self.timeline_back(index, 1).await?.first() {
            return Ok(newest.after);
        }
        // A room of another server starts with whatever state it had when a local user joined.
        let oldest = self.timeline_forward(index, 1).await?;
        Ok(oldest.first().map_or_else(StateRoot::default, |event| event.before))
    }

    /// The newest hole in the timeline that ends after `after` and not after `until`: the place after it.
    pub fn newest_gap(&self, after: TimelineIndex, until: TimelineIndex) -> Option<TimelineIndex> {
        let gaps = &self.snapshot().head.gaps;
        let bounds = (std::ops::Bound::Excluded(after), std::ops::Bound::Included(until));
        if after >= until { None } else { gaps.range(bounds).next_back().map(|(at, _)| *at) }
    }
}
