//! The keys that this server signs with, now and before, in files of the data directory.
//!
//! Spec: server-server API, "Publishing Keys".

use std::{fs::OpenOptions, io::Write, path::Path};

use actors::{env::Entropy, federation::OldKey};
use anyhow::Context;
use engine::pdu::SigningKey;
use ruma::serde::{Base64, base64::Standard};

use crate::serve::{secret, secret_file, write_secret};

/// The present key.
const FILE: &str = "signing.key";

/// The public halves of those before.
const OLD_FILE: &str = "signing.key.old";

/// A server's keys.
pub struct Keys {
    /// Signs events and requests.
    pub signing: SigningKey,
    /// Signed them before.
    pub old: Vec<OldKey>,
}

/// Whether there is a key.
pub fn exists(data_dir: &Path) -> anyhow::Result<bool> {
    Ok(secret(&data_dir.join(FILE))?.is_some())
}

/// Reads the keys; makes one on the first start, in a file that only its user can read.
pub fn load(data_dir: &Path, entropy: &dyn Entropy) -> anyhow::Result<Keys> {
    let path = data_dir.join(FILE);
    let signing = parse(&secret_file(&path, || new_key(entropy))?)
        .with_context(|| format!("{} is not of the form `ed25519 VERSION BASE64`", path.display()))?;
    let path = data_dir.join(OLD_FILE);
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        text => text.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let malformed = || format!("{} is not of the form `ed25519 VERSION BASE64 EXPIRED`", path.display());
    let old: Option<Vec<_>> = text.lines().filter(|line| !line.trim().is_empty()).map(parse_old).collect();
    let mut old = old.with_context(malformed)?;
    // A rotation that was cut short leaves the key in both files.
    old.retain(|old| old.id != signing.id());
    Ok(Keys { signing, old })
}

/// Replaces the present key by a new one. The old one's public half stays published, so that what it signed holds; where there is
/// none any more, nothing does.
pub fn rotate(data_dir: &Path, entropy: &dyn Entropy, now_ms: u64) -> anyhow::Result<Keys> {
    if exists(data_dir)? {
        let Keys { signing, .. } = load(data_dir, entropy)?;
        let version = signing.id().replace("ed25519:", "");
        let mut old = OpenOptions::new().create(true).append(true).open(data_dir.join(OLD_FILE))?;
        writeln!(old, "ed25519 {version} {} {now_ms}", signing.public_key())?;
        old.sync_all()?;
        let path = data_dir.join(FILE);
        write_secret(&path, &new_key(entropy)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    load(data_dir, entropy)
}

fn new_key(entropy: &dyn Entropy) -> String {
    let mut secret = [0; 32];
    entropy.fill(&mut secret);
    format!("ed25519 {} {}", entropy.token(6), Base64::<Standard, _>::new(&secret[..]).encode())
}

fn parse(text: &str) -> Option<SigningKey> {
    let ["ed25519", version, secret] = text.split_whitespace().collect::<Vec<_>>()[..] else { return None };
    let secret = Base64::<Standard, Vec<u8>>::parse(secret).ok()?;
    SigningKey::new(secret.as_bytes().try_into().ok()?, version)
}

fn parse_old(line: &str) -> Option<OldKey> {
    let ["ed25519", version, key, expired] = line.split_whitespace().collect::<Vec<_>>()[..] else {
        return None;
    };
    let expired_ms = expired.parse().ok()?;
    Some(OldKey { id: format!("ed25519:{version}"), key: Base64::parse(key).ok()?, expired_ms })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use actors::env::SeededEntropy;

    use super::*;

    #[test]
    fn a_rotation_keeps_what_was_signed_before() {
        let folder = tempfile::tempdir().unwrap();
        let entropy = SeededEntropy::new(1);
        let first = rotate(folder.path(), &entropy, 1).unwrap();
        assert!(first.old.is_empty());
        assert_eq!(load(folder.path(), &entropy).unwrap().signing.id(), first.signing.id());
        let second = rotate(folder.path(), &entropy, 1_000).unwrap();
        let third = rotate(folder.path(), &entropy, 2_000).unwrap();
        let old = |keys: &Keys, expired_ms| OldKey {
            id: keys.signing.id(),
            key: keys.signing.public_key(),
            expired_ms,
        };
        assert_eq!(third.old, [old(&first, 1_000), old(&second, 2_000)]);
        assert_ne!(third.signing.id(), second.signing.id());
        let mode = std::fs::metadata(folder.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_rotation_that_was_cut_short_has_not_happened() {
        let folder = tempfile::tempdir().unwrap();
        let entropy = SeededEntropy::new(1);
        let first = load(folder.path(), &entropy).unwrap().signing;
        let (version, key) = (first.id().replace("ed25519:", ""), first.public_key());
        std::fs::write(folder.path().join(OLD_FILE), format!("ed25519 {version} {key} 5\n")).unwrap();
        std::fs::write(folder.path().join("signing.key.new"), "ed2").unwrap();
        assert!(load(folder.path(), &entropy).unwrap().old.is_empty());
        let second = rotate(folder.path(), &entropy, 6).unwrap();
        assert_ne!(second.signing.id(), first.id());
        assert!(second.old.iter().all(|old| old.id == first.id()));
    }

    #[test]
    fn a_start_that_was_cut_short_leaves_no_empty_secret() {
        let folder = tempfile::tempdir().unwrap();
        let entropy = SeededEntropy::new(1);
        for name in [FILE, "registration-token"] {
            std::fs::write(folder.path().join(name), "\n").unwrap();
            std::fs::write(folder.path().join(format!("{name}.new")), "ed2").unwrap();
        }
        assert!(!exists(folder.path()).unwrap());
        let made = load(folder.path(), &entropy).unwrap();
        assert!(exists(folder.path()).unwrap());
        assert_eq!(load(folder.path(), &entropy).unwrap().signing.id(), made.signing.id());
        let token = folder.path().join("registration-token");
        assert_eq!(secret_file(&token, || "sesame".to_owned()).unwrap(), "sesame");
        assert_eq!(secret_file(&token, || "another".to_owned()).unwrap(), "sesame");
        assert!(!folder.path().join("registration-token.new").exists());
        let mode = std::fs::metadata(token).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_holds_no_key_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), "ed25519 a b c").unwrap();
        assert!(load(folder.path(), &SeededEntropy::new(1)).is_err());
    }
}
