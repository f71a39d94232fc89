//! Room aliases of this server, and its directory of public rooms.
//!
//! Spec: client-server API, "Room aliases" and "Published room directory".

use std::{cmp::Reverse, collections::BTreeSet, sync::Arc};

use dashmap::DashSet;
use engine::{id::ShortRoomId, room::content, state::StateRoot, visibility::HistoryVisibility};
use ruma::{OwnedRoomAliasId, OwnedRoomId, RoomAliasId, RoomId, UserId};
use serde_json::Value;
pub use storage::schema::PublicFaceRecord;
use storage::{
    Batch, CommitError, Direction, KeyRange,
    schema::{self, AliasRecord, RoomRecord},
};

use crate::{
    homeserver::Homeserver,
    room::{ReadError, RoomError, RoomHandle, RoomStore, content_string, join_rule},
    upgrade::{split_aliases, state_event},
};

/// The type of the event by which a room says under which aliases it goes.
const CANONICAL: &str = "m.room.canonical_alias";

/// Aliases that one room may have here.
const ALIASES_MAX: usize = 1000;

/// Rooms of the directory that are looked at for one page of a search.
const SEARCH_MAX: usize = 10_000;

/// A room as the directory lists it.
#[derive(Clone, Debug)]
pub struct PublicRoom {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Number of joined members.
    pub joined: u64,
    /// What its state says to everyone.
    pub face: PublicFaceRecord,
}

/// The aliases that are being made at the moment.
///
/// A commit that is refused since another one took the alias would end the actor of a room whose rows are all in that commit.
pub(crate) type AliasClaims = DashSet<OwnedRoomAliasId>;

/// An alias that nobody else makes while this is there.
pub struct AliasClaim {
    alias: OwnedRoomAliasId,
    claims: Arc<AliasClaims>,
}

impl AliasClaim {
    fn new(claims: &Arc<AliasClaims>, alias: &RoomAliasId) -> Result<Self, RoomError> {
        if !claims.insert(alias.to_owned()) {
            return Err(RoomError::AliasInUse);
        }
        Ok(Self { alias: alias.to_owned(), claims: claims.clone() })
    }

    /// The alias.
    pub(crate) fn alias(&self) -> &RoomAliasId {
        &self.alias
    }
}

impl Drop for AliasClaim {
    fn drop(&mut self) {
        self.claims.remove(&self.alias);
    }
}

/// Which rooms of the directory are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// Those that are listed as Matrix rooms.
    Matrix,
    /// Those of all networks.
    All,
    /// Those that an application service lists for a network, by its `instance_id`.
    Of(String),
}

/// Whose an alias is that is to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AliasOwner {
    /// A user's, perhaps: that is looked at.
    User,
    /// An application service's, in whose namespace it is.
    Service,
}

impl Homeserver {
    /// Keeps others from making an alias; an error if somebody does so already.
    pub(crate) fn claim_alias(&self, alias: &RoomAliasId) -> Result<AliasClaim, RoomError> {
        AliasClaim::new(self.alias_claims(), alias)
    }

    /// The room that a local alias names.
    pub async fn resolve_alias(&self, alias: &RoomAliasId) -> Result<Option<AliasRecord>, RoomError> {
        Ok(self.storage().get(&schema::ALIASES, alias).await?)
    }

    /// Makes an alias; an error if it exists.
    pub async fn create_alias(
        &self,
        alias: &RoomAliasId,
        room_id: &RoomId,
        creator: &UserId,
    ) -> Result<(), RoomError> {
        self.room(room_id).await?;
        if self.room_aliases(room_id).await?.len() >= ALIASES_MAX {
            return Err(RoomError::NotAllowed("the room has too many aliases".to_owned()));
        }
        let _claim = self.claim_alias(alias)?;
        let record = AliasRecord { room_id: room_id.to_owned(), creator: creator.to_owned() };
        let mut batch = Batch::new();
        batch.expect_absent(&schema::ALIASES, alias);
        batch.put(&schema::ALIASES, alias, &record);
        batch.put(&schema::ROOM_ALIASES, &(room_id, alias), &());
        self.storage().commit(batch).await.map_err(|error| match error {
            CommitError::Refused(_) => RoomError::AliasInUse,
            error => RoomError::Commit(error),
        })?;
        self.room_shared().hub.services.aliases_changed();
        Ok(())
    }

    /// Removes an alias, if the user made it or may set the room's main alias, or acts for the service that has it.
    pub async fn delete_alias(
        &self,
        alias: &RoomAliasId,
        user_id: &UserId,
        owner: AliasOwner,
    ) -> Result<(), RoomError> {
        let record = self.resolve_alias(alias).await?.ok_or(RoomError::NotFound)?;
        let is_users = owner == AliasOwner::User;
        if is_users && record.creator != *user_id && !self.may_publish(&record.room_id, user_id).await? {
            return Err(RoomError::NotAllowed("you may not remove this alias".to_owned()));
        }
        let mut batch = Batch::new();
        batch.expect(&schema::ALIASES, alias, &record);
        batch.delete(&schema::ALIASES, alias);
        batch.delete(&schema::ROOM_ALIASES, &(&*record.room_id, alias));
        self.storage().commit(batch).await.map_err(|error| match error {
            // Removed or moved by someone else in between.
            CommitError::Refused(_) => RoomError::NotFound,
            error => RoomError::Commit(error),
        })?;
        self.room_shared().hub.services.aliases_changed();
        if let Err(error) = self.unname(&record.room_id, alias, user_id).await {
            // The alias is gone all the same: whoever made it need not have the power to say so in the room.
            tracing::debug!(%error, room.id = %record.room_id, "the room still names an alias that is gone");
        }
        Ok(())
    }

    /// Takes an alias that is gone out of those that the room goes by.
    ///
    /// Spec: client-server API, `DELETE /_matrix/client/v3/directory/room/{roomAlias}`.
    async fn unname(&self, room_id: &RoomId, alias: &RoomAliasId, user_id: &UserId) -> Result<(), RoomError> {
        let room = self.room(room_id).await?;
        let Some(event) = room.current(CANONICAL, "").await? else { return Ok(()) };
        let content = serde_json::from_str(event.pdu.content().get()).unwrap_or_default();
        let (stays, goes) = split_aliases(content, &[alias.to_string()]);
        if !goes.is_empty() {
            room.send(state_event(user_id, CANONICAL, &Value::Object(stays))?).await?;
        }
        Ok(())
    }

    /// Points an alias at another room, if it still is where it was.
    pub(crate) async fn move_alias(&self, alias: &RoomAliasId, to: &RoomId) -> Result<(), RoomError> {
        let Some(record) = self.resolve_alias(alias).await? else { return Ok(()) };
        let mut batch = Batch::new();
        batch.expect(&schema::ALIASES, alias, &record);
        batch.delete(&schema::ROOM_ALIASES, &(&*record.room_id, alias));
        batch.put(&schema::ROOM_ALIASES, &(to, alias), &());
        batch.put(&schema::ALIASES, alias, &AliasRecord { room_id: to.to_owned(), ..record });
        self.storage().commit(batch).await.map_err(RoomError::Commit)?;
        self.room_shared().hub.services.aliases_changed();
        Ok(())
    }

    /// The local aliases of a room.
    pub async fn room_aliases(&self, room_id: &RoomId) -> Result<Vec<OwnedRoomAliasId>, RoomError> {
        let all = KeyRange::prefix(&(room_id,));
        let rows =
            self.storage().range(&schema::ROOM_ALIASES, all, Direction::Ascending, ALIASES_MAX).await?;
        Ok(rows.into_iter().map(|((_, alias), ())| alias).collect())
    }

    /// Whether a user may decide under which names others find a room.
    pub async fn may_publish(&self, room_id: &RoomId, user_id: &UserId) -> Result<bool, RoomError> {
        let room = self.room(room_id).await?;
        let powers = room.powers().await?;
        let is_joined = room.access(user_id).await?.joined_from.is_some();
        Ok(is_joined && powers.is_some_and(|powers| powers.may_send_state(user_id, CANONICAL)))
    }

    /// Whether the directory lists a room.
    pub async fn is_public(&self, room_id: &RoomId) -> Result<bool, RoomError> {
        Ok(self.storage().get(&schema::PUBLIC_ROOMS, room_id).await?.is_some())
    }

    /// Lists a room in the directory, or takes it out.
    pub async fn set_public(&self, room_id: &RoomId, is_public: bool) -> Result<(), RoomError> {
        let mut batch = Batch::new();
        if is_public {
            batch.put(&schema::PUBLIC_ROOMS, room_id, &());
        } else {
            batch.delete(&schema::PUBLIC_ROOMS, room_id);
        }
        self.storage().commit(batch).await.map_err(RoomError::Commit)
    }

    /// The rooms of the directory that `wanted` lets through, those with most members first.
    ///
    /// No room is activated: what is said of a room is kept, and read anew once the room's state is another one.
    pub async fn public_rooms(
        &self,
        network: &Network,
        wanted: impl Fn(&PublicRoom) -> bool,
    ) -> Result<Vec<PublicRoom>, RoomError> {
        let storage = self.storage();
        let listed = self.listed_rooms(network).await?;
        let shorts = storage.get_many(&schema::ROOM_IDS, listed.iter()).await?;
        let known: Vec<_> =
            listed.into_iter().zip(shorts).filter_map(|(id, room)| Some((id, room?))).collect();
        let heads = storage.get_many(&schema::ROOMS, known.iter().map(|(_, room)| *room)).await?;
        let faces = storage.get_many(&schema::PUBLIC_FACES, known.iter().map(|(_, room)| *room)).await?;
        let mut rooms = Vec::with_capacity(known.len());
        for (((room_id, room), head), face) in known.into_iter().zip(heads).zip(faces) {
            let Some(head) = head else { continue };
            let face = match face.filter(|face| face.root == head.root && face.federates.is_some()) {
                Some(face) => face,
                None => match face_at(&self.room_shared().store, head.root).await {
                    Ok(face) => {
                        self.keep_face(room, &head, &face);
                        face
                    }
                    // One room that cannot be read does not hide all others.
                    Err(error) => {
                        tracing::warn!(%error, room.id = %room_id, "the directory leaves a room out");
                        continue;
                    }
                },
            };
            let room = PublicRoom { room_id, joined: head.joined, face };
            if wanted(&room) {
                rooms.push(room);
            }
        }
        rooms.sort_by(|a, b| a.place().cmp(&b.place()));
        Ok(rooms)
    }

    /// The rooms that are listed for a network, in the order of their IDs.
    async fn listed_rooms(&self, network: &Network) -> Result<BTreeSet<OwnedRoomId>, RoomError> {
        let storage = self.storage();
        let mut listed = BTreeSet::new();
        if !matches!(network, Network::Of(_)) {
            let rows = storage
                .range(&schema::PUBLIC_ROOMS, KeyRange::all(), Direction::Ascending, SEARCH_MAX)
                .await?;
            listed.extend(rows.into_iter().map(|(room_id, ())| room_id));
        }
        let range = match network {
            Network::Matrix => return Ok(listed),
            Network::All => KeyRange::all(),
            Network::Of(instance_id) => KeyRange::prefix(&(instance_id.as_str(),)),
        };
        let rows = storage.range(&schema::SERVICE_ROOMS, range, Direction::Ascending, SEARCH_MAX).await?;
        listed.extend(rows.into_iter().map(|((_, room_id), ())| room_id));
        Ok(listed)
    }

    /// Keeps what a room says to everyone, unless an event has come since: it may redact what was read.
    fn keep_face(&self, room: ShortRoomId, head: &RoomRecord, face: &PublicFaceRecord) {
        let mut batch = Batch::new();
        batch.expect(&schema::ROOMS, &room, head).put(&schema::PUBLIC_FACES, &room, face);
        self.storage().submit(batch, None, |_| {}); // what is not kept is read again
    }
}

/// Where a room stands in the directory: by its members, the most first, then by its ID.
pub type Place<'a> = (Reverse<u64>, &'a RoomId);

impl PublicRoom {
    /// Where it stands in the directory.
    pub fn place(&self) -> Place<'_> {
        (Reverse(self.joined), &self.room_id)
    }

    /// Whether users of other servers may join it.
    pub fn federates(&self) -> bool {
        self.face.federates != Some(false)
    }
}

/// What a state says to everyone.
async fn face_at(store: &RoomStore, root: StateRoot) -> Result<PublicFaceRecord, ReadError> {
    let text = async |kind: &str, field: &str| -> Result<Option<String>, ReadError> {
        let event = store.state_event(root, kind, "").await?;
        Ok(event.and_then(|event| content_string(&event.pdu, field)).filter(|text| !text.is_empty()))
    };
    let create = store.state_event(root, "m.room.create", "").await?;
    let alias = text("m.room.canonical_alias", "alias").await?;
    let join_rules = store.state_event(root, "m.room.join_rules", "").await?;
    let visibility = store.state_event(root, "m.room.history_visibility", "").await?;
    let visibility = HistoryVisibility::of(visibility.as_ref().map(|event| &*event.pdu));
    let guest_access = text("m.room.guest_access", "guest_access").await?;
    Ok(PublicFaceRecord {
        root,
        name: text("m.room.name", "name").await?,
        topic: text("m.room.topic", "topic").await?,
        canonical_alias: alias.and_then(|alias| OwnedRoomAliasId::try_from(alias).ok()),
        avatar_url: text("m.room.avatar", "url").await?,
        join_rule: join_rule(join_rules.as_ref().map(|event| &*event.pdu)),
        room_type: text("m.room.create", "type").await?,
        world_readable: visibility == HistoryVisibility::WorldReadable,
        guest_can_join: guest_access.as_deref() == Some("can_join"),
        federates: Some(create.is_none_or(|create| content::federates(&create.pdu))),
    })
}

impl RoomHandle {
    /// What the directory, and whoever may know of the room, sees of it.
    pub async fn public_face(&self) -> Result<PublicRoom, RoomError> {
        let snapshot = self.snapshot();
        let face = face_at(self.store(), snapshot.head.root).await?;
        Ok(PublicRoom { room_id: snapshot.room_id.clone(), joined: snapshot.head.census.joined, face })
    }
}
