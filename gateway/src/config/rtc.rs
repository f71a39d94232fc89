//! What carries group calls.

use serde::Deserialize;
use url::Url;

use super::JsonObject;

/// What the document for clients calls the transports, as older clients look for them.
///
/// Spec: MSC4143, its former versions.
pub const RTC_FOCI: &str = "org.matrix.msc4143.rtc_foci";

/// `[matrix_rtc]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MatrixRtc {
    /// What clients may use for calls, the best first: a `type`, and what that needs.
    ///
    /// Spec: MSC4143, "Transports"; MSC4195 for those of type `livekit`.
    pub transports: Vec<JsonObject>,
}

impl MatrixRtc {
    /// Refuses transports that no client could use.
    pub(super) fn check(&self) -> Result<(), String> {
        for transport in &self.transports {
            let text = |key: &str| transport.get(key).and_then(|value| value.as_str());
            let kind = text("type").filter(|kind| !kind.is_empty());
            let kind = kind.ok_or("matrix_rtc.transports: each has a `type`, as in `type = \"livekit\"`")?;
            let url = text("livekit_service_url").map(Url::parse);
            let is_web = url.is_some_and(|url| url.is_ok_and(|url| matches!(url.scheme(), "https" | "http")));
            if kind == "livekit" && !is_web {
                return Err(
                    "matrix_rtc.transports: one of type `livekit` has a `livekit_service_url`, as in \
                    `livekit_service_url = \"https://rtc.example.org\"`"
                        .to_owned(),
                );
            }
        }
        Ok(())
    }
}
