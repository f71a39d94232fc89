//! From an image's bytes to a thumbnail's: nothing here waits, and everything has a limit.

use std::io::{BufRead, Cursor, Seek, SeekFrom};

use image::{
    DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder, ImageError, ImageFormat, ImageReader,
    Limits,
    codecs::{jpeg::JpegEncoder, png::PngEncoder},
    imageops::FilterType,
    metadata::Orientation,
};

use super::{
    animation,
    size::{Plan, Size},
};

/// The most pixels of an image that is decoded: 32 megapixels take 128 MiB at four bytes each.
pub(super) const PIXELS_MAX: u64 = 32 << 20;

/// The longest side of an image that is decoded.
const SIDE_MAX: u32 = 1 << 15;

/// What a decoder may allocate in bytes, the image included.
const ALLOCATION_MAX: u64 = 256 << 20;

/// The quality of JPEG thumbnails: higher ones are larger and look the same.
const JPEG_QUALITY: u8 = 82;

/// Bytes that can be read anywhere.
pub(crate) trait Source: BufRead + Seek + Send {}

impl<T: BufRead + Seek + Send> Source for T {}

/// Why there is no thumbnail.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThumbnailError {
    /// The bytes are no image that this server can read.
    #[error("there are no thumbnails of this content: {0}")]
    Undecodable(String),
    /// The image is larger than this server decodes.
    #[error("the content is too large to thumbnail")]
    TooLarge,
    /// Too many thumbnails are being made.
    #[error("too many thumbnails are being made")]
    Busy,
}

impl From<ImageError> for ThumbnailError {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Limits(_) => Self::TooLarge,
            error => Self::Undecodable(error.to_string()),
        }
    }
}

/// What there is to send.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Thumbnail {
    /// A new image.
    Made {
        /// Its bytes.
        bytes: Vec<u8>,
        /// Their type.
        content_type: &'static str,
    },
    /// The image itself, of this type: it is not larger than what is wanted.
    Original(&'static str),
}

/// What the image's first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The width in pixels, as the image is shown.
    pub(crate) width: u32,
    /// The height in pixels, as the image is shown.
    pub(crate) height: u32,
    /// The `Content-Type`.
    pub(crate) content_type: &'static str,
}

/// Makes a thumbnail of a size, or of the size that the image has.
pub(super) fn make(
    source: &mut dyn Source,
    size: Option<Size>,
    animated: bool,
) -> Result<Thumbnail, ThumbnailError> {
    let format = format(source)?;
    let (facts, orientation) = examine(source, format)?;
    let plan = size.and_then(|size| size.plan((facts.width, facts.height)));
    match plan {
        // It is not larger than what is wanted, and moves only for those who want it.
        None if animated || !animation::moves(source, format)? => {
            return Ok(Thumbnail::Original(facts.content_type));
        }
        Some(plan) if animated && animation::moves(source, format)? => {
            // What is damaged later on has a first frame still.
            if let Ok(Some(bytes)) = animation::make(source, format, plan) {
                return Ok(Thumbnail::Made { bytes, content_type: "image/webp" });
            }
        }
        _ => {}
    }
    still(source, format, plan, orientation)
}

/// What an image is, without decoding all of it.
pub(super) fn facts(source: &mut dyn Source) -> Result<Facts, ThumbnailError> {
    let format = format(source)?;
    Ok(examine(source, format)?.0)
}

/// The format that the first bytes tell, whatever the upload was called.
fn format(source: &mut dyn Source) -> Result<ImageFormat, ThumbnailError> {
    let undecodable = |error: std::io::Error| ThumbnailError::Undecodable(error.to_string());
    rewind(source)?;
    let reader = ImageReader::new(&mut *source).with_guessed_format().map_err(undecodable)?;
    match reader.format() {
        Some(format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::Gif | ImageFormat::WebP)) => {
            Ok(format)
        }
        _ => Err(ThumbnailError::Undecodable("it is none of PNG, JPEG, GIF and WebP".to_owned())),
    }
}

pub(super) fn rewind(source: &mut dyn Source) -> Result<(), ThumbnailError> {
    let rewound = source.seek(SeekFrom::Start(0));
    rewound.map(drop).map_err(|error| ThumbnailError::Undecodable(error.to_string()))
}

/// What a decoder may use.
pub(super) fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_image_width = Some(SIDE_MAX);
    limits.max_image_height = Some(SIDE_MAX);
    limits.max_alloc = Some(ALLOCATION_MAX);
    limits
}

fn decoder(source: &mut dyn Source, format: ImageFormat) -> Result<impl ImageDecoder + '_, ThumbnailError> {
    rewind(source)?;
    let mut reader = ImageReader::with_format(source, format);
    reader.limits(limits());
    let decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > PIXELS_MAX {
        return Err(ThumbnailError::TooLarge);
    }
    Ok(decoder)
}

fn examine(source: &mut dyn Source, format: ImageFormat) -> Result<(Facts, Orientation), ThumbnailError> {
    let mut decoder = decoder(source, format)?;
    // Damaged metadata are no reason to refuse the image.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let (width, height) = turned(decoder.dimensions(), orientation);
    if width == 0 || height == 0 {
        return Err(ThumbnailError::Undecodable("it has no pixels".to_owned()));
    }
    Ok((Facts { width, height, content_type: format.to_mime_type() }, orientation))
}

/// Width and height after, or before, an orientation is applied.
fn turned((width, height): (u32, u32), orientation: Orientation) -> (u32, u32) {
    match orientation {
        Orientation::Rotate90
        | Orientation::Rotate270
        | Orientation::Rotate90FlipH
        | Orientation::Rotate270FlipH => (height, width),
        _ => (width, height),
    }
}

/// Makes a thumbnail that does not move.
fn still(
    source: &mut dyn Source,
    format: ImageFormat,
    plan: Option<Plan>,
    orientation: Orientation,
) -> Result<Thumbnail, ThumbnailError> {
    let mut image = DynamicImage::from_decoder(decoder(source, format)?)?;
    if let Some(plan) = plan {
        image = roughly(image, turned(plan.whole, orientation));
    }
    image.apply_orientation(orientation);
    if let Some(plan) = plan {
        image = exactly(&image, plan);
    }
    encode(&image, format)
}

/// Brings a much larger image near a size, quickly: what follows is careful, and slow on many pixels.
pub(super) fn roughly(image: DynamicImage, (width, height): (u32, u32)) -> DynamicImage {
    let is_much = image.width() / 4 >= width && image.height() / 4 >= height;
    if is_much { image.thumbnail_exact(width * 2, height * 2) } else { image }
}

/// Brings an image to its size and cuts it.
pub(super) fn exactly(image: &DynamicImage, plan: Plan) -> DynamicImage {
    let ((width, height), (across, down)) = (plan.whole, plan.middle);
    let whole = image.resize_exact(width, height, FilterType::CatmullRom);
    if plan.whole == plan.middle {
        return whole;
    }
    whole.crop_imm((width - across) / 2, (height - down) / 2, across, down)
}

/// As JPEG where nothing is lost that one would see, else as PNG.
fn encode(image: &DynamicImage, format: ImageFormat) -> Result<Thumbnail, ThumbnailError> {
    let mut bytes = Vec::new();
    let photo = matches!(format, ImageFormat::Jpeg | ImageFormat::WebP);
    if photo && !shows_through(image) {
        let image = image.to_rgb8();
        JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY).encode_image(&image)?;
        return Ok(Thumbnail::Made { bytes, content_type: "image/jpeg" });
    }
    let (width, height) = (image.width(), image.height());
    let encoder = PngEncoder::new(Cursor::new(&mut bytes));
    if shows_through(image) {
        encoder.write_image(&image.to_rgba8(), width, height, ExtendedColorType::Rgba8)?;
    } else {
        encoder.write_image(&image.to_rgb8(), width, height, ExtendedColorType::Rgb8)?;
    }
    Ok(Thumbnail::Made { bytes, content_type: "image/png" })
}

/// Whether a pixel is not opaque.
fn shows_through(image: &DynamicImage) -> bool {
    image.color().has_alpha() && image.to_rgba8().pixels().any(|pixel| pixel.0[3] != u8::MAX)
}
