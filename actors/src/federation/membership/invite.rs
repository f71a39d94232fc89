//! Inviting users of other servers.
//!
//! Spec: server-server API, "Inviting to a room".

use engine::pdu::Pdu;
use http::StatusCode;
use ruma::{OwnedEventId, RoomVersionId, ServerName, UserId, events::TimelineEventType};
use serde_json::{Map, Value, value::RawValue};

use crate::{
    federation::{FederationError, remote::Invite},
    homeserver::Homeserver,
    room::{MembershipAction, MembershipChange, Receive, RoomError, RoomHandle, RoomSnapshot, Send},
};

impl Homeserver {
    /// The invite of another server's user that an event is to be, if it is one and there is a way to that server.
    pub fn foreign_invite(&self, send: &Send) -> Option<MembershipChange> {
        let target = send.draft.state_key.as_deref().and_then(|key| UserId::parse(key).ok())?;
        let is_member = send.draft.kind == TimelineEventType::RoomMember;
        if !is_member || !self.federates() || target.server_name() == self.server_name() {
            return None;
        }
        let content: Map<String, Value> = serde_json::from_str(send.draft.content.get()).ok()?;
        let action = MembershipAction::Invite;
        let invites = content.get("membership").is_some_and(|membership| membership == "invite");
        invites.then(|| MembershipChange { sender: send.sender.clone(), target, action, content })
    }

    /// Invites a user of another server: their server signs the invite before it counts.
    pub async fn invite_remote(
        &self,
        room: &RoomHandle,
        invite: MembershipChange,
    ) -> Result<OwnedEventId, RoomError> {
        let snapshot = room.snapshot();
        let server = invite.target.server_name().to_owned();
        let pdu = room.recommended(room.prepare_membership(invite).await?).await?;
        let event =
            serde_json::from_slice(pdu.raw()).map_err(|error| RoomError::Invalid(error.to_string()))?;
        let body = Invite {
            room_version: snapshot.version.clone(),
            event,
            invite_room_state: room.introduction(pdu.sender()).await?,
            via: None,
        };
        let event = self.invited_event(&server, &snapshot, &pdu, &body).await?;
        let mut signed = self.verified(std::slice::from_ref(&event), snapshot.rules).await;
        signed.retain(|signed| signed.event_id() == pdu.event_id());
        let pdu = signed.pop().ok_or_else(|| {
            FederationError::BadBody("the invited server returned another event".to_owned())
        })?;
        let event_id = pdu.event_id().to_owned();
        let receive = Receive { relay: true, ..Receive::new(pdu, self.server_name().to_owned()) };
        room.accept(receive).await?;
        Ok(event_id)
    }

    /// The invite, signed by the invited user's server.
    async fn invited_event(
        &self,
        server: &ServerName,
        snapshot: &RoomSnapshot,
        pdu: &Pdu,
        body: &Invite,
    ) -> Result<Box<RawValue>, RoomError> {
        let remote = self.remote(server)?;
        let is_old = matches!(snapshot.version, RoomVersionId::V1 | RoomVersionId::V2);
        match remote.invite(&snapshot.room_id, pdu.event_id(), body).await {
            Ok(answer) => Ok(answer.event),
            // Servers from before the present endpoint know only these versions.
            Err(FederationError::Status { status, .. })
                if is_old && matches!(status, StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND) =>
            {
                Ok(remote.invite_v1(&snapshot.room_id, pdu.event_id(), body).await?)
            }
            Err(FederationError::Status { errcode, .. }) if errcode == "M_INCOMPATIBLE_ROOM_VERSION" => {
                Err(RoomError::UnsupportedThere(snapshot.version.clone()))
            }
            // What is wrong with the request is this server's doing, not the user's.
            Err(FederationError::Status { errcode, error, .. })
                if matches!(errcode.as_str(), "M_MISSING_PARAM" | "M_INVALID_PARAM") =>
            {
                Err(FederationError::BadBody(format!("the invite was refused: {errcode}: {error}")).into())
            }
            Err(error) => Err(error.into()),
        }
    }
}
