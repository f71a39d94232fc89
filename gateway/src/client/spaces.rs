//! The rooms of a space.
//!
//! Spec: client-server API, "Spaces".

use actors::spaces::SpaceQuery;
use axum::{Json, extract::State};
use ruma::{UInt, api::client::space::get_hierarchy};
use serde::Serialize;

use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::Authenticated,
    told::ToldSpace,
};

/// Rooms of a page for which the client names no limit, and at most.
const LIMIT: usize = 50;

/// A part of a space's tree.
#[derive(Serialize)]
pub struct Hierarchy {
    rooms: Vec<ToldSpace>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<String>,
}

/// `GET /_matrix/client/v1/rooms/{roomId}/hierarchy`
pub async fn hierarchy(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<get_hierarchy::v1::Request>,
) -> ApiResult<Json<Hierarchy>> {
    let limit = match request.limit {
        Some(UInt::MIN) => return Err(ApiError::invalid_param("limit must be greater than zero")),
        limit => limit.map_or(LIMIT, number).min(LIMIT),
    };
    let terms = Terms { suggested_only: request.suggested_only, max_depth: request.max_depth.map(number) };
    let from = request.from.as_deref().filter(|from| !from.is_empty());
    let skip = from.map_or(Ok(0), |from| terms.skipped_by(from))?;
    let query = SpaceQuery {
        user_id: &requester.user_id,
        room_id: &request.room_id,
        suggested_only: terms.suggested_only,
        max_depth: terms.max_depth,
        skip,
        limit,
    };
    let page = app.homeserver().space(&query, app.homeserver()).await?;
    let next_batch = page.has_more.then(|| terms.token(skip + page.rooms.len()));
    Ok(Json(Hierarchy { rooms: page.rooms.into_iter().map(ToldSpace::from).collect(), next_batch }))
}

fn number(number: UInt) -> usize {
    usize::try_from(u64::from(number)).unwrap_or(usize::MAX)
}

/// What must be the same for all pages of a walk.
struct Terms {
    suggested_only: bool,
    max_depth: Option<usize>,
}

impl Terms {
    /// The token for what follows the first rooms of a walk.
    fn token(&self, skip: usize) -> String {
        format!("{}_{skip}", self.prefix())
    }

    fn prefix(&self) -> String {
        let depth = self.max_depth.map_or_else(|| "all".to_owned(), |depth| depth.to_string());
        format!("h1_{}_{depth}", if self.suggested_only { "suggested" } else { "any" })
    }

    fn skipped_by(&self, token: &str) -> ApiResult<usize> {
        let skip = token.strip_prefix(&self.prefix()).and_then(|rest| rest.strip_prefix('_')?.parse().ok());
        skip.ok_or_else(|| ApiError::invalid_param("from does not go on from a page with these parameters"))
    }
}
