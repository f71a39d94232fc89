//! The room actor, over the memory store: a message from the call to its event ID, a bare round trip, and publishing a snapshot.

use std::{hint::black_box, sync::Arc};

use actors::{
    homeserver::Homeserver,
    room::{MembershipAction, MembershipChange, RoomHandle, RoomSnapshot},
};
use anyhow::Result;
use arc_swap::ArcSwap;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ruma::{OwnedRoomId, UserId};
use serde_json::Map;
use tokio::runtime::Runtime;

mod server;

use server::{alice, homeserver, register, room, say};

/// A server with a room of so many local members.
async fn crowd(members: usize) -> Result<(Homeserver, OwnedRoomId)> {
    let homeserver = homeserver().await?;
    let room_id = room(&homeserver).await?;
    for number in 1..members {
        let user = UserId::parse(format!("@user-{number}:example.org"))?;
        register(&homeserver, user.clone()).await?;
        let change = MembershipChange {
            sender: user.clone(),
            target: user,
            action: MembershipAction::Join { meets_allow_rule: None },
            content: Map::new(),
        };
        homeserver.room(&room_id).await?.change_membership(change).await?;
    }
    Ok((homeserver, room_id))
}

/// What the actor does to show a new event: changes a copy, and puts it in the place of the last one.
fn publish(published: &ArcSwap<RoomSnapshot>) {
    let mut snapshot = RoomSnapshot::clone(&published.load());
    let newest = snapshot.head.recent.last().expect("a room begins with events").clone();
    snapshot.head.push_recent(newest);
    published.store(Arc::new(snapshot));
}

async fn round_trip(room: &RoomHandle) {
    room.set_typing(alice(), None).await.expect("the actor answers");
}

fn actor(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let mut group = criterion.benchmark_group("room");
    group.sample_size(20);
    for members in [1, 1_000] {
        let (homeserver, room_id) = runtime.block_on(crowd(members)).expect("a server");
        let room = runtime.block_on(homeserver.room(&room_id)).expect("the room is here");
        group.bench_function(BenchmarkId::new("message", members), |bencher| {
            bencher.to_async(&runtime).iter(|| say(&homeserver, black_box(&room_id), 0));
        });
        group.bench_function(BenchmarkId::new("round trip", members), |bencher| {
            bencher.to_async(&runtime).iter(|| round_trip(black_box(&room)));
        });
        let published = ArcSwap::new(room.snapshot());
        group.bench_function(BenchmarkId::new("publish", members), |bencher| {
            bencher.iter(|| publish(black_box(&published)));
        });
    }
    group.finish();
}

criterion_group!(benches, actor);
criterion_main!(benches);
