//! What the server itself has to say: one room per user, in which a user of the server's own speaks.
//!
//! Spec: client-server API, "Server Notices".

use std::sync::Arc;

use engine::{
    pdu::Draft,
    room::create::{InitialState, NewRoom, Preset},
};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, UserId};
use serde_json::{Map, json, value::to_raw_value};
use storage::{
    Batch, CommitError, StoreError,
    schema::{self, AccountRecord},
};

use crate::{
    homeserver::Homeserver,
    room::{RoomError, RoomHandle, Send, membership_of},
    session::{NewAccount, SessionChange, SessionError},
};

/// The tag of the room.
const TAG: &str = "m.server_notice";

/// The type of a notice that a person wrote.
const TYPE: &str = "dev.ganglion.announcement";

/// The level that sending takes: all but the server's own user lack it.
const LEVEL_TO_SEND: u32 = 50;

/// Who speaks in the rooms for notices, and what they look like.
#[derive(Clone, Debug)]
pub struct NoticeConfig {
    /// The name of the server's own user, the part of the user ID before the colon.
    pub user: String,
    /// The display name of that user.
    pub display_name: String,
    /// The avatar of that user, an `mxc://` URI.
    pub avatar_url: Option<String>,
    /// The name of the rooms.
    pub room_name: String,
}

/// Why a notice was not sent.
#[derive(Debug, thiserror::Error)]
pub enum NoticeError {
    /// The configuration names no user of the server's own.
    #[error("server notices are off: set server_notices.user")]
    Off,
    /// There is no such user, or nobody can log in as them any more.
    #[error("there is no such active user")]
    NoUser,
    /// An account cannot be read or changed.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The room does not take it.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What was to be noted is not durable.
    #[error("could not store: {0}")]
    Commit(CommitError),
}

impl Homeserver {
    /// The user of the server's own who sends notices, if there is one.
    pub fn notice_sender(&self) -> Option<OwnedUserId> {
        let config = self.conversation().notices.as_ref()?;
        UserId::parse_with_server_name(config.user.as_str(), self.server_name()).ok()
    }

    /// Sends a notice to a local user, in the room that is there for it.
    pub async fn send_notice(&self, user: &UserId, body: &str) -> Result<OwnedEventId, NoticeError> {
        let config = self.conversation().notices.clone().ok_or(NoticeError::Off)?;
        let sender = self.notice_sender().ok_or(NoticeError::Off)?;
        let account: Option<AccountRecord> = self.storage().get(&schema::ACCOUNTS, user).await?;
        if user == sender || account.is_none_or(|account| account.is_deactivated) {
            return Err(NoticeError::NoUser);
        }
        self.prepare_sender(&sender, &config).await?;
        let room = self.notice_room(user, &sender, &config).await?;
        self.tag_notices(user, &room).await?;
        self.invite_to_notices(&room, user, &sender).await?;
        let content = json!({ "msgtype": "m.server_notice", "server_notice_type": TYPE, "body": body });
        let draft = Draft {
            kind: "m.room.message".into(),
            state_key: None,
            content: to_raw_value(&content).map_err(|error| RoomError::Invalid(error.to_string()))?,
            redacts: None,
            dated: None,
        };
        Ok(room.send(Send { sender, draft, sent_by: None }).await?)
    }

    /// Makes sure that the sender exists and looks as configured.
    async fn prepare_sender(&self, sender: &UserId, config: &NoticeConfig) -> Result<(), NoticeError> {
        let new =
            NewAccount { user_id: sender.to_owned(), password_hash: None, is_guest: false, is_admin: false };
        let session = match self.register(new).await {
            Err(SessionError::UserInUse) => self.session(sender).await?,
            session => session?,
        };
        let wanted =
            [("displayname", Some(config.display_name.clone())), ("avatar_url", config.avatar_url.clone())];
        for (name, value) in wanted {
            if session.data().profile().text(name) != value {
                let value = value.and_then(|value| to_raw_value(&value).ok()).map(Arc::from);
                session.change(SessionChange::SetProfileField(name.to_owned(), value)).await?;
            }
        }
        Ok(())
    }

    /// The room for a user's notices; a new one if there is none.
    async fn notice_room(
        &self,
        user: &UserId,
        sender: &UserId,
        config: &NoticeConfig,
    ) -> Result<RoomHandle, NoticeError> {
        let known: Option<OwnedRoomId> = self.storage().get(&schema::NOTICE_ROOMS, user).await?;
        if let Some(room_id) = known {
            let room = self.room(&room_id).await?;
            if room.is_joined(sender).await? {
                return Ok(room);
            }
        }
        let room_id = self.create_notice_room(sender, config).await?;
        // Noted before the invite: if the server ends in between, nobody has seen the room.
        let known: Option<OwnedRoomId> = self.storage().get(&schema::NOTICE_ROOMS, user).await?;
        let mut batch = Batch::new();
        match &known {
            Some(former) => batch.expect(&schema::NOTICE_ROOMS, user, former),
            None => batch.expect_absent(&schema::NOTICE_ROOMS, user),
        };
        batch.put(&schema::NOTICE_ROOMS, user, &room_id);
        self.storage().commit(batch).await.map_err(NoticeError::Commit)?;
        Ok(self.room(&room_id).await?)
    }

    /// Gives the room its tag, unless it has it: the server may have ended, or the user taken it away, since the room was made.
    async fn tag_notices(&self, user: &UserId, room: &RoomHandle) -> Result<(), NoticeError> {
        let (session, room_id) = (self.session(user).await?, room.snapshot().room_id.clone());
        if session.tags(&room_id).contains_key(TAG) {
            return Ok(());
        }
        let info = to_raw_value(&Map::new()).map_err(|error| RoomError::Invalid(error.to_string()))?;
        session.change(SessionChange::SetTag(room_id, TAG.to_owned(), info.into())).await?;
        Ok(())
    }

    async fn create_notice_room(
        &self,
        sender: &UserId,
        config: &NoticeConfig,
    ) -> Result<OwnedRoomId, NoticeError> {
        let guests = InitialState {
            kind: "m.room.guest_access".to_owned(),
            state_key: String::new(),
            content: to_raw_value(&json!({ "guest_access": "forbidden" }))
                .map_err(|error| RoomError::Invalid(error.to_string()))?,
        };
        let version = self.default_room_version().clone();
        let new = NewRoom {
            creator_profile: self.member_content(sender).await?,
            creation_content: Map::from_iter([("m.federate".to_owned(), false.into())]),
            power_levels: Map::from_iter([
                ("events_default".to_owned(), LEVEL_TO_SEND.into()),
                ("invite".to_owned(), LEVEL_TO_SEND.into()),
            ]),
            initial_state: vec![guests],
            name: Some(config.room_name.clone()),
            ..NewRoom::new(version, sender.to_owned(), Preset::PrivateChat)
        };
        Ok(self.create_room(new, Vec::new(), false).await?)
    }

    /// Invites the user, unless they are there.
    async fn invite_to_notices(
        &self,
        room: &RoomHandle,
        user: &UserId,
        sender: &UserId,
    ) -> Result<(), NoticeError> {
        let member = room.current("m.room.member", user.as_str()).await?;
        let present = member.map(|event| membership_of(&event.pdu)).unwrap_or_default();
        if ["join", "invite"].contains(&present.as_str()) {
            return Ok(());
        }
        let content = self.member_content(user).await?;
        room.change_membership(Self::invite(sender.to_owned(), user.to_owned(), content)).await?;
        Ok(())
    }
}
