//! Membership in the consumer group and the records it brings: the `Group` port on a librdkafka consumer.
//!
//! Callbacks only record. A revoked assignment is given up at once; a new one is taken up by `start`, after recovery,
//! with the offsets recovery found. Until then librdkafka keeps the member alive by itself and fetches nothing. Classic
//! protocol and the `range` assignor, which gives all inputs of a partition number to one member; static membership, so
//! that a quick restart moves nothing. Never commits: offsets travel in the transaction. Next: `transaction.rs`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::types::RDKafkaRespErr;

use super::client::{self, Bounded, Connection, REQUEST_TIMEOUT, Scratch};
use super::ports::{Changes, Error, ErrorKind, Group, InputOffset, Polled, RecordRef, TopicName};

/// How a worker takes part in its group.
#[derive(Clone, Debug)]
pub struct Membership {
    /// `group.id`.
    pub group: String,
    /// `group.instance.id`, stable over restarts; `None` for a member that comes and goes.
    pub instance: Option<String>,
    /// All inputs, with equal partition counts.
    pub inputs: Vec<TopicName>,
    /// How long the group waits for a silent member.
    pub session_timeout: Duration,
    /// How long a worker may go without a poll, a restore included; also how long the group waits for it to rejoin.
    pub max_poll_interval: Duration,
}

impl Membership {
    /// A member with the usual timeouts: 15 s of silence, 5 min between polls.
    pub fn new(group: impl Into<String>, instance: Option<String>, inputs: Vec<TopicName>) -> Membership {
        Membership {
            group: group.into(),
            instance,
            inputs,
            session_timeout: Duration::from_secs(15),
            max_poll_interval: Duration::from_secs(300),
        }
    }
}

/// Proof of membership at one generation; cheap to clone.
#[derive(Clone)]
pub struct GroupMetadata(pub(super) Arc<ConsumerGroupMetadata>);

/// One member of the group.
pub struct KafkaGroup {
    /// `None` once closed.
    consumer: Option<Bounded<BaseConsumer<Callbacks>>>,
    membership: Membership,
    /// What is assigned, by input in the order of `membership.inputs`.
    owned: Vec<Vec<bool>>,
    /// Where `start` and `seek` last put each input.
    positions: Vec<InputOffset>,
    /// librdkafka's topic handles seen in this assignment and our names of them, so that a record costs no comparison
    /// of text. Addresses only, never followed.
    handles: Vec<(usize, TopicName)>,
    scratch: Scratch,
}

impl KafkaGroup {
    /// Joins the group. The assignment comes with a later poll.
    pub fn join(connection: &Connection, membership: Membership) -> Result<KafkaGroup, Error> {
        let what = || format!("could not join group {}", membership.group);
        let session_timeout_ms = membership.session_timeout.as_millis().to_string();
        let poll_interval_ms = membership.max_poll_interval.as_millis().to_string();
        let mut config = connection.config(&SETTINGS);
        config.set("group.id", &membership.group);
        config.set("session.timeout.ms", session_timeout_ms).set("max.poll.interval.ms", poll_interval_ms);
        if let Some(instance) = &membership.instance {
            config.set("group.instance.id", instance);
        }
        let callbacks = Callbacks::new(membership.inputs.clone());
        let consumer: BaseConsumer<Callbacks> =
            config.create_with_context(callbacks).map_err(|e| client::error(what(), &e))?;
        consumer.subscribe(&membership.inputs).map_err(|e| client::error(what(), &e))?;
        let owned = vec![Vec::new(); membership.inputs.len()];
        Ok(KafkaGroup {
            consumer: Some(Bounded::new(consumer, "group")),
            membership,
            owned,
            positions: Vec::new(),
            handles: Vec::new(),
            scratch: Scratch::default(),
        })
    }

    fn consumer(&self) -> Result<&BaseConsumer<Callbacks>, Error> {
        self.consumer.as_deref().ok_or_else(|| {
            Error::new(ErrorKind::Fatal, format!("could not use group {}", self.membership.group), "closed")
        })
    }

    /// The reaction to an error that came instead of a record. Most are passing states of a connection, which
    /// librdkafka mends by itself.
    fn judge(&self, cause: &KafkaError) -> Result<Polled, Error> {
        let consumer = self.consumer()?;
        let what = || format!("could not read as a member of {}", self.membership.group);
        if let Some((code, reason)) = consumer.client().fatal_error() {
            let kind = match code {
                RDKafkaErrorCode::FencedInstanceId => ErrorKind::Fenced,
                _ => ErrorKind::Fatal,
            };
            return Err(Error::new(kind, what(), reason));
        }
        let error = client::error(what(), cause);
        match error.kind {
            ErrorKind::Missing => Err(self.name_the_missing(consumer, error)),
            ErrorKind::Retriable => {
                tracing::debug!(group = self.membership.group, "{error}");
                Ok(Polled::Nothing)
            }
            _ => Err(error),
        }
    }

    /// librdkafka's error about an offset that is not in the log does not say which; compare all with their logs.
    fn name_the_missing(&self, consumer: &BaseConsumer<Callbacks>, error: Error) -> Error {
        let reached = consumer.position().ok();
        for input in &self.positions {
            let position = reached
                .as_ref()
                .and_then(|list| list.find_partition(input.topic, input.partition)?.offset().to_raw())
                .filter(|offset| *offset >= 0)
                .unwrap_or(input.offset);
            let Ok((low, high)) = consumer.fetch_watermarks(input.topic, input.partition, REQUEST_TIMEOUT) else {
                continue;
            };
            if !(low..=high).contains(&position) {
                let what = format!("could not read {}[{}] from offset {position}", input.topic, input.partition);
                let cause = format!("the log holds {low}..{high}");
                return Error::new(ErrorKind::Missing, what, cause).at(input.topic, input.partition);
            }
        }
        error
    }

    /// Our name of the message's topic.
    fn name_of(
        handles: &mut Vec<(usize, TopicName)>,
        inputs: &[TopicName],
        message: &BorrowedMessage<'_>,
    ) -> TopicName {
        let handle = message.topic_ptr() as usize;
        if let Some((_, name)) = handles.iter().find(|(known, _)| *known == handle) {
            return name;
        }
        let name = inputs.iter().copied().find(|name| *name == message.topic());
        let name = name.expect("only subscribed topics are assigned");
        handles.push((handle, name));
        name
    }

    fn own(&mut self, assigned: &[(TopicName, i32)]) {
        self.owned.iter_mut().for_each(Vec::clear);
        for (topic, partition) in assigned {
            let Some(index) = self.membership.inputs.iter().position(|input| input == topic) else { continue };
            let partitions = &mut self.owned[index];
            let length = partitions.len().max(*partition as usize + 1);
            partitions.resize(length, false);
            partitions[*partition as usize] = true;
        }
    }
}

impl Group for KafkaGroup {
    type Metadata = GroupMetadata;

    fn poll(&mut self, wait: Duration, each: &mut dyn FnMut(RecordRef<'_>)) -> Result<Polled, Error> {
        let Some(consumer) = &self.consumer else { return self.consumer().map(|_| Polled::Nothing) };
        match consumer.poll(wait) {
            Some(Ok(message)) => {
                let topic = KafkaGroup::name_of(&mut self.handles, &self.membership.inputs, &message);
                self.scratch.hand_over(&message, topic, each);
                Ok(Polled::Record)
            }
            Some(Err(cause)) => self.judge(&cause),
            None if consumer.context().changed.load(Ordering::Acquire) => Ok(Polled::Rebalanced),
            None => Ok(Polled::Nothing),
        }
    }

    fn changes(&mut self) -> Changes {
        let Some(changes) = self.consumer.as_ref().and_then(|consumer| consumer.context().take()) else {
            return Changes::default();
        };
        self.handles.clear();
        self.positions.clear();
        let assigned = changes.assigned.clone().unwrap_or_default();
        self.own(&assigned);
        changes
    }

    fn start(&mut self, positions: &[InputOffset]) -> Result<(), Error> {
        let list = client::partition_list(positions)?;
        let what = || format!("could not start {} inputs of group {}", positions.len(), self.membership.group);
        self.consumer()?.assign(&list).map_err(|e| client::error(what(), &e))?;
        self.positions = positions.to_vec();
        Ok(())
    }

    fn seek(&mut self, positions: &[InputOffset]) -> Result<(), Error> {
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        // A partition whose fetcher has just been started refuses for a moment.
        while let Err(error) = seek_once(self.consumer()?, positions) {
            if Instant::now() >= deadline {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        for new in positions {
            let known = self.positions.iter_mut().find(|old| old.topic == new.topic && old.partition == new.partition);
            if let Some(old) = known {
                old.offset = new.offset;
            }
        }
        Ok(())
    }

    fn metadata(&self) -> Result<GroupMetadata, Error> {
        let metadata = self.consumer()?.group_metadata();
        let metadata = metadata.expect("a consumer with a group.id has group metadata");
        Ok(GroupMetadata(Arc::new(metadata)))
    }

    fn owns(&self, topic: TopicName, partition: i32) -> bool {
        let index = self.membership.inputs.iter().position(|input| std::ptr::eq(*input, topic) || *input == topic);
        index.is_some_and(|index| self.owned[index].get(partition as usize).copied().unwrap_or(false))
    }

    fn close(&mut self) {
        self.own(&[]);
        self.consumer = None;
    }
}

/// Settings of a group member; reasons in the comments, the rest are librdkafka's defaults.
const SETTINGS: [(&str, &str); 16] = [
    ("isolation.level", "read_committed"),
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    // A lost position is a halt with a remedy, never a silent jump.
    ("auto.offset.reset", "error"),
    ("group.protocol", "classic"),
    ("partition.assignment.strategy", "range"),
    // A rebalance is noticed with a heartbeat.
    ("heartbeat.interval.ms", "500"),
    ("fetch.wait.max.ms", "50"),
    ("fetch.min.bytes", "1"),
    ("fetch.message.max.bytes", "2097152"),
    ("queued.min.messages", "20000"),
    ("queued.max.messages.kbytes", "65536"),
    ("message.copy.max.bytes", "65535"),
    ("check.crcs", "true"),
    ("enable.partition.eof", "false"),
    ("topic.metadata.refresh.interval.ms", "30000"),
];

fn seek_once(consumer: &BaseConsumer<Callbacks>, positions: &[InputOffset]) -> Result<(), Error> {
    let what = || format!("could not seek {} inputs", positions.len());
    let list = client::partition_list(positions)?;
    let answer = consumer.seek_partitions(list, REQUEST_TIMEOUT).map_err(|e| client::error(what(), &e))?;
    for element in answer.elements() {
        element.error().map_err(|e| Error::new(ErrorKind::Retriable, what(), e))?;
    }
    Ok(())
}

/// Records what happens to the membership; runs only inside `poll` and `close`.
struct Callbacks {
    inputs: Vec<TopicName>,
    changed: AtomicBool,
    changes: Mutex<Changes>,
}

impl Callbacks {
    fn new(inputs: Vec<TopicName>) -> Callbacks {
        Callbacks { inputs, changed: AtomicBool::new(false), changes: Mutex::default() }
    }

    fn take(&self) -> Option<Changes> {
        self.changed.swap(false, Ordering::AcqRel).then(|| std::mem::take(&mut *self.lock()))
    }

    fn lock(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn named(&self, list: &TopicPartitionList) -> Vec<(TopicName, i32)> {
        let name = |topic: &str| self.inputs.iter().copied().find(|input| *input == topic);
        list.elements().iter().filter_map(|e| Some((name(e.topic())?, e.partition()))).collect()
    }
}

impl ClientContext for Callbacks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        client::log_line(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
    }
}

impl ConsumerContext for Callbacks {
    fn rebalance(&self, consumer: &BaseConsumer<Callbacks>, what: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let partitions = self.named(list);
        let mut changes = self.lock();
        if what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            tracing::info!(partitions = partitions.len(), "assigned");
            changes.assigned = Some(partitions);
        } else {
            tracing::info!(partitions = partitions.len(), lost = consumer.assignment_lost(), "revoked");
            if let Err(error) = consumer.unassign() {
                tracing::warn!("could not give up a revoked assignment: {error}");
            }
            changes.revoked.extend(partitions);
            changes.assigned = None;
        }
        self.changed.store(true, Ordering::Release);
    }
}
