//! Users whose messages a user does not want to see.
//!
//! Spec: client-server API, "Ignoring Users".

use std::collections::{BTreeMap, BTreeSet};

use engine::pdu::Pdu;
use ruma::{OwnedUserId, UserId};
use serde::Deserialize;
use serde_json::Value;

/// The type of the account data that lists them.
pub(crate) const IGNORED_USERS: &str = "m.ignored_user_list";

/// Users whom a user ignores.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ignored(BTreeSet<OwnedUserId>);

#[derive(Deserialize)]
struct Content {
    ignored_users: BTreeMap<String, Value>,
}

impl Ignored {
    /// Those whom account data of a user name; what has another shape names nobody.
    ///
    /// Nobody ignores themselves: they could not even see what they sent.
    pub(crate) fn read(user_id: &UserId, content: &[u8]) -> Self {
        let Ok(content) = serde_json::from_slice::<Content>(content) else { return Self::default() };
        let users = content.ignored_users.into_keys().filter_map(|user| OwnedUserId::try_from(user).ok());
        Self(users.filter(|user| user != user_id).collect())
    }

    /// Whether nobody is ignored.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a user is ignored.
    pub fn contains(&self, user_id: &UserId) -> bool {
        !self.0.is_empty() && self.0.contains(user_id)
    }

    /// Whether an event is not to be shown. State is always shown: the room must not look different.
    pub fn hides(&self, pdu: &Pdu) -> bool {
        pdu.state_key().is_none() && self.contains(pdu.sender())
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;

    #[test]
    fn a_list_is_a_map_of_user_ids() {
        let alice = user_id!("@alice:example.org");
        let content =
            br#"{"ignored_users":{"@mallory:example.org":{},"@alice:example.org":{},"nonsense":7}}"#;
        let ignored = Ignored::read(alice, content);
        assert!(ignored.contains(user_id!("@mallory:example.org")));
        assert!(!ignored.contains(user_id!("@bob:example.org")) && !ignored.contains(alice));
        for content in ["{}", "", r#"{"ignored_users":["@mallory:example.org"]}"#] {
            assert!(Ignored::read(alice, content.as_bytes()).is_empty(), "{content}");
        }
    }
}
