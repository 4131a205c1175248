//! Everything the broker remembers over a restart: topics, partitions, transactions, committed offsets. It changes
//! only by events, each one frame of the journal, so a restart that applies the same events has the same state.
//! Group members are not here: they come back by themselves. Next: `journal.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Limits;
use super::compact::compact;
use super::journal::Journal;
use super::log::{Facts, Partition, Stored};

/// A topic's partition.
pub type Place = (String, i32);

/// Dirty bytes below which a partition is not compacted.
const COMPACT_BYTES_MIN: usize = 1 << 20;
/// Kafka's `delete.retention.ms` where a topic does not say.
const TOMBSTONE_MS: i64 = 86_400_000;
/// Rewritten frames of batches are about so large.
const REWRITE_FRAME_BYTES: usize = 1 << 20;
/// A journal is rewritten when it holds this much more than what it describes, twice over.
const JOURNAL_SLACK_BYTES: u64 = 64 << 20;

/// A committed offset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub metadata: String,
}

/// One change. Batches travel beside it, as they came.
#[derive(Debug, Serialize, Deserialize)]
pub enum Event {
    /// The first of all: what tells this cluster from others.
    Cluster {
        id: String,
    },
    Topic {
        name: String,
        partitions: i32,
        config: BTreeMap<String, String>,
    },
    Partitions {
        name: String,
        partitions: i32,
    },
    Config {
        name: String,
        config: BTreeMap<String, String>,
    },
    Delete {
        name: String,
    },
    Append {
        topic: String,
        partition: i32,
    },
    Trim {
        topic: String,
        partition: i32,
        start: i64,
    },
    Offsets {
        group: String,
        commits: Vec<Commit>,
    },
    DeleteGroup {
        group: String,
    },
    ProducerIds {
        next: i64,
    },
    Transaction {
        id: String,
        producer: i64,
        epoch: i16,
        timeout_ms: i64,
    },
    TransactionParts {
        id: String,
        parts: Vec<Place>,
    },
    TransactionOffsets {
        id: String,
        group: String,
        commits: Vec<Commit>,
    },
    /// Writes all markers and moves the offsets: one frame, so a commit is whole or not at all.
    TransactionEnd {
        id: String,
        commit: bool,
        timestamp: i64,
    },
    /// Of a rewritten journal: a partition without its batches.
    Facts {
        topic: String,
        partition: i32,
        facts: Facts,
    },
    /// Of a rewritten journal: batches that have their offsets.
    Batches {
        topic: String,
        partition: i32,
    },
    /// Of a rewritten journal: how a transactional id's last transaction ended.
    LastEnd {
        id: String,
        commit: bool,
    },
}

/// A topic.
#[derive(Debug, Default)]
pub struct Topic {
    pub config: BTreeMap<String, String>,
    pub partitions: Vec<Partition>,
}

impl Topic {
    fn number(&self, key: &str) -> Option<i64> {
        self.config.get(key)?.parse().ok()
    }

    fn has_policy(&self, policy: &str) -> bool {
        self.config.get("cleanup.policy").map_or("delete", String::as_str).split(',').any(|p| p.trim() == policy)
    }

    /// How far ahead of the clock a record may be stamped.
    pub fn ahead_ms_max(&self) -> i64 {
        self.number("message.timestamp.after.max.ms").unwrap_or(3_600_000)
    }

    /// Largest batch the topic takes.
    pub fn batch_bytes_max(&self) -> usize {
        self.number("max.message.bytes").map_or(1_048_588, |bytes| bytes.max(0) as usize)
    }
}

/// A transactional id.
#[derive(Debug)]
pub struct Transaction {
    pub producer: i64,
    pub epoch: i16,
    pub timeout_ms: i64,
    /// When the open transaction began; after a restart, the restart.
    pub started: Option<Instant>,
    pub parts: BTreeSet<Place>,
    pub offsets: Vec<(String, Vec<Commit>)>,
    /// How the last one ended: an answer that was lost is asked for again.
    pub last_end: Option<bool>,
}

/// Offsets of a group.
pub type GroupOffsets = BTreeMap<Place, (i64, String)>;

/// The state and its journal.
pub struct State {
    /// Stays with the directory.
    pub cluster_id: String,
    pub topics: BTreeMap<String, Topic>,
    pub transactions: BTreeMap<String, Transaction>,
    pub offsets: BTreeMap<String, GroupOffsets>,
    next_producer: i64,
    limits: Limits,
    journal: Option<Journal>,
    /// The journal could not be written; nothing is acknowledged any more.
    pub failure: Option<io::Error>,
}

impl State {
    /// Opens the state in a directory; without one nothing outlives the process.
    pub fn open(dir: Option<&Path>, limits: Limits) -> io::Result<State> {
        let mut state = State {
            cluster_id: String::new(),
            topics: BTreeMap::new(),
            transactions: BTreeMap::new(),
            offsets: BTreeMap::new(),
            next_producer: 1,
            limits,
            journal: None,
            failure: None,
        };
        if let Some(dir) = dir {
            let journal = Journal::open(dir, &mut |event, body| {
                state.apply(event, &body);
            })?;
            state.journal = Some(journal);
        }
        if state.cluster_id.is_empty() {
            let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
            state.record(Event::Cluster { id: format!("embedded-{nanos:x}-{:x}", std::process::id()) }, &[]);
            state.flush();
        }
        Ok(state)
    }

    /// Journals an event, then applies it. Gives what `apply` gives.
    pub fn record(&mut self, event: Event, body: &[u8]) -> i64 {
        if let Some(journal) = &mut self.journal
            && let Err(error) = journal.append(&event, body)
        {
            self.failure.get_or_insert(error);
            return -1;
        }
        self.apply(event, body)
    }

    /// Hands what was journaled to the operating system: from here on it survives this process.
    pub fn flush(&mut self) {
        if let Some(Err(error)) = self.journal.as_mut().map(Journal::flush) {
            self.failure.get_or_insert(error);
        }
    }

    /// Applies an event; gives the first offset of an append.
    fn apply(&mut self, event: Event, body: &[u8]) -> i64 {
        match event {
            Event::Append { topic, partition } => {
                return self.partition_mut(&topic, partition).map_or(-1, |log| log.append(body));
            }
            Event::Topic { name, partitions, config } => {
                let partitions = (0..partitions).map(|_| Partition::default()).collect();
                self.topics.insert(name, Topic { config, partitions });
            }
            Event::Partitions { name, partitions } => {
                if let Some(topic) = self.topics.get_mut(&name) {
                    topic.partitions.resize_with(partitions.max(0) as usize, Partition::default);
                }
            }
            Event::Config { name, config } => {
                self.topics.entry(name).and_modify(|topic| topic.config = config);
            }
            Event::Delete { name } => self.delete(&name),
            Event::Trim { topic, partition, start } => {
                self.partition_mut(&topic, partition).into_iter().for_each(|log| log.trim(start));
            }
            Event::Offsets { group, commits } => self.commit(group, commits),
            Event::DeleteGroup { group } => {
                self.offsets.remove(&group);
            }
            Event::Facts { topic, partition, facts } => {
                self.partition_mut(&topic, partition).into_iter().for_each(|log| log.facts = facts.clone());
            }
            Event::Batches { topic, partition } => self.restore(&topic, partition, body),
            Event::ProducerIds { next } => self.next_producer = next,
            Event::Cluster { id } => self.cluster_id = id,
            other => self.apply_transaction(other),
        }
        0
    }

    fn apply_transaction(&mut self, event: Event) {
        match event {
            Event::Transaction { id, producer, epoch, timeout_ms } => {
                let (parts, offsets) = (BTreeSet::new(), Vec::new());
                let new = Transaction { producer, epoch, timeout_ms, started: None, parts, offsets, last_end: None };
                self.transactions.insert(id, new);
            }
            Event::TransactionParts { id, parts } => {
                if let Some(transaction) = self.transactions.get_mut(&id) {
                    transaction.started.get_or_insert_with(Instant::now);
                    transaction.parts.extend(parts);
                }
            }
            Event::TransactionOffsets { id, group, commits } => {
                if let Some(transaction) = self.transactions.get_mut(&id) {
                    transaction.started.get_or_insert_with(Instant::now);
                    transaction.offsets.push((group, commits));
                }
            }
            Event::TransactionEnd { id, commit, timestamp } => self.end(&id, commit, timestamp),
            Event::LastEnd { id, commit } => {
                self.transactions.entry(id).and_modify(|transaction| transaction.last_end = Some(commit));
            }
            _ => {}
        }
    }

    fn end(&mut self, id: &str, commit: bool, timestamp: i64) {
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        let (producer, epoch) = (transaction.producer, transaction.epoch);
        transaction.started = None;
        transaction.last_end = Some(commit);
        let offsets = std::mem::take(&mut transaction.offsets);
        for (topic, partition) in std::mem::take(&mut transaction.parts) {
            if let Some(log) = self.partition_mut(&topic, partition) {
                log.end(producer, epoch, commit, timestamp);
            }
        }
        if commit {
            offsets.into_iter().for_each(|(group, commits)| self.commit(group, commits));
        }
    }

    fn commit(&mut self, group: String, commits: Vec<Commit>) {
        let offsets = self.offsets.entry(group).or_default();
        for Commit { topic, partition, offset, metadata } in commits {
            offsets.insert((topic, partition), (offset, metadata));
        }
    }

    fn delete(&mut self, name: &str) {
        self.topics.remove(name);
        self.offsets.values_mut().for_each(|offsets| offsets.retain(|(topic, _), _| topic != name));
    }

    fn restore(&mut self, topic: &str, partition: i32, body: &[u8]) {
        let Some(log) = self.partition_mut(topic, partition) else { return };
        let mut rest = Bytes::copy_from_slice(body);
        while let Some(stored) = Stored::new(rest.clone()) {
            let length = super::batch::Header::read(&rest).map_or(rest.len(), |header| header.bytes);
            let bytes = rest.split_to(length);
            log.restore(Stored { bytes, ..stored });
        }
        log.clean_bytes = log.bytes;
    }

    /// A partition, if it is there.
    pub fn partition(&self, topic: &str, partition: i32) -> Option<&Partition> {
        self.topics.get(topic)?.partitions.get(usize::try_from(partition).ok()?)
    }

    fn partition_mut(&mut self, topic: &str, partition: i32) -> Option<&mut Partition> {
        self.topics.get_mut(topic)?.partitions.get_mut(usize::try_from(partition).ok()?)
    }

    /// A producer id that nobody has had.
    pub fn new_producer(&mut self) -> i64 {
        let id = self.next_producer;
        self.record(Event::ProducerIds { next: id + 1 }, &[]);
        id
    }

    pub fn partition_count(&self) -> usize {
        self.topics.values().map(|topic| topic.partitions.len()).sum()
    }

    /// Bytes of all batches.
    pub fn bytes(&self) -> usize {
        self.topics.values().flat_map(|topic| &topic.partitions).map(|log| log.bytes).sum()
    }

    /// Room making after appends to some partitions: compaction, retention by bytes, the cap on memory, the journal's
    /// size.
    pub fn maintain(&mut self, touched: &[Place], now_ms: i64) {
        for (topic, partition) in touched {
            self.compact(topic, *partition, now_ms);
            self.retain(topic, *partition);
        }
        if self.bytes() > self.limits.memory_bytes_max {
            self.relieve();
        }
        self.shrink_journal();
    }

    fn compact(&mut self, name: &str, partition: i32, now_ms: i64) {
        let Some(topic) = self.topics.get_mut(name).filter(|topic| topic.has_policy("compact")) else { return };
        let tombstones_before = now_ms - topic.number("delete.retention.ms").unwrap_or(TOMBSTONE_MS);
        let Some(log) = topic.partitions.get_mut(partition.max(0) as usize) else { return };
        // Twice the clean part: every byte is rewritten about twice, whatever the log's size.
        if log.bytes - log.clean_bytes >= COMPACT_BYTES_MIN.max(log.clean_bytes) {
            compact(log, tombstones_before);
        }
    }

    fn retain(&mut self, name: &str, partition: i32) {
        let Some(topic) = self.topics.get(name).filter(|topic| topic.has_policy("delete")) else { return };
        let own = topic.number("retention.bytes").and_then(|bytes| usize::try_from(bytes).ok());
        let bytes_max = own.unwrap_or(usize::MAX).min(self.limits.partition_bytes_max);
        self.trim_to(name, partition, bytes_max);
    }

    fn trim_to(&mut self, name: &str, partition: i32, bytes_max: usize) {
        let Some(log) = self.partition(name, partition).filter(|log| log.bytes > bytes_max) else { return };
        let start = log.start_within(bytes_max);
        if start > log.facts.start {
            self.record(Event::Trim { topic: name.to_owned(), partition, start }, &[]);
        }
    }

    /// Halves the largest log that may lose its oldest records, until a tenth of the memory is free.
    fn relieve(&mut self) {
        let goal = self.limits.memory_bytes_max / 10 * 9;
        let mut before = usize::MAX;
        while self.bytes() > goal && self.bytes() < before {
            before = self.bytes();
            let deletable = self.topics.iter().filter(|(_, topic)| topic.has_policy("delete"));
            let logs = deletable.flat_map(|(name, topic)| topic.partitions.iter().enumerate().map(move |p| (name, p)));
            let largest =
                logs.max_by_key(|(_, (_, log))| log.bytes).map(|(name, (p, log))| (name.clone(), p, log.bytes));
            let Some((name, partition, bytes)) = largest else { return };
            self.trim_to(&name, partition as i32, bytes / 2);
        }
    }

    /// Whether there is room for more; only logs that may not be trimmed can have taken it all.
    pub fn has_room(&self) -> bool {
        self.bytes() <= self.limits.memory_bytes_max
    }

    fn shrink_journal(&mut self) {
        let live = self.bytes() as u64;
        let Some(journal) = self.journal.as_ref().filter(|j| j.bytes() > 2 * live + JOURNAL_SLACK_BYTES) else {
            return;
        };
        match journal.rewrite(|write| self.snapshot(write)) {
            Ok(journal) => self.journal = Some(journal),
            Err(error) => {
                self.failure.get_or_insert(error);
            }
        }
    }

    /// The state as the shortest list of events.
    fn snapshot(&self, write: &mut dyn FnMut(&Event, &[u8]) -> io::Result<()>) -> io::Result<()> {
        write(&Event::Cluster { id: self.cluster_id.clone() }, &[])?;
        write(&Event::ProducerIds { next: self.next_producer }, &[])?;
        for (name, topic) in &self.topics {
            let (config, partitions) = (topic.config.clone(), topic.partitions.len() as i32);
            write(&Event::Topic { name: name.clone(), partitions, config }, &[])?;
            for (partition, log) in topic.partitions.iter().enumerate() {
                snapshot_partition(name, partition as i32, log, write)?;
            }
        }
        for (group, offsets) in &self.offsets {
            let commits = offsets.iter().map(|((topic, partition), (offset, metadata))| Commit {
                topic: topic.clone(),
                partition: *partition,
                offset: *offset,
                metadata: metadata.clone(),
            });
            write(&Event::Offsets { group: group.clone(), commits: commits.collect() }, &[])?;
        }
        self.transactions.iter().try_for_each(|(id, transaction)| snapshot_transaction(id, transaction, write))
    }
}

type Write<'a> = &'a mut dyn FnMut(&Event, &[u8]) -> io::Result<()>;

fn snapshot_partition(name: &str, partition: i32, log: &Partition, write: Write<'_>) -> io::Result<()> {
    let topic = name.to_owned();
    write(&Event::Facts { topic: topic.clone(), partition, facts: log.facts.clone() }, &[])?;
    let event = Event::Batches { topic, partition };
    let mut body = Vec::new();
    for stored in &log.batches {
        body.extend_from_slice(&stored.bytes);
        if body.len() >= REWRITE_FRAME_BYTES {
            write(&event, &body)?;
            body.clear();
        }
    }
    if body.is_empty() { Ok(()) } else { write(&event, &body) }
}

fn snapshot_transaction(id: &str, transaction: &Transaction, write: Write<'_>) -> io::Result<()> {
    let Transaction { producer, epoch, timeout_ms, started, parts, offsets, last_end } = transaction;
    let (producer, epoch, timeout_ms) = (*producer, *epoch, *timeout_ms);
    write(&Event::Transaction { id: id.to_owned(), producer, epoch, timeout_ms }, &[])?;
    if let Some(commit) = *last_end {
        write(&Event::LastEnd { id: id.to_owned(), commit }, &[])?;
    }
    if started.is_some() {
        let parts = parts.iter().cloned().collect();
        write(&Event::TransactionParts { id: id.to_owned(), parts }, &[])?;
    }
    for (group, commits) in offsets {
        let (group, commits) = (group.clone(), commits.clone());
        write(&Event::TransactionOffsets { id: id.to_owned(), group, commits }, &[])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::batch::tests::batch;
    use super::*;

    fn limits() -> Limits {
        Limits { memory_bytes_max: 4 << 20, partition_bytes_max: 2 << 20 }
    }

    fn digest(state: &State) -> String {
        let mut text = String::new();
        state
            .snapshot(&mut |event, body| {
                text.push_str(&format!("{event:?} {}\n", crc32c::crc32c(body)));
                Ok(())
            })
            .unwrap();
        text
    }

    fn topic(state: &mut State, name: &str, policy: &str) {
        let config = BTreeMap::from([("cleanup.policy".to_owned(), policy.to_owned())]);
        state.record(Event::Topic { name: name.into(), partitions: 1, config }, &[]);
    }

    fn fill(state: &mut State, topic: &str, batches: usize) {
        let value = "x".repeat(40);
        let records: Vec<(&str, Option<&str>)> = vec![("key", Some(&value)); 60];
        let bytes = batch(&records);
        for _ in 0..batches {
            state.record(Event::Append { topic: topic.into(), partition: 0 }, &bytes);
            state.maintain(&[(topic.to_owned(), 0)], 10_000);
        }
    }

    #[test]
    fn a_restart_has_the_same_state_also_after_a_rewrite() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(Some(dir.path()), limits()).unwrap();
        topic(&mut state, "t", "delete");
        fill(&mut state, "t", 3);
        let id = "id".to_owned();
        state.record(Event::Transaction { id: id.clone(), producer: 5, epoch: 2, timeout_ms: 1_000 }, &[]);
        state.record(Event::TransactionParts { id: id.clone(), parts: vec![("t".into(), 0)] }, &[]);
        let commit = Commit { topic: "t".into(), partition: 0, offset: 9, metadata: "m".into() };
        state.record(
            Event::TransactionOffsets { id: id.clone(), group: "g".into(), commits: vec![commit.clone()] },
            &[],
        );
        state.record(Event::TransactionEnd { id: id.clone(), commit: true, timestamp: 1 }, &[]);
        state.record(Event::TransactionParts { id, parts: vec![("t".into(), 0)] }, &[]);
        state.record(Event::Trim { topic: "t".into(), partition: 0, start: 60 }, &[]);
        state.flush();
        let before = digest(&state);
        assert_eq!(state.offsets["g"][&("t".to_owned(), 0)], (9, "m".to_owned()));
        let journal = state.journal.as_ref().unwrap().rewrite(|write| state.snapshot(write)).unwrap();
        drop(state);
        drop(journal);
        let again = State::open(Some(dir.path()), limits()).unwrap();
        assert_eq!(digest(&again), before);
    }

    #[test]
    fn memory_has_a_cap_and_compaction_keeps_a_table_small() {
        let mut state = State::open(None, limits()).unwrap();
        topic(&mut state, "journal", "delete");
        topic(&mut state, "table", "compact");
        fill(&mut state, "journal", 2_500);
        assert!(state.bytes() <= 2 << 20, "{}", state.bytes());
        assert!(state.partition("journal", 0).unwrap().facts.start > 0);
        fill(&mut state, "table", 2_000);
        assert!(state.partition("table", 0).unwrap().bytes < 2 << 20);
        assert_eq!(state.partition("table", 0).unwrap().facts.next, 120_000);
        assert!(state.has_room());
    }
}
