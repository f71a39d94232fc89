//! Room tags, which live in a piece of room account data.
//!
//! Spec: client-server API, "Room Tagging".

use std::sync::Arc;

use serde_json::{Map, Value, json, value::RawValue};

use super::SessionError;

/// The type of the account data that holds a room's tags.
pub(crate) const KIND: &str = "m.tag";

/// Tags that one room may have.
const TAGS_MAX: usize = 1000;

/// Bytes of what a room's tag says, at most: an order, and what clients add to it.
const INFO_MAX: usize = 4 << 10;

/// The tags in a content, if it has the shape that it should.
pub(super) fn read(content: Option<&RawValue>) -> Map<String, Value> {
    let content: Option<Value> = content.and_then(|content| serde_json::from_str(content.get()).ok());
    match content.and_then(|mut content| content.get_mut("tags").map(Value::take)) {
        Some(Value::Object(tags)) => tags,
        _ => Map::new(),
    }
}

/// The content with a tag set.
pub(super) fn with(
    content: Option<&RawValue>,
    tag: &str,
    info: &RawValue,
) -> Result<Arc<RawValue>, SessionError> {
    if tag.len() > 255 {
        return Err(SessionError::Invalid("a tag has at most 255 bytes".to_owned()));
    }
    if info.get().len() > INFO_MAX {
        return Err(SessionError::TooLarge(format!("a tag's content has at most {INFO_MAX} bytes")));
    }
    let mut tags = read(content);
    let info = serde_json::from_str(info.get()).map_err(|error| SessionError::Invalid(error.to_string()))?;
    tags.insert(tag.to_owned(), info);
    if tags.len() > TAGS_MAX {
        return Err(SessionError::TooMany("tags of a room"));
    }
    Ok(write(&tags))
}

/// The content with a tag removed; none if it was not there.
pub(super) fn without(content: Option<&RawValue>, tag: &str) -> Option<Arc<RawValue>> {
    let mut tags = read(content);
    tags.remove(tag)?;
    Some(write(&tags))
}

fn write(tags: &Map<String, Value>) -> Arc<RawValue> {
    let content = json!({ "tags": tags });
    serde_json::value::to_raw_value(&content).expect("a JSON value serialises").into()
}
