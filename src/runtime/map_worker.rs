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
/// Failed attempts to make a producer before the worker stops.
const INIT_ATTEMPTS_MAX: u32 = 150;
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
    /// The directory or committed positions cannot be had yet; asked again at the next step. However long it takes: a
    /// restart would have to ask the same, and readiness says that we wait.
    Waiting,
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
    /// An assignment not yet answered with positions.
    assigned: Option<Vec<Input>>,
    /// The group has had an answer to its last assignment.
    started: bool,
    /// What kept us waiting, as last logged.
    waits: String,
    /// Shrinks while batches abort, so that a record that cannot be written stands alone in the end.
    records_max: usize,
    is_fresh: bool,
    /// Failed attempts to make the producer.
    init_attempts: u32,
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
        MapWorker {
            group,
            txn,
            log,
            clock,
            stage,
            limits,
            batch,
            owned,
            assigned: None,
            started: false,
            waits: String::new(),
            records_max,
            is_fresh: false,
            init_attempts: 0,
        }
    }

    /// Leaves the group. Nothing is in flight between two steps.
    pub fn close(&mut self) {
        self.group.close();
    }

    /// One round: the directory when it is due, a batch if there is one.
    pub fn step(&mut self) -> Result<Step, Error> {
        if let Some(step) = self.prepare()? {
            return Ok(step);
        }
        if self.assigned.is_some() {
            return self.take_up();
        }
        match self.gather()? {
            Polled::Rebalanced => self.rebalanced(),
            _ if self.batch.records == 0 => Ok(Step::Idle),
            _ => self.commit(),
        }
    }

    /// Whether the directory is read and every assigned input is being mapped.
    pub fn is_ready(&self) -> bool {
        self.started && self.assigned.is_none() && self.stage.people.is_ready()
    }

    /// The ledger of an owned input partition, as committed.
    pub fn ledger(&self, input: Input) -> Option<&Ledger> {
        self.owned.get(&input).map(|(_, ledger)| ledger)
    }

    /// The producer, and what the directory says. `Some`: not yet, try again.
    fn prepare(&mut self) -> Result<Option<Step>, Error> {
        if (!self.is_fresh || self.txn.wants_recycling())
            && let Some(step) = self.make_producer()?
        {
            return Ok(Some(step));
        }
        let now = self.clock.monotonic();
        if !self.stage.people.is_due(now) {
            return Ok(None);
        }
        let was_ready = self.stage.people.is_ready();
        let result = self.stage.people.follow(&mut self.log, now);
        let (known, skipped) = self.stage.people.counts();
        telemetry::people(known);
        match result {
            Ok(()) => Ok(None),
            // A broker that comes back may deny a topic it has.
            Err(error) if !was_ready && error.kind == ErrorKind::Missing => {
                self.wait_out(Error { kind: ErrorKind::Retriable, ..error }).map(Some)
            }
            Err(error) if !was_ready => self.wait_out(error).map(Some),
            Err(error) => {
                tracing::warn!(%error, known, skipped, "the directory could not be followed");
                // What is known stays in use.
                self.stage.people.postpone(now);
                Ok(None)
            }
        }
    }

    /// Makes the producer (anew). While a broker comes back this can fail in many ways, all of which pass.
    fn make_producer(&mut self) -> Result<Option<Step>, Error> {
        self.is_fresh = false;
        match self.txn.init() {
            Ok(()) => {
                self.is_fresh = true;
                self.init_attempts = 0;
                Ok(None)
            }
            Err(error) if error.kind == ErrorKind::Fenced || self.init_attempts >= INIT_ATTEMPTS_MAX => Err(error),
            Err(error) => {
                self.init_attempts += 1;
                tracing::warn!(%error, attempt = self.init_attempts, "could not make the producer, trying again");
                self.clock.wait(RETRY_EVERY);
                Ok(Some(Step::Waiting))
            }
        }
    }

    /// An error that passes costs a pause; any other ends the worker.
    fn wait_out(&mut self, error: Error) -> Result<Step, Error> {
        if !is_passing(error.kind) {
            return Err(error);
        }
        let why = error.to_string();
        if self.waits != why {
            tracing::warn!(why, "waiting, and asking again");
            self.waits = why;
        }
        self.clock.wait(RETRY_EVERY);
        Ok(Step::Waiting)
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

    fn rebalanced(&mut self) -> Result<Step, Error> {
        let changes = self.group.changes();
        for input in &changes.revoked {
            self.owned.remove(input);
        }
        self.started = false;
        self.assigned = changes.assigned;
        self.answer()
    }

    /// Goes on with an assignment that is not answered yet; membership is kept up with.
    fn take_up(&mut self) -> Result<Step, Error> {
        match self.group.poll(Duration::ZERO, &mut |_| {}) {
            Ok(Polled::Rebalanced) => return self.rebalanced(),
            Ok(Polled::Record | Polled::Nothing) => {}
            Err(error) if is_passing(error.kind) || error.kind == ErrorKind::Missing => {}
            Err(error) => return Err(error),
        }
        self.answer()
    }

    /// Answers an assignment with committed positions, which come with it: until then nothing of it is ours.
    fn answer(&mut self) -> Result<Step, Error> {
        let Some(assigned) = self.assigned.take() else { return Ok(Step::Rebalanced) };
        self.owned.clear();
        let answered = self.committed(&assigned).and_then(|owned| {
            self.owned = owned;
            self.group.start(&self.positions())
        });
        match answered {
            Ok(()) => {
                self.started = true;
                self.waits.clear();
                Ok(Step::Rebalanced)
            }
            Err(error) => {
                self.assigned = Some(assigned);
                self.wait_out(error)
            }
        }
    }

    /// Committed positions and ledgers; an input without one begins at its log's start.
    fn committed(&mut self, inputs: &[Input]) -> Result<BTreeMap<Input, (i64, Ledger)>, Error> {
        let committed = self.log.committed(inputs)?;
        assert_eq!(committed.len(), inputs.len(), "one answer per input");
        let mut owned = BTreeMap::new();
        for (input, committed) in inputs.iter().zip(committed) {
            let (start, end) = self.log.watermarks(input.0, input.1)?;
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
                return Ok(self.recover());
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
            Err(_) => Ok(self.recover()),
        }
    }

    /// Positions do not rewind by themselves. A seek that fails would skip records, so it costs the assignment.
    fn seek_back(&mut self) -> Result<Step, Error> {
        let mut positions = self.positions();
        positions.retain(|at| self.group.owns(at.topic, at.partition));
        let sought = if positions.is_empty() { Ok(()) } else { self.group.seek(&positions) };
        match sought {
            Err(error) if error.kind == ErrorKind::Fenced => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "could not seek back: taking the partitions up again");
                self.assign_again();
            }
            Ok(()) => {}
        }
        Ok(Step::Aborted)
    }

    /// A new producer under the same id ends whatever is open; then the committed offsets say what happened, as with an
    /// assignment.
    fn recover(&mut self) -> Step {
        self.is_fresh = false;
        self.assign_again();
        Step::Recovered
    }

    /// Takes what is ours up from its committed positions. Only what is still ours: a revocation may be waiting for the
    /// next poll.
    fn assign_again(&mut self) {
        let inputs = self.owned.keys().copied().filter(|(topic, partition)| self.group.owns(topic, *partition));
        self.assigned = Some(inputs.collect());
        self.owned.clear();
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
