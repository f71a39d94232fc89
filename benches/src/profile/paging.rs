//! Paging back through a room.

use std::sync::Arc;

use anyhow::Result;
use http::Method;
use parking_lot::Mutex;

use super::Context;
use crate::{Measurement, client};

pub(super) async fn run(
    context: &Context,
    readers: usize,
    messages: usize,
    page: usize,
    ready: &mut (dyn FnMut() + Send),
) -> Result<Vec<Measurement>> {
    let users = context.users("reader", readers.max(1)).await?;
    let room = users[0].create_room("public_chat").await?;
    context.all_join(&users[1..], &room).await?;
    context.progress.begin(format!("sending {messages} messages"));
    for number in 0..messages {
        users[0].send(&room, &format!("m{number}"), super::TEXT).await?;
        context.progress.step();
    }
    ready();
    // Where each reader goes on; at the beginning of the room they start over.
    let places: Arc<[Mutex<String>]> = users.iter().map(|_| Mutex::default()).collect();
    let path: Arc<str> = format!("{}/messages?dir=b&limit={page}", client::room(&room)).into();
    let name = format!("page of {page} events");
    let measured = context.repeat(&name, users, move |user, index, _| {
        let (places, path) = (places.clone(), path.clone());
        async move {
            let from = places[index].lock().clone();
            let answer = user.call(Method::GET, &format!("{path}{from}"), None).await?;
            let end = answer["end"].as_str();
            *places[index].lock() = end.map_or_else(String::new, |end| format!("&from={end}"));
            Ok(())
        }
    });
    Ok(vec![measured.await?])
}
