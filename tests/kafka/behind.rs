//! A commit that waits at the broker behind its own member's join. The broker answers the requests of one connection
//! one after the other, and a member that synchronises waits for the group's leader: what it commits meanwhile over the
//! same connection is carried out when the leader has spoken or is held to be dead, by then perhaps after the member's
//! own death, and behind all that it committed over other connections.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use tokio::task::block_in_place;
use windlass::broker::{Disposition, Settled};
use windlass::message::{Attempt, Failure};
use windlass::time::Clock;

use super::desk::{SOON, take};
use super::killed::Site;
use crate::support::proxy::Cut;
use crate::support::wait;

/// A member of a group, spoken for by hand: a leader that says what the others get when it likes.
struct Leader {
    stream: TcpStream,
    group: String,
    member: String,
    generation: i32,
}

impl Leader {
    /// The first member of this group, and so its leader.
    fn first(address: &str, group: &str) -> Self {
        let stream = TcpStream::connect(address).expect("the broker listens");
        stream.set_read_timeout(Some(SOON * 2)).expect("a socket takes that");
        let mut leader = Self { stream, group: group.to_owned(), member: String::new(), generation: 0 };
        leader.join();
        leader
    }

    /// Joins again, and waits until everybody has; gives the members.
    fn join(&mut self) -> Vec<String> {
        let mut body = Vec::new();
        text(&mut body, &self.group);
        body.extend(30_000i32.to_be_bytes());
        body.extend(60_000i32.to_be_bytes());
        text(&mut body, &self.member);
        text(&mut body, "consumer");
        body.extend(1i32.to_be_bytes());
        text(&mut body, "cooperative-sticky");
        // Version, no topic, no data of its own.
        bytes(&mut body, &[0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        let mut answer = self.ask(11, 2, &body);
        answer.skip(4);
        assert_eq!(answer.number(2), 0, "a join is taken");
        self.generation = answer.number(4) as i32;
        let _protocol = answer.text();
        let leader = answer.text();
        self.member = answer.text();
        assert_eq!(leader, self.member, "who was first leads");
        let count = answer.number(4);
        (0..count)
            .map(|_| {
                let member = answer.text();
                let size = answer.number(4) as usize;
                answer.skip(size);
                member
            })
            .collect()
    }

    /// Gives partition 0 of these topics to this member, and nothing to anybody else; `false` where somebody joins just
    /// now.
    fn give(&mut self, member: &str, topics: &[String]) -> bool {
        let mut assignment = vec![0, 0];
        assignment.extend((topics.len() as i32).to_be_bytes());
        for topic in topics {
            text(&mut assignment, topic);
            assignment.extend(1i32.to_be_bytes());
            assignment.extend(0i32.to_be_bytes());
        }
        assignment.extend((-1i32).to_be_bytes());
        let mut body = Vec::new();
        text(&mut body, &self.group);
        body.extend(self.generation.to_be_bytes());
        text(&mut body, &self.member);
        body.extend(1i32.to_be_bytes());
        text(&mut body, member);
        bytes(&mut body, &assignment);
        let mut answer = self.ask(14, 1, &body);
        answer.skip(4);
        let said = answer.number(2);
        assert!(said == 0 || said == 27, "the assignment is taken, or everybody joins anew: {said}");
        said == 0
    }

    fn leave(mut self) {
        let mut body = Vec::new();
        text(&mut body, &self.group);
        text(&mut body, &self.member);
        self.ask(13, 1, &body);
    }

    fn ask(&mut self, key: i16, version: i16, body: &[u8]) -> Answer {
        let mut request = Vec::new();
        request.extend(key.to_be_bytes());
        request.extend(version.to_be_bytes());
        request.extend(1i32.to_be_bytes());
        text(&mut request, "leader");
        request.extend(body);
        self.stream.write_all(&(request.len() as i32).to_be_bytes()).expect("the broker is there");
        self.stream.write_all(&request).expect("the broker is there");
        let mut size = [0; 4];
        self.stream.read_exact(&mut size).expect("the broker answers");
        let mut answer = vec![0; i32::from_be_bytes(size) as usize];
        self.stream.read_exact(&mut answer).expect("the broker answers");
        // The request's own number is repeated.
        Answer { bytes: answer, at: 4 }
    }
}

struct Answer {
    bytes: Vec<u8>,
    at: usize,
}

impl Answer {
    fn skip(&mut self, count: usize) {
        self.at += count;
    }

    fn number(&mut self, size: usize) -> i64 {
        let number = self.bytes[self.at..self.at + size].iter().fold(0, |all, byte| all << 8 | i64::from(*byte));
        self.at += size;
        number
    }

    fn text(&mut self) -> String {
        let size = self.number(2) as usize;
        self.at += size;
        String::from_utf8(self.bytes[self.at - size..self.at].to_vec()).expect("names are text")
    }
}

fn text(into: &mut Vec<u8>, text: &str) {
    into.extend((text.len() as i16).to_be_bytes());
    into.extend(text.as_bytes());
}

fn bytes(into: &mut Vec<u8>, bytes: &[u8]) {
    into.extend((bytes.len() as i32).to_be_bytes());
    into.extend(bytes);
}

fn again(attempt: u32) -> Disposition {
    let now = Clock::System.now();
    Disposition::Retry {
        at: now,
        attempt: Attempt::new(attempt).unwrap(),
        failure: Some(Failure::new("E", "no", now, now)),
        unroutable_since: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_confirmed_is_not_put_back_by_a_commit_that_waited_behind_a_join() {
    let Some(site) = tokio::task::spawn_blocking(Site::new).await.unwrap() else { return };
    let [mut one, mut two] = site.desks();
    let queue = one.queue("q", &["a"]);
    two.queue("q", &["a"]);
    let topics = [one.topic("a"), format!("{}.work.q", one.namespace)];
    for topic in &topics {
        two.create(topic, 1, &[]).await;
    }
    let group = format!("{}.q", one.namespace);
    let host = two.address.trim_start_matches("kafka://").to_owned();
    // Asked what it has committed, the cluster finds the group a coordinator.
    let asking: BaseConsumer = two.client().set("group.id", &group).create().unwrap();
    block_in_place(|| {
        wait::until("the group has a coordinator", SOON, || {
            let mut list = rdkafka::TopicPartitionList::new();
            list.add_partition(&topics[0], 0);
            let committed = asking.committed_offsets(list, Duration::from_secs(5));
            committed.is_ok_and(|list| list.elements().iter().all(|element| element.error().is_ok()))
        });
    });
    let mut leader = block_in_place(|| Leader::first(&host, &group));
    let first = one.connect().await;
    one.publish(&first, "a", &[("1", None)]).await;
    let mut opened = first.open(&queue).await.unwrap();
    let mut worker = None;
    block_in_place(|| {
        wait::until("the worker has joined", SOON, || {
            worker = leader.join().into_iter().find(|member| *member != leader.member);
            let (member, topics) =
                worker.clone().map_or((leader.member.clone(), &[][..]), |worker| (worker, &topics[..]));
            leader.give(&member, topics) && worker.is_some()
        });
    });
    let delivery = take(&mut opened, 1).await.remove(0);
    // Everybody joins anew, and the leader does not say who gets what.
    let members = block_in_place(|| leader.join());
    assert!(members.contains(&worker.unwrap()), "{members:?}");
    let settled = opened.settler.settle(vec![delivery.settle(again(2))]);
    assert_eq!(tokio::time::timeout(SOON, settled).await.expect("nothing waits for the leader"), [Settled::Stored]);
    let delivery = take(&mut opened, 1).await.remove(0);
    assert_eq!(delivery.attempt().get(), 2);
    let settled = opened.settler.settle(vec![delivery.settle(again(3))]);
    assert_eq!(tokio::time::timeout(SOON, settled).await.expect("nothing waits for the leader"), [Settled::Stored]);
    // The worker is as good as dead, and the leader goes: whatever waited at the broker is carried out.
    site.proxy.refuse();
    site.proxy.cut(Cut::Close);
    block_in_place(|| leader.leave());
    let second = two.connect().await;
    let mut other = second.open(&queue).await.unwrap();
    let delivery = take(&mut other, 1).await.remove(0);
    assert_eq!(delivery.attempt().get(), 3, "an attempt that was stored is given out again");
    drop(delivery);
    second.close().await;
    site.proxy.pass();
    tokio::time::timeout(Duration::from_secs(60), first.close()).await.expect("it leaves");
}
