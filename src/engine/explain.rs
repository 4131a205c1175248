//! Why a score is what it is: every insight's factors in words and its share, and what would change it. All numbers
//! come from the same curve as the score and add up to it exactly.

use serde::Serialize;

use super::alerts::{self, is_collecting};
use super::math::largest_remainder;
use super::publish::{boosters, foresee};
use super::score::{Curve, Sum, Term, evidence_for, score_milli};
use super::state::User;
use super::{Context, headline};
use crate::domain::Level;
use crate::domain::time::HOUR_MS;

/// Insights for which the score without them is given.
pub const COUNTERFACTUALS_MAX: usize = 10;

/// A score taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Explanation {
    pub user_key: String,
    /// The hour the score is of, in milliseconds since the epoch.
    pub at: i64,
    pub score_milli: i64,
    pub level: String,
    pub evidence_milli: i64,
    pub boost_milli: i64,
    /// Largest share first; with `boosters` they add up to `score_milli`.
    pub indicators: Vec<IndicatorLine>,
    pub boosters: Vec<BoosterLine>,
    pub levels_ahead: Vec<Ahead>,
    pub without: Vec<Without>,
    /// What is missing to the next level; `None` at the highest.
    pub next: Option<Missing>,
    pub policies: Vec<PolicyLine>,
}

/// What one indicator adds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IndicatorLine {
    pub indicator: String,
    pub category: String,
    pub points_milli: i64,
    pub share_milli: i64,
    /// By day; their shares add up to the indicator's.
    pub insights: Vec<InsightLine>,
}

/// What one insight adds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InsightLine {
    pub insight_id: String,
    pub count: u32,
    pub magnitude_milli: u64,
    pub bytes: u64,
    /// Before any cap.
    pub points_milli: i64,
    pub share_milli: i64,
    pub habit_q16: u32,
    pub novel_q16: u32,
    pub own_q16: u32,
    pub reasons: Vec<String>,
}

/// A multiplier in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BoosterLine {
    pub kind: String,
    pub factor_milli: i64,
    pub share_milli: i64,
}

/// A change of level that comes by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ahead {
    pub level: String,
    pub at: i64,
}

/// The score if an insight had not been.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Without {
    pub insight_id: String,
    pub score_milli: i64,
    pub level: String,
}

/// How much evidence is missing to a level.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Missing {
    pub level: String,
    pub points_milli: i64,
}

/// Where a policy stands with the user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PolicyLine {
    pub policy_id: String,
    /// Whether scope and trigger put the user under it now.
    pub applies: bool,
    pub trigger: Option<String>,
    pub score_milli: i64,
    pub open_at_milli: i64,
    /// Number of the alert that is collecting evidence.
    pub alert_no: Option<String>,
}

/// Takes a user's score apart at the context's stream time.
pub fn explain(user: &User, user_key: &str, ctx: &Context<'_>) -> Explanation {
    let hour = ctx.stream_time.hour();
    let curve = Curve::new(user, &ctx.policies.catalogue, hour);
    let sum = curve.at(hour);
    let mut published = user.head.published;
    published.level = Level::of(sum.score_milli);
    let ahead = foresee(&mut published, &curve, hour);
    let boosters = boosters(&curve, &sum, hour);
    Explanation {
        user_key: user_key.to_owned(),
        at: hour * HOUR_MS,
        score_milli: sum.score_milli,
        level: published.level.as_str().to_owned(),
        evidence_milli: sum.evidence_milli,
        boost_milli: sum.boost_milli,
        indicators: indicators(user, &curve, &sum, hour),
        boosters: boosters
            .iter()
            .map(|b| BoosterLine { kind: b.kind.to_string(), factor_milli: b.factor_milli, share_milli: b.share_milli })
            .collect(),
        levels_ahead: ahead
            .into_iter()
            .map(|(hour, level)| Ahead { level: level.as_str().to_owned(), at: hour * HOUR_MS })
            .collect(),
        without: without(&curve, hour),
        next: missing(&sum),
        policies: policies(user, &curve, &sum, ctx),
    }
}

fn insight_id(curve: &Curve<'_>, term: &Term) -> String {
    format!("{}@{}", curve.catalogue().indicators[term.position].id, term.day.iso())
}

fn indicators(user: &User, curve: &Curve<'_>, sum: &Sum, hour: i64) -> Vec<IndicatorLine> {
    let points: Vec<i64> = sum.parts.iter().map(|p| p.points_milli).collect();
    let shares = largest_remainder(score_milli(sum.evidence_milli, 1_000), &points);
    let mut lines: Vec<IndicatorLine> = Vec::with_capacity(shares.len());
    for (part, share_milli) in sum.parts.iter().zip(shares) {
        let indicator = &curve.catalogue().indicators[part.position];
        let terms: Vec<&Term> = curve.terms.iter().filter(|t| t.position == part.position).collect();
        let points: Vec<i64> = terms.iter().map(|t| curve.points_milli(t, hour)).collect();
        let own = largest_remainder(share_milli, &points);
        lines.push(IndicatorLine {
            indicator: indicator.id.clone(),
            category: indicator.category.as_str().to_owned(),
            points_milli: part.points_milli,
            share_milli,
            insights: terms
                .into_iter()
                .zip(points.into_iter().zip(own))
                .map(|(term, (points, share))| insight(user, curve, term, points, share))
                .collect(),
        });
    }
    lines.sort_by(|a, b| b.share_milli.cmp(&a.share_milli).then_with(|| a.indicator.cmp(&b.indicator)));
    lines
}

fn insight(user: &User, curve: &Curve<'_>, term: &Term, points_milli: i64, share_milli: i64) -> InsightLine {
    let insight = curve.insight(term);
    let since = headline::days_since(user, term.day, insight.code);
    InsightLine {
        insight_id: insight_id(curve, term),
        count: insight.count,
        magnitude_milli: insight.magnitude_milli,
        bytes: insight.bytes,
        points_milli,
        share_milli,
        habit_q16: term.habit_q16,
        novel_q16: term.novel_q16,
        own_q16: term.own_q16,
        reasons: headline::reasons(term, user.head.first_day, since),
    }
}

/// The score without each of the insights that are worth most. Only the insight's own points go: what it is to others
/// as a reference stays.
fn without(curve: &Curve<'_>, hour: i64) -> Vec<Without> {
    let mut order: Vec<usize> = (0..curve.terms.len()).collect();
    order.sort_by_key(|n| (-curve.points_milli(&curve.terms[*n], hour), *n));
    order.truncate(COUNTERFACTUALS_MAX);
    order
        .into_iter()
        .map(|n| {
            let mut other = curve.clone();
            let term = other.terms.remove(n);
            let score_milli = other.at(hour).score_milli;
            Without {
                insight_id: insight_id(curve, &term),
                score_milli,
                level: Level::of(score_milli).as_str().to_owned(),
            }
        })
        .collect()
}

/// Evidence missing to the next level, boosters in force taken into account, rounded up.
fn missing(sum: &Sum) -> Option<Missing> {
    let next = Level::ALL.into_iter().find(|l| l.floor_milli() > sum.score_milli)?;
    let needed = evidence_for(next.floor_milli()) * 1_000;
    let needed = (needed + sum.boost_milli - 1) / sum.boost_milli;
    let points_milli = (needed - sum.evidence_milli).max(0);
    Some(Missing { level: next.as_str().to_owned(), points_milli })
}

fn policies(user: &User, curve: &Curve<'_>, sum: &Sum, ctx: &Context<'_>) -> Vec<PolicyLine> {
    let hour = ctx.stream_time.hour();
    let line = |n: usize| {
        let policy = &ctx.policies.policies[n];
        let lens = alerts::lens(user, n, ctx);
        let hash = ctx.policies.id_hash(n);
        let open = user.head.alerts.iter().find(|a| a.policy == hash && is_collecting(a));
        PolicyLine {
            policy_id: policy.id.clone(),
            applies: lens.is_some(),
            trigger: alerts::trigger(user, n, ctx).map(|t| t.kind.to_string()),
            score_milli: lens.map_or(0, |l| alerts::score(curve, &l, sum, hour)),
            open_at_milli: policy.open_at_milli,
            alert_no: open.map(|a| alerts::number(a, ctx.partition)),
        }
    };
    (0..ctx.policies.policies.len()).map(line).collect()
}
