//! The folder that the demonstration plays in, and the events that are published.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use windlass::Client;
use windlass::client::{Draft, ToTopic};
use windlass::config::{Config, Source, load};
use windlass::time::Clock;
use windlass_lab::Lab;
use windlass_lab::report::{self, Findings, Report};

use crate::calls;
use crate::server::Address;

/// The queues that hear the topic.
pub const QUEUES: [&str; 5] = ["notify", "invoice", "analytics", "archive", "render"];
/// Reports of each laboratory.
pub const REPORTS: usize = 569;
/// Whose reports the first act is about, and the second.
pub const LABORATORIES: [char; 2] = ['R', 'S'];
/// Reports that are sent again for a patient whom nobody registered.
pub const STRANGERS: usize = 4;
/// The patient.
pub const STRANGER: &str = "P-9999";
/// The event whose bytes are damaged.
pub const DAMAGED: &str = "report-damaged";

/// What events are confirmed together.
const BATCH: usize = 64;
/// What the project's configuration says, and the demonstration says otherwise.
const BROKER: &str = "broker = \"sqlite://lab.db\"";
const NAMESPACE: &str = "namespace = \"laboratory\"";
const TOPIC: &str = "reports.finalized";

/// A folder of its own, made anew at each start.
pub struct Stage {
    /// `target/demo`, or what `LAB_FOLDER` says, absolute.
    pub folder: PathBuf,
    /// `config/reports.toml`, with what the demonstration says otherwise.
    pub config: Config,
    /// The topic.
    pub topic: String,
}

impl Stage {
    /// The folder, absolute.
    pub fn folder() -> PathBuf {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
        std::env::var_os("LAB_FOLDER").map_or_else(|| root.join("target/demo"), PathBuf::from)
    }

    /// Fills the folder, which was cleared: reports, the register, the configuration.
    pub async fn set(folder: PathBuf, address: &Address, service: &str) -> Result<Self, Box<dyn Error>> {
        let reports: Vec<Findings> = LABORATORIES.into_iter().flat_map(of).collect();
        Lab::at(&folder).furnish(&reports).await?;
        fs::write(folder.join("mended.json"), serde_json::to_vec_pretty(&Report::new(1, now()))?)?;
        let topic = match &address.prefix {
            Some(prefix) => format!("{prefix}.{TOPIC}"),
            None => TOPIC.to_owned(),
        };
        let mut text = include_str!("../../../config/reports.toml")
            .replace(BROKER, &format!("broker = \"{}\"", address.url))
            .replace(&format!("\"{TOPIC}\""), &format!("\"{topic}\""))
            .replace(NAMESPACE, &format!("namespace = \"{}\"", address.prefix.as_deref().unwrap_or("laboratory")));
        if let Some(lease) = address.lease {
            text = text.replace("[worker]\n", &format!("[worker]\nlease = \"{lease}\"\n"));
        }
        text += &format!(
            "\n# The fourth act: calls to a service that takes its time.\n[queues.calls]\njob = \"call\"\nslots = {}\n\n\
             [jobs.call]\nhttp = \"{service}\"\n",
            calls::SLOTS
        );
        let file = folder.join("reports.toml");
        fs::write(&file, text)?;
        let source = Source::new().file(Some(file)).flag("the demonstration", "admin.listen", "none");
        Ok(Self { config: load(source)?.config, folder, topic })
    }

    /// The folder as the person at the terminal would type it.
    pub fn shown(&self) -> String {
        let within = std::env::current_dir().ok().and_then(|here| self.folder.strip_prefix(here).ok());
        match within {
            Some(within) if within.as_os_str().is_empty() => ".".to_owned(),
            Some(within) => within.display().to_string(),
            None => self.folder.display().to_string(),
        }
    }

    /// Publishes every report of a laboratory; resolves when the broker has confirmed each.
    pub async fn publish(&self, client: &Client, laboratory: char) -> Result<(), Box<dyn Error>> {
        let numbers: Vec<usize> = (1..=REPORTS).collect();
        for batch in numbers.chunks(BATCH) {
            let drafts = batch.iter().map(|number| {
                let report = event(laboratory, *number);
                self.draft(client, &format!("report-{}", report.report_id), &report)
            });
            for receipt in client.publish_many(drafts).await {
                receipt?;
            }
        }
        Ok(())
    }

    /// Publishes what cannot succeed yet, and what never will.
    pub async fn publish_bad(&self, client: &Client) -> Result<(), Box<dyn Error>> {
        // Bytes that say they are JSON and are not.
        let bytes: &'static [u8] = b"\x89\xfe{\"report_id\":\"R-0570\",\"patient_id\":\"P-";
        client.publish_bytes(&self.topic, bytes).content_type("application/json").id(DAMAGED).await?;
        for number in 1..=STRANGERS {
            let report = Report { patient_id: STRANGER.to_owned(), ..event(LABORATORIES[0], number) };
            self.draft(client, &format!("again-{}", report.report_id), &report).await?;
        }
        Ok(())
    }

    fn draft<'c>(&self, client: &'c Client, id: &str, report: &Report) -> Draft<'c, ToTopic> {
        client.publish(&self.topic, report).id(id).key(report.patient_id.clone())
    }
}

/// The reports of a laboratory.
fn of(laboratory: char) -> Vec<Findings> {
    let mut reports = report::all();
    for (index, findings) in reports.iter_mut().enumerate() {
        findings.report_id = event(laboratory, index + 1).report_id;
    }
    reports
}

/// The event of a laboratory's report.
fn event(laboratory: char, number: usize) -> Report {
    let report_id = format!("{laboratory}-{number:04}");
    Report { location: format!("reports/{report_id}.json"), report_id, ..Report::new(number, now()) }
}

fn now() -> String {
    Clock::System.now().to_rfc3339()
}

/// Removes what an earlier demonstration did, and nothing else; its reports may stay.
pub fn clear(folder: &Path) -> std::io::Result<()> {
    let gone = |result: std::io::Result<()>| match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    for name in ["archive", "mail", "pages", "server"] {
        gone(fs::remove_dir_all(folder.join(name)))?;
    }
    for name in ["billing.db", "statistics.db", "queue.db"] {
        for end in ["", "-wal", "-shm"] {
            gone(fs::remove_file(folder.join(format!("{name}{end}"))))?;
        }
    }
    for name in ["ledger", "mended.json", "reports.toml"] {
        gone(fs::remove_file(folder.join(name)))?;
    }
    fs::create_dir_all(folder)
}
