//! Requests of other servers: signed, and by whom.
//!
//! Spec: server-server API, "Request Authentication".

use std::{collections::BTreeMap, fmt::Write};

use actors::homeserver::Homeserver;
use axum::{
    body::Bytes,
    extract::{FromRequest, OriginalUri, Request},
};
use engine::canonical::Json;
use http::{StatusCode, Uri, request::Parts, uri::PathAndQuery};
use ruma::{OwnedServerName, ServerName, serde::Base64};
use serde::de::DeserializeOwned;

use super::origins::OriginPlace;
use crate::{
    app::App,
    bodies::Memory,
    error::{ApiError, ApiResult},
    x_matrix::{SignedRequest, XMatrix},
};

/// The largest body: a transaction has at most 50 events of 64 KiB and 100 EDUs.
const BODY_MAX: usize = 16 << 20;

/// A request that another server signed.
pub struct Signed {
    /// Whose signature it bears.
    pub origin: OwnedServerName,
    /// Its query string.
    pub query: String,
    /// Its body.
    pub body: Bytes,
    /// The memory that the body takes.
    _memory: Memory,
    /// Its place among the requests of its server, as long as it is worked on.
    _place: OriginPlace,
}

impl Signed {
    /// The body as a type; it has to be an object, which serde would take an array for, too.
    pub fn json<T: DeserializeOwned>(&self) -> ApiResult<T> {
        if self.body.trim_ascii_start().first() != Some(&b'{') {
            return Err(ApiError::bad_json("the body is no JSON object"));
        }
        serde_json::from_slice(&self.body).map_err(|error| ApiError::bad_json(error.to_string()))
    }

    /// The values of a key of the query.
    pub fn values(&self, key: &str) -> Vec<String> {
        let pairs: Vec<(String, String)> = serde_urlencoded::from_str(&self.query).unwrap_or_default();
        pairs.into_iter().filter(|(name, _)| name == key).map(|(_, value)| value).collect()
    }

    /// The first value of a key of the query as a type; none if it is missing.
    pub fn value<T: std::str::FromStr>(&self, key: &str) -> ApiResult<Option<T>> {
        let value = self.values(key).into_iter().next();
        value
            .map(|value| value.parse().map_err(|_| ApiError::invalid_param(format!("invalid {key}"))))
            .transpose()
    }

    /// The first value of a key of the query as a type.
    pub fn required<T: std::str::FromStr>(&self, key: &str) -> ApiResult<T> {
        self.value(key)?.ok_or_else(|| ApiError::missing_param(format!("{key} is missing")))
    }
}

impl FromRequest<App> for Signed {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> ApiResult<Self> {
        let homeserver = app.homeserver();
        if !homeserver.federates() {
            return Err(ApiError::forbidden("federation is off"));
        }
        let (mut parts, body) = request.into_parts();
        // Routers nest: what was signed is the whole path.
        if let Some(OriginalUri(uri)) = parts.extensions.get::<OriginalUri>() {
            parts.uri = uri.clone();
        }
        let xmatrix = XMatrix::of(&parts.headers)
            .map_err(|error| unauthorized(format!("no usable X-Matrix authorization: {error}")))?;
        let own = homeserver.server_name();
        if xmatrix.destination.as_ref().is_some_and(|destination| destination != own) {
            return Err(unauthorized(format!(
                "the request is signed for another destination than {own}: check the Host that a proxy passes on"
            )));
        }
        // Before the body is read: a server that does not give its key would have it kept in memory meanwhile.
        let key = key_of(homeserver, &xmatrix).await?;
        let (body, memory) = app.unverified().read(body, BODY_MAX).await?;
        check(&xmatrix, &key, own, &parts, &body)?;
        homeserver.server_is_alive(&xmatrix.origin);
        let place = app.origins().enter(&xmatrix.origin).await?;
        let query = parts.uri.query().unwrap_or_default().to_owned();
        Ok(Self { origin: xmatrix.origin, query, body, _memory: memory, _place: place })
    }
}

/// The key that a request is said to be signed with.
async fn key_of(homeserver: &Homeserver, xmatrix: &XMatrix) -> ApiResult<Base64> {
    let XMatrix { origin, key, .. } = xmatrix;
    let now_ms = homeserver.env().clock.now_ms();
    let wanted = BTreeMap::from([(origin.clone(), BTreeMap::from([(key.to_string(), now_ms)]))]);
    let mut keys = homeserver.public_keys(wanted).await;
    keys.get_mut(origin.as_str()).and_then(|keys| keys.remove(key.as_str())).ok_or_else(|| {
        unauthorized(format!("cannot get the key {key} of {origin}, which signed the request"))
    })
}

/// Checks the signature of a request.
fn check(xmatrix: &XMatrix, key: &Base64, own: &ServerName, parts: &Parts, body: &[u8]) -> ApiResult<()> {
    let content = if body.is_empty() { Ok(None) } else { Json::parse(body).map(Some) };
    let content = content
        .map_err(|error| ApiError::bad_request("M_NOT_JSON", format!("the body cannot be read: {error}")))?;
    let holds_for = |uri: &str| {
        let (content, method) = (content.as_ref(), parts.method.as_str());
        let signed = SignedRequest { content, destination: own, method, origin: &xmatrix.origin, uri };
        xmatrix.signs(&signed, key)
    };
    let uri = &parts.uri;
    if holds_for(uri.path_and_query().map_or("/", PathAndQuery::as_str)) {
        return Ok(());
    }
    let cause = match spellings(uri).into_iter().find(|sent| holds_for(sent)) {
        Some(sent) => format!("a proxy changed the encoding of the URI: {sent} was signed, {uri} arrived"),
        None => format!("the signature does not hold for {uri}; a proxy may change the URI or the body"),
    };
    tracing::warn!(origin = %xmatrix.origin, "refused a request: {cause}");
    Err(unauthorized(cause))
}

/// Other ways in which a URI may have been percent-encoded when it was signed.
fn spellings(uri: &Uri) -> [String; 2] {
    [spelling(uri, b""), spelling(uri, b"!$&'()*+,;=:@")]
}

/// A URI with everything encoded that needs it, and what is not in `bare`.
fn spelling(uri: &Uri, bare: &[u8]) -> String {
    let path: Vec<_> = uri.path().split('/').map(|segment| encoded(segment, bare)).collect();
    let path = path.join("/");
    let Some(query) = uri.query() else { return path };
    let query = query.split('&').map(|pair| match pair.split_once('=') {
        Some((key, value)) => format!("{}={}", encoded(key, b""), encoded(value, b"")),
        None => encoded(pair, b""),
    });
    format!("{path}?{}", query.collect::<Vec<_>>().join("&"))
}

fn encoded(text: &str, bare: &[u8]) -> String {
    decoded(text.as_bytes()).into_iter().fold(String::with_capacity(text.len() + 8), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || bare.contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

fn decoded(text: &[u8]) -> Vec<u8> {
    let digit =
        |byte: Option<&u8>| char::from(*byte?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        let escaped =
            (*byte == b'%').then(|| Some(16 * digit(after.first())? + digit(after.get(1))?)).flatten();
        decoded.push(escaped.unwrap_or(*byte));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    decoded
}

fn unauthorized(message: String) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "M_UNAUTHORIZED", message)
}

#[cfg(test)]
mod tests {
    use super::spellings;

    #[test]
    fn a_uri_is_spelled_as_others_may_have_signed_it() {
        let uri = "/a/!room:b%2fc/%24d%zz?x=@e%3a&y".parse().unwrap();
        let strict = "/a/%21room%3Ab%2Fc/%24d%25zz?x=%40e%3A&y";
        assert_eq!(spellings(&uri), [strict, "/a/!room:b%2Fc/$d%25zz?x=%40e%3A&y"]);
    }
}
