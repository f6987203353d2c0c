//! Jobs over HTTP: one POST an attempt, CloudEvents binary mode.
//!
//! The request has `ce-specversion`, `ce-id`, `ce-source`, `ce-type`, the event's further attributes, `ce-attempt`,
//! `Content-Type`, W3C trace context, and the configured headers; its body is [`Event::data`] byte for byte. Headers
//! of the message that are no attributes are not passed on. Redirects are never followed.
//!
//! | status | meaning |
//! |---|---|
//! | 2xx | done |
//! | 401, 403, 404, 405, 408, 409, 425, 429, 3xx, 5xx, and what is no status of RFC 9110 | tried again |
//! | all other 4xx | permanent |
//! | refused, reset, broken off | tried again |
//!
//! `Retry-After` is obeyed wherever an attempt is made again. The error's text is a hint where there is one, and the
//! first KiB of the answer.
//!
//! There is no timeout here: the worker drops the request when the attempt times out, which closes its connection.
//! A waiting request holds one connection and hyper's buffers for it, and nothing of ours but a boxed future.

mod answer;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod request;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::RwLock;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Url};

use super::{Context, Error, Handler, Output};
#[cfg(doc)]
use crate::message::Event;

/// `[jobs.X]` with `http`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where attempts are POSTed.
    pub url: String,
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// A file with a bearer token, read again when a request is refused with 401.
    pub bearer_file: Option<PathBuf>,
    /// Trusted roots beside the system's, PEM.
    pub ca_file: Option<PathBuf>,
}

/// Builds the handler of an HTTP job, with a pooled client of its own. Reads `bearer_file` and `ca_file`. The error is
/// a sentence for whoever wrote the configuration.
pub fn handler(config: &Config) -> Result<Arc<dyn Handler>, String> {
    let url = parse_url(&config.url)?;
    let client = client(config, &url)?;
    let bearer = match &config.bearer_file {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| format!("cannot read bearer_file {}: {error}", path.display()))?;
            let value = bearer(&text).ok_or_else(|| format!("bearer_file {} holds no token", path.display()))?;
            Some(Bearer { path: path.clone(), value: RwLock::new(value) })
        }
        None => None,
    };
    Ok(Arc::new(Endpoint(Arc::new(Inner { client, shown: shown(&url), url, bearer }))))
}

struct Endpoint(Arc<Inner>);

struct Inner {
    client: Client,
    url: Url,
    /// The address without a password.
    shown: String,
    bearer: Option<Bearer>,
}

struct Bearer {
    path: PathBuf,
    value: RwLock<HeaderValue>,
}

impl Handler for Endpoint {
    fn call(&self, cx: Context) -> BoxFuture<'static, Result<Output, Error>> {
        let inner = self.0.clone();
        Box::pin(async move { inner.call(cx).await })
    }
}

impl Inner {
    async fn call(&self, cx: Context) -> Result<Output, Error> {
        let event = cx.event();
        event.check().map_err(Error::malformed)?;
        let mut headers = request::headers(event, cx.attempt());
        if let Some(bearer) = &self.bearer {
            headers.insert(reqwest::header::AUTHORIZATION, bearer.value.read().clone());
        }
        let wants_result = cx.wants_result();
        let sending = self.client.post(self.url.clone()).headers(headers).body(event.data.clone()).send();
        let mut response = sending.await.map_err(|error| answer::transport(&error, &self.shown))?;

        let status = response.status();
        if status.is_success() {
            let keep = if wants_result { RESULT } else { 0 };
            let body = read(&mut response, keep).await;
            return Ok(wants_result.then(|| answer::result(&body)));
        }
        if status == reqwest::StatusCode::UNAUTHORIZED {
            self.renew_bearer().await;
        }
        let body = read(&mut response, crate::message::Failure::MAX_ERROR).await;
        Err(answer::error(
            status,
            response.headers(),
            &body,
            &self.url,
            self.bearer.as_ref().map(|bearer| &*bearer.path),
        ))
    }

    /// The token may have been rotated: the next attempt has the new one.
    async fn renew_bearer(&self) {
        let Some(known) = &self.bearer else { return };
        match tokio::fs::read_to_string(&known.path).await {
            Ok(text) => {
                if let Some(value) = bearer(&text) {
                    *known.value.write() = value;
                }
            }
            Err(error) => {
                tracing::warn!(file = %known.path.display(), %error, "the bearer token cannot be read again");
            }
        }
    }
}

/// So much of a result is shown by `windlass try`.
const RESULT: usize = 1024 * 1024;
/// An answer that is longer is not read to its end: its connection is given up.
const DRAIN: usize = 64 * 1024;
/// The status has said all that decides; nothing waits longer than this for what follows it.
const PATIENCE: Duration = Duration::from_secs(1);

/// The first `keep` bytes of a body; reads on to its end where that is near, so that the connection can be used
/// again.
async fn read(response: &mut reqwest::Response, keep: usize) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut seen = 0;
    let reading = async {
        // A body that breaks off has no more to say.
        while let Ok(Some(chunk)) = response.chunk().await {
            seen += chunk.len();
            let room = keep - kept.len();
            kept.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if seen >= DRAIN.max(keep) {
                break;
            }
        }
    };
    // Too late is as good as done: what was kept until then counts.
    let _ = tokio::time::timeout(PATIENCE, reading).await;
    kept
}

fn parse_url(text: &str) -> Result<Url, String> {
    let url: Url = text
        .parse()
        .map_err(|error| format!("expected a URL such as http://127.0.0.1:8000/jobs, found {text:?}: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err(format!("expected a URL that begins with http:// or https://, found {text:?}"));
    }
    Ok(url)
}

fn shown(url: &Url) -> String {
    let mut shown = url.clone();
    // Neither can fail: the scheme was checked.
    let _ = (shown.set_password(None), shown.set_username(""));
    shown.into()
}

fn bearer(text: &str) -> Option<HeaderValue> {
    let token = text.trim();
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok().filter(|_| !token.is_empty())?;
    value.set_sensitive(true);
    Some(value)
}

fn client(config: &Config, url: &Url) -> Result<Client, String> {
    // The provider of the whole process; somebody may have installed it before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .user_agent(concat!("windlass/", env!("CARGO_PKG_VERSION")))
        .default_headers(configured(&config.headers)?)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .http1_only()
        .connect_timeout(Duration::from_secs(10))
        // Shorter than the 5 s after which uvicorn and node close an idle connection: what is sent just then is lost.
        .pool_idle_timeout(Duration::from_secs(4))
        // A job may run for hours without a byte; a peer that is gone has to be noticed.
        .tcp_keepalive(Duration::from_secs(30))
        .tcp_keepalive_interval(Duration::from_secs(10));
    if is_loopback(url) {
        builder = builder.no_proxy();
    }
    let mut roots = Vec::new();
    if let Some(path) = &config.ca_file {
        let pem = std::fs::read(path).map_err(|error| format!("cannot read ca_file {}: {error}", path.display()))?;
        roots = reqwest::Certificate::from_pem_bundle(&pem)
            .map_err(|error| format!("ca_file {} is no PEM file of certificates: {error}", path.display()))?;
        if roots.is_empty() {
            return Err(format!("ca_file {} holds no certificate", path.display()));
        }
    }
    // Without TLS the system's roots are not looked for: a container may have none.
    builder = if url.scheme() == "https" { builder.tls_certs_merge(roots) } else { builder.tls_certs_only(roots) };
    builder
        .build()
        .map_err(|error| format!("no HTTP client can be built for {}: {}", shown(url), answer::chain(&error)))
}

fn configured(headers: &[(String, String)]) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let parsed: HeaderName = name.parse().map_err(|_| format!("{name:?} is no name of an HTTP header"))?;
        if parsed.as_str().starts_with("ce-")
            || matches!(parsed.as_str(), "content-length" | "transfer-encoding" | "connection" | "host")
        {
            return Err(format!("the header {name} is set by windlass; remove it from headers"));
        }
        let value = value.parse().map_err(|_| format!("the value of header {name} is no value of an HTTP header"))?;
        map.append(parsed, value);
    }
    Ok(map)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    host == "localhost" || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
