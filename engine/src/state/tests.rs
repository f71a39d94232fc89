use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use proptest::prelude::*;

use super::*;

type Model = BTreeMap<(String, String), ShortEventId>;

#[derive(Default)]
struct Shelf {
    nodes: BTreeMap<NodeId, Arc<Node>>,
    salt: u64,
}

impl NodeSource for Shelf {
    fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        self.nodes.get(&id).cloned()
    }
}

impl Shelf {
    fn apply(
        &mut self,
        root: StateRoot,
        changes: &BTreeMap<(String, String), Option<ShortEventId>>,
    ) -> StateRoot {
        let applied = apply(self, root, Salt(self.salt), changes).unwrap();
        for (id, node) in applied.new_nodes {
            assert_eq!(Node::decode(&node.encode()).unwrap(), *node);
            assert_eq!(node.id(), id);
            self.nodes.insert(id, node);
        }
        applied.root
    }

    fn list(&self, root: StateRoot) -> Model {
        let entries = range(self, root, Bound::Unbounded, None, usize::MAX).unwrap();
        entries.into_iter().map(|entry| ((entry.kind, entry.state_key), entry.event)).collect()
    }
}

fn member(number: u64) -> (String, String) {
    ("m.room.member".to_owned(), format!("@user-{number:06}:server-{}.example.org", number % 97))
}

fn changes() -> impl Strategy<Value = BTreeMap<(String, String), Option<ShortEventId>>> {
    let key = (0..3_u8, 0..120_u64).prop_map(|(kind, key)| (format!("m.kind.{kind}"), format!("@{key}")));
    let value = prop::option::weighted(0.8, (1..1_000_000_u64).prop_map(ShortEventId));
    prop::collection::btree_map(key, value, 0..60)
}

proptest! {
    #[test]
    fn a_tree_is_a_map(salt in any::<u64>(), steps in prop::collection::vec(changes(), 1..12)) {
        let mut shelf = Shelf { salt, ..Shelf::default() };
        let (mut root, mut model) = (StateRoot::default(), Model::new());
        let mut history = vec![(root, model.clone())];
        for step in &steps {
            root = shelf.apply(root, step);
            for (key, value) in step {
                match value {
                    Some(value) => drop(model.insert(key.clone(), *value)),
                    None => drop(model.remove(key)),
                }
            }
            prop_assert_eq!(&shelf.list(root), &model);
            prop_assert_eq!(count(&shelf, root).unwrap(), model.len() as u64);
            history.push((root, model.clone()));
        }
        for ((kind, key), value) in &model {
            prop_assert_eq!(get(&shelf, root, kind, key).unwrap(), Some(*value));
        }
        prop_assert_eq!(get(&shelf, root, "m.kind.0", "@nobody").unwrap(), None);
        let at_once: BTreeMap<_, _> = model.iter().map(|(key, value)| (key.clone(), Some(*value))).collect();
        prop_assert_eq!(shelf.apply(StateRoot::default(), &at_once), root);
        for (old_root, old) in &history {
            let found = diff(&shelf, *old_root, root).unwrap();
            let keys: BTreeSet<_> = old.keys().chain(model.keys()).collect();
            let expected: Vec<_> = keys
                .into_iter()
                .filter(|key| old.get(*key) != model.get(*key))
                .map(|key| (key.clone(), old.get(key).copied(), model.get(key).copied()))
                .collect();
            let found: Vec<_> =
                found.into_iter().map(|c| ((c.kind, c.state_key), c.before, c.after)).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn decoding_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Node::decode(&bytes);
    }
}

fn large_room(members: u64) -> (Shelf, StateRoot) {
    let mut shelf = Shelf::default();
    let all: BTreeMap<_, _> = (0..members).map(|n| (member(n), Some(ShortEventId(n + 1)))).collect();
    let root = shelf.apply(StateRoot::default(), &all);
    (shelf, root)
}

#[test]
fn a_change_in_a_room_of_100_000_members_writes_less_than_10_kilobytes() {
    let (shelf, root) = large_room(100_000);
    let mut total = 0;
    for number in 0..100 {
        let change = BTreeMap::from([(member(number * 997), Some(ShortEventId(1_000_000 + number)))]);
        let applied = apply(&shelf, root, Salt(shelf.salt), &change).unwrap();
        total += applied.new_nodes.iter().map(|(_, node)| node.encode().len()).sum::<usize>();
    }
    assert!(total / 100 < 10_000, "{} bytes per change", total / 100);
}

/// Lends nodes of a shelf only after they were asked for, and counts the rounds.
struct Lender<'a> {
    shelf: &'a Shelf,
    lent: BTreeSet<NodeId>,
    rounds: usize,
}

impl NodeSource for Lender<'_> {
    fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        self.lent.contains(&id).then(|| self.shelf.node(id)).flatten()
    }
}

impl<'a> Lender<'a> {
    fn run<T>(shelf: &'a Shelf, operation: impl Fn(&Self) -> Result<T, Missing>) -> (T, Self) {
        let mut lender = Self { shelf, lent: BTreeSet::new(), rounds: 0 };
        loop {
            match operation(&lender) {
                Ok(value) => return (value, lender),
                Err(Missing(ids)) => {
                    assert!(!ids.is_empty() && ids.iter().all(|id| !lender.lent.contains(id)));
                    lender.lent.extend(ids);
                    lender.rounds += 1;
                }
            }
        }
    }
}

#[test]
fn operations_ask_only_for_the_nodes_that_they_need() {
    let (mut shelf, root) = large_room(20_000);
    let (kind, key) = member(12_345);
    let (value, lender) = Lender::run(&shelf, |nodes| get(nodes, root, &kind, &key));
    assert_eq!(value, Some(ShortEventId(12_346)));
    assert!(lender.lent.len() < 10, "{} nodes for one key", lender.lent.len());

    let changed = shelf.apply(root, &BTreeMap::from([((kind, key), Some(ShortEventId(99_999)))]));
    let (found, lender) = Lender::run(&shelf, |nodes| diff(nodes, root, changed));
    assert_eq!(found.len(), 1);
    assert!(lender.lent.len() < 25, "{} nodes for one difference", lender.lent.len());

    let (page, lender) = Lender::run(&shelf, |nodes| range(nodes, root, Bound::Unbounded, None, 1000));
    assert_eq!(page.len(), 1000);
    assert!(lender.rounds < 30, "{} rounds for a page", lender.rounds);

    let (all, lender) = Lender::run(&shelf, |nodes| entries(nodes, root));
    assert_eq!(all, range(&shelf, root, Bound::Unbounded, None, usize::MAX).unwrap());
    assert!(lender.rounds < 10, "{} rounds for the whole state", lender.rounds);
}

#[test]
fn a_listing_of_one_type_leaves_the_others_out() {
    let mut shelf = Shelf::default();
    let keys = [("m.a", "1"), ("m.b", ""), ("m.b", "2"), ("m.c", "3")];
    let all = keys
        .iter()
        .zip(1..)
        .map(|((kind, key), n)| ((String::from(*kind), String::from(*key)), Some(ShortEventId(n))))
        .collect();
    let root = shelf.apply(StateRoot::default(), &all);
    let found = range(&shelf, root, Bound::Unbounded, Some("m.b"), 10).unwrap();
    assert_eq!(found.iter().map(|entry| entry.event.0).collect::<Vec<_>>(), [2, 3]);
    let after = range(&shelf, root, Bound::Excluded(("m.b", "")), Some("m.b"), 10).unwrap();
    assert_eq!(after.iter().map(|entry| entry.event.0).collect::<Vec<_>>(), [3]);
}

/// A new room's state, key by key, under many salts: each tree is cut elsewhere.
#[test]
fn every_salt_keeps_every_key() {
    let keys = [
        "m.room.create",
        "m.room.member",
        "m.room.power_levels",
        "m.room.canonical_alias",
        "m.room.join_rules",
    ];
    for salt in 0..3000 {
        let salt = Salt(salt);
        let (mut shelf, mut root) = (Shelf::default(), StateRoot::default());
        for (number, kind) in (1..).zip(keys.iter().chain(&["a", "b", "c", "d", "e", "f"])) {
            let key = ((*kind).to_owned(), String::new());
            let change = BTreeMap::from([(key, Some(ShortEventId(number)))]);
            let applied = apply(&shelf, root, salt, &change).unwrap();
            shelf.nodes.extend(applied.new_nodes);
            root = applied.root;
            assert_eq!(count(&shelf, root).unwrap(), number, "{salt:?}");
            assert_eq!(get(&shelf, root, kind, "").unwrap(), Some(ShortEventId(number)), "{salt:?}");
            assert_eq!(shelf.list(root).len() as u64, number, "{salt:?}");
        }
    }
}

/// A source that has nothing at first, and is given what an operation asks for, as a store is asked.
#[derive(Default)]
struct Cold {
    fetched: BTreeMap<NodeId, Arc<Node>>,
    trips: usize,
}

impl NodeSource for Cold {
    fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        self.fetched.get(&id).cloned()
    }
}

impl Cold {
    fn run<T>(&mut self, shelf: &Shelf, operation: impl Fn(&Self) -> Result<T, Missing>) -> T {
        loop {
            match operation(self) {
                Ok(value) => return value,
                Err(Missing(ids)) => {
                    assert!(!ids.is_empty() && ids.iter().all(|id| !self.fetched.contains_key(id)));
                    self.trips += 1;
                    self.fetched.extend(ids.into_iter().map(|id| (id, shelf.nodes[&id].clone())));
                }
            }
        }
    }
}

#[test]
fn cold_trees_are_changed_and_compared_with_a_trip_per_level() {
    let (mut shelf, root) = large_room(20_000);
    let height = usize::from(shelf.nodes[&root.0.unwrap()].level) + 1;
    // Spread over the whole room: one node per key would be hundreds of trips.
    let changes: BTreeMap<_, _> =
        (0..300).map(|n| (member(n * 61), Some(ShortEventId(1_000_000 + n)))).collect();
    let mut cold = Cold::default();
    let applied = cold.run(&shelf, |source| apply(source, root, Salt(0), &changes));
    // A node that grows past its end draws in its neighbour, which nobody could foresee.
    assert!(cold.trips <= height + 4, "{} trips to change a tree of {height} levels", cold.trips);
    let after = shelf.apply(root, &changes);
    assert_eq!(applied.root, after);
    let mut cold = Cold::default();
    let found = cold.run(&shelf, |source| diff(source, root, after));
    assert_eq!(found.len(), changes.len());
    assert!(cold.trips <= height + 1, "{} trips to compare trees of {height} levels", cold.trips);
    // What two states share is not even looked at.
    let one: BTreeMap<_, _> = [(member(7), Some(ShortEventId(9)))].into();
    let close = shelf.apply(root, &one);
    let mut cold = Cold::default();
    assert_eq!(cold.run(&shelf, |source| diff(source, root, close)).len(), 1);
    assert!(cold.fetched.len() <= 2 * (height + 1), "{} nodes for one difference", cold.fetched.len());
    let mut cold = Cold::default();
    assert_eq!(cold.run(&shelf, |source| diff(source, StateRoot::default(), root)).len(), 20_000);
    assert!(cold.trips <= height + 1, "{} trips to list a room", cold.trips);
}
