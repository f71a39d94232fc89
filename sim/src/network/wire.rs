//! A host's end of the network: signs requests as the gateway does, and sends them.

use std::sync::Arc;

use actors::federation::{FederationClient, FederationError, FederationRequest, FederationResponse};
use axum::body::Body;
use engine::pdu::SigningKey;
use futures_util::future::BoxFuture;
use gateway::outbound;
use http::header;
use ruma::{OwnedServerName, ServerName};
use serde_json::Value;
use tokio::{sync::Semaphore, time::Instant};

use super::{
    CONNECT_TIMEOUT, Network, Trouble,
    answers::{Pair, is_transaction},
};
use crate::{host::Power, trace::fingerprint};

/// A host's end of the network.
pub struct Wire {
    /// The network.
    pub network: Network,
    /// The host's name.
    pub own: OwnedServerName,
    /// Signs requests.
    pub key: Arc<SigningKey>,
    /// The host's power: without it nothing is sent.
    pub power: Arc<Power>,
    /// Requests that may be under way at a time; none for as many as there are.
    pub budget: Option<Semaphore>,
}

/// A request of which is noted how it ends.
struct Attempt<'a> {
    network: &'a Network,
    pair: Pair,
    began: Instant,
    is_transaction: bool,
    /// Whether a destination's queue is sent. What is told before a room is joined again, events only, is sent since a user
    /// wants to join.
    is_from_queue: bool,
}

impl<'a> Attempt<'a> {
    fn begin(
        network: &'a Network,
        (from, to): (&ServerName, &ServerName),
        (path, body): (&str, &[u8]),
    ) -> Self {
        let attempt = Self {
            network,
            pair: (from.to_owned(), to.to_owned()),
            began: Instant::now(),
            is_transaction: is_transaction(path),
            is_from_queue: is_transaction(path) && body.starts_with(b"{\"edus\":"),
        };
        if attempt.is_from_queue {
            network.0.state.lock().retries.begins(&attempt.pair);
        }
        attempt
    }

    fn end(self, error: Option<&FederationError>) {
        let retries = &mut self.network.0.state.lock().retries;
        let (from, to) = &self.pair;
        if self.is_from_queue {
            retries.ends(&self.pair, self.began, error);
        } else if !self.is_transaction && error.is_none() {
            retries.was_heard(to, from, false);
        }
    }
}

impl FederationClient for Wire {
    fn request<'a>(
        &'a self,
        destination: &'a ServerName,
        request: FederationRequest,
    ) -> BoxFuture<'a, Result<FederationResponse, FederationError>> {
        Box::pin(self.send(destination, request))
    }
}

impl Wire {
    async fn send(
        &self,
        to: &ServerName,
        mut request: FederationRequest,
    ) -> Result<FederationResponse, FederationError> {
        let _permit = match &self.budget {
            Some(budget) => Some(budget.acquire().await.map_err(|_| FederationError::Disabled)?),
            None => None,
        };
        if self.power.is_off() {
            return Err(FederationError::Connect("the host is down".to_owned()));
        }
        self.lose_updates(to, &mut request);
        let authorization = outbound::authorization(&self.own, &self.key, to, &request)?;
        let body = request.body.clone().unwrap_or_default();
        let mut under_way = self.network.begin(&self.own, to, body.len());
        let (method, path) = (request.method.clone(), request.path_and_query.clone());
        let (from, trace) = (&self.own, &self.network.0.trace);
        trace.note(format_args!("{from} > {to} {method} {path} {:x}", fingerprint(&body)));
        let attempt = Attempt::begin(&self.network, (from, to), (&path, &body));
        let (timeout, max) = (request.timeout, request.max_response);
        let exchange = self.exchange(to, request, authorization);
        let down = || FederationError::Connect("the host is down".to_owned());
        let result = tokio::select! {
            biased;
            // Its connections end with it.
            () = self.power.off() => return Err(down()),
            result = tokio::time::timeout(timeout, exchange) => {
                result.unwrap_or(Err(FederationError::Timeout))
            }
        };
        if self.power.is_off() {
            return Err(down());
        }
        match &result {
            Ok(answer) => {
                under_way.answer = Some(answer.body.len());
                let (status, print) = (answer.status.as_u16(), fingerprint(&answer.body));
                trace.note(format_args!("{from} < {to} {method} {path} {status} {print:x}"));
            }
            Err(error) => trace.note(format_args!("{from} < {to} {method} {path} failed: {error}")),
        }
        let result = result.and_then(|answer| {
            if answer.body.len() > max {
                return Err(FederationError::TooLarge { max });
            }
            if answer.status.is_success() {
                return Ok(answer);
            }
            Err(outbound::refusal(answer.status, None, &answer.body))
        });
        attempt.end(result.as_ref().err());
        result
    }

    /// Leaves out the device updates that a forgetful host loses; the next one then has a predecessor that nobody knows.
    fn lose_updates(&self, to: &ServerName, request: &mut FederationRequest) {
        if self.network.conditions().lost_updates == 0 || !is_transaction(&request.path_and_query) {
            return;
        }
        let parsed = request.body.as_ref().and_then(|body| serde_json::from_slice::<Value>(body).ok());
        let Some(mut transaction) = parsed else { return };
        let Some(edus) = transaction["edus"].as_array_mut() else { return };
        edus.retain(|edu| {
            edu["edu_type"] != "m.device_list_update" || !self.network.loses_update(&self.own, to)
        });
        request.body = Some(transaction.to_string().into());
    }

    async fn exchange(
        &self,
        to: &ServerName,
        request: FederationRequest,
        authorization: http::HeaderValue,
    ) -> Result<FederationResponse, FederationError> {
        let (network, from) = (&self.network, &self.own);
        let body = request.body.clone().unwrap_or_default();
        let fate = match network.fate(from, to, body.len()) {
            Ok(fate) => fate,
            Err(Trouble::Dns) => return Err(FederationError::Dns(format!("no such host: {to}"))),
            Err(Trouble::Tls) => return Err(FederationError::Tls("the certificate has expired".to_owned())),
        };
        if network.is_blocked(from, to) || network.is_blocked(to, from) {
            tokio::time::sleep(CONNECT_TIMEOUT).await;
            return Err(FederationError::Timeout);
        }
        tokio::time::sleep(fate.connect + fate.there).await;
        if fate.is_lost || network.is_blocked(from, to) {
            return std::future::pending().await;
        }
        let Some(endpoint) = network.endpoint(to) else {
            tokio::time::sleep(if fate.is_silent { CONNECT_TIMEOUT } else { fate.back }).await;
            return Err(if fate.is_silent {
                FederationError::Timeout
            } else {
                FederationError::Connect("connection refused".to_owned())
            });
        };
        let arriving = || {
            let mut arriving = http::Request::builder()
                .method(request.method.clone())
                .uri(&request.path_and_query)
                .header(header::AUTHORIZATION, authorization.clone())
                .header(header::HOST, to.as_str());
            if request.body.is_some() {
                arriving = arriving.header(header::CONTENT_TYPE, "application/json");
            }
            arriving
                .body(Body::from(body.clone()))
                .map_err(|error| FederationError::BadBody(error.to_string()))
        };
        let (pair, path) = ((from.clone(), to.to_owned()), request.path_and_query.as_str());
        if let Some(later) = fate.duplicate {
            let (again, endpoint) = (endpoint.serve(arriving()?), Arc::downgrade(&endpoint));
            let (network, pair, path) = (network.clone(), pair.clone(), path.to_owned());
            tokio::spawn(async move {
                tokio::time::sleep(later).await;
                if endpoint.upgrade().is_some_and(|endpoint| endpoint.is_up()) {
                    // Its asker does not wait for the second answer.
                    drop(network.deliver(&pair, &path, again).await);
                }
            });
        }
        tokio::time::sleep(fate.slow).await;
        let (parts, body) = network.deliver(&pair, path, endpoint.serve(arriving()?)).await?;
        if fate.is_answer_lost || network.is_blocked(to, from) {
            return std::future::pending().await;
        }
        tokio::time::sleep(fate.answer_takes(body.len())).await;
        if network.is_blocked(to, from) {
            return std::future::pending().await;
        }
        let content_type = parts.headers.get(header::CONTENT_TYPE).cloned();
        Ok(FederationResponse { status: parts.status, content_type, body })
    }
}
