//! What a response holds besides rooms.

use engine::id::{Position, TimelineIndex};
use serde_json::value::RawValue;

use super::{Known, SlidingResponse, Turn, list::Matched, request::PerRoom};
use crate::{
    room::{Receipt, RoomHandle},
    sync::{
        ephemeral::{READ, READ_PRIVATE, receipt_event, typing_event},
        typed,
    },
};

/// Receipts of others that come with a room that is new to the client.
const RECEIPTS_MAX: usize = 100;

impl Turn<'_> {
    /// Adds what the request wants besides rooms.
    pub(super) async fn extend(&self, response: &mut SlidingResponse, matched: &[Matched], known: &Known) {
        let wanted = &self.request.body.extensions;
        let data = self.session.data();
        if wanted.account_data.is_enabled() {
            let global = data.account_data_since(None, self.since().unwrap_or_default());
            response.extensions.account_data.global =
                global.map(|(kind, content)| typed(kind, content)).collect();
        }
        for room in matched {
            let Some(since) = known.get(&room.entry.room) else { continue };
            if since.is_some_and(|since| room.entry.latest <= since) {
                continue;
            }
            // Who joins a room has seen nothing of it.
            let joined = Position::from(room.entry.since);
            let since = since.filter(|since| joined <= *since).unwrap_or_default();
            if applies(&wanted.account_data, room) {
                let own = data.account_data_since(Some(&room.room_id), since);
                let own: Vec<_> = own.map(|(kind, content)| typed(kind, content)).collect();
                if !own.is_empty() {
                    response.extensions.account_data.rooms.insert(room.room_id.clone(), own);
                }
            }
            let (wants_receipts, wants_typing) =
                (applies(&wanted.receipts, room), applies(&wanted.typing, room));
            if !(wants_receipts || wants_typing) || !room.entry.is_joined() {
                continue;
            }
            let Ok(handle) = self.homeserver.room(&room.room_id).await else { continue };
            if wants_receipts && let Some(event) = self.receipts(&handle, since) {
                response.extensions.receipts.rooms.insert(room.room_id.clone(), event);
            }
            let ignored = self.session.view().ignored();
            if wants_typing && let Some(event) = typing_event(&handle.typing(), since, &ignored) {
                response.extensions.typing.rooms.insert(room.room_id.clone(), event);
            }
        }
    }

    /// The receipts since a position; at first the user's own, and others' newest ones.
    fn receipts(&self, room: &RoomHandle, since: Position) -> Option<Box<RawValue>> {
        let me = self.session.user_id();
        let public = room.receipts();
        let ignored = self.session.view().ignored();
        let told = public.since(since).filter(|receipt| !ignored.contains(&receipt.user_id));
        let mut all: Vec<(&str, &Receipt)> = told.map(|receipt| (READ, receipt)).collect();
        if since == Position(0) && all.len() > RECEIPTS_MAX {
            all.sort_by_key(|(_, receipt)| (receipt.user_id != *me, std::cmp::Reverse(receipt.index)));
            let least = all.get(RECEIPTS_MAX).map_or(TimelineIndex(0), |(_, receipt)| receipt.index);
            all.retain(|(_, receipt)| receipt.user_id == *me || receipt.index > least);
        }
        let private = self.session.private_receipts(&room.snapshot().room_id, since);
        all.extend(private.iter().map(|receipt| (READ_PRIVATE, receipt)));
        receipt_event(all.into_iter())
    }
}

/// Whether an extension is wanted for a room.
fn applies(wanted: &PerRoom, room: &Matched) -> bool {
    let in_lists = match &wanted.lists {
        None => !room.lists.is_empty(),
        Some(names) => room.lists.iter().any(|list| names.iter().any(|name| name == "*" || name == list)),
    };
    let by_id = match &wanted.rooms {
        None => room.is_subscribed,
        Some(rooms) => {
            rooms.iter().any(|wanted| (wanted == "*" && room.is_subscribed) || *wanted == room.room_id)
        }
    };
    wanted.is_enabled() && (in_lists || by_id)
}
