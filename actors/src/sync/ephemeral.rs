//! Typing notices and receipts as clients are told of them; those of ignored users are left out.
//!
//! Spec: client-server API, "Typing Notifications", "Receipts", "Ignoring Users".

use std::collections::BTreeMap;

use engine::id::Position;
use serde_json::{Value, json, value::RawValue};

use crate::{
    room::{Receipt, Typing},
    session::Ignored,
};

/// The type of receipts that everybody in the room sees.
pub(crate) const READ: &str = "m.read";

/// The type of receipts that only their user sees.
pub(crate) const READ_PRIVATE: &str = "m.read.private";

/// The list of who is typing, if it is another one than a client saw at a position; at first, if anybody is.
pub(crate) fn typing_event(typing: &Typing, since: Position, ignored: &Ignored) -> Option<Box<RawValue>> {
    let users: Vec<_> = typing.users.iter().filter(|user| !ignored.contains(user)).collect();
    let is_news = if since == Position(0) {
        !users.is_empty()
    } else {
        typing.changed_since(since, |user| !ignored.contains(user))
    };
    is_news.then(|| to_raw(&json!({ "type": "m.typing", "content": { "user_ids": users } })))
}

/// Receipts, each with its type, as events: one for each thread, and one for those of the whole room.
///
/// An event has place for one receipt of a user at an event, where there may be one of a thread and one of the room.
/// Spec: client-server API, "Receipts", server behaviour.
pub(crate) fn receipt_events<'a>(
    receipts: impl Iterator<Item = (&'static str, &'a Receipt)>,
) -> Vec<Box<RawValue>> {
    let mut by_thread = BTreeMap::<Option<&str>, Vec<_>>::new();
    for (kind, receipt) in receipts {
        by_thread.entry(receipt.thread.as_deref()).or_default().push((kind, receipt));
    }
    by_thread.into_values().filter_map(|receipts| receipt_event(receipts.into_iter())).collect()
}

/// One event of receipts, each with its type; none if there are none.
///
/// Of a user's receipts for one event, that of the whole room says most.
pub(crate) fn receipt_event<'a>(
    receipts: impl Iterator<Item = (&'static str, &'a Receipt)>,
) -> Option<Box<RawValue>> {
    let mut content = BTreeMap::<&str, BTreeMap<&str, BTreeMap<&str, Value>>>::new();
    for (kind, receipt) in receipts {
        let mut about = json!({ "ts": receipt.ts });
        if let Some(thread) = &receipt.thread {
            about["thread_id"] = thread.as_str().into();
        }
        let readers = content.entry(receipt.event_id.as_str()).or_default().entry(kind).or_default();
        let says_less = receipt.thread.is_some()
            && readers.get(receipt.user_id.as_str()).is_some_and(|known| known["thread_id"].is_null());
        if !says_less {
            readers.insert(receipt.user_id.as_str(), about);
        }
    }
    (!content.is_empty()).then(|| to_raw(&json!({ "type": "m.receipt", "content": content })))
}

fn to_raw(value: &Value) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("a JSON value serialises")
}
