//! What a client sends again under the same transaction ID is one event.

use std::collections::BTreeMap;

use storage::schema::Standing;

use super::History;

pub(super) fn once(histories: &[History]) -> Option<String> {
    for History { room, sides } in histories {
        for side in sides {
            let mut seen = BTreeMap::new();
            for (id, event) in side.with_standing(Standing::Accepted) {
                let Some(sent_by) = &event.sent_by else { continue };
                let (sender, txn) = (event.pdu.sender(), &sent_by.txn_id);
                if let Some(other) = seen.insert((sender, event.pdu.kind(), &sent_by.device_id, txn), id) {
                    return Some(format!("{room}: {sender} sent {txn} once, which made {other} and {id}"));
                }
            }
        }
    }
    None
}
