//! Bytes under their hash, streamed both ways.

use std::{io, ops::Range, path::Path as FilePath, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream::BoxStream};
use object_store::{
    GetOptions, GetRange, GetResult, GetResultPayload, MultipartUpload, ObjectStore, ObjectStoreExt,
    PutPayload, local::LocalFileSystem, path::Path,
};
use sha2::{Digest, Sha256};
use storage::schema::{ContentHash, ContentRecord};
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt},
    sync::RwLock,
};

use super::{MediaError, thumbnail::Source};
use crate::env::Entropy;

/// Bytes that are written, and read, at a time: large enough that the calls do not matter, small beside a request.
const PART: usize = 256 << 10;

/// Bytes on their way out.
pub type Reader = BoxStream<'static, io::Result<Bytes>>;

/// The bytes of the repository.
pub struct Contents {
    objects: Arc<dyn ObjectStore>,
    entropy: Arc<dyn Entropy>,
    /// Held to read from when bytes are put in their place until something uses them; to write while unused ones go.
    pub(super) placing: RwLock<()>,
}

impl Contents {
    /// The bytes in an object store.
    pub fn new(objects: Arc<dyn ObjectStore>, entropy: Arc<dyn Entropy>) -> Self {
        Self { objects, entropy, placing: RwLock::new(()) }
    }

    /// An object store in a folder, which is made; what broken uploads left there goes.
    ///
    /// A write to it is durable when it is acknowledged.
    pub fn in_folder(folder: &FilePath) -> Result<Arc<dyn ObjectStore>, MediaError> {
        let failed = |error: io::Error| MediaError::Files(format!("{}: {error}", folder.display()));
        match std::fs::remove_dir_all(folder.join(STAGING)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        std::fs::create_dir_all(folder.join(STAGING)).map_err(failed)?;
        Ok(Arc::new(LocalFileSystem::new_with_prefix(folder)?.with_fsync(true)))
    }

    /// A place for bytes to come.
    pub(super) async fn stage(&self) -> Result<Staged, MediaError> {
        let path = Path::from_iter([STAGING, &self.entropy.token(24)]);
        let upload = self.objects.put_multipart(&path).await?;
        Ok(Staged { path, upload, hasher: Sha256::new(), size: 0, buffer: BytesMut::new() })
    }

    /// Makes staged bytes durable under their hash.
    ///
    /// The caller holds `placing` until what uses them is stored.
    pub(super) async fn place(&self, mut staged: Staged) -> Result<ContentRecord, MediaError> {
        staged.flush().await?;
        staged.upload.complete().await?;
        let hash = staged.hasher.finalize().into();
        self.objects.rename(&staged.path, &place(&hash)).await?;
        Ok(ContentRecord { hash, size: staged.size })
    }

    /// Reads a part of the bytes.
    pub async fn read(&self, content: &ContentRecord, range: Range<u64>) -> Result<Reader, MediaError> {
        if range.is_empty() {
            return Ok(futures_util::stream::empty().boxed());
        }
        let range = range.start..range.end.min(content.size);
        let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
        let result = self.objects.get_opts(&place(&content.hash), options).await.map_err(unreadable)?;
        match result.payload {
            GetResultPayload::Stream(stream) => Ok(stream.map(|part| part.map_err(io::Error::other)).boxed()),
            // The crate's own stream of a file reads 8 KiB at a time, each on another thread.
            GetResultPayload::File(file, _) => Ok(read_file(file, result.range).boxed()),
        }
    }

    /// Whether the bytes of a hash are in their place.
    pub(super) async fn has(&self, hash: &ContentHash) -> Result<bool, MediaError> {
        match self.objects.head(&place(hash)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the bytes of a hash; those who read them go on.
    pub(super) async fn delete(&self, hash: &ContentHash) -> Result<(), MediaError> {
        match self.objects.delete(&place(hash)).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            deleted => Ok(deleted?),
        }
    }

    /// The hashes of all bytes that are in their place.
    pub(super) fn hashes(&self) -> BoxStream<'static, Result<ContentHash, MediaError>> {
        let listing = self.objects.list(Some(&Path::from(CONTENT)));
        listing
            .filter_map(async |file| match file {
                Ok(file) => file.location.filename().and_then(unhex).map(Ok),
                Err(error) => Some(Err(error.into())),
            })
            .boxed()
    }

    /// The bytes, for those who read here and there, on a thread that may block.
    pub(super) async fn open(&self, content: &ContentRecord) -> Result<Box<dyn Source>, MediaError> {
        let result = self.objects.get(&place(&content.hash)).await.map_err(unreadable)?;
        match result.payload {
            GetResultPayload::File(file, _) => Ok(Box::new(io::BufReader::new(file))),
            payload @ GetResultPayload::Stream(_) => {
                let bytes = GetResult { payload, ..result }.bytes().await?;
                Ok(Box::new(io::Cursor::new(bytes)))
            }
        }
    }
}

/// Why bytes that ought to be there cannot be read; those that are gone are not to be had.
fn unreadable(error: object_store::Error) -> MediaError {
    match error {
        object_store::Error::NotFound { .. } => {
            tracing::error!(%error, "the bytes of media are gone; restore them from a backup");
            MediaError::NotFound
        }
        error => error.into(),
    }
}

/// Where bytes are until all have come.
const STAGING: &str = "staging";

/// Where the bytes are that are all here.
const CONTENT: &str = "content";

/// Where the bytes of a hash are.
fn place(hash: &ContentHash) -> Path {
    let name = hex(hash);
    Path::from_iter([CONTENT, &name[..2], &name[2..4], &name])
}

/// A hash in hexadecimal.
pub fn hex(hash: &ContentHash) -> String {
    use std::fmt::Write;
    hash.iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// A hash that is written in hexadecimal.
fn unhex(text: &str) -> Option<ContentHash> {
    let mut hash = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

fn read_file(
    file: std::fs::File,
    range: Range<u64>,
) -> impl futures_util::Stream<Item = io::Result<Bytes>> + Send + 'static {
    let mut file = tokio::fs::File::from_std(file);
    file.set_max_buf_size(PART);
    futures_util::stream::try_unfold((file, range, false), async |(mut file, mut range, is_placed)| {
        if range.is_empty() {
            return Ok(None);
        }
        if !is_placed {
            file.seek(io::SeekFrom::Start(range.start)).await?;
        }
        let wanted = usize::try_from(range.end - range.start).unwrap_or(PART).min(PART);
        let mut part = vec![0; wanted];
        let read = file.read(&mut part).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        part.truncate(read);
        range.start += read as u64;
        Ok(Some((Bytes::from(part), (file, range, true))))
    })
}

/// Bytes that are coming; dropped, they are gone.
pub(super) struct Staged {
    path: Path,
    upload: Box<dyn MultipartUpload>,
    hasher: Sha256,
    size: u64,
    buffer: BytesMut,
}

impl Staged {
    /// How many have come.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Takes more bytes.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), MediaError> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PART { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), MediaError> {
        if !self.buffer.is_empty() {
            // One part at a time: a slow disk slows the sender instead of filling the memory.
            self.upload.put_part(PutPayload::from(self.buffer.split().freeze())).await?;
        }
        Ok(())
    }
}
