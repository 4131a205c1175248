//! A broker in memory with the semantics the protocol leans on: transactions of the old protocol (one epoch per
//! producer, not per transaction), pending offsets, the last stable offset, markers that take an offset, eager range
//! assignment by generation, compaction of what is read. No clock of its own and no randomness.

use std::collections::{BTreeMap, BTreeSet};

use casestream::domain::Timestamp;
use casestream::runtime::ports::{InputOffset, Outgoing, TopicName};

/// A record at rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub timestamp: Timestamp,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    /// `txn` is `None` outside transactions.
    Record { record: Stored, txn: Option<u64> },
    Marker,
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    Committed,
    Aborted,
}

#[derive(Clone, Debug)]
struct Open {
    txn: u64,
    touched: BTreeSet<(TopicName, i32)>,
    offsets: Vec<InputOffset>,
    began_at: Timestamp,
}

#[derive(Clone, Debug, Default)]
struct Producer {
    epoch: i64,
    open: Option<Open>,
    /// The transaction ended last, for a late end that repeats.
    last_end: Option<(u64, bool)>,
}

/// One member of the group.
#[derive(Clone, Debug, Default)]
pub struct Member {
    /// Generation the member knows.
    pub generation: i64,
    pub assigned: Vec<(TopicName, i32)>,
    /// A rebalance the member has not seen yet: it must give up everything first.
    pub must_revoke: bool,
    pub must_join: bool,
}

/// Why the broker refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    Fenced,
    StaleGeneration,
    NoTransaction,
}

/// The cluster.
#[derive(Default)]
pub struct Broker {
    logs: BTreeMap<(TopicName, i32), Vec<Entry>>,
    fates: Vec<Fate>,
    producers: BTreeMap<String, Producer>,
    offsets: BTreeMap<(TopicName, i32), InputOffset>,
    pub members: BTreeMap<String, Member>,
    pub generation: i64,
    pub now: Timestamp,
    inputs: Vec<TopicName>,
    partitions: i32,
}

/// Transactions older than this are aborted by the coordinator.
pub const TRANSACTION_TIMEOUT_MS: i64 = 10_000;

impl Broker {
    pub fn new(inputs: &[TopicName], partitions: i32, now: Timestamp) -> Broker {
        Broker { inputs: inputs.to_vec(), partitions, now, ..Broker::default() }
    }

    /// A record from outside, not in a transaction.
    pub fn produce(&mut self, topic: TopicName, partition: i32, record: Stored) -> i64 {
        self.append(topic, partition, Entry::Record { record, txn: None })
    }

    fn append(&mut self, topic: TopicName, partition: i32, entry: Entry) -> i64 {
        let log = self.logs.entry((topic, partition)).or_default();
        log.push(entry);
        log.len() as i64 - 1
    }

    // -- transactions -------------------------------------------------------------------------------------------

    /// InitProducerId: ends what an older producer of the id left open, and fences it.
    pub fn init(&mut self, id: &str) -> i64 {
        let producer = self.producers.entry(id.to_owned()).or_default();
        producer.epoch += 1;
        let epoch = producer.epoch;
        if let Some(open) = producer.open.take() {
            self.end(open, false);
        }
        epoch
    }

    fn producer(&mut self, id: &str, epoch: i64) -> Result<&mut Producer, Refused> {
        let producer = self.producers.get_mut(id).ok_or(Refused::Fenced)?;
        if producer.epoch == epoch { Ok(producer) } else { Err(Refused::Fenced) }
    }

    pub fn send(&mut self, id: &str, epoch: i64, record: &Outgoing<'_>) -> Result<(), Refused> {
        let (now, next) = (self.now, self.fates.len() as u64);
        let producer = self.producer(id, epoch)?;
        let opened = producer.open.is_none();
        let open = producer.open.get_or_insert_with(|| Open {
            txn: next,
            touched: BTreeSet::new(),
            offsets: Vec::new(),
            began_at: now,
        });
        open.touched.insert((record.topic, record.partition));
        let txn = open.txn;
        if opened {
            self.fates.push(Fate::Open);
        }
        let stored = Stored {
            timestamp: record.timestamp.unwrap_or(now),
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: record.headers.iter().map(|(k, v)| ((*k).to_owned(), Some(v.to_vec()))).collect(),
        };
        self.append(record.topic, record.partition, Entry::Record { record: stored, txn: Some(txn) });
        Ok(())
    }

    /// TxnOffsetCommit: fenced by generation, not by ownership, as the real one is.
    pub fn send_offsets(&mut self, id: &str, epoch: i64, offsets: &[InputOffset], generation: i64) -> Result<(), Refused> {
        if generation != self.generation {
            return Err(Refused::StaleGeneration);
        }
        let (now, next) = (self.now, self.fates.len() as u64);
        let producer = self.producer(id, epoch)?;
        let opened = producer.open.is_none();
        let open = producer.open.get_or_insert_with(|| Open {
            txn: next,
            touched: BTreeSet::new(),
            offsets: Vec::new(),
            began_at: now,
        });
        open.offsets.extend_from_slice(offsets);
        if opened {
            self.fates.push(Fate::Open);
        }
        Ok(())
    }

    /// EndTxn. A repeat of the same end is answered as the first was.
    pub fn end_transaction(&mut self, id: &str, epoch: i64, commit: bool) -> Result<(), Refused> {
        let producer = self.producer(id, epoch)?;
        match (producer.open.take(), producer.last_end) {
            (Some(open), _) => {
                producer.last_end = Some((open.txn, commit));
                self.end(open, commit);
                Ok(())
            }
            (None, Some((_, before))) if before == commit => Ok(()),
            (None, _) => Err(Refused::NoTransaction),
        }
    }

    fn end(&mut self, open: Open, commit: bool) {
        self.fates[open.txn as usize] = if commit { Fate::Committed } else { Fate::Aborted };
        for (topic, partition) in open.touched {
            self.append(topic, partition, Entry::Marker);
        }
        if commit {
            for offset in open.offsets {
                let before = self.offsets.get(&(offset.topic, offset.partition)).map_or(0, |o| o.offset);
                assert!(offset.offset >= before, "INV-4: committed offset went back on {}-{}", offset.topic, offset.partition);
                self.offsets.insert((offset.topic, offset.partition), offset);
            }
        }
    }

    /// The coordinator aborts transactions whose owner went away.
    pub fn expire_transactions(&mut self) {
        let now = self.now;
        let dead: Vec<Open> = self
            .producers
            .values_mut()
            .filter(|p| p.open.as_ref().is_some_and(|o| now.0 - o.began_at.0 >= TRANSACTION_TIMEOUT_MS))
            .filter_map(|p| {
                p.epoch += 1;
                p.open.take()
            })
            .collect();
        for open in dead {
            self.end(open, false);
        }
    }

    // -- reading ------------------------------------------------------------------------------------------------

    pub fn end_offset(&self, topic: TopicName, partition: i32) -> i64 {
        self.logs.get(&(topic, partition)).map_or(0, |l| l.len() as i64)
    }

    /// The offset of the first record of an open transaction, else the end.
    pub fn last_stable(&self, topic: TopicName, partition: i32) -> i64 {
        let Some(log) = self.logs.get(&(topic, partition)) else { return 0 };
        let pinned = log.iter().position(
            |e| matches!(e, Entry::Record { txn: Some(t), .. } if self.fates[*t as usize] == Fate::Open),
        );
        pinned.unwrap_or(log.len()) as i64
    }

    /// The first committed record at or after `from`, below the last stable offset.
    pub fn next_committed(&self, topic: TopicName, partition: i32, from: i64) -> Option<(i64, &Stored)> {
        let log = self.logs.get(&(topic, partition))?;
        let end = self.last_stable(topic, partition);
        (from.max(0)..end).find_map(|offset| match &log[offset as usize] {
            Entry::Record { record, txn } if txn.is_none_or(|t| self.fates[t as usize] == Fate::Committed) => {
                Some((offset, record))
            }
            _ => None,
        })
    }

    /// Everything a read-committed consumer sees of a partition.
    pub fn committed(&self, topic: TopicName, partition: i32) -> Vec<(i64, Stored)> {
        let mut found = Vec::new();
        let mut from = 0;
        while let Some((offset, record)) = self.next_committed(topic, partition, from) {
            found.push((offset, record.clone()));
            from = offset + 1;
        }
        found
    }

    /// `None` while a transaction with offsets for this partition is pending.
    pub fn stable_offset(&self, topic: TopicName, partition: i32) -> Option<Option<InputOffset>> {
        let pending = self
            .producers
            .values()
            .filter_map(|p| p.open.as_ref())
            .any(|o| o.offsets.iter().any(|i| (i.topic, i.partition) == (topic, partition)));
        if pending { None } else { Some(self.offsets.get(&(topic, partition)).cloned()) }
    }

    // -- membership ---------------------------------------------------------------------------------------------

    /// A member joins (again): everybody gives up everything and gets a new range.
    pub fn join(&mut self, id: &str) {
        self.members.insert(id.to_owned(), Member { must_join: true, ..Member::default() });
        self.rebalance();
    }

    pub fn leave(&mut self, id: &str) {
        if self.members.remove(id).is_some() {
            self.rebalance();
        }
    }

    /// Starts a new generation; each member learns of it at its next poll.
    pub fn rebalance(&mut self) {
        self.generation += 1;
        for member in self.members.values_mut() {
            member.must_revoke = !member.assigned.is_empty();
            member.must_join = true;
        }
    }

    /// The range of a member at the present generation.
    pub fn range(&self, id: &str) -> Vec<(TopicName, i32)> {
        let ids: Vec<&String> = self.members.keys().collect();
        let Some(place) = ids.iter().position(|m| *m == id) else { return Vec::new() };
        let (n, count) = (self.partitions as usize, ids.len());
        let (each, extra) = (n / count, n % count);
        let from = place * each + place.min(extra);
        let to = from + each + usize::from(place < extra);
        let mut range: Vec<(TopicName, i32)> = Vec::new();
        for topic in &self.inputs {
            range.extend((from..to).map(|p| (*topic, p as i32)));
        }
        range
    }
}
