//! The handler of every simulated job: does as the schedule says, and writes down each of its runs.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use windlass::handler::{Handler, Output};
use windlass::{Context, Error};

use super::broker::Connection;
use super::schedule::Act;
use super::site::QUEUES;
use crate::ledger::record::What;

/// The job of one worker.
pub struct Job(pub Connection);

/// The number that a payload begins with.
pub fn number(body: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(body);
    let digits: String = text.split("\"job\":").nth(1)?.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Writes the end of a run, however it ends.
struct Run {
    connection: Connection,
    queue: usize,
    number: u64,
    cx: Context,
    serial: u32,
    ended: Option<What>,
    dies_hard: bool,
}

impl Drop for Run {
    fn drop(&mut self) {
        let late = self.cx.deadline().is_some_and(|deadline| deadline <= tokio::time::Instant::now());
        let dropped = if late { What::TimedOut } else { What::Cancelled };
        let how = if std::thread::panicking() { What::Panicked } else { self.ended.unwrap_or(dropped) };
        let (now, worker) = (self.connection.now(), self.connection.worker());
        let (queue, number, attempt, serial) = (self.queue, self.number, self.cx.attempt(), self.serial);
        let dead = self.connection.world(|world| {
            world.ran(now, worker, queue, number, attempt, serial, how);
            world.workers[worker].dead
        });
        if self.dies_hard && self.ended.is_none() && !dead && !std::thread::panicking() {
            panic!("as planned, when dropped");
        }
    }
}

impl Handler for Job {
    fn call(&self, cx: Context) -> BoxFuture<'static, Result<Output, Error>> {
        let connection = self.0.clone();
        async move {
            let number = number(&cx.event().data).ok_or_else(|| Error::permanent("no number"))?;
            let (now, worker) = (connection.now(), connection.worker());
            let queue = QUEUES.iter().position(|name| *name == cx.queue().as_str()).expect("a queue of ours");
            let (serial, act, tries) = connection.world(|world| {
                let job = world.schedule.jobs.iter().find(|job| job.number == number);
                let act = job.map_or(Act::Succeeds(0), |job| job.act);
                let runs = world.records.iter().filter(|run| run.job == number && run.queue == QUEUES[queue]);
                let tries = runs.filter(|run| run.what == What::Start).count() as u32;
                (world.run(now, worker, queue, number, cx.attempt()), act, tries)
            });
            let Some(serial) = serial else { return std::future::pending().await };
            let dies_hard = matches!(act, Act::DiesHard(_));
            let attempt = cx.attempt();
            let mut run =
                Run { connection: connection.clone(), queue, number, cx: cx.clone(), serial, ended: None, dies_hard };
            let end = |mut run: Run, how| run.ended = Some(how);
            match act {
                Act::Fails(times, ms) if attempt <= times => {
                    pass(ms).await;
                    end(run, What::Failed);
                    return Err(Error::retry("planned", "as planned"));
                }
                Act::Succeeds(ms) | Act::Fails(_, ms) => pass(ms).await,
                Act::Refuses => {
                    end(run, What::Refused);
                    return Err(Error::permanent("as planned"));
                }
                Act::Panics(times) if attempt <= times => {
                    pass(u64::from(attempt % 2)).await;
                    panic!("as planned");
                }
                Act::Hangs(times, false) | Act::DiesHard(times) if attempt <= times => std::future::pending().await,
                Act::Hangs(times, true) if attempt <= times => {
                    cx.cancelled().await;
                    drop(run);
                    return Err(Error::retry("cancelled", "it was told to end"));
                }
                Act::Snoozes(times) if tries < times => {
                    end(run, What::Snoozed);
                    return Err(Error::snooze(Duration::from_millis(30)));
                }
                Act::Finishes => {
                    cx.cancelled().await;
                    pass(5).await;
                }
                Act::Crashes(times) if tries < times => {
                    pass(3).await;
                    let now = connection.now();
                    connection.world(|world| world.kill(now, worker));
                    return std::future::pending().await;
                }
                _ => {}
            }
            run.ended = Some(What::Done);
            Ok(None)
        }
        .boxed()
    }
}

async fn pass(ms: u64) {
    if ms > 0 {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}
