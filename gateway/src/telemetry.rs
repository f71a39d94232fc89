//! The log.

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, Logging};

/// Starts logging to standard error. `GANGLION_LOG` overrides what is logged.
pub fn init(logging: &Logging) -> Result<(), String> {
    let level = std::env::var("GANGLION_LOG").unwrap_or_else(|_| logging.level.clone());
    // One line per authorization rule and event is for those who ask for it by name.
    let filter = EnvFilter::try_new(format!("ruma_state_res=warn,{level}"))
        .map_err(|error| format!("logging.level: {error}"))?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match logging.format {
        LogFormat::Pretty => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
    Ok(())
}
