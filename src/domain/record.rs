//! Records about the pipeline itself: partition status, policy sets, and the engine's journal and meta.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Text, Timestamp};

/// The value of `partition-status`, every 5 s. Older than 30 s means stale.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PartitionStatus<'a> {
    pub as_of: Timestamp,
    /// running, restoring or halted.
    #[serde(borrow)]
    pub state: Text<'a>,
    #[serde(borrow)]
    pub halt_code: Option<Text<'a>>,
    #[serde(borrow)]
    pub inputs: Vec<InputPosition<'a>>,
    #[serde(borrow)]
    pub sources: Vec<SourceStatus<'a>>,
    #[serde(borrow)]
    pub worker: Text<'a>,
    pub epoch: i64,
    #[serde(borrow)]
    pub policy_set: Text<'a>,
}

/// How far one input has been read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InputPosition<'a> {
    #[serde(borrow)]
    pub topic: Text<'a>,
    pub position: i64,
    pub lag: i64,
}

/// What one source did on this partition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceStatus<'a> {
    #[serde(borrow)]
    pub source: Text<'a>,
    pub watermark: Timestamp,
    pub skew_ms: i64,
    pub silent: bool,
    #[serde(borrow)]
    pub counts: BTreeMap<Text<'a>, i64>,
}

/// The value of `policy-sets`, keyed by its content hash: the files as they were validated.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename = "PolicySet")]
pub struct PolicySetRecord<'a> {
    #[serde(borrow)]
    pub hash: Text<'a>,
    /// File name (`indicators.toml`, `policies/data-leaks.toml`) to content.
    #[serde(borrow)]
    pub files: BTreeMap<Text<'a>, Text<'a>>,
}

/// One committed transaction of one partition: value of `engine-journal`, and of `\0meta` in `user-state`.
/// With it, `verify` and `backtest` replay exactly what the worker saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename = "EngineJournal")]
pub struct Journal {
    /// Gap-free per partition; 1 is the first assignment.
    pub commit_no: i64,
    /// Next offset to read of every input, and where this batch began.
    pub inputs: Vec<InputRange>,
    /// The batch's clock reading.
    pub now: Timestamp,
    pub stream_time: Timestamp,
    /// Stream time followed the clock in this batch: inputs had been drained for 30 s.
    pub follows_clock: bool,
    /// The batch's only record could not be folded or written and was dead-lettered with this code.
    pub condemned: Option<String>,
    pub policy_set: String,
    /// Settings of the fold in force: days a signal may be late, and how long a level may be relied on.
    pub lateness_days: i64,
    pub level_valid_ms: i64,
    /// +1 per assignment.
    pub epoch: i64,
    pub transactional_id: String,
    pub partitions: i64,
    pub cluster_id: String,
    pub users: i64,
    pub next_case_no: i64,
    pub next_alert_no: i64,
    pub format: i64,
    /// Engine ledger: in, scored, unscored, duplicate, late, rerouted, dead.<reason>.
    pub ledger: BTreeMap<String, i64>,
}

/// Offsets `[from, to)` of one input topic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputRange {
    pub topic: String,
    pub from: i64,
    pub to: i64,
    /// Records among them; offsets are also taken by markers and by what compaction removed.
    pub records: i64,
}
