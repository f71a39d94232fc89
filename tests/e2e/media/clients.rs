//! Files and pictures through the published crate `matrix-sdk`.

use std::io::Cursor;

use image::ImageFormat;
use matrix_sdk::{
    Client,
    media::{MediaFormat, MediaRequestParameters, MediaThumbnailSettings},
    ruma::{
        OwnedMxcUri, api::client::media::get_content_thumbnail::v3::Method, events::room::MediaSource, uint,
    },
};
use tests::Server;

use super::thumbnails::picture;

async fn log_in(server: &Server, user: &tests::Client) -> Client {
    let client = Client::builder().homeserver_url(server.url()).build().await.unwrap();
    client.matrix_auth().login_username(&user.user_id, &user.password()).send().await.unwrap();
    client
}

async fn content(client: &Client, source: MediaSource, format: MediaFormat) -> Vec<u8> {
    let request = MediaRequestParameters { source, format };
    client.media().get_media_content(&request, false).await.unwrap()
}

async fn upload(client: &Client, content_type: &str, bytes: &[u8]) -> OwnedMxcUri {
    let content_type = content_type.parse().unwrap();
    client.media().upload(&content_type, bytes.to_vec(), None).await.unwrap().content_uri
}

#[tokio::test]
async fn matrix_sdk_shares_files_pictures_and_secrets() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let (alice, bob) = (log_in(&server, &alice).await, log_in(&server, &bob).await);
    let uri = upload(&alice, "text/plain", b"tea").await;
    assert_eq!(content(&bob, MediaSource::Plain(uri), MediaFormat::File).await, b"tea");

    let image = upload(&alice, "image/png", &picture(400, 300, ImageFormat::Png)).await;
    let settings = MediaThumbnailSettings::with_method(Method::Crop, uint!(96), uint!(96));
    let thumbnail = content(&bob, MediaSource::Plain(image), MediaFormat::Thumbnail(settings)).await;
    let thumbnail = image::load_from_memory(&thumbnail).unwrap();
    assert_eq!((thumbnail.width(), thumbnail.height()), (96, 96));

    let later = alice.media().create_content_uri().await.unwrap();
    let uri = later.uri.clone();
    alice
        .media()
        .upload_preallocated(later, &"text/plain".parse().unwrap(), b"later".to_vec())
        .await
        .unwrap();
    assert_eq!(content(&bob, MediaSource::Plain(uri), MediaFormat::File).await, b"later");

    let mut secret = Cursor::new(b"a secret".to_vec());
    let file = alice.upload_encrypted_file(&mut secret).await.unwrap();
    let source = MediaSource::Encrypted(Box::new(file));
    assert_eq!(content(&bob, source, MediaFormat::File).await, b"a secret");

    // A picture of oneself is media like others.
    let avatar = picture(50, 50, ImageFormat::Jpeg);
    alice.account().upload_avatar(&"image/jpeg".parse().unwrap(), avatar.clone()).await.unwrap();
    let seen = bob.account().fetch_user_profile_of(alice.user_id().unwrap()).await.unwrap();
    let uri: OwnedMxcUri = seen.get("avatar_url").unwrap().as_str().unwrap().into();
    assert_eq!(content(&bob, MediaSource::Plain(uri), MediaFormat::File).await, avatar);
}
