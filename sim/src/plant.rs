//! Rooms of thousands of servers without thousands of joins: one server's room, with members that it was told of, is
//! copied to the disks of all others.

use std::time::Duration;

use actors::room::{Receive, Received};
use anyhow::{Context, Result, bail};
use engine::{pdu, room_version};
use ruma::{CanonicalJsonValue, MilliSecondsSinceUnixEpoch, OwnedRoomId, OwnedUserId};
use serde_json::json;

use crate::{
    disk::Disk,
    host::signing_key,
    world::{Options, World, host_name},
};

/// The user of the first host, who created the room.
pub const CREATOR: &str = "creator";

/// The user of each other host.
pub const MEMBER: &str = "member";

/// A disk that holds a public room of all hosts, and the room.
pub async fn plant(options: &Options) -> Result<(Disk, OwnedRoomId)> {
    let alone = Options { servers: 1, faults: Vec::new(), keep_trace: false, ..options.clone() };
    let world = World::new(alone).await?;
    let creator = world.quiet_user(CREATOR, 0).await?;
    let room = creator.create_room(json!({ "preset": "public_chat", "name": "planted" })).await?;
    let boot = world.host(0).boot().context("the host is up")?;
    let homeserver = boot.homeserver();
    let handle = homeserver.room(&room).await?;
    for number in 1..options.servers {
        let server = host_name(number)?;
        let user = OwnedUserId::try_from(format!("@{MEMBER}:{server}"))?;
        let (version, mut join) = homeserver.membership_template(&server, &room, &user, "join").await?;
        let rules = room_version::rules(&version).context("the room's version is supported")?;
        let now = MilliSecondsSinceUnixEpoch(homeserver.env().clock.now().get());
        join.insert("origin_server_ts".to_owned(), CanonicalJsonValue::Integer(now.get().into()));
        let key = signing_key(options.seed, &server, 0)?;
        let pdu = pdu::seal(join, &key, &server, rules)?;
        match handle.receive(Receive::new(pdu, server)).await? {
            Received::Accepted => {}
            other => bail!("a planted join is not accepted: {other:?}"),
        }
    }
    drop(handle);
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.stop().await;
    Ok((world.host(0).disk().copy(), room))
}
