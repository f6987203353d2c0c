//! Errors as RFC 9457 says: `application/problem+json`.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::broker;

/// A problem document. `type` is always `about:blank`, so that `title` is the status' own name (RFC 9457, 4.2.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Problem {
    /// `about:blank`
    #[serde(rename = "type")]
    kind: &'static str,
    /// The status' name.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What is wrong and what to do about it, in a sentence.
    detail: String,
    /// The dead letters that an id names, where it names several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    candidates: Vec<String>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: detail.into(),
            candidates: Vec::new(),
        }
    }

    /// With the dead letters that an id names.
    pub(super) fn with_candidates(mut self, ids: Vec<String>) -> Self {
        self.candidates = ids;
        self
    }

    /// 400
    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// 401
    pub(super) fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, detail)
    }

    /// 403
    pub(super) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, detail)
    }

    /// 404
    pub(super) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// 405
    pub(super) fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "this path has other methods; /api/v1/openapi.json lists them")
    }

    /// 503
    pub(super) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }
}

impl From<broker::Error> for Problem {
    fn from(error: broker::Error) -> Self {
        let status = match &error {
            // Refused by the broker (permission, a foreign file) is as unavailable to a client as down.
            broker::Error::Unavailable(_) | broker::Error::Refused(_) => StatusCode::SERVICE_UNAVAILABLE,
            broker::Error::Taken(_) => StatusCode::CONFLICT,
            broker::Error::NotFound(_) => StatusCode::NOT_FOUND,
            broker::Error::Rejected(_) => StatusCode::UNPROCESSABLE_ENTITY,
            broker::Error::Usage(_) => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        let headers = response.headers_mut();
        match status {
            StatusCode::UNAUTHORIZED => {
                let challenge = header::HeaderValue::from_static("Bearer realm=\"windlass\"");
                headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}
