use super::*;

#[tokio::test]
async fn a_user_id_is_registered_once() {
    let world = World::new().await;
    let new = |user: &UserId| NewAccount {
        user_id: user.to_owned(),
        password_hash: None,
        is_guest: false,
        is_admin: false,
    };
    assert!(matches!(world.homeserver.session(alice_id()).await, Err(SessionError::NotFound)));
    let (first, second) =
        tokio::join!(world.homeserver.register(new(alice_id())), world.homeserver.register(new(alice_id())));
    assert!(first.is_ok());
    assert!(matches!(second, Err(SessionError::UserInUse)));
    assert!(matches!(world.homeserver.check_free(alice_id()).await, Err(SessionError::UserInUse)));
    for wrong in ["@Alice:a", "@alice:b", "@al ice:a", "@:a"] {
        let wrong = <&UserId>::try_from(wrong).unwrap();
        let refused = world.homeserver.register(new(wrong)).await;
        assert!(matches!(refused, Err(SessionError::InvalidUsername(_))), "{wrong}");
    }
    assert!(matches!(world.homeserver.session(user_id!("@x:b")).await, Err(SessionError::NotFound)));
}

#[tokio::test]
async fn a_password_change_logs_out_the_other_devices() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let kept = alice.log_in(Login::default()).await.unwrap();
    let other = alice.log_in(Login::default()).await.unwrap();
    alice.set_password("new".to_owned(), LogOut::Nobody).await.unwrap();
    assert!(world.authenticate(&other.access_token).await.is_ok());
    alice.set_password("newer".to_owned(), LogOut::Others(Some(kept.device_id))).await.unwrap();
    assert!(world.authenticate(&other.access_token).await.is_err());
    assert!(world.authenticate(&kept.access_token).await.is_ok());
    assert_eq!(alice.data().account().password_hash.as_deref(), Some("newer"));
}

#[tokio::test]
async fn a_deactivated_account_is_empty_and_stays_taken() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let login = alice.log_in(Login::default()).await.unwrap();
    let room_id = world.room(alice_id(), &[]).await;
    world.homeserver.set_profile_field(alice_id(), "displayname", Some(raw(&json!("Alice")))).await.unwrap();
    let root = owned_event_id!("$root");
    alice.change_thread(room_id.clone(), root.clone(), ThreadWish::Subscribe).await.unwrap();
    assert_eq!(alice.data().threads().subscription(&room_id, &root), Some(false));
    world.homeserver.deactivate(alice_id(), true).await.unwrap();
    world.homeserver.session_shared().finish_background().await;
    assert!(world.authenticate(&login.access_token).await.is_err());
    assert!(matches!(alice.log_in(Login::default()).await, Err(SessionError::Deactivated)));
    assert!(matches!(world.homeserver.check_free(alice_id()).await, Err(SessionError::UserInUse)));
    assert!(matches!(world.homeserver.profile(alice_id()).await, Err(SessionError::NotFound)));
    assert_eq!(alice.view().room(&room_id).unwrap().membership, "leave");
    let world = world.restarted().await;
    let data = world.session(alice_id()).await.data();
    assert!(data.account().is_deactivated && data.account().is_erased);
    assert_eq!((data.devices().count(), data.profile().fields().count()), (0, 0));
    let threads = data.threads().changes(Position(0), Position(u64::MAX), 1);
    assert!(threads.changes.is_empty() && threads.rest.is_none());
}

#[tokio::test]
async fn a_profile_change_reaches_the_rooms() {
    let world = World::new().await;
    world.account(alice_id()).await;
    let rooms = [world.room(alice_id(), &[]).await, world.room(alice_id(), &[]).await];
    world.homeserver.set_profile_field(alice_id(), "displayname", Some(raw(&json!("Al")))).await.unwrap();
    world.homeserver.set_profile_field(alice_id(), "displayname", Some(raw(&json!("Alice")))).await.unwrap();
    world.homeserver.session_shared().finish_background().await;
    for room_id in &rooms {
        let room = world.homeserver.room(room_id).await.unwrap();
        let member = room.current("m.room.member", alice_id().as_str()).await.unwrap().unwrap();
        let content: Value = serde_json::from_str(member.pdu.content().get()).unwrap();
        assert_eq!(content, json!({ "membership": "join", "displayname": "Alice" }));
    }
}

#[tokio::test]
async fn a_profile_has_limits() {
    let world = World::new().await;
    let set = async |name: &str, value: Value| {
        world.homeserver.set_profile_field(alice_id(), name, Some(raw(&value))).await
    };
    assert!(matches!(set("displayname", json!("Alice")).await, Err(SessionError::NotFound)));
    let alice = world.account(alice_id()).await;
    set("org.example.large", json!("x".repeat(60 * 1024))).await.unwrap();
    let refused = set("org.example.more", json!("x".repeat(5 * 1024))).await;
    assert!(matches!(refused, Err(SessionError::ProfileTooLarge)));
    assert!(alice.data().profile().get("org.example.more").is_none());
    let long = format!("org.{}", "x".repeat(256));
    assert!(matches!(set(&long, json!(1)).await, Err(SessionError::ProfileKeyTooLarge)));
    assert!(matches!(set("displayname", json!(1)).await, Err(SessionError::Invalid(_))));
    assert!(matches!(set("Nickname", json!(1)).await, Err(SessionError::InvalidProfileKey)));
    world.homeserver.set_profile_field(alice_id(), "org.example.large", None).await.unwrap();
    set("org.example.more", json!({ "deep": [1, 2] })).await.unwrap();
    let world = world.restarted().await;
    let profile = world.homeserver.profile(alice_id()).await.unwrap();
    assert_eq!(profile.get("org.example.more").unwrap().get(), r#"{"deep":[1,2]}"#);
}
