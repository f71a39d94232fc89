//! What a user may see of a room, and how events look to them.

use std::{collections::BTreeMap, sync::Arc};

use engine::{
    id::{ShortEventId, TimelineIndex},
    pdu::{
        self, Pdu,
        client::{RoomIdField, Unsigned, client_event},
    },
    room_version::RoomVersion,
    state::StateRoot,
    visibility::{HistoryVisibility, Presence, may_see},
};
use ruma::{OwnedDeviceId, OwnedUserId, ServerName, UserId};
use serde_json::value::RawValue;

use storage::schema;

use super::{RoomError, RoomHandle, StoredEvent, is_dummy, membership_of};
use crate::session::{IGNORED_USERS, Ignored};

/// Who looks at events.
#[derive(Clone, Debug)]
pub struct Viewer {
    /// The user.
    pub user_id: OwnedUserId,
    /// The device, which is shown its own transaction IDs.
    pub device_id: Option<OwnedDeviceId>,
}

/// A user's relation to a room as far as it decides what they see of it.
#[derive(Clone, Debug)]
pub struct Access {
    /// The last place at which the user was joined, if ever: the newest one while joined.
    pub joined_until: Option<TimelineIndex>,
    /// Where the present stay began, if the user is joined.
    pub joined_from: Option<TimelineIndex>,
    /// Whose messages the user does not want.
    pub ignored: Arc<Ignored>,
}

impl Access {
    /// Whether the user has been joined at or after an event.
    fn was_joined_since(&self, event: &StoredEvent) -> bool {
        self.joined_until.is_some_and(|until| event.index.is_some_and(|index| index <= until))
    }
}

/// What visibility depends on at one state.
#[derive(Clone)]
struct Sight {
    visibility: HistoryVisibility,
    /// The event that set it so, unless it was never set.
    visible_since: Option<ShortEventId>,
    membership: Option<Arc<StoredEvent>>,
}

impl Sight {
    fn presence(&self) -> Presence {
        self.membership.as_ref().map_or(Presence::Outside, |event| Presence::of(&membership_of(&event.pdu)))
    }
}

impl RoomHandle {
    /// A local user's access to the room's history.
    pub async fn access(&self, user_id: &UserId) -> Result<Access, RoomError> {
        let record = self.membership_record(user_id).await?.filter(|record| !record.forgotten);
        let is_joined = record.as_ref().is_some_and(|record| record.membership == "join");
        Ok(Access {
            joined_until: if is_joined {
                Some(TimelineIndex(i64::MAX))
            } else {
                record.as_ref().and_then(|record| record.left)
            },
            joined_from: record.filter(|_| is_joined).map(|record| record.since),
            ignored: self.ignored_by(user_id).await?,
        })
    }

    /// Whom a local user ignores: as the user's session knows it, if it is active, else as it is stored.
    async fn ignored_by(&self, user_id: &UserId) -> Result<Arc<Ignored>, RoomError> {
        if let Some(view) = self.hub().session(user_id) {
            return Ok(view.ignored());
        }
        let record = self.storage().get(&schema::ACCOUNT_DATA, &(user_id, "", IGNORED_USERS)).await?;
        Ok(record.map_or_else(Arc::default, |record| Arc::new(Ignored::read(user_id, &record.content))))
    }

    /// The events of these that a user may see, in the same order.
    pub async fn visible_to(
        &self,
        user_id: &UserId,
        access: &Access,
        events: Vec<Arc<StoredEvent>>,
    ) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        let mut sights = Sights::default();
        let mut visible = Vec::with_capacity(events.len());
        for event in events {
            if self.is_visible(user_id, access, &event, &mut sights).await? {
                visible.push(event);
            }
        }
        Ok(visible)
    }

    /// Whether a user may see one event.
    pub async fn may_see(&self, user_id: &UserId, event: &Arc<StoredEvent>) -> Result<bool, RoomError> {
        let access = self.access(user_id).await?;
        self.is_visible(user_id, &access, event, &mut Sights::default()).await
    }

    /// Whether a user may, and wants to, see one of many events.
    pub(super) async fn is_visible(
        &self,
        user_id: &UserId,
        access: &Access,
        event: &StoredEvent,
        sights: &mut Sights,
    ) -> Result<bool, RoomError> {
        Ok(!access.ignored.hides(&event.pdu) && self.is_permitted(user_id, access, event, sights).await?)
    }

    /// Whether a user may see one of many events, of which neighbours share what `sights` remembers.
    pub(super) async fn is_permitted(
        &self,
        user_id: &UserId,
        access: &Access,
        event: &StoredEvent,
        sights: &mut Sights,
    ) -> Result<bool, RoomError> {
        if is_dummy(&event.pdu) {
            return Ok(false);
        }
        // During the user's present stay everything is visible, whatever the room's setting.
        if access.joined_from.is_some_and(|from| event.index >= Some(from)) {
            return Ok(true);
        }
        let joined_since = access.was_joined_since(event);
        let mut sight = self.sight(event.before, user_id, sights).await?;
        // An event that changes the visibility or the user's own membership counts by the better of the
        // two states.
        let mut best = may_see(sight.visibility, sight.presence(), joined_since);
        if event.pdu.kind() == "m.room.history_visibility" && event.pdu.state_key() == Some("") {
            sight.visibility = HistoryVisibility::of(Some(&event.pdu));
            best |= may_see(sight.visibility, sight.presence(), joined_since);
        }
        if is_member(&event.pdu, user_id) {
            // Everyone is told what became of them: of a ban that follows on a kick, too.
            best = true;
        }
        Ok(best)
    }

    /// An event as it would be if it were redacted.
    pub(super) fn redacted(&self, event: &Arc<StoredEvent>) -> Result<Arc<StoredEvent>, RoomError> {
        let pdu = Arc::new(pdu::redact(&event.pdu, self.snapshot().rules)?);
        Ok(Arc::new(StoredEvent { pdu, ..StoredEvent::clone(event) }))
    }

    /// Events as another server may have them: those that none of its users could see are redacted, and so is what has no
    /// place in the graph, since nobody can say who could see it.
    ///
    /// Spec: server-server API, "Retrieving events"; client-server API, "Room history visibility".
    pub async fn for_server(
        &self,
        server: &ServerName,
        events: Vec<Arc<StoredEvent>>,
    ) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        let mut last = None;
        let mut shown = Vec::with_capacity(events.len());
        for event in events {
            let may_see = match last {
                Some((root, may_see)) if root == event.before => may_see,
                _ => self.server_may_see(server, event.before).await?,
            };
            last = Some((event.before, may_see));
            let has_state = event.has_place() && !event.before.is_empty();
            let is_public = (may_see && has_state) || event.pdu.state_key().is_some();
            if is_public && !self.is_erased_for_server(server, &event).await? {
                shown.push(event);
            } else {
                shown.push(self.redacted(&event)?);
            }
        }
        Ok(shown)
    }

    async fn server_may_see(&self, server: &ServerName, root: StateRoot) -> Result<bool, RoomError> {
        let visibility = self.state_event(root, "m.room.history_visibility", "").await?;
        let wanted: &[&str] = match HistoryVisibility::of(visibility.as_ref().map(|event| &*event.pdu)) {
            HistoryVisibility::WorldReadable | HistoryVisibility::Shared => return Ok(true),
            HistoryVisibility::Invited => &["join", "invite"],
            HistoryVisibility::Joined => &["join"],
        };
        let members = self.state(root, Some("m.room.member")).await?;
        Ok(members.iter().any(|event| {
            let is_theirs = event
                .pdu
                .state_key()
                .and_then(|user| <&UserId>::try_from(user).ok())
                .is_some_and(|user| user.server_name() == server);
            is_theirs && wanted.contains(&membership_of(&event.pdu).as_str())
        }))
    }

    /// A user's presence in a state.
    pub(super) async fn presence_at(
        &self,
        root: StateRoot,
        user_id: &UserId,
        sights: &mut Sights,
    ) -> Result<Presence, RoomError> {
        Ok(self.sight(root, user_id, sights).await?.presence())
    }

    /// What decides, at an event, on what a user may see: the events that set the visibility and the membership.
    pub(super) async fn view_of(
        &self,
        user_id: &UserId,
        event: &StoredEvent,
        sights: &mut Sights,
    ) -> Result<(Option<ShortEventId>, Option<ShortEventId>), RoomError> {
        let sight = self.sight(event.before, user_id, sights).await?;
        Ok((sight.visible_since, sight.membership.map(|event| event.short)))
    }

    async fn sight(
        &self,
        root: StateRoot,
        user_id: &UserId,
        sights: &mut Sights,
    ) -> Result<Sight, RoomError> {
        if let Some((known, sight)) = &sights.last
            && *known == root
        {
            return Ok(sight.clone());
        }
        let visibility = self.state_event(root, "m.room.history_visibility", "").await?;
        let sight = Sight {
            visibility: HistoryVisibility::of(visibility.as_ref().map(|event| &*event.pdu)),
            visible_since: visibility.map(|event| event.short),
            membership: self.state_event(root, "m.room.member", user_id.as_str()).await?,
        };
        sights.last = Some((root, sight.clone()));
        Ok(sight)
    }

    /// Whether everyone may read the room as it is now, joined or not.
    pub async fn is_world_readable(&self) -> Result<bool, RoomError> {
        let event = self.current("m.room.history_visibility", "").await?;
        Ok(HistoryVisibility::of(event.as_ref().map(|event| &*event.pdu)) == HistoryVisibility::WorldReadable)
    }

    /// The state that a user may read: the current one, or that of when they left.
    ///
    /// Spec: client-server API, "Getting events for a room".
    pub async fn readable_root(&self, user_id: &UserId) -> Result<StateRoot, RoomError> {
        let access = self.access(user_id).await?;
        if access.joined_from.is_some() {
            return Ok(self.snapshot().head.root);
        }
        if let Some(left) = access.joined_until {
            return self.root_at(left).await;
        }
        if self.is_world_readable().await? {
            return Ok(self.snapshot().head.root);
        }
        Err(RoomError::NotJoined)
    }

    /// The state that a user may read as it was at a boundary of the timeline.
    ///
    /// Who has left reads no state that came after: a later boundary counts as that of when they left.
    pub async fn readable_root_at(
        &self,
        user_id: &UserId,
        boundary: TimelineIndex,
    ) -> Result<StateRoot, RoomError> {
        let access = self.access(user_id).await?;
        match access.joined_until {
            Some(until) => self.root_at(boundary.min(until)).await,
            None if self.is_world_readable().await? => self.root_at(boundary).await,
            None => Err(RoomError::NotJoined),
        }
    }

    /// Events in client format, as a viewer sees them.
    pub async fn render(
        &self,
        events: &[Arc<StoredEvent>],
        viewer: &Viewer,
        room_id: RoomIdField,
    ) -> Result<Vec<Box<RawValue>>, RoomError> {
        self.render_nested(events, viewer, room_id, false).await
    }

    /// An event in client format as an application service gets it, which may see all of it and of what it replaced; with
    /// an invite of its user comes what the user is shown of the room.
    ///
    /// Spec: application service API, `PUT /_matrix/app/v1/transactions/{txnId}`.
    pub async fn render_for_service(
        &self,
        event: &Arc<StoredEvent>,
        target: Option<&UserId>,
    ) -> Result<Box<RawValue>, RoomError> {
        let related = self.related(std::slice::from_ref(event)).await?;
        let is_invited = |_: &&UserId| ["invite", "knock"].contains(&membership_of(&event.pdu).as_str());
        let shown = match target.filter(is_invited) {
            Some(target) => {
                let events = self.stripped_state(target, event).await?;
                let events: Vec<_> = events.iter().map(|event| event.get()).collect();
                let kind = membership_of(&event.pdu);
                Some(format!("\"{kind}_room_state\":[{}]", events.join(",")))
            }
            None => None,
        };
        let extra = Extra { shows_replaced: true, membership: None, bundle: shown.as_deref() };
        let viewer = Viewer { user_id: event.pdu.sender().to_owned(), device_id: None };
        let (event, now_ms) = ((&**event, self.snapshot().rules), self.now_ms());
        Ok(render_one(event, &viewer, RoomIdField::Present, &related, extra, now_ms))
    }

    /// Events in client format; `is_nested` ones are bundled with another event.
    pub(super) async fn render_nested(
        &self,
        events: &[Arc<StoredEvent>],
        viewer: &Viewer,
        room_id: RoomIdField,
        is_nested: bool,
    ) -> Result<Vec<Box<RawValue>>, RoomError> {
        let erased = self.erased_for(events, viewer).await?;
        let events = erased.as_deref().unwrap_or(events);
        let related = self.related(events).await?;
        let bundles = self.bundles(events, viewer, room_id, is_nested).await?;
        let (rules, now_ms) = (self.snapshot().rules, self.now_ms());
        let (mut sights, mut past) = (Sights::default(), Past::default());
        let mut rendered = Vec::with_capacity(events.len());
        for event in events {
            let membership = self.membership_at(event, viewer, &mut sights).await?;
            let replaced = event.replaces.and_then(|short| related.get(&short));
            let shows_replaced = match replaced {
                Some(replaced) => {
                    let pair = (&**event, &**replaced);
                    self.shows_replaced(pair, &viewer.user_id, &mut sights, &mut past).await?
                }
                None => false,
            };
            let extra = Extra {
                shows_replaced,
                membership: membership.as_deref(),
                bundle: bundles.get(&event.short).map(String::as_str),
            };
            rendered.push(render_one((event, rules), viewer, room_id, &related, extra, now_ms));
        }
        Ok(rendered)
    }

    /// The events that others mention in their `unsigned` part, fetched together.
    async fn related(
        &self,
        events: &[Arc<StoredEvent>],
    ) -> Result<BTreeMap<ShortEventId, Arc<StoredEvent>>, RoomError> {
        let shorts: Vec<_> =
            events.iter().flat_map(|event| [event.replaces, event.redacted_by]).flatten().collect();
        if shorts.is_empty() {
            return Ok(BTreeMap::new());
        }
        let found = self.events(&shorts).await?;
        Ok(found.into_iter().map(|event| (event.short, event)).collect())
    }

    /// Whether a viewer is shown the content of the state event that another one replaced.
    ///
    /// Spec: client-server API, `prev_content` of `UnsignedData`.
    async fn shows_replaced(
        &self,
        (event, replaced): (&StoredEvent, &StoredEvent),
        user_id: &UserId,
        sights: &mut Sights,
        past: &mut Past,
    ) -> Result<bool, RoomError> {
        if is_member(&replaced.pdu, user_id) {
            return Ok(true);
        }
        let sight = self.sight(event.before, user_id, sights).await?;
        // Who was there had it as the room's state.
        if sight.presence() == Presence::Joined {
            return Ok(true);
        }
        let access = match past.access.take() {
            Some(access) => access,
            None => self.access(user_id).await?,
        };
        // Mostly both came after the visibility was set, so that no other state has to be looked at.
        let same_visibility = sight.visible_since < Some(replaced.short);
        let since = access.was_joined_since(event);
        let shows = (same_visibility && may_see(sight.visibility, Presence::Outside, since))
            || self.is_permitted(user_id, &access, replaced, &mut past.sights).await?;
        past.access = Some(access);
        Ok(shows)
    }

    /// The viewer's membership just after an event.
    ///
    /// Spec: client-server API, `unsigned.membership`.
    async fn membership_at(
        &self,
        event: &StoredEvent,
        viewer: &Viewer,
        sights: &mut Sights,
    ) -> Result<Option<String>, RoomError> {
        if is_member(&event.pdu, &viewer.user_id) {
            return Ok(Some(membership_of(&event.pdu)));
        }
        let sight = self.sight(event.before, &viewer.user_id, sights).await?;
        Ok(Some(sight.membership.map_or_else(|| "leave".to_owned(), |event| membership_of(&event.pdu))))
    }
}

/// What an event's `unsigned` part holds for its reader alone.
#[derive(Clone, Copy, Default)]
struct Extra<'a> {
    /// Whether the reader may see what the event replaced.
    shows_replaced: bool,
    /// The reader's membership at the event.
    membership: Option<&'a str>,
    /// What is aggregated of the events that relate to it.
    bundle: Option<&'a str>,
}

/// One event in client format.
fn render_one(
    (event, rules): (&StoredEvent, &RoomVersion),
    viewer: &Viewer,
    room_id: RoomIdField,
    related: &BTreeMap<ShortEventId, Arc<StoredEvent>>,
    extra: Extra<'_>,
    now_ms: u64,
) -> Box<RawValue> {
    let find = |short: Option<ShortEventId>| short.and_then(|short| related.get(&short));
    let replaced = find(event.replaces);
    let shown = replaced.filter(|_| extra.shows_replaced);
    let because = find(event.redacted_by).map(|redaction| {
        let redaction = (&**redaction, rules);
        render_one(redaction, viewer, room_id, &BTreeMap::new(), Extra::default(), now_ms)
    });
    let own_txn = event.sent_by.as_ref().filter(|sent_by| {
        *event.pdu.sender() == viewer.user_id && Some(&sent_by.device_id) == viewer.device_id.as_ref()
    });
    let sent_ms = u64::from(event.pdu.origin_server_ts().get());
    let unsigned = Unsigned {
        age_ms: Some(now_ms.cast_signed() - sent_ms.cast_signed()),
        transaction_id: own_txn.map(|sent_by| sent_by.txn_id.as_str()),
        prev_content: shown.map(|event| event.pdu.content()),
        replaces_state: replaced.map(|event| event.pdu.event_id().as_str()),
        prev_sender: shown.map(|event| event.pdu.sender().as_str()),
        redacted_because: because.as_deref(),
        membership: extra.membership,
        more: extra.bundle,
    };
    client_event(&event.pdu, rules, &unsigned, room_id)
}

/// Whether an event is about a user's membership.
fn is_member(pdu: &Pdu, user_id: &UserId) -> bool {
    pdu.kind() == "m.room.member" && pdu.state_key() == Some(user_id.as_str())
}

/// What decides whether a viewer is shown what events replaced that came before they were there; read once.
#[derive(Default)]
struct Past {
    access: Option<Access>,
    sights: Sights,
}

/// The last state looked at: neighbours in the timeline mostly share it.
#[derive(Default)]
pub(super) struct Sights {
    last: Option<(StateRoot, Sight)>,
}
