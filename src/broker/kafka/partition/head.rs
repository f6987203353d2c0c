//! What everything behind it waits for: the lowest record of a partition that has not ended.

use super::{Partition, Phase};
use crate::broker::Head;
use crate::time::Timestamp;

impl Partition {
    /// Notes what is the lowest now.
    pub(super) fn see_head(&mut self, now: Timestamp) {
        let lowest = (self.window.open() > 0).then(|| self.window.watermark());
        if lowest != self.head.map(|(offset, _)| offset) {
            self.head = lowest.map(|offset| (offset, now));
        }
    }

    /// The lowest record that has not ended, if one was seen.
    pub fn head(&self, now: Timestamp) -> Option<Head> {
        let (offset, since) = self.head?;
        Some(Head {
            place: format!("{}:{}, offset {offset}", self.topic, self.number),
            age: since.until(now),
            span: self.window.span(),
            full: self.is_held_up(),
        })
    }

    /// Whether nothing more is read until something of it ends, and nothing of it can be handed out.
    pub fn is_held_up(&self) -> bool {
        self.full
            && self.opened
            && self.phase == Phase::Owned
            && self.window.open() > 0
            && self.buffer.is_empty()
            && self.ready.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::takeover::{NOW, hand, offset, open, partition, read};
    use super::*;
    use crate::broker::kafka::batch::Batch;

    fn end(partition: &mut Partition, offset: i64) {
        let (batch, _) = Batch::new(1);
        assert!(partition.finish(offset, batch.part(0, 1)).is_ok());
    }

    #[test]
    fn the_lowest_that_has_not_ended_is_told_with_its_age_and_what_was_read_behind_it() {
        let mut one = partition(1, 0, None, false);
        assert_eq!(one.head(NOW), None);
        read(&mut one, 0..10);
        open(&mut one);
        let taken: Vec<i64> = hand(&mut one, 10).iter().map(offset).collect();
        one.promote(NOW);
        let later = |seconds| NOW.after(std::time::Duration::from_secs(seconds));
        taken[1..].iter().for_each(|offset| end(&mut one, *offset));
        one.promote(later(3));
        let head = one.head(later(5)).expect("one is unfinished");
        assert_eq!((&*head.place, head.age.as_secs(), head.span, head.full), ("t:0, offset 0", 5, 10, false));
        // No room was found for more.
        one.full = true;
        assert!(one.head(later(5)).expect("still").full);
        end(&mut one, 0);
        one.promote(later(6));
        assert_eq!(one.head(later(6)), None);
        read(&mut one, 10..12);
        one.promote(later(7));
        let head = one.head(later(8)).expect("the next");
        assert_eq!((&*head.place, head.age.as_secs(), head.span), ("t:0, offset 10", 1, 2));
        assert!(!head.full, "there is something to hand out");
    }
}
