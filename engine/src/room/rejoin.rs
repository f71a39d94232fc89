//! Joining a room again that this server left: what of ours the others do not know.
//!
//! Spec: room version 2, "State resolution"; server-server API, "Joining Rooms".

use std::sync::Arc;

use super::{
    event::{Standing, StoredEvent},
    machine::{Need, Room},
};
use crate::state::StateRoot;

impl Room<'_> {
    /// Those forward extremities of a room that was left which are not among what the join comes after.
    ///
    /// `given` is the whole state before the join. Mostly the graph went on from where we left it, and the way there is
    /// unknown. But where the state has what one of our last events replaced, such as the membership that a leave ended,
    /// that event had not arrived: it is on another branch than the join, whose states are to be resolved.
    pub fn unknown_there(
        &mut self,
        former: &[Arc<StoredEvent>],
        given: StateRoot,
    ) -> Result<Vec<Arc<StoredEvent>>, Need> {
        let mut unknown = Vec::new();
        for event in former.iter().filter(|event| event.has_state() && event.standing == Standing::Accepted) {
            let Some((kind, state_key)) = event.state_key() else { continue };
            let held = self.get(given, &kind, &state_key)?;
            if held != Some(event.short) && self.replaced(event, held)? {
                unknown.push(event.clone());
            }
        }
        Ok(unknown)
    }
}
