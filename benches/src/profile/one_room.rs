//! One busy room.

use std::sync::Arc;

use anyhow::Result;

use super::{Context, TEXT};
use crate::Measurement;

pub(super) async fn run(
    context: &Context,
    senders: usize,
    members: usize,
    ready: &mut (dyn FnMut() + Send),
) -> Result<Vec<Measurement>> {
    let users = context.users("sender", senders.max(1)).await?;
    let room: Arc<str> = users[0].create_room("public_chat").await?.into();
    context.all_join(&users[1..], &room).await?;
    let silent = context.users("member", members).await?;
    context.all_join(&silent, &room).await?;
    ready();
    let name = format!("send, {senders} sender(s), {} members", senders + members);
    let sent = context.repeat(&name, users, move |user, _, number| {
        let room = room.clone();
        async move { user.send(&room, &format!("m{number}"), TEXT).await }
    });
    Ok(vec![sent.await?])
}
