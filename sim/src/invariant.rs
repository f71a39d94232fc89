//! What must hold in every run, a small file each; some while it runs, all of them once everything has come to rest.

mod acknowledged;
mod agreement;
mod banned;
mod devices;
mod forged;
mod history;
mod limits;
mod queues;
mod redacted;
mod resolved;
mod sent_once;
mod sync_order;
mod sync_state;

use std::time::Duration;

use anyhow::Result;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, ServerName, UserId};
use tokio::sync::Notify;

pub use self::history::{History, Side};
use crate::world::World;

/// How often the invariants that hold all the time are checked.
const EVERY: Duration = Duration::from_secs(5);

/// The first thing that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant that does not hold.
    pub invariant: &'static str,
    /// What is so instead.
    pub what: String,
}

/// Whether a run is still good.
#[derive(Default)]
pub struct Verdict {
    first: Mutex<Option<Violation>>,
    is_over: Mutex<bool>,
    changed: Notify,
}

impl Verdict {
    /// Notes that an invariant does not hold; the first one counts, and the run ends.
    pub fn fail(&self, invariant: &'static str, what: String) {
        self.first.lock().get_or_insert(Violation { invariant, what });
        self.end();
    }

    /// Ends the run: whatever works in it stops.
    pub fn end(&self) {
        *self.is_over.lock() = true;
        self.changed.notify_waiters();
    }

    /// Whether the run has ended.
    pub fn is_over(&self) -> bool {
        *self.is_over.lock()
    }

    /// The first violation, if there is one.
    pub fn violation(&self) -> Option<Violation> {
        self.first.lock().clone()
    }

    /// Waits for the end of the run.
    pub async fn over(&self) {
        loop {
            let changed = self.changed.notified();
            if self.is_over() {
                return;
            }
            changed.await;
        }
    }
}

/// An event that a server acknowledged to a client.
#[derive(Clone, Debug)]
pub struct Acknowledged {
    /// The server.
    pub host: OwnedServerName,
    /// The room.
    pub room: OwnedRoomId,
    /// The event.
    pub event: OwnedEventId,
}

/// What was acknowledged to clients, and what must never be accepted.
#[derive(Default)]
pub struct Ledger {
    acknowledged: Mutex<Vec<Acknowledged>>,
    forbidden: Mutex<Vec<OwnedEventId>>,
    told: Mutex<Vec<Told>>,
}

/// A message to a device that was acknowledged: who sent it, to whom, and its number.
pub type Told = (OwnedUserId, OwnedUserId, u64);

impl Ledger {
    /// Notes an acknowledged message to a device.
    pub fn tell(&self, from: &UserId, to: &UserId, number: u64) {
        self.told.lock().push((from.to_owned(), to.to_owned(), number));
    }

    /// All acknowledged messages to devices.
    pub fn told(&self) -> Vec<Told> {
        self.told.lock().clone()
    }

    /// Notes events that no server may accept.
    pub fn forbid(&self, events: Vec<OwnedEventId>) {
        self.forbidden.lock().extend(events);
    }

    /// The events that no server may accept.
    pub fn forbidden(&self) -> Vec<OwnedEventId> {
        self.forbidden.lock().clone()
    }

    /// Notes an acknowledged event.
    pub fn acknowledge(&self, host: &ServerName, room: &RoomId, event: &ruma::EventId) {
        self.acknowledged.lock().push(Acknowledged {
            host: host.to_owned(),
            room: room.to_owned(),
            event: event.to_owned(),
        });
    }

    /// All that was acknowledged.
    pub fn all(&self) -> Vec<Acknowledged> {
        self.acknowledged.lock().clone()
    }
}

/// A rule about a world that has come to rest; says what breaks it.
type Rule = for<'a> fn(&'a World, &'a [History]) -> BoxFuture<'a, Result<Option<String>>>;

/// The invariants at rest, by name.
const AT_REST: [(&str, Rule); 16] = [
    ("queues_drain", |world, _| Box::pin(queues::drained(world))),
    ("same_state", |_, histories| Box::pin(ready(Ok(agreement::same_state(histories))))),
    ("as_specified", |_, histories| Box::pin(resolved::as_specified(histories))),
    ("same_events", |_, histories| Box::pin(ready(Ok(agreement::same_events(histories))))),
    ("nothing_lost", |world, histories| Box::pin(acknowledged::kept(world, histories))),
    ("sent_once", |_, histories| Box::pin(ready(Ok(sent_once::once(histories))))),
    ("forgeries_fail", |world, histories| Box::pin(forged::refused(world, histories))),
    ("bans_hold", |_, histories| Box::pin(banned::silent(histories))),
    ("redactions_apply", |_, histories| Box::pin(ready(Ok(redacted::agreed(histories))))),
    ("sync_in_order", |world, _| Box::pin(sync_order::follows_timeline(world))),
    ("sync_state", |world, histories| Box::pin(sync_state::is_told(world, histories))),
    ("devices_told", |world, _| Box::pin(ready(Ok(devices::told(world))))),
    ("devices_known", |world, histories| Box::pin(devices::known(world, histories))),
    ("same_answer", |world, _| Box::pin(ready(Ok(world.network().contradictions().into_iter().next())))),
    ("backs_off", |world, _| Box::pin(ready(Ok(world.network().hasty_retries().into_iter().next())))),
    ("within_limits", |world, _| Box::pin(ready(Ok(limits::kept(world))))),
];

/// The names of all invariants, with what they say.
pub const NAMES: [(&str, &str); 21] = [
    ("queues_drain", "after healing all durable queues run empty, and no request stays under way"),
    ("same_state", "all servers in a room have the same state of it"),
    ("as_specified", "after a fork the state is what another implementation of state resolution makes of it"),
    ("same_events", "all servers in a room know the same events, and refuse the same ones"),
    ("nothing_lost", "what was acknowledged to a client is still there"),
    (
        "arrives",
        "what was acknowledged arrives at all servers by itself, and no later than their back-offs allow",
    ),
    ("sent_once", "what a client sends again under the same transaction ID is one event"),
    ("forgeries_fail", "no server accepts what a hostile peer forged"),
    (
        "bans_hold",
        "no accepted event is of somebody who was not in the room before it, or when it came, or joins while banned",
    ),
    ("redactions_apply", "what an accepted redaction takes back is redacted, on all servers or on none"),
    ("sync_in_order", "/sync tells of each event once, in the order of the timeline, and leaves none out"),
    ("sync_state", "what /sync told a member of a room makes the room's state"),
    ("devices_told", "messages to devices arrive, each once and in order"),
    ("devices_known", "who shares a room knows the keys of each other's devices"),
    ("same_answer", "a transaction that comes again is answered as before"),
    (
        "backs_off",
        "who does not take what it is sent is tried again after a back-off that grows, or after a sign of life",
    ),
    ("ends", "a run comes to an end in simulated time"),
    ("within_limits", "connections and memory stay within their budgets"),
    ("answers", "each request is answered, and not with an internal error"),
    ("no_crash", "no task panics and no actor crashes, unless its disk fails"),
    ("no_leak", "no task is left once all servers have stopped"),
];

/// Checks everything that must hold at rest.
pub async fn check_at_rest(world: &World) -> Result<()> {
    let mut histories = Vec::new();
    for room in world.rooms() {
        histories.push(History::read(world, &room).await?);
    }
    for (name, rule) in AT_REST {
        if let Some(what) = rule(world, &histories).await? {
            world.verdict().fail(name, what);
            return Ok(());
        }
    }
    Ok(())
}

/// Checks that all servers of rooms that nobody left have what was acknowledged, without the first `before` events, before
/// anybody says more: after that they would find what they lack by looking for what comes before.
pub async fn check_arrival(world: &World, before: usize) -> Result<()> {
    if let Some(what) = acknowledged::arrived(world, before).await? {
        world.verdict().fail("arrives", what);
    }
    Ok(())
}

/// Checks what must hold all the time, until the run ends.
pub async fn watch(world: World) {
    while !world.verdict().is_over() {
        tokio::time::sleep(EVERY).await;
        world.trace().beat();
        if let Some(what) = limits::kept(&world) {
            world.verdict().fail("within_limits", what);
        }
        if let Some(what) = limits::crashed(&world) {
            world.verdict().fail("no_crash", what);
        }
    }
}
