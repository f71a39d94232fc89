//! The published crate `matrix-sdk`, with thread subscriptions switched on, as Element X uses it.

use matrix_sdk::{
    Client, Room, ThreadingSupport,
    ruma::{
        OwnedRoomId,
        api::client::{
            account::register,
            room::create_room::v3::Request as CreateRoom,
            uiaa::{AuthData, Dummy},
        },
        events::room::message::{AddMentions, ReplyMetadata, ReplyWithinThread, RoomMessageEventContent},
    },
    store::ThreadSubscriptionStatus,
};
use matrix_sdk_ui::sync_service::SyncService;
use tests::Server;

use super::SWITCH;
use crate::federation::eventually;

/// Threads, more than one response of sliding sync holds of those that matrix-sdk asks for.
const THREADS: usize = 25;

async fn client(server: &Server) -> Client {
    let threads = ThreadingSupport::Enabled { with_subscriptions: true };
    let builder = Client::builder().homeserver_url(server.url()).with_threading_support(threads);
    builder.build().await.unwrap()
}

async fn sync(client: &Client) -> SyncService {
    client.event_cache().subscribe().unwrap();
    let service = SyncService::builder(client.clone()).build().await.unwrap();
    service.start().await;
    service
}

async fn room(client: &Client, id: &OwnedRoomId) -> Room {
    eventually("the room is synced", async || client.get_room(id)).await
}

#[tokio::test]
async fn devices_agree_on_the_threads_of_their_user() {
    let server = Server::start_with_settings(&[SWITCH]).await;
    let laptop = client(&server).await;
    let mut request = register::v3::Request::new();
    let name = server.unique("alice");
    request.username = Some(name.clone());
    request.password = Some("secret enough".to_owned());
    request.auth = Some(AuthData::Dummy(Dummy::new()));
    laptop.matrix_auth().register(request).await.unwrap();
    assert!(laptop.enabled_thread_subscriptions().await.unwrap());
    let _laptop = sync(&laptop).await;
    let id = laptop.create_room(CreateRoom::new()).await.unwrap().room_id().to_owned();
    let on_laptop = room(&laptop, &id).await;
    let mut roots = Vec::new();
    for number in 0..THREADS {
        let content = RoomMessageEventContent::text_plain(format!("thread {number}"));
        let root = on_laptop.send(content).await.unwrap().response.event_id;
        on_laptop.subscribe_thread(root.clone(), None).await.unwrap();
        roots.push(root);
    }
    let known = on_laptop.fetch_thread_subscription(roots[0].clone()).await.unwrap();
    assert!(known.is_some_and(|known| !known.automatic));

    let phone = client(&server).await;
    phone.matrix_auth().login_username(&name, "secret enough").send().await.unwrap();
    let _phone = sync(&phone).await;
    let on_phone = room(&phone, &id).await;
    // As stored, so that the phone has heard of it by itself: from sliding sync, or paging back.
    let status = async |root: &_| {
        let stored = phone.state_store().load_thread_subscription(&id, root).await.unwrap();
        stored.map(|stored| stored.status)
    };
    let manual = ThreadSubscriptionStatus::Subscribed { automatic: false };
    for root in &roots {
        eventually("the phone hears of a thread", async || {
            (status(root).await == Some(manual)).then_some(())
        })
        .await;
    }
    on_laptop.unsubscribe_thread(roots[3].clone()).await.unwrap();
    let gone = Some(ThreadSubscriptionStatus::Unsubscribed);
    eventually("the phone hears of the end", async || (status(&roots[3]).await == gone).then_some(())).await;
    // A thread that the user left is left alone; the client takes the refusal for an answer.
    let reply = RoomMessageEventContent::text_plain("anybody there?");
    let reply = reply.make_for_thread(
        ReplyMetadata::new(&roots[4], laptop.user_id().unwrap(), None),
        ReplyWithinThread::No,
        AddMentions::No,
    );
    let reply = on_phone.send(reply).await.unwrap().response.event_id;
    on_phone.unsubscribe_thread(roots[4].clone()).await.unwrap();
    on_phone.subscribe_thread(roots[4].clone(), Some(reply)).await.unwrap();
    assert!(on_phone.fetch_thread_subscription(roots[4].clone()).await.unwrap().is_none());
}
