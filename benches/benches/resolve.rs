//! State resolution of a fork in which members came, left and renamed themselves, by the size of the room.

use std::{
    collections::{BTreeMap, BTreeSet},
    hint::black_box,
    sync::Arc,
};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use engine::{
    pdu::Pdu,
    resolve::{self, AgreedState, EventSource, Lacking, Ranked, Reach, StateKey, StateSet},
    room_version::{self, RoomVersion},
};
use ruma::{EventId, OwnedEventId, RoomVersionId};
use serde_json::{Value, json};

const ALICE: &str = "@alice:example.org";

/// Changes on each side of the fork.
const CHANGES: usize = 20;

struct Room {
    version: &'static RoomVersion,
    events: BTreeMap<OwnedEventId, Ranked>,
}

impl EventSource for Room {
    fn event(&self, id: &EventId) -> Option<Ranked> {
        self.events.get(id).cloned()
    }
}

fn key(kind: &str, state_key: &str) -> StateKey {
    (kind.to_owned(), state_key.to_owned())
}

impl Room {
    fn send(&mut self, state: &mut StateSet, kind: &str, sender: &str, state_key: &str, content: &Value) {
        let needed = [
            key("m.room.create", ""),
            key("m.room.power_levels", ""),
            key("m.room.join_rules", ""),
            key("m.room.member", sender),
        ];
        let auth_events: Vec<_> = needed.iter().filter_map(|key| state.get(key)).collect();
        let rank = auth_events.iter().map(|id| self.events[*id].rank + 1).max().unwrap_or(0);
        let json = json!({
            "type": kind, "state_key": state_key, "sender": sender, "content": content, "depth": 1,
            "origin_server_ts": self.events.len(), "room_id": "!room:example.org",
            "auth_events": auth_events, "prev_events": auth_events,
        });
        let id = OwnedEventId::try_from(format!("$e{:07}", self.events.len())).expect("an event ID");
        let event = Pdu::from_stored(id.clone(), json.to_string().into()).expect("an event");
        self.events.insert(id.clone(), Ranked { event: Arc::new(event), rank });
        state.insert(key(kind, state_key), id);
    }

    /// A public room with so many members, and a fork of it.
    fn forked(members: usize) -> (Self, [StateSet; 2]) {
        let version = room_version::rules(&RoomVersionId::V11).expect("it is supported");
        let mut room = Self { version, events: BTreeMap::new() };
        let mut state = StateSet::new();
        let join = json!({ "membership": "join" });
        room.send(&mut state, "m.room.create", ALICE, "", &json!({ "room_version": "11" }));
        room.send(&mut state, "m.room.member", ALICE, ALICE, &join);
        room.send(&mut state, "m.room.power_levels", ALICE, "", &json!({ "users": { ALICE: 100 } }));
        room.send(&mut state, "m.room.join_rules", ALICE, "", &json!({ "join_rule": "public" }));
        let user = |number: usize| format!("@user{number:06}:example.org");
        for number in 0..members {
            room.send(&mut state, "m.room.member", &user(number), &user(number), &join);
        }
        let mut sides = [state.clone(), state];
        for number in 0..CHANGES {
            let leaves = json!({ "membership": "leave" });
            room.send(&mut sides[0], "m.room.member", &user(number), &user(number), &leaves);
            let renamed = json!({ "membership": "join", "displayname": "x" });
            let other = user(number + CHANGES / 2);
            room.send(&mut sides[1], "m.room.member", &other, &other, &renamed);
        }
        (room, sides)
    }
}

/// What both sides agree on, as a tree of the state answers it.
struct Agreed<'a> {
    room: &'a Room,
    state: &'a StateSet,
    differing: &'a [StateSet],
}

impl AgreedState for Agreed<'_> {
    fn get(&self, key: &StateKey) -> Result<Option<OwnedEventId>, Lacking> {
        Ok(self.state.get(key).cloned())
    }

    fn leads_to(&self, events: &BTreeSet<OwnedEventId>) -> Result<BTreeSet<OwnedEventId>, Lacking> {
        let mut reach = Reach::new(events.clone(), self.room)?;
        let differs = |key: &StateKey| self.differing.iter().any(|set| set.contains_key(key));
        let agreed = self.state.iter().filter(|(key, _)| !differs(key)).map(|(_, id)| id);
        reach.walk(agreed, self.room)?;
        Ok(reach.into_found())
    }
}

fn resolution(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("resolve");
    group.sample_size(20);
    for members in [100, 1_000, 10_000] {
        let (room, sides) = Room::forked(members);
        let whole = resolve::resolve(room.version, &sides, &room).expect("all events are here");
        let differs = |key: &StateKey| sides[0].get(key) != sides[1].get(key);
        let part = |side: &StateSet| -> StateSet {
            let differing = side.iter().filter(|(key, _)| differs(key));
            differing.map(|(key, id)| (key.clone(), id.clone())).collect()
        };
        let differing = [part(&sides[0]), part(&sides[1])];
        let agreed = Agreed { room: &room, state: &sides[0], differing: &differing };
        let parts = resolve::resolve_differing(room.version, &differing, &agreed, &room);
        for (key, id) in parts.expect("all events are here") {
            assert_eq!(whole.get(&key), Some(&id), "both ways give the same");
        }
        group.bench_function(BenchmarkId::new("whole states", members), |bencher| {
            bencher.iter(|| resolve::resolve(room.version, black_box(&sides), &room));
        });
        group.bench_function(BenchmarkId::new("by differences", members), |bencher| {
            bencher.iter(|| resolve::resolve_differing(room.version, black_box(&differing), &agreed, &room));
        });
    }
    group.finish();
}

criterion_group!(benches, resolution);
criterion_main!(benches);
