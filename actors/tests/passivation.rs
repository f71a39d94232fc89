//! Models of the hand-over between "no longer needed" and "needed again", run through their interleavings by loom.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use loom::{
    model::Builder,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
};

mod primitives {
    pub(crate) use loom::sync::atomic::{AtomicU32, Ordering};
}

#[path = "../src/passivation.rs"]
mod passivation;

use self::passivation::Gate;

/// One key of a directory: its slot, if there is one, and what its actors did.
#[derive(Default)]
struct Key {
    slot: Mutex<Option<Arc<Slot>>>,
    live: AtomicU32,
    handled: AtomicU32,
}

struct Slot {
    gate: Gate,
    has_ended: AtomicBool,
    gone: Mutex<bool>,
    is_gone: Condvar,
}

impl Key {
    /// Sends one message, to the actor that there is or to a new one.
    fn send(&self) {
        loop {
            let slot = self.find_or_start();
            if slot.gate.enter() {
                assert!(!slot.has_ended.load(Ordering::Relaxed), "sent to an actor that has ended");
                self.handled.fetch_add(1, Ordering::Relaxed);
                slot.gate.leave();
                return;
            }
            let mut gone = slot.gone.lock().unwrap();
            while !*gone {
                gone = slot.is_gone.wait(gone).unwrap();
            }
        }
    }

    fn find_or_start(&self) -> Arc<Slot> {
        let mut slot = self.slot.lock().unwrap();
        let start = || {
            assert_eq!(self.live.fetch_add(1, Ordering::Relaxed), 0, "two actors are live");
            Arc::new(Slot {
                gate: Gate::new(),
                has_ended: AtomicBool::new(false),
                gone: Mutex::new(false),
                is_gone: Condvar::new(),
            })
        };
        slot.get_or_insert_with(start).clone()
    }

    /// Passivates the actor, if there is one and nobody uses it.
    fn passivate(&self) {
        let slot = self.slot.lock().unwrap().clone();
        if let Some(slot) = slot
            && slot.gate.close_if_idle()
        {
            self.end(&slot);
        }
    }

    /// Ends the actor, if there is one, whoever uses it: a shutdown.
    fn shut_down(&self) {
        let slot = self.slot.lock().unwrap().clone();
        if let Some(slot) = slot
            && slot.gate.close()
        {
            self.end(&slot);
        }
    }

    fn end(&self, slot: &Arc<Slot>) {
        assert!(!slot.has_ended.swap(true, Ordering::Relaxed), "ended twice");
        self.live.fetch_sub(1, Ordering::Relaxed);
        self.slot.lock().unwrap().take_if(|known| Arc::ptr_eq(known, slot));
        *slot.gone.lock().unwrap() = true;
        slot.is_gone.notify_all();
    }
}

/// All interleavings with up to this many preemptions: about a second. With five it takes a minute.
const PREEMPTIONS_MAX: usize = 3;

fn model(check: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS_MAX);
    builder.check(check);
}

/// Two callers and a passivator: no message is lost, none goes to an actor that has ended, and there are
/// never two actors.
#[test]
fn a_message_meets_the_old_actor_or_a_new_one() {
    model(|| {
        let key = Arc::new(Key::default());
        let callers: Vec<_> = (0..2)
            .map(|_| {
                let key = key.clone();
                thread::spawn(move || key.send())
            })
            .collect();
        key.passivate();
        for caller in callers {
            caller.join().unwrap();
        }
        assert_eq!(key.handled.load(Ordering::Relaxed), 2);
    });
}

/// A key with an actor, and a thread that passivates it.
fn key_with_rival() -> (Arc<Key>, thread::JoinHandle<()>) {
    let key = Arc::new(Key::default());
    key.send();
    let own = key.clone();
    (key, thread::spawn(move || own.passivate()))
}

/// One who is needed again and again, and two passivators.
#[test]
fn two_passivators_end_an_actor_once() {
    model(|| {
        let (key, rival) = key_with_rival();
        let caller = {
            let key = key.clone();
            thread::spawn(move || key.send())
        };
        key.passivate();
        rival.join().unwrap();
        caller.join().unwrap();
        assert_eq!(key.handled.load(Ordering::Relaxed), 2);
    });
}

/// A shutdown ends what a passivator does not, and the other way round.
#[test]
fn a_shutdown_and_a_passivation_end_an_actor_once() {
    model(|| {
        let (key, rival) = key_with_rival();
        key.shut_down();
        rival.join().unwrap();
        assert_eq!(key.live.load(Ordering::Relaxed), 0);
        assert!(key.slot.lock().unwrap().is_none());
    });
}

/// A lease taken on behalf of one who has one holds the gate as the first did.
#[test]
fn a_gate_is_idle_when_the_last_lease_is_given_back() {
    model(|| {
        let gate = Arc::new(Gate::new());
        assert!(gate.enter());
        gate.enter_again();
        let other = {
            let gate = gate.clone();
            thread::spawn(move || gate.leave())
        };
        assert!(!gate.close_if_idle(), "closed with a lease out");
        gate.leave();
        other.join().unwrap();
        assert!(gate.is_idle());
        assert!(gate.close_if_idle() && gate.is_closed() && !gate.close());
    });
}
