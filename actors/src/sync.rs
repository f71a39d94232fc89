//! `/sync`: what changed for a user since a token.
//!
//! A session's view knows which rooms changed, so the work is per changed room and per waiting client,
//! never per joined room. Everything is read from published snapshots and the store, up to one position;
//! that position becomes the next token, so nothing is skipped and nothing comes twice.
//!
//! Spec: client-server API, "Syncing".

mod encryption;
pub(crate) mod ephemeral;
mod response;
mod room;
mod state;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use engine::id::{Position, TimelineIndex};
use ruma::{OwnedDeviceId, OwnedUserId, api::client::filter::FilterDefinition};
use storage::Batch;
use tokio::time::Instant;

use self::encryption::Neighbors;
pub use self::response::{
    DeviceLists, Events, InvitedRoom, JoinedRoom, KnockedRoom, LeftRoom, Rooms, State, Summary, SyncResponse,
    Timeline,
};
use crate::{
    directory::ActivateError,
    filter,
    homeserver::{Homeserver, ROOMS_AT_A_TIME},
    room::{ReadError, RoomError, RoomHandle},
    session::{RoomEntry, SessionError, SessionHandle},
    token::Token,
};

/// A client's request.
#[derive(Clone, Debug)]
pub struct SyncRequest {
    /// Who asks.
    pub user_id: OwnedUserId,
    /// With which device.
    pub device_id: OwnedDeviceId,
    /// The last response's token; none asks for everything.
    pub since: Option<Position>,
    /// The last to-device message that the client has, if it has not all up to `since`.
    pub inbox_since: Option<Position>,
    /// Whether the client takes to-device messages; those that it has by its token are let go of.
    pub takes_messages: bool,
    /// What to leave out.
    pub filter: Arc<FilterDefinition>,
    /// Whether to send the whole state of all rooms.
    pub full_state: bool,
    /// Whether to send the state after the timeline instead of before it.
    pub use_state_after: bool,
    /// How long to wait for something new.
    pub timeout: Duration,
}

/// Why a sync failed.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The user's session cannot be read.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A room cannot be read.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// What happened last is not durable yet, and may never be: the disk is slow, or full.
    #[error("what happened last is not stored yet; try again")]
    Late,
}

/// How long it may take until what was marked is durable.
const SETTLE_MAX: Duration = Duration::from_secs(10);

/// How long a waiting request trusts one view: that of a crashed session hears of nothing any more.
pub(crate) const VIEW_MAX: Duration = Duration::from_secs(10);

/// One pass over what changed: who asks, and for which stretch of time.
pub(crate) struct Pass<'a> {
    pub(crate) homeserver: &'a Homeserver,
    pub(crate) session: &'a SessionHandle,
    pub(crate) request: &'a SyncRequest,
    /// The last response's position; 0 asks for everything.
    pub(crate) since: Position,
    /// Everything up to here is durable and visible, and is told.
    pub(crate) upto: Position,
}

impl Homeserver {
    /// Answers with what changed, waiting for it up to the request's time-out.
    pub async fn sync(&self, request: &SyncRequest) -> Result<SyncResponse, SyncError> {
        let deadline = Instant::now() + request.timeout;
        let request = &*self.with_known_token(request);
        loop {
            let session = self.session(&request.user_id).await?;
            let mut changes = session.view().subscribe();
            let mut upto = self.caught_up(session.view().latest()).await?;
            let since = request.since.unwrap_or_default();
            let must_answer = request.since.is_none() || request.full_state || request.inbox_since.is_some();
            if must_answer || session.view().latest() > since {
                let (pass, rooms) = loop {
                    let pass = Pass { homeserver: self, session: &session, request, since, upto };
                    let rooms = pass.rooms();
                    let newest = rooms.iter().map(|(_, entry)| Position::from(entry.since)).max();
                    if newest.is_none_or(|newest| newest <= upto) {
                        break (pass, rooms);
                    }
                    // Who left just now is told so in this response, and the next one must not tell it again.
                    upto = self.caught_up(newest.unwrap_or(upto)).await?;
                };
                let response = pass.build(&rooms).await?;
                if must_answer || !response.is_empty() {
                    return Ok(response);
                }
            }
            tokio::select! {
                biased;
                () = changes.changed() => {}
                () = self.stopping() => return Ok(nothing(&session, request, upto)),
                () = tokio::time::sleep_until(deadline.min(Instant::now() + VIEW_MAX)) => {
                    if Instant::now() >= deadline {
                        return Ok(nothing(&session, request, upto));
                    }
                }
            }
        }
    }

    /// The request, without a token that this store has not given: it comes from a time after the backup that the store was restored
    /// from, so that nothing is known of what the client has, and nothing it acknowledges was sent yet.
    fn with_known_token<'a>(&self, request: &'a SyncRequest) -> Cow<'a, SyncRequest> {
        // What was given is never above the watermark.
        if request.since.max(request.inbox_since) <= Some(self.storage().watermark()) {
            return Cow::Borrowed(request);
        }
        tracing::info!(user.id = %request.user_id, "a client has a sync token from the future; it starts over");
        Cow::Owned(SyncRequest { since: None, inbox_since: None, ..request.clone() })
    }

    /// Whether a room's entry is an invite from somebody whom the user ignores.
    ///
    /// Spec: client-server API, "Ignoring Users", server behaviour.
    pub(crate) async fn is_ignored_invite(
        &self,
        session: &SessionHandle,
        entry: &RoomEntry,
    ) -> Result<bool, ReadError> {
        let ignored = session.view().ignored();
        if ignored.is_empty() || entry.membership != "invite" {
            return Ok(false);
        }
        Ok(ignored.contains(self.room_shared().store.event(entry.event).await?.pdu.sender()))
    }

    /// Waits until a room has an event after a place, for those who follow it without being in it.
    pub async fn wait_for_event(&self, room: &RoomHandle, after: TimelineIndex, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut commits = self.storage().watermark_changed();
        while room.snapshot().head.latest <= after {
            tokio::select! {
                biased;
                () = commits.changed() => {}
                () = self.stopping() => return,
                () = tokio::time::sleep_until(deadline) => return,
            }
        }
    }

    /// Whether a room that cannot be read may be readable later, since it is the server that is in trouble.
    pub(crate) async fn may_read_later(&self, error: &RoomError) -> bool {
        match error {
            RoomError::Busy { .. }
            | RoomError::Crashed
            | RoomError::TimedOut
            | RoomError::Commit(_)
            | RoomError::Activate(ActivateError::Late | ActivateError::Stopping) => true,
            // After a failed commit no room starts any more until the store is opened again.
            RoomError::Activate(_) | RoomError::Read(ReadError::Store(_)) => {
                self.storage().commit(Batch::default()).await.is_err()
            }
            _ => false,
        }
    }

    /// Waits until what is marked as changed is below the watermark, and returns the watermark.
    ///
    /// Marks come a moment before the watermark; only earlier commits that are under way lie between. If one of those fails, the
    /// watermark stays below the mark for good.
    pub(crate) async fn caught_up(&self, marked: Position) -> Result<Position, SyncError> {
        let watermark = self.storage().watermark();
        if watermark >= marked {
            return Ok(watermark);
        }
        let reached = tokio::time::timeout(SETTLE_MAX, self.storage().reached(marked)).await;
        reached.ok().flatten().ok_or(SyncError::Late)
    }
}

fn nothing_since(upto: Position) -> SyncResponse {
    SyncResponse {
        next_batch: Token::Sync(upto).to_string(),
        account_data: Events::default(),
        presence: Events::default(),
        rooms: Rooms::default(),
        to_device: Events::default(),
        device_lists: DeviceLists::default(),
        device_one_time_keys_count: BTreeMap::new(),
        device_unused_fallback_key_types: Vec::new(),
        has_new_counts: false,
    }
}

/// What is there to say if nothing happened.
fn nothing(session: &SessionHandle, request: &SyncRequest, upto: Position) -> SyncResponse {
    let mut response = nothing_since(upto);
    response.add_counts(session, request);
    response
}

impl Pass<'_> {
    async fn build(&self, rooms: &[(ruma::OwnedRoomId, RoomEntry)]) -> Result<SyncResponse, SyncError> {
        let mut response = nothing_since(self.upto);
        response.account_data = self.account_data();
        let neighbors = if self.is_initial() {
            Neighbors::default()
        } else {
            self.homeserver.neighbors(self.session, self.since).await?
        };
        response.presence = self.presence(&neighbors).await?;
        self.add_encryption(&mut response, neighbors).await?;
        for rooms in rooms.chunks(ROOMS_AT_A_TIME) {
            let inside = rooms.iter().filter(|(_, entry)| entry.is_joined());
            let _active = self.homeserver.rooms(inside.map(|(room_id, _)| &**room_id)).await;
            for (room_id, entry) in rooms {
                match self.add_room(&mut response.rooms, room_id, entry).await {
                    Ok(()) => {}
                    // The next token goes past what happened in it, which the client would never be told of.
                    Err(error) if self.homeserver.may_read_later(&error).await => return Err(error.into()),
                    // One damaged room must not take the account down with it.
                    Err(error) => tracing::error!(room.id = %room_id, %error, "room left out of a sync"),
                }
            }
        }
        Ok(response)
    }

    /// The rooms to look at.
    fn rooms(&self) -> Vec<(ruma::OwnedRoomId, RoomEntry)> {
        let view = self.session.view();
        let wants_all = self.is_initial() || self.request.full_state;
        let data = self.session.data();
        let counts_anew = data.counting_changed() > self.since;
        let mut rooms = if wants_all || counts_anew { view.rooms() } else { view.rooms_changed(self.since) };
        let no_invites = data.blocks_invites();
        rooms.retain(|(room_id, entry)| {
            let is_unwanted = no_invites && entry.membership == "invite";
            // The user's other devices learn of the leave that came before.
            let is_gone = entry.forgotten && (self.is_initial() || !self.left_since(entry));
            let is_old = !wants_all && !entry.is_joined() && !self.has_news(entry);
            !(is_gone || is_unwanted || is_old) && filter::room_passes(&self.request.filter.room, room_id)
        });
        rooms
    }

    async fn add_room(
        &self,
        rooms: &mut Rooms,
        room_id: &ruma::RoomId,
        entry: &RoomEntry,
    ) -> Result<(), RoomError> {
        match entry.membership.as_str() {
            // Who wants all members is told of the room once they are there.
            "join" if !self.is_lazy() && self.homeserver.room(room_id).await?.lacks_members() => {}
            // Looked at for the sake of its counts alone.
            "join" if self.only_counts(entry) && !self.counts_changed(room_id).await? => {}
            "join" => {
                let room = self.joined_room(room_id, entry).await?;
                if !room.is_empty() || self.is_initial() {
                    rooms.join.insert(room_id.to_owned(), room);
                }
            }
            // Whoever is ignored cannot invite either.
            "invite" if self.homeserver.is_ignored_invite(self.session, entry).await? => {}
            "invite" => {
                let invite_state = self.stripped_state(room_id, entry).await?;
                rooms.invite.insert(room_id.to_owned(), InvitedRoom { invite_state });
            }
            "knock" => {
                let knock_state = self.stripped_state(room_id, entry).await?;
                rooms.knock.insert(room_id.to_owned(), KnockedRoom { knock_state });
            }
            _ if self.tells_of_leave(entry) => {
                rooms.leave.insert(room_id.to_owned(), self.left_room(room_id, entry).await?);
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether something happened in a room after the last response.
    fn has_news(&self, entry: &RoomEntry) -> bool {
        entry.latest > self.since
    }

    fn only_counts(&self, entry: &RoomEntry) -> bool {
        !(self.is_initial() || self.request.full_state || self.has_news(entry))
    }

    /// Whether what is unread in a room may be something else than at the last response.
    async fn counts_changed(&self, room_id: &ruma::RoomId) -> Result<bool, RoomError> {
        let room = self.homeserver.room(room_id).await?;
        Ok(self.session.unread(&room).await?.changed() > self.since)
    }

    /// Whether members are told of only as far as they are needed.
    pub(crate) fn is_lazy(&self) -> bool {
        !self.request.filter.room.state.lazy_load_options.is_disabled()
    }

    /// Whether a room that the user is out of is part of the response.
    fn tells_of_leave(&self, entry: &RoomEntry) -> bool {
        let left_since = self.left_since(entry);
        if self.is_initial() || (self.request.full_state && !left_since) {
            return self.request.filter.room.include_leave;
        }
        left_since
    }

    fn is_initial(&self) -> bool {
        self.since == Position(0)
    }

    /// Whether the user's membership began after the last response.
    fn left_since(&self, entry: &RoomEntry) -> bool {
        Position::from(entry.since) > self.since
    }

    fn account_data(&self) -> Events {
        let filter = &self.request.filter.account_data;
        let data = self.session.data();
        let events = data
            .account_data_since(None, self.since)
            .filter(|(kind, _)| filter::passes_outside_rooms(filter, kind, None))
            .map(|(kind, content)| typed(kind, content))
            .collect::<Vec<_>>();
        events.into()
    }

    /// The presence of those whose presence has changed, and of those who came to share a room.
    async fn presence(&self, neighbors: &Neighbors) -> Result<Events, SyncError> {
        let ignored = self.session.view().ignored();
        let filter = &self.request.filter.presence;
        let mut users = self.session.presence_since(self.since);
        if self.is_initial() {
            users.extend(self.homeserver.present_remote_users(self.session).await?);
        }
        let told: BTreeSet<_> = users.iter().map(|presence| presence.user_id.clone()).collect();
        let is_new = |user_id: &&OwnedUserId| !told.contains(*user_id) && **user_id != self.request.user_id;
        users.extend(self.session.presence_of(neighbors.came.iter().filter(is_new)));
        let events: Vec<_> = users
            .into_iter()
            .filter(|presence| !ignored.contains(&presence.user_id))
            .filter(|presence| filter::passes_outside_rooms(filter, "m.presence", Some(&presence.user_id)))
            .map(|presence| self.homeserver.presence_event(&presence))
            .collect();
        Ok(events.into())
    }
}

/// `{"type": …, "content": …}`, around content that is JSON already.
pub(crate) fn typed(kind: &str, content: &serde_json::value::RawValue) -> Box<serde_json::value::RawValue> {
    let kind = serde_json::Value::from(kind);
    serde_json::value::RawValue::from_string(format!(r#"{{"type":{kind},"content":{content}}}"#))
        .expect("JSON put together from JSON is JSON")
}
