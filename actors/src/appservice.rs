//! Application services: bridges and bots that the operator registers in files, and that act for users of their own.
//!
//! A [`Service`] is what its registration says. Requests with its token come from one of its users
//! ([`identity`](self::identity)); what happens in rooms that concern it is pushed to it by a task of its own
//! ([`follower`](self::follower)), which knows from [`interest`](self::interest) which rooms those are.
//!
//! Spec: application service API.

mod ask;
mod client;
mod follower;
mod following;
mod identity;
mod interest;
mod mail;
mod metrics;
mod ping;
mod query;
mod third_party;
mod watch;

use std::{collections::BTreeSet, fmt, sync::Arc};

use parking_lot::Mutex;
use regex::Regex;
use ruma::{OwnedUserId, RoomAliasId, RoomId, ServerName, UserId};
use subtle::ConstantTimeEq;

pub use self::{
    client::{NoServices, ServiceAnswer, ServiceClient, ServiceError, ServiceRequest},
    identity::AssertionError,
    third_party::{ThirdParty, instance_id},
    watch::ServiceWatch,
};
pub(crate) use self::{following::Following, metrics::ServiceMetrics, watch::EphemeralNews};

/// An application service, as its registration describes it.
///
/// Spec: application service API, "Registration".
pub struct Service {
    /// Names it for ever.
    pub id: String,
    /// Where it is reached; none if it wants no requests.
    pub url: Option<String>,
    /// Proves to this server that a request is the service's.
    pub as_token: String,
    /// Proves to the service that a request is this server's.
    pub hs_token: String,
    /// The user of its own.
    pub sender: OwnedUserId,
    /// Which users are its.
    pub users: Namespace,
    /// Which aliases are its.
    pub aliases: Namespace,
    /// Which rooms concern it.
    pub rooms: Namespace,
    /// Whether the requests of its users, but for its own, are limited like others'.
    pub is_rate_limited: bool,
    /// The networks that it knows.
    pub protocols: Vec<String>,
    /// Whether it is told of presence, typing and receipts.
    pub receives_ephemeral: bool,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("id", &self.id).finish_non_exhaustive()
    }
}

impl PartialEq for Service {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Service {}

/// IDs that concern a service, by patterns.
#[derive(Debug, Default)]
pub struct Namespace(pub Vec<Pattern>);

/// IDs of one shape.
#[derive(Debug)]
pub struct Pattern {
    /// What they look like.
    pub regex: Regex,
    /// Whether nobody else may have them.
    pub is_exclusive: bool,
}

impl Pattern {
    /// IDs that begin like this, as other servers read registrations.
    pub fn new(regex: &str, is_exclusive: bool) -> Result<Self, regex::Error> {
        Ok(Self { regex: Regex::new(&format!("^(?:{regex})"))?, is_exclusive })
    }
}

impl Namespace {
    /// Whether an ID is in it.
    pub fn contains(&self, id: &str) -> bool {
        self.0.iter().any(|pattern| pattern.regex.is_match(id))
    }

    /// Whether an ID is in it, and nobody else's.
    fn owns(&self, id: &str) -> bool {
        self.0.iter().any(|pattern| pattern.is_exclusive && pattern.regex.is_match(id))
    }
}

impl Service {
    /// Whether a user is one of its: only users of this server are.
    pub fn has_user(&self, user_id: &UserId) -> bool {
        user_id.server_name() == self.sender.server_name()
            && (*user_id == self.sender || self.users.contains(user_id.as_str()))
    }

    /// Whether an alias is one of its.
    pub fn has_alias(&self, alias: &RoomAliasId) -> bool {
        self.aliases.contains(alias.as_str())
    }

    /// Whether all events of a room concern it, whoever is in there.
    pub fn has_room(&self, room_id: &RoomId) -> bool {
        self.rooms.contains(room_id.as_str())
    }

    fn owns_user(&self, user_id: &UserId) -> bool {
        user_id.server_name() == self.sender.server_name()
            && (*user_id == self.sender || self.users.owns(user_id.as_str()))
    }
}

/// The application services of a server. Cloning shares them.
#[derive(Clone)]
pub struct Services {
    all: Arc<[Arc<Service>]>,
    client: Arc<dyn ServiceClient>,
    metrics: ServiceMetrics,
    /// What services are being asked for, each with the service's ID.
    queries: Arc<Mutex<BTreeSet<(String, String)>>>,
}

/// A service is asked for something; dropping it ends that.
struct Query<'a> {
    services: &'a Services,
    key: (String, String),
}

impl Drop for Query<'_> {
    fn drop(&mut self) {
        self.services.queries.lock().remove(&self.key);
    }
}

impl Default for Services {
    fn default() -> Self {
        Self::new(Vec::new(), Arc::new(NoServices))
    }
}

impl Services {
    /// Services with different IDs and tokens, and how they are reached.
    pub fn new(all: Vec<Service>, client: Arc<dyn ServiceClient>) -> Self {
        let all: Arc<[Arc<Service>]> = all.into_iter().map(Arc::new).collect();
        let metrics = ServiceMetrics::default();
        for service in all.iter() {
            metrics.introduce(&service.id);
        }
        Self { all, client, metrics, queries: Arc::default() }
    }

    /// What is counted.
    pub(crate) fn metrics(&self) -> &ServiceMetrics {
        &self.metrics
    }

    /// Notes that a service is asked for something; none if it is being asked already.
    fn begin_query(&self, service: &str, id: &str) -> Option<Query<'_>> {
        let key = (service.to_owned(), id.to_owned());
        self.queries.lock().insert(key.clone()).then(|| Query { services: self, key })
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.all.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The service with this ID.
    pub fn of_id(&self, id: &str) -> Option<&Arc<Service>> {
        self.iter().find(|service| service.id == id)
    }

    /// The service that has this token; compared in constant time.
    pub fn of_token(&self, token: &str) -> Option<&Arc<Service>> {
        let is_equal = |service: &Service| bool::from(service.as_token.as_bytes().ct_eq(token.as_bytes()));
        self.iter().fold(None, |found, service| if is_equal(service) { Some(service) } else { found })
    }

    /// Whether a user ID may be had by others than a service: `asker`, if it is a service that asks.
    pub fn reserves_user(&self, user_id: &UserId, asker: Option<&Service>) -> bool {
        self.iter().any(|service| Some(&**service) != asker && service.owns_user(user_id))
    }

    /// Whether an alias may be had by others than a service: `asker`, if it is a service that asks.
    pub fn reserves_alias(&self, alias: &RoomAliasId, asker: Option<&Service>) -> bool {
        self.iter().any(|service| Some(&**service) != asker && service.aliases.owns(alias.as_str()))
    }
}

/// The ID of a local user by the localpart, as registrations name them.
pub fn local_user(localpart: &str, server_name: &ServerName) -> Option<OwnedUserId> {
    if localpart.contains(['@', ':']) {
        return None;
    }
    UserId::parse_with_server_name(localpart, server_name).ok()
}

#[cfg(test)]
mod tests {
    use ruma::{owned_user_id, room_alias_id, user_id};

    use super::*;

    fn service(id: &str, pattern: Pattern) -> Service {
        Service {
            id: id.to_owned(),
            url: None,
            as_token: format!("token of {id}"),
            hs_token: String::new(),
            sender: owned_user_id!("@irc_bot:a.example"),
            users: Namespace(vec![pattern]),
            aliases: Namespace(vec![Pattern::new("#_irc_.*", true).unwrap()]),
            rooms: Namespace::default(),
            is_rate_limited: true,
            protocols: Vec::new(),
            receives_ephemeral: false,
        }
    }

    #[test]
    fn patterns_begin_where_the_id_does_and_users_are_local() {
        let irc = service("irc", Pattern::new("@_irc_.*", true).unwrap());
        for (user, expected) in [
            (user_id!("@_irc_bob:a.example"), true),
            (user_id!("@irc_bot:a.example"), true),
            (user_id!("@_irc_bob:b.example"), false),
            (user_id!("@x@_irc_bob:a.example"), false),
        ] {
            assert_eq!(irc.has_user(user), expected, "{user}");
        }
    }

    #[test]
    fn what_is_exclusive_is_reserved_for_its_service() {
        let irc = service("irc", Pattern::new("@_irc_.*", true).unwrap());
        let log = service("log", Pattern::new("@.*", false).unwrap());
        let services = Services::new(vec![irc, log], Arc::new(NoServices));
        let bob = user_id!("@_irc_bob:a.example");
        assert!(services.reserves_user(bob, None));
        assert!(!services.reserves_user(bob, services.of_id("irc").map(|service| &**service)));
        assert!(!services.reserves_user(user_id!("@bob:a.example"), None));
        assert!(services.reserves_alias(room_alias_id!("#_irc_x:a.example"), None));
        assert_eq!(services.of_token("token of log").unwrap().id, "log");
        assert!(services.of_token("token of").is_none() && services.of_token("").is_none());
    }
}
