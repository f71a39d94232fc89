//! `/sync` of a user with many rooms.

use anyhow::Result;
use tokio::time::Instant;

use super::{Context, TEXT};
use crate::{Measurement, client::next_batch};

pub(super) async fn initial(
    context: &Context,
    rooms: usize,
    ready: &mut (dyn FnMut() + Send),
) -> Result<Vec<Measurement>> {
    let mut users = context.users("reader", 1).await?;
    context.rooms(&users[0], rooms).await?;
    // The first one brings the rooms into memory, whoever created them.
    users[0].sync("timeout=0").await?;
    ready();
    let user = users.remove(0);
    let name = format!("initial sync, {rooms} rooms");
    let synced = context
        .repeat(&name, vec![user], |user, _, _| async move { user.sync("timeout=0").await.map(drop) })
        .await?;
    Ok(vec![synced])
}

pub(super) async fn incremental(
    context: &Context,
    rooms: usize,
    changed: usize,
    ready: &mut (dyn FnMut() + Send),
) -> Result<Vec<Measurement>> {
    let mut users = context.users("reader", 1).await?;
    let reader = users.remove(0);
    let ids = context.rooms(&reader, rooms).await?;
    let mut since = reader.sync_token().await?;
    ready();
    let name = format!("incremental sync, {changed} of {rooms} rooms");
    context.progress.begin(name.clone());
    let (mut measured, mut schedule) = (Measurement::new(name), context.schedule(0, 1));
    let mut number = 0;
    while schedule.next().await.is_some() {
        for _ in 0..changed {
            reader.send(&ids[number % ids.len()], &format!("n{number}"), TEXT).await?;
            number += 1;
        }
        let start = Instant::now();
        let answered = reader.sync(&format!("since={since}&timeout=0")).await;
        if let Some(body) = measured.note(start, answered) {
            since = next_batch(&body)?;
        }
        context.progress.step();
    }
    Ok(vec![measured])
}
