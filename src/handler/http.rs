//! Jobs over HTTP.

use std::path::PathBuf;
use std::sync::Arc;

use super::Handler;

/// `[jobs.X]` with `http`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where attempts are POSTed.
    pub url: String,
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// A file with a bearer token, read again when a request is refused with 401.
    pub bearer_file: Option<PathBuf>,
    /// Trusted roots, PEM.
    pub ca_file: Option<PathBuf>,
}

/// Builds the handler of an HTTP job, with a pooled client of its own.
pub fn handler(_config: &Config) -> Result<Arc<dyn Handler>, String> {
    Err(String::new())
}
