//! Replacing a room by one of another version.
//!
//! The new room comes into being whole, in one commit, and with it the note that the old one has yet to be told ([`Effect::Upgrade`]). So
//! whatever comes between, the rest is done in the end; all of it can be done again. Whoever asks again gets the same room.
//!
//! Spec: client-server API, "Room upgrades", "Server behaviour".

mod follow;

use engine::{
    pdu::Draft,
    room::create::{InitialState, NewRoom, Preset},
    room_version,
};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, RoomVersionId, UserId};
use serde_json::{Map, Value, json, value::to_raw_value};

use storage::{Direction, KeyRange, StoreError, schema};

use crate::{
    effects::{Effect, may_pass},
    homeserver::Homeserver,
    room::{RoomError, RoomHandle, Send, content_string},
};

/// Upgrades of one room that a crash cut short, at most; more than one takes more than one crash.
const BEGUN_MAX: usize = 100;

/// The state that the new room takes over.
const TRANSFERRED: [&str; 9] = [
    "m.room.server_acl",
    "m.room.encryption",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.guest_access",
    "m.room.history_visibility",
    "m.room.join_rules",
    "m.room.power_levels",
];

/// What a room is to be replaced by.
struct Upgrade {
    user_id: OwnedUserId,
    version: RoomVersionId,
    /// As far as the version knows any.
    additional_creators: Vec<OwnedUserId>,
}

/// What stands for an upgrade among what is yet to come about: both rooms.
pub(crate) fn upgrade_of(old: &RoomId, new: &RoomId) -> String {
    format!("{old} {new}")
}

/// The rooms of an upgrade. The new one's ID, which is of this server, has no spaces.
fn rooms_of(subject: &str) -> Option<(OwnedRoomId, OwnedRoomId)> {
    let (old, new) = subject.rsplit_once(' ')?;
    Some((RoomId::parse(old).ok()?, RoomId::parse(new).ok()?))
}

impl Homeserver {
    /// Replaces a room by a new one and returns its ID; the same ID if the user has done just that before, and is in the room.
    pub async fn upgrade_room(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        version: RoomVersionId,
        mut additional_creators: Vec<OwnedUserId>,
    ) -> Result<OwnedRoomId, RoomError> {
        // Ignored by versions that know no further creators, as the specification says.
        let knows_creators = room_version::rules(&version)
            .is_some_and(|version| version.authorization.additional_room_creators);
        if !knows_creators {
            additional_creators.clear();
        }
        let upgrade = Upgrade { user_id: user_id.to_owned(), version, additional_creators };
        let (homeserver, room_id) = (self.clone(), room_id.to_owned());
        // Whoever hangs up does not leave it half done.
        let upgraded = self.see_through(async move { homeserver.upgrade(&room_id, upgrade).await });
        upgraded.await.unwrap_or(Err(RoomError::Crashed))
    }

    async fn upgrade(&self, room_id: &RoomId, upgrade: Upgrade) -> Result<OwnedRoomId, RoomError> {
        let _turn = self.upgrading().board(room_id.to_string()).await;
        let (old, user_id) = (self.room(room_id).await?, &*upgrade.user_id);
        let powers = old.powers().await?.ok_or(RoomError::NotFound)?;
        if old.access(user_id).await?.joined_from.is_none() {
            return Err(RoomError::NotJoined);
        }
        if !powers.may_send_state(user_id, "m.room.tombstone") {
            return Err(RoomError::NotAllowed("you may not upgrade this room".to_owned()));
        }
        for begun in self.begun_upgrades(room_id).await? {
            match self.complete_upgrade(room_id, &begun).await {
                Err(error) if may_pass(&error) => return Err(error),
                Err(error) => tracing::warn!(%error, room.id = %room_id, "an upgrade is given up"),
                Ok(()) => {}
            }
        }
        if let Some(new_id) = self.successor(&old, &upgrade).await? {
            return Ok(new_id);
        }
        let is_public = self.is_public(room_id).await?;
        let new = self.replacement(&old, upgrade).await?;
        let new_id = self.create_replacement(new, Vec::new(), is_public, Some(room_id.to_owned())).await?;
        self.complete_upgrade(room_id, &new_id).await?;
        Ok(new_id)
    }

    /// The new rooms of upgrades of a room that have yet to be completed.
    async fn begun_upgrades(&self, old: &RoomId) -> Result<Vec<OwnedRoomId>, StoreError> {
        let (kind, prefix) = Effect::Upgrade.key(&format!("{old} "));
        let range = KeyRange::prefix(&(&*kind,)).from(&(&*kind, &*prefix));
        let rows = self.storage().range(&schema::EFFECTS, range, Direction::Ascending, BEGUN_MAX).await?;
        let rooms = rows
            .into_iter()
            .map_while(|((_, subject), _)| subject.starts_with(&prefix).then(|| rooms_of(&subject)));
        Ok(rooms.flatten().filter(|(of, _)| of == old).map(|(_, new)| new).collect())
    }

    /// Completes, in the background, an upgrade that was cut short.
    pub(crate) fn resume_upgrade(&self, subject: &str) {
        let Some((old, new)) = rooms_of(subject) else {
            return tracing::error!("an effect names no upgrade");
        };
        let homeserver = self.clone();
        self.session_shared().spawn(async move {
            let _turn = homeserver.upgrading().board(old.to_string()).await;
            if let Err(error) = homeserver.complete_upgrade(&old, &new).await {
                tracing::error!(room.id = %old, %error, "the upgrade of a room is not complete");
            }
        });
    }

    /// Does what an upgrade is lacking once the new room is there; nothing that was done already is done again.
    async fn complete_upgrade(&self, old_id: &RoomId, new_id: &RoomId) -> Result<(), RoomError> {
        let subject = upgrade_of(old_id, new_id);
        let asked = self.effect_due(Effect::Upgrade, &subject).await;
        let completed = self.tell_of_upgrade(old_id, new_id).await;
        if !completed.as_ref().is_err_and(may_pass) {
            self.effect_done(Effect::Upgrade, &subject, asked).await;
        }
        completed
    }

    async fn tell_of_upgrade(&self, old_id: &RoomId, new_id: &RoomId) -> Result<(), RoomError> {
        let (old, new) = (self.room(old_id).await?, self.room(new_id).await?);
        let create = new.current("m.room.create", "").await?.ok_or(RoomError::NotFound)?;
        let user_id = create.pdu.sender();
        if successor_of(&old).await?.as_deref() != Some(new_id) {
            let tombstone = json!({ "body": "This room has been replaced", "replacement_room": new_id });
            old.send(state_event(user_id, "m.room.tombstone", &tombstone)?).await?;
        }
        self.move_names(old_id, new_id).await?;
        if let Err(error) = self.move_canonical_alias(&old, new_id, user_id).await {
            tracing::debug!(%error, room.id = %old_id, "an upgraded room keeps its canonical alias");
        }
        // As far as the user may: without it the old room is only less tidy.
        if let Err(error) = silence(&old, user_id).await {
            tracing::debug!(%error, room.id = %old_id, "an upgraded room stays writable");
        }
        self.follow_upgrade(user_id, new_id).await;
        Ok(())
    }

    /// The room that a user has already replaced a room by, if it is what an upgrade asks for and the user is in it.
    async fn successor(&self, old: &RoomHandle, upgrade: &Upgrade) -> Result<Option<OwnedRoomId>, RoomError> {
        let Some(new_id) = successor_of(old).await? else { return Ok(None) };
        let new = match self.room(&new_id).await {
            Err(RoomError::NotFound) => return Ok(None),
            new => new?,
        };
        let Some(create) = new.current("m.room.create", "").await? else { return Ok(None) };
        let content: Value = serde_json::from_str(create.pdu.content().get()).unwrap_or_default();
        let creators = content.get("additional_creators").cloned().unwrap_or_else(|| json!([]));
        let is_it = *create.pdu.sender() == upgrade.user_id
            && content["predecessor"]["room_id"] == old.snapshot().room_id.as_str()
            && content["room_version"] == upgrade.version.as_str()
            && creators == json!(upgrade.additional_creators)
            && new.is_joined(&upgrade.user_id).await?;
        Ok(is_it.then_some(new_id))
    }

    async fn replacement(
        &self,
        old: &RoomHandle,
        Upgrade { user_id, version, additional_creators }: Upgrade,
    ) -> Result<NewRoom, RoomError> {
        let creator_profile =
            self.member_content(&user_id).await.map_err(|error| RoomError::Invalid(error.to_string()))?;
        let mut creation_content = Map::new();
        if let Some(create) = old.current("m.room.create", "").await? {
            let content: Map<String, Value> =
                serde_json::from_str(create.pdu.content().get()).unwrap_or_default();
            let kept =
                content.into_iter().filter(|(name, _)| ["type", "m.federate"].contains(&name.as_str()));
            creation_content.extend(kept);
        }
        let snapshot = old.snapshot();
        let newest = snapshot.head.tips.last().map(|tip| tip.pdu.event_id().to_string());
        let predecessor = json!({ "room_id": snapshot.room_id, "event_id": newest });
        creation_content.insert("predecessor".to_owned(), predecessor);
        if !additional_creators.is_empty() {
            creation_content.insert("additional_creators".to_owned(), json!(additional_creators));
        }
        let mut new =
            NewRoom { creator_profile, creation_content, ..NewRoom::new(version, user_id, Preset::Bare) };
        for kind in TRANSFERRED {
            if let Some(event) = old.current(kind, "").await? {
                let content = event.pdu.content().to_owned();
                new.initial_state.push(InitialState {
                    kind: kind.to_owned(),
                    state_key: String::new(),
                    content,
                });
            }
        }
        adapt_power_levels(&mut new, &additional_creators, &privileged_creators(old).await?)?;
        Ok(new)
    }

    /// Points local aliases and the directory at the new room.
    async fn move_names(&self, old: &RoomId, new: &RoomId) -> Result<(), RoomError> {
        for alias in self.room_aliases(old).await? {
            self.move_alias(&alias, new).await?;
        }
        // The new one came into the directory as it came into being.
        if self.is_public(old).await? {
            self.set_public(old, false).await?;
        }
        Ok(())
    }

    /// Gives the new room the names by which the old one called itself, as far as they lead there now.
    async fn move_canonical_alias(
        &self,
        old: &RoomHandle,
        new_id: &RoomId,
        user_id: &UserId,
    ) -> Result<(), RoomError> {
        let Some(event) = old.current("m.room.canonical_alias", "").await? else { return Ok(()) };
        let moved: Vec<_> = self.room_aliases(new_id).await?.iter().map(ToString::to_string).collect();
        let content = serde_json::from_str(event.pdu.content().get()).unwrap_or_default();
        let (stays, goes) = split_aliases(content, &moved);
        if goes.is_empty() {
            return Ok(());
        }
        let (new, goes) = (self.room(new_id).await?, Value::Object(goes));
        let present = new.current("m.room.canonical_alias", "").await?;
        let present = present.and_then(|event| serde_json::from_str(event.pdu.content().get()).ok());
        if present != Some(goes.clone()) {
            new.send(state_event(user_id, "m.room.canonical_alias", &goes)?).await?;
        }
        old.send(state_event(user_id, "m.room.canonical_alias", &Value::Object(stays))?).await?;
        Ok(())
    }
}

/// The room that a room says it is replaced by.
async fn successor_of(old: &RoomHandle) -> Result<Option<OwnedRoomId>, RoomError> {
    let tombstone = old.current("m.room.tombstone", "").await?;
    let successor = tombstone.and_then(|event| content_string(&event.pdu, "replacement_room"));
    Ok(successor.and_then(|room_id| RoomId::parse(room_id).ok()))
}

/// The content of a canonical alias without the aliases that have moved, and with nothing but those.
pub(crate) fn split_aliases(
    content: Map<String, Value>,
    moved: &[String],
) -> (Map<String, Value>, Map<String, Value>) {
    let has_moved =
        |alias: &Value| alias.as_str().is_some_and(|alias| moved.iter().any(|other| other == alias));
    let (mut stays, mut goes) = (Map::new(), Map::new());
    for (name, value) in content {
        match (name.as_str(), value) {
            ("alias", alias) if has_moved(&alias) => drop(goes.insert(name, alias)),
            ("alt_aliases", Value::Array(aliases)) => {
                let (going, staying): (Vec<_>, Vec<_>) = aliases.into_iter().partition(has_moved);
                for (part, aliases) in [(&mut goes, going), (&mut stays, staying)] {
                    if !aliases.is_empty() {
                        part.insert(name.clone(), aliases.into());
                    }
                }
            }
            (_, value) => drop(stays.insert(name, value)),
        }
    }
    (stays, goes)
}

/// The users who outrank everyone in a room because they created it, where the version has that.
async fn privileged_creators(room: &RoomHandle) -> Result<Vec<String>, RoomError> {
    let outrank = room.snapshot().rules.authorization.explicitly_privilege_room_creators;
    let Some(create) = room.current("m.room.create", "").await?.filter(|_| outrank) else {
        return Ok(Vec::new());
    };
    let content: Value = serde_json::from_str(create.pdu.content().get()).unwrap_or_default();
    let additional = content["additional_creators"].as_array().into_iter().flatten();
    let additional = additional.filter_map(Value::as_str).map(ToOwned::to_owned);
    Ok(std::iter::once(create.pdu.sender().to_string()).chain(additional).collect())
}

/// Lets the creator set everything up, and ends with the power levels of the old room.
///
/// Where creators outrank everyone, they must not have a level of their own; where they no longer do, those of
/// the old room get the highest level that counts for anything.
fn adapt_power_levels(
    new: &mut NewRoom,
    additional_creators: &[OwnedUserId],
    old_creators: &[String],
) -> Result<(), RoomError> {
    let Some(place) = new.initial_state.iter().position(|event| event.kind == "m.room.power_levels") else {
        return Ok(());
    };
    let mut levels: Map<String, Value> =
        serde_json::from_str(new.initial_state[place].content.get()).unwrap_or_default();
    // Room versions up to 9 took numbers written as strings, later ones refuse them.
    levels.values_mut().for_each(numbers);
    let outranks = room_version::rules(&new.version)
        .is_some_and(|version| version.authorization.explicitly_privilege_room_creators);
    if outranks {
        if let Some(users) = levels.get_mut("users").and_then(Value::as_object_mut) {
            users.retain(|user, _| {
                *user != new.creator && additional_creators.iter().all(|other| other != user)
            });
        }
        new.power_levels = levels;
        new.initial_state.remove(place);
        return Ok(());
    }
    let highest = levels.values().map(highest).max().unwrap_or_default().max(100);
    if !old_creators.is_empty() {
        let users = levels.entry("users").or_insert_with(|| Value::Object(Map::new()));
        let users = users.as_object_mut().into_iter();
        users.for_each(|users| users.extend(old_creators.iter().map(|user| (user.clone(), highest.into()))));
    }
    // Whoever sets the final levels needs as much as any of them.
    new.power_levels.insert("users".to_owned(), json!({ new.creator.to_string(): highest }));
    new.initial_state[place].content = raw(&Value::Object(levels))?;
    Ok(())
}

/// Turns levels that are written as strings into numbers, at any depth.
fn numbers(level: &mut Value) {
    match level {
        Value::String(text) => {
            if let Ok(number) = text.trim().parse::<i64>() {
                *level = number.into();
            }
        }
        Value::Object(levels) => levels.values_mut().for_each(numbers),
        _ => {}
    }
}

/// The highest number in a part of a power levels event.
fn highest(levels: &Value) -> i64 {
    match levels {
        Value::Object(levels) => levels.values().map(highest).max().unwrap_or_default(),
        level => level.as_i64().unwrap_or_default(),
    }
}

/// Keeps ordinary members from talking and inviting in the old room.
async fn silence(old: &RoomHandle, user_id: &UserId) -> Result<(), RoomError> {
    let Some(event) = old.current("m.room.power_levels", "").await? else { return Ok(()) };
    let before: Map<String, Value> = serde_json::from_str(event.pdu.content().get()).unwrap_or_default();
    let mut content = before.clone();
    let users_default = content.get("users_default").and_then(Value::as_i64).unwrap_or(0);
    let needed = users_default.saturating_add(1).max(50);
    for field in ["events_default", "invite"] {
        let present = content.get(field).and_then(Value::as_i64).unwrap_or(0);
        content.insert(field.to_owned(), present.max(needed).into());
    }
    if content != before {
        old.send(state_event(user_id, "m.room.power_levels", &Value::Object(content))?).await?;
    }
    Ok(())
}

/// A state event without a state key.
pub(crate) fn state_event(sender: &UserId, kind: &str, content: &Value) -> Result<Send, RoomError> {
    let draft = Draft {
        kind: kind.into(),
        state_key: Some(String::new()),
        content: raw(content)?,
        redacts: None,
        dated: None,
    };
    Ok(Send { sender: sender.to_owned(), draft, sent_by: None })
}

fn raw(content: &Value) -> Result<Box<serde_json::value::RawValue>, RoomError> {
    to_raw_value(content).map_err(|error| RoomError::Invalid(error.to_string()))
}
