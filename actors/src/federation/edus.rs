//! EDUs of other servers.
//!
//! Spec: server-server API, "EDUs".

use std::{collections::BTreeMap, time::Duration};

use ruma::{EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, ServerName};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::{
    homeserver::Homeserver,
    room::{Receipt, RoomError, RoomHandle, StoredEvent},
    session::SessionError,
};

/// How long a notice of another server's user lasts if it is not renewed.
const TYPING_FOR: Duration = Duration::from_secs(60);

/// Bytes of a thread's name, at most: of an event ID.
const THREAD_MAX: usize = 255;

/// Events of one receipt that are looked at: the specification has one, which was once the tips of a room.
const RECEIPT_EVENTS_MAX: usize = 10;

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

impl Edu<'_> {
    fn read<T: DeserializeOwned>(&self) -> Result<T, EduError> {
        Ok(serde_json::from_str(self.content.get())?)
    }
}

/// Why an EDU was not taken in.
#[derive(Debug, thiserror::Error)]
enum EduError {
    /// It is not what its type says.
    #[error("unusable: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Its room does not take it.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// It must not be lost, and could not be stored.
    #[error(transparent)]
    Lost(#[from] SessionError),
}

impl Homeserver {
    /// Takes in the EDUs of a transaction, one after the other.
    ///
    /// What cannot be used is left out, since its sender learns nothing of it anyway. After an error the transaction is
    /// to be sent again: something that must not be lost could not be stored.
    pub async fn receive_edus(
        &self,
        origin: &ServerName,
        edus: Vec<Box<RawValue>>,
    ) -> Result<(), SessionError> {
        let Some(federation) = self.federation() else { return Ok(()) };
        // Messages of one server stay in order, and one that is sent twice at a time is seen to be the same.
        let turns = federation.inbound.origin(origin);
        let _turn = turns.edus.lock().await;
        for edu in edus {
            let Ok(edu) = serde_json::from_str::<Edu<'_>>(edu.get()) else { continue };
            match self.receive_edu(origin, &edu).await {
                Ok(()) => {}
                Err(EduError::Lost(error)) => return Err(error),
                Err(error) => {
                    tracing::debug!(%origin, edu_type = edu.edu_type, %error, "left out an EDU");
                }
            }
        }
        Ok(())
    }

    async fn receive_edu(&self, origin: &ServerName, edu: &Edu<'_>) -> Result<(), EduError> {
        match edu.edu_type.as_str() {
            "m.typing" => Ok(self.receive_typing(origin, edu.content).await?),
            "m.receipt" => Ok(self.receive_receipts(origin, edu.content).await?),
            "m.presence" => Ok(self.receive_presence(origin, edu.read()?).await?),
            "m.direct_to_device" => Ok(self.receive_to_device(origin, edu.read()?).await?),
            "m.device_list_update" => Ok(self.receive_device_list_update(origin, edu.read()?).await?),
            "m.signing_key_update" => Ok(self.receive_signing_key_update(origin, edu.read()?).await?),
            _ => Ok(()),
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
                for event_id in event_ids.into_iter().take(RECEIPT_EVENTS_MAX) {
                    let event = room.event(&event_id).await?;
                    if !is_of_thread(&room, event.as_deref(), data.thread_id.as_deref()).await? {
                        continue;
                    }
                    let index = event.and_then(|event| event.index);
                    let receipt = Receipt {
                        user_id: user_id.clone(),
                        thread: data.thread_id.clone(),
                        event_id,
                        index: index.unwrap_or_default(),
                        ts: data.ts.unwrap_or_else(|| self.env().clock.now()),
                        position: engine::id::Position(0),
                    };
                    match index {
                        Some(_) => room.set_receipt(receipt).await?,
                        None => room.set_early_receipt(receipt)?,
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether a receipt is for the whole room, or for a thread that its event is in, as far as the event is known.
///
/// Spec: client-server API, "Threaded read receipts"; what clients may not do, other servers' users may not either.
async fn is_of_thread(
    room: &RoomHandle,
    event: Option<&StoredEvent>,
    thread: Option<&str>,
) -> Result<bool, RoomError> {
    let Some(thread) = thread else { return Ok(true) };
    let is_name = thread == "main" || thread.len() <= THREAD_MAX && <&EventId>::try_from(thread).is_ok();
    match event {
        Some(event) if is_name => room.is_in_thread(event, thread).await,
        _ => Ok(is_name),
    }
}
