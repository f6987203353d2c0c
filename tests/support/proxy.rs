//! A TCP proxy that breaks what goes through it, when a test says so, and counts what it broke.
//!
//! A fault that never fired proves nothing: every test that uses one asserts [`Proxy::counts`] afterwards.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// A running proxy on loopback. Dropping it closes everything.
pub struct Proxy {
    port: u16,
    state: Arc<State>,
    runtime: Option<tokio::runtime::Runtime>,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toward {
    /// From the client to the server: requests, acknowledgements.
    Server,
    /// From the server to the client: answers, confirmations.
    Client,
}

/// How connections are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// A TCP reset.
    Reset,
    /// An orderly end.
    Close,
}

/// What the proxy did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that were accepted and led to the server.
    pub connections: u64,
    /// Connections that were refused by a reset.
    pub refused: u64,
    /// Connections that were cut.
    pub cut: u64,
    /// Bytes passed on to the server.
    pub to_server: u64,
    /// Bytes passed on to the client.
    pub to_client: u64,
    /// Bytes that vanished on their way.
    pub swallowed: u64,
    /// Chunks that were held up, by a delay or a throttle.
    pub held_up: u64,
}

#[derive(Default)]
struct Counters {
    connections: AtomicU64,
    refused: AtomicU64,
    cut: AtomicU64,
    swallowed: AtomicU64,
    held_up: AtomicU64,
}

#[derive(Default)]
struct Way {
    passed: AtomicU64,
    swallow: AtomicBool,
    /// Cut the connection once so many bytes have gone this way; 0: never.
    cut_at: AtomicU64,
}

struct State {
    target: AtomicU16,
    refuse: AtomicBool,
    delay_ms: AtomicU64,
    bytes_per_second: AtomicU64,
    ways: [Way; 2],
    counters: Counters,
    cuts: watch::Sender<Option<Cut>>,
}

impl Proxy {
    /// A proxy to this port on loopback, passing everything.
    pub fn to(target: u16) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be built");
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).expect("loopback has a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let state = Arc::new(State {
            target: AtomicU16::new(target),
            refuse: AtomicBool::new(false),
            delay_ms: AtomicU64::new(0),
            bytes_per_second: AtomicU64::new(0),
            ways: Default::default(),
            counters: Counters::default(),
            cuts: watch::Sender::new(None),
        });
        runtime.spawn(accept(listener, state.clone()));
        Self { port, state, runtime: Some(runtime) }
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:PORT`
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Leads new connections to another port. A Kafka broker must advertise the proxy, so the proxy is there first.
    pub fn lead_to(&self, target: u16) {
        self.state.target.store(target, SeqCst);
    }

    /// Ends every standing fault: what comes from now on passes. What was swallowed stays lost.
    pub fn pass(&self) {
        self.state.refuse.store(false, SeqCst);
        self.state.delay_ms.store(0, SeqCst);
        self.state.bytes_per_second.store(0, SeqCst);
        for way in &self.state.ways {
            way.swallow.store(false, SeqCst);
            way.cut_at.store(0, SeqCst);
        }
    }

    /// New connections are reset as soon as they are accepted; those that stand go on.
    pub fn refuse(&self) {
        self.state.refuse.store(true, SeqCst);
    }

    /// Bytes this way vanish while the connection stands: half-open TCP, a lost confirmation.
    pub fn swallow(&self, toward: Toward) {
        self.state.ways[toward as usize].swallow.store(true, SeqCst);
    }

    /// Bytes vanish both ways.
    pub fn swallow_all(&self) {
        self.swallow(Toward::Server);
        self.swallow(Toward::Client);
    }

    /// Every chunk is held up so long, both ways, without slowing the stream as a whole.
    pub fn delay(&self, delay: Duration) {
        self.state.delay_ms.store(delay.as_millis() as u64, SeqCst);
    }

    /// At most so many bytes a second on each connection, each way.
    pub fn throttle(&self, bytes_per_second: u64) {
        self.state.bytes_per_second.store(bytes_per_second, SeqCst);
    }

    /// Cuts every connection that stands; new ones are served.
    pub fn cut(&self, how: Cut) {
        self.state.cuts.send_replace(Some(how));
    }

    /// Resets the connection over which the `bytes`-th byte from now on would go this way, right before that byte.
    /// Fires once.
    pub fn cut_after(&self, toward: Toward, bytes: u64) {
        let way = &self.state.ways[toward as usize];
        way.cut_at.store(way.passed.load(SeqCst) + bytes.max(1), SeqCst);
    }

    /// What it did so far.
    pub fn counts(&self) -> Counts {
        let counters = &self.state.counters;
        Counts {
            connections: counters.connections.load(SeqCst),
            refused: counters.refused.load(SeqCst),
            cut: counters.cut.load(SeqCst),
            to_server: self.state.ways[Toward::Server as usize].passed.load(SeqCst),
            to_client: self.state.ways[Toward::Client as usize].passed.load(SeqCst),
            swallowed: counters.swallowed.load(SeqCst),
            held_up: counters.held_up.load(SeqCst),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Not by waiting, which a test that itself runs on tokio may not do.
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    loop {
        // Out of file descriptors is the one way to fail here; the client sees it as a refusal.
        let Ok((client, _)) = listener.accept().await else { continue };
        if state.refuse.load(SeqCst) {
            state.counters.refused.fetch_add(1, SeqCst);
            reset(&client);
            continue;
        }
        tokio::spawn(lead(client, state.clone()));
    }
}

async fn lead(client: TcpStream, state: Arc<State>) {
    let mut cuts = state.cuts.subscribe();
    cuts.mark_unchanged();
    let Ok(server) = TcpStream::connect(("127.0.0.1", state.target.load(SeqCst))).await else {
        // What a client sees of a server that is not there.
        return reset(&client);
    };
    state.counters.connections.fetch_add(1, SeqCst);
    for stream in [&client, &server] {
        // Only latency depends on it.
        let _ = stream.set_nodelay(true);
    }
    let (client, server) = (Arc::new(client), Arc::new(server));
    let both = async {
        tokio::try_join!(
            pump(client.clone(), server.clone(), Toward::Server, &state),
            pump(server.clone(), client.clone(), Toward::Client, &state),
        )
    };
    // A cut first: it must fire although bytes flow.
    let how = tokio::select! {
        biased;
        Ok(()) = cuts.changed() => *cuts.borrow(),
        ended = both => match ended {
            Ok(_) => None,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Some(Cut::Reset),
            // One side was reset: so is the other.
            Err(_) => {
                reset(&client);
                reset(&server);
                return;
            }
        },
    };
    if let Some(how) = how {
        state.counters.cut.fetch_add(1, SeqCst);
        if how == Cut::Reset {
            reset(&client);
            reset(&server);
        }
    }
}

/// Reads from one side and writes to the other, through a queue, so that a delay holds up bytes but not the stream.
async fn pump(from: Arc<TcpStream>, to: Arc<TcpStream>, toward: Toward, state: &Arc<State>) -> io::Result<()> {
    let way = &state.ways[toward as usize];
    let (queue, mut queued) = mpsc::channel::<(Instant, Vec<u8>)>(1_024);
    let read = async move {
        let mut buffer = vec![0; 64 * 1_024];
        loop {
            from.readable().await?;
            let count = match from.try_read(&mut buffer) {
                Ok(0) => return io::Result::Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            if way.swallow.load(SeqCst) {
                state.counters.swallowed.fetch_add(count as u64, SeqCst);
                continue;
            }
            let due = Instant::now() + Duration::from_millis(state.delay_ms.load(SeqCst));
            if queue.send((due, buffer[..count].to_vec())).await.is_err() {
                return Ok(());
            }
        }
    };
    let write = async move {
        while let Some((due, bytes)) = queued.recv().await {
            if due > Instant::now() {
                state.counters.held_up.fetch_add(1, SeqCst);
                tokio::time::sleep_until(due.into()).await;
            }
            pass(&to, &bytes, way, state).await?;
        }
        // SAFETY: the descriptor is open for as long as `to` lives; the peer learns that nothing more comes.
        unsafe { libc::shutdown(to.as_raw_fd(), libc::SHUT_WR) };
        io::Result::Ok(())
    };
    tokio::try_join!(read, write).map(|_| ())
}

/// Writes what may pass: slowly where throttled, and up to the byte where the connection is to be cut.
async fn pass(to: &TcpStream, bytes: &[u8], way: &Way, state: &State) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let rate = state.bytes_per_second.load(SeqCst);
        // A fiftieth of a second's worth at a time.
        let mut step = if rate == 0 { rest.len() } else { rest.len().min((rate / 50).max(1) as usize) };
        let cut_at = way.cut_at.load(SeqCst);
        if cut_at > 0 {
            let left = (cut_at - 1).saturating_sub(way.passed.load(SeqCst)) as usize;
            if left == 0 {
                way.cut_at.store(0, SeqCst);
                return Err(io::ErrorKind::Interrupted.into());
            }
            step = step.min(left);
        }
        to.writable().await?;
        // Counted before it is on its way, so that whoever has got it finds it counted.
        way.passed.fetch_add(step as u64, SeqCst);
        let written = to.try_write(&rest[..step]);
        way.passed.fetch_sub((step - written.as_ref().map_or(0, |count| *count)) as u64, SeqCst);
        match written {
            Ok(count) => {
                rest = &rest[count..];
                if rate > 0 {
                    state.counters.held_up.fetch_add(1, SeqCst);
                    tokio::time::sleep(Duration::from_secs_f64(count as f64 / rate as f64)).await;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Makes closing this socket a reset.
fn reset(stream: &TcpStream) {
    // It fails only where the peer was quicker.
    let _ = stream.set_zero_linger();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream as Client;

    use super::super::wait;

    /// A server that sends back what it gets, on a thread that ends with the listener's process.
    fn echo() -> u16 {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut copy = stream.try_clone().unwrap();
                    let _ = io::copy(&mut copy, &mut stream);
                });
            }
        });
        port
    }

    fn client(proxy: &Proxy) -> Client {
        let client = Client::connect(("127.0.0.1", proxy.port())).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        client
    }

    fn ask(client: &mut Client, bytes: &[u8]) -> io::Result<Vec<u8>> {
        client.write_all(bytes)?;
        let mut answer = vec![0; bytes.len()];
        client.read_exact(&mut answer).map(|()| answer)
    }

    #[test]
    fn passes_and_counts() {
        let proxy = Proxy::to(echo());
        let mut client = client(&proxy);
        assert_eq!(ask(&mut client, b"hello").unwrap(), b"hello");
        let counts = proxy.counts();
        assert_eq!((counts.connections, counts.to_server, counts.to_client, counts.cut), (1, 5, 5, 0));
    }

    #[test]
    fn a_half_close_passes() {
        let proxy = Proxy::to(echo());
        let mut client = client(&proxy);
        client.write_all(b"last words").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "last words");
    }

    #[test]
    fn cuts_and_serves_again() {
        let proxy = Proxy::to(echo());
        let mut first = client(&proxy);
        ask(&mut first, b"x").unwrap();
        proxy.cut(Cut::Reset);
        assert_eq!(first.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let mut second = client(&proxy);
        assert_eq!(ask(&mut second, b"y").unwrap(), b"y");
        proxy.cut(Cut::Close);
        assert_eq!(second.read(&mut [0]).unwrap(), 0);
        assert_eq!(proxy.counts().cut, 2);
    }

    #[test]
    fn cuts_in_the_middle_of_an_answer() {
        let proxy = Proxy::to(echo());
        let mut client = client(&proxy);
        ask(&mut client, b"before").unwrap();
        proxy.cut_after(Toward::Client, 4);
        client.write_all(b"abcdefgh").unwrap();
        let mut got = Vec::new();
        let mut byte = [0];
        while client.read(&mut byte).is_ok_and(|count| count == 1) {
            got.push(byte[0]);
        }
        assert!(b"abc".starts_with(&got), "a reset may overtake what was sent, never add to it: {got:?}");
        wait::until("the cut is counted", Duration::from_secs(5), || proxy.counts().cut == 1);
        assert_eq!(proxy.counts().to_client, 6 + 3);
    }

    #[test]
    fn swallows_one_way() {
        let proxy = Proxy::to(echo());
        let mut client = client(&proxy);
        proxy.swallow(Toward::Client);
        client.write_all(b"lost").unwrap();
        wait::until("the answer vanished", Duration::from_secs(5), || proxy.counts().swallowed == 4);
        assert_eq!(proxy.counts().to_server, 4);
        proxy.pass();
        assert_eq!(ask(&mut client, b"again").unwrap(), b"again");
    }

    #[test]
    fn refuses_new_ones_only() {
        let proxy = Proxy::to(echo());
        let mut stands = client(&proxy);
        ask(&mut stands, b"x").unwrap();
        proxy.refuse();
        let mut refused = client(&proxy);
        assert!(refused.read(&mut [0]).is_err());
        assert_eq!(ask(&mut stands, b"y").unwrap(), b"y");
        assert_eq!(proxy.counts().refused, 1);
    }

    #[test]
    fn delays_and_throttles() {
        let proxy = Proxy::to(echo());
        let mut client = client(&proxy);
        proxy.delay(Duration::from_millis(50));
        let start = Instant::now();
        ask(&mut client, b"slow").unwrap();
        assert!(start.elapsed() >= Duration::from_millis(100), "there and back");
        proxy.pass();
        proxy.throttle(10_000);
        let start = Instant::now();
        ask(&mut client, &[7; 1_000]).unwrap();
        assert!(
            start.elapsed() >= Duration::from_millis(80),
            "a tenth of a second, but for what the last write would wait"
        );
        assert!(proxy.counts().held_up >= 7);
    }
}
