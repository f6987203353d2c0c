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

/// The bug, and the law that has to see it.
const CAUGHT: [(&str, Law); 22] = [
    ("ack-before-run", Law::EarlySettlement),
    ("success-without-run", Law::EarlySettlement),
    ("release-before-run", Law::EarlySettlement),
    ("success-released", Law::EarlySettlement),
    ("attempt-used-by-interruption", Law::Attempt),
    ("attempt-kept", Law::Attempt),
    ("retry-early", Law::Judged(Rule::Early)),
    ("permanent-retried", Law::Judged(Rule::Ending)),
    ("slot-not-returned", Law::Judged(Rule::Stuck)),
    ("slots-over", Law::Credit),
    ("dead-letter-lost", Law::EarlySettlement),
    ("dead-letter-twice", Law::Judged(Rule::LetterTwice)),
    ("dead-letter-bytes", Law::EarlySettlement),
    ("order-ignored", Law::Judged(Rule::Order)),
    ("panic-is-done", Law::EarlySettlement),
    ("timeout-is-done", Law::EarlySettlement),
    ("malformed-dropped", Law::EarlySettlement),
    ("retry-dropped", Law::EarlySettlement),
    ("attempts-unlimited", Law::Judged(Rule::Attempt)),
    ("attempt-skipped", Law::Attempt),
    ("letter-reason", Law::Judged(Rule::Ending)),
    ("letter-attempts", Law::Judged(Rule::Attempt)),
];

#[test]
fn every_seeded_bug_of_the_engine_is_caught() {
    let known: Vec<_> = seeded::names().collect();
    for (bug, law) in &CAUGHT {
        assert!(known.contains(bug), "bug {bug} is gone: take it out of the table, and out of docs/reliability.md");
        let caught = seeded::with_bug(Some(bug), || {
            (0..WITHIN).find(|seed| site::play(&Schedule::from_seed(*seed), false).laws().contains(law))
        });
        let seed = caught.unwrap_or_else(|| panic!("{bug} should break {law:?} within {WITHIN} schedules"));
        eprintln!("| `{bug}` | {law:?} | {seed} |");
    }
}
