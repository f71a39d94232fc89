//! Pushers, and what they have notified of.
//!
//! Spec: client-server API, "Push Notifications".

use actors::{
    push::{NotificationQuery, OtherUsers},
    session::{NewPusher, PusherKey},
};
use axum::{Json, extract::State};
use engine::id::TimelineIndex;
use http::Uri;
use serde_json::{Map, Value, json, value::RawValue};

use super::events::viewer;
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{JsonBody, Requester, device_of, form_value},
};

/// Bytes of a pushkey, as the specification has it.
const PUSHKEY_MAX: usize = 512;

/// Characters of an app ID, as the specification has it.
const APP_ID_MAX: usize = 64;

/// Bytes of a text for people.
const TEXT_MAX: usize = 1024;

/// Bytes of what is passed on to the push gateway with each notification.
const DATA_MAX: usize = 16 << 10;

/// Notifications of a page for which the client names no limit.
const LIMIT_DEFAULT: usize = 20;

/// Notifications that one page holds at most.
const LIMIT_MAX: usize = 100;

/// `GET /_matrix/client/v3/pushers`
pub async fn get_pushers(State(app): State<App>, requester: Requester) -> ApiResult<Json<Value>> {
    let data = app.homeserver().session(&requester.user_id).await?.data();
    let pushers = data.pushers().map(|(PusherKey { app_id, pushkey }, record)| {
        let mut pusher = json!({
            "app_id": app_id,
            "pushkey": pushkey,
            "kind": record.kind,
            "app_display_name": record.app_display_name,
            "device_display_name": record.device_display_name,
            "lang": record.lang,
            "data": serde_json::from_slice::<Value>(&record.data).unwrap_or_default(),
        });
        if let Some(tag) = &record.profile_tag {
            pusher["profile_tag"] = tag.as_str().into();
        }
        pusher
    });
    Ok(Json(json!({ "pushers": pushers.collect::<Vec<_>>() })))
}

/// `POST /_matrix/client/v3/pushers/set`
pub async fn set_pusher(
    State(app): State<App>,
    requester: Requester,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<Value>> {
    let homeserver = app.homeserver();
    match parse(&body, &requester)? {
        Wanted::Gone(key) => homeserver.remove_pusher(&requester.user_id, key).await?,
        Wanted::There(new, others) => homeserver.set_pusher(&requester.user_id, *new, others).await?,
    }
    Ok(Json(json!({})))
}

/// What a client wants of a pusher.
#[derive(Debug)]
enum Wanted {
    Gone(PusherKey),
    There(Box<NewPusher>, OtherUsers),
}

fn parse(body: &Map<String, Value>, requester: &Requester) -> ApiResult<Wanted> {
    let required: &[&str] = match body.get("kind") {
        Some(Value::Null) => &["app_id", "pushkey"],
        _ => &["kind", "app_id", "pushkey", "app_display_name", "device_display_name", "lang", "data"],
    };
    let missing: Vec<_> = required.iter().filter(|name| !body.contains_key(**name)).copied().collect();
    if !missing.is_empty() {
        return Err(ApiError::missing_param(format!("missing parameters: {}", missing.join(", "))));
    }
    let key = PusherKey { app_id: text(body, "app_id")?, pushkey: text(body, "pushkey")? };
    if key.app_id.chars().count() > APP_ID_MAX {
        return Err(ApiError::invalid_param(format!("app_id has more than {APP_ID_MAX} characters")));
    }
    if key.pushkey.len() > PUSHKEY_MAX {
        return Err(ApiError::invalid_param(format!("pushkey has more than {PUSHKEY_MAX} bytes")));
    }
    if body.get("kind") == Some(&Value::Null) {
        return Ok(Wanted::Gone(key));
    }
    let kind = text(body, "kind")?;
    if kind != "http" {
        return Err(ApiError::invalid_param("this server has only pushers of the kind http"));
    }
    let data = body.get("data").and_then(Value::as_object);
    let data = data.ok_or_else(|| ApiError::bad_json("data is not an object"))?;
    match data.get("url") {
        Some(Value::String(_)) => {}
        Some(_) => return Err(ApiError::bad_json("data.url is not a string")),
        None => return Err(ApiError::missing_param("missing parameters: data.url")),
    }
    if data.get("format").is_some_and(|format| !format.is_string()) {
        return Err(ApiError::bad_json("data.format is not a string"));
    }
    let data = serde_json::to_vec(data).map_err(|error| ApiError::internal(&error))?;
    if data.len() > DATA_MAX {
        return Err(ApiError::invalid_param(format!("data has more than {DATA_MAX} bytes")));
    }
    let others = match body.get("append") {
        Some(Value::Bool(true)) => OtherUsers::Keep,
        None | Some(Value::Bool(false) | Value::Null) => OtherUsers::Lose,
        Some(_) => return Err(ApiError::bad_json("append is neither true nor false")),
    };
    let new = NewPusher {
        key,
        device_id: device_of(requester)?,
        kind,
        app_display_name: text(body, "app_display_name")?,
        device_display_name: text(body, "device_display_name")?,
        profile_tag: match body.get("profile_tag") {
            None | Some(Value::Null) => None,
            Some(_) => Some(text(body, "profile_tag")?),
        },
        lang: text(body, "lang")?,
        data: data.into(),
    };
    Ok(Wanted::There(Box::new(new), others))
}

fn text(body: &Map<String, Value>, name: &str) -> ApiResult<String> {
    match body.get(name).and_then(Value::as_str) {
        Some(text) if text.len() > TEXT_MAX => {
            Err(ApiError::invalid_param(format!("{name} has more than {TEXT_MAX} bytes")))
        }
        Some(text) => Ok(text.to_owned()),
        None => Err(ApiError::bad_json(format!("{name} is not a string"))),
    }
}

/// `GET /_matrix/client/v3/notifications`
pub async fn notifications(State(app): State<App>, requester: Requester, uri: Uri) -> ApiResult<Json<Value>> {
    let query = uri.query().unwrap_or_default();
    let before = form_value(query, "from").filter(|from| !from.is_empty());
    let before =
        before.map(|from| token(&from).ok_or_else(|| ApiError::invalid_param("from is not a token")));
    let limit = match form_value(query, "limit") {
        Some(limit) => {
            limit.parse::<usize>().map_err(|_| ApiError::invalid_param("limit is not a number"))?
        }
        None => LIMIT_DEFAULT,
    };
    let query = NotificationQuery {
        before: before.transpose()?,
        limit: limit.clamp(1, LIMIT_MAX),
        only_highlights: form_value(query, "only").as_deref() == Some("highlight"),
    };
    let (found, next) = app.homeserver().notifications(&viewer(requester), query).await?;
    let notifications = found.into_iter().map(|notification| {
        let event: &RawValue = &notification.event;
        json!({
            "room_id": notification.room_id,
            "event": event,
            "actions": notification.actions,
            "read": notification.is_read,
            "ts": notification.ts,
        })
    });
    let mut answer = json!({ "notifications": notifications.collect::<Vec<_>>() });
    if let Some(next) = next {
        answer["next_token"] = format!("n1_{}", next.0).into();
    }
    Ok(Json(answer))
}

fn token(text: &str) -> Option<TimelineIndex> {
    text.strip_prefix("n1_")?.parse().ok().filter(|index| *index > i64::MIN).map(TimelineIndex)
}
