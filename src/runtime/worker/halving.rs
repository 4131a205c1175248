//! What to do after a transaction was aborted: try the same range again, halve it, and in the end set the one record
//! aside that cannot be written. Before a record is condemned an empty transaction must have succeeded, so that a
//! broken broker costs no record. Pure.

use crate::runtime::partition::RecordId;

/// Attempts at one range before it is halved.
pub const ABORTS_PER_RANGE: u32 = 3;

/// What the worker does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The same range again, after a pause.
    Retry,
    /// At most `Halving::limit` records from now on.
    Halve,
    /// Commit a transaction without records, then the same record again.
    Probe,
    /// Dead-letter the record, alone in its own transaction.
    Condemn,
    /// Even without the record it fails: halt the partition.
    GiveUp,
}

/// The range being tried: its first record and how many there are.
pub type Range = (Option<RecordId>, usize);

/// The state of halving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Halving {
    limit: usize,
    /// Records of the last range that failed which have not been committed since.
    suspects: usize,
    range: Range,
    aborts: u32,
    probed: bool,
    condemned: Option<(RecordId, &'static str)>,
}

impl Default for Halving {
    fn default() -> Halving {
        Halving { limit: usize::MAX, suspects: 0, range: (None, 0), aborts: 0, probed: false, condemned: None }
    }
}

impl Halving {
    /// Most records of the next batch.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whether a range is being narrowed down.
    pub fn is_active(&self) -> bool {
        self.limit != usize::MAX
    }

    /// The code a batch of just this record is dead-lettered with.
    pub fn condemned(&self, range: Range) -> Option<&'static str> {
        let (record, code) = self.condemned?;
        (range == (Some(record), 1)).then_some(code)
    }

    /// A transaction with this range was aborted for a reason that may pass.
    pub fn aborted(&mut self, range: Range) -> Next {
        self.enter(range);
        self.aborts += 1;
        if self.aborts < ABORTS_PER_RANGE {
            return Next::Retry;
        }
        self.aborts = 0;
        match range {
            (_, 2..) => self.halve(range.1),
            _ if !self.probed => Next::Probe,
            _ => self.condemn(range, "record.poison"),
        }
    }

    /// The range cannot be folded or written as it is, whatever the broker does.
    pub fn refused(&mut self, range: Range, code: &'static str) -> Next {
        self.enter(range);
        match range.1 {
            2.. => self.halve(range.1),
            _ => self.condemn(range, code),
        }
    }

    /// An empty transaction went through: the records are to blame.
    pub fn probe_committed(&mut self) {
        self.probed = true;
    }

    /// A batch was committed. While a bad range is not used up, the bad record is in what is left of it, so that is
    /// halved again; after it, twice as many records are tried next.
    pub fn committed(&mut self, records: usize) {
        let suspects = self.suspects.saturating_sub(records);
        let limit = match suspects {
            0 => self.limit.saturating_mul(2),
            left => left.div_ceil(2),
        };
        let limit = if limit > 1 << 20 { usize::MAX } else { limit };
        *self = Halving { limit, suspects, ..Halving::default() };
    }

    fn enter(&mut self, range: Range) {
        if self.range != range {
            self.range = range;
            self.aborts = 0;
            self.probed = false;
        }
    }

    fn halve(&mut self, records: usize) -> Next {
        self.suspects = records;
        self.limit = records.div_ceil(2).min(records - 1);
        Next::Halve
    }

    fn condemn(&mut self, range: Range, code: &'static str) -> Next {
        let Some(record) = range.0.filter(|_| self.condemned(range).is_none()) else { return Next::GiveUp };
        self.limit = 1;
        self.condemned = Some((record, code));
        Next::Condemn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(offset: i64) -> RecordId {
        RecordId { input: 3, partition: 0, offset }
    }

    /// Commits batches of records `0..count` of which `bad` always aborts; returns what was dead-lettered and how many
    /// transactions were tried.
    fn drive(count: i64, bad: i64, broker_broken_until: u32) -> (Vec<i64>, u32) {
        let (mut halving, mut at, mut tried, mut dead) = (Halving::default(), 0, 0, vec![]);
        while at < count {
            let to = (at + halving.limit().min(100) as i64).min(count);
            let range = (Some(id(at)), (to - at) as usize);
            tried += 1;
            let condemned = halving.condemned(range);
            if tried > broker_broken_until && (!(at..to).contains(&bad) || condemned.is_some()) {
                dead.extend(condemned.map(|_| at));
                halving.committed(range.1);
                at = to;
                continue;
            }
            match halving.aborted(range) {
                Next::Probe if tried > broker_broken_until => halving.probe_committed(),
                Next::GiveUp => panic!("gave up at {at}"),
                _ => {}
            }
        }
        (dead, tried)
    }

    #[test]
    fn one_record_is_found_and_nothing_else() {
        for bad in [0, 1, 63, 99, 150] {
            let (dead, tried) = drive(200, bad, 0);
            assert_eq!(dead, [bad]);
            assert!(tried < 40, "{tried} transactions for record {bad}");
        }
    }

    #[test]
    fn a_broken_broker_costs_no_record() {
        let (dead, _) = drive(200, -1, 500);
        assert!(dead.is_empty(), "{dead:?}");
    }

    #[test]
    fn what_cannot_be_folded_is_narrowed_at_once() {
        let mut halving = Halving::default();
        assert_eq!(halving.refused((Some(id(0)), 3), "engine.panic"), Next::Halve);
        assert_eq!(halving.limit(), 2);
        assert_eq!(halving.refused((Some(id(0)), 2), "engine.panic"), Next::Halve);
        assert_eq!(halving.refused((Some(id(0)), 1), "engine.panic"), Next::Condemn);
        assert_eq!(halving.condemned((Some(id(0)), 1)), Some("engine.panic"));
        assert_eq!(halving.condemned((Some(id(1)), 1)), None, "another record is not condemned with it");
        assert_eq!(halving.refused((Some(id(0)), 1), "engine.panic"), Next::GiveUp);
    }

    #[test]
    fn a_tick_that_keeps_failing_is_given_up_only_after_a_probe() {
        let mut halving = Halving::default();
        let tick = (None, 0);
        let nexts: Vec<_> = (0..3).map(|_| halving.aborted(tick)).collect();
        assert_eq!(nexts, [Next::Retry, Next::Retry, Next::Probe]);
        halving.probe_committed();
        let nexts: Vec<_> = (0..3).map(|_| halving.aborted(tick)).collect();
        assert_eq!(nexts, [Next::Retry, Next::Retry, Next::GiveUp]);
    }
}
