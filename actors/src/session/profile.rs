//! What a profile may hold.
//!
//! Spec: client-server API, "Profiles".

use ruma::MxcUri;
use serde_json::value::RawValue;
use storage::schema;

use super::{SessionError, change::Draft};
use crate::users::name_words;

/// Bytes of a whole profile, at most.
pub(super) const SIZE_MAX: usize = 64 * 1024;

const KEY_MAX: usize = 255;

/// Refuses fields that no profile may have; `None` removes one.
///
/// Spec: client-server API, `PUT /_matrix/client/v3/profile/{userId}/{keyName}`.
pub(super) fn check(name: &str, value: Option<&RawValue>) -> Result<(), SessionError> {
    if name.len() > KEY_MAX {
        return Err(SessionError::ProfileKeyTooLarge);
    }
    if !is_name(name) {
        return Err(SessionError::InvalidProfileKey);
    }
    let Some(value) = value.filter(|_| is_text_field(name)) else { return Ok(()) };
    let Ok(text) = serde_json::from_str::<String>(value.get()) else {
        return Err(SessionError::Invalid(format!("{name} must be a string")));
    };
    if name == "avatar_url" && !is_avatar(&text) {
        return Err(SessionError::Invalid("avatar_url must be an mxc:// URI".to_owned()));
    }
    Ok(())
}

/// Whether a text is the URI of some media.
///
/// Spec: client-server API, "Matrix Content (`mxc://`) URIs".
fn is_avatar(text: &str) -> bool {
    <&MxcUri>::from(text).media_id().is_ok_and(|media_id| !media_id.is_empty())
}

/// Whether a field is a string in every profile.
pub(crate) fn is_text_field(name: &str) -> bool {
    ["displayname", "avatar_url", "m.tz"].contains(&name)
}

/// A name of the specification's own, or one under a namespace: `[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+`.
fn is_name(name: &str) -> bool {
    let is_part = |part: &str| {
        part.starts_with(|first: char| first.is_ascii_lowercase())
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    is_text_field(name) || (name.contains('.') && name.split('.').all(is_part))
}

impl Draft {
    /// Has the user found by another display name, or by none, in the same batch as it is set.
    pub(super) fn index_name(&mut self, name: Option<&str>) {
        let former = self.data.profile.text("displayname").map(|name| name_words(&name)).unwrap_or_default();
        let words = name.map(name_words).unwrap_or_default();
        for word in former.difference(&words) {
            self.batch.delete(&schema::PROFILE_WORDS, &(word.clone(), self.data.user_id.to_string()));
        }
        for word in words {
            self.batch.put(&schema::PROFILE_WORDS, &(word, self.data.user_id.to_string()), &());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_name;

    #[test]
    fn a_profile_field_is_known_or_namespaced() {
        for (name, expected) in [
            ("displayname", true),
            ("avatar_url", true),
            ("m.tz", true),
            ("m.example_field", true),
            ("org.example.job_title2", true),
            ("nickname", false),
            ("Org.example", false),
            ("org..example", false),
            ("org.2example", false),
            ("", false),
        ] {
            assert_eq!(is_name(name), expected, "{name}");
        }
    }
}
