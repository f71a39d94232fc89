//! Malformed requests to every client-server endpoint, from a fixed seed: no failure of the server, and no hang.

use std::{fmt::Write, time::Duration};

use rand::{Rng, RngExt, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use reqwest::Method;
use serde_json::{Map, Value, json};
use tests::{Client, Server, segment};

/// Method, path, authentication, query parameters, and the body's fields with the first letters of their types.
///
/// Spec: client-server API; derived from its API description.
pub(crate) const ENDPOINTS: &str = include_str!("fuzz/endpoints.tsv");

/// Requests per endpoint; `GANGLION_FUZZ_REQUESTS` asks for more, `GANGLION_FUZZ_SEED` for others.
const REQUESTS: usize = 14;

/// How long an answer may take: a debug build on a busy machine, and `/events` waits for half a minute if nobody says how long.
const ANSWER_MAX: Duration = Duration::from_secs(45);

struct Endpoint<'a> {
    method: Method,
    path: &'a str,
    query: Vec<&'a str>,
    body: Vec<(&'a str, &'a str)>,
}

impl<'a> Endpoint<'a> {
    fn parse(line: &'a str) -> Self {
        let mut columns = line.split('\t');
        let method = columns.next().unwrap().parse().unwrap();
        let path = columns.next().unwrap();
        let list =
            |text: Option<&'a str>| text.unwrap_or_default().split(',').filter(|item| !item.is_empty());
        let query = list(columns.nth(1)).collect();
        let body = list(columns.next()).map(|field| field.split_once(':').unwrap()).collect();
        Self { method, path, query, body }
    }
}

/// Shortens text to so many bytes.
fn cut(text: &mut String, length: usize) {
    let mut length = length.min(text.len());
    while !text.is_char_boundary(length) {
        length -= 1;
    }
    text.truncate(length);
}

/// Makes up requests.
struct Mallory {
    rng: ChaCha8Rng,
    /// Text that means something somewhere: IDs, tokens, names of the specification.
    words: Vec<String>,
}

impl Mallory {
    fn one_in(&mut self, times: u32) -> bool {
        self.rng.random_range(0..times) == 0
    }

    fn text(&mut self) -> String {
        const ODD: [&str; 22] = [
            "",
            " ",
            "0",
            "-1",
            "9007199254740993",
            "\0",
            "\u{feff}",
            "..",
            "../../x",
            "/",
            "%",
            "%00",
            "{}",
            "@",
            "!",
            "$",
            "#",
            "@:",
            "@a:b:c:d",
            "!x:\u{1F600}",
            "\u{202e}abc",
            "a\r\nb: c",
        ];
        match self.rng.random_range(0..8) {
            0..5 => self.words.choose(&mut self.rng).unwrap().clone(),
            5 | 6 => (*ODD.choose(&mut self.rng).unwrap()).to_owned(),
            _ => "x".repeat(self.rng.random_range(200..70_000)),
        }
    }

    fn number(&mut self) -> Value {
        let numbers = [
            json!(0),
            json!(-1),
            json!(1),
            json!(u64::MAX),
            json!(i64::MIN),
            json!(1_i64 << 53),
            json!(1.5),
            json!(1e300),
            json!(100),
        ];
        numbers.choose(&mut self.rng).unwrap().clone()
    }

    /// Some JSON, mostly of the type that is asked for: the first letter of its name.
    fn value(&mut self, kind: &str, depth: u32) -> Value {
        let kind = if self.one_in(3) {
            *["s", "i", "b", "a", "o", "n"].choose(&mut self.rng).unwrap()
        } else {
            kind
        };
        match kind {
            "s" => self.text().into(),
            "i" => self.number(),
            "b" => self.one_in(2).into(),
            "a" if depth > 0 => (0..self.rng.random_range(0..4)).map(|_| self.any(depth - 1)).collect(),
            "o" | "x" if depth > 0 => {
                let members = self.rng.random_range(0..4);
                let member = |_| {
                    let mut key = self.text();
                    cut(&mut key, 300);
                    (key, self.any(depth - 1))
                };
                Value::Object((0..members).map(member).collect())
            }
            "a" => json!([]),
            "o" | "x" => json!({}),
            _ => Value::Null,
        }
    }

    fn any(&mut self, depth: u32) -> Value {
        let kind = *["s", "s", "i", "b", "a", "o", "o", "n"].choose(&mut self.rng).unwrap();
        self.value(kind, depth)
    }

    fn path(&mut self, endpoint: &Endpoint<'_>, valid: &dyn Fn(&str) -> Option<String>) -> String {
        let segments = endpoint.path.split('/').map(|part| {
            let Some(name) = part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) else {
                return part.to_owned();
            };
            match valid(name).filter(|_| !self.one_in(4)) {
                Some(value) => segment(&value),
                None if self.one_in(8) => "%ff%fe".to_owned(),
                None => {
                    let mut text = self.text();
                    // Longer targets are refused before they are routed.
                    cut(&mut text, 8_000);
                    segment(&text)
                }
            }
        });
        let mut path = segments.collect::<Vec<_>>().join("/");
        let mut separator = '?';
        for name in &endpoint.query {
            if self.one_in(3) {
                continue;
            }
            let mut value = if self.one_in(3) { self.number().to_string() } else { self.text() };
            cut(&mut value, 2_000);
            // A long poll is no hang.
            if name.starts_with("timeout") && value.parse::<f64>().is_ok() {
                "0".clone_into(&mut value);
            }
            let value = if self.one_in(10) { "%ff".to_owned() } else { segment(&value) };
            let _ = write!(path, "{separator}{name}={value}");
            separator = '&';
        }
        path
    }

    fn body(&mut self, endpoint: &Endpoint<'_>) -> Vec<u8> {
        const BROKEN: [&[u8]; 14] = [
            b"",
            b"{",
            b"[]",
            b"null",
            b"1",
            b"\"x\"",
            b"{}",
            b"{\"a\":}",
            b"\xff\xfe",
            b"{\"a\":\"\\ud800\"}",
            b"{\"a\":1,\"a\":2}",
            b"{\"a\":1e999}",
            b"not json",
            b"{\"\\u0000\":\"\\u0000\"}",
        ];
        if self.one_in(5) {
            return BROKEN.choose(&mut self.rng).unwrap().to_vec();
        }
        if self.one_in(20) {
            return format!("{{\"a\":{}{}}}", "[".repeat(20_000), "]".repeat(20_000)).into_bytes();
        }
        let mut body = Map::new();
        for (name, kind) in &endpoint.body {
            if !self.one_in(4) {
                body.insert((*name).to_owned(), self.value(kind, 3));
            }
        }
        if self.one_in(3) || endpoint.body.is_empty() {
            for _ in 0..self.rng.random_range(0..4) {
                let mut key = self.text();
                cut(&mut key, 300);
                body.insert(key, self.any(3));
            }
        }
        Value::Object(body).to_string().into_bytes()
    }
}

/// A user with a room, a message in it, an alias and a sync token.
struct Victim {
    client: Client,
    room: String,
    event: String,
    token: String,
}

impl Victim {
    async fn new(server: &Server, number: usize) -> Self {
        let client = server.client(&format!("victim{number}")).await;
        let room = client.create_room(json!({ "preset": "public_chat" })).await;
        let event = client.say(&room, "first", "hello").await;
        let token = client.token_of_sync().await;
        Self { client, room, event, token }
    }

    /// Whether it is still logged in, in its room, and can sync.
    async fn is_well(&self) -> bool {
        let state = self.client.get(&Client::room(&self.room, "state/m.room.create")).await;
        if state.status != 200 {
            return false;
        }
        let sync = self.client.get("/_matrix/client/v3/sync?timeout=0&full_state=true").await;
        assert_eq!(sync.status, 200, "a user who is in a room can sync: {}", sync.body);
        true
    }

    fn words(&self) -> Vec<String> {
        let known = [
            "public",
            "private",
            "invite",
            "join",
            "leave",
            "ban",
            "knock",
            "restricted",
            "world_readable",
            "1",
            "12",
            "b",
            "f",
            "m.room.message",
            "m.room.member",
            "m.room.power_levels",
            "m.room.encrypted",
            "m.room.create",
            "m.login.password",
            "m.login.dummy",
            "m.login.token",
            "m.id.user",
            "password",
            "online",
            "m.read",
            "m.fully_read",
            "m.thread",
            "m.annotation",
            "global",
            "override",
            "content",
            "room",
            "sender",
            "underride",
            ".m.rule.master",
            "notify",
            "m.direct",
            "m.tag",
            "m.ignored_user_list",
            "displayname",
            "avatar_url",
            "user_id",
            "room_id",
            "event_id",
            "events",
            "limit",
            "rooms",
            "timeline",
            "types",
            "filter",
            "senders",
            "lazy_load_members",
            "membership",
            "body",
            "msgtype",
            "m.relates_to",
            "rel_type",
            "users",
            "@nobody:localhost",
            "@bob:nowhere.invalid",
            "!room:nowhere.invalid",
            "#tea:localhost",
            "#tea:nowhere.invalid",
            "nowhere.invalid",
            "mxc://localhost/abc",
            "mxc://",
            "email",
            "a@example.org",
            "ed25519:DEVICE",
            "signed_curve25519:AAAA",
            "m.megolm_backup.v1.curve25519-aes-sha2",
            "algorithm",
            "signatures",
            "keys",
            "user",
            "type",
            "identifier",
            "token",
            "t1_1",
            "s1_1",
            "s0_0",
            "t99999999999_1",
            "m.room.name",
            "ranges",
            "required_state",
            "timeline_limit",
            "extensions",
            "$LAZY",
            "$ME",
            "state_key",
            "*",
            "m.space",
            "m.room.third_party_invite",
            "scale",
            "crop",
        ];
        let own = [&self.client.user_id, &self.client.device_id, &self.room, &self.event, &self.token];
        own.into_iter().cloned().chain(known.map(ToOwned::to_owned)).collect()
    }

    /// A parameter of a path that fits.
    fn fitting(&self, name: &str) -> Option<String> {
        let text = match name {
            "userId" => &self.client.user_id,
            "roomId" | "roomIdOrAlias" => &self.room,
            "eventId" => &self.event,
            "deviceId" => &self.client.device_id,
            "roomAlias" => "#tea:localhost",
            "eventType" | "type" => "m.room.message",
            "receiptType" => "m.read",
            "relType" => "m.thread",
            "serverName" => "localhost",
            "keyName" => "displayname",
            "filterId" => "0",
            "kind" => "content",
            _ => return None,
        };
        Some(text.to_owned())
    }
}

fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Whether an error is one that a client can read.
fn is_readable(path: &str, status: u16, body: &Value) -> bool {
    let is_page =
        ["/fallback/web", "/login/sso/", "/static/", "/.well-known/"].iter().any(|part| path.contains(part));
    // Interactive authentication asks to go on.
    let goes_on = status == 401 && body["flows"].is_array();
    status < 400 || is_page || goes_on || body["errcode"].is_string()
}

#[tokio::test]
async fn malformed_requests_get_answers() {
    let server = Server::start().await;
    let seed = setting("GANGLION_FUZZ_SEED", 1);
    let requests = setting("GANGLION_FUZZ_REQUESTS", REQUESTS as u64);
    let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let mut mallory = Mallory { rng: ChaCha8Rng::seed_from_u64(seed), words: Vec::new() };
    let mut victims = 0;
    let mut victim = Victim::new(&server, victims).await;
    let (mut failures, mut successes) = (Vec::new(), 0);
    for line in ENDPOINTS.lines() {
        let endpoint = Endpoint::parse(line);
        mallory.words = victim.words();
        for number in 0..requests {
            let path = mallory.path(&endpoint, &|name| victim.fitting(name));
            let mut request = http.request(endpoint.method.clone(), format!("{}{path}", server.url()));
            request = match mallory.rng.next_u32() % 16 {
                0 => request,
                1 => request.bearer_auth("unknown"),
                _ => request.bearer_auth(victim.client.token.as_ref().unwrap()),
            };
            let body = if endpoint.method == Method::GET { Vec::new() } else { mallory.body(&endpoint) };
            let told = String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
            let asked =
                format!("{} {} with {told} ({number})", endpoint.method, &path[..path.len().min(300)]);
            let answer = tokio::time::timeout(ANSWER_MAX, async {
                let response = request.body(body).send().await?;
                let status = response.status().as_u16();
                Ok::<_, reqwest::Error>((status, response.bytes().await?))
            });
            match answer.await {
                Err(_) => failures.push(format!("hangs: {asked}")),
                Ok(Err(error)) => failures.push(format!("breaks off: {asked}: {error}")),
                Ok(Ok((status, body))) => {
                    let json: Value = serde_json::from_slice(&body).unwrap_or_default();
                    successes += u32::from(status == 200);
                    let is_failure = status >= 500 && ![501, 502, 504].contains(&status);
                    if is_failure || !is_readable(&path, status, &json) {
                        failures.push(format!("{status} {json}: {asked}"));
                    }
                }
            }
        }
        if !victim.is_well().await {
            victims += 1;
            victim = Victim::new(&server, victims).await;
        }
    }
    assert!(failures.is_empty(), "seed {seed}, {} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(!server.log().contains("panicked"), "something panicked");
    assert!(successes > 100, "only {successes} requests got past the checks");
}
