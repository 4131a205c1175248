//! The protocol of one engine worker: gather a batch, fold it beside the state, write everything in one transaction,
//! and only then make it the state. One thread, one consumer, one transactional producer; generic over the ports, so
//! that the simulator runs this very code. What a record means is the engine's matter, how a transaction ends
//! `worker/transact.rs`'s, how a partition is taken over `worker/assignment.rs`'s, and what happens between batches
//! `worker/upkeep.rs`'s. Next: `recovery.rs`.
//!
//! Exactly once rests on four rules, each visible here: nothing is merged before its commit is known (T3); group
//! metadata is taken after the last poll of the batch and nothing is polled while a batch is open (G1); offsets of
//! every engine input of every partition written to are part of the transaction (it is what fences); and after an
//! unknown outcome the log is asked, never guessed (T1).

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::batch::{Batch, INPUTS, input_name, input_of};
use super::copy_sink::{CopySink, Mark, Standing};
use super::partition::{
    FoldError, Frame, Hold, Outputs, Overlay, Partition, PolicySource, RecordId, Row, Scratch, Tools,
};
use super::ports::{Clock, Error, ErrorKind, Group, InputOffset, Log, Polled, RecordRef, TopicName, Txn};
use super::recovery::{Halt, HaltCode};
use super::status::StatusSink;
use super::telemetry::{self, Limit, outcome};
use crate::domain::Timestamp;
use crate::wire::avro::{Decoder, Encoder, Schemas};

mod assignment;
mod halving;
mod restore;
#[cfg(test)]
mod tests;
mod transact;
mod upkeep;

use halving::{Halving, Next, Range};
use transact::{Failure, transact};

/// Pause after an aborted transaction or an answer that is not there yet.
const PAUSE: Duration = Duration::from_millis(200);
/// Failed attempts to make a producer before the worker stops.
const INIT_ATTEMPTS_MAX: u32 = 150;
/// How many records are gathered between two looks at the clock.
const RECORDS_PER_CLOCK: usize = 64;

/// What a worker needs to know. Plain values; nothing is read from anywhere else.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name on `partition-status`.
    pub worker: String,
    pub transactional_id: String,
    /// Partitions of every topic keyed by user.
    pub partitions: i32,
    pub batch_records_max: usize,
    pub batch_bytes_max: usize,
    /// How long records are gathered at most once one is there.
    pub batch_hold: Duration,
    /// How long an idle worker waits for a record.
    pub poll_wait: Duration,
    pub transaction_timeout: Duration,
    /// How long all inputs of a partition must have been drained before its timers follow the clock.
    pub idle_follow_ms: i64,
    /// Memory all resident users may take, in bytes.
    pub state_bytes_max: usize,
    pub lateness_days: i64,
    pub level_valid_ms: i64,
    /// `delete.retention.ms` of `user-state`.
    pub delete_retention: Duration,
    pub status_every: Duration,
    /// How often the changelog offset beside the copy is refreshed.
    pub mark_every: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            worker: "worker".into(),
            transactional_id: "casestream-engine-0-0".into(),
            partitions: crate::topology::PARTITIONS_DEFAULT,
            batch_records_max: 10_000,
            batch_bytes_max: 32 << 20,
            batch_hold: Duration::from_millis(100),
            poll_wait: Duration::from_millis(50),
            transaction_timeout: Duration::from_secs(10),
            idle_follow_ms: 30_000,
            state_bytes_max: 4 << 30,
            lateness_days: 30,
            level_valid_ms: 24 * 60 * 60 * 1_000,
            delete_retention: Duration::from_secs(24 * 60 * 60),
            status_every: Duration::from_secs(5),
            mark_every: Duration::from_secs(10),
        }
    }
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing to do.
    Idle,
    /// A transaction was committed and merged.
    Committed { records: usize, partitions: usize },
    /// A transaction was aborted, or a batch could not be folded; its range will be tried again.
    Aborted,
    /// The outcome of a commit is unknown: every partition is taken through assignment again.
    Unknown,
    /// Membership changed; what was gathered is discarded.
    Rebalanced,
    /// Partitions are being restored.
    Restoring,
    /// Something outside is not ready; tried again at the next step.
    Waiting,
}

/// Why a worker cannot go on. The process exits; a restart takes the state up where it was committed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Stop {
    #[error("another process runs under this identity: give every process its own ordinal ({0})")]
    Fenced(Error),
    #[error("could not go on: {0}")]
    Failed(Error),
}

/// A partition of the assignment.
enum Slot {
    /// To be restored; since when, on the monotonic clock.
    Pending {
        since: Duration,
        why: String,
    },
    /// Restored, its first transaction is not yet committed.
    Restored(Box<Running>),
    Running(Box<Running>),
    Halted(Halt),
}

/// A partition at work.
struct Running {
    partition: Partition,
    mark: Mark,
    marked_at: Duration,
    /// Committed something since the mark.
    moved: bool,
    last_record_at: Duration,
    /// Log end of each input below which nothing is left to read, as of the last check.
    drained: [Option<i64>; INPUTS],
    follows_clock: bool,
    drain_check_at: Duration,
    /// Signals wait until the directory is read to this offset (first start).
    directory_until: Option<i64>,
    /// Inputs whose records are dropped for now, and until when at least.
    held: [Option<Duration>; INPUTS],
    holding: [Option<Hold>; INPUTS],
    ends: [i64; INPUTS],
    status_at: Duration,
    /// What the copy must see once the epoch is claimed.
    handover: Option<assignment::Handover>,
}

/// One engine worker.
pub struct Worker<G: Group, T, L, C, W> {
    config: Config,
    group: G,
    txn: T,
    log: L,
    clock: C,
    copy: W,
    policies: Box<dyn PolicySource + Send>,
    status: StatusSink,
    encoder: Encoder,
    decoder: Decoder,
    scratch: Scratch,
    cluster_id: Option<Arc<str>>,
    slots: BTreeMap<i32, Slot>,
    batch: Batch,
    outputs: Outputs,
    halving: Halving,
    producer_ready: bool,
    init_attempts: u32,
    /// Consumption has begun under the present assignment.
    started: bool,
    /// An assignment has not yet been answered with positions.
    answer_due: bool,
    status_at: Duration,
}

/// What a poll loop ended with.
enum Gathered {
    Batch,
    Rebalanced,
}

/// A partition's part of an open batch.
struct Part {
    number: i32,
    overlay: Overlay,
}

impl<G, T, L, C, W> Worker<G, T, L, C, W>
where
    G: Group,
    T: Txn<Metadata = G::Metadata>,
    L: Log,
    C: Clock,
    W: CopySink,
{
    /// A worker that has not yet polled.
    #[allow(clippy::too_many_arguments)] // Each port is a thing of its own; a struct of them would name them twice.
    pub fn new(
        config: Config,
        schemas: &Arc<Schemas>,
        group: G,
        txn: T,
        log: L,
        clock: C,
        copy: W,
        policies: Box<dyn PolicySource + Send>,
        status: StatusSink,
    ) -> Self {
        let batch = Batch::new(config.batch_records_max, config.batch_bytes_max);
        Worker {
            config,
            group,
            txn,
            log,
            clock,
            copy,
            policies,
            status,
            encoder: Encoder::new(schemas),
            decoder: Decoder::new(schemas),
            scratch: Scratch::default(),
            cluster_id: None,
            slots: BTreeMap::new(),
            batch,
            outputs: Outputs::default(),
            halving: Halving::default(),
            producer_ready: false,
            init_attempts: 0,
            started: false,
            answer_due: false,
            status_at: Duration::ZERO,
        }
    }

    /// One iteration of the protocol.
    pub fn step(&mut self) -> Result<Step, Stop> {
        if (!self.producer_ready || self.txn.wants_recycling())
            && let Some(step) = self.make_producer()?
        {
            return Ok(step);
        }
        if self.restoring() {
            return self.restore_step();
        }
        self.upkeep()?;
        match self.gather()? {
            Gathered::Rebalanced => self.rebalanced(),
            Gathered::Batch => self.process(),
        }
    }

    /// Leaves the group. Nothing is in flight between two steps.
    pub fn close(&mut self) {
        self.group.close();
    }

    /// The partitions at work, for tests and status pages.
    pub fn running(&self) -> impl Iterator<Item = &Partition> {
        self.slots.values().filter_map(|s| match s {
            Slot::Running(running) => Some(&running.partition),
            Slot::Pending { .. } | Slot::Restored(_) | Slot::Halted(_) => None,
        })
    }

    /// The halted partitions and why.
    pub fn halted(&self) -> impl Iterator<Item = &Halt> {
        self.slots.values().filter_map(|s| match s {
            Slot::Halted(halt) => Some(halt),
            Slot::Pending { .. } | Slot::Restored(_) | Slot::Running(_) => None,
        })
    }

    /// Whether every assigned partition is at work or halted.
    pub fn is_ready(&self) -> bool {
        self.started && !self.restoring()
    }

    /// The ports, for a simulator.
    pub fn ports(&mut self) -> (&mut G, &mut T, &mut L, &mut C, &mut W) {
        (&mut self.group, &mut self.txn, &mut self.log, &mut self.clock, &mut self.copy)
    }

    /// Makes the producer (anew). `Some`: not yet, try again.
    fn make_producer(&mut self) -> Result<Option<Step>, Stop> {
        self.producer_ready = false;
        match self.txn.init() {
            Ok(()) => {
                self.producer_ready = true;
                self.init_attempts = 0;
                Ok(None)
            }
            Err(error) if error.kind == ErrorKind::Fenced => Err(Stop::Fenced(error)),
            Err(error) if self.init_attempts >= INIT_ATTEMPTS_MAX => Err(Stop::Failed(error)),
            Err(error) => {
                self.init_attempts += 1;
                tracing::warn!(%error, attempt = self.init_attempts, "could not make the producer, trying again");
                self.clock.wait(PAUSE);
                Ok(Some(Step::Waiting))
            }
        }
    }

    /// Polls until the batch is full, old, or the queue is empty. Records of partitions that are not at work, and of
    /// inputs that wait, are dropped: a seek brings them back.
    fn gather(&mut self) -> Result<Gathered, Stop> {
        self.batch.clear();
        let now = self.clock.now();
        let busy = self.slots.values().any(|s| matches!(s, Slot::Running(r) if r.timer_is_due(now)));
        let started = self.clock.monotonic();
        let mut wait = if busy { Duration::ZERO } else { self.config.poll_wait };
        let mut polls = 0;
        loop {
            let Self { group, slots, batch, .. } = self;
            let polled = group.poll(wait, &mut |record: RecordRef<'_>| take(slots, batch, &record));
            match polled {
                Ok(Polled::Record) => {}
                Ok(Polled::Nothing) => break,
                Ok(Polled::Rebalanced) => return Ok(Gathered::Rebalanced),
                Err(error) => {
                    self.poll_failed(error)?;
                    break;
                }
            }
            polls += 1;
            wait = Duration::ZERO;
            let old = polls % RECORDS_PER_CLOCK == 0 && self.clock.monotonic() - started >= self.config.batch_hold;
            if old || self.batch.is_full(self.halving.limit()) {
                break;
            }
        }
        if self.batch.is_full(usize::MAX) {
            telemetry::limit(Limit::Batch);
        }
        self.batch.seal();
        Ok(Gathered::Batch)
    }

    fn poll_failed(&mut self, error: Error) -> Result<(), Stop> {
        match error.kind {
            ErrorKind::Fenced => return Err(Stop::Fenced(error)),
            ErrorKind::Fatal => return Err(Stop::Failed(error)),
            // An offset is gone: the assignment path finds out which, and halts that partition.
            ErrorKind::Missing => self.take_over_again(),
            ErrorKind::Retriable
            | ErrorKind::Abort
            | ErrorKind::Unknown
            | ErrorKind::Unstable
            | ErrorKind::TooLarge
            | ErrorKind::Timeout => self.clock.wait(PAUSE),
        }
        tracing::warn!(%error, "could not poll");
        Ok(())
    }

    /// Folds and commits what was gathered, and the timers that are due.
    fn process(&mut self) -> Result<Step, Stop> {
        let numbers = self.numbers_to_fold();
        if numbers.is_empty() || self.restoring() {
            return Ok(Step::Idle);
        }
        // G1: a generation may be fresh and a partition lost all the same, so ownership is asked as well.
        let owned = numbers.iter().all(|p| (0..INPUTS).all(|n| self.group.owns(input_name(n), *p)));
        let metadata = match self.group.metadata() {
            Ok(metadata) if owned => metadata,
            Ok(_) => return self.put_back("a partition of the batch is not ours any more"),
            Err(error) if error.kind == ErrorKind::Fenced => return Err(Stop::Fenced(error)),
            Err(error) => return self.put_back(&error.to_string()),
        };
        let opened = self.clock.monotonic();
        self.outputs.clear();
        match self.fold(&numbers, opened) {
            Ok(parts) => {
                telemetry::folded(&self.config.worker, self.clock.monotonic() - opened);
                let folded: BTreeSet<i32> = parts.iter().map(|p| p.number).collect();
                let step = self.commit(parts, &metadata)?;
                // Only now: a seek may cost the assignment, which must not happen while a batch is open.
                numbers.difference(&folded).for_each(|p| self.seek_back(*p));
                Ok(step)
            }
            Err(error) => self.refused(&numbers, &error),
        }
    }

    fn numbers_to_fold(&self) -> BTreeSet<i32> {
        let mut numbers: BTreeSet<i32> = self.batch.partitions().collect();
        // While a range is narrowed down, nothing else shares its transaction.
        if numbers.is_empty() || !self.halving.is_active() {
            let now = self.clock.now();
            let due = |slot: &Slot| matches!(slot, Slot::Running(r) if r.timer_is_due(now));
            numbers.extend(self.slots.iter().filter(|(_, slot)| due(slot)).map(|(p, _)| *p));
        }
        numbers
    }

    /// Folds partition after partition. A broken invariant halts its partition; the others go on.
    fn fold(&mut self, numbers: &BTreeSet<i32>, opened: Duration) -> Result<Vec<Part>, FoldError> {
        let now = self.clock.now();
        let condemned = self.halving.condemned(self.range());
        let mut parts = Vec::with_capacity(numbers.len());
        for &number in numbers {
            if self.clock.monotonic() - opened >= self.config.transaction_timeout / 4 {
                // The hold limit of a batch, half of it for writing: what is not folded by now waits for the next one.
                break;
            }
            let Some(Slot::Running(running)) = self.slots.get_mut(&number) else { continue };
            let records = self.batch.records(number);
            let follows_clock = running.follows_clock && records.len() == 0;
            let frame = Frame {
                now,
                follows_clock,
                drained: if follows_clock { running.drained } else { [None; INPUTS] },
                epoch: None,
                condemned: condemned.filter(|_| records.len() == 1),
            };
            let mark = self.outputs.mark();
            let mut tools = Tools {
                encoder: &mut self.encoder,
                decoder: &mut self.decoder,
                policies: &mut *self.policies,
                scratch: &mut self.scratch,
            };
            let (partition, outputs) = (&running.partition, &mut self.outputs);
            let folded = catch_unwind(AssertUnwindSafe(|| partition.fold_batch(records, &frame, &mut tools, outputs)));
            match folded {
                Ok(overlay) => parts.push(Part { number, overlay: overlay? }),
                Err(panic) => {
                    self.outputs.truncate(mark);
                    self.halt_broken(number, &panic_text(&*panic));
                }
            }
        }
        Ok(parts)
    }

    /// Steps 4 and 5: everything in one transaction, then merge. Overlays that wrote nothing need no transaction.
    fn commit(&mut self, parts: Vec<Part>, metadata: &G::Metadata) -> Result<Step, Stop> {
        let offsets: Vec<InputOffset> =
            parts.iter().filter(|p| p.overlay.wrote()).flat_map(|p| offsets(p.number, p.overlay.positions())).collect();
        if offsets.is_empty() {
            self.merge(parts);
            return Ok(Step::Idle);
        }
        let (records, partitions) = (self.batch.len(), offsets.len() / INPUTS);
        match self.transact(&offsets, metadata) {
            Ok(()) => {
                telemetry::batch(&self.config.worker, records);
                self.outputs.alerts_opened().for_each(|(severity, policy)| telemetry::alert_opened(severity, policy));
                self.halving.committed(records);
                self.merge(parts);
                Ok(Step::Committed { records, partitions })
            }
            Err(failure) => self.failed(parts.iter().map(|p| p.number).collect(), failure),
        }
    }

    fn transact(&mut self, offsets: &[InputOffset], metadata: &G::Metadata) -> Result<(), Failure> {
        // T6: at least the broker's own timeout, so that an expiry means something.
        let limit = self.config.transaction_timeout + Duration::from_secs(5);
        let result = transact(&mut self.txn, &self.clock, &self.outputs, offsets, metadata, limit);
        telemetry::transaction(match &result {
            Ok(()) => outcome::COMMITTED,
            Err(Failure::Aborted { .. }) => outcome::ABORTED,
            Err(Failure::Unknown(_)) => outcome::UNKNOWN,
            Err(Failure::Fenced(_)) => outcome::FENCED,
        });
        result
    }

    /// The overlays are dropped by the caller's end of scope: nothing of them was merged.
    fn failed(&mut self, numbers: BTreeSet<i32>, failure: Failure) -> Result<Step, Stop> {
        match failure {
            Failure::Fenced(error) => Err(Stop::Fenced(error)),
            Failure::Unknown(error) => {
                tracing::warn!(%error, "the outcome of a commit is unknown: asking the log");
                self.producer_ready = false;
                self.take_over_again();
                Ok(Step::Unknown)
            }
            Failure::Aborted { error, too_large, producer_lost } => {
                tracing::warn!(%error, records = self.batch.len(), "a transaction was aborted");
                self.producer_ready &= !producer_lost;
                let range = self.range();
                let next = match too_large {
                    true => self.halving.refused(range, "record.poison"),
                    false => self.halving.aborted(range),
                };
                self.after_abort(&numbers, next, &error.to_string())
            }
        }
    }

    fn refused(&mut self, numbers: &BTreeSet<i32>, error: &FoldError) -> Result<Step, Stop> {
        tracing::error!(%error, records = self.batch.len(), "a batch could not be folded");
        let next = match self.range() {
            (None, _) => Next::GiveUp,
            range => self.halving.refused(range, error.code),
        };
        self.after_abort(&BTreeSet::from([error.partition]).intersection(numbers).copied().collect(), next, error.code)
    }

    fn after_abort(&mut self, numbers: &BTreeSet<i32>, next: Next, why: &str) -> Result<Step, Stop> {
        self.seek_back_batch();
        match next {
            Next::Retry => self.clock.wait(PAUSE),
            Next::Halve | Next::Condemn => {}
            Next::Probe => self.probe(numbers)?,
            Next::GiveUp => {
                for number in numbers {
                    self.halt(give_up(*number, why));
                }
                self.halving = Halving::default();
            }
        }
        Ok(Step::Aborted)
    }

    /// A transaction without records: tells a broken record from a broken broker.
    fn probe(&mut self, numbers: &BTreeSet<i32>) -> Result<(), Stop> {
        let Some(number) = numbers.first().copied() else { return Ok(()) };
        // T2: the end of the transaction just aborted may still be on its way; it must not meet this one.
        if (!self.producer_ready || self.txn.wants_recycling()) && self.make_producer()?.is_some() {
            return Ok(());
        }
        let Some(Slot::Running(running)) = self.slots.get(&number) else { return Ok(()) };
        let epoch = running.partition.meta().epoch;
        let Ok(metadata) = self.group.metadata() else { return Ok(()) };
        self.outputs.clear();
        let Some(part) = self.meta_only(number, epoch) else { return Ok(()) };
        match self.transact(&offsets(number, part.overlay.positions()), &metadata) {
            Ok(()) => {
                self.halving.probe_committed();
                self.merge(vec![part]);
                Ok(())
            }
            Err(Failure::Aborted { producer_lost, .. }) => {
                self.producer_ready &= !producer_lost;
                self.clock.wait(PAUSE);
                Ok(())
            }
            Err(failure) => self.failed(BTreeSet::new(), failure).map(|_| ()),
        }
    }

    /// A batch of nothing but journal and meta.
    fn meta_only(&mut self, number: i32, epoch: i64) -> Option<Part> {
        let (Slot::Running(running) | Slot::Restored(running)) = self.slots.get(&number)? else { return None };
        let frame = Frame { now: self.clock.now(), epoch: Some(epoch), ..Frame::default() };
        let mut tools = Tools {
            encoder: &mut self.encoder,
            decoder: &mut self.decoder,
            policies: &mut *self.policies,
            scratch: &mut self.scratch,
        };
        // No partition has the number -1: an empty range of the batch.
        let records = self.batch.records(-1);
        let overlay = running.partition.fold_batch(records, &frame, &mut tools, &mut self.outputs);
        Some(Part { number, overlay: overlay.expect("a batch without records touches no user") })
    }

    /// Step 5. Only called once the commit is known (or nothing was to be written).
    fn merge(&mut self, parts: Vec<Part>) {
        let now = self.clock.monotonic();
        for Part { number, overlay } in parts {
            let (Some(Slot::Running(running)) | Some(Slot::Restored(running))) = self.slots.get_mut(&number) else {
                unreachable!("nothing is unassigned while a batch is open");
            };
            tell_merged(&self.config.worker, &overlay, self.clock.now());
            if overlay.wrote() {
                running.moved = true;
            }
            if overlay.tally().inputs.iter().any(|c| c.records > 0) {
                running.last_record_at = now;
                running.follows_clock = false;
            }
            running.hold(overlay.holds(), now);
            let (wrote, commit_now) = (overlay.wrote(), overlay.meta().now);
            let users = running.partition.merge(overlay);
            if wrote {
                let standing = running.standing(commit_now);
                self.copy.dirty(&standing, users);
            }
        }
        self.pause_held();
    }

    fn range(&self) -> Range {
        let first = self.batch.partitions().next().and_then(|p| self.batch.records(p).next());
        let id =
            |r: super::batch::BatchRecord<'_>| RecordId { input: r.input, partition: r.partition, offset: r.offset };
        (first.map(id), self.batch.len())
    }

    /// Drops the batch and polls it again.
    fn put_back(&mut self, why: &str) -> Result<Step, Stop> {
        tracing::info!(why, records = self.batch.len(), "a batch is put back");
        self.seek_back_batch();
        Ok(Step::Aborted)
    }

    fn seek_back_batch(&mut self) {
        let numbers: Vec<i32> = self.batch.partitions().collect();
        numbers.into_iter().for_each(|p| self.seek_back(p));
        self.batch.clear();
    }

    /// Positions do not rewind by themselves (T3). A seek that fails would skip records, so it costs the assignment.
    fn seek_back(&mut self, number: i32) {
        let Some(Slot::Running(running)) = self.slots.get(&number) else { return };
        let positions = running.partition.positions();
        let mut read = [false; INPUTS];
        self.batch.records(number).for_each(|r| read[r.input] = true);
        let targets: Vec<InputOffset> =
            offsets(number, positions).into_iter().enumerate().filter(|(n, _)| read[*n]).map(|(_, o)| o).collect();
        self.seek(&targets);
    }

    fn seek(&mut self, targets: &[InputOffset]) {
        if targets.is_empty() {
            return;
        }
        if let Err(error) = self.group.seek(targets) {
            tracing::warn!(%error, "could not seek back: taking the partitions over again");
            self.take_over_again();
        }
    }

    fn halt(&mut self, halt: Halt) {
        tracing::error!(partition = halt.partition, code = halt.code.as_str(), "{halt}");
        let number = halt.partition;
        self.copy.revoked(number);
        self.slots.insert(number, Slot::Halted(halt));
        let inputs: Vec<(TopicName, i32)> = (0..INPUTS).map(|n| (input_name(n), number)).collect();
        if let Err(error) = self.group.pause(&inputs) {
            tracing::warn!(%error, "could not pause the inputs of a halted partition");
        }
    }

    fn halt_broken(&mut self, number: i32, what: &str) {
        self.halt(Halt {
            partition: number,
            code: HaltCode::Invariant,
            found: what.to_owned(),
            remedy: "this is a bug: keep the log, report it, and restart the process to try again".into(),
        });
    }
}

/// Takes a polled record into the batch, unless its partition or input is not read now.
fn take(slots: &BTreeMap<i32, Slot>, batch: &mut Batch, record: &RecordRef<'_>) {
    let Some(Slot::Running(running)) = slots.get(&record.partition) else { return };
    let input = input_of(record.topic).unwrap_or_else(|| panic!("{} is not an input of the engine", record.topic));
    if running.held[input].is_none() {
        batch.push(input, record);
    }
}

/// The offsets of every input of a partition.
fn offsets(number: i32, positions: [i64; INPUTS]) -> Vec<InputOffset> {
    let offset = |n: usize| InputOffset {
        topic: input_name(n),
        partition: number,
        offset: positions[n],
        metadata: String::new(),
    };
    (0..INPUTS).map(offset).collect()
}

fn give_up(partition: i32, why: &str) -> Halt {
    Halt {
        partition,
        code: HaltCode::TransactionAborted,
        found: format!("a transaction without further records to leave out keeps failing: {why}"),
        remedy: "look for the cause in the broker's log (ACLs, max.message.bytes), then restart the process".into(),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned())).unwrap_or_else(|| "a panic".into())
}

fn tell_merged(worker: &str, overlay: &Overlay, now: Timestamp) {
    let tally = overlay.tally();
    for (n, counts) in tally.inputs.iter().enumerate().filter(|(_, counts)| counts.records > 0) {
        telemetry::consumed(input_name(n), counts.records as u64);
        for (code, records) in counts.dead_letters() {
            telemetry::dead_letters(input_name(n), code, *records as u64);
        }
        telemetry::mispartitioned(input_name(n), counts.get(Row::Rerouted) as u64);
        telemetry::late_and_clamped(counts.get(Row::Late) as u64, 0);
    }
    telemetry::late_and_clamped(0, tally.observed.clamped);
    if let Some((event, ingest)) = tally.observed.first {
        telemetry::latency(event, ingest, now);
    }
    tally.observed.limits().for_each(|(limit, times)| telemetry::limits(limit, times));
    telemetry::timers(overlay.timers());
    telemetry::dirty_users(worker, overlay.users_written());
}

impl Running {
    /// A timer is due on stream time, or on the clock once the partition follows it.
    fn timer_is_due(&self, now: Timestamp) -> bool {
        let Some(due) = self.partition.next_timer().filter(|_| self.partition.policies().is_some()) else {
            return false;
        };
        due <= self.partition.meta().stream_time || (self.follows_clock && due <= now)
    }

    fn standing(&self, now: Timestamp) -> Standing {
        let meta = self.partition.meta();
        Standing {
            partition: self.partition.number(),
            epoch: meta.epoch,
            commit_no: meta.commit_no,
            mark: self.mark,
            users: meta.users,
            cluster_id: self.partition.identity().cluster_id.clone(),
            now,
        }
    }
}
