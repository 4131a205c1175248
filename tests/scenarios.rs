//! Scenarios as text: inputs above, what was published below, readable by an analyst. `UPDATE=1` writes the outputs.
//!
//!     at <hours>                                   time passes up to this many hours after 2026-06-01
//!     signal <id> <indicator> [key=value …]        count, bytes, to, device, label, outcome, op, activity, ago, severity
//!     directory <version> [announced=h] [last_day=h] [groups=a,b] [high_impact]
//!     commit                                       end of a transaction

mod driver;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use casestream::domain::Timestamp;
use casestream::domain::directory::{Directory, Leaving};
use casestream::domain::time::HOUR_MS;
use casestream::engine::Outcome;
use driver::{Driver, START, domain, policies, signal};

const MARK: &str = "---\n";

#[test]
fn scenarios_publish_what_they_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("scenarios exist")
        .map(|e| e.expect("readable").path())
        .filter(|p| p.extension().is_some_and(|e| e == "txt"))
        .collect();
    files.sort();
    assert!(files.len() >= 8, "found {} scenarios", files.len());
    let mut wrong = String::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("readable");
        let (input, expected) = text.split_once(MARK).unwrap_or((&text, ""));
        let actual = run(input);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, format!("{input}{MARK}{actual}")).expect("writable");
        } else if actual != expected {
            let _ = writeln!(wrong, "{}\n{}", file.display(), difference(expected, &actual));
        }
    }
    assert!(wrong.is_empty(), "{wrong}\nUPDATE=1 cargo test --test scenarios writes them anew");
}

fn difference(expected: &str, actual: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), actual.lines().collect());
    let first = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    format!(
        "line {}:\n  expected {}\n  actual   {}",
        first + 1,
        old.get(first).unwrap_or(&"(end)"),
        new.get(first).unwrap_or(&"(end)")
    )
}

fn run(input: &str) -> String {
    let mut driver = Driver::new(policies());
    for line in input.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        driver.kept.lines.push(format!("> {line}"));
        match words[..] {
            ["at", hours] => driver.until(hours_after(hours)),
            ["commit"] => driver.finish(),
            ["signal", id, indicator, ref options @ ..] => send(&mut driver, id, indicator, options),
            ["directory", version, ref options @ ..] => record(&mut driver, version, options),
            _ => panic!("not a step: {line}"),
        }
    }
    driver.kept.lines.iter().fold(String::new(), |text, line| text + line + "\n")
}

fn hours_after(text: &str) -> Timestamp {
    START.plus_ms(text.parse::<i64>().expect("hours") * HOUR_MS)
}

fn send(driver: &mut Driver, id: &str, indicator: &str, options: &[&str]) {
    let hours = (driver.stream_time.0 - START.0) / HOUR_MS;
    let mut s = signal(id, indicator, hours);
    for option in options {
        let (key, value) = option.split_once('=').expect("key=value");
        match key {
            "count" => s.count = value.parse().expect("count"),
            "bytes" => s.bytes = Some(value.parse().expect("bytes")),
            "to" => s.destination = domain(value),
            "device" => s.device_id = Some(value.to_owned().into()),
            "label" => s.labels.push(value.to_owned().into()),
            "outcome" => s.outcome = value.to_owned().into(),
            "op" => s.op = value.to_owned().into(),
            "activity" => s.activity_key = Some(value.to_owned().into()),
            "severity" => {
                s.vendor_severity = Some(value.to_owned().into());
                s.policy_name = Some("dlp rule".into());
            }
            "ago" => {
                s.occurred_at = s.occurred_at.plus_ms(-value.parse::<i64>().expect("hours") * HOUR_MS);
                s.day = s.occurred_at.day_at(0).iso().into();
            }
            _ => panic!("not an option: {option}"),
        }
    }
    let outcome = driver.signal(&s);
    if !matches!(outcome, Outcome::Scored) {
        driver.kept.lines.push(format!("  {outcome:?}"));
    }
}

fn record(driver: &mut Driver, version: &str, options: &[&str]) {
    let mut record =
        Directory { user_key: driver::USER.into(), version: version.parse().expect("version"), ..Default::default() };
    for option in options {
        match option.split_once('=') {
            Some(("announced", hours)) => {
                record.leaving.get_or_insert(Leaving::default()).announced = Some(hours_after(hours));
            }
            Some(("last_day", hours)) => {
                record.leaving.get_or_insert(Leaving::default()).last_day = Some(hours_after(hours));
            }
            Some(("groups", names)) => record.groups = names.split(',').map(|g| g.to_owned().into()).collect(),
            _ if *option == "high_impact" => record.high_impact = true,
            _ => panic!("not an option: {option}"),
        }
    }
    let outcome = driver.directory(&record);
    if !matches!(outcome, Outcome::Scored) {
        driver.kept.lines.push(format!("  {outcome:?}"));
    }
}
