//! See [`crate::fuzz`]: what a job answers over HTTP.

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{StatusCode, Url};

use super::answer;

/// The status in the first line, headers, and the body.
pub fn answer(input: &[u8]) {
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let status = std::str::from_utf8(&input[..end]).ok().and_then(|text| text.parse::<u16>().ok());
    let Some(status) = status.and_then(|status| StatusCode::from_u16(status).ok()) else { return };
    let (pairs, body) = crate::fuzz::head_and_body(input.get(end + 1..).unwrap_or_default());
    let pair =
        |(name, value): (&str, &[u8])| Some((HeaderName::try_from(name).ok()?, HeaderValue::from_bytes(value).ok()?));
    let headers: HeaderMap = pairs.into_iter().filter_map(pair).collect();
    let url = Url::parse("http://127.0.0.1:8000/jobs/x").expect("a URL");
    let error = answer::error(status, &headers, body, &url, None);
    assert!(error.message().len() <= 4_096 + 4 * input.len(), "{} bytes", error.message().len());
    assert_eq!(error.verdict(), answer::error(status, &headers, body, &url, None).verdict());
    assert!(!answer::result(body).to_string().is_empty());
}
