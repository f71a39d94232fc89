use ruma::{event_id, user_id};
use storage::schema::RelationRecord;

use super::*;
use crate::room::{Access, related::Reader};

const END: TimelineIndex = TimelineIndex(i64::MAX);

fn alice() -> &'static UserId {
    user_id!("@alice:one")
}

fn mallory() -> &'static UserId {
    user_id!("@mallory:one")
}

/// A message of a thread, an edit, or whatever.
fn row(rel_type: &str, sender: &UserId, place: i64) -> Arc<RelationRow> {
    let record = RelationRecord {
        event: engine::id::ShortEventId(place.unsigned_abs()),
        event_id: OwnedEventId::try_from(format!("$e{place}")).unwrap(),
        kind: "m.room.message".to_owned(),
        sender: sender.to_owned(),
        sent_ms: place.unsigned_abs(),
        can_replace: rel_type == REPLACE,
    };
    Arc::new(RelationRow { rel_type: rel_type.to_owned(), index: TimelineIndex(place), record })
}

fn root() -> OwnedEventId {
    event_id!("$root").to_owned()
}

fn added(row: Arc<RelationRow>) -> RelationChange {
    RelationChange::Added(root(), row)
}

fn removed(row: Arc<RelationRow>) -> RelationChange {
    RelationChange::Removed(root(), row)
}

/// A thread as it is read, newest first: one message at each place.
fn read(until: TimelineIndex, places: impl DoubleEndedIterator<Item = i64>) -> Related {
    let mut related = Related::new(alice(), "m.room.message", until);
    for place in places.rev() {
        related.add_older(row(THREAD, alice(), place));
    }
    related
}

/// A cache with the thread, read when positions up to 1000 had been handed out.
fn cache() -> RelatedCache {
    let cache = RelatedCache::default();
    let changes = cache.get(&(root(), END)).unwrap_err();
    cache.keep((root(), END), read(END, 1..=1000), changes, Position(1000));
    cache
}

/// What a user sees of the thread: how many messages, and whether Alice and Mallory take part.
fn seen(cache: &RelatedCache, until: TimelineIndex) -> Option<(u64, bool, bool)> {
    let related = cache.get(&(root(), until)).ok()?;
    let access = Access { joined_until: Some(until), joined_from: None, ignored: Arc::default() };
    let reader = Reader { user_id: alice(), access: &access, latest: END };
    let thread = &related.thread;
    Some((thread.count(&reader), thread.has_sender(alice()), thread.has_sender(mallory())))
}

#[test]
fn a_thread_is_counted_as_messages_come_and_go() {
    let cache = cache();
    assert!(cache.get(&(root(), END)).unwrap().len() < 200, "what is held does not grow with the thread");
    for place in 1001..=2000 {
        cache.change(vec![added(row(THREAD, alice(), place))], Position(place.unsigned_abs()));
    }
    assert_eq!(seen(&cache, END), Some((2000, true, false)));
    cache.change(vec![removed(row(THREAD, alice(), 1))], Position(2001));
    cache.change(vec![removed(row(THREAD, alice(), 1999))], Position(2002));
    cache.change(vec![added(row(THREAD, mallory(), -5))], Position(2003));
    assert_eq!(seen(&cache, END), Some((1999, true, true)));
    cache.change(vec![removed(row(THREAD, mallory(), -5))], Position(2004));
    assert_eq!(seen(&cache, END), Some((1998, true, false)));
}

/// What a commit brought may be read before the cache is told of it.
#[test]
fn what_may_have_been_counted_already_is_read_anew() {
    for change in [added(row(THREAD, alice(), -5)), removed(row(THREAD, alice(), 1))] {
        let cache = cache();
        cache.change(vec![change], Position(1000));
        assert_eq!(seen(&cache, END), None);
    }
    // The newest are known by their places, so that they count once.
    let cache = cache();
    cache.change(vec![added(row(THREAD, alice(), 1000))], Position(1000));
    assert_eq!(seen(&cache, END), Some((1000, true, false)));
    cache.change(vec![removed(row(THREAD, alice(), 999))], Position(1000));
    assert_eq!(seen(&cache, END), Some((999, true, false)));
}

#[test]
fn a_reader_who_is_overtaken_catches_up() {
    let cache = RelatedCache::default();
    let key = (root(), END);
    let changes = cache.get(&key).unwrap_err();
    cache.change(vec![added(row(THREAD, alice(), 1001))], Position(1001));
    cache.change(vec![removed(row(THREAD, alice(), 1000))], Position(1002));
    cache.keep(key.clone(), read(END, 1..=1001), changes, Position(1002));
    assert_eq!(seen(&cache, END), Some((1000, true, false)));
    // Who is overtaken by too much keeps nothing.
    let cache = RelatedCache::default();
    let changes = cache.get(&key).unwrap_err();
    for place in 1..=100 {
        cache.change(vec![added(row(THREAD, alice(), place))], Position(place.unsigned_abs()));
    }
    cache.keep(key, read(END, 1..=10), changes, Position(100));
    assert_eq!(seen(&cache, END), None);
}

#[test]
fn who_left_has_a_count_of_their_own() {
    let cache = cache();
    let until = TimelineIndex(500);
    let changes = cache.get(&(root(), until)).unwrap_err();
    cache.keep((root(), until), read(until, 1..=500), changes, Position(1000));
    cache.change(vec![added(row(THREAD, mallory(), 1001))], Position(1001));
    cache.change(vec![removed(row(THREAD, alice(), 400))], Position(1002));
    assert_eq!(seen(&cache, until), Some((499, true, false)));
    assert_eq!(seen(&cache, END), Some((1000, true, true)));
}

#[test]
fn only_the_newest_edits_of_the_sender_are_held() {
    let mut related = Related::new(alice(), "m.room.message", END);
    for place in (1..=3000).rev() {
        let sender = if place % 2 == 0 { alice() } else { mallory() };
        related.add_older(row(REPLACE, sender, place));
        if related.has_enough(REPLACE) {
            break;
        }
    }
    assert_eq!(related.edits.len(), EDITS_MAX);
    assert!(related.edits.values().all(|edit| edit.record.sender == alice()));
    assert!(related.apply(&added(row(REPLACE, alice(), 3002)), Position(1)));
    assert_eq!((related.edits.len(), related.edits.get_max().unwrap().0.0), (EDITS_MAX, 3002));
    assert!(
        !related.apply(&removed(row(REPLACE, alice(), 3002)), Position(1)),
        "an older one takes its place"
    );
}
