//! All partitions of a topic in one hand, without Kafka: batches of encoded records go through the worker's own
//! `Batch`, `Partition::fold_batch` and `merge`, and what they would have written is counted. Next: `engine.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::observed::Written;
use super::{Error, cpu, switch};
use crate::config::Config;
use crate::domain::Timestamp;
use crate::domain::policy::PolicySet;
use crate::domain::time::HOUR_MS;
use crate::policies::{self, Files};
use crate::runtime::batch::{Batch, COMMANDS, INPUTS, input_name};
use crate::runtime::partition::{Frame, Identity, Outputs, Partition, PolicySource, Scratch, Tools};
use crate::runtime::ports::{RecordRef, TopicName};
use crate::topology::Topic;
use crate::wire::avro::{Decoder, Encoder, Schemas};
use crate::wire::state::{self, UserBytes};

/// The policy set the binary was built with, as a partition finds it.
pub struct BuiltIn(Arc<PolicySet>);

impl BuiltIn {
    /// Compiles it.
    pub fn new() -> Result<BuiltIn, Error> {
        let compiled = policies::compile(&Files::built_in());
        let set = compiled.map_err(|problems| Error::failed("compiling the built-in policies", lines(&problems)))?;
        Ok(BuiltIn(Arc::new(set)))
    }

    /// Its content hash.
    pub fn hash(&self) -> &str {
        &self.0.hash
    }
}

fn lines(problems: &[policies::Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl PolicySource for BuiltIn {
    fn set(&mut self, hash: &str) -> Option<Arc<PolicySet>> {
        (hash == self.0.hash).then(|| self.0.clone())
    }
}

/// Where the time of batches went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// Copying records into the batch and ordering them.
    pub gather: Duration,
    /// Decode, fold, encode.
    pub fold: Duration,
    /// Making the overlay the state.
    pub merge: Duration,
    /// Processor time of fold and merge; equal to the wall clock's on an idle machine.
    pub cpu: Duration,
}

impl Spent {
    /// Adds another batch's time.
    pub fn add(&mut self, other: Spent) {
        self.gather += other.gather;
        self.fold += other.fold;
        self.merge += other.merge;
        self.cpu += other.cpu;
    }
}

/// What the users of all partitions amount to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Users {
    pub users: usize,
    pub with_open_alert: usize,
    /// Encoded head, seen and day segments.
    pub encoded_bytes: usize,
    /// As the worker accounts for them.
    pub resident_bytes: usize,
    pub day_segments: usize,
}

impl Users {
    /// Counts the users of one partition.
    pub fn add(&mut self, partition: &Partition) -> Result<(), Error> {
        self.resident_bytes += partition.bytes();
        for user in partition.all_users() {
            self.users += 1;
            self.encoded_bytes += encoded_bytes(&user.bytes);
            self.day_segments += user.bytes.days.len();
            let Some(head) = &user.bytes.head else { continue };
            let head = state::decode_head(head).map_err(|e| Error::failed("reading a user's head", e))?;
            self.with_open_alert += usize::from(head.alerts.iter().any(|alert| alert.status.is_open()));
        }
        Ok(())
    }

    /// Adds what another thread counted.
    pub fn join(&mut self, other: Users) {
        self.users += other.users;
        self.with_open_alert += other.with_open_alert;
        self.encoded_bytes += other.encoded_bytes;
        self.resident_bytes += other.resident_bytes;
        self.day_segments += other.day_segments;
    }
}

fn encoded_bytes(user: &UserBytes) -> usize {
    let segments = user.head.iter().chain(&user.seen).chain(user.days.iter().map(|(_, value)| value));
    segments.map(|value| value.len()).sum()
}

/// The partitions and what folds them.
pub struct Folder {
    partitions: Vec<Partition>,
    batch: Batch,
    outputs: Outputs,
    encoder: Encoder,
    decoder: Decoder,
    scratch: Scratch,
    policies: BuiltIn,
    offsets: Vec<i64>,
}

impl Folder {
    /// Fresh partitions under the built-in policies, for batches of so many records.
    pub fn new(config: &Config, partitions: i32, records_max: usize, now: Timestamp) -> Result<Folder, Error> {
        let schemas = Schemas::built_in();
        let mut folder = Folder {
            partitions: (0..partitions).map(|n| fresh(config, n, partitions)).collect(),
            batch: Batch::new(records_max, 1 << 30),
            outputs: Outputs::default(),
            encoder: Encoder::new(&schemas),
            decoder: Decoder::new(&schemas),
            scratch: Scratch::default(),
            policies: BuiltIn::new()?,
            offsets: vec![0; partitions as usize],
        };
        folder.switch(now)?;
        Ok(folder)
    }

    /// The first batch: every partition's policies.
    fn switch(&mut self, now: Timestamp) -> Result<(), Error> {
        let hash = self.policies.hash().to_owned();
        self.batch.clear();
        for partition in 0..self.partitions.len() as i32 {
            let mut value = Vec::new();
            self.encoder.encode(Topic::CaseCommands, &switch(&hash, partition), &mut value)?;
            let topic = input_name(COMMANDS);
            let record = RecordRef {
                topic,
                partition,
                offset: 0,
                timestamp: now,
                key: Some(b""),
                value: Some(&value),
                headers: &[],
            };
            self.batch.push(COMMANDS, &record);
        }
        self.batch.seal();
        self.fold_gathered(now)?;
        match self.partitions.iter().all(|p| p.policies().is_some()) {
            true => Ok(()),
            false => Err(Error::failed("the switch of policies", "a partition did not take it up")),
        }
    }

    /// Gathers one batch and folds it: partition, record time, key and value of each record of `input`.
    pub fn fold<'a>(
        &mut self,
        input: usize,
        records: impl Iterator<Item = (i32, Timestamp, &'a [u8], &'a [u8])>,
        now: Timestamp,
    ) -> Result<Spent, Error> {
        let (began, topic) = (Instant::now(), input_name(input));
        self.batch.clear();
        for (partition, timestamp, key, value) in records {
            let offset = &mut self.offsets[partition as usize];
            let (key, value) = (Some(key), Some(value));
            self.batch
                .push(input, &RecordRef { topic, partition, offset: *offset, timestamp, key, value, headers: &[] });
            *offset += 1;
        }
        self.batch.seal();
        let gather = began.elapsed();
        Ok(Spent { gather, ..self.fold_gathered(now)? })
    }

    fn fold_gathered(&mut self, now: Timestamp) -> Result<Spent, Error> {
        let used = cpu::thread_time();
        let (began, mut overlays) = (Instant::now(), Vec::with_capacity(self.partitions.len()));
        self.outputs.clear();
        let frame = Frame { now, ..Frame::default() };
        for number in self.batch.partitions() {
            let mut tools = Tools {
                encoder: &mut self.encoder,
                decoder: &mut self.decoder,
                policies: &mut self.policies,
                scratch: &mut self.scratch,
            };
            let partition = &self.partitions[number as usize];
            let records = self.batch.records(number);
            let overlay = partition.fold_batch(records, &frame, &mut tools, &mut self.outputs);
            overlays.push((number, overlay.map_err(|e| Error::failed("folding a batch", e))?));
        }
        let folded = Instant::now();
        for (number, overlay) in overlays {
            drop(self.partitions[number as usize].merge(overlay));
        }
        let (fold, merge) = (folded - began, folded.elapsed());
        let cpu = used.and_then(|used| Some(cpu::thread_time()? - used)).unwrap_or(fold + merge);
        Ok(Spent { gather: Duration::ZERO, fold, merge, cpu })
    }

    /// Adds what the last batch would have written, by topic.
    pub fn count_outputs(&self, written: &mut BTreeMap<TopicName, Written>) {
        let counted = self.outputs.try_each(|record, _| {
            let headers: usize = record.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
            let total = written.entry(record.topic).or_default();
            total.records += 1;
            total.bytes += (record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len) + headers) as i64;
            Ok::<(), std::convert::Infallible>(())
        });
        match counted {
            Ok(()) => {}
            Err(never) => match never {},
        }
    }

    /// What the users amount to now.
    pub fn users(&self) -> Result<Users, Error> {
        let mut users = Users::default();
        self.partitions.iter().try_for_each(|partition| users.add(partition))?;
        Ok(users)
    }

    /// The ledger of all partitions: what became of the records.
    pub fn ledger(&self) -> BTreeMap<String, i64> {
        let mut total = BTreeMap::new();
        for (row, count) in self.partitions.iter().flat_map(|p| &p.meta().ledger) {
            *total.entry(row.clone()).or_default() += count;
        }
        total
    }

    /// The partitions alone; what batches needed is freed.
    pub fn into_partitions(self) -> Vec<Partition> {
        self.partitions
    }
}

fn fresh(config: &Config, number: i32, partitions: i32) -> Partition {
    let identity = Identity {
        number,
        partitions,
        cluster_id: "bench".into(),
        transactional_id: "bench".into(),
        lateness_days: config.engine.lateness_days,
        level_valid_ms: config.engine.level_valid_hours * HOUR_MS,
    };
    Partition::fresh(identity, [0; INPUTS])
}
