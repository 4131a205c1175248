//! What the owner of a worker sees between its steps, told as metrics: its state, how long a new assignment took, and
//! every few seconds what its partitions hold. Reads the worker, never changes it. Next: `telemetry.rs`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::partition::Partition;
use super::telemetry::{self, WorkerState};
use super::worker::Step;
use crate::domain::Timestamp;

/// Between two looks at the partitions.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// An observer of one worker.
pub struct Observer {
    worker: String,
    state: Option<WorkerState>,
    /// Since when an assignment has not been at work as a whole.
    unsettled_since: Option<Duration>,
    look_at: Duration,
    /// The policy set last told, by partition.
    sets: BTreeMap<i32, String>,
}

/// What a worker says of itself after a step.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub step: Step,
    pub ready: bool,
    pub halted: usize,
}

impl Observer {
    /// An observer that has seen nothing.
    pub fn new(worker: &str) -> Observer {
        let worker = worker.to_owned();
        Observer { worker, state: None, unsettled_since: None, look_at: Duration::ZERO, sets: BTreeMap::new() }
    }

    /// After each step. Whether it is time for a look at the partitions.
    pub fn step(&mut self, seen: Seen, monotonic: Duration) -> bool {
        if matches!(seen.step, Step::Rebalanced | Step::Unknown) {
            self.unsettled_since.get_or_insert(monotonic);
        }
        if seen.ready
            && let Some(since) = self.unsettled_since.take_if(|_| seen.step != Step::Rebalanced)
        {
            telemetry::rebalanced(&self.worker, monotonic - since);
        }
        let state = match seen.step {
            Step::Waiting => WorkerState::Waiting,
            _ if seen.ready && seen.halted > 0 => WorkerState::Halted,
            _ if seen.ready => WorkerState::Running,
            _ if self.unsettled_since.is_some() => WorkerState::Restoring,
            _ => WorkerState::Waiting,
        };
        if self.state.replace(state) != Some(state) {
            telemetry::worker_state(&self.worker, state);
        }
        let due = monotonic >= self.look_at;
        if due {
            self.look_at = monotonic + LOOK_EVERY;
        }
        due
    }

    /// Tells what the partitions at work hold.
    pub fn look<'a>(&mut self, partitions: impl Iterator<Item = &'a Partition>, now: Timestamp) {
        let (mut users, mut bytes) = (0, 0);
        let mut gone = std::mem::take(&mut self.sets);
        for partition in partitions {
            let (number, meta) = (partition.number(), partition.meta());
            users += meta.users;
            bytes += partition.bytes();
            telemetry::stream_time(number, meta.stream_time, now);
            let before = gone.remove(&number).unwrap_or_default();
            if before != meta.policy_set {
                telemetry::policy_set(number, &before, &meta.policy_set);
            }
            self.sets.insert(number, meta.policy_set.clone());
        }
        gone.iter().for_each(|(number, set)| telemetry::policy_set(*number, set, ""));
        telemetry::state(&self.worker, users, bytes);
    }
}
