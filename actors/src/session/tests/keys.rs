use super::*;

/// Signatures by devices take room on the keys that they sign for as long as the devices are there.
#[tokio::test]
async fn the_signatures_of_a_deleted_device_make_room_for_others() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let master = json!({ "user_id": alice_id(), "usage": ["master"], "keys": { "ed25519:bWFz": "bWFz" } });
    let keys = [("master".to_owned(), master)];
    alice.change(SessionChange::SetCrossSigning(keys.into())).await.unwrap();
    let sign = async |name: &str| {
        let signatures = json!({ alice_id().as_str(): { name: "x".repeat(30_000) } });
        alice.change(SessionChange::SignOwn("bWFz".to_owned(), signatures)).await
    };
    for device in ["ONE", "TWO", "THREE"] {
        let login = Login { device_id: Some(device.into()), ..Login::default() };
        alice.log_in(login).await.unwrap();
    }
    sign("ed25519:ONE").await.unwrap();
    sign("ed25519:bWFz").await.unwrap();
    assert!(matches!(sign("ed25519:TWO").await, Err(SessionError::TooLarge(_))));
    alice.delete_devices(vec!["ONE".into()]).await.unwrap();
    sign("ed25519:TWO").await.unwrap();
    let data = alice.data();
    let signatures = &data.keys().cross_signing("master").unwrap()["signatures"][alice_id().as_str()];
    let names: Vec<_> = signatures.as_object().unwrap().keys().collect();
    assert_eq!(names, ["ed25519:TWO", "ed25519:bWFz"]);
    assert!(matches!(sign("ed25519:THREE").await, Err(SessionError::TooLarge(_))));
}
