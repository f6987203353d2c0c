//! Leaving: signals become tokens and a grace period.
//!
//! First SIGTERM or SIGINT: `intake`. When the grace is over, or on SIGQUIT: `work`. A second signal of any of them: `now`. SIGHUP
//! does nothing (reading the configuration again is for later).

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// The stages of leaving. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Cancelled by the first signal: take nothing new, give back what has not started.
    pub intake: CancellationToken,
    /// Cancelled when the grace period is over: cancel what runs and give it back.
    pub work: CancellationToken,
    /// Cancelled when the process is about to leave whatever still runs.
    pub abandoned: CancellationToken,
    /// Cancelled by the second signal: give back what can be given back within 200 ms, and exit.
    pub now: CancellationToken,
    signal: Arc<AtomicI32>,
}

impl Shutdown {
    /// The number of the second signal, if there was one: the exit code is 128 + that.
    pub fn forced_by(&self) -> Option<i32> {
        let signal = self.signal.load(Ordering::Acquire);
        (signal != 0).then_some(signal)
    }

    /// Begins a drain, as the first SIGTERM does.
    pub fn drain(&self) {
        self.intake.cancel();
    }

    /// Listens for signals on the current runtime, for as long as that lives. `grace`: from the first signal to
    /// cancelling what still runs.
    pub fn listen(&self, grace: Duration) -> std::io::Result<tokio::task::JoinHandle<()>> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        let mut quit = signal(SignalKind::quit())?;
        let mut hup = signal(SignalKind::hangup())?;
        let shutdown = self.clone();
        Ok(tokio::spawn(async move {
            let mut first = true;
            loop {
                let number = tokio::select! {
                    _ = term.recv() => libc::SIGTERM,
                    _ = int.recv() => libc::SIGINT,
                    _ = quit.recv() => libc::SIGQUIT,
                    _ = hup.recv() => continue,
                };
                // A drain that was asked for otherwise (the admin port, a burst) is no signal.
                if !std::mem::take(&mut first) {
                    shutdown.signal.store(number, Ordering::Release);
                    shutdown.now.cancel();
                    return;
                }
                tracing::info!(signal = number, grace_s = grace.as_secs_f64(), "leaving: taking nothing new");
                shutdown.intake.cancel();
                if number == libc::SIGQUIT {
                    shutdown.work.cancel();
                }
            }
        }))
    }
}
