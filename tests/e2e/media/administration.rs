//! `ganglion media …`, on a running server and a stopped one.

use std::path::Path;

use tests::{Client, Server};

use super::{DOWNLOAD, get, upload};

/// Runs a command that has to succeed; gives its lines.
async fn command(server: &Server, arguments: &[&str]) -> Vec<String> {
    let output = server.command(&[&["media"], arguments].concat(), "").await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(ToOwned::to_owned).collect()
}

async fn status(server: &Server, client: &Client, place: &str) -> u16 {
    get(server, client, &format!("{DOWNLOAD}/{place}"), &[]).await.status().as_u16()
}

/// The number of files in a folder and the folders in it.
fn files(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
}

#[tokio::test]
async fn an_administrator_lists_removes_and_locks_away_media() {
    let mut server = Server::start_with_settings(&[("media.user_quota", "\"20 kB\"")]).await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let first = upload(&server, &alice, "text/plain", "?filename=tea%1b.txt", &[1; 9_000]).await;
    let second = upload(&server, &alice, "image/png", "", &[2; 9_000]).await;
    let bobs = upload(&server, &bob, "text/plain", "", &[2; 9_000]).await;
    let mut expected = [
        format!("mxc://{first} 9000 bytes text/plain tea\\u{{1b}}.txt"),
        format!("mxc://{second} 9000 bytes image/png -"),
    ];
    expected.sort();
    assert_eq!(command(&server, &["list", "alice"]).await, expected);

    let uri = format!("mxc://{second}");
    assert_eq!(command(&server, &["quarantine", &uri]).await, [format!("in quarantine: {uri}")]);
    // The same bytes, whoever uploaded them.
    assert_eq!((status(&server, &alice, &second).await, status(&server, &bob, &bobs).await), (404, 404));
    command(&server, &["unquarantine", &uri]).await;
    assert_eq!((status(&server, &alice, &second).await, status(&server, &bob, &bobs).await), (200, 200));

    let content = server.data_dir().join("media/content");
    assert_eq!(files(&content), 2);
    let (first_uri, unknown) = (format!("mxc://{first}"), "mxc://localhost/unknown");
    let lines = command(&server, &["delete", &first_uri, unknown]).await;
    assert_eq!(lines, [format!("removed {first_uri}"), format!("not here: {unknown}")]);
    assert_eq!((status(&server, &alice, &first).await, files(&content)), (404, 1));
    // What is gone counts no longer.
    upload(&server, &alice, "text/plain", "", &[3; 10_000]).await;

    server.stop().await;
    assert_eq!(command(&server, &["delete-of", "@alice:localhost"]).await, ["removed 2 files, 19000 bytes"]);
    for wrong in [
        &["delete", "https://example.org/tea"][..],
        &["list", "@alice:elsewhere.org"],
        &["purge-remote", "--older-than", "soon"],
    ] {
        let output = server.command(&[&["media"], wrong].concat(), "").await;
        assert!(!output.status.success(), "{wrong:?}");
    }
    server.restart().await;
    assert_eq!((status(&server, &alice, &second).await, status(&server, &bob, &bobs).await), (404, 200));
    assert_eq!(files(&content), 1);
}

#[tokio::test]
async fn copies_of_other_servers_media_are_purged_and_fetched_again() {
    let (mut server, other) = (Server::start_federating("").await, Server::start_federating("").await);
    let (alice, bob) = (server.client("alice").await, other.client("bob").await);
    let place = upload(&server, &alice, "text/plain", "", b"tea").await;
    let own = upload(&other, &bob, "text/plain", "", b"coffee").await;
    assert_eq!(status(&other, &bob, &place).await, 200);
    assert_eq!(command(&other, &["purge-remote", "--older-than", "2 d"]).await, ["removed 0 files, 0 bytes"]);
    assert_eq!(command(&other, &["purge-remote", "--older-than", "0s"]).await, ["removed 1 files, 3 bytes"]);
    assert_eq!((status(&other, &bob, &place).await, status(&other, &bob, &own).await), (200, 200));
    command(&other, &["purge-remote", "--older-than", "0s"]).await;
    server.kill();
    assert_eq!(status(&other, &bob, &place).await, 502);
    assert_eq!(files(&other.data_dir().join("media/content")), 1);
}
