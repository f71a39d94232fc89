//! A `/sync` response, from the request to its JSON, over the memory store.

use std::{hint::black_box, sync::Arc, time::Duration};

use actors::{homeserver::Homeserver, sync::SyncRequest};
use anyhow::Result;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use engine::id::Position;
use ruma::OwnedRoomId;
use tokio::runtime::Runtime;

mod server;

use server::{alice, homeserver, say};

/// Messages in each room.
const MESSAGES: usize = 20;

async fn room(homeserver: &Homeserver) -> Result<OwnedRoomId> {
    let room_id = server::room(homeserver).await?;
    for number in 0..MESSAGES {
        say(homeserver, &room_id, number).await?;
    }
    Ok(room_id)
}

fn request(since: Option<Position>) -> SyncRequest {
    SyncRequest {
        user_id: alice(),
        device_id: "DEVICE".into(),
        inbox_since: None,
        takes_messages: true,
        since,
        filter: Arc::default(),
        full_state: false,
        use_state_after: false,
        timeout: Duration::ZERO,
    }
}

async fn response(homeserver: &Homeserver, request: &SyncRequest) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(&homeserver.sync(request).await?)?)
}

fn sync(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let mut group = criterion.benchmark_group("sync");
    group.sample_size(20);
    for rooms in [1, 10, 100] {
        let (homeserver, since) = runtime.block_on(async {
            let homeserver = homeserver().await.expect("a server");
            let mut last = None;
            for _ in 0..rooms {
                last = Some(room(&homeserver).await.expect("a room"));
            }
            let before = homeserver.sync(&request(None)).await.expect("a response");
            let since = before.next_batch.strip_prefix('s').and_then(|token| token.split('_').next());
            let since = Position(since.and_then(|number| number.parse().ok()).expect("a sync token"));
            say(&homeserver, &last.expect("there is a room"), 0).await.expect("a message");
            (homeserver, since)
        });
        for (name, since) in [("initial", None), ("one message", Some(since))] {
            let request = request(since);
            group.bench_function(BenchmarkId::new(name, rooms), |bencher| {
                bencher.to_async(&runtime).iter(|| response(&homeserver, black_box(&request)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, sync);
criterion_main!(benches);
