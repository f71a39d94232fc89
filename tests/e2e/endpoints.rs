//! Every endpoint of the client-server API is answered, or docs/clients.md says that it is not.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::json;
use tests::{Server, segment};

use crate::fuzz::ENDPOINTS;

/// Something that fits where a path has a parameter.
fn filled(path: &str, user: &str) -> String {
    let parts = path.split('/').map(|part| match part {
        "{userId}" => segment(user),
        "{roomId}" | "{roomIdOrAlias}" => segment("!nowhere:localhost"),
        "{roomAlias}" => segment("#nowhere:localhost"),
        "{eventId}" => segment("$nothing"),
        "{serverName}" => "localhost".to_owned(),
        _ if part.starts_with('{') => "x".to_owned(),
        _ => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join("/")
}

/// The endpoints that the manual calls unanswered.
fn documented() -> BTreeSet<(String, String)> {
    let manual = include_str!("../../docs/clients.md");
    let rows = manual.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let requests = rows.filter_map(|(request, _)| request.split_once(' '));
    requests.map(|(method, path)| (method.to_owned(), path.to_owned())).collect()
}

#[tokio::test]
async fn what_is_not_answered_is_documented() {
    let server = Server::start().await;
    let mut unanswered = BTreeSet::new();
    for (number, line) in ENDPOINTS.lines().enumerate() {
        let mut columns = line.split('\t');
        let (method, path) = (columns.next().unwrap(), columns.next().unwrap());
        // Some requests end the session or the account.
        let client = server.client(&format!("user{number}")).await;
        let method: Method = method.parse().unwrap();
        let body = json!({});
        let with_body = (method != Method::GET).then_some(&body);
        let answer = client.attempt(method.clone(), &filled(path, &client.user_id), with_body).await.unwrap();
        assert!(answer.status < 500, "{method} {path}: {}", answer.body);
        if answer.body["errcode"] == "M_UNRECOGNIZED" {
            unanswered.insert((method.to_string(), path.to_owned()));
        }
    }
    let documented = documented();
    assert!(!documented.is_empty(), "the manual has a table");
    assert_eq!(unanswered, documented, "docs/clients.md");
}
