//! What happens in a process, as named functions: the only place where a metric meets its labels. Cheap, but not free
//! (a label costs an allocation): called per batch, per call or every few seconds, never per record.
//! A gauge of a partition that is no longer ours becomes NaN, which aggregations leave out, so that no alarm rests on
//! what another process has long taken over. Next: `http.rs`.

use std::time::Duration;

use super::*;
use crate::domain::Timestamp;
use crate::domain::time::SECOND_MS;
use crate::runtime::ports::TopicName;

/// Outcomes of a transaction.
pub mod outcome {
    pub const COMMITTED: &str = "committed";
    pub const ABORTED: &str = "aborted";
    pub const UNKNOWN: &str = "unknown";
    pub const FENCED: &str = "fenced";
}

/// A named maximum, as the label of `casestream_limit_reached_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// A user's day held as many signals as it may.
    StateSignals,
    StateInsights,
    StateSeen,
    StateAlerts,
    StateBytes,
    /// Sources told apart per partition.
    Sources,
    /// Timers in one batch.
    Timers,
    /// Timers of one user in one go.
    TimersPerUser,
    /// Records or bytes of an engine batch.
    Batch,
    /// Records or bytes of a map batch.
    MapBatch,
    /// Changelog marks kept for the copy.
    Marks,
    /// Users or bytes in one chunk for Redis.
    Chunk,
    /// Compiled policy sets kept.
    PolicySets,
    /// Reasons told apart in a map ledger.
    LedgerReasons,
    /// Unknown schema ids remembered.
    UnknownSchemas,
    /// Memory for resident state: the partition is not taken.
    StateMemory,
}

impl Limit {
    /// Every limit.
    pub const ALL: [Limit; 16] = [
        Limit::StateSignals,
        Limit::StateInsights,
        Limit::StateSeen,
        Limit::StateAlerts,
        Limit::StateBytes,
        Limit::Sources,
        Limit::Timers,
        Limit::TimersPerUser,
        Limit::Batch,
        Limit::MapBatch,
        Limit::Marks,
        Limit::Chunk,
        Limit::PolicySets,
        Limit::LedgerReasons,
        Limit::UnknownSchemas,
        Limit::StateMemory,
    ];

    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Limit::StateSignals => "state_signals",
            Limit::StateInsights => "state_insights",
            Limit::StateSeen => "state_seen",
            Limit::StateAlerts => "state_alerts",
            Limit::StateBytes => "state_bytes",
            Limit::Sources => "sources",
            Limit::Timers => "timers",
            Limit::TimersPerUser => "timers_per_user",
            Limit::Batch => "batch",
            Limit::MapBatch => "map_batch",
            Limit::Marks => "marks",
            Limit::Chunk => "chunk",
            Limit::PolicySets => "policy_sets",
            Limit::LedgerReasons => "ledger_reasons",
            Limit::UnknownSchemas => "unknown_schemas",
            Limit::StateMemory => "state_memory",
        }
    }
}

/// The states of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerState {
    /// Nothing is assigned yet, or something outside is not ready.
    Waiting,
    Restoring,
    Running,
    /// At work, but for at least one partition that stands still.
    Halted,
}

impl WorkerState {
    const ALL: [(WorkerState, &str); 4] = [
        (WorkerState::Waiting, "waiting"),
        (WorkerState::Restoring, "restoring"),
        (WorkerState::Running, "running"),
        (WorkerState::Halted, "halted"),
    ];
}

/// The process has a recorder: what alarms watch exists from now on, at zero.
pub(super) fn started() {
    metrics::gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    let plain =
        [RECORDS_LATE_TOTAL, CLOCK_SKEW_CLAMPED_TOTAL, TIMERS_TOTAL, REDIS_REGRESSIONS_TOTAL, REDIS_STALE_WRITES_TOTAL];
    plain.into_iter().for_each(|name| metrics::counter!(name).absolute(0));
    for outcome in [outcome::COMMITTED, outcome::ABORTED, outcome::UNKNOWN, outcome::FENCED] {
        metrics::counter!(TXN_TOTAL, "outcome" => outcome).absolute(0);
    }
    for kind in [FENCED_PRODUCER, FENCED_MEMBER] {
        metrics::counter!(FENCED_TOTAL, "kind" => kind).absolute(0);
    }
    for limit in Limit::ALL {
        metrics::counter!(LIMIT_REACHED_TOTAL, "limit" => limit.as_str()).absolute(0);
    }
}

const FENCED_PRODUCER: &str = "producer";
const FENCED_MEMBER: &str = "member";
const RETRIES_PRODUCER: &str = "producer";
const RETRIES_MEMBER: &str = "member";

/// A named maximum was reached.
pub fn limit(limit: Limit) {
    limits(limit, 1);
}

/// A named maximum was reached several times.
pub fn limits(limit: Limit, times: u64) {
    metrics::counter!(LIMIT_REACHED_TOTAL, "limit" => limit.as_str()).increment(times);
}

/// How far an input is behind: records, and the age of the oldest that waits.
pub fn lag(topic: TopicName, partition: i32, records: i64, age: Duration) {
    let number = partition.to_string();
    metrics::gauge!(CONSUMER_LAG_RECORDS, "topic" => topic, "partition" => number.clone()).set(records as f64);
    metrics::gauge!(CONSUMER_LAG_SECONDS, "topic" => topic, "partition" => number).set(age.as_secs_f64());
}

/// How long the next record of an input to be read will still be there.
pub fn time_to_retention(topic: TopicName, partition: i32, left_ms: i64) {
    let seconds = left_ms as f64 / SECOND_MS as f64;
    metrics::gauge!(TIME_TO_RETENTION_SECONDS, "topic" => topic, "partition" => partition.to_string()).set(seconds);
}

/// Whether all inputs of a partition number are drained.
pub fn idle(group: &str, partition: i32, is_idle: bool) {
    let (group, number) = (group.to_owned(), partition.to_string());
    metrics::gauge!(PARTITION_IDLE, "group" => group, "partition" => number).set(f64::from(u8::from(is_idle)));
}

/// An input is no longer ours.
pub fn input_gone(group: &str, topic: TopicName, partition: i32) {
    let number = partition.to_string();
    for name in [CONSUMER_LAG_RECORDS, CONSUMER_LAG_SECONDS, TIME_TO_RETENTION_SECONDS] {
        metrics::gauge!(name, "topic" => topic, "partition" => number.clone()).set(f64::NAN);
    }
    metrics::gauge!(PARTITION_IDLE, "group" => group.to_owned(), "partition" => number).set(f64::NAN);
}

/// Records of an input whose effects are committed.
pub fn consumed(topic: TopicName, records: u64) {
    metrics::counter!(RECORDS_CONSUMED_TOTAL, "topic" => topic).increment(records);
}

/// Dead letters of an input, committed.
pub fn dead_letters(topic: TopicName, reason: &str, records: u64) {
    metrics::counter!(RECORDS_INVALID_TOTAL, "topic" => topic, "reason" => reason.to_owned()).increment(records);
    metrics::counter!(DLQ_RECORDS_TOTAL, "reason" => reason.to_owned()).increment(records);
}

/// Signals of a committed batch that came too late (each also a dead letter), and those whose time was clamped.
pub fn late_and_clamped(late: u64, clamped: u64) {
    metrics::counter!(RECORDS_LATE_TOTAL).increment(late);
    metrics::counter!(CLOCK_SKEW_CLAMPED_TOTAL).increment(clamped);
}

/// Records of an input that were written again to their user's partition.
pub fn mispartitioned(topic: TopicName, records: u64) {
    metrics::counter!(MISPARTITIONED_TOTAL, "topic" => topic).increment(records);
}

/// Timers of a committed batch.
pub fn timers(done: u64) {
    metrics::counter!(TIMERS_TOTAL).increment(done);
}

/// From the event, and from its ingest, to the commit.
pub fn latency(event: Timestamp, ingest: Timestamp, committed: Timestamp) {
    let seconds = |since: Timestamp| (committed.0.saturating_sub(since.0)).max(0) as f64 / SECOND_MS as f64;
    metrics::histogram!(E2E_LATENCY_SECONDS, "from" => "event").record(seconds(event));
    metrics::histogram!(E2E_LATENCY_SECONDS, "from" => "ingest").record(seconds(ingest));
}

/// Stream time of a partition. Before its first signal it has none.
pub fn stream_time(partition: i32, at: Timestamp, now: Timestamp) {
    let (watermark, behind) = match at.0 {
        0 => (f64::NAN, f64::NAN),
        ms => (ms as f64 / SECOND_MS as f64, (now.0 - ms) as f64 / SECOND_MS as f64),
    };
    metrics::gauge!(EVENT_TIME_WATERMARK_SECONDS, "partition" => partition.to_string()).set(watermark);
    metrics::gauge!(WATERMARK_LAG_SECONDS, "partition" => partition.to_string()).set(behind);
}

/// A partition runs on a policy set, or on none.
pub fn policy_set(partition: i32, before: &str, now: &str) {
    for (set, holds) in [(before, 0.0), (now, 1.0)] {
        if !set.is_empty() {
            let number = partition.to_string();
            metrics::gauge!(POLICY_VERSION_INFO, "partition" => number, "policy_set" => set.to_owned()).set(holds);
        }
    }
}

/// A partition is no longer this worker's.
pub fn partition_gone(partition: i32) {
    let names = [EVENT_TIME_WATERMARK_SECONDS, WATERMARK_LAG_SECONDS, RESTORE_REMAINING_RECORDS];
    for name in names {
        metrics::gauge!(name, "partition" => partition.to_string()).set(f64::NAN);
    }
}

/// A batch was folded.
pub fn folded(worker: &str, took: Duration) {
    metrics::histogram!(PROCESS_SECONDS, "worker" => worker.to_owned()).record(took.as_secs_f64());
}

/// A batch was committed.
pub fn batch(worker: &str, records: usize) {
    metrics::histogram!(BATCH_RECORDS, "worker" => worker.to_owned()).record(records as f64);
}

/// How many users of a partition a batch changed.
pub fn dirty_users(worker: &str, users: usize) {
    metrics::histogram!(BATCH_DIRTY_USERS, "worker" => worker.to_owned()).record(users as f64);
}

/// How a transaction ended.
pub fn transaction(outcome: &'static str) {
    metrics::counter!(TXN_TOTAL, "outcome" => outcome).increment(1);
}

/// Deliveries were awaited and offsets added.
pub fn offsets_sent(worker: &str, took: Duration) {
    metrics::histogram!(TXN_SEND_OFFSETS_SECONDS, "worker" => worker.to_owned()).record(took.as_secs_f64());
}

/// A transaction was committed, with what it wrote to the changelog.
pub fn transaction_committed(worker: &str, took: Duration, changelog: Changelog) {
    let worker = worker.to_owned();
    metrics::histogram!(TXN_COMMIT_SECONDS, "worker" => worker.clone()).record(took.as_secs_f64());
    if changelog.records > 0 {
        metrics::counter!(CHANGELOG_BYTES_TOTAL, "worker" => worker.clone()).increment(changelog.bytes);
        metrics::counter!(CHANGELOG_RECORDS_TOTAL, "worker" => worker).increment(changelog.records);
    }
}

/// What one transaction wrote to the changelog.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changelog {
    pub records: u64,
    pub bytes: u64,
}

/// A transactional producer was made, and why.
pub fn producer_made(cause: &'static str) {
    metrics::counter!(PRODUCER_EPOCH_RECYCLES_TOTAL, "cause" => cause).increment(1);
}

/// Requests of a producer were sent again.
pub fn producer_retries(requests: u64) {
    metrics::counter!(REQUEST_RETRIES_TOTAL, "client" => RETRIES_PRODUCER).increment(requests);
}

/// Requests of a group member were sent again.
pub fn member_retries(requests: u64) {
    metrics::counter!(REQUEST_RETRIES_TOTAL, "client" => RETRIES_MEMBER).increment(requests);
}

/// Another process has a producer's identity.
pub fn producer_fenced() {
    metrics::counter!(FENCED_TOTAL, "kind" => FENCED_PRODUCER).increment(1);
}

/// Another process has a group member's identity.
pub fn member_fenced() {
    metrics::counter!(FENCED_TOTAL, "kind" => FENCED_MEMBER).increment(1);
}

/// Partitions were assigned.
pub fn assigned() {
    metrics::counter!(REBALANCES_TOTAL, "kind" => "assigned").increment(1);
}

/// Partitions were taken away, in order or because the group had given the member up.
pub fn revoked(lost: bool) {
    metrics::counter!(REBALANCES_TOTAL, "kind" => if lost { "lost" } else { "revoked" }).increment(1);
}

/// All of a new assignment is at work.
pub fn rebalanced(worker: &str, took: Duration) {
    metrics::histogram!(REBALANCE_SECONDS, "worker" => worker.to_owned()).record(took.as_secs_f64());
}

/// Partitions of a worker.
pub fn partitions(worker: &str, owned: usize) {
    metrics::gauge!(ASSIGNED_PARTITIONS, "worker" => worker.to_owned()).set(owned as f64);
}

/// A worker's state.
pub fn worker_state(worker: &str, state: WorkerState) {
    for (other, name) in WorkerState::ALL {
        let is = f64::from(u8::from(other == state));
        metrics::gauge!(WORKER_STATE, "worker" => worker.to_owned(), "state" => name).set(is);
    }
}

/// What a worker holds.
pub fn state(worker: &str, users: i64, resident_bytes: usize) {
    metrics::gauge!(STATE_USERS, "worker" => worker.to_owned()).set(users as f64);
    metrics::gauge!(STATE_RESIDENT_BYTES, "worker" => worker.to_owned()).set(resident_bytes as f64);
}

/// Changelog offsets a restore has yet to read.
pub fn restore_remaining(partition: i32, offsets: i64) {
    metrics::gauge!(RESTORE_REMAINING_RECORDS, "partition" => partition.to_string()).set(offsets.max(0) as f64);
}

/// A partition's state was read.
pub fn restored(worker: &str, partition: i32, took: Duration) {
    restore_remaining(partition, 0);
    metrics::histogram!(RESTORE_SECONDS, "worker" => worker.to_owned()).record(took.as_secs_f64());
}

/// A chunk was written to Redis, or could not be.
pub fn copy_applied(took: Duration) {
    metrics::histogram!(REDIS_APPLY_SECONDS).record(took.as_secs_f64());
}

/// How far the copy of a partition is behind.
pub fn copy_lag(partition: i32, commits: i64, behind: Duration) {
    metrics::gauge!(REDIS_LAG_OFFSETS, "partition" => partition.to_string()).set(commits as f64);
    metrics::gauge!(REDIS_LAG_SECONDS, "partition" => partition.to_string()).set(behind.as_secs_f64());
}

/// Another process writes the copy of this partition now.
pub fn copy_gone(partition: i32) {
    for name in [REDIS_LAG_OFFSETS, REDIS_LAG_SECONDS] {
        metrics::gauge!(name, "partition" => partition.to_string()).set(f64::NAN);
    }
}

/// The copy had lost data.
pub fn copy_regressed() {
    metrics::counter!(REDIS_REGRESSIONS_TOTAL).increment(1);
}

/// A write came after a newer owner's.
pub fn copy_write_stale() {
    metrics::counter!(REDIS_STALE_WRITES_TOTAL).increment(1);
}

/// An alert was opened, and that is committed.
pub fn alert_opened(severity: &str, policy: &str) {
    let (severity, policy) = (severity.to_owned(), policy.to_owned());
    metrics::counter!(ALERTS_EMITTED_TOTAL, "severity" => severity, "policy" => policy).increment(1);
}

/// What became of raw records: mapped, ignored, dead; and the signals made of them.
pub fn mapped(topic: TopicName, outcomes: [(&'static str, u64); 3], signals: u64) {
    for (outcome, records) in outcomes {
        metrics::counter!(MAP_RECORDS_TOTAL, "topic" => topic, "outcome" => outcome).increment(records);
    }
    metrics::counter!(MAP_SIGNALS_TOTAL, "topic" => topic).increment(signals);
}

/// People the map role knows.
pub fn people(known: usize) {
    metrics::gauge!(MAP_PEOPLE).set(known as f64);
}

/// A call to the schema registry was answered, refused or failed.
pub fn registry_request(outcome: &'static str) {
    metrics::counter!(REGISTRY_REQUESTS_TOTAL, "outcome" => outcome).increment(1);
}

/// The built-in registry answered.
pub fn registry_served(status: u16) {
    metrics::counter!(REGISTRY_SERVED_TOTAL, "status" => status.to_string()).increment(1);
}
