//! Required state: which state events a client wants, as pairs of event type and state key.

use std::{collections::BTreeSet, sync::Arc};

use engine::state::StateRoot;
use ruma::UserId;

use crate::room::{RoomError, RoomHandle, StoredEvent};

pub(super) const MEMBER: &str = "m.room.member";
pub(super) const ANY: &str = "*";
pub(super) const LAZY: &str = "$LAZY";
/// What the type of an excluded pair begins with: no event type does.
const EXCLUDED: char = '\0';
const ME: &str = "$ME";

/// A pair that takes state out again.
pub(super) fn excluded((kind, key): (String, String)) -> (String, String) {
    (format!("{EXCLUDED}{kind}"), key)
}

/// The required state of a room, sorted and without repetitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Required(pub(super) Vec<(String, String)>);

impl Required {
    /// What any of these ask for; left out is only what all of them leave out.
    pub(super) fn union(all: &[&[(String, String)]]) -> Self {
        let pairs: BTreeSet<_> = all.iter().copied().flatten().cloned().collect();
        let stays = |pair: &(String, String)| {
            !pair.0.starts_with(EXCLUDED) || all.iter().all(|pairs| pairs.contains(pair))
        };
        Self(pairs.into_iter().filter(stays).collect())
    }

    /// Whether a piece of state is left out, whatever else asks for it.
    fn excludes(&self, kind: &str, key: &str) -> bool {
        let excluded = self.0.iter().filter_map(|(wanted, key)| Some((wanted.strip_prefix(EXCLUDED)?, key)));
        excluded.into_iter().any(|(wanted, wanted_key)| {
            (wanted == ANY || wanted == kind) && (wanted_key == ANY || wanted_key == key)
        })
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
        !self.excludes(kind, key)
            && self.0.iter().any(|(wanted, wanted_key)| match (wanted.as_str(), wanted_key.as_str()) {
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
        for (kind, key) in self.0.iter().filter(|(kind, _)| !kind.starts_with(EXCLUDED)) {
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
        events.retain(|event| {
            let key = event.pdu.state_key().unwrap_or_default();
            !self.excludes(event.pdu.kind(), key) && seen.insert(event.short)
        });
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;

    fn pair(kind: &str, key: &str) -> (String, String) {
        (kind.to_owned(), key.to_owned())
    }

    fn required(pairs: &[(&str, &str)]) -> Required {
        let pairs: Vec<_> = pairs.iter().map(|(kind, key)| ((*kind).to_owned(), (*key).to_owned())).collect();
        Required::union(&[&pairs])
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
        let one = [pair("*", "*"), excluded(pair("m.room.topic", "*")), excluded(pair("m.room.name", ""))];
        let other = [pair("m.room.avatar", ""), excluded(pair("m.room.name", ""))];
        let partly = Required::union(&[&one, &other]);
        assert!(partly.matches(me, "m.room.topic", ""));
        assert!(!partly.matches(me, "m.room.name", ""));
        assert!(partly.matches(me, "m.room.name", "x"));
        let eager = required(&[(MEMBER, LAZY), (MEMBER, ANY)]);
        assert!(!eager.is_lazy());
        assert!(eager.matches(me, MEMBER, "@you:example.org"));
    }
}
