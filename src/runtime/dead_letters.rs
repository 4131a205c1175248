//! Dead letters as people read them: which, why, from where, and the original bytes. Reading is bounded: the newest
//! records of the topic, and it says when older ones were left out. Nothing in a dead letter is run or trusted.
//! Next: `wire/dead_letter.rs`, which writes the headers.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use serde::Serialize;

use super::log::{KafkaLog, Span};
use super::ports::{Error, RecordRef};
use crate::domain::Timestamp;
use crate::topology::Topic;
use crate::wire::dead_letter::DeadLetter;
use crate::wire::mapping::Code;

/// Most records of `dead-letters` that one list reads.
pub const READ_MAX: i64 = 100_000;
/// Reason of a record without the headers of a dead letter.
pub const FOREIGN: &str = "foreign";

/// Which dead letters are wanted.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Reason, or its beginning up to a dot.
    pub reason: Option<String>,
    /// Original topic, or a source's name.
    pub source: Option<String>,
    pub since: Option<Timestamp>,
    /// Most rows, newest first; counts are over everything read.
    pub limit: usize,
}

/// The answer to a list.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Listing {
    /// Dead letters that match.
    pub total: usize,
    /// Records read.
    pub read: usize,
    /// Older records that were not read.
    pub left_out: i64,
    /// Most frequent first.
    pub reasons: Vec<Reason>,
    pub rows: Vec<Row>,
}

/// One reason.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Reason {
    pub reason: String,
    pub meaning: &'static str,
    pub count: usize,
    /// The oldest of those read.
    pub first: Row,
}

/// One dead letter, without its content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Row {
    /// `dead-letters:<partition>:<offset>`.
    pub coordinate: String,
    pub at: Timestamp,
    pub reason: String,
    pub stage: &'static str,
    pub message: String,
    /// `<topic>:<partition>:<offset>` of the record that failed.
    pub origin: Option<String>,
    pub attempt: u32,
}

/// A whole dead letter.
#[derive(Clone, Debug, Serialize)]
pub struct Letter {
    #[serde(flatten)]
    pub row: Row,
    pub meaning: &'static str,
    pub headers: Vec<Header>,
    pub key: Option<Content>,
    pub value: Option<Content>,
}

/// A header and what it says.
#[derive(Clone, Debug, Serialize)]
pub struct Header {
    pub name: String,
    pub value: String,
    /// Empty for a header of the original record.
    pub meaning: &'static str,
}

/// Bytes as text where they are text, else in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Content {
    pub bytes: usize,
    pub encoding: &'static str,
    pub text: String,
}

impl Content {
    /// The bytes, all of them.
    pub fn of(bytes: &[u8]) -> Content {
        match std::str::from_utf8(bytes) {
            Ok(text) => Content { bytes: bytes.len(), encoding: "utf-8", text: text.to_owned() },
            Err(_) => Content { bytes: bytes.len(), encoding: "hex", text: hex(bytes) },
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
        text
    })
}

/// Lists dead letters, newest first.
pub fn list(log: &mut KafkaLog, partitions: i32, filter: &Filter) -> Result<Listing, Error> {
    let topic = Topic::DeadLetters.name();
    let all: Vec<i32> = (0..partitions).collect();
    let (starts, ends) = (log.starts(topic, &all)?, log.ends(topic, &all)?);
    let since = match filter.since {
        Some(at) => log.offsets_at(topic, &all, at)?,
        None => starts.clone(),
    };
    let each_max = (READ_MAX / i64::from(partitions)).max(1);
    let mut listing = Listing::default();
    let mut spans = Vec::with_capacity(all.len());
    for (n, partition) in all.iter().enumerate() {
        let wanted = since[n].max(starts[n]);
        let from = wanted.max(ends[n] - each_max);
        listing.left_out += from - wanted;
        spans.push(Span { partition: *partition, from, until: ends[n] });
    }
    let mut rows = Vec::new();
    log.scan(topic, &spans, &mut |record| {
        listing.read += 1;
        let row = row(&record);
        if wants(filter, &row) {
            rows.push(row);
        }
        ControlFlow::Continue(())
    })?;
    Ok(summarize(listing, rows, filter.limit))
}

fn summarize(mut listing: Listing, mut rows: Vec<Row>, limit: usize) -> Listing {
    rows.sort_by(|a, b| a.at.cmp(&b.at).then_with(|| a.coordinate.cmp(&b.coordinate)));
    let mut reasons: BTreeMap<&str, (usize, &Row)> = BTreeMap::new();
    for row in &rows {
        reasons.entry(&row.reason).or_insert((0, row)).0 += 1;
    }
    listing.reasons = reasons
        .into_iter()
        .map(|(reason, (count, first))| Reason {
            reason: reason.to_owned(),
            meaning: meaning(reason),
            count,
            first: first.clone(),
        })
        .collect();
    listing.reasons.sort_by_key(|r| std::cmp::Reverse(r.count));
    listing.total = rows.len();
    rows.reverse();
    rows.truncate(limit);
    listing.rows = rows;
    listing
}

fn wants(filter: &Filter, row: &Row) -> bool {
    let reason = filter.reason.as_deref().is_none_or(|want| {
        row.reason
            .strip_prefix(want)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.') || want.ends_with('.'))
    });
    let topic = row.origin.as_deref().and_then(|o| o.rsplitn(3, ':').nth(2)).unwrap_or_default();
    let source = filter
        .source
        .as_deref()
        .is_none_or(|want| topic == want || topic.strip_prefix("raw.").is_some_and(|s| s == want));
    reason && source
}

/// One dead letter, whole; `None` when there is no record at that offset.
pub fn show(log: &mut KafkaLog, partition: i32, offset: i64) -> Result<Option<Letter>, Error> {
    let topic = Topic::DeadLetters.name();
    let (start, end) = (log.starts(topic, &[partition])?[0], log.ends(topic, &[partition])?[0]);
    if !(start..end).contains(&offset) {
        return Ok(None);
    }
    let mut letter = None;
    let span = Span { partition, from: offset, until: offset + 1 };
    log.scan(topic, &[span], &mut |record| {
        letter = Some(whole(&record));
        ControlFlow::Break(())
    })?;
    Ok(letter)
}

fn whole(record: &RecordRef<'_>) -> Letter {
    let row = row(record);
    let header = |(name, value): &(&str, Option<&[u8]>)| Header {
        name: (*name).to_owned(),
        value: String::from_utf8_lossy(value.unwrap_or_default()).into_owned(),
        meaning: header_meaning(name),
    };
    Letter {
        meaning: meaning(&row.reason),
        row,
        headers: record.headers.iter().map(header).collect(),
        key: record.key.map(Content::of),
        value: record.value.map(Content::of),
    }
}

fn row(record: &RecordRef<'_>) -> Row {
    let coordinate = format!("{}:{}:{}", record.topic, record.partition, record.offset);
    match DeadLetter::parse(record.headers) {
        Some(letter) => Row {
            coordinate,
            at: record.timestamp,
            reason: letter.code.to_owned(),
            stage: letter.stage.as_str(),
            message: letter.message.to_owned(),
            origin: Some(format!("{}:{}:{}", letter.topic, letter.partition, letter.offset)),
            attempt: letter.attempt,
        },
        None => Row {
            coordinate,
            at: record.timestamp,
            reason: FOREIGN.to_owned(),
            message: "the record has no headers of a dead letter".to_owned(),
            ..Row::default()
        },
    }
}

/// What a reason means, for people; empty for one of another program.
pub fn meaning(reason: &str) -> &'static str {
    if let Some(code) = Code::ALL.iter().find(|code| code.as_str() == reason) {
        return code.meaning();
    }
    match reason {
        FOREIGN => "another program wrote it here without saying why",
        "too_late" => "the signal is older than engine.lateness_days: it is kept here and counts for nothing",
        "retraction.too_late" => "the signal it takes back is no longer remembered one by one",
        "in_future" => "the signal's time lies ahead of the clock by more than is allowed",
        "signal.bad_day" => "the signal's day is not a day, or does not fit its time",
        "signal.bad_op" => "op is neither create, revise nor retract",
        "signal.bad_count" => "the count is negative or larger than is allowed",
        "directory.partition" => "the directory record is not on the partition of its user: produce it there",
        "user_key.invalid" => "the user key is empty, too long, or has a bar or a control character",
        "partition.loop" => "the record was moved to its user's partition before and is still on a wrong one",
        "engine.panic" => "the fold panicked on this record: a bug, please report it; no state changed",
        "record.truncated" | "record.malformed" | "record.trailing" => "the bytes do not fit the schema they name",
        "schema.magic" => "the value is not in Confluent's wire format",
        "schema.unknown" => "nobody knows the schema the value names",
        "schema.mismatch" => "the value's schema does not fit the topic's",
        _ => "",
    }
}

fn header_meaning(name: &str) -> &'static str {
    match name {
        "__connect.errors.topic" => "topic of the record that failed",
        "__connect.errors.partition" => "its partition",
        "__connect.errors.offset" => "its offset",
        "__connect.errors.connector.name" => "who gave up",
        "__connect.errors.task.id" => "always 0; readers of Kafka Connect expect it",
        "__connect.errors.stage" => "how far it came: DECODE, MAP, VALIDATE or ENGINE",
        "__connect.errors.class.name" => "the part that gave up",
        "__connect.errors.exception.class.name" | "casestream-dlq-code" => "the reason, a stable code",
        "__connect.errors.exception.message" => "the reason in words, without field values",
        "casestream-dlq-attempt" => "1 for the first failure, one more per redrive",
        "casestream-dlq-lane" => "who can mend it: unattributed (the directory) or rejected (the mapping)",
        "casestream-dlq-cut" => "the value was cut: its bytes before",
        "casestream-dlq-redriven" => "the record was sent to its input again",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(at: i64, reason: &str, topic: &str) -> Row {
        let origin = Some(format!("{topic}:0:{at}"));
        Row { at: Timestamp(at), reason: reason.into(), origin, coordinate: format!("c{at}"), ..Row::default() }
    }

    #[test]
    fn reasons_are_counted_and_the_oldest_is_the_example() {
        let rows = vec![row(3, "a.b", "raw.x"), row(1, "a.b", "raw.x"), row(2, "c", "raw.x")];
        let listing = summarize(Listing::default(), rows, 2);
        let reasons: Vec<_> = listing.reasons.iter().map(|r| (r.reason.as_str(), r.count, r.first.at.0)).collect();
        assert_eq!(reasons, [("a.b", 2, 1), ("c", 1, 2)]);
        assert_eq!(listing.rows.iter().map(|r| r.at.0).collect::<Vec<_>>(), [3, 2], "newest first, two at most");
        assert_eq!(listing.total, 3);
    }

    #[test]
    fn filters_take_whole_words() {
        let filter = |reason: &str, source: &str| Filter {
            reason: (!reason.is_empty()).then(|| reason.to_owned()),
            source: (!source.is_empty()).then(|| source.to_owned()),
            ..Filter::default()
        };
        let one = row(1, "json.malformed", "raw.m365-dlp");
        for (reason, source, expected) in [
            ("", "", true),
            ("json", "", true),
            ("json.", "", true),
            ("json.malformed", "m365-dlp", true),
            ("", "raw.m365-dlp", true),
            ("js", "", false),
            ("", "m365", false),
        ] {
            assert_eq!(wants(&filter(reason, source), &one), expected, "{reason} {source}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_in_hexadecimal() {
        assert_eq!(Content::of(&[0xff, 0x00]), Content { bytes: 2, encoding: "hex", text: "ff00".into() });
        assert_eq!(Content::of(b"{}").encoding, "utf-8");
    }
}
