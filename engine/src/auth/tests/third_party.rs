//! Invitations by third-party identifiers.

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use ed25519_dalek::{Signer, SigningKey};

use super::*;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn public(seed: u8) -> String {
    BASE64_STANDARD_NO_PAD.encode(key(seed).verifying_key().to_bytes())
}

/// What an identity server signs.
fn signed(user: &str, seed: u8) -> Value {
    let text = format!(r#"{{"mxid":"{user}","token":"token"}}"#);
    let signature = BASE64_STANDARD_NO_PAD.encode(key(seed).sign(text.as_bytes()).to_bytes());
    json!({ "mxid": user, "token": "token", "signatures": { "id.example": { "ed25519:0": signature } } })
}

fn invite(sender: &'static str, third_party_invite: &Value) -> Event {
    let content = json!({ "membership": "invite", "third_party_invite": third_party_invite });
    (sender, "m.room.member", Some(CAROL), content)
}

fn pending(content: Value) -> Event {
    (BOB, "m.room.third_party_invite", Some("token"), content)
}

/// A room in which bob asked for an invitation with the key of seed 1.
fn state(before: Option<&str>) -> Vec<Event> {
    let pending = pending(json!({ "display_name": "c", "public_key": public(1), "key_validity_url": "x" }));
    let before = before.map(|before| member(CAROL, before));
    // Third-party invites are honoured whatever the level to invite.
    let levels = levels(json!({ "invite": 100 }));
    with(joined(&[BOB]), [join_rule("invite"), levels, pending].into_iter().chain(before))
}

#[test]
fn a_signed_invite_of_the_one_who_asked_for_it() {
    let good = || json!({ "display_name": "c", "signed": signed(CAROL, 1) });
    let without = |key: &str| {
        let mut invite = good();
        invite["signed"].as_object_mut().unwrap().remove(key);
        invite
    };
    let mut other_token = good();
    other_token["signed"]["token"] = "other".into();
    run(vec![
        Case::allowed("signed", state(None), invite(BOB, &good())),
        Case::allowed("of one who left", state(Some("leave")), invite(BOB, &good())),
        Case::refused("of one banned", state(Some("ban")), invite(BOB, &good())),
        Case::refused("by another", with(state(None), joined(&[MALLORY])), invite(MALLORY, &good())),
        Case::refused("for another", state(None), invite(BOB, &json!({ "signed": signed(MALLORY, 1) }))),
        Case::refused("with another key", state(None), invite(BOB, &json!({ "signed": signed(CAROL, 2) }))),
        Case::refused("nothing signed", state(None), invite(BOB, &json!({ "display_name": "c" }))),
        Case::refused("no user", state(None), invite(BOB, &without("mxid"))),
        Case::refused("no token", state(None), invite(BOB, &without("token"))),
        Case::refused("no signatures", state(None), invite(BOB, &without("signatures"))),
        Case::refused("another token", state(None), invite(BOB, &other_token)),
        Case::refused("not asked for", joined(&[BOB]), invite(BOB, &good())),
    ]);
}

#[test]
fn any_of_the_keys_will_do() {
    let good = || json!({ "signed": signed(CAROL, 2) });
    let keys = json!([{ "public_key": public(3) }, { "public_key": public(2) }, { "public_key": "*" }]);
    let several = pending(json!({ "public_key": public(1), "public_keys": keys }));
    let none = pending(json!({ "public_key": public(1), "public_keys": [{ "public_key": public(3) }] }));
    let mut two = good();
    two["signed"]["signatures"]["other.example"] = json!({ "ed25519:1": "AAAA", "rot13:1": "x", "x": 1 });
    run(vec![
        Case::allowed("one of several", with(state(None), [several.clone()]), invite(BOB, &good())),
        Case::allowed("a bad signature beside", with(state(None), [several]), invite(BOB, &two)),
        Case::refused("none of them", with(state(None), [none]), invite(BOB, &good())),
    ]);
}

#[test]
fn asking_needs_the_level_to_invite() {
    let state = || {
        with(
            joined(&[BOB]),
            [levels(json!({ "users": { BOB: 40 }, "invite": 40, "events": {
        "m.room.third_party_invite": 100 } }))],
        )
    };
    let content = || json!({ "display_name": "c", "public_key": public(1), "key_validity_url": "x" });
    let ask = |user: &'static str| (user, "m.room.third_party_invite", Some("t"), content());
    run(vec![
        Case::allowed("enough", state(), ask(BOB)),
        Case::refused("too little", with(state(), [member(CAROL, "join")]), ask(CAROL)),
        Case::refused("from outside", state(), ask(CAROL)),
    ]);
}
