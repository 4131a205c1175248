//! Mapping: a vendor's raw event becomes signals, is ignored with a reason, or is dead-lettered with a code.
//!
//! A mapping is a file (`config/mappings/<source>.toml`) whose VRL program picks what matters; `signal_builder.rs`
//! validates what it picked. Same bytes and same position in, same outcome out: `profile.rs` removes every function
//! that could tell two runs apart. Nothing here knows who a person is (`identity.rs` does) or does I/O beyond `load`.
//! Next: `program.rs`, then `signal_builder.rs`.

use std::borrow::Cow;

use crate::domain::Timestamp;
use crate::domain::signal::Signal;

mod code;
#[cfg(feature = "vrl")]
mod examples;
#[cfg(feature = "vrl")]
mod formats;
#[cfg(feature = "vrl")]
mod functions;
pub mod identity;
#[cfg(feature = "vrl")]
mod input;
#[cfg(feature = "vrl")]
mod json;
#[cfg(feature = "vrl")]
mod profile;
#[cfg(feature = "vrl")]
mod program;
#[cfg(feature = "vrl")]
mod signal_builder;
#[cfg_attr(not(feature = "vrl"), allow(dead_code, reason = "without programs only names are cleaned"))]
mod text;
#[cfg(feature = "vrl")]
mod time_function;
#[cfg(feature = "vrl")]
mod when;

pub use code::Code;
#[cfg(feature = "vrl")]
pub use examples::{Example, check_examples, describe, parse_examples};
#[cfg(feature = "vrl")]
pub use profile::{DENIED, UNBOUNDED};
#[cfg(feature = "vrl")]
pub use program::{Error, Mapping};

/// Deepest nesting of a raw event.
pub const DEPTH_MAX: usize = 64;
/// Most signals one record may give.
pub const SIGNALS_MAX: usize = 100;
/// Most expressions a program may run on one record; a bound that does not depend on the machine's speed.
pub const STEPS_MAX: u64 = 1_000_000;

/// Where a raw record lies and when it was written: all a program may know besides the event.
#[derive(Clone, Copy, Debug)]
pub struct RawMeta<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
    pub timestamp: Timestamp,
}

/// What the deployment tells every mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapConfig {
    /// Domains that are the company's own, lower case; an entry covers its subdomains. `%config.company_domains`.
    pub company_domains: Vec<String>,
    /// live, backfill or test: written to every signal.
    pub origin: Cow<'static, str>,
}

impl Default for MapConfig {
    fn default() -> MapConfig {
        MapConfig { company_domains: Vec::new(), origin: Cow::Borrowed("live") }
    }
}

/// What became of a raw record: a row of the map ledger.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// One or more signals. Never some of a record's signals: a record is mapped whole or dead-lettered whole, so a
    /// redrive cannot double what had already gone through.
    Signals(Vec<Draft>),
    /// No risk signal, and why. Counted; most lines of an audit feed end here.
    Ignored(Cow<'static, str>),
    /// Goes to `dead-letters`. The message names fields, never their values.
    Dead { code: Code, message: String },
}

impl Outcome {
    /// A dead letter.
    pub fn dead(code: Code, message: impl Into<String>) -> Outcome {
        Outcome::Dead { code, message: message.into() }
    }
}

/// The person who acted, as the source names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// upn, email, sid, domain_user, login, profile_id, badge or display_name.
    pub kind: &'static str,
    /// Canonical: see `identity::canonical`.
    pub value: String,
}

/// A signal before its person is known: `user_key`, `day` and `zone_offset_min` are still empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    pub signal: Signal<'static>,
    pub subject: Subject,
}

impl Draft {
    /// The finished signal of a person.
    pub fn attribute(self, user_key: &str, zone_offset_min: i64) -> Signal<'static> {
        let mut signal = self.signal;
        signal.user_key = user_key.to_owned().into();
        signal.zone_offset_min = zone_offset_min;
        signal.day = signal.occurred_at.day_at(zone_offset_min).iso().into();
        signal
    }
}

/// Anything that maps: a `Mapping`, or a stand-in in tests of the map role.
pub trait Mapper {
    /// What becomes of one raw record.
    fn run(&mut self, raw: &[u8], at: &RawMeta<'_>) -> Outcome;
}
