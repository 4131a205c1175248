//! How an accepted signal changes the state. All judgement has been made in `decide_signal.rs`; nothing here can fail.
//! A plain new signal is added in place; whatever replaces, takes back or corroborates makes the day's insights anew
//! from the signals of the day, so that what remains is exactly what the remaining signals add up to.

use super::state::{
    DESTINATIONS_PER_INSIGHT_MAX, DaySegment, INSIGHTS_PER_DAY_MAX, Insight, LIMIT_INSIGHTS, LIMIT_SEEN, LIMIT_SIGNALS,
    Names, SEEN_MAX, SIGNALS_PER_DAY_MAX, SignalEntry, User,
};
use crate::domain::{Day, Timestamp};

/// What happens to the entry of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new entry on this day.
    Insert { day: Day, entry: SignalEntry },
    /// The entry found on `was` is replaced and lies on `day` from now on.
    Replace { was: Day, day: Day, entry: SignalEntry },
    /// The entry found on this day no longer counts.
    Retract { day: Day, id: u64 },
    /// A retraction that came before its signal: remembered, worth nothing.
    Reserve { day: Day, entry: SignalEntry },
}

/// Applies a change.
pub fn evolve(user: &mut User, change: &Change) {
    match *change {
        Change::Insert { day, entry } => insert(user, day, entry),
        Change::Reserve { day, entry } => {
            let segment = segment(user, day);
            if let Err(n) = segment.signals.binary_search_by_key(&entry.id, |s| s.id)
                && segment.signals.len() < SIGNALS_PER_DAY_MAX
            {
                segment.signals.insert(n, entry);
            }
            user.changes.mark_day(day);
        }
        Change::Replace { was, day, entry } => {
            remove(user, was, entry.id);
            insert(user, day, entry);
        }
        Change::Retract { day, id } => retract(user, day, id),
    }
}

/// Notes the first sight of a signal's names. Never undone, so that only the set of signals matters.
/// Says whether insights that are there already may be worth something else now: a name is known for longer, or has
/// made another be forgotten, or the person is known for longer. Of a new name no insight knows yet.
pub fn sight(user: &mut User, day: Day, at: Timestamp, destination: u32, device: u32) -> bool {
    let (mut changed, mut others) = (false, false);
    for (list, name) in [(&mut user.seen.domains, destination), (&mut user.seen.devices, device)] {
        if name == 0 {
            continue;
        }
        match list.binary_search_by_key(&name, |s| s.0) {
            Ok(n) if list[n].1 <= day => {}
            Ok(n) => {
                list[n].1 = day;
                (changed, others) = (true, true);
            }
            Err(n) => {
                let full = list.len() == SEEN_MAX;
                if full {
                    user.head.limits |= LIMIT_SEEN;
                    others = true;
                }
                if n < SEEN_MAX {
                    list.truncate(SEEN_MAX - 1 + usize::from(!full));
                    list.insert(n, (name, day));
                    changed = true;
                }
            }
        }
    }
    user.changes.seen |= changed;
    let earlier = user.head.first_day.is_none_or(|first| day < first);
    if earlier {
        user.head.first_day = Some(day);
        user.changes.head = true;
    }
    if at > user.head.last_signal_at {
        user.head.last_signal_at = at;
        user.changes.head = true;
    }
    others || (earlier && !user.days.is_empty())
}

/// Days older than the lateness horizon forget their single signals; days older than `DAYS_KEPT` go altogether.
pub fn forget(user: &mut User, today: Day, lateness_days: i64) {
    let oldest = today.0 - super::state::DAYS_KEPT;
    // Two days of slack: a signal's day may differ from its instant's by one, and today has only begun.
    let horizon = today.0 - lateness_days as i32 - 2;
    if user.days.first().is_none_or(|d| d.day.0 > oldest && d.day.0 >= horizon) {
        return;
    }
    let gone = user.days.iter().take_while(|d| d.day.0 <= oldest).count();
    if gone > 0 {
        // Terms name days by their place.
        user.changes.known = Default::default();
    }
    for segment in user.days.drain(..gone) {
        user.changes.dropped.push(segment.day);
        user.changes.days.retain(|d| *d != segment.day);
    }
    for segment in user.days.iter_mut().take_while(|d| d.day.0 < horizon) {
        if !segment.signals.is_empty() {
            segment.signals = Vec::new();
            user.changes.mark_day(segment.day);
        }
    }
}

fn segment(user: &mut User, day: Day) -> &mut DaySegment {
    let n = match user.days.binary_search_by_key(&day, |d| d.day) {
        Ok(n) => n,
        Err(n) => {
            user.days.insert(n, DaySegment { day, ..DaySegment::default() });
            user.changes.dropped.retain(|d| *d != day);
            n
        }
    };
    &mut user.days[n]
}

fn insert(user: &mut User, day: Day, entry: SignalEntry) {
    let segment = segment(user, day);
    let full = segment.signals.len() >= SIGNALS_PER_DAY_MAX;
    let alone = entry.activity == 0 || !segment.signals.iter().any(|s| same_act(s, &entry));
    let whole = alone || is_whole(segment);
    if !full && let Err(n) = segment.signals.binary_search_by_key(&entry.id, |s| s.id) {
        segment.signals.insert(n, entry);
    }
    let mut limits = if full { LIMIT_SIGNALS } else { 0 };
    if alone && counts(&entry) {
        limits |= add(segment, &entry);
    } else if !alone && whole && !full {
        limits |= rebuild(segment);
    } else if !alone {
        limits |= outdo(segment, &entry);
    }
    user.head.limits |= limits;
    user.changes.mark_day(day);
}

/// A further report of an act, on a day that cannot be made anew: it takes the place of the one that counted.
fn outdo(segment: &mut DaySegment, entry: &SignalEntry) -> u32 {
    let best = segment.signals.iter().filter(|s| same_act(s, entry)).max_by_key(|s| rank(s)).copied();
    match best {
        Some(best) if rank(&best) < rank(entry) => {
            subtract(segment, &best);
            add(segment, entry)
        }
        _ => 0,
    }
}

fn remove(user: &mut User, day: Day, id: u64) {
    let Ok(d) = user.days.binary_search_by_key(&day, |d| d.day) else { return };
    let segment = &mut user.days[d];
    let Ok(n) = segment.signals.binary_search_by_key(&id, |s| s.id) else { return };
    let whole = is_whole(segment);
    let old = segment.signals.remove(n);
    without(segment, &old, whole);
    user.changes.mark_day(day);
    if segment.signals.is_empty() && segment.insights.is_empty() {
        user.days.remove(d);
        user.changes.days.retain(|changed| *changed != day);
        user.changes.dropped.push(day);
    }
}

fn retract(user: &mut User, day: Day, id: u64) {
    let Ok(d) = user.days.binary_search_by_key(&day, |d| d.day) else { return };
    let segment = &mut user.days[d];
    let Ok(n) = segment.signals.binary_search_by_key(&id, |s| s.id) else { return };
    let whole = is_whole(segment);
    let old = segment.signals[n];
    segment.signals[n].retracted = true;
    without(segment, &old, whole);
    user.changes.mark_day(day);
}

/// Makes the day right after `old` ceased to count. A day that does not remember all of its signals cannot be made
/// anew; there the one contribution is taken off.
fn without(segment: &mut DaySegment, old: &SignalEntry, whole: bool) {
    if !counts(old) {
        return;
    }
    if whole {
        rebuild(segment);
    } else {
        subtract(segment, old);
    }
}

fn counts(entry: &SignalEntry) -> bool {
    !entry.retracted && entry.code != 0
}

fn same_act(a: &SignalEntry, b: &SignalEntry) -> bool {
    a.activity == b.activity && counts(a) && counts(b) && a.id != b.id
}

/// Of several products that report one act, the one that counts: the largest by this key.
fn rank(entry: &SignalEntry) -> (u64, u16, u64) {
    (u64::from(entry.factor_milli) * u64::from(entry.count), entry.code, entry.id)
}

/// The entries that count, each act once.
pub fn effective(signals: &[SignalEntry]) -> impl Iterator<Item = &SignalEntry> {
    let mut best: std::collections::BTreeMap<u64, (u64, u16, u64)> = std::collections::BTreeMap::new();
    for entry in signals.iter().filter(|s| counts(s) && s.activity != 0) {
        let key = rank(entry);
        best.entry(entry.activity).and_modify(|b| *b = key.max(*b)).or_insert(key);
    }
    signals.iter().filter(move |s| counts(s) && best.get(&s.activity).is_none_or(|b| *b == rank(s)))
}

/// Whether the day still remembers every signal that its insights count.
fn is_whole(segment: &DaySegment) -> bool {
    let told: u64 = segment.insights.iter().map(|i| u64::from(i.count)).sum();
    let remembered: u64 = effective(&segment.signals).map(|s| u64::from(s.count)).sum();
    told == remembered
}

fn rebuild(segment: &mut DaySegment) -> u32 {
    let signals = std::mem::take(&mut segment.signals);
    let old = std::mem::take(&mut segment.insights);
    segment.hours.clear();
    let mut limits = 0;
    for entry in effective(&signals) {
        limits |= add(segment, entry);
    }
    segment.signals = signals;
    // Revisions never fall, so an insight that has become empty stays, with nothing in it.
    for before in old {
        match segment.insights.binary_search_by_key(&before.code, |i| i.code) {
            Ok(n) => {
                let now = &mut segment.insights[n];
                now.revision = before.revision;
                if *now != before {
                    now.revision += 1;
                }
            }
            Err(n) => {
                let revision = before.revision + u32::from(before.count > 0);
                segment.insights.insert(n, Insight { code: before.code, revision, ..Insight::default() });
            }
        }
    }
    limits
}

fn add(segment: &mut DaySegment, entry: &SignalEntry) -> u32 {
    let n = match segment.insights.binary_search_by_key(&entry.code, |i| i.code) {
        Ok(n) => n,
        Err(_) if segment.insights.len() >= INSIGHTS_PER_DAY_MAX => return LIMIT_INSIGHTS,
        Err(n) => {
            segment.insights.insert(n, Insight { code: entry.code, ..Insight::default() });
            n
        }
    };
    let insight = &mut segment.insights[n];
    insight.revision += 1;
    insight.count = insight.count.saturating_add(entry.count);
    insight.magnitude_milli += u64::from(entry.factor_milli) * u64::from(entry.count);
    insight.bytes = insight.bytes.saturating_add(entry.bytes);
    insight.hours |= 1 << entry.hour;
    insight.last_at = insight.last_at.max(entry.at);
    add_name(&mut insight.destinations, entry.destination, entry.count);
    add_name(&mut insight.devices, entry.device, entry.count);
    match segment.hours.binary_search_by_key(&entry.hour, |h| h.0) {
        Ok(n) => segment.hours[n].1 += 1,
        Err(n) => segment.hours.insert(n, (entry.hour, 1)),
    }
    0
}

fn add_name(list: &mut Names, name: u32, count: u32) {
    if name == 0 {
        return;
    }
    match list.binary_search_by_key(&name, |d| d.0) {
        Ok(n) => list[n].1 = list[n].1.saturating_add(count),
        Err(n) if n < DESTINATIONS_PER_INSIGHT_MAX => {
            list.truncate(DESTINATIONS_PER_INSIGHT_MAX - 1);
            list.insert(n, (name, count));
        }
        Err(_) => {}
    }
}

fn subtract(segment: &mut DaySegment, entry: &SignalEntry) {
    let Ok(n) = segment.insights.binary_search_by_key(&entry.code, |i| i.code) else { return };
    let insight = &mut segment.insights[n];
    insight.revision += 1;
    insight.count = insight.count.saturating_sub(entry.count);
    let magnitude = u64::from(entry.factor_milli) * u64::from(entry.count);
    insight.magnitude_milli = insight.magnitude_milli.saturating_sub(magnitude);
    insight.bytes = insight.bytes.saturating_sub(entry.bytes);
    for (list, name) in [(&mut insight.destinations, entry.destination), (&mut insight.devices, entry.device)] {
        if let Ok(n) = list.binary_search_by_key(&name, |d| d.0) {
            list[n].1 = list[n].1.saturating_sub(entry.count);
            list.retain(|d| d.1 > 0);
        }
    }
    if let Ok(n) = segment.hours.binary_search_by_key(&entry.hour, |h| h.0) {
        segment.hours[n].1 -= 1;
        segment.hours.retain(|h| h.1 > 0);
    }
}
