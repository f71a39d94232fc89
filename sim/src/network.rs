//! The network between hosts: requests take time, get lost, come twice or out of order, and meet partitions.
//!
//! It works on whole HTTP requests, so that a run jumps from one to the next. Each directed link has luck of its own,
//! drawn from the seed.

mod answers;
mod link;
mod retries;
mod wire;

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use actors::federation::FederationError;
use axum::{
    body::{Body, Bytes},
    response::Response,
};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName};

use self::{
    answers::{Answers, Pair},
    link::{Fate, Link},
    retries::Retries,
};
pub use self::{
    link::{Conditions, LinkTraffic},
    wire::Wire,
};
use crate::{seed::Seed, trace::Trace};

/// How long a connection attempt that nobody answers takes.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long idle connections are kept.
const KEEP_ALIVE: Duration = Duration::from_secs(90);

/// Something that answers requests.
pub trait Endpoint: Send + Sync {
    /// Whether it listens at all.
    fn is_up(&self) -> bool;

    /// Answers a request; fails if it goes down meanwhile.
    fn serve(&self, request: http::Request<Body>) -> BoxFuture<'static, Result<Response, Gone>>;
}

/// A host went down before it answered.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the host went down")]
pub struct Gone;

/// What is wrong with the way to a host, besides the links' own conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Its name does not resolve.
    Dns,
    /// Its certificate is not good.
    Tls,
}

/// The network. Cloning shares it.
#[derive(Clone)]
pub struct Network(Arc<Inner>);

struct Inner {
    seed: Seed,
    trace: Arc<Trace>,
    state: Mutex<State>,
}

struct State {
    endpoints: BTreeMap<OwnedServerName, Weak<dyn Endpoint>>,
    conditions: Conditions,
    links: BTreeMap<(OwnedServerName, OwnedServerName), Link>,
    /// Directed pairs between which nothing passes, and how many faults ask for it.
    blocked: BTreeMap<(OwnedServerName, OwnedServerName), u32>,
    trouble: BTreeMap<OwnedServerName, Vec<Trouble>>,
    /// Hosts that take longer to answer, and how much.
    slow: BTreeMap<OwnedServerName, Duration>,
    /// Hosts that do not answer at all while they are down, where others refuse.
    silent: BTreeMap<OwnedServerName, bool>,
    traffic: Traffic,
    per_host: BTreeMap<OwnedServerName, HostTraffic>,
    answers: Answers,
    retries: Retries,
}

/// What all hosts send together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Requests that were begun.
    pub requests: u64,
    /// Requests under way.
    pub in_flight: u64,
    /// Connections in use, or being made.
    pub connections: u64,
    /// The most of them at a time.
    pub connections_peak: u64,
    /// Bytes of bodies, both ways.
    pub bytes: u64,
    /// Requests that failed.
    pub failed: u64,
}

/// What one host sends.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostTraffic {
    /// Requests that were begun.
    pub requests: u64,
    /// Connections in use, or being made.
    pub connections: u64,
    /// The most of them at a time.
    pub connections_peak: u64,
}

impl State {
    fn link(&mut self, seed: Seed, from: &ServerName, to: &ServerName) -> &mut Link {
        let pair = (from.to_owned(), to.to_owned());
        self.links.entry(pair).or_insert_with(|| Link::new(seed.stream(&format!("link {from} {to}"))))
    }
}

impl Network {
    /// A network in these conditions.
    pub fn new(seed: Seed, conditions: Conditions, trace: Arc<Trace>) -> Self {
        let state = State {
            endpoints: BTreeMap::new(),
            conditions,
            links: BTreeMap::new(),
            blocked: BTreeMap::new(),
            trouble: BTreeMap::new(),
            slow: BTreeMap::new(),
            silent: BTreeMap::new(),
            traffic: Traffic::default(),
            per_host: BTreeMap::new(),
            answers: Answers::default(),
            retries: Retries::default(),
        };
        Self(Arc::new(Inner { seed, trace, state: Mutex::new(state) }))
    }

    /// Connects a host.
    pub fn attach(&self, name: &ServerName, endpoint: Weak<dyn Endpoint>) {
        self.0.state.lock().endpoints.insert(name.to_owned(), endpoint);
    }

    /// Lets nothing pass from one host to another, once more.
    pub fn block(&self, from: &ServerName, to: &ServerName) {
        *self.0.state.lock().blocked.entry((from.to_owned(), to.to_owned())).or_default() += 1;
    }

    /// Takes one block away.
    pub fn unblock(&self, from: &ServerName, to: &ServerName) {
        let mut state = self.0.state.lock();
        let key = (from.to_owned(), to.to_owned());
        if let Some(count) = state.blocked.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                state.blocked.remove(&key);
            }
        }
    }

    /// Makes the way to a host fail.
    pub fn trouble(&self, host: &ServerName, trouble: Trouble) {
        self.0.state.lock().trouble.entry(host.to_owned()).or_default().push(trouble);
    }

    /// Takes one trouble away.
    pub fn end_trouble(&self, host: &ServerName, trouble: Trouble) {
        let mut state = self.0.state.lock();
        if let Some(troubles) = state.trouble.get_mut(host)
            && let Some(place) = troubles.iter().position(|known| *known == trouble)
        {
            troubles.remove(place);
        }
    }

    /// Makes a host answer late.
    pub fn slow(&self, host: &ServerName, by: Duration) {
        self.0.state.lock().slow.insert(host.to_owned(), by);
    }

    /// Makes a host answer in its own time again.
    pub fn end_slow(&self, host: &ServerName) {
        self.0.state.lock().slow.remove(host);
    }

    /// Notes that a host starts: it remembers nothing of the requests that it had.
    pub fn starts(&self, host: &OwnedServerName) {
        let mut state = self.0.state.lock();
        state.answers.forgets(host);
        state.retries.starts(host);
    }

    /// Notes that the clock of a host is set.
    pub fn sets_clock(&self, host: &OwnedServerName) {
        self.0.state.lock().retries.starts(host);
    }

    /// Whether connection attempts to a host that is down meet silence instead of a refusal.
    pub fn set_silent(&self, host: &ServerName, is_silent: bool) {
        self.0.state.lock().silent.insert(host.to_owned(), is_silent);
    }

    /// The present conditions of all links.
    pub fn conditions(&self) -> Conditions {
        self.0.state.lock().conditions
    }

    /// Changes the conditions of all links.
    pub fn set_conditions(&self, conditions: Conditions) {
        self.0.state.lock().conditions = conditions;
    }

    /// Ends all that is wrong; links keep their latency.
    pub fn heal(&self) {
        let mut state = self.0.state.lock();
        state.blocked.clear();
        state.trouble.clear();
        state.slow.clear();
        state.conditions = state.conditions.reliable();
    }

    /// What was sent so far.
    pub fn traffic(&self) -> Traffic {
        self.0.state.lock().traffic
    }

    /// What each host sent so far.
    pub fn traffic_of_hosts(&self) -> BTreeMap<OwnedServerName, HostTraffic> {
        self.0.state.lock().per_host.clone()
    }

    /// Transactions that came twice and were answered in two ways.
    pub fn contradictions(&self) -> Vec<String> {
        self.0.state.lock().answers.contradictions().to_vec()
    }

    /// Transactions to hosts that did not take the one before, which came earlier than a back-off allows.
    pub fn hasty_retries(&self) -> Vec<String> {
        self.0.state.lock().retries.hasty().to_vec()
    }

    /// What passed over each link so far.
    pub fn links(&self) -> Vec<(OwnedServerName, OwnedServerName, LinkTraffic)> {
        let state = self.0.state.lock();
        state.links.iter().map(|((from, to), link)| (from.clone(), to.clone(), link.traffic)).collect()
    }

    /// Forgets the peaks, to measure what comes next.
    pub fn reset_peaks(&self) {
        let mut state = self.0.state.lock();
        state.traffic.connections_peak = state.traffic.connections;
        for host in state.per_host.values_mut() {
            host.connections_peak = host.connections;
        }
    }

    fn is_blocked(&self, from: &ServerName, to: &ServerName) -> bool {
        self.0.state.lock().blocked.contains_key(&(from.to_owned(), to.to_owned()))
    }

    fn endpoint(&self, name: &ServerName) -> Option<Arc<dyn Endpoint>> {
        let endpoint = self.0.state.lock().endpoints.get(name)?.upgrade()?;
        endpoint.is_up().then_some(endpoint)
    }

    /// Decides what becomes of a request.
    fn fate(&self, from: &ServerName, to: &ServerName, bytes: usize) -> Result<Fate, Trouble> {
        let mut state = self.0.state.lock();
        let (conditions, seed) = (state.conditions, self.0.seed);
        if let Some(trouble) = state.trouble.get(to).and_then(|troubles| troubles.first()) {
            return Err(*trouble);
        }
        let slow = state.slow.get(to).copied().unwrap_or_default();
        let is_silent = state.silent.get(to).copied().unwrap_or_default();
        let link = state.link(seed, from, to);
        Ok(Fate { slow, is_silent, ..link.fate(&conditions, bytes) })
    }

    /// Lets a request arrive, and waits for its whole answer.
    async fn deliver(
        &self,
        pair: &Pair,
        path: &str,
        served: BoxFuture<'static, Result<Response, Gone>>,
    ) -> Result<(http::response::Parts, Bytes), FederationError> {
        self.0.state.lock().answers.arrives(pair, path);
        let _dealing = Dealing::new(self, pair);
        let reset = |_: Gone| FederationError::Connect("connection reset".to_owned());
        let (parts, body) = served.await.map_err(reset)?.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX)
            .await
            .map_err(|error| FederationError::BadBody(error.to_string()))?;
        if parts.status.is_success() {
            self.0.state.lock().answers.is_answered(pair, path, &body);
        }
        Ok((parts, body))
    }

    /// Whether the next of a host's device updates is lost before it is sent.
    fn loses_update(&self, from: &ServerName, to: &ServerName) -> bool {
        let mut state = self.0.state.lock();
        let conditions = state.conditions;
        state.link(self.0.seed, from, to).loses_update(&conditions)
    }

    fn begin(&self, from: &ServerName, to: &ServerName, bytes: usize) -> UnderWay {
        let mut state = self.0.state.lock();
        let seed = self.0.seed;
        let link = state.link(seed, from, to);
        let is_first = link.begin(bytes);
        let size = u64::try_from(bytes).unwrap_or(u64::MAX);
        state.traffic.requests += 1;
        state.traffic.in_flight += 1;
        state.traffic.bytes += size;
        let opened = u64::from(is_first);
        state.traffic.connections += opened;
        state.traffic.connections_peak = state.traffic.connections_peak.max(state.traffic.connections);
        let host = state.per_host.entry(from.to_owned()).or_default();
        host.requests += 1;
        host.connections += opened;
        host.connections_peak = host.connections_peak.max(host.connections);
        UnderWay { network: self.clone(), from: from.to_owned(), to: to.to_owned(), answer: None }
    }
}

/// A request that a host deals with, until it is dropped; it shows the host that the asker is alive.
struct Dealing<'a> {
    network: &'a Network,
    pair: &'a Pair,
}

impl<'a> Dealing<'a> {
    fn new(network: &'a Network, pair: &'a Pair) -> Self {
        network.0.state.lock().retries.is_dealt_with(&pair.0, &pair.1);
        Self { network, pair }
    }
}

impl Drop for Dealing<'_> {
    fn drop(&mut self) {
        self.network.0.state.lock().retries.was_heard(&self.pair.0, &self.pair.1, true);
    }
}

/// A request under way; counted until it is dropped.
struct UnderWay {
    network: Network,
    from: OwnedServerName,
    to: OwnedServerName,
    /// Bytes of the answer, if one came.
    answer: Option<usize>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.network.0.state.lock();
        state.traffic.in_flight -= 1;
        let bytes = self.answer.unwrap_or_default();
        state.traffic.bytes += u64::try_from(bytes).unwrap_or(u64::MAX);
        state.traffic.failed += u64::from(self.answer.is_none());
        let key = (self.from.clone(), self.to.clone());
        let is_last = state.links.get_mut(&key).is_some_and(|link| link.end(bytes));
        if is_last {
            state.traffic.connections -= 1;
            if let Some(host) = state.per_host.get_mut(&self.from) {
                host.connections -= 1;
            }
        }
    }
}
