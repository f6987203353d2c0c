//! Sets of offsets as runs.

use std::collections::VecDeque;

/// Ascending, disjoint, non-empty runs `[from, to)`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans(VecDeque<(i64, i64)>);

impl Spans {
    /// Adds a run behind all others (touching the last one joins it); an empty one is nothing.
    pub fn push(&mut self, from: i64, to: i64) {
        if from >= to {
            return;
        }
        match self.0.back_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => self.0.push_back((from, to)),
        }
    }

    /// The runs, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (i64, i64)> {
        self.0.iter().copied()
    }

    /// Forgets what lies below `offset`.
    pub fn cut_below(&mut self, offset: i64) {
        while let Some(first) = self.0.front_mut() {
            if first.1 <= offset {
                self.0.pop_front();
            } else {
                first.0 = first.0.max(offset);
                break;
            }
        }
    }

    /// Forgets everything up to and including `offset`, and says whether that was in the set.
    pub fn take_below(&mut self, offset: i64) -> bool {
        if self.0.is_empty() {
            return false;
        }
        self.cut_below(offset);
        let found = self.0.front().is_some_and(|first| first.0 == offset);
        self.cut_below(offset + 1);
        found
    }
}

impl FromIterator<(i64, i64)> for Spans {
    fn from_iter<I: IntoIterator<Item = (i64, i64)>>(runs: I) -> Self {
        let mut spans = Self::default();
        for (from, to) in runs {
            spans.push(from, to);
        }
        spans
    }
}
