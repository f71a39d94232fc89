//! Required state: which state events a client wants, as pairs of event type and state key.

use std::{collections::BTreeSet, sync::Arc};

use engine::state::StateRoot;
use ruma::UserId;

use crate::room::{RoomError, RoomHandle, StoredEvent};

const MEMBER: &str = "m.room.member";
const ANY: &str = "*";
const LAZY: &str = "$LAZY";
const ME: &str = "$ME";

/// The required state of a room, sorted and without repetitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Required(pub(super) Vec<(String, String)>);

impl Required {
    /// What any of these ask for.
    pub(super) fn union<'a>(all: impl Iterator<Item = &'a [(String, String)]>) -> Self {
        let all: BTreeSet<_> = all.flatten().cloned().collect();
        Self(all.into_iter().collect())
    }

    fn has(&self, kind: &str, key: &str) -> bool {
        self.0.iter().any(|(known, known_key)| known == kind && known_key == key)
    }

    /// Whether members are sent as they are needed.
    pub(super) fn is_lazy(&self) -> bool {
        self.has(MEMBER, LAZY) && !self.has(MEMBER, ANY)
    }

    /// Whether a piece of state is asked for by what it is, and not as a member that is needed.
    pub(super) fn matches(&self, me: &UserId, kind: &str, key: &str) -> bool {
        let is_lazy_member = kind == MEMBER && self.is_lazy();
        self.0.iter().any(|(wanted, wanted_key)| match (wanted.as_str(), wanted_key.as_str()) {
            (_, LAZY) => false,
            (ANY, ANY) => !is_lazy_member,
            (wanted, wanted_key) => {
                let key_fits = wanted_key == ANY || wanted_key == key || wanted_key == ME && key == me;
                (wanted == ANY || wanted == kind) && key_fits
            }
        })
    }

    /// All that is asked for of a state.
    pub(super) async fn fetch(
        &self,
        room: &RoomHandle,
        root: StateRoot,
        me: &UserId,
    ) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        if self.0.iter().any(|(kind, _)| kind == ANY) {
            let mut events = room.state(root, None).await?;
            events.retain(|event| self.matches(me, event.pdu.kind(), event.pdu.state_key().unwrap_or("")));
            return Ok(events);
        }
        let mut events = Vec::new();
        for (kind, key) in &self.0 {
            match key.as_str() {
                LAZY => {}
                ANY => events.extend(room.state(root, Some(kind)).await?),
                ME => events.extend(room.state_event(root, kind, me.as_str()).await?),
                key if self.has(kind, ANY) || (key == me && self.has(kind, ME)) => {}
                key => events.extend(room.state_event(root, kind, key).await?),
            }
        }
        // `$ME` next to `*`.
        let mut seen = BTreeSet::new();
        events.retain(|event| seen.insert(event.short));
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;

    fn required(pairs: &[(&str, &str)]) -> Required {
        let pairs: Vec<_> = pairs.iter().map(|(kind, key)| ((*kind).to_owned(), (*key).to_owned())).collect();
        Required::union([pairs.as_slice()].into_iter())
    }

    #[test]
    fn wildcards_match_and_lazy_members_do_not() {
        let me = user_id!("@me:example.org");
        let all = required(&[("*", "*"), (MEMBER, LAZY), (MEMBER, ME)]);
        assert!(all.is_lazy());
        assert!(all.matches(me, "m.room.name", ""));
        assert!(all.matches(me, MEMBER, "@me:example.org"));
        assert!(!all.matches(me, MEMBER, "@you:example.org"));
        let keyed = required(&[("*", "key"), ("m.room.topic", "*")]);
        assert!(keyed.matches(me, "anything", "key"));
        assert!(keyed.matches(me, "m.room.topic", "any"));
        assert!(!keyed.matches(me, "m.room.name", ""));
        let eager = required(&[(MEMBER, LAZY), (MEMBER, ANY)]);
        assert!(!eager.is_lazy());
        assert!(eager.matches(me, MEMBER, "@you:example.org"));
    }
}
