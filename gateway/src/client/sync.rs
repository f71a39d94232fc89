//! `GET /_matrix/client/v3/sync`
//!
//! Spec: client-server API, "Syncing".

use std::{sync::Arc, time::Duration};

use actors::{
    sync::{SyncRequest, SyncResponse},
    token::Token,
};
use axum::{Json, extract::State};
use engine::id::Position;
use ruma::api::client::{
    filter::FilterDefinition,
    sync::sync_events::v3::{self, Filter},
};

use super::{filters, presence::check_state};
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Authenticated, Requester},
};

/// The longest wait: proxies give up on silent connections not much later.
const TIMEOUT_MAX: Duration = Duration::from_secs(120);

/// `GET /_matrix/client/v3/sync`
pub async fn sync(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<v3::Request>,
) -> ApiResult<Json<SyncResponse>> {
    check_state(&request.set_presence)?;
    let filter = filter(&app, &requester, request.filter).await?;
    let since = request.since.as_deref().filter(|since| !since.is_empty()).map(parse_since).transpose()?;
    let (since, inbox_since) = since.map_or((None, None), |(since, inbox)| (Some(since), inbox));
    let session = app.homeserver().session(&requester.user_id).await?;
    // While the request waits, the user counts as online (or as what the client says).
    let _connected = session.connect(&request.set_presence);
    let request = SyncRequest {
        device_id: requester.device_key(),
        user_id: requester.user_id,
        since,
        inbox_since,
        takes_messages: true,
        filter: Arc::new(filter),
        full_state: request.full_state,
        use_state_after: request.use_state_after,
        timeout: request.timeout.unwrap_or_default().min(TIMEOUT_MAX),
    };
    Ok(Json(app.homeserver().sync(&request).await?))
}

/// What a client has of everything, and, if it is less, of the to-device messages.
pub fn parse_since(since: &str) -> ApiResult<(Position, Option<Position>)> {
    match since.parse() {
        Ok(Token::Sync(position)) => Ok((position, None)),
        Ok(Token::SyncInbox { position, inbox }) => Ok((position, Some(inbox))),
        _ => Err(ApiError::invalid_param("since is not a token of this server")),
    }
}

async fn filter(app: &App, requester: &Requester, filter: Option<Filter>) -> ApiResult<FilterDefinition> {
    match filter {
        None => Ok(FilterDefinition::default()),
        Some(Filter::FilterDefinition(filter)) => {
            filters::check(&filter).map_err(ApiError::invalid_param)?;
            Ok(filter)
        }
        // An ID never begins like that: these are the remains of a filter that could not be read.
        Some(Filter::FilterId(id)) if id.starts_with('{') => {
            Err(ApiError::invalid_param("the filter is not a filter in JSON"))
        }
        Some(Filter::FilterId(id)) => {
            let session = app.homeserver().session(&requester.user_id).await?;
            session.filter(&id).await?.ok_or_else(|| ApiError::invalid_param("there is no such filter"))
        }
        Some(_) => Err(ApiError::invalid_param("filter is neither a filter nor the ID of one")),
    }
}
