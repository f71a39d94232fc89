//! Asking services for what is not there (yet): users and aliases that are theirs, which they may make when they are asked.
//!
//! Spec: application service API, "Querying".

use std::{sync::Arc, time::Duration};

use http::Method;
use ruma::{RoomAliasId, UserId};

use super::{Service, ServiceError, ask::Question};
use crate::{federation::remote::encode, homeserver::Homeserver};

/// How long a service may take: whoever asks waits as long.
const TIMEOUT: Duration = Duration::from_secs(15);

/// How often a service is asked that does not answer.
const TRIES: usize = 2;

impl Homeserver {
    /// Whether a service has made a local user of its who did not exist.
    pub(crate) async fn summon_user(&self, user_id: &UserId) -> bool {
        let owners = self.services().iter().filter(|service| {
            user_id.server_name() == self.server_name() && service.users.contains(user_id.as_str())
        });
        self.summon(owners, "users", user_id.as_str()).await
    }

    /// Whether a service has made a local alias of its that did not exist.
    pub(crate) async fn summon_alias(&self, alias: &RoomAliasId) -> bool {
        let owners = self.services().iter().filter(|service| service.has_alias(alias));
        self.summon(owners, "rooms", alias.as_str()).await
    }

    async fn summon<'a>(
        &'a self,
        owners: impl Iterator<Item = &'a Arc<Service>>,
        kind: &'static str,
        id: &str,
    ) -> bool {
        for service in owners.filter(|service| service.url.is_some()) {
            // A service that looks for the user itself before it makes one is told that there is none.
            let Some(_asking) = self.services().begin_query(&service.id, id) else { continue };
            if self.has_made(service, kind, id).await {
                return true;
            }
        }
        false
    }

    async fn has_made(&self, service: &Service, kind: &'static str, id: &str) -> bool {
        for _ in 0..TRIES {
            let question = Question {
                kind,
                method: Method::GET,
                path: format!("/{kind}/{}", encode(id)),
                old: Some(""),
                body: None,
                timeout: TIMEOUT,
            };
            match self.services().ask(service, question).await {
                Ok(answer) => return answer.status.is_success(),
                Err(ServiceError::NoUrl) => return false,
                Err(error) => {
                    let service = &service.id;
                    tracing::info!(service, %error, id, "an application service does not say whether it has an ID");
                }
            }
        }
        false
    }
}
