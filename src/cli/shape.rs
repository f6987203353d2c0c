//! The JSON that only the command line writes; what the admin port answers too is in
//! [`broker::shape`](crate::broker::shape).

use serde::Serialize;

use crate::broker::shape::QueueStatus;

/// `status`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// The address without passwords.
    pub broker: String,
    /// In the order of their names.
    pub queues: Vec<QueueStatus>,
}

/// `queues list`, a line a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KnownQueue {
    /// Its name.
    pub name: String,
    /// The topics it hears.
    pub topics: Vec<String>,
    /// Workers attached.
    pub workers: Option<u64>,
}

/// `queues forget`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Forgotten<'a> {
    /// Its name.
    pub queue: &'a str,
    /// Jobs that it held and that are gone with it; `null` in a dry run.
    pub jobs: Option<u64>,
    /// Whether nothing was to be done.
    pub dry_run: bool,
}

/// `ready`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ready<'a> {
    /// What was asked.
    pub url: &'a str,
    /// Whether it answered 200.
    pub ready: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_the_contract() {
        let json = |value: &Status| serde_json::to_string(value).expect("JSON");
        let (queue, queues) = (QueueStatus::default(), vec![QueueStatus::default()]);
        let inner = serde_json::to_string(&queue).expect("JSON");
        assert_eq!(
            json(&Status { broker: "..".to_owned(), queues }),
            format!(r#"{{"broker":"..","queues":[{inner}]}}"#)
        );
        assert_eq!(
            serde_json::to_string(&crate::app::Tally { done: 10, retried: 2, dead: 1 }).expect("JSON"),
            r#"{"done":10,"retried":2,"dead":1}"#
        );
    }
}
