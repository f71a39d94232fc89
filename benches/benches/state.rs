//! The state tree: what a change and a comparison cost in small and in large rooms.

use std::{collections::BTreeMap, hint::black_box, sync::Arc};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use engine::{
    id::ShortEventId,
    state::{self, Node, NodeId, NodeSource, Salt, StateRoot},
};

const SALT: Salt = Salt(1);

#[derive(Default)]
struct Shelf(BTreeMap<NodeId, Arc<Node>>);

impl NodeSource for Shelf {
    fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        self.0.get(&id).cloned()
    }
}

type Changes = BTreeMap<(String, String), Option<ShortEventId>>;

fn member(number: u64) -> (String, String) {
    ("m.room.member".to_owned(), format!("@user-{number:06}:server-{}.example.org", number % 97))
}

fn change(number: u64) -> Changes {
    BTreeMap::from([(member(number), Some(ShortEventId(1_000_000 + number)))])
}

impl Shelf {
    fn apply(&mut self, root: StateRoot, changes: &Changes) -> StateRoot {
        let applied = state::apply(self, root, SALT, changes).expect("all nodes are here");
        self.0.extend(applied.new_nodes);
        applied.root
    }

    fn room(members: u64) -> (Self, StateRoot) {
        let mut shelf = Self::default();
        let all = (0..members).map(|number| (member(number), Some(ShortEventId(number + 1)))).collect();
        let root = shelf.apply(StateRoot::default(), &all);
        (shelf, root)
    }
}

fn state(criterion: &mut Criterion) {
    for members in [100, 10_000, 1_000_000] {
        let (mut shelf, root) = Shelf::room(members);
        let changed = shelf.apply(root, &change(members / 2));
        let mut group = criterion.benchmark_group("state");
        group.bench_function(BenchmarkId::new("insert", members), |bencher| {
            let newcomer = change(members);
            bencher.iter(|| state::apply(&shelf, root, SALT, black_box(&newcomer)));
        });
        group.bench_function(BenchmarkId::new("apply", members), |bencher| {
            let change = change(members / 3);
            bencher.iter(|| state::apply(&shelf, root, SALT, black_box(&change)));
        });
        group.bench_function(BenchmarkId::new("diff", members), |bencher| {
            bencher.iter(|| state::diff(&shelf, black_box(root), black_box(changed)));
        });
        group.bench_function(BenchmarkId::new("get", members), |bencher| {
            let (kind, key) = member(members / 3);
            bencher.iter(|| state::get(&shelf, root, black_box(&kind), black_box(&key)));
        });
        group.finish();
    }
}

criterion_group!(benches, state);
criterion_main!(benches);
