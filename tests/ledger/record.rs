//! What a handler writes of each of its runs: fixed-size records appended to one file by all workers.
//!
//! Appending so few bytes is one `write`, which the kernel neither mixes with others' nor loses when the writer is
//! killed. Times are of the machine's monotonic clock, the same for all processes.

use std::fs::File;
use std::io::{self, Read, Write};

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The run began, or ended so.
    pub what: What,
    /// The job's number.
    pub job: u64,
    /// The queue, at most 16 bytes.
    pub queue: String,
    /// The attempt, as the handler was told.
    pub attempt: u32,
    /// The worker.
    pub pid: u32,
    /// Tells the runs of one worker apart.
    pub serial: u32,
    /// Nanoseconds of the monotonic clock.
    pub at: u64,
}

/// Beginning or end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It began.
    Start = 1,
    /// It succeeded.
    Done,
    /// It answered with an error that is to be retried.
    Failed,
    /// It answered with an error that is not to be retried.
    Refused,
    /// It asked to be run again later.
    Snoozed,
    /// It panicked.
    Panicked,
    /// It was dropped after its deadline.
    TimedOut,
    /// It was dropped before its deadline.
    Cancelled,
}

const ALL: [What; 8] = [
    What::Start,
    What::Done,
    What::Failed,
    What::Refused,
    What::Snoozed,
    What::Panicked,
    What::TimedOut,
    What::Cancelled,
];

const SIZE: usize = 64;

impl Record {
    /// Appends it.
    pub fn append(&self, mut file: &File) -> io::Result<()> {
        let mut bytes = [0; SIZE];
        bytes[0] = self.what as u8;
        bytes[4..8].copy_from_slice(&self.attempt.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.pid.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.serial.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.job.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.at.to_le_bytes());
        let name = &self.queue.as_bytes()[..self.queue.len().min(16)];
        bytes[32..32 + name.len()].copy_from_slice(name);
        let sum = checksum(&bytes[..60]);
        bytes[60..].copy_from_slice(&sum.to_le_bytes());
        file.write_all(&bytes)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let u32_at = |from: usize| Some(u32::from_le_bytes(bytes.get(from..from + 4)?.try_into().ok()?));
        let u64_at = |from: usize| Some(u64::from_le_bytes(bytes.get(from..from + 8)?.try_into().ok()?));
        if u32_at(60)? != checksum(&bytes[..60]) {
            return None;
        }
        let name = bytes[32..48].split(|b| *b == 0).next()?;
        Some(Self {
            what: ALL.into_iter().find(|what| *what as u8 == bytes[0])?,
            attempt: u32_at(4)?,
            pid: u32_at(8)?,
            serial: u32_at(12)?,
            job: u64_at(16)?,
            at: u64_at(24)?,
            queue: String::from_utf8(name.to_vec()).ok()?,
        })
    }
}

/// Reads what was appended since the last call; what is being written at this moment is left for the next.
///
/// # Panics
/// Where the file is torn: no judgement can stand on it.
pub fn read(file: &mut File) -> io::Result<Vec<Record>> {
    use std::io::Seek;
    let start = file.stream_position()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let whole = bytes.len() / SIZE * SIZE;
    file.seek(io::SeekFrom::Start(start + whole as u64))?;
    let records = bytes[..whole].chunks_exact(SIZE);
    Ok(records.map(|bytes| Record::parse(bytes).expect("records are whole: each was one write")).collect())
}

/// The monotonic clock, in nanoseconds, which all processes of a machine share.
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a local of the right type.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    assert_eq!(status, 0, "every kernel has a monotonic clock");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}
