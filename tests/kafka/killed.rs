//! Workers that are cut off from the broker in the middle of something, for longer than their session: as dead to it as
//! a killed one, and as wrong about what is theirs, when they come back, as a frozen one.

use std::time::Duration;

use futures_util::StreamExt as _;
use windlass::broker::{Disposition, Letter, Settled};

use super::desk::{Desk, SOON, body, dead, nothing_within, take};
use crate::support::kafka::Kafka;
use crate::support::proxy::{Cut, Proxy, Toward};
use crate::support::worker::{self, Worker};
use crate::support::{http, port, tool, wait};

/// A broker that some reach directly, and some through a proxy.
pub struct Site {
    _kafka: Kafka,
    /// Between the broker and those who may be cut off.
    pub proxy: Proxy,
    direct: String,
}

impl Site {
    /// `None`: Kafka is not here.
    pub fn new() -> Option<Self> {
        let (proxy, cut) = (Proxy::to(0), port::free());
        let lines = format!(
            "listeners=PLAINTEXT://127.0.0.1:PORT,CUT://127.0.0.1:{cut},CONTROLLER://127.0.0.1:CONTROLLER_AT\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:PORT,CUT://{}\n\
             listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,CUT:PLAINTEXT",
            proxy.host()
        );
        let kafka = Kafka::with(1, &lines)?;
        proxy.lead_to(cut);
        let direct = kafka.url();
        Some(Self { _kafka: kafka, proxy, direct })
    }

    /// In one namespace, who may be cut off and who may not.
    pub fn desks(&self) -> [Desk; 2] {
        let first = Desk::at(format!("kafka://{}", self.proxy.host()));
        let mut second = first.again();
        second.address = self.direct.clone();
        [first, second]
    }

    /// Nobody comes through any more.
    pub fn part(&self) {
        self.proxy.refuse();
        self.proxy.cut(Cut::Reset);
    }
}

async fn letters(desk: &Desk) -> Vec<Letter> {
    let broker = desk.connect().await;
    let letters = broker.dead_letters().list(Default::default()).map(|letter| letter.unwrap()).collect().await;
    broker.close().await;
    letters
}

/// The bytes of a dead letter's transaction, to be cut at: registering, the record, the offsets, the end.
fn bytes() -> Vec<u64> {
    if tool::full() { (0..1_600).step_by(80).collect() } else { vec![150, 900] }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_cut_off_in_the_middle_of_a_move_and_comes_back_writes_nothing() {
    let Some(site) = tokio::task::spawn_blocking(Site::new).await.unwrap() else { return };
    for cut in bytes() {
        let [mut one, mut two] = site.desks();
        let queue = one.queue("q", &["a"]);
        two.queue("q", &["a"]);
        let first = one.connect().await;
        one.publish(&first, "a", &[("1", None)]).await;
        let mut opened = first.open(&queue).await.unwrap();
        let delivery = take(&mut opened, 1).await.remove(0);
        let before = site.proxy.counts().cut;
        site.proxy.cut_after(Toward::Server, cut);
        let settling = tokio::spawn(opened.settler.settle(vec![delivery.settle(dead())]));
        wait::until_async("the move is cut", SOON, async || site.proxy.counts().cut > before).await;
        site.part();
        // It is somebody else's then, if it is still to be done.
        let second = two.connect().await;
        let mut other = second.open(&queue).await.unwrap();
        wait::until_async("the other is the only member", SOON, async || two.members("q").len() == 1).await;
        let again = tokio::time::timeout(SOON * 2, async {
            loop {
                if !letters(&two).await.is_empty() && nothing_within(&mut other, Duration::from_secs(1)).await {
                    return None;
                }
                let got = tokio::time::timeout(Duration::from_secs(2), other.source.receive(super::desk::credit(1)));
                if let Ok(got) = got.await
                    && let Some(delivery) = got.unwrap().pop()
                {
                    return Some(delivery);
                }
            }
        });
        let again = again.await.expect("it is a dead letter, or comes again");
        let came = again.is_some();
        if let Some(delivery) = again {
            assert_eq!(body(&delivery), "1");
            let settled = other.settler.settle(vec![delivery.settle(dead())]).await;
            assert_eq!(settled, [Settled::Stored]);
        }
        // The first comes back, still with what it was about to write.
        site.proxy.pass();
        let said = tokio::time::timeout(SOON * 4, settling).await.expect("it hears of it").unwrap();
        let all = letters(&two).await;
        eprintln!("cut after {cut}: it came again: {came}; the first heard {said:?}");
        assert_eq!(all.len(), 1, "cut after {cut}: one failure is one letter; the first heard {said:?}");
        assert!(!(came && said == [Settled::Stored]), "cut after {cut}: two say that it was theirs");
        first.close().await;
        second.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_ten_thousand_finished_above_the_watermark_at_most_one_in_a_hundred_runs_again() {
    const ALL: usize = 10_000;
    let Some(site) = tokio::task::spawn_blocking(Site::new).await.unwrap() else { return };
    let [mut one, two] = site.desks();
    let queue = one.queue("q", &["a"]);
    one.create(&one.topic("a"), 1, &[]).await;
    let first = one.connect().await;
    let bodies: Vec<String> = (0..ALL).map(|number| number.to_string()).collect();
    let batch: Vec<(&str, Option<&str>)> = bodies.iter().map(|body| (body.as_str(), None)).collect();
    two.publish(&first, "a", &batch).await;
    let mut opened = first.open(&queue).await.unwrap();
    let taken = take(&mut opened, ALL).await;
    // The head and some others are still running.
    let (running, ended): (Vec<_>, Vec<_>) =
        taken.into_iter().partition(|delivery| body(delivery).parse::<usize>().unwrap() % 500 == 0);
    let settled = opened.settler.settle(ended.into_iter().map(|d| d.settle(Disposition::Ack)).collect()).await;
    assert!(settled.iter().all(|one| *one == Settled::Stored));
    site.part();
    let second = two.connect().await;
    let mut other = second.open(&queue).await.unwrap();
    // Held, or they would come once more.
    let mut held = take(&mut other, running.len()).await;
    while let Ok(got) =
        tokio::time::timeout(Duration::from_secs(2), other.source.receive(super::desk::credit(ALL))).await
    {
        held.extend(got.unwrap());
    }
    let again = held.len() - running.len();
    drop(held);
    assert!(again <= ALL / 100, "{again} of {ALL} came again");
    second.close().await;
    drop(running);
    first.close().await;
}

/// Whether it runs something now.
fn runs(worker: &Worker) -> bool {
    let answer = http::get(worker.admin(), "/api/v1/running");
    answer.is_some_and(|(status, body)| status == 200 && body.contains("\"queue\":\"q\""))
}

fn until_it_runs(worker: &mut Worker) {
    let admin = worker.admin();
    let answers = |body: String| body.contains("\"queue\":\"q\"");
    worker.process.until("it runs the job", Duration::from_secs(90), |_| {
        http::get(admin, "/api/v1/running").is_some_and(|(status, body)| status == 200 && answers(body))
    });
}

#[test]
fn who_was_stopped_for_longer_than_its_session_has_not_crashed() {
    let Some(kafka) = Kafka::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "broker = \"{}\"\nnamespace = \"stopped\"\n[worker]\nlease = \"6s\"\n[queues.q]\njob = \"sleep\"\n\
         max_crashes = 2\ntimeout = \"10m\"\n",
        kafka.url()
    );
    std::fs::write(dir.path().join("windlass.toml"), config).unwrap();
    worker::succeed(dir.path(), &["enqueue", "q", "{\"for\":\"9s\"}"]);
    // The first death is not counted: nothing was marked. It makes starts be marked.
    let mut first = Worker::start(dir.path(), "first", &[]);
    until_it_runs(&mut first);
    first.process.kill();
    let mut stopped = Worker::start(dir.path(), "stopped", &[]);
    until_it_runs(&mut stopped);
    stopped.process.freeze();
    let mut killed = Worker::start(dir.path(), "killed", &[]);
    until_it_runs(&mut killed);
    stopped.process.thaw();
    wait::until("what it ran is not its own any more", Duration::from_secs(60), || !runs(&stopped));
    killed.process.kill();
    // One has died under it, and one was thought to have. What is left runs it alone, to its end.
    stopped.process.until("it ends or is condemned", Duration::from_secs(90), |_| {
        let status: serde_json::Value =
            serde_json::from_str(&worker::succeed(dir.path(), &["status", "--json"])).expect("one object");
        let queue = &status["queues"][0];
        queue["dead"] != 0 || queue["ready"] == 0
    });
    assert_eq!(worker::succeed(dir.path(), &["dlq", "list", "--json"]), "");
    assert_eq!(stopped.drain(Duration::from_secs(30)), 0);
}
