//! `--fail-if 'dead>0,age>5m'`: conditions on a queue's status.

use std::str::FromStr;

use crate::broker::shape::QueueStatus;
use crate::time::{format_duration, parse_duration};

/// One condition on one figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    figure: Figure,
    comparison: Comparison,
    bound: f64,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Figure {
    Ready,
    Running,
    Retrying,
    Scheduled,
    Dead,
    Age,
    DeadAge,
    Workers,
    Slots,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Above,
    AtLeast,
    Below,
    AtMost,
    Equal,
    Unequal,
}

/// Names and figures; the names of the JSON shape are understood too.
const FIGURES: [(&str, Figure); 11] = [
    ("ready", Figure::Ready),
    ("running", Figure::Running),
    ("retrying", Figure::Retrying),
    ("scheduled", Figure::Scheduled),
    ("dead", Figure::Dead),
    ("age", Figure::Age),
    ("dead_age", Figure::DeadAge),
    ("workers", Figure::Workers),
    ("slots", Figure::Slots),
    ("oldest_age_s", Figure::Age),
    ("dead_oldest_age_s", Figure::DeadAge),
];

/// Two characters before one, so that `>=` is not read as `>`.
const COMPARISONS: [(&str, Comparison); 7] = [
    (">=", Comparison::AtLeast),
    ("<=", Comparison::AtMost),
    ("!=", Comparison::Unequal),
    ("==", Comparison::Equal),
    (">", Comparison::Above),
    ("<", Comparison::Below),
    ("=", Comparison::Equal),
];

impl FromStr for Condition {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let at = text.find(['<', '>', '=', '!']).ok_or_else(|| {
            format!("expected a figure, a comparison and a bound such as \"dead>0\" or \"age>5m\", found {text:?}")
        })?;
        let (name, rest) = text.split_at(at);
        let (sign, comparison) = COMPARISONS
            .into_iter()
            .find(|(sign, _)| rest.starts_with(sign))
            .ok_or_else(|| format!("expected one of > >= < <= = !=, found {rest:?}"))?;
        let figure = FIGURES.iter().find(|(known, _)| *known == name.trim()).map(|(_, figure)| *figure);
        let figure = figure.ok_or_else(|| {
            let known: Vec<&str> = FIGURES.iter().take(9).map(|(name, _)| *name).collect();
            format!("expected one of {}, found {:?}", known.join(", "), name.trim())
        })?;
        let bound = rest[sign.len()..].trim();
        let number: Option<f64> = bound.parse().ok().filter(|number: &f64| number.is_finite());
        let bound = match (figure, number) {
            (_, Some(number)) => number,
            (Figure::Age | Figure::DeadAge, None) => parse_duration(bound)?.as_secs_f64(),
            (_, None) => return Err(format!("expected a number after {sign}, found {bound:?}")),
        };
        Ok(Self { figure, comparison, bound, text: text.to_owned() })
    }
}

impl Condition {
    /// Why this queue fails the check, if it does. A figure that is not known fails.
    pub fn failure(&self, queue: &QueueStatus) -> Option<String> {
        let count = |count: Option<u64>| count.map(|count| count as f64);
        let found = match self.figure {
            Figure::Ready => count(queue.ready),
            Figure::Running => count(queue.running),
            Figure::Retrying => count(queue.retrying),
            Figure::Scheduled => count(queue.scheduled),
            Figure::Dead => count(queue.dead),
            Figure::Age => queue.oldest_age_s,
            Figure::DeadAge => queue.dead_oldest_age_s,
            Figure::Workers => count(queue.workers),
            Figure::Slots => count(queue.slots),
        };
        let Some(found) = found else {
            return Some(format!("{}: {} cannot be known here", queue.name, self.text));
        };
        let holds = match self.comparison {
            Comparison::Above => found > self.bound,
            Comparison::AtLeast => found >= self.bound,
            Comparison::Below => found < self.bound,
            Comparison::AtMost => found <= self.bound,
            Comparison::Equal => found == self.bound,
            Comparison::Unequal => found != self.bound,
        };
        let shown = match self.figure {
            Figure::Age | Figure::DeadAge => {
                format_duration(std::time::Duration::from_secs_f64(found.max(0.0).round()))
            }
            _ => found.to_string(),
        };
        holds.then(|| format!("{}: {} (it is {shown})", queue.name, self.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read_and_checked() {
        let queue = QueueStatus {
            name: "invoice".to_owned(),
            ready: Some(10),
            dead: Some(2),
            oldest_age_s: Some(301.0),
            workers: Some(0),
            ..QueueStatus::default()
        };
        let fails = |text: &str| text.parse::<Condition>().expect(text).failure(&queue).is_some();
        for text in
            ["dead>0", "dead>=2", "dead=2", "dead==2", "dead!=3", "age>5m", " age > 300 ", "workers<1", "ready<=10"]
        {
            assert!(fails(text), "{text} should fail");
        }
        for text in ["dead>2", "dead<2", "age>6m", "ready>10000", "workers>0", "ready!=10"] {
            assert!(!fails(text), "{text} should pass");
        }
        // What cannot be known fails.
        assert!(fails("slots<1") && fails("slots>=0") && fails("running>0"));
        assert_eq!(
            "dead>0".parse::<Condition>().expect("read").failure(&queue).as_deref(),
            Some("invoice: dead>0 (it is 2)")
        );
        for bad in ["", "dead", "dead>", "dead>many", "dead~1", "deaf>0", "ready>5m", "dead>inf", "dead!1"] {
            assert!(bad.parse::<Condition>().is_err(), "{bad:?} was accepted");
        }
    }
}
