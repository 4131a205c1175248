//! The latest values of a user: score, level and each changed alert, once per transaction. Also foresees when the
//! level and the enforcement level fall, so that `timer.rs` need not compute anything.

use super::alerts;
use super::math::largest_remainder;
use super::score::{Curve, LOOK_BACK_DAYS, Sum, Terms, score_milli};
use super::state::{
    AlertState, Cause, Change, Head, LIMIT_ALERTS, LIMIT_BYTES, LIMIT_INSIGHTS, LIMIT_SEEN, LIMIT_SIGNALS, Published,
    User,
};
use super::{Context, Sink, headline};
use crate::domain::alert::{Alert, Clause, ScorePart, Status};
use crate::domain::envelope::Envelope;
use crate::domain::indicator::Category;
use crate::domain::policy;
use crate::domain::score::{Booster, CONTRIBUTIONS_MAX, Contribution, LevelAhead, RiskLevel, RiskScore};
use crate::domain::time::{DAY_MS, HOUR_MS};
use crate::domain::{Level, Text, Timestamp};

/// Most insights that an alert lists.
pub const ALERT_INSIGHTS_MAX: usize = 100;
/// The enforcement level falls when the score has been this far below its bound …
pub const ENFORCEMENT_MARGIN_MILLI: i64 = 3_000;
/// … for this long.
pub const ENFORCEMENT_HOLD_MS: i64 = DAY_MS;

/// See `fold::finish`.
pub fn finish(user: &mut User, user_key: &str, ctx: &Context<'_>, sink: &mut dyn Sink) {
    let now = ctx.stream_time.max(user.head.published.as_of);
    let gone = is_gone(user);
    // Without a cause only days were dropped, and those were too old to count: nothing to publish.
    if !user.changes.cause.kind.is_empty() {
        let mut cause = std::mem::take(&mut user.changes.cause);
        let known = !user.days.is_empty() || !user.head.alerts.is_empty() || user.head.published.valid_until.0 > 0;
        if known && !gone {
            latest(user, user_key, &mut cause, now, ctx, sink);
        }
        changed_alerts(user, user_key, &mut cause, now, ctx, sink);
        cause.clear();
        user.changes.cause = cause;
    }
    if gone {
        sink.gone(user_key);
        user.head = Head::default();
        user.seen = Default::default();
        user.changes.seen = true;
        user.changes.head = true;
    }
}

/// Nothing left that anyone could ask about.
fn is_gone(user: &User) -> bool {
    let open = user.head.alerts.iter().any(|a| a.status.is_open());
    user.days.is_empty() && !open && user.head.directory.is_none() && user.head.user_rev != 0
}

fn latest(user: &mut User, user_key: &str, cause: &mut Cause, now: Timestamp, ctx: &Context<'_>, sink: &mut dyn Sink) {
    let terms = known_terms(user, now, ctx);
    let curve = Curve::of(user, &ctx.policies.catalogue, terms);
    let sum = user.changes.known.whole();
    let mut published = user.head.published;
    published.as_of = now;
    let due = settle_enforcement(&mut published, &curve, sum.score_milli, now);
    let ahead = foresee(&mut published, &curve, now.hour());
    published.score_milli = sum.score_milli;
    let stale = published.valid_until.0 - now.0 <= ctx.level_valid_ms / 2;
    let renew = user.changes.level || due || stale;
    if renew {
        published.valid_until = now.plus_ms(ctx.level_valid_ms);
    }
    cause.advance();
    let envelope = cause.envelope(user_key, user.head.user_rev, now, ctx);
    sink.score(&score(envelope, user, &curve, sum, &published, &ahead));
    if renew {
        cause.advance();
        let envelope = cause.envelope(user_key, user.head.user_rev, now, ctx);
        sink.level(&level(envelope, user, sum, &published, ctx));
    }
    let terms = curve.terms;
    user.changes.known.put_back(terms, ctx.policies, now.hour());
    user.head.published = published;
    user.changes.level = false;
}

/// The terms that count, handed over; the score they make is left in `Changes::known`.
fn known_terms(user: &mut User, now: Timestamp, ctx: &Context<'_>) -> Terms {
    if let Some((terms, _)) = user.changes.known.take_terms(ctx.policies, now.hour()) {
        return terms;
    }
    let curve = Curve::new(user, &ctx.policies.catalogue, now.hour());
    let (sum, terms) = (curve.at(now.hour()), curve.terms);
    user.changes.known.keep(Terms::new(), sum, ctx.policies, now.hour());
    terms
}

/// Each changed alert that its policy publishes, once.
fn changed_alerts(
    user: &mut User,
    user_key: &str,
    cause: &mut Cause,
    now: Timestamp,
    ctx: &Context<'_>,
    sink: &mut dyn Sink,
) {
    if user.head.alerts.iter().all(|a| a.change == Change::None) {
        return;
    }
    let terms = known_terms(user, now, ctx);
    let curve = Curve::of(user, &ctx.policies.catalogue, terms);
    for alert in user.head.alerts.iter().filter(|a| a.change != Change::None) {
        let n = ctx.policies.position_of_hash(alert.policy);
        let policy = n.map(|n| &ctx.policies.policies[n]);
        if !alerts::is_visible(alert, policy) {
            continue;
        }
        cause.advance();
        let envelope = cause.envelope(user_key, user.head.user_rev, now, ctx);
        let record = Alert { envelope, ..self::alert(user, &curve, alert, n, now, ctx) };
        sink.alert(&record, policy.is_some_and(|p| p.status == policy::Status::Shadow));
    }
    user.head.alerts.iter_mut().for_each(|a| a.change = Change::None);
}

/// Raises the enforcement level at once; lowers it when it is due. Foresees since when the score is, or will be,
/// far enough below the bound. Says whether the level changed.
pub fn settle_enforcement(published: &mut Published, curve: &Curve<'_>, score: i64, now: Timestamp) -> bool {
    let before = published.enforcement;
    let mut enforcement = before.max(Level::of(score));
    let bound = enforcement.floor_milli() - ENFORCEMENT_MARGIN_MILLI;
    if enforcement == Level::None || score >= bound {
        published.below_since = None;
    } else {
        let since = published.below_since.filter(|since| *since <= now).unwrap_or(now);
        if since.plus_ms(ENFORCEMENT_HOLD_MS) <= now {
            enforcement = Level::of(score);
            published.below_since = None;
        } else {
            published.below_since = Some(since);
        }
    }
    if enforcement != before {
        published.previous_enforcement = before;
        published.enforcement = enforcement;
    }
    if enforcement != Level::None && published.below_since.is_none() {
        let bound = enforcement.floor_milli() - ENFORCEMENT_MARGIN_MILLI;
        let from = now.hour();
        let found = curve.first_below(from, horizon(curve, from), &|score| score < bound);
        published.below_since = found.map(|(hour, _)| Timestamp(hour * HOUR_MS).max(now));
    }
    enforcement != before
}

/// Every change of level that comes by itself after an hour; notes the first.
pub fn foresee(published: &mut Published, curve: &Curve<'_>, hour: i64) -> Vec<(i64, Level)> {
    let mut ahead = Vec::new();
    let (mut level, mut from, to) = (published.level, hour, horizon(curve, hour));
    if curve.terms.is_empty() && level == Level::None {
        published.next_fall_at = None;
        published.next_level = Level::None;
        return ahead;
    }
    // At rest there is nothing to fall to, and without a booster nothing to rise by.
    while (level != Level::None || curve.bounds().any(|b| b > from)) && ahead.len() < 16 {
        let Some((at, score)) = curve.next_change(level, from, to) else { break };
        level = Level::of(score);
        from = at;
        ahead.push((at, level));
    }
    published.next_fall_at = ahead.first().map(|a| Timestamp(a.0 * HOUR_MS));
    published.next_level = ahead.first().map_or(Level::None, |a| a.1);
    ahead
}

/// The hour from which nothing counts any more.
fn horizon(curve: &Curve<'_>, hour: i64) -> i64 {
    let newest = curve.terms.last().map_or(hour, |t| t.day.end().hour());
    newest.max(hour) + 24 * LOOK_BACK_DAYS + 1
}

#[inline(always)]
fn score<'u>(
    envelope: Envelope<'u>,
    user: &User,
    curve: &Curve<'u>,
    sum: &Sum,
    published: &Published,
    ahead: &[(i64, Level)],
) -> RiskScore<'u> {
    let line = |(hour, level): &(i64, Level)| LevelAhead {
        level: Text::borrowed(level.as_str()),
        at: Timestamp(hour * HOUR_MS),
    };
    RiskScore {
        envelope,
        score_milli: sum.score_milli,
        level: Text::borrowed(published.level.as_str()),
        previous_level: Text::borrowed(published.previous_level.as_str()),
        changed_at: published.level_changed_at,
        as_of: published.as_of,
        next_change_at: published.next_fall_at,
        levels_ahead: ahead.iter().map(line).collect(),
        contributions: contributions(curve, sum),
        boosters: boosters(curve, sum, published.as_of.hour()),
        muted_milli: 0,
        truncated: truncated(user.head.limits),
        chronology_seq: user.head.seq,
    }
}

/// One line per indicator, largest share first, and one for the rest.
pub fn contributions<'u>(curve: &Curve<'u>, sum: &Sum) -> Vec<Contribution<'u>> {
    let mut lines: Vec<Contribution<'u>> = Vec::with_capacity(sum.parts.len());
    for (part, share_milli) in sum.parts.iter().zip(shares(sum)) {
        let indicator = &curve.catalogue().indicators[part.position];
        let own = curve.terms.iter().filter(|t| t.position == part.position);
        lines.push(Contribution {
            indicator: Text::borrowed(&indicator.id),
            category: Text::borrowed(indicator.category.as_str()),
            points_milli: part.points_milli,
            share_milli,
            insights: i64::from(part.insights),
            last_at: own.map(|t| curve.insight(t).last_at).max().unwrap_or_default(),
        });
    }
    let order = |a: &Contribution<'_>, b: &Contribution<'_>| {
        b.share_milli.cmp(&a.share_milli).then_with(|| a.indicator.cmp(&b.indicator))
    };
    lines.sort_by(order);
    if lines.len() > CONTRIBUTIONS_MAX {
        let rest = lines.split_off(CONTRIBUTIONS_MAX);
        lines.push(Contribution {
            indicator: Text::borrowed("rest"),
            category: Text::default(),
            points_milli: rest.iter().map(|l| l.points_milli).sum(),
            share_milli: rest.iter().map(|l| l.share_milli).sum(),
            insights: rest.iter().map(|l| l.insights).sum(),
            last_at: rest.iter().map(|l| l.last_at).max().unwrap_or_default(),
        });
    }
    lines
}

/// What each part takes of the score without boosters.
fn shares(sum: &Sum) -> smallvec::SmallVec<[i64; 8]> {
    let base = score_milli(sum.evidence_milli, 1_000);
    if let [part] = sum.parts.as_slice() {
        return smallvec::smallvec![if part.points_milli == 0 { 0 } else { base }];
    }
    let points: smallvec::SmallVec<[i64; 8]> = sum.parts.iter().map(|p| p.points_milli).collect();
    largest_remainder(base, &points)
}

/// Each booster in force with what it adds after those before it; the last line takes what the bounds leave.
pub fn boosters(curve: &Curve<'_>, sum: &Sum, hour: i64) -> Vec<Booster<'static>> {
    let mut lines = Vec::new();
    if curve.boosts.is_empty() {
        return lines;
    }
    let mut product = 1_000;
    let mut before = score_milli(sum.evidence_milli, 1_000);
    let count = curve.boosts_at(hour).count();
    for (n, boost) in curve.boosts_at(hour).enumerate() {
        product = product * boost.factor_milli / 1_000;
        let after =
            if n + 1 == count { sum.score_milli } else { score_milli(sum.evidence_milli, product.clamp(500, 2_500)) };
        lines.push(Booster {
            kind: Text::borrowed(boost.kind),
            factor_milli: boost.factor_milli,
            share_milli: after - before,
            from: boost.from,
            until: boost.until,
        });
        before = after;
    }
    lines
}

fn truncated(limits: u32) -> Vec<Text<'static>> {
    let names = [
        (LIMIT_SIGNALS, "signals"),
        (LIMIT_INSIGHTS, "insights"),
        (LIMIT_SEEN, "seen"),
        (LIMIT_ALERTS, "alerts"),
        (LIMIT_BYTES, "bytes"),
    ];
    names.into_iter().filter(|(bit, _)| limits & bit != 0).map(|(_, name)| Text::borrowed(name)).collect()
}

#[inline(always)]
fn level<'u>(
    envelope: Envelope<'u>,
    user: &User,
    sum: &Sum,
    published: &Published,
    ctx: &Context<'_>,
) -> RiskLevel<'u> {
    let mut reasons: smallvec::SmallVec<[(i64, Category); 7]> =
        Category::ALL.into_iter().map(|c| (-sum.categories[c as usize], c)).filter(|r| r.0 < 0).collect();
    reasons.sort_unstable();
    RiskLevel {
        envelope,
        level: Text::borrowed(published.level.as_str()),
        enforcement_level: Text::borrowed(published.enforcement.as_str()),
        previous_level: Text::borrowed(published.previous_level.as_str()),
        as_of: published.as_of,
        valid_until: published.valid_until,
        review: Text::borrowed(review(user, ctx)),
        reason_codes: reasons.iter().map(|(_, c)| Text::borrowed(c.as_str())).collect(),
    }
}

/// Whether a person has looked: alerts of shadow policies do not count.
fn review(user: &User, ctx: &Context<'_>) -> &'static str {
    let shown = |a: &&AlertState| {
        let policy = ctx.policies.position_of_hash(a.policy).map(|n| &ctx.policies.policies[n]);
        alerts::is_visible(a, policy) && policy.is_none_or(|p| p.status == policy::Status::On)
    };
    let best = user.head.alerts.iter().filter(shown).map(|a| match a.status {
        Status::Confirmed => 2,
        Status::NeedsReview => 1,
        _ => 0,
    });
    ["none", "alert", "confirmed"][best.max().unwrap_or(0)]
}

fn alert<'u>(
    user: &User,
    curve: &Curve<'u>,
    state: &AlertState,
    n: Option<usize>,
    now: Timestamp,
    ctx: &Context<'u>,
) -> Alert<'u> {
    let policy = n.map(|n| &ctx.policies.policies[n]);
    let text = |pick: fn(&policy::Policy) -> &str| policy.map_or(Text::default(), |p| Text::borrowed(pick(p)));
    let number = alerts::number(state, ctx.partition);
    let name = policy.map_or("", |p| p.name.as_str());
    let parts = parts(curve, state, policy, now.hour(), ctx);
    Alert {
        alert_id: Text::from(uuid_text(&state.id)),
        headline: Text::from(headline::alert(&number, change_word(state), name, state.severity, state.score_milli)),
        alert_no: Text::from(number),
        revision: state.revision,
        change: Text::borrowed(change_text(state.change)),
        status: Text::borrowed(state.status.as_str()),
        status_reason: status_reason(state.status).map(Text::borrowed),
        policy_id: text(|p| &p.id),
        policy_version: text(|p| &p.version),
        policy_title: text(|p| &p.name),
        severity: Text::borrowed(state.severity.as_str()),
        severity_peak: Text::borrowed(state.severity_peak.as_str()),
        score_milli: state.score_milli,
        trigger: n.and_then(|n| alerts::trigger(user, n, ctx)),
        window: state.window,
        insight_ids: parts.iter().map(|p| p.insight_id.clone()).collect(),
        insights_total: state.evidence.len() as i64,
        matched: matched(state, policy, ctx),
        score_parts: parts,
        predecessor_id: state.predecessor.map(|id| Text::from(uuid_text(&id))),
        chronology_seq: user.head.seq,
        ..Alert::default()
    }
}

/// The alert's insights by points now, largest first, with shares that add up to its score. Insights of no worth any
/// more are left out as long as others have some.
fn parts<'u>(
    curve: &Curve<'_>,
    state: &AlertState,
    policy: Option<&policy::Policy>,
    hour: i64,
    ctx: &Context<'u>,
) -> Vec<ScorePart<'u>> {
    let catalogue = &ctx.policies.catalogue;
    let weight = |position: usize| {
        let n = policy?.indicators.binary_search_by_key(&position, |i| i.position).ok()?;
        Some(policy?.indicators[n].weight_milli)
    };
    let mut points: Vec<(i64, String)> = Vec::with_capacity(state.evidence.len());
    for (day, code) in &state.evidence {
        let Some(position) = catalogue.position_of_code(*code) else { continue };
        let indicator = &catalogue.indicators[position];
        let own = curve.term(*day, position).map_or(0, |t| curve.points_milli(t, hour));
        let weighted = own * weight(position).unwrap_or(0) / indicator.weight_milli.max(1);
        points.push((weighted, format!("{}@{}", indicator.id, day.iso())));
    }
    points.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    points.truncate(ALERT_INSIGHTS_MAX);
    let mut worth: Vec<i64> = points.iter().map(|p| p.0).collect();
    if worth.iter().all(|w| *w == 0) {
        worth.fill(1);
    }
    let shares = largest_remainder(state.score_milli, &worth);
    let line = |((_, id), share_milli)| ScorePart { insight_id: Text::from(id), share_milli };
    points.into_iter().zip(shares).map(line).collect()
}

/// What of the policy the evidence met, in words.
fn matched<'u>(state: &AlertState, policy: Option<&'u policy::Policy>, ctx: &Context<'u>) -> Vec<Clause<'u>> {
    let Some(policy) = policy else { return Vec::new() };
    let mut codes: Vec<u16> = state.evidence.iter().map(|e| e.1).collect();
    codes.sort_unstable();
    codes.dedup();
    let opened = Clause {
        clause_id: Text::borrowed("open_at"),
        text: Text::from(format!("the policy's score reached {}", policy.open_at_milli / 1_000)),
    };
    let indicators = codes.into_iter().filter_map(|code| {
        let position = ctx.policies.catalogue.position_of_code(code)?;
        let indicator = &ctx.policies.catalogue.indicators[position];
        Some(Clause { clause_id: Text::borrowed(&indicator.id), text: Text::borrowed(&indicator.title) })
    });
    std::iter::once(opened).chain(indicators).collect()
}

/// Lower-case hyphenated form of an alert's id.
pub fn uuid_text(id: &[u8; 16]) -> String {
    uuid::Uuid::from_bytes(*id).hyphenated().to_string()
}

fn change_text(change: Change) -> &'static str {
    match change {
        Change::None => "",
        Change::Opened => "opened",
        Change::EvidenceAdded => "evidence_added",
        Change::Severity => "severity",
        Change::Status => "status",
        Change::Late => "late",
        Change::Retracted => "retracted",
        Change::Frozen => "frozen",
    }
}

fn change_word(state: &AlertState) -> &'static str {
    match state.change {
        Change::Opened => "opened",
        Change::EvidenceAdded => "grew",
        Change::Severity => "changed severity",
        Change::Late => "got late evidence",
        Change::Retracted => "lost evidence",
        Change::Frozen => "closed to new evidence",
        Change::None | Change::Status => state.status.as_str(),
    }
}

fn status_reason(status: Status) -> Option<&'static str> {
    match status {
        Status::Expired => Some("not reviewed in time"),
        Status::Withdrawn => Some("all evidence retracted"),
        _ => None,
    }
}
