//! The published score and level of a user. What they add up from is computed in `engine/score.rs`.

use serde::{Deserialize, Serialize};

use super::envelope::Envelope;
use super::{Text, Timestamp};

/// Most contributions listed before the rest line.
pub const CONTRIBUTIONS_MAX: usize = 20;

/// The value of `risk-scores`. Field order is the schema's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename = "RiskScore")]
pub struct RiskScore<'a> {
    #[serde(borrow)]
    pub envelope: Envelope<'a>,
    pub score_milli: i64,
    #[serde(borrow)]
    pub level: Text<'a>,
    #[serde(borrow)]
    pub previous_level: Text<'a>,
    pub changed_at: Timestamp,
    pub as_of: Timestamp,
    pub next_change_at: Option<Timestamp>,
    /// All falls of level if nothing new happens.
    #[serde(borrow)]
    pub levels_ahead: Vec<LevelAhead<'a>>,
    /// The largest, then one line `rest` when there are more.
    #[serde(borrow)]
    pub contributions: Vec<Contribution<'a>>,
    #[serde(borrow)]
    pub boosters: Vec<Booster<'a>>,
    pub muted_milli: i64,
    /// Names of the lists that reached their maximum.
    #[serde(borrow)]
    pub truncated: Vec<Text<'a>>,
    pub chronology_seq: i64,
}

/// A fall of level that will come by itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LevelAhead<'a> {
    #[serde(borrow)]
    pub level: Text<'a>,
    pub at: Timestamp,
}

/// What one indicator adds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Contribution<'a> {
    #[serde(borrow)]
    pub indicator: Text<'a>,
    #[serde(borrow)]
    pub category: Text<'a>,
    /// Evidence after the caps.
    pub points_milli: i64,
    /// Part of the score without boosters; the parts and the boosters' lines add up to the score.
    pub share_milli: i64,
    pub insights: i64,
    pub last_at: Timestamp,
}

/// A multiplier in force, with its part of the score.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Booster<'a> {
    /// leaving, violation, priority_group or high_impact.
    #[serde(borrow)]
    pub kind: Text<'a>,
    pub factor_milli: i64,
    pub share_milli: i64,
    pub from: Timestamp,
    pub until: Option<Timestamp>,
}

/// The value of `risk-levels`: all that enforcement needs. Field order is the schema's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename = "RiskLevel")]
pub struct RiskLevel<'a> {
    #[serde(borrow)]
    pub envelope: Envelope<'a>,
    #[serde(borrow)]
    pub level: Text<'a>,
    /// Rises at once; falls after 24 h and 3 points below the bound.
    #[serde(borrow)]
    pub enforcement_level: Text<'a>,
    #[serde(borrow)]
    pub previous_level: Text<'a>,
    pub as_of: Timestamp,
    /// After this instant a consumer uses its configured fallback.
    pub valid_until: Timestamp,
    /// none, alert, confirmed or benign: whether a person has looked.
    #[serde(borrow)]
    pub review: Text<'a>,
    /// Categories only.
    #[serde(borrow)]
    pub reason_codes: Vec<Text<'a>>,
}
