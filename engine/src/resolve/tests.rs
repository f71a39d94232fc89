use std::sync::Arc;

use proptest::prelude::*;
use ruma::{
    OwnedEventId, OwnedUserId, RoomVersionId,
    state_res::{self, StateMap, utils::event_id_set::EventIdSet},
};
use serde_json::{Value, json};

use super::*;
use crate::room_version::rules;

mod differing;
mod scenarios;

/// Events without signatures, made on diverging forks of one room.
#[derive(Clone)]
struct Graph {
    version: &'static RoomVersion,
    events: BTreeMap<OwnedEventId, Ranked>,
    forks: Vec<StateSet>,
    room_id: String,
    clock: u64,
}

impl EventSource for Graph {
    fn event(&self, id: &EventId) -> Option<Ranked> {
        self.events.get(id).cloned()
    }
}

fn user(number: u8) -> OwnedUserId {
    let names = ["alice", "bob", "carol", "mallory"];
    format!("@{}:example.org", names[usize::from(number) % names.len()]).try_into().unwrap()
}

impl Graph {
    /// A public room of alice, with as many forks of it.
    fn new(version: &RoomVersionId, forks: usize) -> Self {
        let version = rules(version).unwrap();
        let names_room = version.authorization.room_create_event_id_as_room_id;
        let room_id = if names_room { "!e0000".to_owned() } else { "!room:example.org".to_owned() };
        let mut graph =
            Self { version, events: BTreeMap::new(), forks: vec![StateSet::new()], room_id, clock: 0 };
        let mut create = json!({ "room_version": version.id });
        if !version.authorization.use_room_create_sender {
            create["creator"] = user(0).as_str().into();
        }
        let mut levels = json!({ "users": { user(1).as_str(): 50 }, "state_default": 50 });
        if !version.authorization.explicitly_privilege_room_creators {
            levels["users"][user(0).as_str()] = 100.into();
        }
        assert!(graph.send(0, 0, "m.room.create", "", &create));
        assert!(graph.send(0, 0, "m.room.member", user(0).as_str(), &json!({ "membership": "join" })));
        assert!(graph.send(0, 0, "m.room.power_levels", "", &levels));
        assert!(graph.send(0, 0, "m.room.join_rules", "", &json!({ "join_rule": "public" })));
        graph.forks = vec![graph.forks[0].clone(); forks];
        graph
    }

    /// Adds an event to a fork if it is allowed there.
    fn send(&mut self, fork: usize, sender: u8, kind: &str, key: &str, content: &Value) -> bool {
        let sender = user(sender);
        let raw = serde_json::value::to_raw_value(content).unwrap();
        let keys = auth::auth_keys(&kind.into(), &sender, Some(key), &raw, self.version).unwrap();
        let state = &self.forks[fork];
        let auth_events: Vec<_> = keys
            .iter()
            .filter_map(|(kind, key)| state.get(&(kind.to_string(), key.clone())).cloned())
            .collect();
        let prev_events: Vec<_> = state.values().max().into_iter().collect();
        self.clock += 1;
        let rank = auth_events.iter().map(|id| self.events[id].rank + 1).max().unwrap_or(0);
        let mut json = json!({
            "type": kind, "state_key": key, "sender": sender, "content": content,
            "origin_server_ts": 1000 + self.clock / 3, "depth": self.clock, "auth_events": auth_events,
            "prev_events": prev_events, "room_id": self.room_id,
        });
        if kind == "m.room.create" && self.room_id == "!e0000" {
            json.as_object_mut().unwrap().remove("room_id");
        }
        let id = OwnedEventId::try_from(format!("$e{:04}", self.events.len())).unwrap();
        let event = Arc::new(Pdu::from_stored(id.clone(), json.to_string().into()).unwrap());
        if kind != "m.room.create" && !self.allows(&event, state) {
            return false;
        }
        self.events.insert(id.clone(), Ranked { event, rank });
        self.forks[fork].insert((kind.to_owned(), key.to_owned()), id);
        true
    }

    fn allows(&self, event: &Arc<Pdu>, state: &StateSet) -> bool {
        let agreed = Held { state, source: self };
        let states = States { differing: &[], keys: BTreeSet::new(), agreed: &agreed };
        let state = Partial { resolved: StateSet::new(), base: Some(&states) };
        is_allowed(self.version, event, &state, self).unwrap()
    }

    /// A fork takes in another, as an event with both of them before it does.
    fn merge(&mut self, fork: usize, other: usize) {
        let states = [self.forks[fork].clone(), self.forks[other].clone()];
        self.forks[fork] = resolve(self.version, &states, self).unwrap();
    }

    fn resolved(&self) -> StateSet {
        resolve(self.version, &self.forks, self).unwrap()
    }

    fn chain(&self, id: &OwnedEventId) -> BTreeSet<OwnedEventId> {
        let mut chain = BTreeSet::new();
        let mut open = self.events[id].event.auth_events().to_vec();
        while let Some(id) = open.pop() {
            open.extend(self.events[&id].event.auth_events().iter().cloned());
            chain.insert(id);
        }
        chain
    }

    /// What ruma makes of the same states.
    fn oracle(&self) -> StateSet {
        let maps: Vec<StateMap<OwnedEventId>> = self
            .forks
            .iter()
            .map(|fork| {
                let entry = |((kind, key), id): (&StateKey, &OwnedEventId)| {
                    ((kind.as_str().into(), key.clone()), id.clone())
                };
                fork.iter().map(entry).collect()
            })
            .collect();
        let chains: Vec<EventIdSet<OwnedEventId>> =
            self.forks.iter().map(|fork| fork.values().flat_map(|id| self.chain(id)).collect()).collect();
        let StateResolutionVersion::V2(rules) = &self.version.state_res else { panic!("not version 2") };
        let subgraph = |conflicted: &StateMap<Vec<OwnedEventId>>| {
            let conflicted: BTreeSet<_> = conflicted.values().flatten().cloned().collect();
            let leads_to = |id: &OwnedEventId| {
                conflicted.contains(id) || self.chain(id).iter().any(|below| conflicted.contains(below))
            };
            let above = conflicted.iter().flat_map(|id| self.chain(id)).chain(conflicted.iter().cloned());
            Some(above.filter(leads_to).collect())
        };
        let fetch = |id: &EventId| self.events.get(id).map(|ranked| ranked.event.clone());
        let rules_of_auth = &self.version.authorization;
        let resolved =
            state_res::resolve(rules_of_auth, rules, maps.iter(), chains, fetch, subgraph).unwrap();
        resolved.into_iter().map(|((kind, key), id)| ((kind.to_string(), key), id)).collect()
    }
}

/// One thing that somebody does on a fork.
type Step = (u8, u8, u8, u8, u8);

fn perform(graph: &mut Graph, (fork, sender, action, target, level): Step) {
    let fork = usize::from(fork) % graph.forks.len();
    let (own, other) = (user(sender).to_string(), user(target).to_string());
    let member = |membership: &str| json!({ "membership": membership });
    match action % 9 {
        0 => graph.send(fork, sender, "m.room.member", &own, &member("join")),
        1 => graph.send(fork, sender, "m.room.member", &own, &member("leave")),
        2 => graph.send(fork, sender, "m.room.member", &other, &member("ban")),
        3 => graph.send(fork, sender, "m.room.member", &other, &member("leave")),
        4 => graph.send(fork, sender, "m.room.topic", "", &json!({ "topic": level })),
        5 => {
            let rule = if level % 2 == 0 { "public" } else { "invite" };
            graph.send(fork, sender, "m.room.join_rules", "", &json!({ "join_rule": rule }))
        }
        6 => graph.send(fork, sender, "m.room.member", &other, &member("invite")),
        7 => {
            graph.merge(fork, usize::from(level) % graph.forks.len());
            true
        }
        _ => {
            let held = graph.forks[fork].get(&("m.room.power_levels".to_owned(), String::new())).cloned();
            let Some(held) = held else { return };
            let mut content: Value = serde_json::from_str(graph.events[&held].event.content().get()).unwrap();
            let is_creator =
                graph.version.authorization.explicitly_privilege_room_creators && target % 4 == 0;
            if !is_creator {
                content["users"][other] = (u64::from(level % 5) * 25).into();
            }
            graph.send(fork, sender, "m.room.power_levels", "", &content)
        }
    };
}

/// A room, and what happens on its forks, which merge now and then.
fn grown(version: u8, forks: usize, before: Vec<Step>, after: Vec<Step>) -> Graph {
    let mut graph = Graph::new(&RoomVersionId::try_from(version.to_string()).unwrap(), 1);
    for step in before {
        perform(&mut graph, step);
    }
    graph.forks = vec![graph.forks[0].clone(); forks];
    for step in after {
        perform(&mut graph, step);
    }
    graph
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn forks_resolve_as_ruma_resolves_them(
        version in prop::sample::select(vec![2_u8, 6, 10, 11, 12]),
        forks in 2..4_usize,
        before in prop::collection::vec(any::<Step>(), 0..8),
        after in prop::collection::vec(any::<Step>(), 0..24),
    ) {
        let graph = grown(version, forks, before, after);
        prop_assert_eq!(graph.resolved(), graph.oracle());
    }

    #[test]
    fn the_order_of_states_does_not_matter(
        version in prop::sample::select(vec![1_u8, 2, 12]),
        steps in prop::collection::vec(any::<Step>(), 0..24),
    ) {
        let version = RoomVersionId::try_from(version.to_string()).unwrap();
        let mut graph = Graph::new(&version, 3);
        for step in steps {
            perform(&mut graph, step);
        }
        let resolved = graph.resolved();
        graph.forks.reverse();
        prop_assert_eq!(graph.resolved(), resolved);
    }
}

fn held<'a>(graph: &'a Graph, resolved: &StateSet, kind: &str, key: &str) -> &'a Pdu {
    &graph.events[&resolved[&(kind.to_owned(), key.to_owned())]].event
}

#[test]
fn a_ban_beats_the_banned_users_doings_on_the_other_side() {
    for version in ["2", "6", "11", "12"] {
        let mut graph = Graph::new(&version.try_into().unwrap(), 1);
        let join = json!({ "membership": "join" });
        assert!(graph.send(0, 1, "m.room.member", user(1).as_str(), &join));
        graph.forks = vec![graph.forks[0].clone(); 2];
        assert!(graph.send(0, 0, "m.room.member", user(1).as_str(), &json!({ "membership": "ban" })));
        assert!(graph.send(1, 1, "m.room.topic", "", &json!({ "topic": "mine" })));
        let resolved = graph.resolved();
        let member = held(&graph, &resolved, "m.room.member", user(1).as_str());
        assert!(member.content().get().contains("ban"), "version {version}");
        assert!(!resolved.contains_key(&("m.room.topic".to_owned(), String::new())), "version {version}");
    }
}

#[test]
fn version_1_keeps_the_deeper_topic() {
    let mut graph = Graph::new(&RoomVersionId::V1, 2);
    assert!(graph.send(0, 0, "m.room.topic", "", &json!({ "topic": "first" })));
    assert!(graph.send(1, 0, "m.room.topic", "", &json!({ "topic": "second" })));
    let resolved = graph.resolved();
    assert!(held(&graph, &resolved, "m.room.topic", "").content().get().contains("second"));
}

/// Each event is checked in the state that is resolved so far, and members come after power levels.
///
/// Spec: room version 1, "State resolution".
#[test]
fn version_1_takes_nobody_for_a_member_whose_membership_is_in_conflict() {
    let mut graph = Graph::new(&RoomVersionId::V1, 1);
    let (alice, bob) = (user(0), user(1));
    let join = |name: &str| json!({ "membership": "join", "displayname": name });
    let levels = |events_default: u8| {
        let users = json!({ alice.as_str(): 100, bob.as_str(): 50 });
        json!({ "users": users, "state_default": 50, "events_default": events_default })
    };
    assert!(graph.send(0, 1, "m.room.member", bob.as_str(), &join("Bob")));
    graph.forks = vec![graph.forks[0].clone(); 2];
    assert!(graph.send(0, 0, "m.room.power_levels", "", &levels(5)));
    assert!(graph.send(1, 1, "m.room.member", bob.as_str(), &join("Robert")));
    assert!(graph.send(1, 1, "m.room.power_levels", "", &levels(10)));
    let resolved = graph.resolved();
    assert_eq!(*held(&graph, &resolved, "m.room.power_levels", "").sender(), alice);
}

#[test]
fn what_is_missing_is_named() {
    let mut graph = Graph::new(&RoomVersionId::V11, 2);
    assert!(graph.send(0, 0, "m.room.topic", "", &json!({ "topic": "first" })));
    assert!(graph.send(1, 0, "m.room.topic", "", &json!({ "topic": "second" })));
    let lost = graph.forks[1][&("m.room.topic".to_owned(), String::new())].clone();
    graph.events.remove(&lost);
    let forks = graph.forks.clone();
    assert_eq!(resolve(graph.version, &forks, &graph), Err(MissingEvents([lost].into())));
}
