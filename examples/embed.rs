//! A service of your own that has a worker in it: the service keeps its `main`, its signals and its runtime, and the
//! worker drains when it is told to.
//!
//! `cargo run --example embed`: serves one event, then leaves.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use windlass::config::{Source, load};
use windlass::{App, Client, Context, Error, Registry};

#[derive(serde::Serialize, serde::Deserialize)]
struct Report {
    report_id: u64,
}

async fn invoice(report: Report, cx: Context) -> Result<(), Error> {
    println!("invoice for report {}, attempt {}", report.report_id, cx.attempt());
    cx.state::<Arc<Notify>>().notify_one();
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::temp_dir().join(format!("windlass-embed-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let broker = format!("sqlite://{}", folder.join("queue.db").display());

    // From a file as ever (`.file(Some("windlass.toml".into()))`), with the environment, or from text as here.
    let text = "queues.invoice.topics = [\"reports.finalized\"]\nadmin.listen = \"none\"";
    let source = Source::new().text("embed", text).env(std::env::vars_os()).flag("embed", "broker", broker.as_str());
    let config = load(source)?.config;

    let served = Arc::new(Notify::new());
    let registry = Registry::new().job("invoice", invoice).state(served.clone());
    let leave = Arc::new(Notify::new());
    let told = leave.clone();
    let worker = tokio::spawn(App::new(config, registry).run_until(async move { told.notified().await }));

    // The rest of the service; here it publishes, and waits until that was worked. Until the worker has made the file,
    // no queue is known there.
    let client = Client::connect(&broker).await;
    let client = match client {
        Ok(client) => client,
        Err(error) => return Err(error.into()),
    };
    while let Err(error) = client.publish("reports.finalized", &Report { report_id: 842_302 }).await {
        if worker.is_finished() {
            return Err(error.into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    served.notified().await;
    client.close().await;

    // A drain: what runs may end, what waits stays where it is.
    leave.notify_one();
    let tally = worker.await??;
    println!("done {}, retried {}, dead {}", tally.done, tally.retried, tally.dead);
    std::fs::remove_dir_all(folder)?;
    Ok(())
}
