use ruma::{UserId, owned_server_name, server_name};

use super::*;
use crate::room::census::{Census, ServerCount};

fn moved(census: &mut Census, user: &str, before: &str, after: &str, least: u64) -> Option<(String, u64)> {
    let user = <&UserId>::try_from(user).unwrap();
    let count = census.member_moved(user, before, after, least);
    count.map(|ServerCount { server, joined }| (server.to_string(), joined))
}

#[test]
fn joins_and_invites_are_counted() {
    let mut census = Census::default();
    assert_eq!(moved(&mut census, ALICE, "leave", "join", 0), Some(("one".to_owned(), 1)));
    assert_eq!(moved(&mut census, BOB, "leave", "invite", 0), None);
    assert_eq!((census.joined, census.invited), (1, 1));
    assert_eq!(moved(&mut census, BOB, "invite", "join", 0), Some(("one".to_owned(), 2)));
    assert_eq!((census.joined, census.invited), (2, 0));
    assert_eq!(moved(&mut census, BOB, "join", "join", 0), None, "a new profile moves no count");
    assert_eq!(moved(&mut census, BOB, "join", "ban", 0), Some(("one".to_owned(), 1)));
    assert_eq!(moved(&mut census, ALICE, "join", "leave", 0), Some(("one".to_owned(), 0)));
    assert_eq!(census, Census::default());
}

#[test]
fn a_server_stays_while_it_may_have_members_that_are_not_known() {
    let mut census = Census::default();
    assert_eq!(
        census.server_named(server_name!("two")),
        Some(ServerCount { server: owned_server_name!("two"), joined: 1 })
    );
    assert_eq!(census.server_named(server_name!("two")), None);
    assert_eq!(moved(&mut census, CAROL, "join", "leave", 1), Some(("two".to_owned(), 1)));
    assert!(census.has_server(server_name!("two")));
    assert_eq!(moved(&mut census, CAROL, "join", "leave", 0), Some(("two".to_owned(), 0)));
    assert!(!census.has_server(server_name!("two")));
}

#[test]
fn counts_go_no_lower_than_zero() {
    let mut census = Census::default();
    assert_eq!(moved(&mut census, ALICE, "join", "leave", 0), Some(("one".to_owned(), 0)));
    moved(&mut census, BOB, "invite", "leave", 0);
    assert_eq!(census, Census::default());
}

#[test]
fn a_later_census_names_the_servers_that_moved() {
    let members = |members: &[(&str, &str)]| {
        Census::of(
            members
                .iter()
                .map(|(user, membership)| (UserId::parse(*user).unwrap(), (*membership).to_owned())),
        )
    };
    let before = members(&[(ALICE, "join"), (CAROL, "join"), ("@dan:three", "join")]);
    let after = members(&[(ALICE, "join"), (BOB, "join"), (CAROL, "ban"), ("@dan:three", "join")]);
    let moved = before.moved_to(&after);
    let moved: Vec<_> = moved.iter().map(|count| (count.server.as_str(), count.joined)).collect();
    assert_eq!(moved, [("two", 0), ("one", 2)]);
    assert_eq!(before.moved_to(&before), []);
}
