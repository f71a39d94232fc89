use super::*;

#[tokio::test]
async fn account_data_is_told_since_a_position() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let room_id = world.room(alice_id(), &[]).await;
    let kinds = |session: &SessionHandle, room: Option<&RoomId>, since| -> Vec<String> {
        let data = session.data();
        data.account_data_since(room, since).map(|(kind, _)| kind.to_owned()).collect()
    };
    assert_eq!(kinds(&alice, None, Position(0)), ["m.push_rules"]);
    alice.set_account_data(None, "org.example.one".to_owned(), raw(&json!({}))).await.unwrap();
    let between = world.homeserver.storage().watermark();
    assert!(alice.view().latest() <= between);
    alice.set_account_data(None, "org.example.two".to_owned(), raw(&json!({ "a": 1 }))).await.unwrap();
    alice
        .set_account_data(Some(room_id.clone()), "org.example.room".to_owned(), raw(&json!({})))
        .await
        .unwrap();
    for _ in 0..2 {
        alice.set_account_data(None, "org.example.one".to_owned(), raw(&json!({ "b": 2 }))).await.unwrap();
    }
    assert_eq!(kinds(&alice, None, between), ["org.example.two", "org.example.one"]);
    assert_eq!(kinds(&alice, Some(&room_id), between), ["org.example.room"]);
    assert_eq!(alice.view().rooms_changed(between).len(), 1);
    for kind in ["m.fully_read", "m.push_rules"] {
        let refused = alice.set_account_data(None, kind.to_owned(), raw(&json!({}))).await;
        assert!(matches!(refused, Err(SessionError::ServerManaged(_))), "{kind}");
    }
    drop(alice);
    let world = world.restarted().await;
    let alice = world.session(alice_id()).await;
    assert_eq!(kinds(&alice, None, between), ["org.example.two", "org.example.one"]);
    assert_eq!(alice.view().rooms_changed(between).len(), 1, "a restart loses no mark");
    assert!(alice.view().latest() > between);
}

#[tokio::test]
async fn a_change_wakes_those_who_wait() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let mut waiting = alice.view().subscribe();
    waiting.see();
    alice.set_account_data(None, "org.example".to_owned(), raw(&json!({}))).await.unwrap();
    assert!(waiting.has_changed());
    waiting.see();
    alice.log_in(Login::default()).await.unwrap();
    assert!(!waiting.has_changed(), "a login is no news to /sync");
}

#[tokio::test]
async fn tags_are_room_account_data() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let room_id = world.room(alice_id(), &[]).await;
    let set = async |tag: &str, info: Value| {
        alice.change(SessionChange::SetTag(room_id.clone(), tag.to_owned(), raw(&info).into())).await
    };
    set("m.favourite", json!({ "order": 0.5 })).await.unwrap();
    set("u.work", json!({})).await.unwrap();
    assert!(set(&"x".repeat(256), json!({})).await.is_err());
    alice.change(SessionChange::RemoveTag(room_id.clone(), "u.work".to_owned())).await.unwrap();
    assert_eq!(Value::Object(alice.tags(&room_id)), json!({ "m.favourite": { "order": 0.5 } }));
    let data = alice.data();
    let stored = data.account_data(Some(&room_id), "m.tag").unwrap().get();
    assert_eq!(stored, r#"{"tags":{"m.favourite":{"order":0.5}}}"#);
}

#[tokio::test]
async fn push_rules_keep_their_places() {
    use ruma::push::{NewConditionalPushRule, NewPushRule, RuleKind};
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let rule =
        |id: &str| NewPushRule::Override(NewConditionalPushRule::new(id.to_owned(), Vec::new(), Vec::new()));
    let text = |id: &str| Some(id.to_owned());
    alice.set_push_rule(rule("one"), None, None).await.unwrap();
    alice.set_push_rule(rule("two"), None, None).await.unwrap();
    alice.enable_push_rule(RuleKind::Override, "one".to_owned(), false).await.unwrap();
    let order = |session: &SessionHandle| -> Vec<String> {
        let data = session.data();
        let own = data.push_rules().override_.iter().filter(|rule| !rule.default);
        own.map(|rule| format!("{}{}", rule.rule_id, if rule.enabled { "" } else { "-" })).collect()
    };
    assert_eq!(order(&alice), ["two", "one-"]);
    alice.set_push_rule(rule("two"), text("one"), None).await.unwrap();
    assert_eq!(order(&alice), ["one-", "two"]);
    alice.set_push_rule(rule("two"), None, text("one")).await.unwrap();
    assert_eq!(order(&alice), ["two", "one-"]);
    // After the last one: the rule that moves is counted once.
    let last = alice.data().push_rules().override_.iter().next_back().unwrap().rule_id.clone();
    assert!(alice.set_push_rule(rule("two"), Some(last), None).await.is_err(), "not next to predefined ones");
    assert!(alice.set_push_rule(rule("two"), text("two"), None).await.is_err());
    assert!(alice.set_push_rule(rule(".mine"), None, None).await.is_err());
    let refused = alice.remove_push_rule(RuleKind::Override, ".m.rule.master".to_owned()).await;
    assert!(matches!(refused, Err(SessionError::PredefinedPushRule)));
    let refused = alice.remove_push_rule(RuleKind::Override, "three".to_owned()).await;
    assert!(matches!(refused, Err(SessionError::PushRuleNotFound)));
    alice.enable_push_rule(RuleKind::Override, ".m.rule.master".to_owned(), true).await.unwrap();
    drop(alice);
    let world = world.restarted().await;
    let alice = world.session(alice_id()).await;
    assert_eq!(order(&alice), ["two", "one-"]);
    let data = alice.data();
    let master = data.push_rules().get(RuleKind::Override, ".m.rule.master").unwrap().enabled();
    assert!(master, "a predefined rule stays as it was set");
    let content = data.account_data(None, "m.push_rules").unwrap().get();
    assert!(content.contains(r#""rule_id":"two""#));
}

#[tokio::test]
async fn filters_are_kept_once() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let Value::Object(filter) = json!({ "room": { "include_leave": true, "org.example": 1 } }) else {
        return;
    };
    let id = alice.add_filter(filter.clone()).await.unwrap();
    assert_eq!(alice.add_filter(filter.clone()).await.unwrap(), id);
    let uploaded = alice.filter_as_uploaded(&id).await.unwrap().unwrap();
    assert_eq!(uploaded.get(), Value::Object(filter).to_string());
    assert!(alice.filter(&id).await.unwrap().unwrap().room.include_leave);
    assert!(alice.filter("other").await.unwrap().is_none());
    assert!(world.account(bob_id()).await.filter(&id).await.unwrap().is_none());
}

#[tokio::test]
async fn account_data_have_a_budget_and_what_is_there_can_be_made_smaller() {
    let world = World::new().await;
    let alice = world.account(user_id!("@alice:a")).await;
    let large = raw(&json!({ "text": "x".repeat(1_000_000) }));
    let set = async |number: usize, content: &RawValue| {
        alice.set_account_data(None, format!("org.example.{number}"), content.to_owned()).await
    };
    for number in 0..33 {
        set(number, &large).await.unwrap();
    }
    assert!(matches!(set(33, &large).await, Err(SessionError::TooMany(_))));
    set(0, &large).await.unwrap();
    set(1, &raw(&json!({}))).await.unwrap();
    set(33, &large).await.unwrap();
    let long = alice.set_account_data(None, "x".repeat(256), raw(&json!({}))).await;
    assert!(matches!(long, Err(SessionError::Invalid(_))));
}
