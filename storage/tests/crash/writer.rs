//! Writes numbered batches without end and prints each number once its batch is acknowledged. Made to be killed.
//!
//! `crash_writer sled|fjall always|interval|checkpoints FOLDER`

mod rows;

use std::{env, io::Write, sync::Arc, time::Duration};

use engine::id::Position;
use storage::{Batch, Durability, Storage};
use tokio::sync::Semaphore;

/// Batches on their way at a time, so that commits are groups.
const IN_FLIGHT: usize = 16;

/// Batches from one checkpoint to the next, if there are to be any.
const CHECKPOINT_EVERY: u64 = 30;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = env::args().skip(1);
    let (Some(name), Some(durability), Some(folder)) = (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err("usage: crash_writer sled|fjall always|interval|checkpoints FOLDER".into());
    };
    let backend = rows::backend(&name, folder.into()).ok_or("unknown back end")?;
    let checkpoints = durability == "checkpoints";
    let durability = durability_named(&durability).ok_or("unknown durability")?;
    let store = backend.open().await?;
    let storage = Storage::open(store.clone(), durability).await?;
    let mut number = storage.get(&rows::LAST, &()).await?.unwrap_or(0);
    let slots = Arc::new(Semaphore::new(IN_FLIGHT));
    loop {
        let slot = slots.clone().acquire_owned().await?;
        number += 1;
        if checkpoints && number % CHECKPOINT_EVERY == 0 {
            let store = store.clone();
            tokio::spawn(async move { store.checkpoint().await.expect("it can be opened again") });
        }
        let ticket = storage.reserve(1);
        let batch = batch(number, ticket.first());
        storage.submit(batch, Some(ticket), move |result| {
            let written = result.map_err(|error| error.to_string()).and_then(|()| {
                writeln!(std::io::stdout().lock(), "{number}").map_err(|error| error.to_string())
            });
            if let Err(error) = written {
                eprintln!("batch {number}: {error}");
                std::process::exit(1);
            }
            drop(slot);
        });
    }
}

/// The batch of a number.
fn batch(number: u64, position: Position) -> Batch {
    let mut batch = Batch::new();
    batch.put(&rows::POSITIONS, &number, &position);
    batch.put(&rows::BODIES, &number, &rows::body(number));
    batch.put(&rows::SLOTS, &(number % rows::SLOT_COUNT), &number);
    batch.put(&rows::LAST, &(), &number);
    if number == 1 {
        batch.expect_absent(&rows::LAST, &());
    } else {
        batch.expect(&rows::LAST, &(), &(number - 1));
    }
    if let Some(old) = number.checked_sub(rows::KEPT) {
        batch.delete(&rows::POSITIONS, &old).delete(&rows::BODIES, &old);
    }
    batch
}

/// The durability of this name.
fn durability_named(name: &str) -> Option<Durability> {
    match name {
        "always" | "checkpoints" => Some(Durability::Always),
        "interval" => Some(Durability::Interval(Duration::from_millis(20))),
        _ => None,
    }
}
