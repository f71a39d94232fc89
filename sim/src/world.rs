//! One simulated server with users who chat, and crashes.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use actors::{
    directory::ClassConfig,
    env::{Env, SeededEntropy, TokioClock},
    homeserver::{ConversationConfig, Homeserver, HomeserverConfig},
    media::MediaConfig,
    room::{MembershipAction, MembershipChange, PageDirection, PageQuery, Send},
};
use anyhow::{Context, Result, ensure};
use engine::{
    id::TimelineIndex,
    pdu::{Draft, SigningKey},
    room::create::{NewRoom, Preset},
    room_version,
};
use rand::{RngExt, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, UserId, api::client::filter::RoomEventFilter};
use serde_json::{Map, json, value::to_raw_value};
use storage::{Durability, MemoryStore, Storage};

use crate::Trace;

/// When simulated time begins, in milliseconds since the epoch.
const START_MS: u64 = 1_700_000_000_000;

/// A server, its users and one room; everything that is drawn follows from the seed.
pub struct World {
    random: ChaCha8Rng,
    trace: Trace,
    homeserver: Homeserver,
    store: Arc<MemoryStore>,
    start: tokio::time::Instant,
    room: OwnedRoomId,
    users: Vec<OwnedUserId>,
    acknowledged: BTreeSet<OwnedEventId>,
}

impl World {
    /// Runs `steps` steps of chat and crashes of a world of this seed, checks the invariants, and returns the trace.
    ///
    /// Call it on a current-thread runtime with paused time, or the run depends on the machine.
    pub async fn run(seed: u64, users: usize, steps: usize) -> Result<Trace> {
        let mut world = Self::new(seed, users).await?;
        for _ in 0..steps {
            world.step().await?;
        }
        world.check().await?;
        Ok(world.trace)
    }

    async fn new(seed: u64, users: usize) -> Result<Self> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let store = Arc::new(MemoryStore::new());
        let start = tokio::time::Instant::now();
        let homeserver = boot(&store, random.random(), START_MS).await?;
        let names: Result<Vec<_>, _> = (0..users).map(|n| UserId::parse(format!("@user{n}:sim"))).collect();
        let users = names?;
        let creator = users.first().context("a world needs a user")?.clone();
        let new = NewRoom {
            version: room_version::DEFAULT,
            creator,
            creator_profile: Map::new(),
            preset: Preset::PublicChat,
            creation_content: Map::new(),
            power_levels: Map::new(),
            alias: None,
            initial_state: Vec::new(),
            name: Some("sim".to_owned()),
            topic: None,
            invite: Vec::new(),
        };
        let room = homeserver.create_room(new, Vec::new(), false).await?;
        let trace = Trace::default();
        let mut world =
            Self { random, trace, homeserver, store, start, room, users, acknowledged: BTreeSet::new() };
        for user in world.users.clone().into_iter().skip(1) {
            world.join(user).await?;
        }
        Ok(world)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn join(&mut self, user: OwnedUserId) -> Result<()> {
        let action = MembershipAction::Join { meets_allow_rule: Some(false) };
        let change = MembershipChange { sender: user.clone(), target: user, action, content: Map::new() };
        let joined = self.homeserver.room(&self.room).await?.change_membership(change).await?;
        self.trace.note(self.now_ms(), &format!("joined {joined:?}"));
        Ok(())
    }

    async fn step(&mut self) -> Result<()> {
        tokio::time::sleep(Duration::from_millis(self.random.random_range(1..500))).await;
        if self.random.random_ratio(1, 20) {
            return self.crash().await;
        }
        let sender = self.users.choose(&mut self.random).context("a world needs a user")?.clone();
        let body = format!("message {}", self.random.random::<u32>());
        let draft = Draft {
            kind: "m.room.message".into(),
            state_key: None,
            content: to_raw_value(&json!({ "body": body }))?,
            redacts: None,
        };
        let room = self.homeserver.room(&self.room).await?;
        let event_id = room.send(Send { sender, draft, sent_by: None }).await?;
        self.trace.note(self.now_ms(), &format!("sent {event_id}"));
        self.acknowledged.insert(event_id);
        Ok(())
    }

    /// Kills the server and starts it again on what the store had synced.
    async fn crash(&mut self) -> Result<()> {
        self.trace.note(self.now_ms(), "crash");
        self.store.lose_unsynced_writes();
        let now_ms = START_MS + self.now_ms();
        self.homeserver = boot(&self.store, self.random.random(), now_ms).await?;
        Ok(())
    }

    /// Nothing acknowledged is lost, nothing is there twice.
    async fn check(&self) -> Result<()> {
        let room = self.homeserver.room(&self.room).await?;
        let query = PageQuery {
            user_id: &self.users[0],
            from: TimelineIndex(i64::MIN),
            to: None,
            direction: PageDirection::Forward,
            limit: usize::MAX / 2,
            filter: &RoomEventFilter::default(),
        };
        let page = room.page(&query).await?;
        let stored: BTreeSet<_> = page.events.iter().map(|event| event.pdu.event_id().clone()).collect();
        ensure!(stored.len() == page.events.len(), "an event is in the timeline twice");
        let lost: Vec<_> = self.acknowledged.difference(&stored).collect();
        ensure!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        Ok(())
    }
}

async fn boot(store: &Arc<MemoryStore>, seed: u64, now_ms: u64) -> Result<Homeserver> {
    let storage = Storage::open(store.clone(), Durability::Always).await?;
    let env = Env { clock: Arc::new(TokioClock::new(now_ms)), entropy: Arc::new(SeededEntropy::new(seed)) };
    let config = HomeserverConfig {
        server_name: "sim".try_into()?,
        signing_key: Arc::new(SigningKey::new(&[1; 32], "sim").context("the key's version is valid")?),
        old_keys: Vec::new(),
        federation: None,
        default_room_version: room_version::DEFAULT,
        room_memory: 16 << 20,
        rooms: ClassConfig::default(),
        sessions: ClassConfig::default(),
        media: MediaConfig::default(),
        conversation: ConversationConfig::default(),
        push: std::sync::Arc::new(actors::push::NoPushGateways),
        search: None,
    };
    Ok(Homeserver::start(config, env, storage).await)
}

#[cfg(test)]
mod tests {
    use super::World;

    #[tokio::test(start_paused = true)]
    async fn the_same_seed_gives_the_same_trace() {
        let first = World::run(7, 5, 200).await.unwrap();
        let second = World::run(7, 5, 200).await.unwrap();
        assert_eq!(first.lines(), second.lines());
        assert_eq!(first.hash(), second.hash());
        let other = World::run(8, 5, 200).await.unwrap();
        assert_ne!(first.hash(), other.hash());
        assert!(first.lines().iter().any(|line| line.ends_with("crash")), "the seed has no crash");
    }
}
