//! What really ran: a line in a file for each start and each end of a job, written by whichever worker runs it, before
//! and after. A worker that is killed has written its starts and not its ends.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use windlass::time::{Clock, Timestamp};
use windlass::{Context, Error};
use windlass_lab::report::Report;

/// Writes the lines. Cheap to clone.
#[derive(Clone)]
pub struct Pen(Arc<File>);

impl Pen {
    /// At the end of this file.
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(Self(Arc::new(OpenOptions::new().create(true).append(true).open(path)?)))
    }

    /// A job begins.
    pub fn start(&self, report: &Report, cx: &Context) -> Result<(), Error> {
        let published = Timestamp::parse_rfc3339(&report.timestamp);
        let waited = published.map_or(0, |at| at.until(Clock::System.now()).as_millis());
        self.write(cx, &format!("start {waited}"))
    }

    /// It has ended.
    pub fn end<T>(&self, cx: &Context, result: Result<T, Error>) -> Result<T, Error> {
        self.write(cx, if result.is_ok() { "done" } else { "failed" })?;
        result
    }

    fn write(&self, cx: &Context, what: &str) -> Result<(), Error> {
        let (pid, queue, event, attempt) = (std::process::id(), cx.queue(), cx.event_id(), cx.attempt());
        // One write: the lines of several threads and processes do not mix.
        (&*self.0).write_all(format!("{pid} {queue} {event} {attempt} {what}\n").as_bytes())?;
        Ok(())
    }
}

/// Reads them.
pub struct Ledger {
    path: PathBuf,
    read: u64,
    unread: String,
    jobs: HashMap<(String, String), Vec<Run>>,
    waits: Vec<u64>,
    done: HashMap<String, u64>,
}

/// One start of a job.
struct Run {
    pid: u32,
    attempt: u32,
    ended: Option<bool>,
}

/// What the ledger says of a kill.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Kill {
    /// What had started and not ended in the worker that was killed.
    pub running: usize,
    /// Jobs whose attempt was run twice, first by that worker.
    pub by_it: usize,
    /// Jobs whose attempt was run twice otherwise.
    pub otherwise: usize,
}

impl Ledger {
    /// Of this file, from its beginning; it need not be there yet.
    pub fn of(path: &Path) -> Self {
        let path = path.to_owned();
        let (jobs, waits, done) = Default::default();
        Self { path, read: 0, unread: String::new(), jobs, waits, done }
    }

    /// Reads what is new.
    pub fn read(&mut self) -> io::Result<()> {
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        file.seek(io::SeekFrom::Start(self.read))?;
        let mut text = std::mem::take(&mut self.unread);
        self.read += file.read_to_string(&mut text)? as u64;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        self.unread = text.split_off(whole);
        text.lines().for_each(|line| self.take(line));
        Ok(())
    }

    fn take(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let [pid, queue, event, attempt, what, ..] = words[..] else { return };
        let (Ok(pid), Ok(attempt)) = (pid.parse(), attempt.parse()) else { return };
        let runs = self.jobs.entry((queue.to_owned(), event.to_owned())).or_default();
        if what == "start" {
            runs.push(Run { pid, attempt, ended: None });
            if let Some(waited) = words.get(5).filter(|_| attempt == 1).and_then(|waited| waited.parse().ok()) {
                self.waits.push(waited);
            }
            return;
        }
        let before = runs.iter().any(|run| run.ended == Some(true));
        if let Some(run) = runs.iter_mut().rev().find(|run| run.pid == pid && run.ended.is_none()) {
            run.ended = Some(what == "done");
        }
        if what == "done" && !before {
            *self.done.entry(queue.to_owned()).or_default() += 1;
        }
    }

    /// How many events this queue's job has done.
    pub fn done(&self, queue: &str) -> u64 {
        self.done.get(queue).copied().unwrap_or(0)
    }

    /// Waits since the beginning, and none from here on until there are new ones: what so many in a hundred waited at
    /// most, from published to started.
    pub fn waited(&mut self, percent: usize) -> Duration {
        self.waits.sort_unstable();
        let rank = (self.waits.len() * percent).div_ceil(100).saturating_sub(1);
        Duration::from_millis(self.waits.get(rank).copied().unwrap_or(0))
    }

    /// What the death of this worker did.
    pub fn kill(&self, pid: u32) -> Kill {
        let mut kill = Kill::default();
        for runs in self.jobs.values() {
            kill.running += runs.iter().filter(|run| run.pid == pid && run.ended.is_none()).count();
            let twice = |run: &Run| runs.iter().filter(|other| other.attempt == run.attempt).count() > 1;
            match runs.iter().find(|run| twice(run)) {
                Some(first) if first.pid == pid => kill.by_it += 1,
                Some(_) => kill.otherwise += 1,
                None => {}
            }
        }
        kill
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_explains_what_its_worker_had_begun() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("ledger");
        let mut ledger = Ledger::of(&path);
        ledger.read().expect("nothing is there yet");
        let lines = [
            "1 invoice a 1 start 5",
            "1 invoice a 1 done",
            "1 invoice b 1 start 7",
            "2 invoice b 1 start 9",
            "2 invoice b 1 done",
            "2 invoice c 1 start 1",
            "2 invoice c 1 failed",
            "2 invoice c 2 start 100",
            "2 invoice c 2 done",
            "2 archive d 1 start 2",
            "2 archive d 1 done",
            "3 archive d 1 start 2",
            "3 archive d 1 done",
        ];
        for line in lines {
            // In two pieces, as it may be found while it is written.
            let (first, rest) = line.split_at(3);
            let mut file = OpenOptions::new().create(true).append(true).open(&path).expect("opens");
            file.write_all(first.as_bytes()).expect("writes");
            ledger.read().expect("reads");
            file.write_all(format!("{rest}\n").as_bytes()).expect("writes");
            ledger.read().expect("reads");
        }
        assert_eq!((ledger.done("invoice"), ledger.done("archive")), (3, 1));
        assert_eq!(ledger.kill(1), Kill { running: 1, by_it: 1, otherwise: 1 });
        assert_eq!((ledger.waited(50), ledger.waited(99)), (Duration::from_millis(2), Duration::from_millis(9)));
    }
}
