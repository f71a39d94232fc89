//! Completing rooms that were joined without their members.
//!
//! What is to be done stands in `PARTIAL_ROOMS`, so that it is taken up again after a restart.

use std::time::Duration;

use ruma::{RoomId, ServerName};
use storage::{Direction, KeyRange, schema, schema::PartialRoomRecord};

use crate::{
    homeserver::Homeserver,
    room::{Complete, RoomError, RoomMessage},
};

/// The pause after all servers of a room failed; then ever longer.
const PAUSE_FIRST: Duration = Duration::from_secs(5);

/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(3600);

impl Homeserver {
    /// Takes up what was not complete when the server stopped.
    pub(crate) async fn resume_partial_joins(&self) -> Result<(), RoomError> {
        let all = KeyRange::all();
        let rows =
            self.storage().range(&schema::PARTIAL_ROOMS, all, Direction::Ascending, usize::MAX).await?;
        for (_, record) in rows.into_iter().filter(|(_, record)| record.completed.is_none()) {
            self.complete_in_background(record);
        }
        Ok(())
    }

    /// Begins to complete a room that was just joined without its members.
    pub(super) async fn begin_completing(&self, room_id: &RoomId) -> Result<(), RoomError> {
        let room = self.room(room_id).await?.snapshot().room;
        if let Some(record) = self.storage().get(&schema::PARTIAL_ROOMS, &room).await? {
            self.complete_in_background(record);
        }
        Ok(())
    }

    /// What a shutdown ends is taken up at the next start.
    fn complete_in_background(&self, record: PartialRoomRecord) {
        let homeserver = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = homeserver.stopping() => {}
                () = homeserver.complete_room(&record) => {}
            }
        });
    }

    async fn complete_room(&self, record: &PartialRoomRecord) {
        let room_id = &record.room_id;
        let mut pause = PAUSE_FIRST;
        loop {
            match self.room(room_id).await {
                // Nobody here needs it any more; who joins again begins anew.
                Ok(room) if !room.lacks_members() || !room.snapshot().head.has_server(self.server_name()) => {
                    return;
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%room_id, %error, "cannot look at a room to be completed"),
            }
            for server in &record.servers {
                match self.complete_from(server, record).await {
                    Ok(()) => {
                        tracing::info!(%room_id, %server, "a joined room has all of its members now");
                        return;
                    }
                    Err(error) => {
                        tracing::info!(%room_id, %server, %error, "a server does not give the members of a joined room");
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(PAUSE_MAX);
        }
    }

    /// Gets the members of a room that was left before they came, before it is joined again: without them nothing can be
    /// said of the states after a leave which the others do not know. A server that knows of it gives nothing, and need
    /// not.
    pub(super) async fn complete_former(&self, server: &ServerName, room_id: &RoomId, limit: Duration) {
        let Ok(room) = self.room(room_id).await else { return };
        if !room.lacks_members() || room.snapshot().head.has_server(self.server_name()) {
            return;
        }
        let complete = async {
            let record = self.storage().get(&schema::PARTIAL_ROOMS, &room.snapshot().room).await?;
            match record {
                Some(record) => self.complete_from(server, &record).await,
                None => Ok(()),
            }
        };
        match tokio::time::timeout(limit, complete).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%room_id, %server, %error, "a server does not give the members of a room that was left");
            }
            Err(_) => tracing::debug!(%room_id, %server, "the members of a room that was left take too long"),
        }
    }

    async fn complete_from(&self, server: &ServerName, record: &PartialRoomRecord) -> Result<(), RoomError> {
        let room = self.room(&record.room_id).await?;
        let state = self.fetch_state_before(&room, server, &record.join).await?;
        let lacking = state.lacking.clone();
        let complete = Complete { join: record.join.clone(), state };
        let actor = self.room_actor(&record.room_id).await?;
        actor.call(|reply| RoomMessage::Complete(Box::new(complete), reply)).await??;
        self.wait_for_keys(&record.room_id, &lacking).await;
        Ok(())
    }
}
