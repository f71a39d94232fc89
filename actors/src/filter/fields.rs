//! The properties of an event that a client asked for, by dot-separated paths.
//!
//! Spec: client-server API, "Filtering", `event_fields`; appendices, "Dot-separated property paths".

use std::collections::BTreeMap;

use serde_json::{
    Map, Value,
    value::{RawValue, to_raw_value},
};

/// Properties to keep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(BTreeMap<String, Part>);

/// How much of a property is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    All,
    Some(Fields),
}

impl Fields {
    /// The properties that paths name.
    pub fn new(paths: &[String]) -> Self {
        let mut fields = Self::default();
        for path in paths {
            fields.add(&names(path));
        }
        fields
    }

    fn add(&mut self, names: &[String]) {
        let Some((first, rest)) = names.split_first() else { return };
        if rest.is_empty() {
            self.0.insert(first.clone(), Part::All);
            return;
        }
        let part = self.0.entry(first.clone()).or_insert_with(|| Part::Some(Self::default()));
        if let Part::Some(fields) = part {
            fields.add(rest);
        }
    }

    /// An event with these properties alone.
    pub fn keep(&self, event: &RawValue) -> Box<RawValue> {
        let event = serde_json::from_str(event.get()).unwrap_or_default();
        to_raw_value(&Value::Object(self.keep_of(event))).expect("a JSON value serialises")
    }

    fn keep_of(&self, mut object: Map<String, Value>) -> Map<String, Value> {
        let mut kept = Map::new();
        for (name, part) in &self.0 {
            match (part, object.remove(name)) {
                (Part::All, Some(value)) => drop(kept.insert(name.clone(), value)),
                (Part::Some(fields), Some(Value::Object(inner))) => {
                    let inner = fields.keep_of(inner);
                    if !inner.is_empty() {
                        kept.insert(name.clone(), inner.into());
                    }
                }
                (Part::Some(_), Some(_)) | (_, None) => {}
            }
        }
        kept
    }
}

/// The names in a path; a backslash makes a dot or a backslash part of a name.
fn names(path: &str) -> Vec<String> {
    let mut names = vec![String::new()];
    let mut letters = path.chars().peekable();
    while let Some(letter) = letters.next() {
        let escaped = letters.peek().copied().filter(|next| letter == '\\' && ['.', '\\'].contains(next));
        let last = names.last_mut().expect("there is a first name, and none is removed");
        match escaped {
            Some(next) => {
                letters.next();
                last.push(next);
            }
            None if letter == '.' => names.push(String::new()),
            None => last.push(letter),
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_path_may_have_dots_in_names() {
        for (path, expected) in [
            ("content.body", vec!["content", "body"]),
            (r"content.m\.relates_to", vec!["content", "m.relates_to"]),
            (r"content.m\\foo", vec!["content", r"m\foo"]),
            (r"a\x", vec![r"a\x"]),
            ("", vec![""]),
        ] {
            assert_eq!(names(path), expected, "{path}");
        }
    }

    #[test]
    fn what_is_not_named_is_left_out() {
        let event = json!({
            "type": "m.room.message",
            "sender": "@alice:example.org",
            "content": { "body": "hi", "msgtype": "m.text", "m.relates_to": { "event_id": "$a", "rel_type": "x" } },
        });
        let event = to_raw_value(&event).unwrap();
        for (paths, expected) in [
            (&["type"][..], json!({ "type": "m.room.message" })),
            (&["content.body", "content.none"], json!({ "content": { "body": "hi" } })),
            (
                &[r"content.m\.relates_to.event_id"],
                json!({ "content": { "m.relates_to": { "event_id": "$a" } } }),
            ),
            (&["content.body", "content.body.deeper"], json!({ "content": { "body": "hi" } })),
            (&["sender.deeper", "nothing"], json!({})),
        ] {
            let paths: Vec<_> = paths.iter().map(|path| (*path).to_owned()).collect();
            let kept: Value = serde_json::from_str(Fields::new(&paths).keep(&event).get()).unwrap();
            assert_eq!(kept, expected, "{paths:?}");
        }
    }
}
