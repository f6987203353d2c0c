//! The folder that the demonstration plays in, and the events that are published.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use windlass::Client;
use windlass::client::{Draft, ToTopic};
use windlass::config::{Config, Source, load};
use windlass::time::Clock;
use windlass_lab::Lab;
use windlass_lab::report::{self, Report};

/// The topic.
pub const TOPIC: &str = "reports.finalized";
/// The queues that hear it.
pub const QUEUES: [&str; 3] = ["invoice", "analytics", "archive"];
/// Reports of the data.
pub const REPORTS: usize = 569;
/// Events: the reports, and three that are bad.
pub const EVENTS: usize = REPORTS + 3;
/// Dead letters: three queues cannot read the damaged event, three do not find the missing report, and one minds that
/// it does not know the patient.
pub const DEAD: usize = 7;
/// Jobs that are done.
pub const DONE: usize = EVENTS * QUEUES.len() - DEAD;

/// The report that is not there yet.
const LATE: usize = 571;
/// What events are confirmed together.
const BATCH: usize = 64;
/// What the configuration of the project says, and what the demonstration puts in its place.
const BROKER: &str = "broker = \"sqlite://lab.db\"";

/// A folder of its own, made anew at each start.
pub struct Stage {
    /// `target/demo`, or what `LAB_FOLDER` says, absolute.
    pub folder: PathBuf,
    /// `config/reports.toml`, with the queue in the folder.
    pub config: Config,
}

impl Stage {
    /// Clears the folder and fills it: reports, the register, the configuration.
    pub async fn set() -> Result<Self, Box<dyn Error>> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the project has no folder")?;
        let folder = std::env::var_os("LAB_FOLDER").map_or_else(|| root.join("target/demo"), PathBuf::from);
        clear(&folder).map_err(|error| format!("{} cannot be cleared: {error}", folder.display()))?;
        fs::create_dir_all(folder.join("late"))?;
        let mut reports = report::all();
        Lab::at(&folder).furnish(&reports).await?;
        let late = Report::new(LATE, String::new()).report_id;
        let mut findings = reports.swap_remove(0);
        findings.report_id = late.clone();
        fs::write(folder.join("late").join(format!("{late}.json")), serde_json::to_vec_pretty(&findings)?)?;

        let file = folder.join("reports.toml");
        let text = include_str!("../../../config/reports.toml");
        let broker = format!("broker = \"sqlite://{}\"", folder.join("queue.db").display());
        fs::write(&file, text.replace(BROKER, &broker))?;
        let source = Source::new().file(Some(file)).flag("the demonstration", "admin.listen", "none");
        Ok(Self { config: load(source)?.config, folder })
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

    /// Publishes every event and waits until the broker has confirmed each.
    pub async fn publish(&self, client: &Client) -> Result<(), Box<dyn Error>> {
        let now = || Clock::System.now().to_rfc3339();
        let good = |number: usize| Report::new(number, now());
        let numbers: Vec<usize> = (1..=REPORTS).collect();
        for (index, batch) in numbers.chunks(BATCH).enumerate() {
            // The bad ones travel among the good.
            let bad = match index {
                1 => Some(damaged(client)),
                2 => Some(event(client, "report-R-0042-again", &stranger(now()))),
                3 => Some(event(client, "report-R-0571", &Report { patient_id: "P-0001".to_owned(), ..good(LATE) })),
                _ => None,
            };
            let drafts = batch.iter().map(|number| {
                let report = good(*number);
                event(client, &format!("report-{}", report.report_id), &report)
            });
            for receipt in client.publish_many(drafts.chain(bad)).await {
                receipt?;
            }
        }
        Ok(())
    }
}

/// Removes what an earlier demonstration did, and nothing else; its reports may stay, but for the late one.
fn clear(folder: &Path) -> std::io::Result<()> {
    let gone = |result: std::io::Result<()>| match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    for name in ["archive", "late"] {
        gone(fs::remove_dir_all(folder.join(name)))?;
    }
    for name in ["billing.db", "statistics.db", "queue.db"] {
        for end in ["", "-wal", "-shm"] {
            gone(fs::remove_file(folder.join(format!("{name}{end}"))))?;
        }
    }
    gone(fs::remove_file(folder.join(Report::new(LATE, String::new()).location)))?;
    gone(fs::remove_file(folder.join("reports.toml")))
}

fn event<'c>(client: &'c Client, id: &str, report: &Report) -> Draft<'c, ToTopic> {
    client.publish(TOPIC, report).id(id).key(report.patient_id.clone())
}

/// Bytes that say they are JSON and are not.
fn damaged(client: &Client) -> Draft<'_, ToTopic> {
    let bytes: &'static [u8] = b"\x89\xfe{\"report_id\":\"R-0570\",\"patient_id\":\"P-";
    client.publish_bytes(TOPIC, bytes).content_type("application/json").id("report-R-0570")
}

/// A report sent a second time, for a patient that nobody registered.
fn stranger(timestamp: String) -> Report {
    Report { patient_id: "P-9999".to_owned(), ..Report::new(42, timestamp) }
}
