//! The admin port: health, readiness, metrics and the API, on a thread and a runtime of their own, so that it answers
//! when every slot is busy and however rude a handler is.
//!
//! It is there before the broker is: [`start`] comes first in the life of a worker, the [`Context`] is filled as
//! broker and worker come to exist, and until then `/health` is 200, `/ready` 503 and the API 503.
//!
//! Reading order: [`Context`] is what the port can see; `serve` bounds connections; `guard` decides who may ask; `health` is what probes and
//! scrapers read; `status`, `publish`, `control`,
//! `letters` and `redrive` are the API; [`openapi`] describes it. All errors are
//! [problem documents](problem::Problem).
//!
//! Architecture invariant: a request only ever waits for the broker's own tasks and for its client, never for a
//! handler. What it can do is what [`Control`](crate::worker::handle::Control), the broker's traits and
//! [`Shutdown`](crate::shutdown::Shutdown) offer.

mod context;

mod serve;

mod guard;

mod token;

pub mod problem;

mod health;

mod depth;

mod extract;

mod shape;

mod status;

mod control;

mod incoming;

mod publish;

mod letters;

mod redrive;

pub mod openapi;

#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post, put};
use tokio_util::sync::CancellationToken;

pub use context::Context;

use guard::Guard;
use problem::Problem;
use token::Tokens;

/// `[admin]`
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen; `None` turns it off.
    pub listen: Option<SocketAddr>,
    /// Whether somebody set it: the default may move to the next free port.
    pub listen_set: bool,
    /// Tokens, one a line; each is valid. Read again when the file changes.
    pub token_file: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: Some(([127, 0, 0, 1], 7464).into()), listen_set: false, token_file: None }
    }
}

/// What keeps the port from opening. Exit code 78.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken, or not ours.
    #[error("admin.listen: cannot listen on {address}: {source}; choose another address, or \"none\"")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The token file cannot be read, or has no token.
    #[error("admin.token_file: {0}")]
    Tokens(String),
    /// No thread or runtime could be had.
    #[error("cannot start the admin port: {0}")]
    System(#[source] std::io::Error),
}

impl Error {
    /// The exit code of INTERFACE 5.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Listen { .. } | Self::Tokens(_) => 78,
            Self::System(_) => 69,
        }
    }
}

/// How many ports after the default one are tried.
const NEXT_PORTS: u16 = 100;

/// Opens the port and serves it on a thread of its own until [`Running`] is dropped. `None` where it is turned off.
pub fn start(config: &Config, context: Context) -> Result<Option<Running>, Error> {
    let Some(listen) = config.listen else { return Ok(None) };
    let tokens = Tokens::open(config.token_file.clone())?;
    let listener = bind(listen, config.listen_set)?;
    let system = Error::System;
    let address = listener.local_addr().map_err(system)?;
    if address.port() != listen.port() && listen.port() != 0 {
        tracing::info!(address = %address, wanted = %listen, "the default admin port is taken; listening on the next free one");
    } else {
        tracing::info!(address = %address, "admin port is open");
    }
    if !address.ip().is_loopback() && tokens.is_none() {
        tracing::warn!(address = %address, "admin API answers 403: off loopback it needs admin.token_file");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system)?;
    listener.set_nonblocking(true).map_err(system)?;
    let listener = {
        let _within = runtime.enter();
        tokio::net::TcpListener::from_std(listener).map_err(system)?
    };
    let stop = CancellationToken::new();
    let router = router(context, address.ip(), tokens);
    let serving = stop.clone();
    let thread = std::thread::Builder::new()
        .name("windlass-admin".to_owned())
        .spawn(move || runtime.block_on(serve::run(listener, router, serve::Limits::default(), serving)))
        .map_err(system)?;
    Ok(Some(Running { address, stop, thread: Some(thread) }))
}

/// An open port; dropping it closes it. Close it last, so that `/health` answers to the end.
pub struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // A panic of that thread was printed there, and must not become a second one here.
            let _ = thread.join();
        }
    }
}

fn bind(listen: SocketAddr, configured: bool) -> Result<TcpListener, Error> {
    let refused = match TcpListener::bind(listen) {
        Ok(listener) => return Ok(listener),
        Err(refused) => refused,
    };
    if !configured && refused.kind() == std::io::ErrorKind::AddrInUse {
        let ports = listen.port().saturating_add(1)..=listen.port().saturating_add(NEXT_PORTS);
        for port in ports {
            if let Ok(listener) = TcpListener::bind((listen.ip(), port)) {
                return Ok(listener);
            }
        }
    }
    Err(Error::Listen { address: listen, source: refused })
}

fn router(context: Context, listen: IpAddr, tokens: Option<Tokens>) -> Router {
    let guard = Arc::new(Guard::new(listen.is_loopback(), tokens));
    health::routes()
        .route("/api/v1/status", get(status::status))
        .route("/api/v1/running", get(status::running))
        .route("/api/v1/topics/{topic}", post(publish::publish))
        .route("/api/v1/queues/{queue}/jobs", post(publish::enqueue))
        .route("/api/v1/queues/{queue}/pause", post(control::pause))
        .route("/api/v1/queues/{queue}/resume", post(control::resume))
        .route("/api/v1/queues/{queue}/slots", put(control::set_slots))
        .route("/api/v1/drain", post(control::drain))
        .route("/api/v1/queues/{queue}/dlq", get(letters::list))
        .route("/api/v1/queues/{queue}/dlq/groups", get(letters::groups))
        .route("/api/v1/queues/{queue}/dlq/export", get(letters::export))
        .route("/api/v1/queues/{queue}/dlq/import", post(redrive::import))
        .route("/api/v1/queues/{queue}/dlq/replay", post(redrive::replay))
        .route("/api/v1/queues/{queue}/dlq/purge", post(redrive::purge))
        .route("/api/v1/queues/{queue}/dlq/{id}", get(letters::show))
        .route("/api/v1/queues/{queue}/dlq/{id}/raw", get(letters::raw))
        .route("/api/v1/openapi.json", get(openapi::document))
        .layer(DefaultBodyLimit::max(extract::BODY_LIMIT))
        .fallback(|| async { Problem::not_found("no such path; /api/v1/openapi.json lists what there is") })
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed() })
        .layer(axum::middleware::from_fn_with_state(guard, guard::check))
        .with_state(context)
}
