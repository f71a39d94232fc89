//! The assembly: everything that one server is, behind one cheap handle.

mod config;
mod new_room;

use std::sync::{Arc, Weak, atomic::AtomicU64};

use engine::pdu::SigningKey;
use futures_util::future::join_all;
use prometheus_client::registry::Registry;
use ruma::{EventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, RoomVersionId, ServerName, UserId};
use serde_json::{Map, Value};
use storage::{Signal, Storage, StoreError, schema};
use tokio::sync::mpsc;

pub use self::config::{ConversationConfig, HomeserverConfig};
use crate::{
    aliases::AliasClaims,
    appservice::{Following, Services},
    background::outlive_panics,
    delayed::DelayedEvents,
    destination::{DestinationActor, DestinationShared, Outbox},
    directory::{ClassConfig, Directory, DirectoryActor, Handle, Stats},
    effects,
    env::Env,
    federation::{Counted, FederatedMedia, Federation, FederationClient, OldKey},
    flights::Flights,
    hub::Hub,
    media::MediaRepository,
    metrics::{ActorClasses, Extremities, Metrics},
    push::Pushing,
    resume::Resuming,
    retention::Retention,
    room::{
        Erasures, MembershipAction, MembershipChange, RoomActor, RoomError, RoomHandle, RoomShared,
        RoomStore, Txns, allowed_rooms,
    },
    search::Searching,
    session::{SessionActor, SessionError, SessionHandle, SessionShared},
    users::{ChangedRooms, UserDirectory},
};

/// Rooms that are brought into memory at a time for one answer.
pub(crate) const ROOMS_AT_A_TIME: usize = 32;

/// A running server. Cloning shares it.
#[derive(Clone)]
pub struct Homeserver(Arc<Inner>);

/// A server that may be gone.
#[derive(Clone)]
pub(crate) struct WeakHomeserver(Weak<Inner>);

impl WeakHomeserver {
    /// The server, if it still is there.
    pub(crate) fn upgrade(&self) -> Option<Homeserver> {
        self.0.upgrade().map(Homeserver)
    }
}

struct Inner {
    server_name: OwnedServerName,
    old_keys: Vec<OldKey>,
    default_room_version: RoomVersionId,
    env: Env,
    storage: Storage,
    stopping: Signal<bool>,
    room_shared: Arc<RoomShared>,
    rooms: Directory<RoomActor>,
    session_shared: Arc<SessionShared>,
    sessions: Directory<SessionActor>,
    federation: Option<Federation>,
    users: Arc<UserDirectory>,
    media: MediaRepository,
    sweeping: parking_lot::Mutex<Option<tokio::task::JoinHandle<()>>>,
    metrics: Metrics,
    delayed: DelayedEvents,
    /// The date of the last room that is named by its create event.
    last_creation_ms: AtomicU64,
    alias_claims: Arc<AliasClaims>,
    pushing: Pushing,
    retention: Retention,
    resuming: Resuming,
    conversation: ConversationConfig,
    searching: Arc<Searching>,
    upgrading: Flights,
    services: Services,
    following: Following,
}

impl Homeserver {
    /// Starts the actors' supervisors over an open store.
    pub async fn start(config: HomeserverConfig, env: Env, storage: Storage) -> Self {
        let (outbox, announcements) =
            Outbox::new(config.server_name.clone(), storage.clone(), config.federation.is_some());
        let (closed_rooms, closed) = mpsc::unbounded_channel();
        let metrics = Metrics::default();
        let client = config.federation.as_ref().map(|federation| {
            let (inner, metrics) = (federation.client.clone(), metrics.clone());
            let client: Arc<dyn FederationClient> =
                Arc::new(Counted { inner, metrics, outbox: outbox.clone() });
            client
        });
        let room_shared = Arc::new(RoomShared {
            client: client.clone(),
            outbox: outbox.clone(),
            server_name: config.server_name.clone(),
            signing_key: config.signing_key,
            env: env.clone(),
            store: RoomStore::new(storage.clone(), config.room_memory / 2),
            hub: Hub::default(),
            published: dashmap::DashMap::new(),
            changed_rooms: ChangedRooms::default(),
            erasures: Erasures::default(),
            txns: Arc::new(Txns::new(env.clone(), storage.clone())),
            closed_rooms,
            metrics: metrics.clone(),
        });
        let rooms = ClassConfig { budget_bytes: config.room_memory / 2, ..config.rooms };
        let media =
            MediaRepository::new(config.server_name.clone(), config.media, env.clone(), storage.clone());
        let federation = match (config.federation, announcements, client) {
            (Some(federation), Some(announcements), Some(client)) => {
                let size_max = media.config().upload_size_max;
                media.set_remote(Arc::new(FederatedMedia::new(client.clone(), size_max)));
                let shared = Arc::new(DestinationShared {
                    server_name: config.server_name.clone(),
                    env: env.clone(),
                    storage: storage.clone(),
                    client,
                    metrics: metrics.clone(),
                    outbox,
                    rooms: room_shared.clone(),
                });
                Some(Federation::start(shared, announcements, federation).await)
            }
            _ => None,
        };
        let has_threads = config.conversation.thread_subscriptions;
        let session_shared =
            SessionShared::new(env.clone(), storage.clone(), room_shared.clone(), has_threads);
        let session_shared = Arc::new(session_shared);
        let searching = Searching::start(&room_shared, config.search);
        let homeserver = Self(Arc::new(Inner {
            server_name: config.server_name,
            old_keys: config.old_keys,
            default_room_version: config.default_room_version,
            env,
            storage,
            stopping: Signal::new(false),
            rooms: Directory::start(room_shared.clone(), rooms).await,
            sessions: Directory::start(session_shared.clone(), config.sessions).await,
            session_shared,
            users: UserDirectory::start(&room_shared),
            room_shared,
            sweeping: parking_lot::Mutex::new(Some(tokio::spawn(sweep(media.clone())))),
            media,
            federation,
            metrics,
            delayed: DelayedEvents::new(config.conversation.delay_max),
            last_creation_ms: AtomicU64::default(),
            alias_claims: Arc::default(),
            pushing: Pushing::new(config.push),
            retention: Retention::new(),
            resuming: Resuming::new(),
            conversation: config.conversation,
            searching,
            upgrading: Flights::default(),
            services: config.services,
            following: Following::default(),
        }));
        homeserver.register_senders().await;
        homeserver.0.following.start(&homeserver);
        homeserver.0.pushing.start(&homeserver).await;
        tokio::spawn(effects::follow_guest_access(homeserver.downgrade(), closed));
        homeserver.resume();
        homeserver
    }

    /// This server's name.
    pub fn server_name(&self) -> &ServerName {
        &self.0.server_name
    }

    /// Clock and randomness.
    pub fn env(&self) -> &Env {
        &self.0.env
    }

    /// The key that this server signs with.
    pub fn signing_key(&self) -> &SigningKey {
        &self.0.room_shared.signing_key
    }

    /// Whether this server talks to others.
    pub fn federates(&self) -> bool {
        self.0.federation.is_some()
    }

    /// Keys that this server signed with before its present one.
    pub(crate) fn old_keys(&self) -> &[OldKey] {
        &self.0.old_keys
    }

    /// Another server gave a sign of life: what waits for it goes out at once.
    pub fn server_is_alive(&self, server: &ServerName) {
        self.0.room_shared.outbox.alive(server);
        self.0.media.server_is_alive(server);
    }

    /// The room that an event belongs to, if the event is known.
    pub async fn room_of_event(&self, event_id: &EventId) -> Result<Option<OwnedRoomId>, RoomError> {
        let event = self.0.room_shared.store.event_by_id(event_id).await?;
        Ok(event.map(|event| event.pdu.room_id().to_owned()))
    }

    /// What only a server that federates has.
    pub(crate) fn federation(&self) -> Option<&Federation> {
        self.0.federation.as_ref()
    }

    /// The actor of a room, which need not exist yet.
    pub(crate) async fn room_actor(&self, room_id: &RoomId) -> Result<Handle<RoomActor>, RoomError> {
        self.0.rooms.get(&room_id.to_owned()).await.map_err(RoomError::Activate)
    }

    /// The store, for the modules of this crate.
    pub(crate) fn storage(&self) -> &Storage {
        &self.0.storage
    }

    /// What this server does in rooms on its own.
    pub(crate) fn conversation(&self) -> &ConversationConfig {
        &self.0.conversation
    }

    /// The task that purges old messages.
    pub(crate) fn retention(&self) -> &Retention {
        &self.0.retention
    }

    /// The task that takes up again what could not be done.
    pub(crate) fn resuming(&self) -> &Resuming {
        &self.0.resuming
    }

    /// Events that are sent later.
    pub(crate) fn alias_claims(&self) -> &Arc<AliasClaims> {
        &self.0.alias_claims
    }

    pub(crate) fn delayed(&self) -> &DelayedEvents {
        &self.0.delayed
    }

    /// What all sessions share.
    pub(crate) fn session_shared(&self) -> &Arc<SessionShared> {
        &self.0.session_shared
    }

    /// What all rooms share.
    pub(crate) fn room_shared(&self) -> &Arc<RoomShared> {
        &self.0.room_shared
    }

    /// Where what is to be sent to other servers is left.
    pub(crate) fn outbox(&self) -> &Outbox {
        &self.0.room_shared.outbox
    }

    /// The task that keeps the user directory.
    pub(crate) fn users(&self) -> &UserDirectory {
        &self.0.users
    }

    /// What this server searches with.
    pub(crate) fn searching(&self) -> &Searching {
        &self.0.searching
    }

    /// Upgrades of rooms that are under way, by the old room.
    pub(crate) fn upgrading(&self) -> &Flights {
        &self.0.upgrading
    }

    /// The application services of this server.
    pub fn services(&self) -> &Services {
        &self.0.services
    }

    /// The tasks that push to the application services.
    pub(crate) fn following(&self) -> &Following {
        &self.0.following
    }

    /// What this server pushes with.
    pub(crate) fn pushing(&self) -> &Pushing {
        &self.0.pushing
    }

    /// The same server, without keeping it from ending.
    pub(crate) fn downgrade(&self) -> WeakHomeserver {
        WeakHomeserver(Arc::downgrade(&self.0))
    }

    /// The version of new rooms that name none.
    pub fn default_room_version(&self) -> &RoomVersionId {
        &self.0.default_room_version
    }

    /// A room that exists here; activates it.
    pub async fn room(&self, room_id: &RoomId) -> Result<RoomHandle, RoomError> {
        let shared = &self.0.room_shared;
        if !shared.published.contains_key(room_id)
            && self.0.storage.get(&schema::ROOM_IDS, room_id).await?.is_none()
        {
            return Err(RoomError::NotFound);
        }
        let actor = self.0.rooms.get(&room_id.to_owned()).await.map_err(RoomError::Activate)?;
        let published = shared.published.get(room_id).map(|published| published.clone());
        let published = published.ok_or(RoomError::Crashed)?;
        Ok(RoomHandle::new(actor, published, shared.clone()))
    }

    /// Several rooms, brought into memory beside each other; those that cannot be read are left out.
    ///
    /// They stay in memory for as long as they are held, so not more than [`ROOMS_AT_A_TIME`] should be.
    pub(crate) async fn rooms(&self, ids: impl Iterator<Item = &RoomId>) -> Vec<RoomHandle> {
        join_all(ids.map(|room_id| self.room(room_id))).await.into_iter().flatten().collect()
    }

    /// The session of a local user who has an account; activates it.
    pub async fn session(&self, user_id: &UserId) -> Result<SessionHandle, SessionError> {
        SessionHandle::open(&self.0.session_shared, &self.0.sessions, user_id).await
    }

    /// The part of a user's membership events that their profile decides; empty for users of other servers.
    pub async fn member_content(&self, user_id: &UserId) -> Result<Map<String, Value>, SessionError> {
        if user_id.server_name() != self.server_name() {
            return Ok(Map::new());
        }
        match self.profile(user_id).await {
            Ok(profile) => Ok(profile.member_content()),
            // Someone who has no account (yet) may be invited all the same.
            Err(SessionError::NotFound) => Ok(Map::new()),
            Err(error) => Err(error),
        }
    }

    /// Whether a user is joined to a room that lets its members join a restricted room; none if that cannot be said
    /// here, since this server is not in all of those rooms.
    ///
    /// Spec: client-server API, "Restricted rooms"; server-server API, "Restricted rooms".
    pub async fn meets_allow_rule(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
    ) -> Result<Option<bool>, RoomError> {
        let Some(join_rules) = self.room(room_id).await?.current("m.room.join_rules", "").await? else {
            return Ok(Some(false));
        };
        let mut is_known = true;
        for allowed in allowed_rooms(&join_rules.pdu) {
            match self.room(&allowed).await {
                // What is known of a room that nobody here is in any more may be out of date.
                Ok(room) if !room.snapshot().head.has_server(self.server_name()) => is_known = false,
                Ok(room) if room.is_joined(user_id).await? => return Ok(Some(true)),
                Ok(_) => {}
                Err(RoomError::NotFound) => is_known = false,
                Err(error) => return Err(error),
            }
        }
        Ok(is_known.then_some(false))
    }

    /// An invite of `target` by `sender`, as `create_room` and the invite endpoint take it.
    pub fn invite(sender: OwnedUserId, target: OwnedUserId, content: Map<String, Value>) -> MembershipChange {
        MembershipChange { sender, target, action: MembershipAction::Invite, content }
    }

    /// The content repository.
    pub fn media(&self) -> &MediaRepository {
        &self.0.media
    }

    /// How often state resolution went back to older state without a reason.
    pub fn state_resets(&self) -> u64 {
        self.0.metrics.state_resets()
    }

    /// What the room actors do.
    pub fn room_stats(&self) -> Stats {
        self.0.rooms.stats()
    }

    /// What the destination actors do; nothing without federation.
    pub fn destination_stats(&self) -> Stats {
        self.0.federation.as_ref().map(Federation::stats).unwrap_or_default()
    }

    /// What the session actors do.
    pub fn session_stats(&self) -> Stats {
        self.0.sessions.stats()
    }

    /// Adds what this server counts to what is served; `registry` brings the prefix `ganglion`.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.0.storage.metrics().register(registry);
        self.0.metrics.register(registry);
        self.pushing().metrics().register(registry);
        self.services().metrics().register(registry);
        // Weak: whoever serves metrics does not keep the server alive.
        let server = self.downgrade();
        let classes = move || {
            let Some(server) = server.upgrade() else { return Vec::new() };
            vec![
                (RoomActor::CLASS, server.room_stats()),
                (SessionActor::CLASS, server.session_stats()),
                (DestinationActor::CLASS, server.destination_stats()),
            ]
        };
        registry.register_collector(Box::new(ActorClasses(Box::new(classes))));
        let server = self.downgrade();
        let extremities = move || {
            let Some(server) = server.upgrade() else { return Vec::new() };
            let rooms = server.room_shared().published.iter();
            rooms.map(|room| room.snapshot.load().head.tips.len() as u64).collect()
        };
        registry.register_collector(Box::new(Extremities(Box::new(extremities))));
    }

    /// Bytes that the store takes, about.
    pub async fn store_bytes(&self) -> Result<u64, StoreError> {
        self.0.storage.size().await
    }

    /// Resolves once the server shuts down, so that long polls end.
    pub async fn stopping(&self) {
        self.0.stopping.watch().wait_for(|stopping| *stopping).await;
    }

    /// Ends long polls; requests under way go on.
    pub fn stop_waiting(&self) {
        self.0.stopping.set(true);
        self.0.media.stop_waiting();
    }

    /// Passivates all actors and closes the store; what was acknowledged is durable already.
    pub async fn shutdown(&self) {
        self.0.resuming.stop().await;
        self.0.delayed.stop().await;
        self.0.pushing.stop().await;
        self.0.following.stop().await;
        self.0.retention.stop().await;
        self.0.room_shared.txns.stop().await;
        self.0.searching.stop().await;
        self.0.session_shared.finish_background().await;
        self.0.sessions.drain_all().await;
        self.0.rooms.drain_all().await;
        if let Some(federation) = &self.0.federation {
            federation.stop().await;
        }
        self.0.users.stop().await;
        self.0.media.stop_waiting();
        let sweeping = self.0.sweeping.lock().take();
        if let Some(sweeping) = sweeping {
            let _ = sweeping.await; // a sweep that failed has said so
        }
        if let Err(error) = self.0.storage.close().await {
            tracing::error!(%error, "the store did not close cleanly");
        }
    }
}

/// Removes media that nobody needs, for as long as the server runs.
async fn sweep(media: MediaRepository) {
    outlive_panics("the removal of media", || media.clone().keep_sweeping()).await;
}
