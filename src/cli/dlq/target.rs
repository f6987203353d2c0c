//! `QUEUE ID..`: which queue and which letters are meant. QUEUE may be left out where there is one queue.

use std::io::BufRead;

use clap::Args;
use futures_util::StreamExt;

use crate::broker::{Broker, LetterQuery};
use crate::cli::fault::Fault;
use crate::cli::input::{self, Input};
use crate::cli::session::{Connection, did_you_mean};
use crate::message::QueueName;

/// `QUEUE ID..`
#[derive(Args, Clone, Debug)]
pub struct Words {
    /// The queue (may be left out where there is only one), then ids of dead letters, unique beginnings of them, or
    /// event ids; - or @FILE: one a line
    #[arg(value_name = "QUEUE] [ID|-|@FILE")]
    words: Vec<String>,
    /// The queue.
    #[arg(short = 'Q', long = "queue", hide = true)]
    queue_flag: Option<QueueName>,
}

/// What was meant.
pub struct Target {
    /// The queue.
    pub queue: QueueName,
    /// The ids; `None` where none was given.
    pub ids: Option<Vec<String>>,
}

impl Words {
    /// Whether ids come from stdin, which then cannot answer a question.
    pub fn reads_stdin(&self) -> bool {
        self.words.iter().any(|word| word == "-")
    }

    /// Finds out which queue is meant, and reads the ids.
    pub async fn resolve(&self, connection: &Connection) -> Result<Target, Fault> {
        let (queue, ids) = match (&self.queue_flag, self.words.split_first()) {
            (Some(queue), _) => {
                if !is_known(connection, queue).await? {
                    return Err(unknown(queue.as_str(), &known(connection).await?));
                }
                (queue.clone(), &self.words[..])
            }
            (None, Some((first, rest))) => match queue_named(connection, first).await? {
                Some(queue) => (queue, rest),
                None => (only_queue(connection, Some(first)).await?, &self.words[..]),
            },
            (None, None) => (only_queue(connection, None).await?, &self.words[..]),
        };
        let mut read = Vec::new();
        for word in ids {
            match word.as_str() {
                "-" => read.extend(read_ids(Input::Stdin.open()?, &queue)?),
                word if word.starts_with('@') => read.extend(read_ids(Input::of(Some(word))?.open()?, &queue)?),
                word => read.push(word.to_owned()),
            }
        }
        Ok(Target { queue, ids: (!ids.is_empty()).then_some(read) })
    }
}

/// Ids, one a line; a line of `dlq list --json` or `dlq export` is understood too.
fn read_ids(reader: impl BufRead, queue: &QueueName) -> Result<Vec<String>, Fault> {
    #[derive(serde::Deserialize)]
    struct Named {
        id: String,
        queue: Option<String>,
    }
    let mut ids = Vec::new();
    for line in input::lines(reader) {
        let (number, line) = line.map_err(|error| Fault::failed(format!("reading the ids: {error}")))?;
        let text =
            String::from_utf8(line).map_err(|_| Fault::failed(format!("line {number} of the ids is not UTF-8")))?;
        let text = text.trim();
        match serde_json::from_str::<Named>(text) {
            Ok(Named { queue: Some(other), .. }) if other != queue.as_str() => {
                return Err(Fault::failed(format!(
                    "line {number} of the ids is a letter of queue {other}, not {queue}"
                )));
            }
            Ok(named) => ids.push(named.id),
            Err(_) => ids.push(text.to_owned()),
        }
    }
    Ok(ids)
}

async fn known(connection: &Connection) -> Result<Vec<QueueName>, Fault> {
    let mut names: Vec<QueueName> = connection.config.queues.keys().cloned().collect();
    names.extend(connection.broker.inspect().queues().await?.into_iter().map(|known| known.name));
    names.sort();
    names.dedup();
    Ok(names)
}

/// Known to the broker or the configuration, or a forgotten one that left dead letters.
async fn is_known(connection: &Connection, queue: &QueueName) -> Result<bool, Fault> {
    Ok(known(connection).await?.contains(queue) || has_letters(&*connection.broker, queue).await)
}

async fn has_letters(broker: &dyn Broker, queue: &QueueName) -> bool {
    let dead = broker.dead_letters();
    let mut letters = dead.list(LetterQuery { queue: Some(queue.clone()), ..Default::default() });
    matches!(letters.next().await, Some(Ok(_)))
}

async fn queue_named(connection: &Connection, word: &str) -> Result<Option<QueueName>, Fault> {
    let Ok(queue) = QueueName::new(word) else { return Ok(None) };
    Ok(is_known(connection, &queue).await?.then_some(queue))
}

async fn only_queue(connection: &Connection, first: Option<&str>) -> Result<QueueName, Fault> {
    let known = known(connection).await?;
    match (&known[..], first) {
        ([only], _) => Ok(only.clone()),
        ([], _) => Err(Fault::failed("the broker knows no queue, so there are no dead letters")),
        (_, Some(first)) => Err(unknown(first, &known)),
        (several, None) => {
            let names: Vec<&str> = several.iter().map(QueueName::as_str).collect();
            Err(Fault::usage(format!("which queue? There are {}", names.join(", "))))
        }
    }
}

/// Nothing was found: is that because there is no such queue?
pub async fn check_known(connection: &Connection, queue: Option<&QueueName>) -> Result<(), Fault> {
    match queue {
        Some(queue) if !is_known(connection, queue).await? => Err(unknown(queue.as_str(), &known(connection).await?)),
        _ => Ok(()),
    }
}

fn unknown(word: &str, known: &[QueueName]) -> Fault {
    let near = did_you_mean(word, known.iter().map(QueueName::as_str));
    let names: Vec<&str> = known.iter().map(QueueName::as_str).collect();
    Fault::failed(format!("no queue {word}{near} (known: {})", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_from_lines_and_from_listings() {
        let queue = QueueName::new("invoice").expect("a queue");
        let text = "L1\n\n  evt 2 \n{\"id\":\"L3\",\"queue\":\"invoice\"}\n";
        assert_eq!(read_ids(text.as_bytes(), &queue).expect("ids"), ["L1", "evt 2", "L3"]);
        assert!(read_ids(&b"{\"id\":\"L3\",\"queue\":\"other\"}\n"[..], &queue).is_err());
    }
}
