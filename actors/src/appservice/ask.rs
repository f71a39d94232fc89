//! Asking a service for something, at the path that it knows.
//!
//! Spec: application service API, "Legacy routes".

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Deserialize;
use tokio::time::{Duration, Instant};

use super::{Service, ServiceAnswer, ServiceError, ServiceRequest, Services};

/// What a service is asked.
pub(super) struct Question {
    /// What it is about, for metrics.
    pub(super) kind: &'static str,
    /// The method.
    pub(super) method: Method,
    /// The path below `/_matrix/app/v1`.
    pub(super) path: String,
    /// What stands in the place of `/_matrix/app/v1` at older services; none if they do not know it.
    pub(super) old: Option<&'static str>,
    /// The body, JSON.
    pub(super) body: Option<Bytes>,
    /// How long the service may take.
    pub(super) timeout: Duration,
}

impl Services {
    /// Asks a service, by the older path if it does not know the present one.
    pub(super) async fn ask(
        &self,
        service: &Service,
        question: Question,
    ) -> Result<ServiceAnswer, ServiceError> {
        let began = Instant::now();
        let answer = self.ask_twice(service, &question).await;
        self.metrics().asked(&service.id, question.kind, began.elapsed());
        if let Err(error) = &answer {
            self.metrics().failed(&service.id, error);
        }
        answer
    }

    async fn ask_twice(&self, service: &Service, question: &Question) -> Result<ServiceAnswer, ServiceError> {
        let request = |prefix: &str| ServiceRequest {
            method: question.method.clone(),
            path: format!("{prefix}{}", question.path),
            body: question.body.clone(),
            timeout: question.timeout,
        };
        let answer = self.client.ask(service, request("/_matrix/app/v1")).await?;
        match question.old {
            Some(old) if is_unknown(&answer) => self.client.ask(service, request(old)).await,
            _ => Ok(answer),
        }
    }
}

/// Whether a service does not know the path, and not what it was asked about.
fn is_unknown(answer: &ServiceAnswer) -> bool {
    #[derive(Deserialize)]
    struct Problem {
        errcode: String,
    }
    let statuses = [StatusCode::NOT_FOUND, StatusCode::METHOD_NOT_ALLOWED, StatusCode::NOT_IMPLEMENTED];
    let errcode = serde_json::from_slice::<Problem>(&answer.body).ok().map(|problem| problem.errcode);
    statuses.contains(&answer.status) && errcode.is_none_or(|errcode| errcode == "M_UNRECOGNIZED")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_told_from_a_path_that_is_not() {
        for (status, body, expected) in [
            (404, "{\"errcode\":\"M_NOT_FOUND\"}", false),
            (404, "{\"errcode\":\"M_UNRECOGNIZED\"}", true),
            (404, "no such page", true),
            (405, "", true),
            (500, "", false),
            (200, "{}", false),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let answer = ServiceAnswer { status, body: Bytes::from_static(body.as_bytes()) };
            assert_eq!(is_unknown(&answer), expected, "{status} {body}");
        }
    }
}
