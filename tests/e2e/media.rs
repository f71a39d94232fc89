//! The content repository: uploads and downloads.

mod administration;
mod clients;
mod memory;
mod previews;
pub(crate) mod thumbnails;

use std::time::Duration;

use reqwest::{Method, Response, header};
use serde_json::{Value, json};
use tests::{Client, Server};

pub(crate) const UPLOAD: &str = "/_matrix/media/v3/upload";
pub(crate) const CREATE: &str = "/_matrix/media/v1/create";
pub(crate) const DOWNLOAD: &str = "/_matrix/client/v1/media/download";
pub(crate) const OLD_DOWNLOAD: &str = "/_matrix/media/v3/download";

/// A request with headers and a body of bytes.
pub(crate) async fn request(
    server: &Server,
    client: &Client,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Response {
    let http = reqwest::Client::new();
    let mut request = http.request(method, format!("{}{path}", server.url())).body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if let Some(token) = &client.token {
        request = request.bearer_auth(token);
    }
    request.send().await.unwrap()
}

/// The status and errcode of a response.
pub(crate) async fn outcome(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap_or_default();
    (status, body["errcode"].as_str().unwrap_or_default().to_owned())
}

/// Uploads bytes and returns the `server/media ID` of their URI.
pub(crate) async fn upload(
    server: &Server,
    client: &Client,
    content_type: &str,
    query: &str,
    body: &[u8],
) -> String {
    let path = format!("{UPLOAD}{query}");
    let headers = [("content-type", content_type)];
    let response = request(server, client, Method::POST, &path, &headers, body.to_vec()).await;
    assert_eq!(response.status(), 200);
    place(&response.json().await.unwrap())
}

/// The `server/media ID` of a response's URI.
fn place(body: &Value) -> String {
    let uri = body["content_uri"].as_str().unwrap();
    uri.strip_prefix("mxc://").unwrap().to_owned()
}

pub(crate) async fn get(server: &Server, client: &Client, path: &str, headers: &[(&str, &str)]) -> Response {
    request(server, client, Method::GET, path, headers, Vec::new()).await
}

pub(crate) fn header_of(response: &Response, name: header::HeaderName) -> String {
    response.headers().get(name).map_or(String::new(), |value| value.to_str().unwrap().to_owned())
}

#[tokio::test]
async fn what_is_uploaded_comes_back_with_its_type_name_and_safe_headers() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let bytes: Vec<u8> = (0..700_000_u32).map(|number| (number % 251) as u8).collect();
    let place = upload(&server, &alice, "image/png", "?filename=tea%20cup.png", &bytes).await;
    let response = get(&server, &bob, &format!("{DOWNLOAD}/{place}"), &[]).await;
    assert_eq!(response.status(), 200);
    assert_eq!(header_of(&response, header::CONTENT_TYPE), "image/png");
    assert_eq!(header_of(&response, header::CONTENT_DISPOSITION), "inline; filename=\"tea cup.png\"");
    assert_eq!(header_of(&response, header::X_CONTENT_TYPE_OPTIONS), "nosniff");
    assert_eq!(response.headers()["cross-origin-resource-policy"], "cross-origin");
    assert!(
        header_of(&response, header::CONTENT_SECURITY_POLICY).starts_with("sandbox; default-src 'none';")
    );
    assert!(header_of(&response, header::CACHE_CONTROL).contains("private"));
    assert_eq!(response.content_length(), Some(bytes.len() as u64));
    let etag = header_of(&response, header::ETAG);
    assert!(response.bytes().await.unwrap() == bytes, "other bytes came back");

    let named = get(&server, &bob, &format!("{DOWNLOAD}/{place}/pot.png"), &[]).await;
    assert_eq!(header_of(&named, header::CONTENT_DISPOSITION), "inline; filename=pot.png");
    let known = get(&server, &bob, &format!("{DOWNLOAD}/{place}"), &[("if-none-match", &etag)]).await;
    assert_eq!(known.status(), 304);

    // A page is not shown, and without a type it is bytes.
    let page = upload(&server, &alice, "text/html", "", b"<script>").await;
    let response = get(&server, &bob, &format!("{DOWNLOAD}/{page}"), &[]).await;
    assert_eq!(header_of(&response, header::CONTENT_DISPOSITION), "attachment");
    let response = request(&server, &alice, Method::POST, UPLOAD, &[], b"tea".to_vec()).await;
    let untyped = self::place(&response.json().await.unwrap());
    let response = get(&server, &bob, &format!("{DOWNLOAD}/{untyped}"), &[]).await;
    assert_eq!(header_of(&response, header::CONTENT_TYPE), "application/octet-stream");

    // An empty file is a file.
    let empty = upload(&server, &alice, "text/plain", "", b"").await;
    let response = get(&server, &bob, &format!("{DOWNLOAD}/{empty}"), &[]).await;
    assert_eq!((response.status().as_u16(), response.content_length()), (200, Some(0)));
}

#[tokio::test]
async fn a_part_of_the_content_can_be_had() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let place = upload(&server, &alice, "text/plain", "", b"0123456789").await;
    let path = format!("{DOWNLOAD}/{place}");
    for (range, status, content_range, body) in [
        ("bytes=2-4", 206, "bytes 2-4/10", "234"),
        ("bytes=7-", 206, "bytes 7-9/10", "789"),
        ("bytes=-2", 206, "bytes 8-9/10", "89"),
        ("bytes=4-400", 206, "bytes 4-9/10", "456789"),
        ("bytes=10-", 416, "bytes */10", ""),
        ("bytes=0-1,4-5", 200, "", "0123456789"),
    ] {
        let response = get(&server, &alice, &path, &[("range", range)]).await;
        assert_eq!(response.status(), status, "{range}");
        assert_eq!(header_of(&response, header::CONTENT_RANGE), content_range, "{range}");
        assert_eq!(response.text().await.unwrap(), body, "{range}");
    }
    let other = [("range", "bytes=2-4"), ("if-range", "\"another\"")];
    assert_eq!(get(&server, &alice, &path, &other).await.status(), 200);
}

#[tokio::test]
async fn content_may_come_after_its_uri_and_those_who_ask_wait_for_it() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let created = alice.post(CREATE, &json!({})).await.ok();
    assert!(created["unused_expires_at"].as_u64().unwrap() > 1_700_000_000_000);
    let place = place(&created);
    let (path, to) = (format!("{DOWNLOAD}/{place}"), format!("{UPLOAD}/{place}"));
    bob.get(&format!("{path}?timeout_ms=1")).await.is(504, "M_NOT_YET_UPLOADED");
    let put = async |client: &Client, path: &str| {
        let headers = [("content-type", "text/plain")];
        outcome(request(&server, client, Method::PUT, path, &headers, b"tea".to_vec()).await).await
    };
    assert_eq!(put(&bob, &to).await, (403, "M_FORBIDDEN".to_owned()));
    assert_eq!(put(&alice, &format!("{UPLOAD}/localhost/unknown")).await, (404, "M_NOT_FOUND".to_owned()));
    assert_eq!(put(&alice, &format!("{UPLOAD}/other.example/x")).await, (404, "M_NOT_FOUND".to_owned()));
    let waiting = {
        let (server_url, bob, path) = (server.url(), bob.clone(), path.clone());
        tokio::spawn(async move {
            let request = reqwest::Client::new().get(format!("{server_url}{path}?timeout_ms=30000"));
            request.bearer_auth(bob.token.unwrap()).send().await.unwrap().text().await.unwrap()
        })
    };
    // Whether the reader asks before or after it, the content reaches them.
    assert_eq!(put(&alice, &to).await, (200, String::new()));
    assert_eq!(tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap().unwrap(), "tea");
    assert_eq!(put(&alice, &to).await, (409, "M_CANNOT_OVERWRITE_MEDIA".to_owned()));
}

#[tokio::test]
async fn a_uri_that_waited_too_long_is_gone_and_only_so_many_may_wait() {
    let settings = [("media.unused_expires_after", "\"300 ms\""), ("media.max_pending_uploads", "2")];
    let server = Server::start_with_settings(&settings).await;
    let alice = server.client("alice").await;
    let place = place(&alice.post(CREATE, &json!({})).await.ok());
    alice.post(CREATE, &json!({})).await.ok();
    let mut refused = false;
    // Expired ones count no longer: one of the next calls is let in.
    for _ in 0..100 {
        let answer = alice.post(CREATE, &json!({})).await;
        if answer.status == 200 && refused {
            break;
        }
        if answer.status != 200 {
            answer.is(429, "M_LIMIT_EXCEEDED");
            assert!(answer.body["retry_after_ms"].is_u64());
            refused = true;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    assert!(refused, "nothing was refused");
    alice.get(&format!("{DOWNLOAD}/{place}?timeout_ms=1000")).await.is(404, "M_NOT_FOUND");
    let late =
        request(&server, &alice, Method::PUT, &format!("{UPLOAD}/{place}"), &[], b"tea".to_vec()).await;
    assert_eq!(outcome(late).await, (404, "M_NOT_FOUND".to_owned()));
}

#[tokio::test]
async fn sizes_and_quotas_are_kept() {
    let settings = [("media.max_upload_size", "\"100 KiB\""), ("media.user_quota", "\"150 KiB\"")];
    let server = Server::start_with_settings(&settings).await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    for path in ["/_matrix/client/v1/media/config", "/_matrix/media/v3/config", "/_matrix/media/r0/config"] {
        assert_eq!(alice.get(path).await.ok()["m.upload.size"], 100 << 10, "{path}");
    }
    let large = alice.raw(Method::POST, UPLOAD, vec![0; (100 << 10) + 1]).await;
    assert_eq!(outcome(large).await, (413, "M_TOO_LARGE".to_owned()));
    upload(&server, &alice, "text/plain", "", &vec![0; 100 << 10]).await;
    let beyond = alice.raw(Method::POST, UPLOAD, vec![0; 60 << 10]).await;
    assert_eq!(outcome(beyond).await, (403, "M_FORBIDDEN".to_owned()));
    upload(&server, &alice, "text/plain", "", &vec![0; 50 << 10]).await;
    upload(&server, &bob, "text/plain", "", &vec![0; 60 << 10]).await;
    let staging = server.data_dir().join("media/staging");
    assert_eq!(std::fs::read_dir(staging).unwrap().count(), 0, "refused uploads leave something");
}

#[tokio::test]
async fn strangers_and_wrong_uris_get_nothing() {
    let server = Server::start_with_settings(&[("registration.guests", "true")]).await;
    let (alice, nobody) = (server.client("alice").await, server.anonymous());
    let place = upload(&server, &alice, "text/plain", "", b"tea").await;
    for path in [format!("{DOWNLOAD}/{place}"), format!("{DOWNLOAD}/{place}/name"), CONFIG.to_owned()] {
        nobody.get(&path).await.is(401, "M_MISSING_TOKEN");
    }
    nobody.post(CREATE, &json!({})).await.is(401, "M_MISSING_TOKEN");
    nobody.post(UPLOAD, &json!({})).await.is(401, "M_MISSING_TOKEN");
    nobody.put(&format!("{UPLOAD}/{place}"), &json!({})).await.is(401, "M_MISSING_TOKEN");
    alice.get(&format!("{DOWNLOAD}/localhost/unknown")).await.is(404, "M_NOT_FOUND");
    alice.get(&format!("{DOWNLOAD}/other.example/unknown")).await.is(404, "M_NOT_FOUND");
    alice.get(&format!("{DOWNLOAD}/other.example/x?allow_remote=false")).await.is(404, "M_NOT_FOUND");
    for wrong in ["localhost/..%2F..%2Fsigning.key", "localhost/a.b", "not a server/x", "localhost/%E2%98%95"]
    {
        let path = format!("{DOWNLOAD}/{}", wrong.replace(' ', "%20"));
        alice.get(&path).await.is(400, "M_INVALID_PARAM");
    }
    alice.get(&format!("{DOWNLOAD}/{place}?timeout_ms=soon")).await.is(400, "M_INVALID_PARAM");
    // A guest reads, and does not write.
    let mut guest = server.anonymous();
    guest.log_in_as(&guest.post("/_matrix/client/v3/register?kind=guest", &json!({})).await.ok());
    assert_eq!(get(&server, &guest, &format!("{DOWNLOAD}/{place}"), &[]).await.text().await.unwrap(), "tea");
    guest.post(UPLOAD, &json!({})).await.is(403, "M_GUEST_ACCESS_FORBIDDEN");
}

const CONFIG: &str = "/_matrix/client/v1/media/config";

#[tokio::test]
async fn without_authentication_there_is_only_what_came_before_the_freeze() {
    let mut server = Server::start_with_settings(&[("media.legacy_endpoints", "true")]).await;
    let alice = server.client("alice").await;
    let before = upload(&server, &alice, "text/plain", "", b"before").await;
    server.set("media.legacy_endpoints", "false");
    server.restart().await;
    let after = upload(&server, &alice, "text/plain", "", b"after").await;
    let nobody = server.anonymous();
    for version in ["v3", "r0", "v1"] {
        let path = format!("/_matrix/media/{version}/download/{before}");
        let response = get(&server, &nobody, &path, &[]).await;
        assert!(header_of(&response, header::CACHE_CONTROL).contains("public"));
        assert_eq!(response.text().await.unwrap(), "before");
        nobody.get(&format!("/_matrix/media/{version}/download/{after}")).await.is(404, "M_NOT_FOUND");
    }
    nobody.get(&format!("{OLD_DOWNLOAD}/{after}/name")).await.is(404, "M_NOT_FOUND");
    let created = place(&alice.post(CREATE, &json!({})).await.ok());
    nobody.get(&format!("{OLD_DOWNLOAD}/{created}")).await.is(404, "M_NOT_FOUND");
    for place in [before, after] {
        assert_eq!(get(&server, &alice, &format!("{DOWNLOAD}/{place}"), &[]).await.status(), 200);
    }
}

#[tokio::test]
async fn an_acknowledged_upload_survives_a_kill() {
    let mut server = Server::start().await;
    let alice = server.client("alice").await;
    let mut places = Vec::new();
    for number in 0..5_u8 {
        let bytes = vec![number; 300_000];
        places.push((upload(&server, &alice, "text/plain", "", &bytes).await, bytes));
    }
    let created = place(&alice.post(CREATE, &json!({})).await.ok());
    let to = format!("{UPLOAD}/{created}");
    let put = request(&server, &alice, Method::PUT, &to, &[], b"tea".to_vec()).await;
    assert_eq!(put.status(), 200);
    places.push((created, b"tea".to_vec()));
    server.kill();
    server.restart().await;
    for (place, bytes) in places {
        let response = get(&server, &alice, &format!("{DOWNLOAD}/{place}"), &[]).await;
        assert!(response.bytes().await.unwrap() == bytes, "{place} is not what was uploaded");
    }
}
