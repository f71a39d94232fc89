//! Bringing a session into memory.

use std::sync::Arc;

use arc_swap::ArcSwap;
use engine::id::Position;
use ractor::ActorRef;
use ruma::{OwnedRoomId, OwnedUserId, RoomId};
use storage::{Batch, Direction, KeyRange, schema};

use super::{
    ActiveSession, Published, PusherKey, RoomEntry, SessionData, SessionError, SessionMessage, SessionShared,
    SessionView,
    data::{PUSH_RULES, shared_json},
    push_rules,
    sliding::SlidingMemory,
    unread::UnreadCache,
};
use crate::{directory::Meter, room::Receipt};

impl ActiveSession {
    /// Reads the session of a user who has an account.
    pub(super) async fn load(
        myself: ActorRef<SessionMessage>,
        user_id: OwnedUserId,
        shared: Arc<SessionShared>,
        meter: Meter,
    ) -> Result<Self, SessionError> {
        // A former actor of this user may have commits under way: read what they wrote, not before them.
        shared.storage.commit(Batch::new()).await.map_err(SessionError::Commit)?;
        let data = shared.load_data(&user_id).await?;
        let view = SessionView::new(user_id);
        view.set_ignored(data.ignored().clone());
        // Known first, so that no room changes unnoticed while the list of rooms is read.
        shared.hub().add_session(&view);
        if let Err(error) = shared.load_rooms(&view, &data).await {
            shared.hub().remove_session(&view);
            return Err(error);
        }
        let published = Arc::new(Published {
            data: ArcSwap::from_pointee(data.clone()),
            view,
            unread: UnreadCache::default(),
            sliding: SlidingMemory::default(),
            actor: myself,
        });
        Ok(Self { shared, meter, data, published })
    }
}

impl SessionShared {
    async fn load_data(&self, user_id: &OwnedUserId) -> Result<SessionData, SessionError> {
        let account = self.storage.get(&schema::ACCOUNTS, user_id).await?.ok_or(SessionError::NotFound)?;
        let mut data = SessionData::new(user_id.clone(), account, self.has_threads);
        let devices = self
            .storage
            .range(&schema::DEVICES, KeyRange::prefix(&(user_id,)), Direction::Ascending, usize::MAX)
            .await?;
        data.devices = devices.into_iter().map(|((_, id), device)| (id, Arc::new(device))).collect();
        data.profile = self.load_profile(user_id).await?;
        self.load_account_data(&mut data).await?;
        self.load_private_receipts(&mut data).await?;
        let all = KeyRange::prefix(&(user_id,));
        let rows =
            self.storage.range(&schema::THREAD_SUBSCRIPTIONS, all, Direction::Ascending, usize::MAX).await?;
        for ((_, room_id, root), record) in rows {
            data.threads.insert(room_id, root, record);
        }
        let all = KeyRange::prefix(&(user_id,));
        let rows =
            self.storage.range(&schema::SLIDING_CONNECTIONS, all, Direction::Ascending, usize::MAX).await?;
        data.sliding =
            rows.into_iter().map(|((_, device, conn), record)| ((device, conn), Arc::new(record))).collect();
        let all = KeyRange::prefix(&(user_id,));
        let rows = self.storage.range(&schema::PUSHERS, all, Direction::Ascending, usize::MAX).await?;
        let pusher = |((_, app_id, pushkey), record)| (PusherKey { app_id, pushkey }, Arc::new(record));
        data.pushers = rows.into_iter().map(pusher).collect();
        self.load_keys(&mut data).await?;
        Ok(data)
    }

    pub(super) async fn load_profile(&self, user_id: &OwnedUserId) -> Result<super::Profile, SessionError> {
        let all = KeyRange::prefix(&(user_id,));
        let rows = self.storage.range(&schema::PROFILES, all, Direction::Ascending, usize::MAX).await?;
        let mut profile = super::Profile::default();
        for ((_, name), json) in rows {
            profile.fields.insert(name, shared_json(json).map_err(|error| damaged(&error))?);
        }
        Ok(profile)
    }

    async fn load_account_data(&self, data: &mut SessionData) -> Result<(), SessionError> {
        let all = KeyRange::prefix(&(&data.user_id,));
        let rows = self.storage.range(&schema::ACCOUNT_DATA, all, Direction::Ascending, usize::MAX).await?;
        for ((_, room_id, kind), record) in rows {
            if room_id.is_empty() && kind == PUSH_RULES {
                let rules = push_rules::load(&data.user_id, &record.content, self.has_threads)
                    .map_err(|error| damaged(&error))?;
                data.set_push_rules(rules, record.position);
                continue;
            }
            let room_id = match room_id.as_str() {
                "" => None,
                id => Some(RoomId::parse(id).map_err(|error| damaged(&error))?),
            };
            let json = String::from_utf8(record.content.into()).map_err(|error| damaged(&error))?;
            let content = shared_json(json).map_err(|error| damaged(&error))?;
            data.set_account_data(room_id, &kind, content, record.position);
        }
        Ok(())
    }

    async fn load_private_receipts(&self, data: &mut SessionData) -> Result<(), SessionError> {
        let all = KeyRange::prefix(&(&data.user_id,));
        let rows =
            self.storage.range(&schema::PRIVATE_RECEIPTS, all, Direction::Ascending, usize::MAX).await?;
        for ((user_id, room_id, thread), record) in rows {
            let receipt = Receipt {
                user_id,
                thread: Some(thread.clone()).filter(|thread| !thread.is_empty()),
                event_id: record.event_id,
                index: record.index,
                ts: record.ts,
                position: record.position,
            };
            data.private_receipts.insert((room_id, thread), receipt);
        }
        Ok(())
    }

    async fn load_keys(&self, data: &mut SessionData) -> Result<(), SessionError> {
        let (user_id, storage, keys) = (&data.user_id, &self.storage, &mut data.keys);
        let ascending = Direction::Ascending;
        let parse = |json: String| serde_json::from_str(&json).map(Arc::new).map_err(|error| damaged(&error));
        for ((_, device_id), json) in
            storage.range(&schema::DEVICE_KEYS, KeyRange::prefix(&(user_id,)), ascending, usize::MAX).await?
        {
            keys.devices.insert(device_id, parse(json)?);
        }
        let rows = storage
            .range(&schema::ONE_TIME_KEYS, KeyRange::prefix(&(user_id,)), ascending, usize::MAX)
            .await?;
        for ((_, device_id, algorithm, key_id), record) in rows {
            keys.one_time.insert((device_id, algorithm, key_id), Arc::new(record));
        }
        let rows = storage
            .range(&schema::FALLBACK_KEYS, KeyRange::prefix(&(user_id,)), ascending, usize::MAX)
            .await?;
        for ((_, device_id, algorithm), record) in rows {
            keys.fallback.insert((device_id, algorithm), Arc::new(record));
        }
        let rows = storage
            .range(&schema::CROSS_SIGNING, KeyRange::prefix(&(user_id,)), ascending, usize::MAX)
            .await?;
        for ((_, kind, target), json) in rows {
            keys.cross_signing.insert((kind, target), parse(json)?);
        }
        let rows =
            storage.range(&schema::TO_DEVICE, KeyRange::prefix(&(user_id,)), ascending, usize::MAX).await?;
        for ((_, device_id, position), _) in rows {
            keys.inbox.entry(device_id).or_default().insert(position);
        }
        let rows =
            storage.range(&schema::DEVICE_DATA, KeyRange::prefix(&(user_id,)), ascending, usize::MAX).await?;
        keys.extras = rows.into_iter().map(|((_, id, kind), value)| ((id, kind), value)).collect();
        let rows =
            storage.range(&schema::BACKUPS, KeyRange::prefix(&(user_id,)), ascending, usize::MAX).await?;
        keys.backups = rows.into_iter().map(|((_, version), record)| (version, Arc::new(record))).collect();
        let rows = storage
            .range(&schema::SIGNED_USERS, KeyRange::prefix(&(user_id,)), ascending, usize::MAX)
            .await?;
        keys.signed = rows.into_iter().map(|((_, target), position)| (target, position)).collect();
        keys.list_changed = storage.get(&schema::DEVICE_LISTS, user_id).await?.unwrap_or_default();
        Ok(())
    }

    /// Fills a view that the hub knows already.
    ///
    /// First the rooms and the subscriptions, then the rooms' latest changes: what changes in between is
    /// marked by the rooms themselves.
    async fn load_rooms(&self, view: &Arc<SessionView>, data: &SessionData) -> Result<(), SessionError> {
        let all = KeyRange::prefix(&(&data.user_id,));
        let rows = self.storage.range(&schema::MEMBERSHIPS, all, Direction::Ascending, usize::MAX).await?;
        let mut joined = Vec::new();
        for ((_, room_id), record) in rows {
            let began = record.since.into();
            let entry = RoomEntry::new(record, began);
            let room = entry.room;
            let is_joined = entry.is_joined();
            view.load_room(&room_id, entry);
            if is_joined {
                self.hub().subscribe(room, &room_id, view);
                joined.push((room_id, room));
            }
        }
        let heads = self.storage.get_many(&schema::ROOMS, joined.iter().map(|(_, room)| *room)).await?;
        for ((room_id, room), head) in joined.iter().zip(heads) {
            if let Some(head) = head {
                view.mark_event(room_id, head.latest.into());
                view.mark_room(room_id, head.touched);
            }
            // A leave that came between the reading and the subscription.
            if view.room(room_id).is_none_or(|entry| !entry.is_joined()) {
                self.hub().unsubscribe(*room, view.user_id());
            }
        }
        // What takes a later position than this one happens after the subscriptions.
        view.complete_from(self.storage.reserve(1).last());
        for (room_id, position) in data.marks() {
            match room_id {
                Some(room_id) => view.mark_room(&room_id, position),
                None => view.mark_own(position),
            }
        }
        Ok(())
    }
}

impl SessionData {
    /// When each room's part of the account, and the rest of it, last changed.
    fn marks(&self) -> impl Iterator<Item = (Option<OwnedRoomId>, Position)> {
        let receipts = self
            .private_receipts
            .iter()
            .map(|((room_id, _), receipt)| (Some(room_id.clone()), receipt.position));
        let threads = self.threads.marks().flat_map(|(room_id, position)| {
            [(None, position), (Some(room_id.clone()), position)].into_iter()
        });
        self.account_data.positions().chain(receipts).chain(threads)
    }
}

fn damaged(error: &dyn std::error::Error) -> SessionError {
    SessionError::Damaged(error.to_string())
}
