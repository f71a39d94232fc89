//! Previews of pages, from a site on loopback.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use image::ImageFormat;
use serde_json::json;
use tests::{Server, segment};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::{DOWNLOAD, get, thumbnails::picture};

const PREVIEW: &str = "/_matrix/client/v1/media/preview_url";

/// A site that stands until it is dropped.
struct Site {
    port: u16,
    requests: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Site {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = requests.clone();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(answer(stream, port));
            }
        });
        Self { port, requests, serving }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    /// How many requests came since it was last asked.
    fn requests(&self) -> usize {
        self.requests.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer(mut stream: TcpStream, port: u16) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => request.push(byte),
            Err(_) => return,
        }
    }
    let request = String::from_utf8_lossy(&request).to_lowercase();
    let path = request.split(' ').nth(1).unwrap();
    let ok = |kind: &str, body: &[u8]| {
        let head = format!("200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}", body.len());
        (head, body.to_vec())
    };
    let (head, body) = match path {
        "/page" => {
            let page = "<title>Shown</title><meta property=og:title content='Gr\u{fc}\u{df}e'>\
                        <meta property=og:image content=tea.png><meta name=description content=All>";
            let latin: Vec<u8> =
                page.chars().map(|letter| u8::try_from(u32::from(letter)).unwrap()).collect();
            ok("text/html; charset=iso-8859-1", &latin)
        }
        "/tea.png" => ok("image/png", &picture(40, 30, ImageFormat::Png)),
        "/languages" => {
            let asks = request.contains("accept-language: de") && request.contains("bot");
            ok("text/html", format!("<title>{asks}</title>").as_bytes())
        }
        "/moved" => ("302 Found\r\nlocation: /page\r\ncontent-length: 0".to_owned(), Vec::new()),
        "/away" => {
            (format!("302 Found\r\nlocation: http://localhost:{port}/page\r\ncontent-length: 0"), Vec::new())
        }
        "/round" => ("302 Found\r\nlocation: /round\r\ncontent-length: 0".to_owned(), Vec::new()),
        _ => ("404 Not Found\r\ncontent-length: 0".to_owned(), Vec::new()),
    };
    let head = format!("HTTP/1.1 {head}\r\nconnection: close\r\n\r\n");
    let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
}

#[tokio::test]
async fn a_page_is_shown_as_it_describes_itself() {
    let site = Site::start().await;
    let settings = [
        ("media.url_previews", "true"),
        ("media.url_preview_allow_private_addresses", "true"),
        ("media.url_preview_deny", "[\"localhost\"]"),
        ("media.url_preview_languages", "\"de, en;q=0.5\""),
    ];
    let server = Server::start_with_settings(&settings).await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let path = |url: &str| format!("{PREVIEW}?url={}", segment(url));
    let preview = alice.get(&path(&site.url("moved"))).await.ok();
    let size = picture(40, 30, ImageFormat::Png).len();
    let expected = json!({
        "og:title": "Grüße", "og:description": "All", "og:image": preview["og:image"], "og:image:type": "image/png",
        "og:image:width": 40, "og:image:height": 30, "matrix:image:size": size,
    });
    assert_eq!(preview, expected);
    assert_eq!(site.requests(), 3);
    let place = preview["og:image"].as_str().unwrap().strip_prefix("mxc://").unwrap();
    let image = get(&server, &bob, &format!("{DOWNLOAD}/{place}"), &[]).await;
    assert_eq!(image.headers()["content-type"], "image/png");
    assert_eq!(image.bytes().await.unwrap().len(), size);
    // Bob's is the same, by the old path too.
    let old = format!("/_matrix/media/v3/preview_url?url={}&ts=1510610716656", segment(&site.url("moved")));
    assert_eq!(bob.get(&old).await.ok(), expected);
    assert_eq!(site.requests(), 0);
    assert_eq!(alice.get(&path(&site.url("languages"))).await.ok()["og:title"], "true");

    server.anonymous().get(&path(&site.url("page"))).await.is(401, "M_MISSING_TOKEN");
    alice.get(PREVIEW).await.is(400, "M_MISSING_PARAM");
    alice.get(&path("tea")).await.is(400, "M_INVALID_PARAM");
    for gone in ["missing", "round"] {
        alice.get(&path(&site.url(gone))).await.is(502, "M_UNKNOWN");
    }
    // Neither asked for, nor led to.
    for refused in [format!("http://localhost:{}/page", site.port), site.url("away")] {
        alice.get(&path(&refused)).await.is(403, "M_FORBIDDEN");
    }
}

#[tokio::test]
async fn no_page_leads_into_the_private_network() {
    let site = Site::start().await;
    let server = Server::start_with_settings(&[("media.url_previews", "true")]).await;
    let alice = server.client("alice").await;
    let port = site.port;
    for host in ["127.0.0.1", "localhost", "[::1]", "2130706433", "0.0.0.0"] {
        let url = segment(&format!("http://{host}:{port}/page"));
        alice.get(&format!("{PREVIEW}?url={url}")).await.is(403, "M_FORBIDDEN");
    }
    assert_eq!(site.requests(), 0, "the guard lets something through");
    let off = Server::start().await;
    let carol = off.client("carol").await;
    carol.get(&format!("{PREVIEW}?url={}", segment(&site.url("page")))).await.is(404, "M_UNRECOGNIZED");
}

#[tokio::test]
async fn previews_are_limited_for_each_user() {
    let settings =
        [("media.url_previews", "true"), ("rate_limits.enabled", "true"), ("rate_limits.url_preview", "1")];
    let server = Server::start_with_settings(&settings).await;
    let alice = server.client("alice").await;
    let mut refused = 0;
    for _ in 0..40 {
        let answer = alice.get(&format!("{PREVIEW}?url=http%3A%2F%2F127.0.0.1%2F")).await;
        refused += usize::from(answer.status == 429);
    }
    assert!(refused > 0, "nothing was refused");
}
