use ruma::push::{Action, NewConditionalPushRule, NewPushRule, RuleKind};

use super::*;

#[tokio::test]
async fn push_rules_have_a_budget_and_what_is_there_can_be_made_smaller() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let set = async |id: &str, size: usize| {
        let sound = json!([{ "set_tweak": "sound", "value": "x".repeat(size) }]);
        let actions: Vec<Action> = serde_json::from_value(sound).unwrap();
        let rule = NewConditionalPushRule::new(id.to_owned(), Vec::new(), actions);
        alice.set_push_rule(NewPushRule::Override(rule), None, None).await
    };
    let stored = || alice.data().account_data(None, "m.push_rules").unwrap().get().len();
    for number in 0..10 {
        set(&number.to_string(), 100_000).await.unwrap();
    }
    assert!(matches!(set("one too many", 100_000).await, Err(SessionError::TooMany(_))));
    assert!(alice.data().push_rules().get(RuleKind::Override, "one too many").is_none());
    assert!((1_000_000..1 << 20).contains(&stored()), "{}", stored());
    set("0", 100_000).await.unwrap();
    alice.remove_push_rule(RuleKind::Override, "1".to_owned()).await.unwrap();
    set("one that fits now", 100_000).await.unwrap();
}
