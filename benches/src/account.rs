//! Users for a run: by open registration, or with the shared secret that other servers' tools know.

use std::fmt::Write;

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use hmac::{Hmac, KeyInit, Mac};
use http::Method;
use serde_json::{Value, json};
use sha1::Sha1;

use crate::client::{Client, text};

/// The password of all users.
pub(crate) const PASSWORD: &str = "correct horse battery staple";

/// Registrations under way at a time: hashing passwords keeps a server busy enough.
const AT_A_TIME: usize = 8;

/// Makes users on a homeserver.
#[derive(Clone, Debug)]
pub struct Accounts {
    /// The client-server API's base URL.
    pub base: String,
    /// The secret of `/_synapse/admin/v1/register`; open registration without one.
    pub shared_secret: Option<String>,
    /// Part of every user's name, so that runs on one server do not meet.
    pub run: String,
}

impl Accounts {
    /// Registers one user.
    pub async fn one(&self, name: &str) -> Result<Client> {
        let name = format!("{name}-{}", self.run);
        let nobody = Client::anonymous(&self.base);
        let answer = match &self.shared_secret {
            Some(secret) => with_secret(&nobody, &name, secret).await,
            None => openly(&nobody, &name).await,
        };
        nobody.logged_in(&answer.with_context(|| format!("cannot register {name}"))?)
    }

    /// Registers users, some at a time; in their order.
    pub async fn many(&self, name: &str, count: usize) -> Result<Vec<Client>> {
        let users = (0..count).map(|index| async move { self.one(&format!("{name}{index}")).await });
        stream::iter(users).buffered(AT_A_TIME).try_collect().await
    }
}

async fn openly(nobody: &Client, name: &str) -> Result<Value> {
    let body = json!({ "username": name, "password": PASSWORD, "auth": { "type": "m.login.dummy" } });
    nobody.call(Method::POST, "/_matrix/client/v3/register", Some(&body)).await
}

async fn with_secret(nobody: &Client, name: &str, secret: &str) -> Result<Value> {
    const PATH: &str = "/_synapse/admin/v1/register";
    let nonce = text(&nobody.call(Method::GET, PATH, None).await?, "nonce")?;
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).context("an unusable secret")?;
    mac.update([&*nonce, name, PASSWORD, "notadmin"].join("\0").as_bytes());
    let mac = mac.finalize().into_bytes().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}"); // a string takes everything
        hex
    });
    let body = json!({ "nonce": nonce, "username": name, "password": PASSWORD, "admin": false, "mac": mac });
    nobody.call(Method::POST, PATH, Some(&body)).await
}
