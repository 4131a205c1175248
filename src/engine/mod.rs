//! The fold: how inputs change a user and what is published about it. No I/O, no clock, no bytes.
//!
//! `decide` holds all judgement and returns events; `evolve` applies an event and cannot fail; `apply` runs one input
//! through both and hands chronology entries to the sink; `finish` publishes the latest values once per transaction.
//! Next: `fold.rs`.

use crate::domain::alert::Alert;
use crate::domain::chronology::ChronologyEntry;
use crate::domain::directory::Directory;
use crate::domain::policy::PolicySet;
use crate::domain::score::{RiskLevel, RiskScore};
use crate::domain::signal::Signal;
use crate::domain::{Text, Timestamp};

pub mod alerts;
pub mod decide_signal;
pub mod emit;
pub mod evolve;
pub mod explain;
pub mod factors;
pub mod fold;
pub mod headline;
pub mod math;
pub mod publish;
pub mod score;
pub mod state;
pub mod timer;

pub use state::User;

/// One input of one user.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    Directory(&'a Directory<'a>),
    Signal(&'a Signal<'a>),
    /// Runs everything of the user that is due at or before the context's stream time, one due instant per call.
    Timer {
        due: Timestamp,
    },
}

/// Where an input was first written; outputs take their ids from it.
#[derive(Clone, Copy, Debug)]
pub struct Position<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
}

/// What the fold may know besides the state.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub policies: &'a PolicySet,
    pub partition: i32,
    /// The batch's clock reading; stamps `recorded_at` and judges the future, nothing else.
    pub now: Timestamp,
    /// Largest min(event time, record timestamp) folded on this partition so far, this input included.
    pub stream_time: Timestamp,
    /// Signals older than this many days (against stream time) are too late.
    pub lateness_days: i64,
    /// How long a published level may be relied on, in milliseconds.
    pub level_valid_ms: i64,
}

/// Counters of a partition that the fold draws numbers from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    pub next_alert_no: i64,
    pub next_case_no: i64,
}

/// What became of an input: a row of the engine's ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A signal that counts; also an accepted directory record or a timer that did something.
    Scored,
    /// An indicator the catalogue does not know: in the chronology, worth nothing.
    Unscored,
    /// Seen before: nothing changed.
    Duplicate,
    /// To be dead-lettered with this code; state is untouched.
    Dead(DeadCode),
    /// A directory record older than the one in force, or a timer with nothing due.
    Unchanged,
}

/// Why the fold cannot take an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeadCode {
    TooLate,
    RetractionTooLate,
    InFuture,
    BadDay,
    BadTime,
    BadOp,
    BadCount,
    /// No user: the unattributed lane.
    Unattributed,
}

impl DeadCode {
    /// The stable code on the dead letter.
    pub const fn as_str(self) -> &'static str {
        match self {
            DeadCode::TooLate => "too_late",
            DeadCode::RetractionTooLate => "retraction.too_late",
            DeadCode::InFuture => "in_future",
            DeadCode::BadDay => "signal.bad_day",
            DeadCode::BadTime => "signal.bad_time",
            DeadCode::BadOp => "signal.bad_op",
            DeadCode::BadCount => "signal.bad_count",
            DeadCode::Unattributed => "unattributed",
        }
    }
}

/// Takes what the fold publishes, in order. The worker encodes it; tests print it; `verify` compares it.
pub trait Sink {
    /// One entry per accepted signal, trigger, change of level or of an alert.
    fn chronology(&mut self, entry: &ChronologyEntry<'_>);
    /// At most one per alert and transaction; `shadow` alerts go to their own topic.
    fn alert(&mut self, alert: &Alert<'_>, shadow: bool);
    /// At most one per user and transaction.
    fn score(&mut self, score: &RiskScore<'_>);
    /// At most one per user and transaction.
    fn level(&mut self, level: &RiskLevel<'_>);
    /// The user left: tombstones for score and level.
    fn gone(&mut self, user_key: &str);
}

/// Day and hour facts fixed when an input is accepted, and the text pieces ids are made of.
pub fn event_id(position: &Position<'_>, index: i64) -> Text<'static> {
    Text::from(format!("{}:{}:{}:{}", position.topic, position.partition, position.offset, index))
}
