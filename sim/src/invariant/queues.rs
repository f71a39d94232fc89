//! After healing all durable queues run empty.

use anyhow::Result;

use crate::world::{World, queues};

pub(super) async fn drained(world: &World) -> Result<Option<String>> {
    for (name, boot) in world.boots() {
        for (what, rows) in queues(&boot).await? {
            if rows > 0 {
                return Ok(Some(format!("{name} still has {rows} rows in {what}")));
            }
        }
    }
    Ok(None)
}
