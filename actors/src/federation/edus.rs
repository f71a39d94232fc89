//! EDUs of other servers.
//!
//! Spec: server-server API, "EDUs".

use std::{collections::BTreeMap, time::Duration};

use ruma::{MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, ServerName};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    homeserver::Homeserver,
    room::{Receipt, RoomError},
};

/// How long a notice of another server's user lasts if it is not renewed.
const TYPING_FOR: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
struct Edu<'a> {
    edu_type: String,
    #[serde(borrow)]
    content: &'a RawValue,
}

#[derive(Deserialize)]
struct TypingEdu {
    room_id: OwnedRoomId,
    user_id: OwnedUserId,
    #[serde(rename = "typing")]
    is_typing: bool,
}

#[derive(Deserialize)]
struct RoomReceipts {
    #[serde(default, rename = "m.read")]
    read: BTreeMap<OwnedUserId, UserReceipt>,
}

#[derive(Deserialize)]
struct UserReceipt {
    event_ids: Vec<OwnedEventId>,
    data: ReceiptData,
}

#[derive(Deserialize)]
struct ReceiptData {
    ts: Option<MilliSecondsSinceUnixEpoch>,
    thread_id: Option<String>,
}

impl Homeserver {
    /// Takes in one EDU; one that cannot be used is left out, since its sender learns nothing of it anyway.
    pub async fn receive_edu(&self, origin: &ServerName, edu: &RawValue) {
        let Ok(edu) = serde_json::from_str::<Edu<'_>>(edu.get()) else { return };
        let result = match edu.edu_type.as_str() {
            "m.typing" => self.receive_typing(origin, edu.content).await,
            "m.receipt" => self.receive_receipts(origin, edu.content).await,
            _ => Ok(()),
        };
        if let Err(error) = result {
            tracing::debug!(%origin, edu_type = edu.edu_type, %error, "left out an EDU");
        }
    }

    async fn receive_typing(&self, origin: &ServerName, content: &RawValue) -> Result<(), RoomError> {
        let Ok(TypingEdu { room_id, user_id, is_typing }) = serde_json::from_str(content.get()) else {
            return Ok(());
        };
        if user_id.server_name() != origin {
            return Ok(());
        }
        let room = self.shared_room(origin, &room_id).await?;
        if !room.is_joined(&user_id).await? {
            return Ok(());
        }
        room.set_typing(user_id, is_typing.then_some(TYPING_FOR)).await
    }

    async fn receive_receipts(&self, origin: &ServerName, content: &RawValue) -> Result<(), RoomError> {
        let Ok(rooms) = serde_json::from_str::<BTreeMap<OwnedRoomId, RoomReceipts>>(content.get()) else {
            return Ok(());
        };
        for (room_id, RoomReceipts { read }) in rooms {
            let Ok(room) = self.shared_room(origin, &room_id).await else { continue };
            for (user_id, UserReceipt { event_ids, data }) in read {
                if user_id.server_name() != origin || !room.is_joined(&user_id).await? {
                    continue;
                }
                for event_id in event_ids {
                    let Some(index) = room.event(&event_id).await?.and_then(|event| event.index) else {
                        continue;
                    };
                    let receipt = Receipt {
                        user_id: user_id.clone(),
                        thread: data.thread_id.clone(),
                        event_id,
                        index,
                        ts: data.ts.unwrap_or_else(|| self.env().clock.now()),
                        position: engine::id::Position(0),
                    };
                    room.set_receipt(receipt).await?;
                }
            }
        }
        Ok(())
    }
}
