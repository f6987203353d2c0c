//! The fourth act's service: an endpoint over HTTP that takes 450 ms to answer, and refuses one call for good.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// How long each call takes.
pub const TAKES: Duration = Duration::from_millis(450);
/// How many there are.
pub const CALLS: usize = 100;
/// How many at once.
pub const SLOTS: usize = 20;
/// The one that fails.
pub const REFUSED: usize = 13;

/// The number of a call that was answered, and whether it succeeded.
pub type Answered = (usize, bool);

/// The service. It lives as long as the runtime.
pub struct Service {
    /// `http://127.0.0.1:PORT/call`
    pub url: String,
    /// Calls in the order in which they were answered.
    pub answered: UnboundedReceiver<Answered>,
}

impl Service {
    /// Starts it on a free port.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/call", listener.local_addr()?);
        let (tell, answered) = unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let tell = tell.clone();
                // A worker that hangs up asks again.
                tokio::spawn(async move { serve(stream, &tell).await.ok() });
            }
        });
        Ok(Self { url, answered })
    }
}

/// Requests of one connection, one after the other.
async fn serve(stream: TcpStream, tell: &UnboundedSender<Answered>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut length, mut line) = (0, String::new());
        loop {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            if line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let number = String::from_utf8_lossy(&body).trim().parse().unwrap_or(0);
        tokio::time::sleep(TAKES).await;
        let good = number != REFUSED;
        let (status, text) = if good { ("200 OK", "") } else { ("422 Unprocessable Content", "13 is no good number") };
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{text}", text.len());
        stream.write_all(answer.as_bytes()).await?;
        // The demonstration may have ended; then nobody counts any more.
        let _ = tell.send((number, good));
    }
}
