//! The state of a user: a head, the domains and devices seen, and one segment per day. Everything the score depends
//! on is a sum, a minimum or a set, so the order of arrival does not matter; everything else records what was known
//! when. Bounded: each list has a named maximum. How it is written down is `wire/state.rs`.
//! Next: `score.rs`, what it adds up to.

use smallvec::SmallVec;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::score::Known;
use crate::domain::alert::{Status, Window};
use crate::domain::{Day, Level, Timestamp};

/// Days a segment is kept: 90 days of look-back, 60 of reference before it, and 10 of slack.
pub const DAYS_KEPT: i32 = 160;
/// Signals of one day that are remembered one by one; further ones still count, but their repeats cannot be told.
pub const SIGNALS_PER_DAY_MAX: usize = 2_048;
/// Insights of one day.
pub const INSIGHTS_PER_DAY_MAX: usize = 64;
/// Destinations told apart within an insight: the smallest hashes.
pub const DESTINATIONS_PER_INSIGHT_MAX: usize = 8;
/// Domains, and devices, whose first day is remembered: the smallest hashes.
pub const SEEN_MAX: usize = 128;
/// Alerts kept in a head; the oldest closed one goes first.
pub const ALERTS_MAX: usize = 32;
/// Insights listed in one alert's evidence.
pub const EVIDENCE_MAX: usize = 256;
/// Remembered command ids.
pub const COMMANDS_MAX: usize = 1_024;
/// Hard cap of a user's encoded state in bytes; beyond it the oldest days forget their single signals.
pub const STATE_BYTES_MAX: usize = 64 << 10;

/// Everything known of one user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub head: Head,
    pub seen: Seen,
    /// Ascending by day.
    pub days: Vec<DaySegment>,
    pub changes: Changes,
}

/// Which parts differ from what was last written. Not part of the state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub head: bool,
    pub seen: bool,
    /// Changed days (also those in `days`), ascending, no repeats.
    pub days: SmallVec<[Day; 4]>,
    /// Days dropped since the last write.
    pub dropped: Vec<Day>,
    /// The level changed since the last `finish`.
    pub level: bool,
    /// The last accepted input since the last `finish`: what the latest values say caused them.
    pub cause: Cause,
    /// What the score was last made of, for whoever asks next.
    pub known: Known,
}

/// The input that latest values name as their cause. Not part of the state. Its texts keep their memory from one
/// input to the next; see `emit.rs`.
#[derive(Clone, Debug, Default)]
pub struct Cause {
    /// signal, directory or timer; empty: nothing was accepted.
    pub kind: &'static str,
    pub id: String,
    /// Partition and offset; `None` for a timer.
    pub position: Option<(i32, i64)>,
    /// The id of the latest record of this input: `<topic>:<partition>:<offset>` or a timer's whole id, then the index.
    pub event_id: String,
    /// How much of `event_id` is the topic, and how much is the same for all records of the input.
    pub topic_len: usize,
    pub base_len: usize,
    /// Index of the next record of this input.
    pub index: i64,
    /// live, backfill or test.
    pub origin: &'static str,
    /// Where an entry's headline and insight id are written.
    pub headline: String,
    pub insight_id: String,
}

impl PartialEq for Cause {
    fn eq(&self, other: &Cause) -> bool {
        (self.kind, &self.id, self.position, self.index) == (other.kind, &other.id, other.position, other.index)
    }
}

impl Eq for Cause {}

/// The small part: counters, what was last published, alerts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// +1 per accepted input.
    pub user_rev: i64,
    /// Last chronology number.
    pub seq: i64,
    /// Last chain link.
    pub chain: [u8; 16],
    /// Earliest day with a signal: how long we have known the person.
    pub first_day: Option<Day>,
    pub last_signal_at: Timestamp,
    pub directory: Option<Directory>,
    pub published: Published,
    pub alerts: Vec<AlertState>,
    /// Evidence a closed alert has used up, per policy: a successor needs new evidence beyond it.
    pub spent: Vec<Spent>,
    /// Hash and time of recent commands, oldest first.
    pub commands: Vec<(u64, Timestamp)>,
    /// Trigger time of policies with a `dlp_match` trigger: hash of the policy id, latest matching signal.
    pub triggers: Vec<(u64, Timestamp)>,
    /// Names of maxima that were reached, as bits of `LIMIT_*`.
    pub limits: u32,
}

/// `Head::limits`: a day held `SIGNALS_PER_DAY_MAX` signals.
pub const LIMIT_SIGNALS: u32 = 1;
/// `Head::limits`: a day held `INSIGHTS_PER_DAY_MAX` insights.
pub const LIMIT_INSIGHTS: u32 = 2;
/// `Head::limits`: `SEEN_MAX` was reached.
pub const LIMIT_SEEN: u32 = 4;
/// `Head::limits`: `ALERTS_MAX` was reached.
pub const LIMIT_ALERTS: u32 = 8;
/// `Head::limits`: `STATE_BYTES_MAX` was reached.
pub const LIMIT_BYTES: u32 = 16;

/// Facts about the person, from the directory record with the highest version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    pub version: i64,
    pub announced: Option<Timestamp>,
    pub last_day: Option<Timestamp>,
    pub high_impact: bool,
    pub service_account: bool,
    /// First 8 bytes of blake3 of each group's name, ascending.
    pub groups: Vec<u64>,
}

/// What was last published, so that changes are recognised and the copy in Redis can be written from the head alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    pub score_milli: i64,
    pub level: Level,
    pub previous_level: Level,
    pub level_changed_at: Timestamp,
    pub enforcement: Level,
    pub previous_enforcement: Level,
    /// Since when the score has been 3 points below the bound of `enforcement`.
    pub below_since: Option<Timestamp>,
    pub as_of: Timestamp,
    pub valid_until: Timestamp,
    /// When the next fall of level comes, and to what.
    pub next_fall_at: Option<Timestamp>,
    pub next_level: Level,
}

/// Domains and devices with the first day each was seen; ascending by hash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub domains: SmallVec<[(u32, Day); 2]>,
    pub devices: SmallVec<[(u32, Day); 2]>,
}

/// One day of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DaySegment {
    pub day: Day,
    /// Ascending by code.
    pub insights: Vec<Insight>,
    /// Ascending by id; empty once the day is older than the lateness horizon.
    pub signals: Vec<SignalEntry>,
    /// Signals per local hour of the day.
    pub hours: SmallVec<[(u8, u32); 2]>,
}

/// user × indicator × day: a term of the score.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Insight {
    /// The indicator's stable code.
    pub code: u16,
    /// +1 per change; not part of the score's law.
    pub revision: u32,
    pub count: u32,
    /// Sum of the signals' factors, in thousandths.
    pub magnitude_milli: u64,
    pub bytes: u64,
    /// Bit per local hour with a signal.
    pub hours: u32,
    pub last_at: Timestamp,
    /// Signals per destination (hash of its domain), ascending by hash; the smallest `DESTINATIONS_PER_INSIGHT_MAX`.
    pub destinations: Names,
    /// Signals per device, likewise.
    pub devices: Names,
}

/// Names by hash with how often each occurred; most insights know one.
pub type Names = SmallVec<[(u32, u32); 2]>;

/// One signal as remembered: enough to take back exactly what it added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignalEntry {
    /// See `signal_id`.
    pub id: u64,
    /// XXH3 of the activity key; 0 when there is none.
    pub activity: u64,
    pub code: u16,
    pub factor_milli: u16,
    pub count: u32,
    pub bytes: u64,
    pub hour: u8,
    /// 0 when there is none.
    pub destination: u32,
    pub device: u32,
    pub at: Timestamp,
    /// Largest `ingested_at` of the revisions applied; 0 for a create.
    pub revised_at: Timestamp,
    pub retracted: bool,
}

/// An alert as the engine keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AlertState {
    pub id: [u8; 16],
    pub number: i64,
    /// Hash of the policy's id (first 8 bytes of blake3).
    pub policy: u64,
    pub status: Status,
    pub revision: i64,
    pub window: Window,
    pub severity: Level,
    pub severity_peak: Level,
    pub score_milli: i64,
    /// Insights that took part: day and code, ascending.
    pub evidence: Vec<(Day, u16)>,
    pub predecessor: Option<[u8; 16]>,
    /// Changed since the last `finish`: what to publish as `change`. Empty otherwise.
    pub change: Change,
    pub expires_at: Timestamp,
}

/// The change an alert's record names; of several in one transaction `Opened`, else the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Change {
    #[default]
    None,
    Opened,
    EvidenceAdded,
    Severity,
    Status,
    Late,
    Retracted,
    Frozen,
}

/// What a closed alert has used up of one insight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    pub policy: u64,
    pub day: Day,
    pub code: u16,
    pub count: u32,
    pub magnitude_milli: u64,
    pub bytes: u64,
}

impl Changes {
    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        let Changes { head, seen, days, dropped, level, cause, known } = self;
        (*head, *seen, *level) = (false, false, false);
        days.clear();
        dropped.clear();
        cause.clear();
        known.clear();
    }

    /// Whether anything must be written or published.
    pub fn is_written(&self) -> bool {
        let Changes { head, seen, days, dropped, level, cause, known: _ } = self;
        *head || *seen || *level || !days.is_empty() || !dropped.is_empty() || !cause.kind.is_empty()
    }

    /// Marks a day's segment as changed.
    pub fn mark_day(&mut self, day: Day) {
        if let Err(n) = self.days.binary_search(&day) {
            self.days.insert(n, day);
        }
    }
}

impl User {
    /// The segment of a day.
    pub fn day(&self, day: Day) -> Option<&DaySegment> {
        self.days.binary_search_by_key(&day, |d| d.day).ok().map(|n| &self.days[n])
    }
}

/// The first 8 bytes of blake3 of a text, as a little-endian number.
pub fn hash64(text: &str) -> u64 {
    u64::from_le_bytes(blake3::hash(text.as_bytes()).as_bytes()[..8].try_into().expect("8 bytes"))
}

/// The lower half of a name's XXH3, never 0 (0 stands for "none").
#[inline]
pub fn hash32(name: &[u8]) -> u32 {
    (xxh3_64(name) as u32).max(1)
}

/// XXH3 of an activity key, never 0.
#[inline]
pub fn activity_hash(key: &str) -> u64 {
    xxh3_64(key.as_bytes()).max(1)
}

/// The identity of a signal for deduplication: XXH3 of the source's event id, seeded with XXH3 of the source.
#[inline]
pub fn signal_id(source: &str, source_event_id: &str) -> u64 {
    xxh3_64_with_seed(source_event_id.as_bytes(), xxh3_64(source.as_bytes()))
}
