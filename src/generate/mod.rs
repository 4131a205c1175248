//! A seeded population whose activity feeds tests, demos and benches: people with habits, a few insiders, and the
//! vendor events or normalised signals they cause, in order of arrival. The same seed gives the same bytes everywhere.
//! It is a pure library: no Kafka, no files, no clock, no floats.
//! Next: `population.rs`, who the people are; then `activity.rs`, what they do on a day.

mod activity;
mod bench;
mod delivery;
mod detail;
mod live;
mod population;
mod prng;
mod signals;
mod truth;
mod vendor;

use thiserror::Error;

use crate::domain::Timestamp;
use crate::domain::time::{DAY_MS, EVENT_TIME_MAX, EVENT_TIME_MIN};

pub use bench::{BenchSignals, bench_signals, bench_user_key};
pub use live::Live;
pub use population::{Person, Population, Scenario, Story};
pub use signals::signals;
pub use truth::{Truth, truth};
pub use vendor::{RawEvent, SOURCES, events};

/// Most people of one population; all of them are held in memory.
pub const USERS_MAX: u32 = 1_000_000;
/// Longest activity: ten years.
pub const DAYS_MAX: u32 = 3_650;
/// A share of one, in thousandths.
pub const PER_MILLE: u32 = 1_000;

/// What to generate. Shares are in thousandths of the events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Everything follows from it.
    pub seed: u64,
    /// People, one service account included.
    pub users: u32,
    /// Days of activity.
    pub days: u32,
    /// The first day's midnight in UTC. People live by local days, so those east of it begin up to ten hours earlier.
    pub start: Timestamp,
    /// Lower-case domain of the company's mail addresses.
    pub company_domain: String,
    /// How many people mean (or do) harm.
    pub insiders: Insiders,
    /// Events that arrive one hour to three days late.
    pub late_per_mille: u32,
    /// Events delivered a second time.
    pub duplicate_per_mille: u32,
    /// Events that arrive up to half an hour after later ones of their source.
    pub out_of_order_per_mille: u32,
}

/// How many insiders a population has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insiders {
    /// So many people.
    Count(u32),
    /// So many of a thousand people.
    PerMille(u32),
}

impl Default for Config {
    /// 200 people over 90 days, with the disorder real feeds have.
    fn default() -> Config {
        Config {
            seed: 1,
            users: 200,
            days: 90,
            // 2026-01-05, a Monday.
            start: Timestamp(1_767_571_200_000),
            company_domain: "example.com".to_owned(),
            insiders: Insiders::Count(4),
            late_per_mille: 30,
            duplicate_per_mille: 5,
            out_of_order_per_mille: 100,
        }
    }
}

/// Why a population cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Error {
    #[error("could not generate for {0} users; choose 1 to {USERS_MAX}")]
    Users(u32),
    #[error("could not generate {0} days; choose 1 to {DAYS_MAX}")]
    Days(u32),
    #[error("could not start at {0} ms: not a midnight in UTC between 2000 and 2105; choose another day")]
    Start(i64),
    #[error("could not use company domain `{0}`; choose lower-case letters, digits, dots and hyphens")]
    Domain(String),
    #[error("could not choose {insiders} insiders among {users} users; choose fewer, the service account is none")]
    Insiders { insiders: u32, users: u32 },
    #[error("could not use {0} per mille as a share; choose 0 to {PER_MILLE}")]
    Share(u32),
}

impl Error {
    /// Stable code of the error.
    pub const fn code(&self) -> &'static str {
        match self {
            Error::Users(_) => "generate.users",
            Error::Days(_) => "generate.days",
            Error::Start(_) => "generate.start",
            Error::Domain(_) => "generate.domain",
            Error::Insiders { .. } => "generate.insiders",
            Error::Share(_) => "generate.share",
        }
    }
}

impl Config {
    /// The number of insiders meant.
    pub fn insider_count(&self) -> u32 {
        match self.insiders {
            Insiders::Count(count) => count,
            Insiders::PerMille(share) => (u64::from(self.users) * u64::from(share) / u64::from(PER_MILLE)) as u32,
        }
    }

    fn validate(&self) -> Result<(), Error> {
        if self.users == 0 || self.users > USERS_MAX {
            return Err(Error::Users(self.users));
        }
        if self.days == 0 || self.days > DAYS_MAX {
            return Err(Error::Days(self.days));
        }
        // A week more, for what is late.
        let end = self.start.plus_ms(i64::from(self.days + 7) * DAY_MS);
        if self.start.0 % DAY_MS != 0 || self.start < EVENT_TIME_MIN || end > EVENT_TIME_MAX {
            return Err(Error::Start(self.start.0));
        }
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-';
        if self.company_domain.is_empty() || self.company_domain.len() > 253 || !self.company_domain.bytes().all(plain)
        {
            return Err(Error::Domain(self.company_domain.clone()));
        }
        let shares = [self.late_per_mille, self.duplicate_per_mille, self.out_of_order_per_mille];
        if let Some(share) = shares.into_iter().find(|share| *share > PER_MILLE) {
            return Err(Error::Share(share));
        }
        if self.insider_count() > self.users - 1 {
            return Err(Error::Insiders { insiders: self.insider_count(), users: self.users });
        }
        Ok(())
    }
}
