//! Files, folders, ports and the limit of descriptors.

use std::{
    fs::{self, OpenOptions},
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use actors::env::Entropy;

use super::Report;
use crate::{
    config::{Config, registrations as registrations_of},
    outbound,
    serve::OsEntropy,
    signing,
};

/// Descriptors that a small server needs: connections of clients and servers, and the store's files.
const DESCRIPTORS_MIN: u64 = 4096;

/// Looks at the data directory, the keys in it, and the files that the configuration names.
pub(super) fn check(report: &mut Report, config: &Config, file: Option<&Path>) {
    data_dir(report, &config.data_dir);
    signing_key(report, &config.data_dir);
    if let Some(file) = file
        && has_secrets(config)
        && mode(file).is_some_and(|mode| mode & 0o007 != 0)
    {
        let name = file.display();
        let what = format!("all users of this machine can read {name}, which holds secrets");
        report.doubtful("configuration", what, format!("chmod o-rwx {name}"));
    }
    if !config.federation.extra_ca.is_empty() {
        match outbound::roots(&config.federation.extra_ca) {
            Ok(roots) => report.fine("files", format!("{} additional trusted roots", roots.len())),
            Err(error) => report.wrong("files", format!("{error:#}"), "correct federation.extra_ca"),
        }
    }
}

/// Looks at the registration files of application services.
pub(super) fn registrations(report: &mut Report, config: &Config) {
    let files = &config.appservices.registrations;
    match registrations_of(files, &config.server_name) {
        Ok(services) => {
            for service in services {
                report.fine("appservices", format!("{} acts as {}", service.id, service.sender));
            }
        }
        Err(error) => {
            report.wrong("appservices", error.to_string(), "correct the file, or appservices.registrations");
        }
    }
    for file in files.iter().filter(|file| mode(file).is_some_and(|mode| mode & 0o007 != 0)) {
        let name = file.display();
        let what =
            format!("all users of this machine can read {name}, which holds an application service's tokens");
        report.doubtful("appservices", what, format!("chmod o-rwx {name}"));
    }
}

fn data_dir(report: &mut Report, path: &Path) {
    let name = path.display();
    if !path.exists() {
        let parent =
            path.ancestors().skip(1).find(|parent| parent.exists()).unwrap_or_else(|| Path::new("."));
        match is_writable(parent) {
            Ok(()) => report.fine("files", format!("{name} will be created by the first start")),
            Err(error) => report.wrong("files", format!("{name} cannot be created: {error}"), chown(parent)),
        }
        return;
    }
    match is_writable(path) {
        Ok(()) => report.fine("files", format!("{name} is the data directory")),
        Err(error) => report.wrong("files", format!("cannot write to {name}: {error}"), chown(path)),
    }
    if mode(path).is_some_and(|mode| mode & 0o007 != 0) {
        report.doubtful(
            "files",
            format!("all users of this machine can look into {name}, where password hashes are"),
            format!("chmod 700 {name}"),
        );
    }
}

fn chown(path: &Path) -> String {
    format!("make the server's user the owner of {}, or set data_dir", path.display())
}

/// Tries it: permissions are only one of the reasons why it may fail.
fn is_writable(folder: &Path) -> std::io::Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let probe = folder.join(format!(".ganglion-check-{}", OsEntropy.token(8)));
    OpenOptions::new().write(true).create_new(true).open(&probe)?;
    fs::remove_file(probe)
}

fn mode(path: &Path) -> Option<u32> {
    fs::metadata(path).ok().map(|metadata| metadata.permissions().mode())
}

fn has_secrets(config: &Config) -> bool {
    !config.registration.tokens.is_empty() || config.registration.shared_secret.is_some()
}

/// A file that only its user should read.
fn private(report: &mut Report, path: &Path) {
    let name = path.display();
    if mode(path).is_some_and(|mode| mode & 0o077 != 0) {
        let what = format!("others can read {name}, which holds secrets");
        report.wrong("files", what, format!("chmod 600 {name}"));
    }
}

fn signing_key(report: &mut Report, data_dir: &Path) {
    for name in ["signing.key", "registration-token"] {
        private(report, &data_dir.join(name));
    }
    if !signing::exists(data_dir).unwrap_or(true) {
        if data_dir.join("store").exists() {
            report.wrong(
                "signing key",
                "there is a store, but no signing.key beside it",
                "restore it from a backup: with a new key, which `ganglion rotate-signing-key` makes, other servers take this one \
                 for an impostor",
            );
        }
        return;
    }
    match signing::load(data_dir, &OsEntropy) {
        Ok(keys) => {
            report.fine("signing key", format!("{}, and {} former ones", keys.signing.id(), keys.old.len()));
        }
        Err(error) => report.wrong("signing key", format!("{error:#}"), "restore it from a backup"),
    }
}

/// Looks whether the server can listen where it is to; a running server does already.
pub(super) fn ports(report: &mut Report, config: &Config, is_running: bool) {
    let tls = if config.tls.is_some() { config.listen.tls.as_slice() } else { &[] };
    let metrics = &config.listen.metrics;
    for (key, addresses) in
        [("listen.client", config.listen.client.as_slice()), ("listen.tls", tls), ("listen.metrics", metrics)]
    {
        for address in addresses {
            port(report, key, *address, is_running);
        }
    }
}

fn port(report: &mut Report, key: &str, address: SocketAddr, is_running: bool) {
    let bound = TcpListener::bind(address);
    match bound {
        Ok(_) if is_running => report.wrong(
            "ports",
            format!("the running server does not listen on {address} ({key})"),
            "restart it: the configuration is newer",
        ),
        Ok(_) => report.fine("ports", format!("{address} is free ({key})")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && is_running => {
            report.fine("ports", format!("{address} is in use, as it should be ({key})"));
        }
        Err(error) => {
            report.wrong("ports", format!("cannot listen on {address}: {error}"), advice(key, &error));
        }
    }
}

fn advice(key: &str, error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => format!("stop the process that listens there, or change {key}"),
        std::io::ErrorKind::PermissionDenied => {
            format!("ports below 1024 need CAP_NET_BIND_SERVICE; grant it, or change {key}")
        }
        std::io::ErrorKind::AddrNotAvailable => format!("this machine has no such address; change {key}"),
        _ => format!("change {key}"),
    }
}

/// Looks at how many descriptors the server may have; it raises the soft limit itself.
pub(super) fn descriptors(report: &mut Report) {
    match rlimit::Resource::NOFILE.get_hard() {
        Ok(hard) if hard < DESCRIPTORS_MIN => report.doubtful(
            "descriptors",
            format!("{hard} allowed, which many connections use up"),
            format!("raise the hard limit to {DESCRIPTORS_MIN} or more (systemd: LimitNOFILE=65536)"),
        ),
        Ok(hard) => report.fine("descriptors", format!("{hard} allowed")),
        Err(error) => report.doubtful("descriptors", format!("the limit is not known: {error}"), ""),
    }
}
