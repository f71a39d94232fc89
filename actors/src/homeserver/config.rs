//! What a server is made with.

use std::{sync::Arc, time::Duration};

use engine::{pdu::SigningKey, room_version};
use ruma::{OwnedServerName, RoomVersionId};

use crate::{
    appservice::Services,
    directory::ClassConfig,
    federation::{FederationConfig, OldKey},
    media::MediaConfig,
    notices::NoticeConfig,
    push::{NoPushGateways, PushGateway},
    retention::RetentionConfig,
    search::TextIndex,
};

/// What a server needs to know about itself.
pub struct HomeserverConfig {
    /// This server's name.
    pub server_name: OwnedServerName,
    /// Signs this server's events.
    pub signing_key: Arc<SigningKey>,
    /// Keys that signed them before.
    pub old_keys: Vec<OldKey>,
    /// The version of new rooms that name none.
    pub default_room_version: RoomVersionId,
    /// Bytes for rooms in memory, half of them for the caches of events and state.
    pub room_memory: u64,
    /// Limits of the room actors; its budget is what `room_memory` leaves.
    pub rooms: ClassConfig,
    /// Limits of the session actors.
    pub sessions: ClassConfig,
    /// How other servers are reached; none without federation.
    pub federation: Option<FederationConfig>,
    /// The content repository.
    pub media: MediaConfig,
    /// What goes on in rooms besides.
    pub conversation: ConversationConfig,
    /// Calls push gateways.
    pub push: Arc<dyn PushGateway>,
    /// The full-text index; none if messages are not searched.
    pub search: Option<Arc<TextIndex>>,
    /// The application services.
    pub services: Services,
}

impl HomeserverConfig {
    /// A small server without federation and without what goes on besides: what tests and benchmarks start from.
    pub fn alone(server_name: OwnedServerName, signing_key: Arc<SigningKey>) -> Self {
        Self {
            server_name,
            signing_key,
            old_keys: Vec::new(),
            default_room_version: room_version::DEFAULT,
            room_memory: 64 << 20,
            rooms: ClassConfig::default(),
            sessions: ClassConfig::default(),
            federation: None,
            media: MediaConfig::default(),
            conversation: ConversationConfig::default(),
            push: Arc::new(NoPushGateways),
            search: None,
            services: Services::default(),
        }
    }
}

/// What a server does in rooms on its own, or for users who are away.
#[derive(Clone, Debug, Default)]
pub struct ConversationConfig {
    /// The longest delay of an event; zero delays none.
    pub delay_max: Duration,
    /// Who sends notices of the server; none if nobody does.
    pub notices: Option<NoticeConfig>,
    /// How long messages are kept.
    pub retention: RetentionConfig,
    /// Whether users subscribe to threads.
    pub thread_subscriptions: bool,
}
