//! How many events of a room a user has not read, by the user's push rules.
//!
//! Counted when somebody asks, from the newest event back to the user's receipts, and kept: the next
//! count looks at newer events only. A receipt takes events away without a look at them; a change of the
//! push rules, or of the threads that the user wants to hear of, starts the count over. A room that has gone unread for long is not walked to the end: a
//! count covers at most the newest [`SCAN_MAX`] events.
//!
//! Whoever sends something has read what came before it in the same thread, as with a receipt.
//!
//! An event belongs to the thread that its relations lead to (`RoomHandle::thread_root`), or to the main timeline.
//!
//! Spec: client-server API, "Receiving notifications", "Threaded read receipts".

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use engine::{
    id::{Position, ShortEventId, ShortRoomId, TimelineIndex},
    push::{Outcome, PushEvent, Subscribed},
    state::StateRoot,
};
use js_int::UInt;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::{
    EventId, OwnedUserId, RoomId,
    events::room::power_levels::{RoomPowerLevels, RoomPowerLevelsSource},
    push::{PushConditionPowerLevelsCtx, PushConditionRoomCtx, Ruleset},
};
use serde::{Deserialize, Serialize};

use super::{Ignored, RoomEntry, SessionData, SessionView};
use crate::room::{RoomError, RoomHandle, StoredEvent, is_dummy};

/// Events that a count looks at, at most.
const SCAN_MAX: usize = 2000;

/// Events that are read at a time.
const PAGE: usize = 64;

/// Unread counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UnreadCounts {
    /// Events that highlight.
    pub highlight_count: u64,
    /// Events that notify.
    pub notification_count: u64,
}

/// What a user has not read of a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    total: UnreadCounts,
    main: UnreadCounts,
    threads: imbl::OrdMap<String, UnreadCounts>,
    missed_calls: u64,
    /// The newest change that may have led to these counts; older ones may have been others.
    changed: Position,
}

impl Unread {
    /// The whole room, threads included.
    pub fn total(&self) -> UnreadCounts {
        self.total
    }

    /// Calls that the user has neither taken nor seen since.
    pub fn missed_calls(&self) -> u64 {
        self.missed_calls
    }

    /// When the counts became what they are, or later: who was told before knows other ones, perhaps.
    pub fn changed(&self) -> Position {
        self.changed
    }

    /// The main timeline, and each thread that has something unread, by its root's event ID.
    pub fn by_thread(self) -> (UnreadCounts, BTreeMap<String, UnreadCounts>) {
        (self.main, self.threads.into_iter().collect())
    }

    fn of(notices: &imbl::Vector<Notice>, changed: Position) -> Self {
        let mut unread = Self { changed, ..Self::default() };
        notices.iter().for_each(|notice| unread.add(notice));
        unread
    }

    /// Whether others say the same.
    fn equals(&self, other: &Self) -> bool {
        let Self { total, main, threads, missed_calls, changed: _ } = self;
        (*total, *main, *missed_calls) == (other.total, other.main, other.missed_calls)
            && *threads == other.threads
    }

    fn add(&mut self, notice: &Notice) {
        let counts = match notice.thread.as_deref() {
            None => &mut self.main,
            Some(root) => self.threads.entry(root.to_owned()).or_default(),
        };
        for counts in [counts, &mut self.total] {
            counts.notification_count += 1;
            counts.highlight_count += u64::from(notice.highlights);
        }
        self.missed_calls += u64::from(notice.is_missed_call);
    }
}

/// The name of the main timeline in threaded receipts.
const MAIN: &str = "main";

/// An unread event that notifies.
#[derive(Clone, Debug)]
struct Notice {
    index: TimelineIndex,
    /// The root of its thread; none in the main timeline.
    thread: Option<Arc<str>>,
    highlights: bool,
    is_missed_call: bool,
}

/// What is known of a room. Cloning shares it.
#[derive(Clone)]
struct Counted {
    /// The place up to which events were looked at.
    upto: TimelineIndex,
    /// The rules that they were looked at with.
    rules: Arc<Ruleset>,
    /// Whom the user ignored.
    ignored: Arc<Ignored>,
    /// When the user last subscribed to a thread of the room, or unsubscribed.
    threads: Position,
    /// How far the user had read.
    read: ReadUpTo,
    /// The user's own last event of each thread since then, by the thread's name in receipts.
    sent: imbl::OrdMap<String, TimelineIndex>,
    /// Oldest first.
    notices: imbl::Vector<Notice>,
    unread: Unread,
}

impl Counted {
    fn new(data: &SessionData, room_id: &RoomId, read: ReadUpTo) -> Self {
        let (notices, unread) = (imbl::Vector::new(), Unread::default());
        let (rules, ignored) = (data.push_rules().clone(), data.ignored().clone());
        let threads = data.threads().changed(room_id);
        Self { upto: read.whole, rules, ignored, threads, read, sent: imbl::OrdMap::new(), notices, unread }
    }

    /// Whether the user's settings are still those that events were looked at with.
    fn is_current(&self, data: &SessionData, room_id: &RoomId) -> bool {
        Arc::ptr_eq(&self.rules, data.push_rules())
            && Arc::ptr_eq(&self.ignored, data.ignored())
            && self.threads == data.threads().changed(room_id)
    }

    /// Takes a notice into account, and lets go of the oldest if there are too many.
    fn add(&mut self, notice: Notice) {
        if notice.index <= self.read.upto(notice.thread.as_deref()) {
            return;
        }
        self.unread.add(&notice);
        self.notices.push_back(notice);
        if self.notices.len() > SCAN_MAX {
            self.notices.pop_front();
            self.unread = Unread::of(&self.notices, self.unread.changed);
        }
    }

    /// Takes new events into account, given newest first.
    async fn take_in(
        &mut self,
        data: &SessionData,
        room: &RoomHandle,
        events: &PushEvents,
        fresh: &[Arc<StoredEvent>],
    ) -> Result<(), RoomError> {
        let context = context(data, room, events).await?;
        let (mut redacted, mut has_sent) = (Vec::new(), false);
        for event in fresh.iter().rev() {
            if event.pdu.kind() == "m.room.redaction" {
                redacted.extend(redacted_by(room, event).await?);
            }
            if ends_call(data, event) {
                self.call_was_answered();
            }
            if let Some(index) = event.index.filter(|_| is_own_deed(data, event)) {
                let root = room.thread_root(event).await?;
                self.sent.insert(root.map_or_else(|| MAIN.to_owned(), |root| root.to_string()), index);
                has_sent = true;
            }
            if let Some(notice) = notice(data, &context, events, room, event).await? {
                self.add(notice);
            }
        }
        if has_sent || !redacted.is_empty() {
            self.drop_gone(&redacted);
        }
        Ok(())
    }

    /// Takes note that the user has answered a call: those so far were not missed.
    fn call_was_answered(&mut self) {
        for notice in &mut self.notices {
            notice.is_missed_call = false;
        }
        self.unread.missed_calls = 0;
    }

    /// Takes over how far the user has read by receipts, which makes older events of the user's own idle.
    fn set_read(&mut self, read: ReadUpTo) {
        let sent = self.sent.iter().filter(|(_, index)| **index > read.whole);
        self.sent = sent.map(|(thread, index)| (thread.clone(), *index)).collect();
        self.upto = self.upto.max(read.whole);
        self.read = read;
        self.drop_gone(&[]);
    }

    /// Drops what is read by now, or redacted.
    fn drop_gone(&mut self, redacted: &[TimelineIndex]) {
        let is_read = |notice: &Notice| {
            let sent = self.sent.get(notice.thread.as_deref().unwrap_or(MAIN));
            notice.index <= self.read.upto(notice.thread.as_deref()) || Some(&notice.index) <= sent
        };
        let is_gone = |notice: &&Notice| redacted.contains(&notice.index) || is_read(notice);
        // `Vector::retain` mixes elements up, and reads past them, in `imbl` up to 7.0.2.
        let left = self.notices.iter().filter(|notice| !is_gone(notice)).cloned().collect();
        self.notices = left;
        self.unread = Unread::of(&self.notices, self.unread.changed);
    }
}

/// The counts of a session's rooms.
#[derive(Default)]
pub(super) struct UnreadCache(Mutex<BTreeMap<ShortRoomId, Counted>>);

impl UnreadCache {
    /// Counts what is unread in a room.
    pub(super) async fn count(
        &self,
        data: &SessionData,
        view: &SessionView,
        room: &RoomHandle,
        events: &PushEvents,
    ) -> Result<Unread, RoomError> {
        let Some(entry) = view.room(&room.snapshot().room_id) else { return Ok(Unread::default()) };
        Ok(self.counted(data, entry.since, room, events).await?.unread)
    }

    /// How far the user has read a room: by receipts, and by sending something.
    pub(super) async fn read_up_to(
        &self,
        data: &SessionData,
        view: &SessionView,
        room: &RoomHandle,
        events: &PushEvents,
    ) -> Result<ReadUpTo, RoomError> {
        let mut read = ReadUpTo::new(data, room, TimelineIndex(i64::MIN));
        let entry = view.room(&room.snapshot().room_id).filter(RoomEntry::is_joined);
        if let Some(entry) = entry {
            for (thread, index) in self.counted(data, entry.since, room, events).await?.sent {
                read.add(Some(thread), index);
            }
        }
        Ok(read)
    }

    /// Counts on from the last count of a room, which the user joined at a place.
    async fn counted(
        &self,
        data: &SessionData,
        joined: TimelineIndex,
        room: &RoomHandle,
        events: &PushEvents,
    ) -> Result<Counted, RoomError> {
        let snapshot = room.snapshot();
        let read = ReadUpTo::new(data, room, joined);
        let known = self.0.lock().get(&snapshot.room).cloned();
        let before = known.as_ref().map(|known| known.unread.clone());
        let known = known.filter(|known| known.is_current(data, &snapshot.room_id));
        let mut counted = known.unwrap_or_else(|| Counted::new(data, &snapshot.room_id, read.clone()));
        if counted.read != read {
            counted.set_read(read);
        }
        let fresh = unseen(room, counted.upto, snapshot.head.latest).await?;
        if !fresh.is_empty() {
            counted.take_in(data, room, events, &fresh).await?;
        }
        counted.upto = counted.upto.max(snapshot.head.latest);
        counted.unread.changed = match before {
            Some(before) if before.equals(&counted.unread) => before.changed,
            // What they were before is not known: it may be this change or an earlier one that made them what they are.
            _ => counted.read.changed.max(data.settings_changed(&snapshot.room_id)).max(counted.upto.into()),
        };
        self.keep(snapshot.room, counted.clone());
        Ok(counted)
    }

    /// Keeps a count, unless another reader has counted further meanwhile.
    fn keep(&self, room: ShortRoomId, counted: Counted) {
        let mut known = self.0.lock();
        if known.get(&room).is_none_or(|known| known.upto <= counted.upto) {
            known.insert(room, counted);
        }
    }
}

/// The place of the event that a redaction has taken away.
async fn redacted_by(room: &RoomHandle, redaction: &StoredEvent) -> Result<Option<TimelineIndex>, RoomError> {
    let Some(target) = redaction.pdu.redacts(room.snapshot().rules) else { return Ok(None) };
    let target = room.event(target).await?;
    Ok(target.filter(|target| target.redacted_by.is_some()).and_then(|target| target.index))
}

/// How far a user has read a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReadUpTo {
    /// By receipts for the whole room, and because nothing counts from before the user joined.
    whole: TimelineIndex,
    threads: BTreeMap<String, TimelineIndex>,
    /// The last receipt.
    changed: Position,
}

impl ReadUpTo {
    pub(super) fn new(data: &SessionData, room: &RoomHandle, joined: TimelineIndex) -> Self {
        let mut read = Self { whole: joined, threads: BTreeMap::new(), changed: Position(0) };
        let public = room.receipts();
        let public = public.by_user(data.user_id());
        for receipt in public.chain(data.private_receipts(&room.snapshot().room_id)) {
            read.changed = read.changed.max(receipt.position);
            read.add(receipt.thread.clone(), receipt.index);
        }
        read
    }

    /// Takes note that the user has read a thread, or all, up to a place.
    fn add(&mut self, thread: Option<String>, index: TimelineIndex) {
        let upto = match thread {
            None => &mut self.whole,
            Some(thread) => self.threads.entry(thread).or_insert(index),
        };
        *upto = index.max(*upto);
    }

    /// How far in a thread, by its root, or in the main timeline.
    pub(super) fn upto(&self, thread: Option<&str>) -> TimelineIndex {
        self.threads.get(thread.unwrap_or(MAIN)).map_or(self.whole, |upto| self.whole.max(*upto))
    }
}

/// The events of `(from, upto]`, newest first, at most [`SCAN_MAX`].
async fn unseen(
    room: &RoomHandle,
    from: TimelineIndex,
    upto: TimelineIndex,
) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
    let mut events = Vec::new();
    let mut until = upto;
    while until > from && events.len() < SCAN_MAX {
        let page = room.timeline_back(until, PAGE).await?;
        let is_last = page.len() < PAGE;
        let oldest = page.last().and_then(|event| event.index);
        events.extend(page.into_iter().filter(|event| event.index > Some(from)));
        match oldest {
            Some(oldest) if !is_last => until = TimelineIndex(oldest.0.saturating_sub(1)),
            _ => break,
        }
    }
    Ok(events)
}

/// What the rules need to know of the room and of the user in it.
pub(super) async fn context(
    data: &SessionData,
    room: &RoomHandle,
    events: &PushEvents,
) -> Result<PushConditionRoomCtx, RoomError> {
    let snapshot = room.snapshot();
    let root = snapshot.head.root;
    let user_id = data.user_id().to_owned();
    let member = room.state_event(root, "m.room.member", user_id.as_str()).await?;
    let name = member.and_then(|member| crate::room::content_string(&member.pdu, "displayname"));
    let name = name.unwrap_or_else(|| user_id.localpart().to_owned());
    let members = UInt::new_saturating(snapshot.head.census.joined);
    let context = PushConditionRoomCtx::new(snapshot.room_id.clone(), members, user_id, name);
    let powers = if let Some(powers) = events.powers.get(&root) {
        powers
    } else {
        let powers = Arc::new(powers(room, root).await?);
        events.powers.insert(root, powers.clone());
        powers
    };
    Ok(context.with_power_levels((*powers).clone()))
}

/// Who has which power in a state, as the rules ask for it.
async fn powers(room: &RoomHandle, root: StateRoot) -> Result<PushConditionPowerLevelsCtx, RoomError> {
    let power_levels = room.state_event(root, "m.room.power_levels", "").await?;
    let source = power_levels
        .and_then(|event| serde_json::from_str(event.pdu.content().get()).ok())
        .map_or(RoomPowerLevelsSource::None, RoomPowerLevelsSource::Original);
    let creators = creators(room, root).await?;
    let rules = room.snapshot().rules;
    Ok(RoomPowerLevels::new(source, &rules.authorization, creators).into())
}

async fn creators(room: &RoomHandle, root: StateRoot) -> Result<Vec<OwnedUserId>, RoomError> {
    #[derive(Deserialize)]
    struct Content {
        #[serde(default)]
        additional_creators: Vec<OwnedUserId>,
    }
    let Some(create) = room.state_event(root, "m.room.create", "").await? else { return Ok(Vec::new()) };
    let content = serde_json::from_str::<Content>(create.pdu.content().get());
    let mut creators = content.map_or_else(|_| Vec::new(), |content| content.additional_creators);
    creators.push(create.pdu.sender().to_owned());
    Ok(creators)
}

/// What push rules look at, shared by all sessions: it is parsed once, not once per reader.
pub(super) struct PushEvents {
    events: Cache<ShortEventId, Arc<PushEvent>>,
    /// By the state that they are part of.
    powers: Cache<StateRoot, Arc<PushConditionPowerLevelsCtx>>,
}

/// Events that are kept parsed: the news of the last moments, which all readers are about to judge.
const PARSED_MAX: usize = 1024;

/// Rooms' power levels that are kept parsed.
const POWERS_MAX: usize = 256;

impl PushEvents {
    pub(super) fn new() -> Self {
        Self { events: Cache::new(PARSED_MAX), powers: Cache::new(POWERS_MAX) }
    }

    fn get(&self, event: &StoredEvent) -> Option<Arc<PushEvent>> {
        if let Some(parsed) = self.events.get(&event.short) {
            return Some(parsed);
        }
        let parsed = Arc::new(PushEvent::parse(event.pdu.raw())?);
        self.events.insert(event.short, parsed.clone());
        Some(parsed)
    }
}

/// What the user's rules make of an event, if it notifies.
pub(super) fn judge<'a>(
    data: &'a SessionData,
    context: &PushConditionRoomCtx,
    events: &PushEvents,
    event: &StoredEvent,
) -> Option<&'a Outcome> {
    let sender = event.pdu.sender();
    let is_hidden = event.redacted_by.is_some() || is_dummy(&event.pdu);
    if sender == data.user_id() || is_hidden || data.ignores(sender) {
        return None;
    }
    let subscribed = |root: &EventId| data.threads().subscription(&context.room_id, root).is_some();
    let subscribed = data.has_threads.then_some(&subscribed as Subscribed<'_>);
    let outcome = data.compiled_rules().evaluate(&*events.get(event)?, context, subscribed)?;
    outcome.notifies.then_some(outcome)
}

async fn notice(
    data: &SessionData,
    context: &PushConditionRoomCtx,
    events: &PushEvents,
    room: &RoomHandle,
    event: &StoredEvent,
) -> Result<Option<Notice>, RoomError> {
    let (Some(outcome), Some(index)) = (judge(data, context, events, event), event.index) else {
        return Ok(None);
    };
    let thread = room.thread_root(event).await?.map(|root| Arc::from(root.as_str()));
    let is_missed_call = event.pdu.kind() == "m.call.invite";
    Ok(Some(Notice { index, thread, highlights: outcome.highlights, is_missed_call }))
}

/// Whether an event is the user's answer to a call, or to all that ring in the room.
///
/// Spec: client-server API, "Voice over IP".
fn ends_call(data: &SessionData, event: &StoredEvent) -> bool {
    event.pdu.sender() == data.user_id() && ["m.call.answer", "m.call.reject"].contains(&event.pdu.kind())
}

/// Whether the user has sent an event, and so has read what came before.
///
/// The server itself sends the user's memberships when the profile changes, and dummies.
/// Spec: client-server API, "Marking notifications as read".
fn is_own_deed(data: &SessionData, event: &StoredEvent) -> bool {
    let user_id = data.user_id();
    let is_membership =
        event.pdu.kind() == "m.room.member" && event.pdu.state_key() == Some(user_id.as_str());
    event.pdu.sender() == user_id && !is_membership && !is_dummy(&event.pdu)
}
