use axum::body::Body;
use http::StatusCode;

use super::*;
use crate::app::Settings;

fn about() -> About {
    About::new(&Settings::default(), Duration::ZERO, false)
}

fn says(text: &'static str) -> Router {
    Router::new().fallback(async move || text)
}

/// Asks for a path; the answer's status and body.
async fn get(base: &str, path: &str) -> (StatusCode, String) {
    let response = reqwest::get(format!("{base}{path}")).await.unwrap();
    (response.status(), response.text().await.unwrap())
}

fn listener() -> Listener {
    Listener::bind("127.0.0.1:0".parse().unwrap(), None).unwrap()
}

/// Clients that all come back at once; who is turned away tries again a second later.
#[tokio::test]
async fn many_may_come_before_one_is_taken() {
    let listener = listener();
    let address = listener.tcp.local_addr().unwrap();
    let coming = (0..500).map(|_| tokio::net::TcpStream::connect(address));
    let come = tokio::time::timeout(Duration::from_millis(900), futures_util::future::join_all(coming)).await;
    assert!(come.expect("nobody is turned away").iter().all(Result::is_ok));
}

#[tokio::test]
async fn requests_wait_for_the_store_except_those_that_need_none() {
    let metrics = listener();
    let metrics_url = metrics.url().unwrap();
    let front = Front::open(vec![listener()], vec![metrics], about(), &[]).unwrap();
    let url = front.urls[0].clone();
    let (status, versions) = get(&url, "/_matrix/client/versions").await;
    assert!(status.is_success() && versions.contains("v1.19"), "{status}: {versions}");
    let (status, _) = get(&url, "/.well-known/matrix/server").await;
    assert_eq!(status, StatusCode::NOT_FOUND, "this server has no such document");
    let asks = [(url.clone(), "/_matrix/client/v3/login"), (metrics_url, "/metrics")];
    let asks = asks.map(|(base, path)| tokio::spawn(async move { get(&base, path).await }));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(asks.iter().all(|asked| !asked.is_finished()));
    front.start(says("the server"), says("the metrics"));
    let [login, metrics] = asks;
    assert_eq!(login.await.unwrap(), (StatusCode::OK, "the server".to_owned()));
    assert_eq!(metrics.await.unwrap(), (StatusCode::OK, "the metrics".to_owned()));
    assert_eq!(get(&url, "/_matrix/client/versions").await.1, "the server");
    front.close().await;
    assert!(reqwest::get(url).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn a_server_that_cannot_start_takes_no_more_connections() {
    let front = Front::open(vec![listener()], Vec::new(), about(), &[]).unwrap();
    let url = front.urls[0].clone();
    drop(front);
    // The task that listens ends at its next turn.
    while reqwest::get(format!("{url}/_matrix/client/versions")).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_too_long_is_told_to_ask_again() {
    let request = Request::new(Body::empty());
    let response = Answers::new(Some(about())).answer(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["retry-after"], "2");
    assert_eq!(response.headers()["access-control-allow-origin"], "*");
}
