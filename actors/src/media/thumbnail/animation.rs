//! Thumbnails that move: read frame by frame from GIF, WebP or APNG, written as WebP.
//!
//! The `image` crate writes single WebP images; their container (RFC 9649, section 2.7) is written here.

use image::{
    AnimationDecoder, DynamicImage, ExtendedColorType, Frame, ImageDecoder, ImageFormat, ImageResult,
    codecs::{gif::GifDecoder, png::PngDecoder, webp::WebPDecoder, webp::WebPEncoder},
};

use super::{
    picture::{PIXELS_MAX, Source, ThumbnailError, exactly, limits, rewind, roughly},
    size::Plan,
};

/// The most frames of a thumbnail; of what has more, the first frame is shown.
const FRAMES_MAX: usize = 300;

/// The most pixels of all frames that are decoded: about two seconds of work.
const PIXELS_OF_ALL_MAX: u64 = 4 * PIXELS_MAX;

/// The largest thumbnail that moves, in bytes.
const BYTES_MAX: usize = 8 << 20;

/// How long a frame is shown that says 10 ms or less, as browsers do.
const DELAY_MS: u32 = 100;

/// Whether an image has more than one frame.
pub(super) fn moves(source: &mut dyn Source, format: ImageFormat) -> Result<bool, ThumbnailError> {
    Ok(match format {
        ImageFormat::WebP => {
            rewind(source)?;
            WebPDecoder::new(source)?.has_animation()
        }
        ImageFormat::Png => {
            rewind(source)?;
            PngDecoder::with_limits(source, limits())?.is_apng()?
        }
        // The format does not say it in advance.
        ImageFormat::Gif => frames(source, format)?.take(2).flatten().count() == 2,
        _ => false,
    })
}

/// Makes a thumbnail that moves; none if that would be too much.
pub(super) fn make(
    source: &mut dyn Source,
    format: ImageFormat,
    plan: Plan,
) -> Result<Option<Vec<u8>>, ThumbnailError> {
    let mut written = Vec::new();
    let mut pixels = 0;
    for (number, frame) in frames(source, format)?.enumerate() {
        let frame = frame?;
        pixels += u64::from(frame.buffer().width()) * u64::from(frame.buffer().height());
        if number == FRAMES_MAX || pixels > PIXELS_OF_ALL_MAX || written.len() > BYTES_MAX {
            return Ok(None);
        }
        write_frame(&mut written, frame, plan)?;
    }
    Ok(Some(container(&written, plan.middle)))
}

type Frames<'a> = Box<dyn Iterator<Item = ImageResult<Frame>> + 'a>;

fn frames(source: &mut dyn Source, format: ImageFormat) -> Result<Frames<'_>, ThumbnailError> {
    rewind(source)?;
    let frames = match format {
        ImageFormat::Gif => {
            let mut decoder = GifDecoder::new(source)?;
            decoder.set_limits(limits())?;
            decoder.into_frames()
        }
        ImageFormat::WebP => {
            let mut decoder = WebPDecoder::new(source)?;
            decoder.set_limits(limits())?;
            decoder.into_frames()
        }
        _ => PngDecoder::with_limits(source, limits())?.apng()?.into_frames(),
    };
    Ok(Box::new(frames))
}

/// Appends a frame's chunk.
fn write_frame(out: &mut Vec<u8>, frame: Frame, plan: Plan) -> Result<(), ThumbnailError> {
    let (numerator, denominator) = frame.delay().numer_denom_ms();
    let delay_ms = match numerator / denominator.max(1) {
        0..=10 => DELAY_MS,
        delay_ms => delay_ms.min(0xff_ffff),
    };
    let image = roughly(DynamicImage::ImageRgba8(frame.into_buffer()), plan.whole);
    let image = exactly(&image, plan).into_rgba8();
    let (width, height) = image.dimensions();
    let mut still = Vec::new();
    WebPEncoder::new_lossless(&mut still).encode(&image, width, height, ExtendedColorType::Rgba8)?;
    // Behind the container's head, which has 12 bytes, is the chunk of the image.
    let image = still.get(12..).unwrap_or_default();
    let mut body = Vec::with_capacity(image.len() + 16);
    for number in [0, 0, width - 1, height - 1, delay_ms] {
        body.extend_from_slice(&number.to_le_bytes()[..3]);
    }
    // The frame replaces what was there.
    body.push(0b10);
    body.extend_from_slice(image);
    write_chunk(out, *b"ANMF", &body);
    Ok(())
}

/// The file around the frames.
fn container(frames: &[u8], (width, height): (u32, u32)) -> Vec<u8> {
    let mut body = b"WEBP".to_vec();
    // It moves, and pixels may be transparent.
    let mut head = vec![0b0001_0010, 0, 0, 0];
    for side in [width - 1, height - 1] {
        head.extend_from_slice(&side.to_le_bytes()[..3]);
    }
    write_chunk(&mut body, *b"VP8X", &head);
    // Transparent behind, and again and again.
    write_chunk(&mut body, *b"ANIM", &[0; 6]);
    body.extend_from_slice(frames);
    let mut file = Vec::with_capacity(body.len() + 8);
    write_chunk(&mut file, *b"RIFF", &body);
    file
}

fn write_chunk(out: &mut Vec<u8>, name: [u8; 4], body: &[u8]) {
    out.extend_from_slice(&name);
    out.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(body);
    if body.len() % 2 == 1 {
        out.push(0);
    }
}
