//! Tables of cases: room versions, a state, an event, and whether the event is allowed.

mod create;
mod levels;
mod member;
mod others;
mod third_party;

use std::{collections::BTreeMap, ops::RangeInclusive};

use ruma::OwnedEventId;
use serde_json::{Value, json};

use super::*;
use crate::room_version;

const ALL: RangeInclusive<u8> = 1..=12;
const NEVER: RangeInclusive<u8> = RangeInclusive::new(1, 0);

/// The creator.
const ALICE: &str = "@alice:one";
const BOB: &str = "@bob:one";
const CAROL: &str = "@carol:two";
const MALLORY: &str = "@mallory:two";

/// A sender, a type, a state key and a content.
type Event = (&'static str, &'static str, Option<&'static str>, Value);

fn version(number: u8) -> &'static RoomVersion {
    room_version::rules(&RoomVersionId::try_from(number.to_string()).unwrap()).unwrap()
}

/// The events of a room, without signatures.
struct Room {
    version: &'static RoomVersion,
    by_id: BTreeMap<OwnedEventId, Arc<Pdu>>,
    state: BTreeMap<(String, String), Arc<Pdu>>,
}

impl Room {
    /// A room of alice with this content in its create event, and this state.
    fn new(number: u8, create: Value, state: &[Event]) -> Self {
        let mut room = Self { version: version(number), by_id: BTreeMap::new(), state: BTreeMap::new() };
        let mut content = create;
        content["room_version"] = number.to_string().into();
        if number < 11 {
            content["creator"] = ALICE.into();
        }
        room.insert(&(ALICE, "m.room.create", Some(""), content));
        for event in state {
            room.insert(event);
        }
        room
    }

    fn json(&self, (sender, kind, state_key, content): &Event) -> Value {
        let names_room = self.version.authorization.room_create_event_id_as_room_id;
        let raw = serde_json::value::to_raw_value(content).unwrap();
        let keys = auth_keys(&(*kind).into(), (*sender).try_into().unwrap(), *state_key, &raw, self.version);
        let auth_events: Vec<_> = keys
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(kind, key)| Some(self.state.get(&(kind.to_string(), key))?.event_id()))
            .collect();
        let prev_events: Vec<_> = if *kind == "m.room.create" { vec![] } else { vec!["$prev:one"] };
        let mut event = json!({
            "type": kind, "sender": sender, "content": content, "origin_server_ts": 1, "depth": 2,
            "auth_events": auth_events, "prev_events": prev_events,
        });
        if let Some(state_key) = state_key {
            event["state_key"] = (*state_key).into();
        }
        if !names_room {
            event["room_id"] = "!0:one".into();
        } else if *kind != "m.room.create" {
            event["room_id"] = "!0".into();
        }
        event
    }

    fn pdu(&self, event: &Value) -> Arc<Pdu> {
        let number = self.by_id.len();
        // The ID of the create event of version 12 is the room's.
        let id = if self.version.authorization.room_create_event_id_as_room_id {
            format!("${number}")
        } else {
            format!("$id{number}:one")
        };
        Arc::new(Pdu::from_stored(id.try_into().unwrap(), event.to_string().into()).unwrap())
    }

    fn hold(&mut self, pdu: Arc<Pdu>) {
        self.by_id.insert(pdu.event_id().clone(), pdu.clone());
        self.state.insert((pdu.kind().to_owned(), pdu.state_key().unwrap().to_owned()), pdu);
    }

    fn insert(&mut self, event: &Event) {
        let pdu = self.pdu(&self.json(event));
        self.hold(pdu);
    }

    fn held(&self, kind: &str, key: &str) -> &Arc<Pdu> {
        &self.state[&(kind.to_owned(), key.to_owned())]
    }

    fn check(&self, event: &Value) -> Result<(), AuthFailure> {
        let by_key =
            |kind: &StateEventType, key: &str| self.state.get(&(kind.to_string(), key.to_owned())).cloned();
        check(&self.pdu(event), |id| self.by_id.get(id).cloned(), by_key, self.version)
    }
}

/// One row of a table.
struct Case {
    what: &'static str,
    versions: RangeInclusive<u8>,
    create: Value,
    state: Vec<Event>,
    event: Event,
    is_allowed: bool,
}

impl Case {
    fn new(what: &'static str, state: impl Into<Vec<Event>>, event: Event, is_allowed: bool) -> Self {
        Self { what, versions: ALL, create: json!({}), state: state.into(), event, is_allowed }
    }

    fn allowed(what: &'static str, state: impl Into<Vec<Event>>, event: Event) -> Self {
        Self::new(what, state, event, true)
    }

    fn refused(what: &'static str, state: impl Into<Vec<Event>>, event: Event) -> Self {
        Self::new(what, state, event, false)
    }

    /// Only in these versions.
    fn versions(mut self, versions: RangeInclusive<u8>) -> Self {
        self.versions = versions;
        self
    }

    /// With these fields in the content of the create event.
    fn create(mut self, content: Value) -> Self {
        self.create = content;
        self
    }
}

fn run(cases: Vec<Case>) {
    for case in cases {
        for number in case.versions {
            let room = Room::new(number, case.create.clone(), &case.state);
            let verdict = room.check(&room.json(&case.event));
            assert_eq!(verdict.is_ok(), case.is_allowed, "{} in version {number}: {verdict:?}", case.what);
        }
    }
}

fn member(user: &'static str, membership: &str) -> Event {
    (user, "m.room.member", Some(user), json!({ "membership": membership }))
}

/// A membership that somebody else sets.
fn sets(sender: &'static str, user: &'static str, membership: &str) -> Event {
    (sender, "m.room.member", Some(user), json!({ "membership": membership }))
}

fn join_rule(rule: &str) -> Event {
    (ALICE, "m.room.join_rules", Some(""), json!({ "join_rule": rule }))
}

/// Power levels as alice sets them; she herself has 100 where creators are not above all.
fn levels(content: Value) -> Event {
    (ALICE, "m.room.power_levels", Some(""), content)
}

fn message(sender: &'static str) -> Event {
    (sender, "m.room.message", None, json!({ "body": "hi" }))
}

fn topic(sender: &'static str) -> Event {
    (sender, "m.room.topic", Some(""), json!({ "topic": "x" }))
}

/// Alice's own join, and others.
fn joined(users: &[&'static str]) -> Vec<Event> {
    let alice = std::iter::once(&ALICE);
    alice.chain(users).map(|user| member(user, "join")).collect()
}

/// Events after others.
fn with(mut events: Vec<Event>, more: impl IntoIterator<Item = Event>) -> Vec<Event> {
    events.extend(more);
    events
}
