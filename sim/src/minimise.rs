//! Making a failure easy to read: fewer and shorter faults that still break the same invariant.

use anyhow::Result;

use crate::{
    fault::Fault,
    run::{Outcome, Wish, run},
    scenario::Scenario,
};

/// Runs that a search may take.
const RUNS_MAX: usize = 200;

/// The same failure with as few and as short faults as a search finds; calls `tell` after each run.
pub fn minimise(
    scenario: &Scenario,
    failed: &Outcome,
    wish: &Wish,
    mut tell: impl FnMut(usize, usize),
) -> Result<Outcome> {
    let Some(violation) = failed.violation.clone() else { return Ok(failed.clone()) };
    let mut best = failed.clone();
    let mut runs = 0;
    let mut still_fails = |best: &mut Outcome, faults: Vec<Fault>| -> Result<bool> {
        if runs == RUNS_MAX {
            return Ok(false);
        }
        runs += 1;
        let wish = Wish { faults: Some(faults), ..wish.clone() };
        let outcome = run(scenario, failed.seed, &wish)?;
        let is_same = outcome.violation.as_ref().is_some_and(|found| found.invariant == violation.invariant);
        if is_same {
            *best = outcome;
        }
        tell(runs, best.faults.len());
        Ok(is_same)
    };
    // Without half of the faults, then without a quarter, and so on down to single ones.
    let mut size = best.faults.len().div_ceil(2);
    while size > 0 {
        let mut from = 0;
        while from < best.faults.len() {
            let mut fewer = best.faults.clone();
            fewer.drain(from..(from + size).min(fewer.len()));
            if !still_fails(&mut best, fewer)? {
                from += size;
            }
        }
        size = if size == 1 { 0 } else { size.div_ceil(2) };
    }
    for place in 0..best.faults.len() {
        loop {
            let mut shorter = best.faults.clone();
            shorter[place].for_ms /= 2;
            if shorter[place].for_ms < 100 || !still_fails(&mut best, shorter)? {
                break;
            }
        }
    }
    Ok(best)
}
