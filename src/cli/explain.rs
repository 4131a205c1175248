//! `casestream explain`: why a user's score is what it is, in terms that add up to it exactly. Exit code 1 when nobody
//! of that name is known.

use std::sync::Arc;

use serde::Serialize;

use super::output::{points, table};
use super::{Exit, Failure, Global};
use crate::domain::{Day, Timestamp};
use crate::engine::explain::{Explanation, IndicatorLine, InsightLine};
use crate::runtime::clock::SystemClock;
use crate::runtime::lookup::{Found, Known, Lookup};

/// Insights of one indicator that the table shows; JSON has all.
const INSIGHTS_SHOWN: usize = 5;
/// Width of the table.
const COLUMNS: usize = 100;

/// Whom to explain.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// User key, or an address or other alias of the person
    user: String,
    /// Evaluate what is known now at another instant: RFC 3339, or YYYY-MM-DD for its start
    #[arg(long, value_name = "TIME", value_parser = instant)]
    at: Option<Timestamp>,
}

/// The answer.
#[derive(Debug, Serialize)]
struct Answer {
    partition: i32,
    policy_set: String,
    /// The partition's stream time.
    stream_time: Timestamp,
    explanation: Explanation,
    alerts: Vec<AlertLine>,
    #[serde(skip)]
    titles: Vec<String>,
}

/// An alert of the user.
#[derive(Debug, Serialize)]
struct AlertLine {
    alert_no: String,
    alert_id: String,
    policy_id: Option<String>,
    status: &'static str,
    severity: &'static str,
    severity_peak: &'static str,
    score_milli: i64,
    opened_at: Timestamp,
    closes_at: Timestamp,
    /// The window takes no more evidence.
    frozen: bool,
}

/// Reads an instant.
pub fn instant(text: &str) -> Result<Timestamp, String> {
    if let Some(day) = Day::parse(text) {
        return Ok(day.start());
    }
    let read = chrono::DateTime::parse_from_rfc3339(text);
    read.map(|at| Timestamp(at.timestamp_millis())).map_err(|_| "use 2026-11-24T10:00:00Z or 2026-11-24".to_owned())
}

/// Runs the command.
pub fn run(args: &Args, global: &Global) -> Result<Exit, Failure> {
    let config = global.config()?;
    let connection = super::connection(&config)?;
    let schemas = super::schemas(&config, Arc::new(SystemClock::new()))?;
    let key = config.identity.key()?;
    let key = key.as_ref().map(|key| key.expose().trim().as_bytes());
    let mut lookup = Lookup::new(&config, &connection, &schemas, key)?;
    let known = match lookup.find(&args.user)? {
        Found::User(known) => known,
        Found::Unknown => return Err(unknown(key.is_some())),
        Found::NoPolicies { partition, set } => return Err(no_policies(partition, &set)),
    };
    global.output.print(&answer(&known, args.at), text)?;
    Ok(Exit::Ok)
}

fn unknown(has_key: bool) -> Failure {
    let hint = match has_key {
        true => "give the user key, an address or an alias of the directory; somebody without signals has no score",
        false => "give the user key, or set identity.key_file so that addresses can be looked up",
    };
    // The name is not repeated: it may be a person's, and stderr often ends up in a log.
    Failure::new(Exit::Failure, format!("could not explain the user: nobody of that name has state\n  hint: {hint}"))
}

fn no_policies(partition: i32, set: &str) -> Failure {
    let (what, hint) = match set.is_empty() {
        true => ("has no policies yet".to_owned(), "run `casestream topics apply`"),
        false => (
            format!("stands under the policy set {set}, which is not in policy-sets"),
            "restore the topic policy-sets, or use the release that can compile the set",
        ),
    };
    Failure::new(Exit::Failure, format!("could not explain the user: partition {partition} {what}\n  hint: {hint}"))
}

fn answer(known: &Known, at: Option<Timestamp>) -> Answer {
    let explanation = known.explain(at);
    let alerts = known.alerts().map(|(alert, policy)| AlertLine {
        alert_no: crate::engine::alerts::number(alert, known.partition),
        alert_id: crate::engine::publish::uuid_text(&alert.id),
        policy_id: policy.map(str::to_owned),
        status: alert.status.as_str(),
        severity: alert.severity.as_str(),
        severity_peak: alert.severity_peak.as_str(),
        score_milli: alert.score_milli,
        opened_at: alert.window.opened_at,
        closes_at: alert.window.closes_at,
        frozen: alert.window.frozen,
    });
    Answer {
        partition: known.partition,
        policy_set: known.policies.hash.clone(),
        stream_time: known.meta.stream_time,
        titles: explanation.indicators.iter().map(|i| known.title(&i.indicator).to_owned()).collect(),
        alerts: alerts.collect(),
        explanation,
    }
}

fn text(answer: &Answer) -> String {
    let e = &answer.explanation;
    let mut parts = vec![format!(
        "user   {} (partition {}, policy set {})\nscore  {} {} as of {}",
        e.user_key,
        answer.partition,
        answer.policy_set,
        points(e.score_milli),
        e.level,
        time(e.at),
    )];
    parts.push(terms(answer));
    if !e.levels_ahead.is_empty() {
        let ahead = e.levels_ahead.iter().map(|a| format!("{} at {}", a.level, time(a.at)));
        parts.push(format!("falls ahead if nothing new happens\n  {}", ahead.collect::<Vec<_>>().join("\n  ")));
    }
    if !e.without.is_empty() {
        let rows = e.without.iter();
        let rows = rows.map(|w| vec![w.insight_id.clone(), points(w.score_milli), w.level.clone()]);
        parts.push(table(&["without", "score", "level"], rows));
    }
    if let Some(next) = &e.next {
        parts.push(format!("{} more points of evidence would make it {}", points(next.points_milli), next.level));
    }
    parts.push(policies(e));
    if !answer.alerts.is_empty() {
        parts.push(alerts(&answer.alerts));
    }
    parts.join("\n\n")
}

/// One line per term, down to the sum.
fn terms(answer: &Answer) -> String {
    let e = &answer.explanation;
    let mut lines = vec![format!("{:>9}  {:<40} {:>5}  {}", "POINTS", "INDICATOR AND DAY", "ACTS", "WHY")];
    for (line, title) in e.indicators.iter().zip(&answer.titles) {
        indicator(line, title, &mut lines);
    }
    for booster in &e.boosters {
        let what = format!("booster {} x {}", booster.kind, points(booster.factor_milli));
        lines.push(format!("{:>9}  {what}", format!("+{}", points(booster.share_milli))));
    }
    lines.push(format!("{:>9}  = score", points(e.score_milli)));
    lines.join("\n")
}

fn indicator(line: &IndicatorLine, title: &str, lines: &mut Vec<String>) {
    let text = format!("{:>9}  {}  {title}", points(line.share_milli), line.indicator);
    lines.push(cut(text.trim_end()));
    let mut order: Vec<&InsightLine> = line.insights.iter().collect();
    order.sort_by_key(|i| -i.share_milli);
    for insight in order.iter().take(INSIGHTS_SHOWN) {
        let day = insight.insight_id.rsplit('@').next().unwrap_or_default();
        let size = if insight.bytes > 0 { format!(", {}", size(insight.bytes)) } else { String::new() };
        let what = format!("  {day}: {}{size}", points(insight.share_milli));
        let text = format!("{:>9}  {what:<40} {:>5}  {}", "", insight.count, insight.reasons.join(", "));
        lines.push(cut(text.trim_end()));
    }
    let rest = &order[order.len().min(INSIGHTS_SHOWN)..];
    if !rest.is_empty() {
        let share: i64 = rest.iter().map(|i| i.share_milli).sum();
        lines.push(format!("{:>9}    {} more days: {}", "", rest.len(), points(share)));
    }
}

fn policies(e: &Explanation) -> String {
    let rows = e.policies.iter().map(|p| {
        let why = match (&p.trigger, p.applies) {
            (_, false) => "no".to_owned(),
            (None, true) => "yes".to_owned(),
            (Some(trigger), true) => format!("yes, {trigger}"),
        };
        vec![
            p.policy_id.clone(),
            why,
            points(p.score_milli),
            points(p.open_at_milli),
            p.alert_no.clone().unwrap_or_else(|| "-".into()),
        ]
    });
    table(&["policy", "applies", "score", "opens at", "open alert"], rows)
}

fn alerts(lines: &[AlertLine]) -> String {
    let rows = lines.iter().map(|a| {
        let window = if a.frozen { "closed" } else { "open" };
        vec![
            a.alert_no.clone(),
            a.policy_id.clone().unwrap_or_else(|| "(no longer there)".into()),
            a.status.into(),
            format!("{}, peak {}", a.severity, a.severity_peak),
            time(a.opened_at.0),
            format!("{window}, {}", time(a.closes_at.0)),
        ]
    });
    table(&["alert", "policy", "status", "severity", "opened", "window until"], rows)
}

/// "2026-11-24 10:00Z".
fn time(ms: i64) -> String {
    let text = Timestamp(ms).rfc3339();
    text.get(..16).map_or(text.clone(), |minute| format!("{}Z", minute.replace('T', " ")))
}

fn size(bytes: u64) -> String {
    let units = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    match units.into_iter().find(|(one, _)| bytes >= *one) {
        Some((one, unit)) => format!("{}.{} {unit}", bytes / one, bytes % one * 10 / one),
        None => format!("{bytes} B"),
    }
}

fn cut(line: &str) -> String {
    match line.chars().count() > COLUMNS {
        true => line.chars().take(COLUMNS - 1).chain(['…']).collect(),
        false => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::explain::BoosterLine;

    #[test]
    fn instants_are_read_strictly() {
        assert_eq!(instant("2026-11-24"), instant("2026-11-24T00:00:00Z"));
        assert_eq!(instant("2026-11-24T01:00:00+01:00"), instant("2026-11-24"));
        for bad in ["", "yesterday", "2026-13-01", "1764000000000"] {
            assert!(instant(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn terms_stand_under_each_other_and_fit_100_columns() {
        let insight = |day: &str, share_milli, reasons: &[&str]| InsightLine {
            insight_id: format!("usb@{day}"),
            count: 14,
            bytes: 2_100_000_000,
            share_milli,
            reasons: reasons.iter().map(|r| (*r).to_owned()).collect(),
            ..InsightLine::default()
        };
        let long = ["first time in 53 days", "new destination or device", "outside own hours"];
        let explanation = Explanation {
            score_milli: 45_001,
            indicators: vec![IndicatorLine {
                indicator: "usb".into(),
                share_milli: 30_001,
                insights: vec![insight("2026-11-20", 20_001, &long), insight("2026-11-21", 10_000, &[])],
                ..IndicatorLine::default()
            }],
            boosters: vec![BoosterLine { kind: "leaving".into(), factor_milli: 1_500, share_milli: 15_000 }],
            ..Explanation::default()
        };
        let answer = Answer {
            partition: 0,
            policy_set: String::new(),
            stream_time: Timestamp(0),
            explanation,
            alerts: Vec::new(),
            titles: vec!["Copied to removable media".into()],
        };
        let text = terms(&answer);
        let expected = "   POINTS  INDICATOR AND DAY                         ACTS  WHY
   30.001  usb  Copied to removable media
             2026-11-20: 20.001, 2.1 GB                14  first time in 53 days, new destination o…
             2026-11-21: 10.000, 2.1 GB                14
  +15.000  booster leaving x 1.500
   45.001  = score";
        assert_eq!(text, expected);
        assert!(text.lines().all(|l| l.chars().count() <= COLUMNS));
    }
}
