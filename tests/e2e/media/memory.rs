//! Large files go through the server without being held in memory.

use futures_util::StreamExt;
use reqwest::Body;
use tests::{Client, Server};

use super::{DOWNLOAD, UPLOAD, get, place};

/// How much a file takes; `GANGLION_MEDIA_MIB` asks for another one.
const MIB: usize = 64;

/// What the server may take above what it has when it does nothing, in KiB.
const ABOVE_IDLE_MAX: u64 = 32 << 10;

const CHUNK: usize = 1 << 20;

/// A number in the process's status, in KiB.
fn status(server: &Server, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

/// How much more than before something took, at its peak, in KiB.
#[expect(clippy::print_stdout, reason = "what a long run is for")]
async fn above_idle<T>(server: &Server, what: &str, work: impl Future<Output = T>) -> T {
    // Begins to count anew.
    std::fs::write(format!("/proc/{}/clear_refs", server.pid()), "5").unwrap();
    let idle = status(server, "VmRSS");
    let result = work.await;
    let above = status(server, "VmHWM").saturating_sub(idle);
    println!("{what}: {above} KiB above {idle} KiB");
    assert!(above < ABOVE_IDLE_MAX, "{what} takes {above} KiB");
    result
}

async fn send(server: &Server, client: &Client, mib: usize) -> String {
    let chunks = futures_util::stream::iter((0..mib).map(|number| {
        let byte = u8::try_from(number % 251).unwrap();
        Ok::<_, std::io::Error>(vec![byte; CHUNK])
    }));
    let request = reqwest::Client::new().post(format!("{}{UPLOAD}", server.url()));
    let request = request.bearer_auth(client.token.as_ref().unwrap()).body(Body::wrap_stream(chunks));
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    place(&response.json().await.unwrap())
}

async fn receive(server: &Server, client: &Client, place: &str, mib: usize) {
    let mut body = get(server, client, &format!("{DOWNLOAD}/{place}"), &[]).await.bytes_stream();
    let mut received = 0;
    while let Some(chunk) = body.next().await {
        let chunk = chunk.unwrap();
        for at in [received, received + chunk.len() - 1] {
            assert_eq!(usize::from(chunk[at - received]), at / CHUNK % 251, "other bytes came back");
        }
        received += chunk.len();
    }
    assert_eq!(received, mib * CHUNK);
}

#[tokio::test]
async fn a_large_file_is_never_held_in_memory() {
    let mib = std::env::var("GANGLION_MEDIA_MIB").map_or(MIB, |mib| mib.parse().unwrap());
    let settings = "[media]\nmax_upload_size = \"4 GiB\"\n";
    let (server, other) =
        (Server::start_federating(settings).await, Server::start_federating(settings).await);
    let (alice, bob) = (server.client("alice").await, other.client("bob").await);
    // What is set up at the first use does not count.
    let small = send(&server, &alice, 2).await;
    receive(&server, &alice, &small, 2).await;
    receive(&other, &bob, &small, 2).await;
    let large = above_idle(&server, "upload", send(&server, &alice, mib)).await;
    above_idle(&server, "download", receive(&server, &alice, &large, mib)).await;
    above_idle(&other, "fetch from another server", receive(&other, &bob, &large, mib)).await;
}
