//! Tells systemd how the process does: `READY=1` once it works, `WATCHDOG=1` while it lives, `STOPPING=1` when it
//! begins to leave.
//!
//! The protocol is a datagram of `NAME=VALUE` to the socket that `NOTIFY_SOCKET` names (sd_notify(3)); where the
//! variable is not set, nobody listens and nothing is sent.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::shutdown::Shutdown;

/// How often it is asked whether the process is ready.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The manager, and how often it wants to hear that the process lives.
#[derive(Debug)]
pub struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
}

impl Manager {
    /// The one that started this process, as its variables say; `None`: there is none.
    pub fn from_environment() -> io::Result<Option<Self>> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let Some(socket) = variable("NOTIFY_SOCKET") else { return Ok(None) };
        // Twice as often as it asks for, as sd_watchdog_enabled(3) recommends; nothing where another process is meant.
        let other = variable("WATCHDOG_PID").is_some_and(|pid| pid != std::process::id().to_string());
        let watchdog = variable("WATCHDOG_USEC").filter(|_| !other).and_then(|micros| micros.parse().ok());
        Self::at(&socket, watchdog.map(|micros: u64| Duration::from_micros(micros / 2))).map(Some)
    }

    /// The one that listens at this path, or at this abstract name where it begins with `@`.
    fn at(socket: &str, watchdog: Option<Duration>) -> io::Result<Self> {
        let address = match socket.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(socket)?,
        };
        let socket = UnixDatagram::unbound()?;
        // A manager that does not read must not hold up broker I/O.
        socket.set_nonblocking(true)?;
        Ok(Self { socket, address, watchdog: watchdog.filter(|every| !every.is_zero()) })
    }

    /// Tells it everything, until the process ends. `ready` is asked until it says yes.
    pub async fn keep(self, ready: impl Fn() -> bool, shutdown: Shutdown) {
        let began = Instant::now();
        let (mut told, mut stopping) = (false, false);
        let mut next_look = began;
        let mut next_life = self.watchdog.map(|every| began + every);
        loop {
            // Leaving first: what is about to stop is not announced as ready.
            tokio::select! {
                biased;
                () = shutdown.intake.cancelled(), if !stopping => {
                    stopping = true;
                    self.tell("STOPPING=1");
                }
                () = sleep_until(next_look), if !told && !stopping => {
                    next_look += LOOK_EVERY;
                    if ready() {
                        told = true;
                        self.tell("READY=1");
                    }
                }
                () = sleep_until(next_life.unwrap_or(began)), if next_life.is_some() => {
                    next_life = self.watchdog.map(|every| Instant::now() + every);
                    self.tell("WATCHDOG=1");
                }
                else => return,
            }
        }
    }

    fn tell(&self, what: &str) {
        // Where the manager is gone or its buffer full there is nobody else to tell; it acts on its own time limits.
        let _ = self.socket.send_to_addr(what.as_bytes(), &self.address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn read(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).expect("a datagram within a minute");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[tokio::test]
    async fn it_is_told_when_it_is_true_by_path_and_by_abstract_name() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("notify").display().to_string();
        for name in [path, format!("@windlass-test-{}", std::process::id())] {
            let address = match name.strip_prefix('@') {
                Some(name) => SocketAddr::from_abstract_name(name).expect("a name"),
                None => SocketAddr::from_pathname(&name).expect("a path"),
            };
            let socket = UnixDatagram::bind_addr(&address).expect("a socket");
            socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
            let manager = Manager::at(&name, Some(Duration::from_millis(10))).expect("an address");
            let (shutdown, ready) = (Shutdown::default(), std::sync::Arc::new(AtomicBool::new(false)));
            let (asked, leaving) = (ready.clone(), shutdown.clone());
            let keeping = tokio::spawn(manager.keep(move || asked.load(Ordering::Acquire), leaving));
            let reading = tokio::task::spawn_blocking(move || {
                assert_eq!(read(&socket), "WATCHDOG=1", "it lives before it is ready");
                ready.store(true, Ordering::Release);
                while read(&socket) != "READY=1" {}
                assert_eq!(read(&socket), "WATCHDOG=1", "ready is told once");
                shutdown.drain();
                while read(&socket) != "STOPPING=1" {}
                assert_eq!(read(&socket), "WATCHDOG=1", "it lives while it leaves");
            });
            reading.await.expect("everything was told");
            keeping.abort();
        }
    }
}
