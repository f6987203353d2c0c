//! What a consumer owes us: messages that were asked for and have neither come nor been refused. No I/O, no clock.
//!
//! A pull request is answered by messages, which do not say to which request they belong, and ended by a status on
//! its own reply subject, which does. So messages are counted over all open requests, a status closes the one that
//! it names, and what the server leaves unsaid is forgotten when the last request is over. Forgetting is what a
//! reconnect and a new leader ask for too: believing in credit that nobody remembers is how workers stall.

use std::time::Duration;

use crate::seeded;

/// How long the server keeps a pull request. Short, so that a forgotten request is soon replaced, and because a stop
/// has to wait for it: the server knows no way to take a request back.
pub const EXPIRES: Duration = Duration::from_millis(1_000);
/// How often the server says that a request still lives; at most half of [`EXPIRES`].
pub const HEARTBEAT: Duration = Duration::from_millis(450);
/// A consumer that was asked and has not said a word for so long is asked over a new inbox.
pub const SILENCE: Duration = Duration::from_millis(3_000);
/// How long after its end a request that never got its status is held to be over.
const GRACE: Duration = Duration::from_millis(500);

/// A moment, since any fixed one.
pub type Moment = Duration;

/// A pull request to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pull {
    /// The last token of its reply subject.
    pub id: u64,
    /// Messages asked for.
    pub batch: usize,
}

/// How a pull request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its time is over, or it was refused; so many of its messages did not come, where the server says it.
    Over {
        /// `Nats-Pending-Messages`
        unused: Option<usize>,
    },
    /// The server has no room for it (409 Exceeded MaxWaiting): ask again later.
    Refused,
    /// All requests are gone: a new leader, a server that leaves, a consumer that was deleted.
    Lost,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    id: u64,
    batch: usize,
    sent: Moment,
    over: Moment,
}

/// The credit given to one consumer.
#[derive(Debug, Default)]
pub struct Credit {
    open: Vec<Open>,
    outstanding: usize,
    next_id: u64,
    /// When it was first asked since it last said anything.
    asked: Option<Moment>,
    not_before: Moment,
    refusals: u32,
    since: Moment,
    /// A request was held to be over whose end was never told: its messages may still be on their way.
    untold: bool,
}

impl Credit {
    /// Messages that may still come.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Asks for what brings the outstanding credit to `target`, if it is time: at once where nothing is
    /// outstanding, otherwise not in crumbs smaller than a quarter of the target.
    pub fn ask(&mut self, target: usize, now: Moment) -> Option<Pull> {
        let lacking = target.saturating_sub(self.outstanding);
        let crumb = self.outstanding > 0 && lacking < target.div_ceil(4);
        if lacking == 0 || crumb || now < self.not_before {
            return None;
        }
        self.next_id += 1;
        self.asked.get_or_insert(now);
        if self.open.is_empty() && !self.untold {
            self.since = now;
        }
        self.open.push(Open { id: self.next_id, batch: lacking, sent: now, over: now + EXPIRES + GRACE });
        self.outstanding += lacking;
        Some(Pull { id: self.next_id, batch: lacking })
    }

    /// A message came.
    pub fn received(&mut self) {
        self.asked = None;
        self.refusals = 0;
        self.outstanding = self.outstanding.saturating_sub(1);
        if self.outstanding == 0 {
            self.open.clear();
        }
    }

    /// The server said that the request `id` still lives.
    pub fn heartbeat(&mut self, id: u64) {
        self.asked = None;
        if let Some(sent) = self.open.iter().find(|open| open.id == id).map(|open| open.sent) {
            self.heard(sent);
        }
    }

    /// Something came that the server said after `sent`: what comes from now on was sent to us after that, too.
    pub fn heard(&mut self, sent: Moment) {
        if sent > self.since {
            self.since = sent;
            self.untold = false;
        }
    }

    /// The earliest moment at which the server may have sent what comes now. A lease begins then, not when a process
    /// that was frozen, or a slow network, gets round to it.
    pub fn since(&self) -> Moment {
        self.since
    }

    /// A status ended the request `id`.
    pub fn ended(&mut self, id: u64, end: End, now: Moment) {
        self.asked = None;
        if end == End::Lost {
            self.forget();
            return;
        }
        let Some(at) = self.open.iter().position(|open| open.id == id) else { return };
        let open = self.open.remove(at);
        self.heard(open.sent);
        let unused = match end {
            End::Over { unused } => unused.unwrap_or(open.batch),
            End::Refused => {
                self.refusals = (self.refusals + 1).min(6);
                self.not_before = now + Duration::from_millis(50 << self.refusals);
                open.batch
            }
            End::Lost => 0,
        };
        let unused = if seeded::bug("credit-twice") { 2 * unused } else { unused.min(open.batch) };
        self.outstanding -= unused.min(self.outstanding);
        if self.open.is_empty() {
            self.outstanding = 0;
        }
    }

    /// Forgets everything: the connection is a new one, or its answers can no longer reach us.
    pub fn forget(&mut self) {
        self.open.clear();
        self.outstanding = 0;
        self.not_before = Moment::ZERO;
        self.asked = None;
        self.untold = false;
    }

    /// Closes requests whose end was never told. Returns whether the consumer has been silent for too long: then it
    /// must be asked over an inbox that the old requests cannot reach.
    pub fn tick(&mut self, now: Moment) -> bool {
        let before = self.open.len();
        self.open.retain(|open| now < open.over);
        self.untold |= self.open.len() < before;
        if self.open.is_empty() && before > 0 {
            self.outstanding = 0;
        }
        self.asked.is_some_and(|asked| now.saturating_sub(asked) > SILENCE)
    }
}

/// Shares `credit` among consumers. Each has `(work is waiting there, it serves the retry lane)`. Those with work
/// share by their lanes' floors; an idle one keeps a single credit, so that it can say that it is idle no longer:
/// the sum is at most `credit` and one for each consumer.
pub fn share(credit: usize, fresh_floor: usize, retry_floor: usize, consumers: &[(bool, bool)], into: &mut Vec<usize>) {
    into.clear();
    if credit == 0 {
        into.resize(consumers.len(), 0);
        return;
    }
    let count = |busy: bool, retry: bool| consumers.iter().filter(|&&c| c == (busy, retry)).count();
    let (fresh, retry) = (count(true, false), count(true, true));
    let (for_fresh, for_retry) = match (fresh, retry) {
        // Nobody is known to have work: whoever gets some first may have it all.
        (0, 0) => {
            let each = credit.div_ceil(consumers.len().max(1));
            into.extend(consumers.iter().map(|_| each));
            return;
        }
        (_, 0) => (credit, 0),
        (0, _) => (0, credit),
        _ => {
            let retry = (credit / 2).max(retry_floor).min(credit - fresh_floor.min(credit));
            (credit - retry, retry)
        }
    };
    into.extend(consumers.iter().map(|consumer| match consumer {
        (true, false) => (for_fresh / fresh).max(1),
        (true, true) => (for_retry / retry).max(1),
        (false, _) => 1,
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Ask(usize),
        Deliver,
        Expire(usize),
        Refuse(usize),
        Lose,
        Reconnect,
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0usize..40).prop_map(Step::Ask),
            8 => Just(Step::Deliver),
            2 => (0usize..4).prop_map(Step::Expire),
            1 => (0usize..4).prop_map(Step::Refuse),
            1 => Just(Step::Lose),
            1 => Just(Step::Reconnect),
            2 => (0u64..3_000).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Against a server that serves its open requests in turn and tells the end of each: what we believe to be
        /// outstanding is exactly what may still come.
        #[test]
        fn what_is_outstanding_is_what_may_still_come(steps in proptest::collection::vec(step(), 0..200)) {
            let mut credit = Credit::default();
            // The server's side: (id, messages left, expires).
            let mut server: Vec<(u64, usize, Moment)> = Vec::new();
            let mut now = Moment::ZERO;
            for step in steps {
                match step {
                    Step::Ask(target) => {
                        if let Some(pull) = credit.ask(target, now) {
                            prop_assert!(credit.outstanding() <= target);
                            server.push((pull.id, pull.batch, now + EXPIRES));
                        }
                    }
                    Step::Deliver => {
                        if !server.is_empty() {
                            let mut head = server.remove(0);
                            head.1 -= 1;
                            if head.1 > 0 {
                                server.push(head);
                            }
                            credit.received();
                        }
                    }
                    Step::Expire(n) => {
                        if n < server.len() {
                            let (id, left, _) = server.remove(n);
                            credit.ended(id, End::Over { unused: Some(left) }, now);
                        }
                    }
                    Step::Refuse(n) => {
                        // Only a request of which nothing was served yet is refused.
                        let all = |id| credit.open.iter().find(|open| open.id == id).map(|open| open.batch);
                        if n < server.len() && all(server[n].0) == Some(server[n].1) {
                            let (id, _, _) = server.remove(n);
                            credit.ended(id, End::Refused, now);
                        }
                    }
                    Step::Lose => {
                        server.clear();
                        credit.ended(0, End::Lost, now);
                    }
                    Step::Reconnect => {
                        server.clear();
                        credit.forget();
                    }
                    Step::Wait(ms) => {
                        let until = now + Duration::from_millis(ms);
                        // Requests whose time comes end with a status.
                        server.sort_by_key(|open| open.2);
                        while server.first().is_some_and(|open| open.2 <= until) {
                            let (id, left, at) = server.remove(0);
                            credit.ended(id, End::Over { unused: Some(left) }, at);
                        }
                        now = until;
                        credit.tick(now);
                    }
                }
                prop_assert_eq!(credit.outstanding(), server.iter().map(|open| open.1).sum::<usize>());
            }
        }

        /// However late we read: what comes was sent by the server no earlier than [`Credit::since`].
        #[test]
        fn nothing_is_older_than_it_is_held_to_be(steps in proptest::collection::vec(step(), 0..300)) {
            enum Wire { Message, Over(u64, usize) }
            let mut credit = Credit::default();
            let mut server: Vec<(u64, usize, Moment)> = Vec::new();
            let mut pipe: std::collections::VecDeque<(Moment, Wire)> = std::collections::VecDeque::new();
            let mut now = Moment::ZERO;
            for step in steps {
                match step {
                    Step::Ask(target) => {
                        credit.tick(now);
                        if let Some(pull) = credit.ask(target, now) {
                            server.push((pull.id, pull.batch, now + EXPIRES));
                        }
                    }
                    // The server sends ..
                    Step::Deliver | Step::Refuse(_) => {
                        if let Some(head) = server.first_mut() {
                            head.1 -= 1;
                            pipe.push_back((now, Wire::Message));
                            server.retain(|open| open.1 > 0);
                        }
                    }
                    Step::Wait(ms) => {
                        now += Duration::from_millis(ms);
                        for (id, left, at) in server.extract_if(.., |open| open.2 <= now) {
                            pipe.push_back((at, Wire::Over(id, left)));
                        }
                    }
                    // .. and we read, some time.
                    Step::Expire(n) => {
                        for _ in 0..=n * 4 {
                            match pipe.pop_front() {
                                Some((sent, Wire::Message)) => {
                                    prop_assert!(credit.since() <= sent, "{:?} {:?}", credit.since(), sent);
                                    credit.received();
                                }
                                Some((_, Wire::Over(id, left))) => credit.ended(id, End::Over { unused: Some(left) }, now),
                                None => {}
                            }
                        }
                    }
                    Step::Lose => {
                        server.clear();
                        pipe.clear();
                        credit.ended(0, End::Lost, now);
                    }
                    Step::Reconnect => {
                        server.clear();
                        pipe.clear();
                        credit.forget();
                    }
                }
            }
        }

        /// Whatever the server leaves unsaid: after the last request's time the credit is free again.
        #[test]
        fn nothing_is_believed_in_for_ever(asks in proptest::collection::vec(1usize..50, 1..10), served in 0usize..60) {
            let mut credit = Credit::default();
            let mut total = 0;
            for target in asks {
                total += target;
                credit.ask(total, Moment::ZERO);
            }
            for _ in 0..served {
                credit.received();
            }
            credit.tick(EXPIRES + GRACE);
            prop_assert_eq!(credit.outstanding(), 0);
            prop_assert!(credit.ask(1, EXPIRES + GRACE).is_some());
        }

        #[test]
        fn shares_keep_to_the_credit_and_one_each(
            credit in 0usize..200,
            floors in (0usize..60, 0usize..60),
            consumers in proptest::collection::vec((any::<bool>(), any::<bool>()), 1..6),
        ) {
            let mut shares = Vec::new();
            share(credit, floors.0, floors.1, &consumers, &mut shares);
            prop_assert_eq!(shares.len(), consumers.len());
            prop_assert!(shares.iter().sum::<usize>() <= credit + consumers.len());
            prop_assert!(credit == 0 || shares.iter().all(|&share| share > 0));
        }
    }

    #[test]
    fn silence_is_noticed_and_heartbeats_break_it() {
        let mut credit = Credit::default();
        let mut now = Moment::ZERO;
        while now <= SILENCE {
            assert!(!credit.tick(now));
            credit.ask(5, now);
            now += EXPIRES / 2;
        }
        assert!(credit.tick(now), "asked again and again, and never heard");
        credit.heartbeat(1);
        assert!(!credit.tick(now));
    }

    #[test]
    fn a_full_waiting_room_is_asked_again_later() {
        let mut credit = Credit::default();
        let pull = credit.ask(5, Moment::ZERO).expect("nothing is outstanding");
        credit.ended(pull.id, End::Refused, Moment::ZERO);
        assert_eq!(credit.ask(5, Duration::from_millis(1)), None);
        assert!(credit.ask(5, Duration::from_secs(4)).is_some());
    }

    #[test]
    fn lanes_with_work_get_their_floors() {
        let mut shares = Vec::new();
        share(64, 16, 16, &[(true, false), (true, true)], &mut shares);
        assert_eq!(shares, [32, 32]);
        share(64, 60, 1, &[(true, false), (true, true)], &mut shares);
        assert_eq!(shares, [60, 4]);
        share(64, 16, 16, &[(true, false), (false, true)], &mut shares);
        assert_eq!(shares, [64, 1]);
    }
}
