//! Full-text search over the messages, names and topics of a user's rooms.
//!
//! A task keeps an index behind the rooms ([`indexer`](self::indexer)). What it finds is looked at again in the rooms:
//! who searches sees what they might read there, and nothing that was redacted meanwhile.
//!
//! Spec: client-server API, "Server Side Search".

mod indexer;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
    sync::Arc,
};

use engine::id::{ShortRoomId, TimelineIndex};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId, api::client::filter::RoomEventFilter};
use serde::Deserialize;
pub use storage::text::{TextField, TextIndex, TextOrder};
use storage::{
    Direction, KeyRange, StoreError, schema,
    text::{self, TextError, TextHit, TextQuery, words},
};

pub(crate) use self::indexer::Searching;
use crate::{
    filter,
    homeserver::Homeserver,
    room::{Access, ReadError, RoomError, RoomHandle, StoredEvent, Viewer, content_string},
    session::{SessionError, SessionHandle},
    token::InvalidToken,
};

/// Results that are looked at at a time.
const PAGE: usize = 50;

/// Results that are looked at, at most, to find those that the user may see.
const SCAN_MAX: usize = 500;

/// Former rooms that a search of an upgraded room looks through.
const PREDECESSORS_MAX: usize = 10;

/// Why a search has no results.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// This server keeps no index.
    #[error("this server does not search messages")]
    Disabled,
    /// The index failed.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A room could not be read.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// The user's account could not be read.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<ReadError> for SearchError {
    fn from(error: ReadError) -> Self {
        Self::Room(error.into())
    }
}

/// What a search goes on with: a room's results, a sender's, or all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Group {
    /// All.
    Everything,
    /// Those of a room.
    Room(OwnedRoomId),
    /// Those of a sender.
    Sender(OwnedUserId),
}

/// Where a search goes on; opaque to clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchToken {
    /// Results of the index that were looked at.
    pub skip: usize,
    /// The newest result when the search began: what came later is left out.
    pub newest: Option<TimelineIndex>,
    /// What it goes on with.
    pub group: Group,
}

impl fmt::Display for SearchToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "q1_{}_", self.skip)?;
        if let Some(newest) = self.newest {
            write!(f, "{}", newest.0)?;
        }
        match &self.group {
            Group::Everything => Ok(()),
            Group::Room(room_id) => write!(f, "_{room_id}"),
            Group::Sender(user_id) => write!(f, "_{user_id}"),
        }
    }
}

impl FromStr for SearchToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let mut parts = text.strip_prefix("q1_").ok_or(InvalidToken)?.splitn(3, '_');
        let skip = parts.next().and_then(|skip| skip.parse().ok()).ok_or(InvalidToken)?;
        let newest = match parts.next().ok_or(InvalidToken)? {
            "" => None,
            newest => Some(TimelineIndex(newest.parse().map_err(|_| InvalidToken)?)),
        };
        let group = match parts.next() {
            None => Group::Everything,
            Some(id) if id.starts_with('!') => Group::Room(RoomId::parse(id).map_err(|_| InvalidToken)?),
            Some(id) => Group::Sender(UserId::parse(id).map_err(|_| InvalidToken)?),
        };
        Ok(Self { skip, newest, group })
    }
}

/// What a user searches for.
#[derive(Clone, Debug)]
pub struct Search {
    /// The words, all of which must be there.
    pub term: String,
    /// Where they may be.
    pub fields: Vec<TextField>,
    /// Which events are wanted.
    pub filter: RoomEventFilter,
    /// The order of the results.
    pub order: TextOrder,
    /// Most results to return.
    pub limit: usize,
    /// Where an earlier search goes on.
    pub from: Option<SearchToken>,
}

/// An event that was found.
#[derive(Clone)]
pub struct FoundEvent {
    /// Its room.
    pub room: RoomHandle,
    /// The event.
    pub event: Arc<StoredEvent>,
    /// How well it matches.
    pub rank: f32,
}

/// What was found.
pub struct Found {
    /// The results, in order.
    pub events: Vec<FoundEvent>,
    /// About how many there are in all that the user may see.
    pub count: usize,
    /// How many results of the index were looked at, by room and by sender.
    pub looked_at: BTreeMap<String, usize>,
    /// The words to highlight.
    pub highlights: Vec<String>,
    /// Where the search goes on, if it does.
    pub next: Option<SearchToken>,
}

/// Who searches, and what they see.
struct Searcher<'a> {
    homeserver: &'a Homeserver,
    session: SessionHandle,
    filter: &'a RoomEventFilter,
    rooms: BTreeMap<ShortRoomId, OwnedRoomId>,
    /// Rooms with results; none where nothing is to be found.
    open: BTreeMap<ShortRoomId, Option<(RoomHandle, Access)>>,
    looked_at: BTreeMap<String, usize>,
}

impl Homeserver {
    /// Searches the rooms that a user is or was in.
    ///
    /// Spec: client-server API, `POST /_matrix/client/v3/search`.
    pub async fn search(&self, user_id: &UserId, search: &Search) -> Result<Found, SearchError> {
        let Some(index) = self.searching().index().cloned() else { return Err(SearchError::Disabled) };
        self.searching().settle().await;
        let session = self.session(user_id).await?;
        let group = search.from.as_ref().map_or(&Group::Everything, |from| &from.group);
        let rooms = self.searched_rooms(user_id, &search.filter, group).await?;
        let highlights: BTreeSet<_> = words(&search.term).into_iter().collect();
        let mut query = TextQuery {
            words: words(&search.term),
            fields: search.fields.clone(),
            rooms: rooms.keys().copied().collect(),
            senders: senders(&search.filter, group),
            before: None,
            order: search.order,
            skip: search.from.as_ref().map_or(0, |from| from.skip),
            limit: PAGE,
        };
        let mut newest = search.from.as_ref().and_then(|from| from.newest);
        let mut searcher = Searcher {
            homeserver: self,
            session,
            filter: &search.filter,
            rooms,
            open: BTreeMap::new(),
            looked_at: BTreeMap::new(),
        };
        let (mut events, mut scanned, mut count) = (Vec::new(), 0, 0);
        let mut goes_on = true;
        while goes_on && events.len() < search.limit && scanned < SCAN_MAX {
            query.before = newest.map(|newest| TimelineIndex(newest.0.saturating_add(1)));
            let page = query.clone();
            let found = text::blocking(&index, move |index| index.search(&page)).await?;
            if search.order == TextOrder::Recent && newest.is_none() {
                newest = found.hits.first().map(|hit| hit.at);
            }
            count = found.count;
            goes_on = found.hits.len() == PAGE;
            for hit in found.hits {
                if events.len() == search.limit {
                    goes_on = true;
                    break;
                }
                scanned += 1;
                query.skip += 1;
                events.extend(searcher.look_at(hit).await?);
            }
        }
        let next = SearchToken { skip: query.skip, newest, group: group.clone() };
        let shown = about(count, events.len(), scanned);
        let next = Some(next).filter(|next| goes_on && next.skip < count);
        let looked_at = searcher.looked_at;
        Ok(Found { events, count: shown, looked_at, highlights: highlights.into_iter().collect(), next })
    }

    /// The rooms that a user is or was in and that a filter lets through.
    async fn searched_rooms(
        &self,
        user_id: &UserId,
        filter: &RoomEventFilter,
        group: &Group,
    ) -> Result<BTreeMap<ShortRoomId, OwnedRoomId>, SearchError> {
        let all = KeyRange::prefix(&(user_id,));
        let rows = self.storage().range(&schema::MEMBERSHIPS, all, Direction::Ascending, usize::MAX).await?;
        let is_own = |record: &schema::MembershipRecord| {
            !record.forgotten && (record.membership == "join" || record.left.is_some())
        };
        let mut rooms: BTreeMap<_, _> = rows
            .into_iter()
            .filter(|(_, record)| is_own(record))
            .map(|((_, room_id), record)| (room_id, record.room))
            .collect();
        if let Some(wanted) = &filter.rooms {
            let wanted = self.with_predecessors(wanted, &rooms).await?;
            rooms.retain(|room_id, _| wanted.contains(room_id));
        }
        rooms.retain(|room_id, _| !filter.not_rooms.contains(room_id));
        if let Group::Room(room_id) = group {
            rooms.retain(|own, _| own == room_id);
        }
        Ok(rooms.into_iter().map(|(room_id, room)| (room, room_id)).collect())
    }

    /// Rooms with those that they replace, as far as they are among the user's.
    ///
    /// Spec: client-server API, "Room Upgrades".
    async fn with_predecessors(
        &self,
        wanted: &[OwnedRoomId],
        own: &BTreeMap<OwnedRoomId, ShortRoomId>,
    ) -> Result<BTreeSet<OwnedRoomId>, SearchError> {
        #[derive(Deserialize)]
        struct Content {
            predecessor: Predecessor,
        }
        #[derive(Deserialize)]
        struct Predecessor {
            room_id: OwnedRoomId,
        }
        let mut all = BTreeSet::new();
        for room_id in wanted {
            let mut next = Some(room_id.clone());
            for _ in 0..=PREDECESSORS_MAX {
                let Some(room_id) = next.take().filter(|room_id| own.contains_key(room_id)) else { break };
                if !all.insert(room_id.clone()) {
                    break;
                }
                let create = self.room(&room_id).await?.current("m.room.create", "").await?;
                let content = create
                    .and_then(|create| serde_json::from_str::<Content>(create.pdu.content().get()).ok());
                next = content.map(|content| content.predecessor.room_id);
            }
        }
        Ok(all)
    }
}

/// How many results a user may see of all, by the share of those that were looked at.
///
/// The number in the index would tell them how often words occur that they may not read.
fn about(all: usize, visible: usize, looked_at: usize) -> usize {
    let share = all.saturating_mul(visible).checked_div(looked_at).unwrap_or_default();
    share.max(visible)
}

/// Whose events are wanted; none for everybody's.
fn senders(filter: &RoomEventFilter, group: &Group) -> Option<Vec<String>> {
    let wanted = filter.senders.as_ref().map(|senders| senders.iter().map(ToString::to_string).collect());
    match group {
        Group::Sender(user_id) => {
            let is_wanted = filter.senders.as_ref().is_none_or(|senders| senders.contains(user_id));
            Some(if is_wanted { vec![user_id.to_string()] } else { Vec::new() })
        }
        _ => wanted,
    }
}

impl Searcher<'_> {
    /// The event of a result, if the user may see it.
    async fn look_at(&mut self, hit: TextHit) -> Result<Option<FoundEvent>, SearchError> {
        let Some((room, access)) = self.room(hit.room).await? else { return Ok(None) };
        let event = match room.events(&[hit.event]).await {
            Ok(events) => events.into_iter().next(),
            // The index is of another time than the store.
            Err(RoomError::Read(ReadError::Lost(_))) => None,
            Err(error) => return Err(error.into()),
        };
        let Some(event) = event.filter(|event| event.room == hit.room) else { return Ok(None) };
        for id in [room.snapshot().room_id.as_str(), event.pdu.sender().as_str()] {
            *self.looked_at.entry(id.to_owned()).or_default() += 1;
        }
        let is_wanted = event.index.is_some()
            && event.redacted_by.is_none()
            // What was purged has no text any more.
            && (event.pdu.kind() != "m.room.message" || content_string(&event.pdu, "body").is_some())
            && filter::passes(self.filter, &event.pdu)
            && !self.session.data().ignores(event.pdu.sender());
        if !is_wanted {
            return Ok(None);
        }
        let viewer = Viewer { user_id: self.session.user_id().to_owned(), device_id: None };
        let visible = room.visible_to(&viewer.user_id, &access, vec![event]).await?;
        // Whoever is shown no words of an erased user does not find them by their words either.
        if let Some(shown) = room.erased_for(&visible, &viewer).await?
            && shown.iter().zip(&visible).any(|(shown, event)| !Arc::ptr_eq(shown, event))
        {
            return Ok(None);
        }
        Ok(visible.into_iter().next().map(|event| FoundEvent { room, event, rank: hit.score }))
    }

    async fn room(&mut self, short: ShortRoomId) -> Result<Option<(RoomHandle, Access)>, SearchError> {
        if let Some(known) = self.open.get(&short) {
            return Ok(known.clone());
        }
        let Some(room_id) = self.rooms.get(&short) else { return Ok(None) };
        let room = self.homeserver.room(room_id).await?;
        // "The search will not include rooms that are end to end encrypted."
        let is_encrypted = room.current("m.room.encryption", "").await?.is_some();
        let access = room.access(self.session.user_id()).await?;
        let opened = (!is_encrypted).then_some((room, access));
        self.open.insert(short, opened.clone());
        Ok(opened)
    }
}

#[cfg(test)]
mod tests {
    use ruma::{room_id, user_id};

    use super::*;

    #[test]
    fn results_that_may_not_be_seen_are_not_counted() {
        for ((all, visible, looked_at), expected) in [
            ((6, 2, 2), 6),
            ((6, 3, 6), 3),
            ((1000, 10, 20), 500),
            ((1, 0, 1), 0),
            ((1000, 0, 500), 0),
            ((0, 0, 0), 0),
            ((3, 2, 1000), 2),
        ] {
            assert_eq!(about(all, visible, looked_at), expected, "{visible} of {looked_at} of {all}");
        }
    }

    #[test]
    fn tokens_are_read_back() {
        for group in [
            Group::Everything,
            Group::Room(room_id!("!a_b:example.org").to_owned()),
            Group::Sender(user_id!("@a_b:example.org").to_owned()),
        ] {
            for newest in [None, Some(TimelineIndex(-3)), Some(TimelineIndex(70))] {
                let token = SearchToken { skip: 20, newest, group: group.clone() };
                assert_eq!(token.to_string().parse(), Ok(token));
            }
        }
        for text in ["", "q1_", "q1_x_", "q1_3", "q1_3_x", "q1_3__nobody", "s1_3"] {
            assert_eq!(text.parse::<SearchToken>(), Err(InvalidToken), "{text}");
        }
    }
}
