//! `multipart/mixed` bodies of two parts, as servers send media to each other.
//!
//! Spec: server-server API, `GET /_matrix/federation/v1/media/download/{mediaId}`; RFC 2046, section 5.1.

use std::io;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::Reader;

/// What may come before the second part's headers, in bytes: the first part is an empty JSON object.
const FIRST_MAX: usize = 64 << 10;

/// The largest headers of a part, in bytes.
const HEADERS_MAX: usize = 16 << 10;

/// The longest boundary: RFC 2046 has 70 characters.
const BOUNDARY_MAX: usize = 200;

/// A body that is read part by part.
struct Parts {
    body: Reader,
    buffer: BytesMut,
    /// What ends a part.
    delimiter: Vec<u8>,
}

/// The headers and the bytes of the second part of a body.
pub(crate) async fn second_part(content_type: &str, body: Reader) -> io::Result<(HeaderMap, Reader)> {
    let boundary = boundary(content_type).ok_or_else(|| invalid("it is not multipart"))?;
    let delimiter = format!("\r\n--{boundary}").into_bytes();
    // The first delimiter may be at the very beginning.
    let mut parts = Parts { body, buffer: BytesMut::from(&b"\r\n"[..]), delimiter };
    for _ in 0..2 {
        parts.skip().await?;
    }
    let headers = parts.headers().await?;
    Ok((headers, parts.rest()))
}

/// The boundary that a `Content-Type` names.
fn boundary(content_type: &str) -> Option<&str> {
    let mut fields = content_type.split(';');
    if !fields.next()?.trim().eq_ignore_ascii_case("multipart/mixed") {
        return None;
    }
    let value = fields.find_map(|field| {
        let (name, value) = field.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"'))
    })?;
    (1..=BOUNDARY_MAX).contains(&value.len()).then_some(value)
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl Parts {
    /// Reads more; an error at the end.
    async fn more(&mut self) -> io::Result<()> {
        let chunk = self.body.next().await.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.buffer.extend_from_slice(&chunk?);
        Ok(())
    }

    /// Goes on behind the next delimiter and the rest of its line.
    async fn skip(&mut self) -> io::Result<()> {
        let at = loop {
            if let Some(at) = find(&self.buffer, &self.delimiter) {
                break at;
            }
            if self.buffer.len() > FIRST_MAX {
                return Err(invalid("its first part is too large"));
            }
            self.more().await?;
        };
        let _ = self.buffer.split_to(at + self.delimiter.len());
        let line = self.line().await?;
        if line.starts_with(b"--") { Err(invalid("it has too few parts")) } else { Ok(()) }
    }

    /// A line without its end.
    async fn line(&mut self) -> io::Result<Bytes> {
        let at = loop {
            if let Some(at) = self.buffer.iter().position(|byte| *byte == b'\n') {
                break at;
            }
            if self.buffer.len() > HEADERS_MAX {
                return Err(invalid("it has a header that is too large"));
            }
            self.more().await?;
        };
        let line = self.buffer.split_to(at + 1).freeze();
        Ok(line.slice(..line.trim_ascii_end().len()))
    }

    async fn headers(&mut self) -> io::Result<HeaderMap> {
        let mut headers = HeaderMap::new();
        let mut size = 0;
        loop {
            let line = self.line().await?;
            size += line.len();
            if size > HEADERS_MAX {
                return Err(invalid("its headers are too large"));
            }
            if line.is_empty() {
                return Ok(headers);
            }
            let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
            let (name, value) = line.split_at(colon);
            let value = value.strip_prefix(b":").unwrap_or_default().trim_ascii();
            // One that cannot be read is left out.
            if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
                headers.insert(name, value);
            }
        }
    }

    /// The bytes up to the next delimiter.
    fn rest(self) -> Reader {
        futures_util::stream::try_unfold(Some(self), async |parts| {
            let Some(mut parts) = parts else { return Ok(None) };
            loop {
                if let Some(at) = find(&parts.buffer, &parts.delimiter) {
                    return Ok(Some((parts.buffer.split_to(at).freeze(), None)));
                }
                // The delimiter may begin in what is here and go on in what comes.
                let sure = parts.buffer.len().saturating_sub(parts.delimiter.len() - 1);
                if sure > 0 {
                    return Ok(Some((parts.buffer.split_to(sure).freeze(), Some(parts))));
                }
                parts.more().await?;
            }
        })
        .boxed()
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, wanted)
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;

    use super::*;

    const TYPE: &str = "multipart/mixed; charset=x; boundary=\"tea\"";

    /// Reads a body that comes in pieces of `size` bytes.
    async fn read(body: &[u8], size: usize) -> io::Result<(HeaderMap, Vec<u8>)> {
        let chunks: Vec<_> = body.chunks(size).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        let (headers, rest) = second_part(TYPE, futures_util::stream::iter(chunks).boxed()).await?;
        let bytes: Vec<Bytes> = rest.try_collect().await?;
        Ok((headers, bytes.concat()))
    }

    #[tokio::test]
    async fn the_second_part_is_found_however_the_body_is_cut() {
        for (before, head, after) in [
            ("", "\r\n\r\n{}", "--\r\n"),
            ("a preamble\r\n", "  \r\nContent-Type: application/json\r\n\r\n{}", ""),
        ] {
            let content = "\r\n--te\r\nsome \0 bytes\r\n-";
            let body = format!(
                "{before}--tea{head}\r\n--tea\r\ncontent-type: text/plain\r\nContent-Disposition: inline\r\n\r\n\
                 {content}\r\n--tea{after}"
            );
            for size in 1..=body.len() {
                let (headers, bytes) = read(body.as_bytes(), size).await.unwrap();
                assert_eq!((headers["content-type"].to_str().unwrap(), headers.len()), ("text/plain", 2));
                assert_eq!(bytes, content.as_bytes(), "pieces of {size}");
            }
        }
        let empty = read(b"--tea\r\n\r\n{}\r\n--tea\r\n\r\n\r\n--tea--", 7).await.unwrap();
        assert!(empty.0.is_empty() && empty.1.is_empty());
    }

    #[tokio::test]
    async fn what_is_no_such_body_is_an_error() {
        let large =
            [b"--tea\r\n\r\n", vec![b' '; 2 * FIRST_MAX].as_slice(), b"\r\n--tea\r\n\r\nx\r\n--tea"].concat();
        let long = [b"--tea\r\n\r\n{}\r\n--tea\r\n", vec![b'a'; 2 * HEADERS_MAX].as_slice()].concat();
        for body in [
            &b""[..],
            b"tea",
            b"--tea--",
            b"--tea\r\n\r\n{}\r\n--tea--",
            b"--tea\r\n\r\n{}\r\n--tea\r\n\r\nbroken off",
            &large,
            &long,
        ] {
            assert!(
                read(body, 1000).await.is_err(),
                "{:?}",
                String::from_utf8_lossy(&body[..body.len().min(60)])
            );
        }
        for content_type in ["text/plain; boundary=tea", "multipart/mixed", "multipart/mixed; boundary=\"\""]
        {
            let body = futures_util::stream::empty().boxed();
            assert!(second_part(content_type, body).await.is_err(), "{content_type}");
        }
    }
}
