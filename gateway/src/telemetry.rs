//! The log.

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, Logging};

/// What is logged. `GANGLION_LOG` overrides it.
pub fn filter(logging: &Logging) -> Result<EnvFilter, String> {
    let level = std::env::var("GANGLION_LOG").unwrap_or_else(|_| logging.level.clone());
    // One line per authorization rule and event, or each file of fjall's, is for those who ask for it by name; a certificate of
    // another server that is not good is no error of this one, and is told of where it is dealt with.
    let quiet = "ruma_state_res=warn,rustls_platform_verifier=off,fjall=warn,lsm_tree=warn";
    EnvFilter::try_new(format!("{quiet},{level}")).map_err(|error| format!("logging.level: {error}"))
}

/// Starts logging to standard error.
pub fn init(logging: &Logging) -> Result<(), String> {
    let filter = filter(logging)?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match logging.format {
        LogFormat::Pretty => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
    Ok(())
}
