use super::*;

#[tokio::test]
async fn presence_is_told_to_those_who_share_a_room() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let bob = world.account(bob_id()).await;
    let stranger = world.account(user_id!("@mallory:a")).await;
    world.room(alice_id(), &[bob_id()]).await;
    let since = world.homeserver.storage().watermark();
    assert!(bob.presence_since(Position(0)).is_empty());
    alice.set_presence(PresenceState::Online, Some("here".to_owned()));
    let seen = bob.presence_since(since);
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].state.clone(), seen[0].status_msg.as_deref()), (PresenceState::Online, Some("here")));
    assert_eq!(bob.presence_since(Position(0)).len(), 1);
    assert!(stranger.presence_since(since).is_empty() && stranger.presence_since(Position(0)).is_empty());
    assert!(world.homeserver.shares_room(&bob, alice_id()).await.unwrap());
    assert!(!world.homeserver.shares_room(&stranger, alice_id()).await.unwrap());
    let since = world.homeserver.storage().watermark();
    alice.set_presence(PresenceState::Online, Some("here".to_owned()));
    assert!(bob.presence_since(since).is_empty(), "no change, no news");
    let rename = async |name: &str| {
        world.homeserver.set_profile_field(alice_id(), "displayname", Some(raw(&json!(name)))).await.unwrap();
    };
    rename("Alice").await;
    let seen = bob.presence_since(since);
    assert_eq!(seen.len(), 1);
    let event: Value = serde_json::from_str(world.homeserver.presence_event(&seen[0]).get()).unwrap();
    assert_eq!(event["content"]["displayname"], "Alice");
    alice.set_presence(PresenceState::Offline, None);
    let since = world.homeserver.storage().watermark();
    rename("Al").await;
    assert!(bob.presence_since(since).is_empty(), "nobody hears of who is away");
    world.homeserver.session_shared().finish_background().await;
}

#[tokio::test(start_paused = true)]
async fn a_user_who_goes_away_is_offline_after_a_while() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    world.room(alice_id(), &[]).await;
    let connected = alice.connect(&PresenceState::Online).unwrap();
    assert_eq!(alice.presence().state, PresenceState::Online);
    drop(connected);
    assert!(alice.connect(&PresenceState::Offline).is_none());
    let since = world.homeserver.storage().watermark();
    let mut changes = alice.view().subscribe();
    changes.see();
    // The manual clock jumps at once; the timer comes when tokio's paused clock gets there.
    world.clock.advance(31_000);
    tokio::time::timeout(Duration::from_secs(120), changes.changed()).await.unwrap();
    let seen = alice.presence_since(since);
    assert_eq!(seen.iter().map(|seen| seen.state.clone()).collect::<Vec<_>>(), [PresenceState::Offline]);
}
