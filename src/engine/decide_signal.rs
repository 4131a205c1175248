//! What becomes of a signal: refused, known already, or a change of state. Reads the state, changes nothing.
//! Next: `evolve.rs`.

use smallvec::SmallVec;

use super::state::{SIGNALS_PER_DAY_MAX, SignalEntry, User, activity_hash, hash32, signal_id};
use super::{Context, DeadCode, evolve::Change, factors};
use crate::domain::signal::{Op, Signal};
use crate::domain::time::{DAY_MS, EVENT_TIME_MAX, EVENT_TIME_MIN, HOUR_MS, SECOND_MS};
use crate::domain::{Day, Timestamp};

/// Event times further ahead of the clock are moved back to here.
pub const AHEAD_MS_MAX: i64 = 300 * SECOND_MS;
/// Event times further ahead of the clock are refused.
pub const FUTURE_MS_MAX: i64 = 24 * HOUR_MS;
/// Largest count of one signal.
pub const COUNT_MAX: i64 = 1_000_000;
/// Stamp of an entry that knows only a retraction, below every create (0) and revision.
pub const RESERVED: Timestamp = Timestamp(-1);

/// A signal whose fields have been checked.
#[derive(Clone, Debug)]
pub struct Checked {
    pub op: Op,
    pub at: Timestamp,
    pub day: Day,
    /// Position in the catalogue; `None` when the indicator is unknown there.
    pub position: Option<usize>,
    pub factors: factors::Applied,
    pub entry: SignalEntry,
    pub clamped: bool,
    /// The day already remembers as many signals as it may.
    pub full: bool,
}

/// The judgement on a signal.
#[derive(Clone, Debug)]
pub enum Decision {
    Dead(DeadCode),
    /// Nothing to count. The names may still be new, when a revision came before its create.
    Duplicate(Checked),
    Accept(Checked, Change),
}

/// Judges a signal.
#[inline]
pub fn decide(user: &User, signal: &Signal<'_>, ctx: &Context<'_>) -> Decision {
    let checked = match check(signal, ctx) {
        Ok(checked) => checked,
        Err(code) => return Decision::Dead(code),
    };
    let late = checked.at.0 < ctx.stream_time.0 - ctx.lateness_days * DAY_MS;
    match find(user, checked.day, checked.entry.id) {
        Some((day, known)) => against(checked, day, &known),
        None if late && checked.op == Op::Retract => Decision::Dead(DeadCode::RetractionTooLate),
        None if late => Decision::Dead(DeadCode::TooLate),
        None => fresh(user, checked),
    }
}

#[inline]
fn fresh(user: &User, mut checked: Checked) -> Decision {
    let (day, entry) = (checked.day, checked.entry);
    if checked.op == Op::Retract {
        let entry = SignalEntry { id: entry.id, revised_at: RESERVED, retracted: true, ..SignalEntry::default() };
        return Decision::Accept(checked, Change::Reserve { day, entry });
    }
    checked.full = user.day(day).is_some_and(|d| d.signals.len() >= SIGNALS_PER_DAY_MAX);
    Decision::Accept(checked, Change::Insert { day, entry })
}

/// The content of the latest revision counts, and a retraction is final: so the order of arrival does not matter.
fn against(mut checked: Checked, was: Day, known: &SignalEntry) -> Decision {
    let id = known.id;
    if checked.op == Op::Retract {
        if known.retracted {
            return Decision::Duplicate(checked);
        }
        return Decision::Accept(checked, Change::Retract { day: was, id });
    }
    if checked.entry.revised_at <= known.revised_at {
        return Decision::Duplicate(checked);
    }
    checked.entry.retracted = known.retracted;
    let (day, entry) = (checked.day, checked.entry);
    Decision::Accept(checked, Change::Replace { was, day, entry })
}

/// The entry of a signal: first where the signal says its day is, then on every day that remembers signals.
#[inline]
fn find(user: &User, day: Day, id: u64) -> Option<(Day, SignalEntry)> {
    let on = |d: &super::state::DaySegment| {
        d.signals.binary_search_by_key(&id, |s| s.id).ok().map(|n| (d.day, d.signals[n]))
    };
    user.day(day).and_then(on).or_else(|| user.days.iter().rev().filter(|d| d.day != day).find_map(on))
}

#[inline]
fn check(signal: &Signal<'_>, ctx: &Context<'_>) -> Result<Checked, DeadCode> {
    if signal.user_key.is_empty() {
        return Err(DeadCode::Unattributed);
    }
    let op = Op::parse(&signal.op).ok_or(DeadCode::BadOp)?;
    let mut at = signal.occurred_at;
    if !(EVENT_TIME_MIN..=EVENT_TIME_MAX).contains(&at) {
        return Err(DeadCode::BadTime);
    }
    let mut day = Day::parse(&signal.day).ok_or(DeadCode::BadDay)?;
    if (day.0 - at.day_at(0).0).abs() > 1 {
        return Err(DeadCode::BadDay);
    }
    if !(1..=COUNT_MAX).contains(&signal.count) || signal.bytes.is_some_and(|b| b < 0) {
        return Err(DeadCode::BadCount);
    }
    if at > ctx.now.plus_ms(FUTURE_MS_MAX) {
        return Err(DeadCode::InFuture);
    }
    let zone = signal.zone_offset_min.clamp(-1_440, 1_440);
    let latest = ctx.now.plus_ms(AHEAD_MS_MAX);
    let clamped = at > latest;
    if clamped {
        at = latest;
        day = at.day_at(zone);
    }
    let position = ctx.policies.catalogue.position(&signal.indicator);
    let factors = factors::of(signal, &ctx.policies.catalogue.factors);
    let code = position.map_or(0, |n| ctx.policies.catalogue.indicators[n].code);
    let entry = entry(signal, op, at, zone, code, factors.factor_milli);
    Ok(Checked { op, at, day, position, factors, entry, clamped, full: false })
}

#[inline]
fn entry(signal: &Signal<'_>, op: Op, at: Timestamp, zone: i64, code: u16, factor_milli: u16) -> SignalEntry {
    SignalEntry {
        id: signal_id(&signal.source, &signal.source_event_id),
        activity: signal.activity_key.as_deref().filter(|k| !k.is_empty()).map_or(0, activity_hash),
        code,
        factor_milli,
        count: signal.count as u32,
        bytes: signal.bytes.unwrap_or(0) as u64,
        hour: at.local_hour(zone),
        destination: signal.destination.as_ref().map_or(0, |d| name_hash(factors::place(d))),
        device: signal.device_id.as_deref().map_or(0, name_hash),
        at,
        revised_at: if op == Op::Create { Timestamp(0) } else { Timestamp(signal.ingested_at.0.max(1)) },
        retracted: false,
    }
}

fn name_hash(name: &str) -> u32 {
    if name.is_empty() {
        0
    } else if name.bytes().any(|b| b.is_ascii_uppercase()) {
        let mut lower: SmallVec<[u8; 64]> = SmallVec::from_slice(name.as_bytes());
        lower.make_ascii_lowercase();
        hash32(&lower)
    } else {
        hash32(name.as_bytes())
    }
}
