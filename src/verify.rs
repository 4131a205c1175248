//! Replays the engine's journal over the retained input with the worker's own fold, and compares what it gives with
//! what stands in the topics and in Redis. A difference means that something was lost, doubled or altered.
//!
//! It joins no group and writes nothing. What it cannot check, because input has aged out, it says.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::Serialize;

use crate::domain::Timestamp;
use crate::domain::record::{InputRange, Journal};
use crate::runtime::batch::{Batch, INPUTS, input_name};
use crate::runtime::checkpoint::copy_user;
use crate::runtime::partition::{
    FoldError, Frame, Identity, Outputs, Overlay, Partition, PolicySource, Scratch, Tools,
};
use crate::runtime::ports::{CopyUser, Error, Log, Outgoing, RecordRef, Store, TopicName};
use crate::topology::{Cleanup, META_KEY, Topic};
use crate::wire::avro::{Decoder, Encoder, Schemas};
use crate::wire::dead_letter::DeadLetter;
use crate::wire::headers;

/// Differences described in full; the rest are counted.
const EXAMPLES_MAX: usize = 20;
/// Input records held in memory at a time.
const SPAN_RECORDS_MAX: usize = 200_000;

/// Topics written in the engine's transactions.
const WRITTEN: [Topic; 10] = [
    Topic::ActivityChronology,
    Topic::RiskScores,
    Topic::RiskLevels,
    Topic::Alerts,
    Topic::ShadowAlerts,
    Topic::CommandResults,
    Topic::DeadLetters,
    Topic::RiskSignals,
    Topic::UserState,
    Topic::EngineJournal,
];

/// What verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub partitions: i64,
    pub transactions: i64,
    pub input_records: i64,
    pub output_records: i64,
    pub users: i64,
    pub copy_users: i64,
    pub differences: i64,
    pub examples: Vec<String>,
    /// What could not be checked, and why.
    pub unchecked: Vec<String>,
}

impl Report {
    fn differ(&mut self, what: impl FnOnce() -> String) {
        self.differences += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(what());
        }
    }
}

/// Why verification could not be carried out.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Port(#[from] Error),
    #[error("could not verify partition {partition}: the engine wrote while it was read; stop the input and try again")]
    Moving { partition: i32 },
    #[error("could not read the journal of partition {partition} at offset {offset}: {cause}")]
    Journal { partition: i32, offset: i64, cause: String },
}

/// The latest value of each key, by fingerprint; `None` is a tombstone.
type Latest = HashMap<Box<[u8]>, Option<u128>>;

/// What the outputs should be, by record.
#[derive(Default)]
struct Expected {
    /// Journals (delete): fingerprint to how often it is still to be seen.
    records: HashMap<(Topic, i32), HashMap<u128, i64>>,
    /// Tables (compact): key to the fingerprint of its latest value; `None` is a tombstone.
    latest: HashMap<(Topic, i32), Latest>,
}

fn is_table(topic: Topic) -> bool {
    !matches!(topic.spec().cleanup, Cleanup::Delete(_))
}

/// 128 bits over everything of a record but its time and place.
fn fingerprint<'a>(
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>,
) -> u128 {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: Option<&[u8]>| {
        hasher.update(&bytes.map_or(u64::MAX, |b| b.len() as u64).to_le_bytes());
        hasher.update(bytes.unwrap_or_default());
    };
    part(key);
    part(value);
    for (name, value) in headers {
        part(Some(name.as_bytes()));
        part(value);
    }
    u128::from_le_bytes(hasher.finalize().as_bytes()[..16].try_into().expect("16 bytes"))
}

impl Expected {
    fn add(&mut self, record: &Outgoing<'_>) {
        let topic = Topic::by_name(record.topic).expect("the fold writes to topics of the table");
        let place = (topic, record.partition);
        let print = fingerprint(record.key, record.value, record.headers.iter().map(|(n, v)| (*n, Some(*v))));
        if is_table(topic) {
            let key = record.key.unwrap_or_default().into();
            self.latest.entry(place).or_default().insert(key, record.value.map(|_| print));
        } else {
            *self.records.entry(place).or_default().entry(print).or_default() += 1;
        }
    }
}

/// Verifies every partition; `store` is the copy, if there is one.
pub struct Verifier<'a, L: Log> {
    log: &'a mut L,
    store: Option<&'a mut dyn Store>,
    policies: &'a mut dyn PolicySource,
    encoder: Encoder,
    decoder: Decoder,
    scratch: Scratch,
    report: Report,
    expected: Expected,
    batch: Batch,
    outputs: Outputs,
    names: BTreeMap<u64, String>,
}

impl<'a, L: Log> Verifier<'a, L> {
    /// A verifier over a log, a copy and the sets the partitions stood under.
    pub fn new(
        log: &'a mut L,
        store: Option<&'a mut dyn Store>,
        policies: &'a mut dyn PolicySource,
        schemas: &Arc<Schemas>,
    ) -> Self {
        Verifier {
            log,
            store,
            policies,
            encoder: Encoder::new(schemas),
            decoder: Decoder::new(schemas),
            scratch: Scratch::default(),
            report: Report::default(),
            expected: Expected::default(),
            batch: Batch::new(SPAN_RECORDS_MAX, 1 << 30),
            outputs: Outputs::default(),
            names: BTreeMap::new(),
        }
    }

    /// Replays and compares everything. `progress` hears how many of how many partitions are done.
    pub fn run(mut self, partitions: i32, mut progress: impl FnMut(i32, i32)) -> Result<Report, Failure> {
        let mut replayed = Vec::new();
        let mut ends = Vec::new();
        for partition in 0..partitions {
            let end = self.log.watermarks(Topic::EngineJournal.name(), partition)?.1;
            if let Some(state) = self.replay(partition)? {
                replayed.push(state);
            }
            ends.push(end);
            progress(partition + 1, partitions);
        }
        for topic in WRITTEN {
            for partition in 0..partitions {
                self.compare_topic(topic, partition)?;
            }
        }
        for state in &replayed {
            self.compare_copy(state)?;
        }
        for (partition, end) in (0..partitions).zip(ends) {
            if self.log.watermarks(Topic::EngineJournal.name(), partition)?.1 != end {
                return Err(Failure::Moving { partition });
            }
        }
        self.report.partitions = partitions.into();
        Ok(self.report)
    }

    /// Folds a partition's whole journal again. `None` when the journal does not reach back to the first commit.
    fn replay(&mut self, partition: i32) -> Result<Option<Partition>, Failure> {
        let journals = self.journals(partition)?;
        let Some(first) = journals.first() else { return Ok(None) };
        if first.commit_no != 1 {
            let from = first.commit_no;
            self.report.unchecked.push(format!("partition {partition}: journal begins at commit {from}, not at 1"));
            return Ok(None);
        }
        let starts: [i64; INPUTS] = std::array::from_fn(|n| range_of(first, n).from);
        let mut state = Partition::fresh(identity(first, partition), starts);
        let mut queues: [Queue; INPUTS] = std::array::from_fn(|_| Queue::default());
        for journal in &journals {
            if journal.commit_no != state.meta().commit_no + 1 {
                let before = state.meta().commit_no;
                self.report
                    .differ(|| format!("INV-2: partition {partition}: commit {} follows {before}", journal.commit_no));
                return Ok(None);
            }
            if !self.fill(&mut queues, journal, partition)? {
                return Ok(None);
            }
            if let Err(error) = self.fold(&mut state, journal, &mut queues) {
                self.report.differ(|| format!("INV-1: partition {partition}, commit {}: {error}", journal.commit_no));
                return Ok(None);
            }
        }
        self.report.users += state.meta().users;
        Ok(Some(state))
    }

    fn journals(&mut self, partition: i32) -> Result<Vec<Journal>, Failure> {
        let topic = Topic::EngineJournal.name();
        let (from, until) = self.log.watermarks(topic, partition)?;
        let mut journals = Vec::new();
        let mut failure = None;
        let decoder = &mut self.decoder;
        self.log.read(topic, partition, from, until, &mut |record| match decoder.decode::<Journal>(
            Topic::EngineJournal,
            record.value.unwrap_or_default(),
            record.headers,
        ) {
            Ok(journal) => journals.push(journal),
            Err(e) => failure = Some(Failure::Journal { partition, offset: record.offset, cause: e.to_string() }),
        })?;
        failure.map_or(Ok(journals), Err)
    }

    /// Makes sure the records of a journal's ranges are queued, or notes that they have aged out.
    fn fill(&mut self, queues: &mut [Queue; INPUTS], journal: &Journal, partition: i32) -> Result<bool, Failure> {
        for (n, queue) in queues.iter_mut().enumerate() {
            let range = range_of(journal, n);
            if range.records == 0 || queue.read_to >= range.to {
                continue;
            }
            let (start, end) = self.log.watermarks(input_name(n), partition)?;
            let from = queue.read_to.max(range.from);
            let until = range.to.max((from + SPAN_RECORDS_MAX as i64 / 4).min(end));
            if start > from {
                self.report.unchecked.push(format!(
                    "partition {partition}: {} begins at {start}, commit {} read from {from}",
                    input_name(n),
                    journal.commit_no
                ));
                return Ok(false);
            }
            self.log.read(input_name(n), partition, from, until, &mut |record| queue.push(&record))?;
            queue.read_to = until;
        }
        Ok(true)
    }

    fn fold(&mut self, state: &mut Partition, journal: &Journal, queues: &mut [Queue; INPUTS]) -> Result<(), String> {
        self.batch.clear();
        for (n, queue) in queues.iter_mut().enumerate() {
            let range = range_of(journal, n);
            let taken = queue.take(range, state.number(), |record| self.batch.push(n, record));
            if taken != range.records {
                return Err(format!(
                    "{} holds {taken} of {} records in {}..{} (compacted or lost)",
                    range.topic, range.records, range.from, range.to
                ));
            }
            self.report.input_records += taken;
        }
        self.batch.seal();
        let frame = Frame {
            now: journal.now,
            follows_clock: journal.follows_clock,
            drained: std::array::from_fn(|n| Some(range_of(journal, n).to)),
            epoch: (journal.epoch != state.meta().epoch).then_some(journal.epoch),
            condemned: journal.condemned.as_deref().map(intern_code),
        };
        state.owned_by(identity(journal, state.number()));
        let mut overlay = self.fold_frame(state, &frame)?;
        if !overlay.wrote() {
            // A transaction of nothing but its meta record: the probe that tells a broken record from a broken broker.
            overlay = self.fold_frame(state, &Frame { epoch: Some(journal.epoch), ..frame })?;
        }
        let (expected, report) = (&mut self.expected, &mut self.report);
        let _: Result<(), ()> = self.outputs.try_each(|record, _| {
            expected.add(record);
            report.output_records += 1;
            Ok(())
        });
        self.report.transactions += 1;
        state.merge(overlay);
        if let Some(set) = state.policies() {
            self.names.extend(set.policies.iter().map(|p| (crate::engine::state::hash64(&p.id), p.id.clone())));
        }
        Ok(())
    }

    fn fold_frame(&mut self, state: &Partition, frame: &Frame) -> Result<Overlay, String> {
        let mut tools = Tools {
            encoder: &mut self.encoder,
            decoder: &mut self.decoder,
            policies: &mut *self.policies,
            scratch: &mut self.scratch,
        };
        self.outputs.clear();
        let folded = state.fold_batch(self.batch.records(state.number()), frame, &mut tools, &mut self.outputs);
        folded.map_err(|error: FoldError| error.to_string())
    }

    fn compare_topic(&mut self, topic: Topic, partition: i32) -> Result<(), Failure> {
        if is_table(topic) { self.compare_table(topic, partition) } else { self.compare_journal(topic, partition) }
    }

    /// INV-1 for journals: as a multiset, nothing missing, nothing extra.
    fn compare_journal(&mut self, topic: Topic, partition: i32) -> Result<(), Failure> {
        let mut expected = self.expected.records.remove(&(topic, partition)).unwrap_or_default();
        let (start, end) = self.log.watermarks(topic.name(), partition)?;
        let report = &mut self.report;
        self.log.read(topic.name(), partition, start, end, &mut |record| {
            if !is_the_engines(topic, &record) {
                return;
            }
            let print = print(&record);
            // Anybody may write to an input, with our headers too. Ours is what the fold wrote; a double still shows.
            if topic == Topic::RiskSignals && !expected.contains_key(&print) {
                return;
            }
            let left = expected.entry(print).or_default();
            *left -= 1;
            if *left < 0 {
                report.differ(|| format!("INV-1: extra on {}: {}", place(topic.name(), &record), id_of(&record)));
            }
        })?;
        let missing: i64 = expected.values().filter(|n| **n > 0).sum();
        if missing > 0 && start > 0 {
            let note = format!("{}-{partition}: {missing} records have aged out (log begins at {start})", topic.name());
            self.report.unchecked.push(note);
        } else {
            for _ in 0..missing {
                self.report.differ(|| format!("INV-1: missing on {}-{partition}", topic.name()));
            }
        }
        Ok(())
    }

    /// INV-1 and INV-2 for tables: the latest value of each key.
    fn compare_table(&mut self, topic: Topic, partition: i32) -> Result<(), Failure> {
        let expected = self.expected.latest.remove(&(topic, partition)).unwrap_or_default();
        let (start, end) = self.log.watermarks(topic.name(), partition)?;
        let mut actual: HashMap<Box<[u8]>, Option<u128>> = HashMap::new();
        self.log.read(topic.name(), partition, start, end, &mut |record| {
            actual.insert(record.key.unwrap_or_default().into(), record.value.map(|_| print(&record)));
        })?;
        let wrong = |key: &[u8]| {
            let want = expected.get(key).copied().flatten();
            let have = actual.get(key).copied().flatten();
            (want != have).then_some((want.is_some(), have.is_some()))
        };
        for key in expected.keys().chain(actual.keys().filter(|k| !expected.contains_key(*k))) {
            if let Some((want, have)) = wrong(key) {
                let what = match (want, have) {
                    (true, true) => "another value",
                    (true, false) => "missing",
                    _ => "extra",
                };
                let key = if &**key == META_KEY { "meta".into() } else { String::from_utf8_lossy(key) };
                self.report.differ(|| format!("INV-2: {what} on {}-{partition}, key {key}", topic.name()));
            }
        }
        Ok(())
    }

    /// INV-3: each entry of the copy is the changelog's, and none is missing or left over.
    fn compare_copy(&mut self, state: &Partition) -> Result<(), Failure> {
        let Some(store) = self.store.as_deref_mut() else { return Ok(()) };
        let partition = state.number();
        let meta = store.meta(partition)?;
        let applied = meta.as_ref().map_or(0, |m| m.applied);
        if meta.as_ref().is_none_or(|m| m.rebuilding) || applied != state.meta().commit_no {
            let commit = state.meta().commit_no;
            self.report
                .differ(|| format!("INV-3: the copy of partition {partition} stands at {applied}, not at {commit}"));
            return Ok(());
        }
        let mut copies: HashMap<String, CopyUser> = HashMap::new();
        store.users(partition, &mut |user| {
            copies.insert(user.user_key.clone(), user);
        })?;
        for user in state.all_users() {
            let mut want = copy_user(&user.user_key, 0, &user.bytes, &self.names);
            want.segments.sort();
            let Some(mut have) = copies.remove(&*user.user_key) else {
                self.report
                    .differ(|| format!("INV-3: missing in the copy of partition {partition}: {}", user.user_key));
                continue;
            };
            have.segments.sort();
            if have.segments != want.segments {
                self.report
                    .differ(|| format!("INV-3: another state in the copy of partition {partition}: {}", user.user_key));
            }
            self.report.copy_users += 1;
        }
        for key in copies.keys() {
            self.report.differ(|| format!("INV-3: left over in the copy of partition {partition}: {key}"));
        }
        Ok(())
    }
}

fn range_of(journal: &Journal, input: usize) -> &InputRange {
    let name = input_name(input);
    journal.inputs.iter().find(|r| r.topic == name).unwrap_or_else(|| panic!("the journal names no range of {name}"))
}

fn identity(journal: &Journal, number: i32) -> Identity {
    Identity {
        number,
        partitions: journal.partitions as i32,
        cluster_id: journal.cluster_id.as_str().into(),
        transactional_id: journal.transactional_id.as_str().into(),
        lateness_days: journal.lateness_days,
        level_valid_ms: journal.level_valid_ms,
    }
}

/// Codes a record is condemned with are few and fixed; a name for the life of the process.
fn intern_code(code: &str) -> &'static str {
    crate::topology::intern(code)
}

/// Whether the engine wrote it: inputs and dead letters have other writers too.
fn is_the_engines(topic: Topic, record: &RecordRef<'_>) -> bool {
    match topic {
        Topic::RiskSignals => headers::is_rerouted(record.headers),
        Topic::DeadLetters => DeadLetter::parse(record.headers)
            .is_some_and(|d| Topic::by_name(d.topic).is_some_and(|t| crate::topology::ENGINE_INPUTS.contains(&t))),
        _ => true,
    }
}

fn print(record: &RecordRef<'_>) -> u128 {
    fingerprint(record.key, record.value, record.headers.iter().copied())
}

fn id_of(record: &RecordRef<'_>) -> String {
    let id = headers::find(record.headers, "ce_id").unwrap_or(b"no ce_id");
    String::from_utf8_lossy(id).into_owned()
}

fn place(topic: TopicName, record: &RecordRef<'_>) -> String {
    format!("{topic}-{}@{}", record.partition, record.offset)
}

/// A header's name and value.
type KeptHeader = (Box<str>, Option<Box<[u8]>>);

/// A record kept until the journal's range that holds it is folded.
struct Kept {
    offset: i64,
    timestamp: Timestamp,
    key: Option<Box<[u8]>>,
    value: Option<Box<[u8]>>,
    headers: Vec<KeptHeader>,
}

/// Records of one input, read ahead.
#[derive(Default)]
struct Queue {
    records: std::collections::VecDeque<Kept>,
    read_to: i64,
}

impl Queue {
    fn push(&mut self, record: &RecordRef<'_>) {
        self.records.push_back(Kept {
            offset: record.offset,
            timestamp: record.timestamp,
            key: record.key.map(Into::into),
            value: record.value.map(Into::into),
            headers: record.headers.iter().map(|(n, v)| ((*n).into(), v.map(Into::into))).collect(),
        });
    }

    /// Hands over the records of a range and forgets them.
    fn take(&mut self, range: &InputRange, partition: i32, mut each: impl FnMut(&RecordRef<'_>)) -> i64 {
        let mut taken = 0;
        let topic = crate::topology::intern(&range.topic);
        while self.records.front().is_some_and(|r| r.offset < range.to) {
            let kept = self.records.pop_front().expect("just seen");
            if kept.offset < range.from {
                continue;
            }
            let headers: Vec<(&str, Option<&[u8]>)> = kept.headers.iter().map(|(n, v)| (&**n, v.as_deref())).collect();
            each(&RecordRef {
                topic,
                partition,
                offset: kept.offset,
                timestamp: kept.timestamp,
                key: kept.key.as_deref(),
                value: kept.value.as_deref(),
                headers: &headers,
            });
            taken += 1;
        }
        taken
    }
}
