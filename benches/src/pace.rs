//! When the next request is due: once the last is answered, or at a fixed rate whatever the server does.

use std::time::Duration;

use tokio::time::Instant;

/// How requests follow each other.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// Each sender makes its next request once the last is answered.
    Closed,
    /// All senders together make so many requests per second.
    ///
    /// A latency counts from the moment at which the request was due, so that a server that stalls is
    /// charged for the requests that had to wait behind ("coordinated omission").
    Open(f64),
}

/// The due times of one of several senders.
pub struct Schedule {
    end: Instant,
    /// The next due time and the time between two; none if the loop is closed.
    open: Option<(Instant, Duration)>,
}

impl Pace {
    /// The schedule of sender `index` of `senders` from `start` on, for `length`.
    pub fn schedule(self, index: usize, senders: usize, start: Instant, length: Duration) -> Schedule {
        let open = match self {
            Self::Closed => None,
            Self::Open(per_second) => {
                let every = Duration::from_secs_f64(count(senders.max(1)) / per_second.max(1e-3));
                Some((start + every.mul_f64(count(index) / count(senders.max(1))), every))
            }
        };
        Schedule { end: start + length, open }
    }
}

impl Schedule {
    /// Waits until the next request is due; from when its latency counts, or none once the time is over.
    pub async fn next(&mut self) -> Option<Instant> {
        match &mut self.open {
            None => Some(Instant::now()).filter(|now| *now < self.end),
            Some((due, every)) => {
                let at = *due;
                if at >= self.end {
                    return None;
                }
                *due += *every;
                tokio::time::sleep_until(at).await;
                Some(at)
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "numbers of senders are far below 2^52")]
fn count(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_open_loop_charges_the_wait_behind_a_stalled_request() {
        let start = Instant::now();
        let mut schedule = Pace::Open(10.0).schedule(0, 1, start, Duration::from_secs(1));
        let mut latencies = Vec::new();
        while let Some(due) = schedule.next().await {
            let takes = if latencies.is_empty() { 500 } else { 1 };
            tokio::time::sleep(Duration::from_millis(takes)).await;
            latencies.push((Instant::now() - due).as_millis());
        }
        assert_eq!(latencies.len(), 10);
        assert!(latencies[0] >= 500 && latencies[1] >= 400 && latencies[9] < 10, "{latencies:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn senders_share_the_rate() {
        let start = Instant::now();
        let mut count = 0;
        for index in 0..4 {
            let mut schedule = Pace::Open(100.0).schedule(index, 4, start, Duration::from_secs(2));
            while schedule.next().await.is_some() {
                count += 1;
            }
        }
        assert_eq!(count, 200);
    }
}
