use super::*;

fn document(event: u64, room: u64, sender: &str, text: &str) -> TextDocument {
    TextDocument {
        event: ShortEventId(event),
        room: ShortRoomId(room),
        sender: sender.to_owned(),
        at: TimelineIndex(i64::try_from(event).unwrap()),
        field: TextField::Body,
        text: text.to_owned(),
        source: None,
    }
}

fn query(text: &str) -> TextQuery {
    TextQuery {
        words: words(text),
        fields: vec![TextField::Body, TextField::Name, TextField::Topic],
        rooms: vec![ShortRoomId(1), ShortRoomId(2)],
        senders: None,
        before: None,
        order: TextOrder::Recent,
        skip: 0,
        limit: 10,
    }
}

fn found(index: &TextIndex, query: &TextQuery) -> Vec<u64> {
    index.search(query).unwrap().hits.iter().map(|hit| hit.event.0).collect()
}

fn filled(folder: &Path) -> TextIndex {
    let index = TextIndex::open(folder).unwrap();
    for (event, room, sender, text) in [
        (1, 1, "alice", "Un café, s'il vous plaît"),
        (2, 1, "bob", "tea tea tea"),
        (3, 2, "alice", "Tea for two"),
        (4, 3, "alice", "tea elsewhere"),
        (5, 2, "bob", "お茶をください"),
    ] {
        index.put(&document(event, room, sender, text)).unwrap();
    }
    index.commit(Position(5)).unwrap();
    index
}

#[test]
fn words_are_found_whatever_their_case_and_accents() {
    let folder = tempfile::tempdir().unwrap();
    let index = filled(folder.path());
    for (text, expected) in [
        ("CAFE", &[1][..]),
        ("café", &[1]),
        ("tea", &[3, 2]),
        ("two tea", &[3]),
        ("te", &[]),
        ("お茶", &[5]),
        ("?!", &[]),
    ] {
        assert_eq!(found(&index, &query(text)), expected, "{text}");
    }
    let by_rank = TextQuery { order: TextOrder::Rank, ..query("tea") };
    assert_eq!(found(&index, &by_rank), [2, 3]);
    let of_alice = TextQuery { senders: Some(vec!["alice".to_owned()]), ..query("tea") };
    assert_eq!(found(&index, &of_alice), [3]);
    let older = TextQuery { before: Some(TimelineIndex(3)), ..query("tea") };
    assert_eq!(found(&index, &older), [2]);
    let names = TextQuery { fields: vec![TextField::Name], ..query("tea") };
    assert!(found(&index, &names).is_empty());
    let second = TextQuery { skip: 1, limit: 1, ..query("tea") };
    assert_eq!(found(&index, &second), [2]);
    assert_eq!(index.search(&second).unwrap().count, 2);
}

#[test]
fn a_document_takes_the_place_of_its_former_self() {
    let folder = tempfile::tempdir().unwrap();
    let index = filled(folder.path());
    let edited = TextDocument { source: Some(ShortEventId(9)), ..document(2, 1, "bob", "coffee") };
    index.put(&edited).unwrap();
    index.delete(ShortEventId(3)).unwrap();
    assert_eq!(found(&index, &query("tea")), [3, 2], "nothing is visible before the commit");
    index.commit(Position(9)).unwrap();
    assert!(found(&index, &query("tea")).is_empty());
    assert_eq!(found(&index, &query("coffee")), [2]);
    assert_eq!(index.with_source(ShortEventId(9)).unwrap(), [ShortEventId(2)]);
}

#[test]
fn after_a_commit_that_failed_nothing_that_is_put_again_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let index = filled(folder.path());
    let (place, elsewhere) = (folder.path().join(FORMAT), folder.path().join("elsewhere"));
    std::fs::rename(&place, &elsewhere).unwrap();
    let fails = |index: &TextIndex| {
        index.put(&document(6, 1, "alice", "coffee")).and_then(|()| index.commit(Position(6)))
    };
    assert!(fails(&index).is_err());
    std::fs::rename(&elsewhere, &place).unwrap();
    assert_eq!(index.cursor(), Position(5));
    for event in [6, 7] {
        index.put(&document(event, 1, "alice", "coffee")).unwrap();
        index.commit(Position(event)).unwrap();
    }
    assert_eq!(found(&index, &query("coffee")), [7, 6]);
}

#[test]
fn what_was_committed_is_there_again_and_what_is_damaged_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let index = filled(folder.path());
    index.put(&document(6, 1, "alice", "tea without a commit")).unwrap();
    drop(index);
    let index = TextIndex::open(folder.path()).unwrap();
    assert_eq!((index.cursor(), found(&index, &query("tea"))), (Position(5), vec![3, 2]));
    index.rest().unwrap();
    drop(index);
    std::fs::write(folder.path().join(FORMAT).join("meta.json"), "{").unwrap();
    let index = TextIndex::open(folder.path()).unwrap();
    assert_eq!((index.cursor(), found(&index, &query("tea"))), (Position(0), vec![]));
    index.put(&document(1, 1, "alice", "tea again")).unwrap();
    index.commit(Position(1)).unwrap();
    assert_eq!(found(&index, &query("tea")), [1]);
    index.reset().unwrap();
    assert_eq!((index.cursor(), found(&index, &query("tea"))), (Position(0), vec![]));
}
