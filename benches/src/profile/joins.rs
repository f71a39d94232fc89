//! Joins of local users.

use anyhow::Result;
use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use super::Context;
use crate::Measurement;

pub(super) async fn run(
    context: &Context,
    users: usize,
    at_a_time: usize,
    ready: &mut (dyn FnMut() + Send),
) -> Result<Vec<Measurement>> {
    let mut users = context.users("guest", users + 1).await?;
    let host = users.remove(0);
    let room = host.create_room("public_chat").await?;
    ready();
    let mut measured = Measurement::new(format!("join, {at_a_time} at a time"));
    context.progress.begin("joins");
    let joins = stream::iter(&users).map(async |user| {
        let start = Instant::now();
        (start, user.join(&room, None).await)
    });
    let mut joins = std::pin::pin!(joins.buffer_unordered(at_a_time.max(1)));
    while let Some((start, result)) = joins.next().await {
        measured.note(start, result);
        context.progress.step();
    }
    Ok(vec![measured])
}
