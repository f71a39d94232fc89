//! What changes of accounts and rooms have yet to bring about in rooms, and survives a crash.
//!
//! The change itself stores a row of `EFFECTS` in its batch. Whoever has brought the effect about deletes the row,
//! unless it was asked for again meanwhile; what is left is taken up again (`resume.rs`).

use std::sync::Arc;

use engine::{id::Position, pdu::Draft};
use ruma::{OwnedRoomId, RoomId, UserId};
use storage::{Batch, CommitError, Direction, KeyRange, StoreError, schema};
use tokio::sync::mpsc;

use crate::{
    background::outlive_panics,
    homeserver::{Homeserver, WeakHomeserver},
    room::{
        MembershipAction, MembershipChange, RoomError, RoomHandle, StoredEvent, content_string, membership_of,
    },
    session::own_membership,
};

/// An effect that is yet to come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// A user's rooms are to be told of the profile.
    Profile,
    /// A deactivated user is to leave all rooms.
    Departure,
    /// Guests are to leave a room.
    Guests,
    /// A room is to be told that another one replaces it.
    Upgrade,
}

impl Effect {
    /// The key of its row, which it shares with nobody else's.
    pub(crate) fn key(self, subject: &str) -> (String, String) {
        let kind = match self {
            Self::Profile => "profile",
            Self::Departure => "departure",
            Self::Guests => "guests",
            Self::Upgrade => "upgrade",
        };
        (kind.to_owned(), subject.to_owned())
    }
}

/// Whether an error may be gone the next time, so that the effect is not given up.
pub(crate) fn may_pass(error: &RoomError) -> bool {
    matches!(
        error,
        RoomError::Busy { .. }
            | RoomError::Read(_)
            | RoomError::Commit(_)
            | RoomError::Crashed
            | RoomError::TimedOut
            | RoomError::Activate(_)
            | RoomError::Remote(_)
            | RoomError::Policy(_)
    )
}

impl Homeserver {
    /// Takes up, in the background, what was asked for up to a position and has not come about; answers how much that is.
    pub(crate) async fn resume_effects(&self, upto: Position) -> Result<usize, StoreError> {
        let all = KeyRange::all();
        let mut rows = self.storage().range(&schema::EFFECTS, all, Direction::Ascending, usize::MAX).await?;
        rows.retain(|(_, asked)| *asked <= upto);
        let count = rows.len();
        for ((kind, subject), _) in rows {
            if kind == "upgrade" {
                self.resume_upgrade(&subject);
                continue;
            }
            if kind == "guests" {
                match OwnedRoomId::try_from(subject) {
                    Ok(room_id) => self.remove_guests(room_id),
                    Err(error) => tracing::error!(%error, "an effect names no room"),
                }
                continue;
            }
            let session = match <&UserId>::try_from(subject.as_str()) {
                Ok(user_id) => self.session(user_id).await,
                Err(error) => {
                    tracing::error!(%error, "an effect names no user");
                    continue;
                }
            };
            match (kind.as_str(), session) {
                ("profile", Ok(session)) => self.tell_rooms_of_profile(&session),
                ("departure", Ok(session)) => self.leave_all_rooms(session),
                (_, Ok(_)) => tracing::error!(kind, "an effect is of no known kind"),
                (_, Err(error)) => tracing::error!(user.id = subject, %error, "an effect is left for later"),
            }
        }
        Ok(count)
    }

    /// When an effect was last asked for, if it has not come about.
    pub(crate) async fn effect_due(&self, effect: Effect, subject: &str) -> Option<Position> {
        let row = self.storage().get(&schema::EFFECTS, &effect.key(subject)).await;
        row.unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read which effects are due");
            None
        })
    }

    /// Notes that an effect has come about as it was asked for at a position.
    pub(crate) async fn effect_done(&self, effect: Effect, subject: &str, asked: Option<Position>) {
        let Some(asked) = asked else { return };
        let key = effect.key(subject);
        let mut batch = Batch::new();
        batch.expect(&schema::EFFECTS, &key, &asked).delete(&schema::EFFECTS, &key);
        match self.storage().commit(batch).await {
            // Asked for again meanwhile: it is not done.
            Ok(()) | Err(CommitError::Refused(_)) => {}
            Err(error) => tracing::error!(%error, "an effect will come about again"),
        }
    }

    /// Takes guests out of a room that lets none in any more, in the background.
    ///
    /// Spec: client-server API, "Guest Access", server behaviour.
    pub(crate) fn remove_guests(&self, room_id: OwnedRoomId) {
        let homeserver = self.clone();
        self.session_shared().spawn(async move {
            let asked = homeserver.effect_due(Effect::Guests, room_id.as_str()).await;
            match homeserver.remove_guests_once(&room_id).await {
                Err(error) if may_pass(&error) => {
                    tracing::error!(room.id = %room_id, %error, "guests are still in a room that lets none in");
                }
                Err(error) => {
                    tracing::warn!(room.id = %room_id, %error, "guests were not taken out of a room");
                    homeserver.effect_done(Effect::Guests, room_id.as_str(), asked).await;
                }
                Ok(()) => homeserver.effect_done(Effect::Guests, room_id.as_str(), asked).await,
            }
        });
    }

    async fn remove_guests_once(&self, room_id: &RoomId) -> Result<(), RoomError> {
        let room = self.room(room_id).await?;
        if room.admits_guests().await? {
            return Ok(());
        }
        for member in room.state(room.snapshot().head.root, Some("m.room.member")).await? {
            let user = member.pdu.state_key().and_then(|user| UserId::parse(user).ok());
            let Some(user) = user.filter(|user| user.server_name() == self.server_name()) else { continue };
            if membership_of(&member.pdu) != "join" {
                continue;
            }
            let account = self.storage().get(&schema::ACCOUNTS, &user).await.map_err(RoomError::from)?;
            if account.is_some_and(|account| account.is_guest) {
                let action = MembershipAction::Leave;
                let content = serde_json::Map::new();
                let leave = MembershipChange { sender: user.clone(), target: user, action, content };
                room.change_membership(leave).await?;
            }
        }
        Ok(())
    }
}

/// Takes guests out of rooms that close to them, as long as the server lives.
pub(crate) async fn follow_guest_access(
    server: WeakHomeserver,
    closed: mpsc::UnboundedReceiver<OwnedRoomId>,
) {
    // Locked by one run after the other.
    let closed = tokio::sync::Mutex::new(closed);
    outlive_panics("the removal of guests", || async {
        while let Some(room_id) = closed.lock().await.recv().await {
            let Some(server) = server.upgrade() else { return };
            server.remove_guests(room_id);
        }
    })
    .await;
}

/// Where rooms tell that they close to guests.
pub(crate) type ClosedRooms = mpsc::UnboundedSender<OwnedRoomId>;

/// Whether an event, as it is now, may have closed a room to guests: the first one of its kind closes nothing, unless
/// it is redacted.
pub(crate) fn closes_to_guests(event: &Arc<StoredEvent>) -> bool {
    event.pdu.kind() == "m.room.guest_access"
        && event.pdu.state_key() == Some("")
        && (event.replaces.is_some() || event.redacted_by.is_some())
        && !lets_guests_in(event)
}

/// Whether an `m.room.guest_access` event lets guests join.
fn lets_guests_in(event: &StoredEvent) -> bool {
    content_string(&event.pdu, "guest_access").as_deref() == Some("can_join")
}

impl RoomHandle {
    /// Whether guests may join.
    ///
    /// Spec: client-server API, "Guest Access", server behaviour.
    pub async fn admits_guests(&self) -> Result<bool, RoomError> {
        let event = self.current("m.room.guest_access", "").await?;
        Ok(event.is_some_and(|event| lets_guests_in(&event)))
    }

    /// Refuses a guest's join of a room that lets none in, however it is sent.
    pub async fn check_guest(&self, guest: &UserId, draft: &Draft) -> Result<(), RoomError> {
        let joins = own_membership(guest, draft).is_some_and(|membership| membership == "join");
        if joins && !self.admits_guests().await? { Err(RoomError::NoGuests) } else { Ok(()) }
    }
}
