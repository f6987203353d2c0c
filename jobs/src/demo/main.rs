//! `cargo demo`: one story in four acts, on 569 real laboratory reports. Nothing to press; it leaves `target/demo` to
//! look into. `cargo demo-nats` and `cargo demo-kafka` tell it on a server.

mod calls;
mod crew;
mod ledger;
mod mail;
mod server;
mod stage;
mod tell;
mod watch;

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures_util::{TryStreamExt, future};
use windlass::broker::{Broker, LetterQuery, Mend, Role};
use windlass::message::Reason;
use windlass::{Client, app};
use windlass_lab::Lab;

use calls::{CALLS, SLOTS, Service, TAKES};
use crew::Hand;
use ledger::Ledger;
use mail::MailServer;
use server::Address;
use stage::{LABORATORIES, QUEUES, REPORTS, STRANGER, STRANGERS, Stage};
use tell::Teller;
use watch::View;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next();
    if first.as_deref() == Some(crew::WORKER) {
        return crew::work(arguments);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    match runtime.block_on(demo(first, arguments.next())) {
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
async fn demo(kind: Option<String>, url: Option<String>) -> Result<bool, Box<dyn Error>> {
    let folder = Stage::folder();
    stage::clear(&folder).map_err(|error| format!("{} cannot be cleared: {error}", folder.display()))?;
    let address = match kind {
        None => Address::file(&folder),
        Some(kind) => Address::server(&kind, url, &folder).await?,
    };
    let service = Service::start().await?;
    let stage = Stage::set(folder, &address, &service.url).await?;
    println!("The queue is {}.", address.said);

    // The producer: another system, which knows the topic and nothing else. Queues hear what comes after them.
    let broker = app::connect(&stage.config, Role::Producer).await?;
    let client = Client::new(broker.publisher(), stage.config.namespace.clone());
    let mut play =
        Play { stage, client, broker, ledger: Ledger::of(&Stage::folder().join("ledger")), teller: Teller::new() };

    let hand = Hand::start(&play.stage.folder, None)?;
    let hand = play.five_queues(hand).await?;
    let hand = play.kill(hand).await?;
    hand.leave().await?;
    let mail = MailServer::start().await?;
    let hand = Hand::start(&play.stage.folder, Some(&mail.url))?;
    let hand = play.dead_letters(hand, &mail).await?;
    let hand = play.slow_calls(hand, service).await?;
    hand.leave().await?;

    tell::commands(&play.stage, address.started.is_some());
    play.broker.close().await;
    Ok(play.teller.sound())
}

struct Play {
    stage: Stage,
    client: Client,
    broker: std::sync::Arc<dyn Broker>,
    ledger: Ledger,
    teller: Teller,
}

impl Play {
    /// Each queue gets every report.
    async fn five_queues(&mut self, mut hand: Hand) -> Result<Hand, Box<dyn Error>> {
        self.teller.act(1, &format!("{REPORTS} laboratory reports to five queues that know nothing of each other"));
        let jobs = REPORTS * QUEUES.len();
        let (reports, began) = (REPORTS as u64, Instant::now());
        let mut view = View::new(reports);
        let watch = watch::until_done(reports, &mut self.ledger, &mut hand, [0; QUEUES.len()], reports, &mut view);
        let (published, done) = future::join(self.stage.publish(&self.client, LABORATORIES[0]), watch).await;
        published.and(done)?;
        let took = began.elapsed().as_secs_f64();
        view.finish();
        let (p50, p99) = (self.ledger.waited(50).as_millis(), self.ledger.waited(99).as_millis());
        let rate = jobs as f64 / took;
        println!("  {jobs} jobs in {took:.1} s: {rate:.0} a second; they waited p50 {p50} ms, p99 {p99} ms\n");
        self.teller.made(&self.stage, 1).await?;
        Ok(hand)
    }

    /// The worker is killed under load, and another takes over.
    async fn kill(&mut self, mut hand: Hand) -> Result<Hand, Box<dyn Error>> {
        self.teller.act(2, &format!("{REPORTS} more, and kill -9 of the worker under load"));
        let (reports, from) = (REPORTS as u64, QUEUES.map(|queue| self.ledger.done(queue)));
        let mut view = View::new(reports);
        let third = reports / 3;
        let watch = watch::until_done(third, &mut self.ledger, &mut hand, from, reports, &mut view);
        let (published, done) = future::join(self.stage.publish(&self.client, LABORATORIES[1]), watch).await;
        published.and(done)?;
        let pid = hand.pid();
        hand.kill().await?;
        self.ledger.read()?;
        let running = self.ledger.kill(pid).running;
        let mut hand = Hand::start(&self.stage.folder, None)?;
        let said = format!("  kill -9 {pid} while {running} jobs ran; worker {} takes over", hand.pid());
        match &view {
            View::Bars(bars) => bars[0].suspend(|| println!("{said}")),
            View::Lines(_) => println!("{said}"),
        }
        watch::until_done(reports, &mut self.ledger, &mut hand, from, reports, &mut view).await?;
        watch::until_idle(&*self.broker, &self.stage, &mut hand).await?;
        view.finish();

        self.ledger.read()?;
        let done: u64 = QUEUES.iter().map(|queue| self.ledger.done(queue)).sum();
        let jobs = (REPORTS * LABORATORIES.len() * QUEUES.len()) as u64;
        let kill = self.ledger.kill(pid);
        let twice = kill.by_it + kill.otherwise;
        let text = format!(
            "{jobs} jobs, {} lost; {twice} run twice, {} of them by that kill",
            jobs - done.min(jobs),
            if kill.otherwise == 0 { "each".to_owned() } else { kill.by_it.to_string() }
        );
        self.teller.fact("ledger", done == jobs && kill.otherwise == 0, &text);
        self.teller.made(&self.stage, LABORATORIES.len()).await?;
        Ok(hand)
    }

    /// What cannot succeed is kept; what was mended is replayed.
    async fn dead_letters(&mut self, mut hand: Hand, mail: &MailServer) -> Result<Hand, Box<dyn Error>> {
        self.teller.act(3, "Dead letters, by group: damaged bytes, an unknown patient, a mail server that refuses");
        let before = tell::invoices(&Lab::at(&self.stage.folder)).await?.0;
        self.stage.publish_bad(&self.client).await?;
        let each = STRANGERS as u64;
        let all = [("notify", each + 1), ("invoice", each + 1), ("analytics", 1), ("archive", 1), ("render", 1)];
        watch::until_dead(&all, &*self.broker, &self.stage, &mut hand).await?;
        let groups = tell::groups(&*self.broker).await?;
        self.teller.fact("groups", groups.len() == 7, &format!("{} groups", groups.len()));

        println!("\n  The patient is registered, the mail server accepts; what waited for that is replayed:\n");
        Lab::at(&self.stage.folder).register(&[STRANGER.to_owned()]).await?;
        mail.accept();
        let replayed = self.replay().await?;
        self.settled(before + each as i64, mail, &mut hand).await?;
        let groups = tell::groups(&*self.broker).await?;
        let undecodable = groups.iter().all(|group| group.reason == Reason::Malformed) && groups.len() == QUEUES.len();
        let (billed, sent) = (tell::invoices(&Lab::at(&self.stage.folder)).await?.0 - before, mail.taken());
        let text = format!("{replayed} replayed: {billed} billed, {sent} mails taken; the undecodable one is left");
        let holds = undecodable && (billed, sent, replayed) == (each as i64, STRANGERS, 2 * STRANGERS);
        self.teller.fact("replay", holds, &text);
        Ok(hand)
    }

    /// Replays whatever can succeed now; how many that is.
    async fn replay(&self) -> Result<usize, Box<dyn Error>> {
        let dead = self.broker.dead_letters();
        let mut replayed = 0;
        for queue in self.stage.config.queues.keys() {
            let query = LetterQuery { queue: Some(queue.clone()), oldest_first: true, ..LetterQuery::default() };
            let mut letters: Vec<_> = dead.list(query).try_collect().await?;
            letters.retain(|letter| letter.reason != Reason::Malformed);
            if letters.is_empty() {
                continue;
            }
            let _replaying = dead.begin_replay(queue).await?;
            for gone in dead.replay(&letters, &Mend::default()).await {
                replayed += usize::from(gone?);
            }
        }
        Ok(replayed)
    }

    /// Until the replayed are done.
    async fn settled(&self, invoices: i64, mail: &MailServer, hand: &mut Hand) -> Result<(), Box<dyn Error>> {
        let began = Instant::now();
        let lab = Lab::at(&self.stage.folder);
        while mail.taken() < STRANGERS || tell::invoices(&lab).await?.0 < invoices {
            hand.check()?;
            if began.elapsed() > Duration::from_secs(60) {
                return Err("what was replayed is not done after a minute".into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        watch::until_idle(&*self.broker, &self.stage, hand).await
    }

    /// Waiting for others is cheap.
    async fn slow_calls(&mut self, mut hand: Hand, mut service: Service) -> Result<Hand, Box<dyn Error>> {
        let takes = TAKES.as_millis();
        let alone = TAKES.as_secs_f64() * CALLS as f64;
        self.teller.act(4, &format!("{CALLS} calls of {takes} ms to a service over HTTP"));
        println!("  One after the other they would take {alone:.0} s (computed, not run). On {SLOTS} slots:\n");
        let memory = hand.memory();
        let (began, mut failed) = (Instant::now(), 0);
        let drafts =
            (1..=CALLS).map(|number| self.client.enqueue("calls", "call", &number).id(format!("call-{number}")));
        for receipt in self.client.publish_many(drafts).await {
            receipt?;
        }
        for answered in 1..=CALLS {
            let answer = tokio::time::timeout(Duration::from_secs(60), service.answered.recv()).await;
            let Some((number, good)) = answer.map_err(|_| "the calls do not come to an end")? else { break };
            failed += usize::from(!good);
            if answered % SLOTS == 1 {
                print!("  {:4.1} s ", began.elapsed().as_secs_f64());
            }
            print!(" {}", if good { number.to_string() } else { format!("[{number} fails]") });
            if answered % SLOTS == 0 {
                println!();
            }
            std::io::stdout().flush()?;
        }
        let took = began.elapsed().as_secs_f64();
        let after = hand.memory();
        watch::until_dead(&[("calls", 1)], &*self.broker, &self.stage, &mut hand).await?;
        watch::until_idle(&*self.broker, &self.stage, &mut hand).await?;
        println!();
        self.teller.fact(
            "calls",
            failed == 1,
            &format!("{} done, {failed} dead letter, in {took:.1} s instead of {alone:.0} s", CALLS - failed),
        );
        if let (Some(memory), Some(after)) = (memory, after) {
            // Twenty connections and their buffers are a few hundred KiB.
            let flat = after - memory < 16.0;
            self.teller.fact("memory", flat, &format!("{memory:.0} MiB before, {after:.0} MiB after"));
        }
        Ok(hand)
    }
}
