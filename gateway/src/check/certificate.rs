//! The certificate that the server shows.

use std::path::Path;

use rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};

use super::Report;
use crate::{
    config::Config,
    tls::{Acme, Tls, TlsFiles},
};

/// A certificate that ends sooner than this should have been renewed.
const RENEWAL_DUE_DAYS: i64 = 14;

const DAY_S: i64 = 24 * 3600;

/// Looks at the certificate and the key, if the server is to speak TLS itself.
pub(super) fn check(report: &mut Report, config: &Config, now_s: i64) {
    let Some(tls) = &config.tls else { return };
    let files = match (&tls.certificate, &tls.private_key) {
        _ if tls.acme.is_some() => Acme::files(&config.data_dir.join("acme")),
        (Some(certificate), Some(private_key)) => {
            TlsFiles { certificate: certificate.clone(), private_key: private_key.clone() }
        }
        _ => {
            let what = "a [tls] section without tls.certificate and tls.private_key does nothing";
            report.wrong("certificate", what, "name both files, or write acme = {}");
            return;
        }
    };
    if tls.acme.is_some() && !files.certificate.exists() {
        report.doubtful(
            "certificate",
            "there is none yet from the ACME authority",
            "start the server; port 443 of each name of tls.acme.domains has to reach a TLS listener of it",
        );
        return;
    }
    let certificate = &files.certificate.clone();
    if let Err(error) = Tls::load(files) {
        report.wrong("certificate", format!("{error:#}"), "name a chain and the key that it was made for");
        return;
    }
    report.fine("certificate", format!("{} and its key fit together", certificate.display()));
    let Some(chain) = read(certificate) else { return };
    let Some(Ok((_, leaf))) = chain.first().map(|leaf| X509Certificate::from_der(leaf)) else {
        report.wrong("certificate", "the first certificate cannot be read", "have it issued again");
        return;
    };
    validity(report, &leaf, now_s);
    let host = shown_for(config);
    if !covers(&leaf, &host) {
        report.wrong(
            "certificate",
            format!("it is not for {host}, under which other servers look for this one"),
            format!("have one issued for {host}, or delegate: well_known.server"),
        );
    }
    if chain.len() == 1 && leaf.issuer() != leaf.subject() {
        report.doubtful(
            "certificate",
            "the file holds no intermediate certificates, without which most others cannot check it",
            "name the full chain (often fullchain.pem)",
        );
    }
}

fn read(path: &Path) -> Option<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(path).ok()?.collect::<Result<_, _>>().ok()
}

fn validity(report: &mut Report, leaf: &X509Certificate<'_>, now_s: i64) {
    let (from, until) = (leaf.validity().not_before, leaf.validity().not_after);
    let days = (until.timestamp() - now_s).div_euclid(DAY_S);
    if from.timestamp() > now_s {
        report.wrong("certificate", format!("it is not valid before {from}"), "set this machine's clock");
    } else if days < 0 {
        report.wrong("certificate", format!("it has not been valid since {until}"), "renew it");
    } else if days < RENEWAL_DUE_DAYS {
        let what = format!("it is valid for {days} days more");
        report.doubtful("certificate", what, "renew it; a changed file is in use within seconds");
    } else {
        report.fine("certificate", format!("it is valid for {days} days more"));
    }
}

/// The host name that other servers look for in the certificate.
fn shown_for(config: &Config) -> String {
    let delegated = config.well_known.server.as_deref().unwrap_or_default();
    match <&ruma::ServerName>::try_from(delegated) {
        Ok(server) => server.host().to_owned(),
        Err(_) => config.server_name.host().to_owned(),
    }
}

/// Whether a certificate is for a host.
///
/// Spec: RFC 6125, section 6.4.
fn covers(leaf: &X509Certificate<'_>, host: &str) -> bool {
    let names = leaf.subject_alternative_name().ok().flatten();
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    names.iter().any(|name| match name {
        GeneralName::DNSName(name) => matches_name(name, host),
        GeneralName::IPAddress(bytes) => matches_address(bytes, host),
        _ => false,
    })
}

fn matches_name(name: &str, host: &str) -> bool {
    let rest = name.strip_prefix("*.").zip(host.split_once('.').map(|(_, rest)| rest));
    name.eq_ignore_ascii_case(host) || rest.is_some_and(|(name, host)| name.eq_ignore_ascii_case(host))
}

fn matches_address(bytes: &[u8], host: &str) -> bool {
    match host.trim_matches(['[', ']']).parse() {
        Ok(std::net::IpAddr::V4(address)) => address.octets() == *bytes,
        Ok(std::net::IpAddr::V6(address)) => address.octets() == *bytes,
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use tempfile::TempDir;

    use super::*;
    use crate::{check::Grade, config::Flags};

    /// A configuration with a certificate for these names, valid in 2026.
    fn configured(names: &[&str]) -> (Config, TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2026, 12, 31);
        let path = |name| folder.path().join(name);
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(path("certificate.pem"), certificate.pem()).unwrap();
        std::fs::write(path("key.pem"), key.serialize_pem()).unwrap();
        let mut config = Config::load(&Flags::default(), std::iter::empty()).unwrap();
        config.server_name = "matrix.example.org".try_into().unwrap();
        let (certificate, key): (PathBuf, PathBuf) = (path("certificate.pem"), path("key.pem"));
        config.tls = Some(crate::config::Tls {
            certificate: Some(certificate),
            private_key: Some(key),
            ..crate::config::Tls::default()
        });
        (config, folder)
    }

    /// The worst finding at a time.
    fn worst(config: &Config, now_s: i64) -> (Grade, String) {
        let mut report = Report::default();
        check(&mut report, config, now_s);
        let worst = [Grade::Wrong, Grade::Doubtful, Grade::Fine].into_iter().find_map(|grade| {
            let mut of_grade = report.findings.iter().filter(|finding| finding.grade == grade);
            of_grade.next_back()
        });
        let worst = worst.unwrap();
        (worst.grade, worst.what.clone())
    }

    /// The first of January 2026.
    const START: i64 = 1_767_225_600;

    #[test]
    fn its_time_and_names_decide() {
        let (config, _folder) = configured(&["matrix.example.org"]);
        for (days, grade, text) in [
            (-1, Grade::Wrong, "not valid before"),
            (1, Grade::Fine, "valid for 363 days more"),
            (355, Grade::Doubtful, "valid for 9 days more"),
            (365, Grade::Wrong, "not been valid since"),
        ] {
            let (found, what) = worst(&config, START + days * DAY_S);
            assert_eq!(found, grade, "{days}: {what}");
            assert!(what.contains(text), "{days}: {what}");
        }
        let (other, _folder) = configured(&["example.org", "*.example.net"]);
        let (grade, what) = worst(&other, START + DAY_S);
        assert_eq!(grade, Grade::Wrong, "{what}");
        assert!(what.contains("it is not for matrix.example.org"), "{what}");
    }

    #[test]
    fn a_delegation_changes_the_name() {
        let (mut config, _folder) = configured(&["*.example.net"]);
        config.well_known.server = Some("matrix.example.net:443".to_owned());
        assert_eq!(worst(&config, START + DAY_S).0, Grade::Fine);
    }

    #[test]
    fn a_key_of_another_certificate_is_found() {
        let (mut config, _folder) = configured(&["matrix.example.org"]);
        let (other, _other_folder) = configured(&["matrix.example.org"]);
        let key = other.tls.unwrap().private_key;
        if let Some(tls) = &mut config.tls {
            tls.private_key = key;
        }
        let (grade, what) = worst(&config, START + DAY_S);
        assert_eq!(grade, Grade::Wrong);
        assert!(what.contains("do not fit together"), "{what}");
    }

    #[test]
    fn names_and_addresses_match_as_browsers_match_them() {
        for (name, host, expected) in [
            ("example.org", "EXAMPLE.org", true),
            ("*.example.org", "matrix.example.org", true),
            ("*.example.org", "example.org", false),
            ("*.example.org", "a.b.example.org", false),
        ] {
            assert_eq!(matches_name(name, host), expected, "{name} for {host}");
        }
        assert!(matches_address(&[127, 0, 0, 1], "127.0.0.1"));
        assert!(!matches_address(&[127, 0, 0, 1], "localhost"));
    }
}
