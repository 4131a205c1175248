//! Writing to Kafka: the `Txn` port on a transactional producer, and a plain producer for what lies outside
//! transactions.
//!
//! What an error means is one pure function, `reaction`. Waiting for deliveries goes through librdkafka's flush, which
//! ends a linger at once, and not through the binding's, which costs 100 ms a commit. Decides nothing about retrying a
//! batch; that is the worker's. Next: `log.rs`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::bindings::rd_kafka_flush;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use serde::Deserialize;

use super::client::{self, Connection};
use super::ports::{Error, ErrorKind, InputOffset, Outgoing, Txn};
use super::queue::Queue;
use super::source::GroupMetadata;
use super::telemetry::{self, Changelog};
use crate::topology::{OUTPUT_BYTES_MAX, Topic};

/// How long the broker leaves a silent transaction open, unless configured otherwise. A reader, and a survivor after a
/// crash, waits that long.
pub const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How much longer than a transaction may be open its commit or abort may take before the outcome counts as unknown:
/// the broker's own end of the transaction lies before it.
const END_TIMEOUT_MORE: Duration = Duration::from_secs(5);
/// How long `init` waits for the broker to finish what an older producer left.
const INIT_TIMEOUT: Duration = Duration::from_secs(30);
/// A call this slow may have been retried; a late copy of it may still be on its way.
const SLOW: Duration = Duration::from_secs(5);
/// One wait for deliveries, between two looks at what failed.
const DRAIN_SLICE_MS: i32 = 20;
/// Events are served once per so many records; they are rare, since successful deliveries make none.
const SERVE_EVERY: u32 = 1024;

/// A transactional producer under one stable id.
pub struct KafkaTxn {
    connection: Connection,
    id: String,
    /// `transaction.timeout.ms`.
    timeout: Duration,
    /// `None` before the first `init`.
    producer: Option<Queue<Deliveries>>,
    /// When the open transaction began.
    began: Option<Instant>,
    /// What happened that could end the next transaction late, as a label.
    suspect: Option<&'static str>,
    unserved: u32,
    /// Name of the changelog, and what the open transaction wrote to it.
    changelog_name: &'static str,
    changelog: Changelog,
}

impl KafkaTxn {
    /// A producer that connects with its first `init`.
    pub fn new(connection: &Connection, transactional_id: impl Into<String>) -> KafkaTxn {
        KafkaTxn {
            connection: connection.clone(),
            id: transactional_id.into(),
            timeout: TRANSACTION_TIMEOUT,
            producer: None,
            began: None,
            suspect: None,
            unserved: 0,
            changelog_name: Topic::UserState.name(),
            changelog: Changelog::default(),
        }
    }

    /// The same with another transaction timeout.
    pub fn with_timeout(self, timeout: Duration) -> KafkaTxn {
        KafkaTxn { timeout, ..self }
    }

    /// How long deliveries and offsets may take; the transaction ends soon after.
    fn delivery_timeout(&self) -> Duration {
        self.timeout * 4 / 5
    }

    fn end_timeout(&self) -> Duration {
        self.timeout + END_TIMEOUT_MORE
    }

    /// The transactional.id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Why the producer wants recycling, as a label for the metric.
    pub fn recycling_cause(&self) -> Option<&'static str> {
        match &self.producer {
            None => Some("new"),
            Some(producer) => self.suspect.or_else(|| producer.context().unsettled()),
        }
    }

    fn producer(&self) -> Result<&BaseProducer<Deliveries>, Error> {
        let missing = || Error::new(ErrorKind::Fatal, format!("could not use producer {}", self.id), "not initialised");
        self.producer.as_deref().ok_or_else(missing)
    }

    /// Turns an error of a call into ours and remembers that it happened.
    fn failed(&mut self, step: Step, cause: &KafkaError) -> Error {
        self.suspect = Some("error");
        let fatal = self.producer.as_ref().and_then(|producer| producer.client().fatal_error());
        let facts = Facts {
            step,
            code: fatal.as_ref().map(|(code, _)| *code).or(cause.rdkafka_error_code()),
            fatal: fatal.is_some(),
            must_abort: matches!(cause, KafkaError::Transaction(error) if error.txn_requires_abort()),
            retriable: is_retriable(cause),
            overdue: self.began.is_some_and(|began| began.elapsed() >= self.timeout),
        };
        let cause = fatal.map_or_else(|| cause.to_string(), |(_, reason)| reason);
        if reaction(&facts) == ErrorKind::Fenced {
            telemetry::producer_fenced();
        }
        Error::new(reaction(&facts), format!("could not {} of {}", step.words(), self.id), cause)
    }

    /// Waits until every record was delivered or refused.
    fn drain(&mut self, step: Step) -> Result<(), Error> {
        let deadline = Instant::now() + self.delivery_timeout();
        loop {
            let producer = self.producer()?;
            let idle = drain_once(producer);
            if let Some(refusal) = producer.context().refusal() {
                return Err(self.refused(&refusal));
            }
            if idle {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let cause = KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut);
                return Err(Error { kind: ErrorKind::Abort, ..self.failed(step, &cause) });
            }
        }
    }

    fn refused(&mut self, refusal: &Refusal) -> Error {
        let error = self.failed(Step::Deliver, &KafkaError::MessageProduction(refusal.code));
        Error { what: format!("could not write to {}[{}] as {}", refusal.topic, refusal.partition, self.id), ..error }
    }

    /// Runs a call and holds against the producer that it was slow.
    fn timed<T>(&mut self, call: impl FnOnce(&mut KafkaTxn) -> T) -> T {
        let began = Instant::now();
        let result = call(self);
        if began.elapsed() > SLOW {
            self.suspect = self.suspect.or(Some("slow"));
        }
        result
    }

    /// Calls until it worked, failed for good, or `timeout` is over.
    fn until(
        &mut self,
        step: Step,
        timeout: Duration,
        call: impl Fn(&BaseProducer<Deliveries>, Duration) -> Result<(), KafkaError>,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let producer = self.producer()?;
            let result = call(producer, left);
            producer.poll(Duration::ZERO);
            match result {
                Ok(()) => return Ok(()),
                Err(cause) if is_retriable(&cause) && Instant::now() < deadline => {
                    self.suspect = Some("error");
                    tracing::debug!(id = self.id, "{} again: {cause}", step.words());
                }
                Err(cause) => return Err(self.failed(step, &cause)),
            }
        }
    }
}

impl Txn for KafkaTxn {
    type Metadata = GroupMetadata;

    fn init(&mut self) -> Result<(), Error> {
        let cause = self.recycling_cause().unwrap_or("asked");
        self.began = None;
        self.producer = None;
        let mut config = producer_config(&self.connection);
        config.set("transactional.id", &self.id);
        config.set("transaction.timeout.ms", self.timeout.as_millis().to_string());
        config.set("message.timeout.ms", self.delivery_timeout().as_millis().to_string());
        let producer = config
            .create_with_context(Deliveries::default())
            .map_err(|e| client::error(format!("could not make producer {}", self.id), &e))?;
        self.producer = Some(Queue::new(producer));
        self.until(Step::Init, INIT_TIMEOUT, |producer, left| producer.init_transactions(left))?;
        self.producer()?.context().forgive();
        self.suspect = None;
        telemetry::producer_made(cause);
        Ok(())
    }

    fn begin(&mut self) -> Result<(), Error> {
        let producer = self.producer()?;
        producer.context().take_refusal();
        if let Err(cause) = producer.begin_transaction() {
            return Err(self.failed(Step::Begin, &cause));
        }
        self.began = Some(Instant::now());
        self.changelog = Changelog::default();
        Ok(())
    }

    fn send(&mut self, record: &Outgoing<'_>) -> Result<(), Error> {
        let id = &self.id;
        let missing = || Error::new(ErrorKind::Fatal, format!("could not use producer {id}"), "not initialised");
        match self.producer.as_mut().ok_or_else(missing)?.push(record, Some(record.partition)) {
            Ok(()) if record.topic == self.changelog_name => {
                self.changelog.records += 1;
                self.changelog.bytes +=
                    [record.key, record.value].iter().flatten().map(|b| b.len() as u64).sum::<u64>();
            }
            Ok(()) => {}
            Err(cause) => {
                let error = self.failed(Step::Deliver, &cause);
                let what = format!("could not write to {}[{}] as {}", record.topic, record.partition, self.id);
                return Err(Error { what, ..error }.at(record.topic, record.partition));
            }
        }
        self.unserved += 1;
        if self.unserved >= SERVE_EVERY {
            self.unserved = 0;
            self.producer()?.poll(Duration::ZERO);
        }
        Ok(())
    }

    fn send_offsets(&mut self, offsets: &[InputOffset], metadata: &GroupMetadata) -> Result<(), Error> {
        let list = client::partition_list(offsets)?;
        let began = Instant::now();
        self.timed(|txn| {
            txn.drain(Step::Offsets)?;
            txn.until(Step::Offsets, txn.delivery_timeout(), |producer, left| {
                producer.send_offsets_to_transaction(&list, &metadata.0, left)
            })
        })?;
        telemetry::offsets_sent(&self.id, began.elapsed());
        Ok(())
    }

    fn commit(&mut self) -> Result<(), Error> {
        let began = Instant::now();
        self.timed(|txn| {
            txn.drain(Step::Drain)?;
            txn.until(Step::Commit, txn.end_timeout(), |producer, left| producer.commit_transaction(left))?;
            txn.began = None;
            Ok(())
        })?;
        telemetry::transaction_committed(&self.id, began.elapsed(), self.changelog);
        Ok(())
    }

    fn abort(&mut self) -> Result<(), Error> {
        self.suspect = Some("abort");
        // librdkafka's abort purges the queues and then waits for reports that only a poll takes away: so it is called
        // with short waits, and polled in between, until nothing is in flight.
        self.until(Step::Abort, self.end_timeout(), |producer, left| {
            let busy = producer.in_flight_count() > 0;
            let result = producer.abort_transaction(if busy { Duration::from_millis(5) } else { left });
            if busy && result.is_err() {
                drain_once(producer);
            }
            result
        })?;
        self.producer()?.context().take_refusal();
        self.began = None;
        Ok(())
    }

    fn wants_recycling(&self) -> bool {
        self.recycling_cause().is_some()
    }
}

/// A producer without transactions, idempotent.
pub struct KafkaProducer {
    producer: Queue<Deliveries>,
    unserved: u32,
}

impl KafkaProducer {
    /// A producer that retries for 30 s.
    pub fn new(connection: &Connection) -> Result<KafkaProducer, Error> {
        let mut config = producer_config(connection);
        config.set("enable.idempotence", "true").set("message.timeout.ms", "30000");
        let producer = config
            .create_with_context(Deliveries::default())
            .map_err(|e| client::error("could not make a producer", &e))?;
        Ok(KafkaProducer { producer: Queue::new(producer), unserved: 0 })
    }

    /// Queues a record for its partition; waits while the queue is full. Failures show in `flush`.
    pub fn send(&mut self, record: &Outgoing<'_>) -> Result<(), Error> {
        self.enqueue(record, Some(record.partition))
    }

    /// Queues a record for the partition of its key (murmur2); its own `partition` is not looked at.
    pub fn send_by_key(&mut self, record: &Outgoing<'_>) -> Result<(), Error> {
        self.enqueue(record, None)
    }

    /// Waits until everything was delivered; the first failure since the last flush is the error.
    pub fn flush(&mut self, timeout: Duration) -> Result<(), Error> {
        let producer = &*self.producer;
        let deadline = Instant::now() + timeout;
        while !drain_once(producer) {
            if Instant::now() >= deadline {
                let cause = format!("{} records are still in flight after {timeout:?}", producer.in_flight_count());
                return Err(Error::new(ErrorKind::Timeout, "could not flush", cause));
            }
        }
        match producer.context().take_refusal() {
            None => Ok(()),
            Some(refusal) => {
                let what = format!("could not write to {}[{}]", refusal.topic, refusal.partition);
                Err(plain_error(what, &KafkaError::MessageProduction(refusal.code)))
            }
        }
    }

    fn enqueue(&mut self, record: &Outgoing<'_>, partition: Option<i32>) -> Result<(), Error> {
        self.producer
            .push(record, partition)
            .map_err(|e| plain_error(format!("could not write to {}", record.topic), &e))?;
        self.unserved += 1;
        if self.unserved >= SERVE_EVERY {
            self.unserved = 0;
            self.producer.poll(Duration::ZERO);
        }
        Ok(())
    }
}

fn plain_error(what: String, cause: &KafkaError) -> Error {
    let kind = match cause.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge) => ErrorKind::TooLarge,
        _ => client::error("", cause).kind,
    };
    Error::new(kind, what, cause)
}

/// Settings of every producer.
fn producer_config(connection: &Connection) -> ClientConfig {
    let bytes_max = (OUTPUT_BYTES_MAX + 65_536).to_string();
    let mut config = connection.config(&[
        ("acks", "all"),
        // As Java's default, so that all languages put a user on the same partition.
        ("partitioner", "murmur2_random"),
        ("compression.type", "lz4"),
        // Collects batches while records come fast; a commit does not wait for it, since flush ends it.
        ("linger.ms", "5"),
        ("batch.num.messages", "100000"),
        ("batch.size", "1000000"),
        ("queue.buffering.max.messages", "1000000"),
        ("queue.buffering.max.kbytes", "262144"),
        // The broker says "previous transaction still completing" for a few ms; the default would wait 100.
        ("retry.backoff.ms", "5"),
        ("delivery.report.only.error", "true"),
        ("statistics.interval.ms", "5000"),
    ]);
    config.set("message.max.bytes", bytes_max);
    config
}

/// Waits a moment for deliveries and takes the reports of failed ones; whether nothing is left in flight.
fn drain_once(producer: &BaseProducer<Deliveries>) -> bool {
    if producer.in_flight_count() == 0 {
        return true;
    }
    // SAFETY: the producer is alive, and flush may be called from any thread. It returns with the last delivery.
    unsafe { rd_kafka_flush(producer.client().native_ptr(), DRAIN_SLICE_MS) };
    // What is left are events (failed deliveries, log lines), which count until they are taken.
    while producer.in_flight_count() > 0 {
        let before = producer.in_flight_count();
        producer.poll(Duration::ZERO);
        if producer.in_flight_count() >= before {
            return false;
        }
    }
    true
}

fn is_retriable(cause: &KafkaError) -> bool {
    match cause {
        KafkaError::Transaction(error) => error.is_retriable(),
        KafkaError::Flush(code) => *code == RDKafkaErrorCode::OperationTimedOut,
        _ => false,
    }
}

/// What was attempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Init,
    Begin,
    Deliver,
    Drain,
    Offsets,
    Commit,
    Abort,
}

impl Step {
    const fn words(self) -> &'static str {
        match self {
            Step::Init => "start the transactions",
            Step::Begin => "begin a transaction",
            Step::Deliver | Step::Drain => "deliver the records",
            Step::Offsets => "add offsets to a transaction",
            Step::Commit => "commit a transaction",
            Step::Abort => "abort a transaction",
        }
    }
}

/// What is known about a failed call.
#[derive(Clone, Copy, Debug)]
struct Facts {
    step: Step,
    code: Option<RDKafkaErrorCode>,
    fatal: bool,
    must_abort: bool,
    retriable: bool,
    /// The transaction was open for longer than the broker allows.
    overdue: bool,
}

/// Which reaction a failed call asks for (hazards T1, T2, T4).
fn reaction(facts: &Facts) -> ErrorKind {
    use RDKafkaErrorCode as Code;
    match facts.code {
        Some(Code::MessageSizeTooLarge) => return ErrorKind::TooLarge,
        // The broker says the same to a producer whose transaction it has timed out and to one that was replaced. A
        // transaction that was not open for long enough cannot have timed out.
        Some(Code::Fenced | Code::InvalidProducerEpoch | Code::ProducerFenced) if !facts.overdue => {
            return ErrorKind::Fenced;
        }
        _ => {}
    }
    match facts.step {
        // The refusal of a commit is only sure when nothing was asked of the broker yet; `abort` after it either proves
        // that nothing was committed or fails.
        Step::Commit if facts.must_abort && !facts.fatal => ErrorKind::Abort,
        Step::Commit => ErrorKind::Unknown,
        _ if facts.fatal => ErrorKind::Fatal,
        Step::Init if facts.retriable => ErrorKind::Retriable,
        Step::Deliver | Step::Drain | Step::Offsets => ErrorKind::Abort,
        Step::Init | Step::Begin | Step::Abort => ErrorKind::Fatal,
    }
}

/// The first record that was not written.
#[derive(Clone, Debug)]
struct Refusal {
    code: RDKafkaErrorCode,
    topic: String,
    partition: i32,
}

/// Collects failed deliveries and signs of a disturbed connection.
#[derive(Default)]
struct Deliveries {
    failed: AtomicBool,
    refusal: Mutex<Option<Refusal>>,
    /// A connection that was up broke.
    disconnected: AtomicBool,
    /// Requests sent again, over all brokers, as of the last statistics and as of the last `forgive`.
    retries: AtomicU64,
    retries_forgiven: AtomicU64,
}

impl Deliveries {
    fn refusal(&self) -> Option<Refusal> {
        // The flag keeps the lock off the ordinary path.
        if !self.failed.load(Ordering::Acquire) {
            return None;
        }
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn take_refusal(&self) -> Option<Refusal> {
        if !self.failed.swap(false, Ordering::AcqRel) {
            return None;
        }
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn unsettled(&self) -> Option<&'static str> {
        if self.disconnected.load(Ordering::Acquire) {
            return Some("disconnect");
        }
        let grown = self.retries.load(Ordering::Acquire) > self.retries_forgiven.load(Ordering::Acquire);
        grown.then_some("retries")
    }

    fn forgive(&self) {
        self.disconnected.store(false, Ordering::Release);
        self.retries_forgiven.store(self.retries.load(Ordering::Acquire), Ordering::Release);
    }
}

/// The part of librdkafka's statistics that we read.
#[derive(Deserialize)]
struct Statistics {
    brokers: BTreeMap<String, BrokerStatistics>,
}

#[derive(Deserialize)]
struct BrokerStatistics {
    txretries: u64,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        client::log_line(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
        // Attempts to reach a broker that is down fail all the time and disturb no transaction; a connection that
        // breaks may have carried one.
        let transport = error.rdkafka_error_code() == Some(RDKafkaErrorCode::BrokerTransportFailure);
        if transport && reason.contains("in state UP") {
            self.disconnected.store(true, Ordering::Release);
        }
    }

    fn stats_raw(&self, json: &[u8]) {
        match serde_json::from_slice::<Statistics>(json) {
            Ok(statistics) => {
                let retries = statistics.brokers.values().map(|broker| broker.txretries).sum();
                let before = self.retries.swap(retries, Ordering::AcqRel);
                telemetry::producer_retries(retries.saturating_sub(before));
            }
            Err(error) => tracing::debug!("could not read librdkafka's statistics: {error}"),
        }
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _: ()) {
        let Err((error, message)) = result else { return };
        let mut first = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
            *first = Some(Refusal { code, topic: message.topic().to_owned(), partition: message.partition() });
        }
        drop(first);
        self.failed.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_asks_for_one_reaction() {
        use RDKafkaErrorCode as Code;
        let fact = |step, code, flags: &str| Facts {
            step,
            code: Some(code),
            fatal: flags.contains('f'),
            must_abort: flags.contains('a'),
            retriable: flags.contains('r'),
            overdue: flags.contains('o'),
        };
        for (step, code, flags, expected) in [
            (Step::Init, Code::OperationTimedOut, "r", ErrorKind::Retriable),
            (Step::Init, Code::TransactionalIdAuthorizationFailed, "f", ErrorKind::Fatal),
            (Step::Begin, Code::State, "", ErrorKind::Fatal),
            (Step::Deliver, Code::MessageSizeTooLarge, "", ErrorKind::TooLarge),
            (Step::Deliver, Code::MessageTimedOut, "", ErrorKind::Abort),
            (Step::Offsets, Code::IllegalGeneration, "a", ErrorKind::Abort),
            // The proof of membership is void; the group's next poll finds out why.
            (Step::Offsets, Code::FencedInstanceId, "a", ErrorKind::Abort),
            (Step::Offsets, Code::Fenced, "f", ErrorKind::Fenced),
            (Step::Commit, Code::Fenced, "f", ErrorKind::Fenced),
            (Step::Commit, Code::Fenced, "fo", ErrorKind::Unknown),
            (Step::Deliver, Code::InvalidProducerEpoch, "fo", ErrorKind::Fatal),
            (Step::Commit, Code::OperationTimedOut, "r", ErrorKind::Unknown),
            (Step::Commit, Code::InvalidTransactionalState, "f", ErrorKind::Unknown),
            (Step::Commit, Code::UnknownProducerId, "a", ErrorKind::Abort),
            (Step::Abort, Code::OperationTimedOut, "r", ErrorKind::Fatal),
        ] {
            assert_eq!(reaction(&fact(step, code, flags)), expected, "{step:?} {code:?} {flags}");
        }
    }

    #[test]
    fn signs_of_trouble_last_until_forgiven() {
        let deliveries = Deliveries::default();
        let transport = || KafkaError::Global(RDKafkaErrorCode::BrokerTransportFailure);
        deliveries.error(transport(), "Connect to ipv4#127.0.0.1:9092 failed (after 0ms in state CONNECT)");
        assert_eq!(deliveries.unsettled(), None);
        deliveries.error(transport(), "Disconnected (after 10ms in state UP)");
        assert_eq!(deliveries.unsettled(), Some("disconnect"));
        deliveries.forgive();
        assert_eq!(deliveries.unsettled(), None);
        deliveries.stats_raw(br#"{"name":"x","brokers":{"a":{"txretries":2},"b":{"txretries":1}}}"#);
        assert_eq!(deliveries.unsettled(), Some("retries"));
        deliveries.forgive();
        deliveries.stats_raw(br#"{"brokers":{"a":{"txretries":3}}}"#);
        assert_eq!(deliveries.unsettled(), None);
    }
}
