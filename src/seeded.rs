//! Bugs on purpose: each checker of the ledger is shown to catch the one that it is there for.
//!
//! Compiled in by the feature `seeded-bugs`, which no release enables, and active only where `WINDLASS_SEEDED_BUG`
//! names one. Without the feature [`bug`] is `false` at compile time.

/// The bugs that can be chosen, and what each does.
#[cfg(feature = "seeded-bugs")]
const BUGS: [(&str, &str); 43] = [
    ("ack-before-run", "a job is acknowledged when it starts"),
    ("success-without-run", "one job in twenty is acknowledged and not run"),
    ("release-before-run", "a job is given back when it starts, and runs on"),
    ("success-released", "one success in ten is given back and not acknowledged"),
    ("attempt-used-by-interruption", "a drain counts as a failure"),
    ("attempt-kept", "a retry has the number of the attempt that failed"),
    ("retry-early", "a retry is due at once"),
    ("permanent-retried", "an error that is not to be retried is"),
    ("slot-not-returned", "a job that pended keeps its slot for good"),
    ("slots-over", "there are twice as many slots as configured"),
    ("dead-letter-lost", "what cannot succeed is acknowledged"),
    ("dead-letter-twice", "what becomes a dead letter is enqueued again too"),
    ("dead-letter-bytes", "what becomes a dead letter has a space more than what was published"),
    ("dead-letter-elsewhere", "what becomes a dead letter is published on the topic `mixed` too"),
    ("order-ignored", "a queue in key order is worked as one that is not"),
    ("panic-is-done", "a handler that panicked counts as a success"),
    ("timeout-is-done", "an attempt that took too long counts as a success"),
    ("malformed-dropped", "what cannot be read is acknowledged and kept nowhere"),
    ("retry-dropped", "one retry in five is acknowledged and not stored"),
    ("attempts-unlimited", "what has used up its attempts is tried again"),
    ("attempt-skipped", "a retry has a number too high by one"),
    ("letter-reason", "every dead letter is called permanent"),
    ("letter-attempts", "a dead letter says one attempt more than were made"),
    ("lost-begins", "what was lost while it waited begins"),
    ("due-early", "SQLite hands out what is due within half a second"),
    ("given-back-dropped", "SQLite forgets what is given back"),
    ("patience-forgotten", "SQLite takes the jobs of those whom a lock kept from renewing"),
    ("freeze-is-crash", "SQLite counts a crash where a process only slept past its lease"),
    ("crash-uncounted", "SQLite counts no crash where a process is gone"),
    ("letter-of-event", "NATS names a dead letter by its event alone"),
    ("watermark-highest", "Kafka commits up to the highest that arrived"),
    ("epoch-forgotten", "Kafka takes what a lost assignment says for what the present one has at that offset"),
    ("commit-after-revocation", "Kafka keeps a partition that was given back, and commits it"),
    ("letter-before-stored", "Kafka counts a job as finished before its dead letter is stored"),
    ("watermark-early", "Kafka says that all is stored that was settled before a commit, whatever it covers"),
    ("run-forgotten", "Kafka forgets what still runs of a partition that it lost and gets back"),
    ("memo-ignored", "Kafka runs again what an earlier owner finished beyond its commit"),
    ("retry-unstored", "Kafka starts a retry in place before its attempt is stored"),
    ("move-unstored", "Kafka takes an aborted move for a stored one"),
    ("key-let-go", "Kafka lets the next of a key pass while the one before waits for its retry"),
    ("lease-from-arrival", "NATS counts a lease from when a message was read"),
    ("lease-endless", "NATS acts on a delivery whose lease has ended"),
    ("credit-twice", "NATS gives the credit of an ended request back twice"),
];

/// Milliseconds by which the machine's wall clock is wrong: a step that concerns one process' tests only.
#[cfg(not(feature = "seeded-bugs"))]
#[inline(always)]
pub(crate) const fn clock_step() -> i64 {
    0
}

/// Milliseconds by which the machine's wall clock is wrong, as the file that `WINDLASS_SEEDED_CLOCK` names says at this
/// moment: a step that concerns one story only.
#[cfg(feature = "seeded-bugs")]
pub(crate) fn clock_step() -> i64 {
    static FILE: std::sync::LazyLock<Option<std::ffi::OsString>> =
        std::sync::LazyLock::new(|| std::env::var_os("WINDLASS_SEEDED_CLOCK"));
    let Some(file) = &*FILE else { return 0 };
    std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Whether this bug was chosen.
#[cfg(not(feature = "seeded-bugs"))]
#[inline(always)]
pub(crate) const fn bug(_name: &str) -> bool {
    false
}

/// Whether this bug was chosen.
///
/// # Panics
/// Where the environment names one that there is not, or this one is not in the list: a mistake in a test.
#[cfg(feature = "seeded-bugs")]
pub(crate) fn bug(name: &str) -> bool {
    static CHOSEN: std::sync::LazyLock<Option<String>> = std::sync::LazyLock::new(|| {
        let chosen = std::env::var("WINDLASS_SEEDED_BUG").ok()?;
        assert!(BUGS.iter().any(|(name, _)| *name == chosen), "no bug {chosen:?}; there are {BUGS:#?}");
        Some(chosen)
    });
    debug_assert!(BUGS.iter().any(|(known, _)| *known == name), "bug {name:?} is not in the list");
    HERE.get().or(CHOSEN.as_deref()) == Some(name)
}

#[cfg(feature = "seeded-bugs")]
thread_local! {
    static HERE: std::cell::Cell<Option<&'static str>> = const { std::cell::Cell::new(None) };
}

/// Runs `f` with a bug that only this thread has: for simulations, which run a worker in one thread.
#[cfg(feature = "seeded-bugs")]
pub fn with_bug<R>(bug: Option<&'static str>, f: impl FnOnce() -> R) -> R {
    struct Back(Option<&'static str>);
    impl Drop for Back {
        fn drop(&mut self) {
            HERE.set(self.0);
        }
    }
    let _back = Back(HERE.replace(bug));
    f()
}

/// The names of all bugs.
#[cfg(feature = "seeded-bugs")]
pub fn names() -> impl Iterator<Item = &'static str> {
    BUGS.iter().map(|(name, _)| *name)
}
