//! No-op jobs through the broker traits on NATS, beside raw async-nats loops in the same run: 200-byte messages on a
//! stream with limits retention, one server on this machine.
//!
//! Needs a server: `WINDLASS_TEST_NATS_SERVER=/path/to/nats-server cargo bench --bench nats`. `BENCH_MESSAGES` says how
//! many, `BENCH_ROUNDS` how often; shown are all rounds, the CPU of this process for a thousand, and the ratio of the
//! medians. `BENCH_URL` names a server that runs already: one in a cluster shows the mode that confirms one by one.
//! `BENCH_ONLY=1` leaves the raw loops out, for a profiler.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Client;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use windlass::broker::{self, Broker, Credit, Disposition, NatsOptions, Options, Queue, Role, Settled, Start};
use windlass::message::{JobName, Namespace, QueueName, Topic};
use windlass::time::Clock;

const CREDIT: usize = 1_000;
const WINDOW: usize = 256;

struct Server {
    child: Child,
    url: String,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have died already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn server() -> Option<Server> {
    let binary = std::env::var_os("WINDLASS_TEST_NATS_SERVER")?;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let child = Command::new(binary)
        .args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"])
        .arg(dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nats-server can be started");
    Some(Server { child, url: format!("nats://127.0.0.1:{port}"), _dir: dir })
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn main() {
    let running = std::env::var("BENCH_URL").ok();
    let server = if running.is_some() { None } else { server() };
    let Some(url) = running.or_else(|| server.as_ref().map(|server| server.url.clone())) else {
        println!("no server: set WINDLASS_TEST_NATS_SERVER");
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime can be built").block_on(run(&url));
}

async fn run(url: &str) {
    let (messages, rounds) = (number("BENCH_MESSAGES", 100_000), number("BENCH_ROUNDS", 3));
    let client = loop {
        match async_nats::connect(url).await {
            Ok(client) => break client,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let stream =
        r#"{"name":"bench","subjects":["bench.events"],"retention":"limits","storage":"file","num_replicas":1}"#;
    client.request("$JS.API.STREAM.CREATE.bench", stream.into()).await.expect("the stream is made");
    fill(&client, messages).await;
    let only = std::env::var_os("BENCH_ONLY").is_some();
    let (mut plain, mut single, mut ours) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        if !only {
            let cpu = cpu();
            plain.push(raw(&client, &format!("plain{round}"), messages, false).await);
            say(round, "raw, plain acknowledgements", plain[round], cpu, messages);
            let cpu = self::cpu();
            single.push(raw(&client, &format!("single{round}"), messages, true).await);
            say(round, "raw, confirmed one by one", single[round], cpu, messages);
        }
        let cpu = cpu();
        ours.push(windlass(url, &format!("ours{round}"), messages).await);
        say(round, "windlass", ours[round], cpu, messages);
    }
    if only {
        return;
    }
    let (plain, single, ours) = (median(plain), median(single), median(ours));
    println!("windlass beside plain acknowledgements: {:.2}", ours / plain);
    println!("windlass beside acknowledgements confirmed one by one: {:.2}", ours / single);
}

fn say(round: usize, what: &str, rate: f64, since: f64, messages: usize) {
    let each = (cpu() - since) / messages as f64 * 1_000.0;
    println!("round {round}: {what} {rate:.0}/s, {each:.4} s of CPU for a thousand");
}

/// Seconds of CPU that this process has used.
fn cpu() -> f64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: it writes to the struct that it is given, and zeroes are a valid one.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

async fn fill(client: &Client, messages: usize) {
    let body = Bytes::from(vec![b'x'; 200]);
    let mut flying = FuturesUnordered::new();
    for _ in 0..messages {
        while flying.len() >= 1_000 {
            flying.next().await;
        }
        let (client, body) = (client.clone(), body.clone());
        flying.push(async move { client.request("bench.events", body).await.expect("stored") });
    }
    while flying.next().await.is_some() {}
}

/// A pull loop as plain as it can be: one inbox, batches of half the credit.
async fn raw(client: &Client, durable: &str, messages: usize, confirmed: bool) -> f64 {
    let config = format!(
        r#"{{"stream_name":"bench","action":"create","config":{{"durable_name":"{durable}","ack_policy":"explicit","deliver_policy":"all","max_ack_pending":100000,"ack_wait":30000000000}}}}"#
    );
    let made = client.request(format!("$JS.API.CONSUMER.CREATE.bench.{durable}"), config.into()).await;
    made.expect("the consumer is made");
    let inbox = client.new_inbox();
    let mut replies = client.subscribe(format!("{inbox}.*")).await.expect("subscribed");
    let next = format!("$JS.API.CONSUMER.MSG.NEXT.bench.{durable}");
    let begun = Instant::now();
    let (mut credit, mut came, mut flying, mut done) = (0usize, 0usize, 0usize, 0usize);
    let mut waiting = std::collections::VecDeque::new();
    while done < messages {
        if credit <= CREDIT / 2 && came < messages {
            let batch = CREDIT - credit;
            let body = format!(r#"{{"batch":{batch},"expires":5000000000}}"#);
            client.publish_with_reply(next.clone(), format!("{inbox}.p"), body.into()).await.expect("sent");
            credit += batch;
        }
        let message = replies.next().await.expect("the subscription goes on");
        match message.reply {
            Some(reply) => {
                credit -= 1;
                came += 1;
                if confirmed {
                    waiting.push_back(reply);
                } else {
                    client.publish(reply, "+ACK".into()).await.expect("sent");
                    done += 1;
                }
            }
            None if message.subject.ends_with(".a") => {
                flying -= 1;
                done += 1;
            }
            None => {}
        }
        while flying < WINDOW
            && let Some(reply) = waiting.pop_front()
        {
            client.publish_with_reply(reply, format!("{inbox}.a"), "+ACK".into()).await.expect("sent");
            flying += 1;
        }
    }
    client.flush().await.expect("flushed");
    messages as f64 / begun.elapsed().as_secs_f64()
}

async fn windlass(url: &str, name: &str, messages: usize) -> f64 {
    let queue = Queue {
        name: QueueName::new(name).expect("a name"),
        topics: vec![Topic::new("bench.events").expect("a topic")],
        job: JobName::new("noop").expect("a name"),
        slots: CREDIT.try_into().expect("not 0"),
        ordered: false,
        start: Start::Earliest,
        max_crashes: 3,
        keep_dead: None,
    };
    let options = Options {
        namespace: Namespace::new("bench").expect("a name"),
        namespace_set: true,
        role: Role::Worker,
        timeout: Duration::from_secs(5),
        lease: Duration::from_secs(30),
        grace: Duration::from_secs(5),
        queues: vec![queue.clone()],
        worker: "bench".into(),
        clock: Clock::System,
        sqlite: Default::default(),
        nats: NatsOptions::default(),
        kafka: Default::default(),
    };
    let broker: Arc<dyn Broker> = broker::connect(url, options).await.expect("the server can be reached");
    let mut opened = broker.open(&queue).await.expect("the queue can be opened");
    let limit = opened.settler.unconfirmed_limit();
    let begun = Instant::now();
    let (mut done, mut unconfirmed) = (0, 0);
    let mut settling = FuturesUnordered::new();
    while done < messages {
        let room = limit.saturating_sub(unconfirmed).min(CREDIT);
        let credit = Credit { jobs: room.max(1), fresh_floor: 0, retry_floor: 0, bytes: 256 << 20, suspect: true };
        tokio::select! {
            biased;
            Some(settled) = settling.next(), if !settling.is_empty() => {
                let settled: Vec<Settled> = settled;
                assert!(settled.iter().all(|settled| *settled == Settled::Stored), "{settled:?}");
                done += settled.len();
                unconfirmed -= settled.len();
            }
            received = opened.source.receive(credit), if room > 0 => {
                let deliveries = received.expect("the source goes on");
                unconfirmed += deliveries.len();
                let batch = deliveries.into_iter().map(|delivery| delivery.settle(Disposition::Ack)).collect();
                settling.push(opened.settler.settle(batch));
            }
        }
    }
    let rate = messages as f64 / begun.elapsed().as_secs_f64();
    drop(settling);
    opened.source.stop().await;
    broker.close().await;
    rate
}
