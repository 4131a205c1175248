//! Short sentences from facts, for people who scan a timeline.

use std::fmt::Write;

use super::decide_signal::Checked;
use super::emit::push_number;
use super::score::{HISTORY_DAYS, NOVEL_DAYS, Term};
use super::state::User;
use crate::domain::signal::{Op, Signal};
use crate::domain::{Day, Level};

/// Longest headline in characters.
pub const HEADLINE_MAX: usize = 140;

/// "Copied to removable media: 14 files, 2.1 GB, to sandisk; first time in 53 days".
/// Written into `text`, which is emptied first.
pub fn activity(
    text: &mut String,
    signal: &Signal<'_>,
    checked: &Checked<'_>,
    title: &str,
    user: &User,
    (day, code): (Day, u16),
) {
    text.clear();
    text.reserve(128);
    match checked.op {
        Op::Create => {}
        Op::Revise => text.push_str("Revised: "),
        Op::Retract => text.push_str("Retracted: "),
    }
    text.push_str(if title.is_empty() { &signal.indicator } else { title });
    if checked.op == Op::Retract {
        return cut(text);
    }
    text.push_str(": ");
    amount(text, signal.count, signal.resources.first().map(|r| r.kind.as_str()));
    if let Some(bytes) = signal.bytes.filter(|b| *b > 0) {
        text.push_str(", ");
        size(text, bytes as u64);
    }
    if !checked.place.is_empty() {
        text.push_str(", to ");
        text.push_str(checked.place);
    }
    since(text, user, day, code);
    cut(text);
}

/// "Alert A3-12 opened: Data leaks, high at 72".
pub fn alert(number: &str, what: &str, policy: &str, severity: Level, score_milli: i64) -> String {
    let mut text = format!("Alert {number} {what}: {policy}, {} at {}", severity.as_str(), score_milli / 1_000);
    cut(&mut text);
    text
}

/// What made an insight's factors what they are: "first time in 53 days, new destination, confidential".
pub fn reasons(term: &Term, first_day: Option<Day>, days_since: Option<i32>) -> Vec<String> {
    let mut reasons = Vec::new();
    let long_known = first_day.is_some_and(|first| first.0 <= term.day.0 - HISTORY_DAYS);
    match days_since {
        Some(days) if term.reference_days == 0 && days > NOVEL_DAYS => {
            reasons.push(format!("first time in {days} days"));
        }
        None if long_known => reasons.push("first time".to_owned()),
        _ if term.reference_days > 0 => reasons.push(format!("on {} days of the 8 weeks before", term.reference_days)),
        _ => {}
    }
    if u64::from(term.novel_q16) > super::math::ONE_Q16 {
        reasons.push("new destination or device".to_owned());
    }
    if u64::from(term.own_q16) > super::math::ONE_Q16 {
        reasons.push("outside own hours".to_owned());
    }
    reasons
}

/// Days since the user last had an indicator, before a day.
pub fn days_since(user: &User, day: Day, code: u16) -> Option<i32> {
    let before = |d: &&super::state::DaySegment| {
        d.day < day && d.insights.binary_search_by_key(&code, |i| i.code).is_ok_and(|n| d.insights[n].count > 0)
    };
    user.days.iter().rev().find(before).map(|d| day.0 - d.day.0)
}

fn since(text: &mut String, user: &User, day: Day, code: u16) {
    match days_since(user, day, code) {
        Some(days) if days > NOVEL_DAYS => {
            let _ = write!(text, "; first time in {days} days");
        }
        None if user.head.first_day.is_some_and(|first| first.0 <= day.0 - HISTORY_DAYS) => {
            text.push_str("; first time");
        }
        _ => {}
    }
}

fn amount(text: &mut String, count: i64, kind: Option<&str>) {
    let nouns = match kind {
        Some("file") => " files",
        Some("message") => " messages",
        Some("record") => " records",
        _ => " times",
    };
    push_number(text, count);
    text.push_str(if count == 1 { &nouns[..nouns.len() - 1] } else { nouns });
}

/// Bytes in decimal units with one digit: "2.1 GB".
fn size(text: &mut String, bytes: u64) {
    let units = [(1_000_000_000_000, " TB"), (1_000_000_000, " GB"), (1_000_000, " MB"), (1_000, " kB")];
    let (one, unit) = units.into_iter().find(|(one, _)| bytes >= *one).unwrap_or((1, " B"));
    push_number(text, (bytes / one) as i64);
    let tenth = bytes % one * 10 / one;
    if tenth > 0 {
        text.push('.');
        push_number(text, tenth as i64);
    }
    text.push_str(unit);
}

fn cut(text: &mut String) {
    if text.len() > HEADLINE_MAX && text.chars().count() > HEADLINE_MAX {
        let end = text.char_indices().nth(HEADLINE_MAX - 1).map_or(text.len(), |(at, _)| at);
        text.truncate(end);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        for (bytes, expected) in [(12, "12 B"), (2_100_000_000, "2.1 GB"), (5_000_000, "5 MB"), (999_999, "999.9 kB")] {
            let mut text = String::new();
            size(&mut text, bytes);
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn long_headlines_are_cut_on_a_character() {
        for length in [200, 140] {
            let mut text = "ä".repeat(length);
            cut(&mut text);
            assert_eq!(text.chars().count(), HEADLINE_MAX);
        }
    }
}
