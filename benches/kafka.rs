//! The Kafka adapter at the level of its traits, beside a raw `BaseConsumer` loop and a raw batch call on split queues,
//! in the same run on the same records. Prints one line a measurement; ratios are what to look at.
//!
//! `WINDLASS_BENCH_KAFKA=127.0.0.1:9092 cargo bench --no-default-features --features kafka --bench kafka [-- RECORDS]`

use std::ffi::CString;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use rdkafka_sys as sys;
use windlass::broker::{self, Credit, Disposition, Options, Queue, Role, Settled, Start};
use windlass::message::{JobName, Namespace, QueueName, Topic};
use windlass::time::Clock;

const PARTITIONS: i32 = 4;

fn main() {
    let Ok(servers) = std::env::var("WINDLASS_BENCH_KAFKA") else {
        eprintln!("not measured: set WINDLASS_BENCH_KAFKA to a broker, 127.0.0.1:9092");
        return;
    };
    let records: usize = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(1_000_000);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    for (name, headers) in [("plain", false), ("six headers", true)] {
        let topic = format!("bench-{}-{}", std::process::id(), u8::from(headers));
        runtime.block_on(create(&servers, &topic));
        fill(&servers, &topic, records, headers);
        let raw = measure(&format!("{name}: raw BaseConsumer loop"), records, None, || raw(&servers, &topic, records));
        measure(&format!("{name}: raw batch call, records copied"), records, Some(raw), || {
            batches(&servers, &topic, records);
        });
        for ordered in [false, true] {
            let kind = if ordered { "in key order, 10,000 keys" } else { "no order" };
            measure(&format!("{name}: adapter, {kind}"), records, Some(raw), || {
                runtime.block_on(adapter(&servers, &topic, records, ordered));
            });
        }
    }
}

fn measure(what: &str, records: usize, raw: Option<f64>, run: impl FnOnce()) -> f64 {
    let (began, cpu_before) = (Instant::now(), cpu());
    run();
    let per_s = records as f64 / began.elapsed().as_secs_f64();
    let cpu_per_1k = (cpu() - cpu_before) * 1_000.0 / records as f64;
    let ratio = raw.map_or_else(String::new, |raw| format!("  {:.2} of raw", per_s / raw));
    println!("{what:45} {per_s:>12.0}/s  {cpu_per_1k:.5} CPU-s per 1,000{ratio}");
    per_s
}

fn cpu() -> f64 {
    // SAFETY: getrusage writes only the struct that it is given.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn client(servers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers);
    config
}

async fn create(servers: &str, topic: &str) {
    use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
    let admin: AdminClient<_> = client(servers).create().expect("a client");
    let new = NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1));
    admin.create_topics([&new], &AdminOptions::new()).await.expect("an answer").remove(0).expect("a topic");
}

fn fill(servers: &str, topic: &str, records: usize, with_headers: bool) {
    let mut config = client(servers);
    config.set("linger.ms", "20").set("queue.buffering.max.messages", "500000").set("acks", "1");
    let producer: BaseProducer = config.create().expect("a client");
    let body = format!(r#"{{"report_id":17,"pad":"{}"}}"#, "x".repeat(175));
    for number in 0..records {
        let key = (number % 10_000).to_string();
        let mut record = BaseRecord::to(topic).payload(&body).key(&key);
        if with_headers {
            let pairs = [
                ("ce_specversion", "1.0"),
                ("ce_id", "0191f0c4-8f4e-7c3e-9a3b-2f8f1e6f7a11"),
                ("ce_source", "urn:laboratory"),
                ("ce_type", "reports.finalized"),
                ("ce_time", "2026-11-21T10:00:00.000Z"),
                ("content-type", "application/json"),
            ];
            record =
                record.headers(pairs.into_iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
                    headers.insert(Header { key, value: Some(value) })
                }));
        }
        while let Err((_, back)) = producer.send(record) {
            record = back;
            producer.poll(Duration::from_millis(10));
        }
    }
    producer.flush(Duration::from_secs(120)).expect("all are stored");
}

fn consumer(servers: &str) -> BaseConsumer {
    let mut config = client(servers);
    config
        .set("group.id", format!("raw-{}", uuid::Uuid::now_v7()))
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("fetch.queue.backoff.ms", "4");
    config.create().expect("a client")
}

fn raw(servers: &str, topic: &str, records: usize) {
    let consumer = consumer(servers);
    consumer.subscribe(&[topic]).expect("a subscription");
    let mut seen = 0;
    while seen < records {
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
            std::hint::black_box(message.payload());
            consumer.store_offset(topic, message.partition(), message.offset()).expect("it is ours");
            seen += 1;
        }
    }
}

fn batches(servers: &str, topic: &str, records: usize) {
    let consumer = consumer(servers);
    let name = CString::new(topic).expect("no NUL");
    let mut list = TopicPartitionList::new();
    let queues: Vec<_> = (0..PARTITIONS)
        .map(|number| {
            list.add_partition_offset(topic, number, Offset::Beginning).expect("an offset");
            // SAFETY: the client lives until the end of this function, as does the name.
            unsafe {
                let queue = sys::rd_kafka_queue_get_partition(consumer.client().native_ptr(), name.as_ptr(), number);
                sys::rd_kafka_queue_forward(queue, std::ptr::null_mut());
                queue
            }
        })
        .collect();
    consumer.assign(&list).expect("an assignment");
    let mut pointers = vec![std::ptr::null_mut(); 2_048];
    let (mut seen, mut copies) = (0, Vec::with_capacity(1 << 20));
    while seen < records {
        consumer.poll(Duration::ZERO);
        for queue in &queues {
            // SAFETY: queue and buffer are valid; each message is destroyed once.
            unsafe {
                let count = sys::rd_kafka_consume_batch_queue(*queue, 1, pointers.as_mut_ptr(), pointers.len());
                copies.clear();
                for pointer in &pointers[..count.max(0) as usize] {
                    let message = &**pointer;
                    if !message.payload.is_null() {
                        copies.extend_from_slice(std::slice::from_raw_parts(message.payload.cast::<u8>(), message.len));
                    }
                    sys::rd_kafka_message_destroy(*pointer);
                }
                std::hint::black_box(&copies);
                seen += count.max(0) as usize;
            }
        }
    }
    for queue in queues {
        // SAFETY: each was given to us once.
        unsafe { sys::rd_kafka_queue_destroy(queue) };
    }
}

async fn adapter(servers: &str, topic: &str, records: usize, ordered: bool) {
    let queue = Queue {
        name: QueueName::new("bench").expect("a name"),
        topics: vec![Topic::new(topic).expect("a topic")],
        job: JobName::new("bench").expect("a name"),
        slots: NonZeroUsize::new(64).expect("not 0"),
        ordered,
        start: Start::Earliest,
        max_crashes: 3,
        keep_dead: None,
    };
    let id = uuid::Uuid::now_v7().simple().to_string();
    let options = Options {
        namespace: Namespace::new(&format!("b{}", &id[12..])).expect("a name"),
        namespace_set: true,
        role: Role::Worker,
        timeout: Duration::from_secs(10),
        lease: Duration::from_secs(30),
        grace: Duration::from_secs(5),
        queues: vec![queue.clone()],
        worker: "bench".into(),
        clock: Clock::System,
        sqlite: Default::default(),
        nats: Default::default(),
        kafka: Default::default(),
    };
    let broker = broker::connect(&format!("kafka://{servers}"), options).await.expect("a broker");
    let mut opened = broker.open(&queue).await.expect("a queue");
    let credit = Credit { jobs: 256, fresh_floor: 64, retry_floor: 64, bytes: 64 << 20, suspect: true };
    let (mut seen, mut waiting) = (0, std::collections::VecDeque::new());
    while seen < records {
        let got = opened.source.receive(credit).await.expect("deliveries");
        seen += got.len();
        waiting.push_back(opened.settler.settle(got.into_iter().map(|d| d.settle(Disposition::Ack)).collect()));
        if waiting.len() > 400 {
            let settled: Vec<Settled> = waiting.pop_front().expect("there are 400").await;
            assert!(settled.iter().all(|one| *one == Settled::Stored));
        }
    }
    for settled in waiting {
        assert!(settled.await.iter().all(|one| *one == Settled::Stored));
    }
    opened.source.stop().await;
    broker.close().await;
}
