//! Smaller versions of images.

use std::io::Cursor;

use image::{Delay, DynamicImage, Frame, ImageFormat, Rgb, RgbImage, RgbaImage, codecs::gif::GifEncoder};
use reqwest::{Response, header};
use tests::Server;

use super::{get, header_of, outcome, upload};

const THUMBNAIL: &str = "/_matrix/client/v1/media/thumbnail";

/// A picture, red on the left and blue on the right.
pub(crate) fn picture(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
    let color = |x| if x < width / 2 { Rgb([250, 0, 0]) } else { Rgb([0, 0, 250]) };
    let image: DynamicImage = RgbImage::from_fn(width, height, |x, _| color(x)).into();
    let mut bytes = Vec::new();
    image.write_to(&mut Cursor::new(&mut bytes), format).unwrap();
    bytes
}

/// A GIF of three frames.
fn animation(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new(&mut bytes);
    for number in 0..3 {
        let image = RgbaImage::from_pixel(width, height, image::Rgba([number * 80, 0, 0, 255]));
        encoder.encode_frame(Frame::from_parts(image, 0, 0, Delay::from_numer_denom_ms(70, 1))).unwrap();
    }
    drop(encoder);
    bytes
}

/// Width, height and type of an image in a response.
pub(crate) async fn seen(response: Response) -> (u32, u32, String) {
    assert_eq!(response.status(), 200);
    let content_type = header_of(&response, header::CONTENT_TYPE);
    let image = image::load_from_memory(&response.bytes().await.unwrap()).unwrap();
    (image.width(), image.height(), content_type)
}

#[tokio::test]
async fn an_image_is_had_in_a_size_that_is_large_enough_and_not_larger_than_it_is() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let jpeg = picture(1000, 500, ImageFormat::Jpeg);
    let large = upload(&server, &alice, "image/jpeg", "?filename=tea.jpg", &jpeg).await;
    let see = async |place: &str, query: &str| {
        seen(get(&server, &bob, &format!("{THUMBNAIL}/{place}?{query}"), &[]).await).await
    };
    let a_jpeg = |width, height| (width, height, "image/jpeg".to_owned());
    for (query, expected) in [
        ("width=32&height=32&method=crop", a_jpeg(32, 32)),
        ("width=90&height=90&method=crop&animated=true", a_jpeg(96, 96)),
        ("width=320&height=240&method=scale", a_jpeg(320, 160)),
        ("width=300&height=10", a_jpeg(320, 160)),
        ("width=800&height=600&method=scale&timeout_ms=10", a_jpeg(800, 400)),
        ("width=900&height=900&method=scale", a_jpeg(1000, 500)),
        ("width=4000000000&height=1&method=crop", a_jpeg(1000, 500)),
    ] {
        assert_eq!(see(&large, query).await, expected, "{query}");
    }
    let path = format!("{THUMBNAIL}/{large}?width=32&height=32&method=crop");
    let response = get(&server, &bob, &path, &[]).await;
    assert_eq!(header_of(&response, header::CONTENT_DISPOSITION), "inline; filename=thumbnail.jpeg");
    assert_eq!(header_of(&response, header::X_CONTENT_TYPE_OPTIONS), "nosniff");
    assert!(header_of(&response, header::CONTENT_SECURITY_POLICY).starts_with("sandbox;"));
    assert_eq!(response.headers()["cross-origin-resource-policy"], "cross-origin");

    let small = upload(&server, &alice, "text/html", "", &picture(20, 10, ImageFormat::Png)).await;
    assert_eq!(see(&small, "width=32&height=32&method=crop").await, (20, 10, "image/png".to_owned()));
    let moving = upload(&server, &alice, "image/gif", "", &animation(400, 400)).await;
    let query = "width=96&height=96&method=scale";
    assert_eq!(see(&moving, &format!("{query}&animated=true")).await, (96, 96, "image/webp".to_owned()));
    for query in [query, &format!("{query}&animated=false"), "width=400&height=400"] {
        assert!(see(&moving, query).await.2 == "image/png", "{query}");
    }
}

#[tokio::test]
async fn what_cannot_be_made_smaller_is_said_so() {
    let server = Server::start_with_settings(&[("media.legacy_endpoints", "true")]).await;
    let (alice, nobody) = (server.client("alice").await, server.anonymous());
    let text = upload(&server, &alice, "image/png", "", b"no picture").await;
    let picture = picture(200, 200, ImageFormat::Png);
    let image = upload(&server, &alice, "image/png", "", &picture).await;
    // A header that promises 60,000 by 60,000 pixels; its checksum is left wrong on purpose.
    let mut bomb = picture.clone();
    bomb[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    let bomb = upload(&server, &alice, "image/png", "", &bomb).await;
    let ask = async |place: &str, query: &str| {
        outcome(get(&server, &alice, &format!("{THUMBNAIL}/{place}?{query}"), &[]).await).await
    };
    let size = "width=10&height=10";
    for _ in 0..2 {
        assert_eq!(ask(&text, size).await, (400, "M_UNKNOWN".to_owned()));
    }
    // Kinds of files that are shown to people, but of which nothing smaller is made.
    for (kind, beginning) in [
        ("image/avif", &b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf"[..]),
        ("image/svg+xml", b"<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"9\" height=\"9\"/>"),
        ("video/mp4", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom"),
    ] {
        let file = upload(&server, &alice, kind, "", beginning).await;
        assert_eq!(ask(&file, size).await, (400, "M_UNKNOWN".to_owned()), "{kind}");
    }
    assert_eq!(ask(&bomb, size).await.0 / 100, 4);
    assert_eq!(ask("localhost/unknown", size).await, (404, "M_NOT_FOUND".to_owned()));
    for wrong in ["width=10", "height=10", ""] {
        assert_eq!(ask(&image, wrong).await, (400, "M_MISSING_PARAM".to_owned()), "{wrong}");
    }
    for wrong in
        ["width=-1&height=10", "width=1.5&height=1", "width=0&height=1", "width=1&height=1&method=stretch"]
    {
        assert_eq!(ask(&image, wrong).await, (400, "M_INVALID_PARAM".to_owned()), "{wrong}");
    }
    nobody.get(&format!("{THUMBNAIL}/{image}?{size}")).await.is(401, "M_MISSING_TOKEN");
    // What came before the freeze is seen by everybody.
    let old = format!("/_matrix/media/v3/thumbnail/{image}?{size}&method=crop&allow_remote=false");
    assert_eq!(seen(get(&server, &nobody, &old, &[]).await).await.0, 32);
    nobody.get(&format!("/_matrix/media/r0/thumbnail/localhost/unknown?{size}")).await.is(404, "M_NOT_FOUND");
}
