//! Who waits for bytes that have not come yet.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::sync::watch;

/// Those who wait, by media ID.
#[derive(Default)]
pub(super) struct Waiting(Mutex<BTreeMap<String, watch::Sender<()>>>);

impl Waiting {
    /// A receiver whose channel closes when the bytes have come.
    pub(super) fn subscribe(&self, media_id: &str) -> watch::Receiver<()> {
        self.0.lock().entry(media_id.to_owned()).or_default().subscribe()
    }

    /// Wakes all who wait for this.
    pub(super) fn arrived(&self, media_id: &str) {
        self.0.lock().remove(media_id);
    }

    /// Forgets a media ID that nobody waits for any longer.
    pub(super) fn leave(&self, media_id: &str, receiver: watch::Receiver<()>) {
        drop(receiver);
        let mut waiting = self.0.lock();
        if waiting.get(media_id).is_some_and(|sender| sender.receiver_count() == 0) {
            waiting.remove(media_id);
        }
    }
}
