//! TLS in process: the certificate, read again when its file changes.

mod acme;

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use parking_lot::Mutex;
use rustls::{
    ConfigBuilder, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{Acceptor, ClientHello, WantsServerCert},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

pub use self::acme::{Acme, AcmeSettings};

/// How often the files are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How long a client may take to agree on a connection.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// What a connection asks for by which an ACME authority looks whose a name is.
///
/// Spec: RFC 8737, section 6.2.
const ACME_TLS: &[u8] = b"acme-tls/1";

/// Where certificate and key are.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate chain, PEM.
    pub certificate: PathBuf,
    /// The private key, PEM.
    pub private_key: PathBuf,
}

/// What a TLS listener needs.
pub struct Tls {
    files: TlsFiles,
    current: Mutex<Current>,
    /// By the names that an authority looks at just now.
    proofs: Mutex<BTreeMap<String, Arc<ServerConfig>>>,
}

struct Current {
    /// None until there is a certificate.
    config: Option<Arc<ServerConfig>>,
    changed: Option<SystemTime>,
    looked: Instant,
}

impl Tls {
    /// Reads certificate and key.
    pub fn load(files: TlsFiles) -> anyhow::Result<Self> {
        let config = config(&files)?;
        Ok(Self::new(files, Some(config)))
    }

    /// Reads certificate and key, if they are there already.
    pub fn to_come(files: TlsFiles) -> Self {
        let config = config(&files).ok();
        Self::new(files, config)
    }

    fn new(files: TlsFiles, config: Option<Arc<ServerConfig>>) -> Self {
        let current = Current { config, changed: changed(&files), looked: Instant::now() };
        Self { files, current: Mutex::new(current), proofs: Mutex::default() }
    }

    /// Agrees with a client on an encrypted connection.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let agreed = tokio::time::timeout(HANDSHAKE_MAX, self.agree(stream)).await;
        agreed.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn agree(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let hello = start.client_hello();
        let config = match looked_at(&hello) {
            Some(name) => self.proofs.lock().get(name).cloned(),
            None => self.config(),
        };
        let config = config.ok_or_else(|| io::Error::other("there is no certificate for this"))?;
        start.into_stream(config).await
    }

    /// Reads certificate and key again.
    fn reload(&self) -> anyhow::Result<()> {
        let (config, changed) = (config(&self.files)?, changed(&self.files));
        *self.current.lock() = Current { config: Some(config), changed, looked: Instant::now() };
        Ok(())
    }

    /// Shows an ACME authority the proof that a name is this server's, until what it returns is dropped.
    ///
    /// Spec: RFC 8737, section 3.
    fn show_proof(&self, name: &str, digest: &[u8]) -> anyhow::Result<ShownProof<'_>> {
        let key = rcgen::KeyPair::generate()?;
        let mut proof = rcgen::CertificateParams::new([name.to_owned()])?;
        proof.custom_extensions.push(rcgen::CustomExtension::new_acme_identifier(digest));
        let certificate = proof.self_signed(&key)?.der().clone();
        let config = proving(certificate, PrivateKeyDer::Pkcs8(key.serialize_der().into()))?;
        let name = name.to_ascii_lowercase();
        self.proofs.lock().insert(name.clone(), config);
        Ok(ShownProof { tls: self, name })
    }

    fn config(&self) -> Option<Arc<ServerConfig>> {
        let mut current = self.current.lock();
        if current.looked.elapsed() >= LOOK_EVERY {
            current.looked = Instant::now();
            let changed = changed(&self.files);
            if changed != current.changed {
                match config(&self.files) {
                    Ok(config) => {
                        tracing::info!("the certificate changed and is in use");
                        current.config = Some(config);
                        current.changed = changed;
                    }
                    // Half-written, perhaps: the one in use is good for the time being.
                    Err(error) => tracing::warn!(%error, "the certificate changed and cannot be used"),
                }
            }
        }
        current.config.clone()
    }
}

/// Says that a proof is shown, for as long as it is there.
struct ShownProof<'a> {
    tls: &'a Tls,
    name: String,
}

impl Drop for ShownProof<'_> {
    fn drop(&mut self) {
        self.tls.proofs.lock().remove(&self.name);
    }
}

/// The name for which an ACME authority wants to see a proof, if this is one that looks.
fn looked_at<'a>(hello: &'a ClientHello<'_>) -> Option<&'a str> {
    hello.alpn()?.eq([ACME_TLS]).then(|| hello.server_name()).flatten()
}

fn changed(files: &TlsFiles) -> Option<SystemTime> {
    let changed = |path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    changed(&files.certificate).max(changed(&files.private_key))
}

fn config(files: &TlsFiles) -> anyhow::Result<Arc<ServerConfig>> {
    let read = || format!("cannot read {}", files.certificate.display());
    let chain = CertificateDer::pem_file_iter(&files.certificate)
        .with_context(read)?
        .collect::<Result<Vec<_>, _>>()
        .with_context(read)?;
    let key = PrivateKeyDer::from_pem_file(&files.private_key)
        .with_context(|| format!("cannot read {}", files.private_key.display()))?;
    let mut config =
        builder()?.with_single_cert(chain, key).context("certificate and private key do not fit together")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Shows a proof to an ACME authority. What rustls checks of other certificates does not know the extension in it.
fn proving(
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> anyhow::Result<Arc<ServerConfig>> {
    let key = provider().key_provider.load_private_key(key)?;
    let shown = SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key));
    let mut config = builder()?.with_cert_resolver(Arc::new(shown));
    config.alpn_protocols = vec![ACME_TLS.to_vec()];
    Ok(Arc::new(config))
}

fn builder() -> anyhow::Result<ConfigBuilder<ServerConfig, WantsServerCert>> {
    let builder = ServerConfig::builder_with_provider(Arc::new(provider()));
    Ok(builder.with_safe_default_protocol_versions()?.with_no_client_auth())
}

fn provider() -> CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// Writes a certificate and its key, as of `second`.
    fn write(files: &TlsFiles, second: u64) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(&files.certificate, made.cert.pem()).unwrap();
        std::fs::write(&files.private_key, made.signing_key.serialize_pem()).unwrap();
        date(files, second);
    }

    fn date(files: &TlsFiles, second: u64) {
        for path in [&files.certificate, &files.private_key] {
            let file = File::options().write(true).open(path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(second)).unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_certificate_is_used_once_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name);
        let files = TlsFiles { certificate: path("certificate.pem"), private_key: path("key.pem") };
        assert!(Tls::load(files.clone()).is_err(), "there are no files");
        write(&files, 1);
        let tls = Tls::load(files.clone()).unwrap();
        let config = || Arc::as_ptr(&tls.config().unwrap());
        let first = config();
        tokio::time::advance(LOOK_EVERY).await;
        assert_eq!(config(), first, "nothing changed");

        std::fs::write(&files.certificate, "half").unwrap();
        date(&files, 2);
        tokio::time::advance(LOOK_EVERY).await;
        assert_eq!(config(), first, "the one in use is kept");

        write(&files, 3);
        tokio::time::advance(LOOK_EVERY).await;
        assert_ne!(config(), first);
    }
}
