//! Counting a room's members, and the servers that they are on.

use imbl::OrdMap;
use ruma::{OwnedServerName, OwnedUserId, ServerName, UserId};

/// How many members a room has, and how many of them each server. Cloning shares all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Number of joined members.
    pub joined: u64,
    /// Number of invited members.
    pub invited: u64,
    /// The servers in the room, with their numbers of joined members.
    pub servers: OrdMap<OwnedServerName, u64>,
}

/// A server's number of joined members, as it is now; 0 for one that is not in the room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerCount {
    /// The server.
    pub server: OwnedServerName,
    /// Its joined members.
    pub joined: u64,
}

impl Census {
    /// Counts the members of a state, each with the membership.
    pub fn of(members: impl IntoIterator<Item = (OwnedUserId, String)>) -> Self {
        let mut census = Self::default();
        for (user, membership) in members {
            census.member_moved(&user, "leave", &membership, 0);
        }
        census
    }

    /// Whether a server has joined members here.
    pub fn has_server(&self, server: &ServerName) -> bool {
        self.servers.contains_key(server)
    }

    /// Takes a member from one membership to another; returns the server's new number if that moved.
    ///
    /// The number does not fall below `least`: a server may have members that are not known here yet.
    pub fn member_moved(
        &mut self,
        user: &UserId,
        before: &str,
        after: &str,
        least: u64,
    ) -> Option<ServerCount> {
        for (name, count) in [("join", &mut self.joined), ("invite", &mut self.invited)] {
            *count += u64::from(after == name);
            *count -= u64::from(before == name).min(*count);
        }
        let leaves = before == "join";
        if leaves == (after == "join") {
            return None;
        }
        let server = user.server_name();
        let held = self.servers.get(server).copied().unwrap_or(0);
        let joined = if leaves { held.saturating_sub(1) } else { held + 1 }.max(least);
        if joined == 0 {
            self.servers.remove(server);
        } else {
            self.servers.insert(server.to_owned(), joined);
        }
        Some(ServerCount { server: server.to_owned(), joined })
    }

    /// Notes a server of which it is only known that it is in the room; returns its number if it is new here.
    pub fn server_named(&mut self, server: &ServerName) -> Option<ServerCount> {
        if self.has_server(server) {
            return None;
        }
        self.servers.insert(server.to_owned(), 1);
        Some(ServerCount { server: server.to_owned(), joined: 1 })
    }

    /// The servers whose numbers are others in a later census.
    pub fn moved_to(&self, later: &Self) -> Vec<ServerCount> {
        let gone = self.servers.keys().filter(|server| !later.has_server(server));
        let gone = gone.map(|server| ServerCount { server: server.clone(), joined: 0 });
        let moved =
            later.servers.iter().filter(|(server, joined)| self.servers.get(*server) != Some(*joined));
        gone.chain(moved.map(|(server, joined)| ServerCount { server: server.clone(), joined: *joined }))
            .collect()
    }
}
