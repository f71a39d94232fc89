//! No accepted event is of somebody who, by the state before it, was not in the room.
//!
//! Written without the engine's authorization rules, so that a mistake in them shows.

use anyhow::Result;
use storage::schema::Standing;

use super::History;

pub(super) async fn silent(histories: &[History]) -> Result<Option<String>> {
    for History { room, sides } in histories {
        for side in sides {
            for (id, event) in side.with_standing(Standing::Accepted) {
                let pdu = &event.pdu;
                if ["m.room.create", "m.room.member"].contains(&pdu.kind()) {
                    continue;
                }
                let member =
                    side.handle.state_event(event.before, "m.room.member", pdu.sender().as_str()).await?;
                let membership = member.as_ref().map_or("none".to_owned(), |member| {
                    let content = serde_json::from_str::<serde_json::Value>(member.pdu.content().get());
                    content.unwrap_or_default()["membership"].as_str().unwrap_or_default().to_owned()
                });
                if membership != "join" {
                    let (host, sender) = (&side.host, pdu.sender());
                    return Ok(Some(format!(
                        "{room}: {host} accepted {id} of {sender}, whose membership was {membership}"
                    )));
                }
            }
        }
    }
    Ok(None)
}
