//! Which rooms a request is about: its lists and subscriptions.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use engine::{
    id::Position,
    state::{self, StateRoot},
};
use ruma::OwnedRoomId;
use serde::Deserialize;
use storage::{
    Batch, StoreError,
    schema::{self, RoomFactsRecord, RoomRecord, SlidingGenerationRecord},
};

use super::{
    SlidingError, Turn,
    request::{Filters, RoomConfig},
    required::Required,
    response::ListResult,
};
use crate::{
    room::{ReadError, StoredEvent, content_string},
    session::{RoomEntry, RoomFacts},
};

/// A room that the request is about.
pub(super) struct Matched {
    pub(super) room_id: OwnedRoomId,
    pub(super) entry: RoomEntry,
    /// The names of the lists that it is in.
    pub(super) lists: Vec<String>,
    pub(super) is_subscribed: bool,
    /// The highest of the limits that apply.
    pub(super) limit: u32,
    /// All that any rule requires.
    pub(super) required: Required,
}

impl Turn<'_> {
    /// The user's rooms that a client is shown, the most recently active ones first.
    async fn rooms(
        &self,
        base: Option<&SlidingGenerationRecord>,
    ) -> Result<Vec<(OwnedRoomId, RoomEntry)>, SlidingError> {
        let sent = |entry: &RoomEntry| base.and_then(|base| base.rooms.get(&entry.room));
        // Sent before, and the client does not know of the leave yet.
        let is_leave_news = |entry: &RoomEntry| {
            let known = sent(entry).map(|sent| sent.upto.or(self.since()).unwrap_or_default());
            known.is_some_and(|known| known < Position::from(entry.since))
        };
        let no_invites = self.session.data().blocks_invites();
        let (mut rooms, mut left) = (Vec::new(), Vec::new());
        for (room_id, entry) in self.session.view().rooms() {
            match entry.membership.as_str() {
                "invite" if no_invites => {}
                "invite" if self.homeserver.is_ignored_invite(self.session, &entry).await? => {}
                "join" | "invite" | "knock" => rooms.push((room_id, entry)),
                _ if is_leave_news(&entry) => rooms.push((room_id, entry)),
                _ if entry.forgotten => {}
                _ if entry.left.is_some() && sent(&entry).is_some() => rooms.push((room_id, entry)),
                // Who left by themselves knows it.
                _ if entry.left.is_some() => left.push((room_id, entry)),
                _ => {}
            }
        }
        if !left.is_empty() {
            let entries: Vec<_> = left.iter().map(|(_, entry)| entry.clone()).collect();
            let facts = self.facts(&entries).await?;
            let expelled: BTreeSet<_> =
                facts.iter().filter(|facts| facts.is_expelled).map(|facts| facts.room).collect();
            rooms.extend(left.into_iter().filter(|(_, entry)| expelled.contains(&entry.room)));
        }
        rooms.sort_by_key(|(_, entry)| (Reverse(entry.activity), entry.room));
        Ok(rooms)
    }

    /// The rooms that the request is about, and the sizes of its lists.
    pub(super) async fn matched(
        &self,
        base: Option<&SlidingGenerationRecord>,
    ) -> Result<(Vec<Matched>, BTreeMap<String, ListResult>), SlidingError> {
        let mut rooms = self.rooms(base).await?;
        let mut rules: BTreeMap<usize, (Vec<String>, Vec<&RoomConfig>)> = BTreeMap::new();
        let mut results = BTreeMap::new();
        for (name, list) in &self.request.body.lists {
            let members = match &list.filters {
                Some(filters) => self.filter(&rooms, filters).await?,
                None => (0..rooms.len()).collect(),
            };
            for (place, index) in members.iter().enumerate() {
                if list.covers(place as u64) {
                    let (lists, configs) = rules.entry(*index).or_default();
                    lists.push(name.clone());
                    configs.push(&list.config);
                }
            }
            results.insert(name.clone(), ListResult { count: members.len() });
        }
        let subscriptions = &self.request.body.room_subscriptions;
        if !subscriptions.is_empty() {
            rooms.extend(self.former_rooms(&rooms));
            for (index, (room_id, _)) in rooms.iter().enumerate() {
                if let Some(config) = subscriptions.get(room_id) {
                    rules.entry(index).or_default().1.push(config);
                }
            }
        }
        let mut unions: Vec<(Vec<*const RoomConfig>, Required)> = Vec::new();
        let mut rooms: Vec<_> = rooms.into_iter().map(Some).collect();
        let mut matched = Vec::with_capacity(rules.len());
        for (index, (lists, configs)) in rules {
            let Some((room_id, entry)) = rooms[index].take() else { continue };
            // Most rooms have the same rules: each combination is put together once.
            let key: Vec<_> = configs.iter().map(|config| std::ptr::from_ref(*config)).collect();
            let known = unions.iter().find(|(known, _)| *known == key).map(|(_, required)| required.clone());
            let required = known.unwrap_or_else(|| {
                let pairs: Vec<_> = configs.iter().map(|config| config.required_state.as_slice()).collect();
                Required::union(&pairs)
            });
            if !unions.iter().any(|(known, _)| *known == key) {
                unions.push((key, required.clone()));
            }
            let limit = configs.iter().map(|config| config.timeline_limit).max().unwrap_or_default();
            let is_subscribed = subscriptions.contains_key(&room_id);
            matched.push(Matched { room_id, entry, lists, is_subscribed, limit, required });
        }
        Ok((matched, results))
    }

    /// The rooms that the request subscribes to and that the user once was in, but for those that are listed.
    ///
    /// Spec: MSC4186, "Subscriptions".
    fn former_rooms(&self, listed: &[(OwnedRoomId, RoomEntry)]) -> Vec<(OwnedRoomId, RoomEntry)> {
        let subscriptions = &self.request.body.room_subscriptions;
        let listed: BTreeSet<_> =
            listed.iter().map(|(room_id, _)| room_id).filter(|id| subscriptions.contains_key(*id)).collect();
        let others = subscriptions.keys().filter(|room_id| !listed.contains(room_id));
        let is_former = |entry: &RoomEntry| {
            let is_out = ["leave", "ban"].contains(&entry.membership.as_str());
            is_out && entry.left.is_some() && !entry.forgotten
        };
        let entry = |room_id: &OwnedRoomId| self.session.view().room(room_id).filter(is_former);
        others.filter_map(|room_id| Some((room_id.clone(), entry(room_id)?))).collect()
    }

    /// The places of the rooms that pass a list's filters.
    async fn filter(
        &self,
        rooms: &[(OwnedRoomId, RoomEntry)],
        filters: &Filters,
    ) -> Result<Vec<usize>, SlidingError> {
        let needs_facts = filters.is_encrypted.is_some()
            || filters.room_types.is_some()
            || filters.not_room_types.is_some();
        let facts: BTreeMap<_, _> = if needs_facts {
            let entries: Vec<_> = rooms.iter().map(|(_, entry)| entry.clone()).collect();
            self.facts(&entries).await?.into_iter().map(|facts| (facts.room, facts)).collect()
        } else {
            BTreeMap::new()
        };
        let children = match &filters.spaces {
            Some(spaces) => Some(self.children_of(spaces).await?),
            None => None,
        };
        let passes = |(room_id, entry): &(OwnedRoomId, RoomEntry)| {
            let agrees = |wanted: Option<bool>, is: bool| wanted.is_none_or(|wanted| wanted == is);
            if !agrees(filters.is_dm, self.direct.contains(room_id))
                || !agrees(filters.is_invite, entry.membership == "invite")
                || children.as_ref().is_some_and(|children| !children.contains(room_id))
            {
                return false;
            }
            if filters.tags.is_some() || filters.not_tags.is_some() {
                let tags = self.session.tags(room_id);
                let has_any = |wanted: &Vec<String>| wanted.iter().any(|tag| tags.contains_key(tag));
                if filters.not_tags.as_ref().is_some_and(has_any)
                    || filters.tags.as_ref().is_some_and(|wanted| !has_any(wanted))
                {
                    return false;
                }
            }
            if !needs_facts {
                return true;
            }
            // What is not known of a room (an invite without state, say) passes no filter that asks for it.
            let Some(facts) = facts.get(&entry.room) else { return false };
            let is_of = |types: &Vec<Option<String>>| types.contains(&facts.room_type);
            agrees(filters.is_encrypted, facts.is_encrypted)
                && filters.room_types.as_ref().is_none_or(is_of)
                && !filters.not_room_types.as_ref().is_some_and(is_of)
        };
        Ok(rooms.iter().enumerate().filter(|(_, room)| passes(room)).map(|(index, _)| index).collect())
    }

    /// The rooms that joined spaces name as their children.
    async fn children_of(&self, spaces: &[OwnedRoomId]) -> Result<BTreeSet<OwnedRoomId>, SlidingError> {
        #[derive(Deserialize)]
        struct Child {
            via: Option<Vec<serde::de::IgnoredAny>>,
        }
        let mut children = BTreeSet::new();
        for space in spaces {
            if self.session.view().room(space).is_none_or(|entry| !entry.is_joined()) {
                continue;
            }
            let room = self.homeserver.room(space).await?;
            let links = room.state(room.snapshot().head.root, Some("m.space.child")).await?;
            children.extend(links.iter().filter_map(|link| {
                let child: Child = serde_json::from_str(link.pdu.content().get()).ok()?;
                let room_id = OwnedRoomId::try_from(link.pdu.state_key()?).ok()?;
                child.via.is_some().then_some(room_id)
            }));
        }
        Ok(children)
    }

    /// What filters ask of rooms: from memory, and what is not there with few trips to the store.
    async fn facts(&self, entries: &[RoomEntry]) -> Result<Vec<RoomFacts>, SlidingError> {
        let known = self.session.room_facts(entries);
        let (mut facts, mut lacking) = (Vec::with_capacity(entries.len()), Vec::new());
        for (entry, known) in entries.iter().zip(known) {
            match known {
                Some(known) => facts.push(known),
                None => lacking.push(entry),
            }
        }
        if !lacking.is_empty() {
            let found = self.find_facts(&lacking).await?;
            self.session.set_room_facts(found.iter().cloned());
            facts.extend(found);
        }
        Ok(facts)
    }

    async fn find_facts(&self, entries: &[&RoomEntry]) -> Result<Vec<RoomFacts>, SlidingError> {
        let store = &self.homeserver.room_shared().store;
        let rooms = || entries.iter().map(|entry| entry.room);
        let heads = store.storage().get_many(&schema::ROOMS, rooms()).await?;
        let kept = store.storage().get_many(&schema::ROOM_FACTS, rooms()).await?;
        let outside: Vec<_> =
            entries.iter().filter(|entry| !entry.is_joined()).map(|entry| entry.event).collect();
        let own: BTreeMap<_, _> = outside.iter().copied().zip(store.events(&outside).await?).collect();
        // Who is out of a room knows its state as of then.
        let root = |(entry, head): (&&RoomEntry, Option<RoomRecord>)| match own.get(&entry.event) {
            Some(own) => own.after,
            None => head.map(|head| head.root).unwrap_or_default(),
        };
        let roots: Vec<StateRoot> = entries.iter().zip(heads).map(root).collect();
        let kept: Vec<_> =
            kept.into_iter().zip(&roots).map(|(kept, root)| kept.filter(|kept| kept.root == *root)).collect();
        let lacking: Vec<_> =
            roots.iter().zip(&kept).filter(|(_, kept)| kept.is_none()).map(|(root, _)| *root).collect();
        let mut read = self.facts_of(&lacking).await?.into_iter();
        let (mut all, mut fresh) = (Vec::with_capacity(entries.len()), Batch::new());
        for (entry, kept) in entries.iter().zip(kept) {
            let is_kept = kept.is_some();
            let found = kept.or_else(|| read.next().flatten());
            if let Some(found) = found.as_ref().filter(|_| !is_kept && entry.is_joined()) {
                fresh.put(&schema::ROOM_FACTS, &entry.room, found);
            }
            let is_known = found.is_some();
            let RoomFactsRecord { room_type, is_encrypted, .. } = found.unwrap_or_default();
            let own = own.get(&entry.event);
            let is_expelled = own.is_some_and(|own| *own.pdu.sender() != *self.session.user_id());
            let (room, event, as_of) = (entry.room, entry.event, entry.activity);
            let mut facts = RoomFacts { room, event, as_of, room_type, is_encrypted, is_expelled };
            if let Some(own) = own
                && !is_known
                && ["invite", "knock"].contains(&entry.membership.as_str())
            {
                self.add_shown_facts(&mut facts, own).await?;
            }
            all.push(facts);
        }
        if !fresh.is_empty() {
            store.storage().submit(fresh, None, |_| {}); // what is not kept is read again
        }
        Ok(all)
    }

    /// What filters ask of rooms with these states; none of a room of which no state is known.
    async fn facts_of(&self, roots: &[StateRoot]) -> Result<Vec<Option<RoomFactsRecord>>, SlidingError> {
        let store = &self.homeserver.room_shared().store;
        let found = store
            .with_nodes(|nodes| {
                let mut missing = Vec::new();
                let mut found = Vec::with_capacity(roots.len());
                for root in roots {
                    let create = state::get(nodes, *root, "m.room.create", "");
                    let encryption = state::get(nodes, *root, "m.room.encryption", "");
                    match (create, encryption) {
                        (Ok(create), Ok(encryption)) => found.push((create, encryption.is_some())),
                        (create, encryption) => {
                            missing
                                .extend(create.err().into_iter().chain(encryption.err()).flat_map(|m| m.0));
                        }
                    }
                }
                if missing.is_empty() { Ok(found) } else { Err(state::Missing(missing)) }
            })
            .await?;
        let creates: Vec<_> = found.iter().filter_map(|(create, _)| *create).collect();
        let mut creates = store.events(&creates).await?.into_iter();
        let facts = roots.iter().zip(found).map(|(root, (create, is_encrypted))| {
            let create = create.and_then(|_| creates.next())?;
            let room_type = content_string(&create.pdu, "type");
            Some(RoomFactsRecord { root: *root, room_type, is_encrypted })
        });
        Ok(facts.collect())
    }

    /// What the stripped state of a room tells, for a membership event without a state.
    async fn add_shown_facts(
        &self,
        facts: &mut RoomFacts,
        own: &Arc<StoredEvent>,
    ) -> Result<(), SlidingError> {
        #[derive(Deserialize)]
        struct Stripped {
            #[serde(rename = "type")]
            kind: String,
            content: Content,
        }
        #[derive(Deserialize)]
        struct Content {
            #[serde(rename = "type")]
            room_type: Option<String>,
        }
        let room = self.homeserver.room(own.pdu.room_id()).await?;
        let events = room.stripped_state(self.session.user_id(), own).await?;
        for event in events.iter().filter_map(|event| serde_json::from_str::<Stripped>(event.get()).ok()) {
            match event.kind.as_str() {
                "m.room.create" => facts.room_type = event.content.room_type,
                "m.room.encryption" => facts.is_encrypted = true,
                _ => {}
            }
        }
        Ok(())
    }
}

impl From<ReadError> for SlidingError {
    fn from(error: ReadError) -> Self {
        Self::Room(error.into())
    }
}

impl From<StoreError> for SlidingError {
    fn from(error: StoreError) -> Self {
        Self::Room(error.into())
    }
}
