//! Account data, tags, filters and OpenID tokens.

use serde_json::json;
use tests::{Client, Server, segment};

fn path(client: &Client, rest: &str) -> String {
    format!("/_matrix/client/v3/user/{}/{rest}", segment(&client.user_id))
}

#[tokio::test]
async fn account_data_is_kept_and_synced_to_all_devices() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let phone = alice.another_device(&alice.password()).await;
    let room = alice.create_room(json!({})).await;
    let global = path(&alice, "account_data/org.example.global");
    let local = path(&alice, &format!("rooms/{}/account_data/org.example.room", segment(&room)));
    alice.get(&global).await.is(404, "M_NOT_FOUND");
    alice.get(&local).await.is(404, "M_NOT_FOUND");
    let since = phone.token_of_sync().await;
    alice.put(&global, &json!({ "a": 1 })).await.ok();
    alice.put(&local, &json!({ "b": 2 })).await.ok();
    assert_eq!(phone.get(&global).await.ok(), json!({ "a": 1 }));
    assert_eq!(phone.get(&local).await.ok(), json!({ "b": 2 }));
    let sync = phone.sync(&format!("since={since}&timeout=1000")).await;
    let event = json!({ "type": "org.example.global", "content": { "a": 1 } });
    assert_eq!(sync["account_data"]["events"], json!([event]));
    let event = json!({ "type": "org.example.room", "content": { "b": 2 } });
    assert_eq!(sync["rooms"]["join"][&room]["account_data"]["events"], json!([event]));
    alice.put(&global, &json!({ "a": 3 })).await.ok();
    assert_eq!(phone.get(&global).await.ok(), json!({ "a": 3 }));
}

/// Spec: "Client Config": types that the server manages are refused with 405.
#[tokio::test]
async fn types_that_the_server_manages_are_refused() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    let fully_read = path(&alice, &format!("rooms/{}/account_data/m.fully_read", segment(&room)));
    alice.put(&fully_read, &json!({ "event_id": "$x" })).await.is(405, "M_BAD_JSON");
    let push_rules = path(&alice, "account_data/m.push_rules");
    alice.put(&push_rules, &json!({ "global": {} })).await.is(405, "M_BAD_JSON");
    assert!(alice.get(&push_rules).await.ok()["global"].is_object());
}

#[tokio::test]
async fn rooms_are_tagged() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    let tags = path(&alice, &format!("rooms/{}/tags", segment(&room)));
    assert_eq!(alice.get(&tags).await.ok(), json!({ "tags": {} }));
    let since = alice.token_of_sync().await;
    alice.put(&format!("{tags}/m.favourite"), &json!({ "order": 0.25 })).await.ok();
    alice.put(&format!("{tags}/u.work"), &json!({})).await.ok();
    let large = json!({ "note": "x".repeat(5000) });
    alice.put(&format!("{tags}/u.large"), &large).await.is(413, "M_TOO_LARGE");
    let expected = json!({ "tags": { "m.favourite": { "order": 0.25 }, "u.work": {} } });
    assert_eq!(alice.get(&tags).await.ok(), expected);
    let sync = alice.sync(&format!("since={since}&timeout=1000")).await;
    let events = &sync["rooms"]["join"][&room]["account_data"]["events"];
    assert_eq!(events, &json!([{ "type": "m.tag", "content": expected }]));
    alice.delete(&format!("{tags}/u.work"), &json!({})).await.ok();
    let expected = json!({ "tags": { "m.favourite": { "order": 0.25 } } });
    assert_eq!(alice.get(&tags).await.ok(), expected);
}

#[tokio::test]
async fn filters_are_kept_and_checked() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let filters = path(&alice, "filter");
    let filter = json!({ "room": { "timeline": { "limit": 3, "types": ["m.room.message"] } } });
    let id = alice.post(&filters, &filter).await.ok()["filter_id"].as_str().unwrap().to_owned();
    assert!(!id.starts_with('{'), "an ID cannot be taken for a filter");
    let kept = alice.get(&format!("{filters}/{}", segment(&id))).await.ok();
    assert_eq!(kept["room"]["timeline"]["limit"], 3);
    assert_eq!(kept["room"]["timeline"]["types"], json!(["m.room.message"]));
    alice.get(&format!("{filters}/12345678")).await.is(404, "M_NOT_FOUND");
    let broken = json!({ "room": { "timeline": { "limit": "many" } } });
    alice.post(&filters, &broken).await.is(400, "M_BAD_JSON");
    alice.get("/_matrix/client/v3/sync?filter=12345678").await.is(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn an_openid_token_tells_others_who_one_is() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let token = alice.post(&path(&alice, "openid/request_token"), &json!({})).await.ok();
    assert_eq!(
        (&token["token_type"], &token["matrix_server_name"]),
        (&json!("Bearer"), &json!(alice.server_name()))
    );
    assert!(token["expires_in"].as_u64().unwrap() > 0);
    let user_info = "/_matrix/federation/v1/openid/userinfo";
    let query = format!("{user_info}?access_token={}", segment(token["access_token"].as_str().unwrap()));
    assert_eq!(server.anonymous().get(&query).await.ok(), json!({ "sub": alice.user_id }));
    let unknown = server.anonymous().get(&format!("{user_info}?access_token=made-up")).await;
    unknown.is(401, "M_UNKNOWN_TOKEN");
    server.anonymous().get(user_info).await.is(401, "M_MISSING_TOKEN");
}
