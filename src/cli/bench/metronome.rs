//! How late this machine wakes a thread that sleeps: below that no wait can be, whoever is measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::board::{Waits, now};

/// How long it sleeps each time.
const BEAT: Duration = Duration::from_millis(2);

/// A thread that does nothing else, until it is stopped or dropped.
pub struct Metronome {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Waits>>,
}

impl Metronome {
    /// Begins; without a thread where the system refuses one.
    pub fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let beat = move || {
            let mut late = Waits::default();
            loop {
                let due = now() + BEAT.as_nanos() as u64;
                std::thread::sleep(BEAT);
                late.note(now().saturating_sub(due));
                if stopped.load(Ordering::Relaxed) {
                    return late;
                }
            }
        };
        Self { stop, thread: std::thread::Builder::new().name("metronome".to_owned()).spawn(beat).ok() }
    }

    /// Stops it: how late it was woken.
    pub fn stop(mut self) -> Waits {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Metronome {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_its_beats() {
        let late = Metronome::start().stop();
        assert!(late.count() > 0 && late.quantile_ms(1.0) <= late.max_ms());
    }
}
