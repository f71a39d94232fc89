//! Whether a running server can be reached, under its name and through the proxies before it.
//!
//! Two probes find what proxies do to requests: a room alias and an event ID that nobody has, with `%2F` and `%25` in
//! them. A server that got the path as it was sent answers that there is no such thing; any other answer tells what
//! happened on the way. The second probe is signed, as requests of other servers are, by this server itself.

use std::{sync::Arc, time::Duration};

use actors::federation::{FederationClient, FederationError, FederationRequest};
use anyhow::Context;
use http::{Method, StatusCode};
use reqwest::{Client, redirect::Policy};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::Report;
use crate::{
    config::Config,
    outbound::{self, Outbound, OutboundOptions, innermost},
    serve::{OsEntropy, SystemClock},
    signing,
};

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The largest answer that is read.
const ANSWER_MAX: usize = 1 << 20;

/// What to tell a proxy.
const PROXY_ADVICE: &str = "have the proxy pass the URI on as it came: nginx needs `proxy_pass http://…:8008;` without a path \
                            or a slash at its end, Apache `nocanon` and `AllowEncodedSlashes NoDecode`";

/// Reaches the server in every way that others do.
pub(super) async fn check(report: &mut Report, config: &Config) {
    let client = match client(config) {
        Ok(client) => client,
        Err(error) => return report.wrong("network", format!("{error:#}"), "correct federation.extra_ca"),
    };
    if let Some(address) = config.listen.client.first() {
        let base = format!("http://{address}");
        probe_client(report, config, &client, &base, "listen.client").await;
    }
    if let Some(base) = &config.well_known.client_base_url {
        let base = base.trim_end_matches('/');
        probe_client(report, config, &client, base, "well_known.client_base_url").await;
        forwarded_addresses(report, config, base);
    }
    if config.federation.enabled.unwrap_or(config.tls.is_some()) {
        well_known(report, config, &client).await;
        federation(report, config).await;
    }
}

fn client(config: &Config) -> anyhow::Result<Client> {
    let roots = outbound::roots(&config.federation.extra_ca)?;
    Ok(Client::builder().redirect(Policy::none()).timeout(TIMEOUT).tls_certs_merge(roots).build()?)
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ErrorBody {
    errcode: String,
    error: String,
}

/// Asks for the versions, and for a room alias that nobody has.
async fn probe_client(report: &mut Report, config: &Config, client: &Client, base: &str, key: &str) {
    let area = "clients";
    let answer = client.get(format!("{base}/_matrix/client/versions")).send().await;
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            let what = format!("{base} ({key}) cannot be reached: {}", innermost(&error));
            return report.wrong(area, what, format!("correct {key}, or the proxy that answers there"));
        }
    };
    let status = answer.status();
    if status.is_redirection() {
        let what = format!("{base} ({key}) redirects: clients do not follow that with every request");
        return report.wrong(area, what, format!("set {key} to where it leads"));
    }
    let versions = json::<Value>(answer).await.unwrap_or_default();
    if !status.is_success() || versions["versions"].as_array().is_none() {
        let what =
            format!("{base}/_matrix/client/versions ({key}) is not answered by a homeserver: {status}");
        return report.wrong(area, what, "have the proxy pass everything below /_matrix on, path included");
    }
    let path = format!("/_matrix/client/v3/directory/room/%23ganglion%2F%25check%3A{}", config.server_name);
    match client.get(format!("{base}{path}")).send().await {
        Ok(answer) => {
            let status = answer.status();
            let body = json::<ErrorBody>(answer).await.unwrap_or_default();
            judge(report, area, &format!("{base} ({key})"), status, &body);
        }
        Err(error) => report.wrong(area, format!("{base}{path}: {}", innermost(&error)), PROXY_ADVICE),
    }
}

/// What the answer to a probe tells.
fn judge(report: &mut Report, area: &'static str, place: &str, status: StatusCode, body: &ErrorBody) {
    let ErrorBody { errcode, error } = body;
    match (status, errcode.as_str()) {
        (StatusCode::NOT_FOUND, "M_NOT_FOUND") => {
            report.fine(area, format!("{place} is reached, and requests arrive as they were sent"));
        }
        (StatusCode::NOT_FOUND, "M_UNRECOGNIZED") => report.wrong(
            area,
            format!("{place}: a proxy decodes %2F in the URI, or takes a part of the path away"),
            PROXY_ADVICE,
        ),
        (StatusCode::BAD_REQUEST, "M_INVALID_PARAM") => {
            report.wrong(area, format!("{place}: a proxy encodes the URI twice"), PROXY_ADVICE);
        }
        (StatusCode::UNAUTHORIZED, _) => report.wrong(area, format!("{place}: {error}"), PROXY_ADVICE),
        (StatusCode::TOO_MANY_REQUESTS, _) => {
            report.doubtful(area, format!("{place}: too many requests"), "try again later");
        }
        _ => {
            let what =
                format!("{place} answers with {status} {errcode} where a homeserver answers M_NOT_FOUND");
            report.wrong(area, what, PROXY_ADVICE);
        }
    }
}

/// Behind a proxy all clients share one address, unless the proxy is trusted to tell.
fn forwarded_addresses(report: &mut Report, config: &Config, base: &str) {
    if base.starts_with("https:") && config.tls.is_none() && config.access.trusted_proxies.is_empty() {
        report.doubtful(
            "clients",
            "all clients seem to come from the proxy's address, and share its limits on logging in",
            "name the proxy in access.trusted_proxies, and have it send X-Forwarded-For",
        );
    }
}

/// Compares the public delegation with the configured one.
async fn well_known(report: &mut Report, config: &Config, client: &Client) {
    // A name with a port, or an address, is not delegated.
    if config.server_name.port().is_some() || config.server_name.is_ip_literal() {
        return;
    }
    let url = format!("https://{}/.well-known/matrix/server", config.server_name.host());
    let answer = delegation(client, &url).await;
    match (answer, &config.well_known.server) {
        (Ok(found), Some(wanted)) if found == *wanted => {
            report.fine("delegation", format!("{url} leads to {wanted}"));
        }
        (Ok(found), Some(wanted)) => report.wrong(
            "delegation",
            format!("{url} leads to {found}, the configuration to {wanted}"),
            "correct the document, or well_known.server",
        ),
        (Ok(found), None) => report.fine("delegation", format!("{url} leads to {found}")),
        (Err(error), Some(_)) => report.wrong(
            "delegation",
            format!("{url} cannot be read: {error}"),
            "have the web server of that name pass /.well-known/matrix on to this one",
        ),
        (Err(_), None) => {
            report
                .fine("delegation", format!("there is none; others ask {}:8448", config.server_name.host()));
        }
    }
}

/// The server that a `.well-known` names.
async fn delegation(client: &Client, url: &str) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Delegation {
        #[serde(rename = "m.server")]
        server: String,
    }
    let answer = client.get(url).send().await.and_then(reqwest::Response::error_for_status);
    let answer = answer.map_err(|error| innermost(&error))?;
    let found: Option<Delegation> = json(answer).await;
    found.map(|found| found.server).ok_or_else(|| "it names no m.server".to_owned())
}

/// The body of an answer; none if it is not what it should be.
async fn json<T: DeserializeOwned>(answer: reqwest::Response) -> Option<T> {
    serde_json::from_slice(&outbound::read(answer, ANSWER_MAX).await.ok()?).ok()
}

/// Asks the server under its name for its keys, and sends it a signed request.
async fn federation(report: &mut Report, config: &Config) {
    let area = "federation";
    let name = &config.server_name;
    let (outbound, own) = match outbound(config) {
        Ok(outbound) => outbound,
        Err(error) => return report.wrong(area, format!("{error:#}"), "see above"),
    };
    let place = match outbound.whereabouts(name).await {
        Ok(place) => place,
        Err(error) => {
            return report.wrong(
                area,
                format!("{name} is not found: {error}"),
                "correct DNS or the delegation",
            );
        }
    };
    let answer = match outbound.request(name, request("/_matrix/key/v2/server")).await {
        Ok(answer) => answer,
        Err(error) => {
            let what = format!("{name} at {place} cannot be reached: {error}");
            return report.wrong(area, what, advice(&error));
        }
    };
    let keys: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let key = &keys["verify_keys"][own.as_str()];
    if keys["server_name"] != name.as_str() || key.is_null() {
        let who = keys["server_name"].as_str().unwrap_or("something that is no homeserver");
        let what = format!("at {place} {who} answers, without this server's key {own}");
        return report.wrong(area, what, "correct DNS, the delegation or the proxy");
    }
    let probe = format!("/_matrix/federation/v1/event/%24ganglion%2F%25check%3A{name}");
    match outbound.request(name, request(&probe)).await {
        Err(FederationError::Status { status, errcode, error, .. }) => {
            judge(report, area, &format!("{name} at {place}"), status, &ErrorBody { errcode, error });
        }
        Ok(_) => report.wrong(area, format!("{place} has an event that nobody sent"), PROXY_ADVICE),
        Err(error) => report.wrong(area, format!("{name} at {place}: {error}"), advice(&error)),
    }
}

/// A client that signs as this server, and the ID of its key.
fn outbound(config: &Config) -> anyhow::Result<(Outbound, String)> {
    // A check changes nothing.
    anyhow::ensure!(signing::exists(&config.data_dir)?, "there is no signing key");
    let keys = signing::load(&config.data_dir, &OsEntropy).context("the signing key cannot be read")?;
    let id = keys.signing.id();
    let options = OutboundOptions {
        extra_ca: config.federation.extra_ca.clone(),
        // To reach oneself over loopback is no mistake.
        allow_private_addresses: true,
        max_concurrent_connects: 1,
    };
    let clock = Arc::new(SystemClock);
    Ok((Outbound::new(config.server_name.clone(), Arc::new(keys.signing), &options, clock)?, id))
}

fn request(path: &str) -> FederationRequest {
    FederationRequest {
        method: Method::GET,
        path_and_query: path.to_owned(),
        body: None,
        timeout: TIMEOUT,
        max_response: ANSWER_MAX,
    }
}

fn advice(error: &FederationError) -> &'static str {
    match error {
        FederationError::Dns(_) => "make a DNS record for the name",
        FederationError::Connect(_) | FederationError::Timeout => {
            "open the port in the firewall, or delegate to one that is open (well_known.server)"
        }
        FederationError::Tls(_) => "show a certificate for that name, with its whole chain",
        _ => "have the proxy pass everything below /_matrix on",
    }
}
