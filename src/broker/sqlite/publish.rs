//! Publishing: a message is stored once, and an entry for each queue that hears it.

use std::collections::BTreeMap;

use super::script::{Script, json_list};
use super::settle::place_moved;
use crate::broker::{Destination, Error, Publication};
use crate::message::Message;
use crate::message::attribute::PARTITIONKEY;
use crate::time::Timestamp;

/// The largest message: headers and body.
const MAX: usize = 512 * 1_024 * 1_024;
/// Marks, in `event.head`, a message that has no body at all.
pub const NO_BODY: i64 = 1 << 40;

/// A queue as publishing needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hearer {
    /// Its number.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// Whether it keeps the order of keys.
    pub ordered: bool,
    /// Crashes that condemn.
    pub max_crashes: i64,
    /// How long dead letters are kept, in milliseconds.
    pub keep_dead: Option<i64>,
    /// It was forgotten, and is still here because dead letters name it.
    pub forgotten: bool,
}

/// What the file knows of topics and queues, as of one generation.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// The generation.
    pub generation: i64,
    /// The file's salt.
    pub salt: i64,
    /// Topics by name: number and queues.
    pub topics: BTreeMap<String, (i64, Vec<Hearer>)>,
    /// Queues by name.
    pub queues: BTreeMap<String, Hearer>,
}

/// Where one message goes.
pub struct Route<'d> {
    topic: Option<i64>,
    queues: &'d [Hearer],
}

impl Route<'_> {
    /// To how many queues.
    pub fn queues(&self) -> u32 {
        self.queues.len() as u32
    }

    /// The first queue; 0 where there is none.
    pub fn first(&self) -> i64 {
        self.queues.first().map_or(0, |queue| queue.id)
    }
}

impl Directory {
    /// Where `publication` goes, or why nowhere. No queues: it is not stored at all.
    pub fn route(&self, publication: &Publication) -> Result<Route<'_>, Error> {
        let size = publication.message.size();
        if size > MAX {
            return Err(Error::Rejected(format!("the message has {size} bytes; at most {MAX} can be stored")));
        }
        match &publication.destination {
            Destination::Topic(topic) => match self.topics.get(topic.as_str()) {
                Some((id, queues)) if !queues.is_empty() => Ok(Route { topic: Some(*id), queues }),
                _ if publication.allow_unheard => Ok(Route { topic: None, queues: &[] }),
                _ => {
                    let heard = self.topics.iter().filter(|(_, (_, queues))| !queues.is_empty()).map(|(name, _)| name);
                    let hint = match nearest(topic.as_str(), heard) {
                        Some(name) => format!("the nearest that one hears is {name}"),
                        None => "no queue hears any topic yet".to_owned(),
                    };
                    Err(Error::Rejected(format!("no queue hears the topic {topic}; {hint}")))
                }
            },
            Destination::Queue { queue, .. } => match self.queues.get(queue.as_str()) {
                Some(hearer) => Ok(Route { topic: None, queues: std::slice::from_ref(hearer) }),
                None => Err(self.no_queue(queue.as_str())),
            },
        }
    }

    /// Whether the queue of this number keeps the order of keys.
    pub fn is_ordered(&self, queue: i64) -> bool {
        self.queues.values().any(|known| known.id == queue && known.ordered)
    }

    /// There is no such queue.
    pub fn no_queue(&self, name: &str) -> Error {
        Error::NotFound(match nearest(name, self.queues.keys()) {
            Some(near) => format!("there is no queue {name}; the nearest is {near}"),
            None => format!("there is no queue {name}; no queue is known here yet"),
        })
    }
}

fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Option<&'a String> {
    known.min_by_key(|candidate| strsim::damerau_levenshtein(name, candidate))
}

/// Messages that one transaction stores.
#[derive(Default)]
pub struct Batch {
    events: Vec<Event>,
    /// Offsets of events, by the unordered queue that hears them.
    fresh: BTreeMap<i64, Vec<i64>>,
    /// Enqueued ones: queue, offset, due.
    later: Vec<(i64, i64, i64)>,
    /// In key order, by queue and group: offset and key.
    keyed: BTreeMap<(i64, i64), Vec<Keyed>>,
    /// Offsets and number of queues, where several hear it.
    shared: Vec<(i64, i64)>,
    bytes: usize,
}

/// An offset and its key.
type Keyed = (i64, Vec<u8>);

struct Event {
    topic: Option<i64>,
    due: Option<i64>,
    job: Option<String>,
    key: Option<Vec<u8>>,
    head: i64,
    content: Vec<u8>,
}

impl Batch {
    /// Messages.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// True where nothing is to be stored.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Adds a message where its route says; its place among those that are stored, `None` where it is not.
    pub fn push(&mut self, publication: &Publication, route: &Route<'_>, now: Timestamp) -> Option<i64> {
        if route.queues.is_empty() {
            return None;
        }
        let offset = self.events.len() as i64;
        let message = &publication.message;
        let (job, due) = match &publication.destination {
            Destination::Topic(_) => (None, None),
            Destination::Queue { job, not_before, .. } => {
                (job.as_ref().map(ToString::to_string), not_before.map(Timestamp::as_millis))
            }
        };
        let key = order_key(message);
        for queue in route.queues {
            match &key {
                Some(key) if queue.ordered => {
                    self.keyed.entry((queue.id, route.topic.unwrap_or(0))).or_default().push((offset, key.clone()));
                }
                _ if route.topic.is_some() => self.fresh.entry(queue.id).or_default().push(offset),
                _ => self.later.push((queue.id, offset, due.unwrap_or(now.as_millis()))),
            }
        }
        if route.queues.len() > 1 {
            self.shared.push((offset, route.queues.len() as i64));
        }
        let (head, content) = pack(message);
        self.bytes += content.len();
        let key = message.key.as_ref().map(|key| key.to_vec());
        self.events.push(Event { topic: route.topic, due, job, key, head, content });
        Some(offset)
    }

    /// Writes the statements; the number of the one that answers with the first message's number. Numbers come from
    /// `meta.next`, so that their order is the order of commits.
    pub fn write(self, script: &mut Script, now: Timestamp) -> Option<usize> {
        let count = self.events.len() as i64;
        if count == 0 {
            return None;
        }
        insert_events(script, self.events, now);
        for (queue, offsets) in &self.fresh {
            script.add("INSERT INTO fresh SELECT ?, m.next + j.value FROM meta m CROSS JOIN json_each(?) j");
            script.bind(*queue).bind(json_list(offsets.iter().copied()));
        }
        if !self.later.is_empty() {
            script.add(
                "INSERT INTO later (queue, class, due, event, kind) \
                 SELECT j.value ->> 0, 0, j.value ->> 2, m.next + (j.value ->> 1), 1 FROM meta m CROSS JOIN json_each(?) j",
            );
            script.bind(serde_json::to_string(&self.later).expect("numbers always serialize"));
        }
        if !self.shared.is_empty() {
            script.add(
                "INSERT INTO shared SELECT m.next + (j.value ->> 0), j.value ->> 1 FROM meta m CROSS JOIN json_each(?) j",
            );
            script.bind(serde_json::to_string(&self.shared).expect("numbers always serialize"));
        }
        for ((queue, group), events) in &self.keyed {
            insert_keyed(script, *queue, *group, events);
        }
        if !self.keyed.is_empty() {
            place_moved(script);
        }
        let numbered = script.add("UPDATE meta SET next = next + ? RETURNING next - ?");
        script.bind(count).bind(count);
        Some(numbered)
    }
}

/// Rows of one statement; unused ones are bound to null and left out, so that there are few texts.
fn rows_for(count: usize) -> usize {
    match count {
        1 => 1,
        2..=8 => 8,
        _ => 64,
    }
}

fn insert_events(script: &mut Script, events: Vec<Event>, now: Timestamp) {
    const COLUMNS: &str = "(?,?,?,?,?,?,?)";
    let mut offset = 0_i64;
    let mut events = events.into_iter().peekable();
    while events.peek().is_some() {
        let rows = rows_for(events.len());
        let mut text = String::with_capacity(300 + rows * (COLUMNS.len() + 1));
        text.push_str(
            "INSERT INTO event (at, id, topic, due, job, key, head, content) \
             SELECT ?, m.next + v.column1, v.column2, v.column3, v.column4, v.column5, v.column6, v.column7 \
             FROM meta m CROSS JOIN (VALUES ",
        );
        for row in 0..rows {
            text.push_str(if row == 0 { "" } else { "," });
            text.push_str(COLUMNS);
        }
        text.push_str(") v WHERE v.column1 IS NOT NULL");
        script.add(&text);
        script.bind(now.as_millis());
        for _ in 0..rows {
            let Some(event) = events.next() else {
                for _ in 0..7 {
                    script.bind(None::<i64>);
                }
                continue;
            };
            script.bind(offset).bind(event.topic).bind(event.due).bind(event.job).bind(event.key);
            script.bind(event.head).bind(event.content);
            offset += 1;
        }
    }
}

fn insert_keyed(script: &mut Script, queue: i64, group: i64, events: &[(i64, Vec<u8>)]) {
    for chunk in events.chunks(64) {
        let rows = rows_for(chunk.len());
        let values = vec!["(?,?)"; rows].join(",");
        for statement in [
            "INSERT INTO blocked (queue, grp, key, event) SELECT ?, ?, v.column2, m.next + v.column1",
            "INSERT INTO head (queue, grp, key, event, moved) SELECT ?, ?, v.column2, m.next + v.column1, 1",
        ] {
            let end = if statement.contains("head") { "ON CONFLICT (queue, grp, key) DO NOTHING" } else { "" };
            script.add(&format!(
                "{statement} FROM meta m CROSS JOIN (VALUES {values}) v WHERE v.column1 IS NOT NULL ORDER BY v.column1 {end}"
            ));
            script.bind(queue).bind(group);
            for (offset, key) in chunk {
                script.bind(*offset).bind(key.clone());
            }
            for _ in 0..(rows - chunk.len()) * 2 {
                script.bind(None::<i64>);
            }
        }
    }
}

/// Headers and body as one value, and where the one ends.
pub fn pack(message: &Message) -> (i64, Vec<u8>) {
    let headers = message.headers.as_buffer();
    let body = message.body.as_deref().unwrap_or_default();
    let mut content = Vec::with_capacity(headers.len() + body.len());
    content.extend_from_slice(headers);
    content.extend_from_slice(body);
    let head = headers.len() as i64;
    (if message.body.is_none() { head - NO_BODY } else { head }, content)
}

/// The key that order is kept by: the record's own, else `partitionkey`.
fn order_key(message: &Message) -> Option<Vec<u8>> {
    if let Some(key) = &message.key {
        return Some(key.to_vec());
    }
    let name = format!("ce-{PARTITIONKEY}");
    message.headers.get_str_ignore_case(&name).map(|key| key.as_bytes().to_vec())
}
