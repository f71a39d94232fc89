use ruma::RoomVersionId;

use super::*;
use crate::room::content_string;

impl World {
    async fn upgrade(&self, user: &UserId, old: &RoomId, version: RoomVersionId) -> OwnedRoomId {
        self.homeserver.upgrade_room(user, old, version, Vec::new()).await.unwrap()
    }

    async fn successor(&self, old: &RoomId) -> Option<String> {
        let room = self.homeserver.room(old).await.unwrap();
        let tombstone = room.current("m.room.tombstone", "").await.unwrap();
        tombstone.and_then(|event| content_string(&event.pdu, "replacement_room"))
    }

    /// What is left of an upgrade that a crash cut short right after the new room was there.
    async fn begin_upgrade(&self, user: &UserId, old: &RoomId) -> OwnedRoomId {
        let predecessor = json!({ "room_id": old, "event_id": "$newest" });
        let new = NewRoom {
            version: RoomVersionId::V11,
            creator: user.to_owned(),
            creator_profile: Map::new(),
            preset: Preset::Bare,
            creation_content: Map::from_iter([("predecessor".to_owned(), predecessor)]),
            power_levels: Map::new(),
            alias: None,
            initial_state: Vec::new(),
            name: None,
            topic: None,
            invite: Vec::new(),
        };
        self.homeserver.create_replacement(new, Vec::new(), true, Some(old.to_owned())).await.unwrap()
    }

    /// How many rooms a user is in.
    async fn rooms_of(&self, user: &UserId) -> usize {
        self.session(user).await.view().rooms().len()
    }
}

#[tokio::test]
async fn an_upgrade_that_a_crash_cut_short_is_completed() {
    let world = World::new().await;
    world.account(alice_id()).await;
    let old = world.room(alice_id(), &[]).await;
    let alias = ruma::room_alias_id!("#tea:a");
    world.homeserver.create_alias(alias, &old, alice_id()).await.unwrap();
    world.homeserver.set_public(&old, true).await.unwrap();
    let new = world.begin_upgrade(alice_id(), &old).await;
    assert_eq!(world.successor(&old).await, None, "the new room is there, and nobody has been told");
    let world = world.restarted().await;
    // Without a request.
    let told = tokio::time::timeout(Duration::from_secs(10), async {
        while world.successor(&old).await.is_none() || world.homeserver.is_public(&old).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    told.await.unwrap();
    assert_eq!(world.successor(&old).await.as_deref(), Some(new.as_str()));
    assert_eq!(world.homeserver.resolve_alias(alias).await.unwrap().unwrap().room_id, new);
    assert!(world.homeserver.is_public(&new).await.unwrap());
    // And with one, by a client that never got an answer.
    assert_eq!(world.upgrade(alice_id(), &old, RoomVersionId::V11).await, new);
    assert_eq!(world.rooms_of(alice_id()).await, 2);
}

#[tokio::test]
async fn an_upgrade_that_is_asked_for_again_completes_the_one_that_was_begun() {
    let world = World::new().await;
    world.account(alice_id()).await;
    let old = world.room(alice_id(), &[]).await;
    let new = world.begin_upgrade(alice_id(), &old).await;
    let upgrades = (0..3).map(|_| world.upgrade(alice_id(), &old, RoomVersionId::V11));
    assert_eq!(futures_util::future::join_all(upgrades).await, [&*new; 3]);
    assert_eq!(world.successor(&old).await.as_deref(), Some(new.as_str()));
    assert_eq!(world.rooms_of(alice_id()).await, 2);
    // One to another version is another one.
    let newer = world.upgrade(alice_id(), &old, RoomVersionId::V12).await;
    assert_eq!(world.successor(&old).await, Some(newer.to_string()));
    assert_ne!(newer, new);
}
