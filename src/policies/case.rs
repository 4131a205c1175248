//! A policy's own tests: `[[test]]` gives a person and signals, and says whether an alert opens. Read and validated
//! here; who can fold passes `run_tests` a closure. Next: `policies.rs`, where sets are put together.

use super::policy::{SEVERITIES, unknown_indicator};
use super::read::{Problem, Section};
use crate::domain::Level;
use crate::domain::indicator::Catalogue;
use crate::domain::policy::PolicySet;

/// Most signals of one test, repeats included.
pub const SIGNALS_MAX: i64 = 1_000;

const OUTCOMES: [&str; 7] = ["allowed", "audited", "warned", "overridden", "blocked", "failed_to_block", "unknown"];

/// One `[[test]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    pub policy: String,
    pub name: String,
    /// Where it stands, from 1.
    pub line: usize,
    pub person: Person,
    pub signals: Vec<Act>,
    pub expect: Expect,
}

/// What the directory says about the person of a test.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Person {
    pub groups: Vec<String>,
    pub high_impact: bool,
    /// Day of the announcement, counted like `Act::day`.
    pub leaving_day: Option<i64>,
}

/// A signal of a test, `repeat` times a minute apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Act {
    /// Days after the start of the test; 0 is the first.
    pub day: i64,
    /// Local hour of the day.
    pub hour: i64,
    pub indicator: String,
    pub repeat: i64,
    pub label: Option<String>,
    pub info_types: Vec<String>,
    /// A domain outside the company.
    pub destination: Option<String>,
    pub outcome: &'static str,
    pub bytes: Option<i64>,
    pub vendor_severity: Option<&'static str>,
}

/// What must have happened at the end of the last signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    NoAlert,
    /// An alert is open; its peak severity is this one, or any.
    Alert {
        severity: Option<Level>,
    },
}

/// Reads one test.
pub fn read(section: &Section<'_, '_>, policy: &str, catalogue: &Catalogue) -> Case {
    let case = Case {
        policy: policy.to_owned(),
        name: section.text("name", "a leaver copies a customer list").to_owned(),
        line: section.line(),
        person: section.table("person").map(|s| person(&s)).unwrap_or_default(),
        signals: section.tables("signals").iter().map(|s| act(s, catalogue)).collect(),
        expect: expect(section),
    };
    if case.signals.is_empty() {
        section.report("a test without signals proves nothing", "add `signals = [{ indicator = \"…\" }]`");
    }
    let total: i64 = case.signals.iter().map(|s| s.repeat).sum();
    if total > SIGNALS_MAX {
        section.report(format!("{total} signals, more than {SIGNALS_MAX}"), "lower `repeat`");
    }
    section.finish();
    case
}

fn person(section: &Section<'_, '_>) -> Person {
    let leaving = section.has("leaving_day");
    let day = section.whole("leaving_day", -365..=365, Some(0));
    let person = Person {
        groups: super::groups(section, "groups"),
        high_impact: section.flag("high_impact", false),
        leaving_day: leaving.then_some(day),
    };
    section.finish();
    person
}

fn act(section: &Section<'_, '_>, catalogue: &Catalogue) -> Act {
    let has = |key: &str| section.has(key).then_some(());
    let optional = |key: &str, example: &str| has(key).map(|()| section.text(key, example).to_owned());
    let indicator = section.text("indicator", "cloud_upload").to_owned();
    if !indicator.is_empty() && catalogue.position(&indicator).is_none() {
        let (message, fix) = unknown_indicator(&indicator, catalogue);
        section.report_at("indicator", message, fix);
    }
    let act = Act {
        day: section.whole("day", 0..=89, Some(0)),
        hour: section.whole("hour", 0..=23, Some(10)),
        repeat: section.whole("repeat", 1..=SIGNALS_MAX, Some(1)),
        label: optional("label", "confidential"),
        info_types: section.texts("info_types").into_iter().map(|w| w.text.to_owned()).collect(),
        destination: optional("destination", "example.com"),
        outcome: section.word("outcome", &OUTCOMES, false),
        bytes: has("bytes").map(|()| section.whole("bytes", 0..=1 << 50, None)),
        vendor_severity: has("vendor_severity").map(|()| section.word("vendor_severity", &SEVERITIES, true)),
        indicator,
    };
    for key in ["label", "info_types", "destination", "bytes", "vendor_severity"] {
        section.know(key);
    }
    section.finish();
    act
}

fn expect(section: &Section<'_, '_>) -> Expect {
    let Some(expect) = section.table("expect") else {
        section.report("`test.expect` is missing", "add `expect = { alert = true }` or `expect = { alert = false }`");
        return Expect::NoAlert;
    };
    let alert = expect.flag("alert", true);
    let severity = match expect.has("severity") {
        true => Level::parse(expect.word("severity", &SEVERITIES, true)),
        false => None,
    };
    expect.know("severity");
    if !alert && severity.is_some() {
        expect.report_at("severity", "no alert has no severity", "remove `severity`, or write `alert = true`");
    }
    expect.finish();
    if alert { Expect::Alert { severity } } else { Expect::NoAlert }
}

/// What folding a test's signals came to: the peak severity of the policy's alert, `None` without one.
pub type Verdict = Option<Level>;

/// Runs every test of a set. The closure folds: it gets the set and one test and says what came of it.
pub fn run_tests(
    set: &PolicySet,
    tests: &[Case],
    mut fold: impl FnMut(&PolicySet, &Case) -> Result<Verdict, String>,
) -> Vec<Problem> {
    let mut failed = Vec::new();
    // Policies with status `off` are not in the set: their tests wait with them.
    for case in tests.iter().filter(|c| set.policy(&c.policy).is_some()) {
        let found = match fold(set, case) {
            Err(reason) => format!("could not fold it: {reason}"),
            Ok(verdict) => match disagreement(case.expect, verdict) {
                None => continue,
                Some(found) => found,
            },
        };
        failed.push(Problem {
            line: case.line,
            column: 1,
            excerpt: "[[test]]".to_owned(),
            width: 8,
            ..Problem::of_file(
                &format!("policies/{}.toml", case.policy),
                format!("test \"{}\" fails: {found}", case.name),
                "correct the policy, or what the test expects",
            )
        });
    }
    failed
}

fn disagreement(expect: Expect, verdict: Verdict) -> Option<String> {
    match (expect, verdict) {
        (Expect::NoAlert, None) | (Expect::Alert { severity: None }, Some(_)) => None,
        (Expect::Alert { severity: Some(want) }, Some(found)) if want == found => None,
        (Expect::NoAlert, Some(found)) => Some(format!("expected no alert, found one of severity {}", found.as_str())),
        (Expect::Alert { .. }, None) => Some("expected an alert, found none".to_owned()),
        (Expect::Alert { severity: Some(want) }, Some(found)) => {
            Some(format!("expected severity {}, found {}", want.as_str(), found.as_str()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_compared_with_what_was_expected() {
        let any = Expect::Alert { severity: None };
        let high = Expect::Alert { severity: Some(Level::High) };
        for (expect, verdict, agrees) in [
            (Expect::NoAlert, None, true),
            (Expect::NoAlert, Some(Level::Low), false),
            (any, Some(Level::Low), true),
            (any, None, false),
            (high, Some(Level::High), true),
            (high, Some(Level::Medium), false),
        ] {
            assert_eq!(disagreement(expect, verdict).is_none(), agrees, "{expect:?} {verdict:?}");
        }
    }
}
