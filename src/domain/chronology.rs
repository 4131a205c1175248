//! One entry of a user's timeline: what happened, what it was worth, and what it changed. Entries are numbered
//! without gaps and chained by hash, so a reader can tell that none is missing or altered.

use std::borrow::Cow;
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
    pub pivots: Cow<'a, [Pivot<'a>]>,
}

/// How an insight spreads over one dimension.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pivot<'a> {
    /// destination or device.
    #[serde(borrow)]
    pub kind: Text<'a>,
    pub distinct: i64,
    #[serde(borrow)]
    pub top: Cow<'a, [NameCount<'a>]>,
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
    pub resources: Cow<'a, [Resource<'a>]>,
    #[serde(borrow)]
    pub destination: Option<Destination<'a>>,
    /// Each factor by name, in thousandths as text, so that the magnitude can be recomputed.
    #[serde(borrow)]
    pub factors: BTreeMap<Text<'a>, Text<'a>>,
}

/// The chain link of an entry: the first 16 bytes of keyed blake3. Key: the previous link, then `seq` and
/// `occurred_at` as little-endian i64. Message: the insight's magnitude (i64) and revision (u32), the scores before and
/// after (u32; what is out of its range as the largest), all little-endian, then user key, event id, kind and indicator,
/// each preceded by its length as a little-endian u32. What is absent is 0 or empty. Title, headline, levels and the
/// shown facts of the signal are left out: they repeat what these and the signal itself say.
pub fn chain_hash(previous: &[u8; 16], entry: &ChronologyEntry<'_>) -> [u8; 16] {
    let mut key = [0; 32];
    key[..16].copy_from_slice(previous);
    key[16..24].copy_from_slice(&entry.seq.to_le_bytes());
    key[24..].copy_from_slice(&entry.envelope.occurred_at.0.to_le_bytes());
    let texts = [
        entry.envelope.user_key.as_str(),
        entry.envelope.event_id.as_str(),
        entry.kind.as_str(),
        entry.indicator.as_deref().unwrap_or(""),
    ];
    let length = 20 + texts.iter().map(|text| 4 + text.len()).sum::<usize>();
    let (mut near, mut far) = ([0; 192], Vec::new());
    let message = match near.get_mut(..length) {
        Some(message) => message,
        None => {
            far.resize(length, 0);
            &mut far[..]
        }
    };
    let insight = entry.insight.as_ref();
    let short = |number: i64| u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
    message[..8].copy_from_slice(&insight.map_or(0, |i| i.magnitude_milli).to_le_bytes());
    message[8..12].copy_from_slice(&short(insight.map_or(0, |i| i.revision)));
    message[12..16].copy_from_slice(&short(entry.score_before_milli));
    message[16..20].copy_from_slice(&short(entry.score_after_milli));
    let mut rest = &mut message[20..];
    for text in texts {
        let (length, after) = rest.split_at_mut(4);
        length.copy_from_slice(&(text.len() as u32).to_le_bytes());
        let (bytes, after) = after.split_at_mut(text.len());
        bytes.copy_from_slice(text.as_bytes());
        rest = after;
    }
    let mut link = [0; 16];
    link.copy_from_slice(&blake3::keyed_hash(&key, message).as_bytes()[..16]);
    link
}

/// Lower-case hexadecimal of a chain link.
pub fn link_hex(link: &[u8; 16]) -> String {
    String::from_utf8_lossy(&link_digits(link)).into_owned()
}

/// The digits of `link_hex`.
pub fn link_digits(link: &[u8; 16]) -> [u8; 32] {
    const PAIRS: [[u8; 2]; 256] = {
        let (digits, mut pairs, mut n) = (b"0123456789abcdef", [[0; 2]; 256], 0);
        while n < 256 {
            pairs[n] = [digits[n >> 4], digits[n & 15]];
            n += 1;
        }
        pairs
    };
    let mut text = [0; 32];
    for (pair, byte) in text.chunks_exact_mut(2).zip(link) {
        pair.copy_from_slice(&PAIRS[usize::from(*byte)]);
    }
    text
}
