//! Random histories of two workers on one file, against a list that a child could keep.
//!
//! The model knows, for each job, whether it waits, who holds it, or that it ended. After every step the file must
//! hand out exactly what the model says may be handed out: no more, no less, in order, with the right attempt.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// What a step does. Numbers choose among what is possible, modulo how much there is.
#[derive(Clone, Debug)]
enum Step {
    Publish { key: Option<u8> },
    Enqueue { key: Option<u8>, later: bool },
    Receive { worker: usize, jobs: usize },
    Settle { worker: usize, which: usize, how: How },
    Kill { worker: usize },
    Freeze { worker: usize },
    Leave { worker: usize },
}

#[derive(Clone, Copy, Debug)]
enum How {
    Ack,
    RetryNow,
    RetryNever,
    Dead,
    Release,
    Drop,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = || proptest::option::weighted(0.7, 0u8..3);
    let how = prop_oneof![
        4 => Just(How::Ack),
        2 => Just(How::RetryNow),
        1 => Just(How::RetryNever),
        1 => Just(How::Dead),
        1 => Just(How::Release),
        1 => Just(How::Drop),
    ];
    let step = prop_oneof![
        6 => key().prop_map(|key| Step::Publish { key }),
        2 => (key(), any::<bool>()).prop_map(|(key, later)| Step::Enqueue { key, later }),
        6 => (0usize..2, 1usize..5).prop_map(|(worker, jobs)| Step::Receive { worker, jobs }),
        8 => (0usize..2, 0usize..8, how).prop_map(|(worker, which, how)| Step::Settle { worker, which, how }),
        1 => (0usize..2).prop_map(|worker| Step::Kill { worker }),
        1 => (0usize..2).prop_map(|worker| Step::Freeze { worker }),
        1 => (0usize..2).prop_map(|worker| Step::Leave { worker }),
    ];
    proptest::collection::vec(step, 1..50)
}

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Waits,
    Never,
    Held(usize),
    Ended,
    Dead,
}

#[derive(Clone, Debug)]
struct Job {
    /// The topic's or the queue's own line, where it has a key: whose order counts.
    line: Option<(bool, u8)>,
    place: Place,
    attempt: u32,
    /// It came back unsettled.
    back: bool,
}

#[derive(Default)]
struct Model {
    ordered: bool,
    jobs: BTreeMap<u32, Job>,
}

impl Model {
    /// What may be handed out now.
    fn claimable(&self) -> Vec<u32> {
        let first_of_its_line = |number: u32, job: &Job| {
            let before = |(other, it): (&u32, &Job)| {
                *other < number && it.line == job.line && !matches!(it.place, Place::Ended | Place::Dead)
            };
            !(self.ordered && job.line.is_some() && self.jobs.iter().any(before))
        };
        let waits = self.jobs.iter().filter(|(_, job)| job.place == Place::Waits);
        waits.filter(|(number, job)| first_of_its_line(**number, job)).map(|(number, _)| *number).collect()
    }

    fn give_back(&mut self, worker: usize) {
        for job in self.jobs.values_mut().filter(|job| job.place == Place::Held(worker)) {
            (job.place, job.back) = (Place::Waits, true);
        }
    }
}

struct Seat {
    broker: Arc<dyn Broker>,
    opened: Opened,
    held: Vec<Delivery>,
}

async fn seat(path: &Path, queue: &Queue, name: usize) -> Seat {
    let mut options = options(Role::Worker, std::slice::from_ref(queue));
    options.worker = format!("{name}").into();
    let broker = connect(path, options).await;
    let opened = broker.open(queue).await.expect("opens");
    Seat { broker, opened, held: Vec::new() }
}

async fn play(ordered: bool, steps: Vec<Step>) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let q = Queue { ordered, max_crashes: 1_000, ..queue("q", &["t"]) };
    let mut model = Model { ordered, ..Model::default() };
    let mut seats = [seat(&path, &q, 0).await, seat(&path, &q, 1).await];
    let mut number = 0;
    let never = Clock::System.now().after(Duration::from_secs(3_600));
    for step in steps {
        match step {
            Step::Publish { key } | Step::Enqueue { key, .. } => {
                number += 1;
                let mut publication = to_topic("t", &number.to_string());
                publication.message.key = key.map(|key| bytes::Bytes::copy_from_slice(&[key]));
                let mut place = Place::Waits;
                let enqueued = matches!(step, Step::Enqueue { .. });
                if let Step::Enqueue { later, .. } = step {
                    let not_before = later.then_some(never);
                    place = if later { Place::Never } else { Place::Waits };
                    publication.destination = Destination::Queue { queue: q.name.clone(), job: None, not_before };
                }
                let line = key.map(|key| (enqueued, key));
                seats[0].broker.publisher().publish(vec![publication]).await.pop().expect("one").expect("stored");
                model.jobs.insert(number, Job { line, place, attempt: 1, back: false });
            }
            Step::Receive { worker, jobs } => {
                let may = model.claimable();
                if may.is_empty() {
                    continue;
                }
                let got = receive(&mut seats[worker].opened, jobs).await;
                assert!(got.len() <= jobs);
                for delivery in got {
                    let number: u32 = body(&delivery).parse().expect("a number");
                    assert!(may.contains(&number), "{number} was handed out, which is {:?}", model.jobs[&number]);
                    let job = model.jobs.get_mut(&number).expect("known");
                    assert_eq!(job.place, Place::Waits, "handed out twice");
                    assert_eq!(delivery.attempt().get(), job.attempt);
                    assert_eq!(delivery.needs_mark, ordered || job.back || job.attempt > 1);
                    job.place = Place::Held(worker);
                    seats[worker].held.push(delivery);
                }
            }
            Step::Settle { worker, which, how } => {
                if seats[worker].held.is_empty() {
                    continue;
                }
                let which = which % seats[worker].held.len();
                let delivery = seats[worker].held.swap_remove(which);
                let number: u32 = body(&delivery).parse().expect("a number");
                let job = model.jobs.get_mut(&number).expect("known");
                let disposition = match how {
                    How::Ack => Disposition::Ack,
                    How::RetryNow => retry_at(Clock::System.now(), job.attempt + 1),
                    How::RetryNever => retry_at(never, job.attempt + 1),
                    How::Dead => dead(Reason::Permanent, "x"),
                    How::Release => Disposition::Release,
                    How::Drop => {
                        drop(delivery);
                        (job.place, job.back) = (Place::Waits, true);
                        // Behind the release in the writer's queue: when it is answered that is done.
                        seats[worker].broker.inspect().present(&[(q.name.clone(), 8)]).await.expect("works");
                        let left = || async { beside_held(&path, number).await == 0 };
                        until("the release is stored", left).await;
                        continue;
                    }
                };
                let settled = settle(&seats[worker].opened, vec![delivery], &disposition).await;
                assert_eq!(settled, [Settled::Stored]);
                match how {
                    How::Ack => job.place = Place::Ended,
                    How::Dead => job.place = Place::Dead,
                    How::Release | How::Drop => (job.place, job.back) = (Place::Waits, true),
                    How::RetryNow => (job.place, job.attempt) = (Place::Waits, job.attempt + 1),
                    How::RetryNever => (job.place, job.attempt) = (Place::Never, job.attempt + 1),
                }
            }
            Step::Kill { worker } | Step::Freeze { worker } | Step::Leave { worker } => {
                let killed = matches!(step, Step::Kill { .. });
                if matches!(step, Step::Leave { .. }) {
                    seats[worker].broker.close().await;
                } else {
                    let sql = match (killed, worker) {
                        (true, 0) => "UPDATE worker SET born = born - 1 WHERE name = '0'",
                        (true, _) => "UPDATE worker SET born = born - 1 WHERE name = '1'",
                        (false, 0) => "UPDATE worker SET lease = 0 WHERE name = '0'",
                        (false, _) => "UPDATE worker SET lease = 0 WHERE name = '1'",
                    };
                    beside(&path, sql).await;
                }
                let fresh = seat(&path, &q, worker).await;
                let old = std::mem::replace(&mut seats[worker], fresh);
                // What the old one still does must change nothing: it lost all.
                for delivery in old.held {
                    let settled = settle(&old.opened, vec![delivery], &retry_at(never, 99)).await;
                    assert!(matches!(settled[..], [Settled::Stale | Settled::Unconfirmed(_)]), "{settled:?}");
                }
                old.broker.close().await;
                model.give_back(worker);
            }
        }
    }
    finish(&path, model, seats).await;
}

/// Everything that waits comes, and only that; the tables then hold what the model says is left.
async fn finish(path: &Path, mut model: Model, mut seats: [Seat; 2]) {
    for seat in &mut seats {
        for delivery in std::mem::take(&mut seat.held) {
            let number: u32 = body(&delivery).parse().expect("a number");
            assert_eq!(settle(&seat.opened, vec![delivery], &Disposition::Ack).await, [Settled::Stored]);
            model.jobs.get_mut(&number).expect("known").place = Place::Ended;
        }
    }
    while !model.claimable().is_empty() {
        let may = model.claimable();
        let got = receive(&mut seats[1].opened, 3).await;
        for delivery in &got {
            let number: u32 = body(delivery).parse().expect("a number");
            assert!(may.contains(&number), "{number} was handed out, which is {:?}", model.jobs[&number]);
            model.jobs.get_mut(&number).expect("known").place = Place::Ended;
        }
        settle(&seats[1].opened, got, &Disposition::Ack).await;
    }
    let left = model.jobs.values().filter(|job| job.place != Place::Ended).count() as i64;
    assert_eq!(beside(path, "SELECT count(*) FROM event").await, left);
    let buried = model.jobs.values().filter(|job| job.place == Place::Dead).count() as i64;
    assert_eq!(beside(path, "SELECT count(*) FROM dead").await, buried);
    assert_eq!(beside(path, "SELECT count(*) FROM running").await, 0);
    assert_eq!(beside(path, "SELECT count(*) FROM head WHERE moved = 1").await, 0);
    for seat in seats {
        seat.broker.close().await;
    }
}

async fn beside_held(path: &Path, number: u32) -> i64 {
    use sqlx::{ConnectOptions, Row};
    let mut connection = sqlx::sqlite::SqliteConnectOptions::new().filename(path).connect().await.expect("connects");
    let query = sqlx::query("SELECT count(*) FROM running WHERE event = ?").bind(i64::from(number));
    query.fetch_one(&mut connection).await.expect("runs").get(0)
}

/// How many histories: some seconds of a core by default, as many as `SIM_SCHEDULES` says.
fn cases() -> u32 {
    std::env::var("SIM_SCHEDULES").ok().and_then(|text| text.parse().ok()).unwrap_or(24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn histories_agree_with_the_model(ordered in any::<bool>(), steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(play(ordered, steps));
    }
}
