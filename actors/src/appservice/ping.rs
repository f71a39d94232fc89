//! Whether this server reaches a service.
//!
//! Spec: application service API, "Pinging".

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde_json::json;
use tokio::time::Instant;

use super::{Service, ServiceAnswer, ServiceError, ask::Question};
use crate::homeserver::Homeserver;

/// How long a service may take to answer that it is there.
const TIMEOUT: Duration = Duration::from_secs(15);

impl Homeserver {
    /// Asks a service whether it is there: what it answered, and how long that took. If it is, what waits for it goes out.
    pub async fn ping_service(
        &self,
        service: &Service,
        transaction_id: Option<&str>,
    ) -> Result<(ServiceAnswer, Duration), ServiceError> {
        let mut body = json!({});
        if let Some(id) = transaction_id {
            body["transaction_id"] = id.into();
        }
        let question = Question {
            kind: "ping",
            method: Method::POST,
            path: "/ping".to_owned(),
            old: None,
            body: Some(Bytes::from(body.to_string())),
            timeout: TIMEOUT,
        };
        let began = Instant::now();
        let answer = self.services().ask(service, question).await?;
        if answer.status.is_success() {
            self.following().wake(service);
        }
        Ok((answer, began.elapsed()))
    }
}
