//! Password hashing: argon2id, on a bounded pool of blocking threads.
//!
//! A hash takes tens of milliseconds and as many MiB: on the async threads it would hold up everyone, and
//! unbounded it would let a burst of log-ins take all memory.

use std::sync::Arc;

use actors::env::Entropy;
use argon2::{Algorithm, Argon2, Params, Version, password_hash::phc::PasswordHash};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::Semaphore,
};

/// How hard a hash is.
#[derive(Clone, Copy, Debug)]
pub struct PasswordCost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub iterations: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Default for PasswordCost {
    /// What OWASP recommends for argon2id.
    fn default() -> Self {
        Self { memory_kib: 19 * 1024, iterations: 2, lanes: 1 }
    }
}

/// Why a password was not hashed or checked.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// The parameters or a stored hash are unusable.
    #[error("password hashing failed: {0}")]
    Hash(String),
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Stopping,
}

/// Hashes at most this many passwords at a time: one core stays for everybody else.
const CONCURRENT: usize = 2;

/// Hashes and checks passwords. Cloning shares the pool.
#[derive(Clone)]
pub struct Passwords {
    argon2: Argon2<'static>,
    permits: Arc<Semaphore>,
    entropy: Arc<dyn Entropy>,
}

impl Passwords {
    /// A pool that hashes at this cost.
    pub fn new(cost: PasswordCost, entropy: Arc<dyn Entropy>) -> Result<Self, PasswordError> {
        let params = Params::new(cost.memory_kib, cost.iterations, cost.lanes, None)
            .map_err(|error| PasswordError::Hash(error.to_string()))?;
        Ok(Self {
            argon2: Argon2::new(Algorithm::Argon2id, Version::V0x13, params),
            permits: Arc::new(Semaphore::new(CONCURRENT)),
            entropy,
        })
    }

    /// The hash of a password, in PHC form.
    pub async fn hash(&self, password: String) -> Result<String, PasswordError> {
        let mut salt = [0; 16];
        self.entropy.fill(&mut salt);
        self.blocking(move |argon2| {
            use argon2::password_hash::PasswordHasher as _;
            let hash = argon2.hash_password_with_salt(password.as_bytes(), &salt);
            hash.map(|hash| hash.to_string()).map_err(|error| PasswordError::Hash(error.to_string()))
        })
        .await
    }

    /// Whether a password is the one that was hashed.
    ///
    /// Without a hash it takes as long and says no, so that the time does not tell which users exist.
    pub async fn verify(&self, password: String, hash: Option<String>) -> Result<bool, PasswordError> {
        let Some(hash) = hash else {
            self.hash(password).await?;
            return Ok(false);
        };
        self.blocking(move |argon2| {
            use argon2::password_hash::PasswordVerifier as _;
            let hash = PasswordHash::new(&hash).map_err(|error| PasswordError::Hash(error.to_string()))?;
            Ok(argon2.verify_password(password.as_bytes(), &hash).is_ok())
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Argon2<'static>) -> Result<T, PasswordError> + Send + 'static,
    ) -> Result<T, PasswordError> {
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| PasswordError::Stopping)?;
        let argon2 = self.argon2.clone();
        if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
            // The simulator's runtime has only one thread, and must stay in order.
            return work(&argon2);
        }
        #[expect(clippy::disallowed_methods, reason = "the bounded pool that may block")]
        let done = tokio::task::spawn_blocking(move || {
            let result = work(&argon2);
            drop(permit);
            result
        });
        done.await.map_err(|_| PasswordError::Stopping)?
    }
}

#[cfg(test)]
mod tests {
    use actors::env::SeededEntropy;

    use super::*;

    #[tokio::test]
    async fn a_password_verifies_against_its_own_hash_only() {
        let cost = PasswordCost { memory_kib: 64, iterations: 1, lanes: 1 };
        let passwords = Passwords::new(cost, Arc::new(SeededEntropy::new(1))).unwrap();
        let hash = passwords.hash("wonderland".to_owned()).await.unwrap();
        assert!(hash.starts_with("$argon2id$"));
        assert!(passwords.verify("wonderland".to_owned(), Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify("looking glass".to_owned(), Some(hash)).await.unwrap());
        assert!(!passwords.verify("wonderland".to_owned(), None).await.unwrap());
        assert!(passwords.verify("wonderland".to_owned(), Some("garbage".to_owned())).await.is_err());
    }
}
