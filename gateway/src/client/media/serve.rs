//! Media as HTTP responses: headers, ranges, what need not be sent again.

use std::ops::Range;

use actors::media::MediaRepository;
use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use ruma::http_headers::{ContentDisposition, ContentDispositionType};
use storage::schema::ContentRecord;

use crate::error::{ApiError, ApiResult};

/// The recommended policy.
const POLICY: HeaderValue = HeaderValue::from_static(
    "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; style-src 'unsafe-inline'; \
     object-src 'self';",
);

const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

const OCTETS: &str = "application/octet-stream";

/// Content types that are safe to show.
///
/// Spec: client-server API, "Serving inline content".
const INLINE: [&str; 26] = [
    "text/css",
    "text/plain",
    "text/csv",
    "application/json",
    "application/ld+json",
    "image/jpeg",
    "image/gif",
    "image/png",
    "image/apng",
    "image/webp",
    "image/avif",
    "video/mp4",
    "video/webm",
    "video/ogg",
    "video/quicktime",
    "audio/mp4",
    "audio/webm",
    "audio/aac",
    "audio/mpeg",
    "audio/ogg",
    "audio/wave",
    "audio/wav",
    "audio/x-wav",
    "audio/x-pn-wav",
    "audio/flac",
    "audio/x-flac",
];

/// Who may keep a copy: the caches of those who asked, or everybody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    /// Those with an access token.
    Users,
    /// Everybody.
    Everybody,
}

/// How media are presented.
#[derive(Clone, Debug)]
pub struct Disposition {
    /// The `Content-Type`.
    pub content_type: HeaderValue,
    /// The `Content-Disposition`.
    pub disposition: HeaderValue,
}

impl Disposition {
    /// How media of this type and name are presented.
    pub fn of(content_type: Option<&str>, filename: Option<String>) -> Self {
        let value = content_type.and_then(|text| HeaderValue::from_str(text).ok());
        let content_type = value.unwrap_or(HeaderValue::from_static(OCTETS));
        let essence = content_type.to_str().unwrap_or(OCTETS).split(';').next().unwrap_or_default().trim();
        let kind = if INLINE.iter().any(|known| essence.eq_ignore_ascii_case(known)) {
            ContentDispositionType::Inline
        } else {
            ContentDispositionType::Attachment
        };
        let bare = ContentDisposition::new(kind);
        let named = bare.clone().with_filename(filename).to_string();
        // A name that no header can have is left out.
        let disposition = HeaderValue::from_str(&named).or_else(|_| HeaderValue::from_str(&bare.to_string()));
        let disposition = disposition.unwrap_or(HeaderValue::from_static("attachment"));
        Self { content_type, disposition }
    }
}

/// Sends bytes, or the part of them that is asked for.
pub(super) async fn serve(
    media: &MediaRepository,
    content: &ContentRecord,
    disposition: &Disposition,
    request: &HeaderMap,
    audience: Audience,
) -> ApiResult<Response> {
    let etag = format!("\"{}\"", actors::media::hex(&content.hash));
    let text = |name| request.get(name).and_then(|value| value.to_str().ok());
    let is_known = text(header::IF_NONE_MATCH)
        .is_some_and(|known| known.split(',').any(|known| known.trim().trim_start_matches("W/") == etag));
    let is_current = text(header::IF_RANGE).is_none_or(|known| known == etag);
    let asked =
        text(header::RANGE).filter(|_| is_current).map_or(Asked::All, |text| range(text, content.size));
    let (status, part) = match asked {
        _ if is_known => (StatusCode::NOT_MODIFIED, 0..0),
        Asked::All => (StatusCode::OK, 0..content.size),
        Asked::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        Asked::Nothing => (StatusCode::RANGE_NOT_SATISFIABLE, 0..0),
    };
    let body = Body::from_stream(media.contents().read(content, part.clone()).await?);
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let caching = match audience {
        Audience::Users => "private, max-age=31536000, immutable",
        Audience::Everybody => "public, max-age=86400, immutable",
    };
    let value = |text: String| HeaderValue::from_str(&text).map_err(|error| ApiError::internal(&error));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY);
    headers.insert(RESOURCE_POLICY, HeaderValue::from_static("cross-origin"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::ETAG, value(etag)?);
    headers.insert(header::CONTENT_TYPE, disposition.content_type.clone());
    headers.insert(header::CONTENT_DISPOSITION, disposition.disposition.clone());
    match status {
        StatusCode::NOT_MODIFIED => return Ok(response),
        StatusCode::PARTIAL_CONTENT => {
            let range = format!("bytes {}-{}/{}", part.start, part.end - 1, content.size);
            headers.insert(header::CONTENT_RANGE, value(range)?);
        }
        StatusCode::RANGE_NOT_SATISFIABLE => {
            headers.insert(header::CONTENT_RANGE, value(format!("bytes */{}", content.size))?);
        }
        _ => {}
    }
    headers.insert(header::CONTENT_LENGTH, (part.end - part.start).into());
    Ok(response)
}

/// What a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    All,
    Part(Range<u64>),
    Nothing,
}

/// Reads a `Range` header (RFC 9110, 14.2); one that is not understood, or of several parts, is ignored.
fn range(text: &str, size: u64) -> Asked {
    let Some((first, last)) = text.trim().strip_prefix("bytes=").and_then(|range| range.split_once('-'))
    else {
        return Asked::All;
    };
    let part = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(size),
        (Ok(first), Err(_)) if last.trim().is_empty() => first..size,
        (Err(_), Ok(length)) if first.trim().is_empty() => size.saturating_sub(length)..size,
        _ => return Asked::All,
    };
    if part.is_empty() { Asked::Nothing } else { Asked::Part(part) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_http_has_them() {
        for (text, expected) in [
            ("bytes=0-0", Asked::Part(0..1)),
            ("bytes=2-", Asked::Part(2..10)),
            ("bytes=-3", Asked::Part(7..10)),
            ("bytes=-30", Asked::Part(0..10)),
            ("bytes=5-100", Asked::Part(5..10)),
            ("bytes=10-", Asked::Nothing),
            ("bytes=-0", Asked::Nothing),
            ("bytes=0-18446744073709551615", Asked::Part(0..10)),
            ("bytes=5-2", Asked::All),
            ("bytes=0-1,3-4", Asked::All),
            ("lines=1-2", Asked::All),
            ("bytes=", Asked::All),
        ] {
            assert_eq!(range(text, 10), expected, "{text}");
        }
        assert_eq!(range("bytes=0-", 0), Asked::Nothing);
    }

    #[test]
    fn only_safe_types_are_shown() {
        for (content_type, name, expected) in [
            (Some("image/png"), Some("tea.png"), "inline; filename=tea.png"),
            (Some("Text/Plain; charset=utf-8"), None, "inline"),
            (Some("text/html"), Some("a b.html"), "attachment; filename=\"a b.html\""),
            (Some("image/svg+xml"), None, "attachment"),
            (Some("image/png\n"), None, "attachment"),
            (None, Some("Tee ☕.txt"), "attachment; filename*=utf-8''Tee%20%E2%98%95.txt"),
        ] {
            let disposition = Disposition::of(content_type, name.map(ToOwned::to_owned));
            assert_eq!(disposition.disposition, expected, "{content_type:?}");
        }
        assert_eq!(Disposition::of(None, None).content_type, OCTETS);
    }
}
