use std::{collections::BTreeMap, sync::Mutex};

use bytes::Bytes;
use http::HeaderValue;
use ruma::{owned_server_name, server_name};
use storage::{Durability, MemoryStore, Storage};

use super::*;
use crate::{
    env::{Env, ManualClock, SeededEntropy},
    federation::FederationResponse,
    media::{Lookup, MediaConfig, MediaError, MediaFile, MediaRepository},
};

type Answer = Result<(&'static str, Vec<u8>), FederationError>;

/// Another server that answers paths as it was told, and notes what it is asked.
#[derive(Default)]
struct Other {
    answers: Mutex<BTreeMap<&'static str, Answer>>,
    asked: Mutex<Vec<String>>,
}

impl Other {
    fn answers(&self, path: &'static str, answer: Answer) {
        self.answers.lock().unwrap().insert(path, answer);
    }

    /// Answers with media of these headers.
    fn sends(&self, path: &'static str, headers: &str, content: &[u8]) {
        self.answers(path, Ok(parts(headers, content)));
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    fn answer(&self, path: &str) -> Answer {
        self.asked.lock().unwrap().push(path.to_owned());
        let answers = self.answers.lock().unwrap();
        let answer = answers.iter().find(|(known, _)| path.starts_with(**known));
        answer.map_or(Err(status(404, "M_NOT_FOUND")), |(_, answer)| answer.clone())
    }
}

impl FederationClient for Other {
    fn request<'a>(
        &'a self,
        _: &'a ServerName,
        request: FederationRequest,
    ) -> BoxFuture<'a, Result<FederationResponse, FederationError>> {
        Box::pin(async move {
            // Others come in between.
            tokio::task::yield_now().await;
            let (content_type, body) = self.answer(&request.path_and_query)?;
            let content_type = Some(HeaderValue::from_static(content_type));
            Ok(FederationResponse { status: StatusCode::OK, content_type, body: body.into() })
        })
    }

    fn fetch<'a>(
        &'a self,
        url: &'a str,
        _: Duration,
        _: usize,
    ) -> BoxFuture<'a, Result<FederationStream, FederationError>> {
        Box::pin(async move {
            let (content_type, body) = self.answer(url)?;
            let headers =
                [(header::CONTENT_TYPE, HeaderValue::from_static(content_type))].into_iter().collect();
            let body = futures_util::stream::iter([Ok(Bytes::from(body))]).boxed();
            Ok(FederationStream { headers, body })
        })
    }
}

fn status(status: u16, errcode: &str) -> FederationError {
    let status = StatusCode::from_u16(status).unwrap();
    let (errcode, error) = (errcode.to_owned(), String::new());
    FederationError::Status { status, errcode, error, retry_after: None, body: serde_json::Map::new() }
}

fn parts(headers: &str, content: &[u8]) -> (&'static str, Vec<u8>) {
    let head = format!("--x\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--x\r\n{headers}\r\n\r\n");
    ("multipart/mixed; boundary=x", [head.as_bytes(), content, b"\r\n--x--"].concat())
}

struct World {
    other: Arc<Other>,
    clock: Arc<ManualClock>,
    media: MediaRepository,
}

const SIZE_MAX: usize = 300 << 10;

impl World {
    async fn new() -> Self {
        let (other, clock) = (Arc::new(Other::default()), Arc::new(ManualClock::new(1_700_000_000_000)));
        let env = Env { clock: clock.clone(), entropy: Arc::new(SeededEntropy::new(7)) };
        let storage = Storage::open(Arc::new(MemoryStore::new()), Durability::Always).await.unwrap();
        let config = MediaConfig { upload_size_max: SIZE_MAX as u64, ..MediaConfig::default() };
        let media = MediaRepository::new(owned_server_name!("example.org"), config, env, storage);
        media.set_remote(Arc::new(FederatedMedia::new(other.clone(), SIZE_MAX as u64)));
        Self { other, clock, media }
    }

    fn lookup(media_id: &str) -> Lookup {
        Lookup {
            server_name: owned_server_name!("other.org"),
            media_id: media_id.to_owned(),
            timeout: Duration::from_millis(500),
            allow_remote: true,
            only_open: false,
        }
    }

    async fn find(&self, media_id: &str) -> Result<MediaFile, MediaError> {
        self.media.find(&Self::lookup(media_id)).await
    }

    async fn fails(&self, media_id: &str) -> RemoteError {
        match self.find(media_id).await {
            Err(MediaError::Remote(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    async fn bytes(&self, file: &MediaFile) -> Vec<u8> {
        let body = self.media.contents().read(&file.content, 0..file.content.size).await.unwrap();
        let parts: Vec<_> = body.map(Result::unwrap).collect().await;
        parts.concat()
    }
}

const NEW: &str = "/_matrix/federation/v1/media/download/tea?";

#[tokio::test]
async fn media_are_fetched_once_and_then_here() {
    let world = World::new().await;
    let headers = "Content-Type: text/plain\r\nContent-Disposition: attachment; filename=\"a b.txt\"";
    world.other.sends(NEW, headers, b"some tea");
    let many = futures_util::future::join_all((0..10).map(|_| world.find("tea"))).await;
    for file in many {
        let file = file.unwrap();
        assert_eq!(file.content_type.as_deref(), Some("text/plain"));
        assert_eq!(file.filename.as_deref(), Some("a b.txt"));
        assert_eq!(world.bytes(&file).await, b"some tea");
    }
    assert_eq!(world.other.asked(), [format!("{NEW}timeout_ms=500")]);
    let local = Lookup { allow_remote: false, ..World::lookup("other") };
    assert!(matches!(world.media.find(&local).await, Err(MediaError::NotFound)));
    assert!(world.other.asked().is_empty());
}

#[tokio::test]
async fn a_server_may_keep_them_elsewhere() {
    let world = World::new().await;
    world.other.sends(NEW, "Location: https://cdn.other.org/tea", b"");
    world.other.answers("https://cdn.other.org/tea", Ok(("image/png", b"a picture".to_vec())));
    let file = world.find("tea").await.unwrap();
    assert_eq!(file.content_type.as_deref(), Some("image/png"));
    assert_eq!(world.bytes(&file).await, b"a picture");
}

#[tokio::test]
async fn only_a_server_that_does_not_know_the_endpoint_is_asked_at_the_old_one() {
    let world = World::new().await;
    world.other.answers("/_matrix/federation/", Err(status(404, "M_UNRECOGNIZED")));
    world.other.answers("/_matrix/media/v3/download/other.org/tea?", Ok(("text/css", b"old".to_vec())));
    let file = world.find("tea").await.unwrap();
    assert_eq!((file.content_type.as_deref(), file.filename.as_deref()), (Some("text/css"), None));
    let old = &world.other.asked()[1];
    assert!(old.ends_with("timeout_ms=500&allow_remote=false"), "{old}");
    world.other.answers("/_matrix/federation/", Err(status(404, "M_NOT_FOUND")));
    assert_eq!(world.fails("coffee").await, RemoteError::NotFound);
    assert_eq!(world.other.asked().len(), 1);
    // It is believed for a while.
    assert_eq!(world.fails("coffee").await, RemoteError::NotFound);
    assert!(world.other.asked().is_empty());
    world.clock.advance(31_000);
    world.fails("coffee").await;
    assert_eq!(world.other.asked().len(), 1);
}

#[tokio::test]
async fn each_failure_is_told_apart() {
    let world = World::new().await;
    let large = Ok(parts("Content-Type: text/plain", &vec![b'a'; SIZE_MAX + 1]));
    for (answer, expected) in [
        (Err(status(504, "M_NOT_YET_UPLOADED")), RemoteError::NotYetUploaded),
        (Err(status(502, "M_TOO_LARGE")), RemoteError::TooLarge),
        (Err(FederationError::TooLarge { max: 1 }), RemoteError::TooLarge),
        (large, RemoteError::TooLarge),
    ] {
        world.clock.advance(60_000);
        world.other.answers(NEW, answer);
        assert_eq!(world.fails("tea").await, expected);
    }
    world.clock.advance(60_000);
    world.other.answers(NEW, Err(status(403, "M_FORBIDDEN")));
    assert!(matches!(world.fails("tea").await, RemoteError::Refused(_)));
    for answer in [Err(FederationError::Timeout), Err(status(502, "M_UNKNOWN"))] {
        world.other.answers(NEW, answer);
        assert!(matches!(world.fails("tea").await, RemoteError::Unreachable(_)));
        world.clock.advance(60_000);
    }
}

#[tokio::test]
async fn a_server_that_has_no_good_answer_for_one_file_is_asked_for_others() {
    let world = World::new().await;
    let elsewhere = "https://cdn.example.org/tea";
    world.other.answers(elsewhere, Err(FederationError::Connect("refused".to_owned())));
    let coffee = "/_matrix/federation/v1/media/download/coffee";
    world.other.sends(coffee, "Content-Type: text/plain", b"some coffee");
    let kind = "multipart/mixed; boundary=x";
    let answers = [
        Ok(("text/plain", b"no parts".to_vec())),
        Ok((kind, b"--x\r\n\r\n{}\r\n--x--".to_vec())),
        Ok((kind, b"--x\r\n\r\n{}\r\n--x\r\n\r\nbroken off".to_vec())),
        Err(status(500, "M_UNKNOWN")),
        Ok(parts(&format!("Location: {elsewhere}"), b"")),
    ];
    for (round, answer) in answers.into_iter().enumerate() {
        world.other.answers(NEW, answer);
        for _ in 0..2 {
            let failed = world.fails("tea").await;
            assert!(matches!(failed, RemoteError::BadAnswer(_)), "{round}: {failed:?}");
        }
        let asked = world.other.asked();
        let for_tea = asked.iter().filter(|path| path.starts_with(NEW)).count();
        assert_eq!(for_tea, 1, "it was asked again and again: {asked:?}");
        let file = world.find(&format!("coffee{round}")).await.unwrap();
        assert_eq!(world.bytes(&file).await, b"some coffee", "{round}");
        world.clock.advance(31_000);
    }
}

#[tokio::test]
async fn a_server_that_is_gone_is_left_alone_until_it_shows_itself() {
    let world = World::new().await;
    world.other.answers(NEW, Err(FederationError::Connect("refused".to_owned())));
    for _ in 0..3 {
        assert!(matches!(world.fails("tea").await, RemoteError::Unreachable(_)));
    }
    assert_eq!(world.other.asked().len(), 1, "it was asked again and again");
    world.other.sends(NEW, "Content-Type: text/plain", b"back");
    world.media.server_is_alive(server_name!("other.org"));
    assert_eq!(world.bytes(&world.find("tea").await.unwrap()).await, b"back");
}

#[tokio::test]
async fn a_thumbnail_of_what_is_too_large_comes_from_its_server() {
    let world = World::new().await;
    let mut png = Vec::new();
    let image = image::DynamicImage::new_rgb8(96, 96);
    image.write_to(&mut io::Cursor::new(&mut png), image::ImageFormat::Png).unwrap();
    world.other.answers(NEW, Err(status(502, "M_TOO_LARGE")));
    let path = "/_matrix/federation/v1/media/thumbnail/tea?";
    // Whatever it calls it.
    world.other.sends(path, "Content-Type: text/html", &png);
    let wanted = Wanted { width: 50, height: 60, method: media::Method::Crop, animated: false };
    for _ in 0..2 {
        let file = world.media.thumbnail(&World::lookup("tea"), &wanted).await.unwrap();
        assert_eq!(file.content_type.as_deref(), Some("image/png"));
        assert_eq!(world.bytes(&file).await, png);
    }
    let asked = world.other.asked();
    let thumbnails: Vec<_> = asked.iter().filter(|path| path.contains("thumbnail")).collect();
    assert_eq!(thumbnails, [&format!("{path}timeout_ms=500&width=96&height=96&method=crop&animated=false")]);
    // What is no image is not passed on.
    world.other.sends("/_matrix/federation/v1/media/thumbnail/text?", "Content-Type: image/png", b"text");
    world.other.sends("/_matrix/federation/v1/media/download/text?", "Content-Type: image/png", b"text");
    let refused = world.media.thumbnail(&World::lookup("text"), &wanted).await;
    assert!(matches!(refused, Err(MediaError::Thumbnail { is_remote: true, .. })), "{refused:?}");
}
