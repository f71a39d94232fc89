//! `ganglion check`: what it finds, what it advises, and its exit code.

use std::os::unix::fs::PermissionsExt;

use tests::{Server, free_port};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Runs the check; tells whether it found nothing wrong, and what it printed.
async fn check(server: &Server) -> (bool, String) {
    let output = server.command(&["check"], "").await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

/// Expects a finding, good or bad.
#[track_caller]
fn expect((is_good, text): (bool, String), expected_good: bool, expected: &[&str]) {
    for expected in expected {
        assert!(text.contains(expected), "{expected:?} is not in\n{text}");
    }
    assert_eq!(is_good, expected_good, "{text}");
}

#[tokio::test]
async fn a_good_server_passes_running_and_stopped() {
    let mut server = Server::start_federating("").await;
    let port = server.url().rsplit(':').next().unwrap().to_owned();
    server.set("listen.client", &format!("['127.0.0.1:{port}']"));
    server.client("alice").await;
    let name = server.name().to_owned();
    let reached = format!("{name} at {name} is reached, and requests arrive as they were sent");
    let running =
        ["fine      certificate", "is in use, as it should be (listen.tls)", "(listen.client) is reached"];
    expect(check(&server).await, true, &[&running[..], &[&reached]].concat());
    server.stop().await;
    let stopped = ["rows, all readable", "is free (listen.client)", "fine      signing key    ed25519:"];
    expect(check(&server).await, true, &stopped);
}

#[tokio::test]
async fn what_keeps_a_server_from_starting_is_named() {
    let mut server = Server::start().await;
    server.stop().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    server.set("listen.client", &format!("['{address}']"));
    expect(check(&server).await, false, &[&format!("WRONG     ports          cannot listen on {address}")]);
    server.set("listen.client", &format!("['127.0.0.1:{}']", free_port()));

    let key = server.data_dir().join("signing.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    expect(check(&server).await, false, &["others can read", "-> chmod 600"]);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();

    server.set("storage.backend", "fjall");
    expect(check(&server).await, false, &["holds a sled store", "-> set storage.backend"]);
    server.set("storage.backend", "sled");

    server.set("storage.cash", "1 MiB");
    expect(check(&server).await, false, &["unknown key `storage.cash`", "did you mean `storage.cache`"]);
}

#[tokio::test]
async fn a_damaged_store_is_found() {
    let mut server = Server::start().await;
    server.client("alice").await;
    server.stop().await;
    server.set("listen.client", &format!("['127.0.0.1:{}']", free_port()));
    expect(check(&server).await, true, &["rows, all readable"]);
    std::fs::write(server.data_dir().join("store").join("witness"), "no witness").unwrap();
    expect(check(&server).await, false, &["WRONG     store", "the store is damaged", "-> restore"]);
}

/// A proxy that makes one replacement in each request's head.
async fn proxy(upstream: String, from: &'static str, to: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let upstream = upstream.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await?);
                }
                let head = String::from_utf8_lossy(&head).replace(from, to);
                // One request for each connection: what follows is not looked at.
                let head = head.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
                let mut server = TcpStream::connect(&upstream).await?;
                server.write_all(head.as_bytes()).await?;
                tokio::io::copy(&mut server, &mut client).await
            });
        }
    });
    format!("http://{address}")
}

#[tokio::test]
async fn what_a_proxy_does_to_requests_is_named() {
    let mut server = Server::start().await;
    let upstream = server.url().trim_start_matches("http://").to_owned();
    server.set("listen.client", &format!("['{upstream}']"));
    for (from, to, is_good, expected) in [
        ("nothing", "nothing", true, "requests arrive as they were sent"),
        ("%2F", "/", false, "a proxy decodes %2F in the URI"),
        ("%", "%25", false, "a proxy encodes the URI twice"),
        ("/_matrix/client/versions", "/versions", false, "is not answered by a homeserver: 404"),
    ] {
        let base = proxy(upstream.clone(), from, to).await;
        server.set("well_known.client_base_url", &base);
        let place = format!("{base} (well_known.client_base_url)");
        let (found_good, text) = check(&server).await;
        let line = text.lines().find(|line| line.contains(&base));
        assert!(line.is_some_and(|line| line.contains(expected)), "{from} to {to} at {place}:\n{text}");
        assert_eq!(found_good, is_good, "{text}");
    }
    server.set("well_known.client_base_url", &format!("http://127.0.0.1:{}", free_port()));
    expect(check(&server).await, false, &["(well_known.client_base_url) cannot be reached"]);
}
