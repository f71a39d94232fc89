//! How many events of a room a user has not read, by the user's push rules.
//!
//! Counted when somebody asks, from the newest event back to the user's receipts, and kept: the next
//! count looks at newer events only. A receipt takes events away without a look at them; a change of the
//! push rules starts the count over. A room that has gone unread for long is not walked to the end: a
//! count covers at most the newest [`SCAN_MAX`] events.
//!
//! An event belongs to the thread that its own `m.thread` relation names, or to the main timeline.
//!
//! Spec: client-server API, "Receiving notifications", "Threaded read receipts".

use std::{collections::BTreeMap, sync::Arc};

use engine::id::{ShortEventId, ShortRoomId, TimelineIndex};
use js_int::UInt;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::{
    OwnedUserId, UserId,
    events::{
        AnySyncTimelineEvent,
        room::power_levels::{RoomPowerLevels, RoomPowerLevelsSource},
    },
    push::{Action, FlattenedJson, PushConditionRoomCtx, Ruleset},
    serde::Raw,
};
use serde::{Deserialize, Serialize};

use super::{SessionData, SessionView};
use crate::room::{RoomError, RoomHandle, StoredEvent};

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
    main: UnreadCounts,
    threads: BTreeMap<String, UnreadCounts>,
}

impl Unread {
    /// The whole room, threads included.
    pub fn total(&self) -> UnreadCounts {
        self.threads.values().fold(self.main, |total, thread| UnreadCounts {
            highlight_count: total.highlight_count + thread.highlight_count,
            notification_count: total.notification_count + thread.notification_count,
        })
    }

    /// The main timeline, and each thread that has something unread, by its root's event ID.
    pub fn by_thread(self) -> (UnreadCounts, BTreeMap<String, UnreadCounts>) {
        (self.main, self.threads)
    }

    fn add(&mut self, notice: &Notice) {
        let counts = match notice.thread.as_str() {
            MAIN => &mut self.main,
            root => self.threads.entry(root.to_owned()).or_default(),
        };
        counts.notification_count += 1;
        counts.highlight_count += u64::from(notice.highlights);
    }
}

/// The name of the main timeline in threaded receipts.
const MAIN: &str = "main";

/// An unread event that notifies.
#[derive(Clone, Debug)]
struct Notice {
    index: TimelineIndex,
    thread: String,
    highlights: bool,
}

/// What is known of a room.
struct Counted {
    /// The place up to which events were looked at.
    upto: TimelineIndex,
    /// The rules that they were looked at with.
    rules: Arc<Ruleset>,
    /// Oldest first.
    notices: Vec<Notice>,
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
        flat_events: &FlatEvents,
    ) -> Result<Unread, RoomError> {
        let snapshot = room.snapshot();
        let Some(entry) = view.room(&snapshot.room_id) else { return Ok(Unread::default()) };
        let read = ReadUpTo::new(data, room, entry.since);
        let known = self.0.lock().remove(&snapshot.room);
        let known = known.filter(|known| Arc::ptr_eq(&known.rules, data.push_rules()));
        let (from, mut notices) = match known {
            Some(known) => (known.upto.max(read.whole), known.notices),
            None => (read.whole, Vec::new()),
        };
        let upto = snapshot.head.latest;
        let fresh = unseen(room, from, upto).await?;
        if !fresh.is_empty() {
            let context = context(data, room).await?;
            for event in fresh.iter().rev() {
                notices.extend(judge(data, &context, flat_events, event).await);
            }
        }
        notices.retain(|notice| notice.index > read.upto(&notice.thread));
        let excess = notices.len().saturating_sub(SCAN_MAX);
        notices.drain(..excess);
        let mut unread = Unread::default();
        for notice in &notices {
            unread.add(notice);
        }
        let counted = Counted { upto: upto.max(from), rules: data.push_rules().clone(), notices };
        self.0.lock().insert(snapshot.room, counted);
        Ok(unread)
    }
}

/// How far a user has read a room.
struct ReadUpTo {
    /// By receipts for the whole room, and because nothing counts from before the user joined.
    whole: TimelineIndex,
    threads: BTreeMap<String, TimelineIndex>,
}

impl ReadUpTo {
    fn new(data: &SessionData, room: &RoomHandle, joined: TimelineIndex) -> Self {
        let mut read = Self { whole: joined, threads: BTreeMap::new() };
        let public = room.receipts();
        let public = public.by_user(data.user_id());
        for receipt in public.chain(data.private_receipts(&room.snapshot().room_id)) {
            match &receipt.thread {
                None => read.whole = read.whole.max(receipt.index),
                Some(thread) => {
                    let upto = read.threads.entry(thread.clone()).or_insert(receipt.index);
                    *upto = receipt.index.max(*upto);
                }
            }
        }
        read
    }

    fn upto(&self, thread: &str) -> TimelineIndex {
        self.threads.get(thread).map_or(self.whole, |upto| self.whole.max(*upto))
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
async fn context(data: &SessionData, room: &RoomHandle) -> Result<PushConditionRoomCtx, RoomError> {
    let snapshot = room.snapshot();
    let root = snapshot.head.root;
    let user_id = data.user_id().to_owned();
    let member = room.state_event(root, "m.room.member", user_id.as_str()).await?;
    let name = member.and_then(|member| crate::room::content_string(&member.pdu, "displayname"));
    let name = name.unwrap_or_else(|| user_id.localpart().to_owned());
    let members = UInt::new_saturating(snapshot.head.joined);
    let context = PushConditionRoomCtx::new(snapshot.room_id.clone(), members, user_id, name);
    let power_levels = room.state_event(root, "m.room.power_levels", "").await?;
    let source = power_levels
        .and_then(|event| serde_json::from_str(event.pdu.content().get()).ok())
        .map_or(RoomPowerLevelsSource::None, RoomPowerLevelsSource::Original);
    let creators = creators(room, root).await?;
    let power_levels = RoomPowerLevels::new(source, &snapshot.rules.authorization, creators);
    Ok(context.with_power_levels(power_levels.into()))
}

async fn creators(room: &RoomHandle, root: engine::state::StateRoot) -> Result<Vec<OwnedUserId>, RoomError> {
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

/// Events as push rules look at them, shared by all sessions: an event is taken apart once, not once per reader.
pub(super) struct FlatEvents(Cache<ShortEventId, Arc<FlattenedJson>>);

/// Events that are kept taken apart: the news of the last moments, which all readers are about to judge.
const FLAT_MAX: usize = 1024;

impl FlatEvents {
    pub(super) fn new() -> Self {
        Self(Cache::new(FLAT_MAX))
    }

    fn get(&self, event: &StoredEvent) -> Option<Arc<FlattenedJson>> {
        if let Some(flat) = self.0.get(&event.short) {
            return Some(flat);
        }
        let json: Raw<AnySyncTimelineEvent> = serde_json::from_slice(event.pdu.raw()).ok()?;
        let flat = Arc::new(FlattenedJson::from_raw(&json));
        self.0.insert(event.short, flat.clone());
        Some(flat)
    }
}

/// Whether an event notifies the user, and in which thread.
async fn judge(
    data: &SessionData,
    context: &PushConditionRoomCtx,
    flat_events: &FlatEvents,
    event: &StoredEvent,
) -> Option<Notice> {
    if is_own(data.user_id(), event) || event.redacted_by.is_some() {
        return None;
    }
    let flat = flat_events.get(event)?;
    for rule in data.push_rules().iter() {
        if rule.applies(&flat, context).await {
            let actions = rule.actions();
            let highlights = actions.iter().any(Action::is_highlight);
            let notice = Notice { index: event.index?, thread: thread_of(event), highlights };
            return actions.iter().any(Action::should_notify).then_some(notice);
        }
    }
    None
}

fn is_own(user_id: &UserId, event: &StoredEvent) -> bool {
    event.pdu.sender() == user_id
}

fn thread_of(event: &StoredEvent) -> String {
    #[derive(Deserialize)]
    struct Content {
        #[serde(rename = "m.relates_to")]
        relates_to: RelatesTo,
    }
    #[derive(Deserialize)]
    struct RelatesTo {
        rel_type: String,
        event_id: String,
    }
    match serde_json::from_str::<Content>(event.pdu.content().get()) {
        Ok(Content { relates_to }) if relates_to.rel_type == "m.thread" => relates_to.event_id,
        _ => MAIN.to_owned(),
    }
}
