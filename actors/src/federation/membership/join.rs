//! Joining a room through one of its servers.
//!
//! Spec: server-server API, "Joining Rooms".

use std::time::Duration;

use engine::{
    pdu::Pdu,
    room_version::{RoomVersion, SUPPORTED},
};
use ruma::{OwnedServerName, RoomId, RoomVersionId, ServerName, UserId};
use serde_json::{Map, Value, value::RawValue};

use super::{belongs_to, template::version_of};
use crate::{
    federation::{FederationError, verify::SoFar},
    homeserver::Homeserver,
    room::{Adopt, Adopted, Lacking, RoomError, RoomMessage},
};

/// Events in a transaction, at most, by the specification.
const PDUS_MAX: usize = 50;

/// How long a join waits for the members of the room, if they come apart from it.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a join waits for the members of the former one.
const PATIENCE_FORMER: Duration = Duration::from_secs(10);

impl Homeserver {
    pub(super) async fn join_through(
        &self,
        server: &OwnedServerName,
        user: &UserId,
        room_id: &RoomId,
        content: &Map<String, Value>,
    ) -> Result<(), RoomError> {
        let remote = self.remote(server)?;
        self.bring_last_events(server, room_id).await?;
        self.complete_former(server, room_id, PATIENCE_FORMER).await;
        let template = remote.make("join", room_id, user, &SUPPORTED).await?;
        let (version, rules) = version_of(&template)?;
        self.check_version(room_id, &version).await?;
        let join = self.complete(&template, ("join", room_id, user), content, rules).await?;
        let lacks_members = self.joining(room_id, self.take_over(server, (version, rules), join)).await?;
        if lacks_members {
            self.begin_completing(room_id).await?;
            // Small rooms are complete before anybody looks; others are used as they are.
            let _ = self.room(room_id).await?.wait_for_members(PATIENCE).await;
        }
        Ok(())
    }

    /// Checks what version another server says that a room has, before it is believed: a room that this one was in keeps
    /// its version. Of others nobody knows it yet, whatever an invite said.
    async fn check_version(&self, room_id: &RoomId, version: &RoomVersionId) -> Result<(), RoomError> {
        let snapshot = match self.room(room_id).await {
            Err(RoomError::NotFound) => return Ok(()),
            room => room?.snapshot(),
        };
        if snapshot.head.root.is_empty() || snapshot.version == *version {
            return Ok(());
        }
        let wrong = format!("the room has version {}, not {version}", snapshot.version);
        Err(FederationError::BadBody(wrong).into())
    }

    /// Sends a server what this one said last in a room that it left: a leave that did not arrive yet, because nobody
    /// could be reached, would end a join that does not come after it. An error says that the server cannot be reached.
    async fn bring_last_events(&self, server: &ServerName, room_id: &RoomId) -> Result<(), RoomError> {
        let room = match self.room(room_id).await {
            Err(RoomError::NotFound) => return Ok(()),
            room => room?,
        };
        let snapshot = room.snapshot();
        // Servers that were not in the room with us are told nothing of it.
        if snapshot.head.has_server(self.server_name()) || !snapshot.head.has_server(server) {
            return Ok(());
        }
        let tips = snapshot.head.tips.iter().rev();
        let own: Vec<_> = tips
            .filter(|tip| belongs_to(tip.pdu.sender(), self.server_name()))
            .take(PDUS_MAX)
            .filter_map(|tip| serde_json::from_slice::<Box<RawValue>>(tip.pdu.raw()).ok())
            .collect();
        if own.is_empty() {
            return Ok(());
        }
        let env = self.env();
        let sent = self
            .remote(server)?
            .send_pdus(&env.entropy.token(24), self.server_name(), env.clock.now_ms(), &own)
            .await;
        match sent {
            // What it makes of them is seen from the state that it gives.
            Ok(()) | Err(FederationError::Status { .. } | FederationError::BadBody(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a join, and takes the room over as the resident server gives it; returns whether it lacks members.
    async fn take_over(
        &self,
        server: &OwnedServerName,
        (version, rules): (RoomVersionId, &'static RoomVersion),
        join: Pdu,
    ) -> Result<bool, RoomError> {
        let room_id = join.room_id().to_owned();
        let answer = self.remote(server)?.send_join(&room_id, join.event_id(), join.raw().clone()).await?;
        // A restricted room's resident server adds its signature.
        let join = match &answer.event {
            Some(event) => {
                let mut countersigned = self.verified(std::slice::from_ref(event), rules).await;
                countersigned.retain(|pdu| pdu.event_id() == join.event_id());
                countersigned.pop().unwrap_or(join)
            }
            None => join,
        };
        // A join cannot wait for a server of which keys are lacking.
        let SoFar { pdus: state, waiting, gone: mut lacking } =
            self.verified_so_far(&answer.state, rules).await;
        lacking.extend(waiting);
        let chain = self.verified_so_far(&answer.auth_chain, rules).await;
        let unchecked: Lacking = lacking.clone().into_iter().chain(chain.waiting).chain(chain.gone).collect();
        let auth_chain = chain.pdus;
        let partial = answer.members_omitted.then_some(answer.servers_in_room);
        let is_partial = partial.is_some();
        let (join_event, origin) = (join.clone(), server.clone());
        let adopt = Adopt {
            version,
            state,
            lacking,
            auth_chain,
            unchecked: unchecked.clone(),
            join: join_event,
            origin,
            partial,
        };
        let actor = self.room_actor(&room_id).await?;
        match actor.call(|reply| RoomMessage::Adopt(Box::new(adopt), reply)).await?? {
            Adopted::Done => {
                self.wait_for_keys(&room_id, &unchecked).await;
                Ok(is_partial)
            }
            Adopted::Resident => {
                let room = self.room(&room_id).await?;
                self.take_in_answer(&room, server, join).await?;
                Ok(false)
            }
        }
    }
}
