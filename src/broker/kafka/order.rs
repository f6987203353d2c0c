//! Key order: of the records with one key, one at a time and in the order of the log.
//!
//! A [`Gate`] belongs to one partition. A key is busy from the moment its first record passes until nobody waits for
//! it any more; a record whose key is busy is parked behind it. A retry keeps its key busy, a dead letter lets it go.
//! Keys are told apart by a hash of 64 bits: two that share it are in one order, which breaks neither's.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::hash::BuildHasher;

use foldhash::fast::RandomState;

/// Records parked behind the one of their key that is on its way.
#[derive(Debug)]
pub struct Gate<T> {
    lines: HashMap<Key, VecDeque<T>, RandomState>,
    parked: usize,
}

/// A key, as one gate knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u64);

impl<T> Default for Gate<T> {
    fn default() -> Self {
        Self { lines: HashMap::default(), parked: 0 }
    }
}

impl<T> Gate<T> {
    /// What these bytes are to this gate.
    pub fn key(&self, bytes: &[u8]) -> Key {
        Key(self.lines.hasher().hash_one(bytes))
    }

    /// Lets `item` pass where nothing of its key is on its way; else parks it.
    pub fn enter(&mut self, key: Key, item: T) -> Option<T> {
        match self.lines.entry(key) {
            Entry::Occupied(mut line) => {
                line.get_mut().push_back(item);
                self.parked += 1;
                None
            }
            Entry::Vacant(line) => {
                line.insert(VecDeque::new());
                Some(item)
            }
        }
    }

    /// The one of this key that was on its way is through: the next one of it passes, if one is parked.
    pub fn leave(&mut self, key: Key) -> Option<T> {
        let Entry::Occupied(mut line) = self.lines.entry(key) else { return None };
        let next = line.get_mut().pop_front();
        match next {
            Some(_) => self.parked -= 1,
            None => drop(line.remove()),
        }
        next
    }

    /// Forgets the parked ones.
    pub fn clear(&mut self) -> impl Iterator<Item = T> {
        self.parked = 0;
        std::mem::take(&mut self.lines).into_values().flatten()
    }

    /// How many are parked.
    pub fn parked(&self) -> usize {
        self.parked
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn one_of_a_key_at_a_time_in_order_and_none_forgotten(
            keys in proptest::collection::vec(0u8..5, 0..80),
            picks in proptest::collection::vec(any::<usize>(), 0..400),
        ) {
            let mut gate = Gate::default();
            let mut input = keys.iter().copied().enumerate().collect::<VecDeque<_>>();
            let mut running: Vec<(usize, u8)> = Vec::new();
            let mut order: Vec<(usize, u8)> = Vec::new();
            let mut picks = picks.into_iter();
            loop {
                let pick = picks.next().unwrap_or(0);
                if pick % 2 == 0 && !input.is_empty() {
                    let (at, key) = input.pop_front().expect("not empty");
                    if let Some(passed) = gate.enter(gate.key(&[key]), (at, key)) {
                        running.push(passed);
                        order.push(passed);
                    }
                } else if !running.is_empty() {
                    let (_, key) = running.swap_remove(pick % running.len());
                    if let Some(passed) = gate.leave(gate.key(&[key])) {
                        running.push(passed);
                        order.push(passed);
                    }
                } else if input.is_empty() {
                    break;
                }
                let mut busy: Vec<u8> = running.iter().map(|(_, key)| *key).collect();
                busy.sort_unstable();
                let before = busy.len();
                busy.dedup();
                prop_assert_eq!(before, busy.len(), "two of one key at once");
                prop_assert_eq!(gate.parked(), keys.len() - input.len() - order.len());
            }
            prop_assert_eq!(order.len(), keys.len(), "all passed");
            for key in 0..5 {
                let of_key: Vec<usize> = order.iter().filter(|(_, k)| *k == key).map(|(at, _)| *at).collect();
                prop_assert!(of_key.is_sorted(), "in order");
            }
            prop_assert!(gate.lines.is_empty(), "no key is kept");
        }
    }
}
