//! Changing a line of `golden.txt` means a new schema version and a migration; adding one for a new table does not.

use std::fmt::Write;

use bytes::Bytes;
use engine::{
    id::{Position, ShortEventId, ShortRoomId, TimelineIndex},
    state::{Salt, StateRoot},
};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedUserId, RoomVersionId, event_id, owned_device_id,
    owned_event_id, owned_room_alias_id, owned_room_id, owned_server_name, owned_user_id,
};

use super::*;
use crate::{Key, Value, key};

const ROOM: ShortRoomId = ShortRoomId(3);
const EVENT: ShortEventId = ShortEventId(700);
const INDEX: TimelineIndex = TimelineIndex(700);
const NOW: MilliSecondsSinceUnixEpoch = MilliSecondsSinceUnixEpoch(js_int::UInt::MIN);

fn alice() -> OwnedUserId {
    owned_user_id!("@alice:example.org")
}

fn phone() -> OwnedDeviceId {
    owned_device_id!("PHONE")
}

/// One row of every table, in the order of the schema.
fn rows() -> Vec<String> {
    let mut rows =
        vec![row(&META, &"schema_version".to_owned(), &Bytes::copy_from_slice(&1_u64.to_be_bytes()))];
    rows.extend(room_rows());
    rows.extend(user_rows());
    rows.extend(key_rows());
    rows.extend(federation_rows());
    rows.extend(media_rows());
    rows.extend(push_rows());
    rows.extend(encryption_rows());
    rows.extend(service_rows());
    rows.push(row(&PURGED_TEXTS, &EVENT, &()));
    rows
}

fn service_rows() -> Vec<String> {
    let cursor = ServiceCursorRecord { upto: Position(701), epoch: "e".to_owned(), begun: 2 };
    let txn = ServiceTxnRecord {
        id: "e.2".to_owned(),
        upto: Position(701),
        events: 1,
        body: Bytes::from_static(b"{}"),
    };
    vec![
        row(&SERVICE_CURSORS, &"irc".to_owned(), &cursor),
        row(&SERVICE_TXNS, &"irc".to_owned(), &txn),
        row(&LATE_EVENTS, &Position(701), &EVENT),
        row(&SERVICE_ROOMS, &("irc|net".to_owned(), owned_room_id!("!room:example.org")), &()),
    ]
}

fn push_rows() -> Vec<String> {
    let pusher = PusherRecord {
        device_id: phone(),
        kind: "http".to_owned(),
        app_display_name: "App".to_owned(),
        device_display_name: "Phone".to_owned(),
        profile_tag: None,
        lang: "en".to_owned(),
        data: Bytes::from_static(b"{}"),
        set: NOW,
        since: Position(5),
    };
    let cursor = PushCursorRecord {
        upto: Position(701),
        badge: 2,
        failures: 1,
        failing_since_ms: 1_000_000,
        retry_at_ms: 1_001_000,
    };
    let (app, pushkey) = ("org.example.app".to_owned(), "pushkey".to_owned());
    let unread = PushUnreadRecord { unread: 2, missed_calls: 1 };
    let report = ReportRecord {
        room_id: Some(owned_room_id!("!room:example.org")),
        event_id: Some(owned_event_id!("$event")),
        user_id: None,
        reason: "spam".to_owned(),
        reported: NOW,
    };
    vec![
        row(&PUSHERS, &(alice(), app.clone(), pushkey.clone()), &pusher),
        row(&PUSHKEYS, &(app.clone(), pushkey.clone(), alice()), &()),
        row(&PUSH_CURSORS, &(alice(), app, pushkey), &cursor),
        row(&PUSH_UNREAD, &(alice(), owned_room_id!("!room:example.org")), &unread),
        row(&PUSH_COUNTED, &alice(), &Position(701)),
        row(&REPORTS, &(alice(), Position(701)), &report),
    ]
}

/// What encryption across servers needs.
fn encryption_rows() -> Vec<String> {
    let server = owned_server_name!("example.org");
    let list = RemoteDeviceListRecord {
        stream_id: Some(6),
        is_stale: false,
        devices: [(phone(), "{}".to_owned())].into(),
        master: Some("{}".to_owned()),
        self_signing: None,
    };
    let change = DeviceListOutboxRecord {
        devices: vec![phone()],
        signing_keys: true,
        joined: Some(owned_room_id!("!room:example.org")),
    };
    vec![
        row(&REMOTE_DEVICE_LISTS, &alice(), &list),
        row(&STALE_DEVICE_LISTS, &(server.clone(), alice()), &()),
        row(&DEPARTED_USERS, &alice(), &()),
        row(&DEVICE_LIST_OUTBOX, &(Position(5), alice()), &change),
        row(&DEVICE_STREAMS, &alice(), &Position(5)),
        row(&RECEIVED_MESSAGES, &(server, "message".to_owned(), alice()), &1_000_000),
        row(&SIGNED_USERS, &(alice(), owned_user_id!("@bob:example.org")), &Position(5)),
        row(&EDU_DATES, &1_000_000, &Position(5)),
    ]
}

fn federation_rows() -> Vec<String> {
    let room_id = owned_room_id!("!room:example.org");
    let server = owned_server_name!("example.org");
    let outgoing = OutboxRecord { room_id: room_id.clone(), event: EVENT, also: vec![server.clone()] };
    let json = Bytes::from_static(b"{}");
    let key = ServerKeyRecord { key: "a2V5".to_owned(), valid_until_ms: 1_000_000 };
    let partial = PartialRoomRecord {
        room_id: room_id.clone(),
        join: owned_event_id!("$join:example.org"),
        servers: vec![server.clone()],
        completed: Some(Position(702)),
        corrected: false,
    };
    vec![
        row(&SERVER_KEYS, &(server.clone(), "ed25519:1".to_owned()), &key),
        row(&KEY_DOCUMENTS, &server, &json),
        row(&STAGED, &(room_id.clone(), Position(5), server.clone()), &json),
        row(&OUTBOX, &Position(701), &outgoing),
        row(&DESTINATIONS, &server, &DestinationRecord { failures: 3, retry_at_ms: 1_000_000 }),
        row(&CATCH_UP, &(server.clone(), room_id.clone()), &Position(701)),
        row(&EDU_QUEUE, &(server.clone(), Position(5)), &json),
        row(&PARTIAL_ROOMS, &ROOM, &partial),
        row(&PARTIAL_REFUSED, &(ROOM, Position(5)), &EVENT),
        row(&PARTIAL_HIDDEN, &(ROOM, Position(5)), &EVENT),
        row(&PARTIAL_REDACTED, &(ROOM, EVENT), &Bytes::from_static(b"{}")),
        row(&PARTIAL_TIPS, &(ROOM, EVENT), &()),
        row(&STATE_LACKS, &(ROOM, owned_event_id!("$leave"), EVENT), &StateLackRecord { room_id, server }),
    ]
}

fn key_rows() -> Vec<String> {
    let json = "{}".to_owned();
    let fallback = FallbackKeyRecord { key_id: "AAAB".to_owned(), key: json.clone(), is_used: false };
    let backup = BackupRecord {
        algorithm: "m.test".to_owned(),
        auth_data: Bytes::from_static(b"{}"),
        etag: 3,
        count: 4,
        is_deleted: false,
    };
    let one_time = OneTimeKeyRecord { key: json.clone(), uploaded: Position(5) };
    let curve = "signed_curve25519".to_owned();
    let room_id = owned_room_id!("!room:example.org");
    vec![
        row(&DEVICE_KEYS, &(alice(), phone()), &json),
        row(&ONE_TIME_KEYS, &(alice(), phone(), curve.clone(), "AAAA".to_owned()), &one_time),
        row(&FALLBACK_KEYS, &(alice(), phone(), curve), &fallback),
        row(&TO_DEVICE, &(alice(), phone(), Position(5)), &json),
        row(&CROSS_SIGNING, &(alice(), "master".to_owned(), String::new()), &json),
        row(&DEVICE_LISTS, &alice(), &Position(5)),
        row(&DEVICE_LIST_CHANGES, &Position(5), &alice()),
        row(&BACKUPS, &(alice(), 1), &backup),
        row(&BACKUP_KEYS, &(alice(), 1, room_id, "session".to_owned()), &json),
        row(&DEVICE_DATA, &(alice(), phone(), "txns".to_owned()), &Bytes::from_static(b"12345678")),
    ]
}

fn media_rows() -> Vec<String> {
    let content = ContentRecord { hash: [4; 32], size: 1000 };
    let media = MediaRecord {
        content: Some(content),
        content_type: Some("image/png".to_owned()),
        filename: Some("tea.png".to_owned()),
        uploader: Some(alice()),
        created: NOW,
        expires: None,
        last_used: NOW,
        is_open: false,
    };
    let uploader = UploaderRecord {
        bytes: 1000,
        files: 1,
        pending: [("pending".to_owned(), NOW)].into_iter().collect(),
    };
    let thumbnail = ThumbnailRecord { content, content_type: "image/png".to_owned() };
    let remote_thumbnail =
        RemoteThumbnailRecord { thumbnail: thumbnail.clone(), created: NOW, is_open: false };
    let kind = "96x96-crop".to_owned();
    let preview = UrlPreviewRecord { json: Some(Bytes::from_static(b"{}")), fetched: NOW };
    vec![
        row(&MEDIA, &(owned_server_name!("example.org"), "media".to_owned()), &media),
        row(&CONTENT_USES, &([4; 32], "mxc://example.org/media".to_owned()), &()),
        row(&UPLOADERS, &alice(), &uploader),
        row(&THUMBNAILS, &([4; 32], "96x96-crop".to_owned()), &thumbnail),
        row(&URL_PREVIEWS, &"https://example.org/".to_owned(), &preview),
        row(
            &REMOTE_THUMBNAILS,
            &(owned_server_name!("example.org"), "media".to_owned(), kind),
            &remote_thumbnail,
        ),
        row(&PREVIEW_IMAGES, &(1_700_000_000_000, "media".to_owned()), &()),
        row(&QUARANTINE, &[4; 32], &1_700_000_000_000),
    ]
}

fn room_rows() -> Vec<String> {
    let facts = RoomFactsRecord {
        root: StateRoot::default(),
        room_type: Some("m.space".to_owned()),
        is_encrypted: true,
    };
    let face = PublicFaceRecord {
        root: StateRoot::default(),
        name: Some("tea".to_owned()),
        topic: None,
        canonical_alias: Some(owned_room_alias_id!("#tea:example.org")),
        avatar_url: None,
        join_rule: "public".to_owned(),
        room_type: None,
        world_readable: true,
        guest_can_join: false,
        federates: None,
    };
    let room_id = owned_room_id!("!room:example.org");
    let alias = owned_room_alias_id!("#tea:example.org");
    let event_id = owned_event_id!("$event");
    let receipt =
        ReceiptRecord { event_id: event_id.clone(), index: INDEX, ts: NOW, position: Position(701) };
    let membership = MembershipRecord {
        room: ROOM,
        membership: "join".to_owned(),
        event: EVENT,
        since: INDEX,
        left: None,
        forgotten: false,
    };
    let stripped = StrippedStateRecord { events: Bytes::from_static(b"[]") };
    let gap = GapRecord {
        missing: vec![owned_event_id!("$missing")],
        floor: TimelineIndex(600),
        origin: owned_server_name!("example.org"),
        root: None,
    };
    let txn = (ROOM, alice(), phone(), "m.room.message txn".to_owned());
    let alias_record = AliasRecord { room_id: room_id.clone(), creator: alice() };
    vec![
        row(&ROOM_IDS, &room_id, &ROOM),
        row(&ROOMS, &ROOM, &room_record()),
        row(&OLD_EVENT_IDS, &event_id, &EVENT),
        row(&EVENT_IDS, &EventIdHash::from(&*event_id), &EVENT),
        row(&EVENTS, &EVENT, &event_record()),
        row(&TIMELINE, &(ROOM, INDEX), &EVENT),
        row(&STATE_NODES, &[7; 16], &Bytes::from_static(b"node")),
        row(&OLD_TXN_IDS, &txn, &event_id),
        row(&TXN_IDS, &(20_000, txn), &event_id),
        row(&TXN_FILTERS, &20_000, &Bytes::from_static(b"filter")),
        row(&MEMBERSHIPS, &(alice(), room_id.clone()), &membership),
        row(&RECEIPTS, &(ROOM, alice(), "main".to_owned()), &receipt),
        row(&ALIASES, &alias, &alias_record),
        row(&ROOM_ALIASES, &(room_id.clone(), alias), &()),
        row(&PUBLIC_ROOMS, &room_id, &()),
        row(&EVENTS_BY_TIME, &(ROOM, 1_000_000, EVENT), &()),
        row(&EFFECTS, &("profile".to_owned(), "@alice:example.org".to_owned()), &Position(5)),
        row(&ERASED_USERS, &alice(), &Position(5)),
        row(&PUBLIC_FACES, &ROOM, &face),
        row(&ROOM_FACTS, &ROOM, &facts),
        row(&RELATIONS, &(ROOM, event_id.clone(), "m.thread".to_owned(), INDEX), &relation_record()),
        row(&ANNOTATIONS, &(ROOM, event_id.clone(), alice(), [3; 32]), &EVENT),
        row(&THREADS, &(ROOM, INDEX), &event_id),
        row(&USER_WORDS, &("alice".to_owned(), alice().to_string(), ROOM), &()),
        row(&DIRECTORY_ROOMS, &ROOM, &DirectoryRoomRecord { root: StateRoot::default(), is_open: true }),
        row(&USER_ROOMS, &(alice(), ROOM), &EVENT),
        row(&ROOM_SERVERS, &(ROOM, owned_server_name!("example.org")), &2),
        row(&STRIPPED_STATES, &(alice(), owned_room_id!("!room:example.org")), &stripped),
        row(&EARLY_REDACTIONS, &(ROOM, owned_event_id!("$event")), &EVENT),
        row(&FURTHER_REDACTIONS, &(ROOM, owned_event_id!("$event"), EVENT), &()),
        row(&GAPS, &(ROOM, INDEX), &gap),
        row(&STATE_RESETS, &(ROOM, Position(5)), &Bytes::from_static(b"{}")),
    ]
}

fn room_record() -> RoomRecord {
    RoomRecord {
        room_id: owned_room_id!("!room:example.org"),
        version: RoomVersionId::V12,
        salt: Salt(9),
        root: StateRoot::default(),
        tips: vec![EVENT],
        latest: INDEX,
        touched: Position(701),
        joined: 2,
        invited: 1,
    }
}

fn event_record() -> EventRecord {
    EventRecord {
        room: ROOM,
        event_id: event_id!("$event").to_owned(),
        json: Bytes::from_static(b"{}"),
        index: Some(INDEX),
        standing: Standing::Accepted,
        before: StateRoot::default(),
        after: StateRoot::default(),
        replaces: None,
        redacted_by: Some(ShortEventId(701)),
        sent_by: Some(SentBy { device_id: phone(), txn_id: "txn".to_owned() }),
        rank: 4,
        has_relations: false,
        lacks_members: false,
    }
}

fn relation_record() -> RelationRecord {
    RelationRecord {
        event: EVENT,
        event_id: owned_event_id!("$event"),
        kind: "m.room.message".to_owned(),
        sender: alice(),
        sent_ms: 1_000_000,
        can_replace: false,
    }
}

fn user_rows() -> Vec<String> {
    let room_id = owned_room_id!("!room:example.org");
    let event_id = owned_event_id!("$event");
    let receipt = ReceiptRecord { event_id, index: INDEX, ts: NOW, position: Position(701) };
    let account = AccountRecord {
        password_hash: Some("hash".to_owned()),
        created: NOW,
        is_guest: false,
        is_admin: false,
        is_deactivated: false,
        is_erased: false,
        is_locked: false,
        is_suspended: false,
    };
    let device = DeviceRecord {
        display_name: Some("phone".to_owned()),
        last_seen: Some(NOW),
        last_seen_ip: None,
        access_token: Some([1; 32]),
        refresh_token: None,
        previous_refresh_token: None,
    };
    let token = TokenRecord {
        user_id: alice(),
        device_id: phone(),
        kind: TokenKind::Access,
        expires: None,
        is_guest: false,
    };
    let data = AccountDataRecord { content: Bytes::from_static(b"{}"), position: Position(5) };
    let delayed = DelayedEventRecord {
        user_id: alice(),
        device_id: phone(),
        txn_id: "txn".to_owned(),
        room_id: room_id.clone(),
        kind: "m.room.message".to_owned(),
        state_key: None,
        content: Bytes::from_static(b"{}"),
        delay_ms: 5_000,
        since_ms: 1_000_000,
        held: None,
        stage: DelayedStage::Scheduled,
    };
    let sent = SlidingRoomRecord { upto: Some(Position(5)), limit: 20, required: 0, is_direct: true };
    let generation = SlidingGenerationRecord {
        id: 9,
        required: vec![vec![("m.room.name".to_owned(), String::new())]],
        rooms: [(ROOM, sent)].into(),
    };
    let thread =
        ThreadSubscriptionRecord { position: Position(5), status: ThreadStatus::Unsubscribed(Position(6)) };
    let sliding = SlidingConnectionRecord { touched: Position(701), generations: vec![generation] };
    vec![
        row(&ACCOUNTS, &alice(), &account),
        row(&DEVICES, &(alice(), phone()), &device),
        row(&TOKENS, &[1; 32], &token),
        row(&OPENID_TOKENS, &(1_000_000, [2; 32]), &alice()),
        row(&LOGIN_TOKENS, &(1_000_000, [2; 32]), &alice()),
        row(&ACCOUNT_DATA, &(alice(), String::new(), "m.direct".to_owned()), &data),
        row(&PROFILES, &(alice(), "displayname".to_owned()), &"\"Alice\"".to_owned()),
        row(&PROFILE_WORDS, &("alice".to_owned(), alice().to_string()), &()),
        row(&FILTERS, &(alice(), "1".to_owned()), &"{}".to_owned()),
        row(&DELAYED_EVENTS, &"delay".to_owned(), &delayed),
        row(&DELAYED_OF_USERS, &(alice(), "delay".to_owned()), &()),
        row(&DELAYED_DUE, &(1_005_000, "delay".to_owned()), &()),
        row(&NOTICE_ROOMS, &alice(), &room_id),
        row(&PRIVATE_RECEIPTS, &(alice(), room_id.clone(), "main".to_owned()), &receipt),
        row(&THREAD_SUBSCRIPTIONS, &(alice(), room_id, owned_event_id!("$event")), &thread),
        row(&SLIDING_CONNECTIONS, &(alice(), phone(), "main".to_owned()), &sliding),
    ]
}

/// The line of a table: its number, name and types, then a key and its value in hexadecimal.
fn row<K: Key + PartialEq + std::fmt::Debug, V: Value>(table: &Table<K, V>, key: &K, value: &V) -> String {
    let info = TABLES.iter().find(|info| info.id == table.id()).unwrap();
    let key_bytes = key::encode::<K, K>(key);
    assert_eq!(key::decode::<K>(&key_bytes).as_ref(), Ok(key));
    let value = value.encode().unwrap();
    let (key, value) = (hex(&key_bytes), hex(&value));
    format!("{} {}: {} => {} | {key} = {value}", info.id.0, info.name, info.key, info.value)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

#[test]
fn the_tables_and_their_encodings_are_as_recorded() {
    let rows = rows();
    for table in TABLES {
        let line = format!("{} {}: ", table.id.0, table.name);
        assert!(rows.iter().any(|row| row.starts_with(&line)), "{} has no row in `rows`", table.name);
    }
    let recorded: Vec<&str> = include_str!("golden.txt").lines().collect();
    assert!(rows == recorded, "if the change is meant, `golden.txt` becomes:\n{}\n", rows.join("\n"));
}

#[test]
fn a_number_used_twice_or_outside_the_schema_is_refused() {
    check_ids(&[1, 2, 239]);
    for wrong in [&[1, 1][..], &[0], &[240]] {
        assert!(std::panic::catch_unwind(|| check_ids(wrong)).is_err(), "{wrong:?}");
    }
}
