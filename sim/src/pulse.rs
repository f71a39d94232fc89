//! A bound in real time, for runs whose simulated clock stands still: something that goes on without ever waiting would
//! hang for good, since what ends a run otherwise goes by that clock.
//!
//! A thread looks from time to time whether the clock has moved. It changes nothing in a run whose clock does.

use std::{
    cell::RefCell,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::trace::Trace;

/// How long the simulated clock may stand still unless asked for otherwise, in real time: starting a thousand hosts takes a
/// part of that.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// How often is looked in the time that a run's clock may stand still.
const LOOKS: u32 = 10;

thread_local! {
    static CURRENT: RefCell<Option<Arc<Pulse>>> = const { RefCell::new(None) };
}

/// Signs that the simulated clock of a run moves.
#[derive(Default)]
pub struct Pulse {
    at_ms: AtomicU64,
    beats: AtomicU64,
    stands_still: Notify,
    trace: Mutex<Option<Arc<Trace>>>,
}

impl Pulse {
    /// Waits until the clock has stood still for too long.
    pub async fn stands_still(&self) {
        self.stands_still.notified().await;
    }

    /// Has the run be described by what goes on in a trace.
    pub fn describe_by(&self, trace: &Arc<Trace>) {
        *self.trace.lock() = Some(trace.clone());
    }

    /// Where the clock stands, and what goes on.
    pub fn describe(&self) -> String {
        let at = Duration::from_millis(self.at_ms.load(Ordering::Relaxed));
        let ongoing = self.trace.lock().as_ref().map(|trace| trace.ongoing()).unwrap_or_default();
        format!("the simulated clock stands still at {at:?}: {}", ongoing.join("; "))
    }

    fn beat(&self, at: Duration) {
        let at_ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        if self.at_ms.swap(at_ms, Ordering::Relaxed) != at_ms {
            self.beats.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Notes the simulated time of the run on this thread, if there is one.
pub fn beat(at: Duration) {
    CURRENT.with_borrow(|current| current.iter().for_each(|pulse| pulse.beat(at)));
}

/// Does work on this thread while another one watches its clock. If it stands still for as long as `patience`, the work is told
/// so; if that does not end it for as long again, it never waits at all, and `give_up` is called with what goes on.
pub fn watched<T>(
    patience: Duration,
    give_up: impl FnOnce(&str) + Send,
    work: impl FnOnce(&Arc<Pulse>) -> T,
) -> T {
    let pulse = Arc::<Pulse>::default();
    std::thread::scope(|scope| {
        let (working, ended) = channel::<()>();
        let watched = pulse.clone();
        scope.spawn(move || watch(&watched, patience / LOOKS, &ended, give_up));
        CURRENT.set(Some(pulse.clone()));
        let result = work(&pulse);
        CURRENT.set(None);
        drop(working);
        result
    })
}

fn watch(pulse: &Pulse, pause: Duration, ended: &Receiver<()>, give_up: impl FnOnce(&str)) {
    let (mut seen, mut still) = (pulse.beats.load(Ordering::Relaxed), 0);
    while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        let beats = pulse.beats.load(Ordering::Relaxed);
        still = if beats == seen { still + 1 } else { 0 };
        seen = beats;
        if still == LOOKS {
            pulse.stands_still.notify_one();
        }
        if still == 2 * LOOKS {
            give_up(&pulse.describe());
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn work_that_never_waits_is_given_up() {
        let (is_over, told) = (AtomicBool::new(false), Mutex::new(String::new()));
        let give_up = |what: &str| {
            *told.lock() = what.to_owned();
            is_over.store(true, Ordering::Relaxed);
        };
        watched(Duration::from_millis(50), give_up, |_| {
            beat(Duration::from_secs(7));
            while !is_over.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
        });
        assert!(told.lock().contains("still at 7s"), "{}", told.lock());
    }

    #[test]
    fn work_whose_clock_moves_is_left_alone() {
        let mut given_up = false;
        watched(
            Duration::from_millis(400),
            |_| given_up = true,
            |_| {
                for second in 0..50 {
                    beat(Duration::from_secs(second));
                    std::thread::sleep(Duration::from_millis(20));
                }
            },
        );
        assert!(!given_up);
    }
}
