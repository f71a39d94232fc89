//! Who a server is to others: its keys, notaries, signed requests, the directory across servers.

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde_json::{Value, json};
use tests::{Answer, Server, Synapse, segment};

use super::User;

/// What a test needs to speak in a server's name.
struct Identity {
    name: String,
    key_id: String,
    key: SigningKey,
}

impl Identity {
    fn of(server: &Server) -> Self {
        let text = std::fs::read_to_string(server.data_dir().join("signing.key")).unwrap();
        let [_, version, secret] = text.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{text}") };
        let secret: [u8; 32] = STANDARD_NO_PAD.decode(secret).unwrap().try_into().unwrap();
        let key_id = format!("ed25519:{version}");
        Self { name: server.name().to_owned(), key_id, key: SigningKey::from_bytes(&secret) }
    }

    fn authorization(&self, destination: &str, uri: &str) -> String {
        let name = &self.name;
        let signed =
            format!(r#"{{"destination":"{destination}","method":"GET","origin":"{name}","uri":"{uri}"}}"#);
        let signature = STANDARD_NO_PAD.encode(self.key.sign(signed.as_bytes()).to_bytes());
        let key = &self.key_id;
        format!(r#"X-Matrix origin="{name}",destination="{destination}",key="{key}",sig="{signature}""#)
    }
}

async fn get(server: &Server, uri: &str, authorization: Option<String>) -> Answer {
    server.anonymous().get_as(uri, authorization.as_deref()).await
}

/// Checks that `signer` signed a document with the key of an ID.
fn assert_signed(document: &Value, signer: &str, key_id: &str, key: &str) {
    let mut signed = document.clone();
    let signatures = signed.as_object_mut().unwrap().remove("signatures").unwrap();
    let signature = signatures[signer][key_id].as_str().unwrap_or_else(|| panic!("{signatures}"));
    let signature = Signature::from_slice(&STANDARD_NO_PAD.decode(signature).unwrap()).unwrap();
    let key: [u8; 32] = STANDARD_NO_PAD.decode(key).unwrap().try_into().unwrap();
    let key = VerifyingKey::from_bytes(&key).unwrap();
    key.verify_strict(canonical(&signed).as_bytes(), &signature).unwrap();
}

/// Canonical JSON, whatever order the parser keeps.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(object) => {
            let mut entries: Vec<_> = object.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            let entries =
                entries.into_iter().map(|(key, value)| format!("{}:{}", json!(key), canonical(value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    }
}

/// The ID and the key that a server publishes.
async fn published_key(server: &Server) -> (String, String) {
    let document = get(server, "/_matrix/key/v2/server", None).await.ok();
    assert_eq!(document["server_name"], server.name());
    let (id, key) = document["verify_keys"].as_object().unwrap().iter().next().unwrap();
    let (id, key) = (id.clone(), key["key"].as_str().unwrap().to_owned());
    assert_signed(&document, server.name(), &id, &key);
    // Older servers name the key that they want, or leave out its ID alone.
    for older in [format!("/_matrix/key/v2/server/{}", segment(&id)), "/_matrix/key/v2/server/".to_owned()] {
        let same = get(server, &older, None).await.ok();
        assert_eq!(same["verify_keys"], document["verify_keys"], "{older}");
    }
    (id, key)
}

#[tokio::test]
async fn a_notary_signs_what_servers_publish_and_remembers_it_when_they_are_gone() {
    let mut notary = Server::start_federating("").await;
    let mut other = Server::start_federating("").await;
    let (notary_id, notary_key) = published_key(&notary).await;
    let (id, key) = published_key(&other).await;
    let one = format!("/_matrix/key/v2/query/{}", other.name());
    let many = json!({ "server_keys": {
        other.name(): { id.as_str(): { "minimum_valid_until_ts": 1 } },
        notary.name(): {},
        "localhost:1": {},
    } });
    for round in 0..3 {
        let found = get(&notary, &one, None).await.ok();
        let found = found["server_keys"].as_array().unwrap();
        assert_eq!(found.len(), 1, "round {round}");
        assert_signed(&found[0], other.name(), &id, &key);
        assert_signed(&found[0], notary.name(), &notary_id, &notary_key);
        let found = notary.anonymous().post("/_matrix/key/v2/query", &many).await.ok();
        let mut names: Vec<_> = found["server_keys"]
            .as_array()
            .unwrap()
            .iter()
            .map(|keys| keys["server_name"].as_str().unwrap())
            .collect();
        names.sort_unstable();
        let mut expected = [notary.name(), other.name()];
        expected.sort_unstable();
        assert_eq!(names, expected);
        match round {
            0 => other.kill(),
            1 => notary.restart().await,
            _ => {}
        }
    }
    for bad in ["/_matrix/key/v2/query/not%20a%20name", &format!("{one}?minimum_valid_until_ts=soon")] {
        assert_eq!(get(&notary, bad, None).await.status, 400, "{bad}");
    }
    let bad = notary.anonymous().post("/_matrix/key/v2/query", &json!({ "server_keys": [] })).await;
    assert_eq!((bad.status, bad.body["errcode"].as_str()), (400, Some("M_BAD_JSON")));
}

#[tokio::test]
async fn a_request_counts_only_if_its_server_signed_it_as_it_arrived() {
    let (server, other) = (Server::start_federating("").await, Server::start_federating("").await);
    let alice = server.client("alice").await;
    let path = format!("/_matrix/client/v3/profile/{}/displayname", alice.user_id);
    alice.put(&path, &json!({ "displayname": "alice" })).await.ok();
    let mut identity = Identity::of(&other);
    let uri = format!("/_matrix/federation/v1/query/profile?user_id=%40alice%3A{}", segment(server.name()));
    let signed = identity.authorization(server.name(), &uri);
    // Older servers leave out the quotation marks though there are colons.
    let bare = signed.replace('"', "");
    for header in
        [signed.clone(), bare, signed.replace("X-Matrix ", "x-matrix   "), signed.replace(',', " ,\t")]
    {
        assert_eq!(get(&server, &uri, Some(header)).await.ok()["displayname"], "alice");
    }

    let refused = async |uri: &str, authorization: Option<String>, cause: &str| {
        let answer = get(&server, uri, authorization).await;
        assert_eq!(
            (answer.status, answer.body["errcode"].as_str()),
            (401, Some("M_UNAUTHORIZED")),
            "{}",
            answer.body
        );
        let message = answer.body["error"].as_str().unwrap();
        assert!(message.contains(cause), "{message:?} does not say {cause:?}");
    };
    refused(&uri, None, "X-Matrix").await;
    refused(&uri, Some("Bearer token".to_owned()), "X-Matrix").await;
    let elsewhere = identity.authorization("elsewhere.org", &uri);
    refused(&uri, Some(elsewhere), "another destination").await;
    // A proxy that decodes what the client encoded.
    refused(&uri.replace("%40", "@"), Some(signed.clone()), "encod").await;
    refused(&uri.replace("%3A", "%3a"), Some(signed.clone()), "encod").await;
    refused(&format!("{uri}&field=displayname"), Some(signed), "signature").await;
    identity.key_id = "ed25519:unknown".to_owned();
    refused(&uri, Some(identity.authorization(server.name(), &uri)), "ed25519:unknown").await;
    identity.name = "localhost:1".to_owned();
    refused(&uri, Some(identity.authorization(server.name(), &uri)), "localhost:1").await;

    let alone = Server::start().await;
    let off = get(&alone, &uri, None).await;
    assert_eq!((off.status, off.body["errcode"].as_str()), (403, Some("M_FORBIDDEN")));
}

#[tokio::test]
async fn a_trusted_notary_stands_in_for_a_server_that_is_gone() {
    let notary = Server::start_federating("").await;
    let mut gone = Server::start_federating("").await;
    let trusts = format!("trusted_key_servers = [\"{}\"]\n", notary.name());
    let (server, trusting) = (Server::start_federating("").await, Server::start_federating(&trusts).await);
    get(&notary, &format!("/_matrix/key/v2/query/{}", gone.name()), None).await.ok();
    let identity = Identity::of(&gone);
    gone.kill();
    let uri = "/_matrix/federation/v1/publicRooms";
    let ask = async |server: &Server| {
        get(server, uri, Some(identity.authorization(server.name(), uri))).await.status
    };
    assert_eq!(ask(&server).await, 401);
    assert_eq!(ask(&trusting).await, 200);
}

#[tokio::test]
async fn what_a_replaced_key_signed_still_holds() {
    let (mut server, other) = (Server::start_federating("").await, Server::start_federating("").await);
    let (alice, bob) = (User(server.client("alice").await), User(other.client("bob").await));
    let room = alice.create("11", json!({})).await;
    alice.say(&room, "signed before").await;
    let (old_id, old_key) = published_key(&server).await;
    let running = server.command(&["rotate-signing-key"], "").await;
    assert!(!running.status.success(), "a running server still signs with it");
    server.stop().await;
    let output = server.command(&["rotate-signing-key"], "").await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    server.restart().await;
    let (new_id, new_key) = published_key(&server).await;
    assert!(new_id != old_id && new_key != old_key);
    let document = get(&server, "/_matrix/key/v2/server", None).await.ok();
    assert_eq!(document["old_verify_keys"][&old_id]["key"], old_key.as_str());
    assert!(document["old_verify_keys"][&old_id]["expired_ts"].is_u64());
    bob.join(&room, server.name()).await;
    bob.hears(&room, "signed before").await;
    alice.say(&room, "signed after").await;
    bob.hears(&room, "signed after").await;
}

#[tokio::test]
async fn a_server_that_lost_its_key_does_not_become_another_one_by_itself() {
    let mut server = Server::start_federating("").await;
    server.client("alice").await;
    let (old_id, _) = published_key(&server).await;
    server.stop().await;
    let file = server.data_dir().join("signing.key");
    // Lost, or emptied by a disk that was full.
    for remains in [None, Some("\n")] {
        match remains {
            Some(text) => std::fs::write(&file, text).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        let output = server.command(&["user", "list"], "").await;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains("rotate-signing-key"), "{told}");
        assert_eq!(std::fs::read_to_string(&file).ok().as_deref(), remains);
    }
    let output = server.command(&["rotate-signing-key"], "").await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    server.restart().await;
    assert_ne!(published_key(&server).await.0, old_id);
}

/// The names of the public rooms of `there`, as a user of `here` finds them.
async fn rooms_of(user: &User, there: &str, filter: Option<&str>) -> Vec<String> {
    let path = format!("/_matrix/client/v3/publicRooms?server={}", segment(there));
    let answer = match filter {
        None => user.0.get(&path).await.ok(),
        Some(term) => {
            let body = json!({ "limit": 10, "filter": { "generic_search_term": term } });
            user.0.post(&path, &body).await.ok()
        }
    };
    let rooms = answer["chunk"].as_array().unwrap_or_else(|| panic!("{answer}")).iter();
    let mut names: Vec<_> = rooms.map(|room| room["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

async fn publish(user: &User, name: &str) {
    user.create("11", json!({ "visibility": "public", "name": name })).await;
}

#[tokio::test]
async fn the_directory_of_another_server_can_be_searched() {
    let (server, other) = (Server::start_federating("").await, Server::start_federating("").await);
    let (alice, bob) = (User(server.client("alice").await), User(other.client("bob").await));
    for name in ["Coffee", "Tea", "Tea garden"] {
        publish(&bob, name).await;
    }
    publish(&alice, "Here").await;
    assert_eq!(rooms_of(&alice, other.name(), None).await, ["Coffee", "Tea", "Tea garden"]);
    assert_eq!(rooms_of(&alice, other.name(), Some("tea")).await, ["Tea", "Tea garden"]);
    assert_eq!(rooms_of(&bob, server.name(), None).await, ["Here"]);
    // Pages.
    let path = format!("/_matrix/client/v3/publicRooms?server={}&limit=2", segment(other.name()));
    let first = alice.0.get(&path).await.ok();
    assert_eq!(
        (first["chunk"].as_array().unwrap().len(), &first["total_room_count_estimate"]),
        (2, &json!(3))
    );
    let next = first["next_batch"].as_str().unwrap();
    let second = alice.0.get(&format!("{path}&since={}", segment(next))).await.ok();
    assert_eq!((second["chunk"].as_array().unwrap().len(), second.get("next_batch")), (1, None));
    let before = second["prev_batch"].as_str().unwrap();
    let back = alice.0.get(&format!("{path}&since={}", segment(before))).await.ok();
    assert_eq!(back["chunk"], first["chunk"]);
    alice.0.get(&format!("{path}&since=elsewhere")).await.is(400, "M_INVALID_PARAM");
    let of_network = json!({ "third_party_instance_id": "irc" });
    assert_eq!(alice.0.post(&path, &of_network).await.ok()["chunk"], json!([]));
    // What a server asks itself.
    let identity = Identity::of(&server);
    let ask = async |query: &str| {
        let uri = format!("/_matrix/federation/v1/publicRooms?{query}");
        get(&other, &uri, Some(identity.authorization(other.name(), &uri))).await
    };
    for (query, rooms) in [
        ("limit=0", 3),
        ("limit=2", 2),
        ("include_all_networks=true", 3),
        ("include_all_networks=false", 3),
        ("third_party_instance_id=irc", 0),
        ("include_all_networks=false&third_party_instance_id=irc", 0),
    ] {
        let found = ask(query).await.ok();
        assert_eq!(found["chunk"].as_array().unwrap().len(), rooms, "{query}");
    }
    ask("include_all_networks=true&third_party_instance_id=irc").await.is(400, "M_INVALID_PARAM");
    ask("limit=-1").await.is(400, "M_INVALID_PARAM");
    // A server that is not there, and one that may not ask.
    let nowhere = alice.0.get("/_matrix/client/v3/publicRooms?server=localhost:1").await;
    assert_eq!(nowhere.status, 502, "{}", nowhere.body);
    assert_eq!(get(&server, "/_matrix/federation/v1/publicRooms", None).await.status, 401);
    let alone = Server::start().await;
    let carol = alone.client("carol").await;
    let off = carol.get("/_matrix/client/v3/publicRooms?server=example.org").await;
    assert_eq!((off.status, off.body["errcode"].as_str()), (404, Some("M_NOT_FOUND")));
}

#[tokio::test]
async fn an_alias_of_another_server_may_be_the_main_one_if_it_leads_to_the_room() {
    let (server, other) = (Server::start_federating("").await, Server::start_federating("").await);
    let (alice, bob) = (User(server.client("alice").await), User(other.client("bob").await));
    let room = alice
        .create(
            "11",
            json!({ "power_level_content_override": { "users": {
        alice.id(): 100, bob.id(): 100,
    } } }),
        )
        .await;
    bob.join(&room, server.name()).await;
    let alias = format!("#tea:{}", other.name());
    let directory = format!("/_matrix/client/v3/directory/room/{}", segment(&alias));
    let set = async |alias: &str| {
        alice.0.set_state(&room, "m.room.canonical_alias", "", &json!({ "alias": alias })).await
    };
    set(&alias).await.is(400, "M_BAD_ALIAS");
    bob.0.put(&directory, &json!({ "room_id": room })).await.ok();
    set(&alias).await.ok();
    // Nobody answers there; yet what the room has already stays.
    set("#tea:localhost:1").await.is(400, "M_BAD_ALIAS");
    bob.0.delete(&directory, &json!({})).await.ok();
    let both = json!({ "alias": alias, "alt_aliases": [alias] });
    alice.0.set_state(&room, "m.room.canonical_alias", "", &both).await.ok();
}

#[tokio::test]
async fn keys_and_directories_are_exchanged_with_synapse() {
    let (server, synapse) = (Server::start_federating("").await, Synapse::start().await);
    let (alice, bob) = (User(server.client("alice").await), User(synapse.client("bob").await));
    publish(&alice, "Ours").await;
    publish(&bob, "Theirs").await;
    assert_eq!(rooms_of(&alice, synapse.server_name(), None).await, ["Theirs"]);
    assert_eq!(rooms_of(&alice, synapse.server_name(), Some("their")).await, ["Theirs"]);
    assert_eq!(rooms_of(&bob, server.name(), None).await, ["Ours"]);
    assert_eq!(rooms_of(&bob, server.name(), Some("our")).await, ["Ours"]);
    let (id, key) = published_key(&server).await;
    // Synapse as a notary for this server, and the other way round.
    let path = format!("/_matrix/key/v2/query/{}", segment(server.name()));
    let found = synapse.anonymous().get(&path).await.ok();
    assert_signed(&found["server_keys"][0], server.name(), &id, &key);
    let path = format!("/_matrix/key/v2/query/{}", segment(synapse.server_name()));
    let found = get(&server, &path, None).await.ok();
    assert_eq!(found["server_keys"][0]["server_name"], synapse.server_name());
    assert_signed(&found["server_keys"][0], server.name(), &id, &key);
}
