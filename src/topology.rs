//! Topics, keys, schemas and limits as data, in one place: provisioning, start-up checks, `topics plan`, the docs and
//! the writers all read this table.

use crate::domain::time::{DAY_MS, HOUR_MS};

/// Every topic casestream reads or writes, except the `raw.<source>` topics, which belong to their owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    UserDirectory,
    RiskSignals,
    CaseCommands,
    PeerBaselines,
    PolicySets,
    ActivityChronology,
    RiskScores,
    RiskLevels,
    Alerts,
    PartitionStatus,
    CommandResults,
    DeadLetters,
    ShadowAlerts,
    UserState,
    EngineJournal,
}

/// How the broker cleans a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleanup {
    Compact,
    /// Deleted after this many days.
    Delete(i64),
    CompactAndDelete(i64),
}

/// A topic's entry in the table.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    pub topic: Topic,
    pub name: &'static str,
    /// What the key is, in words.
    pub key: &'static str,
    pub cleanup: Cleanup,
    /// Whether it has the engine's partition count.
    pub per_partition: bool,
    /// Record name in `schemas/`; `None` where values are not Avro.
    pub schema: Option<&'static str>,
    /// Read by casestream, written by casestream, or both.
    pub direction: &'static str,
}

const fn spec(
    topic: Topic,
    name: &'static str,
    key: &'static str,
    cleanup: Cleanup,
    per_partition: bool,
    schema: Option<&'static str>,
    direction: &'static str,
) -> Spec {
    Spec { topic, name, key, cleanup, per_partition, schema, direction }
}

/// The table. Inputs of the engine come first, in the order a batch folds them.
pub const TOPICS: [Spec; 15] = [
    spec(Topic::UserDirectory, "user-directory", "user_key", Cleanup::Compact, true, Some("UserDirectory"), "in"),
    spec(Topic::PeerBaselines, "peer-baselines", "group", Cleanup::Compact, true, Some("PeerBaseline"), "in"),
    spec(Topic::CaseCommands, "case-commands", "user_key", Cleanup::Delete(30), true, Some("CaseCommand"), "in"),
    spec(Topic::RiskSignals, "risk-signals", "user_key", Cleanup::Delete(7), true, Some("RiskSignal"), "in and out"),
    spec(Topic::PolicySets, "policy-sets", "content hash", Cleanup::Compact, false, Some("PolicySet"), "in and out"),
    spec(
        Topic::ActivityChronology,
        "activity-chronology",
        "user_key",
        Cleanup::Delete(180),
        true,
        Some("ChronologyEntry"),
        "out",
    ),
    spec(Topic::RiskScores, "risk-scores", "user_key", Cleanup::Compact, true, Some("RiskScore"), "out"),
    spec(Topic::RiskLevels, "risk-levels", "user_key", Cleanup::Compact, true, Some("RiskLevel"), "out"),
    spec(Topic::Alerts, "alerts", "alert_id", Cleanup::CompactAndDelete(400), true, Some("Alert"), "out"),
    spec(
        Topic::PartitionStatus,
        "partition-status",
        "partition",
        Cleanup::Compact,
        true,
        Some("PartitionStatus"),
        "out",
    ),
    spec(Topic::CommandResults, "command-results", "user_key", Cleanup::Delete(7), true, Some("CommandResult"), "out"),
    spec(Topic::DeadLetters, "dead-letters", "original key", Cleanup::Delete(14), true, None, "out"),
    spec(Topic::ShadowAlerts, "shadow-alerts", "user_key", Cleanup::Delete(30), true, Some("Alert"), "out"),
    spec(Topic::UserState, "user-state", "user_key[|segment], \\0meta", Cleanup::Compact, true, None, "internal"),
    spec(
        Topic::EngineJournal,
        "engine-journal",
        "partition",
        Cleanup::Delete(7),
        true,
        Some("EngineJournal"),
        "internal",
    ),
];

/// The engine's inputs, in the order a batch folds them.
pub const ENGINE_INPUTS: [Topic; 4] =
    [Topic::UserDirectory, Topic::PeerBaselines, Topic::CaseCommands, Topic::RiskSignals];

/// Partitions of every topic keyed by user, unless configured otherwise.
pub const PARTITIONS_DEFAULT: i32 = 64;
/// Largest input record, in bytes.
pub const INPUT_BYTES_MAX: usize = 1 << 20;
/// Largest record we write, in bytes; `dead-letters` takes as much.
pub const OUTPUT_BYTES_MAX: usize = 2 << 20;
/// Key of the partition's meta record in `user-state`.
pub const META_KEY: &[u8] = b"\0meta";

impl Topic {
    /// The topic's entry.
    pub fn spec(self) -> &'static Spec {
        TOPICS.iter().find(|s| s.topic == self).expect("every topic is in the table")
    }

    /// The topic's name.
    pub fn name(self) -> &'static str {
        self.spec().name
    }

    /// The topic of a name.
    pub fn by_name(name: &str) -> Option<Topic> {
        TOPICS.iter().find(|s| s.name == name).map(|s| s.topic)
    }
}

impl Spec {
    /// Broker settings, in a fixed order.
    pub fn config(&self) -> Vec<(&'static str, String)> {
        let bytes_max = match self.topic {
            Topic::UserDirectory | Topic::PeerBaselines | Topic::CaseCommands | Topic::RiskSignals => INPUT_BYTES_MAX,
            _ => OUTPUT_BYTES_MAX,
        };
        let mut config = vec![("max.message.bytes", (bytes_max + 65_536).to_string())];
        match self.cleanup {
            Cleanup::Compact => config.push(("cleanup.policy", "compact".into())),
            Cleanup::Delete(days) => {
                config.push(("cleanup.policy", "delete".into()));
                config.push(("retention.ms", (days * DAY_MS).to_string()));
            }
            Cleanup::CompactAndDelete(days) => {
                config.push(("cleanup.policy", "compact,delete".into()));
                config.push(("retention.ms", (days * DAY_MS).to_string()));
            }
        }
        if self.topic == Topic::UserState {
            // The active segment is never compacted, so segments are small; a restore reads what compaction left.
            config.push(("segment.bytes", (64 << 20).to_string()));
            config.push(("min.cleanable.dirty.ratio", "0.1".into()));
            config.push(("max.compaction.lag.ms", (6 * HOUR_MS).to_string()));
            config.push(("delete.retention.ms", DAY_MS.to_string()));
        }
        config
    }
}

/// A name for the life of the process: topic names come from configuration once, at start.
pub fn intern(name: &str) -> &'static str {
    match TOPICS.iter().find(|s| s.name == name) {
        Some(spec) => spec.name,
        None => Box::leak(name.to_owned().into_boxed_str()),
    }
}
