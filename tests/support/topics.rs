//! Topics made and read to their end, the two things that nearly every test on a real broker does.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Message, OwnedMessage};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::{Kafka, wait_for};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than the 60 s after which the broker aborts a dead producer's transaction by default, and its 10 s between looks.
const READ_TIMEOUT: Duration = Duration::from_secs(90);

/// Name, number of partitions, settings.
pub type NewTopicRow<'a> = (&'a str, i32, &'a [(&'a str, &'a str)]);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    ReadCommitted,
    ReadUncommitted,
}

/// Creates the topics; an existing one is a panic. Returns when every partition has a leader.
pub fn create_topics(kafka: &Kafka, topics: &[NewTopicRow]) {
    let client: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create().expect("an admin client");
    let new_topics: Vec<NewTopic> = topics.iter().map(new_topic).collect();
    let options = AdminOptions::new().operation_timeout(Some(REQUEST_TIMEOUT));
    let results = block_on(client.create_topics(&new_topics, &options)).expect("could not ask for topics");
    for result in results {
        result.unwrap_or_else(|(topic, error)| panic!("could not create topic {topic}: {error}"));
    }
    let metadata = consumer(&kafka.bootstrap(), Isolation::ReadUncommitted);
    for (name, partitions, _) in topics {
        wait_for(&format!("leaders of {name}"), REQUEST_TIMEOUT, || {
            (led_partitions(&metadata, name) == *partitions as usize).then_some(())
        });
    }
    close(metadata);
}

/// Every message that the topic held when this was called, by partition and offset. `ReadCommitted` waits until the transactions
/// open at that moment have ended.
pub fn read_all(bootstrap: &str, topic: &str, isolation: Isolation) -> Vec<OwnedMessage> {
    let partitions = partitions(bootstrap, topic);
    wait_until_stable(bootstrap, topic, &partitions, isolation);
    let consumer = consumer(bootstrap, isolation);
    let mut from_start = TopicPartitionList::new();
    for partition in &partitions {
        from_start.add_partition_offset(topic, *partition, Offset::Beginning).expect("a valid offset");
    }
    consumer.assign(&from_start).expect("could not assign");
    let mut messages = read_to_eof(&consumer, topic, partitions);
    close(consumer);
    messages.sort_by_key(|message| (message.partition(), message.offset()));
    messages
}

fn new_topic<'a>((name, partitions, settings): &NewTopicRow<'a>) -> NewTopic<'a> {
    let topic = NewTopic::new(name, *partitions, TopicReplication::Fixed(1));
    settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
}

fn led_partitions(client: &BaseConsumer, topic: &str) -> usize {
    let Ok(metadata) = client.fetch_metadata(Some(topic), REQUEST_TIMEOUT) else { return 0 };
    let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
    partitions.filter(|partition| partition.leader() >= 0).count()
}

fn partitions(bootstrap: &str, topic: &str) -> BTreeSet<i32> {
    let client = consumer(bootstrap, Isolation::ReadUncommitted);
    let metadata = client.fetch_metadata(Some(topic), REQUEST_TIMEOUT).expect("could not fetch metadata");
    let ids: BTreeSet<i32> =
        metadata.topics().iter().flat_map(|topic| topic.partitions()).map(|partition| partition.id()).collect();
    assert!(!ids.is_empty(), "no topic {topic}");
    close(client);
    ids
}

/// Waits until each partition's end for this isolation level has reached its high watermark of now. A position says nothing of the
/// end, because markers and aborted records are never delivered; after this wait, the first end-of-partition event does.
fn wait_until_stable(bootstrap: &str, topic: &str, partitions: &BTreeSet<i32>, isolation: Isolation) {
    if isolation == Isolation::ReadUncommitted {
        return;
    }
    let uncommitted = consumer(bootstrap, Isolation::ReadUncommitted);
    let committed = consumer(bootstrap, Isolation::ReadCommitted);
    for partition in partitions {
        // A new leader is in the metadata a moment before it answers as one.
        let high_watermark = wait_for(&format!("the end of {topic}/{partition}"), REQUEST_TIMEOUT, || {
            end(&uncommitted, topic, *partition).ok()
        });
        wait_for(&format!("open transactions on {topic}/{partition} to end"), READ_TIMEOUT, || {
            // For a read-committed client the broker answers with the last stable offset.
            end(&committed, topic, *partition).ok().filter(|last_stable| *last_stable >= high_watermark)
        });
    }
    close(uncommitted);
    close(committed);
}

fn end(client: &BaseConsumer, topic: &str, partition: i32) -> Result<i64, KafkaError> {
    client.fetch_watermarks(topic, partition, REQUEST_TIMEOUT).map(|(_, end)| end)
}

fn read_to_eof(consumer: &BaseConsumer, topic: &str, mut open: BTreeSet<i32>) -> Vec<OwnedMessage> {
    let deadline = Instant::now() + READ_TIMEOUT;
    let mut messages = Vec::new();
    while !open.is_empty() {
        assert!(
            Instant::now() < deadline,
            "could not read {topic} to its end: partitions {open:?} after {READ_TIMEOUT:?}"
        );
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) if open.contains(&message.partition()) => messages.push(message.detach()),
            // Written after this partition's end was reached.
            Some(Ok(_)) | None => {}
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                open.remove(&partition);
            }
            Some(Err(error)) => panic!("could not read {topic}: {error}"),
        }
    }
    messages
}

fn consumer(bootstrap: &str, isolation: Isolation) -> BaseConsumer {
    let level = match isolation {
        Isolation::ReadCommitted => "read_committed",
        Isolation::ReadUncommitted => "read_uncommitted",
    };
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        // The library wants a group to assign partitions; nothing is committed to it.
        .set("group.id", "support-read-all")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", level)
        .set("auto.offset.reset", "error")
        .create()
        .expect("a consumer")
}

/// On its own thread, because dropping a consumer can hang in the C library.
fn close(consumer: BaseConsumer) {
    std::thread::spawn(move || drop(consumer));
}

/// The admin client's futures are driven by its own thread; all they need here is somebody to wake.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}
