//! What is said, before and after.

use std::error::Error;
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use futures_util::TryStreamExt;
use windlass::app::Tally;
use windlass::broker::{Broker, Letter, LetterQuery};
use windlass_lab::report::Finding;
use windlass_lab::{Lab, analytics, archive};

use crate::meter::Meter;
use crate::stage::{DEAD, DONE, EVENTS, QUEUES, REPORTS, Stage, TOPIC};

/// Before the first event.
pub fn begin(stage: &Stage) {
    println!("{REPORTS} laboratory reports and 3 bad events, published as {TOPIC}, for {} queues:", QUEUES.len());
    println!("invoice bills, analytics counts, archive keeps; none knows of the others. The queue is");
    println!("{}/queue.db, and no server runs.\n", stage.shown());
}

/// What happened, held against what is known of the data; whether all of it is as it should be.
pub async fn result(stage: &Stage, meter: &Meter, tally: &Tally, took: Duration) -> Result<bool, Box<dyn Error>> {
    let lab = Lab::at(&stage.folder);
    let (invoices, billed, cents) = sqlx::query_as::<_, (i64, i64, i64)>(
        "SELECT count(*), count(DISTINCT report_id), coalesce(sum(cents), 0) FROM invoices",
    )
    .fetch_one(lab.billing().await?)
    .await?;
    let malignant = analytics::counted(&lab, Finding::Malignant).await?;
    let benign = analytics::counted(&lab, Finding::Benign).await?;
    let files = archive::len(&lab)?;
    let done: u64 = meter.done().iter().sum();

    println!("\n{EVENTS} events, {} jobs in {:.2} s: {:.0} a second", EVENTS * QUEUES.len(), took.as_secs_f64(), {
        (EVENTS * QUEUES.len()) as f64 / took.as_secs_f64()
    });
    let (p50, p99) = (meter.wait(50).as_millis(), meter.wait(99).as_millis());
    println!("  waited     p50 {p50} ms, p99 {p99} ms, from published to started");
    println!(
        "  {done} done, {} attempts tried again, {} dead letters; the drain left nothing behind\n",
        tally.retried, tally.dead
    );

    let mut sound = true;
    let mut line = |name: &str, holds: bool, text: String| {
        sound &= holds;
        println!("  {name:<10} {} {text}", if holds { "ok " } else { "WRONG" });
    };
    line("jobs", done == DONE as u64, format!("{done} of {DONE} that can succeed"));
    line(
        "invoice",
        invoices == REPORTS as i64 && billed == invoices,
        format!("{invoices} invoices, one for each report; {}.{:02} in all", cents / 100, cents % 100),
    );
    line("analytics", (malignant, benign) == (212, 357), format!("{malignant} malignant, {benign} benign"));
    for (name, published) in
        [("mean radius", (6.981, 28.11)), ("mean area", (143.5, 2501.0)), ("worst area", (185.2, 4254.0))]
    {
        let found = analytics::range(&lab, name).await?;
        let (least, most) = found.unwrap_or_default();
        line("", found == Some(published), format!("{name} {least} to {most}, as published"));
    }
    line("archive", files == REPORTS, format!("{files} files, each named by the SHA-256 of what is in it"));
    Ok(sound)
}

/// The dead letters, oldest first.
pub async fn dead_letters(broker: &dyn Broker, stage: &Stage) -> Result<Vec<Letter>, Box<dyn Error>> {
    let dead = broker.dead_letters();
    let query = LetterQuery { oldest_first: true, ..LetterQuery::default() };
    let mut letters: Vec<Letter> = dead.list(query).try_collect().await?;
    letters.sort_by(|a, b| (&a.event_id, &a.queue).cmp(&(&b.event_id, &b.queue)));
    println!("\n{} dead letters of 3 bad events ({DEAD} expected): each queue judges for itself\n", letters.len());
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["event", "queue", "reason", "attempts", "error"]);
    for letter in &letters {
        let id = letter.event_id.as_deref().unwrap_or("(unreadable)");
        table.add_row([
            id,
            letter.queue.as_str(),
            letter.reason.as_str(),
            &letter.attempts.to_string(),
            &letter.failure.error,
        ]);
    }
    // Columns are padded to their width, the last one for nothing.
    table.lines().for_each(|line| println!(" {}", line.trim_end()));
    println!("\n  The retries were short: see `retry` in {}/reports.toml.", stage.shown());
    Ok(letters)
}

/// What to type next.
pub fn commands(stage: &Stage, letters: &[Letter]) {
    let folder = stage.shown();
    let config = format!("--config {folder}/reports.toml");
    println!("\nLook into {folder}: billing.db, statistics.db and archive/ are what the jobs made of the reports.");
    println!("\nNow you:\n");
    println!("  cargo lab status {config}");
    println!("  cargo lab dlq groups {config}");
    if let Some(letter) = letters.iter().find(|letter| letter.queue.as_str() == "invoice") {
        println!("  cargo lab dlq show invoice {} {config}", letter.id);
    }
    println!("\n  # the missing report arrives: replay what waited for it, and work until nothing is left");
    println!("  cp {folder}/late/R-0571.json {folder}/reports/");
    println!("  cargo lab dlq replay invoice --reason exhausted {config}");
    println!("  cargo lab run --queue invoice --burst {config}");
}
