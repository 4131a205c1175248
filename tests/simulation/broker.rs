//! A broker in memory with the semantics the protocol leans on: transactions of the old protocol (one epoch per
//! producer, not per transaction), pending offsets, the last stable offset, markers that take an offset, eager range
//! assignment by generation, compaction of what is read. No clock of its own and no randomness.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

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
    Record {
        record: Arc<Stored>,
        txn: Option<u64>,
    },
    Marker,
}

/// One partition of a topic.
#[derive(Clone, Debug, Default)]
struct Partition {
    entries: Vec<Entry>,
    /// First offset of each open transaction.
    open: BTreeMap<u64, i64>,
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
    /// Which client made the present epoch.
    client: u64,
    open: Option<Open>,
    /// The transaction ended last, for a late end that repeats.
    last_end: Option<(u64, bool)>,
}

/// One member of the group.
#[derive(Clone, Debug, Default)]
pub struct Member {
    /// Which client holds the membership.
    pub client: u64,
    pub assigned: Vec<(TopicName, i32)>,
    /// A rebalance the member has not seen yet: it must give up everything first.
    pub must_revoke: bool,
    pub must_join: bool,
}

/// Why the broker refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The coordinator ended the producer's transaction and moved its epoch on.
    Expired,
    /// Another client has the id now.
    Fenced,
    StaleGeneration,
    NoTransaction,
}

/// The cluster.
#[derive(Default)]
pub struct Broker {
    logs: BTreeMap<(TopicName, i32), Partition>,
    fates: Vec<Fate>,
    producers: BTreeMap<String, Producer>,
    offsets: BTreeMap<(TopicName, i32), InputOffset>,
    pub members: BTreeMap<String, Member>,
    pub generation: i64,
    pub now: Timestamp,
    inputs: Vec<TopicName>,
    partitions: i32,
    /// Broken invariants.
    pub violations: Vec<String>,
    /// Mutation T2: a new producer of an id keeps the epoch.
    pub keeps_epoch: bool,
    /// Mutation G1: offsets are taken whatever the generation.
    pub any_generation: bool,
}

/// Transactions older than this are aborted by the coordinator.
pub const TRANSACTION_TIMEOUT_MS: i64 = 10_000;

impl Broker {
    pub fn new(inputs: &[TopicName], partitions: i32, now: Timestamp) -> Broker {
        Broker { inputs: inputs.to_vec(), partitions, now, ..Broker::default() }
    }

    /// A record from outside, not in a transaction.
    pub fn produce(&mut self, topic: TopicName, partition: i32, record: Stored) -> i64 {
        self.append(topic, partition, Entry::Record { record: Arc::new(record), txn: None })
    }

    fn append(&mut self, topic: TopicName, partition: i32, entry: Entry) -> i64 {
        let log = self.logs.entry((topic, partition)).or_default();
        let offset = log.entries.len() as i64;
        if let Entry::Record { txn: Some(txn), .. } = &entry {
            log.open.entry(*txn).or_insert(offset);
        }
        log.entries.push(entry);
        offset
    }

    // -- transactions -------------------------------------------------------------------------------------------

    /// InitProducerId: ends what an older producer of the id left open, and fences it.
    pub fn init(&mut self, id: &str, client: u64) -> i64 {
        let keeps = self.keeps_epoch;
        let producer = self.producers.entry(id.to_owned()).or_default();
        if !keeps || producer.epoch == 0 {
            producer.epoch += 1;
        }
        producer.client = client;
        let epoch = producer.epoch;
        if let Some(open) = producer.open.take() {
            self.end(open, false);
        }
        epoch
    }

    fn producer(&mut self, id: &str, client: u64, epoch: i64) -> Result<&mut Producer, Refused> {
        let producer = self.producers.get_mut(id).ok_or(Refused::Expired)?;
        match producer.epoch == epoch {
            true => Ok(producer),
            false if producer.client == client => Err(Refused::Expired),
            false => Err(Refused::Fenced),
        }
    }

    /// The producer's open transaction, or a new one.
    fn open(&mut self, id: &str, client: u64, epoch: i64) -> Result<&mut Open, Refused> {
        let (began_at, txn) = (self.now, self.fates.len() as u64);
        if self.producer(id, client, epoch)?.open.is_none() {
            self.fates.push(Fate::Open);
        }
        let new = || Open { txn, touched: BTreeSet::new(), offsets: Vec::new(), began_at };
        Ok(self.producer(id, client, epoch)?.open.get_or_insert_with(new))
    }

    pub fn send(&mut self, id: &str, client: u64, epoch: i64, record: &Outgoing<'_>) -> Result<(), Refused> {
        let now = self.now;
        let open = self.open(id, client, epoch)?;
        open.touched.insert((record.topic, record.partition));
        let txn = open.txn;
        let stored = Stored {
            timestamp: record.timestamp.unwrap_or(now),
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: record.headers.iter().map(|(k, v)| ((*k).to_owned(), Some(v.to_vec()))).collect(),
        };
        self.append(record.topic, record.partition, Entry::Record { record: Arc::new(stored), txn: Some(txn) });
        Ok(())
    }

    /// TxnOffsetCommit: fenced by membership and generation, not by ownership, as the real one is.
    pub fn send_offsets(
        &mut self,
        id: &str,
        client: u64,
        epoch: i64,
        offsets: &[InputOffset],
        generation: i64,
    ) -> Result<(), Refused> {
        let member = self.members.get(id).is_some_and(|m| m.client == client);
        if !self.any_generation && (generation != self.generation || !member) {
            return Err(Refused::StaleGeneration);
        }
        self.open(id, client, epoch)?.offsets.extend_from_slice(offsets);
        Ok(())
    }

    /// EndTxn. A repeat of the same end is answered as the first was.
    pub fn end_transaction(&mut self, id: &str, client: u64, epoch: i64, commit: bool) -> Result<(), Refused> {
        let producer = self.producer(id, client, epoch)?;
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
            self.logs.entry((topic, partition)).or_default().open.remove(&open.txn);
        }
        for offset in open.offsets.into_iter().filter(|_| commit) {
            let place = (offset.topic, offset.partition);
            let before = self.offsets.get(&place).map_or(0, |o| o.offset);
            if offset.offset < before {
                self.violations
                    .push(format!("INV-4: {}-{} went back from {before} to {}", place.0, place.1, offset.offset));
            }
            self.offsets.insert(place, offset);
        }
    }

    /// The coordinator aborts transactions whose owner went away. Returns how many.
    pub fn expire_transactions(&mut self) -> usize {
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
        let count = dead.len();
        for open in dead {
            self.end(open, false);
        }
        count
    }

    // -- reading ------------------------------------------------------------------------------------------------

    pub fn end_offset(&self, topic: TopicName, partition: i32) -> i64 {
        self.logs.get(&(topic, partition)).map_or(0, |l| l.entries.len() as i64)
    }

    /// The offset of the first record of an open transaction, else the end.
    pub fn last_stable(&self, topic: TopicName, partition: i32) -> i64 {
        let Some(log) = self.logs.get(&(topic, partition)) else { return 0 };
        log.open.values().min().copied().unwrap_or(log.entries.len() as i64)
    }

    /// The first committed record at or after `from`, below the last stable offset.
    pub fn next_committed(&self, topic: TopicName, partition: i32, from: i64) -> Option<(i64, &Arc<Stored>)> {
        let log = self.logs.get(&(topic, partition))?;
        let end = self.last_stable(topic, partition);
        (from.max(0)..end).find_map(|offset| match &log.entries[offset as usize] {
            Entry::Record { record, txn } if txn.is_none_or(|t| self.fates[t as usize] == Fate::Committed) => {
                Some((offset, record))
            }
            _ => None,
        })
    }

    /// Everything a read-committed consumer sees of a partition.
    pub fn committed(&self, topic: TopicName, partition: i32) -> Vec<(i64, Arc<Stored>)> {
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
    pub fn join(&mut self, id: &str, client: u64) {
        self.members.insert(id.to_owned(), Member { client, must_join: true, ..Member::default() });
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

    /// A hash over everything that was ever written, offsets included.
    pub fn digest(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        for (place, log) in &self.logs {
            place.hash(&mut hasher);
            for entry in &log.entries {
                match entry {
                    Entry::Marker => 1.hash(&mut hasher),
                    Entry::Record { record, txn } => {
                        let committed = txn.is_none_or(|t| self.fates[t as usize] == Fate::Committed);
                        (committed, record.timestamp.0, &record.key, &record.value, &record.headers).hash(&mut hasher);
                    }
                }
            }
        }
        hasher.finish()
    }
}
