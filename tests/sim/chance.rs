//! Every choice that a schedule leaves open, drawn from its seed or read from a script.

/// Answers questions with a number; the same questions in the same order get the same answers.
pub enum Chance {
    /// Drawn from a seed; of a thousand boundary calls so many misbehave.
    Seeded {
        /// The generator.
        random: fastrand::Rng,
        /// Per mille.
        mischief: u32,
    },
    /// Read from a script; what lies behind its end is 0, the well-behaved choice. For going through all choices.
    Script {
        /// The answers.
        answers: Vec<u32>,
        /// Of each question that was asked, how many answers it had.
        asked: Vec<u32>,
        /// How many questions are remembered.
        depth: usize,
    },
}

impl Chance {
    /// By seed.
    pub fn seeded(seed: u64, mischief: u32) -> Self {
        Self::Seeded { random: fastrand::Rng::with_seed(seed), mischief }
    }

    /// By script.
    pub fn script(answers: Vec<u32>, depth: usize) -> Self {
        Self::Script { answers, asked: Vec::new(), depth }
    }

    /// Which of `kinds` misbehaviours happens; 0: none.
    pub fn misbehaves(&mut self, kinds: u32) -> u32 {
        match self {
            Self::Seeded { random, mischief } => {
                if random.u32(..1_000) < *mischief {
                    random.u32(1..=kinds)
                } else {
                    0
                }
            }
            Self::Script { answers, asked, depth } => {
                let place = asked.len();
                if place >= *depth {
                    return 0;
                }
                asked.push(kinds + 1);
                answers.get(place).copied().unwrap_or(0)
            }
        }
    }

    /// How many milliseconds something takes, at most; by script always the least.
    pub fn millis(&mut self, range: std::ops::Range<u64>) -> u64 {
        match self {
            Self::Seeded { random, .. } => random.u64(range),
            Self::Script { .. } => range.start,
        }
    }

    /// Yes or no; by script no.
    pub fn coin(&mut self) -> bool {
        match self {
            Self::Seeded { random, .. } => random.bool(),
            Self::Script { .. } => false,
        }
    }

    /// The script after this one, where there is one: all scripts of this depth, one after the other.
    pub fn next_script(&self) -> Option<Vec<u32>> {
        let Self::Script { answers, asked, .. } = self else { return None };
        let mut next: Vec<u32> = (0..asked.len()).map(|at| answers.get(at).copied().unwrap_or(0)).collect();
        while let Some(last) = next.pop() {
            if last + 1 < asked[next.len()] {
                next.push(last + 1);
                return Some(next);
            }
        }
        None
    }
}
