//! Which dead letters are meant: selectors, ids, and groups of letters that failed alike. The command line and the
//! admin port share it.

use std::collections::HashMap;

use futures_util::StreamExt;

use super::fingerprint::fingerprint;
use super::{DeadLetters, Error, Letter, LetterQuery};
use crate::message::{self, QueueName, Reason};
use crate::time::Timestamp;

/// Conditions that a letter must all meet. The default selects every letter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Why it is here.
    pub reason: Option<Reason>,
    /// Part of its error or error type, in any case.
    pub error: Option<String>,
    /// Its fingerprint, or the beginning of it.
    pub fingerprint: Option<String>,
    /// The job that ran or would have run.
    pub job: Option<String>,
    /// The topic it was published to.
    pub topic: Option<String>,
    /// Its ordering key.
    pub key: Option<String>,
    /// The event's id.
    pub event: Option<String>,
    /// Last failed at or after this.
    pub since: Option<Timestamp>,
    /// Last failed before this.
    pub until: Option<Timestamp>,
    /// At most so many, the first in the listing's order.
    pub limit: Option<usize>,
}

impl Selector {
    /// Whether nothing was asked for, which selects every letter.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What the broker can select by itself.
    pub fn query(&self, queue: Option<&QueueName>, oldest_first: bool) -> LetterQuery {
        LetterQuery { queue: queue.cloned(), since: self.since, until: self.until, oldest_first }
    }

    /// Whether a letter meets every condition; `limit` is the caller's to keep.
    pub fn matches(&self, letter: &Letter) -> bool {
        let failure = &letter.failure;
        let is = |wanted: &Option<String>, found: Option<&str>| match wanted {
            Some(wanted) => found == Some(wanted),
            None => true,
        };
        self.reason.is_none_or(|reason| reason == letter.reason)
            && self.since.is_none_or(|since| failure.last >= since)
            && self.until.is_none_or(|until| failure.last < until)
            && is(&self.job, Some(letter.job.as_str()))
            && is(&self.topic, letter.record.topic.as_deref())
            && is(&self.event, letter.event_id.as_deref())
            && self.error.as_ref().is_none_or(|part| {
                contains_ignoring_case(&failure.error, part) || contains_ignoring_case(&failure.error_type, part)
            })
            && self.key.as_ref().is_none_or(|key| self::key(letter).as_deref() == Some(key.as_bytes()))
            && self.fingerprint.as_ref().is_none_or(|wanted| fingerprint(letter).starts_with(wanted.as_str()))
    }
}

fn contains_ignoring_case(text: &str, part: &str) -> bool {
    text.to_lowercase().contains(&part.to_lowercase())
}

/// A letter's ordering key: the record's own, else `partitionkey`.
pub fn key(letter: &Letter) -> Option<bytes::Bytes> {
    letter.message.key.clone().or_else(|| {
        // Where it lay matters only for the id of a plain event, which is not asked for here.
        let place = message::Place {
            position: String::new(),
            source: String::new(),
            topic: letter.record.topic.clone(),
            binding: letter.binding,
        };
        let origin = message::Origin { place: &place, seq: 0, at: letter.failure.first };
        message::decode(&letter.message, &origin, None).ok().and_then(|event| event.key)
    })
}

/// What an id names among a queue's letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    Prefix,
    Event,
    Exact,
}

fn fit(letter: &Letter, id: &str) -> Option<Fit> {
    if letter.id == id {
        Some(Fit::Exact)
    } else if letter.event_id.as_deref() == Some(id) {
        Some(Fit::Event)
    } else if !id.is_empty() && letter.id.starts_with(id) {
        Some(Fit::Prefix)
    } else {
        None
    }
}

/// What ids resolve to.
#[derive(Clone, Debug, Default)]
pub struct Resolved {
    /// The ids of the letters that are meant, in the listing's order.
    pub ids: Vec<String>,
    /// Ids that name no letter.
    pub missing: Vec<String>,
    /// Ids that are the beginning of several letters' ids, with how many.
    pub ambiguous: Vec<(String, usize)>,
}

/// Collects what ids mean while letters go by: a letter's id before a whole event id (which may name several
/// letters) before the beginning of one letter's id.
pub struct Resolver {
    wanted: HashMap<String, Option<(Fit, Vec<String>)>>,
    order: Vec<String>,
    seen: Vec<String>,
}

impl Resolver {
    /// For these ids.
    pub fn new(ids: impl IntoIterator<Item = String>) -> Self {
        let mut wanted = HashMap::new();
        let mut order = Vec::new();
        for id in ids {
            if wanted.insert(id.clone(), None).is_none() {
                order.push(id);
            }
        }
        Self { wanted, order, seen: Vec::new() }
    }

    /// Looks at a letter; `true` where some id may mean it.
    pub fn offer(&mut self, letter: &Letter) -> bool {
        let mut meant = false;
        let mut add = |id: &str, found: &mut Option<(Fit, Vec<String>)>| {
            let Some(fit) = fit(letter, id) else { return };
            match found {
                Some((best, ids)) if *best == fit => ids.push(letter.id.clone()),
                Some((best, _)) if *best > fit => return,
                _ => *found = Some((fit, vec![letter.id.clone()])),
            }
            meant = true;
        };
        // Ten thousand ids against ten thousand letters: whole ids by hash, and only those that may be the
        // beginning of an id one by one.
        let event = letter.event_id.as_deref().filter(|event| *event != letter.id);
        for whole in [Some(letter.id.as_str()), event].into_iter().flatten() {
            if let Some(found) = self.wanted.get_mut(whole) {
                add(whole, found);
            }
        }
        for end in letter.id.char_indices().map(|(at, _)| at).skip(1) {
            let prefix = &letter.id[..end];
            if event != Some(prefix)
                && let Some(found) = self.wanted.get_mut(prefix)
            {
                add(prefix, found);
            }
        }
        if meant {
            self.seen.push(letter.id.clone());
        }
        meant
    }

    /// Whether every id was found by its whole letter id, so that nothing further can change the answer.
    pub fn settled(&self) -> bool {
        self.wanted.values().all(|found| matches!(found, Some((Fit::Exact, _))))
    }

    /// The answer, once all letters went by.
    pub fn finish(self) -> Resolved {
        let mut resolved = Resolved::default();
        let mut meant = std::collections::HashSet::new();
        for id in self.order {
            match self.wanted.get(&id) {
                Some(Some((Fit::Prefix, ids))) if ids.len() > 1 => resolved.ambiguous.push((id, ids.len())),
                Some(Some((_, ids))) => meant.extend(ids.iter().cloned()),
                _ => resolved.missing.push(id),
            }
        }
        resolved.ids = self.seen.into_iter().filter(|id| meant.remove(id)).collect();
        resolved
    }
}

/// Letters of one fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct Group {
    /// Their fingerprint.
    pub fingerprint: String,
    /// Their queue.
    #[schema(value_type = String)]
    pub queue: QueueName,
    /// Their job.
    pub job: String,
    /// How many.
    pub count: u64,
    /// Why they are here.
    #[schema(value_type = String)]
    pub reason: Reason,
    /// Their error's type.
    pub error_type: String,
    /// The error of the one that failed last.
    pub error: String,
    /// The first failure among them.
    pub first: String,
    /// The last failure among them.
    pub last: String,
    /// The id of the one that failed last.
    pub example: String,
}

/// Gathers letters by fingerprint.
#[derive(Default)]
pub struct Groups {
    by_fingerprint: HashMap<String, (Group, Timestamp, Timestamp)>,
}

impl Groups {
    /// Counts a letter.
    pub fn add(&mut self, letter: &Letter) {
        let failure = &letter.failure;
        let print = fingerprint(letter);
        let (group, first, last) = self.by_fingerprint.entry(print.clone()).or_insert_with(|| {
            let group = Group {
                fingerprint: print,
                queue: letter.queue.clone(),
                job: letter.job.to_string(),
                count: 0,
                reason: letter.reason,
                error_type: failure.error_type.clone(),
                error: failure.error.clone(),
                first: String::new(),
                last: String::new(),
                example: letter.id.clone(),
            };
            (group, failure.first, failure.last)
        });
        group.count += 1;
        *first = failure.first.min(*first);
        if failure.last > *last {
            *last = failure.last;
            group.error.clone_from(&failure.error);
            group.example.clone_from(&letter.id);
        }
    }

    /// The groups, the largest first.
    pub fn finish(self) -> Vec<Group> {
        let mut groups: Vec<Group> = self
            .by_fingerprint
            .into_values()
            .map(|(group, first, last)| Group { first: first.to_rfc3339(), last: last.to_rfc3339(), ..group })
            .collect();
        groups.sort_by(|a, b| {
            b.count.cmp(&a.count).then_with(|| b.last.cmp(&a.last)).then_with(|| a.fingerprint.cmp(&b.fingerprint))
        });
        groups
    }
}

/// Groups what a selector selects.
pub async fn groups(
    dead: &dyn DeadLetters,
    queue: Option<&QueueName>,
    selector: &Selector,
) -> Result<Vec<Group>, Error> {
    let mut groups = Groups::default();
    let mut letters = dead.list(selector.query(queue, false));
    let mut left = selector.limit.unwrap_or(usize::MAX);
    while left > 0
        && let Some(letter) = letters.next().await.transpose()?
    {
        if selector.matches(&letter) {
            groups.add(&letter);
            left -= 1;
        }
    }
    Ok(groups.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::letter::tests::letter;
    use proptest::prelude::*;

    #[test]
    fn each_condition_counts() {
        let letter = letter("L1", "No report 17");
        let all = Selector::default;
        let last = letter.failure.last;
        let earlier = Timestamp::from_millis(last.as_millis() - 1);
        let text = |text: &str| Some(text.to_owned());
        let cases = [
            (all(), true),
            (Selector { reason: Some(Reason::Permanent), ..all() }, true),
            (Selector { reason: Some(Reason::Expired), ..all() }, false),
            (Selector { error: text("nO rePort"), ..all() }, true),
            (Selector { error: text("io::"), ..all() }, true),
            (Selector { error: text("timeout"), ..all() }, false),
            (Selector { fingerprint: Some(fingerprint(&letter)), ..all() }, true),
            (Selector { fingerprint: text("zz"), ..all() }, false),
            (Selector { job: text("invoice"), ..all() }, true),
            (Selector { job: text("inv"), ..all() }, false),
            (Selector { topic: text("reports.finalized"), ..all() }, true),
            (Selector { topic: text("other"), ..all() }, false),
            (Selector { key: text("k"), ..all() }, true),
            (Selector { key: text("q"), ..all() }, false),
            (Selector { event: text("evt-1"), ..all() }, true),
            (Selector { event: text("evt-"), ..all() }, false),
            (Selector { since: Some(last), ..all() }, true),
            (Selector { since: Some(last.after(std::time::Duration::from_millis(1))), ..all() }, false),
            (Selector { until: Some(last), ..all() }, false),
            (Selector { until: Some(last), since: Some(earlier), ..all() }, false),
        ];
        for (selector, expected) in cases {
            assert_eq!(selector.matches(&letter), expected, "{selector:?}");
        }
    }

    #[test]
    fn groups_show_the_newest_and_the_largest_first() {
        let mut groups = Groups::default();
        let mut late = letter("L3", "no report 18");
        late.failure.last = late.failure.last.after(std::time::Duration::from_secs(9));
        for letter in [letter("L1", "disk full"), letter("L2", "no report 17"), late] {
            groups.add(&letter);
        }
        let groups = groups.finish();
        let seen: Vec<_> = groups.iter().map(|g| (g.count, g.example.as_str(), g.error.as_str())).collect();
        assert_eq!(seen, [(2, "L3", "no report 18"), (1, "L1", "disk full")]);
        assert_eq!(
            (groups[0].first.as_str(), groups[0].last.as_str()),
            ("2025-11-21T10:00:00.000Z", "2025-11-21T10:00:10.000Z")
        );
    }

    /// The rule as INTERFACE words it, one id at a time.
    fn naive(letters: &[Letter], id: &str) -> Result<Vec<String>, usize> {
        let of = |test: &dyn Fn(&Letter) -> bool| -> Vec<String> {
            letters.iter().filter(|l| test(l)).map(|l| l.id.clone()).collect()
        };
        let exact = of(&|l| l.id == id);
        let event = of(&|l| l.event_id.as_deref() == Some(id));
        let prefix = of(&|l| l.id.starts_with(id));
        match (exact.is_empty(), event.is_empty(), prefix.len()) {
            (false, ..) => Ok(exact),
            (true, false, _) => Ok(event),
            (true, true, 1) => Ok(prefix),
            (true, true, several) => Err(several),
        }
    }

    proptest! {
        #[test]
        fn ids_mean_what_the_naive_rule_says(
            letters in proptest::collection::btree_map("[ab]{1,4}", proptest::option::of("[ab]{1,3}"), 0..12),
            ids in proptest::collection::vec("[ab]{1,4}", 1..6),
        ) {
            let letters: Vec<Letter> = letters.into_iter().map(|(id, event)| Letter { event_id: event, ..letter(&id, "x") }).collect();
            let mut resolver = Resolver::new(ids.clone());
            for letter in &letters {
                if resolver.settled() {
                    break;
                }
                resolver.offer(letter);
            }
            let resolved = resolver.finish();
            let mut meant = std::collections::BTreeSet::new();
            for id in &ids {
                match naive(&letters, id) {
                    Ok(found) => meant.extend(found),
                    Err(0) => prop_assert!(resolved.missing.contains(id)),
                    Err(several) => prop_assert!(resolved.ambiguous.contains(&(id.clone(), several))),
                }
            }
            prop_assert_eq!(resolved.ids, meant.into_iter().collect::<Vec<_>>());
        }
    }
}
