//! One partition's log in memory: appends, reads up to an end, the last stable offset, aborted transactions, and what
//! makes a producer idempotent. Offsets are never reused. Knows no topic, no group, no file. Next: `compact.rs`.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::batch::{self, Header, Opened};

/// Producers remembered per partition; of more, those with the smallest ids are forgotten.
const PRODUCERS_MAX: usize = 1_000;
/// Batches remembered per producer, as many as a client may have in flight.
const BATCHES_REMEMBERED: usize = 5;

/// A stored batch.
#[derive(Clone, Debug)]
pub struct Stored {
    pub base: i64,
    pub last: i64,
    pub max_timestamp: i64,
    pub producer: i64,
    pub control: bool,
    pub transactional: bool,
    pub bytes: Bytes,
}

impl Stored {
    /// A batch whose offset is right already.
    pub fn new(bytes: Bytes) -> Option<Stored> {
        let header = Header::read(&bytes)?;
        Some(Stored {
            base: header.base,
            last: header.base + i64::from(header.delta),
            max_timestamp: header.max_timestamp,
            producer: header.producer,
            control: header.control(),
            transactional: header.transactional(),
            bytes,
        })
    }
}

/// What a producer wrote last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Producer {
    pub epoch: i16,
    /// First sequence, last sequence and base offset.
    pub batches: VecDeque<(i32, i32, i64)>,
}

/// A transaction's records that no read-committed reader may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aborted {
    pub producer: i64,
    pub first: i64,
    /// Where the marker lies.
    pub marker: i64,
}

/// Everything about a partition but its batches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    pub start: i64,
    pub next: i64,
    /// First offset of each open transaction, by producer.
    pub open: BTreeMap<i64, i64>,
    pub aborted: Vec<Aborted>,
    pub producers: BTreeMap<i64, Producer>,
}

/// A partition.
#[derive(Debug, Default)]
pub struct Partition {
    pub facts: Facts,
    pub batches: VecDeque<Stored>,
    pub bytes: usize,
    /// Bytes after the last compaction.
    pub clean_bytes: usize,
}

/// Whether a producer may append a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sequence {
    Next,
    /// It is there already, at this offset.
    Duplicate(i64),
    OutOfOrder,
    Fenced,
}

impl Partition {
    /// The end for read-committed readers: before the first record of the first open transaction.
    pub fn last_stable(&self) -> i64 {
        self.facts.open.values().copied().min().unwrap_or(self.facts.next)
    }

    /// Whether a batch follows what its producer wrote last.
    pub fn sequence(&self, header: &Header) -> Sequence {
        let Some(producer) = self.facts.producers.get(&header.producer) else { return Sequence::Next };
        if header.epoch < producer.epoch {
            return Sequence::Fenced;
        }
        if header.epoch > producer.epoch {
            return if header.sequence == 0 { Sequence::Next } else { Sequence::OutOfOrder };
        }
        let last = last_sequence(header);
        if let Some(found) = producer.batches.iter().find(|b| b.0 == header.sequence && b.1 == last) {
            return Sequence::Duplicate(found.2);
        }
        match producer.batches.back() {
            Some((_, previous, _)) if header.sequence != after(*previous) => Sequence::OutOfOrder,
            _ => Sequence::Next,
        }
    }

    /// Appends a valid batch and gives its first offset.
    pub fn append(&mut self, raw: &[u8]) -> i64 {
        let base = self.facts.next;
        let Some(stored) = Stored::new(batch::rebased(raw, base)) else { return base };
        let header = Header::read(&stored.bytes).expect("the batch was read a line above");
        if header.producer >= 0 {
            self.remember(&header, base);
        }
        self.facts.next = stored.last + 1;
        self.push(stored);
        base
    }

    /// Takes over a batch that has its offset, from a journal that was rewritten.
    pub fn restore(&mut self, stored: Stored) {
        self.push(stored);
    }

    fn push(&mut self, stored: Stored) {
        self.bytes += stored.bytes.len();
        self.batches.push_back(stored);
    }

    fn remember(&mut self, header: &Header, base: i64) {
        let producers = &mut self.facts.producers;
        let producer = producers.entry(header.producer).or_default();
        if producer.epoch != header.epoch {
            *producer = Producer { epoch: header.epoch, batches: VecDeque::new() };
        }
        if header.control() {
            return;
        }
        producer.batches.push_back((header.sequence, last_sequence(header), base));
        if producer.batches.len() > BATCHES_REMEMBERED {
            producer.batches.pop_front();
        }
        if header.transactional() {
            self.facts.open.entry(header.producer).or_insert(base);
        }
        if producers.len() > PRODUCERS_MAX {
            let open = &self.facts.open;
            let oldest = producers.keys().copied().find(|id| !open.contains_key(id) && *id != header.producer);
            oldest.and_then(|id| producers.remove(&id));
        }
    }

    /// Ends a producer's transaction here.
    pub fn end(&mut self, producer: i64, epoch: i16, commit: bool, timestamp: i64) {
        let first = self.facts.open.remove(&producer);
        let marker = self.append(&batch::marker(producer, epoch, commit, timestamp));
        if let (false, Some(first)) = (commit, first) {
            self.facts.aborted.push(Aborted { producer, first, marker });
        }
    }

    /// Batches from an offset on and below an end, as many as fit; at least one if `first` says so. Gives the offset
    /// behind them, too.
    pub fn read(&self, from: i64, end: i64, bytes_max: usize, first: bool) -> (Bytes, i64) {
        let start = self.batches.partition_point(|stored| stored.last < from);
        let mut out = BytesMut::new();
        let mut next = from;
        for stored in self.batches.range(start..).take_while(|stored| stored.base < end) {
            let fits = out.len() + stored.bytes.len() <= bytes_max || (first && out.is_empty());
            if !fits {
                break;
            }
            out.extend_from_slice(&stored.bytes);
            next = stored.last + 1;
        }
        (out.freeze(), next)
    }

    /// Aborted transactions with records between two offsets.
    pub fn aborted(&self, from: i64, until: i64) -> impl Iterator<Item = &Aborted> {
        self.facts.aborted.iter().filter(move |aborted| aborted.marker >= from && aborted.first < until)
    }

    /// The first record at or after a time: its timestamp and offset.
    pub fn at_time(&self, timestamp: i64) -> Option<(i64, i64)> {
        let later = self.batches.iter().filter(|stored| stored.max_timestamp >= timestamp);
        later.filter(|stored| !stored.control).find_map(|stored| match Opened::read(&stored.bytes) {
            Some(opened) => {
                let entry = opened.entries.iter().find(|entry| entry.timestamp >= timestamp)?;
                Some((entry.timestamp, entry.offset))
            }
            None => Some((stored.max_timestamp, stored.base)),
        })
    }

    /// Where the log would start with at most so many bytes. Keeps what is not stable and the last batch.
    pub fn start_within(&self, bytes_max: usize) -> i64 {
        let (mut bytes, mut start) = (self.bytes, self.facts.start);
        let stable = self.last_stable();
        for stored in self.batches.iter().take(self.batches.len().saturating_sub(1)) {
            if bytes <= bytes_max || stored.last >= stable {
                break;
            }
            bytes -= stored.bytes.len();
            start = stored.last + 1;
        }
        start
    }

    /// Forgets what lies before an offset.
    pub fn trim(&mut self, start: i64) {
        let start = start.min(self.last_stable()).max(self.facts.start);
        while let Some(first) = self.batches.front().filter(|stored| stored.last < start) {
            self.bytes -= first.bytes.len();
            self.batches.pop_front();
        }
        self.clean_bytes = self.clean_bytes.min(self.bytes);
        self.facts.start = start;
        self.facts.aborted.retain(|aborted| aborted.marker >= start);
    }
}

/// Sequences wrap around to 0.
fn after(sequence: i32) -> i32 {
    if sequence == i32::MAX { 0 } else { sequence + 1 }
}

fn last_sequence(header: &Header) -> i32 {
    let last = i64::from(header.sequence) + i64::from(header.delta);
    let wrapped = if last > i64::from(i32::MAX) { last - i64::from(i32::MAX) - 1 } else { last };
    wrapped as i32
}

#[cfg(test)]
mod tests {
    use super::super::batch::tests::batch;
    use super::*;

    #[test]
    fn a_log_that_is_trimmed_keeps_its_offsets_and_its_last_batch() {
        let mut partition = Partition::default();
        (0..10).for_each(|_| {
            partition.append(&batch(&[("a", Some("1")), ("b", Some("2"))]));
        });
        assert_eq!(partition.facts.next, 20);
        let start = partition.start_within(0);
        assert_eq!(start, 18);
        partition.trim(start);
        assert_eq!(
            (partition.facts.start, partition.batches.len(), partition.bytes),
            (18, 1, partition.batches[0].bytes.len())
        );
        assert_eq!(partition.append(&batch(&[("a", None)])), 20);
    }

    #[test]
    fn an_open_transaction_holds_the_stable_end_back() {
        let mut partition = Partition::default();
        partition.append(&batch(&[("a", None)]));
        partition.facts.open.insert(7, 1);
        partition.append(&batch(&[("b", None)]));
        assert_eq!(partition.last_stable(), 1);
        partition.end(7, 0, false, 0);
        assert_eq!(partition.last_stable(), 3);
        assert_eq!(partition.aborted(0, 3).collect::<Vec<_>>(), [&Aborted { producer: 7, first: 1, marker: 2 }]);
        assert_eq!(partition.aborted(3, 9).count(), 0);
    }

    #[test]
    fn sequences_wrap() {
        assert_eq!((after(5), after(i32::MAX)), (6, 0));
    }
}
