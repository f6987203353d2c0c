//! Which acknowledgements are on their way, and what a reply to one of them proves. No I/O, no clock.
//!
//! A plain acknowledgement is fire and forget; one with a reply subject is answered once the server has stored it.
//! One by one, each asks for its own reply: whatever happens, a reply proves the one it answers. In groups, all but
//! the last are plain and the reply to the last is taken for all, which holds on a single server under these
//! conditions only:
//! 1. the number of connections made so far is read before the first of the group is sent;
//! 2. each message of the group was received on that very connection;
//! 3. all go through one client, the one with the reply last;
//! 4. the reply carries no status;
//! 5. the number of connections is still the same after the reply;
//! 6. no consumer was made anew and no permission denied meanwhile (the caller then calls [`Confirm::doubt`]).
//!
//! A group that breaks one of them proves nothing, not even its last: every member is asked for again, alone.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::credit::Moment;

/// Acknowledgements in flight, one by one.
pub const SINGLES: usize = 256;
/// Members of a group.
pub const GROUP: usize = 64;
/// Groups in flight.
pub const GROUPS: usize = 16;
/// How long a reply is waited for before the acknowledgement is sent again.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// An acknowledgement to be confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item<T> {
    /// Names the delivery.
    pub token: T,
    /// The connection that the delivery was received on, by its number.
    pub epoch: u64,
    /// Must have a reply of its own.
    pub alone: bool,
}

/// What is to be sent: `items` in this order, the last with a reply subject that ends in `ticket`.
#[derive(Debug, PartialEq, Eq)]
pub struct Flight<'a, T> {
    /// Names the flight in the reply subject.
    pub ticket: u64,
    /// At least one.
    pub items: &'a [Item<T>],
}

struct Flying<T> {
    items: Vec<Item<T>>,
    epoch: u64,
    since: Moment,
    grouped: bool,
    doubted: bool,
}

/// Acknowledgements waiting and in flight.
pub struct Confirm<T> {
    grouping: bool,
    waiting: VecDeque<Item<T>>,
    flying: HashMap<u64, Flying<T>, foldhash::fast::FixedState>,
    groups: usize,
    singles: usize,
    next: u64,
    looked: (u64, Moment),
}

/// What a reply, or its absence, means for the members of a flight.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict<T> {
    /// Each is stored.
    Confirmed(Vec<Item<T>>),
    /// Nothing is known of any: offer them again or give them up. They are marked to go alone.
    Unknown(Vec<Item<T>>),
}

impl<T> Confirm<T> {
    /// One by one, until [`Confirm::set_grouping`] says otherwise.
    pub fn new() -> Self {
        let flying = HashMap::with_hasher(foldhash::fast::FixedState::default());
        Self {
            grouping: false,
            waiting: VecDeque::new(),
            flying,
            groups: 0,
            singles: 0,
            next: 0,
            looked: (0, Moment::ZERO),
        }
    }

    /// Whether groups may be made: a single server, and we are its client.
    pub fn set_grouping(&mut self, grouping: bool) {
        self.grouping = grouping;
    }

    /// Nothing waits or is in flight.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.flying.is_empty()
    }

    /// Adds one to what waits.
    pub fn offer(&mut self, item: Item<T>) {
        self.waiting.push_back(item);
    }

    /// What to send next on the connection `epoch`, if there is something and room for it. While a group is in flight
    /// no smaller one than [`GROUP`] follows: its answer is near, and answers are what groups are to save.
    pub fn next(&mut self, epoch: u64, now: Moment) -> Option<Flight<'_, T>> {
        let first = self.waiting.front()?;
        let single = !self.grouping || first.alone || first.epoch != epoch;
        let mut items = Vec::with_capacity(if single { 1 } else { GROUP.min(self.waiting.len()) });
        if single {
            if self.singles >= SINGLES {
                return None;
            }
            self.singles += 1;
            items.extend(self.waiting.pop_front());
        } else {
            if self.groups >= GROUPS || self.groups > 0 && self.waiting.len() < GROUP {
                return None;
            }
            self.groups += 1;
            while items.len() < GROUP && self.waiting.front().is_some_and(|i| !i.alone && i.epoch == epoch) {
                items.extend(self.waiting.pop_front());
            }
        }
        self.next += 1;
        let flying = Flying { items, epoch, since: now, grouped: !single, doubted: false };
        let flying = self.flying.entry(self.next).insert_entry(flying).into_mut();
        Some(Flight { ticket: self.next, items: &flying.items })
    }

    /// When a flight that is still on its way was sent.
    pub fn sent(&self, ticket: u64) -> Option<Moment> {
        self.flying.get(&ticket).map(|flying| flying.since)
    }

    /// The reply to `ticket` came. `status`: it carried one, which says that nobody stored anything. `epoch`: the
    /// number of connections made by now. `None`: a flight that was landed already.
    pub fn replied(&mut self, ticket: u64, status: bool, epoch: u64) -> Option<Verdict<T>> {
        let flying = self.land(ticket)?;
        let sound = flying.items.len() == 1 || (flying.epoch == epoch && !flying.doubted);
        Some(if sound && !status { Verdict::Confirmed(flying.items) } else { Verdict::Unknown(alone(flying.items)) })
    }

    /// Flights whose reply is overdue, and all of an older connection than `epoch`: nothing is known of them.
    /// Looks at each only now and then.
    pub fn overdue(&mut self, epoch: u64, now: Moment) -> Vec<Item<T>> {
        if self.looked.0 == epoch && now < self.looked.1 + PATIENCE / 20 {
            return Vec::new();
        }
        self.looked = (epoch, now);
        let late = |flying: &Flying<T>| flying.epoch != epoch || now >= flying.since + PATIENCE;
        let mut tickets: Vec<u64> = self.flying.iter().filter(|(_, f)| late(f)).map(|(&ticket, _)| ticket).collect();
        tickets.sort_unstable();
        tickets.into_iter().filter_map(|ticket| self.land(ticket)).flat_map(|flying| alone(flying.items)).collect()
    }

    /// A consumer was made anew or a permission denied: groups in flight prove nothing any more.
    pub fn doubt(&mut self) {
        self.flying.values_mut().for_each(|flying| flying.doubted = true);
    }

    /// Whether anything is in flight.
    pub fn flying(&self) -> bool {
        !self.flying.is_empty()
    }

    fn land(&mut self, ticket: u64) -> Option<Flying<T>> {
        let flying = self.flying.remove(&ticket)?;
        if flying.grouped {
            self.groups -= 1;
        } else {
            self.singles -= 1;
        }
        Some(flying)
    }
}

fn alone<T>(mut items: Vec<Item<T>>) -> Vec<Item<T>> {
    items.iter_mut().for_each(|item| item.alone = true);
    items
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A server on which acknowledgements may vanish: what it has stored, and replies on their way.
    #[derive(Default)]
    struct Server {
        stored: std::collections::HashSet<u32>,
        replies: VecDeque<(u64, bool)>,
    }

    #[derive(Clone, Debug)]
    enum Step {
        Offer(u32),
        Send,
        /// The connection is cut while this many acknowledgements of the next flight have been written.
        CutAfter(usize),
        Reply,
        LoseReply,
        Wait,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (1u32..90).prop_map(Step::Offer),
            5 => Just(Step::Send),
            1 => (0usize..70).prop_map(Step::CutAfter),
            5 => Just(Step::Reply),
            1 => Just(Step::LoseReply),
            1 => Just(Step::Wait),
        ]
    }

    /// Runs the steps and returns what was counted as confirmed without being stored. `naive`: without condition 5.
    fn unsound(steps: &[Step], naive: bool) -> Vec<u32> {
        let (mut confirm, mut server) = (Confirm::new(), Server::default());
        confirm.set_grouping(true);
        let (mut epoch, mut now, mut token) = (1u64, Moment::ZERO, 0u32);
        let mut wrong = Vec::new();
        for step in steps {
            match step {
                Step::Offer(n) => {
                    for _ in 0..*n {
                        confirm.offer(Item { token, epoch, alone: false });
                        token += 1;
                    }
                }
                Step::Send => {
                    while let Some(flight) = confirm.next(epoch, now) {
                        server.stored.extend(flight.items.iter().map(|item| item.token));
                        server.replies.push_back((flight.ticket, false));
                    }
                }
                Step::CutAfter(written) => {
                    // What was queued goes out on the new connection: the tail of the flight, the one with the
                    // reply among it. That is how half a group disappears.
                    server.replies.clear();
                    if let Some(flight) = confirm.next(epoch, now) {
                        server.stored.extend(flight.items.iter().skip(*written).map(|item| item.token));
                        if *written < flight.items.len() {
                            server.replies.push_back((flight.ticket, false));
                        }
                    }
                    epoch += 1;
                }
                Step::Reply => {
                    if let Some((ticket, status)) = server.replies.pop_front() {
                        let seen = if naive { epoch_of(&confirm, ticket).unwrap_or(epoch) } else { epoch };
                        match confirm.replied(ticket, status, seen) {
                            Some(Verdict::Confirmed(items)) => {
                                wrong.extend(items.iter().map(|i| i.token).filter(|t| !server.stored.contains(t)));
                            }
                            Some(Verdict::Unknown(items)) => items.into_iter().for_each(|item| confirm.offer(item)),
                            None => {}
                        }
                    }
                }
                Step::LoseReply => {
                    server.replies.pop_front();
                }
                Step::Wait => {
                    now += PATIENCE;
                    for item in confirm.overdue(epoch, now) {
                        confirm.offer(item);
                    }
                }
            }
        }
        wrong
    }

    fn epoch_of(confirm: &Confirm<u32>, ticket: u64) -> Option<u64> {
        confirm.flying.get(&ticket).map(|flying| flying.epoch)
    }

    proptest! {
        #[test]
        fn what_counts_as_confirmed_is_stored(steps in proptest::collection::vec(step(), 0..60)) {
            prop_assert_eq!(unsound(&steps, false), Vec::<u32>::new());
        }

        /// Everything offered is confirmed in the end, once the server answers.
        #[test]
        fn nothing_is_forgotten(offers in proptest::collection::vec((any::<bool>(), 1u64..3), 1..400), grouping in any::<bool>()) {
            let mut confirm = Confirm::new();
            confirm.set_grouping(grouping);
            for (token, &(alone, epoch)) in offers.iter().enumerate() {
                confirm.offer(Item { token, epoch, alone });
            }
            let (mut now, mut done, mut round) = (Moment::ZERO, Vec::new(), 0);
            while !confirm.is_empty() {
                round += 1;
                let (mut tickets, mut waiting) = (Vec::new(), 0);
                while let Some(flight) = confirm.next(2, now) {
                    waiting += flight.items.len();
                    prop_assert!(flight.items.len() <= GROUP);
                    tickets.push(flight.ticket);
                }
                prop_assert!(waiting <= SINGLES + GROUPS * GROUP);
                // Every second round nobody answers.
                if round % 2 == 0 {
                    for ticket in tickets {
                        if let Some(Verdict::Confirmed(items)) = confirm.replied(ticket, false, 2) {
                            done.extend(items.into_iter().map(|item| item.token));
                        }
                    }
                } else {
                    now += PATIENCE;
                    confirm.overdue(2, now).into_iter().for_each(|item| confirm.offer(item));
                }
            }
            done.sort_unstable();
            prop_assert_eq!(done, (0..offers.len()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_naive_rule_is_caught_by_the_same_model() {
        let steps = [Step::Offer(10), Step::CutAfter(4), Step::Reply];
        assert_eq!(unsound(&steps, true), [0, 1, 2, 3]);
        assert_eq!(unsound(&steps, false), Vec::<u32>::new());
    }

    #[test]
    fn while_a_group_is_in_flight_the_next_is_filled() {
        let mut confirm = Confirm::new();
        confirm.set_grouping(true);
        let offer = |confirm: &mut Confirm<usize>, count| {
            (0..count).for_each(|token| confirm.offer(Item { token, epoch: 1, alone: false }));
        };
        let sent = |confirm: &mut Confirm<usize>| confirm.next(1, Moment::ZERO).map(|f| (f.ticket, f.items.len()));
        offer(&mut confirm, 3);
        assert_eq!(sent(&mut confirm), Some((1, 3)), "nothing is in flight: at once");
        offer(&mut confirm, GROUP - 1);
        assert_eq!(sent(&mut confirm), None);
        offer(&mut confirm, 2);
        assert_eq!(sent(&mut confirm), Some((2, GROUP)));
        assert_eq!(sent(&mut confirm), None);
        confirm.replied(1, false, 1);
        confirm.replied(2, false, 1);
        assert_eq!(sent(&mut confirm), Some((3, 1)));
    }

    #[test]
    fn a_status_or_a_doubt_proves_nothing() {
        let mut confirm = Confirm::new();
        confirm.set_grouping(true);
        for (status, doubt) in [(true, false), (false, true)] {
            for token in 0..3 {
                confirm.offer(Item { token, epoch: 1, alone: false });
            }
            let flight = confirm.next(1, Moment::ZERO).expect("three wait");
            assert_eq!(flight.items.len(), 3);
            let ticket = flight.ticket;
            if doubt {
                confirm.doubt();
            }
            let Some(Verdict::Unknown(items)) = confirm.replied(ticket, status, 1) else { panic!("confirmed") };
            assert!(items.iter().all(|item| item.alone));
        }
    }
}
