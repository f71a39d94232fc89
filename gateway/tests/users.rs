//! Account commands, beside a running server and on a stopped one.

#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::{os::unix::fs::PermissionsExt, path::Path};

use actors::directory::ClassConfig;
use gateway::{
    app::Settings,
    control::{self, Answer, Request},
    password::PasswordCost,
    serve::{self, Options, StoreKind},
    users::{self, UserCommand, UserRequest},
};
use storage::Durability;

fn options(data_dir: &Path) -> Options {
    Options {
        tls: None,
        federation: None,
        server_name: "a.example".try_into().unwrap(),
        data_dir: data_dir.to_owned(),
        listen: Vec::new(),
        listen_metrics: Vec::new(),
        store: StoreKind::Sled,
        durability: Durability::Always,
        store_cache_bytes: 1 << 20,
        default_room_version: engine::room_version::DEFAULT,
        room_memory: 16 << 20,
        rooms: ClassConfig::default(),
        sessions: ClassConfig::default(),
        media: gateway::config::Media::default(),
        conversation: actors::homeserver::ConversationConfig::default(),
        push: gateway::config::Push::default(),
        registrations: Vec::new(),
        search: false,
        password_cost: PasswordCost { memory_kib: 64, iterations: 1, lanes: 1 },
        settings: Settings::default(),
    }
}

fn create(name: &str, admin: bool) -> UserRequest {
    UserRequest {
        command: UserCommand::Create { name: name.to_owned(), admin },
        password: Some("wonderland".to_owned()),
    }
}

fn without_password(command: UserCommand) -> UserRequest {
    UserRequest { command, password: None }
}

fn done(line: &str) -> Answer {
    Answer::Done(vec![line.to_owned()])
}

#[tokio::test]
async fn commands_reach_a_running_server() {
    let data = tempfile::tempdir().unwrap();
    let list = without_password(UserCommand::List);
    assert_eq!(
        control::ask(data.path(), &Request::User(list.clone())).await.unwrap(),
        None,
        "no server runs"
    );
    let listen = vec!["127.0.0.1:0".parse().unwrap()];
    let server = serve::start(Options { listen, ..options(data.path()) }).await.unwrap();
    let mode = std::fs::metadata(data.path().join("control")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(server.serve(async {
        let _ = stopped.await;
    }));
    let ask = async |request: UserRequest| {
        control::ask(data.path(), &Request::User(request)).await.unwrap().unwrap()
    };
    assert_eq!(ask(create("alice", false)).await, done("created @alice:a.example"));
    assert_eq!(ask(list.clone()).await, done("@alice:a.example"));
    assert!(matches!(ask(create("alice", false)).await, Answer::Failed(_)));
    assert!(matches!(ask(create("@alice:b.example", false)).await, Answer::Failed(_)));
    stop.send(()).unwrap();
    running.await.unwrap();
    assert_eq!(
        control::ask(data.path(), &Request::User(list.clone())).await.unwrap(),
        None,
        "it has stopped"
    );
}

#[tokio::test]
async fn a_data_directory_that_was_there_before_is_closed_to_other_users_of_the_machine() {
    use std::fs::{Permissions, metadata, set_permissions};
    let data = tempfile::tempdir().unwrap();
    for (before, after) in [(0o755, 0o750), (0o777, 0o770), (0o700, 0o700), (0o2751, 0o2750)] {
        set_permissions(data.path(), Permissions::from_mode(before)).unwrap();
        let server = serve::start(options(data.path())).await.unwrap();
        let mode = metadata(data.path()).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, after, "{before:o} became {mode:o}");
        server.app.homeserver().shutdown().await;
    }
    // One that the server makes is nobody else's.
    let new = data.path().join("new");
    let server = serve::start(options(&new)).await.unwrap();
    assert_eq!(metadata(&new).unwrap().permissions().mode() & 0o777, 0o700);
    server.app.homeserver().shutdown().await;
}

#[tokio::test]
async fn a_command_waits_for_whoever_uses_the_store_at_the_moment() {
    let data = tempfile::tempdir().unwrap();
    let other = serve::start(options(data.path())).await.unwrap();
    let list = Request::User(without_password(UserCommand::List));
    let command = tokio::spawn(control::run(options(data.path()), list, false));
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert!(!command.is_finished());
    other.app.homeserver().shutdown().await;
    drop(other);
    command.await.unwrap().unwrap();
}

#[tokio::test]
async fn commands_work_on_a_stopped_store() {
    let data = tempfile::tempdir().unwrap();
    let run = async |request: UserRequest| {
        let server = serve::start(options(data.path())).await.unwrap();
        let answer = users::execute(&server.app, request).await;
        server.app.homeserver().shutdown().await;
        answer
    };
    assert_eq!(run(create("alice", true)).await, done("created @alice:a.example"));
    assert_eq!(run(create("bob", false)).await, done("created @bob:a.example"));
    let set = UserCommand::SetPassword { name: "@bob:a.example".to_owned(), keep_devices: false };
    assert!(matches!(run(without_password(set.clone())).await, Answer::Failed(_)));
    let set = UserRequest { command: set, password: Some("looking-glass".to_owned()) };
    assert_eq!(run(set).await, done("set the password of @bob:a.example"));
    let deactivate = UserCommand::Deactivate { name: "bob".to_owned(), erase: false };
    assert_eq!(run(without_password(deactivate)).await, done("deactivated @bob:a.example"));
    let expected = ["@alice:a.example (admin)", "@bob:a.example (deactivated)"];
    let listed = run(without_password(UserCommand::List)).await;
    assert_eq!(listed, Answer::Done(expected.map(ToOwned::to_owned).to_vec()));
    let unknown = UserCommand::Deactivate { name: "carol".to_owned(), erase: false };
    assert!(matches!(run(without_password(unknown)).await, Answer::Failed(_)));
}
