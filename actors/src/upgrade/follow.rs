//! What a user takes along into the room that replaces one of theirs.
//!
//! Spec: client-server API, "Room upgrades", "Server behaviour".

use ruma::{
    OwnedRoomId, RoomId, UserId,
    events::GlobalAccountDataEventType,
    push::{
        ConditionalPushRule, NewConditionalPushRule, NewPushRule, NewSimplePushRule, PushCondition, RuleKind,
    },
};
use serde_json::{Map, Value, value::to_raw_value};

use super::successor_of;
use crate::{
    homeserver::Homeserver,
    room::RoomError,
    session::{SessionError, SessionHandle, tags},
};

impl Homeserver {
    /// Copies tags, push rules and the mark of a direct chat from the room that another one replaces.
    ///
    /// For a local user who has just joined `room_id`. The old room has to name the new one, too: otherwise any room could call
    /// itself the successor of a private chat. What fails is logged; the user is in the room in any case.
    pub async fn follow_upgrade(&self, user_id: &UserId, room_id: &RoomId) {
        match self.predecessor(user_id, room_id).await {
            Ok(None) => {}
            Ok(Some(old)) => {
                if let Err(error) = self.take_along(user_id, &old, room_id).await {
                    tracing::warn!(%error, room.id = %room_id, "settings for an upgraded room were not copied");
                }
            }
            Err(error) => {
                tracing::warn!(%error, room.id = %room_id, "the room before an upgrade cannot be read");
            }
        }
    }

    /// The room that this one replaces, if the user was in it.
    async fn predecessor(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
    ) -> Result<Option<OwnedRoomId>, RoomError> {
        let Some(create) = self.room(room_id).await?.current("m.room.create", "").await? else {
            return Ok(None);
        };
        let content: Map<String, Value> =
            serde_json::from_str(create.pdu.content().get()).unwrap_or_default();
        let old = content.get("predecessor").and_then(|old| old.get("room_id")).and_then(Value::as_str);
        let Some(old) = old.and_then(|old| RoomId::parse(old).ok()) else { return Ok(None) };
        let room = match self.room(&old).await {
            Err(RoomError::NotFound) => return Ok(None),
            room => room?,
        };
        let record = room.membership_record(user_id).await?;
        if !record.is_some_and(|record| record.membership == "join" || record.left.is_some()) {
            return Ok(None);
        }
        Ok((successor_of(&room).await?.as_deref() == Some(room_id)).then_some(old))
    }

    async fn take_along(&self, user_id: &UserId, old: &RoomId, new: &RoomId) -> Result<(), SessionError> {
        let session = self.session(user_id).await?;
        let data = session.data();
        if let Some(tags) = data.account_data(Some(old), tags::KIND)
            && data.account_data(Some(new), tags::KIND).is_none()
        {
            session.set_account_data(Some(new.to_owned()), tags::KIND.to_owned(), tags.to_owned()).await?;
        }
        let kind = GlobalAccountDataEventType::Direct.to_string();
        let direct =
            data.account_data(None, &kind).and_then(|direct| serde_json::from_str(direct.get()).ok());
        if let Some(direct) = direct.and_then(|direct| with_successor(direct, old, new))
            && let Ok(content) = to_raw_value(&direct)
        {
            session.set_account_data(None, kind, content).await?;
        }
        copy_rules(&session, old, new).await
    }
}

/// The rooms of direct chats with the new room beside the old one; none if that changes nothing.
fn with_successor(mut direct: Map<String, Value>, old: &RoomId, new: &RoomId) -> Option<Map<String, Value>> {
    let mut is_changed = false;
    for rooms in direct.values_mut().filter_map(Value::as_array_mut) {
        let has = |room: &RoomId| rooms.iter().any(|known| known.as_str() == Some(room.as_str()));
        if has(old) && !has(new) {
            rooms.push(new.as_str().into());
            is_changed = true;
        }
    }
    is_changed.then_some(direct)
}

/// Copies the rules that are about the old room, those that are switched off as such.
async fn copy_rules(session: &SessionHandle, old: &RoomId, new: &RoomId) -> Result<(), SessionError> {
    let rules = session.data().push_rules().clone();
    if let Some(rule) = rules.room.get(old.as_str())
        && !rules.room.contains(new.as_str())
    {
        let copy = NewPushRule::Room(NewSimplePushRule::new(new.to_owned(), rule.actions.clone()));
        add(session, copy, RuleKind::Room, new.as_str(), rule.enabled).await?;
    }
    for (kind, conditional) in
        [(RuleKind::Override, &rules.override_), (RuleKind::Underride, &rules.underride)]
    {
        for rule in conditional {
            let Some(copy) = for_room(rule, old, new) else { continue };
            if conditional.contains(copy.rule_id.as_str()) {
                continue;
            }
            let id = copy.rule_id.clone();
            let copy = match kind {
                RuleKind::Override => NewPushRule::Override(copy),
                _ => NewPushRule::Underride(copy),
            };
            add(session, copy, kind.clone(), &id, rule.enabled).await?;
        }
    }
    Ok(())
}

async fn add(
    session: &SessionHandle,
    rule: NewPushRule,
    kind: RuleKind,
    id: &str,
    enabled: bool,
) -> Result<(), SessionError> {
    session.set_push_rule(rule, None, None).await?;
    if !enabled {
        session.enable_push_rule(kind, id.to_owned(), false).await?;
    }
    Ok(())
}

/// A rule whose ID and conditions name the old room, for the new one: that is how clients mute rooms.
fn for_room(rule: &ConditionalPushRule, old: &RoomId, new: &RoomId) -> Option<NewConditionalPushRule> {
    if !rule.rule_id.contains(old.as_str()) {
        return None;
    }
    let mut conditions = rule.conditions.clone();
    let mut names_room = false;
    for condition in &mut conditions {
        if let PushCondition::EventMatch(condition) = condition
            && condition.key == "room_id"
            && condition.pattern == old.as_str()
        {
            new.as_str().clone_into(&mut condition.pattern);
            names_room = true;
        }
    }
    let id = rule.rule_id.replace(old.as_str(), new.as_str());
    names_room.then(|| NewConditionalPushRule::new(id, conditions, rule.actions.clone()))
}

#[cfg(test)]
mod tests {
    use ruma::room_id;
    use serde_json::json;

    use super::*;

    #[test]
    fn direct_chats_stay_direct() {
        let (old, new) = (room_id!("!old:localhost"), room_id!("!new:localhost"));
        let direct = |rooms: Value| Map::from_iter([("@bob:localhost".to_owned(), rooms)]);
        let after = with_successor(direct(json!(["!other:localhost", old])), old, new).unwrap();
        assert_eq!(after, direct(json!(["!other:localhost", old, new])));
        assert_eq!(with_successor(after, old, new), None);
        assert_eq!(with_successor(direct(json!(["!other:localhost"])), old, new), None);
        assert_eq!(with_successor(direct(json!("odd")), old, new), None);
    }
}
