//! What the engine's tests share: a small policy set, signals, and a driver that folds inputs and keeps what was
//! published. One call into the crate per kind of input, so a refactoring touches this file only.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;

use casestream::domain::alert::Alert;
use casestream::domain::chronology::ChronologyEntry;
use casestream::domain::directory::Directory;
use casestream::domain::indicator::{Boosters, Catalogue, Category, Factors, Indicator, Measure};
use casestream::domain::policy::{Policy, PolicyIndicator, PolicySet, Status, Trigger};
use casestream::domain::score::{RiskLevel, RiskScore};
use casestream::domain::signal::{Destination, Signal};
use casestream::domain::time::{DAY_MS, HOUR_MS};
use casestream::domain::{Day, Level, Timestamp};
use casestream::engine::{Context, Input, Numbers, Outcome, Position, Sink, User, fold, timer};

/// 2026-06-01T00:00:00Z, where every test begins.
pub const START: Timestamp = Timestamp(1_780_272_000_000);
pub const USER: &str = "u1";

/// A catalogue that has each measure and category, and three policies.
pub fn policies() -> PolicySet {
    use Category::*;
    use Measure::*;
    let indicator = |code, id: &str, title: &str, category, weight, cap, half_life_days, measure| Indicator {
        code,
        id: id.to_owned(),
        title: title.to_owned(),
        category,
        weight_milli: weight,
        cap_milli: cap,
        half_life_days,
        measure,
    };
    let indicators = vec![
        indicator(1, "usb_copy", "Copied to removable media", Exfiltration, 6_000, 45_000, 7, Count),
        indicator(2, "cloud_upload", "Uploaded to a cloud", Exfiltration, 6_000, 45_000, 7, Volume),
        indicator(3, "mass_download", "Downloaded many files", Collection, 3_000, 22_000, 7, Steps),
        indicator(4, "archive", "Packed an archive", Obfuscation, 4_000, 30_000, 7, Count),
        indicator(5, "log_deletion", "Deleted logs", Security, 12_000, 60_000, 14, Count),
        indicator(6, "sign_in_anomaly", "Unusual sign-in", Access, 3_000, 22_000, 3, Count),
    ];
    let factors = Factors {
        labels: BTreeMap::from([("public".into(), 1_000), ("confidential".into(), 1_750), ("secret".into(), 2_500)]),
        info_type_step: 250,
        info_types_max: 2_000,
        unallowed_destination: 2_000,
        blocked: 500,
        overridden: 1_500,
        allowed_destinations: vec!["corp.example".into()],
        unallowed_destinations: vec!["dropbox.example".into()],
    };
    let boosters = Boosters {
        leaving: 1_500,
        leaving_before_days: 30,
        leaving_after_days: 7,
        violation: 1_250,
        violation_days: 365,
        priority_group: 1_500,
        priority_groups: vec!["vip".into()],
        high_impact: 1_250,
    };
    let catalogue = Catalogue::new(indicators, factors, boosters, BTreeMap::new());
    let policy = |id: &str, name: &str, trigger, positions: &[usize], status| Policy {
        id: id.to_owned(),
        version: format!("{id}-v1"),
        name: name.to_owned(),
        template: String::new(),
        description: String::new(),
        status,
        purpose: String::new(),
        legal_basis: String::new(),
        owner: String::new(),
        review_by: String::new(),
        groups: Vec::new(),
        trigger,
        look_back_days: 90,
        activation_days: 30,
        gap_hours: 72,
        max_days: 7,
        indicators: positions
            .iter()
            .map(|p| PolicyIndicator {
                position: *p,
                weight_milli: catalogue.indicators[*p].weight_milli,
                cap_milli: catalogue.indicators[*p].cap_milli,
            })
            .collect(),
        open_at_milli: 40_000,
        min_severity: Level::Medium,
        expire_days: 120,
    };
    let all = [0, 1, 2, 3, 4, 5];
    let set = vec![
        policy("leaks", "Data leaks", Trigger::None, &all[..4], Status::On),
        policy("leavers", "Leavers", Trigger::Leaving, &all, Status::On),
        policy("dlp", "After a DLP match", Trigger::DlpMatch { severity: Level::High }, &all[..2], Status::Shadow),
    ];
    PolicySet::new("test-set".into(), catalogue, set)
}

/// A signal of the user, `hours` after `START`.
pub fn signal(id: &str, indicator: &str, hours: i64) -> Signal<'static> {
    let at = START.plus_ms(hours * HOUR_MS);
    Signal {
        signal_id: format!("s-{id}").into(),
        user_key: USER.into(),
        source: "test".into(),
        source_event_id: id.to_owned().into(),
        op: "create".into(),
        indicator: indicator.to_owned().into(),
        occurred_at: at,
        ingested_at: at,
        day: at.day_at(0).iso().into(),
        outcome: "allowed".into(),
        count: 1,
        is_complete: true,
        mapping: "test@1".into(),
        origin: "test".into(),
        ..Signal::default()
    }
}

/// A destination that is a domain.
pub fn domain(value: &str) -> Option<Destination<'static>> {
    Some(Destination { kind: "domain".into(), value: value.to_owned().into(), direction: "external".into() })
}

/// What was published, as short lines and as numbers.
#[derive(Default)]
pub struct Kept {
    pub lines: Vec<String>,
    pub entries: usize,
    pub last_seq: i64,
    pub chain: Option<String>,
    pub event_ids: Vec<String>,
    pub score: Option<RiskScore<'static>>,
    pub gone: bool,
}

impl Sink for Kept {
    fn chronology(&mut self, e: &ChronologyEntry<'_>) {
        assert_eq!(e.seq, self.last_seq + 1, "chronology numbers have no gaps");
        if let Some(previous) = self.chain.replace(e.hash.to_string()) {
            assert_eq!(previous, e.prev_hash.as_str(), "chronology entries are chained");
        }
        self.last_seq = e.seq;
        self.entries += 1;
        self.event_ids.push(e.envelope.event_id.to_string());
        let flags: Vec<&str> = e.flags.iter().map(|f| f.as_str()).collect();
        let flags = if flags.is_empty() { String::new() } else { format!(" [{}]", flags.join(" ")) };
        let delta =
            if e.points_delta_milli == 0 { String::new() } else { format!(" {:+}", Milli(e.points_delta_milli)) };
        self.lines.push(format!(
            "{} {}: {}{delta} ({} -> {}){flags}",
            e.envelope.occurred_at.rfc3339(),
            e.kind,
            e.headline,
            Milli(e.score_before_milli),
            Milli(e.score_after_milli),
        ));
    }

    fn alert(&mut self, a: &Alert<'_>, shadow: bool) {
        let parts: i64 = a.score_parts.iter().map(|p| p.share_milli).sum();
        assert_eq!(parts, a.score_milli, "an alert's parts add up");
        self.event_ids.push(a.envelope.event_id.to_string());
        let ids: Vec<&str> = a.insight_ids.iter().map(|i| i.as_str()).collect();
        self.lines.push(format!(
            "  alert {}{} r{} {} {} {} severity {} (peak {}) until {}{}: {}",
            a.alert_no,
            if shadow { " (shadow)" } else { "" },
            a.revision,
            a.policy_id,
            a.change,
            a.status,
            a.severity,
            a.severity_peak,
            a.window.closes_at.rfc3339(),
            if a.window.frozen { " frozen" } else { "" },
            ids.join(" "),
        ));
    }

    fn score(&mut self, s: &RiskScore<'_>) {
        let shares: i64 = s.contributions.iter().map(|c| c.share_milli).sum();
        let boosted: i64 = s.boosters.iter().map(|b| b.share_milli).sum();
        assert_eq!(shares + boosted, s.score_milli, "the parts of a score add up");
        self.event_ids.push(s.envelope.event_id.to_string());
        let ahead: Vec<String> = s.levels_ahead.iter().map(|l| format!("{} {}", l.level, l.at.rfc3339())).collect();
        let parts: Vec<String> =
            s.contributions.iter().map(|c| format!("{} {}", c.indicator, Milli(c.share_milli))).collect();
        let boosts: Vec<String> = s.boosters.iter().map(|b| format!("{} {}", b.kind, Milli(b.share_milli))).collect();
        self.lines.push(format!(
            "  score {} {} = {}; ahead: {}",
            Milli(s.score_milli),
            s.level,
            parts.into_iter().chain(boosts).collect::<Vec<_>>().join(" + "),
            if ahead.is_empty() { "-".into() } else { ahead.join(", ") },
        ));
    }

    fn level(&mut self, l: &RiskLevel<'_>) {
        self.event_ids.push(l.envelope.event_id.to_string());
        let reasons: Vec<&str> = l.reason_codes.iter().map(|r| r.as_str()).collect();
        self.lines.push(format!(
            "  level {} enforce {} review {} for {}",
            l.level,
            l.enforcement_level,
            l.review,
            reasons.join(" ")
        ));
    }

    fn gone(&mut self, _: &str) {
        self.gone = true;
        self.lines.push("  gone".into());
    }
}

/// Thousandths as a decimal.
pub struct Milli(pub i64);

impl std::fmt::Display for Milli {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = if self.0 < 0 {
            "-"
        } else if f.sign_plus() {
            "+"
        } else {
            ""
        };
        write!(f, "{sign}{}.{:03}", self.0.abs() / 1_000, self.0.abs() % 1_000)
    }
}

/// One user, folded as the worker would.
pub struct Driver {
    pub policies: PolicySet,
    pub user: User,
    pub numbers: Numbers,
    pub stream_time: Timestamp,
    pub offset: i64,
    pub kept: Kept,
}

impl Driver {
    pub fn new(policies: PolicySet) -> Driver {
        Driver {
            policies,
            user: User::default(),
            numbers: Numbers::default(),
            stream_time: START,
            offset: 0,
            kept: Kept::default(),
        }
    }

    pub fn context(&self) -> Context<'_> {
        Context {
            policies: &self.policies,
            partition: 3,
            now: self.stream_time,
            stream_time: self.stream_time,
            lateness_days: 30,
            level_valid_ms: DAY_MS,
        }
    }

    fn apply(&mut self, input: Input<'_>, topic: &str) -> Outcome {
        let position = Position { topic, partition: 3, offset: self.offset };
        let position = (!matches!(input, Input::Timer { .. })).then_some(&position);
        self.offset += 1;
        let ctx = Context {
            policies: &self.policies,
            partition: 3,
            now: self.stream_time,
            stream_time: self.stream_time,
            lateness_days: 30,
            level_valid_ms: DAY_MS,
        };
        fold::apply(&mut self.user, USER, input, position, &ctx, &mut self.numbers, &mut self.kept)
    }

    pub fn signal(&mut self, signal: &Signal<'_>) -> Outcome {
        self.stream_time = self.stream_time.max(signal.ingested_at.min(signal.occurred_at.max(signal.ingested_at)));
        self.apply(Input::Signal(signal), "risk-signals")
    }

    pub fn directory(&mut self, record: &Directory<'_>) -> Outcome {
        self.apply(Input::Directory(record), "user-directory")
    }

    /// Time passes: timers run one by one, each published.
    pub fn until(&mut self, at: Timestamp) {
        while let Some(due) = timer::next_due(&self.user, &self.context()).filter(|due| *due <= at) {
            self.stream_time = self.stream_time.max(due);
            let outcome = self.apply(Input::Timer { due }, "");
            assert_eq!(outcome, Outcome::Scored, "a timer that is due does something: {due:?}");
            self.finish();
            let next = timer::next_due(&self.user, &self.context());
            assert!(next.is_none_or(|next| next > due), "timers move on: {due:?} then {next:?}");
        }
        self.stream_time = self.stream_time.max(at);
    }

    pub fn finish(&mut self) {
        let ctx = Context {
            policies: &self.policies,
            partition: 3,
            now: self.stream_time,
            stream_time: self.stream_time,
            lateness_days: 30,
            level_valid_ms: DAY_MS,
        };
        fold::finish(&mut self.user, USER, &ctx, &mut self.kept);
    }
}

/// The part of a user that depends on the set of signals only.
pub fn law(user: &User) -> impl PartialEq + std::fmt::Debug {
    let mut days = user.days.clone();
    for day in &mut days {
        day.insights.retain(|i| i.count > 0);
        day.insights.iter_mut().for_each(|i| i.revision = 0);
    }
    days.retain(|d| !d.insights.is_empty() || !d.signals.is_empty());
    (days, user.seen.clone(), user.head.first_day, user.head.last_signal_at, user.head.directory.clone())
}

pub fn day(hours: i64) -> Day {
    START.plus_ms(hours * HOUR_MS).day_at(0)
}
