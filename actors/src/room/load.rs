//! Bringing a room into memory, from the store or anew.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use arc_swap::ArcSwap;
use engine::{
    id::{Position, ShortRoomId, TimelineIndex},
    room::census::Census,
    room_version::{self, RoomVersion},
    state::{Salt, StateRoot},
};
use ruma::RoomVersionId;
use storage::{
    Direction, KeyRange,
    schema::{self, RoomRecord},
};

use super::{
    ActiveRoom, Empty, Lacks, Published, RECENT_MAX, Receipt, Receipts, RelatedCache, RoomError, RoomHead,
    RoomSnapshot, Typing, early_receipts::EarlyReceipts, ephemeral::Typists, extremities::TidyUp,
    heroes::HeroesCache, pending::Pending,
};
use crate::room::{ReadError, StoredEvent};

impl Empty {
    /// Reads the room, or finds that there is none.
    pub(super) async fn load(&self) -> Result<Option<ActiveRoom>, RoomError> {
        let storage = self.shared.store.storage();
        // A former actor of this room may have commits under way: read what they wrote, not before them.
        storage.commit(storage::Batch::default()).await.map_err(RoomError::Commit)?;
        let Some(room) = storage.get(&schema::ROOM_IDS, &self.room_id).await? else { return Ok(None) };
        let record = storage
            .get(&schema::ROOMS, &room)
            .await?
            .ok_or_else(|| ReadError::Lost(format!("the head of room {}", self.room_id)))?;
        let head = self.load_head(room, &record).await?;
        let receipts = self.load_receipts(room).await?;
        Ok(Some(self.activate(room, &record.version, record.salt, head, receipts)?))
    }

    async fn load_head(&self, room: ShortRoomId, record: &RoomRecord) -> Result<RoomHead, RoomError> {
        let store = &self.shared.store;
        let newest = KeyRange::prefix(&(room,));
        let rows =
            store.storage().range(&schema::TIMELINE, newest, Direction::Descending, RECENT_MAX).await?;
        let recent_is_all = rows.len() < RECENT_MAX;
        let shorts: Vec<_> = rows.into_iter().rev().map(|(_, short)| short).collect();
        let recent: imbl::Vector<Arc<StoredEvent>> = store.events(&shorts).await?.into();
        let tips = store.events(&record.tips).await?;
        let all = KeyRange::prefix(&(room,));
        let servers =
            store.storage().range(&schema::ROOM_SERVERS, all, Direction::Ascending, usize::MAX).await?;
        let gaps = KeyRange::prefix(&(room,));
        let gaps = store.storage().range(&schema::GAPS, gaps, Direction::Ascending, usize::MAX).await?;
        let partial = store.storage().get(&schema::PARTIAL_ROOMS, &room).await?;
        let lacks = KeyRange::prefix(&(room,));
        let lacks =
            store.storage().range(&schema::STATE_LACKS, lacks, Direction::Ascending, usize::MAX).await?;
        Ok(RoomHead {
            lacks_members: partial.as_ref().is_some_and(|partial| partial.completed.is_none()),
            corrected: partial.as_ref().is_some_and(|partial| partial.corrected),
            lacks: ActiveRoom::lacks_of(lacks),
            completed: partial.and_then(|partial| partial.completed).unwrap_or_default(),
            root: record.root,
            tips,
            latest: record.latest,
            census: Census {
                joined: record.joined,
                invited: record.invited,
                servers: servers.into_iter().map(|((_, server), count)| (server, count)).collect(),
            },
            recent_is_all: recent_is_all && gaps.is_empty(),
            gaps: gaps.into_iter().map(|((_, at), gap)| (at, gap)).collect(),
            recent,
        })
    }

    async fn load_receipts(&self, room: ShortRoomId) -> Result<Receipts, RoomError> {
        let mut receipts = Receipts::default();
        let storage = self.shared.store.storage();
        let all = KeyRange::prefix(&(room,));
        let rows = storage.range(&schema::RECEIPTS, all, Direction::Ascending, usize::MAX).await?;
        for ((_, user_id, thread), record) in rows {
            receipts.set(Receipt {
                user_id,
                thread: Some(thread).filter(|thread| !thread.is_empty()),
                event_id: record.event_id,
                index: record.index,
                ts: record.ts,
                position: record.position,
            });
        }
        Ok(receipts)
    }

    /// A room without events, to be filled by the first change.
    pub(super) fn fresh(&self, version: &RoomVersionId) -> Result<ActiveRoom, RoomError> {
        let storage = self.shared.store.storage();
        let room = ShortRoomId(storage.reserve(1).last().0);
        let head = RoomHead {
            root: StateRoot::default(),
            tips: Vec::new(),
            latest: TimelineIndex(0),
            census: Census::default(),
            gaps: imbl::OrdMap::new(),
            recent: imbl::Vector::new(),
            recent_is_all: true,
            lacks_members: false,
            lacks: Lacks::new(),
            completed: Position(0),
            corrected: false,
        };
        let salt = Salt(self.shared.env.entropy.next_u64());
        self.activate(room, version, salt, head, Receipts::default())
    }

    fn activate(
        &self,
        room: ShortRoomId,
        version: &RoomVersionId,
        salt: Salt,
        head: RoomHead,
        receipts: Receipts,
    ) -> Result<ActiveRoom, RoomError> {
        let rules = supported(version)?;
        let snapshot = RoomSnapshot {
            room_id: self.room_id.clone(),
            room,
            version: version.clone(),
            rules,
            salt,
            head: head.clone(),
        };
        let published = Arc::new(Published {
            snapshot: ArcSwap::from_pointee(snapshot),
            receipts: ArcSwap::from_pointee(receipts.clone()),
            typing: ArcSwap::from_pointee(Typing::default()),
            related: RelatedCache::default(),
            heroes: HeroesCache::default(),
        });
        let mut active = ActiveRoom {
            shared: self.shared.clone(),
            meter: self.meter.clone(),
            room_id: self.room_id.clone(),
            room,
            version: version.clone(),
            rules,
            salt,
            head,
            hot: imbl::OrdMap::new(),
            merged: imbl::OrdMap::new(),
            pending: Pending::default(),
            txns: BTreeMap::new(),
            txn_order: VecDeque::new(),
            receipts,
            typists: Typists::default(),
            tidy_up: TidyUp::default(),
            early_receipts: EarlyReceipts::default(),
            published,
        };
        let recent: Vec<_> = active.head.recent.iter().cloned().collect();
        for event in recent {
            let txn = event.sent_by.as_ref().map(|sent_by| active.txn_of(&event.pdu, sent_by));
            active.remember_txn(txn, &event.pdu.event_id().to_owned());
        }
        Ok(active)
    }
}

/// The rules of a room version, which has to be a supported one.
pub(super) fn supported(version: &RoomVersionId) -> Result<&'static RoomVersion, RoomError> {
    room_version::rules(version)
        .ok_or_else(|| RoomError::Invalid(format!("room version {version} is not supported")))
}

impl ActiveRoom {
    /// Lets readers find the room's views.
    pub(super) fn announce(&self) {
        self.shared.published.insert(self.room_id.clone(), self.published.clone());
    }
}
