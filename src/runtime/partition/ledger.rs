//! The engine's ledger: what became of every record of a batch, per input, with the equation that nothing is lost.
//! Counts only; it decides nothing. Next: `outputs.rs`.

use std::collections::BTreeMap;

use smallvec::SmallVec;

use crate::domain::Timestamp;
use crate::domain::signal::Signal;
use crate::engine::decide_signal::AHEAD_MS_MAX;
use crate::engine::state::{LIMIT_ALERTS, LIMIT_BYTES, LIMIT_INSIGHTS, LIMIT_SEEN, LIMIT_SIGNALS};
use crate::runtime::batch::{INPUTS, SIGNALS};
use crate::runtime::telemetry::Limit;

/// Sources told apart per partition; further ones share the row `other`.
pub const SOURCES_MAX: usize = 64;

/// What became of a record that is not a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// A signal that counts.
    Scored,
    Unscored,
    Duplicate,
    /// Dead-lettered `too_late`, counted here only.
    Late,
    Rerouted,
    /// A directory record that was accepted.
    Applied,
    /// A directory record older than the one in force.
    Unchanged,
    /// A baseline, or a tombstone: accepted, without effect.
    Ignored,
    /// A command carried out.
    Accepted,
    Refused,
}

const ROWS: [(Row, &str); 10] = [
    (Row::Scored, "scored"),
    (Row::Unscored, "unscored"),
    (Row::Duplicate, "duplicate"),
    (Row::Late, "late"),
    (Row::Rerouted, "rerouted"),
    (Row::Applied, "applied"),
    (Row::Unchanged, "unchanged"),
    (Row::Ignored, "ignored"),
    (Row::Accepted, "accepted"),
    (Row::Refused, "refused"),
];

/// What stands before a row's name; signals have none.
const PREFIX: [&str; INPUTS] = ["directory.", "baselines.", "commands.", ""];

/// Counts of one input, or of one source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub records: i64,
    rows: [i64; ROWS.len()],
    dead: SmallVec<[(&'static str, i64); 4]>,
}

impl Counts {
    /// Counts one record that came in.
    pub fn enter(&mut self) {
        self.records += 1;
    }

    /// Counts what became of one record.
    pub fn row(&mut self, row: Row) {
        self.rows[row as usize] += 1;
    }

    /// Counts one dead letter.
    pub fn dead(&mut self, code: &'static str) {
        match self.dead.iter_mut().find(|(known, _)| *known == code) {
            Some((_, n)) => *n += 1,
            None => self.dead.push((code, 1)),
        }
    }

    /// A row's count.
    pub fn get(&self, row: Row) -> i64 {
        self.rows[row as usize]
    }

    /// Dead letters by code.
    pub fn dead_letters(&self) -> &[(&'static str, i64)] {
        &self.dead
    }

    /// Whether every record that came in has become something.
    pub fn balances(&self) -> bool {
        self.records == self.rows.iter().sum::<i64>() + self.dead.iter().map(|(_, n)| n).sum::<i64>()
    }

    /// Adds to named rows.
    pub fn add_to(&self, prefix: &str, total: &mut BTreeMap<String, i64>) {
        let mut add = |name: &str, n: i64| {
            if n != 0 {
                *total.entry(format!("{prefix}{name}")).or_default() += n;
            }
        };
        add("in", self.records);
        for (row, name) in ROWS {
            add(name, self.rows[row as usize]);
        }
        for (code, n) in &self.dead {
            add(&format!("dead.{code}"), *n);
        }
    }
}

/// What one source did in a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceTally {
    pub source: String,
    pub watermark: Timestamp,
    /// How far its event times ran ahead of the time of writing, at most.
    pub skew_ms: i64,
    pub counts: Counts,
}

/// What one batch did, per input and per source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub inputs: [Counts; INPUTS],
    pub sources: Vec<SourceTally>,
    pub observed: Observed,
    last: usize,
}

/// What a batch shows besides its ledger: told once the batch is committed, never part of a decision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Event and ingest time of the first signal that was taken.
    pub first: Option<(Timestamp, Timestamp)>,
    /// Signals from the future whose time was moved back.
    pub clamped: u64,
    reached: [u64; Limit::ALL.len()],
}

impl Observed {
    /// A signal was taken.
    pub fn signal(&mut self, signal: &Signal<'_>, now: Timestamp) {
        self.first.get_or_insert((signal.occurred_at, signal.ingested_at));
        self.clamped += u64::from(signal.occurred_at > now.plus_ms(AHEAD_MS_MAX));
    }

    /// A named maximum was reached.
    pub fn reach(&mut self, limit: Limit) {
        self.reached[limit as usize] += 1;
    }

    /// A user's `Head::limits` before and after the batch.
    pub fn state_limits(&mut self, before: u32, after: u32) {
        let new = after & !before;
        if new == 0 {
            return;
        }
        for (bit, limit) in [
            (LIMIT_SIGNALS, Limit::StateSignals),
            (LIMIT_INSIGHTS, Limit::StateInsights),
            (LIMIT_SEEN, Limit::StateSeen),
            (LIMIT_ALERTS, Limit::StateAlerts),
            (LIMIT_BYTES, Limit::StateBytes),
        ] {
            if new & bit != 0 {
                self.reach(limit);
            }
        }
    }

    /// What was reached, and how often.
    pub fn limits(&self) -> impl Iterator<Item = (Limit, u64)> {
        Limit::ALL.into_iter().zip(self.reached).filter(|(_, times)| *times > 0)
    }
}

impl Tally {
    /// The position of a source; signals of one source tend to follow each other.
    pub fn source(&mut self, source: &str) -> usize {
        if self.sources.get(self.last).is_some_and(|s| s.source == source) {
            return self.last;
        }
        let known = self.sources.len() < SOURCES_MAX || self.sources.iter().any(|s| s.source == source);
        if !known {
            self.observed.reach(Limit::Sources);
        }
        let source = if known { source } else { "other" };
        self.last = self.sources.iter().position(|s| s.source == source).unwrap_or_else(|| {
            self.sources.push(SourceTally { source: source.to_owned(), ..SourceTally::default() });
            self.sources.len() - 1
        });
        self.last
    }

    /// Adds the batch to the partition's ledger.
    pub fn add_to(&self, total: &mut BTreeMap<String, i64>) {
        for (counts, prefix) in self.inputs.iter().zip(PREFIX) {
            counts.add_to(prefix, total);
        }
    }

    /// Stops a batch that lost a record.
    pub fn assert_balanced(&self, partition: i32) {
        for (counts, prefix) in self.inputs.iter().zip(PREFIX) {
            assert!(counts.balances(), "INV-7: the {prefix} ledger of partition {partition} loses records: {counts:?}");
        }
        let by_source: i64 = self.sources.iter().map(|s| s.counts.records).sum();
        let signals = self.inputs[SIGNALS].records;
        assert!(by_source == signals, "INV-7: partition {partition} counts {by_source} of {signals} signals by source");
    }
}

/// Whether a partition's accumulated ledger balances, per input.
pub fn balances(total: &BTreeMap<String, i64>) -> bool {
    let mut left = [0i64; INPUTS];
    for (name, n) in total {
        let input = PREFIX.iter().position(|p| !p.is_empty() && name.starts_with(p)).unwrap_or(SIGNALS);
        let row = &name[PREFIX[input].len()..];
        left[input] += if row == "in" { *n } else { -n };
    }
    left == [0; INPUTS]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::batch::{COMMANDS, DIRECTORY};

    #[test]
    fn the_equation_holds_per_input() {
        let mut tally = Tally::default();
        let source = tally.source("purview");
        for (row, code) in [(Some(Row::Scored), ""), (Some(Row::Late), ""), (None, "in_future")] {
            for counts in [&mut tally.inputs[SIGNALS], &mut tally.sources[source].counts] {
                counts.enter();
                match row {
                    Some(row) => counts.row(row),
                    None => counts.dead(code),
                }
            }
        }
        tally.inputs[DIRECTORY].enter();
        tally.inputs[DIRECTORY].row(Row::Applied);
        tally.assert_balanced(0);
        let mut total = BTreeMap::new();
        tally.add_to(&mut total);
        tally.add_to(&mut total);
        let text: Vec<_> = total.iter().map(|(name, n)| format!("{name} {n}")).collect();
        assert_eq!(text.join(", "), "dead.in_future 2, directory.applied 2, directory.in 2, in 6, late 2, scored 2");
        assert!(balances(&total));
        tally.inputs[COMMANDS].enter();
        tally.add_to(&mut total);
        assert!(!balances(&total), "a command that came in became nothing");
    }

    #[test]
    fn sources_are_bounded() {
        let mut tally = Tally::default();
        for n in 0..100 {
            tally.source(&format!("s{n}"));
        }
        assert_eq!(tally.sources.len(), SOURCES_MAX + 1);
        assert_eq!(tally.sources.last().unwrap().source, "other");
    }
}
