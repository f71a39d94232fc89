//! State changes of a `/sync` response.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use engine::{
    id::{ShortEventId, TimelineIndex},
    state::StateRoot,
};

use ruma::OwnedUserId;

use super::{Pass, State};
use crate::{
    filter,
    room::{RoomError, RoomHandle, StoredEvent},
};

/// The stretch of time whose state changes are told.
pub(super) struct Span {
    /// What the client knows; nothing if none.
    pub(super) from: Option<TimelineIndex>,
    /// Just before the first event of the timeline.
    pub(super) start: TimelineIndex,
    /// The end of the timeline.
    pub(super) end: TimelineIndex,
}

/// State events to tell.
#[derive(Default)]
pub(super) struct Delta {
    pub(super) events: Vec<Arc<StoredEvent>>,
    /// Whether something has changed that clients name the room after.
    pub(super) renames: bool,
}

/// The types of state that a room's name depends on, if only by its members.
pub(super) const NAMING: [&str; 3] = ["m.room.member", "m.room.name", "m.room.canonical_alias"];

impl Pass<'_> {
    /// The state that the client lacks.
    ///
    /// Up to the start of the timeline, or up to its end with `use_state_after`. What changed in between without an
    /// event of the timeline, by state resolution or behind a filter, is told as well: with the timeline applied to it,
    /// it makes the room's present state. With lazy loading, of the
    /// members only those who sent something in the timeline, unless their membership changed since what the client knows.
    pub(super) async fn state_delta(
        &self,
        room: &RoomHandle,
        span: &Span,
        timeline: &[Arc<StoredEvent>],
    ) -> Result<Delta, RoomError> {
        let filter = &self.request.filter.room.state;
        if !filter::applies_to_room(filter, &room.snapshot().room_id) {
            return Ok(Delta::default());
        }
        let known = match span.from {
            Some(index) => room.root_at(index).await?,
            None => StateRoot::default(),
        };
        let tells_all = span.from.is_none() || self.request.full_state;
        let from = if tells_all { StateRoot::default() } else { known };
        let to = room.root_at(self.told_at(span)).await?;
        let is_lazy = !filter.lazy_load_options.is_disabled();
        let senders = if is_lazy { senders(timeline) } else { BTreeSet::new() };
        let mut shorts = BTreeMap::<(String, String), ShortEventId>::new();
        let end = room.root_at(span.end).await?;
        let news = if is_lazy && tells_all && span.from.is_some() {
            changed_members(room, known, end).await?
        } else {
            BTreeSet::new()
        };
        let shown: BTreeSet<_> = timeline.iter().map(|event| event.short).collect();
        let mut changes = room.state_diff(from, to).await?;
        if to != end {
            let unseen = room.state_diff(to, end).await?.into_iter();
            changes.extend(unseen.filter(|change| change.after.is_some_and(|after| !shown.contains(&after))));
        }
        let renames = changes.iter().any(|change| NAMING.contains(&change.kind.as_str()));
        for change in changes {
            let leaves_out = is_lazy
                && tells_all
                && change.kind == "m.room.member"
                && !senders.contains(change.state_key.as_str())
                && !news.contains(&change.state_key)
                && change.state_key != self.request.user_id.as_str();
            if let Some(after) = change.after
                && !leaves_out
                && filter::type_passes(filter.types.as_deref(), &filter.not_types, &change.kind)
            {
                shorts.insert((change.kind, change.state_key), after);
            }
        }
        let shorts: Vec<_> = shorts.into_values().collect();
        let mut events = room.events(&shorts).await?;
        if is_lazy && !tells_all {
            // What changed out of sight is later than the members of then.
            let told: BTreeSet<_> =
                events.iter().filter_map(|event| member(event)).map(str::to_owned).collect();
            for sender in senders.into_iter().filter(|sender| !told.contains(*sender)) {
                events.extend(room.state_event(to, "m.room.member", sender).await?);
            }
        }
        events.retain(|event| filter::passes(filter, &event.pdu));
        Ok(Delta { events, renames })
    }

    /// Where the state that is told is the room's.
    fn told_at(&self, span: &Span) -> TimelineIndex {
        if self.request.use_state_after { span.end } else { span.start }
    }

    /// With lazy loading, the members that the room is named after come along, whether they said something or not.
    ///
    /// Spec: client-server API, `GET /_matrix/client/v3/sync`, `m.heroes`.
    pub(super) async fn add_heroes(
        &self,
        room: &RoomHandle,
        span: &Span,
        timeline: &[Arc<StoredEvent>],
        heroes: &[OwnedUserId],
        delta: &mut Delta,
    ) -> Result<(), RoomError> {
        let filter = &self.request.filter.room.state;
        if !self.is_lazy() || !filter::applies_to_room(filter, &room.snapshot().room_id) {
            return Ok(());
        }
        // Not as of the timeline's start: what changed since, out of sight, would be undone.
        let root = room.root_at(span.end).await?;
        for hero in heroes.iter().map(|hero| hero.as_str()) {
            if delta.events.iter().any(|event| member(event) == Some(hero)) {
                continue;
            }
            let event = room.state_event(root, "m.room.member", hero).await?;
            let Some(event) = event.filter(|event| filter::passes(filter, &event.pdu)) else { continue };
            if !timeline.iter().any(|shown| shown.short == event.short) {
                delta.events.push(event);
            }
        }
        Ok(())
    }

    /// A timeline without the state events that lost to older ones: clients that apply it would keep the wrong state.
    ///
    /// With `use_state_after` they do not apply it. `/messages` has all of it in any case.
    pub(super) async fn without_losers(
        &self,
        room: &RoomHandle,
        span: &Span,
        mut timeline: Vec<Arc<StoredEvent>>,
    ) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        if self.request.use_state_after {
            return Ok(timeline);
        }
        let end = room.root_at(span.end).await?;
        let (mut won, mut lost) = (BTreeSet::new(), BTreeSet::new());
        for event in timeline.iter().rev() {
            let Some(state_key) = event.pdu.state_key() else { continue };
            let key = (event.pdu.kind(), state_key);
            if won.contains(&key) {
                continue;
            }
            let held = room.state_event(end, key.0, key.1).await?;
            if held.is_some_and(|held| held.short == event.short) {
                won.insert(key);
            } else {
                lost.insert(event.short);
            }
        }
        timeline.retain(|event| !lost.contains(&event.short));
        Ok(timeline)
    }

    pub(super) async fn render_state(&self, room: &RoomHandle, delta: Delta) -> Result<State, RoomError> {
        let events = self.render(room, &delta.events).await?.into();
        Ok(if self.request.use_state_after { State::After(events) } else { State::Before(events) })
    }
}

/// The users whose membership differs between two states.
async fn changed_members(
    room: &RoomHandle,
    before: StateRoot,
    after: StateRoot,
) -> Result<BTreeSet<String>, RoomError> {
    let changes = room.state_diff(before, after).await?.into_iter();
    Ok(changes.filter(|change| change.kind == "m.room.member").map(|change| change.state_key).collect())
}

/// Whose membership an event is about.
fn member(event: &StoredEvent) -> Option<&str> {
    event.pdu.state_key().filter(|_| event.pdu.kind() == "m.room.member")
}

fn senders(timeline: &[Arc<StoredEvent>]) -> BTreeSet<&str> {
    timeline.iter().map(|event| event.pdu.sender().as_str()).collect()
}
