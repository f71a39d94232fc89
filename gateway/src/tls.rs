//! TLS in process: the certificate, read again when its file changes.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use parking_lot::Mutex;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// How often the files are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How long a client may take to agree on a connection.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

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
}

struct Current {
    acceptor: TlsAcceptor,
    changed: Option<SystemTime>,
    looked: Instant,
}

impl Tls {
    /// Reads certificate and key.
    pub fn load(files: TlsFiles) -> anyhow::Result<Self> {
        let acceptor = acceptor(&files)?;
        let current = Current { acceptor, changed: changed(&files), looked: Instant::now() };
        Ok(Self { files, current: Mutex::new(current) })
    }

    /// Agrees with a client on an encrypted connection.
    pub async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let acceptor = self.acceptor();
        tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream))
            .await
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?
    }

    fn acceptor(&self) -> TlsAcceptor {
        let mut current = self.current.lock();
        if current.looked.elapsed() >= LOOK_EVERY {
            current.looked = Instant::now();
            let changed = changed(&self.files);
            if changed != current.changed {
                match acceptor(&self.files) {
                    Ok(acceptor) => {
                        tracing::info!("the certificate changed and is in use");
                        current.acceptor = acceptor;
                        current.changed = changed;
                    }
                    // Half-written, perhaps: the one in use is good for the time being.
                    Err(error) => tracing::warn!(%error, "the certificate changed and cannot be used"),
                }
            }
        }
        current.acceptor.clone()
    }
}

fn changed(files: &TlsFiles) -> Option<SystemTime> {
    let changed = |path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    changed(&files.certificate).max(changed(&files.private_key))
}

fn acceptor(files: &TlsFiles) -> anyhow::Result<TlsAcceptor> {
    let read = || format!("cannot read {}", files.certificate.display());
    let chain = CertificateDer::pem_file_iter(&files.certificate)
        .with_context(read)?
        .collect::<Result<Vec<_>, _>>()
        .with_context(read)?;
    let key = PrivateKeyDer::from_pem_file(&files.private_key)
        .with_context(|| format!("cannot read {}", files.private_key.display()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("certificate and private key do not fit together")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
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
        let config = || Arc::as_ptr(tls.acceptor().config());
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
