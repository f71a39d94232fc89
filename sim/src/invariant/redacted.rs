//! What an accepted redaction takes back is redacted on every server that accepted it.
//!
//! Only where somebody could take it back: a server that finds a redaction not allowed leaves its target as it is, and
//! so must all others.

use std::collections::BTreeMap;

use ruma::OwnedEventId;
use storage::schema::Standing;

use super::History;

pub(super) fn agreed(histories: &[History]) -> Option<String> {
    for History { room, sides } in histories {
        let mut seen = BTreeMap::<OwnedEventId, (bool, &ruma::ServerName)>::new();
        for side in sides {
            let redactions = side.with_standing(Standing::Accepted).map(|(_, event)| event);
            for redaction in redactions.filter(|event| event.pdu.kind() == "m.room.redaction") {
                let Some(target) = redaction.pdu.redacts(side.handle.snapshot().rules) else { continue };
                let Some(Some(held)) = side.graph.get(target) else { continue };
                let is_redacted = held.redacted_by.is_some();
                let of_same_user = held.pdu.sender() == redaction.pdu.sender();
                if of_same_user && !is_redacted {
                    return Some(format!("{room}: {} keeps {target}, which its sender redacted", side.host));
                }
                match seen.get(target) {
                    Some((other, host)) if *other != is_redacted => {
                        return Some(format!(
                            "{room}: only one of {host} and {} redacted {target}",
                            side.host
                        ));
                    }
                    Some(_) => {}
                    None => drop(seen.insert(target.to_owned(), (is_redacted, &side.host))),
                }
            }
        }
    }
    None
}
