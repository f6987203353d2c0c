//! Each bug that was put into the engine on purpose is caught by the schedules, and by which law.
//!
//! Bugs that are not in the table are not the engine's: what they change lies behind the traits that are simulated
//! here. `docs/reliability.md` says of each what catches it.

use windlass::seeded;

use super::law::Law;
use super::schedule::Schedule;
use super::site;
use crate::ledger::judge::Rule;

/// Within so many schedules each has to be caught.
const WITHIN: u64 = 10_000;

/// The bug, the law that has to see it, and the first seed that breaks it.
const CAUGHT: [(&str, Law, u64); 23] = [
    ("ack-before-run", Law::EarlySettlement, 0),
    ("success-without-run", Law::EarlySettlement, 6),
    ("release-before-run", Law::EarlySettlement, 89),
    ("success-released", Law::EarlySettlement, 0),
    ("attempt-used-by-interruption", Law::Attempt, 58),
    ("attempt-kept", Law::Attempt, 1),
    ("retry-early", Law::Judged(Rule::Early), 2),
    ("permanent-retried", Law::Judged(Rule::Ending), 4),
    ("slot-not-returned", Law::Judged(Rule::Stuck), 1),
    ("slots-over", Law::Credit, 0),
    ("dead-letter-lost", Law::EarlySettlement, 0),
    ("dead-letter-twice", Law::Judged(Rule::LetterTwice), 0),
    ("dead-letter-bytes", Law::EarlySettlement, 0),
    ("order-ignored", Law::Judged(Rule::Order), 50),
    ("panic-is-done", Law::EarlySettlement, 6),
    ("timeout-is-done", Law::EarlySettlement, 0),
    ("malformed-dropped", Law::EarlySettlement, 13),
    ("retry-dropped", Law::EarlySettlement, 6),
    ("attempts-unlimited", Law::Judged(Rule::Attempt), 0),
    ("attempt-skipped", Law::Attempt, 1),
    ("letter-reason", Law::Judged(Rule::Ending), 0),
    ("letter-attempts", Law::Judged(Rule::Attempt), 0),
    ("lost-begins", Law::Unowned, 3_190),
];

#[test]
fn every_seeded_bug_of_the_engine_is_caught() {
    let known: Vec<_> = seeded::names().collect();
    for (bug, law, first) in &CAUGHT {
        assert!(known.contains(bug), "bug {bug} is gone: take it out of the table, and out of docs/reliability.md");
        let caught = seeded::with_bug(Some(bug), || {
            // Where the first has moved, the table says so below.
            let mut seeds = std::iter::once(*first).chain(0..WITHIN);
            seeds.find(|seed| site::play(&Schedule::from_seed(*seed), false).laws().contains(law))
        });
        let seed = caught.unwrap_or_else(|| panic!("{bug} should break {law:?} within {WITHIN} schedules"));
        eprintln!("| `{bug}` | {law:?} | {seed} |");
    }
}
