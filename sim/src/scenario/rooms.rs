//! Scenarios of one room, or of many.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use futures_util::future::{join_all, try_join, try_join_all, try_join3};
use rand::RngExt;
use ruma::OwnedRoomId;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    client::Client,
    fault::Kind,
    hostile::{ATTACKS, Mallory},
    invariant,
    workload::{
        chat, devices as hardware, may_refuse, members, noise as noises, pause, powers, redactions as regrets,
    },
    world::World,
};

/// The version of the keys that devices get last.
const LAST_KEYS: u64 = 1 << 32;

/// How long servers may take to catch up once they reach each other, besides their back-offs: a request that got lost is
/// given up after a minute.
const WORK_MAX: Duration = Duration::from_secs(180);

pub(super) async fn chat(world: &World) -> Result<()> {
    let users = world.users("user").await?;
    let room = world.public_room(&users).await?;
    world.under_faults(chat::chat(world, &room, &users, chat::calm(users.len()))).await
}

pub(super) async fn crowd(world: &World) -> Result<()> {
    let users = world.planted_users().await?;
    let room = world.rooms().first().cloned().context("the room is planted")?;
    world.settle().await?;
    world.under_faults(chat::chat(world, &room, &users, chat::calm(users.len()))).await
}

/// A user on each host, all in one room, who know each other and each other's servers' keys.
async fn introduced(world: &World) -> Result<(Vec<Arc<Client>>, OwnedRoomId)> {
    let users = world.users("user").await?;
    let room = world.public_room(&users).await?;
    world.settle().await?;
    for user in &users {
        user.send(&room, "here I am").await?;
    }
    world.settle().await?;
    Ok((users, room))
}

pub(super) async fn restarts(world: &World) -> Result<()> {
    let (users, room) = introduced(world).await?;
    world.under_faults(chat::chat(world, &room, &users, chat::calm(users.len()))).await?;
    world.heal().await?;
    world.settle().await?;
    invariant::check_arrival(world, 0).await
}

pub(super) async fn outages(world: &World) -> Result<()> {
    let (users, room) = introduced(world).await?;
    let began = Instant::now();
    world.under_faults(chat::chat(world, &room, &users, chat::calm(users.len()))).await?;
    world.heal().await?;
    let (healed, lasted) = (Instant::now(), began.elapsed());
    world.settle().await?;
    // Each back-off is twice the one before, give or take a fifth: the last one is not much longer than all before it.
    let (waited, most) = (healed.elapsed(), 2 * lasted + WORK_MAX);
    if waited > most {
        world.verdict().fail("arrives", format!("it takes {waited:?} instead of {most:?} after {lasted:?}"));
    }
    invariant::check_arrival(world, 0).await
}

pub(super) async fn busy_room(world: &World) -> Result<()> {
    let mut users = world.users("alice").await?;
    users.extend(world.users("bob").await?);
    let room = world.public_room(&users).await?;
    world.under_faults(chat::chat(world, &room, &users, 500)).await
}

pub(super) async fn joins_and_leaves(world: &World) -> Result<()> {
    let residents = world.users("alice").await?;
    let guests = world.users("bob").await?;
    // Some hosts are in the room only while their guest is.
    let (stay, _) = residents.split_at(residents.len().div_ceil(2));
    let room = world.public_room(stay).await?;
    let talk = chat::chat(world, &room, stay, 6000);
    let move_about = members::come_and_go(world, &room, &guests, 4000);
    world.under_faults(async { try_join(talk, move_about).await.map(drop) }).await
}

pub(super) async fn bans_racing(world: &World) -> Result<()> {
    let residents = world.users("alice").await?;
    let others = world.users("mallory").await?;
    let room = world.public_room(&residents).await?;
    let via = residents[0].host.name.clone();
    let mut levels = residents[0].state(&room, "m.room.power_levels").await?;
    levels["users"][residents[1].user_id.as_str()] = 90.into();
    residents[0].set_state(&room, ("m.room.power_levels", ""), levels).await?;
    for other in &others {
        other.join(&room, via.as_str()).await?;
    }
    world.settle().await?;
    let judge = members::moderate(world, &room, &residents[..2], &others);
    let insist = try_join_all(others.iter().map(|other| members::insist(world, &room, other, via.as_str())));
    world.under_faults(async { try_join(judge, insist).await.map(drop) }).await
}

pub(super) async fn power_fight(world: &World) -> Result<()> {
    let users = world.users("admin").await?;
    let room = world.public_room(&users).await?;
    let mut levels = users[0].state(&room, "m.room.power_levels").await?;
    for user in &users[1..] {
        levels["users"][user.user_id.as_str()] = 100.into();
    }
    users[0].set_state(&room, ("m.room.power_levels", ""), levels).await?;
    world.settle().await?;
    let fight = powers::fight(world, &room, &users, 2000);
    let talk = chat::chat(world, &room, &users, 8000);
    world.under_faults(async { try_join(fight, talk).await.map(drop) }).await
}

pub(super) async fn key_rotation(world: &World) -> Result<()> {
    let users = world.users("user").await?;
    let room = world.public_room(&users).await?;
    let rotate = async {
        let mut random = world.options().seed.stream("rotate keys");
        while pause(world, &mut random, 20_000).await {
            let host = random.random_range(0..world.hosts().len());
            let fault = crate::fault::Fault { at_ms: 0, for_ms: 1000, kind: Kind::NewKey { host } };
            fault.happen(world).await?;
        }
        Ok(())
    };
    let talk = chat::chat(world, &room, &users, 5000);
    Box::pin(world.under_faults(async { try_join(talk, rotate).await.map(drop) })).await
}

pub(super) async fn large_join(world: &World) -> Result<()> {
    let creator = world.user("creator", 0).await?;
    let room = world.public_room(std::slice::from_ref(&creator)).await?;
    let mut said = Vec::new();
    for number in 0..60 {
        let member = world.quiet_user(&format!("member{number}"), 0).await?;
        member.join(&room, creator.host.name.as_str()).await?;
        said.push(creator.send(&room, &format!("welcome {number}")).await?);
    }
    let mut late = Vec::new();
    for host in 1..world.hosts().len() {
        late.push(world.user("late", host).await?);
    }
    let work = async {
        let joins = join_all(late.iter().map(|late| late.join(&room, creator.host.name.as_str())));
        for joined in joins.await {
            may_refuse(joined)?;
        }
        chat::chat(world, &room, &late, 5000).await
    };
    let talk = chat::chat(world, &room, std::slice::from_ref(&creator), 1000);
    // Those who come late hear of the redactions before they hear of what is redacted.
    let regret = regrets::take_back(world, &room, (&creator, said), 5000);
    world.under_faults(async { try_join3(work, talk, regret).await.map(drop) }).await
}

pub(super) async fn invite_storm(world: &World) -> Result<()> {
    let hosts = world.hosts().len();
    let victim = world.user("victim", hosts - 1).await?;
    let inviters = world.users("inviter").await?;
    let mut rooms = Vec::new();
    for number in 0..12 {
        let inviter = inviters[number % hosts].clone();
        let room = world.room(&inviter, json!({ "preset": "private_chat" })).await?;
        rooms.push((inviter, room));
    }
    let storm = async {
        let invites = rooms.iter().map(|(inviter, room)| inviter.membership(room, "invite", Some(&victim)));
        for invited in join_all(invites).await {
            may_refuse(invited)?;
        }
        let mut random = world.options().seed.stream("accept or reject");
        for (inviter, room) in &rooms {
            if random.random_ratio(2, 3) {
                may_refuse(victim.join(room, inviter.host.name.as_str()).await)?;
                may_refuse(victim.send(room, "here I am").await)?;
            } else {
                may_refuse(victim.membership(room, "leave", None).await)?;
            }
        }
        Ok(())
    };
    world.under_faults(storm).await
}

pub(super) async fn hostile_peer(world: &World) -> Result<()> {
    let users = world.users("user").await?;
    let room = world.public_room(&users).await?;
    let mallory = Mallory::new(world)?;
    mallory.join(&room, &users[0].host.name).await?;
    world.settle().await?;
    let attacks = async {
        let mut random = world.options().seed.stream("attacks");
        while pause(world, &mut random, 4000).await {
            let attack = ATTACKS[random.random_range(0..ATTACKS.len())];
            world.ledger().forbid(mallory.attack(world, attack).await?);
        }
        Ok(())
    };
    let talk = chat::chat(world, &room, &users, 5000);
    world.under_faults(async { try_join(talk, attacks).await.map(drop) }).await?;
    // It has no say any more in what follows, and gives nothing.
    users[0].ban(&room, mallory.user()).await?;
    Ok(())
}

pub(super) async fn withheld(world: &World) -> Result<()> {
    let (users, room) = introduced(world).await?;
    let mallory = Mallory::new(world)?;
    mallory.join(&room, &users[0].host.name).await?;
    world.settle().await?;
    let mut random = world.options().seed.stream("withheld");
    let secrets = async {
        while pause(world, &mut random, 5000).await {
            let some = world.some_hosts(&mut random);
            mallory.withhold(world, &some, random.random_ratio(1, 2)).await?;
        }
        Ok(())
    };
    let talk = chat::chat(world, &room, &users, 5000);
    world.under_faults(async { try_join(talk, secrets).await.map(drop) }).await?;
    world.heal().await?;
    world.settle().await?;
    // Now that nothing fails, whoever hears of a secret gets it at once, not when somebody pages back.
    let before = world.ledger().all().len();
    let mut random = world.options().seed.stream("withheld at last");
    for user in &users {
        let mut some = world.some_hosts(&mut random);
        some.retain(|host| *host != user.host.name);
        some.truncate(users.len().saturating_sub(2));
        some.push(user.host.name.clone());
        mallory.withhold(world, &some, false).await?;
        user.send(&room, "I know a secret").await?;
        world.settle().await?;
    }
    invariant::check_arrival(world, before).await
}

pub(super) async fn noise(world: &World) -> Result<()> {
    let users = world.users("user").await?;
    let room = world.public_room(&users).await?;
    let first = users.first().context("a world has users")?;
    first.send(&room, "hello").await?;
    let talk = chat::chat(world, &room, &users, 15_000);
    let fuss = noises::noise(world, &room, &users, 400);
    world.under_faults(async { try_join(talk, fuss).await.map(drop) }).await
}

pub(super) async fn redactions(world: &World) -> Result<()> {
    let users = world.users("user").await?;
    let room = world.public_room(&users).await?;
    world.under_faults(regrets::regret(world, &room, &users, 4000)).await
}

pub(super) async fn devices(world: &World) -> Result<()> {
    let users = world.users("user").await?;
    world.followers().iter().for_each(|follower| follower.track_devices());
    let room = world.public_room(&users).await?;
    for user in &users {
        user.upload_keys(0).await?;
    }
    world.settle().await?;
    world.under_faults(hardware::use_devices(world, &room, &users, 4000)).await
}

pub(super) async fn lost_updates(world: &World) -> Result<()> {
    let users = world.users("user").await?;
    world.followers().iter().for_each(|follower| follower.track_devices());
    world.public_room(&users).await?;
    let mut devices = users.clone();
    for user in &users {
        let name = user.user_id.localpart();
        devices.push(Client::log_in(&user.host, (name, "TABLET"), world.shared()).await?);
    }
    for device in &devices {
        device.upload_keys(0).await?;
    }
    world.settle().await?;
    world.under_faults(hardware::renew_keys(world, &devices, 6000)).await?;
    world.heal().await?;
    world.settle().await?;
    for user in &users {
        // What was lost before shows only now.
        user.upload_keys(LAST_KEYS).await?;
    }
    Ok(())
}
