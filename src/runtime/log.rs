//! Reading Kafka outside the group: the `Log` port. Committed offsets, watermarks, and a partition from one offset to
//! another, as recovery, `verify` and `backtest` need them. Joins no group and commits nothing. Next: `redis_store.rs`.

use std::ops::{ControlFlow, Deref};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::client::{self, Bounded, Connection, REQUEST_TIMEOUT, Scratch};
use super::ports::{Error, ErrorKind, InputOffset, Log, RecordRef, TopicName};
use crate::domain::Timestamp;

/// How long a read may go without a record or a move of the last stable offset: the broker ends a dead transaction
/// after 10 s and looks for dead ones every 10 s.
const STALL_MAX: Duration = Duration::from_secs(30);
/// How long stable committed offsets are waited for in one call; long beside a commit, which ends within milliseconds.
const COMMITTED_TIMEOUT: Duration = Duration::from_secs(2);
/// A client is made anew after an error at most this often: long beside the second a new one takes to connect.
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// Between two looks at a last stable offset that is still too low.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Offsets `[from, until)` of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub partition: i32,
    pub from: i64,
    pub until: i64,
}

/// Reads as a group's bystander.
pub struct KafkaLog {
    group: String,
    connection: Connection,
    /// Read-committed: records, committed offsets, the last stable offset.
    stable: Reader,
    /// Read-uncommitted: the high watermark.
    raw: Reader,
    stall_max: Duration,
    scratch: Scratch,
    /// Topics whose leaders `stable` knows.
    known: Vec<TopicName>,
}

impl KafkaLog {
    /// A reader that knows the committed offsets of `group` and is no member of it.
    pub fn new(connection: &Connection, group: impl Into<String>) -> Result<KafkaLog, Error> {
        let group = group.into();
        let stable = Reader::new(connection, &group, "read_committed")?;
        let raw = Reader::new(connection, &group, "read_uncommitted")?;
        Ok(KafkaLog {
            group,
            connection: connection.clone(),
            stable,
            raw,
            stall_max: STALL_MAX,
            scratch: Scratch::default(),
            known: Vec::new(),
        })
    }

    /// The same with another limit for a read that makes no progress.
    pub fn stall_max(self, stall_max: Duration) -> KafkaLog {
        KafkaLog { stall_max, ..self }
    }

    /// The result of a call on `raw`; after one that failed, `raw` is made anew, for the caller's next try.
    fn heal_raw<R>(&mut self, result: Result<R, Error>) -> Result<R, Error> {
        if result.as_ref().is_err_and(may_be_stale) {
            self.raw.renew(&self.connection, &self.group);
        }
        result
    }

    /// The same for `stable`.
    fn heal_stable<R>(&mut self, result: Result<R, Error>) -> Result<R, Error> {
        if result.as_ref().is_err_and(may_be_stale) && self.stable.renew(&self.connection, &self.group) {
            self.known.clear();
        }
        result
    }

    /// Partition counts of the topics that exist, by name.
    pub fn partition_counts(&mut self) -> Result<Vec<(String, i32)>, Error> {
        let metadata = self.raw.fetch_metadata(None, REQUEST_TIMEOUT);
        let metadata = self.heal_raw(metadata.map_err(|e| client::error("could not list the topics", &e)))?;
        Ok(metadata.topics().iter().map(|t| (t.name().to_owned(), t.partitions().len() as i32)).collect())
    }

    /// Offset of the first record at or after an instant, by partition; the end where there is none.
    pub fn offsets_at(&mut self, topic: TopicName, partitions: &[i32], at: Timestamp) -> Result<Vec<i64>, Error> {
        let found = self.offsets_for(topic, partitions, Offset::Offset(at.0.max(0)));
        let found = self.heal_raw(found)?;
        if found.iter().all(Option::is_some) {
            return Ok(found.into_iter().flatten().collect());
        }
        let ends = self.ends(topic, partitions)?;
        Ok(found.into_iter().zip(ends).map(|(found, end)| found.unwrap_or(end)).collect())
    }

    /// End of each partition as a read-uncommitted client sees it, in one request.
    pub fn ends(&mut self, topic: TopicName, partitions: &[i32]) -> Result<Vec<i64>, Error> {
        let found = self.offsets_for(topic, partitions, Offset::End);
        let found = self.heal_raw(found)?;
        Ok(found.into_iter().map(|end| end.unwrap_or(0)).collect())
    }

    /// First offset of each partition, in one request.
    pub fn starts(&mut self, topic: TopicName, partitions: &[i32]) -> Result<Vec<i64>, Error> {
        let found = self.offsets_for(topic, partitions, Offset::Beginning);
        let found = self.heal_raw(found)?;
        Ok(found.into_iter().map(|start| start.unwrap_or(0)).collect())
    }

    /// Kafka's ListOffsets: an instant, or one of its two special times.
    fn offsets_for(&self, topic: TopicName, partitions: &[i32], at: Offset) -> Result<Vec<Option<i64>>, Error> {
        let what = || format!("could not look up offsets of {topic}");
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for partition in partitions {
            list.add_partition_offset(topic, *partition, at).map_err(|e| client::error(what(), &e))?;
        }
        let list = self.raw.offsets_for_times(list, REQUEST_TIMEOUT).map_err(|e| client::error(what(), &e))?;
        let mut offsets = Vec::with_capacity(partitions.len());
        for partition in partitions {
            let element = list.find_partition(topic, *partition).expect("the answer has what was asked for");
            element.error().map_err(|e| client::error(what(), &e).at(topic, *partition))?;
            offsets.push(match element.offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            });
        }
        Ok(offsets)
    }

    /// Reads several partitions of one topic at once, each from its first offset to its last or to the end of what is
    /// committed now, whichever comes first; `each` may end it. Records of one partition come in order. For looking
    /// things up: unlike `read` it does not wait for open transactions.
    pub fn scan(
        &mut self,
        topic: TopicName,
        spans: &[Span],
        each: &mut dyn FnMut(RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let mut open: Vec<Span> = spans.iter().copied().filter(|s| s.from < s.until).collect();
        if open.is_empty() {
            return Ok(());
        }
        let what = || format!("could not look through {topic}");
        let mut list = TopicPartitionList::with_capacity(open.len());
        for span in &open {
            list.add_partition_offset(topic, span.partition, Offset::Offset(span.from))
                .map_err(|e| client::error(what(), &e))?;
        }
        self.learn(topic)?;
        self.stable.assign(&list).map_err(|e| client::error(what(), &e))?;
        let mut scratch = std::mem::take(&mut self.scratch);
        let result = self.scan_open(topic, &mut open, &mut scratch, each);
        self.scratch = scratch;
        // A failure to let go shows at the next assign.
        let _ = self.stable.unassign();
        self.heal_stable(result)
    }

    /// Makes the reader know a topic's leaders before it is assigned: librdkafka otherwise looks for those of a new
    /// topic once a second.
    fn learn(&mut self, topic: TopicName) -> Result<(), Error> {
        if !self.known.contains(&topic) {
            let metadata = self.stable.fetch_metadata(Some(topic), REQUEST_TIMEOUT);
            let metadata = metadata.map_err(|e| client::error(format!("could not look up {topic}"), &e));
            self.heal_stable(metadata)?;
            self.known.push(topic);
        }
        Ok(())
    }

    fn scan_open(
        &self,
        topic: TopicName,
        open: &mut Vec<Span>,
        scratch: &mut Scratch,
        each: &mut dyn FnMut(RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let what = || format!("could not look through {topic}");
        let mut deadline = Instant::now() + self.stall_max;
        while !open.is_empty() {
            match self.stable.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    deadline = Instant::now() + self.stall_max;
                    // Of a partition that has been read to its last offset, some more may still arrive.
                    let Some(n) = open.iter().position(|s| s.partition == message.partition()) else { continue };
                    let mut flow = ControlFlow::Continue(());
                    if message.offset() < open[n].until {
                        scratch.hand_over(&message, topic, &mut |record| flow = each(record));
                    }
                    if flow.is_break() {
                        return Ok(());
                    }
                    if message.offset() + 1 >= open[n].until {
                        open.swap_remove(n);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => open.retain(|s| s.partition != partition),
                Some(Err(cause)) => {
                    let error = client::error(what(), &cause);
                    if error.kind != ErrorKind::Retriable {
                        return Err(error);
                    }
                }
                None => {}
            }
            if Instant::now() >= deadline {
                let cause = format!("no record came within {:?}", self.stall_max);
                return Err(Error::new(ErrorKind::Timeout, what(), cause));
            }
        }
        Ok(())
    }

    fn assign(&self, topic: TopicName, partition: i32, offset: i64) -> Result<(), Error> {
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition_offset(topic, partition, Offset::Offset(offset))
            .and_then(|()| self.stable.assign(&list))
            .map_err(|e| client::error(format!("could not read {topic}[{partition}] from {offset}"), &e))
    }

    fn committed_now(&self, inputs: &[(TopicName, i32)]) -> Result<Vec<Option<InputOffset>>, Error> {
        let what = || format!("could not read the committed offsets of group {}", self.group);
        let list = || {
            let mut list = TopicPartitionList::with_capacity(inputs.len());
            for (topic, partition) in inputs {
                list.add_partition(topic, *partition);
            }
            list
        };
        let answer = self.stable.committed_offsets(list(), COMMITTED_TIMEOUT);
        let timed_out =
            matches!(&answer, Err(e) if e.rdkafka_error_code() == Some(RDKafkaErrorCode::OperationTimedOut));
        // librdkafka asks for stable offsets again and again until its time is over, and then does not say why. If the
        // group answers one who does not ask for stable ones, a transaction is the reason.
        if timed_out && self.raw.committed_offsets(list(), COMMITTED_TIMEOUT).is_ok() {
            return Err(Error::new(ErrorKind::Unstable, what(), "a transaction on them is pending"));
        }
        let list = answer.map_err(|e| client::error(what(), &e))?;
        let mut offsets = Vec::with_capacity(inputs.len());
        for (topic, partition) in inputs {
            let element = list.find_partition(topic, *partition).expect("the answer has what was asked for");
            element.error().map_err(|e| client::error(what(), &e).at(topic, *partition))?;
            offsets.push(match element.offset() {
                Offset::Offset(offset) => {
                    Some(InputOffset { topic, partition: *partition, offset, metadata: element.metadata().to_owned() })
                }
                _ => None,
            });
        }
        Ok(offsets)
    }
}

impl Log for KafkaLog {
    fn committed(&mut self, inputs: &[(TopicName, i32)]) -> Result<Vec<Option<InputOffset>>, Error> {
        let committed = self.committed_now(inputs);
        let committed = self.heal_stable(committed);
        // It has a part in telling a pending transaction from a broker that does not answer.
        self.heal_raw(committed)
    }

    fn watermarks(&mut self, topic: TopicName, partition: i32) -> Result<(i64, i64), Error> {
        let what = || format!("could not read the watermarks of {topic}[{partition}]");
        let watermarks = self.raw.fetch_watermarks(topic, partition, REQUEST_TIMEOUT);
        self.heal_raw(watermarks.map_err(|e| client::error(what(), &e)))
    }

    fn read(
        &mut self,
        topic: TopicName,
        partition: i32,
        from: i64,
        until: i64,
        each: &mut dyn FnMut(RecordRef<'_>),
    ) -> Result<(), Error> {
        if from >= until {
            return Ok(());
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let result = Reading { log: self, topic, partition, next: from, until, handle: 0 }.run(&mut scratch, each);
        self.scratch = scratch;
        // A failure to let go shows at the next assign.
        let _ = self.stable.unassign();
        self.heal_stable(result)
    }

    fn cluster_id(&mut self) -> Result<String, Error> {
        let id = self.raw.client().fetch_cluster_id(REQUEST_TIMEOUT);
        let none = || Error::new(ErrorKind::Retriable, "could not read the cluster id", "no broker answered");
        self.heal_raw(id.ok_or_else(none))
    }
}

/// One client. librdkafka keeps what a broker said while it was coming back and goes on answering from that: where it
/// knows of no leader it says "unknown partition" without asking, and asking for the topic did not always help (seen for
/// a minute after a broker had stood still; one that names no brokers leaves it nobody to ask). A client made anew knows
/// nothing wrong.
struct Reader {
    client: Bounded<BaseConsumer<Quiet>>,
    isolation: &'static str,
    made: Instant,
}

impl Reader {
    fn new(connection: &Connection, group: &str, isolation: &'static str) -> Result<Reader, Error> {
        let mut config = connection.reading(&SETTINGS);
        // require_stable of committed offsets comes with read_committed.
        config.set("group.id", group).set("isolation.level", isolation);
        let client: BaseConsumer<Quiet> =
            config.create_with_context(Quiet).map_err(|e| client::error("could not make a log reader", &e))?;
        Ok(Reader { client: Bounded::new(client, "log"), isolation, made: Instant::now() })
    }

    /// Whether a new one was made: not when this one is new, and the old one serves on when none can be had.
    fn renew(&mut self, connection: &Connection, group: &str) -> bool {
        if self.made.elapsed() < RENEW_EVERY {
            return false;
        }
        match Reader::new(connection, group, self.isolation) {
            Ok(reader) => *self = reader,
            Err(error) => {
                tracing::warn!(%error, "could not make a reader anew");
                return false;
            }
        }
        tracing::debug!(isolation = self.isolation, "a reader was made anew after an error");
        true
    }
}

impl Deref for Reader {
    type Target = BaseConsumer<Quiet>;

    fn deref(&self) -> &BaseConsumer<Quiet> {
        &self.client
    }
}

/// Whether what the client knows may be the reason.
fn may_be_stale(error: &Error) -> bool {
    matches!(error.kind, ErrorKind::Retriable | ErrorKind::Timeout)
}

/// One `read` under way.
struct Reading<'a> {
    log: &'a KafkaLog,
    topic: TopicName,
    partition: i32,
    /// The offset after the last record seen.
    next: i64,
    until: i64,
    /// Address of librdkafka's handle of the topic, once a record showed it.
    handle: usize,
}

impl Reading<'_> {
    /// Ends at a record at or beyond the last offset wanted, or at an end of partition that was met after the last
    /// stable offset had passed it. An end met earlier says nothing: records below `until` may become visible later.
    fn run(mut self, scratch: &mut Scratch, each: &mut dyn FnMut(RecordRef<'_>)) -> Result<(), Error> {
        let mut settled = self.last_stable()? >= self.until;
        self.log.assign(self.topic, self.partition, self.next)?;
        loop {
            match self.step(scratch, each)? {
                Seen::Record if self.next >= self.until => return Ok(()),
                Seen::Record => {}
                Seen::End if settled => return Ok(()),
                Seen::End => {
                    self.settle()?;
                    settled = true;
                    // librdkafka tells of an end once; a new assignment makes it look again.
                    self.log.assign(self.topic, self.partition, self.next)?;
                }
            }
        }
    }

    fn step(&mut self, scratch: &mut Scratch, each: &mut dyn FnMut(RecordRef<'_>)) -> Result<Seen, Error> {
        let deadline = Instant::now() + self.log.stall_max;
        loop {
            match self.log.stable.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    self.check(&message);
                    if message.offset() < self.until {
                        scratch.hand_over(&message, self.topic, each);
                    }
                    self.next = message.offset() + 1;
                    return Ok(Seen::Record);
                }
                Some(Err(KafkaError::PartitionEOF(partition))) if partition == self.partition => return Ok(Seen::End),
                Some(Err(cause)) => self.judge(&cause)?,
                None => {}
            }
            if Instant::now() >= deadline {
                return Err(self.stalled("no record came"));
            }
        }
    }

    /// Assignments are versioned inside librdkafka; this holds it to that. The name is compared once per handle.
    fn check(&mut self, message: &BorrowedMessage<'_>) {
        assert_eq!(message.partition(), self.partition, "a record of another partition");
        let handle = message.topic_ptr() as usize;
        if handle != self.handle {
            assert_eq!(message.topic(), self.topic, "a record of another topic");
            self.handle = handle;
        }
    }

    /// Waits until everything below `until` is decided.
    fn settle(&self) -> Result<(), Error> {
        let mut best = i64::MIN;
        let mut deadline = Instant::now() + self.log.stall_max;
        loop {
            let stable = self.last_stable()?;
            if stable >= self.until {
                return Ok(());
            }
            if stable > best {
                best = stable;
                deadline = Instant::now() + self.log.stall_max;
            }
            if Instant::now() >= deadline {
                return Err(self.stalled(&format!("a transaction is open at offset {stable}")));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The end as a read-committed client sees it.
    fn last_stable(&self) -> Result<i64, Error> {
        let end = self.log.stable.fetch_watermarks(self.topic, self.partition, REQUEST_TIMEOUT);
        end.map(|(_, end)| end).map_err(|e| self.error(&e))
    }

    fn judge(&self, cause: &KafkaError) -> Result<(), Error> {
        let unknown = cause.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownTopicOrPartition);
        let error = self.error(cause);
        match error.kind {
            _ if unknown => Err(Error { kind: ErrorKind::Missing, ..error }),
            ErrorKind::Retriable => Ok(()),
            _ => Err(error),
        }
    }

    fn error(&self, cause: &KafkaError) -> Error {
        client::error(self.what(), cause).at(self.topic, self.partition)
    }

    fn stalled(&self, cause: &str) -> Error {
        let cause = format!("{cause} within {:?}", self.log.stall_max);
        Error::new(ErrorKind::Timeout, self.what(), cause).at(self.topic, self.partition)
    }

    fn what(&self) -> String {
        format!("could not read {}[{}] from {} until {}", self.topic, self.partition, self.next, self.until)
    }
}

/// What a step of a read met.
enum Seen {
    Record,
    End,
}

const SETTINGS: [(&str, &str); 9] = [
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("auto.offset.reset", "error"),
    ("enable.partition.eof", "true"),
    // A read ends with an empty fetch, and the fetch of the read before has to come back first: both take this long.
    ("fetch.wait.max.ms", "5"),
    ("fetch.message.max.bytes", "4194304"),
    ("queued.min.messages", "20000"),
    ("queued.max.messages.kbytes", "65536"),
    ("check.crcs", "true"),
];

/// A client without callbacks but logging.
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        client::log_line(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
    }
}

impl ConsumerContext for Quiet {}
