//! What an event says of its relation to another event.
//!
//! Spec: client-server API, "Forming relationships between events".

use ruma::{OwnedEventId, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::pdu::Pdu;

/// The relation type of annotations, such as reactions.
pub const ANNOTATION: &str = "m.annotation";

/// The relation type of generic references.
pub const REFERENCE: &str = "m.reference";

/// The relation type of edits.
pub const REPLACE: &str = "m.replace";

/// The relation type of messages in a thread.
pub const THREAD: &str = "m.thread";

/// The longest relation type that is known, in bytes: no longer than the type of an event.
const REL_TYPE_MAX: usize = 255;

/// What an event's content says of its relation to another event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// The event that it relates to.
    pub target: OwnedEventId,
    /// How it relates to it.
    pub rel_type: String,
    /// What it annotates it with.
    key: Option<String>,
    /// Whether it has a new content for its target.
    pub has_new_content: bool,
}

#[derive(Deserialize)]
struct Content<'a> {
    #[serde(rename = "m.relates_to")]
    relates_to: RelatesTo,
    #[serde(borrow, rename = "m.new_content")]
    new_content: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RelatesTo {
    rel_type: String,
    event_id: OwnedEventId,
    key: Option<String>,
}

impl Relation {
    /// The relation that a content states, if it has the right shape.
    pub fn read(content: &RawValue) -> Option<Self> {
        // Few events relate to others: the rest is not worth parsing.
        if !content.get().contains("\"m.relates_to\"") {
            return None;
        }
        let Content { relates_to, new_content } = serde_json::from_str(content.get()).ok()?;
        let has_new_content = new_content.is_some_and(|content| content.get().starts_with('{'));
        let RelatesTo { rel_type, event_id: target, key } = relates_to;
        (rel_type.len() <= REL_TYPE_MAX).then_some(Self { target, rel_type, key, has_new_content })
    }

    /// The relation that an event states.
    pub fn of(pdu: &Pdu) -> Option<Self> {
        Self::read(pdu.content())
    }

    /// What an annotation by an event of this type is known by.
    pub fn annotation(&self, kind: &str) -> Option<[u8; 32]> {
        let key = self.key.as_ref().filter(|_| self.rel_type == ANNOTATION)?;
        Some(Sha256::digest(format!("{kind}\0{key}")).into())
    }

    /// Whether it makes a thread out of an event that relates to another one itself.
    ///
    /// Spec: client-server API, "Validation of `m.thread` relationships".
    pub fn is_thread_on_relation(&self, target: &Pdu) -> bool {
        self.rel_type == THREAD && Self::of(target).is_some()
    }

    /// Whether an event is the annotation that a user is about to send as one of this type.
    ///
    /// Spec: client-server API, "Avoiding duplicate annotations".
    pub fn is_annotated_by(&self, event: &Pdu, sender: &UserId, kind: &str) -> bool {
        let Some(annotation) = self.annotation(kind) else { return false };
        let other = Self::of(event).filter(|other| other.target == self.target);
        event.sender() == sender && other.and_then(|other| other.annotation(event.kind())) == Some(annotation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &str) -> Option<Relation> {
        Relation::read(&RawValue::from_string(content.to_owned()).unwrap())
    }

    #[test]
    fn a_relation_has_a_type_and_a_target() {
        let edit = read(r#"{"m.relates_to":{"rel_type":"m.replace","event_id":"$a"},"m.new_content":{}}"#);
        let edit = edit.unwrap();
        assert_eq!((edit.rel_type.as_str(), edit.target.as_str()), (REPLACE, "$a"));
        assert!(edit.has_new_content);
        for content in [
            "{}",
            r#"{"m.relates_to":{"m.in_reply_to":{"event_id":"$a"}}}"#,
            r#"{"m.relates_to":{"rel_type":"m.replace","event_id":"a"}}"#,
            r#"{"m.relates_to":{"rel_type":7,"event_id":"$a"}}"#,
            r#"{"m.relates_to":"$a"}"#,
        ] {
            assert_eq!(read(content), None, "{content}");
        }
    }

    #[test]
    fn annotations_differ_by_type_and_key() {
        let annotation = |key: &str, kind: &str| {
            let relates_to = serde_json::json!({ "rel_type": ANNOTATION, "event_id": "$a", "key": key });
            read(&serde_json::json!({ "m.relates_to": relates_to }).to_string()).unwrap().annotation(kind)
        };
        assert_eq!(annotation("tea", "m.reaction"), annotation("tea", "m.reaction"));
        assert_ne!(annotation("tea", "m.reaction"), annotation("milk", "m.reaction"));
        assert_ne!(annotation("tea", "m.reaction"), annotation("tea", "m.other"));
    }
}
