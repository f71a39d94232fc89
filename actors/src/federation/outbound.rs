//! The destinations of a server that federates.

use std::sync::Arc;

use parking_lot::Mutex;
use ruma::OwnedServerName;
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    askers::Askers,
    device_lists::DeviceLists,
    inbound::Inbound,
    keys::KeyRing,
    mend::Mending,
    query::{Profiles, profiles},
    spaces::KnownSpaces,
};
use crate::{
    background::outlive_panics,
    destination::{Announcement, DestinationActor, DestinationShared, Dispatcher},
    directory::{ClassConfig, Directory, Stats},
    federation::FederationClient,
    homeserver::Homeserver,
};

/// What a server that federates runs besides its rooms and sessions.
pub(crate) struct Federation {
    shared: Arc<DestinationShared>,
    destinations: Directory<DestinationActor>,
    dispatcher: JoinHandle<()>,
    resuming: JoinHandle<()>,
    /// What goes on for as long as the server runs.
    tasks: Mutex<Vec<JoinHandle<()>>>,
    pub(super) device_lists: DeviceLists,
    pub(super) askers: Askers,
    pub(super) profiles: Profiles,
    pub(super) shares_device_names: bool,
    sends_presence: bool,
    pub(super) inbound: Inbound,
    pub(super) mending: Mending,
    pub(super) keys: KeyRing,
    pub(super) spaces: KnownSpaces,
    trusted_key_servers: Vec<OwnedServerName>,
}

/// How this server talks to others.
pub struct FederationConfig {
    /// Sends requests.
    pub client: Arc<dyn FederationClient>,
    /// Servers that vouch for others' keys.
    pub trusted_key_servers: Vec<OwnedServerName>,
    /// Limits of the destination actors.
    pub destinations: ClassConfig,
    /// Whether other servers may know the names of local users' devices.
    pub shares_device_names: bool,
    /// Whether other servers are told of local users' presence.
    pub sends_presence: bool,
}

impl Federation {
    /// Starts the destinations' supervisor, and takes up what was left to send.
    pub(crate) async fn start(
        shared: Arc<DestinationShared>,
        announcements: mpsc::UnboundedReceiver<Announcement>,
        config: FederationConfig,
    ) -> Self {
        let destinations = Directory::start(shared.clone(), config.destinations).await;
        let dispatcher = Dispatcher::new(announcements, destinations.clone(), shared.outbox.clone());
        // Locked by one run after the other.
        let dispatcher = tokio::sync::Mutex::new(dispatcher);
        let dispatcher = tokio::spawn(async move {
            outlive_panics("the sending to other servers", || async { dispatcher.lock().await.run().await })
                .await;
        });
        let resuming = tokio::spawn(resume(shared.clone()));
        Self {
            shared,
            destinations,
            dispatcher,
            resuming,
            tasks: Mutex::default(),
            device_lists: DeviceLists::default(),
            askers: Askers::default(),
            profiles: profiles(),
            shares_device_names: config.shares_device_names,
            sends_presence: config.sends_presence,
            inbound: Inbound::default(),
            mending: Mending::default(),
            keys: KeyRing::default(),
            spaces: KnownSpaces::default(),
            trusted_key_servers: config.trusted_key_servers,
        }
    }

    /// Starts what goes on for as long as the server runs.
    pub(crate) fn run(&self, homeserver: &Homeserver) {
        let mut tasks = self.tasks.lock();
        let own = homeserver.clone();
        tasks.push(tokio::spawn(async move {
            outlive_panics("the announcing of devices", || own.announce_device_lists()).await;
        }));
        let own = homeserver.clone();
        tasks.push(tokio::spawn(async move {
            outlive_panics("the fetching of device lists", || own.refresh_device_lists()).await;
        }));
        if self.sends_presence {
            let own = homeserver.clone();
            tasks.push(tokio::spawn(async move {
                outlive_panics("the sending of presence", || own.announce_presence()).await;
            }));
        }
    }

    /// Sends requests to other servers.
    pub(crate) fn client(&self) -> &Arc<dyn FederationClient> {
        &self.shared.client
    }

    /// Servers that vouch for others' keys.
    pub(crate) fn trusted_key_servers(&self) -> &[OwnedServerName] {
        &self.trusted_key_servers
    }

    /// What the destination actors do.
    pub(crate) fn stats(&self) -> Stats {
        self.destinations.stats()
    }

    /// Stops sending; what is not acknowledged is sent after the next start.
    pub(crate) async fn stop(&self) {
        self.resuming.abort();
        for task in std::mem::take(&mut *self.tasks.lock()) {
            task.abort();
        }
        self.dispatcher.abort();
        self.destinations.drain_all().await;
    }
}

async fn resume(shared: Arc<DestinationShared>) {
    if let Err(error) = shared.outbox.resume(&shared.rooms.store).await {
        tracing::error!(%error, "cannot read what is left to send to other servers");
    }
    match shared.outbox.unfinished().await {
        Ok(servers) => shared.outbox.nudge(servers),
        Err(error) => tracing::error!(%error, "cannot read which servers have missed something"),
    }
}
