//! Group commit: one task merges whatever waits into one durable commit.
//!
//! Nothing waits for a group to fill: a batch that finds the writer idle is committed at once, and what arrives meanwhile
//! is the next group. After a commit the callbacks run in the order of submission, then the tickets complete. After a failed
//! commit every later batch fails, until the store is opened again.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::{
    metrics::CommitMetrics,
    migrate::POSITION_CEILING,
    schema::META,
    sequencer::{Sequencer, Ticket},
    store::{Batch, CommitError, Due, Store, StoreError, Sync},
};

/// Most batches in a group, so that the first of a flood is not kept waiting for the last.
const GROUP_BATCHES_MAX: usize = 4096;

/// Most bytes in a group, after which no further batch joins; bounds memory and the time of one commit.
const GROUP_BYTES_MAX: usize = 8 << 20;

/// How often the writer looks whether it is a good time for a checkpoint that is due.
const QUIET: Duration = Duration::from_secs(10);

/// Most commits within [`QUIET`] for which it is: a checkpoint takes a tenth of a second or more, and one of them may wait for it.
/// With each look in vain so many more are borne.
const QUIET_COMMITS: usize = 100;

/// Most commits that are borne at last; a server that is busier than that has checkpoints when the store can wait no more.
const BUSY_COMMITS: usize = 1000;

/// When a batch counts as committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Once it is on the disk.
    Always,
    /// Once the back end has it; it reaches the disk within this time. A crash loses what did not, never a batch in part.
    Interval(Duration),
}

/// What becomes of a batch is told here.
pub(crate) type Done = Box<dyn FnOnce(Result<(), CommitError>) + Send>;

/// A batch on its way.
pub(crate) struct Submission {
    pub(crate) batch: Batch,
    pub(crate) ticket: Option<Ticket>,
    pub(crate) done: Done,
}

/// What the writer is asked.
pub(crate) enum Message {
    Commit(Submission),
    /// Raise the ceiling of positions.
    Renew,
    /// Make everything submitted before durable.
    Flush(oneshot::Sender<Result<(), CommitError>>),
    /// The same, then end.
    Close(oneshot::Sender<Result<(), CommitError>>),
}

/// What is done in one commit.
#[derive(Default)]
struct Group {
    submissions: Vec<Submission>,
    bytes: usize,
    flushes: Vec<oneshot::Sender<Result<(), CommitError>>>,
    close: Option<oneshot::Sender<Result<(), CommitError>>>,
}

impl Group {
    fn add(&mut self, message: Message) {
        match message {
            Message::Commit(submission) => {
                self.bytes += submission.batch.weight();
                self.submissions.push(submission);
            }
            Message::Renew => {}
            Message::Flush(reply) => self.flushes.push(reply),
            Message::Close(reply) => self.close = Some(reply),
        }
    }

    fn is_full(&self) -> bool {
        self.submissions.len() >= GROUP_BATCHES_MAX || self.bytes >= GROUP_BYTES_MAX || self.close.is_some()
    }
}

/// The task that owns all writing.
pub(crate) struct Writer {
    store: Arc<dyn Store>,
    sequencer: Arc<Sequencer>,
    durability: Durability,
    inbox: mpsc::UnboundedReceiver<Message>,
    failure: Option<StoreError>,
    /// When the oldest commit that is not on the disk has to be.
    sync_due: Option<Instant>,
    /// Set while a checkpoint is due.
    look: Option<Look>,
    metrics: CommitMetrics,
}

/// The next look at whether things are quiet.
struct Look {
    at: Instant,
    /// Commits since the last look, or since the checkpoint is due.
    commits: usize,
    /// How many of them are borne.
    borne: usize,
}

impl Look {
    fn first() -> Self {
        Self { at: Instant::now() + QUIET, commits: 0, borne: QUIET_COMMITS }
    }

    /// One that finds it quiet whatever it sees.
    fn now() -> Self {
        Self { at: Instant::now(), commits: 0, borne: usize::MAX }
    }

    fn again(&self) -> Self {
        Self { borne: (self.borne + QUIET_COMMITS).min(BUSY_COMMITS), ..Self::first() }
    }
}

impl Writer {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        sequencer: Arc<Sequencer>,
        durability: Durability,
        inbox: mpsc::UnboundedReceiver<Message>,
        metrics: CommitMetrics,
    ) -> Self {
        Self { store, sequencer, durability, inbox, failure: None, sync_due: None, look: None, metrics }
    }

    /// Works until it is closed, or nobody can submit any more.
    pub(crate) async fn run(mut self) {
        while let Some(mut group) = self.next_group().await {
            let close = group.close.take();
            let result = self.write(group, close.is_some()).await;
            if let Some(reply) = close {
                return self.close(result, reply).await;
            }
            self.checkpoint_if_quiet().await;
        }
        self.final_sync().await;
    }

    /// Waits for work; an empty group means that it is time for something else.
    async fn next_group(&mut self) -> Option<Group> {
        let mut group = Group::default();
        let look = self.look.as_ref().map(|look| look.at);
        if let Some(due) = self.sync_due.into_iter().chain(look).min() {
            tokio::select! {
                biased;
                message = self.inbox.recv() => group.add(message?),
                () = tokio::time::sleep_until(due) => return Some(group),
            }
        } else {
            group.add(self.inbox.recv().await?);
        }
        while !group.is_full()
            && let Ok(message) = self.inbox.try_recv()
        {
            group.add(message);
        }
        Some(group)
    }

    /// Commits a group and tells everyone.
    async fn write(&mut self, group: Group, last: bool) -> Result<(), CommitError> {
        let (accepted, mut outcomes) = self.admit(group.submissions);
        let changes_something = accepted.iter().any(|batch| !batch.is_empty());
        let sync = self.sync_mode(last || !group.flushes.is_empty(), changes_something);
        let result = self.commit(accepted, sync, last).await;
        settle_outcomes(&mut outcomes, &result);
        self.finish(outcomes);
        let result = result.map(|_| ());
        for reply in group.flushes {
            let _ = reply.send(result.clone()); // a caller that hung up does not care
        }
        result
    }

    /// Separates what can be committed from what has failed already.
    fn admit(&self, submissions: Vec<Submission>) -> (Vec<Batch>, Vec<Outcome>) {
        let mut accepted = Vec::with_capacity(submissions.len());
        let outcomes = submissions
            .into_iter()
            .map(|Submission { batch, ticket, done }| {
                let verdict = match &self.failure {
                    Some(failure) => Some(Err(CommitError::Halted(failure.clone()))),
                    None => batch.check().err().map(Err),
                };
                if verdict.is_none() {
                    accepted.push(batch);
                }
                Outcome { verdict, ticket, done }
            })
            .collect();
        (accepted, outcomes)
    }

    fn sync_mode(&self, demanded: bool, changes_something: bool) -> Sync {
        let due = self.sync_due.is_some_and(|due| due <= Instant::now());
        let at_once = self.durability == Durability::Always && changes_something;
        if demanded || due || at_once { Sync::Now } else { Sync::Later }
    }

    /// One commit of the store, with a new ceiling if it is time for one.
    async fn commit(
        &mut self,
        mut batches: Vec<Batch>,
        mut sync: Sync,
        last: bool,
    ) -> Result<Verdicts, CommitError> {
        if let Some(failure) = &self.failure {
            return Err(CommitError::Halted(failure.clone()));
        }
        let count = batches.len();
        let ceiling = if last { Some(self.sequencer.seal()) } else { self.sequencer.ceiling_due() };
        if let Some(ceiling) = ceiling {
            let mut batch = Batch::new();
            batch.put(&META, POSITION_CEILING, &ceiling.to_be_bytes().to_vec().into());
            batches.push(batch);
            sync = Sync::Now; // positions above the old ceiling are shown from now on
        }
        if sync == Sync::Later && batches.iter().all(Batch::is_empty) {
            // Whoever submits an empty batch waits for those before it, which are committed by now.
            return Ok(vec![Ok(()); count]);
        }
        let (size, start) = (batches.len(), Instant::now());
        match self.store.commit(batches, sync).await {
            Ok(mut verdicts) => {
                self.metrics.committed(size, start.elapsed());
                verdicts.truncate(count);
                self.note_sync(sync);
                match (self.store.checkpoint_due(), &mut self.look) {
                    (Due::Now, _) => self.look = Some(Look::now()),
                    (Due::WhenQuiet, None) => self.look = Some(Look::first()),
                    (_, Some(look)) => look.commits += 1,
                    (Due::NotYet, None) => {}
                }
                if let Some(ceiling) = ceiling {
                    self.sequencer.raise_ceiling(ceiling);
                }
                Ok(verdicts.into_iter().map(|verdict| verdict.map_err(CommitError::from)).collect())
            }
            Err(error) => {
                tracing::error!(error = %error, "commit failed, nothing is stored until the store is opened again");
                self.metrics.failed();
                self.fail(&error);
                Err(CommitError::Failed(error))
            }
        }
    }

    /// Refuses all batches from now on.
    fn fail(&mut self, error: &StoreError) {
        self.sequencer.freeze();
        (self.sync_due, self.look) = (None, None);
        self.failure = Some(error.clone());
    }

    async fn checkpoint_if_quiet(&mut self) {
        let now = Instant::now();
        let Some(look) = self.look.take_if(|look| look.at <= now) else { return };
        if look.commits > look.borne {
            self.look = Some(look.again());
            return;
        }
        match self.store.checkpoint().await {
            Ok(()) => tracing::debug!(took = ?now.elapsed(), "the store made a checkpoint"),
            Err(error) => {
                tracing::error!(error = %error, "checkpoint failed, nothing is stored until the store is opened again");
                self.fail(&error);
            }
        }
    }

    fn note_sync(&mut self, sync: Sync) {
        self.sync_due = match (sync, self.durability) {
            (Sync::Later, Durability::Interval(interval)) => {
                self.sync_due.or_else(|| Some(Instant::now() + interval))
            }
            _ => None,
        };
    }

    /// Runs the callbacks in order, then completes the tickets.
    fn finish(&self, outcomes: Vec<Outcome>) {
        let mut tickets = Vec::with_capacity(outcomes.len());
        for Outcome { verdict, ticket, done } in outcomes {
            let verdict = verdict.unwrap_or(Err(CommitError::Closed));
            if catch_unwind(AssertUnwindSafe(|| done(verdict))).is_err() {
                tracing::error!("a commit's callback panicked");
            }
            tickets.extend(ticket);
        }
        self.sequencer.complete(tickets);
    }

    async fn close(
        mut self,
        result: Result<(), CommitError>,
        reply: oneshot::Sender<Result<(), CommitError>>,
    ) {
        self.inbox.close();
        let mut late = Vec::new();
        while let Ok(message) = self.inbox.try_recv() {
            match message {
                Message::Commit(Submission { ticket, done, .. }) => {
                    late.push(Outcome { verdict: Some(Err(CommitError::Closed)), ticket, done });
                }
                Message::Renew => {}
                Message::Flush(reply) | Message::Close(reply) => {
                    let _ = reply.send(Err(CommitError::Closed)); // a caller that hung up does not care
                }
            }
        }
        self.finish(late);
        let closed = self.store.close().await.map_err(CommitError::Failed);
        let _ = reply.send(result.and(closed)); // a caller that hung up does not care
    }

    async fn final_sync(&mut self) {
        if self.failure.is_none()
            && let Err(error) = self.store.sync().await
        {
            tracing::error!(error = %error, "the last commits may not be on the disk");
        }
    }
}

/// One verdict per batch handed to the store.
type Verdicts = Vec<Result<(), CommitError>>;

/// A submission without its batch; no verdict until the commit is over.
struct Outcome {
    verdict: Option<Result<(), CommitError>>,
    ticket: Option<Ticket>,
    done: Done,
}

/// Gives the batches that went into the commit their verdicts.
fn settle_outcomes(outcomes: &mut [Outcome], result: &Result<Verdicts, CommitError>) {
    let open = outcomes.iter_mut().filter(|outcome| outcome.verdict.is_none());
    match result {
        Ok(verdicts) => {
            for (outcome, verdict) in open.zip(verdicts) {
                outcome.verdict = Some(verdict.clone());
            }
        }
        Err(error) => {
            for outcome in open {
                outcome.verdict = Some(Err(error.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests;
