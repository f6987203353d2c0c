//! Reading requests, with problem documents for what cannot be read.

use std::collections::HashMap;
use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::Context;
use super::problem::Problem;
use crate::message::QueueName;
use crate::time::{Timestamp, parse_duration};

/// The longest body that is taken, 16 MiB; an import is read line by line and has no such limit.
pub(super) const BODY_LIMIT: usize = 16 * 1_024 * 1_024;

/// The queue in the path.
pub(super) struct InQueue(pub(super) QueueName);

impl FromRequestParts<Context> for InQueue {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &Context) -> Result<Self, Problem> {
        let name = segment(parts, state, "queue").await?;
        // A name that can be no queue's is one that is not there.
        QueueName::new(&name).map(Self).map_err(Problem::not_found)
    }
}

/// The topic in the path.
pub(super) struct InTopic(pub(super) String);

impl FromRequestParts<Context> for InTopic {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &Context) -> Result<Self, Problem> {
        segment(parts, state, "topic").await.map(Self)
    }
}

/// The id in the path.
pub(super) struct WithId(pub(super) String);

impl FromRequestParts<Context> for WithId {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &Context) -> Result<Self, Problem> {
        segment(parts, state, "id").await.map(Self)
    }
}

async fn segment(parts: &mut Parts, state: &Context, name: &str) -> Result<String, Problem> {
    let Path(mut segments) = Path::<HashMap<String, String>>::from_request_parts(parts, state)
        .await
        .map_err(|rejection| Problem::bad_request(rejection.body_text()))?;
    Ok(segments.remove(name).unwrap_or_default())
}

/// The query, with unknown names refused by whoever deserialises.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Context> for Asked<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &Context) -> Result<Self, Problem> {
        let Query(asked) = Query::<T>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| Problem::bad_request(rejection.body_text()))?;
        Ok(Self(asked))
    }
}

/// The whole body.
pub(super) struct Payload(pub(super) Bytes);

impl FromRequest<Context> for Payload {
    type Rejection = Problem;
    async fn from_request(request: Request, state: &Context) -> Result<Self, Problem> {
        Bytes::from_request(request, state).await.map(Self).map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("a body may have at most {} MiB", BODY_LIMIT >> 20))
            }
            status => Problem::new(status, rejection.body_text()),
        })
    }
}

/// The body as JSON; an empty one is an empty object.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Context> for Json<T> {
    type Rejection = Problem;
    async fn from_request(request: Request, state: &Context) -> Result<Self, Problem> {
        let Payload(body) = Payload::from_request(request, state).await?;
        let text: &[u8] = if body.is_empty() { b"{}" } else { &body };
        serde_json::from_slice(text)
            .map(Self)
            .map_err(|error| Problem::bad_request(format!("the body does not fit: {error}")))
    }
}

/// A duration as configuration writes it.
pub(super) fn duration(name: &str, text: &str) -> Result<Duration, Problem> {
    parse_duration(text).map_err(|expected| Problem::bad_request(format!("{name}: {expected}")))
}

/// RFC 3339.
pub(super) fn time(name: &str, text: &str) -> Result<Timestamp, Problem> {
    Timestamp::parse_rfc3339(text)
        .ok_or_else(|| Problem::bad_request(format!("{name}: expected RFC 3339, found {text:?}")))
}
