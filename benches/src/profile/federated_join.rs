//! Joins of rooms on another homeserver.

use anyhow::{Context as _, Result};
use tokio::time::Instant;

use super::{Context, TEXT};
use crate::Measurement;

pub(super) async fn run(
    context: &Context,
    members: usize,
    rooms: usize,
    ready: &mut (dyn FnMut() + Send),
) -> Result<Vec<Measurement>> {
    let other = context.other.as_ref().context("this profile needs --other-url")?;
    let users = context.users("member", members.max(1)).await?;
    let mut ids = Vec::with_capacity(rooms);
    for _ in 0..rooms {
        let room = users[0].create_room("public_chat").await?;
        context.all_join(&users[1..], &room).await?;
        ids.push(room);
    }
    let strangers = other.many("stranger", rooms).await?;
    ready();
    let mut joined = Measurement::new(format!("join of a remote room with {members} members"));
    let mut usable = Measurement::new("until the first message is sent");
    context.progress.begin("joins");
    for (number, (stranger, room)) in strangers.iter().zip(&ids).enumerate() {
        let start = Instant::now();
        joined.note(start, stranger.join(room, Some(users[0].server_name())).await);
        usable.note(start, stranger.send(room, &format!("m{number}"), TEXT).await);
        context.progress.step();
    }
    Ok(vec![joined, usable])
}
