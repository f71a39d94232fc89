//! Forward extremities: events that nothing comes after yet.
//!
//! A room whose graph forks widely (many servers send at once, or one does so on purpose) costs a state resolution for
//! each new event. Where nobody here says anything that would tie the forks together, an event without content does so
//! in the name of a local user, as other servers send it too. Clients are not shown it, and other servers get it when
//! they ask for what an event of ours comes after, so that the servers of a room do not set each other off.
//!
//! Spec: server-server API, "PDUs", `prev_events`.

use std::{collections::BTreeSet, ops::Bound, sync::Arc, time::Duration};

use engine::{
    pdu::{Draft, Pdu},
    room::{content, graph::PREV_EVENTS_MAX},
    state,
};
use ractor::ActorRef;
use ruma::{OwnedUserId, UserId};
use serde_json::value::RawValue;
use tokio::{task::AbortHandle, time::Instant};

use super::{ActiveRoom, RoomError, RoomMessage, StoredEvent, change::Change, receive::Source};

/// The type of events that only tie the graph together.
const DUMMY: &str = "org.matrix.dummy_event";

/// Forward extremities that a room may have before they are tied together.
const EXTREMITIES_MAX: usize = 10;

/// How long a room is left to itself first: mostly an event comes that ties the forks together anyway.
const SETTLE: Duration = Duration::from_secs(10);

/// The pause between two turns, however wide somebody forks the room.
const PAUSE: Duration = Duration::from_secs(60);

/// The pause after nobody was found who may send such an event.
const PAUSE_HOPELESS: Duration = Duration::from_secs(3600);

/// Events of one turn, at most.
const DUMMIES_MAX: usize = 10;

/// Local members who are tried, at most.
const SENDERS_MAX: usize = 20;

/// Members of a state that are looked through at a time.
const MEMBERS_PAGE: usize = 1000;

/// Members that are looked through for local ones, at most.
const MEMBERS_MAX: usize = 100_000;

/// When the forward extremities of a room are tied together.
#[derive(Default)]
pub(super) struct TidyUp {
    is_due: bool,
    not_before: Option<Instant>,
    timer: Option<AbortHandle>,
}

impl Drop for TidyUp {
    fn drop(&mut self) {
        // A room that is not active any more is not to be told, and the pause may be long.
        if let Some(timer) = &self.timer {
            timer.abort();
        }
    }
}

/// Whether an event only ties the graph together.
pub fn is_dummy(pdu: &Pdu) -> bool {
    pdu.kind() == DUMMY && pdu.state_key().is_none()
}

impl ActiveRoom {
    /// Has the forward extremities tied together soon, if there are too many.
    pub(super) fn mind_extremities(&mut self, myself: &ActorRef<RoomMessage>) {
        if self.tidy_up.is_due || self.head.tips.len() <= EXTREMITIES_MAX {
            return;
        }
        let now = Instant::now();
        let wait = self.tidy_up.not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        self.tidy_up.is_due = true;
        let timer = myself.send_after(wait.max(SETTLE), || RoomMessage::ExtremitiesDue);
        self.tidy_up.timer = Some(timer.abort_handle());
    }

    /// Ties forward extremities together, if there are too many still and a local user may do it.
    pub(super) async fn extremities_due(&mut self, myself: &ActorRef<RoomMessage>) {
        self.tidy_up.is_due = false;
        let mut change = Change::new(self);
        if change.head.tips.len() <= EXTREMITIES_MAX {
            return;
        }
        let pause = match self.tie_together(&mut change).await {
            Ok(true) => PAUSE,
            Ok(false) => {
                tracing::debug!(room.id = %self.room_id, "nobody here may tie forward extremities together");
                PAUSE_HOPELESS
            }
            Err(error) => {
                tracing::warn!(room.id = %self.room_id, %error, "cannot tie forward extremities together");
                change = Change::new(self);
                PAUSE
            }
        };
        self.tidy_up.not_before = Some(Instant::now() + pause);
        if !change.events.is_empty() {
            let extremities = (self.head.tips.len(), change.head.tips.len());
            tracing::debug!(room.id = %self.room_id, ?extremities, "tied forward extremities together");
            self.shared.metrics.tied(change.events.len());
            self.submit(myself, change, storage::Batch::default(), |_| {});
        }
        self.mind_extremities(myself);
    }

    /// Appends events that come after the forward extremities; whether anybody here may send them.
    async fn tie_together(&self, change: &mut Change) -> Result<bool, RoomError> {
        // Whether anybody is banned, say, is not known before.
        if change.head.lacks_members || !self.is_resident(change) {
            return Ok(true);
        }
        for sender in self.local_members(change).await? {
            if self.tie_down_to(change, &sender, EXTREMITIES_MAX).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Appends events of a local user until there are few enough forward extremities; false if the user may not.
    pub(super) async fn tie_down_to(
        &self,
        change: &mut Change,
        sender: &UserId,
        max: usize,
    ) -> Result<bool, RoomError> {
        for _ in 0..DUMMIES_MAX {
            if change.head.tips.len() <= max {
                break;
            }
            let oldest: Vec<_> = change.head.tips.iter().take(PREV_EVENTS_MAX).cloned().collect();
            match self.append_dummy(change, sender, &oldest).await {
                Ok(()) => {}
                Err(RoomError::Forbidden(_)) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Appends an event without content after some others, authorised by the state that they make.
    async fn append_dummy(
        &self,
        change: &mut Change,
        sender: &UserId,
        prevs: &[Arc<StoredEvent>],
    ) -> Result<(), RoomError> {
        let draft = Draft {
            kind: DUMMY.into(),
            state_key: None,
            content: empty_object(),
            redacts: None,
            dated: None,
        };
        let author = self.author();
        let made = self.decide(change, |room| room.make_after(prevs, sender, &draft, &author)).await?;
        let (pdu, placement) = made?;
        let source = Source { origin: self.shared.server_name.clone(), sent_by: None };
        self.admit(change, &Arc::new(pdu), placement, source, false).await?;
        Ok(())
    }

    /// Some joined users of this server, those first who are most likely to have power.
    async fn local_members(&self, change: &Change) -> Result<Vec<OwnedUserId>, RoomError> {
        let mut candidates = Vec::new();
        let create = self.current(change, "m.room.create", "").await?;
        candidates.extend(create.iter().map(|event| event.pdu.sender().to_owned()));
        let power_levels = self.current(change, "m.room.power_levels", "").await?;
        candidates.extend(power_levels.iter().flat_map(|event| content::power_users(&event.pdu)));
        candidates.extend(change.head.recent.iter().map(|event| event.pdu.sender().to_owned()));
        candidates.extend(self.some_local_users(change, SENDERS_MAX).await?);
        let (mut seen, mut joined) = (BTreeSet::new(), Vec::new());
        for user in candidates {
            let is_new = user.server_name() == self.shared.server_name && seen.insert(user.clone());
            if !is_new || joined.len() >= SENDERS_MAX {
                continue;
            }
            let member = self.current(change, "m.room.member", user.as_str()).await?;
            if member.is_some_and(|event| content::membership(&event.pdu) == "join") {
                joined.push(user);
            }
        }
        Ok(joined)
    }

    /// Some users of this server with a membership of whatever kind, about `enough`: nobody but the IDs is looked at.
    pub(super) async fn some_local_users(
        &self,
        change: &Change,
        enough: usize,
    ) -> Result<Vec<OwnedUserId>, RoomError> {
        const MEMBER: &str = "m.room.member";
        let root = change.head.root;
        let (mut found, mut last, mut looked_at) = (Vec::new(), String::new(), 0);
        loop {
            let page = self
                .with_nodes(change, |nodes| {
                    let from = Bound::Excluded((MEMBER, last.as_str()));
                    state::range(nodes, root, from, Some(MEMBER), MEMBERS_PAGE)
                })
                .await?;
            let users = page.iter().filter_map(|entry| UserId::parse(&entry.state_key).ok());
            found.extend(users.filter(|user| user.server_name() == self.shared.server_name));
            looked_at += page.len();
            match page.last() {
                Some(entry)
                    if page.len() == MEMBERS_PAGE && found.len() < enough && looked_at < MEMBERS_MAX =>
                {
                    last.clone_from(&entry.state_key);
                }
                _ => return Ok(found),
            }
        }
    }
}

/// `{}`
fn empty_object() -> Box<RawValue> {
    RawValue::from_string("{}".to_owned()).expect("it is JSON")
}
