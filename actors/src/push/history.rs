//! What a user has been notified of: read back from the rooms' timelines, the newest first.
//!
//! Nothing is kept for it. Rooms are opened in the order of their last events, so that a page costs what it shows and
//! what lies between.
//!
//! Spec: client-server API, `GET /_matrix/client/v3/notifications`.

use std::collections::{BTreeMap, VecDeque};

use engine::{id::TimelineIndex, pdu::client::RoomIdField};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedRoomId, push::Action};
use serde_json::value::RawValue;

use crate::{
    homeserver::Homeserver,
    room::{RoomError, RoomHandle, Viewer},
    session::{Notice, RoomEntry, SessionHandle},
    sync::SyncError,
};

/// Events of a room that are judged at a time.
const PAGE: usize = 64;

/// Events that are looked at, at most, to fill one page; the next one goes on from there.
const SCAN_MAX: usize = 2000;

/// Rooms that are opened, at most, to fill one page.
const ROOMS_MAX: usize = 200;

/// Which notifications to list.
#[derive(Clone, Copy, Debug)]
pub struct NotificationQuery {
    /// Only what happened before this place.
    pub before: Option<TimelineIndex>,
    /// Most notifications to return.
    pub limit: usize,
    /// Only those that are highlighted.
    pub only_highlights: bool,
}

/// An event that notified a user, or would have.
#[derive(Debug)]
pub struct Notification {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The event in client format, without its room.
    pub event: Box<RawValue>,
    /// What the matching rule does.
    pub actions: Vec<Action>,
    /// Whether the user has read it.
    pub is_read: bool,
    /// When it was sent.
    pub ts: MilliSecondsSinceUnixEpoch,
}

/// A room that is read backwards.
struct Reader {
    room: RoomHandle,
    /// Events that were judged and not yet given.
    judged: VecDeque<(TimelineIndex, Option<Notice>)>,
    /// What comes before the user's time.
    floor: TimelineIndex,
    /// Where to read on; none at the beginning.
    rest: Option<TimelineIndex>,
}

impl Reader {
    fn new(room: RoomHandle, entry: &RoomEntry, until: TimelineIndex) -> Self {
        // Nothing of a room that one is only invited to but the invite.
        let floor = if entry.is_joined() { entry.since } else { TimelineIndex(entry.since.0 - 1) };
        Self { room, judged: VecDeque::new(), floor, rest: Some(until) }
    }

    /// The place of the next event.
    async fn peek(&mut self, session: &SessionHandle) -> Result<Option<TimelineIndex>, RoomError> {
        if self.judged.is_empty()
            && let Some(until) = self.rest.take()
        {
            let events = self.room.timeline_back(until, PAGE).await?;
            let oldest = events.last().and_then(|event| event.index);
            self.rest = oldest
                .filter(|oldest| events.len() == PAGE && *oldest > self.floor)
                .map(|oldest| TimelineIndex(oldest.0 - 1));
            let mut notices: BTreeMap<_, _> = session
                .notices(&self.room, &events)
                .await?
                .into_iter()
                .map(|notice| (notice.event.short, notice))
                .collect();
            let places = events.iter().filter_map(|event| Some((event.index?, event.short)));
            let own = places.filter(|(index, _)| *index > self.floor);
            self.judged = own.map(|(index, short)| (index, notices.remove(&short))).collect();
        }
        Ok(self.judged.front().map(|(index, _)| *index))
    }
}

impl Homeserver {
    /// A page of what notified a user, and where the next page begins.
    pub async fn notifications(
        &self,
        viewer: &Viewer,
        query: NotificationQuery,
    ) -> Result<(Vec<Notification>, Option<TimelineIndex>), SyncError> {
        let session = self.session(&viewer.user_id).await?;
        let newest = query.before.map_or(TimelineIndex(i64::MAX), |before| TimelineIndex(before.0 - 1));
        let shown = |entry: &RoomEntry| entry.is_joined() || entry.membership == "invite";
        let mut closed: BTreeMap<_, _> = BTreeMap::new();
        for (room_id, entry) in session.view().rooms().into_iter().filter(|(_, entry)| shown(entry)) {
            closed.insert((newest.min(entry.activity.into()), room_id), entry);
        }
        let mut open = BTreeMap::<(TimelineIndex, OwnedRoomId), Reader>::new();
        let (mut found, mut scanned, mut opened) = (Vec::new(), 0, 0);
        loop {
            let next = open.last_key_value().map(|((index, _), _)| *index);
            // A room is opened once its last event may be the next one.
            if let Some(entry) = closed.last_entry()
                && next.is_none_or(|next| entry.key().0 >= next)
            {
                let ((until, room_id), entry) = entry.remove_entry();
                if opened == ROOMS_MAX {
                    return Ok((found, Some(TimelineIndex(until.0 + 1))));
                }
                opened += 1;
                let mut reader = Reader::new(self.room(&room_id).await?, &entry, until);
                if let Some(index) = reader.peek(&session).await? {
                    open.insert((index, room_id), reader);
                }
                continue;
            }
            let Some(((index, room_id), mut reader)) = open.pop_last() else { return Ok((found, None)) };
            if found.len() == query.limit || scanned == SCAN_MAX {
                return Ok((found, Some(TimelineIndex(index.0 + 1))));
            }
            scanned += 1;
            let notice = reader.judged.pop_front().and_then(|(_, notice)| notice);
            if let Some(notice) = notice.filter(|notice| notice.highlights || !query.only_highlights) {
                found.extend(shown_notice(&reader.room, viewer, notice).await?);
            }
            if let Some(index) = reader.peek(&session).await? {
                open.insert((index, room_id), reader);
            }
        }
    }
}

async fn shown_notice(
    room: &RoomHandle,
    viewer: &Viewer,
    notice: Notice,
) -> Result<Option<Notification>, RoomError> {
    let Notice { event, actions, is_read, .. } = notice;
    let rendered = room.render(std::slice::from_ref(&event), viewer, RoomIdField::Absent).await?;
    let ts = event.pdu.origin_server_ts();
    let room_id = room.snapshot().room_id.clone();
    Ok(rendered.into_iter().next().map(|event| Notification { room_id, event, actions, is_read, ts }))
}
