//! The task that starts runs: one at a time for each pusher, a limited number in all, later for gateways that fail.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use storage::{Direction, KeyRange, StoreError, schema};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};

use super::{
    Owned, PushGateway,
    delivery::{self, Next},
    metrics::PushMetrics,
    watch::News,
};
use crate::{
    background::Background,
    homeserver::{Homeserver, WeakHomeserver},
    session::PusherKey,
};

/// Runs that may be under way: each waits for a push gateway, most of the time.
const RUNS_MAX: usize = 256;

/// How long a pusher rests whose run has failed here.
const REST: Duration = Duration::from_secs(30);

/// Rows that are read at a time when the server starts.
const PAGE: usize = 500;

/// What a server pushes with.
pub(crate) struct Pushing {
    gateway: Arc<dyn PushGateway>,
    metrics: PushMetrics,
    task: Background,
}

impl Pushing {
    /// Nothing is pushed until [`Self::start`].
    pub(crate) fn new(gateway: Arc<dyn PushGateway>) -> Self {
        Self { gateway, metrics: PushMetrics::default(), task: Background::new("pushing") }
    }

    /// Calls push gateways.
    pub(super) fn gateway(&self) -> &Arc<dyn PushGateway> {
        &self.gateway
    }

    /// What is counted.
    pub(crate) fn metrics(&self) -> &PushMetrics {
        &self.metrics
    }

    /// Takes up what the last run of the server left, and starts the task.
    pub(crate) async fn start(&self, homeserver: &Homeserver) {
        let watch = &homeserver.room_shared().hub.push;
        let Some(news) = watch.take_news() else { return };
        let mut dispatcher = Dispatcher::new(homeserver.downgrade(), self.metrics.clone());
        if let Err(error) = dispatcher.load(homeserver).await {
            tracing::error!(%error, "cannot read the pushers; they start with their next change");
        }
        let stopping = self.task.stopping();
        // Locked by one run after the other.
        let dispatching = Arc::new(tokio::sync::Mutex::new((dispatcher, news, stopping)));
        self.task.keep(move || {
            let dispatching = dispatching.clone();
            async move {
                let (dispatcher, news, stopping) = &mut *dispatching.lock().await;
                dispatcher.start_over();
                dispatcher.run(news, stopping).await;
            }
        });
    }

    /// Ends the task; what is under way starts over with the next start.
    pub(crate) async fn stop(&self) {
        self.task.stop().await;
    }
}

struct Dispatcher {
    homeserver: WeakHomeserver,
    /// Pushers with a run under way, and whether there has been news since it began.
    running: BTreeMap<Owned, bool>,
    /// Pushers that wait for others' runs to end.
    waiting: VecDeque<Owned>,
    /// The same, to be found.
    queued: BTreeSet<Owned>,
    /// Pushers whose gateway failed, and when to try again.
    resting: BTreeMap<Owned, Instant>,
    due: BTreeSet<(Instant, Owned)>,
    runs: JoinSet<(Owned, Next)>,
    metrics: PushMetrics,
}

impl Dispatcher {
    fn new(homeserver: WeakHomeserver, metrics: PushMetrics) -> Self {
        Self {
            homeserver,
            running: BTreeMap::new(),
            waiting: VecDeque::new(),
            queued: BTreeSet::new(),
            resting: BTreeMap::new(),
            due: BTreeSet::new(),
            runs: JoinSet::new(),
            metrics,
        }
    }

    /// Makes all pushers known to the rooms; those that rest go on resting.
    async fn load(&mut self, homeserver: &Homeserver) -> Result<(), StoreError> {
        let storage = homeserver.storage();
        let mut users = BTreeMap::<_, Vec<PusherKey>>::new();
        let mut range = KeyRange::all();
        loop {
            let rows = storage.range(&schema::PUSHERS, range, Direction::Ascending, PAGE).await?;
            let Some((last, _)) = rows.last() else { break };
            range = KeyRange::all().after(last);
            for ((user_id, app_id, pushkey), _) in rows {
                users.entry(user_id).or_default().push(PusherKey { app_id, pushkey });
            }
        }
        let now_ms = homeserver.env().clock.now_ms();
        let mut range = KeyRange::all();
        loop {
            let rows = storage.range(&schema::PUSH_CURSORS, range, Direction::Ascending, PAGE).await?;
            let Some((last, _)) = rows.last() else { break };
            range = KeyRange::all().after(last);
            for ((user_id, app_id, pushkey), cursor) in rows.into_iter().filter(|(_, row)| row.failures > 0) {
                let wait = Duration::from_millis(cursor.retry_at_ms.saturating_sub(now_ms));
                // The clock may have been set back.
                self.rest((user_id, PusherKey { app_id, pushkey }), wait.min(delivery::RETRY_MAX));
            }
        }
        for (user_id, keys) in users {
            let all = KeyRange::prefix(&(&user_id,));
            let rows = storage.range(&schema::MEMBERSHIPS, all, Direction::Ascending, usize::MAX).await?;
            let joined = rows.into_iter().filter(|(_, record)| record.membership == "join");
            for key in &keys {
                self.wanted((user_id.clone(), key.clone()));
            }
            let rooms: Vec<_> = joined.map(|(_, record)| record.room).collect();
            homeserver.room_shared().hub.push.load(&user_id, keys, rooms);
        }
        Ok(())
    }

    /// After a panic what was under way may be forgotten: it begins again.
    fn start_over(&mut self) {
        self.runs = JoinSet::new();
        self.queued.extend(std::mem::take(&mut self.running).into_keys());
        self.waiting = self.queued.iter().cloned().collect();
        self.due = self.resting.iter().map(|(owned, at)| (*at, owned.clone())).collect();
    }

    async fn run(&mut self, news: &mut mpsc::UnboundedReceiver<News>, stopping: &mut watch::Receiver<bool>) {
        loop {
            self.start_waiting();
            self.metrics.pushers(self.running.len(), self.waiting.len(), self.resting.len());
            let due = self.due.first().map(|(at, _)| *at);
            tokio::select! {
                biased;
                // The sender goes with the server.
                _ = stopping.wait_for(|stopping| *stopping) => return,
                Some(ended) = self.runs.join_next(), if !self.runs.is_empty() => match ended {
                    Ok((owned, next)) => self.ended(owned, next),
                    Err(error) => tracing::error!(%error, "a run of a pusher was not caught"),
                },
                happened = news.recv() => match happened {
                    Some(News::Happened(user)) => {
                        for key in user.look() {
                            self.wanted((user.user_id.clone(), key));
                        }
                    }
                    Some(News::Changed(user)) => {
                        for key in user.look() {
                            let owned = (user.user_id.clone(), key);
                            // It was set again: perhaps its gateway works now.
                            self.wake(&owned);
                            self.wanted(owned);
                        }
                    }
                    None => return,
                },
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.look_at_due(),
            }
        }
    }

    /// A pusher may have news.
    fn wanted(&mut self, owned: Owned) {
        if self.resting.contains_key(&owned) {
            return;
        }
        match self.running.get_mut(&owned) {
            Some(again) => *again = true,
            None => self.enqueue(owned),
        }
    }

    fn enqueue(&mut self, owned: Owned) {
        if self.queued.insert(owned.clone()) {
            self.waiting.push_back(owned);
        }
    }

    fn start_waiting(&mut self) {
        while self.runs.len() < RUNS_MAX {
            let Some(owned) = self.waiting.pop_front() else { return };
            self.queued.remove(&owned);
            let Some(homeserver) = self.homeserver.upgrade() else { return };
            self.running.insert(owned.clone(), false);
            self.runs.spawn(async move {
                let run = AssertUnwindSafe(delivery::run(&homeserver, &owned));
                let next = run.catch_unwind().await.unwrap_or(Next::Failed);
                (owned, next)
            });
        }
    }

    fn ended(&mut self, owned: Owned, next: Next) {
        let again = self.running.remove(&owned).unwrap_or_default();
        match next {
            Next::Idle if again => self.enqueue(owned),
            Next::Idle => {}
            Next::Retry(wait) => self.rest(owned, wait),
            Next::Failed => self.rest(owned, REST),
        }
    }

    fn rest(&mut self, owned: Owned, wait: Duration) {
        let at = Instant::now() + wait;
        self.wake(&owned);
        self.resting.insert(owned.clone(), at);
        self.due.insert((at, owned));
    }

    fn wake(&mut self, owned: &Owned) {
        if let Some(at) = self.resting.remove(owned) {
            self.due.remove(&(at, owned.clone()));
        }
    }

    fn look_at_due(&mut self) {
        while let Some((at, owned)) = self.due.first().cloned() {
            if at > Instant::now() {
                return;
            }
            self.wake(&owned);
            self.wanted(owned);
        }
    }
}
