//! Membership in the consumer group and the records it brings: the `Group` port on a librdkafka consumer.
//!
//! Callbacks only record. A revoked assignment is given up at once; a new one is taken up by `start`, after recovery,
//! with the offsets recovery found. Until then librdkafka keeps the member alive by itself and fetches nothing. Classic
//! protocol and the `range` assignor, which gives all inputs of a partition number to one member; static membership, so
//! that a quick restart moves nothing. A member the broker has fenced joins anew by itself, within a bound; which of two
//! real twins goes on is the transactional producer's to say. Never commits: offsets travel in the transaction.
//! Next: `transaction.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::types::RDKafkaRespErr;
use serde::Deserialize;

use super::client::{self, Bounded, Connection, REQUEST_TIMEOUT, Scratch};
use super::clock::SystemClock;
use super::ports::{Changes, Clock, Error, ErrorKind, Group, InputOffset, Polled, RecordRef, TopicName};
use super::telemetry;
use crate::domain::Timestamp;
use crate::domain::time::DAY_MS;
use crate::topology::{Cleanup, Topic};

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

/// How often a member may be fenced within `FENCES_WITHIN` and join anew. A broker's outage fences a member once, and
/// has to last longer than a session; two twins without a record to read, whose producers never meet, fence each other
/// about once a second.
const FENCES_MAX: usize = 5;
/// See `FENCES_MAX`.
const FENCES_WITHIN: Duration = Duration::from_secs(60);

/// One member of the group.
pub struct KafkaGroup {
    /// `None` once closed.
    consumer: Option<Bounded<BaseConsumer<Callbacks>>>,
    connection: Connection,
    membership: Membership,
    /// The consumer is fenced, and something that had to reach it did not: the next poll joins anew before anything else.
    is_lost: bool,
    fences: Fences,
    /// What is assigned, by input in the order of `membership.inputs`.
    owned: Vec<Vec<bool>>,
    /// Where `start` and `seek` last put each input.
    positions: Vec<InputOffset>,
    /// librdkafka's topic handles seen in this assignment and our names of them, so that a record costs no comparison
    /// of text. Addresses only, never followed.
    handles: Vec<(usize, usize)>,
    /// Timestamp of the last record handed over, by input and partition; 0 for none in this assignment.
    seen: Vec<Vec<Timestamp>>,
    /// When this assignment began.
    started: Timestamp,
    scratch: Scratch,
}

impl KafkaGroup {
    /// Joins the group. The assignment comes with a later poll.
    pub fn join(connection: &Connection, membership: Membership) -> Result<KafkaGroup, Error> {
        let consumer = join(connection, &membership, Callbacks::new(membership.inputs.clone()))?;
        let owned = vec![Vec::new(); membership.inputs.len()];
        Ok(KafkaGroup {
            consumer: Some(consumer),
            connection: connection.clone(),
            membership,
            is_lost: false,
            fences: Fences::default(),
            owned,
            positions: Vec::new(),
            handles: Vec::new(),
            seen: Vec::new(),
            started: Timestamp::default(),
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
    fn judge(&mut self, cause: &KafkaError) -> Result<Polled, Error> {
        let consumer = self.consumer()?;
        if let Some((code, reason)) = consumer.client().fatal_error() {
            return match code {
                RDKafkaErrorCode::FencedInstanceId => self.join_anew(&reason),
                _ => Err(Error::new(ErrorKind::Fatal, self.reading(), reason)),
            };
        }
        let error = client::error(self.reading(), cause);
        match error.kind {
            ErrorKind::Missing => Err(self.name_the_missing(consumer, error)),
            ErrorKind::Retriable => {
                tracing::debug!(group = self.membership.group, "{error}");
                Ok(Polled::Nothing)
            }
            _ => Err(error),
        }
    }

    fn reading(&self) -> String {
        format!("could not read as a member of {}", self.membership.group)
    }

    /// Why the broker will have nothing to do with this consumer any more.
    fn fenced(&self) -> Option<String> {
        let (code, reason) = self.consumer.as_ref()?.client().fatal_error()?;
        (code == RDKafkaErrorCode::FencedInstanceId).then_some(reason)
    }

    /// Puts a new consumer in the place of a fenced one. No twin is needed to be fenced: librdkafka (2.12) forgets its
    /// member id when it hears nothing for a session, and until a poll takes the revocation it goes on sending
    /// heartbeats, with the instance id and an empty member id, which the broker takes for another process's
    /// (docs/decisions/0005). An old twin learns from its transactional producer that it is one.
    fn join_anew(&mut self, reason: &str) -> Result<Polled, Error> {
        telemetry::member_fenced();
        if !self.fences.allow(Instant::now()) {
            return Err(Error::new(ErrorKind::Fenced, self.reading(), reason));
        }
        tracing::warn!(group = self.membership.group, reason, "fenced: joining anew");
        let revoked = self.all_owned();
        // Out of the way before its successor comes, so that nothing it still sends can meet it.
        self.consumer = None;
        let callbacks = Callbacks::new(self.membership.inputs.clone());
        callbacks.lock().revoked = revoked;
        callbacks.changed.store(true, Ordering::Release);
        self.consumer = Some(join(&self.connection, &self.membership, callbacks)?);
        self.is_lost = false;
        Ok(Polled::Rebalanced)
    }

    fn all_owned(&self) -> Vec<(TopicName, i32)> {
        let of_input = |(topic, owned): (&TopicName, &Vec<bool>)| {
            let numbers = (0..).zip(owned).filter(|(_, owned)| **owned);
            let topic = *topic;
            numbers.map(|(partition, _)| (topic, partition)).collect::<Vec<_>>()
        };
        self.membership.inputs.iter().zip(&self.owned).flat_map(of_input).collect()
    }

    /// A call that a fenced consumer could not carry out has nothing to carry out: all is revoked with the next poll.
    fn unless_fenced(&mut self, result: Result<(), Error>) -> Result<(), Error> {
        if result.is_err() && self.fenced().is_some() {
            self.is_lost = true;
            return Ok(());
        }
        result
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

    /// The input of the message, by its topic.
    fn input_of(handles: &mut Vec<(usize, usize)>, inputs: &[TopicName], message: &BorrowedMessage<'_>) -> usize {
        let handle = message.topic_ptr() as usize;
        if let Some((_, input)) = handles.iter().find(|(known, _)| *known == handle) {
            return *input;
        }
        let input = inputs.iter().position(|name| *name == message.topic());
        let input = input.expect("only subscribed topics are assigned");
        handles.push((handle, input));
        input
    }

    /// Tells how far every input is behind, as of librdkafka's last statistics.
    fn tell_lag(&self, fetched: Vec<(usize, i32, Fetched)>) {
        let now = SystemClock::new().now();
        let mut busy: BTreeMap<i32, bool> = BTreeMap::new();
        for (input, partition, fetched) in fetched {
            let topic = self.membership.inputs[input];
            if !self.owns(topic, partition) {
                continue;
            }
            let start = self.positions.iter().find(|at| at.topic == topic && at.partition == partition);
            let lag = fetched.lag(start.map_or(0, |at| at.offset));
            // Until the first record of an assignment is seen, its age is at least that of the assignment.
            let last = self.seen[input].get(partition as usize).copied().filter(|at| at.0 > 0).unwrap_or(self.started);
            let age_ms = if lag == 0 { 0 } else { now.0.saturating_sub(last.0).max(0) };
            telemetry::lag(topic, partition, lag, Duration::from_millis(age_ms as u64));
            if let Some(retention_ms) = retention_ms(topic) {
                telemetry::time_to_retention(topic, partition, retention_ms - age_ms);
            }
            *busy.entry(partition).or_default() |= lag > 0;
        }
        busy.into_iter().for_each(|(partition, busy)| telemetry::idle(&self.membership.group, partition, !busy));
    }

    fn has_changed(&self) -> bool {
        self.consumer.as_ref().is_some_and(|consumer| consumer.context().changed.load(Ordering::Acquire))
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
        if self.is_lost {
            return self.join_anew("a call found it out");
        }
        let Some(consumer) = &self.consumer else { return self.consumer().map(|_| Polled::Nothing) };
        if consumer.context().reported.load(Ordering::Relaxed) {
            self.tell_lag(consumer.context().take_fetched());
        }
        match consumer.poll(wait) {
            Some(Ok(message)) => {
                let input = KafkaGroup::input_of(&mut self.handles, &self.membership.inputs, &message);
                if let Some(seen) = self.seen[input].get_mut(message.partition() as usize) {
                    *seen = Timestamp(message.timestamp().to_millis().unwrap_or(0));
                }
                self.scratch.hand_over(&message, self.membership.inputs[input], each);
                Ok(Polled::Record)
            }
            Some(Err(cause)) => self.judge(&cause),
            None => match self.fenced() {
                Some(reason) => self.join_anew(&reason),
                None if self.has_changed() => Ok(Polled::Rebalanced),
                None => Ok(Polled::Nothing),
            },
        }
    }

    fn changes(&mut self) -> Changes {
        let Some(changes) = self.consumer.as_ref().and_then(|consumer| consumer.context().take()) else {
            return Changes::default();
        };
        self.handles.clear();
        self.positions.clear();
        let assigned = changes.assigned.clone().unwrap_or_default();
        for (topic, partition) in &changes.revoked {
            telemetry::input_gone(&self.membership.group, topic, *partition);
        }
        self.own(&assigned);
        self.seen = self.owned.iter().map(|owned| vec![Timestamp::default(); owned.len()]).collect();
        self.started = SystemClock::new().now();
        changes
    }

    fn start(&mut self, positions: &[InputOffset]) -> Result<(), Error> {
        let list = client::partition_list(positions)?;
        let what = || format!("could not start {} inputs of group {}", positions.len(), self.membership.group);
        let done = self.consumer()?.assign(&list).map_err(|e| client::error(what(), &e));
        self.unless_fenced(done)?;
        self.positions = positions.to_vec();
        Ok(())
    }

    fn seek(&mut self, positions: &[InputOffset]) -> Result<(), Error> {
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        // A partition whose fetcher has just been started refuses for a moment.
        while let Err(error) = seek_once(self.consumer()?, positions) {
            if self.fenced().is_some() || Instant::now() >= deadline {
                return self.unless_fenced(Err(error));
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
        let none = |cause: &str| {
            let what = format!("could not prove membership of {}", self.membership.group);
            Error::new(ErrorKind::Retriable, what, cause)
        };
        if let Some(reason) = self.fenced() {
            return Err(none(&reason));
        }
        let metadata = self.consumer()?.group_metadata().ok_or_else(|| none("the consumer is closing"))?;
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

/// A consumer that has subscribed.
fn join(
    connection: &Connection,
    membership: &Membership,
    callbacks: Callbacks,
) -> Result<Bounded<BaseConsumer<Callbacks>>, Error> {
    let what = || format!("could not join group {}", membership.group);
    let session_timeout_ms = membership.session_timeout.as_millis().to_string();
    let poll_interval_ms = membership.max_poll_interval.as_millis().to_string();
    let mut config = connection.reading(&SETTINGS);
    config.set("group.id", &membership.group);
    config.set("session.timeout.ms", session_timeout_ms).set("max.poll.interval.ms", poll_interval_ms);
    if let Some(instance) = &membership.instance {
        config.set("group.instance.id", instance);
    }
    let consumer: BaseConsumer<Callbacks> =
        config.create_with_context(callbacks).map_err(|e| client::error(what(), &e))?;
    consumer.subscribe(&membership.inputs).map_err(|e| client::error(what(), &e))?;
    Ok(Bounded::new(consumer, "group"))
}

/// When a member was fenced, lately.
#[derive(Debug, Default)]
struct Fences(VecDeque<Instant>);

impl Fences {
    /// Counts one more; whether it may join anew.
    fn allow(&mut self, now: Instant) -> bool {
        self.0.retain(|at| now.duration_since(*at) < FENCES_WITHIN);
        self.0.push_back(now);
        self.0.len() <= FENCES_MAX
    }
}

/// Settings of a group member; reasons in the comments, the rest are librdkafka's defaults.
const SETTINGS: [(&str, &str); 17] = [
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
    // A full queue is looked at again soon; the default rests for a second, and the worker then finds it empty.
    ("fetch.queue.backoff.ms", "20"),
    ("message.copy.max.bytes", "65535"),
    ("check.crcs", "true"),
    ("enable.partition.eof", "false"),
    // How far each input is behind.
    ("statistics.interval.ms", "5000"),
];

/// How long the topology keeps a topic's records; `None` for topics that are not ours, or compacted.
fn retention_ms(topic: TopicName) -> Option<i64> {
    match Topic::by_name(topic)?.spec().cleanup {
        Cleanup::Delete(days) => Some(days * DAY_MS),
        Cleanup::Compact | Cleanup::CompactAndDelete(_) => None,
    }
}

/// The part of librdkafka's statistics that we read.
#[derive(Deserialize)]
struct Statistics {
    brokers: BTreeMap<String, BrokerStatistics>,
    topics: BTreeMap<String, TopicStatistics>,
}

#[derive(Deserialize)]
struct BrokerStatistics {
    txretries: u64,
}

#[derive(Deserialize)]
struct TopicStatistics {
    partitions: BTreeMap<i32, Fetched>,
}

/// How far librdkafka has come in a partition.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Fetched {
    /// Records fetched and not yet handed over.
    fetchq_cnt: i64,
    next_offset: i64,
    /// Behind the last record handed over; negative before the first.
    app_offset: i64,
    /// Below it everything is decided; negative when not known yet.
    ls_offset: i64,
}

impl Fetched {
    /// Records that wait. Behind the last record may lie markers, which nobody is handed.
    fn lag(self, start: i64) -> i64 {
        if self.fetchq_cnt == 0 && self.next_offset >= self.ls_offset {
            return 0;
        }
        let position = if self.app_offset >= 0 { self.app_offset } else { start };
        (self.ls_offset - position).max(0)
    }
}

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
    /// There are new statistics.
    reported: AtomicBool,
    fetched: Mutex<Vec<(usize, i32, Fetched)>>,
    /// Requests sent again, as of the last statistics.
    retries: AtomicU64,
}

impl Callbacks {
    fn new(inputs: Vec<TopicName>) -> Callbacks {
        Callbacks {
            inputs,
            changed: AtomicBool::new(false),
            changes: Mutex::default(),
            reported: AtomicBool::new(false),
            fetched: Mutex::default(),
            retries: AtomicU64::new(0),
        }
    }

    fn take_fetched(&self) -> Vec<(usize, i32, Fetched)> {
        self.reported.store(false, Ordering::Relaxed);
        std::mem::take(&mut *self.fetched.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn report(&self, statistics: Statistics) {
        let retries = statistics.brokers.values().map(|broker| broker.txretries).sum();
        let before = self.retries.swap(retries, Ordering::AcqRel);
        telemetry::member_retries(retries.saturating_sub(before));
        let mut fetched = Vec::new();
        for (topic, statistics) in statistics.topics {
            let Some(input) = self.inputs.iter().position(|name| *name == topic) else { continue };
            // Partition -1 stands for records without one; an unknown end says nothing.
            let known = statistics.partitions.into_iter().filter(|(number, f)| *number >= 0 && f.ls_offset >= 0);
            fetched.extend(known.map(|(number, f)| (input, number, f)));
        }
        *self.fetched.lock().unwrap_or_else(PoisonError::into_inner) = fetched;
        self.reported.store(true, Ordering::Relaxed);
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

    fn stats_raw(&self, json: &[u8]) {
        match serde_json::from_slice::<Statistics>(json) {
            Ok(statistics) => self.report(statistics),
            Err(error) => tracing::debug!("could not read librdkafka's statistics: {error}"),
        }
    }
}

impl ConsumerContext for Callbacks {
    fn rebalance(&self, consumer: &BaseConsumer<Callbacks>, what: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let partitions = self.named(list);
        let mut changes = self.lock();
        if what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            tracing::info!(partitions = partitions.len(), "assigned");
            changes.assigned = Some(partitions);
            telemetry::assigned();
        } else {
            tracing::info!(partitions = partitions.len(), lost = consumer.assignment_lost(), "revoked");
            telemetry::revoked(consumer.assignment_lost());
            if let Err(error) = consumer.unassign() {
                tracing::warn!("could not give up a revoked assignment: {error}");
            }
            changes.revoked.extend(partitions);
            changes.assigned = None;
        }
        self.changed.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_fenced_again_and_again_has_a_twin() {
        let (mut fences, start) = (Fences::default(), Instant::now());
        let mut outages = (0..100).map(|n| start + FENCES_WITHIN / 4 * n);
        assert!(outages.all(|at| fences.allow(at)));
        let twins = (0..=FENCES_MAX as u32).map(|n| start + FENCES_WITHIN * 50 + Duration::from_secs(1) * n);
        let allowed: Vec<bool> = twins.map(|at| fences.allow(at)).collect();
        assert_eq!(allowed.iter().filter(|allowed| **allowed).count(), FENCES_MAX);
        assert_eq!(allowed.last(), Some(&false));
    }

    #[test]
    fn lag_counts_records_and_not_the_markers_behind_them() {
        for (fetchq_cnt, next_offset, app_offset, ls_offset, lag) in
            [(0, 10, 9, 10, 0), (3, 10, 7, 10, 3), (0, 5, -1001, 10, 8), (0, -1001, -1001, 2, 0), (0, 8, 8, 20, 12)]
        {
            let fetched = Fetched { fetchq_cnt, next_offset, app_offset, ls_offset };
            assert_eq!(fetched.lag(2), lag, "{fetched:?}");
        }
    }
}
