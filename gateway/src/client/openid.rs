//! Tokens with which third parties learn who a user is.
//!
//! Spec: client-server API, "OpenID"; server-server API, "OpenID".

use axum::{
    Json,
    extract::{RawQuery, State},
};
use http::StatusCode;
use ruma::{api::client::account::request_openid_token, authentication::TokenType};
use serde_json::{Value, json};

use super::profile::own;
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Authenticated, Matrix, form_value},
};

/// `POST /_matrix/client/v3/user/{userId}/openid/request_token`
pub async fn request_token(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<request_openid_token::v3::Request>,
) -> ApiResult<Matrix<request_openid_token::v3::Response>> {
    own(request.user_id.as_str(), &requester)?;
    let session = app.homeserver().session(&requester.user_id).await?;
    let token = session.open_id_token().await?;
    Ok(Matrix(request_openid_token::v3::Response::new(
        token.token,
        TokenType::Bearer,
        app.homeserver().server_name().to_owned(),
        token.expires_in,
    )))
}

/// `GET /_matrix/federation/v1/openid/userinfo`
pub async fn user_info(State(app): State<App>, RawQuery(query): RawQuery) -> ApiResult<Json<Value>> {
    let query = query.unwrap_or_default();
    let token = form_value(&query, "access_token")
        .ok_or_else(|| ApiError::new(StatusCode::UNAUTHORIZED, "M_MISSING_TOKEN", "missing access_token"))?;
    let user = app.homeserver().open_id_user(&token).await.map_err(|error| ApiError::internal(&error))?;
    let user = user.ok_or_else(|| {
        ApiError::new(StatusCode::UNAUTHORIZED, "M_UNKNOWN_TOKEN", "the token is unknown or has expired")
    })?;
    Ok(Json(json!({ "sub": user })))
}
