//! Simplified sliding sync of a user with many rooms.

use anyhow::Result;
use http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Context, TEXT};
use crate::{Client, Measurement, client::text};

const PATH: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout=0";

pub(super) async fn run(
    context: &Context,
    rooms: usize,
    window: usize,
    ready: &mut (dyn FnMut() + Send),
) -> Result<Vec<Measurement>> {
    let mut users = context.users("reader", 1).await?;
    let user = users.remove(0);
    let ids = context.rooms(&user, rooms).await?;
    ready();
    let mut first = Measurement::new(format!("sliding sync, first, {window} of {rooms} rooms"));
    let mut next = Measurement::new("sliding sync, after a message");
    context.progress.begin("sliding sync");
    let mut schedule = context.schedule(0, 1);
    let mut number = 0;
    while let Some(due) = schedule.next().await {
        let connection = format!("c{number}");
        let Some(answer) = first.note(due, ask(&user, &connection, window, None).await) else { continue };
        let pos = text(&answer, "pos")?;
        user.send(&ids[number % ids.len()], &format!("n{number}"), TEXT).await?;
        let start = Instant::now();
        next.note(start, ask(&user, &connection, window, Some(&pos)).await);
        context.progress.step();
        number += 1;
    }
    Ok(vec![first, next])
}

async fn ask(user: &Client, connection: &str, window: usize, pos: Option<&str>) -> Result<Value> {
    let body = json!({
        "conn_id": connection,
        "lists": { "all": {
            "ranges": [[0, window.saturating_sub(1)]],
            "timeline_limit": 1,
            "required_state": [["m.room.name", ""], ["m.room.member", "$ME"]],
        } },
        "extensions": { "receipts": { "enabled": true }, "typing": { "enabled": true } },
    });
    let pos = pos.map_or_else(String::new, |pos| format!("&pos={pos}"));
    user.call(Method::POST, &format!("{PATH}{pos}"), Some(&body)).await
}
