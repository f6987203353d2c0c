//! What is done when nothing else is: space goes back to the file system, the log is folded into the file.

use std::time::Duration;

use sqlx::sqlite::SqliteConnection;
use tokio::time::Instant;

use super::script::{Script, int};

/// After so long a silence.
const IDLE: Duration = Duration::from_secs(1);
/// Between two steps.
const STEP: Duration = Duration::from_millis(50);
/// How often to look when there was nothing to do.
const REST: Duration = Duration::from_secs(60);
/// Unused pages that are kept for what comes next.
const SPARE: i64 = 256;

/// When to tidy up.
pub struct Housekeeping {
    next: Instant,
    done: bool,
    vacuumed: bool,
}

impl Housekeeping {
    /// Not at once.
    pub fn new(now: Instant) -> Self {
        Self { next: now + IDLE, done: false, vacuumed: false }
    }

    /// There is something else to do.
    pub fn busy(&mut self) {
        self.done = false;
        self.next = Instant::now() + IDLE;
    }

    /// When it wants to be run.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// Gives a few pages back, when it is time; then folds the log.
    pub async fn run(&mut self, connection: &mut SqliteConnection) {
        if Instant::now() < self.next {
            return;
        }
        // What fails here (a reader in the way, a full disk) is tried again at the next silence.
        self.next = Instant::now() + if self.step(connection).await.unwrap_or(false) { STEP } else { REST };
    }

    /// Whether there is more to do.
    async fn step(&mut self, connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
        if self.done {
            return Ok(false);
        }
        let mut script = Script::default();
        script.add("PRAGMA freelist_count");
        let answers = script.run(connection).await?;
        if answers[0].rows.first().is_some_and(|row| int(row, 0) > SPARE) {
            let mut script = Script::default();
            script.add("PRAGMA incremental_vacuum(512)");
            script.run(connection).await?;
            self.vacuumed = true;
            return Ok(true);
        }
        if std::mem::take(&mut self.vacuumed) {
            let mut script = Script::default();
            script.add("PRAGMA wal_checkpoint(TRUNCATE)");
            script.run(connection).await?;
        }
        self.done = true;
        Ok(false)
    }
}
