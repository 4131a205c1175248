//! What `partition-status` says about a partition, every few seconds, outside transactions: enough to tell "nothing
//! changed" from "dead". Built here, sent by whoever owns the plain producer. Next: `checkpoint.rs`.

use super::batch::{INPUTS, input_name};
use super::partition::{Hold, Partition, SILENT_MS, SourceFacts};
use crate::domain::record::{InputPosition, PartitionStatus, SourceStatus};
use crate::domain::{Text, Timestamp};

/// Takes a partition's status; must not block.
pub type StatusSink = Box<dyn FnMut(i32, &PartitionStatus<'_>) + Send>;

/// Reports a partition at work. One that waits for policies or a schema says so, as `restoring` with the reason.
pub fn running(
    sink: &mut StatusSink,
    partition: &Partition,
    worker: &str,
    now: Timestamp,
    lag: [i64; INPUTS],
    waits: Option<&Hold>,
) {
    let code = waits.map(hold_code);
    let positions = partition.positions();
    let status = PartitionStatus {
        as_of: now,
        state: Text::borrowed(if code.is_some() { "restoring" } else { "running" }),
        halt_code: code.map(Text::borrowed),
        inputs: (0..INPUTS)
            .map(|n| InputPosition { topic: Text::borrowed(input_name(n)), position: positions[n], lag: lag[n] })
            .collect(),
        sources: partition.sources().iter().map(|(name, facts)| source(name, facts, now)).collect(),
        worker: Text::borrowed(worker),
        epoch: partition.meta().epoch,
        policy_set: Text::borrowed(&partition.meta().policy_set),
    };
    sink(partition.number(), &status);
}

/// Reports a partition that is being restored, or (with a code) halted.
pub fn not_running(sink: &mut StatusSink, number: i32, worker: &str, now: Timestamp, halt_code: Option<&str>) {
    let status = PartitionStatus {
        as_of: now,
        state: Text::borrowed(if halt_code.is_some() { "halted" } else { "restoring" }),
        halt_code: halt_code.map(Text::from),
        worker: Text::borrowed(worker),
        ..PartitionStatus::default()
    };
    sink(number, &status);
}

/// The stable code of a wait.
pub fn hold_code(hold: &Hold) -> &'static str {
    match hold {
        Hold::NoPolicies => "policies.missing",
        Hold::UnknownSet(_) => "policies.unknown",
        Hold::SchemaUnavailable(_) => "schema.unavailable",
    }
}

fn source<'a>(name: &'a str, facts: &'a SourceFacts, now: Timestamp) -> SourceStatus<'a> {
    SourceStatus {
        source: Text::borrowed(name),
        watermark: facts.watermark,
        skew_ms: facts.skew_ms,
        silent: now.0.saturating_sub(facts.watermark.0) > SILENT_MS,
        counts: facts.counts.iter().map(|(row, n)| (Text::borrowed(row), *n)).collect(),
    }
}
