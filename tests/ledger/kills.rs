//! A worker is killed again and again, a thousand times where it is asked for, and the broker's server at every tenth.
//!
//! `scripts/torment --kills 1000 [--broker B]` tells it; `WINDLASS_TEST_FULL=1` tells a hundred. One broker lives through
//! all of it. It is judged in chapters of a hundred deaths: at the end of each everything has ended and everybody has
//! left, so that what the judge looks at stays as small as a chapter, however long the story, and a job that runs once
//! more in a later one has no excuse at all.

use std::time::{Duration, Instant};

use super::chaos::{WORKERS, seed};
use super::judge::{Rule, Verdict};
use super::story::Site;
use crate::conformance::subject::{self, Subject};
use crate::support::tool;

/// Deaths of one chapter.
const CHAPTER: usize = 100;
/// Deaths of workers to one of the server.
const SERVER: usize = 10;
/// What is published before each: of mixed behaviour, which two queues hear, and in key order.
const JOBS: (usize, usize) = (60, 20);
/// As many runs begin before the next death, at the most; on average as many as come of [`JOBS`], so that the backlog
/// stays what it is.
const RUNS: usize = 400;
/// The part of both where what a dead worker had waits long for its session to end.
const WAITING: usize = 5;
/// Until everything has to have ended that a chapter left.
const DEADLINE: Duration = Duration::from_secs(300);

/// What came of all chapters so far.
#[derive(Default)]
struct Sum {
    workers: usize,
    servers: usize,
    jobs: usize,
    runs: usize,
    explained: usize,
    letters: usize,
    wrong: Vec<Rule>,
}

impl Sum {
    fn add(&mut self, verdict: &Verdict) {
        self.runs += verdict.runs;
        self.explained += verdict.explained;
        self.letters += verdict.letters;
        self.wrong.extend(verdict.findings.iter().map(|finding| finding.rule));
    }

    fn say<S: Subject>(&self, begun: Instant) {
        let Self { workers, servers, jobs, runs, explained, letters, wrong } = self;
        let took = begun.elapsed().as_secs();
        eprintln!(
            "{}: {workers} workers and {servers} servers killed, {jobs} jobs, {runs} runs, {explained} of them again and \
             explained, {letters} dead letters, {} wrong {wrong:?}, in {took} s",
            S::NAME,
            wrong.len()
        );
    }
}

/// How many deaths were asked for; 0: this story is not to be told.
fn asked() -> usize {
    let given = std::env::var("WINDLASS_TORMENT_KILLS").ok().filter(|kills| !kills.is_empty());
    match given {
        Some(kills) => kills.parse().expect("WINDLASS_TORMENT_KILLS is a number"),
        None if tool::full() => CHAPTER,
        None => 0,
    }
}

fn killed<S: Subject>() {
    let kills = asked();
    let Some(mut site) = (kills > 0).then(|| Site::<S>::new(seed(), None)).flatten() else { return };
    let part = if S::LEASE < Duration::from_secs(5) { 1 } else { WAITING };
    let (begun, mut sum) = (Instant::now(), Sum::default());
    while sum.workers < kills {
        (0..WORKERS).for_each(|_| site.start());
        let last = kills.min(sum.workers + CHAPTER);
        while sum.workers < last {
            site.publish(JOBS.0 / part, JOBS.1 / part);
            let more = site.random.usize(1..=RUNS / part);
            site.advance(more, Duration::from_secs(60));
            let victim = site.random.usize(..site.workers());
            site.kill(victim);
            site.start();
            sum.workers += 1;
            if sum.workers.is_multiple_of(SERVER) {
                sum.servers += usize::from(site.restart_broker());
            }
        }
        sum.jobs += site.story().jobs.len();
        let (verdict, settled) = site.chapter(DEADLINE);
        sum.add(&verdict);
        sum.say::<S>(begun);
        if !settled {
            break;
        }
        if sum.wrong.is_empty() {
            site.forget_logs();
        }
    }
    let verdict = site.verdict(Duration::ZERO);
    sum.add(&verdict);
    assert!(sum.wrong.is_empty(), "{} wrong, said above: {:?}", sum.wrong.len(), sum.wrong);
    assert_eq!(sum.workers, kills, "the story was told to its end");
    assert!(sum.explained > 0 || kills < SERVER, "so many kills hit something");
}

#[cfg(feature = "sqlite")]
#[test]
fn sqlite() {
    killed::<subject::Sqlite>();
}

#[cfg(feature = "nats")]
#[test]
fn nats() {
    killed::<subject::Nats>();
}

#[cfg(feature = "kafka")]
#[test]
fn kafka() {
    killed::<subject::Kafka>();
}
