use super::*;

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
