//! The server under question, and clients of it with short waits.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Message, OwnedMessage};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::support::{Devkit, Isolation, Kafka, read_all, wait_for};

pub const PATIENCE: Duration = Duration::from_secs(60);
/// Kafka's shortest.
pub const SESSION_MS: &str = "6000";

/// One of the two, shared by the checks of this binary or of a check's own.
pub enum Broker {
    Kafka(&'static Kafka),
    Embedded(&'static Devkit),
    OwnKafka(Kafka),
    OwnEmbedded(Devkit),
}

impl Broker {
    pub fn kafka() -> Broker {
        Broker::Kafka(Kafka::shared())
    }

    pub fn embedded() -> Broker {
        Broker::Embedded(Devkit::shared())
    }

    /// Another of the same kind that may be killed.
    pub fn own(&self) -> Broker {
        match self {
            Broker::Kafka(_) | Broker::OwnKafka(_) => Broker::OwnKafka(Kafka::start()),
            Broker::Embedded(_) | Broker::OwnEmbedded(_) => Broker::OwnEmbedded(Devkit::start()),
        }
    }

    pub fn bootstrap(&self) -> String {
        match self {
            Broker::Kafka(kafka) => kafka.bootstrap(),
            Broker::Embedded(devkit) => devkit.bootstrap(),
            Broker::OwnKafka(kafka) => kafka.bootstrap(),
            Broker::OwnEmbedded(devkit) => devkit.bootstrap(),
        }
    }

    /// SIGKILL, and a new start on the same data.
    pub fn kill_and_restart(&mut self) {
        match self {
            Broker::OwnKafka(kafka) => kafka.restart(),
            Broker::OwnEmbedded(devkit) => devkit.restart(),
            Broker::Kafka(_) | Broker::Embedded(_) => panic!("shared: others use it"),
        }
    }

    pub fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.bootstrap()).set("log_level", "2");
        config.set("reconnect.backoff.ms", "50").set("reconnect.backoff.max.ms", "200");
        config.set("retry.backoff.ms", "10").set_log_level(RDKafkaLogLevel::Critical);
        config
    }

    pub fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.config().create().expect("an admin client")
    }

    pub fn topic(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) -> String {
        let name = unique(name);
        self.try_create(&name, partitions, 1, settings)
            .unwrap_or_else(|code| panic!("could not create {name}: {code}"));
        let client: BaseConsumer = self.config().create().expect("a client");
        wait_for("a leader of each partition", PATIENCE, || {
            let metadata = client.fetch_metadata(Some(&name), PATIENCE).ok()?;
            let led = metadata.topics()[0].partitions().iter().filter(|p| p.leader() >= 0).count();
            (led == partitions as usize).then_some(())
        });
        name
    }

    pub fn try_create(
        &self,
        name: &str,
        partitions: i32,
        copies: i32,
        settings: &[(&str, &str)],
    ) -> Result<(), RDKafkaErrorCode> {
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(copies));
        let topic = settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value));
        let answer = block_on(self.admin().create_topics([&topic], &options())).expect("an answer");
        answer.into_iter().next().expect("one topic").map(|_| ()).map_err(|(_, code)| code)
    }

    pub fn producer(&self, settings: &[(&str, &str)]) -> BaseProducer {
        let mut config = self.config();
        config.set("linger.ms", "0");
        settings.iter().for_each(|(key, value)| {
            config.set(*key, *value);
        });
        config.create().expect("a producer")
    }

    /// A producer of a transactional id, initialised.
    pub fn transactional(&self, id: &str) -> BaseProducer {
        let producer = self.producer(&[("transactional.id", id), ("transaction.timeout.ms", "30000")]);
        producer.init_transactions(PATIENCE).unwrap_or_else(|error| panic!("could not initialise {id}: {error}"));
        producer
    }

    pub fn member(&self, group: &str, topic: &str, settings: &[(&str, &str)]) -> Member {
        let mut config = self.config();
        config.set("group.id", group).set("enable.auto.commit", "false").set("auto.offset.reset", "earliest");
        config.set("session.timeout.ms", SESSION_MS).set("heartbeat.interval.ms", "200");
        config.set("fetch.wait.max.ms", "50").set("isolation.level", "read_committed");
        settings.iter().for_each(|(key, value)| {
            config.set(*key, *value);
        });
        let consumer: BaseConsumer<Counting> = config.create_with_context(Counting::default()).expect("a consumer");
        consumer.subscribe(&[topic]).expect("a subscription");
        Member(consumer)
    }

    /// Offsets of a group as others see them.
    pub fn committed(&self, group: &str, topic: &str, partitions: i32) -> Result<Vec<Option<i64>>, KafkaError> {
        let client: BaseConsumer =
            self.config().set("group.id", group).set("isolation.level", "read_committed").create().expect("a client");
        let mut list = TopicPartitionList::new();
        (0..partitions).for_each(|p| {
            list.add_partition(topic, p);
        });
        let found = client.committed_offsets(list, Duration::from_secs(2))?;
        found.elements().iter().map(|e| e.error().map(|()| e.offset().to_raw().filter(|o| *o >= 0))).collect()
    }

    /// Offsets once no transaction holds them back.
    pub fn stable(&self, group: &str, topic: &str, partitions: i32) -> Vec<Option<i64>> {
        wait_for("stable offsets", PATIENCE, || self.committed(group, topic, partitions).ok())
    }

    /// Partition, offset and value of all a reader may see.
    pub fn rows(&self, topic: &str, isolation: Isolation) -> Vec<(i32, i64, String)> {
        let row = |m: &OwnedMessage| (m.partition(), m.offset(), text(m.payload().unwrap_or_default()));
        read_all(&self.bootstrap(), topic, isolation).iter().map(row).collect()
    }

    pub fn values(&self, topic: &str, isolation: Isolation) -> Vec<String> {
        self.rows(topic, isolation).into_iter().map(|(_, _, value)| value).collect()
    }

    /// Start and end for an isolation level.
    pub fn ends(&self, topic: &str, isolation: &str) -> (i64, i64) {
        let client: BaseConsumer = self.config().set("isolation.level", isolation).create().expect("a client");
        wait_for("the ends", PATIENCE, || client.fetch_watermarks(topic, 0, PATIENCE).ok())
    }
}

/// Counts rebalances.
#[derive(Default)]
pub struct Counting(pub AtomicUsize);

impl ClientContext for Counting {}

impl ConsumerContext for Counting {
    fn post_rebalance(&self, _: &BaseConsumer<Self>, _: &Rebalance<'_>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A member of a group; closing it may hang in the C library, so that happens on a thread of its own.
pub struct Member(pub BaseConsumer<Counting>);

impl Member {
    pub fn partitions(&self) -> Vec<i32> {
        let list = self.0.assignment().expect("an assignment");
        let mut partitions: Vec<i32> = list.elements().iter().map(|e| e.partition()).collect();
        partitions.sort_unstable();
        partitions
    }

    pub fn rebalances(&self) -> usize {
        self.0.context().0.load(Ordering::SeqCst)
    }

    pub fn poll(&self) -> Option<Result<OwnedMessage, KafkaError>> {
        self.0.poll(Duration::from_millis(20)).map(|result| result.map(|message| message.detach()))
    }

    /// Goes; a dynamic member says so to the broker, a static one does not.
    pub fn close(self) {
        let (done, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            drop(self.0);
            let _ = done.send(());
        });
        // One that hangs has sent what it had to send.
        let _ = wait.recv_timeout(Duration::from_secs(5));
    }
}

/// Polls all members in turn until each has so many partitions.
pub fn settle(members: &[&Member], each: &[usize]) {
    wait_for(&format!("assignments of {each:?}"), PATIENCE, || {
        members.iter().for_each(|member| {
            member.poll();
        });
        let have: Vec<usize> = members.iter().map(|member| member.partitions().len()).collect();
        (have == each).then_some(())
    });
}

/// Polls all members for a time, so that what would happen happens.
pub fn poll_for(members: &[&Member], time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        members.iter().for_each(|member| {
            member.poll();
        });
    }
}

pub fn send(producer: &BaseProducer, topic: &str, partition: i32, key: &str, value: &str) {
    let record = BaseRecord::to(topic).key(key).payload(value).partition(partition);
    producer.send(record).unwrap_or_else(|(error, _)| panic!("could not send to {topic}: {error}"));
}

pub fn flush(producer: &BaseProducer) {
    producer.flush(PATIENCE).expect("could not flush");
}

pub fn at(topic: &str, offsets: &[(i32, i64)]) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in offsets {
        list.add_partition_offset(topic, *partition, Offset::Offset(*offset)).expect("an offset");
    }
    list
}

pub fn unique(name: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE))
}

pub fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}
