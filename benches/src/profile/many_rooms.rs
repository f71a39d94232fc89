//! Many rooms, each with a sender.

use std::sync::Arc;

use anyhow::Result;

use super::{Context, TEXT};
use crate::Measurement;

pub(super) async fn run(
    context: &Context,
    rooms: usize,
    ready: &mut (dyn FnMut() + Send),
) -> Result<Vec<Measurement>> {
    let users = context.users("owner", rooms).await?;
    let mut ids = Vec::with_capacity(rooms);
    for user in &users {
        ids.push(user.create_room("private_chat").await?);
    }
    let ids: Arc<[String]> = ids.into();
    ready();
    let name = format!("send, {rooms} rooms");
    let sent = context.repeat(&name, users, move |user, index, number| {
        let ids = ids.clone();
        async move { user.send(&ids[index], &format!("m{number}"), TEXT).await }
    });
    Ok(vec![sent.await?])
}
