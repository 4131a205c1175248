//! What the map role does with one record, without any protocol: map, attribute, encode, count. A batch holds what
//! came of it in one buffer and knows nothing of transactions.

use std::collections::BTreeMap;
use std::ops::Range;

use super::ledger::Ledger;
use super::people::People;
use crate::domain::partitioner::partition_of;
use crate::domain::signal::Signal;
use crate::runtime::ports::{Error, Outgoing, RecordRef, TopicName};
use crate::topology::{OUTPUT_BYTES_MAX, Topic};
use crate::wire::avro::{EncodeError, Encoder};
use crate::wire::dead_letter::{DeadLetter, Stage as DeadStage, attempt};
use crate::wire::headers::{self, Origin};
use crate::wire::mapping::{Code, Draft, Mapper, Outcome, RawMeta};

/// Tells which people a dead letter is for: those who fix mappings, or those who keep the directory.
const LANE_HEADER: &str = "casestream-dlq-lane";
/// Room that keys and headers of a dead letter take beside its value, in bytes.
const DEAD_HEADROOM_BYTES: usize = 64 * 1024;

/// One source: its raw topic and what maps it.
pub struct Source {
    pub topic: TopicName,
    pub mapper: Box<dyn Mapper>,
}

/// Maps records into batches.
pub struct Stage {
    pub sources: Vec<Source>,
    pub people: People,
    pub encoder: Encoder,
    /// Of every topic keyed by user, and of `dead-letters`.
    pub partitions: i32,
}

/// An input partition.
pub type Input = (TopicName, i32);

/// What a batch of raw records comes to.
#[derive(Default)]
pub struct Batch {
    /// Keys, values and header values, one after the other.
    bytes: Vec<u8>,
    signals: Vec<Made>,
    dead: Vec<Dead>,
    /// Next offset and counters per input partition.
    pub inputs: BTreeMap<Input, (i64, Ledger)>,
    pub records: usize,
}

struct Made {
    partition: i32,
    key: Range<usize>,
    value: Range<usize>,
    event_id: Range<usize>,
    origin: Range<usize>,
    trace: Option<Range<usize>>,
}

struct Dead {
    topic: TopicName,
    partition: i32,
    offset: i64,
    code: Code,
    message: String,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Batch {
    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        let Batch { bytes, signals, dead, inputs, records } = self;
        bytes.clear();
        signals.clear();
        dead.clear();
        inputs.clear();
        *records = 0;
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes.len() + self.dead.iter().map(|d| d.value.as_ref().map_or(0, Vec::len)).sum::<usize>()
    }

    /// Signals and dead letters made.
    pub fn outputs(&self) -> usize {
        self.signals.len() + self.dead.len()
    }

    /// Hands every output over, in the order of the records within each kind.
    pub fn send(&self, partitions: i32, mut send: impl FnMut(&Outgoing<'_>) -> Result<(), Error>) -> Result<(), Error> {
        for made in &self.signals {
            let text = |range: &Range<usize>| &self.bytes[range.clone()];
            let event_id = std::str::from_utf8(text(&made.event_id)).expect("written from text");
            let trace = made.trace.as_ref().map(text);
            send(&Outgoing {
                topic: Topic::RiskSignals.name(),
                partition: made.partition,
                key: Some(text(&made.key)),
                value: Some(text(&made.value)),
                headers: &headers::event(Topic::RiskSignals, event_id, Some(text(&made.origin)), trace),
                timestamp: None,
            })?;
        }
        self.dead.iter().try_for_each(|dead| dead.send(partitions, &mut send))
    }

    fn put(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len()
    }
}

impl Dead {
    fn send(&self, partitions: i32, send: &mut impl FnMut(&Outgoing<'_>) -> Result<(), Error>) -> Result<(), Error> {
        let original: Vec<(&str, Option<&[u8]>)> =
            self.headers.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
        let letter = DeadLetter {
            code: self.code.as_str(),
            stage: stage_of(self.code),
            message: &self.message,
            topic: self.topic,
            partition: self.partition,
            offset: self.offset,
            attempt: attempt(&original),
        };
        let mut numbers = Vec::new();
        let mut headers = letter.headers(&original, &mut numbers);
        headers.push((LANE_HEADER, self.code.lane().as_bytes()));
        send(&Outgoing {
            topic: Topic::DeadLetters.name(),
            partition: self.partition % partitions,
            key: self.key.as_deref(),
            value: self.value.as_deref(),
            headers: &headers,
            timestamp: None,
        })
    }
}

const fn stage_of(code: Code) -> DeadStage {
    match code {
        Code::RecordEmpty
        | Code::RecordTooLarge
        | Code::JsonNotUtf8
        | Code::JsonMalformed
        | Code::JsonTooDeep
        | Code::JsonNotObject => DeadStage::Decode,
        _ => DeadStage::Map,
    }
}

impl Stage {
    /// Maps one record into the batch.
    pub fn take(&mut self, record: &RecordRef<'_>, batch: &mut Batch) {
        let at = RawMeta {
            topic: record.topic,
            partition: record.partition,
            offset: record.offset,
            timestamp: record.timestamp,
        };
        let source = self.sources.iter_mut().find(|s| s.topic == record.topic);
        let mapper = &mut source.expect("the group reads only topics of sources").mapper;
        let mut ledger = Ledger::default();
        match mapper.run(record.value.unwrap_or_default(), &at) {
            Outcome::Signals(drafts) => {
                let count = drafts.len();
                match self.signals(drafts, record, batch) {
                    Ok(()) => ledger.count_mapped(count),
                    Err((code, message)) => dead(code, message, record, batch, &mut ledger),
                }
            }
            Outcome::Ignored(reason) => ledger.count_ignored(&reason),
            Outcome::Dead { code, message } => dead(code, message, record, batch, &mut ledger),
        }
        let entry = batch.inputs.entry((record.topic, record.partition)).or_default();
        entry.0 = record.offset + 1;
        entry.1.add(&ledger);
        batch.records += 1;
    }

    /// All signals of a record or none.
    fn signals(&mut self, drafts: Vec<Draft>, record: &RecordRef<'_>, batch: &mut Batch) -> Result<(), (Code, String)> {
        let (bytes, made) = (batch.bytes.len(), batch.signals.len());
        for (index, draft) in drafts.into_iter().enumerate() {
            if let Err(refused) = self.signal(draft, index, record, batch) {
                batch.bytes.truncate(bytes);
                batch.signals.truncate(made);
                return Err(refused);
            }
        }
        Ok(())
    }

    fn signal(
        &mut self,
        draft: Draft,
        index: usize,
        record: &RecordRef<'_>,
        batch: &mut Batch,
    ) -> Result<(), (Code, String)> {
        let Some((user_key, zone)) = self.people.attribute(&draft.subject) else {
            return Err((Code::Unattributed, format!("signal {index}: by {}", draft.subject.kind)));
        };
        let signal: Signal<'static> = draft.attribute(&user_key, zone);
        let start = batch.bytes.len();
        self.encoder.encode(Topic::RiskSignals, &signal, &mut batch.bytes).map_err(|error| match error {
            EncodeError::TooLarge { .. } => (Code::RecordTooLarge, error.to_string()),
            EncodeError::Shape { .. } => (Code::MappingPanic, error.to_string()),
        })?;
        let value = start..batch.bytes.len();
        let RecordRef { topic, partition, offset, .. } = *record;
        let mut origin = Vec::new();
        let origin = batch.put(Origin::of(record.headers, topic, partition, offset).write(&mut origin));
        let made = Made {
            partition: partition_of(user_key.as_bytes(), self.partitions),
            key: batch.put(user_key.as_bytes()),
            value,
            event_id: batch.put(format!("{topic}:{partition}:{offset}:{index}").as_bytes()),
            origin,
            trace: headers::traceparent(record.headers).map(|trace| batch.put(trace)),
        };
        batch.signals.push(made);
        Ok(())
    }
}

fn dead(code: Code, message: String, record: &RecordRef<'_>, batch: &mut Batch, ledger: &mut Ledger) {
    ledger.count_dead(code.as_str());
    // A record larger than what we may write stays where it is; its coordinates stand in the headers.
    let fits = record.value.filter(|value| value.len() <= OUTPUT_BYTES_MAX - DEAD_HEADROOM_BYTES);
    batch.dead.push(Dead {
        topic: record.topic,
        partition: record.partition,
        offset: record.offset,
        code,
        message,
        key: record.key.map(<[u8]>::to_vec),
        value: fits.map(<[u8]>::to_vec),
        headers: record.headers.iter().map(|(key, value)| ((*key).to_owned(), value.map(<[u8]>::to_vec))).collect(),
    });
}
