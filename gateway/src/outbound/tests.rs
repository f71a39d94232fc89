use engine::pdu::SigningKey;
use http::Method;
use ruma::server_name;
use tokio::net::TcpListener;

use super::*;
use crate::serve::SystemClock;

fn outbound(max_concurrent_connects: usize) -> Outbound {
    let options =
        OutboundOptions { allow_private_addresses: true, max_concurrent_connects, extra_ca: Vec::new() };
    let key = Arc::new(SigningKey::new(&[1; 32], "test").unwrap());
    Outbound::new(server_name!("own.test").to_owned(), key, &options, Arc::new(SystemClock)).unwrap()
}

fn get(path: &str) -> FederationRequest {
    FederationRequest {
        method: Method::GET,
        path_and_query: path.to_owned(),
        body: None,
        timeout: Duration::from_secs(30),
        max_response: 1000,
    }
}

/// Whoever names servers that take connections and say nothing holds up look-ups of keys, and nothing else; and the other way round.
#[tokio::test]
async fn look_ups_of_keys_have_a_budget_of_their_own() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = OwnedServerName::try_from(silent.local_addr().unwrap().to_string()).unwrap();
    for (stuck, other) in [("/_matrix/key/v2/server", "/_matrix/federation/v1/version")]
        .into_iter()
        .flat_map(|(keys, rest)| [(keys, rest), (rest, keys)])
    {
        let outbound = outbound(1);
        let mut held = Vec::new();
        // The first takes the budget, the second does not come to connect any more.
        let (mut first, mut second) =
            (Box::pin(outbound.send(&server, get(stuck))), Box::pin(outbound.send(&server, get(stuck))));
        tokio::select! {
            biased;
            _ = &mut first => panic!("{stuck} was answered"),
            connection = silent.accept() => held.push(connection.unwrap()),
        }
        tokio::select! {
            biased;
            _ = &mut first => panic!("{stuck} was answered"),
            _ = &mut second => panic!("{stuck} was answered"),
            _ = silent.accept() => panic!("{stuck} goes beyond its budget"),
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
        }
        let mut other_one = Box::pin(outbound.send(&server, get(other)));
        let connected = async {
            tokio::select! {
                biased;
                _ = &mut other_one => panic!("{other} was answered"),
                connection = silent.accept() => held.push(connection.unwrap()),
            }
        };
        tokio::time::timeout(Duration::from_secs(5), connected)
            .await
            .unwrap_or_else(|_| panic!("{other} waits"));
    }
}
