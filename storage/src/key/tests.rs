use std::cmp::Ordering;

use engine::id::{Position, ShortRoomId, TimelineIndex};
use proptest::prelude::*;
use ruma::{EventId, OwnedEventId, OwnedUserId, UserId};

use super::{AsKey, EventIdHash, Key, KeyError, KeyPrefix, KeyRange, decode, encode, successor};

/// The encoded order is the logical order, and decoding gives the key back.
fn check<K: Key + Ord + std::fmt::Debug>(a: &K, b: &K) {
    let (left, right) = (encode::<K, K>(a), encode::<K, K>(b));
    assert_eq!(left.cmp(&right), a.cmp(b), "{a:?} {b:?}");
    assert_eq!(decode::<K>(&left).as_ref(), Ok(a));
}

/// A prefix's range holds exactly the keys that begin with it.
fn check_prefix<K: AsKey<K>, P: KeyPrefix<K>>(prefix: &P, key: &K, inside: bool) {
    use std::ops::RangeBounds;
    let range = KeyRange::<K>::prefix(prefix);
    assert_eq!((range.lower, range.upper).contains(&encode::<K, K>(key)), inside);
}

/// Short text in which zero bytes, the escape and shared beginnings are common.
fn text() -> impl Strategy<Value = String> {
    "[\\x00\\x01ab\u{7f}é\u{10ffff}]{0,5}"
}

proptest! {
    #[test]
    fn numbers_keep_their_order(a: (u64, i64), b: (u64, i64), c: (u8, u16, u32), d: (u8, u16, u32)) {
        check(&a, &b);
        check(&c, &d);
    }

    #[test]
    fn text_keeps_its_order(a in text(), b in text()) {
        check(&a, &b);
        let (left, right) = (encode::<String, str>(&a), encode::<String, String>(&a));
        prop_assert_eq!(left, right);
    }

    #[test]
    fn tuples_keep_their_order(a in (text(), any::<i64>(), text()), b in (text(), any::<i64>(), text())) {
        check(&a, &b);
        check(&(a.0.clone(), a.2.clone()), &(b.0.clone(), b.2.clone()));
        check(&(a.0.clone(), a.1, a.2.clone(), a.1), &(a.0.clone(), a.1, b.2.clone(), b.1));
        check(&(Some(a.0.clone()), a.1), &(None, b.1));
        check(&(Some(a.0), a.1), &(Some(b.0), b.1));
    }

    #[test]
    fn tuple_prefixes_are_ranges(a in (text(), any::<u8>(), text()), b in (text(), any::<u8>(), text())) {
        check_prefix(&(a.0.as_str(),), &b, a.0 == b.0);
        check_prefix(&(a.0.as_str(), a.1), &b, (&a.0, a.1) == (&b.0, b.1));
        check_prefix(&(a.0.as_str(), a.1), &a, true);
        check_prefix(&(a.1,), &(b.1, b.0.clone()), a.1 == b.1);
        check_prefix(&(a.1, a.0.as_str(), a.1), &(b.1, b.0.clone(), b.1, b.2), (a.1, &a.0) == (b.1, &b.0));
    }

    #[test]
    fn any_bytes_decode_to_a_key_or_an_error(bytes: Vec<u8>) {
        if let Ok(key) = decode::<(String, i64, Option<u8>)>(&bytes) {
            prop_assert_eq!(encode(&key), bytes.clone());
        }
        let _ = decode::<(OwnedUserId, OwnedEventId)>(&bytes); // any answer but a panic
    }

    #[test]
    fn the_successor_is_the_least_upper_bound(prefix: Vec<u8>, rest: Vec<u8>) {
        let below = [prefix.as_slice(), &rest].concat();
        match successor(&prefix) {
            Some(end) => {
                prop_assert!(below < end);
                prop_assert!(prefix <= end && !end.starts_with(&prefix));
            }
            None => prop_assert!(prefix.iter().all(|byte| *byte == 255)),
        }
    }
}

#[test]
fn identifiers_and_newtypes_are_keys() {
    let alice: &UserId = "@alice:example.org".try_into().unwrap();
    let key = (ShortRoomId(7), alice.to_owned(), TimelineIndex(-1), Position(9));
    check(&key, &(ShortRoomId(7), alice.to_owned(), TimelineIndex(1), Position(0)));
    let borrowed: bytes::Bytes = encode::<(ShortRoomId, OwnedUserId), _>(&(ShortRoomId(7), alice));
    assert_eq!(borrowed, encode::<(ShortRoomId, OwnedUserId), _>(&(ShortRoomId(7), alice.to_owned())));
    assert_eq!(decode::<OwnedUserId>(b"nobody\0\0"), Err(KeyError::Invalid("UserId")));
}

#[test]
fn broken_keys_are_errors() {
    assert_eq!(decode::<u64>(&[0; 7]), Err(KeyError::TooShort));
    assert_eq!(decode::<u64>(&[0; 9]), Err(KeyError::TooLong(1)));
    assert_eq!(decode::<String>(b"ab"), Err(KeyError::TooShort));
    assert_eq!(decode::<String>(b"ab\0"), Err(KeyError::TooShort));
    assert_eq!(decode::<String>(b"ab\0\x01"), Err(KeyError::Invalid("escape")));
    assert_eq!(decode::<String>(b"\xff\0\0"), Err(KeyError::Invalid("text")));
    assert_eq!(decode::<Option<u8>>(&[2, 0]), Err(KeyError::Invalid("option")));
}

#[test]
fn ranges_only_narrow() {
    let range =
        KeyRange::<u64>::all().from(&5).from(&3).after(&5).from(&5).up_to(&9).before(&9).up_to(&20).up_to(&9);
    assert_eq!(range.lower, std::ops::Bound::Excluded(encode::<u64, u64>(&5)));
    assert_eq!(range.upper, std::ops::Bound::Excluded(encode::<u64, u64>(&9)));
    let order = encode::<(u8, u8), _>(&(1, 2)).cmp(&encode::<(u8, u8), _>(&(1, 3)));
    assert_eq!(order, Ordering::Less);
}

/// What is stored is not to change.
#[test]
fn an_event_id_is_found_by_its_hash() {
    let id: OwnedEventId = "$event:example.org".try_into().unwrap();
    let hash = EventIdHash::from(&*id);
    let key = encode::<EventIdHash, _>(&id);
    let expected: [u8; 16] =
        [0x8e, 0x3e, 0x26, 0x0c, 0xfe, 0xd5, 0x08, 0xed, 0xde, 0x33, 0x45, 0x52, 0x2a, 0x73, 0xbf, 0x28];
    assert_eq!(key.as_ref(), expected);
    assert_eq!((encode::<EventIdHash, EventId>(&id), encode(&hash)), (key.clone(), key.clone()));
    assert_eq!(decode(&key), Ok(hash));
}
