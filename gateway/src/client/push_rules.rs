//! Push rules.
//!
//! Spec: client-server API, "Push Rules".

use std::sync::Arc;

use actors::session::{SessionHandle, push_rules_by_kind};
use axum::{Json, body::Bytes, extract::State};
use ruma::{
    api::client::push::{
        PushRule, delete_pushrule, get_pushrule, get_pushrule_actions, get_pushrule_enabled,
        get_pushrules_all, get_pushrules_global_scope, set_pushrule, set_pushrule_actions,
        set_pushrule_enabled,
    },
    push::{Action, AnyPushRuleRef, NewPushRule, RuleKind, Ruleset},
};
use serde_json::{Map, Value, json};

use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Authenticated, Matrix, Requester},
};

/// The route on which ruma reads rules.
pub const ROUTE: &str = "/_matrix/client/v3/pushrules/global/{kind}/{rule}";

/// A rule's body with a list of conditions, which ruma asks for: a rule without one always matches.
pub fn with_conditions(body: Bytes) -> Bytes {
    match serde_json::from_slice::<Map<String, Value>>(&body) {
        Ok(mut rule) if !rule.contains_key("conditions") => {
            rule.insert("conditions".to_owned(), json!([]));
            Value::Object(rule).to_string().into()
        }
        _ => body,
    }
}

/// `GET /_matrix/client/v3/pushrules/`
pub async fn get_all(
    State(app): State<App>,
    Authenticated { requester, .. }: Authenticated<get_pushrules_all::v3::Request>,
) -> ApiResult<Json<Value>> {
    Ok(Json(json!({ "global": push_rules_by_kind(&*rules(&app, &requester).await?) })))
}

/// `GET /_matrix/client/v3/pushrules/global/`
pub async fn get_global(
    State(app): State<App>,
    Authenticated { requester, .. }: Authenticated<get_pushrules_global_scope::v3::Request>,
) -> ApiResult<Json<Value>> {
    Ok(Json(push_rules_by_kind(&*rules(&app, &requester).await?)))
}

/// `GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}`
pub async fn get_rule(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<get_pushrule::v3::Request>,
) -> ApiResult<Matrix<get_pushrule::v3::Response>> {
    let rule = find(&*rules(&app, &requester).await?, request.kind, &request.rule_id)?;
    Ok(Matrix(get_pushrule::v3::Response::new(rule)))
}

/// `PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}`
pub async fn set_rule(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<set_pushrule::v3::Request>,
) -> ApiResult<Matrix<set_pushrule::v3::Response>> {
    check_actions(actions(&request.rule))?;
    session(&app, &requester).await?.set_push_rule(request.rule, request.after, request.before).await?;
    Ok(Matrix(set_pushrule::v3::Response::new()))
}

/// `DELETE /_matrix/client/v3/pushrules/global/{kind}/{ruleId}`
pub async fn delete_rule(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<delete_pushrule::v3::Request>,
) -> ApiResult<Matrix<delete_pushrule::v3::Response>> {
    session(&app, &requester).await?.remove_push_rule(request.kind, request.rule_id).await?;
    Ok(Matrix(delete_pushrule::v3::Response::new()))
}

/// `GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled`
pub async fn get_enabled(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<get_pushrule_enabled::v3::Request>,
) -> ApiResult<Matrix<get_pushrule_enabled::v3::Response>> {
    let rule = find(&*rules(&app, &requester).await?, request.kind, &request.rule_id)?;
    Ok(Matrix(get_pushrule_enabled::v3::Response::new(rule.enabled)))
}

/// `PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled`
pub async fn set_enabled(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<set_pushrule_enabled::v3::Request>,
) -> ApiResult<Matrix<set_pushrule_enabled::v3::Response>> {
    let session = session(&app, &requester).await?;
    session.enable_push_rule(request.kind, request.rule_id, request.enabled).await?;
    Ok(Matrix(set_pushrule_enabled::v3::Response::new()))
}

/// `GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions`
pub async fn get_actions(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<get_pushrule_actions::v3::Request>,
) -> ApiResult<Matrix<get_pushrule_actions::v3::Response>> {
    let rule = find(&*rules(&app, &requester).await?, request.kind, &request.rule_id)?;
    Ok(Matrix(get_pushrule_actions::v3::Response::new(rule.actions)))
}

/// `PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions`
pub async fn set_actions(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<set_pushrule_actions::v3::Request>,
) -> ApiResult<Matrix<set_pushrule_actions::v3::Response>> {
    check_actions(&request.actions)?;
    let session = session(&app, &requester).await?;
    session.set_push_rule_actions(request.kind, request.rule_id, request.actions).await?;
    Ok(Matrix(set_pushrule_actions::v3::Response::new()))
}

fn actions(rule: &NewPushRule) -> &[Action] {
    match rule {
        NewPushRule::Override(rule) | NewPushRule::Underride(rule) => &rule.actions,
        NewPushRule::Content(rule) => &rule.actions,
        NewPushRule::Room(rule) => &rule.actions,
        NewPushRule::Sender(rule) => &rule.actions,
        _ => &[],
    }
}

/// Actions without effect that clients of the time before v1.7 send.
const FORMER_ACTIONS: [&str; 2] = ["dont_notify", "coalesce"];

/// Refuses actions that the specification does not know.
fn check_actions(actions: &[Action]) -> ApiResult<()> {
    let is_known = |action: &Action| {
        matches!(action, Action::Notify | Action::SetTweak(_))
            || FORMER_ACTIONS.iter().any(|former| json!(action) == *former)
    };
    let all = actions.iter().all(is_known);
    if all { Ok(()) } else { Err(ApiError::invalid_param("an action is notify or sets a tweak")) }
}

async fn session(app: &App, requester: &Requester) -> ApiResult<SessionHandle> {
    Ok(app.homeserver().session(&requester.user_id).await?)
}

async fn rules(app: &App, requester: &Requester) -> ApiResult<Arc<Ruleset>> {
    Ok(session(app, requester).await?.data().push_rules().clone())
}

fn find(rules: &Ruleset, kind: RuleKind, rule_id: &str) -> ApiResult<PushRule> {
    let rule = rules.get(kind, rule_id).ok_or_else(|| ApiError::not_found("there is no such push rule"))?;
    Ok(match rule {
        // ruma's conversion of any rule panics here.
        AnyPushRuleRef::PostContent(rule) => rule.clone().into(),
        rule => rule.to_owned().into(),
    })
}
