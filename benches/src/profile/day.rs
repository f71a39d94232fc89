//! A day in a community: users who wait for news while they talk, read, type, page back, come and go.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use futures_util::future::try_join_all;
use http::Method;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tokio::time::Instant;

use super::{Context, TEXT};
use crate::{
    Client, Measurement, Progress, Schedule,
    client::{self, POLL, escape, next_batch},
};

/// Rooms that a user is in, at most.
const ROOMS_OF_USER: usize = 8;

/// Whatever a user does now and then, by how often of a hundred times.
const ACTIONS: [(u32, Action); 9] = [
    (45, Action::Say),
    (15, Action::Read),
    (12, Action::Type),
    (10, Action::PageBack),
    (5, Action::Members),
    (5, Action::Profile),
    (4, Action::StartOver),
    (3, Action::ComeBack),
    (1, Action::LogIn),
];

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Action {
    Say,
    Read,
    Type,
    PageBack,
    Members,
    Profile,
    StartOver,
    ComeBack,
    LogIn,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Self::Say => "send",
            Self::Read => "receipt",
            Self::Type => "typing",
            Self::PageBack => "page back",
            Self::Members => "members",
            Self::Profile => "profile",
            Self::StartOver => "initial sync",
            Self::ComeBack => "leave and join",
            Self::LogIn => "log in",
        }
    }

    fn draw(random: &mut impl Rng) -> Self {
        let mut drawn = random.random_range(0..100);
        for (weight, action) in ACTIONS {
            if drawn < weight {
                return action;
            }
            drawn -= weight;
        }
        Self::Say
    }
}

pub(super) async fn run(
    context: &Context,
    users: usize,
    rooms: usize,
    ready: &mut (dyn FnMut() + Send),
) -> Result<Vec<Measurement>> {
    let users = context.users("neighbor", users.max(1)).await?;
    let ids = community(context, &users, rooms.max(1)).await?;
    ready();
    context.progress.begin("requests of the day");
    let end = Instant::now() + context.length;
    let waiting: Vec<_> = users.iter().map(|user| tokio::spawn(wait_for_news(user.clone(), end))).collect();
    let count = users.len();
    let living = users.into_iter().enumerate().map(|(index, user)| {
        let schedule = context.schedule(index, count);
        let rooms = ids.iter().skip(index % ids.len()).chain(&*ids).take(ROOMS_OF_USER.min(ids.len()));
        let rooms = rooms.cloned().collect();
        tokio::spawn(live(user, rooms, index as u64, schedule, context.progress.clone()))
    });
    let mut all = BTreeMap::<Action, Measurement>::new();
    for of_user in try_join_all(living).await.context("a user panicked")? {
        for (action, measured) in of_user {
            match all.get_mut(&action) {
                Some(total) => total.merge(&measured),
                None => drop(all.insert(action, measured)),
            }
        }
    }
    let mut measured: Vec<_> = all.into_values().collect();
    let mut news = Measurement::new("wait for news");
    for of_user in try_join_all(waiting).await.context("a reader panicked")? {
        news.merge(&of_user);
    }
    measured.push(news);
    Ok(measured)
}

/// The rooms; each user is in some of them.
async fn community(context: &Context, users: &[Client], rooms: usize) -> Result<Arc<[String]>> {
    let mut ids = Vec::with_capacity(rooms);
    for number in 0..rooms {
        let host = number % users.len();
        let room = users[host].create_room("public_chat").await?;
        let is_member =
            |index: &usize| *index != host && (number + rooms - index % rooms) % rooms < ROOMS_OF_USER;
        let members: Vec<_> = (0..users.len()).filter(is_member).map(|index| users[index].clone()).collect();
        context.all_join(&members, &room).await?;
        ids.push(room);
    }
    Ok(ids.into())
}

/// Waits in `/sync` until the end; how long each answer took does not count, only whether it came.
async fn wait_for_news(user: Client, end: Instant) -> Measurement {
    let mut measured = Measurement::new("wait for news");
    let mut query = "timeout=0".to_owned();
    loop {
        let start = Instant::now();
        let Ok(answered) = tokio::time::timeout_at(end, user.sync(&query)).await else { return measured };
        let Some(body) = measured.note(start, answered) else { return measured };
        let Ok(next) = next_batch(&body) else { return measured };
        query = format!("since={next}&timeout={}", POLL.as_millis());
    }
}

async fn live(
    user: Client,
    rooms: Vec<String>,
    seed: u64,
    mut schedule: Schedule,
    progress: Progress,
) -> BTreeMap<Action, Measurement> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut measured = BTreeMap::new();
    let mut number = 0;
    while let Some(due) = schedule.next().await {
        let action = Action::draw(&mut random);
        let room = &rooms[random.random_range(0..rooms.len())];
        let result = act(&user, action, room, number).await;
        measured.entry(action).or_insert_with(|| Measurement::new(action.name())).note(due, result);
        progress.step();
        number += 1;
        // Somebody thinks, or the loop would be that of a machine.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..20))).await;
    }
    measured
}

async fn act(user: &Client, action: Action, room_id: &str, number: u64) -> Result<()> {
    let room = client::room(room_id);
    match action {
        Action::Say => user.send(room_id, &format!("d{number}"), TEXT).await,
        Action::Read => {
            let page = user.call(Method::GET, &format!("{room}/messages?dir=b&limit=1"), None).await?;
            let Some(event_id) = page["chunk"][0]["event_id"].as_str() else { return Ok(()) };
            let path = format!("{room}/receipt/m.read/{}", escape(event_id));
            user.call_raw(Method::POST, &path, Some(&json!({}))).await.map(drop)
        }
        Action::Type => {
            let path = format!("{room}/typing/{}", escape(&user.user_id));
            let body = json!({ "typing": true, "timeout": 3000 });
            user.call_raw(Method::PUT, &path, Some(&body)).await.map(drop)
        }
        Action::PageBack => {
            user.call_raw(Method::GET, &format!("{room}/messages?dir=b&limit=30"), None).await.map(drop)
        }
        Action::Members => {
            user.call_raw(Method::GET, &format!("{room}/joined_members"), None).await.map(drop)
        }
        Action::Profile => {
            let path = format!("/_matrix/client/v3/profile/{}", escape(&user.user_id));
            user.call_raw(Method::GET, &path, None).await.map(drop)
        }
        Action::StartOver => user.sync("timeout=0").await.map(drop),
        Action::ComeBack => {
            user.call_raw(Method::POST, &format!("{room}/leave"), Some(&json!({}))).await?;
            user.join(room_id, None).await
        }
        Action::LogIn => user.log_in().await,
    }
}
