//! What to do with a partition that was just assigned: facts in, one plan out. Pure; the worker gathers the facts in
//! the order of the protocol and carries the plan out. Asked twice: before the changelog is read (where to start) and
//! after (whether what was read agrees with the group). Next: `worker/assignment.rs`.

use std::time::Duration;

use super::batch::{BASELINES, COMMANDS, DIRECTORY, INPUTS, SIGNALS, input_name};
use super::ports::CopyMeta;
use crate::domain::Timestamp;
use crate::domain::record::Journal;
use crate::wire::state;

/// How long an empty changelog with no committed offsets is asked again before it counts as a first start.
pub const FRESH_AFTER: Duration = Duration::from_secs(5);

/// What the changelog holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Changelog {
    /// Not read yet.
    Unread,
    /// Read to the bound: the meta record, if any, and how many users.
    Read { meta: Option<Box<Journal>>, users: i64 },
    /// A value of a format this binary cannot read.
    Format { found: i64 },
    /// A value that cannot be read.
    Damaged { what: String },
}

/// Everything the decision rests on.
#[derive(Clone, Debug)]
pub struct Facts {
    pub partition: i32,
    /// Committed offset of every input, as the group knows it (stable).
    pub committed: [Option<i64>; INPUTS],
    /// `[start, end)` of every input.
    pub inputs: [(i64, i64); INPUTS],
    /// `[start, end)` of `user-state`, read after the committed offsets.
    pub user_state: (i64, i64),
    pub changelog: Changelog,
    /// What the copy says; `None` when it says nothing or cannot be asked.
    pub copy: Option<CopyMeta>,
    /// As configured and as the brokers say.
    pub partitions: i32,
    pub cluster_id: String,
    pub now: Timestamp,
    /// How long tombstones stay readable in `user-state`.
    pub delete_retention: Duration,
    /// How long this decision has been retried, and at most may be.
    pub waited: Duration,
    pub patience: Duration,
}

/// Why a partition halts. Codes are stable; each has an exact remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HaltCode {
    /// The group's offsets are not those of the state's last transaction.
    OffsetsMismatch,
    /// The state exists, the group's offsets do not.
    OffsetsMissing,
    /// The group has offsets, the changelog has no state.
    StateMissing,
    /// Records between the position and the log start were deleted unread, or the log ends below the position.
    InputTruncated,
    PartitionsChanged,
    ClusterChanged,
    /// Written by a newer release.
    StateFormat,
    StateDamaged,
    MemoryFull,
    /// A transaction without records kept failing.
    TransactionAborted,
    /// An invariant did not hold.
    Invariant,
}

impl HaltCode {
    /// Every code.
    pub const ALL: [HaltCode; 11] = [
        HaltCode::OffsetsMismatch,
        HaltCode::OffsetsMissing,
        HaltCode::StateMissing,
        HaltCode::InputTruncated,
        HaltCode::PartitionsChanged,
        HaltCode::ClusterChanged,
        HaltCode::StateFormat,
        HaltCode::StateDamaged,
        HaltCode::MemoryFull,
        HaltCode::TransactionAborted,
        HaltCode::Invariant,
    ];

    /// The stable code.
    pub const fn as_str(self) -> &'static str {
        match self {
            HaltCode::OffsetsMismatch => "offsets.mismatch",
            HaltCode::OffsetsMissing => "offsets.missing",
            HaltCode::StateMissing => "state.missing",
            HaltCode::InputTruncated => "input.truncated",
            HaltCode::PartitionsChanged => "partitions.changed",
            HaltCode::ClusterChanged => "cluster.changed",
            HaltCode::StateFormat => "state.format",
            HaltCode::StateDamaged => "state.damaged",
            HaltCode::MemoryFull => "memory.full",
            HaltCode::TransactionAborted => "transaction.aborted",
            HaltCode::Invariant => "invariant.broken",
        }
    }
}

/// A partition that does not run: what was found, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("could not run partition {partition}: {found} ({}); {remedy}", code.as_str())]
pub struct Halt {
    pub partition: i32,
    pub code: HaltCode,
    pub found: String,
    pub remedy: String,
}

/// Why the changelog is read from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distrust {
    Absent,
    OtherCluster,
    OtherFormat,
    Rebuilding,
    /// Older than the changelog's tombstones: deleted users would come back.
    TooOld,
    /// It stands outside the changelog.
    OutOfRange,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Take the users from the copy, then read the changelog from this offset (inclusive).
    CatchUp {
        from: i64,
    },
    /// Read the changelog from 0.
    Rebuild {
        because: Distrust,
    },
    /// Nothing was ever committed: start every input at these offsets.
    Fresh {
        positions: [i64; INPUTS],
    },
    /// State and group agree: go on at these offsets.
    Resume {
        positions: [i64; INPUTS],
    },
    /// Gather the facts again after a pause.
    Retry {
        why: String,
    },
    Halt(Halt),
}

/// The decision.
pub fn decide(facts: &Facts) -> Plan {
    match &facts.changelog {
        Changelog::Unread => where_to_read(facts),
        Changelog::Format { found } => halt(
            facts,
            HaltCode::StateFormat,
            format!("user-state is of format {found}, this binary reads {}", state::FORMAT),
            "run the release that wrote it, or a newer one".into(),
        ),
        Changelog::Damaged { what } => damaged(facts, what),
        Changelog::Read { meta: None, .. } => without_meta(facts),
        Changelog::Read { meta: Some(meta), users } => with_meta(facts, meta, *users),
    }
}

fn where_to_read(facts: &Facts) -> Plan {
    let rebuild = |because| Plan::Rebuild { because };
    let Some(copy) = &facts.copy else { return rebuild(Distrust::Absent) };
    let (start, end) = facts.user_state;
    let age_ms = facts.now.0.saturating_sub(copy.applied_at.0);
    if copy.cluster_id != facts.cluster_id {
        rebuild(Distrust::OtherCluster)
    } else if copy.format != i64::from(state::FORMAT) {
        rebuild(Distrust::OtherFormat)
    } else if copy.rebuilding {
        rebuild(Distrust::Rebuilding)
    } else if copy.applied <= 0 || copy.changelog_offset < start || copy.changelog_offset > end {
        rebuild(Distrust::OutOfRange)
    } else if age_ms >= facts.delete_retention.as_millis() as i64 {
        rebuild(Distrust::TooOld)
    } else {
        Plan::CatchUp { from: copy.changelog_offset }
    }
}

fn without_meta(facts: &Facts) -> Plan {
    if let Changelog::Read { users: 1.., .. } = facts.changelog {
        return damaged(facts, "users without a meta record");
    }
    if facts.committed.iter().all(Option::is_none) {
        if facts.waited < FRESH_AFTER {
            return retry("neither state nor offsets are there: asking again before a first start");
        }
        return Plan::Fresh { positions: facts.inputs.map(|(start, _)| start) };
    }
    patience(facts, "the group has offsets, user-state has no meta record").unwrap_or_else(|| {
        halt(
            facts,
            HaltCode::StateMissing,
            format!("the group has committed {}, user-state holds nothing", list(&facts.committed)),
            "restore the topic user-state from its mirror, or start again under a new application id and replay".into(),
        )
    })
}

fn with_meta(facts: &Facts, meta: &Journal, users: i64) -> Plan {
    if meta.format != i64::from(state::FORMAT) {
        return decide(&Facts { changelog: Changelog::Format { found: meta.format }, ..facts.clone() });
    }
    if meta.cluster_id != facts.cluster_id {
        let found = format!("the state was written on cluster {}, this is {}", meta.cluster_id, facts.cluster_id);
        let remedy = "connect to the cluster of the state, or start under a new application id and replay";
        return halt(facts, HaltCode::ClusterChanged, found, remedy.into());
    }
    if meta.partitions != i64::from(facts.partitions) {
        let found =
            format!("the state was written with {} partitions, there are {}", meta.partitions, facts.partitions);
        let remedy = "a partition count cannot change: create topics with the old count, or start under a new application id and replay";
        return halt(facts, HaltCode::PartitionsChanged, found, remedy.into());
    }
    if meta.users != users {
        return damaged(facts, &format!("{users} users were read, meta counts {}", meta.users));
    }
    let Some(positions) = named_positions(meta) else {
        return damaged(facts, "meta does not name the offset of every input");
    };
    offsets_agree(facts, positions)
}

fn offsets_agree(facts: &Facts, positions: [i64; INPUTS]) -> Plan {
    let expected = list(&positions.map(Some));
    if facts.committed.iter().any(Option::is_none) {
        return patience(facts, "the group has no offset for an input").unwrap_or_else(|| {
            halt(
                facts,
                HaltCode::OffsetsMissing,
                format!("the group has committed {}, the state stands at {expected}", list(&facts.committed)),
                format!("stop the workers and set the group's offsets of partition {} to {expected}", facts.partition),
            )
        });
    }
    if facts.committed != positions.map(Some) {
        return patience(facts, "the group's offsets are not those of the state").unwrap_or_else(|| {
            halt(
                facts,
                HaltCode::OffsetsMismatch,
                format!("the group has committed {}, the state stands at {expected}", list(&facts.committed)),
                format!(
                    "stop the workers and set the group's offsets of partition {} to {expected}; to fold records \
                     again, start under a new application id",
                    facts.partition
                ),
            )
        });
    }
    match (0..INPUTS).find(|n| truncated(*n, positions[*n], facts.inputs[*n])) {
        None => Plan::Resume { positions },
        Some(input) => truncation(facts, input, positions[input]),
    }
}

/// Compaction keeps the newest record of every key, so only inputs cleaned by deletion lose records below their start.
fn truncated(input: usize, position: i64, (start, end): (i64, i64)) -> bool {
    match input {
        DIRECTORY | BASELINES => position > end,
        COMMANDS | SIGNALS => position > end || position < start,
        other => unreachable!("the engine has no input {other}"),
    }
}

fn truncation(facts: &Facts, input: usize, position: i64) -> Plan {
    let (start, end) = facts.inputs[input];
    let name = input_name(input);
    patience(facts, "an input does not reach to the position").unwrap_or_else(|| {
        let found = format!("{name}-{} holds offsets {start}..{end}, the state stands at {position}", facts.partition);
        let remedy = if position > end {
            "the topic was recreated or lost its end: restore it, or start under a new application id and replay"
        } else {
            "records were deleted before they were read: raise retention.ms, then start under a new application id and replay what is left"
        };
        halt(facts, HaltCode::InputTruncated, found, remedy.into())
    })
}

/// The plan of a worker that has no memory left for a partition.
pub fn memory_full(partition: i32, bytes: usize, bytes_max: usize, loaded: usize, assigned: usize) -> Halt {
    let expected = (bytes as u128).div_ceil(loaded.max(1) as u128) * assigned as u128;
    let processes = expected.div_ceil(bytes_max.max(1) as u128).max(2);
    Halt {
        partition,
        code: HaltCode::MemoryFull,
        found: format!("{loaded} of {assigned} partitions take {bytes} bytes, memory.state_bytes_max is {bytes_max}"),
        remedy: format!("run at least {processes} processes of this size in place of this one, or raise the limit"),
    }
}

fn named_positions(meta: &Journal) -> Option<[i64; INPUTS]> {
    let mut positions = [0; INPUTS];
    for (n, position) in positions.iter_mut().enumerate() {
        *position = meta.inputs.iter().find(|r| r.topic == input_name(n))?.to;
    }
    Some(positions)
}

fn damaged(facts: &Facts, what: &str) -> Plan {
    let remedy = "restore the topic user-state from its mirror, or start again under a new application id and replay";
    halt(facts, HaltCode::StateDamaged, format!("user-state cannot be read: {what}"), remedy.into())
}

fn halt(facts: &Facts, code: HaltCode, found: String, remedy: String) -> Plan {
    Plan::Halt(Halt { partition: facts.partition, code, found, remedy })
}

fn retry(why: &str) -> Plan {
    Plan::Retry { why: why.to_owned() }
}

/// Markers reach the two topics independently, so a disagreement may be one of the moment.
fn patience(facts: &Facts, why: &str) -> Option<Plan> {
    (facts.waited < facts.patience).then(|| retry(why))
}

fn list(offsets: &[Option<i64>; INPUTS]) -> String {
    let offset = |n: usize| match offsets[n] {
        Some(offset) => format!("{} {offset}", input_name(n)),
        None => format!("{} none", input_name(n)),
    };
    (0..INPUTS).map(offset).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::record::InputRange;

    const DAY: i64 = 86_400_000;

    fn meta(positions: [i64; INPUTS]) -> Journal {
        let inputs =
            (0..INPUTS).map(|n| InputRange { topic: input_name(n).into(), from: 0, to: positions[n], records: 0 });
        Journal {
            commit_no: 9,
            inputs: inputs.collect(),
            partitions: 4,
            cluster_id: "c1".into(),
            users: 2,
            format: state::FORMAT.into(),
            ..Journal::default()
        }
    }

    fn read(meta: Option<Journal>, users: i64) -> Changelog {
        Changelog::Read { meta: meta.map(Box::new), users }
    }

    fn facts() -> Facts {
        Facts {
            partition: 3,
            committed: [Some(5), Some(0), Some(2), Some(70)],
            inputs: [(0, 5), (0, 0), (1, 2), (60, 90)],
            user_state: (10, 200),
            changelog: read(Some(meta([5, 0, 2, 70])), 2),
            copy: None,
            partitions: 4,
            cluster_id: "c1".into(),
            now: Timestamp(10 * DAY),
            delete_retention: Duration::from_secs(86_400),
            waited: Duration::ZERO,
            patience: Duration::from_secs(25),
        }
    }

    fn copy() -> CopyMeta {
        CopyMeta {
            applied: 8,
            changelog_offset: 150,
            applied_at: Timestamp(10 * DAY - 1_000),
            cluster_id: "c1".into(),
            format: state::FORMAT.into(),
            ..CopyMeta::default()
        }
    }

    fn word(plan: &Plan) -> String {
        match plan {
            Plan::CatchUp { from } => format!("catch up from {from}"),
            Plan::Rebuild { because } => format!("rebuild {because:?}"),
            Plan::Fresh { positions } => format!("fresh {positions:?}"),
            Plan::Resume { positions } => format!("resume {positions:?}"),
            Plan::Retry { .. } => "retry".into(),
            Plan::Halt(halt) => format!("halt {}", halt.code.as_str()),
        }
    }

    /// One line of the table: what differs from the healthy partition, the plan at once, the plan out of patience.
    type Case = (&'static str, fn(&mut Facts), &'static str, &'static str);

    const RESUME: &str = "resume [5, 0, 2, 70]";

    #[test]
    fn the_whole_table() {
        let table: &[Case] = &[
            ("healthy", |_| {}, RESUME, RESUME),
            ("unread, no copy", |f| f.changelog = Changelog::Unread, "rebuild Absent", "rebuild Absent"),
            (
                "nothing anywhere",
                |f| {
                    f.changelog = read(None, 0);
                    f.committed = [None; INPUTS];
                },
                "retry",
                "fresh [0, 0, 1, 60]",
            ),
            ("offsets without state", |f| f.changelog = read(None, 0), "retry", "halt state.missing"),
            ("users without meta", |f| f.changelog = read(None, 1), "halt state.damaged", "halt state.damaged"),
            ("no offset of one input", |f| f.committed[BASELINES] = None, "retry", "halt offsets.missing"),
            ("no offset of any input", |f| f.committed = [None; INPUTS], "retry", "halt offsets.missing"),
            ("group behind the state", |f| f.committed[SIGNALS] = Some(69), "retry", "halt offsets.mismatch"),
            ("group ahead of the state", |f| f.committed[SIGNALS] = Some(71), "retry", "halt offsets.mismatch"),
            ("signals deleted unread", |f| f.inputs[SIGNALS] = (71, 90), "retry", "halt input.truncated"),
            ("signals recreated", |f| f.inputs[SIGNALS] = (0, 3), "retry", "halt input.truncated"),
            ("commands deleted unread", |f| f.inputs[COMMANDS] = (3, 3), "retry", "halt input.truncated"),
            ("directory recreated", |f| f.inputs[DIRECTORY] = (0, 4), "retry", "halt input.truncated"),
            ("directory compacted", |f| f.inputs[DIRECTORY] = (9, 12), RESUME, RESUME),
            ("another cluster", |f| f.cluster_id = "c2".into(), "halt cluster.changed", "halt cluster.changed"),
            ("more partitions", |f| f.partitions = 8, "halt partitions.changed", "halt partitions.changed"),
            (
                "newer format",
                |f| f.changelog = Changelog::Format { found: 9 },
                "halt state.format",
                "halt state.format",
            ),
            (
                "newer meta",
                |f| {
                    f.changelog = read(Some(Journal { format: 9, ..meta([5, 0, 2, 70]) }), 2);
                },
                "halt state.format",
                "halt state.format",
            ),
            (
                "unreadable",
                |f| f.changelog = Changelog::Damaged { what: "x".into() },
                "halt state.damaged",
                "halt state.damaged",
            ),
            (
                "a user is missing",
                |f| f.changelog = read(Some(meta([5, 0, 2, 70])), 1),
                "halt state.damaged",
                "halt state.damaged",
            ),
            (
                "meta without an input",
                |f| {
                    let mut meta = meta([5, 0, 2, 70]);
                    meta.inputs.pop();
                    f.changelog = read(Some(meta), 2);
                },
                "halt state.damaged",
                "halt state.damaged",
            ),
        ];
        for (name, change, at_once, at_last) in table {
            let mut facts = facts();
            change(&mut facts);
            assert_eq!(word(&decide(&facts)), *at_once, "{name}, at once");
            facts.waited = facts.patience;
            assert_eq!(word(&decide(&facts)), *at_last, "{name}, out of patience");
        }
    }

    #[test]
    fn when_a_copy_is_trusted() {
        type Line = (&'static str, fn(&mut CopyMeta), &'static str);
        let table: &[Line] = &[
            ("healthy", |_| {}, "catch up from 150"),
            ("at the very end", |c| c.changelog_offset = 200, "catch up from 200"),
            ("another cluster", |c| c.cluster_id = "c2".into(), "rebuild OtherCluster"),
            ("another format", |c| c.format = 99, "rebuild OtherFormat"),
            ("half rebuilt", |c| c.rebuilding = true, "rebuild Rebuilding"),
            ("never applied", |c| c.applied = 0, "rebuild OutOfRange"),
            ("below the changelog", |c| c.changelog_offset = 9, "rebuild OutOfRange"),
            ("beyond the changelog", |c| c.changelog_offset = 201, "rebuild OutOfRange"),
            ("older than tombstones", |c| c.applied_at = Timestamp(9 * DAY), "rebuild TooOld"),
        ];
        for (name, change, expect) in table {
            let mut copy = copy();
            change(&mut copy);
            let facts = Facts { copy: Some(copy), changelog: Changelog::Unread, ..facts() };
            assert_eq!(word(&decide(&facts)), *expect, "{name}");
        }
    }

    #[test]
    fn a_halt_says_what_was_found_and_what_to_do() {
        let mut facts = facts();
        facts.committed[SIGNALS] = Some(60);
        facts.waited = facts.patience;
        let Plan::Halt(halt) = decide(&facts) else { panic!("a mismatch must halt") };
        let text = halt.to_string();
        assert!(text.starts_with("could not run partition 3: the group has committed user-directory 5"), "{text}");
        assert!(
            text.contains("set the group's offsets of partition 3 to user-directory 5, peer-baselines 0"),
            "{text}"
        );
        let halt = memory_full(7, 3_000, 1_000, 2, 8);
        assert!(halt.to_string().contains("at least 12 processes"), "{halt}");
        let codes: std::collections::BTreeSet<_> = HaltCode::ALL.iter().map(|c| c.as_str()).collect();
        assert_eq!(codes.len(), HaltCode::ALL.len(), "codes must differ");
    }
}
