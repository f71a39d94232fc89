//! Previews of pages: what a page says of itself, fetched once for everybody and kept for a while.
//!
//! A page is read up to a limit, its tags are looked at one by one, its image is kept as media of this server.
//!
//! Spec: client-server API, `GET /_matrix/client/v1/media/preview_url`.

mod charset;
mod facts;
mod html;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture};
use serde::Deserialize;
use serde_json::{Map, Value};
use storage::{
    Batch,
    schema::{self, MediaRecord, UrlPreviewRecord},
};
use tokio::sync::Semaphore;
use url::Url;

use self::facts::Facts;
use super::{
    MediaError, MediaRepository, Meta, Reader,
    retention::{PREVIEW_AGE_MAX_MS, millis},
};
use crate::flights::Flights;

/// Previews that are made at a time.
const CONCURRENT: usize = 8;

/// The longest URL, in bytes.
const URL_MAX: usize = 4096;

/// How much of a page is read, in bytes: what it says of itself is near its beginning.
const PAGE_MAX: usize = 1 << 20;

/// The largest answer about an embedded page, in bytes.
const OEMBED_MAX: usize = 256 << 10;

/// The largest image, in bytes.
const IMAGE_MAX: u64 = 16 << 20;

/// How long a preview may take to make.
const TIME_MAX: Duration = Duration::from_secs(30);

/// How long it is believed that a page cannot be had.
const FAILURE_MS: u64 = 10 * 60 * 1000;

const ACCEPT_PAGE: &str = "text/html,application/xhtml+xml;q=0.9,image/*;q=0.8,*/*;q=0.5";
const ACCEPT_OEMBED: &str = "application/json";
const ACCEPT_IMAGE: &str = "image/webp,image/png,image/jpeg,image/gif;q=0.9";

/// Gets pages of the web for strangers; the gateway implements it, with a guard.
pub trait PageClient: Send + Sync + 'static {
    /// Gets a page; redirects are followed, with the guard on each.
    fn get<'a>(&'a self, url: &'a Url, accept: &'static str) -> BoxFuture<'a, Result<Page, PageError>>;
}

/// A page on its way.
pub struct Page {
    /// Where it was in the end.
    pub url: Url,
    /// Its `Content-Type`.
    pub content_type: String,
    /// Its body; who reads it limits it.
    pub body: Reader,
}

/// Why a page is not to be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// This server does not go there.
    #[error("there are no previews of this URL: {0}")]
    Refused(String),
    /// Its server did not give it.
    #[error("the page cannot be had: {0}")]
    Failed(String),
}

/// Why there is no preview.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PreviewError {
    /// This server makes none.
    #[error("this server makes no previews of pages")]
    Off,
    /// The URL is none of a page.
    #[error("{0}")]
    Invalid(&'static str),
    /// The page is not to be had.
    #[error(transparent)]
    Page(#[from] PageError),
}

/// What makes previews.
pub(super) struct Previews {
    flights: Flights,
    permits: Semaphore,
}

impl Default for Previews {
    fn default() -> Self {
        Self { flights: Flights::default(), permits: Semaphore::new(CONCURRENT) }
    }
}

impl MediaRepository {
    /// What a page says of itself, as the JSON of the response.
    pub async fn preview(&self, url: &str) -> Result<Bytes, MediaError> {
        let client = self.0.config.pages.clone().ok_or(PreviewError::Off)?;
        let url = parse(url)?;
        if let Some(known) = self.known_preview(&url).await? {
            return Ok(known?);
        }
        let flight = self.0.previews.flights.board(url.to_string()).await;
        let repository = self.clone();
        // Whoever asked may hang up: the next one finds it.
        let made = tokio::spawn(async move {
            let _flight = flight;
            // Whoever was first may have made it.
            match repository.known_preview(&url).await? {
                Some(known) => Ok(known?),
                None => repository.make_preview(&*client, &url).await,
            }
        });
        made.await.map_err(|error| MediaError::Files(error.to_string()))?
    }

    /// What is known of a page, if that is not too old.
    async fn known_preview(&self, url: &Url) -> Result<Option<Result<Bytes, PreviewError>>, MediaError> {
        let record = self.0.storage.get(&schema::URL_PREVIEWS, url.as_str()).await?;
        let Some(UrlPreviewRecord { json, fetched }) = record else { return Ok(None) };
        let age_ms = self.0.env.clock.now_ms().saturating_sub(fetched.get().into());
        let failed =
            || PreviewError::Page(PageError::Failed("it could not be had a short time ago".to_owned()));
        Ok(match json {
            Some(json) if age_ms < millis(self.0.config.preview_expiry) => Some(Ok(json)),
            None if age_ms < FAILURE_MS => Some(Err(failed())),
            _ => None,
        })
    }

    async fn make_preview(&self, client: &dyn PageClient, url: &Url) -> Result<Bytes, MediaError> {
        let closed = |_| PageError::Failed("this server is stopping".to_owned());
        let _permit = self.0.previews.permits.acquire().await.map_err(closed).map_err(PreviewError::from)?;
        let looked = tokio::time::timeout(TIME_MAX, self.look_at(client, url)).await;
        let late =
            |_| MediaError::from(PreviewError::Page(PageError::Failed("it takes too long".to_owned())));
        let looked = looked.map_err(late).flatten();
        let json = match &looked {
            Ok(properties) => Some(Bytes::from(
                serde_json::to_vec(properties).map_err(|e| MediaError::Files(e.to_string()))?,
            )),
            Err(MediaError::Preview(PreviewError::Page(PageError::Failed(_)))) => None,
            // Nothing is known of the page.
            Err(_) => return looked.map(|_| Bytes::new()),
        };
        let record = UrlPreviewRecord { json: json.clone(), fetched: self.0.env.clock.now() };
        let mut batch = Batch::new();
        batch.put(&schema::URL_PREVIEWS, url.as_str(), &record);
        self.0.storage.commit(batch).await?;
        match json {
            Some(json) => Ok(json),
            None => looked.map(|_| Bytes::new()),
        }
    }

    /// Gets a page and what belongs to it.
    async fn look_at(&self, client: &dyn PageClient, url: &Url) -> Result<Map<String, Value>, MediaError> {
        let page = client.get(url, ACCEPT_PAGE).await.map_err(PreviewError::from)?;
        let kind = essence(&page.content_type);
        if kind.starts_with("image/") {
            let mut facts = Facts::default();
            facts.image = self.keep_image(page).await?;
            return Ok(facts.properties());
        }
        if !["text/html", "application/xhtml+xml"].contains(&kind.as_str()) {
            return Ok(Map::new());
        }
        let bytes = read(page.body, PAGE_MAX).await.map_err(PreviewError::from)?;
        let (url, content_type) = (page.url, page.content_type);
        let mut facts = blocking(move || {
            let document = html::read(&charset::decode(&bytes, &content_type));
            Facts::of(&document, &url)
        })
        .await?;
        if let Some(place) = facts.oembed.take()
            && let Some(embedded) = embedded(client, &place).await
        {
            let place = place.clone();
            facts = blocking(move || facts.with(embedded, &place)).await?;
        }
        if let Some(place) = facts.image_url.take()
            && let Ok(page) = client.get(&place, ACCEPT_IMAGE).await
        {
            facts.image = self.keep_image(page).await?;
        }
        Ok(facts.properties())
    }

    /// Keeps the image of a preview for a while; none if it is none that this server can read.
    async fn keep_image(&self, mut page: Page) -> Result<Option<facts::Image>, MediaError> {
        let size_max = IMAGE_MAX.min(self.0.config.upload_size_max);
        if !essence(&page.content_type).starts_with("image/") {
            return Ok(None);
        }
        let mut staged = self.0.contents.stage().await?;
        while let Some(chunk) = page.body.next().await {
            match chunk {
                Ok(chunk) if staged.size() + chunk.len() as u64 <= size_max => staged.write(&chunk).await?,
                _ => return Ok(None),
            }
        }
        let own = &*self.0.server_name;
        let media_id = self.0.env.entropy.token(24);
        let kept_ms = millis(self.0.config.preview_expiry) + PREVIEW_AGE_MAX_MS;
        let mut batch = Batch::new();
        let until_ms = self.0.env.clock.now_ms() + kept_ms;
        // First, so that no crash leaves an image that nobody removes.
        batch.put(&schema::PREVIEW_IMAGES, &(until_ms, media_id.as_str()), &());
        self.0.storage.commit(batch).await?;
        let filename = page.url.path_segments().and_then(|mut segments| segments.next_back());
        let filename = filename.filter(|name| !name.is_empty() && name.len() < 256).map(ToOwned::to_owned);
        let record = self.new_record(Meta { content_type: None, filename }, None);
        let content = self.keep_staged(own, &media_id, record.clone(), staged).await?;
        let Ok(image) = self.image_facts(content).await else {
            self.remove(own, &media_id).await?;
            return Ok(None);
        };
        let mut batch = Batch::new();
        let content_type = Some(image.content_type.to_owned());
        let record = MediaRecord { content: Some(content), content_type, ..record };
        batch.put(&schema::MEDIA, &(own, media_id.as_str()), &record);
        self.0.storage.commit(batch).await?;
        Ok(Some(facts::Image {
            uri: self.uri(&media_id),
            size: content.size,
            width: image.width,
            height: image.height,
            content_type: image.content_type,
        }))
    }
}

/// What a site says of one of its pages, for those who embed it.
///
/// Spec: oEmbed 1.0, section 2.3.4.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Embedded {
    #[serde(rename = "type")]
    kind: String,
    title: Option<String>,
    author_name: Option<String>,
    provider_name: Option<String>,
    thumbnail_url: Option<String>,
    url: Option<String>,
    html: Option<String>,
}

/// Gets what a site says for those who embed; none if it is of no use.
async fn embedded(client: &dyn PageClient, place: &Url) -> Option<Embedded> {
    let page = client.get(place, ACCEPT_OEMBED).await.ok()?;
    if !essence(&page.content_type).ends_with("json") {
        return None;
    }
    serde_json::from_slice(&read(page.body, OEMBED_MAX).await.ok()?).ok()
}

/// The URL of a page, without its fragment.
fn parse(text: &str) -> Result<Url, PreviewError> {
    if text.len() > URL_MAX {
        return Err(PreviewError::Invalid("the URL is too long"));
    }
    let mut url = Url::parse(text.trim()).map_err(|_| PreviewError::Invalid("this is no URL"))?;
    if !["http", "https"].contains(&url.scheme()) || url.host().is_none() {
        return Err(PreviewError::Invalid("only pages of the web have previews"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(PreviewError::Invalid("the URL has a name or a password in it"));
    }
    url.set_fragment(None);
    Ok(url)
}

/// A content type without its parameters.
fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The first bytes of a body; the rest is not read.
async fn read(mut body: Reader, max: usize) -> Result<Vec<u8>, PageError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| PageError::Failed(error.to_string()))?;
        bytes.extend_from_slice(&chunk[..chunk.len().min(max - bytes.len())]);
        if bytes.len() == max {
            break;
        }
    }
    Ok(bytes)
}

/// Does what takes a while on a thread that may block: there are no more than there are previews under way.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, MediaError> {
    #[expect(clippy::disallowed_methods, reason = "bounded by the previews that are made at a time")]
    let done = tokio::task::spawn_blocking(work);
    done.await.map_err(|_| PreviewError::Page(PageError::Failed("it cannot be read".to_owned())).into())
}

/// Who gets pages, shared.
pub type Pages = Arc<dyn PageClient>;

#[cfg(test)]
mod tests;
