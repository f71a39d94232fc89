//! The published crate `matrix-sdk-ui`, whose room list and timelines stand on sliding sync, as in Element X.

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt;
use matrix_sdk::{
    Client, Room, RoomState,
    ruma::{
        OwnedRoomId,
        api::client::{
            account::register,
            receipt::create_receipt::v3::ReceiptType,
            room::create_room::v3::{Request as CreateRoom, RoomPreset},
            uiaa::{AuthData, Dummy},
        },
        events::room::message::RoomMessageEventContent,
    },
};
use matrix_sdk_ui::{
    RoomListService, Timeline,
    eyeball_im::Vector,
    room_list_service::{RoomListItem, filters::new_filter_non_left},
    sync_service::SyncService,
    timeline::{EventTimelineItem, RoomExt},
};
use tests::Server;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(60);

/// A user with a room list that is kept up to date, next to what encryption needs.
struct User {
    client: Client,
    rooms: Arc<RoomListService>,
    _service: SyncService,
}

impl User {
    async fn register(server: &Server, name: &str) -> Self {
        let client = Client::builder().homeserver_url(server.url()).build().await.unwrap();
        let mut request = register::v3::Request::new();
        request.username = Some(server.unique(name));
        request.password = Some("secret enough".to_owned());
        request.auth = Some(AuthData::Dummy(Dummy::new()));
        client.matrix_auth().register(request).await.unwrap();
        client.event_cache().subscribe().unwrap();
        let service = SyncService::builder(client.clone()).build().await.unwrap();
        service.start().await;
        Self { client, rooms: service.room_list_service(), _service: service }
    }

    /// The room list, once it is as wanted.
    async fn list_until(&self, is_it: impl Fn(&Vector<RoomListItem>) -> bool) -> Vector<RoomListItem> {
        let list = self.rooms.all_rooms().await.unwrap();
        let (entries, controller) = list.entries_with_dynamic_adapters(50);
        controller.set_filter(Box::new(new_filter_non_left()));
        let mut entries = pin!(entries);
        let mut rooms = Vector::new();
        let found = async {
            loop {
                for change in entries.next().await.unwrap() {
                    change.apply(&mut rooms);
                }
                if is_it(&rooms) {
                    return;
                }
            }
        };
        timeout(LIMIT, found).await.expect("the room list becomes as wanted");
        rooms
    }

    async fn room(&self, id: &OwnedRoomId, state: RoomState) -> Room {
        let has = |room: &RoomListItem| room.room_id() == id && room.state() == state;
        self.list_until(|rooms| rooms.iter().any(has)).await;
        self.client.get_room(id).unwrap()
    }

    /// Opens a room.
    async fn timeline(&self, id: &OwnedRoomId) -> Timeline {
        let room = self.room(id, RoomState::Joined).await;
        self.rooms.subscribe_to_rooms(&[id]).await;
        room.timeline().await.unwrap()
    }
}

/// Waits for an event of a timeline.
async fn event_of(timeline: &Timeline, is_it: impl Fn(&EventTimelineItem) -> bool) -> EventTimelineItem {
    let (mut items, changes) = timeline.subscribe().await;
    let mut changes = pin!(changes);
    let found = async {
        loop {
            if let Some(found) = items.iter().filter_map(|item| item.as_event()).find(|event| is_it(event)) {
                return found.clone();
            }
            for change in changes.next().await.unwrap() {
                change.apply(&mut items);
            }
        }
    };
    timeout(LIMIT, found).await.expect("the event comes")
}

fn says(event: &EventTimelineItem, body: &str) -> bool {
    event.content().as_message().is_some_and(|message| message.body() == body)
}

#[tokio::test]
async fn room_lists_and_timelines_of_two_users() {
    let server = Server::start().await;
    let alice = User::register(&server, "alice").await;
    let bob = User::register(&server, "bob").await;
    let mut ids = Vec::new();
    for name in ["tea", "coffee", "water"] {
        let mut request = CreateRoom::new();
        request.preset = Some(RoomPreset::PrivateChat);
        request.name = Some(name.to_owned());
        request.invite = vec![bob.client.user_id().unwrap().to_owned()];
        ids.push(alice.client.create_room(request).await.unwrap().room_id().to_owned());
    }
    for id in &ids {
        let invite = bob.room(id, RoomState::Invited).await;
        invite.join().await.unwrap();
    }
    alice.list_until(|rooms| rooms.len() == 3).await;
    let named = |rooms: &Vector<RoomListItem>| {
        let names: Vec<_> = rooms.iter().filter_map(|room| room.name()).collect();
        ["tea", "coffee", "water"].iter().all(|name| names.iter().any(|known| known == name))
    };
    bob.list_until(named).await;

    let (of_alice, of_bob) = (alice.timeline(&ids[0]).await, bob.timeline(&ids[0]).await);
    of_alice.send(RoomMessageEventContent::text_plain("hello bob").into()).await.unwrap();
    let hello = event_of(&of_bob, |event| says(event, "hello bob")).await;
    assert_eq!(hello.sender(), alice.client.user_id().unwrap());
    // The room that is spoken in comes first.
    bob.list_until(|rooms| rooms.front().is_some_and(|room| *room.room_id() == ids[0])).await;

    let event_id = hello.event_id().unwrap().to_owned();
    of_bob.send_single_receipt(ReceiptType::Read, event_id).await.unwrap();
    let reader = bob.client.user_id().unwrap();
    event_of(&of_alice, |event| says(event, "hello bob") && event.read_receipts().contains_key(reader)).await;
    of_bob.toggle_reaction(&hello.identifier(), "👍").await.unwrap();
    let has_reaction = |event: &EventTimelineItem| {
        event.content().reactions().is_some_and(|reactions| reactions.contains_key("👍"))
    };
    event_of(&of_alice, |event| says(event, "hello bob") && has_reaction(event)).await;
    of_bob.send(RoomMessageEventContent::text_plain("hello alice").into()).await.unwrap();
    event_of(&of_alice, |event| says(event, "hello alice")).await;

    // A room that is opened later shows what was said before.
    let quiet = alice.timeline(&ids[2]).await;
    for number in 0..30 {
        quiet.send(RoomMessageEventContent::text_plain(format!("{number}")).into()).await.unwrap();
    }
    event_of(&quiet, |event| says(event, "29") && event.event_id().is_some()).await;
    let opened = bob.timeline(&ids[2]).await;
    event_of(&opened, |event| says(event, "29")).await;
    timeout(LIMIT, async { while !opened.paginate_backwards(20).await.unwrap() {} }).await.unwrap();
    event_of(&opened, |event| says(event, "0")).await;

    bob.client.get_room(&ids[1]).unwrap().leave().await.unwrap();
    bob.list_until(|rooms| rooms.len() == 2).await;
}

#[tokio::test]
async fn an_encrypted_conversation_over_sliding_sync() {
    let server = Server::start().await;
    let alice = User::register(&server, "alice").await;
    let bob = User::register(&server, "bob").await;
    let mut request = CreateRoom::new();
    request.preset = Some(RoomPreset::PrivateChat);
    request.invite = vec![bob.client.user_id().unwrap().to_owned()];
    let room = alice.client.create_room(request).await.unwrap();
    room.enable_encryption().await.unwrap();
    let id = room.room_id().to_owned();
    bob.room(&id, RoomState::Invited).await.join().await.unwrap();
    let (of_alice, of_bob) = (alice.timeline(&id).await, bob.timeline(&id).await);
    for (from, to, text) in [(&of_alice, &of_bob, "a secret"), (&of_bob, &of_alice, "another")] {
        from.send(RoomMessageEventContent::text_plain(text).into()).await.unwrap();
        let heard = event_of(to, |event| says(event, text)).await;
        assert!(heard.encryption_info().is_some());
    }
}
