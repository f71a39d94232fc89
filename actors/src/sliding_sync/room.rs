//! A room of a response.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use engine::{
    id::{Position, TimelineIndex},
    pdu::client::RoomIdField,
    state::StateRoot,
};
use js_int::UInt;
use ruma::api::client::filter::FilterDefinition;
use storage::schema::SlidingRoomRecord;

use super::{
    Turn,
    list::Matched,
    required::Required,
    response::{Hero, RoomResult},
};
use crate::{
    room::{RoomError, RoomHandle, StoredEvent, content_string},
    session::Told,
    sync::{Pass, SyncRequest},
    token::Token,
};

/// Events that move a room up in a client's list.
const BUMPS: [&str; 9] = [
    "m.room.create",
    "m.room.message",
    "m.room.encrypted",
    "m.sticker",
    "m.call.invite",
    "m.poll.start",
    "org.matrix.msc3381.poll.start",
    "m.beacon_info",
    "org.matrix.msc3672.beacon_info",
];

/// Events that are looked at, at most, to find such a one.
const BUMP_SCAN_MAX: usize = 200;

/// The part of a room's timeline that is told.
struct Stretch {
    /// The client knows everything up to here.
    since: Option<Position>,
    /// Told up to here: the newest place, or that of the user's leave.
    end: TimelineIndex,
    events: Vec<Arc<StoredEvent>>,
    limited: bool,
    is_expanded: bool,
}

/// State that is told.
#[derive(Default)]
struct State {
    events: Vec<Arc<StoredEvent>>,
    /// What is there no more.
    deleted: Vec<(String, String)>,
    /// What kinds of state changed, required or not.
    changed: BTreeSet<String>,
    /// Members that changed and are told only if they are needed.
    untold: BTreeSet<String>,
}

impl Turn<'_> {
    /// What is to be told of a room; none if nothing is.
    pub(super) async fn room(
        &self,
        matched: &Matched,
        sent: Option<&SlidingRoomRecord>,
        since: Option<Position>,
        told: &mut Told,
    ) -> Result<Option<RoomResult>, RoomError> {
        let entry = &matched.entry;
        let is_direct = self.direct.contains(&matched.room_id);
        let direct_changed = sent.map_or(is_direct, |sent| sent.is_direct != is_direct);
        let old_required = sent.map(|sent| self.required_of(sent));
        let grows = sent.is_some_and(|sent| matched.limit > sent.limit)
            || old_required.as_ref().is_some_and(|old| **old != matched.required.0);
        let data = self.session.data();
        // Of the rooms where only the counts may have changed, those are told where they have.
        let counts_anew = |since| entry.is_joined() && data.counting_changed() > since;
        let is_news = since.is_none_or(|since| entry.latest > since || counts_anew(since));
        if !(is_news || grows || direct_changed) {
            return Ok(None);
        }
        let mut result = match entry.membership.as_str() {
            "invite" | "knock" if is_news => self.invited(matched).await?,
            "invite" | "knock" => RoomResult::default(),
            _ => {
                let began = Position::from(entry.since);
                // Who joined (again) in the meantime starts over.
                let since = since.filter(|since| !entry.is_joined() || began <= *since);
                let limit_before = sent.map_or(0, |sent| sent.limit);
                let old = old_required.map(|old| Required(old.clone()));
                self.inside(matched, since, limit_before, old.as_ref(), is_news, told).await?
            }
        };
        result.is_dm = (direct_changed || (result.initial && is_direct)).then_some(is_direct);
        if result.is_empty() {
            return Ok(None);
        }
        if let Some(unread) = told.unread.get(&entry.room).filter(|_| entry.is_joined()) {
            // Also if they are as before: clients take counts that are left out for zeros.
            result.notification_count = Some(unread.notification_count);
            result.highlight_count = Some(unread.highlight_count);
        }
        result.membership = Some(entry.membership.clone());
        Ok(Some(result))
    }

    fn required_of(&self, sent: &SlidingRoomRecord) -> &Vec<(String, String)> {
        static NONE: Vec<(String, String)> = Vec::new();
        let all = self.base.map(|base| &base.generation.required);
        all.and_then(|all| all.get(sent.required as usize)).unwrap_or(&NONE)
    }

    async fn invited(&self, matched: &Matched) -> Result<RoomResult, RoomError> {
        let request = self.sync_request(0);
        let stripped = self.pass(&request).stripped_state(&matched.room_id, &matched.entry).await?;
        Ok(RoomResult {
            initial: true,
            invite_state: Some(stripped.events),
            bump_stamp: Some(Position::from(matched.entry.since).0),
            ..RoomResult::default()
        })
    }

    /// A room that the user is or was in.
    async fn inside(
        &self,
        matched: &Matched,
        since: Option<Position>,
        limit_before: u32,
        required_before: Option<&Required>,
        is_news: bool,
        told: &mut Told,
    ) -> Result<RoomResult, RoomError> {
        let room = self.homeserver.room(&matched.room_id).await?;
        let entry = &matched.entry;
        let request = self.sync_request(matched.limit);
        let pass = self.pass(&request);
        let stretch = self.stretch(&room, &pass, matched, since, limit_before, is_news).await?;
        let state = self.state(&room, matched, &stretch, required_before, told).await?;
        let is_initial = since.is_none();
        // Whoever has left sees the room as it was then.
        let root = room.root_at(stretch.end).await?;
        let snapshot = room.snapshot();
        let changed = |kind: &str| is_initial || state.changed.contains(kind);
        // A redaction empties a piece of state without being one; those in a gap are not looked for.
        let may_be_emptied = !is_initial && (stretch.limited || stretch.events.iter().any(is_redaction));
        let mut result = RoomResult { initial: is_initial, ..RoomResult::default() };
        let was_inside = entry.is_joined() || entry.left.is_some();
        if !was_inside && is_news {
            // Of an invite or knock that came to nothing.
            result.invite_state = Some(pass.stripped_state(&matched.room_id, entry).await?.events);
        }
        if was_inside && (changed("m.room.name") || changed("m.room.member") || may_be_emptied) {
            let name = text(&room, root, "m.room.name", "name").await?;
            if name.text.is_none() && entry.is_joined() {
                result.heroes = Some(self.heroes(&room, &pass, root).await?);
            }
            let is_told = changed("m.room.name") || (may_be_emptied && name.is_redacted);
            result.name = (is_told && (name.text.is_some() || !is_initial)).then_some(name.text);
        }
        if was_inside && (changed("m.room.avatar") || may_be_emptied) {
            let avatar = text(&room, root, "m.room.avatar", "url").await?;
            let is_told = changed("m.room.avatar") || (may_be_emptied && avatar.is_redacted);
            result.avatar = (is_told && (avatar.text.is_some() || !is_initial)).then_some(avatar.text);
        }
        if entry.is_joined() {
            if changed("m.room.member") {
                result.joined_count = Some(snapshot.head.census.joined);
                result.invited_count = Some(snapshot.head.census.invited);
            }
            if is_initial || is_news || !told.unread.contains_key(&entry.room) {
                let unread = self.session.unread(&room).await?.total();
                if is_initial || told.unread.get(&entry.room) != Some(&unread) {
                    result.notification_count = Some(unread.notification_count);
                    result.highlight_count = Some(unread.highlight_count);
                }
                told.unread.insert(entry.room, unread);
            }
        }
        if is_initial || !stretch.events.is_empty() {
            let bump = self.bump_stamp(&room, matched, &stretch).await?;
            let is_new = is_initial || since.is_some_and(|since| bump > since);
            result.bump_stamp = is_new.then_some(bump.0);
            let start = stretch.events.first().and_then(|event| event.index);
            let boundary = start.map_or(stretch.end, |first| TimelineIndex(first.0 - 1));
            result.prev_batch = Some(Token::Timeline(boundary).to_string());
            result.num_live = Some(self.live(&stretch));
        }
        if is_initial || stretch.limited || !stretch.events.is_empty() {
            result.limited = Some(stretch.limited);
        }
        result.deleted = state.deleted;
        result.expanded_timeline = stretch.is_expanded;
        result.timeline = room.render(&stretch.events, &pass.viewer(), RoomIdField::Absent).await?;
        result.required_state = room.render(&state.events, &pass.viewer(), RoomIdField::Absent).await?;
        Ok(result)
    }

    /// The events that arrived since the client's last response, or since it knew the room.
    fn live(&self, stretch: &Stretch) -> usize {
        let Some(since) = stretch.since.or(self.since()) else { return 0 };
        stretch.events.iter().filter(|event| event.index > Some(TimelineIndex::from(since))).count()
    }

    async fn stretch(
        &self,
        room: &RoomHandle,
        pass: &Pass<'_>,
        matched: &Matched,
        since: Option<Position>,
        limit_before: u32,
        is_news: bool,
    ) -> Result<Stretch, RoomError> {
        let entry = &matched.entry;
        let end = if entry.is_joined() { TimelineIndex::from(self.upto) } else { entry.since };
        let is_expanded = since.is_some() && matched.limit > limit_before;
        let mut stretch = Stretch { since, end, events: Vec::new(), limited: false, is_expanded };
        if !is_news && !is_expanded {
            return Ok(stretch);
        }
        let was_inside = entry.is_joined() || entry.left.is_some();
        let after = match since {
            // Who never was inside is told of the end of the invite or knock alone.
            _ if !was_inside => TimelineIndex(entry.since.0 - 1),
            Some(since) if !is_expanded => TimelineIndex::from(since),
            _ => TimelineIndex(i64::MIN),
        };
        let read = pass.stretch(room, after, end).await?;
        (stretch.events, stretch.limited) = (read.events, read.limited);
        Ok(stretch)
    }

    /// Required state that is new to the client.
    async fn state(
        &self,
        room: &RoomHandle,
        matched: &Matched,
        stretch: &Stretch,
        before: Option<&Required>,
        told: &mut Told,
    ) -> Result<State, RoomError> {
        let me = self.session.user_id();
        let (entry, required) = (&matched.entry, &matched.required);
        if !entry.is_joined() && entry.left.is_none() {
            let mut events = room.events(&[entry.event]).await?;
            events.retain(|_| required.matches(me, "m.room.member", me.as_str()));
            return Ok(State { events, ..State::default() });
        }
        let root = room.root_at(stretch.end).await?;
        let mut state = State::default();
        if let Some(since) = stretch.since {
            let from = room.root_at(since.into()).await?;
            let mut shorts = Vec::new();
            for change in room.state_diff(from, root).await? {
                let is_lazy_member = change.kind == "m.room.member" && required.is_lazy() && !stretch.limited;
                if let Some(after) = change.after
                    && (is_lazy_member || required.matches(me, &change.kind, &change.state_key))
                {
                    shorts.push(after);
                } else if change.kind == "m.room.member" && required.is_lazy() {
                    state.untold.insert(change.state_key.clone());
                }
                if change.after.is_none() && required.matches(me, &change.kind, &change.state_key) {
                    state.deleted.push((change.kind.clone(), change.state_key));
                }
                state.changed.insert(change.kind);
            }
            state.events = room.events(&shorts).await?;
            if let Some(before) = before.filter(|before| *before != required) {
                let old: BTreeSet<_> = state.events.iter().map(|event| event.short).collect();
                let all = required.fetch(room, root, me).await?;
                state.events.extend(all.into_iter().filter(|event| {
                    let key = event.pdu.state_key().unwrap_or_default();
                    !before.matches(me, event.pdu.kind(), key) && !old.contains(&event.short)
                }));
            }
        } else {
            forget_members(told, matched);
            state.events = required.fetch(room, root, me).await?;
        }
        if required.is_lazy() {
            self.add_members(room, root, matched, stretch, &mut state, told).await?;
        }
        Ok(state)
    }

    /// Adds the members that the timeline's events are from or about, but for those that were sent before as they are.
    ///
    /// Spec: MSC4186, "Lazy loaded memberships".
    async fn add_members(
        &self,
        room: &RoomHandle,
        root: StateRoot,
        matched: &Matched,
        stretch: &Stretch,
        state: &mut State,
        told: &mut Told,
    ) -> Result<(), RoomError> {
        let present: BTreeSet<String> = state
            .events
            .iter()
            .filter(|event| event.pdu.kind() == "m.room.member")
            .filter_map(|event| event.pdu.state_key().map(ToOwned::to_owned))
            .collect();
        let mut needed = BTreeSet::new();
        for event in &stretch.events {
            needed.insert(event.pdu.sender().to_string());
            if event.pdu.kind() == "m.room.member" {
                needed.extend(event.pdu.state_key().map(ToOwned::to_owned));
            }
        }
        for user in &needed {
            let key = (matched.entry.room, user.clone());
            let is_known = told.members.contains(&key) && !state.untold.contains(user);
            if !present.contains(user) && !is_known {
                state.events.extend(room.state_event(root, "m.room.member", user).await?);
                told.members.insert(key);
            }
        }
        let room = matched.entry.room;
        told.members.extend(present.into_iter().map(|user| (room, user)));
        if stretch.limited {
            // Changes of members that came before the timeline are not told: who was sent may have changed.
            let keep = |(known, user): &(_, String)| *known != room || needed.contains(user);
            told.members = told.members.iter().filter(|member| keep(member)).cloned().collect();
        }
        Ok(())
    }

    async fn heroes(
        &self,
        room: &RoomHandle,
        pass: &Pass<'_>,
        root: StateRoot,
    ) -> Result<Vec<Hero>, RoomError> {
        let mut heroes = Vec::new();
        for user_id in pass.heroes(room, root).await? {
            let member = room.state_event(root, "m.room.member", user_id.as_str()).await?;
            let field = |name| member.as_ref().and_then(|member| content_string(&member.pdu, name));
            heroes.push(Hero { displayname: field("displayname"), avatar_url: field("avatar_url"), user_id });
        }
        Ok(heroes)
    }

    /// When something last happened in the room that is worth a look.
    async fn bump_stamp(
        &self,
        room: &RoomHandle,
        matched: &Matched,
        stretch: &Stretch,
    ) -> Result<Position, RoomError> {
        let joined = Position::from(matched.entry.since);
        if !matched.entry.is_joined() {
            return Ok(joined);
        }
        let bump = |events: &[Arc<StoredEvent>]| {
            let found = events.iter().find(|event| BUMPS.contains(&event.pdu.kind()));
            found.and_then(|event| event.index).map(Position::from)
        };
        let newest: Vec<_> = stretch.events.iter().rev().cloned().collect();
        if let Some(found) = bump(&newest) {
            return Ok(found);
        }
        let read = room.timeline_back(stretch.end, 20).await?;
        if let Some(found) = bump(&read) {
            return Ok(found);
        }
        let read = room.timeline_back(stretch.end, BUMP_SCAN_MAX).await?;
        Ok(bump(&read).unwrap_or(joined))
    }

    fn pass<'a>(&'a self, request: &'a SyncRequest) -> Pass<'a> {
        Pass {
            homeserver: self.homeserver,
            session: self.session,
            request,
            since: self.since().unwrap_or_default(),
            upto: self.upto,
        }
    }

    /// What the parts of `/sync` that serve here ask for.
    fn sync_request(&self, limit: u32) -> SyncRequest {
        let mut filter = FilterDefinition::default();
        filter.room.timeline.limit = Some(UInt::from(limit));
        SyncRequest {
            user_id: self.request.user_id.clone(),
            device_id: self.request.device_id.clone(),
            inbox_since: None,
            takes_messages: false,
            since: self.since(),
            filter: Arc::new(filter),
            full_state: false,
            use_state_after: true,
            timeout: Duration::ZERO,
        }
    }
}

fn forget_members(told: &mut Told, matched: &Matched) {
    if !told.members.is_empty() {
        let room = matched.entry.room;
        told.members = told.members.iter().filter(|(known, _)| *known != room).cloned().collect();
    }
}

/// A text of a state event's content.
struct Text {
    /// None if it is empty, or the event is not there.
    text: Option<String>,
    is_redacted: bool,
}

async fn text(room: &RoomHandle, root: StateRoot, kind: &str, field: &str) -> Result<Text, RoomError> {
    let event = room.state_event(root, kind, "").await?;
    let is_redacted = event.as_ref().is_some_and(|event| event.redacted_by.is_some());
    let text = event.and_then(|event| content_string(&event.pdu, field)).filter(|text| !text.is_empty());
    Ok(Text { text, is_redacted })
}

fn is_redaction(event: &Arc<StoredEvent>) -> bool {
    event.pdu.kind() == "m.room.redaction"
}
