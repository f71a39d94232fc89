//! Searching messages.
//!
//! Spec: client-server API, "Server Side Search".

use std::collections::{BTreeMap, BTreeSet};

use actors::{
    room::{PageDirection, PageQuery, RoomHandle, StoredEvent, Viewer, content_string},
    search::{Found, FoundEvent, Group, Search, SearchToken, TextField, TextOrder},
    token::Token,
};
use axum::{Json, extract::State};
use engine::{id::TimelineIndex, pdu::client::RoomIdField};
use http::Uri;
use ruma::{
    OwnedUserId,
    api::client::{
        filter::RoomEventFilter,
        search::search_events::v3::{Criteria, EventContext, GroupingKey, OrderBy, SearchKeys},
    },
};
use serde_json::{Map, Value, json, value::RawValue};

use super::events::viewer;
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{JsonBody, Requester, form_value},
};

/// Results of a search for which the client names no limit.
const LIMIT_DEFAULT: usize = 10;

/// Results that one response holds at most.
const LIMIT_MAX: usize = 100;

/// Events before or after each result, at most.
const CONTEXT_MAX: usize = 50;

/// Bytes of a search term.
const TERM_MAX: usize = 4096;

/// What a client asks for besides the results.
struct Extras {
    context: Option<EventContext>,
    with_state: bool,
    groups: BTreeSet<GroupingKey>,
}

/// `POST /_matrix/client/v3/search`
pub async fn search(
    State(app): State<App>,
    requester: Requester,
    uri: Uri,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<Value>> {
    let categories = body.get("search_categories").and_then(Value::as_object);
    let categories = categories.ok_or_else(|| ApiError::bad_json("search_categories is not an object"))?;
    let Some(criteria) = categories.get("room_events") else {
        return Ok(Json(json!({ "search_categories": {} })));
    };
    let has_context = criteria.get("event_context").is_some_and(|context| !context.is_null());
    let criteria: Criteria = serde_json::from_value(criteria.clone())
        .map_err(|error| ApiError::bad_json(format!("room_events: {error}")))?;
    let from = form_value(uri.query().unwrap_or_default(), "next_batch").filter(|from| !from.is_empty());
    let search = parse(&criteria, from)?;
    let extras = Extras {
        context: has_context.then_some(criteria.event_context),
        with_state: criteria.include_state.unwrap_or_default(),
        groups: criteria.groupings.group_by.into_iter().filter_map(|group| group.key).collect(),
    };
    let viewer = viewer(requester);
    let found = app.homeserver().search(&viewer.user_id, &search).await?;
    let room_events = render(&viewer, &search, &found, &extras).await?;
    Ok(Json(json!({ "search_categories": { "room_events": room_events } })))
}

fn parse(criteria: &Criteria, from: Option<String>) -> ApiResult<Search> {
    if criteria.search_term.len() > TERM_MAX {
        return Err(ApiError::invalid_param(format!("search_term has more than {TERM_MAX} bytes")));
    }
    let all = [SearchKeys::ContentBody, SearchKeys::ContentName, SearchKeys::ContentTopic];
    let keys = criteria.keys.as_deref().unwrap_or(&all);
    let field = |key: &SearchKeys| match key {
        SearchKeys::ContentBody => Ok(TextField::Body),
        SearchKeys::ContentName => Ok(TextField::Name),
        SearchKeys::ContentTopic => Ok(TextField::Topic),
        other => Err(ApiError::invalid_param(format!("{other} cannot be searched"))),
    };
    let order = match &criteria.order_by {
        None | Some(OrderBy::Rank) => TextOrder::Rank,
        Some(OrderBy::Recent) => TextOrder::Recent,
        Some(other) => return Err(ApiError::invalid_param(format!("results cannot be ordered by {other}"))),
    };
    let token = |from: String| {
        from.parse::<SearchToken>().map_err(|_| ApiError::invalid_param("next_batch is not a token"))
    };
    let limit = criteria.filter.limit.map_or(LIMIT_DEFAULT, |limit| {
        usize::try_from(u64::from(limit)).unwrap_or(LIMIT_MAX).clamp(1, LIMIT_MAX)
    });
    Ok(Search {
        term: criteria.search_term.clone(),
        fields: keys.iter().map(field).collect::<ApiResult<_>>()?,
        filter: criteria.filter.clone(),
        order,
        limit,
        from: from.map(token).transpose()?,
    })
}

async fn render(viewer: &Viewer, search: &Search, found: &Found, extras: &Extras) -> ApiResult<Value> {
    let mut results = Vec::with_capacity(found.events.len());
    for event in &found.events {
        results.push(result(viewer, event, extras.context.as_ref()).await?);
    }
    let mut answer = json!({
        "count": found.count,
        "highlights": found.highlights,
        "results": results,
    });
    if let Some(next) = &found.next {
        answer["next_batch"] = next.to_string().into();
    }
    if extras.with_state {
        answer["state"] = state(viewer, found).await?;
    }
    let groups: Map<_, _> = extras
        .groups
        .iter()
        .filter(|key| [GroupingKey::RoomId, GroupingKey::Sender].contains(key))
        .map(|key| (key.to_string(), groups(search, found, key)))
        .collect();
    if !groups.is_empty() {
        answer["groups"] = groups.into();
    }
    Ok(answer)
}

/// The results by room or sender, with where each group goes on.
fn groups(search: &Search, found: &Found, key: &GroupingKey) -> Value {
    let mut groups = BTreeMap::<String, (Group, Vec<&FoundEvent>)>::new();
    let mut order = Vec::new();
    for event in &found.events {
        let group = if *key == GroupingKey::RoomId {
            Group::Room(event.room.snapshot().room_id.clone())
        } else {
            Group::Sender(event.event.pdu.sender().to_owned())
        };
        let id = match &group {
            Group::Room(room_id) => room_id.to_string(),
            _ => event.event.pdu.sender().to_string(),
        };
        let (_, events) = groups.entry(id.clone()).or_insert_with(|| {
            order.push(id);
            (group, Vec::new())
        });
        events.push(event);
    }
    let mut rendered = Map::new();
    for (id, (group, events)) in groups {
        let place = order.iter().position(|known| *known == id).unwrap_or_default();
        let ids: Vec<_> = events.iter().map(|event| event.event.pdu.event_id()).collect();
        let mut entry = json!({ "order": place + 1, "results": ids });
        if let Some(next) = group_token(search, found, group, &id, &events) {
            entry["next_batch"] = next.to_string().into();
        }
        rendered.insert(id, entry);
    }
    rendered.into()
}

/// Where a group goes on, if the search does.
fn group_token(
    search: &Search,
    found: &Found,
    group: Group,
    id: &str,
    events: &[&FoundEvent],
) -> Option<SearchToken> {
    let next = found.next.as_ref()?;
    if next.group == group {
        return Some(next.clone());
    }
    match search.order {
        TextOrder::Recent => {
            // By time it goes on before the last one that is shown.
            let last = events.last()?.event.index?;
            Some(SearchToken { skip: 0, newest: Some(TimelineIndex(last.0 - 1)), group })
        }
        // By rank a group can only be counted from the beginning.
        TextOrder::Rank if search.from.is_none() => {
            let skip = found.looked_at.get(id).copied().unwrap_or_default();
            Some(SearchToken { skip, newest: None, group })
        }
        TextOrder::Rank => None,
    }
}

async fn state(viewer: &Viewer, found: &Found) -> ApiResult<Value> {
    let mut states = Map::new();
    for FoundEvent { room, .. } in &found.events {
        let room_id = room.snapshot().room_id.to_string();
        if states.contains_key(&room_id) {
            continue;
        }
        let root = room.readable_root(&viewer.user_id).await?;
        let events = room.state(root, None).await?;
        states.insert(room_id, json!(room.render(&events, viewer, RoomIdField::Present).await?));
    }
    Ok(states.into())
}

async fn result(viewer: &Viewer, found: &FoundEvent, context: Option<&EventContext>) -> ApiResult<Value> {
    let FoundEvent { room, event, rank } = found;
    let mut result = json!({ "rank": rank, "result": rendered(room, viewer, event).await? });
    if let Some(wanted) = context {
        result["context"] = surroundings(viewer, found, wanted).await?;
    }
    Ok(result)
}

async fn rendered(
    room: &RoomHandle,
    viewer: &Viewer,
    event: &std::sync::Arc<StoredEvent>,
) -> ApiResult<Option<Box<RawValue>>> {
    let events = room.render(std::slice::from_ref(event), viewer, RoomIdField::Present).await?;
    Ok(events.into_iter().next())
}

/// What was said before and after a result.
async fn surroundings(viewer: &Viewer, found: &FoundEvent, wanted: &EventContext) -> ApiResult<Value> {
    let FoundEvent { room, event, .. } = found;
    let index = event.index.unwrap_or_default();
    let filter = RoomEventFilter::default();
    let page = async |direction, from, limit: ruma::UInt| {
        let limit = usize::try_from(u64::from(limit)).unwrap_or(CONTEXT_MAX).min(CONTEXT_MAX);
        let query = PageQuery { user_id: &viewer.user_id, from, to: None, direction, limit, filter: &filter };
        room.page(&query).await
    };
    let before = page(PageDirection::Backward, TimelineIndex(index.0 - 1), wanted.before_limit).await?;
    let after = page(PageDirection::Forward, index, wanted.after_limit).await?;
    let oldest = before.events.last().and_then(|event| event.index).unwrap_or(index);
    let newest = after.events.last().unwrap_or(event);
    let mut context = json!({
        "start": Token::Timeline(TimelineIndex(oldest.0 - 1)).to_string(),
        "end": Token::Timeline(newest.index.unwrap_or(index)).to_string(),
        "events_before": room.render(&before.events, viewer, RoomIdField::Present).await?,
        "events_after": room.render(&after.events, viewer, RoomIdField::Present).await?,
    });
    if wanted.include_profile {
        let all = before.events.iter().chain([event]).chain(&after.events);
        let senders: BTreeSet<OwnedUserId> = all.map(|event| event.pdu.sender().to_owned()).collect();
        let mut profiles = BTreeMap::new();
        for sender in senders {
            let member = room.state_event(event.after, "m.room.member", sender.as_str()).await?;
            let mut profile = Map::new();
            for field in ["displayname", "avatar_url"] {
                if let Some(value) = member.as_ref().and_then(|member| content_string(&member.pdu, field)) {
                    profile.insert(field.to_owned(), value.into());
                }
            }
            profiles.insert(sender, profile);
        }
        context["profile_info"] = json!(profiles);
    }
    Ok(context)
}
