//! `sqlite://PATH`: the embedded queue.
//!
//! One task, the [`writer`], owns the one connection that writes, and commits for everybody at once. Sources, settlers
//! and publishers are handles that send it commands; what is only read goes through a small pool of connections.
//!
//! - Where a unit of work stands is said by the table it is in (`migrations/0001.sql`): `fresh`, `later`, `running`,
//!   `dead`. The message itself lies in `event`, once, however many queues hear it.
//! - A lease is the row of its worker, not of its job: while the row of a worker is there, what that worker runs is
//!   its own, and one update renews it all. Whoever finds a worker dead, or its lease run out, gives back what it
//!   held and removes the row, in one transaction; its owner then learns that it lost everything.
//! - Leases are measured by the machine's monotonic clock together with its boot id, due times by the wall clock.

mod claim;
mod command;
mod commit;
mod deliver;
mod desk;
mod doctor;
mod fault;
mod file;
mod housekeeping;
mod inspect;
mod letter;
mod letters;
mod machine;
mod patience;
mod peer;
mod publish;
mod register;
mod schema;
mod script;
mod settle;
#[cfg(test)]
mod sim;
mod stored;
#[cfg(test)]
mod tests;
mod writer;
mod yardstick;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::sqlite::{SqlitePool, SqlitePoolOptions};
use tokio::sync::{mpsc, oneshot};

use self::command::{Command, Item, Mark, Post, Ticket};
use self::desk::Desk;
use self::file::Target;
use self::script::Script;
use self::writer::{Start, Writer};
use super::{
    Broker, Credit, DeadLetters, Delivery, Error, Inspect, Opened, Options, Publication, Published, Publisher, Queue,
    Settled, Settlement, Settler, Source, Trouble,
};
use crate::message::Binding;
use crate::time::Clock;

/// How many deliveries may be finished and not yet confirmed: what one transaction takes.
const UNCONFIRMED: usize = 1_024;

/// Connects to the file at `address`, creating it where the role may.
pub(super) async fn connect(address: &str, options: Options) -> Result<Arc<dyn Broker>, Error> {
    Ok(Arc::new(Sqlite::connect(address, options).await?))
}

/// The raw loop beside which a worker is measured.
pub(super) fn yardstick(address: &str, options: &Options) -> Result<yardstick::SqliteYardstick, Error> {
    yardstick::SqliteYardstick::new(address, options)
}

/// The broker behind `sqlite://`.
struct Sqlite {
    address: String,
    connected: Arc<AtomicBool>,
    shared: Arc<Shared>,
}

impl Sqlite {
    async fn connect(address: &str, options: Options) -> Result<Self, Error> {
        let target = Target::parse(address, &options)?;
        let connection = target.open_writer().await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(2)
            .acquire_timeout(options.timeout)
            .idle_timeout(Duration::from_secs(10))
            .connect_lazy_with(target.reader_options());
        let (sender, commands) = mpsc::unbounded_channel();
        let connected = Arc::new(AtomicBool::new(true));
        let mut writer = Writer::new(Start {
            connection,
            path: target.path.clone(),
            clock: options.clock.clone(),
            name: options.worker.clone(),
            lease: options.lease,
            commands,
            connected: connected.clone(),
        });
        let registered = register::process(&mut writer, &options.queues, options.role).await;
        registered.map_err(|error| fault::explain(&error, &target.path))?;
        // It ends when it is told to close or when every handle is gone; errors stay inside and are tried again.
        tokio::spawn(writer.run());
        let shared = Shared {
            commands: sender,
            readers,
            path: target.path,
            clock: options.clock,
            timeout: options.timeout,
            normal: options.sqlite.synchronous_normal,
        };
        Ok(Self { address: address.to_owned(), connected, shared: Arc::new(shared) })
    }
}

/// What all handles share.
struct Shared {
    commands: mpsc::UnboundedSender<Command>,
    readers: SqlitePool,
    path: PathBuf,
    clock: Clock,
    timeout: Duration,
    normal: bool,
}

impl Shared {
    /// Has the writer do something rare.
    async fn call<T: Send + 'static>(
        &self,
        work: impl for<'a> FnOnce(&'a mut Writer) -> BoxFuture<'a, Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let call: command::Call = Box::new(move |writer| {
            Box::pin(async move {
                // Whoever asked may be gone.
                let _ = reply.send(work(writer).await);
            })
        });
        self.commands.send(Command::Call(call)).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Reads, as of one moment.
    async fn read(&self, script: Script) -> Result<Vec<script::Answer>, Error> {
        let result = async {
            let mut connection = self.readers.acquire().await?;
            script.run(&mut connection).await
        };
        result.await.map_err(|error| fault::explain(&error, &self.path))
    }
}

fn closed() -> Error {
    Error::Unavailable("the broker was closed".to_owned())
}

impl Broker for Sqlite {
    fn address(&self) -> &str {
        &self.address
    }

    fn connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    fn open<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<Opened, Error>> {
        Box::pin(async move {
            let wanted = queue.clone();
            let commands = self.shared.commands.downgrade();
            let desk =
                self.shared.call(move |writer| Box::pin(async move { writer.open(wanted, commands).await })).await?;
            Ok(Opened {
                source: Box::new(Intake { desk: desk.clone(), _shared: self.shared.clone() }),
                settler: Arc::new(Settling { desk, commands: self.shared.commands.clone() }),
                notes: Vec::new(),
            })
        })
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(Posting { shared: self.shared.clone() })
    }

    fn dead_letters(&self) -> Arc<dyn DeadLetters> {
        Arc::new(letters::Letters { shared: self.shared.clone() })
    }

    fn inspect(&self) -> Arc<dyn Inspect> {
        Arc::new(inspect::Reading { shared: self.shared.clone() })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let (reply, done) = oneshot::channel();
            if self.shared.commands.send(Command::Close(reply)).is_ok() {
                // Without an answer it had ended before.
                let _ = done.await;
            }
            self.shared.readers.close().await;
            self.connected.store(false, Ordering::Relaxed);
        })
    }
}

/// The source of one queue.
struct Intake {
    desk: Arc<Desk>,
    /// Keeps the writer alive for as long as somebody may receive.
    _shared: Arc<Shared>,
}

impl Source for Intake {
    fn receive(&mut self, credit: Credit) -> BoxFuture<'_, Result<Vec<Delivery>, Error>> {
        Box::pin(self.desk.receive(credit))
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        self.desk.stop();
        Box::pin(std::future::ready(()))
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.desk.stop();
    }
}

/// The settler of one queue.
struct Settling {
    desk: Arc<Desk>,
    commands: mpsc::UnboundedSender<Command>,
}

impl Settler for Settling {
    fn settle(&self, batch: Vec<Settlement>) -> BoxFuture<'static, Vec<Settled>> {
        let count = batch.len();
        if count == 0 {
            return Box::pin(std::future::ready(Vec::new()));
        }
        let (reply, answer) = oneshot::channel();
        let ticket = Ticket::new(count, reply);
        let items = batch.into_iter().enumerate().map(|(index, settlement)| {
            let (delivery, disposition) = settlement.take();
            Item { desk: self.desk.clone(), delivery, disposition, ticket: ticket.clone(), index }
        });
        // Where the writer has ended the ticket is dropped with the items, which the answer below tells.
        let _ = self.commands.send(Command::Settle(items.collect()));
        drop(ticket);
        Box::pin(async move {
            let gone = || vec![Settled::Unconfirmed("the broker was closed".to_owned()); count];
            answer.await.unwrap_or_else(|_| gone())
        })
    }

    fn mark<'a>(&'a self, starting: &'a [&'a Delivery]) -> BoxFuture<'a, Vec<bool>> {
        let events: Vec<i64> = starting.iter().map(|delivery| delivery.token.0 as i64).collect();
        if events.is_empty() {
            return Box::pin(std::future::ready(Vec::new()));
        }
        let count = events.len();
        let (reply, answer) = oneshot::channel();
        // Where the writer has ended the reply is dropped, which the answer below tells.
        let _ = self.commands.send(Command::Mark(Mark { desk: self.desk.clone(), events, reply }));
        Box::pin(async move { answer.await.unwrap_or_else(|_| vec![false; count]) })
    }

    fn unconfirmed_limit(&self) -> usize {
        UNCONFIRMED
    }

    fn trouble(&self) -> Option<Trouble> {
        self.desk.trouble()
    }
}

/// The publisher.
struct Posting {
    shared: Arc<Shared>,
}

impl Publisher for Posting {
    fn binding(&self) -> Binding {
        Binding::Dash
    }

    fn publish(&self, batch: Vec<Publication>) -> BoxFuture<'_, Vec<Result<Published, Error>>> {
        let count = batch.len();
        let (reply, answer) = oneshot::channel();
        let deadline = tokio::time::Instant::now() + self.shared.timeout;
        // Where the writer has ended the reply is dropped, which the answer below tells.
        let _ = self.shared.commands.send(Command::Publish(Post { batch, reply, deadline }));
        Box::pin(async move {
            let gone = || (0..count).map(|_| Err(closed())).collect();
            answer.await.unwrap_or_else(|_| gone())
        })
    }
}
