//! A room's part of a `/sync` response.

use std::{collections::BTreeMap, sync::Arc};

use engine::{
    id::{Position, TimelineIndex},
    pdu::client::{self, RoomIdField},
    state::StateRoot,
};
use ruma::{
    OwnedUserId, RoomId, UserId,
    api::client::filter::{EventFormat, RoomFilter},
};
use serde_json::value::RawValue;

use super::{
    Events, JoinedRoom, LeftRoom, Pass, Summary, Timeline,
    ephemeral::{READ, READ_PRIVATE, receipt_events, typing_event},
    state::{Delta, NAMING, Span},
    typed,
};
use crate::{
    filter::{self, Fields},
    room::{RoomError, RoomHandle, StoredEvent, Viewer},
    session::RoomEntry,
    token::Token,
};

/// Timeline events that a client gets if its filter names no limit.
const TIMELINE_DEFAULT: usize = 10;

/// Timeline events that a client gets at most per room.
const TIMELINE_MAX: usize = 100;

/// Events that are looked at, at most, to fill a timeline through a narrow filter.
const SCAN_MAX: usize = 1000;

/// A stretch of timeline as read, before it is rendered.
pub(crate) struct Stretch {
    pub(crate) events: Vec<Arc<StoredEvent>>,
    pub(crate) limited: bool,
}

impl Pass<'_> {
    pub(super) async fn joined_room(
        &self,
        room_id: &RoomId,
        entry: &RoomEntry,
    ) -> Result<JoinedRoom, RoomError> {
        let room = self.homeserver.room(room_id).await?;
        // Who wants all members has not seen the room before they came.
        // So is everybody who was told of what did not stand then.
        let head = &room.snapshot().head;
        let came_whole = (!self.is_lazy() || head.corrected) && head.completed > self.since;
        let is_new = self.is_initial() || Position::from(entry.since) > self.since || came_whole;
        let after = if is_new { TimelineIndex(i64::MIN) } else { TimelineIndex::from(self.since) };
        let end = TimelineIndex::from(self.upto);
        let mut stretch = self.stretch(&room, after, end).await?;
        let span = Span {
            from: (!is_new).then_some(after),
            start: stretch
                .events
                .first()
                .and_then(|event| event.index)
                .map_or(end, |first| TimelineIndex(first.0 - 1)),
            end,
        };
        stretch.events = self.without_losers(&room, &span, stretch.events).await?;
        let mut delta = self.state_delta(&room, &span, &stretch.events).await?;
        // A redaction may have emptied the name.
        let names = |kind| NAMING.contains(&kind) || kind == "m.room.redaction";
        let is_renamed =
            is_new || delta.renames || stretch.events.iter().any(|event| names(event.pdu.kind()));
        let summary = if is_renamed { self.summary(&room).await? } else { Summary::default() };
        if let Some(heroes) = &summary.heroes {
            self.add_heroes(&room, &span, &stretch.events, heroes, &mut delta).await?;
        }
        let unread = self.session.unread(&room).await?;
        let has_new_counts = unread.changed() > self.since;
        let wants_threads = self.request.filter.room.timeline.unread_thread_notifications;
        let (unread_notifications, unread_thread_notifications) =
            if wants_threads { unread.by_thread() } else { (unread.total(), BTreeMap::new()) };
        Ok(JoinedRoom {
            summary,
            state: self.render_state(&room, delta).await?,
            timeline: self.render_timeline(&room, stretch, end).await?,
            ephemeral: self.ephemeral(&room, is_new),
            account_data: self.room_account_data(room_id, is_new),
            unread_notifications,
            unread_thread_notifications,
            has_new_counts,
        })
    }

    pub(super) async fn left_room(&self, room_id: &RoomId, entry: &RoomEntry) -> Result<LeftRoom, RoomError> {
        let room = self.homeserver.room(room_id).await?;
        let end = entry.since;
        // Who was in the room once, and now only rejected an invite, has seen nothing more of it.
        let was_inside = entry.left.is_some_and(|left| left >= end || Position::from(left) > self.since);
        let alone = self.leave_alone(&room, entry).await?;
        let (stretch, delta) = if was_inside && !entry.forgotten {
            let (mut stretch, delta) = self.until_leave(&room, end).await?;
            // What ended an invite from another server is not part of the room's timeline here.
            stretch.events.extend(alone.0.events.into_iter().filter(|event| event.index.is_none()));
            (stretch, delta)
        } else {
            alone
        };
        Ok(LeftRoom {
            state: self.render_state(&room, delta).await?,
            timeline: self.render_timeline(&room, stretch, end).await?,
            account_data: self.room_account_data(room_id, false),
        })
    }

    /// What someone who was in a room, and left it at `end`, is told of it.
    async fn until_leave(
        &self,
        room: &RoomHandle,
        end: TimelineIndex,
    ) -> Result<(Stretch, Delta), RoomError> {
        let since = (!self.is_initial()).then(|| TimelineIndex::from(self.since));
        let stretch = self.stretch(room, since.unwrap_or(TimelineIndex(i64::MIN)), end).await?;
        let first = stretch.events.first().and_then(|event| event.index);
        let span = Span { from: since, start: first.map_or(end, |first| TimelineIndex(first.0 - 1)), end };
        let delta = self.state_delta(room, &span, &stretch.events).await?;
        Ok((stretch, delta))
    }

    /// The event by which someone left who never was in the room, or has forgotten it.
    ///
    /// When state resolution undoes an invite, the earlier leave holds again: it is no news, but the state.
    async fn leave_alone(&self, room: &RoomHandle, entry: &RoomEntry) -> Result<(Stretch, Delta), RoomError> {
        let RoomFilter { timeline, state, .. } = &self.request.filter.room;
        let since = TimelineIndex::from(self.since);
        let is_news =
            |event: &Arc<StoredEvent>| self.is_initial() || event.index.is_none_or(|index| index > since);
        let (mut news, mut held): (Vec<_>, Vec<_>) =
            room.events(&[entry.event]).await?.into_iter().partition(is_news);
        for (events, filter) in [(&mut news, timeline), (&mut held, state)] {
            let applies = filter::applies_to_room(filter, &room.snapshot().room_id);
            events.retain(|event| applies && filter::passes(filter, &event.pdu));
        }
        Ok((Stretch { events: news, limited: false }, Delta { events: held, renames: false }))
    }

    /// The newest events of `(after, end]` that the filter lets through and the user may see.
    pub(crate) async fn stretch(
        &self,
        room: &RoomHandle,
        after: TimelineIndex,
        end: TimelineIndex,
    ) -> Result<Stretch, RoomError> {
        let filter = &self.request.filter.room.timeline;
        let room_id = &room.snapshot().room_id;
        if !filter::applies_to_room(filter, room_id) {
            return Ok(Stretch { events: Vec::new(), limited: false });
        }
        let limit = filter.limit.map_or(TIMELINE_DEFAULT, |limit| {
            usize::try_from(limit).unwrap_or(TIMELINE_MAX).min(TIMELINE_MAX)
        });
        let access = room.access(&self.request.user_id).await?;
        // What lies before a hole is for `/messages`, which fills the hole first.
        let gap = room.newest_gap(after, end);
        let after = gap.map_or(after, |at| TimelineIndex(at.0 - 1));
        let mut events = Vec::with_capacity(limit);
        let (mut until, mut scanned) = (end, 0);
        loop {
            let page = room.timeline_back(until, limit + 1).await?;
            let is_last = page.len() <= limit;
            scanned += page.len();
            let in_span: Vec<_> = page.iter().filter(|event| event.index > Some(after)).cloned().collect();
            let reached = is_last || in_span.len() < page.len();
            until =
                page.last().and_then(|event| event.index).map_or(until, |index| TimelineIndex(index.0 - 1));
            for event in room.visible_to(&self.request.user_id, &access, in_span).await? {
                if !filter::passes(filter, &event.pdu) {
                    continue;
                }
                if events.len() == limit {
                    events.reverse();
                    return Ok(Stretch { events, limited: true });
                }
                events.push(event);
            }
            if reached || scanned > SCAN_MAX {
                events.reverse();
                return Ok(Stretch { events, limited: !reached || gap.is_some() });
            }
        }
    }

    async fn render_timeline(
        &self,
        room: &RoomHandle,
        stretch: Stretch,
        end: TimelineIndex,
    ) -> Result<Timeline, RoomError> {
        let start = stretch.events.first().and_then(|event| event.index);
        let boundary = start.map_or(end, |first| TimelineIndex(first.0 - 1));
        Ok(Timeline {
            events: self.render(room, &stretch.events).await?,
            limited: stretch.limited,
            prev_batch: Some(Token::Timeline(boundary).to_string()),
        })
    }

    /// Events in the form, and with the properties, that the client's filter asks for.
    pub(super) async fn render(
        &self,
        room: &RoomHandle,
        events: &[Arc<StoredEvent>],
    ) -> Result<Vec<Box<RawValue>>, RoomError> {
        let filter = &self.request.filter;
        let rendered = match filter.event_format {
            EventFormat::Federation => {
                let erased = room.erased_for(events, &self.viewer()).await?;
                let events = erased.as_deref().unwrap_or(events);
                events.iter().map(|event| client::federation_event(&event.pdu)).collect()
            }
            _ => room.render(events, &self.viewer(), RoomIdField::Absent).await?,
        };
        Ok(match &filter.event_fields {
            Some(paths) => {
                let fields = Fields::new(paths);
                rendered.iter().map(|event| fields.keep(event)).collect()
            }
            None => rendered,
        })
    }

    pub(crate) fn viewer(&self) -> Viewer {
        Viewer { user_id: self.request.user_id.clone(), device_id: Some(self.request.device_id.clone()) }
    }

    /// Stripped state for someone who is not in the room, with their own membership event.
    pub(crate) async fn stripped_state(
        &self,
        room_id: &RoomId,
        entry: &RoomEntry,
    ) -> Result<Events, RoomError> {
        let room = self.homeserver.room(room_id).await?;
        let own = room.store().event(entry.event).await?;
        Ok(room.stripped_state(&self.request.user_id, &own).await?.into())
    }

    /// Member counts, and the members to name the room after if it has no name.
    ///
    /// Spec: client-server API, "Calculating the display name for a room".
    async fn summary(&self, room: &RoomHandle) -> Result<Summary, RoomError> {
        let head = &room.snapshot().head;
        let mut summary =
            Summary { joined: Some(head.census.joined), invited: Some(head.census.invited), heroes: None };
        let name = room.state_event(head.root, "m.room.name", "").await?;
        let alias = room.state_event(head.root, "m.room.canonical_alias", "").await?;
        let has = |event: Option<Arc<StoredEvent>>, field| {
            event
                .and_then(|event| crate::room::content_string(&event.pdu, field))
                .is_some_and(|name| !name.is_empty())
        };
        if !has(name, "name") && !has(alias, "alias") {
            summary.heroes = Some(self.heroes(room, head.root).await?);
        }
        Ok(summary)
    }

    pub(crate) async fn heroes(
        &self,
        room: &RoomHandle,
        root: StateRoot,
    ) -> Result<Vec<OwnedUserId>, RoomError> {
        let members = room.heroes(root, &self.request.user_id).await?;
        Ok(members.iter().filter_map(|member| UserId::parse(member.pdu.state_key()?).ok()).collect())
    }

    fn ephemeral(&self, room: &RoomHandle, is_new: bool) -> Events {
        let filter = &self.request.filter.room.ephemeral;
        if !filter::applies_to_room(filter, &room.snapshot().room_id) {
            return Events::default();
        }
        let since = if is_new { Position(0) } else { self.since };
        let wants = |kind| filter::type_passes(filter.types.as_deref(), &filter.not_types, kind);
        let ignored = self.session.view().ignored();
        let mut events = Vec::new();
        if wants("m.typing") {
            events.extend(typing_event(&room.typing(), since, &ignored));
        }
        if wants("m.receipt") {
            let public = room.receipts();
            let public = public.since(since).filter(|receipt| !ignored.contains(&receipt.user_id));
            let private = self.session.private_receipts(&room.snapshot().room_id, since);
            let private = private.iter().map(|receipt| (READ_PRIVATE, receipt));
            events.extend(receipt_events(public.map(|receipt| (READ, receipt)).chain(private)));
        }
        events.into()
    }

    fn room_account_data(&self, room_id: &RoomId, is_new: bool) -> Events {
        let filter = &self.request.filter.room.account_data;
        if !filter::applies_to_room(filter, room_id) {
            return Events::default();
        }
        let since = if is_new { Position(0) } else { self.since };
        let data = self.session.data();
        let events: Vec<_> = data
            .account_data_since(Some(room_id), since)
            .filter(|(kind, _)| filter::type_passes(filter.types.as_deref(), &filter.not_types, kind))
            .map(|(kind, content)| typed(kind, content))
            .collect();
        events.into()
    }
}
