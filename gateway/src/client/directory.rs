//! Room aliases and the directory of public rooms.
//!
//! Spec: client-server API, "Room aliases" and "Published room directory".

use std::{cmp::Reverse, ops::Range};

use actors::{
    aliases::{AliasOwner, Network, Place, PublicRoom},
    federation::FederationError,
    room::RoomError,
};
use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use ruma::{
    OwnedRoomId, RoomAliasId, RoomId, ServerName, UInt,
    api::client::{
        alias::{create_alias, delete_alias, get_alias},
        directory::{get_public_rooms, get_public_rooms_filtered, get_room_visibility},
        room::{Visibility, aliases},
    },
    directory::{Filter, PublicRoomsChunk, PublicRoomsChunkInit, RoomNetwork, RoomTypeFilter},
    room::RoomType,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Authenticated, JsonBody, Matrix, Open, Path, Requester},
    told::Told,
};

/// Rooms that one page of the directory holds if the client names no limit, and at most.
const PAGE_MAX: usize = 500;

/// `GET /_matrix/client/v3/directory/room/{roomAlias}`
pub async fn get_alias(
    State(app): State<App>,
    Open(request): Open<get_alias::v3::Request>,
) -> ApiResult<Matrix<get_alias::v3::Response>> {
    let found = app.homeserver().find_alias(&request.room_alias).await?;
    let (room_id, servers) = found.ok_or_else(|| ApiError::not_found("room alias not found"))?;
    Ok(Matrix(get_alias::v3::Response::new(room_id, servers)))
}

/// `PUT /_matrix/client/v3/directory/room/{roomAlias}`
pub async fn create_alias(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<create_alias::v3::Request>,
) -> ApiResult<Matrix<create_alias::v3::Response>> {
    check_local(&app, &request.room_alias)?;
    check_namespace(&app, &requester, &request.room_alias)?;
    let homeserver = app.homeserver();
    let room = homeserver.room(&request.room_id).await?;
    if requester.service.is_none() {
        super::events::require_joined(&room, &requester).await?;
    }
    match homeserver.create_alias(&request.room_alias, &request.room_id, &requester.user_id).await {
        Err(error @ RoomError::AliasInUse) => {
            Err(ApiError::new(StatusCode::CONFLICT, "M_UNKNOWN", error.to_string()))
        }
        result => Ok(result.map(|()| Matrix(create_alias::v3::Response::new()))?),
    }
}

/// `DELETE /_matrix/client/v3/directory/room/{roomAlias}`
pub async fn delete_alias(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<delete_alias::v3::Request>,
) -> ApiResult<Matrix<delete_alias::v3::Response>> {
    check_namespace(&app, &requester, &request.room_alias)?;
    let owner = if requester.service.is_some() { AliasOwner::Service } else { AliasOwner::User };
    app.homeserver().delete_alias(&request.room_alias, &requester.user_id, owner).await?;
    Ok(Matrix(delete_alias::v3::Response::new()))
}

/// Refuses aliases that an application service has for itself, and to a service those that are not its.
///
/// Spec: application service API, "Server admin style permissions".
pub(super) fn check_namespace(app: &App, requester: &Requester, alias: &RoomAliasId) -> ApiResult<()> {
    let service = requester.service.as_deref();
    if service.is_some_and(|service| !service.has_alias(alias)) {
        return Err(ApiError::exclusive("the alias is in no namespace of this application service"));
    }
    if app.homeserver().services().reserves_alias(alias, service) {
        return Err(ApiError::exclusive("the alias is reserved for an application service"));
    }
    Ok(())
}

fn check_local(app: &App, alias: &RoomAliasId) -> ApiResult<()> {
    if alias.server_name() == app.homeserver().server_name() {
        Ok(())
    } else {
        Err(ApiError::invalid_param("the alias belongs to another server"))
    }
}

/// `GET /_matrix/client/v3/rooms/{roomId}/aliases`
pub async fn room_aliases(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<aliases::v3::Request>,
) -> ApiResult<Matrix<aliases::v3::Response>> {
    let room = super::events::room_of(&app, &request.room_id).await?;
    if !room.is_world_readable().await? {
        super::events::require_joined(&room, &requester).await?;
    }
    let aliases = app.homeserver().room_aliases(&request.room_id).await?;
    Ok(Matrix(aliases::v3::Response::new(aliases)))
}

/// `GET /_matrix/client/v3/directory/list/room/{roomId}`
pub async fn get_visibility(
    State(app): State<App>,
    Open(request): Open<get_room_visibility::v3::Request>,
) -> ApiResult<Matrix<get_room_visibility::v3::Response>> {
    app.homeserver().room(&request.room_id).await?;
    let is_public = app.homeserver().is_public(&request.room_id).await?;
    let visibility = if is_public { Visibility::Public } else { Visibility::Private };
    Ok(Matrix(get_room_visibility::v3::Response::new(visibility)))
}

/// `PUT /_matrix/client/v3/directory/list/room/{roomId}`
pub async fn set_visibility(
    State(app): State<App>,
    requester: Requester,
    Path(room_id): Path<OwnedRoomId>,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<Value>> {
    let homeserver = app.homeserver();
    let is_public = match body.get("visibility") {
        None => true,
        Some(Value::String(visibility)) => is_public(&visibility.as_str().into())?,
        Some(_) => return Err(ApiError::bad_json("visibility is public or private")),
    };
    if !homeserver.may_publish(&room_id, &requester.user_id).await? {
        return Err(ApiError::forbidden("you may not decide whether the directory lists this room"));
    }
    homeserver.set_public(&room_id, is_public).await?;
    Ok(Json(json!({})))
}

/// Whether the directory is to list a room; refuses a visibility that the specification does not know.
pub(super) fn is_public(visibility: &Visibility) -> ApiResult<bool> {
    match visibility {
        Visibility::Public => Ok(true),
        Visibility::Private => Ok(false),
        _ => Err(ApiError::bad_json("visibility is public or private")),
    }
}

/// `GET /_matrix/client/v3/publicRooms`
pub async fn get_public_rooms(
    State(app): State<App>,
    Open(request): Open<get_public_rooms::v3::Request>,
) -> ApiResult<Response> {
    if let Some(server) = other_server(&app, request.server.as_deref()) {
        let query = json!({ "limit": request.limit, "since": request.since });
        return remote_page(&app, server, query).await;
    }
    let page = page(&app, &Network::Matrix, |_| true, request.since.as_deref(), request.limit).await?;
    Ok(Json(page).into_response())
}

/// `POST /_matrix/client/v3/publicRooms`
pub async fn search_public_rooms(
    State(app): State<App>,
    Authenticated { request, .. }: Authenticated<get_public_rooms_filtered::v3::Request>,
) -> ApiResult<Response> {
    if let Some(server) = other_server(&app, request.server.as_deref()) {
        let mut query = json!({ "limit": request.limit, "since": request.since });
        let filter = serde_json::to_value(&request.filter).map_err(|error| ApiError::internal(&error))?;
        match &request.room_network {
            RoomNetwork::Matrix => {}
            RoomNetwork::ThirdParty(network) if network.is_empty() => {}
            RoomNetwork::All => query["include_all_networks"] = true.into(),
            RoomNetwork::ThirdParty(network) => query["third_party_instance_id"] = network.as_str().into(),
            _ => return Err(ApiError::invalid_param("third_party_instance_id names no network")),
        }
        // Other software may not know a filter that filters nothing.
        if filter.as_object().is_some_and(|filter| !filter.is_empty()) {
            query["filter"] = filter;
        }
        return remote_page(&app, server, query).await;
    }
    let network = network(&request.room_network)?;
    let wanted = |room: &PublicRoom| passes(&request.filter, room);
    let page = page(&app, &network, wanted, request.since.as_deref(), request.limit).await?;
    Ok(Json(page).into_response())
}

/// The network whose rooms are asked for.
pub fn network(network: &RoomNetwork) -> ApiResult<Network> {
    match network {
        RoomNetwork::Matrix => Ok(Network::Matrix),
        RoomNetwork::All => Ok(Network::All),
        // Clients that let users choose a network may send an empty one for none.
        RoomNetwork::ThirdParty(network) if network.is_empty() => Ok(Network::Matrix),
        RoomNetwork::ThirdParty(network) => Ok(Network::Of(network.clone())),
        _ => Err(ApiError::invalid_param("third_party_instance_id names no network")),
    }
}

/// The server whose directory is asked for, if it is not this one.
fn other_server<'a>(app: &App, server: Option<&'a ServerName>) -> Option<&'a ServerName> {
    server.filter(|server| *server != app.homeserver().server_name())
}

/// A page of another server's directory.
async fn remote_page(app: &App, server: &ServerName, query: Value) -> ApiResult<Response> {
    if !app.homeserver().federates() {
        return Err(ApiError::not_found("other servers' directories cannot be reached: federation is off"));
    }
    let Value::Object(mut query) = query else { return Err(ApiError::bad_json("not an object")) };
    query.retain(|_, value| !value.is_null());
    match app.homeserver().remote_public_rooms(server, query).await {
        // The client's own parameters are passed on: a token that is not one of that server, say.
        Err(RoomError::Remote(FederationError::Status { errcode, error, .. }))
            if errcode == "M_INVALID_PARAM" =>
        {
            Err(ApiError::invalid_param(error))
        }
        page => Ok(Json(page?).into_response()),
    }
}

/// A page of the directory.
#[derive(Serialize)]
pub struct PublicRooms {
    chunk: Vec<Told<PublicRoomsChunk>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<String>,
    total_room_count_estimate: UInt,
}

/// Where a page begins or ends: a place in the directory, which stays where it is while rooms come, grow and go.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Since {
    /// The page holds what comes after this place.
    After(u64, OwnedRoomId),
    /// The page ends before this place.
    Before(u64, OwnedRoomId),
}

impl Since {
    fn parse(token: &str) -> Option<Self> {
        let (joined, room_id) = token.get(1..)?.split_once('_')?;
        let (joined, room_id) = (joined.parse().ok()?, RoomId::parse(room_id).ok()?);
        match token.as_bytes().first()? {
            b'n' => Some(Self::After(joined, room_id)),
            b'p' => Some(Self::Before(joined, room_id)),
            _ => None,
        }
    }

    /// The places of the rooms on the page, among all rooms in their order.
    fn page(&self, rooms: &[PublicRoom], limit: usize) -> Range<usize> {
        let first_not =
            |is_before: &dyn Fn(Place<'_>) -> bool| rooms.partition_point(|room| is_before(room.place()));
        match self {
            Self::After(joined, room_id) => {
                let start = first_not(&|place| place <= (Reverse(*joined), room_id));
                start..rooms.len().min(start + limit)
            }
            Self::Before(joined, room_id) => {
                let end = first_not(&|place| place < (Reverse(*joined), room_id));
                end.saturating_sub(limit)..end
            }
        }
    }
}

/// A page of those rooms of the directory that are wanted.
pub async fn page(
    app: &App,
    network: &Network,
    wanted: impl Fn(&PublicRoom) -> bool,
    since: Option<&str>,
    limit: Option<UInt>,
) -> ApiResult<PublicRooms> {
    let invalid = || ApiError::invalid_param("since is not a token of this directory");
    let since = since.filter(|since| !since.is_empty());
    let since = since.map(|since| Since::parse(since).ok_or_else(invalid)).transpose()?;
    // Zero is no limit: server-server API, `GET /_matrix/federation/v1/publicRooms`.
    let limit = limit.map(u64::from).filter(|limit| *limit > 0);
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(PAGE_MAX).min(PAGE_MAX);
    let rooms = app.homeserver().public_rooms(network, wanted).await?;
    let range = since.map_or(0..rooms.len().min(limit), |since| since.page(&rooms, limit));
    let token = |letter: char, room: &PublicRoom| format!("{letter}{}_{}", room.joined, room.room_id);
    let has_more = range.end < rooms.len();
    Ok(PublicRooms {
        next_batch: rooms[range.clone()].last().filter(|_| has_more).map(|last| token('n', last)),
        prev_batch: rooms[range.clone()].first().filter(|_| range.start > 0).map(|first| token('p', first)),
        total_room_count_estimate: UInt::new_saturating(rooms.len() as u64),
        chunk: rooms.into_iter().skip(range.start).take(range.len()).map(|room| chunk(room).into()).collect(),
    })
}

/// Whether a filter lets a room through.
pub fn passes(filter: &Filter, room: &PublicRoom) -> bool {
    let contains = |term: &str| {
        let alias = room.face.canonical_alias.as_ref().map(ToString::to_string);
        let texts = [room.face.name.as_ref(), room.face.topic.as_ref(), alias.as_ref()];
        texts.into_iter().flatten().any(|text| text.to_lowercase().contains(term))
    };
    let type_passes = filter.room_types.is_empty()
        || filter.room_types.iter().any(|wanted| match wanted {
            RoomTypeFilter::Default => room.face.room_type.is_none(),
            wanted => room.face.room_type.as_deref() == wanted.as_str(),
        });
    let term = filter.generic_search_term.as_deref().map(str::to_lowercase).filter(|term| !term.is_empty());
    type_passes && term.is_none_or(|term| contains(&term))
}

fn chunk(room: PublicRoom) -> PublicRoomsChunk {
    let mut chunk = PublicRoomsChunk::from(PublicRoomsChunkInit {
        num_joined_members: UInt::new_saturating(room.joined),
        room_id: room.room_id,
        world_readable: room.face.world_readable,
        guest_can_join: room.face.guest_can_join,
    });
    chunk.canonical_alias = room.face.canonical_alias;
    chunk.name = room.face.name;
    chunk.topic = room.face.topic;
    chunk.avatar_url = room.face.avatar_url.map(Into::into);
    chunk.join_rule = room.face.join_rule.into();
    chunk.room_type = room.face.room_type.map(RoomType::from);
    chunk
}

#[cfg(test)]
mod tests {
    use actors::aliases::PublicFaceRecord;

    use super::*;

    fn room(joined: u64, name: &str) -> PublicRoom {
        PublicRoom {
            room_id: RoomId::parse(format!("!{name}:example.org")).unwrap(),
            joined,
            face: PublicFaceRecord { join_rule: "public".to_owned(), ..PublicFaceRecord::default() },
        }
    }

    #[test]
    fn a_page_goes_on_where_the_last_one_ended_whatever_happens_in_between() {
        let rooms = [room(9, "a"), room(5, "b"), room(5, "c"), room(1, "d")];
        let page = |rooms: &[PublicRoom], token: &str, limit| Since::parse(token).unwrap().page(rooms, limit);
        assert_eq!(page(&rooms, "n5_!b:example.org", 10), 2..4);
        assert_eq!(page(&rooms, "p5_!c:example.org", 1), 1..2);
        assert_eq!(page(&rooms, "p9_!a:example.org", 5), 0..0);
        // The room that the last page ended with is gone, and a larger one is new.
        let later = [room(20, "e"), room(9, "a"), room(5, "c"), room(1, "d")];
        assert_eq!(page(&later, "n5_!b:example.org", 10), 2..4);
        assert_eq!(page(&later, "p5_!b:example.org", 10), 0..2);
        for bad in ["", "p", "n5", "7", "nx_!b:example.org", "n5_b", "x5_!b:example.org", "é5_!b:example.org"]
        {
            assert_eq!(Since::parse(bad), None, "{bad}");
        }
    }
}
