//! A laboratory: what a finalised report sets in motion.
//!
//! The laboratory's own system publishes `reports.finalized` and knows nothing of what follows. Five queues hear it,
//! and know nothing of each other: [`notify`] tells the patient, [`invoice`] bills it, [`analytics`] counts it,
//! [`archive`] keeps it, [`render`] makes a page of it that a person can read.
//!
//! Each job may run twice for one event (a worker was killed before the broker had confirmed that it was done), so
//! each makes its effect once by itself: the invoice by the event's id, within the transaction that writes it; the
//! statistics by the report's number, likewise; the archive because a file's name is made of what is in it; mail and
//! page because the second is the same as the first, under the same name.

pub mod report;

mod database;
mod file;
mod lab;

pub mod notify;

pub mod invoice;

pub mod analytics;

pub mod archive;

pub mod render;

pub use lab::Lab;

use windlass::Registry;

/// The laboratory's jobs, on the laboratory's folder.
pub fn registry(lab: Lab) -> Registry {
    Registry::new()
        .job("notify", notify::notify)
        .job("invoice", invoice::invoice)
        .job("analytics", analytics::analytics)
        .blocking("archive", archive::archive)
        .blocking("render", render::render)
        .state(lab)
}

#[cfg(test)]
mod tests {
    use windlass::app::Tally;
    use windlass::message::Reason;
    use windlass::testing::Worker;

    use super::*;
    use crate::lab::tests::Bench;
    use crate::report::Report;

    /// The jobs and the queues that are deployed, together.
    #[tokio::test]
    async fn a_report_goes_to_five_queues_each_of_which_judges_for_itself() {
        let bench = Bench::new().await;
        let (good, missing) = (bench.report(1), Report { location: "reports/none.json".to_owned(), ..bench.report(2) });
        let stranger = Report { patient_id: "P-9999".to_owned(), ..bench.report(3) };
        let worker = Worker::start(include_str!("../../config/reports.toml"), registry(bench.lab)).await;
        for (id, report) in [("good", good), ("missing", missing), ("stranger", stranger)] {
            worker.publish("reports.finalized", &report).id(id).await.expect("published");
        }
        // Of the report that is not there the patient is told all the same; four others look for it three times.
        assert_eq!(worker.drain().await, Tally { done: 3 + 1 + 3 * 2, retried: 4 * 2, dead: 4 + 1 });
        assert_eq!(worker.done("notify").len(), 3);
        assert_eq!(worker.done("invoice")[0].result.clone().expect("returned").expect("done")["cents"], 8_500);
        let dead = worker.dead("invoice").await;
        let why: Vec<_> =
            dead.iter().map(|letter| (letter.event_id.as_deref(), letter.reason, letter.attempts)).collect();
        assert_eq!(why, [(Some("stranger"), Reason::Permanent, 1), (Some("missing"), Reason::Exhausted, 3)]);
    }
}
