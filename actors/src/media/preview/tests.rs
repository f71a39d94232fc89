use std::{collections::BTreeMap, io::Cursor, sync::Mutex};

use ruma::owned_server_name;
use storage::{Direction, Durability, KeyRange, MemoryStore, Storage};

use super::*;
use crate::{
    env::{Env, ManualClock, SeededEntropy},
    media::MediaConfig,
};

/// Pages that stand as long as the test says.
#[derive(Default)]
struct Site {
    pages: Mutex<BTreeMap<&'static str, (&'static str, Vec<u8>)>>,
    asked: Mutex<Vec<String>>,
}

impl Site {
    fn has(&self, url: &'static str, content_type: &'static str, body: impl Into<Vec<u8>>) {
        self.pages.lock().unwrap().insert(url, (content_type, body.into()));
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

impl PageClient for Site {
    fn get<'a>(&'a self, url: &'a Url, _: &'static str) -> BoxFuture<'a, Result<Page, PageError>> {
        Box::pin(async move {
            self.asked.lock().unwrap().push(url.to_string());
            // Others come in between.
            tokio::task::yield_now().await;
            if url.host_str() == Some("refused.org") {
                return Err(PageError::Refused("its address is not public".to_owned()));
            }
            let page = self.pages.lock().unwrap().get(url.as_str()).cloned();
            let (content_type, body) = page.ok_or(PageError::Failed("404".to_owned()))?;
            let chunks: Vec<_> = body.chunks(1000).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
            let body = futures_util::stream::iter(chunks).boxed();
            Ok(Page { url: url.clone(), content_type: content_type.to_owned(), body })
        })
    }
}

struct World {
    site: Arc<Site>,
    clock: Arc<ManualClock>,
    media: MediaRepository,
}

impl World {
    async fn new() -> Self {
        let (site, clock) = (Arc::new(Site::default()), Arc::new(ManualClock::new(1_700_000_000_000)));
        let env = Env { clock: clock.clone(), entropy: Arc::new(SeededEntropy::new(7)) };
        let storage = Storage::open(Arc::new(MemoryStore::new()), Durability::Always).await.unwrap();
        let config = MediaConfig { pages: Some(site.clone()), ..MediaConfig::default() };
        let media = MediaRepository::new(owned_server_name!("example.org"), config, env, storage);
        Self { site, clock, media }
    }

    async fn preview(&self, url: &str) -> Value {
        serde_json::from_slice(&self.media.preview(url).await.unwrap()).unwrap()
    }

    async fn fails(&self, url: &str) -> PreviewError {
        match self.media.preview(url).await {
            Err(MediaError::Preview(error)) => error,
            other => panic!("{url}: {other:?}"),
        }
    }

    async fn has(&self, uri: &Value) -> bool {
        let media_id = uri.as_str().unwrap().strip_prefix("mxc://example.org/").unwrap();
        self.media.find_local(media_id, Duration::ZERO, false).await.is_ok()
    }
}

fn picture() -> Vec<u8> {
    let mut bytes = Vec::new();
    let image = image::DynamicImage::new_rgb8(64, 48);
    image.write_to(&mut Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
    bytes
}

const PAGE: &str = "https://site.org/page";

#[tokio::test]
async fn a_page_is_looked_at_once_with_its_image_and_again_when_it_is_old() {
    let world = World::new().await;
    let page = "<meta property=og:title content=Tea><meta property=og:image content=/tea.png>";
    world.site.has(PAGE, "text/html; charset=utf-8", page);
    // The image is what its bytes are.
    world.site.has("https://site.org/tea.png", "image/jpeg", picture());
    let asked = (0..5).map(|number| {
        let url = format!("{PAGE}#{number}");
        let media = world.media.clone();
        async move { media.preview(&url).await.unwrap() }
    });
    let previews = futures_util::future::join_all(asked).await;
    let preview: Value = serde_json::from_slice(&previews[4]).unwrap();
    let expected = serde_json::json!({
        "og:title": "Tea", "og:image": preview["og:image"], "og:image:type": "image/png", "og:image:width": 64,
        "og:image:height": 48, "matrix:image:size": picture().len(),
    });
    assert_eq!(preview, expected);
    assert!(world.has(&preview["og:image"]).await);
    assert_eq!(world.site.asked(), [PAGE, "https://site.org/tea.png"]);
    world.clock.advance(24 * 3_600_000);
    world.site.has(PAGE, "text/html", "<title>Coffee");
    assert_eq!(world.preview(PAGE).await, serde_json::json!({ "og:title": "Coffee" }));
    // The image stays a while for those who have the old preview.
    world.media.sweep().await.unwrap();
    assert!(world.has(&preview["og:image"]).await);
    world.clock.advance(8 * 24 * 3_600_000);
    world.media.sweep().await.unwrap();
    assert!(!world.has(&preview["og:image"]).await);
    for rows in [
        world
            .media
            .0
            .storage
            .range(&schema::PREVIEW_IMAGES, KeyRange::all(), Direction::Ascending, 9)
            .await
            .unwrap()
            .len(),
        world
            .media
            .0
            .storage
            .range(&schema::URL_PREVIEWS, KeyRange::all(), Direction::Ascending, 9)
            .await
            .unwrap()
            .len(),
    ] {
        assert_eq!(rows, 0);
    }
}

#[tokio::test]
async fn each_kind_of_page_has_what_it_can_have() {
    let world = World::new().await;
    world.site.has(PAGE, "image/png", picture());
    assert_eq!(world.preview(PAGE).await["og:image:width"], 64);
    world.site.has("https://site.org/text", "text/plain", "tea");
    assert_eq!(world.preview("https://site.org/text").await, serde_json::json!({}));
    // What calls itself an image and is none leaves nothing.
    world.site.has("https://site.org/no.png", "image/png", "tea");
    assert_eq!(world.preview("https://site.org/no.png").await, serde_json::json!({}));
    let embeds = "<title>Page</title><link rel=alternate type=application/json+oembed href=/oembed>";
    world.site.has("https://site.org/video", "text/html", embeds);
    let embedded = r#"{"type":"video","title":"A film","provider_name":"Site","thumbnail_url":"/still.png"}"#;
    world.site.has("https://site.org/oembed", "application/json", embedded);
    world.site.has("https://site.org/still.png", "image/png", picture());
    let preview = world.preview("https://site.org/video").await;
    assert_eq!((&preview["og:title"], &preview["og:site_name"]), (&"A film".into(), &"Site".into()));
    assert!(world.has(&preview["og:image"]).await);
    // What is missing beside the page is left out.
    world.site.has(
        "https://site.org/poor",
        "text/html",
        "<title>Poor</title><meta property=og:image content=/gone.png>",
    );
    assert_eq!(world.preview("https://site.org/poor").await, serde_json::json!({ "og:title": "Poor" }));
    // A page without end is read up to a limit.
    let endless =
        format!("<title>Long</title>{}<meta name=twitter:title content=late>", " ".repeat(2 * PAGE_MAX));
    world.site.has("https://site.org/long", "text/html", endless);
    assert_eq!(world.preview("https://site.org/long").await, serde_json::json!({ "og:title": "Long" }));
}

#[tokio::test]
async fn failures_are_told_apart_and_remembered_for_a_while() {
    let world = World::new().await;
    for wrong in [
        "",
        "tea",
        "file:///etc/passwd",
        "ftp://site.org/",
        "https://alice:secret@site.org/",
        "matrix:u/alice:site.org",
    ] {
        assert!(matches!(world.fails(wrong).await, PreviewError::Invalid(_)), "{wrong}");
    }
    assert!(matches!(
        world.fails(&format!("{PAGE}?{}", "a".repeat(URL_MAX))).await,
        PreviewError::Invalid(_)
    ));
    assert!(world.site.asked().is_empty());
    for _ in 0..2 {
        assert!(matches!(world.fails(PAGE).await, PreviewError::Page(PageError::Failed(_))));
        assert!(matches!(
            world.fails("http://refused.org/").await,
            PreviewError::Page(PageError::Refused(_))
        ));
    }
    assert_eq!(world.site.asked(), [PAGE, "http://refused.org/", "http://refused.org/"]);
    world.site.has(PAGE, "text/html", "<title>Tea");
    world.fails(PAGE).await;
    world.clock.advance(FAILURE_MS);
    assert_eq!(world.preview(PAGE).await["og:title"], "Tea");

    let env = Env { clock: world.clock.clone(), entropy: Arc::new(SeededEntropy::new(8)) };
    let storage = Storage::open(Arc::new(MemoryStore::new()), Durability::Always).await.unwrap();
    let media = MediaRepository::new(owned_server_name!("example.org"), MediaConfig::default(), env, storage);
    assert!(matches!(media.preview(PAGE).await, Err(MediaError::Preview(PreviewError::Off))));
}
