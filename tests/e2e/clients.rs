//! Published clients talk to each other through the server.

mod js;
mod push;
mod room_list;
mod sdk;

use serde_json::{Value, json};
use tests::{Peer, PeerKind, Server};

use self::sdk::Sdk;

/// Messages to page back through.
const HISTORY: usize = 1_000;

/// Users who write the history at a time.
const WRITERS: usize = 4;

/// One of the clients, behind the commands of `tests/clients/README.md`.
enum Participant {
    Peer(Box<Peer>),
    Sdk(Box<Sdk>),
}

impl Participant {
    fn peer(kind: PeerKind, server: &Server) -> Self {
        Self::Peer(Box::new(Peer::start(kind, &server.url())))
    }

    async fn sdk(server: &Server) -> Self {
        Self::Sdk(Box::new(Sdk::new(&server.url()).await))
    }

    async fn call(&mut self, command: &str, arguments: Value) -> Value {
        match self {
            Self::Peer(peer) => peer.call(command, arguments).await,
            Self::Sdk(sdk) => sdk.call(command, &arguments).await,
        }
    }

    /// Registers with the client itself.
    async fn register(&mut self, name: &str) -> String {
        let answer = self.call("register", json!({ "user": name, "password": "secret enough" })).await;
        answer["user_id"].as_str().unwrap().to_owned()
    }

    /// Runs a command that sends an event; gives its ID.
    async fn event(&mut self, command: &str, arguments: Value) -> String {
        let answer = self.call(command, arguments).await;
        answer["event_id"]
            .as_str()
            .unwrap_or_else(|| panic!("{command} gives an event ID: {answer}"))
            .to_owned()
    }

    async fn wait(&mut self, fact: Value) -> Value {
        self.call("wait", json!({ "fact": fact })).await
    }
}

/// Everything that the speaker does, the listener sees.
async fn speak(speaker: &mut Participant, listener: &mut Participant, room: &str, users: [&str; 2]) {
    let [speaks, listens] = users;
    speaker.call("typing", json!({ "room_id": room, "typing": true })).await;
    let typing = json!({ "what": "typing", "room_id": room, "user_id": speaks, "typing": true });
    listener.wait(typing).await;
    speaker.call("typing", json!({ "room_id": room, "typing": false })).await;
    let silent = json!({ "what": "typing", "room_id": room, "user_id": speaks, "typing": false });
    listener.wait(silent).await;

    let message = speaker.event("send", json!({ "room_id": room, "body": format!("{speaks} speaks") })).await;
    let body = format!("{speaks} speaks");
    listener.wait(json!({ "what": "message", "event_id": message, "sender": speaks, "body": body })).await;
    speaker.wait(json!({ "what": "message", "event_id": message })).await;
    listener.call("receipt", json!({ "room_id": room, "event_id": message })).await;
    let receipt = json!({ "what": "receipt", "room_id": room, "event_id": message, "user_id": listens });
    speaker.wait(receipt).await;

    speaker.event("edit", json!({ "room_id": room, "event_id": message, "body": "said better" })).await;
    listener
        .wait(json!({ "what": "edit", "event_id": message, "sender": speaks, "body": "said better" }))
        .await;
    listener.event("react", json!({ "room_id": room, "event_id": message, "key": "👍" })).await;
    speaker.wait(json!({ "what": "reaction", "event_id": message, "sender": listens, "key": "👍" })).await;
    let mistake = speaker.event("send", json!({ "room_id": room, "body": "a mistake" })).await;
    listener.wait(json!({ "what": "message", "event_id": mistake })).await;
    speaker.event("redact", json!({ "room_id": room, "event_id": mistake })).await;
    listener.wait(json!({ "what": "redaction", "room_id": room, "event_id": mistake })).await;
}

/// Others fill the room; both page back through all of it.
async fn page_back(server: &Server, participants: [&mut Participant; 2], room: &str) {
    let mut writers = Vec::new();
    for number in 0..WRITERS {
        let writer = server.client(&format!("writer{number}")).await;
        writer.join(room).await.ok();
        writers.push(writer);
    }
    let expected: Vec<String> = (0..HISTORY).rev().map(|number| format!("line {number}")).collect();
    for number in 0..HISTORY {
        // In turn, so that their order is known.
        writers[number % WRITERS].say(room, &number.to_string(), &format!("line {number}")).await;
    }
    for participant in participants {
        participant.wait(json!({ "what": "message", "body": expected[0] })).await;
        let answer = participant.call("paginate", json!({ "room_id": room, "limit": HISTORY })).await;
        let bodies = answer["bodies"].as_array().unwrap();
        assert_eq!(bodies.len(), HISTORY);
        assert!(bodies.iter().zip(&expected).all(|(body, expected)| body == expected), "{bodies:?}");
    }
}

async fn converse(server: Server, mut alice: Participant, mut bob: Participant) {
    let alice_id = alice.register(&server.unique("alice")).await;
    let bob_account = server.client("bob").await;
    bob.call("login", json!({ "user": bob_account.user_id, "password": bob_account.password() })).await;
    let bob_id = bob_account.user_id.clone();

    let room = alice.call("create_room", json!({ "public": true })).await;
    let room = room["room_id"].as_str().unwrap();
    alice.call("invite", json!({ "room_id": room, "user_id": bob_id })).await;
    bob.wait(json!({ "what": "invite", "room_id": room })).await;
    bob.call("join", json!({ "room_id": room })).await;
    let joined = json!({ "what": "member", "room_id": room, "user_id": bob_id, "membership": "join" });
    alice.wait(joined.clone()).await;
    bob.wait(joined.clone()).await;

    speak(&mut alice, &mut bob, room, [&alice_id, &bob_id]).await;
    speak(&mut bob, &mut alice, room, [&bob_id, &alice_id]).await;
    page_back(&server, [&mut alice, &mut bob], room).await;

    bob.call("leave", json!({ "room_id": room })).await;
    alice.wait(json!({ "what": "member", "room_id": room, "user_id": bob_id, "membership": "leave" })).await;
    alice.call("send", json!({ "room_id": room, "body": "is bob gone?" })).await;
    bob.call("join", json!({ "room_id": room })).await;
    alice.wait(joined.clone()).await;
    bob.wait(joined).await;
    alice.call("send", json!({ "room_id": room, "body": "welcome back" })).await;
    bob.wait(json!({ "what": "message", "room_id": room, "sender": alice_id, "body": "welcome back" })).await;
    bob.call("send", json!({ "room_id": room, "body": "good to be back" })).await;
    alice
        .wait(json!({ "what": "message", "room_id": room, "sender": bob_id, "body": "good to be back" }))
        .await;
}

#[tokio::test]
async fn matrix_nio_and_matrix_js_sdk_converse() {
    let server = Server::start().await;
    let (alice, bob) = (Participant::peer(PeerKind::Nio, &server), Participant::peer(PeerKind::Js, &server));
    converse(server, alice, bob).await;
}

#[tokio::test]
async fn mautrix_and_matrix_sdk_converse() {
    let server = Server::start().await;
    let (alice, bob) = (Participant::peer(PeerKind::Mautrix, &server), Participant::sdk(&server).await);
    converse(server, alice, bob).await;
}

#[tokio::test]
async fn matrix_js_sdk_and_mautrix_converse() {
    let server = Server::start().await;
    let (alice, bob) =
        (Participant::peer(PeerKind::Js, &server), Participant::peer(PeerKind::Mautrix, &server));
    converse(server, alice, bob).await;
}

#[tokio::test]
async fn matrix_sdk_and_matrix_nio_converse() {
    let server = Server::start().await;
    let (alice, bob) = (Participant::sdk(&server).await, Participant::peer(PeerKind::Nio, &server));
    converse(server, alice, bob).await;
}
