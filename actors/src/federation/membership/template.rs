//! Templates of membership events, which servers of a room give and this one fills in.
//!
//! Spec: server-server API, `GET /_matrix/federation/v1/make_join/{roomId}/{userId}` and its likes.

use engine::{
    pdu::{self, Pdu},
    room::local,
    room_version::{self, RoomVersion},
};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, MilliSecondsSinceUnixEpoch, RoomId, RoomVersionId, UserId,
};
use serde_json::{Map, Value};

use crate::{
    federation::{FederationError, remote::Template},
    homeserver::Homeserver,
    room::RoomError,
};

/// Versions from whose events on the room ID alone says nothing about a server to ask.
const UNVERSIONED: RoomVersionId = RoomVersionId::V1;

/// The field of a join's content that names who lets the user into a restricted room.
const AUTHORISED: &str = "join_authorised_via_users_server";

impl Homeserver {
    /// Checks the template of a membership event, fills it in, hashes and signs it.
    pub(super) async fn complete(
        &self,
        template: &Template,
        (membership, room_id, user): (&str, &RoomId, &UserId),
        content: &Map<String, Value>,
        rules: &'static RoomVersion,
    ) -> Result<Pdu, RoomError> {
        let bad = |what: &str| FederationError::BadBody(format!("the template has {what}"));
        let mut object: CanonicalJsonObject =
            serde_json::from_str(template.event.get()).map_err(|error| bad(&error.to_string()))?;
        for (field, expected) in [
            ("type", "m.room.member"),
            ("room_id", room_id.as_str()),
            ("sender", user.as_str()),
            ("state_key", user.as_str()),
        ] {
            if object.get(field).and_then(CanonicalJsonValue::as_str) != Some(expected) {
                return Err(bad(&format!("another {field}")).into());
            }
        }
        let proposed = object.get("content").and_then(CanonicalJsonValue::as_object);
        let stated = proposed.and_then(|content| content.get("membership"));
        if stated.and_then(CanonicalJsonValue::as_str) != Some(membership) {
            return Err(bad("another membership").into());
        }
        let authorised = proposed.and_then(|content| content.get(AUTHORISED)).cloned();
        for field in ["event_id", "hashes", "signatures", "unsigned", "origin"] {
            object.remove(field);
        }
        let mut own: Map<String, Value> = content.clone();
        own.insert("membership".to_owned(), membership.into());
        let mut content: CanonicalJsonObject = serde_json::from_value(Value::Object(own))
            .map_err(|error| RoomError::Invalid(error.to_string()))?;
        content.extend(authorised.map(|user| (AUTHORISED.to_owned(), user)));
        object.insert("content".to_owned(), CanonicalJsonValue::Object(content));
        let date = self.date_of_membership(room_id, user).await?.get();
        object.insert("origin_server_ts".to_owned(), CanonicalJsonValue::Integer(date.into()));
        if rules.event_format.require_event_id {
            let id = format!("${}:{}", self.env().entropy.token(18), self.server_name());
            object.insert("event_id".to_owned(), id.into());
        }
        Ok(pdu::seal(object, &self.room_shared().signing_key, self.server_name(), rules)?)
    }

    /// The date of a local user's next membership event in a room that this server is not in.
    async fn date_of_membership(
        &self,
        room_id: &RoomId,
        user: &UserId,
    ) -> Result<MilliSecondsSinceUnixEpoch, RoomError> {
        let held = match self.room(room_id).await {
            Ok(room) => room.membership_event(user).await?,
            Err(RoomError::NotFound) => None,
            Err(error) => return Err(error),
        };
        let replaced = held.as_ref().map(|event| &*event.pdu);
        Ok(local::date(self.env().clock.now(), replaced, self.server_name()))
    }
}

/// The version that a template says its room has, and its rules.
pub(super) fn version_of(template: &Template) -> Result<(RoomVersionId, &'static RoomVersion), RoomError> {
    let version = template.room_version.clone().unwrap_or(UNVERSIONED);
    let rules = room_version::rules(&version).ok_or_else(|| {
        FederationError::BadBody(format!("the room has version {version}, which is not supported here"))
    })?;
    Ok((version, rules))
}
