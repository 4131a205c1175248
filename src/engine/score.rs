//! What a user's state adds up to at a whole hour: a pure function of state, catalogue and time, in integers.
//! `docs/scoring.md` states every formula and unit. Does not know what was published before.
//! Next: `fold.rs`, which asks before and after every input.

use smallvec::SmallVec;

use std::sync::LazyLock;

use super::math::{ONE_Q16, ONE_Q32, exp2_neg_q32, log2_q16};
use super::state::{Directory, Insight, Seen, Spent, User, hash64};
use crate::domain::indicator::{Boosters, Catalogue, Category, HALF_LIVES_DAYS, Indicator, Measure};
use crate::domain::policy::{Policy, PolicySet};
use crate::domain::time::{DAY_MS, HOUR_MS};
use crate::domain::{Day, Level, Timestamp};

/// Evidence older than this many days is dropped whatever its half-life.
pub const LOOK_BACK_DAYS: i64 = 90;
/// Evidence older than this many half-lives is dropped.
pub const HALF_LIVES_KEPT: i64 = 12;
/// The reference of an insight of day d is [d − 60, d − 7).
pub const REFERENCE_FROM_DAYS: i32 = 60;
/// See `REFERENCE_FROM_DAYS`.
pub const REFERENCE_TO_DAYS: i32 = 7;
/// Destinations and devices are new this many days after the first sight of them.
pub const NOVEL_DAYS: i32 = 7;
/// History before anything can be new.
pub const HISTORY_DAYS: i32 = 14;
/// A source counts as young for this many days.
pub const COLD_DAYS: i32 = 28;
/// Evidence that halves the distance to 100, in thousandths.
pub const HALVING_MILLI: u64 = 50_000;
/// The largest magnitude of an insight, so that no product overflows.
pub const MAGNITUDE_MAX: u64 = 100_000_000_000_000;

/// An insight with its factors: `q_q16 = log2(1 + M') · habit · novel · own`, independent of time and weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Term {
    /// Position in the catalogue.
    pub position: usize,
    pub day: Day,
    /// Index into the user's days and into the day's insights.
    pub at: (u32, u32),
    /// Magnitude in the reference, in thousandths.
    pub reference_milli: u64,
    /// Days in the reference with this indicator.
    pub reference_days: u32,
    pub habit_q16: u32,
    pub novel_q16: u32,
    pub own_q16: u32,
    pub q_q16: u64,
    /// Hours outside the person's own on that day, as bits.
    pub outside: u32,
}

/// A multiplier and while it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boost {
    /// leaving, priority_group or high_impact.
    pub kind: &'static str,
    pub factor_milli: i64,
    pub from: Timestamp,
    pub until: Option<Timestamp>,
}

impl Boost {
    fn holds(&self, hour: i64) -> bool {
        let t = hour * HOUR_MS;
        self.from.0 <= t && self.until.is_none_or(|u| t <= u.0)
    }
}

/// What one indicator adds at an hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub position: usize,
    pub insights: u32,
    /// Σ q·decay in Q16.
    pub sum_q16: u64,
    /// After the indicator's cap.
    pub capped_milli: i64,
    /// After the category's cap as well: the parts add up to the evidence but for rounding.
    pub points_milli: i64,
}

/// What each indicator adds; most users do few things.
pub type Parts = SmallVec<[Part; 4]>;

/// A score with everything it was made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Ascending by position.
    pub parts: Parts,
    /// X per category, in the order of `Category::ALL`.
    pub categories: [i64; 7],
    pub evidence_milli: i64,
    pub boost_milli: i64,
    pub score_milli: i64,
}

/// Which evidence a policy looks at, and how.
#[derive(Clone, Copy, Debug)]
pub struct Lens<'a> {
    pub policy: &'a Policy,
    /// Insights of earlier days do not count.
    pub since: Day,
    /// Taken off before measuring; ascending by day and code. Empty: nothing.
    pub spent: &'a [Spent],
}

/// The score of a user as a function of the hour: state turned into terms once, evaluated as often as needed.
#[derive(Clone, Debug)]
pub struct Curve<'a> {
    user: &'a User,
    catalogue: &'a Catalogue,
    /// In order of day, then code.
    pub terms: Terms,
    pub boosts: SmallVec<[Boost; 2]>,
}

/// Terms of a user, in order of day, then code.
pub type Terms = Vec<Term>;

/// Terms, and the score they make, kept from one question to the next while nothing they depend on changes. No part
/// of the state: it never makes two users differ.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Hour of the score, from which the terms count, and the first bytes of the hash of the policy set.
    of: Option<(i64, [u8; 16])>,
    terms: Terms,
    whole: Sum,
}

impl PartialEq for Known {
    fn eq(&self, _: &Known) -> bool {
        true
    }
}

impl Eq for Known {}

impl Known {
    /// Knows nothing any more; keeps the memory.
    pub fn clear(&mut self) {
        self.of = None;
        self.terms.clear();
    }

    /// Hands over what terms were kept in, empty, and knows nothing any more.
    pub fn memory(&mut self) -> Terms {
        self.clear();
        std::mem::take(&mut self.terms)
    }

    /// Keeps terms and the score they make at an hour.
    #[inline]
    pub fn keep(&mut self, terms: Terms, whole: Sum, policies: &PolicySet, hour: i64) {
        self.of = beginning(policies).map(|beginning| (hour, beginning));
        self.terms = terms;
        self.whole = whole;
    }

    /// Hands the terms and the score over, if they are the ones asked for.
    pub fn take(&mut self, policies: &PolicySet, hour: i64) -> Option<(Terms, Sum)> {
        let (terms, _) = self.take_terms(policies, hour)?;
        Some((terms, std::mem::take(&mut self.whole)))
    }

    /// Takes back the terms that were handed over: the score they make is still here.
    pub fn put_back(&mut self, terms: Terms, policies: &PolicySet, hour: i64) {
        self.of = beginning(policies).map(|beginning| (hour, beginning));
        self.terms = terms;
    }

    /// The score of the terms that came or went last.
    pub fn whole(&self) -> &Sum {
        &self.whole
    }

    /// Hands the terms over with no more of the score than its value.
    #[inline]
    pub fn take_terms(&mut self, policies: &PolicySet, hour: i64) -> Option<(Terms, i64)> {
        let kept = self.of.take()?;
        (Some(kept) == beginning(policies).map(|beginning| (hour, beginning)))
            .then(|| (std::mem::take(&mut self.terms), self.whole.score_milli))
    }
}

/// Enough of a content hash to tell sets apart; `None` for a set without one.
fn beginning(policies: &PolicySet) -> Option<[u8; 16]> {
    let hash = policies.hash.as_bytes();
    hash.first_chunk().copied().or_else(|| {
        let mut beginning = [0; 16];
        beginning[..hash.len()].copy_from_slice(hash);
        (!hash.is_empty()).then_some(beginning)
    })
}

impl<'a> Curve<'a> {
    /// The curve from `hour` on.
    pub fn new(user: &'a User, catalogue: &'a Catalogue, hour: i64) -> Curve<'a> {
        Curve::new_in(Terms::new(), user, catalogue, hour)
    }

    /// The curve from `hour` on, with its terms in memory that is used again.
    pub fn new_in(mut memory: Terms, user: &'a User, catalogue: &'a Catalogue, hour: i64) -> Curve<'a> {
        memory.clear();
        fill_terms(&mut memory, user, catalogue, hour);
        Curve::of(user, catalogue, memory)
    }

    /// The curve of terms that are known.
    #[inline]
    pub fn of(user: &'a User, catalogue: &'a Catalogue, terms: Terms) -> Curve<'a> {
        Curve { user, catalogue, terms, boosts: boosts(user.head.directory.as_ref(), &catalogue.boosters) }
    }

    /// The user's score at an hour, with its parts.
    pub fn at(&self, hour: i64) -> Sum {
        let mut sum = Sum::default();
        for term in &self.terms {
            let indicator = &self.catalogue.indicators[term.position];
            add(&mut sum.parts, term.position, (term.q_q16 * decay_q32(term.day, indicator, hour)) >> 32);
        }
        self.total(&mut sum, hour, |position| {
            let indicator = &self.catalogue.indicators[position];
            Some((indicator.weight_milli, indicator.cap_milli))
        });
        sum
    }

    /// `at(hour).score_milli` without the parts.
    pub fn score_at(&self, hour: i64) -> i64 {
        let mut sums: SmallVec<[(usize, u64); 8]> = SmallVec::new();
        for term in &self.terms {
            let indicator = &self.catalogue.indicators[term.position];
            let sum = (term.q_q16 * decay_q32(term.day, indicator, hour)) >> 32;
            match sums.iter_mut().find(|s| s.0 == term.position) {
                Some(known) => known.1 += sum,
                None => sums.push((term.position, sum)),
            }
        }
        let mut categories = [0_i64; 7];
        for (position, sum) in sums {
            let indicator = &self.catalogue.indicators[position];
            categories[indicator.category as usize] += cap(weighted(indicator.weight_milli, sum), indicator.cap_milli);
        }
        let capped = |c: &Category| cap(categories[*c as usize], c.cap_milli());
        let evidence_milli = Category::ALL.iter().map(capped).sum();
        score_milli(evidence_milli, boost(self.boosts_at(hour).map(|b| b.factor_milli)))
    }

    /// A policy's score at an hour: the same formula over its indicators, weights and caps.
    pub fn under(&self, lens: &Lens<'_>, hour: i64) -> Sum {
        let mut sum = Sum::default();
        for term in self.terms.iter().filter(|t| t.day >= lens.since) {
            if counted(lens.policy, term.position).is_none() {
                continue;
            }
            let indicator = &self.catalogue.indicators[term.position];
            let q = if lens.spent.is_empty() { term.q_q16 } else { self.q_beyond(term, lens.spent) };
            add(&mut sum.parts, term.position, (q * decay_q32(term.day, indicator, hour)) >> 32);
        }
        self.total(&mut sum, hour, |position| counted(lens.policy, position));
        sum
    }

    /// A policy's score from the sums of the user's: right when the policy looks at every term.
    pub fn reweigh(&self, policy: &Policy, whole: &Sum, hour: i64) -> Sum {
        let counts = |p: &&Part| counted(policy, p.position).is_some();
        let mut sum = Sum { parts: whole.parts.iter().filter(counts).copied().collect(), ..Sum::default() };
        self.total(&mut sum, hour, |position| counted(policy, position));
        sum
    }

    /// The catalogue the curve is drawn by.
    pub fn catalogue(&self) -> &'a Catalogue {
        self.catalogue
    }

    /// The insight behind a term.
    pub fn insight(&self, term: &Term) -> &'a Insight {
        &self.user.days[term.at.0 as usize].insights[term.at.1 as usize]
    }

    /// The term of an insight, while it counts.
    #[inline]
    pub fn term(&self, day: Day, position: usize) -> Option<&Term> {
        // Of most changes it is the last.
        if let Some(last) = self.terms.last().filter(|t| (t.day, t.position) <= (day, position)) {
            return Some(last).filter(|t| (t.day, t.position) == (day, position));
        }
        let place = self.terms.binary_search_by(|t| (t.day, t.position).cmp(&(day, position)));
        place.ok().map(|n| &self.terms[n])
    }

    /// Evidence of one insight at an hour before any cap, in thousandths of a point.
    pub fn points_milli(&self, term: &Term, hour: i64) -> i64 {
        let indicator = &self.catalogue.indicators[term.position];
        weighted(indicator.weight_milli, (term.q_q16 * decay_q32(term.day, indicator, hour)) >> 32)
    }

    /// A term's q over what is beyond a closed alert's evidence.
    pub fn q_beyond(&self, term: &Term, spent: &[Spent]) -> u64 {
        let insight = self.insight(term);
        let Ok(n) = spent.binary_search_by_key(&(term.day, insight.code), |s| (s.day, s.code)) else {
            return term.q_q16;
        };
        let used = &spent[n];
        let magnitude = magnitude(
            self.catalogue.indicators[term.position].measure,
            insight.count.saturating_sub(used.count),
            insight.magnitude_milli.saturating_sub(used.magnitude_milli),
            insight.bytes.saturating_sub(used.bytes),
        );
        scale(log_q16(relative(magnitude, term.reference_milli)), term)
    }

    /// The first hour in `(from, to]` whose level differs from `current`, with the score there. Between the instants
    /// at which a booster begins or ends the score never rises, so halving finds it.
    pub fn next_change(&self, current: Level, from: i64, to: i64) -> Option<(i64, i64)> {
        let mut starts: SmallVec<[i64; 6]> = SmallVec::new();
        starts.push(from + 1);
        starts.extend(self.bounds().filter(|h| (from + 1..=to).contains(h)));
        starts.sort_unstable();
        for (n, start) in starts.iter().enumerate() {
            let end = starts.get(n + 1).map_or(to, |next| next - 1);
            if end < *start {
                continue;
            }
            let found = self.first_below(*start, end, &|score| Level::of(score) != current);
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// The first hour in `[start, end]` whose score meets a test that stays true once the score has fallen so far.
    pub fn first_below(&self, start: i64, end: i64, test: &dyn Fn(i64) -> bool) -> Option<(i64, i64)> {
        let score = self.score_at(start);
        if test(score) {
            return Some((start, score));
        }
        let (mut low, mut high) = (start, end);
        let mut found = self.score_at(end);
        if !test(found) {
            return None;
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            let score = self.score_at(middle);
            if test(score) {
                (high, found) = (middle, score);
            } else {
                low = middle;
            }
        }
        Some((high, found))
    }

    /// The whole hours at which a booster begins to hold or has ended.
    pub fn bounds(&self) -> impl Iterator<Item = i64> + '_ {
        self.boosts.iter().flat_map(|b| {
            let ends = b.until.map(|u| u.hour() + 1);
            [Some(hour_at_or_after(b.from)), ends].into_iter().flatten()
        })
    }

    /// The boosters in force at an hour.
    pub fn boosts_at(&self, hour: i64) -> impl Iterator<Item = &Boost> + '_ {
        self.boosts.iter().filter(move |b| b.holds(hour))
    }

    /// Brings everything up to the sums of the parts.
    #[inline]
    fn total(&self, sum: &mut Sum, hour: i64, terms_of: impl Fn(usize) -> Option<(i64, i64)>) {
        let mut uncapped = [0_i64; 7];
        for part in &mut sum.parts {
            let (weight, most) = terms_of(part.position).unwrap_or_default();
            part.capped_milli = cap(weighted(weight, part.sum_q16), most);
            uncapped[self.category(part.position)] += part.capped_milli;
        }
        let categories = &mut sum.categories;
        *categories = [0; 7];
        for category in Category::ALL {
            if uncapped[category as usize] > 0 {
                categories[category as usize] = cap(uncapped[category as usize], category.cap_milli());
            }
        }
        for part in &mut sum.parts {
            let g = self.category(part.position);
            part.points_milli = part.capped_milli * categories[g] / uncapped[g].max(1);
        }
        sum.evidence_milli = categories.iter().sum();
        sum.boost_milli = boost(self.boosts_at(hour).map(|b| b.factor_milli));
        sum.score_milli = score_milli(sum.evidence_milli, sum.boost_milli);
    }

    fn category(&self, position: usize) -> usize {
        self.catalogue.indicators[position].category as usize
    }
}

#[inline]
fn add(parts: &mut Parts, position: usize, sum_q16: u64) {
    if sum_q16 == 0 {
        return;
    }
    match parts.iter().position(|p| p.position >= position) {
        Some(n) if parts[n].position == position => {
            parts[n].sum_q16 += sum_q16;
            parts[n].insights += 1;
        }
        None => parts.push(Part { position, insights: 1, sum_q16, capped_milli: 0, points_milli: 0 }),
        Some(n) => parts.insert(n, Part { position, insights: 1, sum_q16, capped_milli: 0, points_milli: 0 }),
    }
}

fn counted(policy: &Policy, position: usize) -> Option<(i64, i64)> {
    let n = policy.indicators.binary_search_by_key(&position, |i| i.position).ok()?;
    Some((policy.indicators[n].weight_milli, policy.indicators[n].cap_milli))
}

/// The first whole hour at or after an instant.
pub fn hour_at_or_after(t: Timestamp) -> i64 {
    t.plus_ms(HOUR_MS - 1).hour()
}

fn weighted(weight_milli: i64, sum_q16: u64) -> i64 {
    weight_milli.saturating_mul(sum_q16 as i64) >> 16
}

/// `S` up to half of `C`, then ever slower towards `C`.
pub fn cap(sum: i64, most: i64) -> i64 {
    if most <= 0 {
        0
    } else if 2 * sum <= most {
        sum
    } else {
        most - most.saturating_mul(most) / sum.saturating_mul(4)
    }
}

/// The product of the boosters, within [1/2, 5/2], in thousandths.
pub fn boost(factors_milli: impl Iterator<Item = i64>) -> i64 {
    factors_milli.fold(1_000, |product, f| product * f / 1_000).clamp(500, 2_500)
}

/// 100 · (1 − 2^(−B·E/50)) in thousandths.
pub fn score_milli(evidence_milli: i64, boost_milli: i64) -> i64 {
    let x_q16 = (evidence_milli as u64 * boost_milli as u64 * ONE_Q16) / (HALVING_MILLI * 1_000);
    ((100_000 * (ONE_Q32 - exp2_neg_q32(x_q16))) >> 32) as i64
}

/// The least evidence without boosters that reaches a score, in thousandths of a point.
pub fn evidence_for(score: i64) -> i64 {
    let (mut low, mut high) = (0_i64, 2_000_000_i64);
    while low < high {
        let middle = low + (high - low) / 2;
        if score_milli(middle, 1_000) >= score {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

/// Whole hours since the end of a day.
#[inline]
fn age_hours(day: Day, hour: i64) -> i64 {
    hour - 24 * (i64::from(day.0) + 1)
}

/// 2^(−age / half-life) in Q32; age runs in whole hours from the end of the day. 0 when too old to count.
#[inline]
pub fn decay_q32(day: Day, indicator: &Indicator, hour: i64) -> u64 {
    let age = age_hours(day, hour).max(0);
    let half_life = i64::from(indicator.half_life_days);
    match HALF_LIVES_DAYS.iter().position(|h| *h == indicator.half_life_days) {
        Some(n) => DECAYS[n].get(age as usize).copied().unwrap_or(0),
        None if age > age_max(half_life) => 0,
        None => decayed(age, half_life),
    }
}

/// The largest age that counts, in hours.
fn age_max(half_life: i64) -> i64 {
    24 * LOOK_BACK_DAYS.min(HALF_LIVES_KEPT * half_life)
}

/// `decayed` of every age that counts, for each of `HALF_LIVES_DAYS`: a level ahead takes dozens of evaluations.
static DECAYS: LazyLock<[Box<[u64]>; HALF_LIVES_DAYS.len()]> = LazyLock::new(|| {
    HALF_LIVES_DAYS.map(|h| {
        let half_life = i64::from(h);
        (0..=age_max(half_life)).map(|age| decayed(age, half_life)).collect()
    })
});

fn decayed(age: i64, half_life: i64) -> u64 {
    exp2_neg_q32(age as u64 * ONE_Q16 / (24 * half_life as u64))
}

/// M of an insight in thousandths.
pub fn magnitude(measure: Measure, count: u32, magnitude_milli: u64, bytes: u64) -> u64 {
    let m = match measure {
        Measure::Count => magnitude_milli,
        Measure::Volume if count == 0 => 0,
        Measure::Volume => {
            let whole = u128::from(magnitude_milli) * (1_000_000 + u128::from(bytes));
            match u64::try_from(whole) {
                Ok(whole) => whole / (u64::from(count) * 1_000_000),
                Err(_) => (whole / (u128::from(count) * 1_000_000)).min(MAGNITUDE_MAX.into()) as u64,
            }
        }
        Measure::Steps => (magnitude_milli.min(u64::from(count) * 1_000) / 10_000).min(3) * 1_000,
    };
    m.min(MAGNITUDE_MAX)
}

/// M' = 53·M / (53 + 7·Σ): the usual week takes off what is usual.
pub fn relative(magnitude: u64, reference_milli: u64) -> u64 {
    53_000 * magnitude / (53_000 + 7 * reference_milli.min(MAGNITUDE_MAX))
}

/// log2(1 + M') in Q16, M' in thousandths.
pub fn log_q16(relative_milli: u64) -> u64 {
    log2_q16(1_000 + relative_milli) - log2_q16(1_000)
}

fn scale(log: u64, term: &Term) -> u64 {
    let [habit, novel, own] = [term.habit_q16, term.novel_q16, term.own_q16].map(u64::from);
    (((((log * habit) >> 16) * novel) >> 16) * own) >> 16
}

/// max(1/8, 1 / (1 + K + cold)) in Q16; cold = 4·(1 − age/28 d) of the sources.
pub fn habit_q16(reference_days: u32, source_age_days: Option<i32>) -> u32 {
    let young = source_age_days.map_or(0, |age| (COLD_DAYS - age).clamp(0, COLD_DAYS) as u64);
    let whole = COLD_DAYS as u64 * (1 + u64::from(reference_days)) + 4 * young;
    (ONE_Q16 * COLD_DAYS as u64 / whole).max(ONE_Q16 / 8) as u32
}

/// 1 + share to new destinations + ½ · share from new devices, in Q16.
pub fn novel_q16(insight: &Insight, day: Day, seen: &Seen, first_day: Option<Day>) -> u32 {
    if first_day.is_none_or(|first| first.0 > day.0 - HISTORY_DAYS) || insight.count == 0 {
        return ONE_Q16 as u32;
    }
    let fresh = |names: &[(u32, u32)], seen: &[(u32, Day)]| -> u64 {
        let new = |name: u32| {
            let n = seen.binary_search_by_key(&name, |s| s.0);
            n.is_ok_and(|n| (0..=NOVEL_DAYS).contains(&(day.0 - seen[n].1.0)))
        };
        names.iter().filter(|(name, _)| new(*name)).map(|(_, count)| u64::from(*count)).sum()
    };
    let count = u64::from(insight.count);
    let destinations = ONE_Q16 * fresh(&insight.destinations, &seen.domains).min(count) / count;
    let devices = ONE_Q16 / 2 * fresh(&insight.devices, &seen.devices).min(count) / count;
    (ONE_Q16 + destinations + devices) as u32
}

/// Hours outside the person's own, as bits: at least 8 earlier signals, less than 6 % of them within ±2 h.
pub fn outside_hours(histogram: &[u32; 24]) -> u32 {
    let total: u64 = histogram.iter().map(|n| u64::from(*n)).sum();
    if total < 8 {
        return 0;
    }
    let at = |hour: usize| u64::from(histogram[hour % 24]);
    let mut near = at(22) + at(23) + at(0) + at(1) + at(2);
    let mut outside = 0;
    for hour in 0..24 {
        outside |= u32::from(100 * near < 6 * total) << hour;
        near = near + at(hour + 3) - at(hour + 22);
    }
    outside
}

/// 1 + ¼ · share of the insight's hours outside the person's own, in Q16.
pub fn own_q16(hours: u32, outside: u32) -> u32 {
    let all = u64::from(hours.count_ones().max(1));
    (ONE_Q16 + ONE_Q16 / 4 * u64::from((hours & outside).count_ones()) / all) as u32
}

/// One past insight, as the reference of later ones.
#[derive(Clone, Copy)]
struct Past {
    day: Day,
    position: usize,
    magnitude: u64,
    habitual: bool,
}

/// Sums over the reference window, per catalogue position, moved along with the day.
#[derive(Default)]
struct Window {
    past: SmallVec<[Past; 8]>,
    entered: usize,
    left: usize,
    /// Empty until something enters.
    sums: Vec<(u32, u64)>,
}

impl Window {
    fn advance(&mut self, day: Day, positions: usize) {
        while self.past.get(self.entered).is_some_and(|p| p.day.0 < day.0 - REFERENCE_TO_DAYS) {
            let p = self.past[self.entered];
            self.sums.resize(positions, (0, 0));
            let sum = &mut self.sums[p.position];
            *sum = (sum.0 + u32::from(p.habitual), sum.1 + p.magnitude);
            self.entered += 1;
        }
        while self.left < self.entered && self.past[self.left].day.0 < day.0 - REFERENCE_FROM_DAYS {
            let p = self.past[self.left];
            let sum = &mut self.sums[p.position];
            *sum = (sum.0 - u32::from(p.habitual), sum.1 - p.magnitude);
            self.left += 1;
        }
    }
}

/// Hours of the 60 days before a day, moved along with the day.
#[derive(Default)]
struct Hours {
    histogram: [u32; 24],
    entered: usize,
    left: usize,
}

impl Hours {
    fn advance(&mut self, user: &User, day: Day) {
        while user.days.get(self.entered).is_some_and(|d| d.day < day) {
            for (hour, count) in &user.days[self.entered].hours {
                self.histogram[usize::from(*hour)] += count;
            }
            self.entered += 1;
        }
        while self.left < self.entered && user.days[self.left].day.0 < day.0 - REFERENCE_FROM_DAYS {
            for (hour, count) in &user.days[self.left].hours {
                self.histogram[usize::from(*hour)] -= count;
            }
            self.left += 1;
        }
    }
}

fn fill_terms(terms: &mut Terms, user: &User, catalogue: &Catalogue, hour: i64) {
    let (mut window, mut hours) = (Window::default(), Hours::default());
    let oldest_source = catalogue.oldest_source();
    for (d, segment) in user.days.iter().enumerate() {
        let counts = age_hours(segment.day, hour) <= 24 * LOOK_BACK_DAYS;
        if counts {
            window.advance(segment.day, catalogue.indicators.len());
            hours.advance(user, segment.day);
        }
        let outside = if counts { outside_hours(&hours.histogram) } else { 0 };
        for (n, insight) in segment.insights.iter().enumerate().filter(|(_, i)| i.count > 0) {
            let Some(position) = catalogue.position_of_code(insight.code) else { continue };
            let indicator = &catalogue.indicators[position];
            let m = magnitude(indicator.measure, insight.count, insight.magnitude_milli, insight.bytes);
            window.past.push(Past { day: segment.day, position, magnitude: m, habitual: insight.magnitude_milli > 0 });
            if m == 0 || !counts || decay_q32(segment.day, indicator, hour) == 0 {
                continue;
            }
            let age = oldest_source.map(|since| segment.day.0 - since.0);
            let sums = window.sums.get(position).copied().unwrap_or_default();
            terms.push(term(user, (d, n), position, m, sums, outside, age));
        }
    }
}

fn term(
    user: &User,
    (d, n): (usize, usize),
    position: usize,
    magnitude: u64,
    (reference_days, reference_milli): (u32, u64),
    outside: u32,
    source_age_days: Option<i32>,
) -> Term {
    let segment = &user.days[d];
    let insight = &segment.insights[n];
    let mut term = Term {
        position,
        day: segment.day,
        at: (d as u32, n as u32),
        reference_milli,
        reference_days,
        habit_q16: habit_q16(reference_days, source_age_days),
        novel_q16: novel_q16(insight, segment.day, &user.seen, user.head.first_day),
        own_q16: own_q16(insight.hours, outside),
        q_q16: 0,
        outside,
    };
    term.q_q16 = scale(log_q16(relative(magnitude, reference_milli)), &term);
    term
}

/// Makes the terms of the user's last day anew whose positions have `changed`. Enough after a change of these insights
/// alone: no other day refers to the last, and no insight to another of its day.
pub fn renew_last_day(
    terms: &mut Terms,
    user: &User,
    catalogue: &Catalogue,
    hour: i64,
    changed: impl Fn(usize) -> bool,
) {
    let Some(segment) = user.days.last() else { return };
    let d = user.days.len() - 1;
    let mut at = terms.iter().rposition(|t| t.day != segment.day).map_or(0, |n| n + 1);
    if age_hours(segment.day, hour) > 24 * LOOK_BACK_DAYS {
        return terms.truncate(at);
    }
    let code = |t: &Term| catalogue.indicators[t.position].code;
    for (n, insight) in segment.insights.iter().enumerate() {
        while terms.get(at).is_some_and(|t| code(t) < insight.code) {
            terms.remove(at);
        }
        if let Some(old) = terms.get_mut(at).filter(|t| code(t) == insight.code) {
            old.at = (d as u32, n as u32);
            if changed(old.position) && !regrow(old, insight, user, catalogue, hour) {
                terms.remove(at);
                continue;
            }
            at += 1;
        } else if let Some(position) = catalogue.position_of_code(insight.code)
            && let Some(new) = last_term(user, n, position, catalogue, hour)
        {
            terms.insert(at, new);
            at += 1;
        }
    }
    terms.truncate(at);
}

/// Brings a term up to its insight. What it owes to earlier days stays. Says whether it is worth anything.
fn regrow(term: &mut Term, insight: &Insight, user: &User, catalogue: &Catalogue, hour: i64) -> bool {
    let indicator = &catalogue.indicators[term.position];
    let m = magnitude(indicator.measure, insight.count, insight.magnitude_milli, insight.bytes);
    term.novel_q16 = novel_q16(insight, term.day, &user.seen, user.head.first_day);
    term.own_q16 = own_q16(insight.hours, term.outside);
    term.q_q16 = scale(log_q16(relative(m, term.reference_milli)), term);
    insight.count > 0 && m > 0 && decay_q32(term.day, indicator, hour) > 0
}

/// The term of an insight of the last day, from the days before.
fn last_term(user: &User, n: usize, position: usize, catalogue: &Catalogue, hour: i64) -> Option<Term> {
    let (segment, before) = user.days.split_last()?;
    let (day, insight, indicator) = (segment.day, &segment.insights[n], &catalogue.indicators[position]);
    let size = |i: &Insight| magnitude(indicator.measure, i.count, i.magnitude_milli, i.bytes);
    let m = size(insight);
    if insight.count == 0 || m == 0 || decay_q32(day, indicator, hour) == 0 {
        return None;
    }
    let near = &before[before.partition_point(|d| d.day.0 < day.0 - REFERENCE_FROM_DAYS)..];
    let mut histogram = [0; 24];
    near.iter().flat_map(|d| &d.hours).for_each(|(hour, count)| histogram[usize::from(*hour)] += count);
    let reference = &near[..near.partition_point(|d| d.day.0 < day.0 - REFERENCE_TO_DAYS)];
    let own = |i: &&Insight| i.code == insight.code && i.count > 0;
    let past = reference.iter().filter_map(|d| d.insights.iter().find(own));
    let sums = past.fold((0, 0), |(days, sum), i| (days + u32::from(i.magnitude_milli > 0), sum + size(i)));
    let age = catalogue.oldest_source().map(|since| day.0 - since.0);
    Some(term(user, (before.len(), n), position, m, sums, outside_hours(&histogram), age))
}

/// Every booster that holds at some time, from facts about the person.
#[inline]
pub fn boosts(directory: Option<&Directory>, settings: &Boosters) -> SmallVec<[Boost; 2]> {
    directory.map_or_else(SmallVec::new, |directory| boosts_of(directory, settings))
}

fn boosts_of(directory: &Directory, settings: &Boosters) -> SmallVec<[Boost; 2]> {
    let mut found = SmallVec::new();
    for at in [directory.announced, directory.last_day].into_iter().flatten() {
        found.push(Boost {
            kind: "leaving",
            factor_milli: settings.leaving,
            from: at.plus_ms(-settings.leaving_before_days * DAY_MS),
            until: Some(at.plus_ms(settings.leaving_after_days * DAY_MS)),
        });
    }
    merge_leaving(&mut found);
    let in_group = || settings.priority_groups.iter().any(|g| directory.groups.binary_search(&hash64(g)).is_ok());
    let priority = !directory.groups.is_empty() && in_group();
    let role = [
        priority.then_some(("priority_group", settings.priority_group)),
        directory.high_impact.then_some(("high_impact", settings.high_impact)),
    ];
    if let Some((kind, factor_milli)) = role.into_iter().flatten().max_by_key(|r| r.1) {
        found.push(Boost { kind, factor_milli, from: Timestamp(0), until: None });
    }
    found
}

/// Two spans that overlap are one, so that leaving never counts twice.
fn merge_leaving(spans: &mut SmallVec<[Boost; 2]>) {
    if let [a, b] = spans[..] {
        let (first, second) = if a.from <= b.from { (a, b) } else { (b, a) };
        if first.until >= Some(second.from) {
            spans.clear();
            spans.push(Boost { until: first.until.max(second.until), ..first });
        }
    }
}
