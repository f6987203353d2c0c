//! Stories of what goes wrong around a worker: its clock is set, its disk is full, its connection is cut, its handlers
//! are rude.

use std::time::{Duration, Instant};

use super::chaos::{clean, seed, site};
#[cfg(feature = "sqlite")]
use super::story::Site;
use super::story::lease;
use crate::conformance::subject::{self, Subject};
use crate::support::{http, tool};

/// The wall clock is set forward and back, each time by more than a lease, while jobs run and wait.
fn clock_steps<S: Subject>(rounds: usize) {
    let Some(mut site) = site::<S>(seed()) else { return };
    let step = lease::<S>().as_millis() as i64 * 3 / 2;
    for round in 0..rounds {
        site.publish(90, 30);
        let more = site.random.usize(30..=80);
        site.advance(more, Duration::from_secs(60));
        site.set_clock(if round % 2 == 0 { step } else { 0 });
    }
    site.set_clock(0);
    let verdict = site.verdict(Duration::from_secs(120));
    clean(&verdict);
    assert_eq!(verdict.explained, 0, "no lease is on the wall clock: {verdict}");
}

/// Every connection is cut, again and again.
fn cuts<S: Subject>(rounds: usize) {
    let Some(mut site) = site::<S>(seed()) else { return };
    for _ in 0..rounds {
        site.publish(60, 20);
        let more = site.random.usize(1..=60);
        site.advance(more, Duration::from_secs(60));
        if !site.cut() {
            return S::inapplicable("there is no connection to cut");
        }
    }
    clean(&site.verdict(Duration::from_secs(120)));
}

/// Handlers keep every thread that they can get for longer than the lease: their jobs stay theirs, and the admin port
/// answers.
fn rude<S: Subject>() {
    let Some(mut site) = site::<S>(seed()) else { return };
    let lasting = lease::<S>() * 5 / 4;
    // Two queues hear each: more than there are threads in all workers.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    // A busy machine may be slow once; whoever waits for a handler is so each time.
    let answered = (0..5).any(|_| {
        site.publish_rude(threads * site.workers() / 2 + 1, lasting);
        site.advance(threads, Duration::from_secs(60));
        (0..site.workers()).all(|index| {
            let (asked, admin) = (Instant::now(), site.worker(index).admin());
            let answer = http::get(admin, "/health").map(|(status, _)| status);
            answer == Some(200) && asked.elapsed() < lasting / 2
        })
    });
    assert!(answered, "the admin port has a thread of its own");
    site.publish(30, 10);
    let verdict = site.verdict(Duration::from_secs(180));
    clean(&verdict);
    assert_eq!(verdict.explained, 0, "leases have a thread of their own: {verdict}");
}

/// A folder on a file system of its own, small enough to be filled; `None`, reported, where none may be mounted.
#[cfg(feature = "sqlite")]
pub(super) struct Small(Option<tempfile::TempDir>);

#[cfg(feature = "sqlite")]
impl Small {
    pub(super) fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let options = format!("size={size}");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "windlass-test"])
            .arg(dir.path())
            .stderr(std::process::Stdio::null())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(Some(dir)));
        }
        subject::Sqlite::inapplicable("no small file system may be mounted here, which takes root");
        None
    }

    pub(super) fn path(&self) -> &std::path::Path {
        self.0.as_ref().expect("it is there until it is dropped").path()
    }

    /// Leaves not a byte free.
    pub(super) fn fill(&self) {
        use std::io::Write;
        let mut ballast = std::fs::File::create(self.path().join("ballast")).expect("a file");
        for size in [64 << 10, 512] {
            while ballast.write_all(&vec![0; size]).is_ok() {}
        }
    }

    pub(super) fn relieve(&self) {
        std::fs::remove_file(self.path().join("ballast")).expect("it was there");
    }
}

#[cfg(feature = "sqlite")]
impl Drop for Small {
    fn drop(&mut self) {
        let dir = self.0.take().expect("it is dropped once");
        // Detached at once, whoever still has a file open in it.
        let unmounted = std::process::Command::new("umount").arg("-l").arg(dir.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking(), "it was mounted");
    }
}

/// The disk is full while jobs are published and run, for longer than the lease: what was confirmed is not lost, and
/// work goes on by itself.
#[cfg(feature = "sqlite")]
fn disk_full(rounds: usize) {
    use crate::support::worker;
    let Some(small) = Small::mount("6m") else { return };
    let queue = small.path().join("queue");
    std::fs::create_dir(&queue).expect("a folder");
    let mut site = Site::with(subject::Sqlite::within(&queue), seed(), None);
    (0..3).for_each(|_| site.start());
    for _ in 0..rounds {
        site.publish(90, 30);
        let more = site.random.usize(10..=60);
        site.advance(more, Duration::from_secs(60));
        site.disturb(|site| {
            small.fill();
            let refused = worker::run(site.dir(), &["publish", "mixed", "{}", "-q"]);
            let said = String::from_utf8_lossy(&refused.stderr);
            assert_eq!(refused.status.code(), Some(69), "the disk is full: {said}");
            assert!(said.contains("full"), "{said}");
            site.advance(usize::MAX / 2, lease::<subject::Sqlite>() * 3 / 2);
            small.relieve();
        });
    }
    clean(&site.verdict(Duration::from_secs(120)));
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use super::*;

    #[test]
    fn a_clock_that_is_set_moves_no_lease() {
        clock_steps::<subject::Sqlite>(if tool::full() { 20 } else { 4 });
    }

    #[test]
    fn a_rude_handler_keeps_its_job() {
        rude::<subject::Sqlite>();
    }

    #[test]
    fn a_locked_file_loses_nothing() {
        cuts::<subject::Sqlite>(if tool::full() { 20 } else { 2 });
    }

    #[test]
    fn a_full_disk_loses_nothing() {
        disk_full(if tool::full() { 10 } else { 2 });
    }
}

#[cfg(feature = "nats")]
mod nats {
    use super::*;

    #[test]
    fn a_clock_that_is_set_moves_no_lease() {
        if tool::full() {
            clock_steps::<subject::Nats>(20);
        }
    }

    #[test]
    fn a_rude_handler_keeps_its_job() {
        if tool::full() {
            rude::<subject::Nats>();
        }
    }

    #[test]
    fn cut_connections_lose_nothing() {
        cuts::<subject::Nats>(if tool::full() { 30 } else { 4 });
    }
}

#[cfg(feature = "kafka")]
mod kafka {
    use super::*;

    #[test]
    fn cut_connections_lose_nothing() {
        if tool::full() {
            cuts::<subject::Kafka>(10);
        }
    }
}
