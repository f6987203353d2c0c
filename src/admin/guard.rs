//! Who may ask. Probes and scrapers always; everything else only from where INTERFACE 6 allows it.
//!
//! - A foreign `Origin` is refused everywhere: no web page of somebody else drives a worker through a browser.
//! - On loopback a `Host` other than localhost is refused: that is how a page on a name of its own would reach it
//!   (DNS rebinding).
//! - Off loopback a bearer token is needed, and where none is set nobody may ask; on loopback it is needed where one
//!   is set.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::Problem;
use super::token::Tokens;

/// Never guarded.
const OPEN: [&str; 6] = ["/health", "/healthz", "/livez", "/ready", "/readyz", "/metrics"];

/// What is checked.
pub(super) struct Guard {
    loopback: bool,
    tokens: Option<Tokens>,
}

impl Guard {
    /// `loopback`: whether the port listens there. `tokens`: those that are set.
    pub(super) fn new(loopback: bool, tokens: Option<Tokens>) -> Self {
        Self { loopback, tokens }
    }

    /// Whether a request may go on.
    fn admit(&self, request: &Request) -> Result<(), Problem> {
        if OPEN.contains(&request.uri().path()) {
            return Ok(());
        }
        let headers = request.headers();
        let host = host(request)?;
        if self.loopback && !host.as_ref().is_some_and(|host| is_local(host.host())) {
            return Err(Problem::forbidden("Host must be localhost, 127.0.0.1 or [::1] here"));
        }
        for origin in headers.get_all(header::ORIGIN) {
            if !is_own(origin, host.as_ref()) {
                return Err(Problem::forbidden("requests from a foreign Origin are refused"));
            }
        }
        match (&self.tokens, self.loopback) {
            (None, true) => Ok(()),
            (None, false) => Err(Problem::forbidden("off loopback the API needs admin.token_file to be set")),
            (Some(tokens), _) => match bearer(headers) {
                Some(token) if tokens.contain(token) => Ok(()),
                Some(_) => Err(Problem::unauthorized("this bearer token is not valid")),
                None => Err(Problem::unauthorized("expected Authorization: Bearer with one of the tokens")),
            },
        }
    }
}

/// The middleware; also says on every answer that it is not to be kept or guessed at.
pub(super) async fn check(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let mut response = match guard.admit(&request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The host asked for: the request target's, else the one `Host` header; RFC 9112, 3.2.2.
fn host(request: &Request) -> Result<Option<Authority>, Problem> {
    if let Some(authority) = request.uri().authority() {
        return Ok(Some(authority.clone()));
    }
    let mut values = request.headers().get_all(header::HOST).iter();
    let (first, second) = (values.next(), values.next());
    if second.is_some() {
        return Err(Problem::bad_request("there are two Host headers"));
    }
    Ok(first.and_then(|value| value.to_str().ok()).and_then(|value| value.parse().ok()))
}

fn is_local(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host == "127.0.0.1" || host == "[::1]"
}

/// Whether a page of this origin came from this port itself.
fn is_own(origin: &HeaderValue, host: Option<&Authority>) -> bool {
    let Ok(text) = origin.to_str() else { return false };
    let (Some((scheme, origin)), Some(host)) = (text.split_once("://"), host) else { return false };
    let default = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return false,
    };
    let Ok(origin) = origin.parse::<Authority>() else { return false };
    origin.host().eq_ignore_ascii_case(host.host())
        && origin.port_u16().unwrap_or(default) == host.port_u16().unwrap_or(default)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn status(guard: &Guard, path: &str, headers: &[(&str, &str)]) -> u16 {
        let request = headers.iter().fold(Request::get(path), |request, (name, value)| request.header(*name, *value));
        let request = request.body(Body::empty()).expect("a request");
        guard.admit(&request).map_or_else(|problem| problem.into_response().status().as_u16(), |()| 200)
    }

    #[test]
    fn the_table_of_interface_6() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("tokens");
        std::fs::write(&file, "secret\n").expect("written");
        let tokens = || Tokens::open(Some(file.clone())).expect("readable");
        let (open, closed) = (Guard::new(true, None), Guard::new(true, tokens()));
        let (unset, set) = (Guard::new(false, None), Guard::new(false, tokens()));
        let api = "/api/v1/status";
        let local = ("host", "localhost:7464");
        let remote = ("host", "worker.example:7464");
        let good = ("authorization", "bearer secret");
        let bad = ("authorization", "Bearer secre");

        for guard in [&open, &closed, &unset, &set] {
            for path in OPEN {
                assert_eq!(status(guard, path, &[("host", "evil.example"), ("origin", "https://evil.example")]), 200);
            }
            assert_eq!(status(guard, "/", &[local, good, ("origin", "https://evil.example")]), 403);
            assert_eq!(status(guard, api, &[local, good, ("origin", "null")]), 403);
            assert_eq!(status(guard, api, &[local, good, ("origin", "http://localhost:9999")]), 403, "another port");
        }
        assert_eq!(status(&open, api, &[local]), 200);
        assert_eq!(status(&open, api, &[("host", "LOCALHOST")]), 200);
        assert_eq!(status(&open, api, &[("host", "[::1]:7464"), ("origin", "http://[::1]:7464")]), 200);
        assert_eq!(status(&open, api, &[("host", "127.0.0.1:7464"), ("origin", "http://127.0.0.1:7464")]), 200);
        for host in ["worker.example", "localhost.evil.example", "127.0.0.1.nip.io", "localhost@evil.example", ""] {
            assert_eq!(status(&open, api, &[("host", host)]), 403, "{host}");
        }
        assert_eq!(status(&open, api, &[]), 403, "no Host");
        assert_eq!(status(&open, api, &[local, ("host", "evil.example")]), 400, "two Hosts");
        assert_eq!(status(&open, "http://evil.example/api/v1/status", &[local]), 403, "the target's own host counts");

        assert_eq!(status(&closed, api, &[local]), 401);
        assert_eq!(status(&closed, api, &[local, bad]), 401);
        assert_eq!(status(&closed, api, &[local, good]), 200);
        assert_eq!(status(&unset, api, &[remote]), 403);
        assert_eq!(status(&unset, api, &[remote, good]), 403);
        assert_eq!(status(&set, api, &[remote]), 401);
        assert_eq!(status(&set, api, &[remote, good]), 200);
        assert_eq!(status(&set, api, &[remote, good, ("origin", "https://worker.example:7464")]), 200);
        assert_eq!(status(&set, "/anything", &[remote]), 401, "what does not exist is not told to strangers");
    }
}
