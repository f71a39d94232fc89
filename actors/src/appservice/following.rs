//! The tasks of the services: one each, for the server's whole life.

use std::{convert::Infallible, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde_json::{json, value::RawValue};
use tokio::sync::{Mutex as AsyncMutex, Notify};

use super::{
    Service,
    follower::{FollowError, Follower, Next},
    watch::{EphemeralNews, Heard},
};
use crate::{
    background::Background,
    homeserver::Homeserver,
    sync::ephemeral::{READ, receipt_events},
};

/// News come together for so long: a busy server has a thousand positions a second.
const GATHER: Duration = Duration::from_millis(10);

/// How long a task rests that has failed here.
const REST: Duration = Duration::from_secs(30);

/// A task, and how it is woken.
struct Task {
    service: Arc<Service>,
    awake: Arc<Notify>,
    background: Background,
}

/// The tasks of all services.
#[derive(Default)]
pub(crate) struct Following(Mutex<Vec<Arc<Task>>>);

impl Following {
    /// Starts a task for each service that takes requests.
    pub(crate) fn start(&self, homeserver: &Homeserver) {
        let services: Vec<_> =
            homeserver.services().iter().filter(|service| service.url.is_some()).cloned().collect();
        if services.is_empty() {
            return;
        }
        let wanting = services.iter().filter(|service| service.receives_ephemeral);
        let mut news = homeserver.room_shared().hub.services.start(wanting).into_iter();
        for service in services {
            let news = if service.receives_ephemeral { news.next() } else { None };
            let background = Background::new("the pushing to an application service");
            let task = Arc::new(Task { service, awake: Arc::new(Notify::new()), background });
            let (own, homeserver) = (task.clone(), homeserver.clone());
            let news = Arc::new(AsyncMutex::new(news));
            task.background.keep(move || run(homeserver.clone(), own.clone(), news.clone()));
            self.0.lock().push(task);
        }
    }

    /// Tries a service at once that rests after a failure.
    pub(super) fn wake(&self, service: &Service) {
        for task in self.0.lock().iter().filter(|task| *task.service == *service) {
            task.awake.notify_one();
        }
    }

    /// Ends the tasks; what is under way is sent again after the next start.
    pub(crate) async fn stop(&self) {
        let tasks = std::mem::take(&mut *self.0.lock());
        for task in tasks {
            task.background.stop().await;
        }
    }
}

/// What a service is told, for a task that may begin again.
type News = Arc<AsyncMutex<Option<Heard>>>;

async fn run(homeserver: Homeserver, task: Arc<Task>, news: News) {
    let mut stopping = task.background.stopping();
    let mut news = news.lock().await;
    tokio::select! {
        biased;
        // The sender is the task's own.
        _ = stopping.wait_for(|stopping| *stopping) => {}
        () = keep_following(&homeserver, &task, news.as_mut()) => {}
    }
}

async fn keep_following(homeserver: &Homeserver, task: &Task, mut news: Option<&mut Heard>) {
    loop {
        let Err(error) = follow(homeserver, task, news.as_deref_mut()).await;
        let service = &task.service.id;
        tracing::error!(service, %error, "the pushing to an application service starts over after a pause");
        tokio::time::sleep(REST).await;
    }
}

async fn follow(
    homeserver: &Homeserver,
    task: &Task,
    mut news: Option<&mut Heard>,
) -> Result<Infallible, FollowError> {
    let mut changed = homeserver.storage().watermark_changed();
    let mut follower = Follower::load(homeserver, &task.service).await?;
    let metrics = homeserver.services().metrics();
    loop {
        let upto = changed.see();
        let next = follower.go_on(upto, news.as_deref_mut()).await?;
        metrics.stands(&task.service.id, follower.behind(), matches!(next, Next::Retry(_)));
        match next {
            Next::More => {}
            Next::Idle => {
                // Whatever happens takes a position, also what is ephemeral.
                changed.changed().await;
                tokio::time::sleep(GATHER).await;
            }
            Next::Retry(wait) => {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = task.awake.notified() => {}
                }
            }
        }
    }
}

impl Homeserver {
    /// The event by which a service is told of ephemeral news.
    ///
    /// Spec: application service API, "Pushing ephemeral data".
    pub(super) fn ephemeral_event(&self, news: &EphemeralNews) -> Vec<Box<RawValue>> {
        match news {
            EphemeralNews::Typing(_, room_id, users) => {
                let event =
                    json!({ "type": "m.typing", "room_id": room_id, "content": { "user_ids": &**users } });
                serde_json::value::to_raw_value(&event).into_iter().collect()
            }
            EphemeralNews::Receipt(_, room_id, receipt) => {
                let events = receipt_events(std::iter::once((READ, &**receipt)));
                events.into_iter().filter_map(|event| in_room(&event, room_id.as_str())).collect()
            }
            EphemeralNews::Presence(user_id) => vec![self.presence_event(&self.presence(user_id))],
        }
    }
}

/// An ephemeral event that names its room.
fn in_room(event: &RawValue, room_id: &str) -> Option<Box<RawValue>> {
    let mut event: serde_json::Map<String, serde_json::Value> = serde_json::from_str(event.get()).ok()?;
    event.insert("room_id".to_owned(), room_id.into());
    serde_json::value::to_raw_value(&event).ok()
}
