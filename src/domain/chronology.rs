//! One entry of a user's timeline: what happened, what it was worth, and what it changed. Entries are numbered
//! without gaps and chained by hash, so a reader can tell that none is missing or altered.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::envelope::Envelope;
use super::signal::{Destination, RawPosition, Resource};
use super::{Text, Timestamp};

/// The value of `activity-chronology`. Field order is the schema's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename = "ChronologyEntry")]
pub struct ChronologyEntry<'a> {
    #[serde(borrow)]
    pub envelope: Envelope<'a>,
    #[serde(borrow)]
    pub entry_id: Text<'a>,
    /// 1, 2, 3 … per user, without gaps.
    pub seq: i64,
    /// See `chain_hash`.
    #[serde(borrow)]
    pub hash: Text<'a>,
    #[serde(borrow)]
    pub prev_hash: Text<'a>,
    /// activity, trigger, score_level, alert or correction.
    #[serde(borrow)]
    pub kind: Text<'a>,
    #[serde(borrow)]
    pub category: Option<Text<'a>>,
    #[serde(borrow)]
    pub indicator: Option<Text<'a>>,
    #[serde(borrow)]
    pub title: Text<'a>,
    #[serde(borrow)]
    pub headline: Text<'a>,
    #[serde(borrow)]
    pub day: Option<Text<'a>>,
    pub from: Timestamp,
    pub to: Timestamp,
    /// The insight after this entry: absolute, never a delta.
    #[serde(borrow)]
    pub insight: Option<Insight<'a>>,
    pub points_delta_milli: i64,
    #[serde(borrow)]
    pub signal: Option<SignalFacts<'a>>,
    pub score_before_milli: i64,
    pub score_after_milli: i64,
    #[serde(borrow)]
    pub level_before: Text<'a>,
    #[serde(borrow)]
    pub level_after: Text<'a>,
    #[serde(borrow)]
    pub supersedes: Option<Text<'a>>,
    #[serde(borrow)]
    pub alert_ids: Vec<Text<'a>>,
    #[serde(borrow)]
    pub case_ids: Vec<Text<'a>>,
    /// late, clamped, duplicate_source, dedupe_full, unscored …
    #[serde(borrow)]
    pub flags: Vec<Text<'a>>,
}

/// user × indicator × day: a bubble on the chart, a card in the chronology, a term of the sum.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Insight<'a> {
    /// `<indicator>@<day>`.
    #[serde(borrow)]
    pub id: Text<'a>,
    pub revision: i64,
    pub count: i64,
    pub magnitude_milli: i64,
    pub bytes: i64,
    pub points_milli: i64,
    #[serde(borrow)]
    pub pivots: Vec<Pivot<'a>>,
}

/// How an insight spreads over one dimension.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pivot<'a> {
    /// destination or device.
    #[serde(borrow)]
    pub kind: Text<'a>,
    pub distinct: i64,
    #[serde(borrow)]
    pub top: Vec<NameCount<'a>>,
}

/// A name and how often it occurred.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NameCount<'a> {
    #[serde(borrow)]
    pub name: Text<'a>,
    pub count: i64,
}

/// What is shown of the signal behind an entry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SignalFacts<'a> {
    #[serde(borrow)]
    pub id: Text<'a>,
    pub at: Timestamp,
    #[serde(borrow)]
    pub source: Text<'a>,
    #[serde(borrow)]
    pub source_event_id: Text<'a>,
    #[serde(borrow)]
    pub raw: Option<RawPosition<'a>>,
    #[serde(borrow)]
    pub source_url: Option<Text<'a>>,
    #[serde(borrow)]
    pub outcome: Text<'a>,
    #[serde(borrow)]
    pub resources: Vec<Resource<'a>>,
    #[serde(borrow)]
    pub destination: Option<Destination<'a>>,
    /// Each factor by name, in thousandths as text, so that the magnitude can be recomputed.
    #[serde(borrow)]
    pub factors: BTreeMap<Text<'a>, Text<'a>>,
}

/// The chain link of an entry: the first 16 bytes of blake3 over the previous link and the facts of the entry, each
/// text preceded by its length as a little-endian u32, each number as a little-endian i64.
pub fn chain_hash(previous: &[u8; 16], entry: &ChronologyEntry<'_>) -> [u8; 16] {
    let mut bytes: smallvec::SmallVec<[u8; 512]> = smallvec::SmallVec::new();
    bytes.extend_from_slice(previous);
    for text in [
        entry.envelope.user_key.as_str(),
        entry.envelope.event_id.as_str(),
        entry.kind.as_str(),
        entry.indicator.as_deref().unwrap_or(""),
        entry.headline.as_str(),
    ] {
        bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    let insight = entry.insight.as_ref();
    for number in [
        entry.seq,
        entry.envelope.occurred_at.0,
        insight.map_or(0, |i| i.revision),
        insight.map_or(0, |i| i.magnitude_milli),
        entry.score_before_milli,
        entry.score_after_milli,
    ] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    let mut link = [0; 16];
    link.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..16]);
    link
}

/// Lower-case hexadecimal of a chain link.
pub fn link_hex(link: &[u8; 16]) -> String {
    use std::fmt::Write;
    link.iter().fold(String::with_capacity(32), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
        text
    })
}
