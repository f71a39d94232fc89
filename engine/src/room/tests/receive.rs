use std::collections::BTreeMap;

use ruma::RoomId;

use super::*;
use crate::{
    auth::AuthFailure,
    room::receive::{Advice, Evidence, Received, Standing, Verdict, recall},
};

fn message() -> Event {
    Event::new("message", BOB, "m.room.message", json!({ "body": "hello" }))
}

#[test]
fn a_known_event_is_not_judged_again() {
    let pdu = message().pdu();
    let answer = |room: &str, standing| recall(&pdu, <&RoomId>::try_from(room).unwrap(), standing);
    assert_eq!(answer(ROOM, None), None);
    assert_eq!(answer(ROOM, Some(Standing::Outlier)), None, "an outlier may yet get its place");
    assert_eq!(answer(ROOM, Some(Standing::Accepted)), Some(Received::Accepted));
    assert_eq!(answer(ROOM, Some(Standing::SoftFailed)), Some(Received::SoftFailed));
    assert!(matches!(answer(ROOM, Some(Standing::Rejected)), Some(Received::Rejected(_))));
    assert!(matches!(answer("!other:one", Some(Standing::Accepted)), Some(Received::Rejected(_))));
}

#[test]
fn a_refused_event_is_hidden_but_not_rejected() {
    let failure = || AuthFailure("no".to_owned());
    for (verdict, advice, standing) in [
        (Verdict::Accepted, Advice::Recommended, Standing::Accepted),
        (Verdict::Accepted, Advice::Refused, Standing::SoftFailed),
        (Verdict::SoftFailed(failure()), Advice::Recommended, Standing::SoftFailed),
        (Verdict::Rejected(failure()), Advice::Recommended, Standing::Rejected),
        (Verdict::Rejected(failure()), Advice::Refused, Standing::Rejected),
    ] {
        let (settled, received) = verdict.settle(advice);
        assert_eq!(settled, standing, "{verdict:?} with {advice:?}");
        let expected = match standing {
            Standing::Accepted => Received::Accepted,
            Standing::SoftFailed => Received::SoftFailed,
            _ => Received::Rejected("no".to_owned()),
        };
        assert_eq!(received, expected);
    }
}

/// What bob's message is judged by, if he is joined in the auth events, before it, and now.
fn evidence(auth: &str, before: &str, now: &str) -> Evidence {
    let create = Event::create().arc();
    let member = |membership| Event::member("bob", BOB, BOB, membership).by(&["create"]).arc();
    let state =
        |membership| BTreeMap::from([(("m.room.member".to_owned(), BOB.to_owned()), member(membership))]);
    Evidence {
        auth_events: [create.clone(), member(auth)].map(|event| (event.event_id().clone(), event)).into(),
        before: state(before),
        current: state(now),
        create: Some(create),
    }
}

#[test]
fn verdicts_follow_the_steps_of_the_checks() {
    let pdu = message().by(&["create", "bob"]).pdu();
    let judge = |auth, before, now| evidence(auth, before, now).judge(&pdu, rules("10"));
    assert_eq!(judge("join", "join", "join"), Verdict::Accepted);
    assert!(matches!(judge("leave", "join", "join"), Verdict::Rejected(_)), "step 4: its auth events");
    assert!(matches!(judge("join", "leave", "join"), Verdict::Rejected(_)), "step 5: the state before it");
    assert!(matches!(judge("join", "join", "ban"), Verdict::SoftFailed(_)), "step 6: the present state");
}
