//! Push rules, compiled once per user and applied to many events.
//!
//! A property path that several conditions name is looked up once per event, patterns are taken apart once,
//! and the rules of rooms and senders are found by key. Nothing of an event is copied but the strings that
//! patterns are held against, in lower case.
//!
//! Spec: client-server API, "Push Rules".

mod pattern;
#[cfg(test)]
mod tests;

use std::{cell::OnceCell, collections::BTreeMap};

use ruma::{
    EventId, OwnedRoomId, OwnedUserId, UserId,
    power_levels::NotificationPowerLevelsKey,
    push::{
        Action, AnyPushRuleRef, PredefinedContentRuleId, PredefinedOverrideRuleId, PushCondition,
        PushConditionRoomCtx, RoomMemberCountIs, Ruleset, ScalarJsonValue,
    },
};
use serde_json::Value;

use self::pattern::{Pattern, contains_word};

/// An event as push rules look at it: parsed, and nothing more.
#[derive(Clone, Debug)]
pub struct PushEvent(Value);

impl PushEvent {
    /// Parses an event.
    pub fn parse(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok().filter(Value::is_object).map(Self)
    }

    fn sender(&self) -> Option<&str> {
        self.0["sender"].as_str()
    }

    /// Whether the sender says whom the event mentions.
    ///
    /// Spec: client-server API, "User and room mentions".
    fn has_mentions(&self) -> bool {
        self.0["content"].get("m.mentions").is_some()
    }

    fn get(&self, path: &[String]) -> Option<&Value> {
        path.iter().try_fold(&self.0, |value, name| value.as_object()?.get(name))
    }
}

/// What a matching rule does.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The rule's actions.
    pub actions: Vec<Action>,
    /// Whether the event notifies.
    pub notifies: bool,
    /// Whether the event is highlighted.
    pub highlights: bool,
}

impl Outcome {
    fn new(actions: &[Action]) -> Self {
        Self {
            actions: actions.to_vec(),
            notifies: actions.iter().any(Action::should_notify),
            highlights: actions.iter().any(Action::is_highlight),
        }
    }
}

/// A user's push rules, ready to be applied.
#[derive(Debug, Default)]
pub struct CompiledRules {
    paths: Paths,
    overrides: Vec<Rule>,
    content: Vec<Rule>,
    postcontent: Vec<Rule>,
    rooms: BTreeMap<OwnedRoomId, Outcome>,
    senders: BTreeMap<OwnedUserId, Outcome>,
    underrides: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    /// Replaced by intentional mentions: does not apply to events that have any.
    is_legacy_mention: bool,
    conditions: Vec<Condition>,
    outcome: Outcome,
}

#[derive(Debug)]
enum Condition {
    Match { path: usize, pattern: Pattern, is_body: bool },
    RoomIs(Pattern),
    Is { path: usize, value: ScalarJsonValue },
    Contains { path: usize, value: ScalarJsonValue },
    DisplayName { body: usize },
    MemberCount(RoomMemberCountIs),
    MayNotify(NotificationPowerLevelsKey),
    Thread { rel_type: usize, root: usize, is_subscribed: bool },
    Never,
}

/// The property paths that rules name, each once.
#[derive(Debug, Default)]
struct Paths {
    numbers: BTreeMap<String, usize>,
    split: Vec<Vec<String>>,
}

impl Paths {
    fn number(&mut self, path: &str) -> usize {
        if let Some(number) = self.numbers.get(path) {
            return *number;
        }
        let number = self.split.len();
        self.split.push(split_path(path));
        self.numbers.insert(path.to_owned(), number);
        number
    }
}

/// Spec: appendices, "Dot-separated property paths".
fn split_path(path: &str) -> Vec<String> {
    let (mut names, mut name) = (Vec::new(), String::new());
    let mut chars = path.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '.' => names.push(std::mem::take(&mut name)),
            '\\' if matches!(chars.peek(), Some('.' | '\\')) => name.extend(chars.next()),
            other => name.push(other),
        }
    }
    names.push(name);
    names
}

const BODY: &str = "content.body";

impl CompiledRules {
    /// Compiles the rules that are switched on.
    pub fn new(rules: &Ruleset) -> Self {
        let mut compiled = Self::default();
        for rule in rules.iter().filter(|rule| rule.enabled()) {
            compiled.add(rule);
        }
        compiled
    }

    fn add(&mut self, rule: AnyPushRuleRef<'_>) {
        let outcome = Outcome::new(rule.actions());
        match rule {
            AnyPushRuleRef::Override(rule) => {
                #[expect(deprecated, reason = "clients without intentional mentions are about still")]
                let legacy = [
                    PredefinedOverrideRuleId::RoomNotif.as_str(),
                    PredefinedOverrideRuleId::ContainsDisplayName.as_str(),
                ];
                let is_legacy_mention = legacy.contains(&rule.rule_id.as_str());
                let conditions = self.conditions(&rule.conditions);
                self.overrides.push(Rule { is_legacy_mention, conditions, outcome });
            }
            AnyPushRuleRef::Content(rule) => {
                #[expect(deprecated, reason = "clients without intentional mentions are about still")]
                let legacy = PredefinedContentRuleId::ContainsUserName.as_str();
                let is_legacy_mention = rule.rule_id == legacy;
                let conditions = vec![self.event_match(BODY, &rule.pattern)];
                self.content.push(Rule { is_legacy_mention, conditions, outcome });
            }
            AnyPushRuleRef::Room(rule) => {
                self.rooms.insert(rule.rule_id.clone(), outcome);
            }
            AnyPushRuleRef::Sender(rule) => {
                self.senders.insert(rule.rule_id.clone(), outcome);
            }
            AnyPushRuleRef::PostContent(rule) => {
                let conditions = self.conditions(&rule.conditions);
                self.postcontent.push(Rule { is_legacy_mention: false, conditions, outcome });
            }
            AnyPushRuleRef::Underride(rule) => {
                let conditions = self.conditions(&rule.conditions);
                self.underrides.push(Rule { is_legacy_mention: false, conditions, outcome });
            }
            // A kind of rule that this version of the specification does not have.
            _ => {}
        }
    }

    fn conditions(&mut self, conditions: &[PushCondition]) -> Vec<Condition> {
        conditions.iter().map(|condition| self.condition(condition)).collect()
    }

    fn condition(&mut self, condition: &PushCondition) -> Condition {
        #[expect(deprecated, reason = "rules of this kind are stored")]
        match condition {
            PushCondition::EventMatch(data) => self.event_match(&data.key, &data.pattern),
            PushCondition::EventPropertyIs(data) => {
                Condition::Is { path: self.paths.number(&data.key), value: data.value.clone() }
            }
            PushCondition::EventPropertyContains(data) => {
                Condition::Contains { path: self.paths.number(&data.key), value: data.value.clone() }
            }
            PushCondition::ContainsDisplayName => Condition::DisplayName { body: self.paths.number(BODY) },
            PushCondition::RoomMemberCount(data) => Condition::MemberCount(data.is),
            PushCondition::SenderNotificationPermission(data) => Condition::MayNotify(data.key.clone()),
            PushCondition::ThreadSubscription(data) => Condition::Thread {
                rel_type: self.paths.number(r"content.m\.relates_to.rel_type"),
                root: self.paths.number(r"content.m\.relates_to.event_id"),
                is_subscribed: data.subscribed,
            },
            // "Unrecognised conditions MUST NOT match any events."
            _ => Condition::Never,
        }
    }

    fn event_match(&mut self, key: &str, pattern: &str) -> Condition {
        let pattern = Pattern::new(pattern);
        match key {
            // Events of newer room versions do not all say where they are.
            "room_id" => Condition::RoomIs(pattern),
            _ => Condition::Match { path: self.paths.number(key), pattern, is_body: key == BODY },
        }
    }

    /// What the first matching rule does; none matches a user's own events.
    ///
    /// Without `subscribed`, conditions on threads are among those that this server does not know.
    pub fn evaluate<'a>(
        &'a self,
        event: &PushEvent,
        context: &PushConditionRoomCtx,
        subscribed: Option<Subscribed<'_>>,
    ) -> Option<&'a Outcome> {
        let sender = event.sender();
        if sender == Some(context.user_id.as_str()) {
            return None;
        }
        let look = Look::new(self, event, context, subscribed);
        let first =
            |rules: &'a [Rule]| rules.iter().find(|rule| look.applies(rule)).map(|rule| &rule.outcome);
        let sender = sender.and_then(|sender| <&UserId>::try_from(sender).ok());
        first(&self.overrides)
            .or_else(|| first(&self.content))
            .or_else(|| first(&self.postcontent))
            .or_else(|| self.rooms.get(&context.room_id))
            .or_else(|| self.senders.get(sender?))
            .or_else(|| first(&self.underrides))
    }
}

/// Whether the user is subscribed to the room's thread with this root.
///
/// Spec: MSC4306.
pub type Subscribed<'a> = &'a dyn Fn(&EventId) -> bool;

/// One event under one user's eyes: remembers what was looked up.
struct Look<'a> {
    paths: &'a Paths,
    event: &'a PushEvent,
    context: &'a PushConditionRoomCtx,
    subscribed: Option<Subscribed<'a>>,
    has_mentions: bool,
    lowered: Vec<OnceCell<Option<String>>>,
}

impl<'a> Look<'a> {
    fn new(
        rules: &'a CompiledRules,
        event: &'a PushEvent,
        context: &'a PushConditionRoomCtx,
        subscribed: Option<Subscribed<'a>>,
    ) -> Self {
        Self {
            paths: &rules.paths,
            event,
            context,
            subscribed,
            has_mentions: event.has_mentions(),
            lowered: vec![OnceCell::new(); rules.paths.split.len()],
        }
    }

    fn applies(&self, rule: &Rule) -> bool {
        !(rule.is_legacy_mention && self.has_mentions)
            && rule.conditions.iter().all(|condition| self.holds(condition))
    }

    fn holds(&self, condition: &Condition) -> bool {
        match condition {
            Condition::Match { path, pattern, is_body: true } => {
                self.text(*path).is_some_and(|text| pattern.is_in(text))
            }
            Condition::Match { path, pattern, is_body: false } => {
                self.text(*path).is_some_and(|text| pattern.matches(text))
            }
            Condition::RoomIs(pattern) => pattern.matches(&self.context.room_id.as_str().to_lowercase()),
            Condition::Is { path, value } => self.value(*path).is_some_and(|found| is(value, found)),
            Condition::Contains { path, value } => self
                .value(*path)
                .and_then(Value::as_array)
                .is_some_and(|items| items.iter().any(|item| is(value, item))),
            Condition::DisplayName { body } => {
                let name = self.context.user_display_name.to_lowercase();
                self.text(*body).is_some_and(|text| contains_word(text, &name))
            }
            Condition::MemberCount(count) => {
                std::ops::RangeBounds::contains(count, &self.context.member_count)
            }
            Condition::MayNotify(key) => self.may_notify(key),
            Condition::Thread { rel_type, root, is_subscribed } => {
                self.value(*rel_type).and_then(Value::as_str) == Some("m.thread")
                    && self.is_subscribed(*root) == Some(*is_subscribed)
            }
            Condition::Never => false,
        }
    }

    fn is_subscribed(&self, root: usize) -> Option<bool> {
        let root = self.value(root)?.as_str()?;
        Some(self.subscribed?(<&EventId>::try_from(root).ok()?))
    }

    fn may_notify(&self, key: &NotificationPowerLevelsKey) -> bool {
        let sender = self.event.sender().and_then(|sender| <&UserId>::try_from(sender).ok());
        let levels = self.context.power_levels.as_ref();
        let (Some(levels), Some(sender)) = (levels, sender) else { return false };
        levels.has_sender_notification_permission(sender, key)
    }

    fn value(&self, path: usize) -> Option<&'a Value> {
        self.event.get(self.paths.split.get(path)?)
    }

    /// A string of the event in lower case.
    fn text(&self, path: usize) -> Option<&str> {
        let lowered = self.lowered.get(path)?;
        lowered.get_or_init(|| self.value(path)?.as_str().map(str::to_lowercase)).as_deref()
    }
}

fn is(wanted: &ScalarJsonValue, found: &Value) -> bool {
    match wanted {
        ScalarJsonValue::Null => found.is_null(),
        ScalarJsonValue::Bool(wanted) => found.as_bool() == Some(*wanted),
        ScalarJsonValue::Integer(wanted) => found.as_i64() == Some(i64::from(*wanted)),
        ScalarJsonValue::String(wanted) => found.as_str() == Some(wanted),
    }
}
