//! Media of other servers.

use image::ImageFormat;
use reqwest::{Method, Response, header};
use serde_json::{Value, json};
use tests::{Client, Server, Synapse};

use crate::media::{
    header_of, outcome,
    thumbnails::{picture, seen},
};

const DOWNLOAD: &str = "/_matrix/client/v1/media/download";
const THUMBNAIL: &str = "/_matrix/client/v1/media/thumbnail";

async fn get(client: &Client, path: &str) -> Response {
    client.raw(Method::GET, path, Vec::new()).await
}

/// What `here` uploads, a user of another server has: bytes, type, name, thumbnails.
async fn is_shared(here: &Client, there: &Client) {
    let bytes: Vec<u8> = (0..1_500_000_u32).map(|number| (number % 241) as u8).collect();
    let place = here.upload("text/plain", "tea cup.txt", bytes.clone()).await;
    for _ in 0..2 {
        let response = get(there, &format!("{DOWNLOAD}/{place}")).await;
        assert_eq!(response.status(), 200);
        assert!(header_of(&response, header::CONTENT_TYPE).starts_with("text/plain"));
        let disposition = header_of(&response, header::CONTENT_DISPOSITION);
        let is_named = ["tea cup.txt", "tea%20cup.txt"].iter().any(|name| disposition.contains(name));
        assert!(is_named, "{disposition}");
        assert!(response.bytes().await.unwrap() == bytes, "other bytes came");
    }
    let image = here.upload("image/png", "", picture(700, 350, ImageFormat::Png)).await;
    let path = format!("{THUMBNAIL}/{image}?width=320&height=240&method=scale");
    let (width, height, content_type) = seen(get(there, &path).await).await;
    assert_eq!((width, height), (320, 160));
    assert!(content_type.starts_with("image/"));
    let path = format!("{THUMBNAIL}/{image}?width=96&height=96&method=crop");
    assert_eq!(seen(get(there, &path).await).await.0, 96);
    let server = here.server_name();
    get_fails(there, &format!("{DOWNLOAD}/{server}/unknown?timeout_ms=1000"), 404, "M_NOT_FOUND").await;
}

async fn get_fails(client: &Client, path: &str, status: u16, errcode: &str) {
    assert_eq!(outcome(get(client, path).await).await, (status, errcode.to_owned()), "{path}");
}

#[tokio::test]
async fn media_are_shared_with_synapse() {
    let (server, synapse) = (Server::start_federating("").await, Synapse::start().await);
    let (alice, bob) = (server.client("alice").await, synapse.client("bob").await);
    is_shared(&bob, &alice).await;
    is_shared(&alice, &bob).await;
}

#[tokio::test]
async fn media_of_a_server_that_goes_away_stay_where_they_were_looked_at() {
    let (mut server, other) = (Server::start_federating("").await, Server::start_federating("").await);
    let (alice, bob) = (server.client("alice").await, other.client("bob").await);
    is_shared(&alice, &bob).await;

    // Bytes that come after their URI.
    let created: Value = alice.post("/_matrix/media/v1/create", &json!({})).await.ok();
    let late = created["content_uri"].as_str().unwrap().strip_prefix("mxc://").unwrap().to_owned();
    get_fails(&bob, &format!("{DOWNLOAD}/{late}?timeout_ms=1"), 504, "M_NOT_YET_UPLOADED").await;
    let path = format!("{DOWNLOAD}/{late}?timeout_ms=30000");
    let waiting = get(&bob, &path);
    let to = format!("/_matrix/media/v3/upload/{late}");
    let uploading = alice.raw(Method::PUT, &to, b"late".to_vec());
    let (waited, uploaded) = tokio::join!(waiting, uploading);
    assert_eq!(uploaded.status(), 200);
    assert_eq!(waited.text().await.unwrap(), "late");

    // Other servers have to sign, and see what is theirs to see.
    for endpoint in ["download", "thumbnail"] {
        let path = format!("/_matrix/federation/v1/media/{endpoint}/x?width=1&height=1");
        alice.get(&path).await.is(401, "M_UNAUTHORIZED");
    }
    get_fails(&bob, &format!("/_matrix/media/v3/download/{late}"), 404, "M_NOT_FOUND").await;

    let (kept, other_one) = (
        alice.upload("text/plain", "", b"kept".to_vec()).await,
        alice.upload("text/plain", "", vec![1]).await,
    );
    get(&bob, &format!("{DOWNLOAD}/{kept}")).await;
    server.kill();
    assert_eq!(get(&bob, &format!("{DOWNLOAD}/{kept}")).await.text().await.unwrap(), "kept");
    for _ in 0..2 {
        get_fails(&bob, &format!("{DOWNLOAD}/{other_one}"), 502, "M_UNKNOWN").await;
    }
    // Back again, it says so with whatever it asks.
    server.restart().await;
    let profile = format!("/_matrix/client/v3/profile/{}", bob.user_id);
    assert!(alice.get(&profile).await.status < 500);
    assert_eq!(get(&bob, &format!("{DOWNLOAD}/{other_one}")).await.bytes().await.unwrap()[..], [1]);
}

/// As after the restore of a backup without the media, or with those of an earlier day.
#[tokio::test]
async fn bytes_that_are_gone_are_fetched_again_or_not_found() {
    let (server, other) = (Server::start_federating("").await, Server::start_federating("").await);
    let (alice, bob) = (server.client("alice").await, other.client("bob").await);
    let text = alice.upload("text/plain", "", b"tea".to_vec()).await;
    let image = alice.upload("image/png", "", picture(200, 100, ImageFormat::Png)).await;
    let thumbnail = format!("{THUMBNAIL}/{image}?width=96&height=96&method=scale");
    let own = bob.upload("text/plain", "", b"my own".to_vec()).await;
    for round in 0..2 {
        assert_eq!(get(&bob, &format!("{DOWNLOAD}/{text}")).await.text().await.unwrap(), "tea", "{round}");
        assert_eq!(seen(get(&bob, &thumbnail).await).await.0, 96, "{round}");
        std::fs::remove_dir_all(other.data_dir().join("media/content")).unwrap();
    }
    get_fails(&bob, &format!("{DOWNLOAD}/{own}"), 404, "M_NOT_FOUND").await;
}

#[tokio::test]
async fn of_what_is_too_large_there_is_a_thumbnail_at_least() {
    let settings = "[media]\nmax_upload_size = \"8 KiB\"\n";
    let (server, other) = (Server::start_federating("").await, Server::start_federating(settings).await);
    let (alice, bob) = (server.client("alice").await, other.client("bob").await);
    let bitmap = picture(300, 200, ImageFormat::Jpeg);
    let large = [bitmap, vec![0; 20 << 10]].concat();
    let place = alice.upload("image/jpeg", "", large).await;
    get_fails(&bob, &format!("{DOWNLOAD}/{place}"), 502, "M_TOO_LARGE").await;
    let path = format!("{THUMBNAIL}/{place}?width=90&height=90&method=scale");
    assert_eq!(seen(get(&bob, &path).await).await, (96, 64, "image/jpeg".to_owned()));
    let staging = other.data_dir().join("media/staging");
    assert_eq!(std::fs::read_dir(staging).unwrap().count(), 0, "refused downloads leave something");
}
