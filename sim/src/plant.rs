//! Rooms of thousands of servers without thousands of joins: one server's room, with members that it was told of, is
//! copied to the disks of all others.

use std::time::Duration;

use actors::room::{Receive, Received};
use anyhow::{Context, Result, bail};
use engine::{pdu, room_version};
use ruma::{CanonicalJsonValue, MilliSecondsSinceUnixEpoch, OwnedRoomId, OwnedUserId};
use serde_json::json;
use storage::{
    Batch,
    schema::{self, MembershipRecord, ServerKeyRecord},
};

use crate::{
    disk::Disk,
    host::{START_MS, signing_key},
    world::{Options, World, host_name},
};

/// The user of the first host, who created the room.
pub const CREATOR: &str = "creator";

/// The user of each other host.
pub const MEMBER: &str = "member";

/// How long the keys that servers know of each other are valid: longer than any run.
const KEYS_VALID_MS: u64 = 30 * 24 * 3_600_000;

/// A room of all hosts.
pub struct Planted {
    /// A disk that holds it.
    pub disk: Disk,
    /// The room.
    pub room: OwnedRoomId,
    /// The members of all hosts but the first, in the order of hosts.
    members: Vec<(OwnedUserId, MembershipRecord)>,
}

/// Plants a public room of all hosts.
pub async fn plant(options: &Options) -> Result<Planted> {
    let alone = Options { servers: 1, faults: Vec::new(), keep_trace: false, ..options.clone() };
    let world = World::new(alone).await?;
    let creator = world.quiet_user(CREATOR, 0).await?;
    let room = creator.create_room(json!({ "preset": "public_chat", "name": "planted" })).await?;
    let boot = world.host(0).boot().context("the host is up")?;
    let homeserver = boot.homeserver();
    let handle = homeserver.room(&room).await?;
    let mut members = Vec::new();
    for number in 1..options.servers {
        let server = host_name(number)?;
        let user = OwnedUserId::try_from(format!("@{MEMBER}:{server}"))?;
        let (version, mut join) = homeserver.membership_template(&server, &room, &user, "join").await?;
        let rules = room_version::rules(&version).context("the room's version is supported")?;
        let now = MilliSecondsSinceUnixEpoch(homeserver.env().clock.now().get());
        join.insert("origin_server_ts".to_owned(), CanonicalJsonValue::Integer(now.get().into()));
        world.trace().beat();
        let key = signing_key(options.seed, &server, 0)?;
        let pdu = pdu::seal(join, &key, &server, rules)?;
        let event_id = pdu.event_id().clone();
        match handle.receive(Receive::new(pdu, server)).await? {
            Received::Accepted => {}
            other => bail!("a planted join is not accepted: {other:?}"),
        }
        let event = handle.any_event(&event_id).await?.context("an accepted event is kept")?;
        let record = MembershipRecord {
            room: event.room,
            membership: "join".to_owned(),
            event: event.short,
            since: event.index.context("an accepted event has a place")?,
            left: None,
            forgotten: false,
        };
        members.push((user, record));
    }
    drop(handle);
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.stop().await;
    Ok(Planted { disk: world.host(0).disk().copy(), room, members })
}

/// A world whose hosts are up and in a planted room, each with its member, as they would be after a long time together:
/// they know each other's keys.
pub async fn grown(options: Options) -> Result<World> {
    let Planted { disk, room, members } = plant(&options).await?;
    let mut keys = Batch::default();
    for number in 0..options.servers {
        let server = host_name(number)?;
        let key = signing_key(options.seed, &server, 0)?;
        let valid_until_ms = START_MS + KEYS_VALID_MS;
        let record = ServerKeyRecord { key: key.public_key().encode(), valid_until_ms };
        keys.put(&schema::SERVER_KEYS, &(server, key.id()), &record);
    }
    disk.write(keys).await?;
    let mut disks = vec![disk.copy()];
    for (user, record) in members {
        // The planter is told of its own users' rooms only.
        let mut own = Batch::default();
        own.put(&schema::MEMBERSHIPS, &(user, room.clone()), &record);
        let disk = disk.copy();
        disk.write(own).await?;
        disks.push(disk);
    }
    let world = World::asleep(options, |number| disks[number].copy())?;
    for host in world.hosts() {
        host.start().await?;
    }
    world.watch_room(&room);
    Ok(world)
}
