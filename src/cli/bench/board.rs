//! What ran: counts in a file that the measuring process and the one that is measured both have in memory, so that
//! what a process did is known however it ended, and looking costs it nothing.
//!
//! Times are nanoseconds of `CLOCK_MONOTONIC`, the same in all processes of a machine.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize};

/// Buckets of a wait: 32 to each power of two of microseconds, so that a figure is at most 3 % too large.
const SUB: usize = 32;
const BUCKETS: usize = 37 * SUB;
const STRIPES: usize = 16;

/// Counted by one thread each, and so far apart that none waits for another's cache line.
#[repr(C, align(128))]
struct Stripe {
    started: AtomicU64,
    done: AtomicU64,
}

#[repr(C)]
struct Head {
    stripes: [Stripe; STRIPES],
    first: AtomicU64,
    disorder: AtomicU64,
    wait_max: AtomicU64,
    waits: [AtomicU64; BUCKETS],
}

/// The board. All of it is atomics, for which zeroes are a value.
pub struct Board {
    map: *mut u8,
    bytes: usize,
    jobs: usize,
    keys: usize,
}

// SAFETY: behind the pointer are atomics only, valid for as long as the board lives.
unsafe impl Send for Board {}
// SAFETY: as above.
unsafe impl Sync for Board {}

impl Board {
    /// Opens or makes the board at `path`, for so many ids and keys; the same numbers in every process.
    pub fn open(path: &Path, jobs: usize, keys: usize) -> io::Result<Self> {
        let bytes = size_of::<Head>() + keys * size_of::<AtomicU64>() + jobs;
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        file.set_len(bytes as u64)?;
        // SAFETY: a new mapping of a file that is as long; nobody else has this address.
        let map = unsafe {
            let flags = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), bytes, flags, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { map: map.cast(), bytes, jobs, keys })
    }

    fn head(&self) -> &Head {
        // SAFETY: a mapping begins at a page and has room for a head.
        unsafe { &*self.map.cast::<Head>() }
    }

    fn last_of_keys(&self) -> &[AtomicU64] {
        // SAFETY: behind the head, whose size is a multiple of its alignment, is room for so many.
        unsafe { std::slice::from_raw_parts(self.map.add(size_of::<Head>()).cast(), self.keys) }
    }

    fn runs(&self) -> &[AtomicU8] {
        let from = size_of::<Head>() + self.keys * size_of::<AtomicU64>();
        // SAFETY: the last part of the mapping is so many bytes long.
        unsafe { std::slice::from_raw_parts(self.map.add(from).cast(), self.jobs) }
    }

    fn stripe(&self) -> &Stripe {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static MINE: Cell<usize> = Cell::new(NEXT.fetch_add(1, Relaxed) % STRIPES));
        &self.head().stripes[MINE.get()]
    }

    /// A job has started; `sent`: when it was published, where its wait counts.
    pub fn start(&self, id: u64, sent: Option<u64>) {
        if let Some(sent) = sent {
            self.waited(now().saturating_sub(sent));
        }
        if let Some(runs) = self.runs().get(id as usize) {
            runs.fetch_add(1, Relaxed);
        }
        if self.keys > 0 {
            let before = self.last_of_keys()[id as usize % self.keys].fetch_max(id + 1, Relaxed);
            if before > id + 1 {
                self.head().disorder.fetch_add(1, Relaxed);
            }
        }
        let head = self.head();
        if head.first.load(Relaxed) == 0 {
            // Who lost the race was not the first.
            let _ = head.first.compare_exchange(0, now(), Relaxed, Relaxed);
        }
        self.stripe().started.fetch_add(1, Relaxed);
    }

    /// It has ended.
    pub fn done(&self) {
        self.stripe().done.fetch_add(1, Release);
    }

    /// Both at once.
    pub fn ran(&self, id: u64, sent: Option<u64>) {
        self.start(id, sent);
        self.done();
    }

    fn waited(&self, nanos: u64) {
        let head = self.head();
        head.waits[bucket(nanos / 1_000)].fetch_add(1, Relaxed);
        head.wait_max.fetch_max(nanos, Relaxed);
    }

    /// How many have ended.
    pub fn ended(&self) -> u64 {
        self.head().stripes.iter().map(|stripe| stripe.done.load(Acquire)).sum()
    }

    /// When the first one started.
    pub fn first(&self) -> Option<u64> {
        Some(self.head().first.load(Relaxed)).filter(|first| *first != 0)
    }

    /// Starts that came before an earlier one of the same key.
    pub fn disorder(&self) -> u64 {
        self.head().disorder.load(Relaxed)
    }

    /// Of the ids from 0 to `jobs`: never run, and how many runs were one too many.
    pub fn audit(&self, jobs: u64) -> (u64, u64) {
        self.runs()[..(jobs as usize).min(self.jobs)].iter().fold((0, 0), |(lost, twice), runs| {
            match runs.load(Relaxed) {
                0 => (lost + 1, twice),
                runs => (lost, twice + u64::from(runs - 1)),
            }
        })
    }

    /// The waits.
    pub fn waits(&self) -> Waits {
        let head = self.head();
        Waits {
            buckets: head.waits.iter().map(|count| count.load(Relaxed)).collect(),
            max: head.wait_max.load(Relaxed),
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // SAFETY: mapped by `open` with this length, and unmapped once.
        unsafe { libc::munmap(self.map.cast(), self.bytes) };
    }
}

/// How long jobs waited from being published to being started.
#[derive(Clone, Debug, Default)]
pub struct Waits {
    buckets: Vec<u64>,
    max: u64,
}

impl Waits {
    /// These and those.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.buckets.resize(self.buckets.len().max(other.buckets.len()), 0);
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(mine, others)| *mine += others);
        self.max = self.max.max(other.max);
        self
    }

    /// One more.
    pub fn note(&mut self, nanos: u64) {
        self.buckets.resize(BUCKETS, 0);
        self.buckets[bucket(nanos / 1_000)] += 1;
        self.max = self.max.max(nanos);
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The longest, in milliseconds.
    pub fn max_ms(&self) -> f64 {
        self.max as f64 / 1e6
    }

    /// What so large a part of them did not exceed, in milliseconds; at most 3 % too much.
    pub fn quantile_ms(&self, part: f64) -> f64 {
        let rank = ((self.count() as f64 * part).ceil() as u64).max(1);
        let mut passed = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            passed += count;
            if passed >= rank {
                return (upper(index) as f64 / 1e3).min(self.max_ms());
            }
        }
        self.max_ms()
    }

    /// Counts by powers of two of microseconds: the upper bound in milliseconds, and how many.
    pub fn powers(&self) -> Vec<(f64, u64)> {
        let mut powers: Vec<(f64, u64)> = Vec::new();
        for (index, count) in self.buckets.iter().enumerate() {
            let bound = (upper(index).next_power_of_two()) as f64 / 1e3;
            match powers.last_mut() {
                Some((last, sum)) if *last == bound => *sum += count,
                _ => powers.push((bound, *count)),
            }
        }
        powers
    }
}

fn bucket(micros: u64) -> usize {
    if micros < SUB as u64 {
        return micros as usize;
    }
    let power = micros.ilog2() as usize;
    let within = (micros >> (power - 5)) as usize % SUB;
    ((power - 4) * SUB + within).min(BUCKETS - 1)
}

/// The first value, in microseconds, that is in no bucket up to this one.
fn upper(index: usize) -> u64 {
    match (index / SUB, (index % SUB) as u64) {
        (0, within) => within + 1,
        (power, within) => (SUB as u64 + within + 1) << (power - 1),
    }
}

/// Now, in nanoseconds of a clock that all processes of this machine share.
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes only the struct that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn board(jobs: usize, keys: usize) -> Board {
        let dir = tempfile::tempdir().expect("a directory");
        Board::open(&dir.path().join("board"), jobs, keys).expect("a board")
    }

    #[test]
    fn what_ran_is_told_from_what_did_not() {
        let board = board(5, 0);
        for id in [0, 1, 3, 3, 3] {
            board.ran(id, None);
        }
        assert_eq!((board.ended(), board.audit(5), board.audit(2)), (5, (2, 2), (0, 0)));
        assert!(board.first().is_some());
    }

    #[test]
    fn two_processes_see_one_board() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("board");
        let (one, other) = (Board::open(&path, 2, 1).expect("a board"), Board::open(&path, 2, 1).expect("a board"));
        one.ran(1, Some(now()));
        assert_eq!((other.ended(), other.audit(2), other.waits().count()), (1, (1, 0), 1));
    }

    #[test]
    fn order_is_that_of_each_key() {
        let board = board(6, 2);
        for id in [1, 0, 2, 3, 5] {
            board.ran(id, None);
        }
        assert_eq!(board.disorder(), 0);
        // Again the same one is no disorder; an earlier one is.
        board.ran(5, None);
        assert_eq!(board.disorder(), 0);
        board.ran(3, None);
        assert_eq!(board.disorder(), 1);
    }

    proptest! {
        #[test]
        fn buckets_are_at_most_a_thirtieth_wide(micros in 0..1_u64 << 40) {
            let index = bucket(micros);
            prop_assert!(micros < upper(index), "{micros} in {index}");
            prop_assert!(upper(index) - micros <= micros / 31 + 1);
            prop_assert!(index == 0 || micros >= upper(index - 1));
        }

        #[test]
        fn quantiles_are_those_of_the_sorted(waits in proptest::collection::vec(0..10_000_000_u64, 1..200)) {
            let board = board(0, 0);
            waits.iter().for_each(|wait| board.waited(*wait));
            let mut sorted = waits;
            sorted.sort_unstable();
            for part in [0.5, 0.99] {
                let rank = ((sorted.len() as f64 * part).ceil() as usize).max(1);
                let exact = sorted[rank - 1] as f64 / 1e6;
                let told = board.waits().quantile_ms(part);
                prop_assert!(told >= exact - 1e-9 && told <= exact * 1.04 + 0.002, "{told} for {exact}");
            }
        }
    }
}
