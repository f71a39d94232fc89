//! The scenarios of the load generator.

use std::time::Duration;

use anyhow::Result;
use futures_util::future::try_join_all;
use tokio::time::Instant;

use crate::{Client, Summary};

/// `senders` users send into one room, each its next message once the last is answered.
pub async fn one_room(base: &str, senders: usize, duration: Duration, run: &str) -> Result<Summary> {
    let users = register(base, senders, run).await?;
    let room = users[0].create_room("public_chat").await?;
    for user in &users[1..] {
        user.join(&room).await?;
    }
    let start = Instant::now();
    let end = start + duration;
    let tasks = users.into_iter().map(|user| tokio::spawn(send_until(user, room.clone(), end)));
    let mut total = Summary::new(format!("send, {senders} sender(s)"));
    for sent in try_join_all(tasks).await? {
        total.merge(&sent?);
    }
    total.set_elapsed(start.elapsed());
    Ok(total)
}

async fn send_until(user: Client, room: String, end: Instant) -> Result<Summary> {
    let mut summary = Summary::new("send");
    let mut count = 0_u64;
    while Instant::now() < end {
        let start = Instant::now();
        user.send(&room, &format!("m{count}"), "a message of a usual length, about sixty letters long")
            .await?;
        summary.record(start.elapsed());
        count += 1;
    }
    Ok(summary)
}

/// One user creates `rooms` rooms with a few messages each, then syncs from nothing `times` times.
pub async fn initial_sync(base: &str, rooms: usize, times: usize, run: &str) -> Result<(Summary, Summary)> {
    let user = Client::register(base, &format!("sync-{run}")).await?;
    let mut created = Summary::new(format!("create {rooms} rooms"));
    let start = Instant::now();
    for room in 0..rooms {
        let begin = Instant::now();
        let room_id = user.create_room("private_chat").await?;
        for message in 0..3 {
            user.send(&room_id, &format!("r{room}m{message}"), "hello").await?;
        }
        created.record(begin.elapsed());
    }
    created.set_elapsed(start.elapsed());
    let mut synced = Summary::new(format!("initial sync, {rooms} rooms"));
    let start = Instant::now();
    for _ in 0..times {
        let begin = Instant::now();
        user.sync("timeout=0").await?;
        synced.record(begin.elapsed());
    }
    synced.set_elapsed(start.elapsed());
    Ok((created, synced))
}

async fn register(base: &str, count: usize, run: &str) -> Result<Vec<Client>> {
    let mut users = Vec::with_capacity(count);
    for index in 0..count {
        users.push(Client::register(base, &format!("load-{run}-{index}")).await?);
    }
    Ok(users)
}
