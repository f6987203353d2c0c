//! `doctor`: what would lose, duplicate or stall jobs, in the configuration and at the broker.

use std::process::ExitCode;

use clap::Args;

use super::Done;
use super::fault::FAILED;
use super::output::{Paint, shown};
use super::session::{Connection, Session};
use crate::broker::{Finding, Role, Severity};
use crate::config::{Config, check_namespace};
use crate::handler::Registry;

/// Flags of `doctor`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  windlass doctor
  windlass doctor --json | jq 'select(.severity == \"error\")'

Leaves with 1 where a finding is an error.")]
pub struct Arguments {}

/// Examines.
pub fn run(session: Session, registry: Registry, _: Arguments) -> Done {
    session.with_broker(Role::Reader, "doctor", async |connection: Connection| {
        let mut findings = configured(&connection.config, &registry);
        findings.extend(super::config::cautions(&session).into_iter().map(|caution| Finding {
            severity: Severity::Warn,
            subject: if caution.key.is_empty() { "configuration".to_owned() } else { caution.key },
            finding: caution.message,
            fix: caution.hint.unwrap_or_default(),
        }));
        findings.extend(connection.broker.inspect().doctor().await?);
        findings.sort_by(|a, b| (a.severity, &a.subject).cmp(&(b.severity, &b.subject)));
        let mut out = session.output();
        for finding in &findings {
            if session.json() {
                out.json(finding)?;
                continue;
            }
            let severity = match finding.severity {
                Severity::Error => Paint::Red.on("error"),
                Severity::Warn => Paint::Yellow.on("warn "),
                Severity::Info => Paint::Dim.on("info "),
            };
            out.line(format_args!(
                "{severity}  {}: {}",
                Paint::Bold.on(&shown(&finding.subject, false)),
                shown(&finding.finding, false)
            ))?;
            if !finding.fix.is_empty() {
                out.line(format_args!("       {}", Paint::Dim.on(&shown(&finding.fix, false))))?;
            }
        }
        out.flush()?;
        let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
        if findings.is_empty() {
            session.note(format_args!("{}: nothing to say", connection.broker.address()));
        }
        Ok(ExitCode::from(if errors > 0 { FAILED } else { 0 }))
    })
}

/// What the configuration alone tells.
fn configured(config: &Config, registry: &Registry) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |severity, subject: String, finding: String, fix: &str| {
        findings.push(Finding { severity, subject, finding, fix: fix.to_owned() });
    };
    if let Some(fault) = check_namespace(config) {
        let fix = fault.hint.clone().unwrap_or_else(|| "set `namespace`".to_owned());
        find(Severity::Error, "namespace".to_owned(), fault.message, &fix);
    }
    if config.sqlite.synchronous_normal && config.broker.starts_with("sqlite") {
        find(
            Severity::Warn,
            "sqlite.synchronous".to_owned(),
            "with \"normal\" a power cut may lose what was confirmed last".to_owned(),
            "set it to \"full\", unless that is acceptable",
        );
    }
    for (name, queue) in &config.queues {
        let entry = registry.get(queue.job.as_str());
        let over_http = config.jobs.get(&queue.job).is_some_and(|job| job.http.is_some());
        if entry.is_none() && !over_http {
            find(
                Severity::Warn,
                format!("queues.{name}"),
                format!("its job {} is neither compiled into this binary nor under [jobs]", queue.job),
                "run this queue by a binary that has it, or give the job an `http` address",
            );
        }
        if queue.keep_dead.is_some_and(|keep| keep < std::time::Duration::from_secs(3 * 86_400)) {
            find(
                Severity::Info,
                format!("queues.{name}"),
                "dead letters are kept for less than three days".to_owned(),
                "raise dead_letter.keep if nobody looks at them so soon",
            );
        }
    }
    findings
}
