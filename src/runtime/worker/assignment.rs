//! Taking partitions over, in the order of the protocol: committed offsets, then the changelog's end, the copy, the
//! changelog up to that end, the comparison of both, one transaction that claims the epoch, and only then records.
//! What the facts mean is decided in `recovery.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::restore::Restore;
use super::{PAUSE, Part, Running, Slot, Step, Stop, Worker, offsets};
use crate::domain::record::Journal;
use crate::runtime::batch::{DIRECTORY, INPUTS, input_name, input_of};
use crate::runtime::copy_sink::{CopySink, DirtyUser, Loaded, Mark};
use crate::runtime::partition::{Identity, Partition};
use crate::runtime::ports::{Clock, Error, ErrorKind, Group, InputOffset, Log, Polled, TopicName, Txn};
use crate::runtime::recovery::{Changelog, Facts, Plan, decide, memory_full};
use crate::runtime::telemetry::{self, Limit};
use crate::topology::Topic;
use crate::wire::state;

/// Offsets between two words about how far a restore has come.
const TELL_EVERY: i64 = 4_096;

/// How a partition's recovery ended for now.
enum Recovered {
    Restored(Box<Running>),
    Retry(String),
    Halt(crate::runtime::recovery::Halt),
}

/// What is handed to the copy once the epoch is claimed.
pub(super) struct Handover {
    loaded: Loaded,
    users: Vec<DirtyUser>,
}

impl<G, T, L, C, W> Worker<G, T, L, C, W>
where
    G: Group,
    T: Txn<Metadata = G::Metadata>,
    L: Log,
    C: Clock,
    W: CopySink,
{
    /// Whether something stands between the worker and its next batch.
    pub(super) fn restoring(&self) -> bool {
        self.answer_due || self.slots.values().any(|s| matches!(s, Slot::Pending { .. } | Slot::Restored(_)))
    }

    /// Membership changed: drops what is no longer ours, and everything that was gathered.
    pub(super) fn rebalanced(&mut self) -> Result<Step, Stop> {
        self.batch.clear();
        self.halving = Default::default();
        let changes = self.group.changes();
        tracing::info!(
            revoked = changes.revoked.len(),
            assigned = changes.assigned.as_ref().map(Vec::len),
            "rebalance"
        );
        for (_, number) in &changes.revoked {
            self.drop_partition(*number);
        }
        match changes.assigned {
            Some(inputs) => self.assigned(&inputs),
            None => {
                // With nothing left it is not ready again before the next assignment is taken up.
                self.started &= !self.slots.is_empty();
                // What is still ours was polled ahead of its position.
                for number in self.numbers_running() {
                    if let Some(Slot::Running(running)) = self.slots.get(&number) {
                        let targets = offsets(number, running.partition.positions());
                        self.seek(&targets);
                    }
                }
            }
        }
        telemetry::partitions(&self.config.worker, self.slots.len());
        Ok(Step::Rebalanced)
    }

    fn assigned(&mut self, inputs: &[(TopicName, i32)]) {
        let mut seen: BTreeMap<i32, [bool; INPUTS]> = BTreeMap::new();
        for (topic, number) in inputs {
            let input = input_of(topic).unwrap_or_else(|| panic!("{topic} is not an input of the engine"));
            seen.entry(*number).or_default()[input] = true;
        }
        // G5: without all its inputs a partition is not ours to fold.
        let (whole, partial): (Vec<_>, Vec<_>) = seen.into_iter().partition(|(_, inputs)| *inputs == [true; INPUTS]);
        for (number, _) in partial {
            tracing::error!(
                number,
                "not all inputs of a partition are assigned: check that all have the same partition count"
            );
        }
        let gone: Vec<i32> =
            self.slots.keys().copied().filter(|p| whole.binary_search_by_key(p, |(n, _)| *n).is_err()).collect();
        gone.into_iter().for_each(|p| self.drop_partition(p));
        let since = self.clock.monotonic();
        for (number, _) in whole {
            self.slots.entry(number).or_insert_with(|| Slot::Pending { since, why: String::new() });
        }
        self.started = false;
        self.answer_due = true;
    }

    fn drop_partition(&mut self, number: i32) {
        if self.slots.remove(&number).is_some() {
            self.copy.revoked(number);
            telemetry::partition_gone(number);
        }
    }

    /// T1: after an unknown outcome nothing in memory counts. What the copy has yet to write is kept: it is committed.
    pub(super) fn take_over_again(&mut self) {
        let since = self.clock.monotonic();
        for slot in self.slots.values_mut() {
            if !matches!(slot, Slot::Halted(_)) {
                *slot = Slot::Pending { since, why: String::new() };
            }
        }
        self.answer_due = true;
        self.batch.clear();
        self.halving = Default::default();
    }

    /// One round of restoring; membership is kept up with in between.
    pub(super) fn restore_step(&mut self) -> Result<Step, Stop> {
        match self.group.poll(Duration::ZERO, &mut |_| {}) {
            Ok(Polled::Rebalanced) => return self.rebalanced(),
            Ok(Polled::Nothing | Polled::Record) => {}
            Err(error) if error.kind == ErrorKind::Missing => {}
            Err(error) => self.poll_failed(error)?,
        }
        let pending: Vec<(i32, Duration)> = self
            .slots
            .iter()
            .filter_map(|(p, s)| if let Slot::Pending { since, .. } = s { Some((*p, *since)) } else { None })
            .collect();
        let mut waiting = false;
        for (number, since) in pending {
            let slot = match self.recover(number, since) {
                Recovered::Restored(running) => Slot::Restored(running),
                Recovered::Retry(why) => {
                    waiting = true;
                    self.note_retry(number, &why);
                    Slot::Pending { since, why }
                }
                Recovered::Halt(halt) => {
                    tracing::error!(partition = number, code = halt.code.as_str(), "{halt}");
                    self.copy.revoked(number);
                    Slot::Halted(halt)
                }
            };
            self.slots.insert(number, slot);
        }
        if waiting {
            self.clock.wait(PAUSE);
            return Ok(Step::Restoring);
        }
        if let Some(step) = self.claim_epochs()? {
            return Ok(step);
        }
        self.start()?;
        Ok(Step::Restoring)
    }

    fn note_retry(&self, number: i32, why: &str) {
        if let Some(Slot::Pending { why: before, .. }) = self.slots.get(&number)
            && before != why
        {
            tracing::info!(partition = number, why, "restoring a partition is retried");
        }
    }

    /// Step 6: one transaction, meta with the next epoch and the unchanged offsets. `Some`: not committed.
    fn claim_epochs(&mut self) -> Result<Option<Step>, Stop> {
        let restored = |(number, slot): (&i32, &Slot)| match slot {
            Slot::Restored(running) => Some((*number, running.partition.meta().epoch + 1)),
            Slot::Pending { .. } | Slot::Running(_) | Slot::Halted(_) => None,
        };
        let numbers: Vec<(i32, i64)> = self.slots.iter().filter_map(restored).collect();
        if numbers.is_empty() {
            return Ok(None);
        }
        let metadata = match self.group.metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind == ErrorKind::Fenced => return Err(Stop::Fenced(error)),
            Err(error) => {
                tracing::warn!(%error, "could not get the group's metadata");
                self.clock.wait(PAUSE);
                return Ok(Some(Step::Restoring));
            }
        };
        self.outputs.clear();
        let parts: Vec<Part> = numbers.into_iter().filter_map(|(p, epoch)| self.meta_only(p, epoch)).collect();
        let targets: Vec<InputOffset> = parts.iter().flat_map(|p| offsets(p.number, p.overlay.positions())).collect();
        match self.transact(&targets, &metadata) {
            Ok(()) => {
                parts.into_iter().for_each(|part| self.claimed(part));
                Ok(None)
            }
            Err(super::Failure::Aborted { error, producer_lost, .. }) => {
                tracing::warn!(%error, "the first transaction of an assignment was aborted");
                self.producer_ready &= !producer_lost;
                self.clock.wait(PAUSE);
                Ok(Some(Step::Restoring))
            }
            Err(failure) => self.failed(Default::default(), failure).map(Some),
        }
    }

    fn claimed(&mut self, part: Part) {
        let Part { number, overlay } = part;
        let Some(Slot::Restored(mut running)) = self.slots.remove(&number) else {
            unreachable!("only restored partitions claim an epoch");
        };
        let now = overlay.meta().now;
        running.partition.merge(overlay);
        let Handover { loaded, users } =
            running.handover.take().expect("a restored partition has its users to hand over");
        let standing = running.standing(now);
        let users = match loaded {
            Loaded::CaughtUp => users,
            Loaded::Rebuilt => running.partition.all_users(),
        };
        self.copy.assigned(&standing, loaded);
        self.copy.dirty(&standing, users);
        self.slots.insert(number, Slot::Running(running));
    }

    /// Step 7: consumption begins at the positions of the state.
    fn start(&mut self) -> Result<(), Stop> {
        let mut positions: Vec<InputOffset> = Vec::new();
        for (number, slot) in &mut self.slots {
            if let Slot::Running(running) = slot {
                running.hold_at_start();
                positions.extend(offsets(*number, running.partition.positions()));
            }
        }
        // A halted partition is left out for good, not only moved: its offsets may not exist.
        let moved = self.started && self.halted().next().is_none();
        let done = if moved { self.group.seek(&positions) } else { self.group.start(&positions) };
        match done {
            Ok(()) => {
                self.answer_due = false;
                self.started = true;
                self.resume_all();
                self.pause_held();
                Ok(())
            }
            Err(error) if error.kind == ErrorKind::Fenced => Err(Stop::Fenced(error)),
            Err(error) if error.kind == ErrorKind::Fatal => Err(Stop::Failed(error)),
            Err(error) => {
                tracing::warn!(%error, "could not start consumption, trying again");
                self.clock.wait(PAUSE);
                Ok(())
            }
        }
    }

    fn resume_all(&mut self) {
        let numbers = self.numbers_running();
        let inputs: Vec<(TopicName, i32)> =
            numbers.iter().flat_map(|p| (0..INPUTS).map(|n| (input_name(n), *p))).collect();
        if let Err(error) = self.group.resume(&inputs) {
            tracing::warn!(%error, "could not resume the inputs");
        }
    }

    fn recover(&mut self, number: i32, since: Duration) -> Recovered {
        match self.try_recover(number, since) {
            Ok(recovered) => recovered,
            Err(error) => Recovered::Retry(error.to_string()),
        }
    }

    /// Steps 1 to 5.
    fn try_recover(&mut self, number: i32, since: Duration) -> Result<Recovered, Error> {
        let mut facts = self.facts(number, since)?;
        let (mut restore, mut loaded) = self.restore(&facts, decide(&facts))?;
        let trusted = matches!(restore.changelog(), Changelog::Read { meta: Some(m), users } if m.users == users);
        if loaded == Loaded::CaughtUp && !trusted {
            tracing::warn!(partition = number, "the copy does not fit the changelog: reading the changelog from 0");
            facts.copy = None;
            (restore, loaded) = self.restore(&facts, decide(&facts))?;
        }
        if let Some(why) = restore.unavailable() {
            return Ok(Recovered::Retry(why.to_owned()));
        }
        facts.changelog = restore.changelog();
        match decide(&facts) {
            Plan::Retry { why } => Ok(Recovered::Retry(why)),
            Plan::Halt(halt) => Ok(Recovered::Halt(halt)),
            Plan::Fresh { positions } => {
                let identity = self.identity(number, &facts.cluster_id);
                self.restored(&facts, Partition::fresh(identity, positions), restore, loaded)
            }
            Plan::Resume { .. } => {
                let Changelog::Read { meta: Some(meta), .. } = facts.changelog.clone() else {
                    unreachable!("only a meta record is resumed from");
                };
                self.resumed(&facts, *meta, restore, loaded)
            }
            plan @ (Plan::CatchUp { .. } | Plan::Rebuild { .. }) => {
                unreachable!("{plan:?} after the changelog was read")
            }
        }
    }

    fn facts(&mut self, number: i32, since: Duration) -> Result<Facts, Error> {
        let cluster_id = match &self.cluster_id {
            Some(id) => id.clone(),
            None => self.cluster_id.insert(Arc::from(self.log.cluster_id()?)).clone(),
        };
        let names: [(TopicName, i32); INPUTS] = std::array::from_fn(|n| (input_name(n), number));
        // (1) before (2): the end read afterwards then lies above everything these offsets were committed with.
        let committed = self.log.committed(&names)?;
        let user_state = self.log.watermarks(Topic::UserState.name(), number)?;
        let mut inputs = [(0, 0); INPUTS];
        for (n, range) in inputs.iter_mut().enumerate() {
            *range = self.log.watermarks(input_name(n), number)?;
        }
        assert!(committed.len() == INPUTS, "the log answers for every input asked");
        Ok(Facts {
            partition: number,
            committed: std::array::from_fn(|n| committed[n].as_ref().map(|o| o.offset)),
            inputs,
            user_state,
            changelog: Changelog::Unread,
            copy: self.copy.meta(number).unwrap_or(None),
            partitions: self.config.partitions,
            cluster_id: cluster_id.to_string(),
            now: self.clock.now(),
            delete_retention: self.config.delete_retention,
            waited: self.clock.monotonic() - since,
            patience: self.config.transaction_timeout + Duration::from_secs(15),
        })
    }

    /// Steps 3 and 4.
    fn restore(&mut self, facts: &Facts, plan: Plan) -> Result<(Restore, Loaded), Error> {
        let began = self.clock.monotonic();
        let mut restore = Restore::default();
        let (start, end) = facts.user_state;
        let (from, loaded) = match plan {
            Plan::CatchUp { from } => match self.copy.users(facts.partition, &mut |user| restore.copied(user)) {
                Ok(()) if self.copy_held(facts) => (from, Loaded::CaughtUp),
                Ok(()) => {
                    tracing::warn!(partition = facts.partition, "the copy changed hands while it was read");
                    restore = Restore::default();
                    (start, Loaded::Rebuilt)
                }
                Err(error) => {
                    tracing::warn!(%error, partition = facts.partition, "could not read the copy");
                    restore = Restore::default();
                    (start, Loaded::Rebuilt)
                }
            },
            Plan::Rebuild { because } => {
                tracing::info!(partition = facts.partition, ?because, "reading the changelog from its start");
                (start, Loaded::Rebuilt)
            }
            plan => unreachable!("{plan:?} before the changelog was read"),
        };
        let Self { log, decoder, .. } = self;
        log.read(Topic::UserState.name(), facts.partition, from, end, &mut |record| {
            restore.logged(record.key.unwrap_or_default(), record.value, decoder);
            if record.offset % TELL_EVERY == 0 {
                telemetry::restore_remaining(facts.partition, end - record.offset);
            }
        })?;
        telemetry::restored(&self.config.worker, facts.partition, self.clock.monotonic() - began);
        Ok((restore, loaded))
    }

    /// Whether the users just read are at least as new as the offset the changelog is read from: a store that failed
    /// over in between gave older ones.
    fn copy_held(&mut self, facts: &Facts) -> bool {
        let Some(before) = &facts.copy else { return false };
        self.copy.meta(facts.partition).ok().flatten().is_some_and(|now| {
            let same = (&now.cluster_id, now.generation) == (&before.cluster_id, before.generation);
            same && now.applied >= before.applied && !now.rebuilding
        })
    }

    fn resumed(&mut self, facts: &Facts, meta: Journal, restore: Restore, loaded: Loaded) -> Result<Recovered, Error> {
        let policies = match meta.policy_set.as_str() {
            "" => None,
            hash => match self.policies.set(hash) {
                Some(set) => Some(set),
                None => {
                    return Ok(Recovered::Retry(format!("the policy set {hash} cannot be loaded from policy-sets")));
                }
            },
        };
        let identity = self.identity(facts.partition, &facts.cluster_id);
        self.restored(facts, Partition::new(identity, meta, policies), restore, loaded)
    }

    fn restored(
        &mut self,
        facts: &Facts,
        mut partition: Partition,
        restore: Restore,
        loaded: Loaded,
    ) -> Result<Recovered, Error> {
        let (users, tail) = restore.into_users();
        for (key, bytes) in users {
            if let Err(error) = partition.insert(key, bytes) {
                let changelog = match error {
                    state::Error::Format { found } => Changelog::Format { found: found.into() },
                    state::Error::Damaged { .. } => Changelog::Damaged { what: error.to_string() },
                };
                let Plan::Halt(halt) = decide(&Facts { changelog, ..facts.clone() }) else {
                    unreachable!("state that cannot be read halts its partition");
                };
                return Ok(Recovered::Halt(halt));
            }
        }
        let (bytes, loaded_partitions) = self.bytes_with(&partition);
        if bytes > self.config.state_bytes_max {
            telemetry::limit(Limit::StateMemory);
            let max = self.config.state_bytes_max;
            return Ok(Recovered::Halt(memory_full(facts.partition, bytes, max, loaded_partitions, self.slots.len())));
        }
        let first_start = !partition.meta().ledger.contains_key("in");
        let end = facts.inputs[DIRECTORY].1;
        let behind = partition.positions()[DIRECTORY] < end;
        let now = self.clock.monotonic();
        Ok(Recovered::Restored(Box::new(Running {
            mark: Mark { commit_no: partition.meta().commit_no + 1, offset: facts.user_state.1 },
            directory_until: (first_start && behind).then_some(end),
            partition,
            handover: Some(Handover { loaded, users: tail }),
            marked_at: now,
            moved: false,
            last_record_at: now,
            drained: [None; INPUTS],
            follows_clock: false,
            drain_check_at: Duration::ZERO,
            held: [None; INPUTS],
            holding: Default::default(),
            ends: [0; INPUTS],
            status_at: Duration::ZERO,
        })))
    }

    fn bytes_with(&self, partition: &Partition) -> (usize, usize) {
        let others = self.slots.values().filter_map(|s| match s {
            Slot::Running(running) | Slot::Restored(running) => Some(running.partition.bytes()),
            Slot::Pending { .. } | Slot::Halted(_) => None,
        });
        others.chain([partition.bytes()]).fold((0, 0), |(bytes, n), b| (bytes + b, n + 1))
    }

    fn identity(&self, number: i32, cluster_id: &str) -> Identity {
        Identity {
            number,
            partitions: self.config.partitions,
            cluster_id: Arc::from(cluster_id),
            transactional_id: Arc::from(self.config.transactional_id.as_str()),
            lateness_days: self.config.lateness_days,
            level_valid_ms: self.config.level_valid_ms,
        }
    }
}
