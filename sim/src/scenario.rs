//! Scenarios: short functions that set a room up and say who does what in it.

mod rooms;

use std::time::Duration;

use anyhow::Result;
use futures_util::future::BoxFuture;

use crate::{fault::Profile, world::World};

/// A scenario.
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What happens in it.
    pub about: &'static str,
    /// The faults that it bears.
    pub profile: Profile,
    /// Hosts, unless asked for otherwise: the least and the most.
    pub servers: (usize, usize),
    /// How long its workload lasts, unless asked for otherwise.
    pub lasts: Duration,
    /// What is unusual about its hosts.
    pub quirk: Option<Quirk>,
    /// What happens.
    pub play: Play,
}

/// What is unusual about the hosts of a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quirk {
    /// All of them are in a room from the beginning, each with a member.
    Planted,
    /// They tell nobody who is online, so that a quiet one gives no signs of life.
    Reticent,
    /// They lose some of the device updates that they are to send, as servers do that bound their queues.
    Forgetful,
}

/// What happens in a scenario: it sets up, and then works under faults.
pub type Play = fn(&World) -> BoxFuture<'_, Result<()>>;

/// All scenarios.
pub const ALL: [Scenario; 18] = [
    Scenario {
        name: "chat",
        about: "a user on each host talks in one room; hosts and network fail",
        profile: Profile::Everything,
        servers: (2, 5),
        lasts: Duration::from_secs(60),
        quirk: None,
        play: |world| Box::pin(rooms::chat(world)),
    },
    Scenario {
        name: "busy-room",
        about: "two users on each host talk fast in one room; the network fails",
        profile: Profile::Network,
        servers: (2, 4),
        lasts: Duration::from_secs(20),
        quirk: None,
        play: |world| Box::pin(rooms::busy_room(world)),
    },
    Scenario {
        name: "quiet-network",
        about: "the same as chat without faults: nothing may be soft-failed, and everything arrives at once",
        profile: Profile::Nothing,
        servers: (2, 6),
        lasts: Duration::from_secs(30),
        quirk: None,
        play: |world| Box::pin(rooms::chat(world)),
    },
    Scenario {
        name: "joins-and-leaves",
        about: "users of all hosts join and leave while others talk",
        profile: Profile::Everything,
        servers: (2, 5),
        lasts: Duration::from_secs(60),
        quirk: None,
        play: |world| Box::pin(rooms::joins_and_leaves(world)),
    },
    Scenario {
        name: "bans-racing",
        about: "moderators on two hosts kick and ban users who come back and talk",
        profile: Profile::Network,
        servers: (3, 5),
        lasts: Duration::from_secs(60),
        quirk: None,
        play: |world| Box::pin(rooms::bans_racing(world)),
    },
    Scenario {
        name: "power-fight",
        about: "administrators raise and lower each other from both sides of partitions",
        profile: Profile::Network,
        servers: (2, 5),
        lasts: Duration::from_secs(60),
        quirk: None,
        play: |world| Box::pin(rooms::power_fight(world)),
    },
    Scenario {
        name: "key-rotation",
        about: "hosts replace their signing keys while their users talk",
        profile: Profile::Everything,
        servers: (2, 4),
        lasts: Duration::from_secs(60),
        quirk: None,
        play: |world| Box::pin(rooms::key_rotation(world)),
    },
    Scenario {
        name: "large-join",
        about: "hosts join a room with many members and much history, one after the other",
        profile: Profile::Network,
        servers: (2, 4),
        lasts: Duration::from_secs(30),
        quirk: None,
        play: |world| Box::pin(rooms::large_join(world)),
    },
    Scenario {
        name: "invite-storm",
        about: "a user is invited to many rooms at once, and accepts or rejects",
        profile: Profile::Network,
        servers: (2, 4),
        lasts: Duration::from_secs(30),
        quirk: None,
        play: |world| Box::pin(rooms::invite_storm(world)),
    },
    Scenario {
        name: "hostile-peer",
        about: "a peer forges, equivocates, withholds and tries to reset the state while others talk",
        profile: Profile::Network,
        servers: (2, 4),
        lasts: Duration::from_secs(40),
        quirk: None,
        play: |world| Box::pin(rooms::hostile_peer(world)),
    },
    Scenario {
        name: "noise",
        about: "receipts, typing notices and presence among a few messages",
        profile: Profile::Everything,
        servers: (2, 5),
        lasts: Duration::from_secs(60),
        quirk: None,
        play: |world| Box::pin(rooms::noise(world)),
    },
    Scenario {
        name: "redactions",
        about: "a user on each host talks and takes back some of it; hosts and network fail",
        profile: Profile::Everything,
        servers: (2, 4),
        lasts: Duration::from_secs(60),
        quirk: None,
        play: |world| Box::pin(rooms::redactions(world)),
    },
    Scenario {
        name: "devices",
        about: "users write to each other's devices, get new keys, leave and come back; hosts and network fail",
        profile: Profile::Everything,
        servers: (2, 4),
        lasts: Duration::from_secs(60),
        quirk: None,
        play: |world| Box::pin(rooms::devices(world)),
    },
    Scenario {
        name: "restarts",
        about: "the same as chat while hosts stop and lose power: what was said arrives without anybody saying more",
        profile: Profile::Hosts,
        servers: (2, 4),
        lasts: Duration::from_secs(60),
        quirk: None,
        play: |world| Box::pin(rooms::restarts(world)),
    },
    Scenario {
        name: "crowd",
        about: "hosts that have been in one room for long talk in it, without faults",
        profile: Profile::Nothing,
        servers: (10, 20),
        lasts: Duration::from_secs(15),
        quirk: Some(Quirk::Planted),
        play: |world| Box::pin(rooms::crowd(world)),
    },
    Scenario {
        name: "outages",
        about: "chat among hosts that tell nobody who is online, while the network fails: what was said arrives in time \
                without anybody saying more",
        profile: Profile::Network,
        servers: (2, 4),
        lasts: Duration::from_secs(60),
        quirk: Some(Quirk::Reticent),
        play: |world| Box::pin(rooms::outages(world)),
    },
    Scenario {
        name: "lost-updates",
        about: "users with several devices get new keys, of which their hosts do not always tell; hosts and network fail",
        profile: Profile::Everything,
        servers: (2, 4),
        lasts: Duration::from_secs(60),
        quirk: Some(Quirk::Forgetful),
        play: |world| Box::pin(rooms::lost_updates(world)),
    },
    Scenario {
        name: "withheld",
        about: "a peer tells some servers what it never tells the others, which get it from each other; the network fails",
        profile: Profile::Network,
        servers: (2, 4),
        lasts: Duration::from_secs(40),
        quirk: None,
        play: |world| Box::pin(rooms::withheld(world)),
    },
];

/// A scenario by its name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}
