//! A policy risk signal: one observed act of one person, normalised by a mapping.
//! Decoded once and borrowed from the record; nothing here decides what it is worth (see `engine/fold.rs`).
//! Next: `indicator.rs`, what kinds of act there are.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Text, Timestamp};

/// Longest list of resources a signal may carry.
pub const RESOURCES_MAX: usize = 50;

/// The value of `risk-signals`. Field order is the schema's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename = "RiskSignal")]
pub struct Signal<'a> {
    #[serde(borrow)]
    pub signal_id: Text<'a>,
    #[serde(borrow)]
    pub user_key: Text<'a>,
    #[serde(borrow)]
    pub source: Text<'a>,
    #[serde(borrow)]
    pub source_event_id: Text<'a>,
    #[serde(borrow)]
    pub activity_key: Option<Text<'a>>,
    /// create, revise or retract.
    #[serde(borrow)]
    pub op: Text<'a>,
    #[serde(borrow)]
    pub indicator: Text<'a>,
    pub occurred_at: Timestamp,
    pub ingested_at: Timestamp,
    /// `YYYY-MM-DD` in the person's own zone where known, else UTC. Fixed by the mapping.
    #[serde(borrow)]
    pub day: Text<'a>,
    pub zone_offset_min: i64,
    /// allowed, audited, warned, overridden, blocked, failed_to_block or unknown.
    #[serde(borrow)]
    pub outcome: Text<'a>,
    pub count: i64,
    pub bytes: Option<i64>,
    /// 0–1000.
    pub confidence: Option<i64>,
    #[serde(borrow)]
    pub vendor_severity: Option<Text<'a>>,
    #[serde(borrow)]
    pub policy_name: Option<Text<'a>>,
    #[serde(borrow)]
    pub labels: Vec<Text<'a>>,
    #[serde(borrow)]
    pub info_types: Vec<InfoType<'a>>,
    #[serde(borrow)]
    pub destination: Option<Destination<'a>>,
    #[serde(borrow)]
    pub resources: Vec<Resource<'a>>,
    pub resources_total: i64,
    pub is_complete: bool,
    #[serde(borrow)]
    pub device_id: Option<Text<'a>>,
    #[serde(borrow)]
    pub app: Option<Text<'a>>,
    #[serde(borrow)]
    pub ip: Option<Text<'a>>,
    #[serde(borrow)]
    pub justification: Option<Text<'a>>,
    pub off_hours: Option<bool>,
    #[serde(borrow)]
    pub raw: Option<RawPosition<'a>>,
    #[serde(borrow)]
    pub source_url: Option<Text<'a>>,
    /// `id@hash` of the mapping that made the signal.
    #[serde(borrow)]
    pub mapping: Text<'a>,
    /// live, backfill or test.
    #[serde(borrow)]
    pub origin: Text<'a>,
    #[serde(borrow)]
    pub attributes: BTreeMap<Text<'a>, Text<'a>>,
}

/// A kind of sensitive information found in the content.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InfoType<'a> {
    #[serde(borrow)]
    pub name: Text<'a>,
    pub count: i64,
    /// 0–1000.
    pub confidence: i64,
}

/// Where the content went.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Destination<'a> {
    /// domain, email, device, printer, share, app or public_link.
    #[serde(borrow)]
    pub kind: Text<'a>,
    #[serde(borrow)]
    pub value: Text<'a>,
    /// external, internal or unknown.
    #[serde(borrow)]
    pub direction: Text<'a>,
}

/// A file, message or other object the act touched.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Resource<'a> {
    #[serde(borrow)]
    pub id: Text<'a>,
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    #[serde(borrow)]
    pub path: Option<Text<'a>>,
    #[serde(borrow)]
    pub kind: Text<'a>,
    pub bytes: Option<i64>,
    #[serde(borrow)]
    pub label: Option<Text<'a>>,
    #[serde(borrow)]
    pub sha256: Option<Text<'a>>,
}

/// The raw record a signal was mapped from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RawPosition<'a> {
    #[serde(borrow)]
    pub topic: Text<'a>,
    pub partition: i64,
    pub offset: i64,
}

/// What a signal does to the activity it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Create,
    Revise,
    Retract,
}

impl Op {
    /// Reads the word of the `op` field.
    pub fn parse(word: &str) -> Option<Op> {
        match word {
            "create" => Some(Op::Create),
            "revise" => Some(Op::Revise),
            "retract" => Some(Op::Retract),
            _ => None,
        }
    }
}
