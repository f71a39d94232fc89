//! One event: built and signed, parsed, verified, authorised, shown to a client.

use std::{hint::black_box, sync::Arc};

use criterion::{Criterion, criterion_group, criterion_main};
use engine::{
    auth,
    pdu::{
        BuildContext, Draft, Pdu, SigningKey, build,
        client::{RoomIdField, Unsigned, client_event},
        verify,
    },
    room_version::{self, RoomVersion},
};
use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, RoomId, RoomVersionId, events::StateEventType, room_id, server_name,
    user_id,
};
use serde_json::{Value, json, value::to_raw_value};

struct Room {
    version: &'static RoomVersion,
    key: SigningKey,
    /// The create event, alice's join, the power levels.
    state: Vec<Arc<Pdu>>,
}

impl Room {
    fn new() -> Self {
        let version = room_version::rules(&RoomVersionId::V11).expect("it is supported");
        let key = SigningKey::new(&[1; 32], "bench").expect("the key's version is valid");
        let mut room = Self { version, key, state: Vec::new() };
        let alice = "@alice:example.org";
        for (kind, key, content) in [
            ("m.room.create", "", json!({ "room_version": "11" })),
            ("m.room.member", alice, json!({ "membership": "join" })),
            ("m.room.power_levels", "", json!({ "users": { alice: 100 } })),
        ] {
            let event = room.build(kind, Some(key), &content);
            room.state.push(Arc::new(event));
        }
        room
    }

    fn build(&self, kind: &str, state_key: Option<&str>, content: &Value) -> Pdu {
        let content = to_raw_value(content).expect("JSON");
        let state_key = state_key.map(ToOwned::to_owned);
        let draft = Draft { kind: kind.into(), state_key, content, redacts: None, dated: None };
        let room_id: &RoomId = room_id!("!room:example.org");
        let context = BuildContext {
            room_id: Some(room_id),
            sender: user_id!("@alice:example.org"),
            origin_server_ts: MilliSecondsSinceUnixEpoch(1_700_000_000_u32.into()),
            prev_events: self.state.last().map(std::slice::from_ref).unwrap_or_default(),
            auth_events: &self.state,
            event_id_localpart: "",
            rules: self.version,
            key: &self.key,
            server_name: server_name!("example.org"),
        };
        build(draft, &context).expect("the event is valid")
    }

    fn check(&self, event: &Pdu) -> bool {
        let by_id = |id: &EventId| self.state.iter().find(|held| held.event_id() == id).cloned();
        let by_key = |kind: &StateEventType, key: &str| {
            let is_it = |held: &&Arc<Pdu>| held.kind() == kind.to_string() && held.state_key() == Some(key);
            self.state.iter().find(is_it).cloned()
        };
        auth::check(event, by_id, by_key, self.version).is_ok()
    }
}

fn events(criterion: &mut Criterion) {
    let room = Room::new();
    let content = json!({ "msgtype": "m.text", "body": "Here is a message of usual length, or so." });
    let event = room.build("m.room.message", None, &content);
    assert!(room.check(&event), "what is measured is an event that is allowed");
    let keys = [("example.org".to_owned(), [(room.key.id(), room.key.public_key())].into())].into();
    let object = event.to_object().expect("it was just built");
    let mut group = criterion.benchmark_group("events");
    group.bench_function("build", |bencher| {
        bencher.iter(|| room.build("m.room.message", None, black_box(&content)));
    });
    group.bench_function("parse", |bencher| {
        bencher.iter(|| Pdu::parse(black_box(event.raw()), room.version));
    });
    group.bench_function("from_stored", |bencher| {
        bencher.iter(|| Pdu::from_stored(event.event_id().clone(), black_box(event.raw()).clone()));
    });
    group.bench_function("verify", |bencher| {
        bencher.iter(|| verify(black_box(&object), &keys, room.version));
    });
    group.bench_function("authorise", |bencher| bencher.iter(|| room.check(black_box(&event))));
    group.bench_function("client_format", |bencher| {
        bencher.iter(|| {
            client_event(black_box(&event), room.version, &Unsigned::default(), RoomIdField::Absent)
        });
    });
    group.finish();
}

criterion_group!(benches, events);
criterion_main!(benches);
