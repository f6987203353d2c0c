//! The commit: what is pending becomes one transaction, and whoever waits is answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::claim::{self, Candidate};
use super::command::{Item, Mark};
use super::deliver::join;
use super::desk::{Desk, Hand};
use super::publish;
use super::script::{Answer, Script, int, rollback};
use super::settle::{self, guard};
use super::writer::{BACKOFF, Writer};
use super::{fault, stored};
use crate::broker::{Credit, Destination, Disposition, Error, Published, Settled, Trouble};
use crate::time::Timestamp;

/// Messages that one transaction stores at most, and their bytes.
const POSTS: usize = 512;
const POST_BYTES: usize = 16 * 1_024 * 1_024;
/// What a transaction is to contain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Everything,
    Settlements,
    DeadLetters,
    Posts,
    Claims,
}

impl Part {
    fn has(self, part: Part) -> bool {
        self == Part::Everything || self == part
    }
}

/// Why a transaction was not committed.
enum Failure {
    /// A guard did not hold; it was seen to, and trying again makes sense at once.
    Moved,
    /// SQLite refused.
    Sqlite(sqlx::Error),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Sqlite(error)
    }
}
impl Writer {
    /// Does what is pending, all at once; after a failure part by part.
    pub(super) async fn commit(&mut self) {
        self.retry_at = None;
        self.linger_until = None;
        let mut failed = None;
        if self.cautious {
            for part in [Part::Settlements, Part::DeadLetters, Part::Posts, Part::Claims] {
                if let Err(error) = self.attempt(part).await {
                    failed = Some(error);
                }
            }
        } else if let Err(error) = self.attempt(Part::Everything).await {
            failed = Some(error);
        }
        match failed {
            None => {
                self.backoff = BACKOFF.0;
                self.cautious = false;
                self.connected.store(true, Ordering::Relaxed);
            }
            Some(error) => {
                if fault::is_full(&error) || !fault::is_busy(&error) {
                    self.connected.store(false, Ordering::Relaxed);
                }
                self.cautious = true;
                self.fail_overdue(&error);
                self.retry_at = Some(Instant::now() + self.backoff);
                self.backoff = (self.backoff * 2).min(BACKOFF.1);
            }
        }
    }

    /// One part, until no guard moves under it. Trouble is shown at the desks it concerns.
    async fn attempt(&mut self, part: Part) -> Result<(), sqlx::Error> {
        let result = loop {
            match self.transact(part).await {
                Ok(()) => break Ok(()),
                Err(Failure::Moved) => {}
                Err(Failure::Sqlite(error)) => break Err(error),
            }
        };
        let said = result.as_ref().err().map(|error| fault::explain(error, &self.path).to_string());
        for station in self.stations.values() {
            let waits = |item: &Item| item.desk.id == station.desk.id && is_dead(&item.disposition);
            let trouble = match &said {
                Some(said) if self.pending.items.iter().any(waits) => Some(Trouble::DeadLetter(said.clone())),
                Some(said) if part != Part::Posts => Some(Trouble::Broker(said.clone())),
                Some(_) => continue,
                None if part == Part::Posts || self.pending.items.iter().any(waits) => continue,
                None => None,
            };
            station.desk.set_trouble(trouble);
        }
        result
    }

    async fn transact(&mut self, part: Part) -> Result<(), Failure> {
        let now = self.clock.now();
        if part.has(Part::Settlements) || part.has(Part::DeadLetters) {
            self.settle_stale(part).await?;
        }
        if self.makes_work(part) {
            self.stir();
        }
        let mut script = Script::begin();
        let mut guarded = false;
        if let Some(worker) = self.worker {
            guarded = self.write_settlements(&mut script, part, worker);
        }
        let posts = if part.has(Part::Posts) { self.write_posts(&mut script, now).await? } else { Posted::default() };
        let looks = if part.has(Part::Claims) { self.write_looks(&mut script, guarded, now) } else { Vec::new() };
        if !guarded && posts.results.is_empty() && looks.is_empty() {
            return Ok(());
        }
        let (claimed, first) = match self.carry_out(script, &looks, posts.numbered).await {
            Ok(done) => done,
            Err(error) => {
                rollback(&mut self.connection).await;
                for (desk, _, _) in looks {
                    desk.answer(Vec::new());
                }
                self.stir();
                return Err(self.see_to_guards(error).await);
            }
        };
        // From here on it is stored; nothing below can fail.
        self.settled(part);
        self.posted(posts, first);
        for (desk, chosen, now) in claimed {
            let deliveries = self.deliver(&desk, chosen, now);
            desk.answer(deliveries);
        }
        Ok(())
    }

    /// Whether what is about to be stored may be claimed at once: the looks of the same transaction see it.
    fn makes_work(&self, part: Part) -> bool {
        let again = |item: &Item| self.directory.is_ordered(item.desk.id) || item.disposition != Disposition::Ack;
        (part.has(Part::Posts) && !self.pending.posts.is_empty())
            || (part.has(Part::Settlements) && !self.pending.released.is_empty())
            || self.pending.items.iter().any(|item| part.has(part_of(&item.disposition)) && again(item))
    }

    /// Says settlements, marks and releases; whether there were any.
    fn write_settlements(&self, script: &mut Script, part: Part, worker: i64) -> bool {
        let mut batches: BTreeMap<i64, (Arc<Desk>, settle::Batch)> = BTreeMap::new();
        let mut batch_of = |desk: &Arc<Desk>, add: &mut dyn FnMut(&mut settle::Batch)| {
            add(&mut batches.entry(desk.id).or_insert_with(|| (desk.clone(), settle::Batch::default())).1);
        };
        for item in self.pending.items.iter().filter(|item| part.has(part_of(&item.disposition))) {
            let Some(hand) = owned(&item.desk, item.delivery.token.0 as i64) else { continue };
            batch_of(&item.desk, &mut |batch| {
                batch.push(&item.delivery, &item.disposition, &hand, self.directory.salt)
            });
        }
        if part.has(Part::Settlements) {
            for (queue, event) in &self.pending.released {
                let Some(station) = self.stations.get(queue) else { continue };
                if owned(&station.desk, *event).is_some() {
                    batch_of(&station.desk, &mut |batch| batch.release(*event));
                }
            }
        }
        let marks = part.has(Part::Settlements) && !self.pending.marks.is_empty();
        if batches.is_empty() && !marks {
            return false;
        }
        guard(script, worker, self.directory.generation);
        if marks {
            for Mark { desk, events, .. } in &self.pending.marks {
                let mut events = events.clone();
                let update = "UPDATE running SET started = 1 WHERE owner = ? AND queue = ?";
                settle::among(script, update, "event", &mut events, |script| {
                    script.bind(worker).bind(desk.id);
                });
            }
        }
        for (desk, batch) in batches.values() {
            batch.write(script, worker, desk.id, self.directory.is_ordered(desk.id));
        }
        true
    }

    /// What was said is stored: hands are empty, whoever waits is told.
    fn settled(&mut self, part: Part) {
        if self.worker.is_none() {
            return;
        }
        self.pending.items.retain(|item| {
            if !part.has(part_of(&item.disposition)) {
                return true;
            }
            item.desk.hands(|hands| hands.remove(&(item.delivery.token.0 as i64)));
            item.ticket.put(item.index, Settled::Stored);
            false
        });
        if part.has(Part::Settlements) {
            for (queue, event) in self.pending.released.drain(..) {
                if let Some(station) = self.stations.get(&queue) {
                    station.desk.hands(|hands| hands.remove(&event));
                }
            }
            for Mark { desk, events, reply } in self.pending.marks.drain(..) {
                let held = events.iter().map(|event| owned(&desk, *event).is_some()).collect();
                // A worker that is leaving may not wait for it.
                let _ = reply.send(held);
            }
        }
    }

    /// Settlements whose lease was lost: nothing is changed, but a success ends a job that nobody has in hand.
    async fn settle_stale(&mut self, part: Part) -> Result<(), sqlx::Error> {
        let is_stale = |item: &Item| {
            part.has(part_of(&item.disposition)) && owned(&item.desk, item.delivery.token.0 as i64).is_none()
        };
        if self.pending.items.iter().any(is_stale) {
            let due = |item: &Item| item.desk.hands(|hands| hands.get(&(item.delivery.token.0 as i64)).map(|h| h.due));
            let late: Vec<(Arc<Desk>, i64, u32, Option<i64>)> = self
                .pending
                .items
                .iter()
                .filter(|item| is_stale(item) && item.disposition == Disposition::Ack)
                .map(|item| (item.desk.clone(), item.delivery.token.0 as i64, item.delivery.attempt().get(), due(item)))
                .collect();
            // What this process ran to its end it may claim again.
            self.stir();
            for (desk, event, attempt, due) in late {
                self.end_late(&desk, event, attempt, due.unwrap_or(0)).await?;
            }
            self.pending.items.retain(|item| {
                if !is_stale(item) {
                    return true;
                }
                item.desk.hands(|hands| hands.remove(&(item.delivery.token.0 as i64)));
                item.ticket.put(item.index, Settled::Stale);
                false
            });
        }
        if part.has(Part::Settlements) {
            let stations = &mut self.stations;
            self.pending.released.retain(|(queue, event)| {
                let Some(station) = stations.get_mut(queue) else { return false };
                let keep = owned(&station.desk, *event).is_some();
                if !keep {
                    station.dirty = true;
                    station.desk.hands(|hands| hands.remove(event));
                }
                keep
            });
        }
        Ok(())
    }

    /// A success that came too late: the job ends where it waits for the very same attempt, which is where it was
    /// given back to. It is looked for nowhere else, however many wait.
    async fn end_late(&mut self, desk: &Desk, event: i64, attempt: u32, due: i64) -> Result<(), sqlx::Error> {
        let mut script = Script::begin();
        script.add(
            "SELECT (SELECT data FROM record WHERE event = ?1 AND queue = ?2), \
             EXISTS (SELECT 1 FROM fresh WHERE queue = ?2 AND event = ?1), \
             EXISTS (SELECT 1 FROM later WHERE queue = ?2 AND class IN (0, 1) AND due = ?3 AND event = ?1)",
        );
        script.bind(event).bind(desk.id).bind(due);
        let answers = match script.run(&mut self.connection).await {
            Ok(answers) => answers,
            Err(error) => {
                rollback(&mut self.connection).await;
                return Err(error);
            }
        };
        let row = &answers[1].rows[0];
        let waits_for = super::script::text_or_null(row, 0).map_or(1, |data| stored::read(&data).attempt.get());
        let waits = int(row, 1) == 1 || int(row, 2) == 1;
        let mut script = Script::default();
        if waits && waits_for == attempt {
            let list = super::script::json_list([event]);
            for table in ["fresh", "record"] {
                script.add(&format!("DELETE FROM {table} WHERE queue = ? AND event = ?"));
                script.bind(desk.id).bind(event);
            }
            script.add("DELETE FROM later WHERE queue = ? AND class IN (0, 1) AND due = ? AND event = ?");
            script.bind(desk.id).bind(due).bind(event);
            settle::unshare(&mut script, &list);
            settle::next_heads(&mut script, desk.id, &list);
        }
        let result = script.run_whole(&mut self.connection).await;
        result.map(|_| ())
    }

    async fn write_posts(&mut self, script: &mut Script, now: Timestamp) -> Result<Posted, sqlx::Error> {
        let mut posted = Posted::default();
        if self.pending.posts.is_empty() {
            return Ok(posted);
        }
        // A queue or topic that was made known meanwhile may be the one that hears.
        let unknown = |writer: &Self| {
            let mut all = writer.pending.posts.iter().flat_map(|post| &post.batch);
            all.any(|publication| writer.directory.route(publication).is_err())
        };
        if unknown(self) {
            self.reload().await?;
        }
        let mut batch = publish::Batch::default();
        let (mut count, mut bytes) = (0, 0);
        for post in &self.pending.posts {
            if count > 0 && (count + post.batch.len() > POSTS || bytes > POST_BYTES) {
                break;
            }
            count += post.batch.len();
            bytes += post.batch.iter().map(|publication| publication.message.size()).sum::<usize>();
            let results = post.batch.iter().map(|publication| {
                let route = self.directory.route(publication)?;
                let place = batch.push(publication, &route, now);
                Ok((Published { queues: Some(route.queues()), id: None }, place))
            });
            posted.results.push(results.collect());
        }
        if !batch.is_empty() {
            script.add("SELECT json('queues have changed') FROM meta WHERE generation <> ?");
            script.bind(self.directory.generation);
            posted.numbered = batch.write(script, now);
        }
        Ok(posted)
    }

    /// `first`: the number of the first message of the transaction.
    fn posted(&mut self, posted: Posted, first: Option<i64>) {
        for results in posted.results {
            let post = self.pending.posts.pop_front().expect("a result was made for each");
            let results = results.into_iter().zip(&post.batch).map(|(result, publication)| {
                let (mut published, place) = result?;
                if let (Destination::Topic(topic), Some(first), Some(place)) = (&publication.destination, first, place)
                {
                    published.id = Some(format!("sqlite:{topic}:{}", first + place));
                }
                Ok(published)
            });
            let results = results.collect();
            // A publisher that was dropped does not want to know.
            let _ = post.reply.send(results);
        }
    }

    /// Ends the tries of publishers whose time is over.
    fn fail_overdue(&mut self, error: &sqlx::Error) {
        let now = Instant::now();
        for _ in 0..self.pending.posts.len() {
            let Some(post) = self.pending.posts.pop_front() else { break };
            if post.deadline > now {
                self.pending.posts.push_back(post);
                continue;
            }
            let failures = post.batch.iter().map(|_| Err(fault::explain(error, &self.path))).collect();
            // A publisher that was dropped does not want to know.
            let _ = post.reply.send(failures);
        }
    }

    fn write_looks(&mut self, script: &mut Script, guarded: bool, now: Timestamp) -> Vec<Looking> {
        let Some(worker) = self.worker else { return Vec::new() };
        let mut looks = Vec::new();
        for station in self.stations.values_mut().filter(|station| station.dirty) {
            let Some(credit) = station.desk.take_wish() else { continue };
            if looks.is_empty() && !guarded {
                guard(script, worker, self.directory.generation);
            }
            station.dirty = false;
            station.shy = !credit.suspect;
            let skipped = station.desk.hands(|hands| hands.values().filter(|hand| hand.stale).count());
            let look = claim::look(script, &station.desk, &credit, skipped, now.as_millis());
            looks.push((station.desk.clone(), credit, look));
        }
        looks
    }

    /// Sends the script; where it looks, chooses and claims in a second trip before the commit. Gives what the
    /// statement `numbered` answered, too.
    async fn carry_out(
        &mut self,
        mut script: Script,
        looks: &[Looking],
        numbered: Option<usize>,
    ) -> Result<(Vec<Claimed>, Option<i64>), sqlx::Error> {
        let number = |answers: &[Answer]| numbered.map(|statement| int(&answers[statement].rows[0], 0));
        if looks.is_empty() {
            script.commit();
            let answers = script.run(&mut self.connection).await?;
            return Ok((Vec::new(), number(&answers)));
        }
        let worker = self.worker.expect("who looks is a worker");
        let answers = script.run(&mut self.connection).await?;
        let first = number(&answers);
        let now = self.clock.now();
        let mut claims = Script::default();
        let mut claimed = Vec::with_capacity(looks.len());
        for (desk, credit, look) in looks {
            let mut found = look.read(&answers, credit, now.as_millis());
            let joined = join(desk, &mut found);
            let mut chosen = claim::choose(&mut found, credit);
            let station = self.stations.get_mut(&desk.id).expect("a look has a station");
            station.dirty = found.more;
            station.next_due = found.next_due;
            if !joined.is_empty() {
                claim::take(&mut claims, worker, desk, &joined);
            }
            if !chosen.is_empty() {
                let large = claim::fetch_large(&mut claims, &chosen);
                if let Some(statement) = large {
                    let mut fetch = std::mem::take(&mut claims);
                    claim::take(&mut fetch, worker, desk, &chosen);
                    let answers = fetch.run(&mut self.connection).await?;
                    claim::fill_large(&mut chosen, &answers[statement].rows);
                } else {
                    claim::take(&mut claims, worker, desk, &chosen);
                }
            }
            claimed.push((desk.clone(), chosen, joined, now));
        }
        claims.commit();
        claims.run(&mut self.connection).await?;
        let joined = claimed.into_iter().map(|(desk, chosen, joined, now)| {
            desk.hands(|hands| {
                for candidate in joined {
                    if let Some(hand) = hands.get_mut(&candidate.event) {
                        hand.recorded |= candidate.recorded;
                        hand.stale = false;
                    }
                }
            });
            (desk, chosen, now)
        });
        Ok((joined.collect(), first))
    }

    /// A script failed: was it a guard, and which one?
    async fn see_to_guards(&mut self, error: sqlx::Error) -> Failure {
        if fault::code(&error) != Some(fault::ERROR) {
            return Failure::Sqlite(error);
        }
        let before = self.directory.generation;
        if let Err(error) = self.reload().await {
            return Failure::Sqlite(error);
        }
        let lost = match self.is_registered().await {
            Ok(registered) => !registered,
            Err(error) => return Failure::Sqlite(error),
        };
        if lost && let Err(error) = self.lost_everything().await {
            return Failure::Sqlite(error);
        }
        if lost || self.directory.generation != before { Failure::Moved } else { Failure::Sqlite(error) }
    }
}

type Looking = (Arc<Desk>, Credit, claim::Look);
type Claimed = (Arc<Desk>, Vec<Candidate>, Timestamp);

/// With its place among the messages of the transaction.
type Placed = Result<(Published, Option<i64>), Error>;

#[derive(Default)]
struct Posted {
    /// Of each post.
    results: Vec<Vec<Placed>>,
    /// The statement that answers with the number of the first.
    numbered: Option<usize>,
}

fn part_of(disposition: &Disposition) -> Part {
    if is_dead(disposition) { Part::DeadLetters } else { Part::Settlements }
}

fn is_dead(disposition: &Disposition) -> bool {
    matches!(disposition, Disposition::DeadLetter { .. })
}

/// The hand that still owns this event.
fn owned(desk: &Desk, event: i64) -> Option<Hand> {
    desk.hands(|hands| hands.get(&event).filter(|hand| !hand.stale).cloned())
}
