use super::*;
use crate::room::content;

#[test]
fn contents_of_another_shape_read_as_nothing() {
    let odd =
        Event::new("odd", ALICE, "m.room.join_rules", json!({ "join_rule": 7, "membership": [] })).pdu();
    assert_eq!(content::join_rule(Some(&odd)), "invite");
    assert_eq!(content::membership(&odd), "");
    assert_eq!(content::string(&odd, "join_rule"), None);
    assert_eq!(content::allowed_rooms(&odd), [""; 0]);
}

#[test]
fn only_conditions_on_rooms_name_rooms() {
    let allow = json!([
        { "type": "m.room_membership", "room_id": "!a:one" },
        { "type": "other", "room_id": "!b:one" },
        { "type": "m.room_membership" },
    ]);
    let rules = json!({ "join_rule": "restricted", "allow": allow });
    let rules = Event::new("rules", ALICE, "m.room.join_rules", rules).pdu();
    assert_eq!(content::allowed_rooms(&rules), ["!a:one"]);
}

#[test]
fn power_users_are_those_with_a_level_of_their_own() {
    let levels = json!({ "users": { ALICE: 100, "no user": 50, CAROL: 0 }, "users_default": 10 });
    let levels = Event::new("levels", ALICE, "m.room.power_levels", levels).pdu();
    assert_eq!(content::power_users(&levels), [ALICE, CAROL]);
}

#[test]
fn an_access_control_list_counts_as_far_as_it_is_one() {
    let server = |name: &str| ruma::OwnedServerName::try_from(name).unwrap();
    let (named, address) = (server("one.org:8448"), server("1.2.3.4"));
    for (acl, admits_named, admits_address) in [
        (json!({ "allow": ["*"] }), true, true),
        (json!({ "allow": ["*"], "allow_ip_literals": false }), true, false),
        (json!({ "allow": ["*"], "allow_ip_literals": "false" }), true, true),
        (json!({ "allow": ["*"], "allow_ip_literals": null }), true, true),
        (json!({ "allow": ["*"], "deny": "*" }), true, true),
        (json!({ "allow": [7, "*", null], "deny": [{}, "ONE.*"] }), false, true),
        (json!({ "allow": "*" }), false, false),
        (json!({}), false, false),
        (json!([]), false, false),
    ] {
        let event = Event::new("acl", ALICE, "m.room.server_acl", acl.clone()).state("").pdu();
        let acl_read = content::server_acl(&event);
        let admits = (acl_read.is_allowed(&named), acl_read.is_allowed(&address));
        assert_eq!(admits, (admits_named, admits_address), "{acl}");
    }
}
