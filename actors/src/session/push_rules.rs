//! Changes of push rules.
//!
//! Spec: client-server API, "Push Rules".

use ruma::{
    UserId,
    push::{EventMatchConditionData, InsertPushRuleError, NewPushRule, PushCondition, RuleKind, Ruleset},
};
use serde_json::{Value, json};

use super::{SessionData, SessionError};

/// Rules that one user may have.
const RULES_MAX: usize = 10_000;

/// Conditions of one rule, at most; clients make rules of one or two.
const CONDITIONS_MAX: usize = 64;

/// Bytes of a pattern, at most: a keyword, a phrase, or the longest ID there is.
const PATTERN_MAX: usize = 1024;

/// Patterns that one user may have held against the texts of events, each against each: hardly anybody has as many as 100. Rooms and
/// senders are found without.
const TEXT_PATTERNS_MAX: usize = 1000;

/// The rules with one more, or one in another place.
pub(super) fn insert(
    data: &SessionData,
    rule: NewPushRule,
    after: Option<&str>,
    before: Option<&str>,
) -> Result<Ruleset, SessionError> {
    let mut rules = (**data.push_rules()).clone();
    let (kind, rule_id) = (rule.kind(), rule.rule_id().to_owned());
    if rules.get(kind.clone(), &rule_id).is_none() && rules.iter().count() >= RULES_MAX {
        return Err(SessionError::TooMany("push rules"));
    }
    check_size(&rule)?;
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
    let patterns_before = text_patterns(data.push_rules());
    rules.insert(rule, after, before)?;
    let patterns = text_patterns(&rules);
    if patterns > patterns_before && patterns > TEXT_PATTERNS_MAX {
        return Err(SessionError::TooMany("patterns in push rules"));
    }
    if let Some(enabled) = was_enabled {
        rules.set_enabled(kind, &rule_id, enabled).map_err(|_| SessionError::PushRuleNotFound)?;
    }
    Ok(rules)
}

/// Refuses a rule that is more work than one should be.
fn check_size(rule: &NewPushRule) -> Result<(), SessionError> {
    let patterns: Vec<&str> = match rule {
        NewPushRule::Content(rule) => vec![&rule.pattern],
        NewPushRule::Override(rule) | NewPushRule::Underride(rule) => {
            if rule.conditions.len() > CONDITIONS_MAX {
                return Err(SessionError::Invalid(format!("a rule has at most {CONDITIONS_MAX} conditions")));
            }
            let matches = rule.conditions.iter().filter_map(event_match);
            matches.map(|condition| condition.pattern.as_str()).collect()
        }
        _ => Vec::new(),
    };
    if patterns.iter().any(|pattern| pattern.len() > PATTERN_MAX) {
        return Err(SessionError::Invalid(format!("a pattern has at most {PATTERN_MAX} bytes")));
    }
    Ok(())
}

fn event_match(condition: &PushCondition) -> Option<&EventMatchConditionData> {
    if let PushCondition::EventMatch(condition) = condition { Some(condition) } else { None }
}

/// How many patterns are held against texts of events.
fn text_patterns(rules: &Ruleset) -> usize {
    let conditional = rules.override_.iter().chain(&rules.underride);
    let matches = conditional.flat_map(|rule| &rule.conditions).filter_map(event_match);
    rules.content.len() + matches.filter(|condition| condition.key != "room_id").count()
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

#[cfg(test)]
mod tests {
    use engine::id::Position;
    use ruma::{
        OwnedUserId, owned_room_id, owned_user_id,
        push::{NewPatternedPushRule, NewSimplePushRule},
    };
    use storage::schema::AccountRecord;

    use super::*;

    fn keyword(number: usize) -> NewPushRule {
        let pattern = format!("word{number}");
        NewPushRule::Content(NewPatternedPushRule::new(pattern.clone(), pattern, Vec::new()))
    }

    #[test]
    fn patterns_are_counted_but_for_those_that_take_the_place_of_others() {
        let alice: OwnedUserId = owned_user_id!("@alice:a");
        let account = AccountRecord {
            password_hash: None,
            created: ruma::MilliSecondsSinceUnixEpoch(ruma::UInt::from(1_u32)),
            is_guest: false,
            is_admin: false,
            is_deactivated: false,
            is_locked: false,
            is_suspended: false,
            is_erased: false,
        };
        let mut data = SessionData::new(alice.clone(), account, false);
        let mut rules = predefined(&alice, false);
        let mut number = 0;
        while text_patterns(&rules) < TEXT_PATTERNS_MAX {
            rules.insert(keyword(number), None, None).unwrap();
            number += 1;
        }
        data.set_push_rules(rules, Position(2));
        assert!(matches!(insert(&data, keyword(number), None, None), Err(SessionError::TooMany(_))));
        insert(&data, keyword(0), None, None).unwrap();
        let room = NewSimplePushRule::new(owned_room_id!("!room:a"), Vec::new());
        insert(&data, NewPushRule::Room(room), None, None).unwrap();
    }
}
