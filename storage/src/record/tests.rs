use bytes::Bytes;
use engine::id::{Position, TimelineIndex};
use proptest::prelude::*;
use ruma::OwnedUserId;
use serde::{Deserialize, Serialize};

use super::{DecodeError, Record, Value};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Membership {
    user: String,
    since: Position,
    #[serde(default)]
    reason: Option<String>,
}

impl Record for Membership {
    const VERSION: u8 = 3;
}

fn membership() -> Membership {
    Membership { user: "@alice:example.org".to_owned(), since: Position(7), reason: None }
}

#[test]
fn a_record_is_its_version_and_named_fields() {
    let bytes = Value::encode(&membership()).unwrap();
    assert_eq!(bytes[0], 3);
    assert!(bytes.windows(5).any(|window| window == b"since"));
    assert_eq!(Membership::decode(bytes).unwrap(), membership());
}

/// A field added later is absent in old rows.
#[test]
fn an_absent_optional_field_decodes() {
    #[derive(Serialize, Deserialize)]
    struct Old {
        user: String,
        since: Position,
    }
    impl Record for Old {
        const VERSION: u8 = 3;
    }
    let old = Old { user: membership().user, since: membership().since };
    assert_eq!(Membership::decode(Value::encode(&old).unwrap()).unwrap(), membership());
}

#[test]
fn broken_records_are_errors() {
    assert!(matches!(Membership::decode(Bytes::new()), Err(DecodeError::Length(0))));
    let newer = Bytes::from_static(&[4, 0x80]);
    assert!(matches!(Membership::decode(newer), Err(DecodeError::Version { found: 4, expected: 3 })));
    assert!(matches!(Membership::decode(Bytes::from_static(&[3, 0x80])), Err(DecodeError::Body(_))));
    let mut longer = Value::encode(&membership()).unwrap().to_vec();
    longer.push(0);
    assert!(matches!(Membership::decode(longer.into()), Err(DecodeError::Length(_))));
    assert!(matches!(u64::decode(Bytes::from_static(b"short")), Err(DecodeError::Length(5))));
    assert!(matches!(<()>::decode(Bytes::from_static(b"x")), Err(DecodeError::Length(1))));
    assert!(matches!(String::decode(Bytes::from_static(b"\xff")), Err(DecodeError::Invalid(_))));
    assert!(matches!(OwnedUserId::decode(Bytes::from_static(b"nobody")), Err(DecodeError::Invalid(_))));
}

proptest! {
    #[test]
    fn any_bytes_decode_to_a_record_or_an_error(mut bytes: Vec<u8>) {
        let _ = Membership::decode(bytes.clone().into()); // any answer but a panic
        bytes.insert(0, 3);
        let _ = Membership::decode(bytes.into());
    }

    #[test]
    fn plain_values_come_back(number: u64, index: i64, text: String, raw: Vec<u8>) {
        prop_assert_eq!(u64::decode(Value::encode(&number).unwrap()).unwrap(), number);
        let index = TimelineIndex(index);
        prop_assert_eq!(TimelineIndex::decode(Value::encode(&index).unwrap()).unwrap(), index);
        prop_assert_eq!(String::decode(Value::encode(&text).unwrap()).unwrap(), text);
        let raw = Bytes::from(raw);
        prop_assert_eq!(Bytes::decode(Value::encode(&raw).unwrap()).unwrap(), raw);
    }
}
