//! The map role: raw topics in, `risk-signals` and `dead-letters` out, exactly once.
//!
//! A group of its own, one transaction per batch: outputs and offsets commit together, and the ledger travels in the
//! offset's metadata. Stateless but for the directory, so recovery is nothing but seeking to committed offsets.
//! Mapping happens while gathering; a batch that a rebalance or an abort discards is simply mapped again.
//! Next: `map_worker/stage.rs`, what becomes of one record.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ports::{Clock, Error, ErrorKind, Group, InputOffset, Log, Polled, Txn};
use super::telemetry::{self, Limit, outcome};

mod ledger;
mod people;
mod stage;
#[cfg(test)]
mod tests;

pub use ledger::Ledger;
pub use people::People;
pub use stage::{Batch, Input, Source, Stage};

/// Most bytes a batch holds before it is committed.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// How long one call is retried before the batch is given up.
const RETRY_FOR: Duration = Duration::from_secs(20);
/// How long a broker may keep committed offsets or the directory from us before we give up.
const RECOVER_FOR: Duration = Duration::from_secs(60);
/// Between two tries.
const RETRY_EVERY: Duration = Duration::from_millis(100);

/// How batches are cut.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most records of a batch.
    pub records: usize,
    /// Longest time a batch is gathered.
    pub gather: Duration,
    /// How long an empty poll waits.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { records: 1000, gather: Duration::from_millis(50), idle: Duration::from_millis(100) }
    }
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing to do.
    Idle,
    /// Membership changed; whatever had been gathered is gone.
    Rebalanced,
    /// A batch of this many records is committed.
    Committed(usize),
    /// A batch was undone and will come again.
    Aborted,
    /// An outcome was unknown: a new producer, positions read again.
    Recovered,
}

/// One map worker: one thread, one consumer, one transactional producer.
pub struct MapWorker<G, T, L, C> {
    group: G,
    txn: T,
    log: L,
    clock: C,
    stage: Stage,
    limits: Limits,
    batch: Batch,
    /// Committed position and ledger of every owned input partition.
    owned: BTreeMap<Input, (i64, Ledger)>,
    /// Shrinks while batches abort, so that a record that cannot be written stands alone in the end.
    records_max: usize,
    is_fresh: bool,
}

impl<G, T, L, C> MapWorker<G, T, L, C>
where
    G: Group,
    T: Txn<Metadata = G::Metadata>,
    L: Log,
    C: Clock,
{
    /// A worker that has joined nothing yet.
    pub fn new(group: G, txn: T, log: L, clock: C, stage: Stage, limits: Limits) -> Self {
        let records_max = limits.records;
        let (batch, owned) = (Batch::default(), BTreeMap::new());
        MapWorker { group, txn, log, clock, stage, limits, batch, owned, records_max, is_fresh: false }
    }

    /// Leaves the group. Nothing is in flight between two steps.
    pub fn close(&mut self) {
        self.group.close();
    }

    /// One round: the directory when it is due, a batch if there is one.
    pub fn step(&mut self) -> Result<Step, Error> {
        self.prepare()?;
        match self.gather()? {
            Polled::Rebalanced => {
                self.rebalanced()?;
                Ok(Step::Rebalanced)
            }
            _ if self.batch.records == 0 => Ok(Step::Idle),
            _ => self.commit(),
        }
    }

    /// The ledger of an owned input partition, as committed.
    pub fn ledger(&self, input: Input) -> Option<&Ledger> {
        self.owned.get(&input).map(|(_, ledger)| ledger)
    }

    fn prepare(&mut self) -> Result<(), Error> {
        if !self.is_fresh || self.txn.wants_recycling() {
            let Self { txn, clock, .. } = self;
            retry(clock, RECOVER_FOR, || txn.init())?;
            self.is_fresh = true;
        }
        let now = self.clock.monotonic();
        if !self.stage.people.is_due(now) {
            return Ok(());
        }
        let was_ready = self.stage.people.is_ready();
        let Self { stage, log, clock, .. } = self;
        let result = if was_ready {
            stage.people.follow(log, now)
        } else {
            retry(clock, RECOVER_FOR, || stage.people.follow(log, now))
        };
        let (known, skipped) = stage.people.counts();
        telemetry::people(known);
        match result {
            Err(error) if !was_ready => Err(error),
            // What is known stays in use; the next check comes with the next step.
            Err(error) => {
                tracing::warn!(%error, known, skipped, "the directory could not be followed");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Fills the batch. `Polled::Rebalanced`: it is empty again and the assignment changed.
    fn gather(&mut self) -> Result<Polled, Error> {
        let Self { group, clock, stage, batch, owned, .. } = self;
        batch.clear();
        let deadline = clock.monotonic() + self.limits.gather;
        let mut wait = self.limits.idle;
        loop {
            let polled = group.poll(wait, &mut |record| {
                let input = (record.topic, record.partition);
                let next = batch.inputs.get(&input).or(owned.get(&input)).map(|(next, _)| *next);
                // What is not ours, or ours and done, is a delivery that a seek or a revocation overtook.
                if next.is_some_and(|next| record.offset >= next) {
                    stage.take(&record, batch);
                }
            });
            match polled {
                Ok(Polled::Record) => {}
                Ok(Polled::Nothing) => return Ok(Polled::Nothing),
                Ok(Polled::Rebalanced) => {
                    batch.clear();
                    return Ok(Polled::Rebalanced);
                }
                Err(error) if is_passing(error.kind) => return Ok(Polled::Nothing),
                Err(error) => return Err(error),
            }
            let full = batch.records >= self.records_max || batch.bytes() >= BATCH_BYTES_MAX;
            if full {
                telemetry::limit(Limit::MapBatch);
            }
            if full || clock.monotonic() >= deadline {
                return Ok(Polled::Record);
            }
            wait = Duration::ZERO;
        }
    }

    fn rebalanced(&mut self) -> Result<(), Error> {
        let changes = self.group.changes();
        for input in &changes.revoked {
            self.owned.remove(input);
        }
        let Some(assigned) = changes.assigned else { return Ok(()) };
        self.owned = self.committed(&assigned)?;
        self.group.start(&self.positions())
    }

    /// Committed positions and ledgers; an input without one begins at its log's start.
    fn committed(&mut self, inputs: &[Input]) -> Result<BTreeMap<Input, (i64, Ledger)>, Error> {
        let Self { log, clock, .. } = self;
        let committed = retry(clock, RECOVER_FOR, || log.committed(inputs))?;
        assert_eq!(committed.len(), inputs.len(), "one answer per input");
        let mut owned = BTreeMap::new();
        for (input, committed) in inputs.iter().zip(committed) {
            let (start, end) = retry(clock, RECOVER_FOR, || log.watermarks(input.0, input.1))?;
            let position = match committed {
                None => (start, Ledger::default()),
                Some(at) if at.offset > end => return Err(behind(*input, at.offset, end)),
                Some(at) => (at.offset.max(start), Ledger::from_metadata(&at.metadata).unwrap_or_default()),
            };
            owned.insert(*input, position);
        }
        Ok(owned)
    }

    fn positions(&self) -> Vec<InputOffset> {
        let position = |(input, (offset, _)): (&Input, &(i64, Ledger))| InputOffset {
            topic: input.0,
            partition: input.1,
            offset: *offset,
            metadata: String::new(),
        };
        self.owned.iter().map(position).collect()
    }

    /// Commits the batch. The membership it proves is that of the last poll, and nothing polls until it is over.
    fn commit(&mut self) -> Result<Step, Error> {
        let metadata = match self.group.metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind == ErrorKind::Fenced => return Err(error),
            Err(_) => return self.seek_back(),
        };
        let ledgers = self.ledgers();
        match self.transact(&ledgers, &metadata) {
            Ok(()) => Ok(self.settle(ledgers)),
            Err(error) => self.undo(error),
        }
    }

    /// The ledgers as they stand after the batch.
    fn ledgers(&self) -> BTreeMap<Input, (i64, Ledger)> {
        let after = |(input, (offset, more)): (&Input, &(i64, Ledger))| {
            let (from, before) = self.owned.get(input).expect("only owned inputs are delivered");
            assert!(offset > from, "offsets move forward: {input:?}, {from}..{offset}");
            let mut ledger = before.clone();
            ledger.add(more);
            (*input, (*offset, ledger))
        };
        self.batch.inputs.iter().map(after).collect()
    }

    fn transact(&mut self, ledgers: &BTreeMap<Input, (i64, Ledger)>, metadata: &G::Metadata) -> Result<(), Error> {
        let offset = |(input, (offset, ledger)): (&Input, &(i64, Ledger))| InputOffset {
            topic: input.0,
            partition: input.1,
            offset: *offset,
            metadata: ledger.to_metadata(),
        };
        let offsets: Vec<InputOffset> = ledgers.iter().map(offset).collect();
        let Self { txn, clock, batch, stage, .. } = self;
        retry(clock, RETRY_FOR, || txn.begin())?;
        batch.send(stage.partitions, |record| retry(clock, RETRY_FOR, || txn.send(record)))?;
        retry(clock, RETRY_FOR, || txn.send_offsets(&offsets, metadata))?;
        retry(clock, RETRY_FOR, || txn.commit()).map_err(|error| match error.kind {
            // Retried in vain: nobody knows whether the broker has committed.
            ErrorKind::Retriable | ErrorKind::Timeout => Error { kind: ErrorKind::Unknown, ..error },
            _ => error,
        })
    }

    fn settle(&mut self, ledgers: BTreeMap<Input, (i64, Ledger)>) -> Step {
        telemetry::transaction(outcome::COMMITTED);
        for (input, (_, counted)) in &self.batch.inputs {
            count(input.0, counted);
        }
        self.owned.extend(ledgers);
        self.records_max = (self.records_max * 2).min(self.limits.records);
        Step::Committed(self.batch.records)
    }

    fn undo(&mut self, error: Error) -> Result<Step, Error> {
        telemetry::transaction(match error.kind {
            ErrorKind::Fenced => outcome::FENCED,
            ErrorKind::Unknown | ErrorKind::Fatal => outcome::UNKNOWN,
            _ => outcome::ABORTED,
        });
        match error.kind {
            ErrorKind::Fenced | ErrorKind::Missing => return Err(error),
            ErrorKind::Unknown | ErrorKind::Fatal => {
                tracing::warn!(%error, "a batch's outcome is unknown; reading committed positions again");
                return self.recover();
            }
            ErrorKind::TooLarge if self.batch.records == 1 => return Err(error),
            _ => tracing::warn!(%error, records = self.batch.records, "a batch was aborted and comes again"),
        }
        match self.txn.abort() {
            Ok(()) => {
                self.records_max = (self.batch.records / 2).max(1);
                self.seek_back()
            }
            Err(error) if error.kind == ErrorKind::Fenced => Err(error),
            Err(_) => self.recover(),
        }
    }

    fn seek_back(&mut self) -> Result<Step, Error> {
        self.seek()?;
        Ok(Step::Aborted)
    }

    /// A new producer under the same id ends whatever is open; then the committed offsets say what happened.
    fn recover(&mut self) -> Result<Step, Error> {
        let Self { txn, clock, .. } = self;
        retry(clock, RECOVER_FOR, || txn.init())?;
        let inputs: Vec<Input> = self.owned.keys().copied().collect();
        self.owned = self.committed(&inputs)?;
        self.seek()?;
        Ok(Step::Recovered)
    }

    /// Only what is still ours: a revocation may be waiting for the next poll.
    fn seek(&mut self) -> Result<(), Error> {
        let mut positions = self.positions();
        positions.retain(|at| self.group.owns(at.topic, at.partition));
        let Self { group, clock, .. } = self;
        retry(clock, RETRY_FOR, || group.seek(&positions))
    }
}

fn behind(input: Input, offset: i64, end: i64) -> Error {
    let what = format!("could not resume mapping {}/{} at offset {offset}", input.0, input.1);
    let cause =
        format!("the log ends at {end}: the topic was made anew or offsets were set; reset the map group's offsets");
    Error::new(ErrorKind::Missing, what, cause)
}

fn is_passing(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Retriable | ErrorKind::Timeout | ErrorKind::Unstable)
}

/// Tries again while the error says so and time is left.
fn retry<R>(clock: &impl Clock, limit: Duration, mut call: impl FnMut() -> Result<R, Error>) -> Result<R, Error> {
    let deadline = clock.monotonic() + limit;
    loop {
        match call() {
            Err(error) if is_passing(error.kind) && clock.monotonic() < deadline => clock.wait(RETRY_EVERY),
            result => return result,
        }
    }
}

fn count(topic: &'static str, counted: &Ledger) {
    let rows = |rows: &BTreeMap<String, i64>| rows.values().sum::<i64>() as u64;
    let outcomes =
        [("mapped", counted.mapped as u64), ("ignored", rows(&counted.ignored)), ("dead", rows(&counted.dead))];
    telemetry::mapped(topic, outcomes, counted.signals as u64);
    telemetry::consumed(topic, counted.taken as u64);
    counted.dead.iter().for_each(|(code, records)| telemetry::dead_letters(topic, code, *records as u64));
}
