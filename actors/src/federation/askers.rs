//! Servers that lately asked for the devices of local users.
//!
//! A server that joins a room asks for its members' devices, perhaps before we hear of the join. What changes until then
//! is told to it as well: it would otherwise go on with what it got, since nothing else tells it that it lacks an update.
//! Only in memory: after a restart in between, the user's next change shows the gap.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use ruma::{OwnedServerName, OwnedUserId, ServerName, UserId};
use storage::schema;

use crate::{homeserver::Homeserver, session::SessionError};

/// How long a server counts as one that asked: longer than it takes to hear of a join from servers that answer.
const ASKED_FOR_MS: u64 = 30 * 60 * 1000;

/// Servers that are remembered, for all users together.
const ASKERS_MAX: usize = 50_000;

/// Who asked, and when last.
#[derive(Default)]
pub(super) struct Askers(Mutex<Asked>);

#[derive(Default)]
struct Asked {
    by_user: BTreeMap<OwnedUserId, BTreeMap<OwnedServerName, u64>>,
    count: usize,
}

impl Askers {
    fn note(&self, user_id: &UserId, server: &ServerName, now_ms: u64) {
        let mut asked = self.0.lock();
        if asked.count >= ASKERS_MAX {
            *asked = Asked::default();
        }
        let servers = asked.by_user.entry(user_id.to_owned()).or_default();
        let before = servers.len();
        servers.retain(|_, asked_ms| now_ms < *asked_ms + ASKED_FOR_MS);
        servers.insert(server.to_owned(), now_ms);
        let after = servers.len();
        asked.count = asked.count + after - before;
    }

    /// Those who asked for a user's devices lately.
    pub(super) fn of(&self, user_id: &UserId, now_ms: u64) -> BTreeSet<OwnedServerName> {
        let asked = self.0.lock();
        let servers = asked.by_user.get(user_id).into_iter().flatten();
        let lately = servers.filter(|(_, asked_ms)| now_ms < **asked_ms + ASKED_FOR_MS);
        lately.map(|(server, _)| server.clone()).collect()
    }
}

impl Homeserver {
    /// Notes that a server asked for the devices of users; those who have no account here do not count, of whom there
    /// could be any number.
    pub async fn asked_for_devices<'a>(
        &self,
        server: &ServerName,
        users: impl IntoIterator<Item = &'a OwnedUserId>,
    ) -> Result<(), SessionError> {
        let Some(federation) = self.federation() else { return Ok(()) };
        let now_ms = self.env().clock.now_ms();
        for user_id in users.into_iter().filter(|user_id| user_id.server_name() == self.server_name()) {
            if self.storage().get(&schema::ACCOUNTS, user_id).await?.is_some() {
                federation.askers.note(user_id, server, now_ms);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ruma::{server_name, user_id};

    use super::*;

    #[test]
    fn who_asked_is_remembered_for_a_while() {
        let askers = Askers::default();
        askers.note(user_id!("@alice:a"), server_name!("b"), 1000);
        askers.note(user_id!("@bob:a"), server_name!("c"), 1000);
        let of = |now_ms| askers.of(user_id!("@alice:a"), now_ms);
        assert_eq!(of(2000), BTreeSet::from([server_name!("b").to_owned()]));
        assert_eq!(of(1000 + ASKED_FOR_MS), BTreeSet::new());
        askers.note(user_id!("@alice:a"), server_name!("b"), 5000);
        assert_eq!(of(1000 + ASKED_FOR_MS).len(), 1);
    }
}
