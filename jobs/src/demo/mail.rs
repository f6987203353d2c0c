//! A mail server of the demonstration's own, on loopback: it refuses until it is told to accept.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// The server. Cheap to clone; it lives as long as the runtime.
#[derive(Clone)]
pub struct MailServer {
    /// `smtp://127.0.0.1:PORT`
    pub url: String,
    accepts: Arc<AtomicBool>,
    taken: Arc<AtomicUsize>,
}

impl MailServer {
    /// Starts it on a free port. It refuses every recipient.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("smtp://{}", listener.local_addr()?);
        let server = Self { url, accepts: Arc::default(), taken: Arc::default() };
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = serving.clone();
                // A client that hangs up in the middle has sent nothing.
                tokio::spawn(async move { server.talk(stream).await.ok() });
            }
        });
        Ok(server)
    }

    /// From now on mail is taken.
    pub fn accept(&self) {
        self.accepts.store(true, Ordering::Release);
    }

    /// How many mails were taken.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }

    /// One conversation: as much of RFC 5321 as a client needs.
    async fn talk(&self, stream: TcpStream) -> io::Result<()> {
        let mut stream = BufReader::new(stream);
        stream.write_all(b"220 mail.laboratory.example\r\n").await?;
        let (mut line, mut data) = (String::new(), false);
        loop {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let verb = line.split([' ', '\r', '\n']).next().unwrap_or_default().to_ascii_uppercase();
            let answer = match verb.as_str() {
                "." if data => {
                    data = false;
                    self.taken.fetch_add(1, Ordering::AcqRel);
                    "250 taken"
                }
                _ if data => continue,
                "RCPT" if !self.accepts.load(Ordering::Acquire) => "451 4.3.2 the mail server is being repaired",
                "DATA" => {
                    data = true;
                    "354 go on"
                }
                "QUIT" => {
                    stream.write_all(b"221 bye\r\n").await?;
                    return Ok(());
                }
                _ => "250 ok",
            };
            stream.write_all(format!("{answer}\r\n").as_bytes()).await?;
        }
    }
}
