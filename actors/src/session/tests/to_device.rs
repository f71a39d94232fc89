use ruma::{OwnedTransactionId, OwnedUserId};
use storage::{Direction, KeyRange, schema};

use super::*;
use crate::encryption::Messages;

fn requester(session: &SessionHandle, device_id: &str) -> Requester {
    let (user_id, device_id) = (session.user_id().to_owned(), Some(device_id.into()));
    Requester { user_id, device_id, is_guest: false, restriction: None, service: None }
}

fn message(to: &[&UserId]) -> Messages {
    let to_all = || [("*".to_owned(), json!({ "n": 1 }))].into();
    to.iter().map(|user| (OwnedUserId::from(*user), to_all())).collect()
}

impl World {
    /// An account with one device, which is called as the user is.
    async fn with_device(&self, user_id: &UserId) -> SessionHandle {
        let session = self.account(user_id).await;
        let login = Login { device_id: Some(user_id.localpart().into()), ..Login::default() };
        session.log_in(login).await.unwrap();
        session
    }

    async fn send(&self, from: &UserId, txn: &str, to: &[&UserId]) {
        let requester = requester(&self.session(from).await, from.localpart());
        let txn = OwnedTransactionId::from(txn);
        self.homeserver.send_to_device(&requester, "m.test", &txn, message(to)).await.unwrap();
    }

    /// How many messages wait for a user's device.
    async fn waiting(&self, user_id: &UserId) -> usize {
        let (session, last) = (self.session(user_id).await, Position(u64::MAX));
        session.waiting(user_id.localpart().into(), Position(0), last).await.unwrap().messages.len()
    }

    /// How many inboxes have noted a transaction.
    async fn notes(&self) -> usize {
        let (table, all) = (&schema::RECEIVED_MESSAGES, KeyRange::all());
        self.homeserver.storage().range(table, all, Direction::Ascending, 100).await.unwrap().len()
    }
}

#[tokio::test]
async fn a_transaction_that_a_crash_cut_short_is_done_once() {
    let world = World::new().await;
    let alice = world.with_device(alice_id()).await;
    world.with_device(bob_id()).await;
    let carol_id = user_id!("@carol:a");
    world.with_device(carol_id).await;
    // Bob has the message; the crash comes before Carol has it, and before the transaction is noted.
    let id = world.homeserver.own_id(&requester(&alice, "alice"), "m.test", "1".into());
    let sent = world.homeserver.deliver_to_device(alice_id(), "m.test", message(&[bob_id()]), &id).await;
    sent.unwrap();
    drop(alice);
    let world = world.restarted().await;
    assert_eq!((world.waiting(bob_id()).await, world.waiting(carol_id).await), (1, 0));
    world.send(alice_id(), "1", &[bob_id(), carol_id]).await;
    assert_eq!((world.waiting(bob_id()).await, world.waiting(carol_id).await), (1, 1));
    world.send(alice_id(), "1", &[bob_id(), carol_id]).await;
    world.send(alice_id(), "2", &[bob_id()]).await;
    assert_eq!((world.waiting(bob_id()).await, world.waiting(carol_id).await), (2, 1));
    assert_eq!(world.notes().await, 0, "what is done leaves notes behind");
}

#[tokio::test]
async fn a_transaction_that_comes_again_while_it_is_under_way_is_done_once() {
    let world = World::new().await;
    world.with_device(alice_id()).await;
    world.with_device(bob_id()).await;
    let send = async || world.send(alice_id(), "1", &[bob_id(), alice_id()]).await;
    tokio::join!(send(), send(), send());
    assert_eq!((world.waiting(bob_id()).await, world.waiting(alice_id()).await), (1, 1));
}
