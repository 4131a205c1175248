//! The map ledger of one input partition: every record that came in is mapped, ignored for a reason or dead for a
//! code. It travels in the offset commit's metadata, so it is exactly as true as the offset beside it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Longest metadata text, in bytes; Kafka's default limit is 4096, ours leaves room for other brokers.
pub const METADATA_BYTES_MAX: usize = 1000;
/// Most reasons told apart, ignored and dead together; more are counted as `OTHER`.
pub const REASONS_MAX: usize = 48;
/// The row for reasons that are too rare to keep.
pub const OTHER: &str = "other";

/// Counters since the input's first record. Equation: taken = mapped + ignored + dead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Raw records.
    #[serde(rename = "in")]
    pub taken: i64,
    /// Raw records that gave signals.
    pub mapped: i64,
    /// Signals they gave.
    pub signals: i64,
    /// Raw records without a risk signal, by reason.
    #[serde(default)]
    pub ignored: BTreeMap<String, i64>,
    /// Raw records in `dead-letters`, by code.
    #[serde(default)]
    pub dead: BTreeMap<String, i64>,
}

impl Ledger {
    /// Counts a record that gave signals.
    pub fn count_mapped(&mut self, signals: usize) {
        self.taken += 1;
        self.mapped += 1;
        self.signals += signals as i64;
    }

    /// Counts a record without a risk signal.
    pub fn count_ignored(&mut self, reason: &str) {
        self.taken += 1;
        add(&mut self.ignored, reason, 1);
    }

    /// Counts a dead letter.
    pub fn count_dead(&mut self, code: &str) {
        self.taken += 1;
        add(&mut self.dead, code, 1);
    }

    /// Adds what a batch counted.
    pub fn add(&mut self, more: &Ledger) {
        let Ledger { taken, mapped, signals, ignored, dead } = more;
        self.taken += taken;
        self.mapped += mapped;
        self.signals += signals;
        for (mine, theirs) in [(&mut self.ignored, ignored), (&mut self.dead, dead)] {
            theirs.iter().for_each(|(reason, count)| add(mine, reason, *count));
        }
        while self.ignored.len() + self.dead.len() > REASONS_MAX {
            self.fold_smallest();
        }
    }

    /// Whether every record is accounted for.
    pub fn balances(&self) -> bool {
        let sum = |rows: &BTreeMap<String, i64>| rows.values().sum::<i64>();
        self.taken == self.mapped + sum(&self.ignored) + sum(&self.dead)
    }

    /// Compact JSON below `METADATA_BYTES_MAX`; the rarest reasons are folded into `OTHER` until it fits.
    pub fn to_metadata(&self) -> String {
        assert!(self.balances(), "a map ledger accounts for every record: {self:?}");
        let mut ledger = self.clone();
        loop {
            let text = serde_json::to_string(&ledger).expect("counters and words are always JSON");
            if text.len() < METADATA_BYTES_MAX {
                return text;
            }
            ledger.fold_smallest();
        }
    }

    /// Reads committed metadata. Text that is not a ledger (another tool committed) starts a new one.
    pub fn from_metadata(text: &str) -> Option<Ledger> {
        serde_json::from_str(text).ok().filter(Ledger::balances)
    }

    /// Smallest count first, then by name, so that every process folds alike.
    fn fold_smallest(&mut self) {
        let rows = |rows: &BTreeMap<String, i64>, dead: bool| {
            rows.iter().filter(|(name, _)| *name != OTHER).map(|(name, n)| (*n, dead, name.clone())).min()
        };
        let smallest = [rows(&self.ignored, false), rows(&self.dead, true)].into_iter().flatten().min();
        let (count, dead, name) = smallest.expect("a ledger without reasons is short");
        let map = if dead { &mut self.dead } else { &mut self.ignored };
        map.remove(&name);
        add(map, OTHER, count);
    }
}

fn add(map: &mut BTreeMap<String, i64>, reason: &str, count: i64) {
    match map.get_mut(reason) {
        Some(known) => *known += count,
        None => {
            map.insert(reason.to_owned(), count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_stays_short_and_balanced() {
        let mut ledger = Ledger::default();
        ledger.count_mapped(3);
        for n in 0..200 {
            let mut batch = Ledger::default();
            (0..=n % 7).for_each(|_| batch.count_ignored(&format!("a_rather_long_reason_number_{n}")));
            batch.count_dead("json.malformed");
            ledger.add(&batch);
        }
        let text = ledger.to_metadata();
        assert!(text.len() < METADATA_BYTES_MAX, "{}", text.len());
        let back = Ledger::from_metadata(&text).unwrap();
        assert_eq!((back.taken, back.mapped, back.signals), (ledger.taken, 1, 3));
        assert_eq!(back.dead["json.malformed"], 200, "the largest reason is kept");
        assert!(back.ignored[OTHER] > 0 && back.balances());
    }

    #[test]
    fn foreign_metadata_is_no_ledger() {
        for text in ["", "{}", "x", r#"{"in":5,"mapped":1,"signals":1}"#] {
            assert_eq!(Ledger::from_metadata(text), None, "{text}");
        }
        assert_eq!(Ledger::default().to_metadata(), r#"{"in":0,"mapped":0,"signals":0,"ignored":{},"dead":{}}"#);
    }
}
