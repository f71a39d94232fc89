//! One sender, many members who wait in `/sync`, and a stranger who must not feel it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures_util::future::try_join_all;
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

use super::Context;
use crate::{
    Client, Measurement, Pace,
    client::{POLL, next_batch},
};

/// How long the members may take to see the last message.
const GRACE: Duration = Duration::from_secs(20);

/// How often the stranger asks.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// Members who come online would be news of their own.
const UNSEEN: &str = "set_presence=offline";

/// What stands before a message's number.
const MARK: &[u8] = b"message number ";

/// When each message was due, in microseconds after the start.
struct Sent {
    start: Instant,
    due: Vec<AtomicU64>,
}

impl Sent {
    fn at(&self, number: usize) -> Option<Instant> {
        let due = self.due.get(number)?.load(Ordering::Acquire);
        Some(self.start + Duration::from_micros(due))
    }
}

pub(super) async fn run(
    context: &Context,
    members: usize,
    messages: f64,
    ready: &mut (dyn FnMut() + Send),
) -> Result<Vec<Measurement>> {
    let rate = if let Pace::Open(rate) = context.pace { rate } else { messages };
    let mut users = context.users("member", members + 2).await?;
    let (sender, stranger) = (users.remove(0), users.remove(0));
    let room = sender.create_room("public_chat").await?;
    stranger.create_room("private_chat").await?;
    context.all_join(&users, &room).await?;
    let mut waiting = Vec::with_capacity(members);
    context.progress.begin("first syncs");
    for user in users {
        let since = next_batch(&user.sync(&format!("{UNSEEN}&timeout=0")).await?)?;
        waiting.push((user, since));
    }
    ready();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it only sizes the list")]
    let most = (rate * context.length.as_secs_f64()).ceil() as usize + 1;
    let sent = Arc::new(Sent { start: Instant::now(), due: (0..most).map(|_| AtomicU64::new(0)).collect() });
    // How many messages there are in all; known once the last is sent.
    let (all, last) = watch::channel(None);
    let readers = waiting.into_iter().map(|(user, since)| {
        tokio::spawn(read(user, since, sent.clone(), last.clone(), context.progress.clone()))
    });
    let readers: Vec<_> = readers.collect();
    let stranger = apart(ask_for_nothing(stranger.on_own_connections(), last.clone()))?;
    context.progress.begin("deliveries");
    let send = send(context, &sender, &room, rate, &sent).await?;
    all.send_replace(Some(usize::try_from(send.count())?));
    let mut delivered = Measurement::new(format!("delivery to {members} members"));
    for measured in try_join_all(readers).await.context("a reader panicked")? {
        delivered.merge(&measured);
    }
    Ok(vec![send, delivered, stranger.await.context("the stranger panicked")?])
}

async fn send(context: &Context, user: &Client, room: &str, rate: f64, sent: &Sent) -> Result<Measurement> {
    let mut measured = Measurement::new("send");
    let mut schedule = Pace::Open(rate).schedule(0, 1, sent.start, context.length);
    let mut number = 0;
    while let Some(due) = schedule.next().await {
        let Some(place) = sent.due.get(number) else { break };
        let after = due.duration_since(sent.start).as_micros();
        place.store(u64::try_from(after).unwrap_or(u64::MAX), Ordering::Release);
        // A lost message would be waited for: give up instead.
        user.send(room, &format!("m{number}"), &format!("message number {number}.")).await?;
        measured.record(due.elapsed());
        number += 1;
    }
    Ok(measured)
}

/// Waits in `/sync` until all messages have come.
async fn read(
    user: Client,
    mut since: String,
    sent: Arc<Sent>,
    mut last: watch::Receiver<Option<usize>>,
    progress: crate::Progress,
) -> Measurement {
    let mut measured = Measurement::new("delivery");
    let mut seen = 0;
    let mut over = None;
    loop {
        if *last.borrow_and_update() == Some(seen) {
            return measured;
        }
        if last.borrow().is_some() {
            over.get_or_insert_with(|| Instant::now() + GRACE);
        }
        let query = format!("{UNSEEN}&since={since}&timeout={}", POLL.as_millis());
        let answered = tokio::select! {
            biased;
            answered = user.sync(&query) => answered,
            // Now the number of messages is known: ask anew, unless all are here.
            Ok(()) = last.changed() => continue,
            () = tokio::time::sleep_until(over.unwrap_or_else(Instant::now)), if over.is_some() => {
                measured.fail(format!("{} saw only {seen} messages", user.user_id));
                return measured;
            }
        };
        let now = Instant::now();
        let Ok((next, body)) = answered.and_then(|body| Ok((next_batch(&body)?, body))) else {
            measured.fail("a sync failed".to_owned());
            return measured;
        };
        since = next;
        for number in numbers(&body) {
            if let Some(due) = sent.at(number) {
                measured.record(now.saturating_duration_since(due));
                progress.step();
                seen += 1;
            }
        }
    }
}

/// The numbers of the messages in a response.
fn numbers(body: &[u8]) -> impl Iterator<Item = usize> {
    let starts = body.windows(MARK.len()).enumerate().filter(|(_, part)| *part == MARK);
    starts.filter_map(|(at, _)| {
        let digits = body[at + MARK.len()..].iter().take_while(|byte| byte.is_ascii_digit());
        String::from_utf8(digits.copied().collect()).ok()?.parse().ok()
    })
}

/// Runs `task` on a thread of its own: what it measures is the server, not how busy the members keep their runtime.
fn apart<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> Result<oneshot::Receiver<T>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (done, result) = oneshot::channel();
    std::thread::Builder::new().name("stranger".to_owned()).spawn(move || {
        let _ = done.send(runtime.block_on(task)); // nobody asks for it once the run has failed
    })?;
    Ok(result)
}

/// Asks for news where there are none, until the messages are sent.
async fn ask_for_nothing(user: Client, last: watch::Receiver<Option<usize>>) -> Measurement {
    let mut measured = Measurement::new("empty sync of another user");
    let Ok(mut since) = user.sync_token().await else {
        measured.fail("the first sync failed".to_owned());
        return measured;
    };
    while last.borrow().is_none() && last.has_changed().is_ok() {
        let start = Instant::now();
        let answered = user.sync(&format!("since={since}&timeout=0")).await;
        if let Some(body) = measured.note(start, answered)
            && let Ok(next) = next_batch(&body)
        {
            since = next;
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    measured
}
