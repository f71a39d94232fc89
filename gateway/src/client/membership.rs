//! Joining, inviting, leaving, banning.
//!
//! Spec: client-server API, "Room membership".

use actors::room::{MembershipAction, MembershipChange, RoomError};
use axum::extract::State;
use ruma::{
    OwnedRoomId, OwnedRoomOrAliasId, OwnedServerName, OwnedUserId, RoomId, UserId,
    api::client::{
        knock::knock_room,
        membership::{
            ThirdPartySigned, ban_user, forget_room,
            invite_user::{self, v3::InvitationRecipient},
            join_room_by_id, join_room_by_id_or_alias, joined_rooms, kick_user, leave_room, unban_user,
        },
    },
};
use serde_json::{Map, Value};

use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Authenticated, Matrix, Requester},
};

/// `POST /_matrix/client/v3/rooms/{roomId}/join`
pub async fn join_room_by_id(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<join_room_by_id::v3::Request>,
) -> ApiResult<Matrix<join_room_by_id::v3::Response>> {
    accept_invite(&app, &requester, &request.room_id, request.third_party_signed.as_ref()).await?;
    join(&app, requester, &request.room_id, &[], request.reason).await?;
    Ok(Matrix(join_room_by_id::v3::Response::new(request.room_id)))
}

/// `POST /_matrix/client/v3/join/{roomIdOrAlias}`
pub async fn join_room_by_id_or_alias(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<join_room_by_id_or_alias::v3::Request>,
) -> ApiResult<Matrix<join_room_by_id_or_alias::v3::Response>> {
    let (room_id, mut servers) = resolve(&app, request.room_id_or_alias).await?;
    servers.splice(0..0, request.via);
    accept_invite(&app, &requester, &room_id, request.third_party_signed.as_ref()).await?;
    join(&app, requester, &room_id, &servers, request.reason).await?;
    Ok(Matrix(join_room_by_id_or_alias::v3::Response::new(room_id)))
}

/// Makes an invite of one that was sent to an identifier of the user, if the user brings the proof.
async fn accept_invite(
    app: &App,
    requester: &Requester,
    room_id: &RoomId,
    signed: Option<&ThirdPartySigned>,
) -> ApiResult<()> {
    match signed {
        Some(signed) => {
            Ok(app.homeserver().accept_third_party_invite(&requester.user_id, room_id, signed).await?)
        }
        None => Ok(()),
    }
}

async fn join(
    app: &App,
    requester: Requester,
    room_id: &RoomId,
    via: &[OwnedServerName],
    reason: Option<String>,
) -> ApiResult<()> {
    let user = requester.user_id.clone();
    enter(app, requester, room_id, via, reason).await?;
    app.homeserver().follow_upgrade(&user, room_id).await;
    Ok(())
}

/// Joins through this server, or through another one.
///
/// Servers tell each other why a join of a restricted room cannot be authorised; clients learn that it may not be.
/// Spec: client-server API, `POST /_matrix/client/v3/rooms/{roomId}/join`.
async fn enter(
    app: &App,
    requester: Requester,
    room_id: &RoomId,
    via: &[OwnedServerName],
    reason: Option<String>,
) -> ApiResult<()> {
    let entered = try_ways(app, requester, room_id, via, reason).await;
    entered.map_err(|error| if lacks_authority(&error) { error.into_forbidden() } else { error })
}

/// Whether another server may be able to authorise the join of a restricted room.
fn lacks_authority(error: &ApiError) -> bool {
    matches!(error.errcode(), "M_UNABLE_TO_AUTHORISE_JOIN" | "M_UNABLE_TO_GRANT_JOIN")
}

async fn try_ways(
    app: &App,
    requester: Requester,
    room_id: &RoomId,
    via: &[OwnedServerName],
    reason: Option<String>,
) -> ApiResult<()> {
    let homeserver = app.homeserver();
    let user = requester.user_id;
    if !homeserver.is_resident(room_id).await? {
        if requester.is_guest {
            return Err(RoomError::NoGuests.into());
        }
        let content = own_content(app, &user, reason).await?;
        return Ok(homeserver.join_remote(&user, room_id, via, &content).await?);
    }
    let meets_allow_rule = homeserver.meets_allow_rule(&user, room_id).await?;
    if requester.is_guest && !homeserver.room(room_id).await?.admits_guests().await? {
        return Err(RoomError::NoGuests.into());
    }
    let action = MembershipAction::Join { meets_allow_rule };
    let reason_of_join = reason.clone();
    match change(app, &user, user.clone(), room_id, action, reason_of_join).await {
        // Another server of the room may have a member who can let the user in.
        Err(error) if lacks_authority(&error) && homeserver.federates() => {
            let others = homeserver
                .room(room_id)
                .await?
                .snapshot()
                .head
                .census
                .servers
                .keys()
                .cloned()
                .collect::<Vec<_>>();
            let content = own_content(app, &user, reason).await?;
            homeserver.join_remote(&user, room_id, &others, &content).await.map_err(|_| error)
        }
        outcome => outcome,
    }
}

/// The content of a membership event by which a user changes their own membership.
async fn own_content(app: &App, user: &UserId, reason: Option<String>) -> ApiResult<Map<String, Value>> {
    Ok(with_reason(app.homeserver().member_content(user).await?, reason))
}

fn with_reason(mut content: Map<String, Value>, reason: Option<String>) -> Map<String, Value> {
    content.extend(reason.map(|reason| ("reason".to_owned(), Value::from(reason))));
    content
}

/// `POST /_matrix/client/v3/knock/{roomIdOrAlias}`
pub async fn knock_room(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<knock_room::v3::Request>,
) -> ApiResult<Matrix<knock_room::v3::Response>> {
    let (room_id, mut servers) = resolve(&app, request.room_id_or_alias).await?;
    servers.splice(0..0, request.via);
    let user = requester.user_id;
    let homeserver = app.homeserver();
    if homeserver.federates() && !homeserver.is_resident(&room_id).await? {
        let content = own_content(&app, &user, request.reason).await?;
        homeserver.knock_remote(&user, &room_id, &servers, &content).await?;
        return Ok(Matrix(knock_room::v3::Response::new(room_id)));
    }
    change(&app, &user, user.clone(), &room_id, MembershipAction::Knock, request.reason).await?;
    Ok(Matrix(knock_room::v3::Response::new(room_id)))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/invite`
pub async fn invite_user(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<invite_user::v3::Request>,
) -> ApiResult<Matrix<invite_user::v3::Response>> {
    let InvitationRecipient::UserId(recipient) = request.recipient else {
        return Err(ApiError::bad_request(
            "M_UNKNOWN",
            "this server has no identity server to invite third-party identifiers with",
        ));
    };
    let action = MembershipAction::Invite;
    change(&app, &requester.user_id, recipient.user_id, &request.room_id, action, recipient.reason).await?;
    Ok(Matrix(invite_user::v3::Response::new()))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/leave`
pub async fn leave_room(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<leave_room::v3::Request>,
) -> ApiResult<Matrix<leave_room::v3::Response>> {
    let user = requester.user_id;
    let homeserver = app.homeserver();
    if homeserver.federates() && !homeserver.is_resident(&request.room_id).await? {
        let room = homeserver.room(&request.room_id).await?;
        match room.membership_record(&user).await?.map(|record| record.membership).as_deref() {
            Some("invite" | "knock") => {
                let content = with_reason(Map::new(), request.reason);
                homeserver.leave_remote(&user, &request.room_id, &content).await?;
            }
            Some("leave") => {}
            _ => return Err(RoomError::NotJoined.into()),
        }
        return Ok(Matrix(leave_room::v3::Response::new()));
    }
    change(&app, &user, user.clone(), &request.room_id, MembershipAction::Leave, request.reason).await?;
    Ok(Matrix(leave_room::v3::Response::new()))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/kick`
pub async fn kick_user(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<kick_user::v3::Request>,
) -> ApiResult<Matrix<kick_user::v3::Response>> {
    let action = MembershipAction::Kick;
    change(&app, &requester.user_id, request.user_id, &request.room_id, action, request.reason).await?;
    Ok(Matrix(kick_user::v3::Response::new()))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/ban`
pub async fn ban_user(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<ban_user::v3::Request>,
) -> ApiResult<Matrix<ban_user::v3::Response>> {
    let action = MembershipAction::Ban;
    change(&app, &requester.user_id, request.user_id, &request.room_id, action, request.reason).await?;
    Ok(Matrix(ban_user::v3::Response::new()))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/unban`
pub async fn unban_user(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<unban_user::v3::Request>,
) -> ApiResult<Matrix<unban_user::v3::Response>> {
    let action = MembershipAction::Unban;
    change(&app, &requester.user_id, request.user_id, &request.room_id, action, request.reason).await?;
    Ok(Matrix(unban_user::v3::Response::new()))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/forget`
pub async fn forget_room(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<forget_room::v3::Request>,
) -> ApiResult<Matrix<forget_room::v3::Response>> {
    let room = app.homeserver().room(&request.room_id).await?;
    room.forget(requester.user_id).await.map_err(|error| match error {
        RoomError::Invalid(message) => ApiError::bad_request("M_UNKNOWN", message),
        error => error.into(),
    })?;
    Ok(Matrix(forget_room::v3::Response::new()))
}

/// `GET /_matrix/client/v3/joined_rooms`
pub async fn joined_rooms(
    State(app): State<App>,
    Authenticated { requester, .. }: Authenticated<joined_rooms::v3::Request>,
) -> ApiResult<Matrix<joined_rooms::v3::Response>> {
    let session = app.homeserver().session(&requester.user_id).await?;
    let rooms = session.view().rooms().into_iter();
    let joined = rooms.filter(|(_, entry)| entry.is_joined()).map(|(room_id, _)| room_id).collect();
    Ok(Matrix(joined_rooms::v3::Response::new(joined)))
}

/// The room of an ID or an alias, with servers that are in it as far as its server names some.
pub async fn resolve(app: &App, id: OwnedRoomOrAliasId) -> ApiResult<(OwnedRoomId, Vec<OwnedServerName>)> {
    let alias = match OwnedRoomId::try_from(id) {
        Ok(room_id) => return Ok((room_id, Vec::new())),
        Err(alias) => alias,
    };
    let found = app.homeserver().find_alias(&alias).await?;
    found.ok_or_else(|| ApiError::not_found("room alias not found"))
}

async fn change(
    app: &App,
    sender: &OwnedUserId,
    target: OwnedUserId,
    room_id: &RoomId,
    action: MembershipAction,
    reason: Option<String>,
) -> ApiResult<()> {
    let homeserver = app.homeserver();
    let room = homeserver.room(room_id).await?;
    let content = match action {
        MembershipAction::Join { .. } | MembershipAction::Knock | MembershipAction::Invite => {
            homeserver.member_content(&target).await?
        }
        _ => Map::new(),
    };
    let content = with_reason(content, reason);
    let is_foreign = target.server_name() != homeserver.server_name();
    let change = MembershipChange { sender: sender.clone(), target, action, content };
    if action == MembershipAction::Invite && is_foreign && homeserver.federates() {
        homeserver.invite_remote(&room, change).await?;
        return Ok(());
    }
    room.change_membership(change).await?;
    Ok(())
}
