//! What a worker does between two batches, none of it on the way of a record: inputs that wait, whether a partition
//! is drained, marks for the copy, a copy that lost data, the status records.

use std::time::Duration;

use super::{Running, Slot, Stop, Worker, offsets};
use crate::runtime::batch::{DIRECTORY, INPUTS, SIGNALS, input_name};
use crate::runtime::copy_sink::{CopySink, Mark};
use crate::runtime::partition::Hold;
use crate::runtime::ports::{Clock, Error, Group, InputOffset, Log, TopicName, Txn};
use crate::runtime::status;
use crate::topology::Topic;

/// How long an input waits before it is tried again.
const HOLD_RETRY: Duration = Duration::from_secs(1);
/// How long a look for undrained records is good for when there were some.
const DRAIN_RETRY: Duration = Duration::from_secs(1);

impl<G, T, L, C, W> Worker<G, T, L, C, W>
where
    G: Group,
    T: Txn<Metadata = G::Metadata>,
    L: Log,
    C: Clock,
    W: CopySink,
{
    pub(super) fn upkeep(&mut self) -> Result<(), Stop> {
        let now = self.clock.monotonic();
        for number in self.numbers_running() {
            self.read_directory_first(number, now);
            self.release(number, now);
            self.follow_clock(number, now);
            self.refresh_mark(number, now);
        }
        self.report_status(now);
        for number in self.copy.lost() {
            if let Some(Slot::Running(running)) = self.slots.get(&number) {
                let standing = running.standing(running.partition.meta().now);
                self.copy.dirty(&standing, running.partition.all_users());
            }
        }
        Ok(())
    }

    pub(super) fn numbers_running(&self) -> Vec<i32> {
        self.slots.iter().filter(|(_, s)| matches!(s, Slot::Running(_))).map(|(p, _)| *p).collect()
    }

    /// Ends the wait of the signals for the directory, at a first start.
    fn read_directory_first(&mut self, number: i32, now: Duration) {
        let Self { log, slots, .. } = self;
        let Some(Slot::Running(running)) = slots.get_mut(&number) else { return };
        let Some(until) = running.directory_until else { return };
        let position = running.partition.positions()[DIRECTORY];
        if position >= until {
            running.directory_until = None;
        } else if now >= running.drain_check_at {
            // The last records below the end may be markers, or compacted away.
            running.drain_check_at = now + DRAIN_RETRY;
            if let Ok(true) = nothing_between(log, DIRECTORY, number, position, until) {
                running.directory_until = None;
            }
        }
    }

    /// Lets inputs go on that need wait no longer: from their position, so that nothing that was dropped is missed.
    fn release(&mut self, number: i32, now: Duration) {
        let Some(Slot::Running(running)) = self.slots.get_mut(&number) else { return };
        let positions = running.partition.positions();
        let mut free: Vec<InputOffset> = Vec::new();
        for (n, offset) in offsets(number, positions).into_iter().enumerate() {
            if running.held[n].is_some_and(|until| now >= until) && !running.must_wait(n) {
                running.held[n] = None;
                running.holding[n] = None;
                free.push(offset);
            }
        }
        if free.is_empty() {
            return;
        }
        let names: Vec<(TopicName, i32)> = free.iter().map(|o| (o.topic, o.partition)).collect();
        self.seek(&free);
        if let Err(error) = self.group.resume(&names) {
            tracing::warn!(%error, "could not resume an input: taking the partitions over again");
            self.take_over_again();
        }
    }

    /// Tells the consumer about inputs that wait; whatever arrives all the same is dropped.
    pub(super) fn pause_held(&mut self) {
        let mut names: Vec<(TopicName, i32)> = Vec::new();
        for (number, slot) in &self.slots {
            if let Slot::Running(running) = slot {
                names.extend((0..INPUTS).filter(|n| running.held[*n].is_some()).map(|n| (input_name(n), *number)));
            }
        }
        if let (false, Err(error)) = (names.is_empty(), self.group.pause(&names)) {
            tracing::warn!(%error, "could not pause an input");
        }
    }

    /// Stream time follows the clock only while nothing is left to read, which is asked only when a timer would fire.
    fn follow_clock(&mut self, number: i32, now: Duration) {
        let wall = self.clock.now();
        let idle_min = Duration::from_millis(self.config.idle_follow_ms.max(0) as u64);
        let Self { log, slots, .. } = self;
        let Some(Slot::Running(running)) = slots.get_mut(&number) else { return };
        let due = running.partition.next_timer().filter(|due| *due <= wall);
        if due.is_none_or(|due| due <= running.partition.meta().stream_time) {
            return;
        }
        running.follows_clock = false;
        if now - running.last_record_at < idle_min || now < running.drain_check_at {
            return;
        }
        let positions = running.partition.positions();
        match drained(log, number, positions, running.drained) {
            Ok(Some(ends)) => {
                running.drained = ends.map(Some);
                running.follows_clock = true;
            }
            Ok(None) | Err(_) => running.drain_check_at = now + DRAIN_RETRY,
        }
    }

    /// Between two transactions everything committed lies below the log end, everything to come at or above it. The
    /// mark is of the next commit, so that a meta record lies above it.
    fn refresh_mark(&mut self, number: i32, now: Duration) {
        let Self { log, slots, copy, config, .. } = self;
        let Some(Slot::Running(running)) = slots.get_mut(&number) else { return };
        if !running.moved || now - running.marked_at < config.mark_every {
            return;
        }
        running.marked_at = now;
        if let Ok((_, end)) = log.watermarks(Topic::UserState.name(), number) {
            running.mark = Mark { commit_no: running.partition.meta().commit_no + 1, offset: end };
            running.moved = false;
            copy.dirty(&running.standing(running.partition.meta().now), Vec::new());
        }
    }

    /// One partition per step at most, each every few seconds.
    fn report_status(&mut self, now: Duration) {
        let every = self.config.status_every;
        let Self { log, slots, status, config, clock, .. } = self;
        for (number, slot) in slots.iter_mut() {
            let Slot::Running(running) = slot else { continue };
            if now < running.status_at {
                continue;
            }
            running.status_at = now + every;
            for n in 0..INPUTS {
                if let Ok((_, end)) = log.watermarks(input_name(n), *number) {
                    running.ends[n] = end;
                }
            }
            let positions = running.partition.positions();
            // Behind the last record may lie markers, which nobody reads.
            let lag = std::array::from_fn(|n| match running.drained[n] == Some(running.ends[n]) {
                true => 0,
                false => (running.ends[n] - positions[n]).max(0),
            });
            let waits = running.holding.iter().flatten().next();
            status::running(status, &running.partition, &config.worker, clock.now(), lag, waits);
            return;
        }
        if now >= self.status_at {
            self.status_at = now + every;
            for (number, slot) in slots.iter() {
                status::not_running(
                    status,
                    *number,
                    &config.worker,
                    clock.now(),
                    match slot {
                        Slot::Running(_) => continue,
                        Slot::Pending { .. } | Slot::Restored(_) => None,
                        Slot::Halted(halt) => Some(halt.code.as_str()),
                    },
                );
            }
        }
    }
}

/// The log ends of a partition's inputs if nothing is left to read below them.
fn drained(
    log: &mut impl Log,
    number: i32,
    positions: [i64; INPUTS],
    known: [Option<i64>; INPUTS],
) -> Result<Option<[i64; INPUTS]>, Error> {
    let mut ends = [0; INPUTS];
    for (n, end) in ends.iter_mut().enumerate() {
        *end = log.watermarks(input_name(n), number)?.1;
        let read = *end <= positions[n] || known[n] == Some(*end);
        if !read && !nothing_between(log, n, number, positions[n], *end)? {
            return Ok(None);
        }
    }
    Ok(Some(ends))
}

fn nothing_between(log: &mut impl Log, input: usize, number: i32, from: i64, until: i64) -> Result<bool, Error> {
    let mut records = 0;
    log.read(input_name(input), number, from, until, &mut |_| records += 1)?;
    Ok(records == 0)
}

impl Running {
    /// What an input must wait for, besides time.
    fn must_wait(&self, input: usize) -> bool {
        let no_policies = self.partition.policies().is_none();
        match input {
            DIRECTORY => no_policies,
            SIGNALS => no_policies || self.directory_until.is_some(),
            _ => false,
        }
    }

    /// Holds what must wait from the start.
    pub(super) fn hold_at_start(&mut self) {
        self.held = [None; INPUTS];
        self.holding = Default::default();
        let waiting: [bool; INPUTS] = std::array::from_fn(|n| self.must_wait(n));
        for n in (0..INPUTS).filter(|n| waiting[*n]) {
            self.held[n] = Some(Duration::ZERO);
            self.holding[n] = self.partition.policies().is_none().then_some(Hold::NoPolicies);
        }
    }

    /// Takes over what a batch could not read.
    pub(super) fn hold(&mut self, holds: &[Option<Hold>; INPUTS], now: Duration) {
        for (n, hold) in holds.iter().enumerate() {
            if let Some(hold) = hold {
                let timed = !matches!(hold, Hold::NoPolicies);
                self.held[n] = Some(if timed { now + HOLD_RETRY } else { Duration::ZERO });
                self.holding[n] = Some(hold.clone());
            }
        }
    }
}
