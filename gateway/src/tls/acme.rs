//! Certificates from an ACME authority: obtained, kept in a folder, renewed.
//!
//! The authority looks whether a name is this server's by a TLS connection to port 443 of that name (TLS-ALPN-01), which a
//! TLS listener of this server has to get. Until there is a certificate, TLS connections of others end at once.
//!
//! Spec: RFC 8555, RFC 8737.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use actors::env::Clock;
use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http_body_util::BodyExt;
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, BodyWrapper, BytesResponse, ChallengeType, HttpClient,
    Identifier, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use tokio::{fs, io::AsyncWriteExt};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};

use super::{Tls, TlsFiles};
use crate::outbound;

/// The certificate chain and its private key, in one file, so that there is no moment in which they do not fit.
const CERTIFICATE: &str = "certificate.pem";

/// Who this server is to the authority.
const ACCOUNT: &str = "account.json";

/// How often the certificate is looked at, at least.
const LOOK_EVERY: Duration = Duration::from_secs(12 * 3600);

/// The pause after the first failure, then twice as long each time: authorities allow a few failures an hour.
const RETRY_FIRST: Duration = Duration::from_secs(5 * 60);

/// The longest pause.
const RETRY_MAX: Duration = Duration::from_secs(12 * 3600);

/// How long the authority may take to have a look, and to issue.
const AUTHORITY_MAX: Duration = Duration::from_secs(120);

/// How long one request may take.
const REQUEST_MAX: Duration = Duration::from_secs(30);

/// What is asked of whoever reads that a name could not be proven.
const UNSEEN: &str = "does port 443 of each name reach a TLS listener of this server?";

/// Which certificate is wanted of whom.
#[derive(Clone, Debug)]
pub struct AcmeSettings {
    /// The authority's directory, a URL.
    pub directory: String,
    /// Certificates, PEM, that vouch for the authority itself, if the system's do not.
    pub directory_ca: Option<PathBuf>,
    /// Whom the authority writes to, as `mailto:…`.
    pub contact: Option<String>,
    /// The names that the certificate is for.
    pub domains: Vec<String>,
}

/// Keeps a certificate.
pub struct Acme {
    settings: AcmeSettings,
    folder: PathBuf,
    tls: Arc<Tls>,
    clock: Arc<dyn Clock>,
}

/// An account as it is kept: another authority, or another contact, is another account.
#[derive(Serialize, Deserialize)]
struct StoredAccount {
    directory: String,
    contact: Option<String>,
    credentials: AccountCredentials,
}

impl Acme {
    /// Where a folder holds the certificate and its key.
    pub fn files(folder: &Path) -> TlsFiles {
        let file = folder.join(CERTIFICATE);
        TlsFiles { certificate: file.clone(), private_key: file }
    }

    /// Keeps the certificate of `folder`, which `tls` shows, made by [`Tls::to_come`] from [`Self::files`].
    pub fn new(settings: AcmeSettings, folder: PathBuf, tls: Arc<Tls>, clock: Arc<dyn Clock>) -> Self {
        Self { settings, folder, tls, clock }
    }

    /// Obtains the certificate, and renews it for as long as this is polled.
    pub async fn keep(&self) {
        let mut pause = RETRY_FIRST;
        loop {
            let wait = match self.renew_if_due().await {
                Ok(wait) => {
                    pause = RETRY_FIRST;
                    wait
                }
                Err(error) => {
                    let (error, retry_after_s) = (format!("{error:#}"), pause.as_secs());
                    tracing::error!(error, retry_after_s, "cannot get a certificate from the ACME authority");
                    let longer = (2 * pause).min(RETRY_MAX);
                    std::mem::replace(&mut pause, longer)
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Obtains a certificate if there is none for the names that are wanted, or if it is old; says when to look again.
    async fn renew_if_due(&self) -> anyhow::Result<Duration> {
        if let Some(wait) = self.good_for().await {
            return Ok(wait.min(LOOK_EVERY));
        }
        self.obtain().await?;
        self.tls.reload().context("the authority's certificate cannot be used")?;
        let wait = self.good_for().await.context(
            "the authority's certificate is for other names, or so short-lived that it is old already; is the clock right?",
        )?;
        tracing::info!(domains = ?self.settings.domains, "a new certificate is in use");
        Ok(wait.min(LOOK_EVERY))
    }

    /// For how long the certificate need not be renewed; none if it has to be now.
    async fn good_for(&self) -> Option<Duration> {
        let pem = fs::read(self.folder.join(CERTIFICATE)).await.ok()?;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().ok()?;
        let (_, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
        let names = leaf.subject_alternative_name().ok()??;
        let is_for = |domain: &String| {
            let mut names = names.value.general_names.iter();
            names.any(|name| matches!(name, GeneralName::DNSName(name) if name.eq_ignore_ascii_case(domain)))
        };
        if !self.settings.domains.iter().all(is_for) {
            return None;
        }
        let (from, to) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
        // A third of its life is left to try in.
        let due = from + (to - from) / 3 * 2;
        let now = i64::try_from(self.clock.now_ms() / 1000).ok()?;
        u64::try_from(due - now).ok().filter(|left| *left > 0).map(Duration::from_secs)
    }

    async fn obtain(&self) -> anyhow::Result<()> {
        let domains = &self.settings.domains;
        ensure!(!domains.is_empty(), "tls.acme.domains names no domain");
        let account = self.account().await.context("no account with the authority")?;
        let identifiers: Vec<_> = domains.iter().cloned().map(Identifier::Dns).collect();
        let mut order = match account.new_order(&NewOrder::new(&identifiers)).await {
            Err(error) if is_unknown_account(&error) => {
                // The next try makes another one.
                fs::remove_file(self.folder.join(ACCOUNT)).await?;
                return Err(error).context("the authority has forgotten this server's account");
            }
            order => order?,
        };
        let retries = RetryPolicy::default().timeout(AUTHORITY_MAX);
        self.authorise(&mut order, &retries).await?;
        let key = rcgen::KeyPair::generate()?;
        let mut wanted = rcgen::CertificateParams::new(domains.clone())?;
        wanted.distinguished_name = rcgen::DistinguishedName::new();
        order.finalize_csr(wanted.serialize_request(&key)?.der()).await?;
        let chain = order.poll_certificate(&retries).await?;
        let both = format!("{}\n{}", chain.trim_end(), key.serialize_pem());
        self.write(CERTIFICATE, both.as_bytes()).await.context("cannot keep the certificate")
    }

    /// Proves that the names are this server's.
    async fn authorise(&self, order: &mut Order, retries: &RetryPolicy) -> anyhow::Result<()> {
        let mut shown = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            match authorization.status {
                AuthorizationStatus::Pending => {}
                AuthorizationStatus::Valid => continue,
                status => bail!("{} is {status:?}", authorization.identifier()),
            }
            let mut challenge = authorization
                .challenge(ChallengeType::TlsAlpn01)
                .context("the authority does not offer to look by TLS (TLS-ALPN-01)")?;
            let domain = challenge.identifier().to_string();
            shown.push(self.tls.show_proof(&domain, challenge.key_authorization().digest().as_ref())?);
            challenge.set_ready().await.with_context(|| domain)?;
        }
        match order.poll_ready(retries).await.context(UNSEEN)? {
            OrderStatus::Ready => Ok(()),
            status => bail!("the order is {status:?}: {UNSEEN}"),
        }
    }

    /// The account with the authority, made on first use.
    async fn account(&self) -> anyhow::Result<Account> {
        let AcmeSettings { directory, contact, .. } = &self.settings;
        let builder = Account::builder_with_http(Box::new(Http::new(self.settings.directory_ca.as_ref())?));
        if let Ok(stored) = fs::read(self.folder.join(ACCOUNT)).await {
            let stored: StoredAccount = serde_json::from_slice(&stored)
                .with_context(|| format!("{} is damaged: remove it", self.folder.join(ACCOUNT).display()))?;
            if stored.directory == *directory && stored.contact == *contact {
                return Ok(builder.from_credentials(stored.credentials).await?);
            }
        }
        let contacts: Vec<_> = contact.iter().map(String::as_str).collect();
        let new =
            NewAccount { contact: &contacts, terms_of_service_agreed: true, only_return_existing: false };
        let (account, credentials) = builder.create(&new, directory.clone(), None).await?;
        let stored = StoredAccount { directory: directory.clone(), contact: contact.clone(), credentials };
        self.write(ACCOUNT, &serde_json::to_vec(&stored)?).await.context("cannot keep the account")?;
        Ok(account)
    }

    /// Writes a file that only the server's user can read, all at once.
    async fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).await?;
        let new = self.folder.join(format!("{name}.new"));
        let mut file = fs::OpenOptions::new();
        let mut file = file.write(true).create(true).truncate(true).mode(0o600).open(&new).await?;
        file.write_all(content).await?;
        file.sync_all().await?;
        fs::rename(&new, self.folder.join(name)).await
    }
}

/// Spec: RFC 8555, section 6.7.
fn is_unknown_account(error: &instant_acme::Error) -> bool {
    const UNKNOWN: &str = "urn:ietf:params:acme:error:accountDoesNotExist";
    matches!(error, instant_acme::Error::Api(problem) if problem.r#type.as_deref() == Some(UNKNOWN))
}

/// Requests to the authority.
struct Http(reqwest::Client);

impl Http {
    fn new(ca: Option<&PathBuf>) -> anyhow::Result<Self> {
        let roots = outbound::roots(ca.map(std::slice::from_ref).unwrap_or_default())?;
        let client = reqwest::Client::builder()
            .user_agent(concat!("Ganglion/", env!("CARGO_PKG_VERSION")))
            .https_only(true)
            .timeout(REQUEST_MAX)
            .tls_certs_merge(roots)
            .build()?;
        Ok(Self(client))
    }
}

type Answer = Result<BytesResponse, instant_acme::Error>;

impl HttpClient for Http {
    fn request(
        &self,
        request: http::Request<BodyWrapper<Bytes>>,
    ) -> std::pin::Pin<Box<dyn Future<Output = Answer> + Send>> {
        let client = self.0.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let Ok(body) = body.collect().await;
            let outgoing = client.request(parts.method, parts.uri.to_string()).headers(parts.headers);
            let answer = outgoing.body(body.to_bytes()).send().await;
            let answer = answer.map_err(|error| instant_acme::Error::Other(error.into()))?;
            Ok(BytesResponse::from(http::Response::<reqwest::Body>::from(answer)))
        })
    }
}

#[cfg(test)]
mod tests;
