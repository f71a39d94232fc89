//! Views of rooms' members: told of every change, woken by the next one after each look.

use engine::id::{ShortEventId, TimelineIndex};
use ruma::{room_id, user_id};
use storage::schema::MembershipRecord;

use super::*;

const ROOM: ShortRoomId = ShortRoomId(7);

const EVENT: Changed = Changed { event: true, state: false };

fn entry(membership: &str, event: u64) -> RoomEntry {
    let record = MembershipRecord {
        room: ROOM,
        membership: membership.to_owned(),
        event: ShortEventId(event),
        since: TimelineIndex(i64::try_from(event).unwrap()),
        left: None,
        forgotten: false,
    };
    RoomEntry::new(record, Position(event))
}

fn hub_with(view: &Arc<SessionView>) -> Hub {
    let hub = Hub::default();
    hub.add_session(view);
    hub.set_membership(view.user_id(), room_id!("!room"), &entry("join", 1));
    hub
}

fn alice() -> Arc<SessionView> {
    SessionView::new(user_id!("@alice:example.org").to_owned())
}

#[test]
fn each_change_is_seen_whether_it_was_looked_at_or_not() {
    let view = alice();
    let hub = hub_with(&view);
    for position in [5, 6, 7] {
        hub.room_changed(ROOM, EVENT, Position(position));
    }
    assert_eq!(view.latest(), Position(7));
    hub.room_changed(ROOM, Changed { event: false, state: true }, Position(8));
    assert!(view.state_changed(room_id!("!room"), Position(7)));
    assert!(!view.state_changed(room_id!("!room"), Position(8)));
    let changed = view.rooms_changed(Position(7));
    assert_eq!((changed[0].1.latest, changed[0].1.activity), (Position(8), Position(7)));
}

#[test]
fn who_waits_is_woken_by_the_first_change_after_a_look() {
    let view = alice();
    let hub = hub_with(&view);
    let mut waiting = view.subscribe();
    assert_eq!(view.latest(), Position(1));
    hub.room_changed(ROOM, EVENT, Position(5));
    assert!(waiting.has_changed());
    waiting.see();
    hub.room_changed(ROOM, EVENT, Position(6));
    assert!(!waiting.has_changed(), "nobody has looked since");
    assert_eq!(view.latest(), Position(6));
    hub.room_changed(ROOM, EVENT, Position(7));
    assert!(waiting.has_changed());
}

#[test]
fn who_left_hears_of_nothing_more_and_who_comes_back_does() {
    let view = alice();
    let hub = hub_with(&view);
    hub.set_membership(view.user_id(), room_id!("!room"), &entry("leave", 5));
    hub.room_changed(ROOM, EVENT, Position(6));
    assert_eq!(view.latest(), Position(5));
    hub.set_membership(view.user_id(), room_id!("!room"), &entry("join", 7));
    hub.room_changed(ROOM, EVENT, Position(8));
    assert_eq!(view.latest(), Position(8));
    hub.remove_session(&view);
    hub.room_changed(ROOM, EVENT, Position(9));
    assert_eq!(view.latest(), Position(8));
    assert!(hub.rooms.is_empty());
}

/// State resolution may undo a ban: the join that holds again is older than it.
#[test]
fn a_membership_goes_back_to_an_older_event() {
    let view = alice();
    let hub = hub_with(&view);
    hub.set_membership(view.user_id(), room_id!("!room"), &entry("ban", 5));
    hub.set_membership(
        view.user_id(),
        room_id!("!room"),
        &RoomEntry { latest: Position(6), ..entry("join", 1) },
    );
    assert!(view.room(room_id!("!room")).unwrap().is_joined());
    hub.room_changed(ROOM, EVENT, Position(7));
    assert_eq!(view.latest(), Position(7));
    // What was read from the store before is no news.
    view.load_room(room_id!("!room"), entry("ban", 5));
    assert!(view.room(room_id!("!room")).unwrap().is_joined());
}

#[tokio::test]
async fn all_who_wait_in_a_large_room_are_woken() {
    let hub = Hub::default();
    let views: Vec<_> = (0..100)
        .map(|number| SessionView::new(UserId::parse(format!("@user{number}:example.org")).unwrap()))
        .collect();
    for view in &views {
        hub.add_session(view);
        hub.set_membership(view.user_id(), room_id!("!room"), &entry("join", 1));
        assert_eq!(view.latest(), Position(1));
    }
    let waiting: Vec<_> = views.iter().map(|view| view.subscribe()).collect();
    hub.room_changed(ROOM, EVENT, Position(5));
    assert!(views.iter().all(|view| view.latest() == Position(5)), "the marks come first");
    for mut waiting in waiting {
        waiting.changed().await;
    }
}

/// Changes and looks on threads that race: no look may miss a change that came before it.
#[test]
fn no_change_is_missed_however_looks_and_changes_meet() {
    let view = alice();
    let hub = hub_with(&view);
    let reached = std::sync::atomic::AtomicU64::new(1);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for position in 2..20_000 {
                hub.room_changed(ROOM, EVENT, Position(position));
                reached.store(position, std::sync::atomic::Ordering::Release);
            }
        });
        for _ in 0..2 {
            threads.spawn(|| {
                loop {
                    let before = reached.load(std::sync::atomic::Ordering::Acquire);
                    assert!(view.latest() >= Position(before));
                    if before == 19_999 {
                        break;
                    }
                }
            });
        }
    });
}
