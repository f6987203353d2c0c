//! Members come and go without a pause: nothing is lost or runs twice, keys stay in order, what is committed never
//! passes what is unfinished, and nobody stands still.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::consumer::Consumer as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use windlass::broker::{Broker, Delivery, Disposition, Queue, Settled};

use super::desk::{Desk, body, credit};
use crate::support::{tool, wait};

/// Partitions of the topic.
const PARTITIONS: i32 = 6;
const KEYS: usize = 40;
const SLOTS: usize = 16;
/// Between one that joins and one that leaves.
const TICK: Duration = Duration::from_millis(300);
/// Members at the least and at the most.
const MEMBERS: std::ops::RangeInclusive<usize> = 2..=5;

/// What handlers did.
#[derive(Default)]
struct Ledger {
    /// How often each ran, and by whom last.
    runs: BTreeMap<String, u32>,
    /// Of each key, the place of the last that ended.
    keys: HashMap<usize, i64>,
    /// Offsets that ended, by partition.
    ended: HashMap<i32, BTreeSet<i64>>,
    /// Jobs that each member ended.
    members: HashMap<usize, u32>,
    wrong: Vec<String>,
}

type Shared = Arc<Mutex<Ledger>>;

/// `KEY/PLACE/MILLISECONDS`
fn parts(body: &str) -> (usize, i64, u64) {
    let mut parts = body.trim_matches('"').split('/');
    let mut next = || parts.next().unwrap().parse::<u64>().unwrap();
    (next() as usize, next() as i64, next())
}

async fn run(delivery: Delivery, member: usize, ledger: Shared, settler: Arc<dyn windlass::broker::Settler>) {
    let text = body(&delivery);
    let (key, place, ms) = parts(&text);
    {
        let mut ledger = ledger.lock();
        *ledger.runs.entry(text.clone()).or_default() += 1;
        let before = ledger.keys.get(&key).copied().unwrap_or(-1);
        if before != place - 1 {
            ledger.wrong.push(format!("{text} began at {member} when {before} of its key had ended"));
        }
    }
    tokio::time::sleep(Duration::from_millis(ms)).await;
    let offset = delivery.seq as i64;
    let partition = delivery.channel.place.position.rsplit(':').next().unwrap().parse().unwrap();
    {
        let mut ledger = ledger.lock();
        ledger.keys.insert(key, place);
        ledger.ended.entry(partition).or_default().insert(offset);
        *ledger.members.entry(member).or_default() += 1;
    }
    let settled = settler.settle(vec![delivery.settle(Disposition::Ack)]).await;
    if settled != [Settled::Stored] {
        ledger.lock().wrong.push(format!("{text} ended at {member}, and was not stored: {settled:?}"));
    }
}

/// Works until told to leave.
async fn member(number: usize, broker: Arc<dyn Broker>, queue: Queue, ledger: Shared, leave: CancellationToken) {
    let mut opened = broker.open(&queue).await.unwrap();
    let mut running = JoinSet::new();
    loop {
        let free = SLOTS - running.len();
        tokio::select! {
            biased;
            () = leave.cancelled() => break,
            Some(ended) = running.join_next() => ended.unwrap(),
            got = opened.source.receive(credit(free)), if free > 0 => {
                for delivery in got.unwrap() {
                    running.spawn(run(delivery, number, ledger.clone(), opened.settler.clone()));
                }
            }
        }
    }
    opened.source.stop().await;
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
    broker.close().await;
}

/// Reads what is committed from outside, until told to stop, and says where it passed something unfinished.
fn watch(desk: &Desk, topic: String, ledger: Shared, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<usize> {
    let group = format!("{}.q", desk.namespace);
    let consumer: rdkafka::consumer::BaseConsumer = desk.client().set("group.id", group).create().unwrap();
    std::thread::spawn(move || {
        let mut looks = 0;
        while !stop.load(Ordering::Acquire) {
            let mut list = rdkafka::TopicPartitionList::new();
            list.add_partition_range(&topic, 0, PARTITIONS - 1);
            if let Ok(committed) = consumer.committed_offsets(list, Duration::from_secs(5)) {
                looks += 1;
                let mut ledger = ledger.lock();
                for element in committed.elements() {
                    let rdkafka::Offset::Offset(offset) = element.offset() else { continue };
                    let ended = ledger.ended.entry(element.partition()).or_default();
                    let first = (0..offset).find(|offset| !ended.contains(offset));
                    if let Some(first) = first {
                        let partition = element.partition();
                        let what = format!("{partition}: {offset} is committed, and {first} has not ended");
                        ledger.wrong.push(what);
                    }
                }
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
        looks
    })
}

/// Publishes so many more, each the next of its key.
async fn publish(desk: &Desk, broker: &Arc<dyn Broker>, random: &mut fastrand::Rng, next: &mut [i64], count: usize) {
    let mut batch = Vec::new();
    for _ in 0..count {
        let key = random.usize(..KEYS);
        let ms = if random.u8(..4) == 0 { random.u64(..2_000) } else { random.u64(..100) };
        batch.push((format!("\"{key}/{}/{ms}\"", next[key]), format!("k{key}")));
        next[key] += 1;
    }
    let batch: Vec<(&str, Option<&str>)> =
        batch.iter().map(|(body, key)| (body.as_str(), Some(key.as_str()))).collect();
    desk.publish(broker, "a", &batch).await;
}

async fn storm(mut desk: Desk, lasting: Duration) {
    let seed = std::env::var("WINDLASS_TEST_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    eprintln!("a storm with seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut queue = desk.queue("q", &["a"]);
    queue.ordered = true;
    let topic = desk.topic("a");
    // Of the queue's own there is one, so that who is left has some of the topic's.
    desk.kafka.partitions = Some(1);
    desk.create(&format!("{}.work.q", desk.namespace), 1, &[]).await;
    desk.create(&topic, PARTITIONS, &[]).await;
    let publisher = desk.connect().await;
    let (ledger, stop) = (Shared::default(), Arc::new(AtomicBool::new(false)));
    let watch = watch(&desk, topic, ledger.clone(), stop.clone());
    let mut members: Vec<(usize, CancellationToken)> = Vec::new();
    let (mut tasks, mut started, mut changes) = (JoinSet::new(), 0, 0);
    let mut next = vec![0i64; KEYS];
    let begun = Instant::now();
    let mut ticks = tokio::time::interval(TICK);
    while begun.elapsed() < lasting {
        ticks.tick().await;
        publish(&desk, &publisher, &mut random, &mut next, 12).await;
        let joins = members.len() < *MEMBERS.start() || members.len() < *MEMBERS.end() && random.bool();
        if joins {
            started += 1;
            let leave = CancellationToken::new();
            members.push((started, leave.clone()));
            let broker = desk.connect().await;
            tasks.spawn(member(started, broker, queue.clone(), ledger.clone(), leave));
        } else {
            members.swap_remove(random.usize(..members.len())).1.cancel();
        }
        changes += 1;
    }
    let all: i64 = next.iter().sum();
    // A long storm leaves a long backlog, and perhaps a single member.
    let deadline = Duration::from_secs(if tool::full() { 600 } else { 120 });
    wait::until_async("all ran", deadline, async || ledger.lock().runs.len() as i64 == all).await;
    members.drain(3.min(members.len())..).for_each(|(_, leave)| leave.cancel());
    // Whoever is left has its share, and works: one that stands still is not hidden by the others.
    let left: Vec<usize> = members.iter().map(|(number, _)| *number).collect();
    let before = ledger.lock().members.clone();
    let mut more = Instant::now();
    wait::until_async("each that is left works", deadline, async || {
        if more.elapsed() > TICK {
            publish(&desk, &publisher, &mut random, &mut next, KEYS).await;
            more = Instant::now();
        }
        let now = ledger.lock().members.clone();
        left.iter().all(|member| now.get(member) > before.get(member))
    })
    .await;
    let all: i64 = next.iter().sum();
    wait::until_async("all ran", deadline, async || ledger.lock().runs.len() as i64 == all).await;
    members.iter().for_each(|(_, leave)| leave.cancel());
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    stop.store(true, Ordering::Release);
    let looks = watch.join().unwrap();
    let ledger = ledger.lock();
    let again: Vec<_> = ledger.runs.iter().filter(|(_, runs)| **runs > 1).collect();
    eprintln!("{changes} members came or went, {all} jobs, {} again, {looks} looks from outside", again.len());
    assert!(looks > 10 && changes > 10);
    assert!(ledger.wrong.is_empty(), "seed {seed}: {:#?}", ledger.wrong);
    assert!(again.is_empty(), "seed {seed}: nobody died, and these ran twice: {again:?}");
}

fn lasting(short: u64) -> Duration {
    Duration::from_secs(if tool::full() { 120 } else { short })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mode_27_a_storm_of_members_loses_nothing_and_runs_nothing_twice() {
    let Some(desk) = Desk::new() else { return };
    storm(desk, lasting(8)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mode_27_nor_does_one_in_the_newer_protocol() {
    let Some(mut desk) = Desk::new() else { return };
    desk.kafka.group_protocol_consumer = true;
    storm(desk, lasting(5)).await;
}
