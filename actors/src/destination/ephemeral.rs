//! What waits for a destination and may be lost: receipts, presence, typing notices, the newest of each only.
//!
//! Receipts of one transaction share EDUs, and so does presence: a room full of readers costs one EDU.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use ruma::{OwnedRoomId, OwnedUserId};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

/// What waits for one server; the oldest gives way.
const WAITING_MAX: usize = 1000;

/// Users in one `m.presence`.
const PUSH_MAX: usize = 100;

/// Something of which only the newest of its kind matters.
#[derive(Clone, Debug)]
pub struct Ephemeral {
    /// What it replaces: something older with the same key.
    pub key: String,
    /// What it is.
    pub content: EphemeralContent,
}

/// The kinds of EDU that may be lost.
#[derive(Clone, Debug)]
pub enum EphemeralContent {
    /// How far a user has read.
    Receipt {
        /// The room.
        room_id: OwnedRoomId,
        /// Who has read.
        user_id: OwnedUserId,
        /// What `m.read` has for that user.
        receipt: Arc<RawValue>,
    },
    /// A user's presence, as `push` lists it.
    Presence(Arc<RawValue>),
    /// A typing notice: the EDU's content.
    Typing(Arc<RawValue>),
}

#[derive(Serialize)]
struct Edu<'a, T> {
    edu_type: &'a str,
    content: T,
}

#[derive(Default, Serialize)]
struct RoomReceipts {
    #[serde(rename = "m.read")]
    read: BTreeMap<OwnedUserId, Arc<RawValue>>,
}

#[derive(Serialize)]
struct Push {
    push: Vec<Arc<RawValue>>,
}

/// What waits.
#[derive(Default)]
pub(super) struct Waiting {
    by_key: BTreeMap<String, EphemeralContent>,
    order: VecDeque<String>,
}

/// What one transaction takes along.
#[derive(Default)]
pub(super) struct Taken {
    /// The EDUs, typing notices last.
    pub(super) edus: Vec<Box<RawValue>>,
    /// How many typing notices there are.
    typing: usize,
    /// What they were made of.
    contents: Vec<Ephemeral>,
}

impl Taken {
    /// Leaves out what soon holds no more.
    pub(super) fn forget_typing(&mut self) {
        self.edus.truncate(self.edus.len() - self.typing);
        self.typing = 0;
    }
}

impl Waiting {
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn push(&mut self, Ephemeral { key, content }: Ephemeral) {
        if self.by_key.insert(key.clone(), content).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > WAITING_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_key.remove(&oldest);
        }
    }

    /// Puts back what was not taken, unless something newer waits; typing notices have had their time.
    pub(super) fn restore(&mut self, taken: Taken) {
        for Ephemeral { key, content } in taken.contents.into_iter().rev() {
            if !matches!(content, EphemeralContent::Typing(_)) && !self.by_key.contains_key(&key) {
                self.by_key.insert(key.clone(), content);
                self.order.push_front(key);
            }
        }
    }

    /// Takes the oldest, as much as fits into so many EDUs.
    pub(super) fn take(&mut self, edus_max: usize) -> Taken {
        let mut receipts: Vec<BTreeMap<OwnedRoomId, RoomReceipts>> = Vec::new();
        let mut pushes: Vec<Vec<Arc<RawValue>>> = Vec::new();
        let mut typing = Vec::new();
        let mut taken = Taken::default();
        while let Some(key) = self.order.pop_front() {
            let Some(content) = self.by_key.remove(&key) else { continue };
            let is_full = receipts.len() + pushes.len() + typing.len() >= edus_max;
            let fits = match &content {
                EphemeralContent::Receipt { room_id, user_id, receipt } => {
                    // One EDU has one receipt of each user in each room; those of threads need others.
                    let is_free = |edu: &BTreeMap<OwnedRoomId, RoomReceipts>| {
                        edu.get(room_id).is_none_or(|room| !room.read.contains_key(user_id))
                    };
                    let place = receipts.iter().position(is_free);
                    if place.is_none() && !is_full {
                        receipts.push(BTreeMap::new());
                    }
                    let place = place.unwrap_or(receipts.len().saturating_sub(1));
                    let edu = receipts.get_mut(place).filter(|edu| is_free(edu));
                    edu.map(|edu| {
                        let room = edu.entry(room_id.clone()).or_default();
                        room.read.insert(user_id.clone(), receipt.clone());
                    })
                }
                EphemeralContent::Presence(presence) => {
                    if pushes.last().is_none_or(|push| push.len() >= PUSH_MAX) && !is_full {
                        pushes.push(Vec::new());
                    }
                    let push = pushes.last_mut().filter(|push| push.len() < PUSH_MAX);
                    push.map(|push| push.push(presence.clone()))
                }
                EphemeralContent::Typing(content) => (!is_full).then(|| typing.push(content.clone())),
            };
            if fits.is_none() {
                self.by_key.insert(key.clone(), content);
                self.order.push_front(key);
                break;
            }
            taken.contents.push(Ephemeral { key, content });
        }
        let receipts =
            receipts.into_iter().map(|content| to_raw_value(&Edu { edu_type: "m.receipt", content }));
        let pushes = pushes
            .into_iter()
            .map(|push| to_raw_value(&Edu { edu_type: "m.presence", content: Push { push } }));
        let typing = typing.into_iter().map(|content| to_raw_value(&Edu { edu_type: "m.typing", content }));
        taken.edus = receipts.chain(pushes).filter_map(Result::ok).collect();
        let others = taken.edus.len();
        taken.edus.extend(typing.filter_map(Result::ok));
        taken.typing = taken.edus.len() - others;
        taken
    }
}

#[cfg(test)]
mod tests {
    use ruma::{owned_room_id, owned_user_id};
    use serde_json::{Value, json};

    use super::*;

    fn raw(value: &Value) -> Arc<RawValue> {
        to_raw_value(value).unwrap().into()
    }

    fn receipt(user_id: &OwnedUserId, thread: &str, event: &str) -> Ephemeral {
        let receipt = raw(&json!({ "event_ids": [event], "data": { "ts": 1, "thread_id": thread } }));
        let content =
            EphemeralContent::Receipt { room_id: owned_room_id!("!r:a"), user_id: user_id.clone(), receipt };
        Ephemeral { key: format!("receipt {user_id} {thread}"), content }
    }

    fn edus(taken: &Taken) -> Vec<Value> {
        taken.edus.iter().map(|edu| serde_json::from_str(edu.get()).unwrap()).collect()
    }

    #[test]
    fn receipts_of_a_room_share_an_edu_and_only_the_newest_counts() {
        let (alice, bob) = (owned_user_id!("@alice:a"), owned_user_id!("@bob:a"));
        let mut waiting = Waiting::default();
        for (user, thread, event) in
            [(&alice, "main", "$1"), (&bob, "main", "$1"), (&alice, "main", "$2"), (&alice, "$root", "$3")]
        {
            waiting.push(receipt(user, thread, event));
        }
        let taken = waiting.take(10);
        let edus = edus(&taken);
        assert_eq!(edus.len(), 2, "{edus:?}");
        let read = &edus[0]["content"]["!r:a"]["m.read"];
        assert_eq!(read["@alice:a"]["event_ids"], json!(["$2"]));
        assert_eq!(read["@bob:a"]["event_ids"], json!(["$1"]));
        assert_eq!(edus[1]["content"]["!r:a"]["m.read"]["@alice:a"]["data"]["thread_id"], "$root");
        assert_eq!(waiting.len(), 0);
    }

    #[test]
    fn what_does_not_fit_waits_and_what_failed_comes_back_unless_it_is_old() {
        let alice = owned_user_id!("@alice:a");
        let mut waiting = Waiting::default();
        let typing = |n: u64| Ephemeral {
            key: format!("typing {n}"),
            content: EphemeralContent::Typing(raw(&json!({ "typing": true }))),
        };
        waiting.push(typing(1));
        waiting.push(receipt(&alice, "main", "$1"));
        waiting.push(typing(2));
        let taken = waiting.take(2);
        assert_eq!((taken.edus.len(), waiting.len()), (2, 1));
        waiting.restore(taken);
        assert_eq!(waiting.len(), 2, "the typing notice has had its time");
        let taken = waiting.take(1);
        assert_eq!(edus(&taken)[0]["edu_type"], "m.receipt");
        waiting.push(receipt(&alice, "main", "$2"));
        waiting.restore(taken);
        let edus = edus(&waiting.take(5));
        let newest = edus.iter().find(|edu| edu["edu_type"] == "m.receipt").unwrap();
        assert_eq!(newest["content"]["!r:a"]["m.read"]["@alice:a"]["event_ids"], json!(["$2"]));
    }
}
