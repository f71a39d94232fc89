//! Changes of push rules.
//!
//! Spec: client-server API, "Push Rules".

use ruma::{
    UserId,
    push::{InsertPushRuleError, NewPushRule, RuleKind, Ruleset},
};
use serde_json::{Value, json};

use super::{SessionData, SessionError};

/// Rules that one user may have.
const RULES_MAX: usize = 10_000;

/// The rules with one more, or one in another place.
pub(super) fn insert(
    data: &SessionData,
    rule: NewPushRule,
    after: Option<&str>,
    before: Option<&str>,
) -> Result<Ruleset, SessionError> {
    let mut rules = (**data.push_rules()).clone();
    if rules.iter().count() >= RULES_MAX {
        return Err(SessionError::TooMany("push rules"));
    }
    let (kind, rule_id) = (rule.kind(), rule.rule_id().to_owned());
    if kind == RuleKind::PostContent {
        // Spec: MSC4306, "New Push Rules".
        return Err(SessionError::Invalid("there can be no other rules of this kind".to_owned()));
    }
    if [after, before].contains(&Some(rule_id.as_str())) {
        return Err(InsertPushRuleError::UnknownRuleId.into());
    }
    let was_enabled = rules.get(kind.clone(), &rule_id).map(ruma::push::AnyPushRuleRef::enabled);
    let is_moved = after.is_some() || before.is_some();
    if is_moved && was_enabled.is_some() && !rule_id.starts_with('.') {
        // Taken out first, so that places are counted among the other rules.
        rules.remove(kind.clone(), &rule_id)?;
    }
    rules.insert(rule, after, before)?;
    if let Some(enabled) = was_enabled {
        rules.set_enabled(kind, &rule_id, enabled).map_err(|_| SessionError::PushRuleNotFound)?;
    }
    Ok(rules)
}

/// The rules as clients get them: they expect a list for every kind, an empty one if need be.
pub fn by_kind(rules: &Ruleset) -> Value {
    let mut rules = serde_json::to_value(rules).expect("push rules serialise");
    if let Value::Object(kinds) = &mut rules {
        for kind in ["override", "content", "room", "sender", "underride"] {
            kinds.entry(kind).or_insert_with(|| json!([]));
        }
    }
    rules
}

/// The rules that everybody has.
///
/// Those of MSC4306 silence threads that nobody subscribed to: they are for servers where that can be done.
pub(super) fn predefined(user_id: &UserId, has_threads: bool) -> Ruleset {
    let mut rules = Ruleset::server_default(user_id);
    if !has_threads {
        rules.postcontent.clear();
    }
    rules
}

/// The user's rules as stored, brought up to date with the predefined ones.
pub(super) fn load(user_id: &UserId, json: &[u8], has_threads: bool) -> Result<Ruleset, serde_json::Error> {
    #[derive(serde::Deserialize)]
    struct Content {
        global: Ruleset,
    }
    let Content { global: mut rules } = serde_json::from_slice(json)?;
    let mut predefined = predefined(user_id, has_threads);
    let former = std::mem::take(&mut rules.postcontent);
    rules.postcontent = std::mem::take(&mut predefined.postcontent);
    for rule in former {
        // One that is not there any more has nothing to keep.
        let _ = rules.set_enabled(RuleKind::PostContent, &rule.rule_id, rule.enabled);
        let _ = rules.set_actions(RuleKind::PostContent, &rule.rule_id, rule.actions);
    }
    rules.update_with_server_default(predefined);
    // The master switch comes first even if an older store says otherwise: rules are placed after it.
    debug_assert!(rules.get(RuleKind::Override, ".m.rule.master").is_some());
    Ok(rules)
}
