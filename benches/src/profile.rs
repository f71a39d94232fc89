//! The kinds of load.

mod day;
mod fan_out;
mod federated_join;
mod joins;
mod log_ins;
mod many_rooms;
mod one_room;
mod paging;
mod sliding_sync;
mod sync;

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use futures_util::{StreamExt, TryStreamExt, future::try_join_all, stream};
use serde::Serialize;
use tokio::time::Instant;

use crate::{Accounts, Client, Measurement, Pace, Progress, Schedule};

/// What a profile runs with.
pub struct Context {
    /// The homeserver.
    pub accounts: Accounts,
    /// A second homeserver that federates with it.
    pub other: Option<Accounts>,
    /// How requests follow each other.
    pub pace: Pace,
    /// How long to put load on it.
    pub length: Duration,
    /// Whom to tell what is being done.
    pub progress: Progress,
}

/// A kind of load, with its sizes.
#[derive(Clone, Debug, Subcommand, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Users send into one room.
    OneRoom {
        /// Number of senders.
        #[arg(long, default_value_t = 1)]
        senders: usize,
        /// Further local members, who neither send nor read.
        #[arg(long, default_value_t = 0)]
        members: usize,
    },
    /// Each user sends into a room of their own.
    ManyRooms {
        /// Number of rooms, each with a sender.
        #[arg(long, default_value_t = 64)]
        rooms: usize,
    },
    /// One user sends, the members wait in `/sync`, a user of another room asks again and again for nothing.
    FanOut {
        /// Members who wait.
        #[arg(long, default_value_t = 500)]
        members: usize,
        /// Messages per second, unless `--rate` says otherwise.
        #[arg(long, default_value_t = 20.0)]
        messages: f64,
    },
    /// A user with many rooms syncs from nothing.
    InitialSync {
        /// Number of rooms.
        #[arg(long, default_value_t = 30)]
        rooms: usize,
    },
    /// A user with many rooms syncs on after some of them changed.
    IncrementalSync {
        /// Number of rooms.
        #[arg(long, default_value_t = 100)]
        rooms: usize,
        /// Rooms that get a message before each sync.
        #[arg(long, default_value_t = 3)]
        changed: usize,
    },
    /// A user with many rooms uses sliding sync: from nothing, and on after one message.
    SlidingSync {
        /// Number of rooms.
        #[arg(long, default_value_t = 100)]
        rooms: usize,
        /// Rooms in the window.
        #[arg(long, default_value_t = 20)]
        window: usize,
    },
    /// Users page back through a room.
    Paging {
        /// Number of users.
        #[arg(long, default_value_t = 4)]
        readers: usize,
        /// Messages in the room.
        #[arg(long, default_value_t = 1000)]
        messages: usize,
        /// Events per page.
        #[arg(long, default_value_t = 50)]
        page: usize,
    },
    /// Users join a room.
    Joins {
        /// Number of users.
        #[arg(long, default_value_t = 200)]
        users: usize,
        /// How many of them join at a time.
        #[arg(long, default_value_t = 4)]
        at_a_time: usize,
    },
    /// Users of another homeserver join rooms with many members, the first ones of their server.
    FederatedJoin {
        /// Members of each room.
        #[arg(long, default_value_t = 1000)]
        members: usize,
        /// Number of rooms.
        #[arg(long, default_value_t = 5)]
        rooms: usize,
    },
    /// Users log in with their passwords.
    LogIns {
        /// How many at a time.
        #[arg(long, default_value_t = 4)]
        users: usize,
    },
    /// A day in a community: users who talk, read, type, page back, come and go.
    Day {
        /// Number of users.
        #[arg(long, default_value_t = 50)]
        users: usize,
        /// Number of rooms.
        #[arg(long, default_value_t = 20)]
        rooms: usize,
    },
}

impl Profile {
    /// The profile's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::OneRoom { .. } => "one-room",
            Self::ManyRooms { .. } => "many-rooms",
            Self::FanOut { .. } => "fan-out",
            Self::InitialSync { .. } => "initial-sync",
            Self::IncrementalSync { .. } => "incremental-sync",
            Self::SlidingSync { .. } => "sliding-sync",
            Self::Paging { .. } => "paging",
            Self::Joins { .. } => "joins",
            Self::FederatedJoin { .. } => "federated-join",
            Self::LogIns { .. } => "log-ins",
            Self::Day { .. } => "day",
        }
    }

    /// Puts the load on; what takes no part in the measurement is prepared first, then `ready` is called.
    pub async fn run(&self, context: &Context, ready: &mut (dyn FnMut() + Send)) -> Result<Vec<Measurement>> {
        match *self {
            Self::OneRoom { senders, members } => one_room::run(context, senders, members, ready).await,
            Self::ManyRooms { rooms } => many_rooms::run(context, rooms, ready).await,
            Self::FanOut { members, messages } => fan_out::run(context, members, messages, ready).await,
            Self::InitialSync { rooms } => sync::initial(context, rooms, ready).await,
            Self::IncrementalSync { rooms, changed } => {
                sync::incremental(context, rooms, changed, ready).await
            }
            Self::SlidingSync { rooms, window } => sliding_sync::run(context, rooms, window, ready).await,
            Self::Paging { readers, messages, page } => {
                paging::run(context, readers, messages, page, ready).await
            }
            Self::Joins { users, at_a_time } => joins::run(context, users, at_a_time, ready).await,
            Self::FederatedJoin { members, rooms } => {
                federated_join::run(context, members, rooms, ready).await
            }
            Self::LogIns { users } => log_ins::run(context, users, ready).await,
            Self::Day { users, rooms } => day::run(context, users, rooms, ready).await,
        }
    }
}

impl Context {
    /// Users of the homeserver.
    async fn users(&self, name: &str, count: usize) -> Result<Vec<Client>> {
        self.progress.begin(format!("registering {count} users"));
        self.accounts.many(name, count).await
    }

    /// Lets users join a room, some at a time.
    async fn all_join(&self, users: &[Client], room: &str) -> Result<()> {
        self.progress.begin(format!("{} users join", users.len()));
        stream::iter(users).map(|user| user.join(room, None)).buffer_unordered(8).try_collect().await
    }

    /// Rooms of a user, each with a few messages.
    async fn rooms(&self, user: &Client, count: usize) -> Result<Vec<String>> {
        self.progress.begin(format!("creating {count} rooms"));
        let mut rooms = Vec::with_capacity(count);
        for number in 0..count {
            let room = user.create_room("private_chat").await?;
            for message in 0..3 {
                user.send(&room, &format!("r{number}m{message}"), "hello").await?;
            }
            self.progress.step();
            rooms.push(room);
        }
        Ok(rooms)
    }

    /// The schedule of one of several senders that begin now.
    fn schedule(&self, index: usize, senders: usize) -> Schedule {
        self.pace.schedule(index, senders, Instant::now(), self.length)
    }

    /// Lets each client do the same at the profile's pace until the time is over.
    ///
    /// `request` makes one request, the `n`th of this client.
    async fn repeat<F>(
        &self,
        name: &str,
        clients: Vec<Client>,
        request: impl Fn(Client, usize, u64) -> F + Clone + Send + Sync + 'static,
    ) -> Result<Measurement>
    where
        F: Future<Output = Result<()>> + Send,
    {
        self.progress.begin(name);
        let senders = clients.len();
        let mut total = Measurement::new(name);
        let tasks = clients.into_iter().enumerate().map(|(index, client)| {
            let (mut schedule, progress) = (self.schedule(index, senders), self.progress.clone());
            let (mut measured, request) = (Measurement::new(name), request.clone());
            tokio::spawn(async move {
                let mut number = 0;
                while let Some(due) = schedule.next().await {
                    measured.note(due, request(client.clone(), index, number).await);
                    progress.step();
                    number += 1;
                }
                measured
            })
        });
        for measured in try_join_all(tasks).await.context("a sender panicked")? {
            total.merge(&measured);
        }
        Ok(total)
    }
}

/// A text of a usual length.
const TEXT: &str = "a message of a usual length, about sixty letters long";
