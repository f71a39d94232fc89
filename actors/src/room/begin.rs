//! A room that does not exist yet: it is created, taken over from another server, or known by a membership only.

use ractor::{ActorRef, RpcReplyPort};
use storage::{
    Batch,
    schema::{self, AliasRecord},
};

use super::{ActiveRoom, Adopted, Create, Empty, RoomError, RoomMessage, change::Change};
use crate::{aliases::AliasClaim, effects::Effect, upgrade::upgrade_of};

impl Empty {
    /// Takes a message; returns the room if that is the first that is known of it.
    pub(super) async fn handle(
        &self,
        myself: &ActorRef<RoomMessage>,
        message: RoomMessage,
    ) -> Option<ActiveRoom> {
        match message {
            RoomMessage::Create(mut create, reply) => {
                let claim = create.alias.take();
                return Self::begin(myself, self.create(*create, claim.as_ref()).await, reply, (), claim);
            }
            RoomMessage::Adopt(adopt, reply) => {
                return Self::begin(myself, self.adopt(*adopt).await, reply, Adopted::Done, None);
            }
            RoomMessage::Outside(outside, reply) => {
                return Self::begin(myself, self.outside(*outside).await, reply, (), None);
            }
            RoomMessage::Prepare(_, reply) => drop(reply.send(Err(RoomError::NotFound))),
            RoomMessage::PrepareSend(_, reply) => drop(reply.send(Err(RoomError::NotFound))),
            RoomMessage::PrepareChange(_, reply) => drop(reply.send(Err(RoomError::NotFound))),
            RoomMessage::Receive(_, reply) => drop(reply.send(Err(RoomError::NotFound))),
            RoomMessage::Backfill(_, reply) => drop(reply.send(Err(RoomError::NotFound))),
            RoomMessage::Purge(_, _, reply) => drop(reply.send(Err(RoomError::NotFound))),
            RoomMessage::Send(_, reply) => drop(reply.send(Err(RoomError::NotFound))),
            RoomMessage::Membership(_, reply) => drop(reply.send(Err(RoomError::NotFound))),
            RoomMessage::Outliers(_, reply)
            | RoomMessage::Complete(_, reply)
            | RoomMessage::Forget(_, reply)
            | RoomMessage::Receipt(_, reply)
            | RoomMessage::Typing(_, _, reply) => drop(reply.send(Err(RoomError::NotFound))),
            RoomMessage::EarlyReceipt(..)
            | RoomMessage::TypingDue
            | RoomMessage::ExtremitiesDue
            | RoomMessage::CommitFailed(_) => {}
        }
        None
    }

    fn begin<T: std::marker::Send + 'static>(
        myself: &ActorRef<RoomMessage>,
        begun: Result<(ActiveRoom, Change, Batch), RoomError>,
        reply: RpcReplyPort<Result<T, RoomError>>,
        answer: T,
        claim: Option<AliasClaim>,
    ) -> Option<ActiveRoom> {
        match begun {
            Ok((mut room, change, extra)) => {
                room.announce();
                room.submit(myself, change, extra, move |result| {
                    drop(claim);
                    let _ = reply.send(result.map(|()| answer));
                });
                Some(room)
            }
            Err(error) => {
                let _ = reply.send(Err(error));
                None
            }
        }
    }

    async fn create(
        &self,
        create: Create,
        claim: Option<&AliasClaim>,
    ) -> Result<(ActiveRoom, Change, Batch), RoomError> {
        let storage = self.shared.store.storage();
        if let Some(claim) = claim
            && storage.get(&schema::ALIASES, claim.alias()).await?.is_some()
        {
            return Err(RoomError::AliasInUse);
        }
        let room = self.fresh(&create.version)?;
        let mut change = Change::new(&room);
        let mut extra = Batch::default();
        extra.expect_absent(&schema::ROOM_IDS, &self.room_id);
        extra.put(&schema::ROOM_IDS, &self.room_id, &room.room);
        if let Some(claim) = claim {
            let alias = claim.alias();
            extra.expect_absent(&schema::ALIASES, alias);
            let record = AliasRecord { room_id: self.room_id.clone(), creator: create.creator.clone() };
            extra.put(&schema::ALIASES, alias, &record);
            extra.put(&schema::ROOM_ALIASES, &(&*self.room_id, alias), &());
        }
        if create.is_public {
            extra.put(&schema::PUBLIC_ROOMS, &self.room_id, &());
        }
        room.append_create(&mut change, create.create).await?;
        for draft in create.rest {
            room.append(&mut change, &create.creator, draft, None).await?;
        }
        for invite in create.invites {
            room.change_membership(&mut change, invite).await?;
        }
        if let Some(old) = create.replaces {
            let effect = Effect::Upgrade.key(&upgrade_of(&old, &self.room_id));
            extra.put(&schema::EFFECTS, &effect, &change.position());
        }
        Ok((room, change, extra))
    }
}
