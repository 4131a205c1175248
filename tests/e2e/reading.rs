//! What a consumer sees: topics followed record by record, committed offsets, ends of logs. Independent of the crate's
//! own readers, which it is used to check.

#![allow(dead_code, reason = "each test binary compiles this module and uses a part of it")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::support::wait_for;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// A broker that is being restarted, and a transaction that must end first, lie within.
const READ_TIMEOUT: Duration = Duration::from_secs(90);

fn consumer(bootstrap: &str, group: &str, isolation: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", isolation)
        .set("auto.offset.reset", "error")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "500")
        .set("fetch.wait.max.ms", "20")
        .set_log_level(rdkafka::config::RDKafkaLogLevel::Critical)
        .create()
        .expect("a consumer")
}

/// A topic read on and on by a read-committed consumer without a group.
pub struct Tail {
    committed: BaseConsumer,
    uncommitted: BaseConsumer,
    topic: String,
    /// Behind the last record seen, per partition.
    next: Vec<i64>,
}

impl Tail {
    pub fn new(bootstrap: &str, topic: &str, partitions: i32) -> Tail {
        Tail {
            committed: consumer(bootstrap, "tail", "read_committed"),
            uncommitted: consumer(bootstrap, "tail", "read_uncommitted"),
            topic: topic.to_owned(),
            next: vec![0; partitions as usize],
        }
    }

    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Behind the last record seen.
    pub fn next(&self, partition: i32) -> i64 {
        self.next[partition as usize]
    }

    /// Hands over every record written by now, by partition in order. Waits for the transactions open now to end.
    pub fn catch_up(&mut self, each: &mut dyn FnMut(&BorrowedMessage<'_>)) {
        for partition in 0..self.next.len() as i32 {
            let high = end(&self.uncommitted, &self.topic, partition);
            wait_for(&format!("open transactions on {}-{partition} to end", self.topic), READ_TIMEOUT, || {
                (end(&self.committed, &self.topic, partition) >= high).then_some(())
            });
        }
        // Assigned anew, so that each partition says once that its end is reached.
        let mut list = TopicPartitionList::new();
        for (partition, next) in (0..).zip(&self.next) {
            list.add_partition_offset(&self.topic, partition, Offset::Offset(*next)).expect("a valid offset");
        }
        self.committed.assign(&list).expect("could not assign");
        let deadline = Instant::now() + READ_TIMEOUT;
        let mut open = vec![true; self.next.len()];
        while open.contains(&true) {
            assert!(Instant::now() < deadline, "could not read {} to its end", self.topic);
            match self.committed.poll(Duration::from_millis(50)) {
                Some(Ok(message)) => {
                    self.next[message.partition() as usize] = message.offset() + 1;
                    each(&message);
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => open[partition as usize] = false,
                // Passing states of a connection; the deadline is the judge.
                Some(Err(_)) | None => {}
            }
        }
        self.committed.unassign().expect("could not unassign");
    }
}

fn end(client: &BaseConsumer, topic: &str, partition: i32) -> i64 {
    wait_for(&format!("the end of {topic}-{partition}"), READ_TIMEOUT, || {
        client.fetch_watermarks(topic, partition, REQUEST_TIMEOUT).ok().map(|(_, end)| end)
    })
}

/// The high watermarks of a topic.
pub fn ends(bootstrap: &str, topic: &str, partitions: i32) -> Vec<i64> {
    let client = consumer(bootstrap, "ends", "read_uncommitted");
    (0..partitions).map(|partition| end(&client, topic, partition)).collect()
}

/// Where a group stands on one partition; 0 before its first commit.
#[derive(Clone, Debug)]
pub struct Committed {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub metadata: String,
}

impl Committed {
    pub fn read(bootstrap: &str, group: &str, topics: &[&str], partitions: i32) -> Vec<Committed> {
        // Read-committed: a commit that is not decided yet is waited for, not overlooked.
        let client = consumer(bootstrap, group, "read_committed");
        let mut list = TopicPartitionList::new();
        for topic in topics {
            list.add_partition_range(topic, 0, partitions - 1);
        }
        let deadline = Instant::now() + READ_TIMEOUT;
        let answer = loop {
            let problem = match client.committed_offsets(list.clone(), REQUEST_TIMEOUT) {
                Ok(answer) => match answer.elements().iter().find_map(|e| e.error().err()) {
                    None => break answer,
                    Some(error) => error,
                },
                Err(error) => error,
            };
            assert!(Instant::now() < deadline, "no offsets of {group}: {problem}");
            std::thread::sleep(Duration::from_millis(20));
        };
        let row = |e: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| Committed {
            topic: e.topic().to_owned(),
            partition: e.partition(),
            offset: e.offset().to_raw().filter(|offset| *offset >= 0).unwrap_or(0),
            metadata: e.metadata().to_owned(),
        };
        answer.elements().iter().map(row).collect()
    }
}

/// Headers of a message as text.
pub fn headers(message: &impl Message) -> BTreeMap<String, String> {
    use rdkafka::message::Headers;
    let Some(headers) = message.headers() else { return BTreeMap::new() };
    let text = |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
    headers.iter().map(|header| (header.key.to_owned(), text(header.value))).collect()
}
