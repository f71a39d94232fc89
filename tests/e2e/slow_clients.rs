//! Clients that connect, and do not go on.

use std::time::Duration;

use tests::Server;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// What the server answers to a client that sends this and nothing more, until the server hangs up.
async fn answer_to(server: &Server, sent: &str) -> String {
    let mut stream = TcpStream::connect(server.url().trim_start_matches("http://")).await.unwrap();
    stream.write_all(sent.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The server waits for 30 seconds.
    let closed = timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await;
    closed.unwrap_or_else(|_| panic!("the connection stays open after {sent:?}")).unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn who_has_not_asked_yet_does_not_keep_the_server_from_stopping() {
    let mut server = Server::start().await;
    let mut streams = Vec::new();
    for sent in ["", "GET /_matrix/client/versions HT"] {
        let mut stream = TcpStream::connect(server.url().trim_start_matches("http://")).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        streams.push(stream);
    }
    // An answer on a connection that was opened later: the others have been accepted.
    server.client("alice").await;
    timeout(Duration::from_secs(15), server.stop()).await.expect("the server waits for them");
}

#[tokio::test]
async fn who_does_not_finish_a_request_is_not_waited_for() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let post = |path: &str, header: &str| {
        format!("POST /_matrix/{path} HTTP/1.1\r\nHost: localhost\r\n{header}Content-Length: 100\r\n\r\n{{")
    };
    let authorization = format!("Authorization: Bearer {}\r\n", alice.token.as_ref().unwrap());
    let [nothing, half_a_preface, half_a_head, half_a_login, half_a_file] = futures_util::future::join_all([
        answer_to(&server, ""),
        answer_to(&server, "PRI * HT"),
        answer_to(&server, "GET /_matrix/client/versions HT"),
        answer_to(&server, &post("client/v3/login", "")),
        answer_to(&server, &post("media/v3/upload", &authorization)),
    ])
    .await
    .try_into()
    .unwrap();
    assert_eq!([nothing, half_a_preface, half_a_head], [const { String::new() }; 3]);
    for half in [half_a_login, half_a_file] {
        assert!(half.starts_with("HTTP/1.1 408 "), "{half}");
        assert!(half.contains("M_UNKNOWN"), "{half}");
    }
}
