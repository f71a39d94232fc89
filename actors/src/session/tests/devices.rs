use super::*;

#[tokio::test]
async fn a_device_is_logged_in_until_it_is_logged_out() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let login = Login { display_name: Some("phone".to_owned()), ..Login::default() };
    let first = alice.log_in(login).await.unwrap();
    assert_eq!(world.authenticate(&first.access_token).await.unwrap(), alice_id());
    assert!(matches!(world.authenticate("nonsense").await, Err(AuthenticationFailure::UnknownToken)));

    // Again on the same device: the former token is no good any more, the name stays.
    let again = Login { device_id: Some(first.device_id.clone()), ..Login::default() };
    let second = alice.log_in(again).await.unwrap();
    assert!(world.authenticate(&first.access_token).await.is_err());
    assert_eq!(alice.data().device(&first.device_id).unwrap().display_name.as_deref(), Some("phone"));

    let world = world.restarted().await;
    assert_eq!(world.authenticate(&second.access_token).await.unwrap(), alice_id());
    world.session(alice_id()).await.delete_devices(vec![second.device_id]).await.unwrap();
    assert!(world.authenticate(&second.access_token).await.is_err());
    assert_eq!(world.session(alice_id()).await.data().devices().count(), 0);
}

#[tokio::test]
async fn an_expired_token_is_refreshed() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let first = alice.log_in(with_refresh()).await.unwrap();
    let refresh = first.refresh_token.unwrap();
    assert!(matches!(world.authenticate(&refresh).await, Err(AuthenticationFailure::UnknownToken)));
    world.clock.advance(u64::try_from(first.expires_in.unwrap().as_millis()).unwrap());
    assert!(matches!(world.authenticate(&first.access_token).await, Err(AuthenticationFailure::Expired)));

    let lost = world.homeserver.refresh(&refresh).await.unwrap();
    // The answer got lost: the old token still works, and takes the place of the lost ones.
    let second = world.homeserver.refresh(&refresh).await.unwrap();
    assert_eq!(second.device_id, first.device_id);
    assert!(world.authenticate(&lost.access_token).await.is_err());
    assert!(world.homeserver.refresh(&lost.refresh_token.unwrap()).await.is_err());

    assert_eq!(world.authenticate(&second.access_token).await.unwrap(), alice_id());
    // Noting the use is not waited for; a change behind it is.
    alice.rename_device(second.device_id.clone(), None).await.unwrap();
    let used = world.homeserver.refresh(&refresh).await;
    assert!(matches!(used, Err(SessionError::UnknownRefreshToken)), "the new token was used");
    assert!(world.homeserver.refresh(&second.refresh_token.unwrap()).await.is_ok());
}

#[tokio::test]
async fn the_use_of_a_device_is_noted_now_and_then() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let login = alice.log_in(Login::default()).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..4 {
        world.clock.advance(2 * 60 * 1000);
        world.homeserver.authenticate(&login.access_token, Some("192.0.2.1")).await.unwrap();
        alice.rename_device(login.device_id.clone(), None).await.unwrap();
        seen.push(alice.data().device(&login.device_id).unwrap().last_seen);
    }
    assert_eq!((seen[0], seen[2]), (seen[1], seen[3]), "written at every other use only");
    assert_ne!(seen[1], seen[2]);
    let ip = alice.data().device(&login.device_id).unwrap().last_seen_ip.clone();
    assert_eq!(ip.as_deref(), Some("192.0.2.1"));
}

#[tokio::test]
async fn an_openid_token_works_for_a_while() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let token = alice.open_id_token().await.unwrap();
    let user = async |token: &str| world.homeserver.open_id_user(token).await.unwrap();
    assert_eq!(user(&token.token).await.as_deref(), Some(alice_id()));
    assert_eq!(user(&token.token.replace("got_1", "got_9")).await, None, "the expiry cannot be made up");
    world.clock.advance(u64::try_from(token.expires_in.as_millis()).unwrap());
    assert_eq!(user(&token.token).await, None);
    world.clock.advance(1);
    alice.open_id_token().await.unwrap();
    let all = storage::KeyRange::all();
    let rows = world.homeserver.storage();
    let rows = rows.range(&storage::schema::OPENID_TOKENS, all, storage::Direction::Ascending, 10).await;
    assert_eq!(rows.unwrap().len(), 1, "the expired token is gone");
}
