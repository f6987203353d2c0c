//! What is said, and whether it is as it should be.

use std::error::Error;

use comfy_table::{ContentArrangement, Table, presets};
use windlass::broker::Broker;
use windlass::broker::selector::{self, Group, Selector};
use windlass_lab::report::Finding;
use windlass_lab::{Lab, analytics, archive};

use crate::stage::{DAMAGED, REPORTS, Stage};

/// Says a fact, and remembers whether all of them hold.
pub struct Teller(bool);

impl Teller {
    pub fn new() -> Self {
        Self(true)
    }

    /// The title of an act.
    pub fn act(&self, number: usize, title: &str) {
        println!("\n{number}. {title}\n");
    }

    /// A fact.
    pub fn fact(&mut self, name: &str, holds: bool, text: &str) {
        self.0 &= holds;
        println!("  {name:<10} {} {text}", if holds { "ok   " } else { "WRONG" });
    }

    /// Whether all facts hold.
    pub fn sound(&self) -> bool {
        self.0
    }

    /// What the jobs made of this many reports, held against what is known of the data.
    pub async fn made(&mut self, stage: &Stage, laboratories: usize) -> Result<(), Box<dyn Error>> {
        let lab = Lab::at(&stage.folder);
        let (count, reports) = (REPORTS * laboratories, laboratories as i64);
        let (invoices, billed, cents) = invoices(&lab).await?;
        let holds = invoices == count as i64 && billed == invoices;
        let text = format!(
            "{invoices} invoices, one for each report, none billed twice; {}.{:02} in all",
            cents / 100,
            cents % 100
        );
        self.fact("invoice", holds, &text);
        let malignant = analytics::counted(&lab, Finding::Malignant).await?;
        let benign = analytics::counted(&lab, Finding::Benign).await?;
        let holds = (malignant, benign) == (212 * reports, 357 * reports);
        self.fact("analytics", holds, &format!("{malignant} malignant, {benign} benign, each counted once"));
        if laboratories == 1 {
            for (name, published) in
                [("mean radius", (6.981, 28.11)), ("mean area", (143.5, 2501.0)), ("worst area", (185.2, 4254.0))]
            {
                let found = analytics::range(&lab, name).await?;
                let (least, most) = found.unwrap_or_default();
                self.fact("", found == Some(published), &format!("{name} {least} to {most}, as published"));
            }
        }
        let files = archive::len(&lab)?;
        self.fact("archive", files == count, &format!("{files} files, each named by the SHA-256 of what is in it"));
        for (name, folder, end, what) in [("render", "pages", "pdf", "PDFs"), ("notify", "mail", "eml", "mails")] {
            let files = std::fs::read_dir(stage.folder.join(folder))?.flatten();
            // A worker that was killed leaves unfinished ones under other names.
            let files = files.filter(|file| file.path().extension().is_some_and(|found| found == end)).count();
            self.fact(name, files == count, &format!("{files} {what}"));
        }
        Ok(())
    }
}

/// How many invoices, of how many reports, over how many cents.
pub async fn invoices(lab: &Lab) -> Result<(i64, i64, i64), Box<dyn Error>> {
    let sql = "SELECT count(*), count(DISTINCT report_id), coalesce(sum(cents), 0) FROM invoices";
    Ok(sqlx::query_as::<_, (i64, i64, i64)>(sql).fetch_one(lab.billing().await?).await?)
}

/// The dead letters by group, as `cargo lab dlq groups` shows them.
pub async fn groups(broker: &dyn Broker) -> Result<Vec<Group>, Box<dyn Error>> {
    let mut groups = selector::groups(&*broker.dead_letters(), None, &Selector::default()).await?;
    groups.sort_by(|a, b| (b.count, a.reason.as_str(), &a.queue).cmp(&(a.count, b.reason.as_str(), &b.queue)));
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["count", "queue", "reason", "error"]);
    for group in &groups {
        table.add_row([&group.count.to_string(), group.queue.as_str(), group.reason.as_str(), &group.error]);
    }
    // Columns are padded to their width, the last one for nothing.
    table.lines().for_each(|line| println!(" {}", line.trim_end()));
    Ok(groups)
}

/// What to type next.
pub fn commands(stage: &Stage, ours: bool) {
    let folder = stage.shown();
    println!("\nLook into {folder}: pages/, mail/, archive/, billing.db and statistics.db are what the jobs made,");
    println!("ledger is each start and end, reports.toml the configuration (with the short retries).");
    if ours {
        println!(
            "\nThe server that was started for this has ended. Name one of yours, and what is printed here works."
        );
        return;
    }
    let config = format!("--config {folder}/reports.toml");
    println!("\nNow you. Show the dead letter; replay it mended, while a worker drains it; publish from anything:\n");
    // The laboratory's worker with the broker of this story in it; on Kafka it needs a moment to be given partitions.
    let (lab, pause) = match stage.config.broker.split(':').next() {
        Some("nats") => ("cargo lab-nats", 2),
        Some("kafka") => ("cargo lab-kafka", 10),
        _ => ("cargo lab", 2),
    };
    println!("  {lab} dlq show invoice {DAMAGED} {config}");
    println!(
        "  {lab} run --queue invoice {config} & \
         {lab} dlq replay invoice {DAMAGED} --body @{folder}/mended.json {config}; sleep {pause}; kill $!; wait"
    );
    println!(
        "  {lab} run {config} & curl -sS --retry 20 --retry-delay 1 --retry-connrefused \
         http://127.0.0.1:7464/api/v1/topics/{} -H 'content-type: application/json' -d @{folder}/mended.json; \
         sleep {pause}; kill $!; wait",
        stage.topic
    );
}
