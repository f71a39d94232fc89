use std::sync::Arc;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use object_store::{ObjectStoreExt, memory::InMemory};
use ruma::{ServerName, owned_server_name, server_name, user_id};
use storage::{Durability, MemoryStore, Storage};

use super::*;
use crate::{
    env::{Env, ManualClock, SeededEntropy},
    media::{Lookup, MediaConfig, Meta, Method, RemoteContent, RemoteError, RemoteMedia, Wanted},
};

/// Another server whose media are pictures with their ID as the color, and 1,000 bytes for other IDs.
struct Other;

impl RemoteMedia for Other {
    fn fetch<'a>(
        &'a self,
        _: &'a ServerName,
        media_id: &'a str,
        _: Option<Wanted>,
        _: Duration,
    ) -> BoxFuture<'a, Result<RemoteContent, RemoteError>> {
        let bytes = match media_id.parse() {
            Ok(color) => picture(color),
            Err(_) => media_id.bytes().cycle().take(1000).collect(),
        };
        let body = futures_util::stream::iter([Ok(Bytes::from(bytes))]).boxed();
        std::future::ready(Ok(RemoteContent { meta: Meta::default(), body })).boxed()
    }
}

fn picture(color: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let image = image::RgbImage::from_pixel(200, 200, image::Rgb([color; 3]));
    let image = image::DynamicImage::from(image);
    image.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
    bytes
}

struct World {
    clock: Arc<ManualClock>,
    objects: Arc<InMemory>,
    media: MediaRepository,
}

impl World {
    async fn new(config: MediaConfig) -> Self {
        let (clock, objects) = (Arc::new(ManualClock::new(1_700_000_000_000)), Arc::new(InMemory::new()));
        let env = Env { clock: clock.clone(), entropy: Arc::new(SeededEntropy::new(7)) };
        let storage = Storage::open(Arc::new(MemoryStore::new()), Durability::Always).await.unwrap();
        let config = MediaConfig { objects: objects.clone(), ..config };
        let media = MediaRepository::new(owned_server_name!("example.org"), config, env, storage);
        media.set_remote(Arc::new(Other));
        Self { clock, objects, media }
    }

    async fn look(&self, media_id: &str) {
        self.media.find(&lookup(media_id)).await.unwrap();
    }

    async fn has(&self, media_id: &str) -> bool {
        let lookup = Lookup { allow_remote: false, ..lookup(media_id) };
        self.media.find(&lookup).await.is_ok()
    }

    async fn upload(&self, bytes: Vec<u8>) -> String {
        let body = futures_util::stream::iter([Ok::<_, std::io::Error>(bytes.into())]);
        let alice = user_id!("@alice:example.org");
        let uri = self.media.upload(alice, Meta::default(), None, body).await.unwrap();
        uri.media_id().unwrap().to_owned()
    }

    async fn has_own(&self, media_id: &str) -> bool {
        self.media.find_local(media_id, Duration::ZERO, false).await.is_ok()
    }

    async fn files(&self) -> usize {
        use object_store::ObjectStore;
        self.objects.list(None).count().await
    }

    async fn remove_own(&self, media_id: &str) -> bool {
        self.media.remove(server_name!("example.org"), media_id).await.unwrap().is_some()
    }
}

fn lookup(media_id: &str) -> Lookup {
    Lookup {
        server_name: owned_server_name!("other.org"),
        media_id: media_id.to_owned(),
        timeout: Duration::ZERO,
        allow_remote: true,
        only_open: false,
    }
}

#[tokio::test]
async fn what_nobody_asked_for_in_long_goes_and_local_media_stay() {
    let age = Duration::from_secs(10 * 24 * 3600);
    let world = World::new(MediaConfig { remote_age_max: Some(age), ..MediaConfig::default() }).await;
    let own = world.upload(vec![1; 10]).await;
    for media_id in ["tea", "coffee"] {
        world.look(media_id).await;
    }
    world.clock.advance(8 * DAY_MS);
    world.look("tea").await;
    assert_eq!(world.media.sweep().await.unwrap(), Removed::default());
    world.clock.advance(4 * DAY_MS);
    assert_eq!(world.media.sweep().await.unwrap(), Removed { files: 1, bytes: 1000 });
    assert_eq!((world.has("tea").await, world.has("coffee").await), (true, false));
    world.clock.advance(400 * DAY_MS);
    world.media.sweep().await.unwrap();
    assert_eq!((world.has("tea").await, world.has_own(&own).await), (false, true));
    assert_eq!(world.files().await, 1);
}

#[tokio::test]
async fn what_is_too_much_goes_and_what_was_used_longest_ago_goes_first() {
    let world = World::new(MediaConfig { remote_size_max: Some(5000), ..MediaConfig::default() }).await;
    let own = world.upload(vec![1; 50_000]).await;
    for media_id in ["a", "b", "c", "d", "e", "f", "g"] {
        world.look(media_id).await;
        world.clock.advance(DAY_MS);
        if media_id == "e" {
            assert_eq!(world.media.sweep().await.unwrap(), Removed::default());
        }
    }
    world.look("a").await;
    // Of 7,000 bytes 4,500 may stay.
    assert_eq!(world.media.sweep().await.unwrap(), Removed { files: 3, bytes: 3000 });
    for (media_id, stays) in [("a", true), ("b", false), ("c", false), ("d", false), ("e", true), ("g", true)]
    {
        assert_eq!(world.has(media_id).await, stays, "{media_id}");
    }
    assert!(world.has_own(&own).await);
    // All of one day.
    let world = World::new(MediaConfig { remote_size_max: Some(2000), ..MediaConfig::default() }).await;
    for media_id in ["a", "b", "c"] {
        world.look(media_id).await;
    }
    assert_eq!(world.media.sweep().await.unwrap().files, 2);
}

#[tokio::test]
async fn bytes_and_thumbnails_go_with_the_last_uri_that_needs_them() {
    let world = World::new(MediaConfig::default()).await;
    let (one, other) = (world.upload(picture(9)).await, world.upload(picture(9)).await);
    world.look("9").await;
    let wanted = Wanted { width: 32, height: 32, method: Method::Crop, animated: false };
    let file = world.media.find_local(&one, Duration::ZERO, false).await.unwrap();
    world.media.thumbnail_of(file.clone(), &wanted).await.unwrap();
    // A small image is its own thumbnail.
    let large = Wanted { width: 640, height: 480, ..wanted };
    let itself = world.media.thumbnail_of(file.clone(), &large).await.unwrap();
    assert_eq!((itself.content, world.files().await), (file.content, 2));
    let alice = user_id!("@alice:example.org");
    assert_eq!(world.media.uploaded_by(alice).await.unwrap().len(), 2);
    assert!(world.remove_own(&one).await);
    assert!(!world.remove_own(&one).await);
    assert!(!world.has_own(&one).await && world.has_own(&other).await);
    assert_eq!(world.media.uploads_of(alice).await.unwrap().files, 1);
    world.remove_own(&other).await;
    assert_eq!(world.media.uploads_of(alice).await.unwrap().bytes, 0);
    assert_eq!(world.files().await, 2);
    assert_eq!(world.media.purge_remote(world.clock_now()).await.unwrap().files, 1);
    assert_eq!(world.files().await, 0);
    let thumbnails = KeyRange::all();
    let rows =
        world.media.0.storage.range(&schema::THUMBNAILS, thumbnails, Direction::Ascending, 9).await.unwrap();
    assert!(rows.is_empty());
    // Whoever had the image's bytes before makes no thumbnail of what is gone.
    assert!(world.media.thumbnail_of(file, &wanted).await.is_err());
}

impl World {
    fn clock_now(&self) -> u64 {
        use crate::env::Clock;
        self.clock.now_ms()
    }
}

#[tokio::test]
async fn uris_that_wait_in_vain_and_files_that_nothing_names_go() {
    let expiry = Duration::from_secs(3600);
    let world = World::new(MediaConfig { pending_expiry: expiry, ..MediaConfig::default() }).await;
    world.media.create(user_id!("@alice:example.org")).await.unwrap();
    assert_eq!(world.media.sweep().await.unwrap().files, 0);
    world.clock.advance(3_600_001);
    assert_eq!(world.media.sweep().await.unwrap().files, 1);
    assert_eq!(world.media.uploads_of(user_id!("@alice:example.org")).await.unwrap().pending.len(), 0);

    let own = world.upload(vec![1; 10]).await;
    let hash = "ab".repeat(32);
    let orphan = object_store::path::Path::from_iter(["content", "ab", "ab", &hash]);
    world.objects.put(&orphan, b"left".to_vec().into()).await.unwrap();
    assert_eq!(world.media.collect_orphans().await.unwrap(), 1);
    assert_eq!(world.files().await, 1);
    assert!(world.has_own(&own).await);
}

#[tokio::test]
async fn bytes_in_quarantine_are_served_under_no_name() {
    let world = World::new(MediaConfig::default()).await;
    let (one, own) = (world.upload(picture(9)).await, server_name!("example.org"));
    world.media.set_quarantine(own, &one, true).await.unwrap().unwrap();
    assert!(!world.has_own(&one).await);
    let again = world.upload(picture(9)).await;
    assert!(!world.has_own(&again).await);
    assert!(world.media.find(&lookup("9")).await.is_err());
    assert!(world.media.find(&lookup("8")).await.is_ok());
    world.media.set_quarantine(own, &again, false).await.unwrap().unwrap();
    assert!(world.has_own(&one).await && world.has("9").await);
    assert!(world.media.set_quarantine(own, "unknown", true).await.unwrap().is_none());
}
