//! `cargo demo`: 569 real laboratory reports from a producer through a durable queue to settled jobs, with retries and
//! dead letters that a person can read. No server, nothing to press; it leaves `target/demo` to look into.

mod meter;
mod stage;
mod tell;
mod watch;

use std::cell::Cell;
use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures_util::future::join;
use tokio::sync::oneshot;
use windlass::broker::Role;
use windlass::{App, Client, app};
use windlass_lab::Lab;

use meter::Meter;
use stage::Stage;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    match runtime.block_on(demo()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => failed(&*error),
    }
}

fn failed(error: &dyn Error) -> ExitCode {
    eprintln!("the demonstration failed: {error}");
    ExitCode::FAILURE
}

/// The whole story; whether everything came out as it should.
async fn demo() -> Result<bool, Box<dyn Error>> {
    let stage = Stage::set().await?;
    let meter = Meter::new();

    // The producer: another system, which knows the topic and nothing else.
    let broker = app::connect(&stage.config, Role::Producer).await?;
    let client = Client::new(broker.publisher(), stage.config.namespace.clone());

    // The worker, as any application embeds it: a configuration, the jobs, and when to leave.
    let (leave, told) = oneshot::channel::<()>();
    let app = App::new(stage.config.clone(), meter.registry(Lab::at(&stage.folder)));
    let gone = Cell::new(false);
    let worker = async {
        // Told, or the one who would tell is gone: either way it is time to leave.
        let tally = app.run_until(async { drop(told.await) }).await;
        gone.set(true);
        tally
    };

    tell::begin(&stage);
    let story = async {
        let began = Instant::now();
        let watch = watch::until_settled(&*broker, &meter, &stage, &gone, PATIENCE);
        let (published, settled) = join(stage.publish(&client), watch).await;
        // A drain: what runs may end, what waits stays where it is, nothing is lost.
        drop(leave);
        published.and(settled).map(|()| began.elapsed())
    };
    let (tally, took) = join(worker, story).await;
    let (tally, took) = (tally?, took?);

    let sound = tell::result(&stage, &meter, &tally, took).await?;
    let letters = tell::dead_letters(&*broker, &stage).await?;
    tell::commands(&stage, &letters);
    broker.close().await;
    Ok(sound && letters.len() == stage::DEAD)
}

/// After so long something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);
