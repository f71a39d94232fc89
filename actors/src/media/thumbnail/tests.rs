use std::{io::Cursor, sync::Arc, time::Duration};

use image::{
    AnimationDecoder, Delay, DynamicImage, Frame, ImageEncoder, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage,
    codecs::{gif::GifEncoder, jpeg::JpegEncoder, webp::WebPDecoder},
};
use ruma::{owned_server_name, user_id};
use storage::{Direction, Durability, KeyRange, MemoryStore, Storage};

use super::{picture::make, size::Size, *};
use crate::{
    env::{Env, ManualClock, SeededEntropy},
    media::{MediaConfig, Meta},
};

const BOX: Size = Size { width: 96, height: 96, method: Method::Scale };

fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.write_to(&mut Cursor::new(&mut bytes), format).unwrap();
    bytes
}

/// A picture with a red left half and a blue right one.
fn halves(width: u32, height: u32) -> DynamicImage {
    let color = |x| if x < width / 2 { Rgb([250, 0, 0]) } else { Rgb([0, 0, 250]) };
    RgbImage::from_fn(width, height, |x, _| color(x)).into()
}

/// A GIF of as many frames, each of another color.
fn gif(width: u32, height: u32, frames: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new(&mut bytes);
    for number in 0..frames {
        let image = RgbaImage::from_pixel(width, height, Rgba([number * 60, 0, 200, 255]));
        let delay = Delay::from_numer_denom_ms(50, 1);
        encoder.encode_frame(Frame::from_parts(image, 0, 0, delay)).unwrap();
    }
    drop(encoder);
    bytes
}

fn made(bytes: &[u8], size: Option<Size>, animated: bool) -> (DynamicImage, Vec<u8>, &'static str) {
    match make(&mut Cursor::new(bytes), size, animated).unwrap() {
        Thumbnail::Made { bytes, content_type } => {
            (image::load_from_memory(&bytes).unwrap(), bytes, content_type)
        }
        Thumbnail::Original(_) => panic!("nothing was made"),
    }
}

fn refused(bytes: &[u8]) -> ThumbnailError {
    make(&mut Cursor::new(bytes), Some(BOX), true).unwrap_err()
}

#[test]
fn each_format_becomes_one_that_browsers_show() {
    for (format, expected) in [
        (ImageFormat::Png, "image/png"),
        (ImageFormat::Jpeg, "image/jpeg"),
        (ImageFormat::Gif, "image/png"),
        (ImageFormat::WebP, "image/jpeg"),
    ] {
        let (image, _, content_type) = made(&encoded(&halves(800, 400), format), Some(BOX), false);
        assert_eq!((image.width(), image.height(), content_type), (96, 48, expected), "{format:?}");
        let image = image.to_rgb8();
        assert!(image.get_pixel(10, 20).0[0] > 200 && image.get_pixel(85, 20).0[2] > 200, "{format:?}");
    }
    let clear: DynamicImage = RgbaImage::from_pixel(200, 200, Rgba([9, 9, 9, 0])).into();
    let (image, _, content_type) = made(&encoded(&clear, ImageFormat::WebP), Some(BOX), false);
    assert_eq!((content_type, image.to_rgba8().get_pixel(5, 5).0[3]), ("image/png", 0));
}

#[test]
fn a_crop_keeps_the_middle() {
    let size = Size { width: 32, height: 32, method: Method::Crop };
    let (image, ..) = made(&encoded(&halves(400, 100), ImageFormat::Png), Some(size), false);
    let image = image.to_rgb8();
    assert_eq!(image.dimensions(), (32, 32));
    assert!(image.get_pixel(2, 5).0[0] > 200 && image.get_pixel(30, 5).0[2] > 200);
}

#[test]
fn a_photo_is_turned_as_its_camera_was() {
    // TIFF, one entry: orientation 6, to be turned to the right by 90 degrees.
    let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new(&mut bytes);
    encoder.set_exif_metadata(exif).unwrap();
    encoder.encode_image(&halves(800, 400)).unwrap();
    let (image, ..) = made(&bytes, Some(BOX), false);
    let image = image.to_rgb8();
    assert_eq!(image.dimensions(), (48, 96));
    assert!(image.get_pixel(20, 10).0[0] > 200 && image.get_pixel(20, 85).0[2] > 200);
}

#[test]
fn what_is_small_already_stays_as_it_is() {
    let small = encoded(&halves(90, 96), ImageFormat::Jpeg);
    let original = make(&mut Cursor::new(&small), Some(BOX), false).unwrap();
    assert_eq!(original, Thumbnail::Original("image/jpeg"));
    let whole = encoded(&halves(900, 9), ImageFormat::WebP);
    assert_eq!(make(&mut Cursor::new(&whole), None, true).unwrap(), Thumbnail::Original("image/webp"));
}

#[test]
fn what_moves_does_so_only_for_those_who_want_it() {
    let (image, bytes, content_type) = made(&gif(300, 200, 4), Some(BOX), true);
    assert_eq!((image.width(), image.height(), content_type), (96, 64, "image/webp"));
    let decoder = WebPDecoder::new(Cursor::new(bytes)).unwrap();
    let frames = decoder.into_frames().collect_frames().unwrap();
    assert_eq!(frames.len(), 4);
    for (number, frame) in frames.iter().enumerate() {
        assert_eq!(frame.delay().numer_denom_ms(), (50, 1));
        let red = i32::from(frame.buffer().get_pixel(40, 30).0[0]);
        assert!((red - 60 * i32::try_from(number).unwrap()).abs() < 8, "frame {number}: {red}");
    }
    for size in [Some(BOX), None, Some(Size { width: 640, height: 480, method: Method::Scale })] {
        let (_, bytes, content_type) = made(&gif(300, 200, 4), size, false);
        assert_eq!(content_type, "image/png");
        assert!(bytes.len() < 10_000);
    }
    assert_eq!(
        make(&mut Cursor::new(gif(30, 20, 4)), Some(BOX), true).unwrap(),
        Thumbnail::Original("image/gif")
    );
    // One frame does not move, and neither does what has too many.
    assert_eq!(made(&gif(300, 200, 1), Some(BOX), true).2, "image/png");
    let broken = gif(300, 200, 4);
    assert_eq!(made(&broken[..broken.len() / 2], Some(BOX), true).2, "image/png");
}

#[test]
fn bombs_and_what_is_no_image_are_refused() {
    let mut bomb = encoded(&halves(10, 10), ImageFormat::Png);
    // The header's width and height, 60,000 each, with its checksum.
    bomb[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    let checksum = crc32(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&checksum.to_be_bytes());
    assert_eq!(refused(&bomb), ThumbnailError::TooLarge);
    for bytes in
        [&b""[..], b"tea", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x89PNG\r\n\x1a\n", b"GIF89a"]
    {
        assert!(matches!(refused(bytes), ThumbnailError::Undecodable(_)), "{bytes:?}");
    }
}

/// The checksum of PNG's chunks.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    })
}

async fn repository() -> MediaRepository {
    let env = Env { clock: Arc::new(ManualClock::new(1)), entropy: Arc::new(SeededEntropy::new(7)) };
    let storage = Storage::open(Arc::new(MemoryStore::new()), Durability::Always).await.unwrap();
    MediaRepository::new(owned_server_name!("example.org"), MediaConfig::default(), env, storage)
}

#[tokio::test]
async fn many_who_want_the_same_get_one_that_was_made_once() {
    let repository = repository().await;
    let upload = async |bytes: Vec<u8>| {
        let body = futures_util::stream::iter([Ok::<_, std::io::Error>(bytes.into())]);
        let uri =
            repository.upload(user_id!("@alice:example.org"), Meta::default(), None, body).await.unwrap();
        let media_id = uri.media_id().unwrap().to_owned();
        repository.find_local(&media_id, Duration::ZERO, false).await.unwrap()
    };
    let wanted = Wanted { width: 60, height: 80, method: Method::Crop, animated: false };
    let image = upload(encoded(&halves(800, 400), ImageFormat::Png)).await;
    let asked = (0..8).map(|_| repository.thumbnail_of(image.clone(), &wanted));
    let thumbnails = futures_util::future::try_join_all(asked).await.unwrap();
    assert!(thumbnails.iter().all(|thumbnail| thumbnail.content == thumbnails[0].content));
    assert_eq!(thumbnails[0].filename.as_deref(), Some("thumbnail.png"));
    let all = KeyRange::all();
    let rows = repository.0.storage.range(&schema::THUMBNAILS, all, Direction::Ascending, 100).await.unwrap();
    assert_eq!(rows.len(), 1, "{rows:?}");
    let text = upload(b"tea".to_vec()).await;
    for _ in 0..2 {
        let refused = repository.thumbnail_of(text.clone(), &wanted).await;
        assert!(matches!(
            refused,
            Err(MediaError::Thumbnail { error: ThumbnailError::Undecodable(_), is_remote: false })
        ));
    }
}
