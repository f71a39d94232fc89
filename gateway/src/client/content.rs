//! What clients may put into events.

use std::{borrow::Cow, collections::BTreeMap};

use ruma::{Int, OwnedUserId};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{ApiError, ApiResult};

/// The content of an event that a client sends: an object, whatever else ruma's types let through; of a message one that
/// clients can show, of power levels and memberships one that has a meaning.
///
/// Spec: client-server API, "Instant Messaging", server behaviour; `m.room.power_levels`; `m.room.member`.
pub(super) fn content_of(kind: &str, content: Box<RawValue>) -> ApiResult<Box<RawValue>> {
    #[derive(Deserialize)]
    struct Message<'a> {
        #[serde(borrow, rename = "msgtype")]
        _msgtype: Cow<'a, str>,
        #[serde(borrow, rename = "body")]
        _body: Cow<'a, str>,
    }
    #[derive(Deserialize)]
    struct Member {
        #[serde(rename = "membership")]
        _membership: String,
    }
    if !content.get().trim_start().starts_with('{') {
        return Err(ApiError::bad_json("the content of an event must be an object"));
    }
    let read = match kind {
        "m.room.message" => serde_json::from_str::<Message<'_>>(content.get()).map(drop),
        "m.room.member" => serde_json::from_str::<Member>(content.get()).map(drop),
        "m.room.power_levels" => serde_json::from_str::<PowerLevels>(content.get()).map(drop),
        _ => Ok(()),
    };
    match read {
        Ok(()) => Ok(content),
        Err(error) => Err(ApiError::bad_json(format!("this is no {kind}: {error}"))),
    }
}

/// Power levels whose numbers are numbers: clients of today write no strings, not even where old rooms have them.
#[derive(Default, Deserialize)]
#[serde(default)]
struct PowerLevels {
    #[serde(rename = "users")]
    _users: BTreeMap<OwnedUserId, Int>,
    #[serde(rename = "events")]
    _events: BTreeMap<String, Int>,
    #[serde(rename = "notifications")]
    _notifications: BTreeMap<String, Int>,
    #[serde(rename = "users_default")]
    _users_default: Int,
    #[serde(rename = "events_default")]
    _events_default: Int,
    #[serde(rename = "state_default")]
    _state_default: Int,
    #[serde(rename = "ban")]
    _ban: Int,
    #[serde(rename = "kick")]
    _kick: Int,
    #[serde(rename = "redact")]
    _redact: Int,
    #[serde(rename = "invite")]
    _invite: Int,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json, value::to_raw_value};

    use super::*;

    fn passes(kind: &str, content: &Value) -> bool {
        content_of(kind, to_raw_value(content).unwrap()).is_ok()
    }

    #[test]
    fn contents_without_a_meaning_are_refused() {
        let levels = |content: Value| passes("m.room.power_levels", &content);
        assert!(levels(json!({})));
        assert!(levels(
            json!({ "users": { "@a:b": 50 }, "events": { "m.room.name": 0 }, "ban": -1, "org.example": "x" })
        ));
        assert!(!levels(json!({ "users": { "@a:b": "50" } })));
        assert!(!levels(json!({ "users": { "a": 50 } })));
        assert!(!levels(json!({ "users": [] })));
        assert!(!levels(json!({ "events": 3 })));
        assert!(!levels(json!({ "notifications": { "room": 1.5 } })));
        for field in ["users_default", "events_default", "state_default", "ban", "kick", "redact", "invite"] {
            assert!(levels(json!({ field: 7 })));
            assert!(!levels(json!({ field: "7" })), "{field}");
            assert!(!levels(json!({ field: null })), "{field}");
        }
        assert!(passes("m.room.member", &json!({ "membership": "join" })));
        assert!(!passes("m.room.member", &json!({ "displayname": "Alice" })));
        assert!(passes("m.room.message", &json!({ "msgtype": "m.text", "body": "" })));
        assert!(!passes("m.room.message", &json!({ "msgtype": 1, "body": "" })));
        assert!(!passes("org.example", &json!([])));
        assert!(passes("org.example", &json!({ "ban": "x" })));
    }
}
