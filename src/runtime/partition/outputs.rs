//! The encoded records of one transaction, in one arena that is kept between batches, and the engine's `Sink` that
//! fills it. Nothing here is sent: the worker does that, in this order. Next: `fold.rs`.

use std::sync::Arc;

use crate::domain::Timestamp;
use crate::domain::alert::Alert;
use crate::domain::chronology::ChronologyEntry;
use crate::domain::envelope::Envelope;
use crate::domain::score::{RiskLevel, RiskScore};
use crate::engine::Sink;
use crate::runtime::ports::Outgoing;
use crate::topology::{OUTPUT_BYTES_MAX, Topic};
use crate::wire::avro::{EncodeError, Encoder, Record as AvroRecord, copy_into};
use crate::wire::{headers, utf8};

/// An input record, as the cause of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordId {
    pub input: usize,
    pub partition: i32,
    pub offset: i64,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    at: usize,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
enum Headers {
    /// Of an event, see `headers::event`; the others are the same for all records of a topic.
    Event { id: Span, origin: Option<Span>, traceparent: Option<Span> },
    /// Names and values between two positions in `Outputs::headers`.
    Listed(usize, usize),
}

#[derive(Clone, Debug)]
enum Value {
    Tombstone,
    Copied(Span),
    /// Shared with the resident state and the copy's writer.
    Shared(Arc<[u8]>),
}

#[derive(Clone, Debug)]
struct Record {
    topic: Topic,
    partition: i32,
    key: Option<Span>,
    value: Value,
    headers: Headers,
    timestamp: Option<Timestamp>,
    cause: Option<RecordId>,
}

/// Bytes by which the room of the arena grows.
const GROWTH: usize = 256 << 10;

/// A point to go back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    bytes: usize,
    records: usize,
    headers: usize,
}

/// The records of one transaction.
#[derive(Debug, Default)]
pub struct Outputs {
    /// The first `used` bytes are taken; the others are room that was used before.
    bytes: Vec<u8>,
    used: usize,
    records: Vec<Record>,
    headers: Vec<(Span, Span)>,
    /// Record, severity and policy of each alert that was opened.
    opened: Vec<(usize, String, String)>,
}

impl Outputs {
    /// Forgets the records and keeps the memory.
    pub fn clear(&mut self) {
        self.truncate(Mark { bytes: 0, records: 0, headers: 0 });
    }

    /// Where the next record will begin.
    pub fn mark(&self) -> Mark {
        Mark { bytes: self.used, records: self.records.len(), headers: self.headers.len() }
    }

    /// Forgets everything after a mark.
    pub fn truncate(&mut self, mark: Mark) {
        self.used = mark.bytes;
        self.records.truncate(mark.records);
        self.headers.truncate(mark.headers);
        self.opened.retain(|(record, ..)| *record < mark.records);
    }

    /// Severity and policy of every alert that was opened.
    pub fn alerts_opened(&self) -> impl Iterator<Item = (&str, &str)> {
        self.opened.iter().map(|(_, severity, policy)| (severity.as_str(), policy.as_str()))
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Begins a record; it exists once `finish` is called.
    pub fn record(&mut self, topic: Topic, partition: i32) -> Writer<'_> {
        let start = self.mark();
        self.records.push(Record {
            topic,
            partition,
            key: None,
            value: Value::Tombstone,
            headers: Headers::Listed(start.headers, start.headers),
            timestamp: None,
            cause: None,
        });
        Writer { outputs: self, start, finished: false }
    }

    /// Hands every record to `each`, in the order of writing, with the input record that caused it.
    pub fn try_each<E>(&self, mut each: impl FnMut(&Outgoing<'_>, Option<RecordId>) -> Result<(), E>) -> Result<(), E> {
        for record in &self.records {
            let headers = match record.headers {
                Headers::Event { id, origin, traceparent } => {
                    let [origin, traceparent] = [origin, traceparent].map(|value| value.map(|value| self.span(value)));
                    headers::event(record.topic, self.text(id), origin, traceparent)
                }
                Headers::Listed(from, to) => {
                    self.headers[from..to].iter().map(|(name, value)| (self.text(*name), self.span(*value))).collect()
                }
            };
            let outgoing = Outgoing {
                topic: record.topic.name(),
                partition: record.partition,
                key: record.key.map(|k| self.span(k)),
                value: match &record.value {
                    Value::Tombstone => None,
                    Value::Copied(span) => Some(self.span(*span)),
                    Value::Shared(bytes) => Some(bytes),
                },
                headers: &headers,
                timestamp: record.timestamp,
            };
            each(&outgoing, record.cause)?;
        }
        Ok(())
    }

    fn span(&self, span: Span) -> &[u8] {
        &self.bytes[span.at..][..span.len]
    }

    fn text(&self, span: Span) -> &str {
        utf8::text(self.span(span)).expect("copied from text")
    }

    #[inline]
    fn copy(&mut self, bytes: &[u8]) -> Span {
        let (at, len) = (self.used, bytes.len());
        while self.bytes.len() - at < len {
            self.grow();
        }
        copy_into(bytes, &mut self.bytes[at..]);
        self.used += len;
        Span { at, len }
    }

    fn encode<T: AvroRecord>(&mut self, encoder: &Encoder, topic: Topic, value: &T) -> Result<Span, EncodeError> {
        loop {
            if let Some(len) = encoder.write(topic, value, &mut self.bytes[self.used..])? {
                let span = Span { at: self.used, len };
                self.used += len;
                return Ok(span);
            }
            self.grow();
        }
    }

    #[cold]
    fn grow(&mut self) {
        self.bytes.append(&mut vec![0; GROWTH]);
    }
}

/// A record being written; without `finish` it leaves nothing behind.
pub struct Writer<'a> {
    outputs: &'a mut Outputs,
    start: Mark,
    finished: bool,
}

impl Writer<'_> {
    fn record(&mut self) -> &mut Record {
        self.outputs.records.last_mut().expect("it was begun")
    }

    /// Sets the key.
    pub fn key(mut self, key: &[u8]) -> Self {
        let key = self.outputs.copy(key);
        self.record().key = Some(key);
        self
    }

    /// Sets the key, if there is one.
    pub fn maybe_key(self, key: Option<&[u8]>) -> Self {
        match key {
            Some(key) => self.key(key),
            None => self,
        }
    }

    /// Sets the value to these bytes.
    pub fn value(mut self, value: &[u8]) -> Self {
        let value = self.outputs.copy(value);
        self.record().value = Value::Copied(value);
        self
    }

    /// Sets the value to shared bytes; `None` is a tombstone.
    pub fn shared(mut self, value: Option<Arc<[u8]>>) -> Self {
        self.record().value = value.map_or(Value::Tombstone, Value::Shared);
        self
    }

    /// Encodes the value in place.
    pub fn encoded<T: AvroRecord>(mut self, encoder: &mut Encoder, value: &T) -> Result<Self, EncodeError> {
        let topic = self.record().topic;
        let value = self.outputs.encode(encoder, topic, value)?;
        self.record().value = Value::Copied(value);
        Ok(self)
    }

    /// Stamps the record with another time than that of writing.
    pub fn timestamp(mut self, timestamp: Timestamp) -> Self {
        self.record().timestamp = Some(timestamp);
        self
    }

    /// Names the input record behind it.
    pub fn cause(mut self, cause: Option<RecordId>) -> Self {
        self.record().cause = cause;
        self
    }

    /// Adds headers, names included.
    pub fn headers(mut self, list: &[(&str, &[u8])]) -> Self {
        for (name, value) in list {
            let header = (self.outputs.copy(name.as_bytes()), self.outputs.copy(value));
            self.outputs.headers.push(header);
        }
        let listed = Headers::Listed(self.start.headers, self.outputs.headers.len());
        self.record().headers = listed;
        self
    }

    /// Makes the record exist, unless it is larger than the broker takes.
    pub fn finish(mut self) -> Result<(), EncodeError> {
        let written = self.outputs.used - self.start.bytes;
        let record = self.record();
        let shared = if let Value::Shared(bytes) = &record.value { bytes.len() } else { 0 };
        let bytes = written + shared;
        if bytes > OUTPUT_BYTES_MAX {
            return Err(EncodeError::TooLarge { topic: record.topic.name(), bytes, max: OUTPUT_BYTES_MAX });
        }
        self.finished = true;
        Ok(())
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.outputs.truncate(self.start);
        }
    }
}

/// The engine's sink: encodes what the fold publishes onto one partition.
pub struct Publisher<'a> {
    pub outputs: &'a mut Outputs,
    pub encoder: &'a mut Encoder,
    pub partition: i32,
    pub cause: Option<RecordId>,
    /// Where the input record was first written, as a header's value.
    pub origin: Option<&'a [u8]>,
    /// W3C trace context of the input record, passed on.
    pub traceparent: Option<&'a [u8]>,
    /// A record was larger than the broker takes; what was published is to be taken back.
    pub too_large: bool,
}

impl Publisher<'_> {
    fn publish<T: AvroRecord>(&mut self, topic: Topic, key: &str, envelope: &Envelope<'_>, value: &T) {
        let start = self.outputs.mark();
        let written = self.event(topic, key, &envelope.event_id, value);
        if written.is_err() {
            self.outputs.truncate(start);
        }
        self.note(written);
    }

    /// Writes an event with its headers, see `headers::event`; of those only what differs between records is copied.
    #[inline(always)]
    fn event<T: AvroRecord>(&mut self, topic: Topic, key: &str, id: &str, value: &T) -> Result<(), EncodeError> {
        let Publisher { outputs, encoder, partition, cause, origin, traceparent, .. } = self;
        let start = outputs.used;
        let key = outputs.copy(key.as_bytes());
        let id = outputs.copy(id.as_bytes());
        let origin = origin.map(|origin| outputs.copy(origin));
        let traceparent = traceparent.map(|traceparent| outputs.copy(traceparent));
        let value = outputs.encode(encoder, topic, value)?;
        let bytes = outputs.used - start;
        if bytes > OUTPUT_BYTES_MAX {
            return Err(EncodeError::TooLarge { topic: topic.name(), bytes, max: OUTPUT_BYTES_MAX });
        }
        outputs.records.push(Record {
            topic,
            partition: *partition,
            key: Some(key),
            value: Value::Copied(value),
            headers: Headers::Event { id, origin, traceparent },
            timestamp: None,
            cause: *cause,
        });
        Ok(())
    }

    /// A segment of the user's state, or a tombstone.
    pub fn state(&mut self, key: &[u8], value: Option<&Arc<[u8]>>) {
        let writer = self.outputs.record(Topic::UserState, self.partition).key(key);
        let written = writer.shared(value.cloned()).finish();
        self.note(written);
    }

    fn note(&mut self, written: Result<(), EncodeError>) {
        match written {
            Ok(()) => {}
            Err(EncodeError::TooLarge { .. }) => self.too_large = true,
            // A value of ours without its schema's shape is a bug of ours: handled like a panic of the fold.
            Err(error @ EncodeError::Shape { .. }) => panic!("{error}"),
        }
    }
}

impl Sink for Publisher<'_> {
    fn chronology(&mut self, entry: &ChronologyEntry<'_>) {
        self.publish(Topic::ActivityChronology, &entry.envelope.user_key, &entry.envelope, entry);
    }

    fn alert(&mut self, alert: &Alert<'_>, shadow: bool) {
        if !shadow && alert.change == "opened" {
            let (severity, policy) = (alert.severity.to_string(), alert.policy_id.to_string());
            self.outputs.opened.push((self.outputs.len(), severity, policy));
        }
        match shadow {
            true => self.publish(Topic::ShadowAlerts, &alert.envelope.user_key, &alert.envelope, alert),
            false => self.publish(Topic::Alerts, &alert.alert_id, &alert.envelope, alert),
        }
    }

    fn score(&mut self, score: &RiskScore<'_>) {
        self.publish(Topic::RiskScores, &score.envelope.user_key, &score.envelope, score);
    }

    fn level(&mut self, level: &RiskLevel<'_>) {
        self.publish(Topic::RiskLevels, &level.envelope.user_key, &level.envelope, level);
    }

    fn gone(&mut self, user_key: &str) {
        for topic in [Topic::RiskScores, Topic::RiskLevels] {
            let writer = self.outputs.record(topic, self.partition).key(user_key.as_bytes()).cause(self.cause);
            let written = writer.finish();
            self.note(written);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::avro::Schemas;

    #[test]
    fn records_come_out_as_they_were_written() {
        let mut outputs = Outputs::default();
        let state: Arc<[u8]> = Arc::from(&b"state"[..]);
        outputs.record(Topic::UserState, 3).key(b"u").shared(Some(state.clone())).finish().unwrap();
        let mark = outputs.mark();
        drop(outputs.record(Topic::Alerts, 3).key(b"never finished").headers(&[("a", b"b")]));
        assert_eq!(outputs.mark(), mark, "an unfinished record leaves nothing");
        let cause = Some(RecordId { input: 3, partition: 3, offset: 9 });
        outputs
            .record(Topic::DeadLetters, 3)
            .value(b"bytes")
            .headers(&[("casestream-reason", b"too_late"), ("traceparent", b"00-1")])
            .timestamp(Timestamp(5))
            .cause(cause)
            .finish()
            .unwrap();
        let mut seen = Vec::new();
        outputs
            .try_each(|r, cause| {
                let headers: Vec<_> =
                    r.headers.iter().map(|(n, v)| format!("{n}={}", String::from_utf8_lossy(v))).collect();
                seen.push((r.topic, r.key.map(<[u8]>::to_vec), r.value.map(<[u8]>::to_vec), headers, cause));
                Ok::<(), ()>(())
            })
            .unwrap();
        assert_eq!(seen[0], ("user-state", Some(b"u".to_vec()), Some(b"state".to_vec()), vec![], None));
        let headers = vec!["casestream-reason=too_late".to_owned(), "traceparent=00-1".to_owned()];
        assert_eq!(seen[1], ("dead-letters", None, Some(b"bytes".to_vec()), headers, cause));
    }

    #[test]
    fn a_record_over_the_limit_is_taken_back() {
        let mut outputs = Outputs::default();
        let big = vec![0; OUTPUT_BYTES_MAX];
        assert!(outputs.record(Topic::DeadLetters, 0).value(&big).finish().is_ok());
        let mark = outputs.mark();
        let error =
            outputs.record(Topic::DeadLetters, 0).value(&big).headers(&[("one", b"more")]).finish().unwrap_err();
        assert_eq!((error.code(), outputs.mark()), ("record.too_large", mark));
    }

    #[test]
    fn a_user_who_left_gets_tombstones() {
        let (mut outputs, mut encoder) = (Outputs::default(), Encoder::new(&Schemas::built_in()));
        let (outputs, encoder) = (&mut outputs, &mut encoder);
        let mut publisher = Publisher {
            outputs,
            encoder,
            partition: 1,
            cause: None,
            origin: None,
            traceparent: None,
            too_large: false,
        };
        publisher.gone("u1");
        publisher.score(&RiskScore::default());
        let mut topics = Vec::new();
        let each = publisher.outputs.try_each(|r, _| {
            topics.push((r.topic, r.value.is_some()));
            Ok::<(), ()>(())
        });
        each.unwrap();
        assert_eq!(topics, [("risk-scores", false), ("risk-levels", false), ("risk-scores", true)]);
    }
}
