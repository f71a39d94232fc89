//! Who may read what, on every read path.

use serde_json::{Value, json};
use tests::{Client, Server, segment};

/// The phases of a user's way through a room, in order; one message is sent in each.
const PHASES: [&str; 4] = ["before", "invited", "joined", "left"];

/// A room where one message was sent in each phase of bob's membership.
struct Story {
    room: String,
    messages: [String; 4],
}

impl Story {
    async fn told(alice: &Client, bob: &Client, visibility: &str) -> Self {
        let content = json!({ "history_visibility": visibility });
        let state = json!([{ "type": "m.room.history_visibility", "content": content }]);
        let room = alice.create_room(json!({ "preset": "private_chat", "initial_state": state })).await;
        let before = alice.say(&room, "1", PHASES[0]).await;
        alice.moderate("invite", &room, &bob.user_id).await.ok();
        let invited = alice.say(&room, "2", PHASES[1]).await;
        bob.join(&room).await.ok();
        let joined = alice.say(&room, "3", PHASES[2]).await;
        bob.leave(&room).await.ok();
        let left = alice.say(&room, "4", PHASES[3]).await;
        Self { room, messages: [before, invited, joined, left] }
    }

    /// The phases whose message `client` can read through `/event`.
    async fn by_event(&self, client: &Client) -> Vec<&'static str> {
        let mut seen = Vec::new();
        for (phase, id) in PHASES.into_iter().zip(&self.messages) {
            let answer = client.get(&Client::room(&self.room, &format!("event/{}", segment(id)))).await;
            match answer.status {
                200 => seen.push(phase),
                _ => answer.is(404, "M_NOT_FOUND"),
            }
        }
        seen
    }

    /// The same through `/context`.
    async fn by_context(&self, client: &Client) -> Vec<&'static str> {
        let mut seen = Vec::new();
        for (phase, id) in PHASES.into_iter().zip(&self.messages) {
            let answer = client.get(&Client::room(&self.room, &format!("context/{}", segment(id)))).await;
            match answer.status {
                200 => seen.push(phase),
                _ => assert!([403, 404].contains(&answer.status), "{answer:?}"),
            }
        }
        seen
    }

    /// The same through `/messages`, in both directions.
    async fn by_messages(&self, client: &Client) -> Vec<String> {
        let back = bodies(&client.all_messages(&self.room).await);
        let page = client.get(&Client::room(&self.room, "messages?dir=f&limit=100")).await.ok();
        assert_eq!(bodies(page["chunk"].as_array().unwrap()), back, "both directions show the same");
        back
    }
}

fn bodies(events: &[Value]) -> Vec<String> {
    events.iter().filter_map(|event| event["content"]["body"].as_str()).map(ToOwned::to_owned).collect()
}

/// Spec: "Room History Visibility", server behaviour: rules 1 to 5, for a user who came and left.
#[tokio::test]
async fn who_left_sees_what_the_visibility_at_each_event_allows() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    for (visibility, expected) in [
        ("joined", &PHASES[2..3]),
        ("invited", &PHASES[1..3]),
        ("shared", &PHASES[..3]),
        ("world_readable", &PHASES[..]),
    ] {
        let story = Story::told(&alice, &bob, visibility).await;
        assert_eq!(story.by_event(&bob).await, expected, "{visibility}, /event");
        assert_eq!(story.by_context(&bob).await, expected, "{visibility}, /context");
        // A user who left pages back from when they left, whatever came later.
        let until_left: Vec<_> = expected.iter().copied().filter(|phase| *phase != "left").collect();
        let seen = story.by_messages(&bob).await;
        assert!(seen == until_left || seen == expected, "{visibility}, /messages: {seen:?}");
    }
}

#[tokio::test]
async fn a_stranger_sees_a_world_readable_room_and_no_other() {
    let server = Server::start().await;
    let [alice, bob, mallory] = server.clients(["alice", "bob", "mallory"]).await;
    for visibility in ["joined", "invited", "shared"] {
        let story = Story::told(&alice, &bob, visibility).await;
        assert!(story.by_event(&mallory).await.is_empty(), "{visibility}");
        assert!(story.by_context(&mallory).await.is_empty(), "{visibility}");
        mallory.get(&Client::room(&story.room, "messages?dir=b")).await.is(403, "M_FORBIDDEN");
    }
    let story = Story::told(&alice, &bob, "world_readable").await;
    assert_eq!(story.by_event(&mallory).await, PHASES);
    assert_eq!(story.by_context(&mallory).await, PHASES);
    assert_eq!(story.by_messages(&mallory).await, PHASES);
    let create = mallory.state(&story.room, "m.room.create", "").await.ok();
    assert_eq!(create["room_version"], "12");
    assert!(!mallory.get(&Client::room(&story.room, "state")).await.ok().as_array().unwrap().is_empty());
    mallory.get(&Client::room(&story.room, "members")).await.ok();
    let content = json!({ "msgtype": "m.text", "body": "?" });
    mallory.send(&story.room, "m.room.message", "1", &content).await.is(403, "M_FORBIDDEN");
}

/// Each event is judged by the visibility of its own time.
#[tokio::test]
async fn a_change_of_visibility_does_not_reach_back() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let visibility = async |value: &str| {
        let content = json!({ "history_visibility": value });
        alice.set_state(&room, "m.room.history_visibility", "", &content).await.ok();
    };
    alice.say(&room, "1", "shared").await;
    visibility("joined").await;
    alice.say(&room, "2", "secret").await;
    visibility("shared").await;
    alice.say(&room, "3", "shared again").await;
    bob.join(&room).await.ok();
    assert_eq!(bodies(&bob.all_messages(&room).await), ["shared", "shared again"]);
    let sync = bob.sync("timeout=0").await;
    let timeline = sync["rooms"]["join"][&room]["timeline"]["events"].as_array().unwrap().clone();
    assert!(!bodies(&timeline).contains(&"secret".to_owned()), "{timeline:?}");
    let page = bob.get(&Client::room(&room, "messages?dir=b&limit=100")).await.ok();
    let changes = page["chunk"].as_array().unwrap().iter();
    let changes = changes.filter(|event| event["type"] == "m.room.history_visibility").count();
    assert_eq!(changes, 3, "a change is seen if what was before or after it allows");
}

#[tokio::test]
async fn a_banned_or_kicked_user_reads_on_up_to_then() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    for verb in ["kick", "ban"] {
        let room = alice.create_room(json!({ "preset": "public_chat", "name": "then" })).await;
        bob.join(&room).await.ok();
        alice.say(&room, "1", "then").await;
        alice.moderate(verb, &room, &bob.user_id).await.ok();
        alice.say(&room, "2", "now").await;
        alice.set_state(&room, "m.room.name", "", &json!({ "name": "now" })).await.ok();
        assert_eq!(bodies(&bob.all_messages(&room).await), ["then"], "{verb}");
        assert_eq!(bob.state(&room, "m.room.name", "").await.ok()["name"], "then", "{verb}");
        let state = bob.get(&Client::room(&room, "state")).await.ok();
        let name = state.as_array().unwrap().iter().find(|event| event["type"] == "m.room.name").cloned();
        assert_eq!(name.unwrap()["content"]["name"], "then", "{verb}");
    }
}

/// Spec: `GET /rooms/{roomId}/event/{eventId}` and `/context/{eventId}`, 404.
#[tokio::test]
async fn an_event_of_an_unknown_room_is_not_found() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    for path in ["event/$unknown", "context/$unknown"] {
        alice.get(&Client::room("!unknown:example.org", path)).await.is(404, "M_NOT_FOUND");
    }
}

#[tokio::test]
async fn context_gives_the_state_only_to_those_who_may_read_it() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let state = |name: &str| json!([{ "type": "m.room.join_rules", "content": { "join_rule": name } }]);
    let context = async |room: &str, event: &Value, filter: &str| {
        let event = segment(event["event_id"].as_str().unwrap());
        let path = Client::room(room, &format!("context/{event}?filter={}", segment(filter)));
        bob.get(&path).await.ok()["state"].as_array().unwrap().clone()
    };
    let filters = ["{}", "{\"lazy_load_members\":true}"];
    for membership in ["invite", "knock"] {
        let room = alice.create_room(json!({ "name": "secret", "initial_state": state("knock") })).await;
        let by = if membership == "invite" { &alice } else { &bob };
        let content = json!({ "membership": membership });
        let own = by.set_state(&room, "m.room.member", &bob.user_id, &content).await.ok();
        for filter in filters {
            assert_eq!(context(&room, &own, filter).await, [] as [Value; 0], "{membership}");
        }
    }
    let room = alice.create_room(json!({ "name": "then", "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let then = json!({ "event_id": alice.say(&room, "1", "then").await });
    bob.leave(&room).await.ok();
    alice.set_state(&room, "m.room.name", "", &json!({ "name": "now" })).await.ok();
    let ban = json!({ "membership": "ban" });
    let ban = alice.set_state(&room, "m.room.member", &bob.user_id, &ban).await.ok();
    for (event, filter) in [(&then, filters[0]), (&ban, filters[0]), (&ban, filters[1])] {
        let state = context(&room, event, filter).await;
        let name = state.iter().find(|event| event["type"] == "m.room.name").unwrap();
        assert_eq!(name["content"]["name"], "then");
    }
}

/// Spec: `prev_content` and `replaces_state` of `UnsignedData`.
#[tokio::test]
async fn what_a_state_event_replaced_is_shown_to_those_who_may_see_it() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let set = async |kind: &str, field: &str, value: &str| {
        let set = alice.set_state(&room, kind, "", &json!({ field: value })).await.ok();
        set["event_id"].as_str().unwrap().to_owned()
    };
    let visibility = async |value: &str| {
        set("m.room.history_visibility", "history_visibility", value).await;
    };
    visibility("joined").await;
    let secret = set("m.room.topic", "topic", "secret").await;
    visibility("shared").await;
    let first = set("m.room.topic", "topic", "first").await;
    let second = set("m.room.topic", "topic", "second").await;
    bob.join(&room).await.ok();
    let third = set("m.room.topic", "topic", "third").await;
    let unsigned = async |client: &Client, event: &str| {
        let event = client.get(&Client::room(&room, &format!("event/{}", segment(event)))).await.ok();
        let unsigned = &event["unsigned"];
        (unsigned["prev_content"]["topic"].clone(), unsigned["replaces_state"].clone())
    };
    assert_eq!(unsigned(&alice, &first).await, (json!("secret"), json!(secret)));
    assert_eq!(unsigned(&bob, &first).await, (Value::Null, json!(secret)));
    assert_eq!(unsigned(&bob, &second).await, (json!("first"), json!(first)));
    assert_eq!(unsigned(&bob, &third).await, (json!("second"), json!(second)));
    // Of what was set before everybody could read it, strangers see nothing.
    visibility("world_readable").await;
    let open = set("m.room.topic", "topic", "open").await;
    let wide = set("m.room.topic", "topic", "wide open").await;
    let carol = server.client("carol").await;
    assert_eq!(unsigned(&carol, &open).await, (Value::Null, json!(third)));
    assert_eq!(unsigned(&carol, &wide).await, (json!("open"), json!(open)));
}

/// Spec: "Guest Access".
#[tokio::test]
async fn guests_join_where_guests_may() {
    let server = Server::start_with_settings(&[("registration.guests", "true")]).await;
    let alice = server.client("alice").await;
    let mut guest = server.anonymous();
    let account = guest.post("/_matrix/client/v3/register?kind=guest", &json!({})).await.ok();
    guest.log_in_as(&account);
    let whoami = guest.get("/_matrix/client/v3/account/whoami").await.ok();
    assert_eq!(whoami["is_guest"], true);
    let closed = alice.create_room(json!({ "preset": "public_chat" })).await;
    guest.join(&closed).await.is(403, "M_GUEST_ACCESS_FORBIDDEN");
    let open = alice.create_room(json!({ "preset": "public_chat" })).await;
    let content = json!({ "guest_access": "can_join" });
    alice.set_state(&open, "m.room.guest_access", "", &content).await.ok();
    guest.join(&open).await.ok();
    guest.say(&open, "1", "hello").await;
    assert_eq!(guest.post("/_matrix/client/v3/createRoom", &json!({})).await.status, 403);
    let without = Server::start_with("").await;
    let refused = without.anonymous().post("/_matrix/client/v3/register?kind=guest", &json!({})).await;
    refused.is(403, "M_GUEST_ACCESS_FORBIDDEN");
}
