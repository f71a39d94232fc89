//! Finding users, and the rooms that one shares with them.
//!
//! Spec: client-server API, "User Directory" and "Mutual Rooms".

use actors::users::FoundUser;
use axum::{Json, extract::State};
use engine::id::ShortRoomId;
use http::Uri;
use ruma::{UserId, api::client::user_directory::search_users};
use serde_json::{Value, json};

use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Authenticated, Matrix, Requester, form_value},
};

/// Users that one search returns at most.
const LIMIT_MAX: usize = 50;

/// Rooms of one page.
const ROOMS_PAGE: usize = 100;

/// `POST /_matrix/client/v3/user_directory/search`
pub async fn search(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<search_users::v3::Request>,
) -> ApiResult<Matrix<search_users::v3::Response>> {
    let limit = usize::try_from(u64::from(request.limit)).unwrap_or(LIMIT_MAX).min(LIMIT_MAX);
    let found = app.homeserver().find_users(&requester.user_id, &request.search_term, limit).await?;
    let (users, limited) = found;
    let results = users.into_iter().map(|user| {
        let FoundUser { user_id, display_name, avatar_url } = user;
        let mut result = search_users::v3::User::new(user_id);
        result.display_name = display_name;
        result.avatar_url = avatar_url.filter(|url| !url.is_empty()).map(Into::into);
        result
    });
    Ok(Matrix(search_users::v3::Response::new(results.collect(), limited)))
}

/// `GET /_matrix/client/v1/mutual_rooms`
pub async fn mutual_rooms(State(app): State<App>, requester: Requester, uri: Uri) -> ApiResult<Json<Value>> {
    mutual(&app, &requester, &uri, "from", "next_batch").await
}

/// `GET /_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms`
pub async fn mutual_rooms_unstable(
    State(app): State<App>,
    requester: Requester,
    uri: Uri,
) -> ApiResult<Json<Value>> {
    mutual(&app, &requester, &uri, "batch_token", "next_batch_token").await
}

async fn mutual(
    app: &App,
    requester: &Requester,
    uri: &Uri,
    from_name: &str,
    next_name: &str,
) -> ApiResult<Json<Value>> {
    let query = uri.query().unwrap_or_default();
    let user_id =
        form_value(query, "user_id").ok_or_else(|| ApiError::invalid_param("user_id is missing"))?;
    let user_id = UserId::parse(user_id).map_err(|_| ApiError::invalid_param("user_id is not a user ID"))?;
    if user_id.validate_strict().is_err() {
        return Err(ApiError::invalid_param("user_id does not comply with the grammar of today"));
    }
    if user_id == requester.user_id {
        return Err(ApiError::invalid_param("user_id is your own"));
    }
    let after = match form_value(query, from_name) {
        Some(from) => {
            Some(token(&from).ok_or_else(|| ApiError::invalid_param("not a token of this server"))?)
        }
        None => None,
    };
    let rooms = app.homeserver().mutual_rooms(&requester.user_id, &user_id).await?;
    let count = rooms.len();
    // A page begins after a room, not after a number of rooms: those before it may be left meanwhile.
    let mut left =
        rooms.into_iter().skip_while(|(room, _)| after.is_some_and(|after| *room <= after)).peekable();
    let page: Vec<_> = left.by_ref().take(ROOMS_PAGE).collect();
    let has_more = left.peek().is_some();
    let joined: Vec<_> = page.iter().map(|(_, room_id)| room_id).collect();
    let mut answer = json!({ "joined": joined, "count": count });
    if let Some((last, _)) = page.last().filter(|_| has_more) {
        answer[next_name] = format!("m1_{}", last.0).into();
    }
    Ok(Json(answer))
}

fn token(text: &str) -> Option<ShortRoomId> {
    text.strip_prefix("m1_")?.parse().ok().map(ShortRoomId)
}
