//! `<source>.test.toml` beside a mapping: events and what must become of them, as text an analyst can read.
//! `casestream check` and the tests run them. One line per signal, made by `describe`; only what is set is shown.

use std::fmt::Write;

use serde::Deserialize;

use super::program::first_line;
use super::{Draft, Error, MapConfig, Mapping, Outcome, RawMeta};
use crate::domain::Timestamp;

/// Record time of an example that names none: 2026-01-01.
const RECORD_TIME: i64 = 1_767_225_600_000;

/// One event and its expected outcome.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Example {
    pub name: String,
    pub event: String,
    /// Lines of `describe`.
    pub expect: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExamples {
    #[serde(default)]
    company_domains: Vec<String>,
    test: Vec<Example>,
}

/// Reads a test file: the configuration its events are mapped under, and the examples.
pub fn parse_examples(file: &str, text: &str) -> Result<(MapConfig, Vec<Example>), Error> {
    let raw: RawExamples = toml::from_str(text).map_err(|e| Error::Toml {
        file: file.to_owned(),
        line: e.span().map_or(1, |s| 1 + text[..s.start].matches('\n').count()),
        cause: first_line(e.message()),
    })?;
    Ok((MapConfig { company_domains: raw.company_domains, ..MapConfig::default() }, raw.test))
}

/// Runs examples; the answer lists every difference and is empty when all hold.
pub fn check_examples(mapping: &mut Mapping, examples: &[Example]) -> Vec<String> {
    let topic = format!("raw.{}", mapping.source());
    let at = RawMeta { topic: &topic, partition: 0, offset: 0, timestamp: Timestamp(RECORD_TIME) };
    let mut differences = Vec::new();
    for example in examples {
        let got = describe(&mapping.run(example.event.as_bytes(), &at));
        if got != example.expect {
            let lines = |lines: &[String]| lines.join("\n    ");
            let (expected, got) = (lines(&example.expect), lines(&got));
            differences.push(format!("{}\n  expected\n    {expected}\n  got\n    {got}", example.name));
        }
    }
    differences
}

/// An outcome as lines of text.
pub fn describe(outcome: &Outcome) -> Vec<String> {
    match outcome {
        Outcome::Signals(drafts) => drafts.iter().map(describe_draft).collect(),
        Outcome::Ignored(reason) => vec![format!("ignored {reason}")],
        Outcome::Dead { code, message } => vec![format!("dead {} ({message})", code.as_str())],
    }
}

fn describe_draft(draft: &Draft) -> String {
    let s = &draft.signal;
    let mut line = format!("{} {} by {}:{}", s.op, s.indicator, draft.subject.kind, draft.subject.value);
    let _ = write!(line, " at {} id {} {}", s.occurred_at.rfc3339(), s.source_event_id, s.outcome);
    if s.count != 1 {
        let _ = write!(line, " count {}", s.count);
    }
    if let Some(bytes) = s.bytes {
        let _ = write!(line, " bytes {bytes}");
    }
    if let Some(to) = &s.destination {
        let _ = write!(line, " to {} {}:{}", to.direction, to.kind, to.value);
    }
    for resource in &s.resources {
        let _ = write!(line, " {} [{}]", resource.kind, resource.name.as_deref().unwrap_or(&resource.id));
    }
    for (name, value) in [("severity", &s.vendor_severity), ("policy", &s.policy_name), ("key", &s.activity_key)] {
        if let Some(value) = value {
            let _ = write!(line, " {name} [{value}]");
        }
    }
    for label in &s.labels {
        let _ = write!(line, " label [{label}]");
    }
    for info in &s.info_types {
        let _ = write!(line, " info [{} x{} @{}]", info.name, info.count, info.confidence);
    }
    for (name, value) in &s.attributes {
        let _ = write!(line, " {name}={value}");
    }
    line
}
