//! What a push gateway is sent.
//!
//! Spec: push gateway API, `POST /_matrix/push/v1/notify`.

use std::sync::Arc;

use bytes::Bytes;
use ruma::{UserId, push::Action};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use storage::schema::{PushUnreadRecord, PusherRecord};

use crate::{
    room::{RoomError, RoomHandle, StoredEvent, content_string},
    session::{Notice, PusherKey},
};

/// Where a pusher's notifications go: the `url` of its data.
pub(super) fn url(data: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Data {
        url: String,
    }
    serde_json::from_slice::<Data>(data).ok().map(|data| data.url)
}

/// A notification of an event.
pub(super) async fn of_event(
    pusher: (&PusherKey, &PusherRecord),
    user_id: &UserId,
    room: &RoomHandle,
    notice: &Notice,
    counts: PushUnreadRecord,
) -> Result<Bytes, RoomError> {
    let pdu = &notice.event.pdu;
    let tweaks = tweaks(&notice.actions);
    let is_urgent = tweaks.contains_key("sound")
        || tweaks.get("highlight") == Some(&true.into())
        || pdu.kind() == "m.room.encrypted";
    let room_id = room.snapshot().room_id.clone();
    let mut notification = json!({
        "event_id": pdu.event_id(),
        "room_id": room_id,
        "prio": if is_urgent { "high" } else { "low" },
        "counts": without_zeros(counts),
        "devices": [device(pusher, Some(tweaks))],
    });
    if !is_event_id_only(&pusher.1.data) {
        let words = Words::of(room, user_id, &notice.event).await?;
        let fields = [
            ("type", Some(pdu.kind().into())),
            ("sender", Some(pdu.sender().as_str().into())),
            ("content", serde_json::from_str(pdu.content().get()).ok()),
            ("sender_display_name", words.sender.map(Value::from)),
            ("room_name", words.room_name.map(Value::from)),
            ("room_alias", words.room_alias.map(Value::from)),
            (
                "user_is_target",
                (pdu.kind() == "m.room.member").then(|| (pdu.state_key() == Some(user_id.as_str())).into()),
            ),
        ];
        for (name, value) in fields {
            if let Some(value) = value {
                notification[name] = value;
            }
        }
    }
    Ok(body(&notification))
}

/// A notification of nothing but how much is unread.
///
/// Unlike those of events it tells zeros, too: what is left out would leave an old badge standing.
pub(super) fn of_counts(pusher: (&PusherKey, &PusherRecord), counts: PushUnreadRecord) -> Bytes {
    let PushUnreadRecord { unread, missed_calls } = counts;
    let mut told = json!({ "unread": unread });
    if missed_calls > 0 {
        told["missed_calls"] = missed_calls.into();
    }
    body(&json!({ "counts": told, "devices": [device(pusher, None)] }))
}

fn body(notification: &Value) -> Bytes {
    json!({ "notification": notification }).to_string().into()
}

fn without_zeros(counts: PushUnreadRecord) -> Value {
    let counts = [("unread", counts.unread), ("missed_calls", counts.missed_calls)].into_iter();
    counts
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| (name.to_owned(), Value::from(count)))
        .collect()
}

fn device((key, record): (&PusherKey, &PusherRecord), tweaks: Option<Map<String, Value>>) -> Value {
    let mut data: Map<String, Value> = serde_json::from_slice(&record.data).unwrap_or_default();
    data.remove("url");
    let set_s = u64::from(record.set.get()) / 1000;
    let mut device =
        json!({ "app_id": key.app_id, "pushkey": key.pushkey, "pushkey_ts": set_s, "data": data });
    if let Some(tweaks) = tweaks {
        device["tweaks"] = tweaks.into();
    }
    device
}

fn is_event_id_only(data: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Data {
        format: String,
    }
    serde_json::from_slice::<Data>(data).is_ok_and(|data| data.format == "event_id_only")
}

/// The tweaks of a rule's actions; one without a value is `true`.
fn tweaks(actions: &[Action]) -> Map<String, Value> {
    let mut tweaks = Map::new();
    for action in actions {
        let Ok(Value::Object(mut action)) = serde_json::to_value(action) else { continue };
        if let Some(Value::String(name)) = action.remove("set_tweak") {
            tweaks.insert(name, action.remove("value").unwrap_or(Value::Bool(true)));
        }
    }
    tweaks
}

/// How room and sender are called.
#[derive(Default)]
struct Words {
    sender: Option<String>,
    room_name: Option<String>,
    room_alias: Option<String>,
}

impl Words {
    async fn of(room: &RoomHandle, user_id: &UserId, event: &Arc<StoredEvent>) -> Result<Self, RoomError> {
        if let Some(stripped) = room.foreign_stripped_state(user_id, event).await? {
            return Ok(Self::of_stripped(&stripped, event));
        }
        let text = async |kind: &str, key: &str, field: &str| -> Result<Option<String>, RoomError> {
            let event = room.current(kind, key).await?;
            Ok(event.and_then(|event| content_string(&event.pdu, field)).filter(|text| !text.is_empty()))
        };
        Ok(Self {
            sender: text("m.room.member", event.pdu.sender().as_str(), "displayname").await?,
            room_name: text("m.room.name", "", "name").await?,
            room_alias: text("m.room.canonical_alias", "", "alias").await?,
        })
    }

    /// What the invite to a room that this server is not in came with.
    fn of_stripped(stripped: &[Box<serde_json::value::RawValue>], event: &StoredEvent) -> Self {
        let events: Vec<Value> =
            stripped.iter().filter_map(|event| serde_json::from_str(event.get()).ok()).collect();
        let text = |kind: &str, key: &str, field: &str| {
            let event = events.iter().find(|event| event["type"] == kind && event["state_key"] == key)?;
            event["content"][field].as_str().filter(|text| !text.is_empty()).map(ToOwned::to_owned)
        };
        Self {
            sender: text("m.room.member", event.pdu.sender().as_str(), "displayname"),
            room_name: text("m.room.name", "", "name"),
            room_alias: text("m.room.canonical_alias", "", "alias"),
        }
    }
}

/// Whether a push gateway's answer says that it knows a pushkey no more.
pub(super) fn rejects(answer: &[u8], pushkey: &str) -> bool {
    #[derive(Deserialize)]
    struct Answer {
        rejected: Vec<String>,
    }
    serde_json::from_slice::<Answer>(answer)
        .is_ok_and(|answer| answer.rejected.iter().any(|rejected| rejected == pushkey))
}

#[cfg(test)]
mod tests {
    use ruma::push::Tweak;

    use super::*;

    #[test]
    fn tweaks_are_what_actions_set() {
        let actions: Vec<Action> = serde_json::from_value(json!([
            "notify",
            { "set_tweak": "sound", "value": "default" },
            { "set_tweak": "highlight" },
            { "set_tweak": "org.example.flash", "value": 3 },
        ]))
        .unwrap();
        assert!(actions.iter().any(|action| matches!(action, Action::SetTweak(Tweak::Sound(_)))));
        let expected = json!({ "sound": "default", "highlight": true, "org.example.flash": 3 });
        assert_eq!(Value::from(tweaks(&actions)), expected);
        assert!(tweaks(&[Action::Notify]).is_empty());
    }

    #[test]
    fn an_answer_rejects_the_pushkeys_that_it_names() {
        assert!(rejects(br#"{"rejected":["a","b"]}"#, "b"));
        assert!(!rejects(br#"{"rejected":["a"]}"#, "b"));
        assert!(!rejects(b"{}", "b"));
        assert!(!rejects(b"OK", "b"));
    }
}
