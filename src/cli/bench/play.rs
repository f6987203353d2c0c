//! What is measured: a worker as `run` starts it, a raw loop, or bare tasks, in a process of its own (on `memory://`
//! in this one, where else nothing could be published to it).

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::UnboundedReceiver;

use super::board::Board;
use super::body::{self, Body};
use super::load::Load;
use super::plan::Kind;
use crate::app::{self, App};
use crate::broker::yardstick::{self, Yardstick};
use crate::broker::{self, Broker, Role};
use crate::cli::fault::Fault;
use crate::client::Client;
use crate::config::{self, Config};
use crate::handler::{Error, Registry};

/// The name of the job, here and in the configuration.
pub const JOB: &str = "bench";

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Who {
    /// The worker.
    Worker,
    /// The raw loop of this index.
    Raw(usize),
    /// Tasks that do what the jobs do, without a broker.
    Bare,
}

/// All that it needs to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Part {
    /// Who.
    pub who: Who,
    /// Where the broker is.
    pub broker: String,
    /// The configuration, as TOML.
    pub config: String,
    /// `--set`
    pub sets: Vec<String>,
    /// How long one request to the broker may take.
    pub timeout: Duration,
    /// What the queue hears.
    pub topic: String,
    /// Ids of the backlog.
    pub jobs: u64,
    /// All ids of the board.
    pub ids: u64,
    /// Where the board is.
    pub board: PathBuf,
    /// Bytes of an argument.
    pub payload: usize,
    /// Tasks at once.
    pub slots: usize,
    /// What a job does.
    pub kind: Kind,
    /// For how long.
    pub takes: Duration,
    /// Keys, worked in order.
    pub keys: usize,
    /// Without attributes.
    pub bare: bool,
    /// Where an HTTP job is POSTed.
    pub endpoint: Option<String>,
    /// It is told to publish by itself: the broker is within its process.
    pub publishes: bool,
}

/// What it is told while it runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// Publish these ids ..
    pub ids: Range<u64>,
    /// .. so many a second.
    pub rate: f64,
    /// Whether their waits count.
    pub waits: bool,
}

/// What is in this process already, on `memory://`.
#[derive(Clone)]
pub struct Inside {
    /// The broker.
    pub broker: Arc<dyn Broker>,
    /// Its raw loops.
    pub yardstick: Arc<dyn Yardstick>,
}

impl Part {
    /// The configuration that it works by.
    pub fn configuration(&self) -> Result<Config, Fault> {
        configuration(&self.config, &self.sets, &self.broker)
    }

    fn options(&self, role: Role) -> Result<broker::Options, Fault> {
        Ok(broker::Options { timeout: self.timeout, ..app::options(&self.configuration()?, role) })
    }
}

/// Checks a configuration of ours with the settings that were asked for.
pub fn configuration(text: &str, sets: &[String], broker: &str) -> Result<Config, Fault> {
    let source = config::Source::new().text("windlass bench", text).sets(sets).flag("--broker", "broker", broker);
    Ok(config::load(source).map_err(|faults| Fault::new(super::super::fault::CONFIG, faults.to_string()))?.config)
}

/// Runs until it is done and told to leave, which is when there are no more orders.
pub async fn play(part: Part, inside: Option<Inside>, mut orders: UnboundedReceiver<Order>) -> Result<(), Fault> {
    let board = Board::open(&part.board, part.ids as usize, part.keys)
        .map_err(|error| Fault::failed(format!("opening {}: {error}", part.board.display())))?;
    let board = Arc::new(board);
    match part.who {
        Who::Worker => return work(&part, inside, board, orders).await,
        Who::Raw(index) => {
            let yardstick = match inside {
                Some(inside) => inside.yardstick,
                None => Arc::from(yardstick::connect(&part.broker, &part.options(Role::Reader)?).await?),
            };
            let seen = |text: &[u8]| {
                if let Some(body) = Body::peek(text) {
                    board.ran(body.id(), body.sent());
                }
            };
            yardstick.consume(&part.topic, index, part.jobs as usize, &seen).await?;
        }
        Who::Bare => bare(&part, &board).await?,
    }
    while orders.recv().await.is_some() {}
    Ok(())
}

async fn work(
    part: &Part,
    inside: Option<Inside>,
    board: Arc<Board>,
    mut orders: UnboundedReceiver<Order>,
) -> Result<(), Fault> {
    let config = part.configuration()?;
    let namespace = config.namespace.clone();
    let options = part.options(Role::Worker)?;
    let run = app::RunOptions { timeout: Some(part.timeout), ..Default::default() };
    let mut app = App::new(config, registry(part, &board)).with(run);
    let broker = match inside {
        Some(inside) => Some(inside.broker),
        None if part.publishes => Some(broker::connect(&part.broker, options).await?),
        None => None,
    };
    if let Some(broker) = &broker {
        app = app.on(broker.clone());
    }
    let load = broker.map(|broker| Load {
        client: Client::new(broker.publisher(), namespace),
        topic: part.topic.as_str().into(),
        size: part.payload,
        keys: part.keys,
        bare: part.bare,
    });
    let leave = async move {
        while let Some(order) = orders.recv().await {
            let Some(load) = load.clone() else { continue };
            tokio::spawn(async move {
                if let Err(error) = load.pace(order.ids, order.rate, order.waits).await {
                    eprintln!("error: publishing: {error}");
                }
            });
        }
    };
    app.run_until(leave).await?;
    Ok(())
}

fn registry(part: &Part, board: &Arc<Board>) -> Registry {
    let (board, takes) = (board.clone(), part.takes);
    match part.kind {
        Kind::Noop => Registry::new().job(JOB, move |body: Body| {
            board.ran(body.id(), body.sent());
            std::future::ready(Ok(()))
        }),
        Kind::Yield => Registry::new().job(JOB, move |body: Body| {
            let board = board.clone();
            async move {
                tokio::task::yield_now().await;
                board.ran(body.id(), body.sent());
                Ok(())
            }
        }),
        Kind::Sleep => Registry::new().job(JOB, move |body: Body| {
            let board = board.clone();
            async move {
                board.start(body.id(), body.sent());
                tokio::time::sleep(takes).await;
                board.done();
                Ok(())
            }
        }),
        Kind::Spin => Registry::new().job(JOB, move |body: Body| {
            let board = board.clone();
            async move {
                board.start(body.id(), body.sent());
                spin(takes);
                board.done();
                Ok(())
            }
        }),
        // The configuration says where.
        Kind::Http => Registry::new(),
    }
}

fn spin(takes: Duration) {
    let until = Instant::now() + takes;
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// As many tasks as there are slots, each of which does one job's work after the other.
async fn bare(part: &Part, board: &Arc<Board>) -> Result<(), Fault> {
    let client = match &part.endpoint {
        Some(url) => Some((post_client()?, url.clone())),
        None => None,
    };
    crate::process::raise_file_limit();
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..part.slots {
        let (board, next, client) = (board.clone(), next.clone(), client.clone());
        let (jobs, takes, kind, payload) = (part.jobs, part.takes, part.kind, part.payload);
        tasks.spawn(async move {
            loop {
                let id = next.fetch_add(1, Ordering::Relaxed);
                if id >= jobs {
                    return Ok(());
                }
                if let Some((client, url)) = &client {
                    let body: Bytes = body::write(id, None, payload);
                    // With its causes: that there are too many open files, say.
                    client.post(url).body(body).send().await.map_err(|error| Error::from(error).to_string())?;
                    continue;
                }
                board.start(id, None);
                match kind {
                    Kind::Spin => spin(takes),
                    _ => tokio::time::sleep(takes).await,
                }
                board.done();
                tokio::task::yield_now().await;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        let ended: Result<(), String> = ended.map_err(|error| Fault::failed(error.to_string()))?;
        ended.map_err(Fault::failed)?;
    }
    Ok(())
}

fn post_client() -> Result<reqwest::Client, Fault> {
    // Another part of this program may have installed it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .http1_only()
        .no_proxy()
        // Without TLS the system's roots are not looked for.
        .tls_certs_only(Vec::new())
        .build()
        .map_err(|error| Fault::failed(format!("making an HTTP client: {error}")))
}
