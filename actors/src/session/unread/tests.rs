use engine::pdu::Draft;
use ruma::{OwnedEventId, UserId, owned_event_id, user_id};
use serde_json::json;

use super::*;
use crate::{
    room::{Receipt, Send},
    session::tests::{World, alice_id, bob_id, text},
};

impl World {
    async fn receipt(&self, user: &UserId, room_id: &RoomId, event: &OwnedEventId) -> Receipt {
        let room = self.homeserver.room(room_id).await.unwrap();
        let index = room.event(event).await.unwrap().unwrap().index.unwrap();
        Receipt {
            user_id: user.to_owned(),
            thread: None,
            event_id: event.clone(),
            index,
            ts: self.homeserver.env().clock.now(),
            position: Position(0),
        }
    }

    async fn unread(&self, user: &UserId, room_id: &RoomId) -> Unread {
        let room = self.homeserver.room(room_id).await.unwrap();
        self.session(user).await.unread(&room).await.unwrap()
    }
}

/// More notices than are kept in one piece, of which the oldest gave way: this is where they were mixed up.
#[test]
fn reading_up_to_somewhere_keeps_what_comes_after() {
    for count in [10, 64, 65, 200, 1000] {
        let notice = |index| Notice {
            index: TimelineIndex(index),
            thread: None,
            highlights: false,
            is_missed_call: false,
        };
        let read =
            |whole| ReadUpTo { whole: TimelineIndex(whole), threads: BTreeMap::new(), changed: Position(0) };
        let mut counted = Counted {
            upto: TimelineIndex(0),
            rules: Arc::default(),
            ignored: Arc::default(),
            threads: Position(0),
            read: read(0),
            sent: imbl::OrdMap::new(),
            notices: (0..=count).map(notice).collect(),
            unread: Unread::default(),
        };
        counted.notices.pop_front();
        counted.set_read(read(3));
        let left: Vec<_> = counted.notices.iter().map(|notice| notice.index.0).collect();
        assert_eq!(left, (4..=count).collect::<Vec<_>>());
        assert_eq!(counted.unread.total().notification_count, left.len() as u64);
    }
}

#[tokio::test]
async fn unread_counts_follow_receipts_and_rules() {
    let world = World::new().await;
    world.account(alice_id()).await;
    let bob = world.account(bob_id()).await;
    let third = user_id!("@carol:a");
    world.account(third).await;
    let room_id = world.room(alice_id(), &[bob_id(), third]).await;
    let total = async || world.unread(bob_id(), &room_id).await.total();
    assert_eq!(total().await.notification_count, 0, "joins do not notify");
    world.say(alice_id(), &room_id, text("zero")).await;
    world.say(bob_id(), &room_id, text("own, which reads what came before")).await;
    let first = world.say(alice_id(), &room_id, text("one")).await;
    let mention = json!({ "msgtype": "m.text", "body": "hi", "m.mentions": { "user_ids": [bob_id()] } });
    let second = world.say(alice_id(), &room_id, mention).await;
    assert_eq!(total().await, UnreadCounts { highlight_count: 1, notification_count: 2 });

    let receipt = world.receipt(bob_id(), &room_id, &first).await;
    bob.set_private_receipt(room_id.clone(), receipt).await.unwrap();
    assert_eq!(total().await, UnreadCounts { highlight_count: 1, notification_count: 1 });
    assert_eq!(bob.private_receipts(&room_id, Position(0)).len(), 1);

    let receipt = world.receipt(bob_id(), &room_id, &second).await;
    world.homeserver.room(&room_id).await.unwrap().set_receipt(receipt).await.unwrap();
    assert_eq!(total().await, UnreadCounts::default());

    let thread = json!({
        "msgtype": "m.text", "body": "aside",
        "m.relates_to": { "rel_type": "m.thread", "event_id": first },
    });
    let aside = world.say(alice_id(), &room_id, thread).await;
    let three = world.say(alice_id(), &room_id, text("three")).await;
    let (main, threads) = world.unread(bob_id(), &room_id).await.by_thread();
    assert_eq!((main.notification_count, threads[first.as_str()].notification_count), (1, 1));
    let receipt =
        Receipt { thread: Some(first.to_string()), ..world.receipt(bob_id(), &room_id, &aside).await };
    bob.set_private_receipt(room_id.clone(), receipt).await.unwrap();
    let (main, threads) = world.unread(bob_id(), &room_id).await.by_thread();
    assert_eq!((main.notification_count, threads.len()), (1, 0));

    let master = ".m.rule.master".to_owned();
    bob.enable_push_rule(ruma::push::RuleKind::Override, master.clone(), true).await.unwrap();
    assert_eq!(total().await, UnreadCounts::default(), "everything is muted");
    bob.enable_push_rule(ruma::push::RuleKind::Override, master, false).await.unwrap();
    assert_eq!(total().await.notification_count, 1);

    let redaction = Draft {
        kind: "m.room.redaction".into(),
        state_key: None,
        content: serde_json::value::to_raw_value(&json!({})).unwrap(),
        redacts: Some(three),
        dated: None,
    };
    let room = world.homeserver.room(&room_id).await.unwrap();
    room.send(Send { sender: alice_id().to_owned(), draft: redaction, sent_by: None }).await.unwrap();
    let (counted, anew) = (total().await, Unread::default().total());
    assert_eq!(counted, anew, "what is redacted does not count any more");
}

#[tokio::test]
async fn what_relates_to_an_event_of_a_thread_is_unread_in_that_thread() {
    let world = World::new().await;
    world.account(alice_id()).await;
    let bob = world.account(bob_id()).await;
    let room_id = world.room(alice_id(), &[bob_id()]).await;
    let root = world.say(alice_id(), &room_id, text("root")).await;
    let related = |rel_type: &str, event_id: &OwnedEventId| {
        let relates_to = json!({ "rel_type": rel_type, "event_id": event_id });
        json!({ "msgtype": "m.text", "body": "aside", "m.relates_to": relates_to })
    };
    world.say(alice_id(), &room_id, related("m.reference", &root)).await;
    let mut last = world.say(alice_id(), &room_id, related("m.thread", &root)).await;
    for _ in 0..3 {
        last = world.say(alice_id(), &room_id, related("m.reference", &last)).await;
    }
    let by_thread = async || {
        let (main, threads) = world.unread(bob_id(), &room_id).await.by_thread();
        let in_thread = threads.get(root.as_str()).copied().unwrap_or_default();
        (main.notification_count, in_thread.notification_count, threads.len())
    };
    assert_eq!(by_thread().await, (2, 4, 1), "what relates to a root is not in its thread");
    world.say(alice_id(), &room_id, related("m.reference", &last)).await;
    assert_eq!(by_thread().await, (3, 4, 1), "three hops are followed");
    world.say(alice_id(), &room_id, related("m.reference", &owned_event_id!("$elsewhere"))).await;
    assert_eq!(by_thread().await, (4, 4, 1), "of an unknown event no thread is known");

    let receipt = world.receipt(bob_id(), &room_id, &last).await;
    bob.set_private_receipt(room_id.clone(), Receipt { thread: Some(root.to_string()), ..receipt })
        .await
        .unwrap();
    assert_eq!(by_thread().await, (4, 0, 0));
}

#[tokio::test]
async fn a_long_unread_stretch_is_counted_in_pages() {
    let world = World::new().await;
    world.account(alice_id()).await;
    let bob = world.account(bob_id()).await;
    let room_id = world.room(alice_id(), &[bob_id()]).await;
    let mut middle = None;
    for number in 0..150 {
        let event = world.say(alice_id(), &room_id, text(&number.to_string())).await;
        if number == 99 {
            middle = Some(event);
        }
    }
    let total = async |world: &World| world.unread(bob_id(), &room_id).await.total().notification_count;
    assert_eq!(total(&world).await, 150);
    let receipt = world.receipt(bob_id(), &room_id, &middle.unwrap()).await;
    bob.set_private_receipt(room_id.clone(), receipt).await.unwrap();
    assert_eq!(total(&world).await, 50);
    world.say(alice_id(), &room_id, text("more")).await;
    assert_eq!(total(&world).await, 51);
    drop(bob);
    let world = world.restarted().await;
    assert_eq!(world.unread(bob_id(), &room_id).await.total().notification_count, 51, "counted anew");
}
