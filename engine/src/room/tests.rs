//! Tests of a room's rules: each needs only values.

mod census;
mod content;
mod graph;
mod hole;
mod local;
mod machine;
mod membership;
mod owner;
mod partial;
mod receive;

use std::sync::Arc;

use ruma::{OwnedEventId, RoomVersionId};
use serde_json::{Value, json};

use crate::{
    pdu::Pdu,
    room_version::{self, RoomVersion},
};

const ROOM: &str = "!room:one";
const ALICE: &str = "@alice:one";
const BOB: &str = "@bob:one";
const CAROL: &str = "@carol:two";

fn rules(number: &str) -> &'static RoomVersion {
    room_version::rules(&RoomVersionId::try_from(number).unwrap()).unwrap()
}

fn id(name: &str) -> OwnedEventId {
    format!("${name}").try_into().unwrap()
}

/// A named event of alice's room, of version 10, without signatures.
struct Event(Value);

impl Event {
    fn new(name: &str, sender: &str, kind: &str, content: impl Into<Value>) -> Self {
        let content = content.into();
        Self(json!({
            "name": name, "sender": sender, "type": kind, "content": content, "room_id": ROOM, "depth": 1,
            "origin_server_ts": 1, "prev_events": [], "auth_events": [], "hashes": { "sha256": "" },
            "signatures": {},
        }))
    }

    fn member(name: &str, sender: &str, user: &str, membership: &str) -> Self {
        Self::new(name, sender, "m.room.member", json!({ "membership": membership })).state(user)
    }

    fn create() -> Self {
        Self::new("create", ALICE, "m.room.create", json!({ "room_version": "10", "creator": ALICE }))
            .state("")
    }

    fn state(mut self, state_key: &str) -> Self {
        self.0["state_key"] = state_key.into();
        self
    }

    fn after(mut self, names: &[&str]) -> Self {
        self.0["prev_events"] = names.iter().map(|name| id(name).to_string()).collect();
        self
    }

    fn by(mut self, names: &[&str]) -> Self {
        self.0["auth_events"] = names.iter().map(|name| id(name).to_string()).collect();
        self
    }

    fn at(mut self, depth: u64) -> Self {
        self.0["depth"] = depth.into();
        self
    }

    fn dated(mut self, origin_server_ts: u64) -> Self {
        self.0["origin_server_ts"] = origin_server_ts.into();
        self
    }

    fn pdu(mut self) -> Pdu {
        let name = self.0.as_object_mut().unwrap().remove("name").unwrap();
        Pdu::from_stored(id(name.as_str().unwrap()), self.0.to_string().into()).unwrap()
    }

    fn arc(self) -> Arc<Pdu> {
        Arc::new(self.pdu())
    }
}
