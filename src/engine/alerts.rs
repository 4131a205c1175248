//! Alerts: when evidence under a policy opens one, joins one, or is taken from one. `decide_*` reads and returns
//! moves; `evolve` applies a move. What is published of them is in `publish.rs`; when they close by themselves, in
//! `timer.rs`.

use smallvec::SmallVec;

use super::score::{Curve, Lens, Sum, evidence_for};
use super::state::{ALERTS_MAX, AlertState, Change, EVIDENCE_MAX, LIMIT_ALERTS, Spent, User, hash64};
use super::{Context, Numbers};
use crate::domain::alert::{Status, Trigger, Window};
use crate::domain::policy::{self, Policy};
use crate::domain::time::{DAY_MS, HOUR_MS};
use crate::domain::{Day, Level, Text, Timestamp};

/// Name space of alert ids (UUIDv5).
const NAMESPACE: uuid::Uuid = uuid::Uuid::from_u128(0x6c1f_0f0e_52a3_5d5b_9f37_1b0c_7a5e_c401);

/// What is decided about an alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    Open {
        policy: usize,
        score_milli: i64,
        evidence: Vec<(Day, u16)>,
        predecessor: Option<[u8; 16]>,
    },
    /// New evidence for a collecting alert.
    Join {
        alert: usize,
        score_milli: i64,
        insight: (Day, u16),
    },
    /// Evidence from within a frozen alert's window that came too late for it.
    Late {
        alert: usize,
    },
    /// Evidence shrank or went; `gone` is no longer part of it.
    Shrink {
        alert: usize,
        score_milli: i64,
        gone: Option<(Day, u16)>,
    },
}

/// What a move did, for the chronology.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// The alert's number.
    pub number: i64,
    /// opened, rose, fell, lost evidence or withdrawn; `None`: not worth an entry.
    pub what: Option<&'static str>,
}

/// The policy's lens on a user now, or `None` while the policy does not apply.
pub fn lens<'p>(user: &User, n: usize, ctx: &Context<'p>) -> Option<Lens<'p>> {
    let policy = &ctx.policies.policies[n];
    let directory = user.head.directory.as_ref();
    let inside = |d: &super::state::Directory| policy.groups.iter().any(|g| d.groups.binary_search(&hash64(g)).is_ok());
    if !policy.groups.is_empty() && !directory.is_some_and(inside) {
        return None;
    }
    let start = match policy.trigger {
        policy::Trigger::None => ctx.stream_time,
        _ => trigger(user, n, ctx)?.at,
    };
    Some(Lens { policy, since: Day(start.day_at(0).0 - policy.look_back_days as i32), spent: &[] })
}

/// What put the user under the policy, while it lasts.
pub fn trigger<'p>(user: &User, n: usize, ctx: &Context<'p>) -> Option<Trigger<'p>> {
    let policy = &ctx.policies.policies[n];
    let (kind, at) = match policy.trigger {
        policy::Trigger::None => return None,
        policy::Trigger::Leaving => {
            let directory = user.head.directory.as_ref()?;
            ("leaving", directory.announced.or(directory.last_day)?)
        }
        policy::Trigger::DlpMatch { .. } => {
            let hash = ctx.policies.id_hash(n);
            ("dlp_match", user.head.triggers.iter().find(|t| t.0 == hash)?.1)
        }
    };
    let until = at.plus_ms(policy.activation_days * DAY_MS);
    (at <= ctx.stream_time && ctx.stream_time <= until).then_some(Trigger { kind: Text::borrowed(kind), at })
}

/// A policy's score, from the sums already made when the policy looks at all of them.
pub fn score(curve: &Curve<'_>, lens: &Lens<'_>, whole: &Sum, hour: i64) -> i64 {
    match curve.terms.first() {
        Some(first) if first.day < lens.since => curve.under(lens, hour).score_milli,
        _ => curve.reweigh(lens.policy, whole, hour).score_milli,
    }
}

/// Moves after evidence grew: an insight of indicator `position`, by a signal of instant `at`. They follow the moves
/// there are already.
pub fn decide_growth(
    moves: &mut SmallVec<[Move; 2]>,
    user: &User,
    curve: &Curve<'_>,
    whole: &Sum,
    (position, day, at): (usize, Day, Timestamp),
    ctx: &Context<'_>,
) {
    let first = moves.len();
    let code = ctx.policies.catalogue.indicators[position].code;
    for &n in &ctx.policies.by_indicator[position] {
        let Some(lens) = lens(user, n, ctx).filter(|l| day >= l.since) else { continue };
        let score_milli = score(curve, &lens, whole, ctx.stream_time.hour());
        let hash = ctx.policies.id_hash(n);
        let own = || user.head.alerts.iter().enumerate().filter(move |(_, a)| a.policy == hash);
        if let Some((alert, _)) = own().find(|(_, a)| is_collecting(a)) {
            moves.push(Move::Join { alert, score_milli, insight: (day, code) });
            continue;
        }
        if let Some((alert, _)) = own().rev().find(|(_, a)| missed(a, day, at)) {
            moves.push(Move::Late { alert });
        }
        moves.extend(opening(user, curve, n, lens, score_milli, ctx));
    }
    // Opening may make room, so moves that name an alert by its place come first.
    if moves.len() > first + 1 {
        moves[first..].sort_by_key(|m| matches!(m, Move::Open { .. }));
    }
}

/// Moves after a trigger put the user under its policies: what is known already may be enough.
pub fn decide_trigger(user: &User, curve: &Curve<'_>, whole: &Sum, ctx: &Context<'_>) -> SmallVec<[Move; 2]> {
    let mut moves = SmallVec::new();
    for (n, policy) in ctx.policies.policies.iter().enumerate() {
        let Some(lens) = lens(user, n, ctx).filter(|_| policy.trigger != policy::Trigger::None) else { continue };
        let hash = ctx.policies.id_hash(n);
        if user.head.alerts.iter().any(|a| a.policy == hash && is_collecting(a)) {
            continue;
        }
        let score_milli = score(curve, &lens, whole, ctx.stream_time.hour());
        moves.extend(opening(user, curve, n, lens, score_milli, ctx));
    }
    moves
}

/// Moves after an insight lost evidence: every open alert it took part in.
pub fn decide_loss(user: &User, curve: &Curve<'_>, insight: (Day, u16), ctx: &Context<'_>) -> SmallVec<[Move; 2]> {
    let empty = user.day(insight.0).is_none_or(|d| {
        d.insights.binary_search_by_key(&insight.1, |i| i.code).map_or(true, |n| d.insights[n].count == 0)
    });
    let touched = |a: &AlertState| a.status.is_open() && a.evidence.binary_search(&insight).is_ok();
    let alerts = user.head.alerts.iter().enumerate().filter(|(_, a)| touched(a));
    alerts
        .map(|(alert, state)| {
            let n = ctx.policies.position_of_hash(state.policy);
            let now = n.and_then(|n| lens(user, n, ctx)).map(|l| curve.under(&l, ctx.stream_time.hour()));
            let score_milli = now.map_or(0, |sum| sum.score_milli);
            Move::Shrink { alert, score_milli, gone: empty.then_some(insight) }
        })
        .collect()
}

/// Applies a move.
pub fn evolve(user: &mut User, chosen: Move, origin: &str, ctx: &Context<'_>, numbers: &mut Numbers) -> Option<Note> {
    match chosen {
        Move::Open { policy, score_milli, evidence, predecessor } => {
            open(user, (policy, score_milli, evidence, predecessor), origin, ctx, numbers)
        }
        Move::Join { alert, score_milli, insight } => {
            let state = &mut user.head.alerts[alert];
            let gap_hours =
                ctx.policies.position_of_hash(state.policy).map_or(0, |n| ctx.policies.policies[n].gap_hours);
            state.window.last_activity_at = state.window.last_activity_at.max(ctx.stream_time);
            let closes = state.window.last_activity_at.plus_ms(gap_hours * HOUR_MS);
            state.window.closes_at = closes.min(state.window.max_at);
            if let Err(n) = state.evidence.binary_search(&insight)
                && state.evidence.len() < EVIDENCE_MAX
            {
                state.evidence.insert(n, insight);
            }
            changed(state, Change::EvidenceAdded);
            Some(Note { number: state.number, what: rate(state, score_milli, ctx) })
        }
        Move::Late { alert } => {
            let state = &mut user.head.alerts[alert];
            changed(state, Change::Late);
            Some(Note { number: state.number, what: None })
        }
        Move::Shrink { alert, score_milli, gone } => {
            let state = &mut user.head.alerts[alert];
            state.evidence.retain(|e| Some(*e) != gone);
            changed(state, Change::Retracted);
            // What other evidence is worth under the policy is not this alert's, once none of its own is left.
            rate(state, if state.evidence.is_empty() { 0 } else { score_milli }, ctx);
            if state.evidence.is_empty() {
                state.status = Status::Withdrawn;
                state.window.frozen = true;
                changed(state, Change::Status);
                return Some(Note { number: state.number, what: Some("withdrawn") });
            }
            Some(Note { number: state.number, what: Some("lost evidence") })
        }
    }
}

/// Whether an alert still takes new evidence.
pub fn is_collecting(alert: &AlertState) -> bool {
    !alert.window.frozen && alert.status.is_open()
}

/// Whether an alert has reached the severity from which its policy publishes.
pub fn is_visible(alert: &AlertState, policy: Option<&Policy>) -> bool {
    policy.is_none_or(|p| alert.severity_peak >= p.min_severity)
}

/// `A<partition>-<n>`.
pub fn number(alert: &AlertState, partition: i32) -> String {
    format!("A{partition}-{}", alert.number)
}

/// Notes a change; the first of an unpublished alert stays `Opened`.
pub fn changed(alert: &mut AlertState, change: Change) {
    alert.revision += 1;
    if alert.change != Change::Opened {
        alert.change = change;
    }
}

/// Closes an alert to new evidence: what it has used is noted, so that only more can open a successor.
pub fn freeze(user: &mut User, alert: usize, at: Timestamp, ctx: &Context<'_>) {
    let state = &mut user.head.alerts[alert];
    state.window.frozen = true;
    state.window.closes_at = at;
    changed(state, Change::Frozen);
    let hash = state.policy;
    let Some(n) = ctx.policies.position_of_hash(hash) else { return };
    let policy = &ctx.policies.policies[n];
    let oldest = at.day_at(0).0 - super::score::LOOK_BACK_DAYS as i32;
    let mut used = Vec::new();
    for segment in user.days.iter().filter(|d| d.day.0 >= oldest) {
        for insight in segment.insights.iter().filter(|i| i.count > 0 && counts_in(policy, i.code, ctx)) {
            used.push(Spent {
                policy: hash,
                day: segment.day,
                code: insight.code,
                count: insight.count,
                magnitude_milli: insight.magnitude_milli,
                bytes: insight.bytes,
            });
        }
    }
    let skip = used.len().saturating_sub(EVIDENCE_MAX);
    user.head.spent.retain(|s| s.policy != hash);
    user.head.spent.extend(used.into_iter().skip(skip));
    user.head.spent.sort_unstable_by_key(|s| (s.policy, s.day, s.code));
}

fn counts_in(policy: &Policy, code: u16, ctx: &Context<'_>) -> bool {
    ctx.policies
        .catalogue
        .position_of_code(code)
        .is_some_and(|position| policy.indicators.binary_search_by_key(&position, |i| i.position).is_ok())
}

/// Evidence for a frozen alert: of a day and instant within its window.
fn missed(alert: &AlertState, day: Day, at: Timestamp) -> bool {
    let window = &alert.window;
    alert.status.is_open() && window.frozen && day >= window.opened_at.day_at(0) && at <= window.closes_at
}

/// Opens at `open_at`; after an earlier alert only with new evidence worth two thirds of it.
fn opening(
    user: &User,
    curve: &Curve<'_>,
    n: usize,
    lens: Lens<'_>,
    score_milli: i64,
    ctx: &Context<'_>,
) -> Option<Move> {
    if score_milli < lens.policy.open_at_milli {
        return None;
    }
    let hash = ctx.policies.id_hash(n);
    let from = user.head.spent.partition_point(|s| s.policy < hash);
    let to = user.head.spent.partition_point(|s| s.policy <= hash);
    let spent = &user.head.spent[from..to];
    if !spent.is_empty() {
        let fresh = curve.under(&Lens { spent, ..lens }, ctx.stream_time.hour()).evidence_milli;
        if 3 * fresh < 2 * evidence_for(lens.policy.open_at_milli) {
            return None;
        }
    }
    let predecessor = user.head.alerts.iter().rev().find(|a| a.policy == hash).map(|a| a.id);
    Some(Move::Open { policy: n, score_milli, evidence: evidence(curve, &lens, spent, ctx), predecessor })
}

/// The insights with points under a lens, beyond what is spent; the largest `EVIDENCE_MAX`.
fn evidence(curve: &Curve<'_>, lens: &Lens<'_>, spent: &[Spent], ctx: &Context<'_>) -> Vec<(Day, u16)> {
    let hour = ctx.stream_time.hour();
    let mut found: Vec<(i64, Day, u16)> = curve
        .terms
        .iter()
        .filter(|t| t.day >= lens.since && lens.policy.indicators.iter().any(|i| i.position == t.position))
        .filter(|t| curve.q_beyond(t, spent) > 0)
        .map(|t| (-curve.points_milli(t, hour), t.day, ctx.policies.catalogue.indicators[t.position].code))
        .filter(|t| t.0 < 0)
        .collect();
    found.sort_unstable();
    found.truncate(EVIDENCE_MAX);
    let mut evidence: Vec<(Day, u16)> = found.into_iter().map(|(_, day, code)| (day, code)).collect();
    evidence.sort_unstable();
    evidence
}

type Opening = (usize, i64, Vec<(Day, u16)>, Option<[u8; 16]>);

fn open(
    user: &mut User,
    (n, score_milli, evidence, predecessor): Opening,
    origin: &str,
    ctx: &Context<'_>,
    numbers: &mut Numbers,
) -> Option<Note> {
    if !make_room(user) {
        user.head.limits |= LIMIT_ALERTS;
        return None;
    }
    let policy = &ctx.policies.policies[n];
    let at = ctx.stream_time;
    let max_at = at.plus_ms(policy.max_days * DAY_MS);
    let severity = Level::of(score_milli);
    numbers.next_alert_no = numbers.next_alert_no.max(1);
    user.head.alerts.push(AlertState {
        id: uuid::Uuid::new_v5(&NAMESPACE, format!("{}:{origin}", policy.id).as_bytes()).into_bytes(),
        number: numbers.next_alert_no,
        policy: ctx.policies.id_hash(n),
        status: Status::NeedsReview,
        revision: 1,
        window: Window {
            opened_at: at,
            last_activity_at: at,
            closes_at: at.plus_ms(policy.gap_hours * HOUR_MS).min(max_at),
            max_at,
            frozen: false,
        },
        severity,
        severity_peak: severity,
        score_milli,
        evidence,
        predecessor,
        change: Change::Opened,
        expires_at: at.plus_ms(policy.expire_days * DAY_MS),
    });
    numbers.next_alert_no += 1;
    let visible = severity >= policy.min_severity;
    Some(Note { number: numbers.next_alert_no - 1, what: visible.then_some("opened") })
}

/// Makes room for one more alert: the oldest that nobody has to deal with goes.
fn make_room(user: &mut User) -> bool {
    if user.head.alerts.len() < ALERTS_MAX {
        return true;
    }
    let closed = user.head.alerts.iter().position(|a| !a.status.is_open() && a.change == Change::None);
    closed.map(|n| user.head.alerts.remove(n)).is_some()
}

/// Sets severity and peak from a score; says whether that is worth an entry.
fn rate(alert: &mut AlertState, score: i64, ctx: &Context<'_>) -> Option<&'static str> {
    let least = ctx.policies.position_of_hash(alert.policy).map(|n| ctx.policies.policies[n].min_severity);
    let (before, peak_before) = (alert.severity, alert.severity_peak);
    alert.score_milli = score;
    alert.severity = Level::of(score);
    alert.severity_peak = peak_before.max(alert.severity);
    let visible = least.is_none_or(|l| alert.severity_peak >= l);
    let was_visible = least.is_none_or(|l| peak_before >= l);
    if visible && !was_visible {
        alert.change = Change::Opened;
        return Some("opened");
    }
    if alert.severity == before || !visible {
        return None;
    }
    if alert.change != Change::Opened {
        alert.change = Change::Severity;
    }
    Some(if alert.severity > before { "rose" } else { "fell" })
}
