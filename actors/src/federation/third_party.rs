//! Invites to third-party identifiers, once an identity server has found out whose they are.
//!
//! Spec: server-server API, "Third-party invites".

use ruma::{OwnedRoomId, OwnedUserId, RoomId, ServerName, UserId, api::client::membership::ThirdPartySigned};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    homeserver::Homeserver,
    room::{MembershipAction, MembershipChange, RoomError},
};

/// Invites that one notice of an identity server holds, at most: each may cost a request to another server.
const INVITES_MAX: usize = 50;

/// A membership event in the making: an invite that refers to one of a third-party identifier.
#[derive(Debug, Deserialize)]
pub struct Exchange {
    #[serde(rename = "type")]
    kind: String,
    room_id: OwnedRoomId,
    sender: OwnedUserId,
    state_key: OwnedUserId,
    content: ExchangeContent,
}

#[derive(Debug, Deserialize)]
struct ExchangeContent {
    membership: String,
    third_party_invite: ThirdPartyInvite,
}

#[derive(Debug, Deserialize)]
struct ThirdPartyInvite {
    signed: Signed,
}

/// What the identity server signed.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Signed {
    mxid: OwnedUserId,
    token: String,
    signatures: Map<String, Value>,
}

/// What an identity server tells of an identifier that was bound to a local user.
#[derive(Debug, Deserialize)]
pub struct Bound {
    mxid: OwnedUserId,
    #[serde(default)]
    invites: Vec<BoundInvite>,
}

#[derive(Debug, Deserialize)]
struct BoundInvite {
    room_id: OwnedRoomId,
    sender: OwnedUserId,
    signed: Signed,
}

impl Homeserver {
    /// Makes an invite of a local user's invite of a third-party identifier, which turned out to be that of a user of
    /// `origin`.
    ///
    /// Spec: server-server API, `PUT /_matrix/federation/v1/exchange_third_party_invite/{roomId}`.
    pub async fn exchange_third_party_invite(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        exchange: Exchange,
    ) -> Result<(), RoomError> {
        let wrong = |what: &str| Err(RoomError::Invalid(format!("the event has another {what}")));
        if exchange.kind != "m.room.member" || exchange.content.membership != "invite" {
            return wrong("type or membership than the endpoint is for");
        }
        if exchange.room_id != room_id {
            return wrong("room than the path");
        }
        if exchange.state_key.server_name() != origin {
            return Err(RoomError::NotAllowed("the user belongs to another server".to_owned()));
        }
        self.shared_room(origin, room_id).await?;
        let signed = exchange.content.third_party_invite.signed;
        self.invite_found(room_id, exchange.sender, exchange.state_key, signed).await
    }

    /// Turns invites of an identifier into invites of the local user that it was bound to.
    ///
    /// Spec: server-server API, `PUT /_matrix/federation/v1/3pid/onbind`.
    pub async fn third_party_id_bound(&self, bound: Bound) -> Result<(), RoomError> {
        if bound.invites.len() > INVITES_MAX {
            return Err(RoomError::Invalid(format!("there are more than {INVITES_MAX} invites")));
        }
        if bound.mxid.server_name() != self.server_name() || !self.is_active_user(&bound.mxid).await? {
            return Err(RoomError::Invalid("there is no such user here".to_owned()));
        }
        for BoundInvite { room_id, sender, signed } in bound.invites {
            let result = if signed.mxid != bound.mxid {
                Err(RoomError::Invalid("the invite is signed for another user".to_owned()))
            } else if sender.server_name() == self.server_name() {
                self.invite_found(&room_id, sender, bound.mxid.clone(), signed).await
            } else {
                self.ask_to_exchange(&room_id, &sender, &bound.mxid, &signed).await
            };
            if let Err(error) = result {
                tracing::info!(%room_id, %error, "an invite of a third-party identifier came to nothing");
            }
        }
        Ok(())
    }

    /// Has a local user invited whose third-party identifier was invited, as the identity server's signature proves.
    ///
    /// Spec: client-server API, `POST /_matrix/client/v3/join/{roomIdOrAlias}`, `third_party_signed`.
    pub async fn accept_third_party_invite(
        &self,
        user: &UserId,
        room_id: &RoomId,
        signed: &ThirdPartySigned,
    ) -> Result<(), RoomError> {
        if signed.mxid != user {
            return Err(RoomError::NotAllowed("the invite is signed for another user".to_owned()));
        }
        let signatures = serde_json::to_value(&signed.signatures).ok();
        let Some(Value::Object(signatures)) = signatures else {
            return Err(RoomError::Invalid("third_party_signed has no signatures".to_owned()));
        };
        let proof = Signed { mxid: signed.mxid.clone(), token: signed.token.clone(), signatures };
        if signed.sender.server_name() == self.server_name() {
            self.invite_found(room_id, signed.sender.clone(), user.to_owned(), proof).await
        } else {
            self.ask_to_exchange(room_id, &signed.sender, &user.to_owned(), &proof).await
        }
    }

    /// Appends the invite, with what the identity server signed; the room's rules check that.
    async fn invite_found(
        &self,
        room_id: &RoomId,
        sender: OwnedUserId,
        target: OwnedUserId,
        signed: Signed,
    ) -> Result<(), RoomError> {
        if sender.server_name() != self.server_name() {
            return Err(RoomError::Invalid("the sender of the invite belongs to another server".to_owned()));
        }
        let room = self.room(room_id).await?;
        let held = room.current("m.room.third_party_invite", &signed.token).await?;
        let held = held.ok_or_else(|| RoomError::NotAllowed("the room has no such invite".to_owned()))?;
        let name: Value = serde_json::from_str(held.pdu.content().get()).unwrap_or_default();
        let invite = json!({ "display_name": name["display_name"], "signed": signed });
        let is_local = target.server_name() == self.server_name();
        let content = Map::from_iter([("third_party_invite".to_owned(), invite)]);
        let change = MembershipChange { sender, target, action: MembershipAction::Invite, content };
        if is_local {
            room.change_membership(change).await.map(drop)
        } else {
            self.invite_remote(&room, change).await.map(drop)
        }
    }

    /// Asks the server of whoever invited the identifier to make an invite of it.
    async fn ask_to_exchange(
        &self,
        room_id: &RoomId,
        sender: &OwnedUserId,
        target: &OwnedUserId,
        signed: &Signed,
    ) -> Result<(), RoomError> {
        let event = json!({
            "type": "m.room.member",
            "room_id": room_id,
            "sender": sender,
            "state_key": target,
            "content": {
                "membership": "invite",
                "third_party_invite": { "display_name": target.localpart(), "signed": signed },
            },
        });
        Ok(self.remote(sender.server_name())?.exchange_third_party_invite(room_id, &event).await?)
    }
}
