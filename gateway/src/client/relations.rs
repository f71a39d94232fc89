//! Events that relate to others, and threads.
//!
//! Spec: client-server API, "Event relationships" and "Threading".

use actors::{
    room::{Page, PageDirection, RECURSION_DEPTH, RelationQuery, RoomError},
    token::Token,
};
use axum::extract::{RawQuery, State};
use engine::{id::TimelineIndex, pdu::client::RoomIdField};
use ruma::{
    OwnedEventId, OwnedRoomId, UInt,
    api::{
        Direction,
        client::{
            relations::{
                get_relating_events, get_relating_events_with_rel_type,
                get_relating_events_with_rel_type_and_event_type,
            },
            threads::get_threads,
        },
    },
    serde::Raw,
};

use super::{
    events::{event_not_found, viewer},
    timeline::{page_direction, parse_token},
};
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Authenticated, Matrix, Requester, form_value},
};

/// Events of a page for which the client names no limit.
const LIMIT_DEFAULT: usize = 20;

/// Events that one page holds at most.
const LIMIT_MAX: usize = 100;

/// What the three endpoints have in common.
struct Query {
    room_id: OwnedRoomId,
    event_id: OwnedEventId,
    rel_type: Option<String>,
    kind: Option<String>,
    from: Option<String>,
    to: Option<String>,
    direction: Direction,
    limit: Option<UInt>,
    recurse: bool,
}

/// What one of the three endpoints is asked: ruma has a type of the same fields for each.
macro_rules! query {
    ($request:ident, $raw:ident, $rel_type:expr, $kind:expr) => {
        Query {
            room_id: $request.room_id,
            event_id: $request.event_id,
            rel_type: $rel_type,
            kind: $kind,
            from: $request.from,
            to: $request.to,
            direction: $request.dir,
            limit: $request.limit,
            recurse: $request.recurse || recurses($raw.as_deref()),
        }
    };
}

/// `GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}`
pub async fn relations(
    State(app): State<App>,
    RawQuery(raw): RawQuery,
    Authenticated { requester, request }: Authenticated<get_relating_events::v1::Request>,
) -> ApiResult<Matrix<get_relating_events::v1::Response>> {
    find(&app, requester, query!(request, raw, None, None)).await
}

/// `GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}`
pub async fn relations_of_type(
    State(app): State<App>,
    RawQuery(raw): RawQuery,
    Authenticated { requester, request }: Authenticated<get_relating_events_with_rel_type::v1::Request>,
) -> ApiResult<Matrix<get_relating_events::v1::Response>> {
    let rel_type = Some(request.rel_type.to_string());
    find(&app, requester, query!(request, raw, rel_type, None)).await
}

/// `GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}/{eventType}`
pub async fn relations_of_event_type(
    State(app): State<App>,
    RawQuery(raw): RawQuery,
    Authenticated { requester, request }: Authenticated<
        get_relating_events_with_rel_type_and_event_type::v1::Request,
    >,
) -> ApiResult<Matrix<get_relating_events::v1::Response>> {
    let (rel_type, kind) = (Some(request.rel_type.to_string()), Some(request.event_type.to_string()));
    find(&app, requester, query!(request, raw, rel_type, kind)).await
}

/// Whether a query asks for relations of relations by the name that this had before it was specified.
///
/// Spec: MSC3981, "Unstable prefix".
fn recurses(query: Option<&str>) -> bool {
    form_value(query.unwrap_or_default(), "org.matrix.msc3981.recurse").as_deref() == Some("true")
}

/// Answers the three endpoints, whose answers are alike.
async fn find(
    app: &App,
    requester: Requester,
    query: Query,
) -> ApiResult<Matrix<get_relating_events::v1::Response>> {
    let boundary = |token: &Option<String>, name| {
        let token = token.as_deref().filter(|token| !token.is_empty());
        token.map(|token| parse_token(token, name)).transpose()
    };
    let (from, to) = (boundary(&query.from, "from")?, boundary(&query.to, "to")?);
    let limit = page_limit(query.limit)?;
    let room = match app.homeserver().room(&query.room_id).await {
        Err(RoomError::NotFound) => return Err(event_not_found()),
        result => result?,
    };
    let target = room.event(&query.event_id).await?.ok_or_else(event_not_found)?;
    if !room.may_see(&requester.user_id, &target).await? {
        return Err(event_not_found());
    }
    let direction = page_direction(query.direction);
    let start = match direction {
        PageDirection::Backward => room.snapshot().head.latest,
        PageDirection::Forward => TimelineIndex(i64::MIN),
    };
    let Page { events, end } = room
        .relations(&RelationQuery {
            user_id: &requester.user_id,
            target: &target,
            rel_type: query.rel_type.as_deref(),
            kind: query.kind.as_deref(),
            from: from.unwrap_or(start),
            to,
            direction,
            limit,
            recurse: query.recurse,
        })
        .await?;
    let events = room.render(&events, &viewer(requester), RoomIdField::Present).await?;
    let chunk = events.into_iter().map(Raw::from_json).collect();
    let mut response = get_relating_events::v1::Response::new(chunk);
    response.next_batch = end.map(|end| Token::Timeline(end).to_string());
    response.prev_batch = from.map(|from| Token::Timeline(from).to_string());
    response.recursion_depth = query.recurse.then(|| RECURSION_DEPTH.into());
    Ok(Matrix(response))
}

fn page_limit(limit: Option<UInt>) -> ApiResult<usize> {
    let Some(limit) = limit else { return Ok(LIMIT_DEFAULT) };
    if limit == UInt::MIN {
        return Err(ApiError::invalid_param("limit must be greater than zero"));
    }
    Ok(usize::try_from(u64::from(limit)).unwrap_or(LIMIT_MAX).min(LIMIT_MAX))
}

/// `GET /_matrix/client/v1/rooms/{roomId}/threads`
pub async fn threads(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<get_threads::v1::Request>,
) -> ApiResult<Matrix<get_threads::v1::Response>> {
    let from = request.from.as_deref().filter(|from| !from.is_empty());
    let from = from.map(|from| parse_token(from, "from")).transpose()?;
    let limit = page_limit(request.limit)?;
    let only_participated = match request.include {
        get_threads::v1::IncludeThreads::All => false,
        get_threads::v1::IncludeThreads::Participated => true,
        _ => return Err(ApiError::invalid_param("include is all or participated")),
    };
    let room = super::events::room_of(&app, &request.room_id).await?;
    room.readable_root(&requester.user_id).await?;
    let Page { events, end } = room.threads(&requester.user_id, only_participated, from, limit).await?;
    let events = room.render(&events, &viewer(requester), RoomIdField::Present).await?;
    let mut response = get_threads::v1::Response::new(events.into_iter().map(Raw::from_json).collect());
    response.next_batch = end.map(|end| Token::Timeline(end).to_string());
    Ok(Matrix(response))
}
