//! Serving connections: so many at once, and none that keeps its place without asking for anything.
//!
//! What axum serves by itself has no such bounds: whoever opens connections and sends nothing would take the
//! worker's file descriptors, which its brokers and jobs need.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What bounds connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// At once; further ones wait until one of these ends.
    connections: usize,
    /// From the beginning of a connection, or the end of the last answer on it, to the end of the next request's
    /// headers. A scraper that comes seldom opens another.
    headers: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 256, headers: Duration::from_secs(30) }
    }
}

/// What answers still under way are given when the port closes.
const LAST_ANSWERS: Duration = Duration::from_millis(200);

/// After this no connection could be taken (out of file descriptors): it is tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// Serves until `stop` is cancelled, and then what is under way for an instant.
pub(super) async fn run(listener: TcpListener, router: Router, limits: Limits, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let open = TaskTracker::new();
    while !stop.is_cancelled() {
        let next = async {
            let place = places.clone().acquire_owned().await.expect("it is never closed");
            (place, listener.accept().await)
        };
        // Closing first: a port that always has a connection waiting must still close.
        let (place, accepted) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => {
                let serving = connection(stream, router.clone(), limits, stop.clone());
                open.spawn(async move {
                    serving.await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a connection to the admin port could not be taken");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
    open.close();
    // Answers under way are a courtesy; connections kept alive would never end.
    let _ = tokio::time::timeout(LAST_ANSWERS, open.wait()).await;
}

async fn connection(stream: TcpStream, router: Router, limits: Limits, stop: CancellationToken) {
    // Without it answers may be some milliseconds later; nothing is lost.
    let _ = stream.set_nodelay(true);
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.headers)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(serving);
    // What the client did wrong, or that it went away, is the client's affair.
    let ended = tokio::select! {
        biased;
        ended = &mut serving => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::trace!(%error, "a connection to the admin port ended");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    async fn ask(stream: &mut TcpStream) -> String {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.expect("written");
        let mut answer = String::new();
        tokio::time::timeout(SOON, stream.read_to_string(&mut answer)).await.expect("in time").expect("read");
        answer
    }

    #[tokio::test]
    async fn those_that_ask_nothing_make_room() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let router = Router::new().route("/", get(|| async { "here" }));
        let limits = Limits { connections: 2, headers: Duration::from_millis(300) };
        let stop = CancellationToken::new();
        let serving = tokio::spawn(run(listener, router, limits, stop.clone()));

        // One says nothing, one begins a request and never ends it: they have both places.
        let mut silent = TcpStream::connect(address).await.expect("connected");
        let mut slow = TcpStream::connect(address).await.expect("connected");
        slow.write_all(b"GET / HTTP/1.1\r\nHost: loc").await.expect("written");
        let mut third = TcpStream::connect(address).await.expect("the system takes it for us");
        let began = std::time::Instant::now();
        assert!(ask(&mut third).await.ends_with("here"));
        assert!(began.elapsed() >= Duration::from_millis(100), "it waited for a place");
        for late in [&mut silent, &mut slow] {
            let mut rest = Vec::new();
            let ended = tokio::time::timeout(SOON, late.read_to_end(&mut rest)).await.expect("it was ended");
            // Closed with or without a word (408), or reset.
            drop(ended);
            assert!(!rest.ends_with(b"here"));
        }
        stop.cancel();
        tokio::time::timeout(SOON, serving).await.expect("in time").expect("no panic");
    }
}
