//! Where records are copied to: buffers that many of them share, and that are used again once nobody refers to them.
//!
//! Records are let go nearly in the order in which they came, so only the buffer that was filled first is looked at. One
//! that something long holds on to is left to it when too many have gathered behind.

use std::collections::VecDeque;

use crate::message::headers::Builder;

/// Bytes of a buffer: large enough to be rare, small enough that a job which runs for long does not pin much of what
/// arrived with it.
const SIZE: usize = 64 * 1024;
/// Buffers that are waited for: more than what is read ahead and in hand fills.
const KEPT: usize = 128;

/// See the module's documentation.
#[derive(Default)]
pub struct Arena {
    current: Builder,
    /// It goes to `filled` when it is full.
    again: bool,
    filled: VecDeque<Builder>,
}

impl Arena {
    /// What to fill with the next record, which is likely to be of this size, as are `left` in all.
    pub fn room(&mut self, size: usize, left: usize) -> &mut Builder {
        if self.current.room() < size {
            let need = size.saturating_mul(left);
            let next = if need < SIZE { Builder::with_capacity(need) } else { self.next() };
            let full = std::mem::replace(&mut self.current, next);
            if std::mem::replace(&mut self.again, need >= SIZE) {
                self.filled.push_back(full);
            }
        }
        &mut self.current
    }

    fn next(&mut self) -> Builder {
        if let Some(mut first) = self.filled.pop_front() {
            if first.reclaim(SIZE) {
                return first;
            }
            if self.filled.len() < KEPT {
                self.filled.push_front(first);
            }
        }
        Builder::with_capacity(SIZE)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn fill(arena: &mut Arena, count: usize) -> Vec<Bytes> {
        (0..count).map(|at| arena.room(1_000, 1_000).keep(&[at as u8; 1_000])).collect()
    }

    fn addresses(records: &[Bytes]) -> std::collections::BTreeSet<usize> {
        records.iter().map(|record| record.as_ptr() as usize).collect()
    }

    #[test]
    fn a_buffer_is_used_again_when_the_last_of_it_is_gone_and_not_before() {
        let mut arena = Arena::default();
        let first = fill(&mut arena, 300);
        let places = addresses(&first);
        let second = fill(&mut arena, 300);
        assert!(addresses(&second).is_disjoint(&places), "the first are held");
        drop(first);
        let third = fill(&mut arena, 200);
        assert!(addresses(&third).iter().filter(|place| places.contains(place)).count() > 100);
        let whole = |records: &[Bytes]| records.iter().enumerate().all(|(at, record)| record == &vec![at as u8; 1_000]);
        assert!(whole(&second) && whole(&third));
    }

    #[test]
    fn what_is_held_for_long_costs_its_own_buffer_alone() {
        let mut arena = Arena::default();
        let held = fill(&mut arena, 1).remove(0);
        for _ in 0..1_000 {
            drop(fill(&mut arena, 65));
            assert!(arena.filled.len() <= KEPT + 1);
        }
        let gone = arena.filled.len();
        drop(fill(&mut arena, 650));
        assert!(arena.filled.len() <= gone, "those behind it are used again");
        assert_eq!(held, vec![0; 1_000]);
    }

    #[test]
    fn a_few_records_take_no_more_than_they_need() {
        let mut arena = Arena::default();
        drop(arena.room(100, 3).keep(&[1; 100]));
        assert!(arena.current.room() <= 300 && arena.filled.is_empty());
    }
}
