use http::Method;
use serde_json::{Value, json};

use crate::server::{Server, error};

#[tokio::test]
async fn account_data_belongs_to_its_user() {
    let server = Server::open().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let room = alice.room().await;
    let user = format!("/user/{}", alice.user_id);
    for path in [format!("{user}/account_data/"), format!("{user}/rooms/{room}/account_data/")] {
        let own = format!("{path}org.example.own");
        assert_eq!(error(&alice.get(&own).await), (404, "M_NOT_FOUND"));
        assert_eq!(alice.put(&own, json!({ "a": [1] })).await.0, 200);
        assert_eq!(alice.get(&own).await.1, json!({ "a": [1] }));
        assert_eq!(error(&bob.get(&own).await), (403, "M_FORBIDDEN"));
        assert_eq!(error(&bob.put(&own, json!({})).await), (403, "M_FORBIDDEN"));
        assert_eq!(error(&alice.put(&own, json!([])).await), (400, "M_BAD_JSON"));
        for managed in ["m.fully_read", "m.push_rules"] {
            let refused = alice.put(&format!("{path}{managed}"), json!({})).await;
            assert_eq!(error(&refused), (405, "M_BAD_JSON"), "{managed}");
        }
    }
    let rules = alice.get(&format!("{user}/account_data/m.push_rules")).await;
    assert!(rules.1["global"]["override"].is_array());
}

#[tokio::test]
async fn a_room_is_tagged() {
    let server = Server::open().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let room = alice.room().await;
    let path = format!("/user/{}/rooms/{room}/tags", alice.user_id);
    assert_eq!(alice.get(&path).await.1, json!({ "tags": {} }));
    assert_eq!(alice.put(&format!("{path}/m.favourite"), json!({ "order": 0.25 })).await.0, 200);
    assert_eq!(alice.put(&format!("{path}/u.work"), json!({})).await.0, 200);
    let refused = alice.put(&format!("{path}/u.work"), json!({ "order": 2 })).await;
    assert_eq!(error(&refused), (400, "M_INVALID_PARAM"));
    assert_eq!(alice.delete(&format!("{path}/u.work"), Value::Null).await.0, 200);
    assert_eq!(alice.get(&path).await.1, json!({ "tags": { "m.favourite": { "order": 0.25 } } }));
    assert_eq!(error(&bob.get(&path).await), (403, "M_FORBIDDEN"));
}

#[tokio::test]
async fn a_filter_is_found_by_its_id() {
    let server = Server::open().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let path = format!("/user/{}/filter", alice.user_id);
    let (_, body) = alice.post(&path, json!({ "room": { "timeline": { "limit": 5 } } })).await;
    let id = body["filter_id"].as_str().unwrap();
    assert_eq!(alice.get(&format!("{path}/{id}")).await.1["room"]["timeline"]["limit"], 5);
    assert_eq!(error(&alice.get(&format!("{path}/none")).await), (404, "M_NOT_FOUND"));
    assert_eq!(error(&bob.get(&format!("{path}/{id}")).await), (403, "M_FORBIDDEN"));
}

#[tokio::test]
async fn an_openid_token_names_its_user() {
    let server = Server::open().await;
    let alice = server.register("alice").await;
    let (_, token) = alice.post(&format!("/user/{}/openid/request_token", alice.user_id), json!({})).await;
    assert_eq!((&token["token_type"], &token["expires_in"]), (&json!("Bearer"), &json!(3600)));
    let path = "/_matrix/federation/v1/openid/userinfo";
    let ask = async |token: &str| {
        server.call(Method::GET, &format!("{path}?access_token={token}"), None, Value::Null).await
    };
    assert_eq!(ask(token["access_token"].as_str().unwrap()).await.1, json!({ "sub": "@alice:a.example" }));
    assert_eq!(error(&ask("nonsense").await), (401, "M_UNKNOWN_TOKEN"));
    assert_eq!(error(&server.call(Method::GET, path, None, Value::Null).await), (401, "M_MISSING_TOKEN"));
}

#[tokio::test]
async fn push_rules_are_managed() {
    let server = Server::open().await;
    let alice = server.register("alice").await;
    let (_, all) = alice.get("/pushrules/").await;
    for kind in ["override", "content", "room", "sender", "underride"] {
        assert!(all["global"][kind].is_array(), "{kind}");
    }
    let rule = "/pushrules/global/content";
    let put = async |id: &str, body: Value| alice.put(&format!("{rule}/{id}"), body).await;
    assert_eq!(put("tea", json!({ "pattern": "tea", "actions": ["notify"] })).await.0, 200);
    assert_eq!(put("cake?after=tea", json!({ "pattern": "cake", "actions": [] })).await.0, 200);
    let (_, global) = alice.get("/pushrules/global/").await;
    let ids: Vec<_> = global["content"].as_array().unwrap().iter().map(|rule| &rule["rule_id"]).collect();
    assert_eq!(ids, ["tea", "cake"]);
    assert_eq!(
        error(&put("x?before=none", json!({ "pattern": "x", "actions": [] })).await),
        (400, "M_UNKNOWN")
    );
    assert_eq!(error(&put(".x", json!({ "pattern": "x", "actions": [] })).await), (400, "M_INVALID_PARAM"));
    let looped = put("tea?after=tea", json!({ "pattern": "tea", "actions": [] })).await;
    assert_eq!(error(&looped), (400, "M_UNKNOWN"));

    assert_eq!(alice.get(&format!("{rule}/tea/enabled")).await.1, json!({ "enabled": true }));
    assert_eq!(alice.put(&format!("{rule}/tea/enabled"), json!({ "enabled": false })).await.0, 200);
    let actions = json!({ "actions": ["notify", { "set_tweak": "highlight" }] });
    assert_eq!(alice.put(&format!("{rule}/tea/actions"), actions.clone()).await.0, 200);
    assert_eq!(alice.get(&format!("{rule}/tea/actions")).await.1["actions"].as_array().unwrap().len(), 2);
    assert_eq!(alice.get(&format!("{rule}/tea")).await.1["enabled"], false);
    assert_eq!(alice.delete(&format!("{rule}/tea"), Value::Null).await.0, 200);
    for path in ["tea", "tea/enabled", "tea/actions"] {
        assert_eq!(error(&alice.get(&format!("{rule}/{path}")).await), (404, "M_NOT_FOUND"), "{path}");
    }
    assert_eq!(error(&alice.put(&format!("{rule}/tea/actions"), actions).await), (404, "M_NOT_FOUND"));
    let predefined = alice.delete("/pushrules/global/override/.m.rule.master", Value::Null).await;
    assert_eq!(error(&predefined), (400, "M_INVALID_PARAM"));
}

#[tokio::test]
async fn read_markers_and_private_receipts_are_the_users_own() {
    let server = Server::open().await;
    let alice = server.register("alice").await;
    let room = alice.room().await;
    let send = format!("/rooms/{room}/send/m.room.message/1");
    let (_, sent) = alice.put(&send, json!({ "msgtype": "m.text", "body": "hi" })).await;
    let event = sent["event_id"].as_str().unwrap();
    let markers = json!({ "m.fully_read": event, "m.read.private": event });
    assert_eq!(alice.post(&format!("/rooms/{room}/read_markers"), markers).await.0, 200);
    let (_, sync) = alice.get("/sync").await;
    let joined = &sync["rooms"]["join"][&room];
    let data = joined["account_data"]["events"].as_array().unwrap();
    assert!(data.contains(&json!({ "type": "m.fully_read", "content": { "event_id": event } })), "{data:?}");
    let receipt = &joined["ephemeral"]["events"][0]["content"][event]["m.read.private"];
    assert!(receipt[&alice.user_id]["ts"].is_u64(), "{joined}");
}
