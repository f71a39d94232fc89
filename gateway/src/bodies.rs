//! Bodies of requests that do not come, or that were answered without being read to their end.
//!
//! Who promises a body and does not send it would hold a handler, and what it holds, for good.
//!
//! With HTTP/1.1, what was not read stands before the next request on the connection, so that the server has to close
//! it, often just when the client sends that next request. A short rest is read instead, a long one announced.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::Request,
    middleware::Next,
    response::Response,
};
use http::{HeaderValue, StatusCode, Version, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_http::timeout::TimeoutBody;

use crate::error::{ApiError, ApiResult};

/// The largest rest that is read: most requests that are refused are smaller.
const REST_MAX: usize = 128 * 1024;

/// How long reading it may take.
const REST_TIME_MAX: Duration = Duration::from_secs(1);

/// How long each next part of a body may take to come.
const PART_TIME_MAX: Duration = Duration::from_secs(30);

/// How long a whole body may take that is kept in memory: who sends it drop by drop holds that for as long.
const TIME_MAX: Duration = Duration::from_secs(120);

/// The same for the large ones of other servers.
const LARGE_TIME_MAX: Duration = Duration::from_secs(300);

/// Reads a body of at most so many bytes.
///
/// # Errors
/// 413 `M_TOO_LARGE`, or 408 `M_UNKNOWN` where the body breaks off, stalls or takes too long.
pub async fn read(body: Body, limit: usize) -> ApiResult<Bytes> {
    tokio::time::timeout(TIME_MAX, axum::body::to_bytes(body, limit))
        .await
        .map_err(|_| too_slow())?
        .map_err(|error| unread(std::error::Error::source(&error).unwrap_or(&error), limit))
}

fn unread(error: &(dyn std::error::Error + 'static), limit: usize) -> ApiError {
    if error.is::<LengthLimitError>() {
        let message = format!("the body is larger than {limit} bytes");
        return ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE", message);
    }
    too_slow()
}

fn too_slow() -> ApiError {
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "M_UNKNOWN", "the body did not come to its end in time")
}

/// Memory for the bodies of other servers, which have to be there before it is known who sent them.
///
/// Small ones need none of it, so that most requests get through while somebody uses it up.
pub struct Unverified {
    kib: Arc<Semaphore>,
}

/// A part of that memory; given back when it is dropped.
pub struct Memory {
    _held: OwnedSemaphorePermit,
}

impl Default for Unverified {
    fn default() -> Self {
        Self { kib: Arc::new(Semaphore::new(Self::KIB_MAX)) }
    }
}

impl Unverified {
    /// KiB of all such bodies together.
    const KIB_MAX: usize = 128 << 10;

    /// How many bytes of each body are not counted.
    const SMALL: usize = 64 << 10;

    /// Reads a body of at most so many bytes; it takes the memory for as long as that is kept.
    ///
    /// # Errors
    /// Those of [`read`], and 429 `M_LIMIT_EXCEEDED` while others take all memory.
    pub async fn read(&self, body: Body, limit: usize) -> ApiResult<(Bytes, Memory)> {
        tokio::time::timeout(LARGE_TIME_MAX, self.read_all(body, limit)).await.map_err(|_| too_slow())?
    }

    async fn read_all(&self, body: Body, limit: usize) -> ApiResult<(Bytes, Memory)> {
        let mut body = std::pin::pin!(Limited::new(body, limit));
        let mut held = self.some(0)?;
        let (mut parts, mut size) = (Vec::new(), 0);
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|error| unread(&*error, limit))?.into_data() else { continue };
            size += data.len();
            parts.push(data);
            let wanted =
                size.saturating_sub(Self::SMALL).div_ceil(1 << 10).saturating_sub(held.num_permits());
            held.merge(self.some(u32::try_from(wanted).unwrap_or(u32::MAX))?);
        }
        let whole = match parts.as_slice() {
            [whole] => whole.clone(),
            _ => parts.concat().into(),
        };
        Ok((whole, Memory { _held: held }))
    }

    fn some(&self, kib: u32) -> ApiResult<OwnedSemaphorePermit> {
        self.kib.clone().try_acquire_many_owned(kib).map_err(|_| busy())
    }
}

fn busy() -> ApiError {
    ApiError::limit_exceeded(Duration::from_secs(5))
}

/// Gives up waiting for a body that stalls.
pub async fn bound(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    next.run(request.map(|body| Body::new(TimeoutBody::new(PART_TIME_MAX, body)))).await
}

/// Reads the rest of the body after the answer, or says that the connection will be closed.
pub async fn drain(request: Request, next: Next) -> Response {
    // Whoever expects to be told to continue does not send the body when told otherwise.
    if request.version() > Version::HTTP_11
        || request.body().is_end_stream()
        || request.headers().contains_key(header::EXPECT)
    {
        return next.run(request).await;
    }
    let left = Arc::new(Mutex::new(None));
    let request = request.map(|body| Body::new(Returned { body: Some(body), left: left.clone() }));
    let mut response = next.run(request).await;
    let rest = left.lock().take();
    if let Some(rest) = rest
        && !response.headers().contains_key(header::CONNECTION)
        && !is_short(rest).await
    {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Reads a rest; whether it came to its end within the limits.
async fn is_short(mut rest: Body) -> bool {
    let read = async {
        let mut size = 0;
        while let Some(frame) = rest.frame().await {
            let Ok(frame) = frame else { return false };
            size += frame.data_ref().map_or(0, Bytes::len);
            if size > REST_MAX {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(REST_TIME_MAX, read).await.unwrap_or(false)
}

/// A body that is handed back when it is dropped before its end.
struct Returned {
    /// None after its end.
    body: Option<Body>,
    left: Arc<Mutex<Option<Body>>>,
}

impl HttpBody for Returned {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for Returned {
    fn drop(&mut self) {
        *self.left.lock() = self.body.take().filter(|body| !body.is_end_stream());
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, middleware, response::IntoResponse, routing::post};
    use futures_util::StreamExt;
    use http::Request;
    use tower::ServiceExt;

    use super::*;

    async fn connection_after(body: Body, path: &str) -> Option<HeaderValue> {
        let router = Router::new()
            .route("/reads", post(|_: Bytes| async {}))
            .route("/ignores", post(|| async {}))
            .layer(middleware::from_fn(drain));
        let request = Request::post(path).body(body).unwrap();
        router.oneshot(request).await.unwrap().headers().get(header::CONNECTION).cloned()
    }

    /// A body in parts of 32 KiB whose end does not come.
    fn endless(parts: usize) -> Body {
        let part = || Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; 32 << 10]));
        let parts = futures_util::stream::iter((0..parts).map(move |_| part()));
        Body::from_stream(parts.chain(futures_util::stream::pending()))
    }

    #[tokio::test(start_paused = true)]
    async fn unverified_bodies_take_no_more_memory_than_there_is() {
        let unverified = Unverified::default();
        let limit = 16 << 20;
        let large = || unverified.read(endless(500), limit);
        let waiting = futures_util::future::join_all((0..8).map(|_| large()));
        let ended = tokio::time::timeout(Duration::from_secs(1), waiting).await;
        assert!(ended.is_err(), "some were refused or done");
        // What they took is given back with them.
        let waiting = futures_util::future::join_all((0..8).map(|_| large()));
        let full = async {
            let fits = Body::from(vec![b'x'; Unverified::SMALL]);
            assert_eq!(unverified.read(fits, limit).await.unwrap().0.len(), Unverified::SMALL);
            let refused = unverified.read(Body::from(vec![b'x'; limit]), limit).await.err().unwrap();
            assert_eq!(refused.into_response().status(), StatusCode::TOO_MANY_REQUESTS);
        };
        tokio::select! {
            biased;
            _ = waiting => panic!("some were refused or done"),
            () = full => {}
        }
        let (whole, memory) = unverified.read(Body::from(vec![b'x'; limit]), limit).await.unwrap();
        assert_eq!(whole.len(), limit);
        let refused = unverified.read(Body::from(vec![b'x'; limit + 1]), limit).await.err().unwrap();
        assert_eq!(refused.into_response().status(), StatusCode::PAYLOAD_TOO_LARGE);
        let left = |unverified: &Unverified| unverified.kib.available_permits();
        assert_eq!(left(&unverified), Unverified::KIB_MAX - ((limit - Unverified::SMALL) >> 10));
        drop(memory);
        assert_eq!(left(&unverified), Unverified::KIB_MAX);
    }

    #[tokio::test]
    async fn only_long_rests_close_the_connection() {
        let long = || Body::from(vec![0; REST_MAX + 1]);
        assert_eq!(connection_after(Body::from("x"), "/reads").await, None);
        assert_eq!(connection_after(long(), "/reads").await, None);
        assert_eq!(connection_after(Body::from("x"), "/ignores").await, None);
        assert_eq!(connection_after(Body::empty(), "/unknown").await, None);
        assert_eq!(connection_after(long(), "/ignores").await.unwrap(), "close");
        assert_eq!(connection_after(long(), "/unknown").await.unwrap(), "close");
    }

    #[tokio::test]
    async fn a_rest_that_does_not_come_is_not_waited_for() {
        let stuck = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
        assert_eq!(connection_after(stuck, "/ignores").await.unwrap(), "close");
    }
}
