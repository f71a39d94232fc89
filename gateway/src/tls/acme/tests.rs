//! Against an authority on loopback that issues what it could check, as RFC 8555 has it.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
};

use actors::env::ManualClock;
use axum::{
    Json, Router,
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{Method, StatusCode, Uri, header};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, IsCa, KeyPair,
    date_time_ymd,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{ServerName, UnixTime},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::{super::ACME_TLS, *};

/// 2026-01-01, the first day of what the authority issues first.
const START_S: u64 = 1_767_225_600;
const DAY_MS: u64 = 24 * 3600 * 1000;

/// Takes any certificate: who looks at a proof, or at which certificate is shown, does not trust it.
#[derive(Debug)]
struct Anything(Arc<CryptoProvider>);

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The certificate that is shown for a name, if any is.
async fn shown(at: SocketAddr, name: &str, protocol: &[u8]) -> Option<Vec<u8>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone());
    let mut config = builder
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anything(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(at).await.ok()?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?;
    let connection = stream.get_ref().1;
    assert_eq!(connection.alpn_protocol(), Some(protocol));
    Some(connection.peer_certificates()?.first()?.to_vec())
}

#[derive(Default)]
struct Asked {
    accounts: usize,
    orders: usize,
    /// Of the account's key.
    thumbprint: String,
    contact: Value,
    domains: Vec<String>,
    proven: BTreeSet<usize>,
    failed: bool,
    certificate: Option<String>,
}

struct Authority {
    base: String,
    /// Where all names lead.
    target: SocketAddr,
    issuer: CertifiedIssuer<'static, KeyPair>,
    asked: Mutex<Asked>,
}

/// A request's header and payload; whether it is signed as it should be is not looked at.
fn opened(body: &str) -> (Value, Value) {
    let jws: Value = serde_json::from_str(body).unwrap();
    let part = |name: &str| {
        let bytes = URL_SAFE_NO_PAD.decode(jws[name].as_str().unwrap()).unwrap();
        serde_json::from_slice(&bytes).unwrap_or_default()
    };
    (part("protected"), part("payload"))
}

impl Authority {
    /// An authority whose own certificate the returned file vouches for.
    async fn start(folder: &Path, target: SocketAddr) -> (Arc<Self>, PathBuf) {
        let mut own = CertificateParams::new(Vec::new()).unwrap();
        own.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(own, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let site = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let site = site.signed_by(&key, &issuer).unwrap();
        let (ca, both) = (folder.join("ca.pem"), folder.join("authority.pem"));
        std::fs::write(&ca, issuer.pem()).unwrap();
        std::fs::write(&both, site.pem() + &key.serialize_pem()).unwrap();
        let tls = Tls::load(TlsFiles { certificate: both.clone(), private_key: both }).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let base = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let authority = Arc::new(Self { base, target, issuer, asked: Mutex::default() });
        let asked = authority.clone();
        let router = Router::new().fallback(async move |method: Method, uri: Uri, body: String| {
            let answer = asked.answer(&method, uri.path(), &body).await;
            ([("replay-nonce", "bm9uY2U")], answer)
        });
        tokio::spawn(async move {
            loop {
                let stream = tls.accept(listener.accept().await.unwrap().0).await.unwrap();
                let service = TowerToHyperService::new(router.clone());
                tokio::spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        (authority, ca)
    }

    async fn answer(&self, method: &Method, path: &str, body: &str) -> Response {
        let (what, which) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
        match (method.as_str(), what) {
            ("GET", "directory") => self.directory().into_response(),
            ("HEAD", "nonce") => StatusCode::OK.into_response(),
            ("POST", "account") => self.account(body),
            ("POST", "order") if which.is_empty() => self.order(body),
            ("POST", "order") => self.order_now().into_response(),
            ("POST", "name") => self.name(which.parse().unwrap()).into_response(),
            ("POST", "proof") => self.proof(which.parse().unwrap()).await.into_response(),
            ("POST", "issue") => self.issue(body).into_response(),
            ("POST", "certificate") => self.asked.lock().certificate.clone().unwrap().into_response(),
            _ => StatusCode::NOT_FOUND.into_response(),
        }
    }

    fn directory(&self) -> Json<Value> {
        let at = |path: &str| format!("{}/{path}", self.base);
        Json(json!({
            "newNonce": at("nonce"), "newAccount": at("account"), "newOrder": at("order"),
            "revokeCert": at("revoke"), "keyChange": at("key"),
        }))
    }

    fn account(&self, body: &str) -> Response {
        let (header, payload) = opened(body);
        assert_eq!(payload["termsOfServiceAgreed"], true);
        let mut asked = self.asked.lock();
        asked.accounts += 1;
        asked.contact = payload["contact"].clone();
        // Spec: RFC 7638.
        let (x, y) = (header["jwk"]["x"].as_str().unwrap(), header["jwk"]["y"].as_str().unwrap());
        let key = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        asked.thumbprint = URL_SAFE_NO_PAD.encode(Sha256::digest(key));
        let location = format!("{}/account/1", self.base);
        (StatusCode::CREATED, [(header::LOCATION, location)], Json(json!({ "status": "valid" })))
            .into_response()
    }

    fn order_now(&self) -> Json<Value> {
        let asked = self.asked.lock();
        let status = match &asked.certificate {
            Some(_) => "valid",
            None if asked.failed => "invalid",
            None if asked.proven.len() == asked.domains.len() => "ready",
            None => "pending",
        };
        let names = (0..asked.domains.len()).map(|index| format!("{}/name/{index}", self.base));
        Json(json!({
            "status": status,
            "authorizations": names.collect::<Vec<_>>(),
            "finalize": format!("{}/issue", self.base),
            "certificate": format!("{}/certificate", self.base),
        }))
    }

    fn order(&self, body: &str) -> Response {
        let (_, payload) = opened(body);
        let names = payload["identifiers"].as_array().unwrap().iter();
        let domains = names.map(|name| name["value"].as_str().unwrap().to_owned()).collect();
        {
            let mut asked = self.asked.lock();
            asked.orders += 1;
            (asked.domains, asked.failed, asked.certificate) = (domains, false, None);
            asked.proven.clear();
        }
        let location = format!("{}/order/1", self.base);
        (StatusCode::CREATED, [(header::LOCATION, location)], self.order_now()).into_response()
    }

    fn name(&self, index: usize) -> Json<Value> {
        let domain = self.asked.lock().domains[index].clone();
        let url = format!("{}/proof/{index}", self.base);
        let offer = |kind| json!({ "type": kind, "url": url, "token": token(index), "status": "pending" });
        Json(json!({
            "identifier": { "type": "dns", "value": domain },
            "status": "pending",
            "challenges": [offer("http-01"), offer("tls-alpn-01")],
        }))
    }

    /// Looks at the proof. Spec: RFC 8737, section 3.
    async fn proof(&self, index: usize) -> Json<Value> {
        let (domain, thumbprint) = {
            let asked = self.asked.lock();
            (asked.domains[index].clone(), asked.thumbprint.clone())
        };
        let expected = Sha256::digest(format!("{}.{thumbprint}", token(index)));
        let certificate = shown(self.target, &domain, ACME_TLS).await;
        let is_proof = certificate.is_some_and(|certificate| {
            let (_, certificate) = X509Certificate::from_der(&certificate).unwrap();
            let oid = x509_parser::oid_registry::asn1_rs::oid!(1.3.6.1.5.5.7.1.31);
            let extension = certificate.get_extension_unique(&oid).unwrap().unwrap();
            // An octet string of 32 bytes.
            names(&certificate) == [domain] && extension.critical && extension.value[2..] == *expected
        });
        let mut asked = self.asked.lock();
        if is_proof {
            asked.proven.insert(index);
        } else {
            asked.failed = true;
        }
        let url = format!("{}/proof/{index}", self.base);
        Json(json!({ "type": "tls-alpn-01", "url": url, "token": token(index), "status": "processing" }))
    }

    /// Issues for three months, from the first of January, April, July and so on.
    fn issue(&self, body: &str) -> Json<Value> {
        let (_, payload) = opened(body);
        let csr = URL_SAFE_NO_PAD.decode(payload["csr"].as_str().unwrap()).unwrap();
        let mut csr = CertificateSigningRequestParams::from_der(&csr.into()).unwrap();
        {
            let mut asked = self.asked.lock();
            let quarter = u8::try_from(asked.orders - 1).unwrap() % 3;
            csr.params.not_before = date_time_ymd(2026, 1 + 3 * quarter, 1);
            csr.params.not_after = date_time_ymd(2026, 4 + 3 * quarter, 1);
            let certificate = csr.signed_by(&self.issuer).unwrap();
            asked.certificate = Some(certificate.pem() + &self.issuer.pem());
        }
        self.order_now()
    }
}

fn token(index: usize) -> String {
    format!("token-{index}")
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    names
        .value
        .general_names
        .iter()
        .map(|name| match name {
            GeneralName::DNSName(name) => (*name).to_owned(),
            other => panic!("{other}"),
        })
        .collect()
}

/// A server that wants certificates.
struct World {
    data: tempfile::TempDir,
    authority: Arc<Authority>,
    ca: PathBuf,
    tls: Arc<Tls>,
    clock: Arc<ManualClock>,
}

impl World {
    async fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        let tls = Arc::new(Tls::to_come(Acme::files(&data.path().join("acme"))));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let target = listener.local_addr().unwrap();
        let accepting = tls.clone();
        tokio::spawn(async move {
            loop {
                let _ = accepting.accept(listener.accept().await.unwrap().0).await;
            }
        });
        let (authority, ca) = Authority::start(data.path(), target).await;
        let clock = Arc::new(ManualClock::new(START_S * 1000));
        Self { data, authority, ca, tls, clock }
    }

    fn acme(&self, domains: &[&str]) -> Acme {
        let settings = AcmeSettings {
            directory: format!("{}/directory", self.authority.base),
            directory_ca: Some(self.ca.clone()),
            contact: Some("mailto:alice@a.example".to_owned()),
            domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
        };
        Acme::new(settings, self.data.path().join("acme"), self.tls.clone(), self.clock.clone())
    }

    /// How many accounts and orders the authority was asked for.
    fn asked(&self) -> (usize, usize) {
        let asked = self.authority.asked.lock();
        (asked.accounts, asked.orders)
    }

    /// The names of the certificate that is shown.
    async fn shown(&self) -> Option<Vec<String>> {
        let certificate = shown(self.authority.target, "a.example", b"h2").await?;
        Some(names(&X509Certificate::from_der(&certificate).unwrap().1))
    }
}

#[tokio::test]
async fn a_certificate_is_obtained_kept_shown_and_renewed() {
    let world = World::new().await;
    let wanted = ["a.example", "matrix.a.example"];
    let acme = world.acme(&wanted);
    assert_eq!(world.shown().await, None, "there is none yet");
    assert_eq!(acme.renew_if_due().await.unwrap(), LOOK_EVERY);
    assert_eq!(world.asked(), (1, 1));
    assert_eq!(world.authority.asked.lock().contact, json!(["mailto:alice@a.example"]));
    assert_eq!(world.shown().await.unwrap(), wanted);
    assert_eq!(shown(world.authority.target, "a.example", ACME_TLS).await, None, "the proofs are gone");
    for file in std::fs::read_dir(world.data.path().join("acme")).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
    }

    // A restart, and two months, change nothing.
    world.clock.advance(59 * DAY_MS);
    let acme = world.acme(&wanted);
    assert!(acme.renew_if_due().await.unwrap() <= LOOK_EVERY);
    assert!(Tls::to_come(Acme::files(&acme.folder)).config().is_some());
    assert_eq!(world.asked(), (1, 1));
    // In the third month it is renewed, by the same account.
    world.clock.advance(2 * DAY_MS);
    acme.renew_if_due().await.unwrap();
    assert_eq!(world.asked(), (1, 2));
    // Another name is another certificate.
    world.acme(&["a.example"]).renew_if_due().await.unwrap();
    assert_eq!(world.asked(), (1, 2), "the one that there is will do");
    world.acme(&["a.example", "b.example"]).renew_if_due().await.unwrap();
    assert_eq!(world.asked(), (1, 3));
    assert_eq!(world.shown().await.unwrap(), ["a.example", "b.example"]);
}

#[tokio::test]
async fn what_cannot_be_proven_leaves_the_certificate_as_it_is() {
    let world = World::new().await;
    let acme = world.acme(&["a.example"]);
    acme.renew_if_due().await.unwrap();
    // The name leads elsewhere now.
    let elsewhere = Tls::to_come(Acme::files(&world.data.path().join("elsewhere")));
    let settings = AcmeSettings { domains: vec!["b.example".to_owned()], ..acme.settings.clone() };
    let clock = world.clock.clone();
    let other = Acme::new(settings, acme.folder.clone(), Arc::new(elsewhere), clock);
    let error = format!("{:#}", other.renew_if_due().await.unwrap_err());
    assert!(error.contains("port 443"), "{error}");
    assert_eq!(world.shown().await.unwrap(), ["a.example"]);
    assert_eq!(world.asked(), (1, 2));
}
