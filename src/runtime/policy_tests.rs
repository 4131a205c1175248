//! A policy's own tests through the fold: one person in memory, the test's signals one after the other, each published
//! on its own. Asks no broker. Next: `engine/fold.rs`.

use crate::domain::alert::Alert;
use crate::domain::chronology::ChronologyEntry;
use crate::domain::directory::{Directory, Leaving};
use crate::domain::policy::PolicySet;
use crate::domain::score::{RiskLevel, RiskScore};
use crate::domain::signal::{Destination, InfoType, Signal};
use crate::domain::time::{DAY_MS, HOUR_MS};
use crate::domain::{Level, Text, Timestamp};
use crate::engine::{Context, Input, Numbers, Outcome, Position, Sink, User, fold, timer};
use crate::policies::case::{Act, Case, Person, Verdict};
use crate::topology::Topic;

/// 2026-01-05T00:00:00Z, a Monday: day 0 of every test.
const START: Timestamp = Timestamp(1_767_571_200_000);
const USER: &str = "person";
/// Between two repeats of a signal.
const REPEAT_MS: i64 = 60_000;
/// No test reaches back further than its first day.
const LATENESS_DAYS: i64 = 90;

/// Folds a test's signals under a set; the highest severity that an alert of the test's policy was published with.
pub fn verdict(set: &PolicySet, case: &Case) -> Result<Verdict, String> {
    let mut signals: Vec<Signal<'static>> = Vec::new();
    for (n, act) in case.signals.iter().enumerate() {
        signals.extend((0..act.repeat).map(|k| signal(act, n, k)));
    }
    signals.sort_by_key(|s| s.occurred_at);
    let mut run = Run { set, user: User::default(), numbers: Numbers::default(), stream_time: START, offset: 0 };
    let mut peak = Peak { policy: &case.policy, severity: None };
    run.apply(Input::Directory(&directory(&case.person)), &mut peak);
    for signal in &signals {
        run.until(signal.occurred_at, &mut peak);
        match run.apply(Input::Signal(signal), &mut peak) {
            Outcome::Scored => {}
            other => return Err(format!("signal {} became {other:?}", signal.source_event_id)),
        }
    }
    Ok(peak.severity)
}

/// One person, folded as the worker would.
struct Run<'a> {
    set: &'a PolicySet,
    user: User,
    numbers: Numbers,
    stream_time: Timestamp,
    offset: i64,
}

impl Run<'_> {
    fn context(&self) -> Context<'_> {
        Context {
            policies: self.set,
            partition: 0,
            now: self.stream_time,
            stream_time: self.stream_time,
            lateness_days: LATENESS_DAYS,
            level_valid_ms: DAY_MS,
        }
    }

    /// Lets time pass: whatever is due on the way happens at its own instant.
    fn until(&mut self, at: Timestamp, peak: &mut Peak<'_>) {
        while let Some(due) = timer::next_due(&self.user, &self.context()).filter(|due| *due <= at) {
            self.stream_time = self.stream_time.max(due);
            self.apply(Input::Timer { due }, peak);
        }
        self.stream_time = self.stream_time.max(at);
    }

    fn apply(&mut self, input: Input<'_>, peak: &mut Peak<'_>) -> Outcome {
        let position = Position { topic: Topic::RiskSignals.name(), partition: 0, offset: self.offset };
        let position = (!matches!(input, Input::Timer { .. })).then_some(&position);
        self.offset += 1;
        let Run { set, user, numbers, stream_time, .. } = self;
        let ctx = Context {
            policies: set,
            partition: 0,
            now: *stream_time,
            stream_time: *stream_time,
            lateness_days: LATENESS_DAYS,
            level_valid_ms: DAY_MS,
        };
        let outcome = fold::apply(user, USER, input, position, &ctx, numbers, peak);
        fold::finish(user, USER, &ctx, peak);
        outcome
    }
}

/// The highest severity published under one policy; everything else is let go.
struct Peak<'a> {
    policy: &'a str,
    severity: Verdict,
}

impl Sink for Peak<'_> {
    fn alert(&mut self, alert: &Alert<'_>, _: bool) {
        if alert.policy_id.as_str() == self.policy {
            self.severity = self.severity.max(Level::parse(&alert.severity_peak));
        }
    }

    fn chronology(&mut self, _: &ChronologyEntry<'_>) {}
    fn score(&mut self, _: &RiskScore<'_>) {}
    fn level(&mut self, _: &RiskLevel<'_>) {}
    fn gone(&mut self, _: &str) {}
}

fn directory(person: &Person) -> Directory<'static> {
    let day = |day: i64| START.plus_ms(day * DAY_MS);
    Directory {
        user_key: USER.into(),
        canonical_id: USER.into(),
        groups: person.groups.iter().map(|g| Text::from(g.clone())).collect(),
        high_impact: person.high_impact,
        leaving: person.leaving_day.map(|n| Leaving { announced: Some(day(n)), last_day: None }),
        version: 1,
        ..Directory::default()
    }
}

fn signal(act: &Act, n: usize, repeat: i64) -> Signal<'static> {
    let at = START.plus_ms(act.day * DAY_MS + act.hour * HOUR_MS + repeat * REPEAT_MS);
    let id = format!("{n}.{repeat}");
    let info_type = |name: &String| InfoType { name: name.clone().into(), count: 1, confidence: 1_000 };
    let destination = |value: &String| Destination {
        kind: "domain".into(),
        value: value.clone().into(),
        direction: "external".into(),
    };
    Signal {
        signal_id: id.clone().into(),
        user_key: USER.into(),
        source: "test".into(),
        source_event_id: id.into(),
        op: "create".into(),
        indicator: act.indicator.clone().into(),
        occurred_at: at,
        ingested_at: at,
        day: at.day_at(0).iso().into(),
        outcome: act.outcome.into(),
        count: 1,
        bytes: act.bytes,
        vendor_severity: act.vendor_severity.map(Text::from),
        labels: act.label.iter().map(|l| Text::from(l.clone())).collect(),
        info_types: act.info_types.iter().map(info_type).collect(),
        destination: act.destination.as_ref().map(destination),
        is_complete: true,
        mapping: "test@0".into(),
        origin: "test".into(),
        ..Signal::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policies::{Files, compile_with_tests, run_tests};

    #[test]
    fn the_shipped_policies_pass_their_own_tests() {
        let compiled = compile_with_tests(&Files::built_in()).expect("the shipped set is valid");
        assert!(compiled.tests.len() >= 6);
        let failed = run_tests(&compiled.set, &compiled.tests, verdict);
        assert!(failed.is_empty(), "{}", failed.iter().map(ToString::to_string).collect::<String>());
    }

    #[test]
    fn a_test_that_expects_the_wrong_thing_fails_with_its_line() {
        let mut files = Files::built_in();
        let text = files.0.get_mut("policies/general-dlp.toml").expect("a shipped policy");
        *text = text.replacen("expect = { alert = true }", "expect = { alert = false }", 1);
        let compiled = compile_with_tests(&files).expect("still valid");
        let failed = run_tests(&compiled.set, &compiled.tests, verdict);
        assert_eq!(failed.len(), 1, "{failed:?}");
        assert!(failed[0].message.contains("expected no alert, found one of severity"), "{}", failed[0].message);
        assert!(failed[0].line > 1 && failed[0].file == "policies/general-dlp.toml");
    }
}
