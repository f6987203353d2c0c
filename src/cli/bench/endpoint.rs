//! Where HTTP jobs are POSTed: an endpoint in the measuring process that takes its time and answers 200.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use parking_lot::Mutex;

use super::board::Board;
use super::body::Body;
use crate::cli::fault::Fault;

/// Answers until it is dropped.
pub struct Endpoint {
    /// Its address.
    pub url: String,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    takes: Duration,
    board: Mutex<Option<Arc<Board>>>,
}

impl Endpoint {
    /// On a port of its own.
    pub async fn start(takes: Duration) -> Result<Self, Fault> {
        crate::process::raise_file_limit();
        let failed = |error: std::io::Error| Fault::failed(format!("opening a port for the jobs: {error}"));
        let socket = tokio::net::TcpSocket::new_v4().map_err(failed)?;
        socket.bind(std::net::SocketAddr::from(([127, 0, 0, 1], 0))).map_err(failed)?;
        // As many connections as there are slots may come at once.
        let listener = socket.listen(16_384).map_err(failed)?;
        let url = format!("http://{}/", listener.local_addr().map_err(failed)?);
        let shared = Arc::new(Shared { takes, board: Mutex::new(None) });
        let router = Router::new().route("/", post(answer)).with_state(shared.clone());
        let task = tokio::spawn(async move {
            // It ends with the task.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { url, shared, task })
    }

    /// Counts on this board from now on.
    pub fn count_on(&self, board: &Arc<Board>) {
        *self.shared.board.lock() = Some(board.clone());
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(State(shared): State<Arc<Shared>>, text: Bytes) -> StatusCode {
    let board = shared.board.lock().clone();
    let (Some(board), Some(body)) = (board, Body::peek(&text)) else { return StatusCode::BAD_REQUEST };
    board.start(body.id(), body.sent());
    tokio::time::sleep(shared.takes).await;
    board.done();
    StatusCode::OK
}
