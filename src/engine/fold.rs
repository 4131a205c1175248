//! One input through `decide` and `evolve`, and what is published of it. Judgement on signals is in
//! `decide_signal.rs`, on alerts in `alerts.rs`; what a change does to the state in `evolve.rs`; latest values in
//! `publish.rs`; what happens by itself in `timer.rs`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::mem::take;

use smallvec::SmallVec;

use super::alerts::{self, Move, Note};
use super::decide_signal::{Checked, check, decide};
use super::emit::Emit;
use super::evolve::{self, Change};
use super::publish::uuid_text;
use super::score::{Curve, Terms, renew_last_day};
use super::state::{self, Directory as Facts, INSIGHTS_PER_DAY_MAX, User, hash64};
use super::{Context, Input, Numbers, Outcome, Position, Sink, headline, timer};
use crate::domain::chronology::{ChronologyEntry, Insight, NameCount, Pivot, SignalFacts};
use crate::domain::directory::{Directory, GROUPS_MAX};
use crate::domain::envelope::Envelope;
use crate::domain::policy::Trigger;
use crate::domain::signal::{Destination, Op, RESOURCES_MAX, RawPosition, Signal};
use crate::domain::time::DAY_MS;
use crate::domain::{Day, Level, Text, Timestamp};

/// Runs one input through decide and evolve; hands chronology entries to the sink as they come to be.
/// `position` is where the input was first written; `None` for a timer.
pub fn apply(
    user: &mut User,
    user_key: &str,
    input: Input<'_>,
    position: Option<&Position<'_>>,
    ctx: &Context<'_>,
    numbers: &mut Numbers,
    sink: &mut dyn Sink,
) -> Outcome {
    match input {
        Input::Signal(s) => {
            let mut checked = match check(s, ctx) {
                Ok(checked) => checked,
                Err(code) => return Outcome::Dead(code),
            };
            let change = match decide(user, &mut checked, ctx) {
                Ok(Some(change)) => change,
                Ok(None) => {
                    if sight(user, &checked) {
                        user.changes.known = Default::default();
                    }
                    return Outcome::Duplicate;
                }
                Err(code) => return Outcome::Dead(code),
            };
            let mut emit = Emit::new(user_key, ctx, sink, take(&mut user.changes.cause));
            emit.cause.record("signal", &s.signal_id, position, &s.origin);
            signal(user, s, &checked, &change, &mut emit, numbers)
        }
        Input::Directory(record) => {
            if user.head.directory.as_ref().is_some_and(|d| d.version >= record.version) {
                return Outcome::Unchanged;
            }
            let mut cause = take(&mut user.changes.cause);
            cause.record("directory", &record.version.to_string(), position, "live");
            let mut emit = Emit::new(user_key, ctx, sink, cause);
            directory(user, record, &mut emit, numbers)
        }
        Input::Timer { due } => match timer::run(user, user_key, due, ctx, sink) {
            true => Outcome::Scored,
            false => Outcome::Unchanged,
        },
    }
}

/// Publishes the latest values (score, level, each changed alert): once per user and transaction, after the last
/// `apply`. Also notes in the head when the next fall comes, so `timer::next_due` is cheap.
pub fn finish(user: &mut User, user_key: &str, ctx: &Context<'_>, sink: &mut dyn Sink) {
    super::publish::finish(user, user_key, ctx, sink);
}

/// An insight by day and position in the catalogue.
type Place = (Day, usize);

/// Scores around an input, and the points of each insight it touches.
#[derive(Clone, Debug, Default)]
struct Measured {
    score_milli: i64,
    points_milli: SmallVec<[i64; 2]>,
}

#[inline]
fn measure(curve: &Curve<'_>, score_milli: i64, touched: &[Place], hour: i64) -> Measured {
    let mut points_milli = SmallVec::new();
    for (day, position) in touched {
        points_milli.push(curve.term(*day, *position).map_or(0, |t| curve.points_milli(t, hour)));
    }
    Measured { score_milli, points_milli }
}

/// Measures, then lets everything happen that was due. Nothing of that changes the terms.
fn before(user: &mut User, touched: &[Place], emit: &mut Emit<'_>) -> (Measured, Terms) {
    let ctx = emit.ctx;
    let hour = ctx.stream_time.hour();
    let known = user.changes.known.take_terms(ctx.policies, hour);
    let (curve, score_milli) = match known {
        Some((terms, score_milli)) => (Curve::of(user, &ctx.policies.catalogue, terms), score_milli),
        None => {
            let memory = user.changes.known.memory();
            let curve = Curve::new_in(memory, user, &ctx.policies.catalogue, hour);
            let score_milli = curve.score_at(hour);
            (curve, score_milli)
        }
    };
    let measured = measure(&curve, score_milli, touched, hour);
    let terms = curve.terms;
    if timer::is_behind(user, measured.score_milli, ctx.stream_time) {
        timer::catch_up(user, emit.user_key, ctx.stream_time, ctx, emit.sink);
    }
    (measured, terms)
}

/// See `evolve::sight`; a retraction has no names.
#[inline]
fn sight(user: &mut User, checked: &Checked<'_>) -> bool {
    if checked.op == Op::Retract {
        return false;
    }
    let entry = &checked.entry;
    evolve::sight(user, checked.day, checked.at, entry.destination, entry.device)
}

/// Notes the signal in the state. Terms of before stay of use as long as only the last day changes.
fn change_state(
    user: &mut User,
    checked: &Checked<'_>,
    change: &Change,
    touched: &[Place],
    mut terms: Terms,
    ctx: &Context<'_>,
) -> Terms {
    let hour = ctx.stream_time.hour();
    let (days, last) = (user.days.len(), user.days.last().map(|d| d.day));
    let sighted = sight(user, checked);
    evolve::evolve(user, change);
    evolve::forget(user, ctx.stream_time.day_at(0), ctx.lateness_days);
    let changed = match *change {
        Change::Insert { day, .. } | Change::Reserve { day, .. } | Change::Retract { day, .. } => Some(day),
        Change::Replace { was, day, .. } => (was == day).then_some(day),
    };
    let added = usize::from(changed > last);
    let only_last = changed.is_some() && user.days.last().map(|d| d.day) == changed && user.days.len() == days + added;
    if sighted || !only_last {
        return Curve::new_in(terms, user, &ctx.policies.catalogue, hour).terms;
    }
    // A day that holds no more insights may have let another one in.
    let crowded = user.days.last().is_some_and(|d| d.insights.len() >= INSIGHTS_PER_DAY_MAX);
    let renewed = |position| crowded || changed.is_some_and(|day| touched.contains(&(day, position)));
    renew_last_day(&mut terms, user, &ctx.policies.catalogue, hour, renewed);
    terms
}

fn signal(
    user: &mut User,
    signal: &Signal<'_>,
    checked: &Checked<'_>,
    change: &Change,
    emit: &mut Emit<'_>,
    numbers: &mut Numbers,
) -> Outcome {
    let ctx = emit.ctx;
    let hour = ctx.stream_time.hour();
    let touched = touched(user, checked, change, ctx);
    let (before, terms) = before(user, &touched, emit);
    let lives = checked.op != Op::Retract;
    let terms = change_state(user, checked, change, &touched, terms, ctx);
    user.head.user_rev += 1;
    user.changes.head = true;
    let fired = if lives { fire_dlp(user, signal, checked.at, ctx) } else { Vec::new() };

    let curve = Curve::of(user, &ctx.policies.catalogue, terms);
    let whole = curve.at(hour);
    let after = measure(&curve, whole.score_milli, &touched, hour);
    let mut moves: SmallVec<[Move; 2]> = SmallVec::new();
    for (n, (day, position)) in touched.iter().enumerate() {
        let (was, is) = (before.points_milli[n], after.points_milli[n]);
        if is > was {
            alerts::decide_growth(&mut moves, user, &curve, &whole, (*position, *day, checked.at), ctx);
        } else if is < was {
            let code = ctx.policies.catalogue.indicators[*position].code;
            moves.extend(alerts::decide_loss(user, &curve, (*day, code), ctx));
        }
    }
    let terms = curve.terms;
    let notes = if moves.is_empty() { SmallVec::new() } else { evolve_alerts(user, moves, emit, numbers) };
    let place = touched.first().copied();
    activity_entry(user, signal, checked, change, place, (&before, &after), &notes, emit);
    for n in fired {
        trigger_entry(user, "DLP match", &ctx.policies.policies[n].name, after.score_milli, emit);
    }
    follow_up(user, &notes, before.score_milli, after.score_milli, emit);
    close_input(user, emit);
    user.changes.known.keep(terms, whole, ctx.policies, hour);
    if checked.position.is_none() && lives { Outcome::Unscored } else { Outcome::Scored }
}

/// The insights whose points a change may move: its own first, then the one it leaves, then those of other reports of
/// the same act.
fn touched(user: &User, checked: &Checked<'_>, change: &Change, ctx: &Context<'_>) -> SmallVec<[Place; 2]> {
    let mut places: SmallVec<[Place; 2]> = SmallVec::new();
    if let (Change::Insert { day, entry }, Some(position)) = (change, checked.position)
        && entry.activity == 0
    {
        places.push((*day, position));
        return places;
    }
    let mut push = |day: Day, code: u16| {
        if let Some(position) = ctx.policies.catalogue.position_of_code(code)
            && !places.contains(&(day, position))
        {
            places.push((day, position));
        }
    };
    let mut acts: SmallVec<[(Day, u64); 2]> = SmallVec::new();
    match *change {
        Change::Insert { day, entry } => {
            push(day, entry.code);
            acts.push((day, entry.activity));
        }
        Change::Replace { was, day, entry } => {
            push(day, entry.code);
            acts.push((day, entry.activity));
            if let Some(old) = entry_of(user, was, entry.id) {
                push(was, old.code);
                acts.push((was, old.activity));
            }
        }
        Change::Retract { day, id } => {
            if let Some(old) = entry_of(user, day, id) {
                push(day, old.code);
                acts.push((day, old.activity));
            }
        }
        Change::Reserve { .. } => push(checked.day, checked.entry.code),
    }
    for (day, act) in acts.into_iter().filter(|(_, act)| *act != 0) {
        for other in user.day(day).into_iter().flat_map(|d| &d.signals).filter(|s| s.activity == act) {
            push(day, other.code);
        }
    }
    places
}

fn entry_of(user: &User, day: Day, id: u64) -> Option<super::state::SignalEntry> {
    let segment = user.day(day)?;
    segment.signals.binary_search_by_key(&id, |s| s.id).ok().map(|n| segment.signals[n])
}

fn evolve_alerts(
    user: &mut User,
    moves: SmallVec<[Move; 2]>,
    emit: &Emit<'_>,
    numbers: &mut Numbers,
) -> SmallVec<[Note; 2]> {
    let mut notes: SmallVec<[Note; 2]> = SmallVec::new();
    for chosen in moves {
        let again = matches!(&chosen, Move::Open { policy, .. } if {
            let hash = emit.ctx.policies.id_hash(*policy);
            user.head.alerts.iter().any(|a| a.policy == hash && alerts::is_collecting(a))
        });
        if !again {
            notes.extend(alerts::evolve(user, chosen, emit.cause.base(), emit.ctx, numbers));
        }
    }
    notes
}

/// Level and alert entries that an input brings about, in this order.
fn follow_up(user: &mut User, notes: &[Note], before: i64, after: i64, emit: &mut Emit<'_>) {
    let at = emit.ctx.stream_time;
    if Level::of(after) != user.head.published.level {
        timer::level_entry(user, emit, before, after, at);
    }
    for note in notes {
        let Some(what) = note.what else { continue };
        if let Some(n) = user.head.alerts.iter().position(|a| a.number == note.number) {
            timer::alert_entry(user, emit, n, what, after, at);
        }
    }
}

/// Leaves behind what `finish` and the next timer start from.
fn close_input(user: &mut User, emit: &mut Emit<'_>) {
    user.changes.cause = take(&mut emit.cause);
    user.head.published.as_of = user.head.published.as_of.max(emit.ctx.stream_time);
}

/// Notes a DLP match for every policy it triggers; returns those it put the user under just now.
fn fire_dlp(user: &mut User, signal: &Signal<'_>, at: Timestamp, ctx: &Context<'_>) -> Vec<usize> {
    let mut fired = Vec::new();
    if signal.info_types.is_empty() && signal.policy_name.is_none() {
        return fired;
    }
    let Some(found) = signal.vendor_severity.as_deref().and_then(|s| Level::parse(&s.to_ascii_lowercase())) else {
        return fired;
    };
    for (n, policy) in ctx.policies.policies.iter().enumerate() {
        if !matches!(policy.trigger, Trigger::DlpMatch { severity } if found >= severity) {
            continue;
        }
        if alerts::trigger(user, n, ctx).is_none() && at.plus_ms(policy.activation_days * DAY_MS) >= ctx.stream_time {
            fired.push(n);
        }
        let hash = ctx.policies.id_hash(n);
        match user.head.triggers.iter_mut().find(|t| t.0 == hash) {
            Some(known) => known.1 = known.1.max(at),
            None => {
                let place = user.head.triggers.partition_point(|t| t.0 < hash);
                user.head.triggers.insert(place, (hash, at));
            }
        }
    }
    fired
}

fn directory(user: &mut User, record: &Directory<'_>, emit: &mut Emit<'_>, numbers: &mut Numbers) -> Outcome {
    let ctx = emit.ctx;
    let hour = ctx.stream_time.hour();
    let (before, _) = before(user, &[], emit);
    let leaving = |facts: Option<&Facts>| facts.is_some_and(|d| d.announced.is_some() || d.last_day.is_some());
    let was_leaving = leaving(user.head.directory.as_ref());
    user.head.directory = Some(facts(record));
    user.head.user_rev += 1;
    user.changes.head = true;
    let curve = Curve::new(user, &ctx.policies.catalogue, hour);
    let whole = curve.at(hour);
    let announced = !was_leaving && leaving(user.head.directory.as_ref());
    let moves = if announced { alerts::decide_trigger(user, &curve, &whole, ctx) } else { SmallVec::new() };
    let after = whole.score_milli;
    let notes = evolve_alerts(user, moves, emit, numbers);
    if announced {
        let last_day = record.leaving.and_then(|l| l.last_day).map(|t| t.day_at(0).iso());
        let detail = last_day.map_or(String::from("no last day yet"), |day| format!("last day {day}"));
        trigger_entry(user, "Leaving announced", &detail, after, emit);
    }
    follow_up(user, &notes, before.score_milli, after, emit);
    close_input(user, emit);
    Outcome::Scored
}

fn facts(record: &Directory<'_>) -> Facts {
    let mut groups: Vec<u64> = record.groups.iter().take(GROUPS_MAX).map(|g| hash64(g)).collect();
    groups.sort_unstable();
    groups.dedup();
    Facts {
        version: record.version,
        announced: record.leaving.and_then(|l| l.announced),
        last_day: record.leaving.and_then(|l| l.last_day),
        high_impact: record.high_impact,
        service_account: record.service_account,
        groups,
    }
}

fn trigger_entry(user: &mut User, title: &str, detail: &str, score_milli: i64, emit: &mut Emit<'_>) {
    let at = emit.ctx.stream_time;
    let level = user.head.published.level.as_str();
    let entry = ChronologyEntry {
        kind: Text::borrowed("trigger"),
        title: Text::from(title),
        headline: Text::from(format!("{title}: {detail}")),
        from: at,
        to: at,
        score_before_milli: score_milli,
        score_after_milli: score_milli,
        level_before: Text::borrowed(level),
        level_after: Text::borrowed(level),
        ..ChronologyEntry::default()
    };
    emit.entry(&mut user.head, at, entry);
}

/// The entry of an accepted signal: what happened, what it was worth, what the insight is now.
#[allow(clippy::too_many_arguments, reason = "all of it is one entry")]
fn activity_entry(
    user: &mut User,
    signal: &Signal<'_>,
    checked: &Checked<'_>,
    change: &Change,
    place: Option<Place>,
    (before, after): (&Measured, &Measured),
    notes: &[Note],
    emit: &mut Emit<'_>,
) {
    let ctx = emit.ctx;
    let indicator = place.map(|p| &ctx.policies.catalogue.indicators[p.1]);
    let correction = matches!(change, Change::Replace { .. } | Change::Retract { .. } | Change::Reserve { .. });
    let day = place.map_or(checked.day, |p| p.0);
    let code = indicator.map_or(0, |i| i.code);
    let title = indicator.map_or(signal.indicator.as_str(), |i| i.title.as_str());
    let points = after.points_milli.first().copied().unwrap_or(0);
    let mut alert_ids = Vec::new();
    for alert in notes.iter().filter_map(|note| user.head.alerts.iter().find(|a| a.number == note.number)) {
        alert_ids.push(Text::from(uuid_text(&alert.id)));
    }
    let (mut words, mut insight_id) = (take(&mut emit.cause.headline), take(&mut emit.cause.insight_id));
    headline::activity(&mut words, signal, checked, title, user, (day, code));
    let day_text = day_text(signal, checked, day);
    insight_id.clear();
    insight_id.reserve(48);
    for part in [indicator.map_or("", |i| &i.id), "@", &day_text] {
        insight_id.push_str(part);
    }
    let now = user.day(day).and_then(|d| d.insights.iter().find(|i| i.code == code));
    let tops = now.map(|now| tops(now, signal, checked)).unwrap_or_default();
    let pivots = now.map(|now| pivots(now, &tops)).unwrap_or_default();
    let known = usize::from(pivots[0].distinct == 0)..2 - usize::from(pivots[1].distinct == 0);
    // Every field by name: what `emit` fills in is not worth building and moving a default of the whole entry.
    let mut entry = ChronologyEntry {
        kind: Text::borrowed(if correction { "correction" } else { "activity" }),
        category: indicator.map(|i| Text::borrowed(i.category.as_str())),
        indicator: Some(indicator.map_or(signal.indicator.reborrow(), |i| Text::from(i.id.as_str()))),
        title: Text::from(title),
        headline: Text::borrowed(&words),
        day: Some(day_text.reborrow()),
        from: checked.at,
        to: checked.at,
        insight: indicator.map(|_| insight(&insight_id, now, &pivots[known], points)),
        points_delta_milli: points - before.points_milli.first().copied().unwrap_or(0),
        signal: Some(signal_facts(signal, checked)),
        score_before_milli: before.score_milli,
        score_after_milli: after.score_milli,
        level_before: Text::borrowed(user.head.published.level.as_str()),
        level_after: Text::borrowed(Level::of(after.score_milli).as_str()),
        alert_ids,
        flags: flags(checked, ctx),
        envelope: Envelope::default(),
        entry_id: Text::default(),
        seq: 0,
        hash: Text::default(),
        prev_hash: Text::default(),
        supersedes: None,
        case_ids: Vec::new(),
    };
    emit.complete(&mut user.head, checked.at, &mut entry);
    drop(entry);
    (emit.cause.headline, emit.cause.insight_id) = (words, insight_id);
}

fn day_text<'s>(signal: &'s Signal<'_>, checked: &Checked<'_>, day: Day) -> Text<'s> {
    if checked.day == day && !checked.clamped { signal.day.reborrow() } else { Text::from(day.iso()) }
}

fn flags(checked: &Checked<'_>, ctx: &Context<'_>) -> Vec<Text<'static>> {
    let named = [
        ("late", checked.day.end().plus_ms(DAY_MS) <= ctx.stream_time),
        ("clamped", checked.clamped),
        ("dedupe_full", checked.full),
        ("unscored", checked.position.is_none()),
    ];
    let mut flags = Vec::new();
    for (name, _) in named.into_iter().filter(|(_, set)| *set) {
        flags.push(Text::borrowed(name));
    }
    flags
}

/// The destination and the device of a signal, each with how often its insight knows it.
type Tops<'s> = [Option<NameCount<'s>>; 2];

#[inline]
fn tops<'s>(now: &state::Insight, signal: &'s Signal<'_>, checked: &'s Checked<'_>) -> Tops<'s> {
    let top = |names: &[(u32, u32)], own: Option<&'s str>, hash: u32| {
        let n = names.binary_search_by_key(&hash, |n| n.0).ok()?;
        Some(NameCount { name: Text::borrowed(own?), count: i64::from(names[n].1) })
    };
    let entry = &checked.entry;
    let place = signal.destination.as_ref().map(|_| checked.place);
    [top(&now.destinations, place, entry.destination), top(&now.devices, signal.device_id.as_deref(), entry.device)]
}

/// How an insight spreads, over destinations and over devices.
#[inline]
fn pivots<'e>(now: &state::Insight, tops: &'e Tops<'e>) -> [Pivot<'e>; 2] {
    let pivot = |kind, names: &state::Names, top: &'e Option<NameCount<'e>>| Pivot {
        kind: Text::borrowed(kind),
        distinct: names.len() as i64,
        top: Cow::Borrowed(top.as_slice()),
    };
    [pivot("destination", &now.destinations, &tops[0]), pivot("device", &now.devices, &tops[1])]
}

#[inline]
fn insight<'e>(id: &'e str, now: Option<&state::Insight>, pivots: &'e [Pivot<'e>], points_milli: i64) -> Insight<'e> {
    let empty = Insight { id: Text::borrowed(id), points_milli, ..Insight::default() };
    let Some(now) = now else { return empty };
    Insight {
        revision: i64::from(now.revision),
        count: i64::from(now.count),
        magnitude_milli: now.magnitude_milli as i64,
        bytes: now.bytes.min(i64::MAX as u64) as i64,
        pivots: Cow::Borrowed(pivots),
        ..empty
    }
}

#[inline]
fn signal_facts<'s>(signal: &'s Signal<'_>, checked: &Checked<'_>) -> SignalFacts<'s> {
    let mut factors = BTreeMap::new();
    for (name, factor) in checked.factors.named() {
        factors.insert(Text::borrowed(name), Text::from(factor.to_string()));
    }
    SignalFacts {
        id: signal.signal_id.reborrow(),
        at: signal.occurred_at,
        source: signal.source.reborrow(),
        source_event_id: signal.source_event_id.reborrow(),
        raw: signal.raw.as_ref().map(|r| RawPosition { topic: r.topic.reborrow(), ..*r }),
        source_url: signal.source_url.as_ref().map(Text::reborrow),
        outcome: signal.outcome.reborrow(),
        resources: Cow::Borrowed(&signal.resources[..signal.resources.len().min(RESOURCES_MAX)]),
        destination: signal.destination.as_ref().map(|d| Destination {
            kind: d.kind.reborrow(),
            value: d.value.reborrow(),
            direction: d.direction.reborrow(),
        }),
        factors,
    }
}
