//! When a user next changes by itself: a function of state, so timers need no storage of their own.
//! A record first lets everything happen that was due before it, so what is published does not depend on whether the
//! timer or the record came first.

use super::alerts;
use super::emit::{Emit, push_number};
use super::headline;
use super::publish::{ENFORCEMENT_HOLD_MS, foresee, settle_enforcement, uuid_text};
use super::score::{Curve, boosts, hour_at_or_after};
use super::state::{Change, DAYS_KEPT, User};
use super::{Context, Sink, evolve};
use crate::domain::alert::Status;
use crate::domain::chronology::ChronologyEntry;
use crate::domain::time::HOUR_MS;
use crate::domain::{Day, Level, Text, Timestamp};

/// The earliest due instant: a window closes, a level falls, an alert expires, a booster begins or ends, a day is
/// dropped. Cheap: called once per changed user and on restore.
pub fn next_due(user: &User, ctx: &Context<'_>) -> Option<Timestamp> {
    let dropped = user.days.first().map(|d| Day(d.day.0 + DAYS_KEPT).start());
    change_due(user, ctx).into_iter().chain(dropped).min()
}

/// When something comes that is published.
fn change_due(user: &User, ctx: &Context<'_>) -> Option<Timestamp> {
    let published = &user.head.published;
    let enforcement = published.below_since.map(|since| since.plus_ms(ENFORCEMENT_HOLD_MS));
    let spans = match user.days.is_empty() {
        true => Default::default(),
        false => boosts(user.head.directory.as_ref(), &ctx.policies.catalogue.boosters),
    };
    let bounds = spans
        .iter()
        .flat_map(|b| [Some(hour_at_or_after(b.from)), b.until.map(|u| u.hour() + 1)])
        .flatten()
        .map(|hour| Timestamp(hour * HOUR_MS));
    let foreseen = [published.next_fall_at, enforcement].into_iter().flatten();
    let by_time = foreseen.chain(bounds).filter(|t| *t > published.as_of);
    by_time.chain(alert_due(user).map(|(due, _)| due)).min()
}

/// Runs everything due at or before `due`; `false` when there was nothing.
pub fn run(user: &mut User, user_key: &str, due: Timestamp, ctx: &Context<'_>, sink: &mut dyn Sink) -> bool {
    if next_due(user, ctx).is_none_or(|next| next > due) {
        return false;
    }
    if change_due(user, ctx).is_some_and(|next| next <= due) {
        let rev = user.head.user_rev;
        catch_up(user, user_key, due, ctx, sink);
        settle(user, due, ctx);
        if user.head.user_rev == rev {
            user.head.user_rev += 1;
            user.changes.cause.timer(user_key, "score", due);
        }
    }
    evolve::forget(user, due.day_at(0), ctx.lateness_days);
    true
}

/// Brings what is foreseen up to an instant.
fn settle(user: &mut User, due: Timestamp, ctx: &Context<'_>) {
    let curve = Curve::new(user, &ctx.policies.catalogue, due.hour());
    let score = curve.score_at(due.hour());
    let mut published = user.head.published;
    published.as_of = published.as_of.max(due);
    let changed = settle_enforcement(&mut published, &curve, score, due);
    foresee(&mut published, &curve, due.hour());
    user.head.published = published;
    user.changes.level |= changed;
    user.changes.head = true;
}

/// Whether a record of this stream time finds anything to be caught up.
pub fn is_behind(user: &User, score_milli: i64, until: Timestamp) -> bool {
    Level::of(score_milli) != user.head.published.level || alert_due(user).is_some_and(|(due, _)| due <= until)
}

/// Closes windows, expires alerts and notes changes of level up to an instant, each stamped when it was due.
pub fn catch_up(user: &mut User, user_key: &str, until: Timestamp, ctx: &Context<'_>, sink: &mut dyn Sink) {
    loop {
        let from = user.head.published.as_of.hour() - 1;
        let change = if user.days.is_empty() && user.head.published.level == Level::None {
            None
        } else {
            let curve = Curve::new(user, &ctx.policies.catalogue, from);
            curve.next_change(user.head.published.level, from, until.hour().max(from))
        };
        let alert = alert_due(user).filter(|(due, _)| *due <= until);
        match (change, alert) {
            (None, None) => return,
            (Some((hour, score)), alert) if alert.is_none_or(|(due, _)| Timestamp(hour * HOUR_MS) < due) => {
                let at = Timestamp(hour * HOUR_MS).max(user.head.published.as_of);
                turn_level(user, user_key, score, at, ctx, sink);
            }
            (_, Some((due, n))) => end_alert(user, user_key, n, due, ctx, sink),
            (Some(_), None) => unreachable!("a change without an alert is taken above"),
        }
    }
}

/// The alert that closes or expires first.
fn alert_due(user: &User) -> Option<(Timestamp, usize)> {
    let due = |(n, a): (usize, &super::state::AlertState)| {
        let closes = alerts::is_collecting(a).then_some(a.window.closes_at);
        let expires = (a.status == Status::NeedsReview).then_some(a.expires_at);
        closes.into_iter().chain(expires).min().map(|due| (due, n))
    };
    user.head.alerts.iter().enumerate().filter_map(due).min()
}

fn turn_level(user: &mut User, user_key: &str, score: i64, at: Timestamp, ctx: &Context<'_>, sink: &mut dyn Sink) {
    user.head.user_rev += 1;
    let mut cause = std::mem::take(&mut user.changes.cause);
    cause.timer(user_key, "level", at);
    let mut emit = Emit::new(user_key, ctx, sink, cause);
    level_entry(user, &mut emit, score, score, at);
    user.head.published.as_of = user.head.published.as_of.max(at);
    user.changes.cause = emit.cause;
    user.changes.head = true;
}

/// Notes a change of level in the head and the chronology.
pub fn level_entry(user: &mut User, emit: &mut Emit<'_>, before_milli: i64, score_milli: i64, at: Timestamp) {
    let published = &mut user.head.published;
    let (before, after) = (published.level, Level::of(score_milli));
    published.previous_level = before;
    published.level = after;
    published.level_changed_at = at;
    user.changes.level = true;
    let mut words = std::mem::take(&mut emit.cause.headline);
    words.clear();
    let verb = if after > before { "rose" } else { "fell" };
    for part in ["Risk level ", verb, " to ", after.as_str(), " at "] {
        words.push_str(part);
    }
    push_number(&mut words, score_milli / 1_000);
    let entry = ChronologyEntry {
        kind: Text::borrowed("score_level"),
        title: Text::borrowed("Risk level"),
        headline: Text::borrowed(&words),
        from: at,
        to: at,
        score_before_milli: before_milli,
        score_after_milli: score_milli,
        level_before: Text::borrowed(before.as_str()),
        level_after: Text::borrowed(after.as_str()),
        ..ChronologyEntry::default()
    };
    emit.entry(&mut user.head, at, entry);
    emit.cause.headline = words;
}

fn end_alert(user: &mut User, user_key: &str, n: usize, due: Timestamp, ctx: &Context<'_>, sink: &mut dyn Sink) {
    user.head.user_rev += 1;
    let alert = &mut user.head.alerts[n];
    let expires = alert.status == Status::NeedsReview && alert.expires_at <= due;
    let (kind, what) = if expires { ("expiry", "expired unreviewed") } else { ("window", "closed to new evidence") };
    let kind = format!("{kind}.{}", alerts::number(alert, ctx.partition));
    if expires {
        if !alert.window.frozen {
            alerts::freeze(user, n, due, ctx);
        }
        user.head.alerts[n].status = Status::Expired;
        alerts::changed(&mut user.head.alerts[n], Change::Status);
    } else {
        alerts::freeze(user, n, due, ctx);
    }
    let mut cause = std::mem::take(&mut user.changes.cause);
    cause.timer(user_key, &kind, due);
    let mut emit = Emit::new(user_key, ctx, sink, cause);
    let score = Curve::new(user, &ctx.policies.catalogue, due.hour()).score_at(due.hour());
    alert_entry(user, &mut emit, n, what, score, due);
    user.head.published.as_of = user.head.published.as_of.max(due);
    user.changes.cause = emit.cause;
    user.changes.head = true;
}

/// An entry about an alert, once its policy publishes it.
pub fn alert_entry(user: &mut User, emit: &mut Emit<'_>, n: usize, what: &str, score_milli: i64, at: Timestamp) {
    let policies = emit.ctx.policies;
    let alert = &user.head.alerts[n];
    let policy = policies.position_of_hash(alert.policy).map(|n| &policies.policies[n]);
    if !alerts::is_visible(alert, policy) {
        return;
    }
    let number = alerts::number(alert, emit.ctx.partition);
    let name = policy.map_or("", |p| p.name.as_str());
    let level = Text::borrowed(user.head.published.level.as_str());
    let entry = ChronologyEntry {
        kind: Text::borrowed("alert"),
        title: Text::borrowed(name),
        headline: Text::from(headline::alert(&number, what, name, alert.severity, alert.score_milli)),
        from: at,
        to: at,
        score_before_milli: score_milli,
        score_after_milli: score_milli,
        level_before: level.clone(),
        level_after: level,
        alert_ids: vec![Text::from(uuid_text(&alert.id))],
        ..ChronologyEntry::default()
    };
    emit.entry(&mut user.head, at, entry);
}
