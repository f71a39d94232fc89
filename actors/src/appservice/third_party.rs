//! What services know of third-party networks.
//!
//! Spec: application service API, "Third-party networks".

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use http::Method;
use ruma::RoomId;
use serde_json::{Map, Value};
use storage::{Batch, schema};

use super::{Service, ask::Question};
use crate::{federation::remote::encode, homeserver::Homeserver, room::RoomError};

/// How long a service may take to look something up.
const TIMEOUT: Duration = Duration::from_secs(15);

/// What is looked for in third-party networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThirdParty {
    /// Users.
    User,
    /// Places where people talk.
    Location,
}

impl ThirdParty {
    const fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Location => "location",
        }
    }

    /// What a result has to have.
    const fn required(self) -> [&'static str; 3] {
        match self {
            Self::User => ["userid", "protocol", "fields"],
            Self::Location => ["alias", "protocol", "fields"],
        }
    }
}

/// What names a network of a service in the directory of public rooms.
pub fn instance_id(service: &Service, network: &str) -> String {
    format!("{}|{network}", service.id)
}

impl Homeserver {
    /// What the services say of the protocols that they know, or of one of them; those of several are put together.
    pub async fn third_party_protocols(&self, only: Option<&str>) -> BTreeMap<String, Value> {
        let known = self.services().iter().flat_map(|service| {
            let wanted = service.protocols.iter().filter(|name| only.is_none_or(|only| *name == only));
            wanted.map(move |name| (service, name))
        });
        let asked = known.map(|(service, name)| async move {
            let path = format!("/thirdparty/protocol/{}", encode(name));
            let about = self.look_up(service, "protocol", path).await;
            about.and_then(|about| Some((name.clone(), described(service, about)?)))
        });
        let mut protocols = BTreeMap::new();
        for (name, mut about) in join_all(asked).await.into_iter().flatten() {
            match protocols.get_mut(&name) {
                None => drop(protocols.insert(name, Value::Object(about))),
                Some(known) => {
                    let instances = about.get_mut("instances").and_then(Value::as_array_mut);
                    if let (Some(known), Some(instances)) = (known["instances"].as_array_mut(), instances) {
                        known.append(instances);
                    }
                }
            }
        }
        protocols
    }

    /// What the services find by a query: those that know the protocol, or all.
    pub async fn third_party(&self, what: ThirdParty, protocol: Option<&str>, query: &str) -> Vec<Value> {
        let knows = |service: &&Arc<Service>| match protocol {
            Some(protocol) => service.protocols.iter().any(|known| known == protocol),
            None => !service.protocols.is_empty(),
        };
        let path = match protocol {
            Some(protocol) => format!("/thirdparty/{}/{}?{query}", what.name(), encode(protocol)),
            None => format!("/thirdparty/{}?{query}", what.name()),
        };
        let asked = self.services().iter().filter(knows);
        let asked = asked.map(|service| self.look_up(service, what.name(), path.clone()));
        let found = join_all(asked).await.into_iter().flatten();
        let results =
            found.filter_map(|found| if let Value::Array(results) = found { Some(results) } else { None });
        let is_whole = |result: &Value| what.required().iter().all(|field| result.get(field).is_some());
        results.flatten().filter(is_whole).collect()
    }

    /// What a service answers; none if that cannot be used.
    async fn look_up(&self, service: &Service, kind: &'static str, path: String) -> Option<Value> {
        let old = Some("/_matrix/app/unstable");
        let question = Question { kind, method: Method::GET, path, old, body: None, timeout: TIMEOUT };
        let answer = self.services().ask(service, question).await;
        let service = &service.id;
        match answer {
            Ok(answer) if answer.status.is_success() => serde_json::from_slice(&answer.body).ok(),
            Ok(answer) => {
                tracing::debug!(service, status = %answer.status, "an application service found nothing");
                None
            }
            Err(error) => {
                tracing::info!(service, %error, "an application service could not be asked");
                None
            }
        }
    }

    /// Lists a room for a network of a service, or takes it out.
    ///
    /// Spec: application service API, "Published room directories".
    pub async fn list_for_network(
        &self,
        instance_id: &str,
        room_id: &RoomId,
        is_public: bool,
    ) -> Result<(), RoomError> {
        let mut batch = Batch::new();
        let key = (instance_id.to_owned(), room_id.to_owned());
        if is_public {
            self.room(room_id).await?;
            batch.put(&schema::SERVICE_ROOMS, &key, &());
        } else {
            batch.delete(&schema::SERVICE_ROOMS, &key);
        }
        self.storage().commit(batch).await.map_err(RoomError::Commit)
    }
}

/// A service's description of a protocol, with IDs for its networks that are unique here.
fn described(service: &Service, about: Value) -> Option<Map<String, Value>> {
    let Value::Object(mut about) = about else { return None };
    let instances = about.entry("instances").or_insert_with(|| Value::Array(Vec::new()));
    for instance in instances.as_array_mut()?.iter_mut().filter_map(Value::as_object_mut) {
        let network = instance.get("network_id").and_then(Value::as_str).map(ToOwned::to_owned);
        if let Some(network) = network {
            instance.insert("instance_id".to_owned(), instance_id(service, &network).into());
        }
    }
    Some(about)
}
