//! The records of one batch, copied into one arena that is kept between batches: once warm, a record costs no
//! allocation. Bounded by records and bytes. Reads back per partition in the order a batch folds: directory,
//! baselines, commands, signals, each by offset. Decodes nothing. Next: `partition.rs`.

use std::ops::Range;

use smallvec::SmallVec;

use super::ports::{RecordRef, TopicName};
use crate::domain::Timestamp;
use crate::topology::{ENGINE_INPUTS, Topic};
use crate::wire::utf8;

/// Number of engine inputs; an input is named by its position in `ENGINE_INPUTS`.
pub const INPUTS: usize = ENGINE_INPUTS.len();
/// Positions in `ENGINE_INPUTS`.
pub const DIRECTORY: usize = 0;
pub const BASELINES: usize = 1;
pub const COMMANDS: usize = 2;
pub const SIGNALS: usize = 3;

/// The inputs' names, in order.
pub fn input_name(input: usize) -> TopicName {
    const TOPICS: [Topic; INPUTS] = ENGINE_INPUTS;
    TOPICS[input].name()
}

/// The position of an input's name.
pub fn input_of(topic: TopicName) -> Option<usize> {
    (0..INPUTS).rev().find(|n| input_name(*n) == topic)
}

/// Headers of a record, as ports take them.
pub type HeaderList<'a> = SmallVec<[(&'a str, Option<&'a [u8]>); 8]>;

/// A record of the batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchRecord<'a> {
    pub input: usize,
    pub partition: i32,
    pub offset: i64,
    pub timestamp: Timestamp,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    batch: &'a Batch,
    headers: (u32, u32),
}

impl<'a> BatchRecord<'a> {
    /// The record's headers in their order.
    pub fn headers(&self) -> HeaderList<'a> {
        let range = self.headers.0 as usize..self.headers.1 as usize;
        self.batch.headers[range]
            .iter()
            .map(|h| (self.batch.name(h.name), h.value.map(|v| self.batch.span(v))))
            .collect()
    }

    /// The value of the last header of this name.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        let range = self.headers.0 as usize..self.headers.1 as usize;
        let found = self.batch.headers[range].iter().rev().find(|h| self.batch.name(h.name) == name)?;
        found.value.map(|v| self.batch.span(v))
    }
}

#[derive(Clone, Copy, Debug)]
struct Span {
    at: u32,
    len: u32,
}

#[derive(Clone, Copy, Debug)]
struct Header {
    name: Span,
    value: Option<Span>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    input: u8,
    partition: i32,
    offset: i64,
    timestamp: Timestamp,
    key: Option<Span>,
    value: Option<Span>,
    headers: (u32, u32),
}

/// Records gathered between two transactions.
#[derive(Debug)]
pub struct Batch {
    records_max: usize,
    bytes_max: usize,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    headers: Vec<Header>,
    /// Entries sorted by partition, input, offset; valid after `seal`.
    order: Vec<u32>,
}

impl Batch {
    /// An empty batch. One record larger than `bytes_max` still fits alone.
    pub fn new(records_max: usize, bytes_max: usize) -> Batch {
        assert!(records_max > 0, "a batch holds at least one record");
        // Spans are 32 bits wide; the last record may start just below the bound.
        assert!(bytes_max <= 1 << 30, "a batch holds at most 1 GiB, configured are {bytes_max} bytes");
        Batch { records_max, bytes_max, bytes: vec![], entries: vec![], headers: vec![], order: vec![] }
    }

    /// Forgets the records and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
        self.headers.clear();
        self.order.clear();
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was gathered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether no further record is to be gathered; `limit` is a lower bound on records for now (halving).
    pub fn is_full(&self, limit: usize) -> bool {
        self.entries.len() >= self.records_max.min(limit) || self.bytes.len() >= self.bytes_max
    }

    /// Copies a record in.
    pub fn push(&mut self, input: usize, record: &RecordRef<'_>) {
        let first = self.headers.len() as u32;
        for (name, value) in record.headers {
            let header = Header { name: self.copy(name.as_bytes()), value: value.map(|v| self.copy(v)) };
            self.headers.push(header);
        }
        let entry = Entry {
            input: input as u8,
            partition: record.partition,
            offset: record.offset,
            timestamp: record.timestamp,
            key: record.key.map(|k| self.copy(k)),
            value: record.value.map(|v| self.copy(v)),
            headers: (first, self.headers.len() as u32),
        };
        self.entries.push(entry);
    }

    /// Fixes the order of reading. To be called after the last `push`.
    pub fn seal(&mut self) {
        self.order.clear();
        self.order.extend(0..self.entries.len() as u32);
        let entries = &self.entries;
        self.order.sort_unstable_by_key(|n| {
            let e = &entries[*n as usize];
            (e.partition, e.input, e.offset)
        });
    }

    /// The partitions with records, ascending.
    pub fn partitions(&self) -> impl Iterator<Item = i32> + '_ {
        self.order
            .chunk_by(|a, b| self.entry(*a).partition == self.entry(*b).partition)
            .map(|c| self.entry(c[0]).partition)
    }

    /// The records of a partition, in folding order.
    pub fn records(&self, partition: i32) -> Records<'_> {
        let from = self.order.partition_point(|n| self.entry(*n).partition < partition);
        let to = self.order.partition_point(|n| self.entry(*n).partition <= partition);
        Records { batch: self, range: from..to }
    }

    fn entry(&self, n: u32) -> &Entry {
        &self.entries[n as usize]
    }

    fn copy(&mut self, bytes: &[u8]) -> Span {
        let at = u32::try_from(self.bytes.len()).expect("a batch ends far below 4 GiB");
        self.bytes.extend_from_slice(bytes);
        Span { at, len: bytes.len() as u32 }
    }

    fn span(&self, span: Span) -> &[u8] {
        &self.bytes[span.at as usize..][..span.len as usize]
    }

    fn name(&self, span: Span) -> &str {
        utf8::text(self.span(span)).expect("copied from text")
    }
}

/// The records of one partition in folding order.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    batch: &'a Batch,
    range: Range<usize>,
}

impl<'a> Iterator for Records<'a> {
    type Item = BatchRecord<'a>;

    fn next(&mut self) -> Option<BatchRecord<'a>> {
        let batch = self.batch;
        let entry = batch.entry(batch.order[self.range.next()?]);
        Some(BatchRecord {
            input: usize::from(entry.input),
            partition: entry.partition,
            offset: entry.offset,
            timestamp: entry.timestamp,
            key: entry.key.map(|k| batch.span(k)),
            value: entry.value.map(|v| batch.span(v)),
            batch,
            headers: entry.headers,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.range.size_hint()
    }
}

impl ExactSizeIterator for Records<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(batch: &mut Batch, topic: TopicName, partition: i32, offset: i64) {
        let value = format!("{topic}/{partition}/{offset}");
        let headers: &[(&str, Option<&[u8]>)] = &[("traceparent", Some(b"00")), ("empty", None)];
        batch.push(
            input_of(topic).unwrap(),
            &RecordRef {
                topic,
                partition,
                offset,
                timestamp: Timestamp(offset),
                key: (offset % 2 == 0).then_some(&b"k"[..]),
                value: Some(value.as_bytes()),
                headers,
            },
        );
    }

    #[test]
    fn records_come_back_in_folding_order() {
        let mut batch = Batch::new(100, 1 << 20);
        for round in 0..2 {
            batch.clear();
            for (topic, partition, offset) in [
                ("risk-signals", 1, 7),
                ("risk-signals", 0, 3),
                ("case-commands", 1, 2),
                ("risk-signals", 1, 8),
                ("user-directory", 1, 9),
            ] {
                push(&mut batch, topic, partition, offset);
            }
            batch.seal();
            assert_eq!(batch.partitions().collect::<Vec<_>>(), [0, 1], "round {round}");
            let values: Vec<_> =
                batch.records(1).map(|r| String::from_utf8(r.value.unwrap().to_vec()).unwrap()).collect();
            assert_eq!(values, ["user-directory/1/9", "case-commands/1/2", "risk-signals/1/7", "risk-signals/1/8"]);
            assert_eq!(batch.records(2).len(), 0);
            let record = batch.records(0).next().unwrap();
            assert_eq!((record.key, record.timestamp), (None, Timestamp(3)));
            assert_eq!(record.header("traceparent"), Some(&b"00"[..]));
            assert_eq!(record.headers()[1], ("empty", None));
        }
    }

    #[test]
    fn bounds_are_records_bytes_and_the_halved_limit() {
        let mut batch = Batch::new(3, 1 << 20);
        push(&mut batch, "risk-signals", 0, 1);
        assert!(!batch.is_full(usize::MAX) && batch.is_full(1));
        push(&mut batch, "risk-signals", 0, 2);
        push(&mut batch, "risk-signals", 0, 3);
        assert!(batch.is_full(usize::MAX));
        let mut small = Batch::new(100, 30);
        push(&mut small, "risk-signals", 0, 1);
        push(&mut small, "risk-signals", 0, 2);
        assert!(small.is_full(usize::MAX));
    }

    #[test]
    fn a_warm_batch_allocates_nothing() {
        let mut batch = Batch::new(100, 1 << 20);
        let fill = |batch: &mut Batch| {
            batch.clear();
            (0..50).for_each(|offset| push(batch, "risk-signals", 0, offset));
            batch.seal();
            (batch.bytes.capacity(), batch.entries.capacity(), batch.headers.capacity(), batch.order.capacity())
        };
        assert_eq!(fill(&mut batch), fill(&mut batch));
    }
}
