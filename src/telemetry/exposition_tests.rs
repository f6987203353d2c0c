//! Reads the whole text as a scraper does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::message::{JobName, QueueName, Reason};
use crate::telemetry::meter::{OutcomeLabel, QueueMeter, Why};

/// Labels in the order of their names, and the value.
type Sample = (BTreeMap<String, String>, f64);

#[derive(Default, Debug)]
struct Family {
    kind: String,
    help: String,
    samples: BTreeMap<String, Vec<Sample>>,
}

/// A strict reader of the text format: every sample must follow the TYPE line of its family.
fn parse(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help text");
            families.entry(name.to_owned()).or_default().help = help.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            current = name.to_owned();
            let family = families.entry(current.clone()).or_default();
            assert!(family.kind.is_empty(), "{name} has two TYPE lines");
            family.kind = kind.to_owned();
        } else {
            let (head, value) = line.rsplit_once(' ').expect("a value");
            let (name, labels) = head.split_once('{').map_or((head, ""), |(n, l)| (n, l.strip_suffix('}').expect("}")));
            assert!(name.starts_with(&current), "{line} follows the TYPE of {current}");
            let family = families.get_mut(&current).expect("declared");
            let sample = (read_labels(labels), value.parse().expect("a number"));
            family.samples.entry(name.to_owned()).or_default().push(sample);
        }
    }
    families
}

fn read_labels(text: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, tail) = rest.split_once("=\"").expect("a label");
        let mut value = String::new();
        let mut chars = tail.char_indices();
        let end = loop {
            match chars.next().expect("closed") {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next().expect("escaped").1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => value.push(other),
            }
        };
        assert!(labels.insert(name.trim_start_matches(',').to_owned(), value).is_none(), "{text}: twice");
        rest = &tail[end + 1..];
    }
    labels
}

/// All samples of one queue, in a fresh process: `name{labels but queue}` to value.
fn of_queue(families: &BTreeMap<String, Family>, queue: &str) -> BTreeMap<String, f64> {
    let samples = families.values().flat_map(|family| &family.samples);
    samples
        .flat_map(|(name, samples)| samples.iter().map(move |sample| (name, sample)))
        .filter(|(_, (labels, _))| labels.get("queue").is_some_and(|q| q == queue))
        .map(|(name, (labels, value))| {
            let labels: Vec<_> =
                labels.iter().filter(|(n, _)| *n != "queue").map(|(n, v)| format!("{n}={v}")).collect();
            (format!("{name}{{{}}}", labels.join(",")), *value)
        })
        .collect()
}

#[test]
fn every_family_is_there_from_the_start_with_help_and_type() {
    let queue = QueueName::new("exposition-start").expect("valid");
    let job = JobName::new("quote\"and\\slash").expect("valid");
    let _meter = QueueMeter::new(&queue, &job, &[]);
    let families = parse(&render());
    for (name, kind, help) in FAMILIES {
        let family = families.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        let expected = match kind {
            Kind::Counter => "counter",
            Kind::Gauge | Kind::Depth => "gauge",
            Kind::Histogram => "histogram",
        };
        assert_eq!((family.kind.as_str(), family.help.as_str()), (expected, help), "{name}");
    }
    assert!(families["windlass_build_info"].samples["windlass_build_info"][0].0.contains_key("revision"));

    let samples = of_queue(&families, "exposition-start");
    assert!(samples.values().all(|value| *value == 0.0), "{samples:?}");
    let mut expected = BTreeSet::new();
    for job in ["quote\"and\\slash", "other"] {
        for outcome in OutcomeLabel::ALL {
            expected.insert(format!("windlass_jobs_total{{job={job},outcome={}}}", outcome.as_str()));
        }
        for reason in Reason::ALL {
            expected.insert(format!("windlass_dead_letters_total{{job={job},reason={}}}", reason.as_str()));
        }
        expected.insert(format!("windlass_job_retries_total{{job={job}}}"));
    }
    // What never runs never succeeds: an alert on its age would always fire.
    expected.insert("windlass_last_success_timestamp_seconds{job=quote\"and\\slash}".to_owned());
    for why in Why::ALL {
        expected.insert(format!("windlass_intake_paused{{why={}}}", why.as_str()));
    }
    let own =
        ["in_flight", "slots", "bytes_in_flight", "unconfirmed", "dead_letters_expired_total", "redeliveries_total"];
    for name in own.into_iter().chain(["lost_total", "head_age_seconds", "head_span"]) {
        expected.insert(format!("windlass_{name}{{}}"));
    }
    let plain: BTreeSet<String> =
        samples.keys().filter(|name| !name.contains("_bucket{") && !name.contains("_seconds_")).cloned().collect();
    assert_eq!(plain, expected);
}

#[test]
fn figures_arrive_and_buckets_are_cumulative() {
    let queue = QueueName::new("exposition-figures").expect("valid");
    let job = JobName::new("j").expect("valid");
    let meter = QueueMeter::new(&queue, &job, &[]);
    let mut tally = meter.tally(&job);
    for millis in [0, 1, 2, 40, 40, 5_000, 4_000_000] {
        tally.record(OutcomeLabel::Done, Duration::from_millis(millis), Duration::from_millis(millis));
    }
    tally.flush();
    meter.set_slots(64);
    meter.set_in_flight(3);
    meter.set_bytes_in_flight(4_096);
    meter.set_unconfirmed(2);
    meter.set_paused(Why::DeadLetter, true);
    meter.add_retries(&job, 5);
    meter.add_dead(&job, Reason::Permanent);
    meter.add_dead_expired(9);
    meter.add_redeliveries(8);
    meter.add_lost(6);
    meter.set_head((Duration::from_millis(1_500), 11));
    meter.observe_settle(Duration::from_millis(3), 7);

    let families = parse(&render());
    let samples = of_queue(&families, "exposition-figures");
    for (name, value) in [
        ("windlass_jobs_total{job=j,outcome=done}", 7.0),
        ("windlass_slots{}", 64.0),
        ("windlass_in_flight{}", 3.0),
        ("windlass_bytes_in_flight{}", 4_096.0),
        ("windlass_unconfirmed{}", 2.0),
        ("windlass_intake_paused{why=dead_letter}", 1.0),
        ("windlass_intake_paused{why=full}", 0.0),
        ("windlass_job_retries_total{job=j}", 5.0),
        ("windlass_dead_letters_total{job=j,reason=permanent}", 1.0),
        ("windlass_dead_letters_expired_total{}", 9.0),
        ("windlass_redeliveries_total{}", 8.0),
        ("windlass_lost_total{}", 6.0),
        ("windlass_head_age_seconds{}", 1.5),
        ("windlass_head_span{}", 11.0),
        ("windlass_settle_duration_seconds_count{}", 7.0),
        ("windlass_settle_duration_seconds_bucket{le=0.0025}", 0.0),
        ("windlass_settle_duration_seconds_bucket{le=0.005}", 7.0),
        ("windlass_job_duration_seconds_bucket{job=j,le=0.001}", 2.0),
        ("windlass_job_duration_seconds_bucket{job=j,le=0.05}", 5.0),
        ("windlass_job_duration_seconds_bucket{job=j,le=5}", 6.0),
        ("windlass_job_duration_seconds_bucket{job=j,le=1800}", 6.0),
        ("windlass_job_duration_seconds_bucket{job=j,le=+Inf}", 7.0),
        ("windlass_job_duration_seconds_count{job=j}", 7.0),
        ("windlass_job_duration_seconds_sum{job=j}", 4_005.083),
    ] {
        assert_eq!(samples.get(name), Some(&value), "{name}");
    }
    assert!(samples["windlass_last_success_timestamp_seconds{job=j}"] > 1.7e9);

    for (name, family) in families.iter().filter(|(_, family)| family.kind == "histogram") {
        let mut last: BTreeMap<BTreeMap<String, String>, (f64, usize)> = BTreeMap::new();
        for (labels, value) in family.samples.get(&format!("{name}_bucket")).into_iter().flatten() {
            let mut labels = labels.clone();
            labels.remove("le").expect("every bucket has a bound");
            let (before, seen) = last.entry(labels).or_default();
            assert!(*value >= *before, "{name} is not cumulative");
            (*before, *seen) = (*value, *seen + 1);
        }
        for (labels, value) in family.samples.get(&format!("{name}_count")).into_iter().flatten() {
            assert_eq!(last[labels], (*value, 21), "{name}: +Inf is the count, of 21 buckets");
        }
    }
}

#[test]
fn what_the_broker_cannot_know_is_absent() {
    set_depths(vec![Depth {
        queue: "depths".to_owned(),
        ready: Some(7),
        oldest_age: Some(Duration::from_millis(1_500)),
        dead: Some(0),
        ..Depth::default()
    }]);
    let samples = of_queue(&parse(&render()), "depths");
    let expected = [
        ("windlass_dead_letter_depth{}".to_owned(), 0.0),
        ("windlass_queue_oldest_age_seconds{}".to_owned(), 1.5),
        ("windlass_queue_ready{}".to_owned(), 7.0),
    ];
    assert_eq!(samples, BTreeMap::from(expected));
}
