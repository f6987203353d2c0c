//! Where a queue's source and the writer meet, and what of the queue this process has in hand.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::command::Command;
use crate::broker::delivery::{Delivery, Leases, Lost, Token};
use crate::broker::{Credit, Error, Queue, Trouble};
use crate::message::QueueName;
use crate::time::Timestamp;

/// One queue that this process works.
pub struct Desk {
    /// The queue's name.
    pub name: QueueName,
    /// Its number in the file.
    pub id: i64,
    /// See [`Queue::ordered`].
    ordered: AtomicBool,
    /// See [`Queue::max_crashes`].
    max_crashes: AtomicU32,
    /// Weak: the writer owns the desks, and ends when nobody else can ask it any more.
    commands: mpsc::WeakUnboundedSender<Command>,
    state: Mutex<State>,
    arrived: Notify,
    hands: Mutex<Hands>,
    /// Leases were lost before, and may be among the hands.
    any_lost: AtomicBool,
    trouble: Mutex<Option<Trouble>>,
}

#[derive(Default)]
struct State {
    /// What the `receive` that waits now may be given.
    asked: Option<Credit>,
    /// The writer looks on its behalf; there will be exactly one answer, even where it is gone by then.
    looking: bool,
    inbox: Vec<Delivery>,
    failed: Option<Error>,
    stopped: bool,
}

impl State {
    fn wish(&self) -> Option<Credit> {
        self.asked.filter(|_| !self.looking && !self.stopped && self.inbox.is_empty())
    }
}

type Hands = HashMap<i64, Hand, foldhash::fast::FixedState>;

/// A unit in hand, from claiming it until it is settled or given back.
#[derive(Clone)]
pub struct Hand {
    /// The attempt that it was claimed for.
    pub attempt: u32,
    /// It came from the suspects.
    pub suspect: bool,
    /// When it was due, as `later` says it: where it is given back, it lies there again. 0 in the fresh lane.
    pub due: i64,
    /// Several queues heard its event.
    pub shared: bool,
    /// There is a row of `record` for it.
    pub recorded: bool,
    /// When it was claimed.
    pub claimed: Timestamp,
    /// The lease was lost, and with it the right to settle.
    pub stale: bool,
    /// Given out to who asked for it.
    pub lost: Option<CancellationToken>,
}

impl Desk {
    /// A desk without anything on it.
    pub fn new(queue: &Queue, id: i64, commands: mpsc::WeakUnboundedSender<Command>) -> Self {
        let desk = Self {
            name: queue.name.clone(),
            id,
            ordered: AtomicBool::default(),
            max_crashes: AtomicU32::default(),
            commands,
            state: Mutex::default(),
            arrived: Notify::new(),
            hands: Mutex::new(HashMap::with_hasher(foldhash::fast::FixedState::default())),
            any_lost: AtomicBool::default(),
            trouble: Mutex::default(),
        };
        desk.reopen(queue);
        desk
    }

    /// Whether it is worked in key order.
    pub fn is_ordered(&self) -> bool {
        self.ordered.load(Ordering::Relaxed)
    }

    /// Crashes that condemn.
    pub fn max_crashes(&self) -> i64 {
        i64::from(self.max_crashes.load(Ordering::Relaxed))
    }

    /// Waits for deliveries; see [`Source::receive`](crate::broker::Source::receive).
    ///
    /// # Cancel safety
    /// Dropped, it withdraws its wish; what the writer was already fetching waits in the inbox.
    pub async fn receive(&self, credit: Credit) -> Result<Vec<Delivery>, Error> {
        let _withdraw = Withdraw(self);
        let mut told = false;
        loop {
            let arrived = self.arrived.notified();
            {
                let mut state = self.state.lock();
                if let Some(error) = state.failed.take() {
                    return Err(error);
                }
                if !state.inbox.is_empty() {
                    let count = state.inbox.len().min(credit.jobs.max(1));
                    return Ok(state.inbox.drain(..count).collect());
                }
                if state.stopped {
                    return Ok(Vec::new());
                }
                state.asked = Some(credit);
            }
            if !std::mem::replace(&mut told, true) {
                self.tell(Command::Want);
            }
            arrived.await;
        }
    }

    /// The credit that a source waits with, to look on its behalf: [`Desk::answer`] must follow.
    pub fn take_wish(&self) -> Option<Credit> {
        let mut state = self.state.lock();
        let credit = state.wish()?;
        state.looking = true;
        Some(credit)
    }

    fn tell(&self, command: Command) {
        if let Some(commands) = self.commands.upgrade() {
            // Fails only once the writer has ended, which gave everything back and said so by `fail`.
            let _ = commands.send(command);
        }
    }

    /// The credit of a source that waits and that nobody looks for yet.
    pub fn wish(&self) -> Option<Credit> {
        self.state.lock().wish()
    }

    /// Whether a source waits and nobody looks yet.
    pub fn is_wanted(&self) -> bool {
        self.state.lock().wish().is_some()
    }

    /// Ends a look.
    pub fn answer(&self, found: Vec<Delivery>) {
        let refused = {
            let mut state = self.state.lock();
            state.looking = false;
            if state.stopped {
                found
            } else {
                state.inbox.extend(found);
                if !state.inbox.is_empty() {
                    self.arrived.notify_one();
                }
                Vec::new()
            }
        };
        // Gives back, which takes locks of its own.
        drop(refused);
    }

    /// Nothing will ever arrive any more.
    pub fn fail(&self, error: Error) {
        self.state.lock().failed = Some(error);
        self.arrived.notify_one();
    }

    /// Ends intake; what lies in the inbox is given back.
    pub fn stop(&self) {
        let inbox = {
            let mut state = self.state.lock();
            state.stopped = true;
            std::mem::take(&mut state.inbox)
        };
        drop(inbox);
        self.arrived.notify_one();
    }

    /// Begins intake again: the queue was opened, the last word on its settings counts.
    pub fn reopen(&self, queue: &Queue) {
        self.ordered.store(queue.ordered, Ordering::Relaxed);
        self.max_crashes.store(queue.max_crashes, Ordering::Relaxed);
        self.state.lock().stopped = false;
    }

    /// What is in hand.
    pub fn hands<R>(&self, look: impl FnOnce(&mut Hands) -> R) -> R {
        look(&mut self.hands.lock())
    }

    /// All leases are lost: who runs on is told, and settles in vain.
    pub fn lose_all(&self) {
        self.any_lost.store(true, Ordering::Release);
        self.hands(|hands| {
            for hand in hands.values_mut() {
                hand.stale = true;
                if let Some(lost) = &hand.lost {
                    lost.cancel();
                }
            }
        });
    }

    /// What keeps it from settling now.
    pub fn trouble(&self) -> Option<Trouble> {
        self.trouble.lock().clone()
    }

    /// Sets what [`Desk::trouble`] says.
    pub fn set_trouble(&self, trouble: Option<Trouble>) {
        *self.trouble.lock() = trouble;
    }
}

impl Leases for Desk {
    fn release(&self, token: Token) {
        self.tell(Command::Release { queue: self.id, event: token.0 as i64 });
    }

    fn may_begin(&self, token: Token) -> bool {
        let is_stale = |hands: &mut Hands| hands.get(&(token.0 as i64)).is_some_and(|hand| hand.stale);
        !self.any_lost.load(Ordering::Acquire) || !self.hands(is_stale)
    }

    fn lost(&self, token: Token) -> Lost {
        self.hands(|hands| match hands.get_mut(&(token.0 as i64)) {
            Some(hand) => {
                let lost = hand.lost.get_or_insert_with(CancellationToken::new).clone();
                if hand.stale {
                    lost.cancel();
                }
                lost
            }
            None => {
                let lost = CancellationToken::new();
                lost.cancel();
                lost
            }
        })
    }
}

/// Takes the wish back when a `receive` ends, whichever way.
struct Withdraw<'a>(&'a Desk);

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        self.0.state.lock().asked = None;
    }
}
