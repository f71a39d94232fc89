//! Resolving by differences gives what resolving whole states gives.

use std::cell::RefCell;

use super::*;

/// The auth difference as the specification defines it, from whole chains.
fn difference(graph: &Graph, sets: &[StateSet]) -> BTreeSet<OwnedEventId> {
    let chains: Vec<BTreeSet<_>> =
        sets.iter().map(|set| set.values().flat_map(|id| graph.chain(id)).collect()).collect();
    let all: BTreeSet<_> = chains.iter().flatten().cloned().collect();
    all.into_iter().filter(|id| !chains.iter().all(|chain| chain.contains(id))).collect()
}

/// The same from what differs, and a walk from what is agreed.
fn difference_of_split(graph: &Graph, sets: &[StateSet]) -> BTreeSet<OwnedEventId> {
    let Split { agreed, differing } = Split::new(sets);
    let candidates = chain::difference(&differing, graph).unwrap();
    let covered = Held { state: &agreed, source: graph }.leads_to(&candidates).unwrap();
    candidates.difference(&covered).cloned().collect()
}

/// A source that knows nothing until it is asked again, and an agreed state that is read by pages of two.
struct Slow<'a> {
    graph: &'a Graph,
    agreed: StateSet,
    known: RefCell<BTreeSet<OwnedEventId>>,
    keys: RefCell<BTreeMap<StateKey, Option<OwnedEventId>>>,
    reached: RefCell<Option<(BTreeSet<OwnedEventId>, BTreeSet<OwnedEventId>)>>,
}

impl EventSource for Slow<'_> {
    fn event(&self, id: &EventId) -> Option<Ranked> {
        self.known.borrow().contains(id).then(|| self.graph.event(id)).flatten()
    }
}

impl AgreedState for Slow<'_> {
    fn get(&self, key: &StateKey) -> Result<Option<OwnedEventId>, Lacking> {
        self.keys.borrow().get(key).cloned().ok_or_else(|| Lacking::Keys([key.clone()].into()))
    }

    fn leads_to(&self, events: &BTreeSet<OwnedEventId>) -> Result<BTreeSet<OwnedEventId>, Lacking> {
        match &*self.reached.borrow() {
            Some((wanted, found)) if wanted == events => Ok(found.clone()),
            _ => Err(Lacking::Chain(events.clone())),
        }
    }
}

impl Slow<'_> {
    fn learn(&self, missing: MissingEvents) {
        assert!(!missing.0.is_empty());
        self.known.borrow_mut().extend(missing.0);
    }

    fn reach(&self, wanted: BTreeSet<OwnedEventId>) {
        let mut reach = Reach::new(wanted.clone(), self).unwrap();
        let entries: Vec<_> = self.agreed.values().cloned().collect();
        for page in entries.chunks(2) {
            while let Err(missing) = reach.walk(page, self) {
                self.learn(missing);
            }
        }
        *self.reached.borrow_mut() = Some((wanted, reach.into_found()));
    }
}

fn resolved_slowly(graph: &Graph) -> StateSet {
    let Split { agreed, differing } = Split::new(&graph.forks);
    let slow = Slow {
        graph,
        agreed,
        known: RefCell::default(),
        keys: RefCell::default(),
        reached: RefCell::default(),
    };
    loop {
        match resolve_differing(graph.version, &differing, &slow, &slow) {
            Ok(resolved) => {
                let mut whole = slow.agreed;
                assert!(resolved.keys().all(|key| !whole.contains_key(key)));
                whole.extend(resolved);
                return whole;
            }
            Err(Lacking::Events(missing)) => slow.learn(missing),
            Err(Lacking::Keys(keys)) => {
                let found = keys.into_iter().map(|key| (key.clone(), slow.agreed.get(&key).cloned()));
                slow.keys.borrow_mut().extend(found);
            }
            Err(Lacking::Chain(wanted)) => slow.reach(wanted),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_difference_is_that_of_whole_chains(
        version in prop::sample::select(vec![2_u8, 11, 12]),
        forks in 2..5_usize,
        before in prop::collection::vec(any::<Step>(), 0..16),
        after in prop::collection::vec(any::<Step>(), 0..32),
        lost in prop::collection::vec((any::<u8>(), any::<prop::sample::Index>()), 0..4),
    ) {
        let mut graph = grown(version, forks, before, after);
        // States as other servers tell them: with old events, or without some.
        for (fork, index) in lost {
            let fork = usize::from(fork) % forks;
            let keys: Vec<_> = graph.forks[fork].keys().cloned().collect();
            let key = keys[index.index(keys.len())].clone();
            let old = graph.events.values().map(|ranked| &ranked.event);
            let old = old.filter(|event| (event.kind(), event.state_key()) == (&key.0, Some(&key.1)));
            let old: Vec<_> = old.map(|event| event.event_id().clone()).collect();
            match old.get(index.index(old.len() + 1)) {
                Some(old) => graph.forks[fork].insert(key, old.clone()),
                None => graph.forks[fork].remove(&key),
            };
        }
        prop_assert_eq!(difference_of_split(&graph, &graph.forks), difference(&graph, &graph.forks));
        prop_assert_eq!(chain::difference(&graph.forks, &graph).unwrap(), difference(&graph, &graph.forks));
        let resolved = graph.resolved();
        prop_assert_eq!(&resolved_slowly(&graph), &resolved);
        prop_assert_eq!(resolved, graph.oracle());
    }

    #[test]
    fn version_1_needs_no_more_than_the_differences(
        steps in prop::collection::vec(any::<Step>(), 0..32),
    ) {
        let graph = grown(1, 3, Vec::new(), steps);
        prop_assert_eq!(resolved_slowly(&graph), graph.resolved());
    }
}

/// An agreed state that may not be asked for its chain.
struct Unasked<'a>(&'a StateSet);

impl AgreedState for Unasked<'_> {
    fn get(&self, key: &StateKey) -> Result<Option<OwnedEventId>, Lacking> {
        Ok(self.0.get(key).cloned())
    }

    fn leads_to(&self, events: &BTreeSet<OwnedEventId>) -> Result<BTreeSet<OwnedEventId>, Lacking> {
        Err(Lacking::Chain(events.clone()))
    }
}

/// Members who come, go and rename themselves on both sides cost nothing in proportion to the room's size.
#[test]
fn usual_forks_do_not_ask_for_the_agreed_chain() {
    for version in [2_u8, 11, 12] {
        let mut graph = grown(version, 1, Vec::new(), Vec::new());
        let member = |membership: &str| json!({ "membership": membership });
        for number in 1..3 {
            assert!(graph.send(0, number, "m.room.member", user(number).as_str(), &member("join")));
        }
        graph.forks = vec![graph.forks[0].clone(); 2];
        assert!(graph.send(0, 1, "m.room.member", user(1).as_str(), &member("leave")));
        let renamed = json!({ "membership": "join", "displayname": "C" });
        assert!(graph.send(1, 2, "m.room.member", user(2).as_str(), &renamed));
        assert!(graph.send(1, 3, "m.room.member", user(3).as_str(), &member("join")));
        let Split { agreed, differing } = Split::new(&graph.forks);
        let resolved = resolve_differing(graph.version, &differing, &Unasked(&agreed), &graph).unwrap();
        assert_eq!(resolved.len(), 3, "version {version}");
    }
}
