//! A laboratory: what a finalised report sets in motion.
//!
//! The laboratory's own system publishes `reports.finalized` and knows nothing of what follows. Three queues hear it,
//! and know nothing of each other: [`invoice`] bills it, [`analytics`] counts it, [`archive`] keeps it.
//!
//! Each job may run twice for one event (a worker was killed before the broker had confirmed that it was done), so
//! each makes its effect once by itself: the invoice by the event's id, within the transaction that writes it; the
//! statistics by the report's number, likewise; the archive because a file's name is made of what is in it.

pub mod report;

mod database;
mod lab;

pub mod analytics;
pub mod archive;
pub mod invoice;

pub use lab::Lab;

use windlass::Registry;

/// The laboratory's jobs, on the laboratory's folder.
pub fn registry(lab: Lab) -> Registry {
    Registry::new()
        .job("invoice", invoice::invoice)
        .job("analytics", analytics::analytics)
        .blocking("archive", archive::archive)
        .state(lab)
}
