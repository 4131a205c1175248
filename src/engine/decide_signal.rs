//! What becomes of a signal: refused, known already, or a change of state. Reads the state, changes nothing.
//! Next: `evolve.rs`.

use smallvec::SmallVec;

use super::state::{DaySegment, SIGNALS_PER_DAY_MAX, SignalEntry, User, activity_hash, hash32, signal_id};
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
pub struct Checked<'s> {
    pub op: Op,
    pub at: Timestamp,
    pub day: Day,
    /// Position in the catalogue; `None` when the indicator is unknown there.
    pub position: Option<usize>,
    pub factors: factors::Applied,
    /// What tells the destination apart; empty when there is none.
    pub place: &'s str,
    pub entry: SignalEntry,
    pub clamped: bool,
    /// The day already remembers as many signals as it may.
    pub full: bool,
}

/// Judges a signal that has been checked. No change: nothing to count. The names may still be new then, when a
/// revision came before its create.
#[inline]
pub fn decide(user: &User, checked: &mut Checked<'_>, ctx: &Context<'_>) -> Result<Option<Change>, DeadCode> {
    let late = checked.at.0 < ctx.stream_time.0 - ctx.lateness_days * DAY_MS;
    match find(user, checked.day, checked.entry.id) {
        Some((day, known)) => Ok(against(checked, day, known)),
        None if late && checked.op == Op::Retract => Err(DeadCode::RetractionTooLate),
        None if late => Err(DeadCode::TooLate),
        None => Ok(Some(fresh(user, checked))),
    }
}

#[inline]
fn fresh(user: &User, checked: &mut Checked<'_>) -> Change {
    let (day, entry) = (checked.day, checked.entry);
    if checked.op == Op::Retract {
        let entry = SignalEntry { id: entry.id, revised_at: RESERVED, retracted: true, ..SignalEntry::default() };
        return Change::Reserve { day, entry };
    }
    checked.full = user.day(day).is_some_and(|d| d.signals.len() >= SIGNALS_PER_DAY_MAX);
    Change::Insert { day, entry }
}

/// The content of the latest revision counts, and a retraction is final: so the order of arrival does not matter.
fn against(checked: &mut Checked<'_>, was: Day, known: &SignalEntry) -> Option<Change> {
    let id = known.id;
    if checked.op == Op::Retract {
        return (!known.retracted).then_some(Change::Retract { day: was, id });
    }
    if checked.entry.revised_at <= known.revised_at {
        return None;
    }
    checked.entry.retracted = known.retracted;
    let (day, entry) = (checked.day, checked.entry);
    Some(Change::Replace { was, day, entry })
}

/// The entry of a signal: first where the signal says its day is, then on every day that remembers signals.
#[inline]
fn find(user: &User, day: Day, id: u64) -> Option<(Day, &SignalEntry)> {
    fn on(d: &DaySegment, id: u64) -> Option<(Day, &SignalEntry)> {
        d.signals.binary_search_by_key(&id, |s| s.id).ok().map(|n| (d.day, &d.signals[n]))
    }
    let on = |d| on(d, id);
    user.day(day).and_then(on).or_else(|| user.days.iter().rev().filter(|d| d.day != day).find_map(on))
}

/// Checks the fields of a signal, and works out of them what the engine goes by.
#[inline]
pub fn check<'s>(signal: &'s Signal<'_>, ctx: &Context<'_>) -> Result<Checked<'s>, DeadCode> {
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
    let place = signal.destination.as_ref().map_or("", factors::place);
    let factors = factors::of(signal, place, &ctx.policies.catalogue.factors);
    let code = position.map_or(0, |n| ctx.policies.catalogue.indicators[n].code);
    let entry = SignalEntry {
        code,
        factor_milli: factors.factor_milli,
        hour: at.local_hour(zone),
        destination: name_hash(place),
        at,
        ..entry(signal, op)
    };
    Ok(Checked { op, at, day, position, factors, place, entry, clamped, full: false })
}

#[inline]
fn entry(signal: &Signal<'_>, op: Op) -> SignalEntry {
    SignalEntry {
        id: signal_id(&signal.source, &signal.source_event_id),
        activity: signal.activity_key.as_deref().filter(|k| !k.is_empty()).map_or(0, activity_hash),
        count: signal.count as u32,
        bytes: signal.bytes.unwrap_or(0) as u64,
        device: signal.device_id.as_deref().map_or(0, name_hash),
        revised_at: if op == Op::Create { Timestamp(0) } else { Timestamp(signal.ingested_at.0.max(1)) },
        ..SignalEntry::default()
    }
}

fn name_hash(name: &str) -> u32 {
    if name.is_empty() {
        0
    } else if has_uppercase(name.as_bytes()) {
        let mut lower: SmallVec<[u8; 64]> = SmallVec::from_slice(name.as_bytes());
        lower.make_ascii_lowercase();
        hash32(&lower)
    } else {
        hash32(name.as_bytes())
    }
}

/// Whether any byte is `A` to `Z`.
fn has_uppercase(name: &[u8]) -> bool {
    name.iter().any(u8::is_ascii_uppercase)
}

#[cfg(test)]
mod tests {
    use super::has_uppercase;

    #[test]
    fn capitals_are_found_wherever_they_are() {
        for length in 0..20 {
            for at in 0..length {
                for byte in 0..=u8::MAX {
                    let mut name = vec![b'z'; length];
                    name[at] = byte;
                    assert_eq!(has_uppercase(&name), byte.is_ascii_uppercase(), "{name:?}");
                }
            }
        }
        assert!(!has_uppercase(b""));
    }
}
