//! Connections and memory stay within their budgets, and no actor crashes.

use crate::world::World;

/// How far above its budget a class may be: actors in use are not passivated.
const SLACK: u64 = 4;

pub(super) fn kept(world: &World) -> Option<String> {
    for (name, traffic) in world.network().traffic_of_hosts() {
        let most = world.options().host.connections_max.unwrap_or(usize::MAX);
        if usize::try_from(traffic.connections_peak).unwrap_or(usize::MAX) > most {
            let peak = traffic.connections_peak;
            return Some(format!("{name} had {peak} connections, and may have {most}"));
        }
    }
    for (name, boot) in world.boots() {
        let homeserver = boot.homeserver();
        let classes = [
            ("rooms", homeserver.room_stats()),
            ("sessions", homeserver.session_stats()),
            ("destinations", homeserver.destination_stats()),
        ];
        for (class, stats) in classes {
            let budget = world.options().host.memory;
            if stats.bytes > SLACK * budget {
                let bytes = stats.bytes;
                return Some(format!("the {class} of {name} hold {bytes} bytes, and may hold {budget}"));
            }
        }
    }
    None
}

/// An actor that crashed although nothing failed beneath it.
pub(super) fn crashed(world: &World) -> Option<String> {
    for host in world.hosts() {
        let Some(boot) = host.boot().filter(|_| !host.has_failed()) else { continue };
        let homeserver = boot.homeserver();
        let crashed = homeserver.room_stats().crashed
            + homeserver.session_stats().crashed
            + homeserver.destination_stats().crashed;
        if crashed > 0 {
            return Some(format!("{crashed} actors of {} crashed", host.name));
        }
    }
    None
}
