//! Bad input is data: every kind of broken record goes through the real pipeline in one go, and each must come out as
//! the table says, as a dead letter with a reason or as a row of a ledger, with its original bytes, and never as a crash.
//! The table is `docs/bad-input.md`: `UPDATE=1 cargo test --test bad_input` rewrites it.
#![cfg(feature = "vrl")]

#[path = "e2e/reading.rs"]
mod reading;
mod support;
#[path = "e2e/system.rs"]
mod system;
#[path = "e2e/writing.rs"]
mod writing;

use std::collections::BTreeMap;
use std::path::Path;

use casestream::domain::command::{Command, SwitchPolicies};
use casestream::domain::directory::{Directory, Leaving};
use casestream::domain::partitioner::partition_of;
use casestream::domain::signal::Signal;
use casestream::domain::{Text, Timestamp};
use casestream::runtime::map_worker::Ledger;
use casestream::topology::{INPUT_BYTES_MAX, OUTPUT_BYTES_MAX, Topic};
use rdkafka::message::{Message, OwnedMessage};
use support::{Isolation, read_all};
use system::{Inputs, Journals, Node, System};
use writing::{Feed, Record, encoded};

const PARTITIONS: i32 = 4;
const ENGINE: &str = "session_timeout_ms = 6000\nidle_follow_ms = 3600000";
/// 2026-03-02T12:00:00Z.
const NOON_MS: i64 = 1_772_452_800_000;
/// Names a case on its record, and so on its dead letter.
const CASE: &str = "test-case";

/// What must become of a record.
struct Becomes {
    /// Row of the map ledger; raw events only.
    map: Option<&'static str>,
    /// Rows of the engine's ledger: two when the record is read twice.
    engine: &'static [&'static str],
    /// Stage and code of the dead letter.
    letter: Option<(&'static str, &'static str)>,
    /// In words, for the page.
    words: &'static str,
}

/// One kind of bad record.
struct Case {
    topic: &'static str,
    what: &'static str,
    key: Vec<u8>,
    partition: Option<i32>,
    value: Option<Vec<u8>>,
    headers: Vec<(&'static str, &'static [u8])>,
    becomes: Becomes,
    /// The dead letter has no value: it could not be written again.
    is_emptied: bool,
}

/// A raw event is refused by the map role.
const fn raw_dead(stage: &'static str, code: &'static str, row: &'static str) -> Becomes {
    Becomes { map: Some(row), engine: &[], letter: Some((stage, code)), words: "dead letter" }
}

const fn ignored(row: &'static str, words: &'static str) -> Becomes {
    Becomes { map: Some(row), engine: &[], letter: None, words }
}

const fn row(engine: &'static [&'static str], words: &'static str) -> Becomes {
    Becomes { map: None, engine, letter: None, words }
}

/// A record is refused by the engine.
const fn dead(stage: &'static str, code: &'static str, engine: &'static [&'static str]) -> Becomes {
    Becomes { map: None, engine, letter: Some((stage, code)), words: "dead letter" }
}

/// The map role takes it, then the engine.
const fn mapped(then: Becomes) -> Becomes {
    Becomes { map: Some("mapped"), ..then }
}

macro_rules! raw_dead {
    ($stage:literal, $code:literal) => {
        raw_dead($stage, $code, concat!("dead.", $code))
    };
}
macro_rules! dead {
    ($stage:literal, $code:literal) => {
        dead($stage, $code, &[concat!("dead.", $code)])
    };
    ($input:literal, $stage:literal, $code:literal) => {
        dead($stage, $code, &[concat!($input, ".dead.", $code)])
    };
}

fn event(id: &str, time: &str, more: &str) -> Vec<u8> {
    let time = if time.is_empty() { String::new() } else { format!(r#""@timestamp":"{time}","#) };
    format!(
        r#"{{{time}"event":{{"id":"{id}","action":"removable-media-created"}},"user":{{"email":"bob@example.com"}},"destination":{{"removableMedia":{{"serialNumber":"S"}}}}{more}}}"#
    )
    .into_bytes()
}

const TIME: &str = "2026-03-02T12:00:00Z";

fn raw(what: &'static str, value: impl Into<Vec<u8>>, becomes: Becomes) -> Case {
    Case {
        topic: "raw.code42",
        what,
        key: b"any".to_vec(),
        // One partition, so that the order is that of the table.
        partition: Some(0),
        value: Some(value.into()),
        headers: Vec::new(),
        becomes,
        is_emptied: false,
    }
}

fn nested(depth: usize) -> Vec<u8> {
    let (open, close) = ("[".repeat(depth), "]".repeat(depth));
    event("deep", TIME, &format!(r#","more":{open}{close}"#))
}

fn raw_cases() -> Vec<Case> {
    let no_user = br#"{"@timestamp":"2026-03-02T12:00:00Z","event":{"id":"n","action":"file-printed"}}"#;
    vec![
        raw("well-formed, for comparison", event("good", TIME, ""), mapped(row(&["scored"], "scored"))),
        Case { value: None, ..raw("no value", "", raw_dead!("DECODE", "record.empty")) },
        raw("only white space", " \n ", raw_dead!("DECODE", "record.empty")),
        raw("truncated", &event("cut", TIME, "")[..60], raw_dead!("DECODE", "json.malformed")),
        raw("two documents in one", [event("a", TIME, ""), event("b", TIME, "")].concat(), raw_dead!("DECODE", "json.malformed")),
        raw("oversized: over 1 MiB", vec![b' '; INPUT_BYTES_MAX + 1], raw_dead!("DECODE", "record.too_large")),
        Case {
            is_emptied: true,
            ..raw("oversized: too large even for a dead letter", vec![b' '; OUTPUT_BYTES_MAX + 1_000_000], raw_dead!("DECODE", "record.too_large"))
        },
        raw("wrong type: a list", "[1, 2]", raw_dead!("DECODE", "json.not_object")),
        raw("wrong type: a number", "17", raw_dead!("DECODE", "json.not_object")),
        raw("wrong schema: another vendor's event", r#"{"eventType":"user.session.start"}"#, raw_dead!("MAP", "mapping.rejected")),
        raw("nested 65 deep", nested(64), raw_dead!("DECODE", "json.too_deep")),
        raw("nested 100,000 deep", nested(100_000), raw_dead!("DECODE", "json.too_deep")),
        raw("a field of a wrong type", event("type", TIME, r#","file":{"name":["x"],"sizeInBytes":"many"}"#), raw_dead!("MAP", "signal.bad_field")),
        raw("an integer beyond 64 bits", event("huge", TIME, r#","file":{"sizeInBytes":99999999999999999999}"#), raw_dead!("MAP", "signal.bad_field")),
        raw("a number beyond a double", event("inf", TIME, r#","file":{"sizeInBytes":1e400}"#), raw_dead!("MAP", "signal.bad_field")),
        raw("a negative size", event("negative", TIME, r#","file":{"sizeInBytes":-1}"#), raw_dead!("MAP", "signal.bad_field")),
        raw("NUL byte in the text", event("nul", TIME, ",\"x\":\"a\0b\""), raw_dead!("DECODE", "json.malformed")),
        raw("NUL escaped in a name", event("nul2", TIME, r#","file":{"name":"a\u0000b"}"#), mapped(row(&["scored"], "cleaned, scored"))),
        raw("invalid UTF-8", b"{\"event\":{\"id\":\"\xff\xfe\"}}", raw_dead!("DECODE", "json.not_utf8")),
        raw("no user", no_user, raw_dead!("MAP", "signal.no_user")),
        raw("a user nobody knows", String::from_utf8_lossy(&event("who", TIME, "")).replace("bob@example.com", "no address"), raw_dead!("MAP", "unattributed")),
        raw("no time", event("timeless", "", ""), mapped(row(&["scored"], "scored at the record's time"))),
        raw("a time nobody can read", event("when", "yesterday", ""), raw_dead!("MAP", "signal.bad_time")),
        raw("year 0001", event("y1", "0001-01-01T00:00:00Z", ""), raw_dead!("MAP", "signal.time_sentinel")),
        raw("year 1970", event("y1970", "1970-01-01T00:00:00Z", ""), raw_dead!("MAP", "signal.time_sentinel")),
        raw("year 2106, after the last second of 32 bits", event("y2106", "2106-12-31T00:00:00Z", ""), raw_dead!("MAP", "signal.bad_time")),
        raw("year 2105: in the future", event("y2105", "2105-01-01T00:00:00Z", ""), mapped(dead("ENGINE", "in_future", &["dead.in_future"]))),
        raw("year 2001: too late", event("y2001", "2001-01-01T00:00:00Z", ""), mapped(dead("ENGINE", "too_late", &["late"]))),
        raw("duplicate", event("good", TIME, ""), mapped(row(&["duplicate"], "counted as duplicate"))),
        raw("an action no mapping knows", br#"{"@timestamp":"2026-03-02T12:00:00Z","event":{"id":"u","action":"file-teleported"},"user":{"email":"bob@example.com"}}"#, ignored("ignored.action_not_mapped", "ignored, counted")),
    ]
}

fn signal(id: &str) -> Signal<'static> {
    let text = |text: &str| Text::from(text.to_owned());
    Signal {
        signal_id: text(id),
        user_key: text("u1"),
        source: text("direct"),
        source_event_id: text(id),
        op: text("create"),
        indicator: text("removable_media_copy"),
        occurred_at: Timestamp(NOON_MS),
        ingested_at: Timestamp(NOON_MS),
        day: text("2026-03-02"),
        outcome: text("allowed"),
        count: 1,
        is_complete: true,
        mapping: text("test@1"),
        origin: text("live"),
        ..Signal::default()
    }
}

fn direct(what: &'static str, value: impl Into<Vec<u8>>, becomes: Becomes) -> Case {
    Case { topic: "risk-signals", key: b"u1".to_vec(), partition: None, ..raw(what, value, becomes) }
}

fn changed(what: &'static str, id: &str, change: impl FnOnce(&mut Signal<'static>), becomes: Becomes) -> Case {
    let mut changed = signal(id);
    change(&mut changed);
    let key = changed.user_key.as_bytes().to_vec();
    Case { key, ..direct(what, encoded(Topic::RiskSignals, &changed), becomes) }
}

fn good(id: &str) -> Vec<u8> {
    encoded(Topic::RiskSignals, &signal(id))
}

/// The value with every byte of `from` replaced by `to`.
fn replaced(value: &[u8], from: u8, to: u8) -> Vec<u8> {
    value.iter().map(|byte| if *byte == from { to } else { *byte }).collect()
}

fn framing_cases() -> Vec<Case> {
    let value = good("framing");
    let with_id = |id: u32| [&[0][..], &id.to_be_bytes(), &value[5..]].concat();
    let directory =
        encoded(Topic::UserDirectory, &Directory { user_key: Text::borrowed("u1"), ..Directory::default() });
    // The first text claims to be 2^62 bytes long.
    let endless = [&value[..5], &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], &value[6..]].concat();
    let oversized = [value.clone(), vec![0; INPUT_BYTES_MAX]].concat();
    vec![
        Case { value: None, ..direct("no value", "", dead!("DECODE", "record.empty")) },
        direct("truncated in the schema's id", &value[..3], dead!("DECODE", "record.truncated")),
        direct("truncated", &value[..value.len() - 5], dead!("DECODE", "record.truncated")),
        direct("oversized: over 1 MiB", oversized, dead!("DECODE", "record.too_large")),
        direct("bytes behind the end", [value.clone(), vec![1]].concat(), dead!("DECODE", "record.trailing")),
        direct("not Avro: JSON", r#"{"user_key":"u1"}"#, dead!("DECODE", "schema.magic")),
        direct("a schema nobody knows", with_id(99_999), dead!("DECODE", "schema.unknown")),
        direct("wrong schema: a directory record", directory, dead!("DECODE", "schema.mismatch")),
        direct("a text of 2^62 bytes", endless, dead!("DECODE", "record.truncated")),
        direct("invalid UTF-8", replaced(&good("~utf8~"), b'~', 0xff), dead!("DECODE", "record.malformed")),
    ]
}

fn signal_cases() -> Vec<Case> {
    let far = Timestamp(i64::MAX);
    vec![
        direct("well-formed, for comparison", good("s-good"), row(&["scored"], "scored")),
        changed("NUL in a text", "s-nul", |s| s.policy_name = Some(Text::borrowed("a\0b")), row(&["scored"], "scored")),
        changed("count beyond a million", "s-count", |s| s.count = i64::MAX, dead!("ENGINE", "signal.bad_count")),
        changed("count below one", "s-zero", |s| s.count = 0, dead!("ENGINE", "signal.bad_count")),
        changed("a negative size", "s-bytes", |s| s.bytes = Some(i64::MIN), dead!("ENGINE", "signal.bad_count")),
        changed(
            "a size of 2^63 - 1",
            "s-size",
            |s| s.bytes = Some(i64::MAX),
            row(&["scored"], "scored, its points capped"),
        ),
        changed(
            "a zone offset of 2^63 - 1 minutes",
            "s-zone",
            |s| s.zone_offset_min = i64::MAX,
            row(&["scored"], "scored, the offset cut to a day"),
        ),
        changed("no user", "s-nobody", |s| s.user_key = Text::borrowed(""), dead!("ENGINE", "unattributed")),
        changed("no time", "s-timeless", |s| s.occurred_at = Timestamp(0), dead!("ENGINE", "signal.bad_time")),
        changed(
            "year 0001",
            "s-y1",
            |s| s.occurred_at = Timestamp(-62_135_596_800_000),
            dead!("ENGINE", "signal.bad_time"),
        ),
        changed(
            "year 2106, after the last second of 32 bits",
            "s-y2106",
            |s| s.occurred_at = Timestamp(4_322_000_000_000),
            dead!("ENGINE", "signal.bad_time"),
        ),
        changed("the last instant of 64 bits", "s-far", |s| s.occurred_at = far, dead!("ENGINE", "signal.bad_time")),
        changed(
            "year 2105: in the future",
            "s-y2105",
            |s| {
                s.occurred_at = Timestamp(4_260_211_200_000);
                s.day = Text::borrowed("2105-01-01");
            },
            dead!("ENGINE", "in_future"),
        ),
        changed(
            "year 2001: too late",
            "s-y2001",
            |s| {
                s.occurred_at = Timestamp(978_307_200_000);
                s.day = Text::borrowed("2001-01-01");
            },
            dead("ENGINE", "too_late", &["late"]),
        ),
        changed(
            "a retraction too late to matter",
            "s-retract",
            |s| {
                s.op = Text::borrowed("retract");
                s.occurred_at = Timestamp(978_307_200_000);
                s.day = Text::borrowed("2001-01-01");
            },
            dead!("ENGINE", "retraction.too_late"),
        ),
        changed(
            "a day that is none",
            "s-day",
            |s| s.day = Text::borrowed("2026-02-30"),
            dead!("ENGINE", "signal.bad_day"),
        ),
        changed(
            "a day far from its time",
            "s-day2",
            |s| s.day = Text::borrowed("2026-03-09"),
            dead!("ENGINE", "signal.bad_day"),
        ),
        changed(
            "an operation nobody knows",
            "s-op",
            |s| s.op = Text::borrowed("upsert"),
            dead!("ENGINE", "signal.bad_op"),
        ),
        direct("duplicate", good("s-good"), row(&["duplicate"], "counted as duplicate")),
        changed(
            "an unknown indicator",
            "s-unknown",
            |s| s.indicator = Text::borrowed("not_in_the_catalogue"),
            row(&["unscored"], "unscored, counted, never dead"),
        ),
        Case {
            partition: Some((partition_of(b"u1", PARTITIONS) + 1) % PARTITIONS),
            ..direct(
                "wrong partition",
                good("s-moved"),
                row(&["rerouted", "scored"], "moved to the right partition once, then scored"),
            )
        },
        Case {
            key: b"u2".to_vec(),
            ..direct(
                "the key of somebody else",
                good("s-key"),
                row(&["rerouted", "scored"], "moved under the right key once, then scored"),
            )
        },
        Case {
            partition: Some((partition_of(b"u1", PARTITIONS) + 1) % PARTITIONS),
            headers: vec![("casestream-rerouted", b"1")],
            ..direct("wrong partition, and says it was moved", good("s-loop"), dead!("ENGINE", "partition.loop"))
        },
    ]
}

fn person(what: &'static str, change: impl FnOnce(&mut Directory<'static>), becomes: Becomes) -> Case {
    let text = Text::borrowed;
    let mut record =
        Directory { user_key: text("u1"), canonical_id: text("u1@example.com"), version: 5, ..Directory::default() };
    change(&mut record);
    let key = record.user_key.as_bytes().to_vec();
    Case { topic: "user-directory", key, ..direct(what, encoded(Topic::UserDirectory, &record), becomes) }
}

fn key_cases() -> Vec<Case> {
    let key = |what, id, key: &'static str| {
        let becomes = dead("ENGINE", "user_key.invalid", &["dead.user_key.invalid"]);
        changed(what, id, |s| s.user_key = Text::borrowed(key), becomes)
    };
    vec![
        key("a user key that looks like a segment of another", "s-bar", "u1|seen"),
        key("a user key with a bar", "s-bar2", "a|b"),
        key("the key of the meta record", "s-meta", "\0meta"),
    ]
}

fn directory_cases() -> Vec<Case> {
    let last = Leaving { announced: Some(Timestamp(i64::MIN)), last_day: Some(Timestamp(i64::MAX)) };
    let value = encoded(Topic::UserDirectory, &Directory { user_key: Text::borrowed("u1"), ..Directory::default() });
    let of = |what, value: Vec<u8>, becomes| Case { topic: "user-directory", ..direct(what, value, becomes) };
    vec![
        person("well-formed, for comparison", |_| {}, row(&["directory.applied"], "applied")),
        person("an older version", |r| r.version = 4, row(&["directory.unchanged"], "counted as unchanged")),
        person(
            "dates at both ends of 64 bits",
            |r| (r.version, r.leaving) = (6, Some(last)),
            row(&["directory.applied"], "applied"),
        ),
        Case { value: None, ..of("a tombstone", Vec::new(), row(&["directory.ignored"], "ignored, counted")) },
        of("truncated", value[..7].to_vec(), dead!("directory", "DECODE", "record.truncated")),
        of("wrong schema: a signal", good("d"), dead!("directory", "DECODE", "schema.mismatch")),
        Case {
            partition: Some((partition_of(b"u1", PARTITIONS) + 1) % PARTITIONS),
            ..person("wrong partition", |r| r.version = 7, dead!("directory", "ENGINE", "directory.partition"))
        },
    ]
}

fn command(what: &'static str, change: impl FnOnce(&mut Command<'static>), becomes: Becomes) -> Case {
    let text = Text::borrowed;
    let mut record = Command {
        command_id: text("c"),
        user_key: text("u1"),
        kind: text("open_case"),
        at: Timestamp(NOON_MS),
        ..Command::default()
    };
    change(&mut record);
    Case { topic: "case-commands", ..direct(what, encoded(Topic::CaseCommands, &record), becomes) }
}

fn command_cases() -> Vec<Case> {
    let switch = SwitchPolicies { policy_set: Text::borrowed("0") };
    let value = encoded(Topic::CaseCommands, &Command::default());
    let of = |what, value: Vec<u8>, becomes| Case { topic: "case-commands", ..direct(what, value, becomes) };
    vec![
        command(
            "a kind nobody knows",
            |c| c.kind = Text::borrowed("self_destruct"),
            row(&["commands.refused"], "refused `command.unknown`"),
        ),
        command(
            "a switch of policies for one user",
            |c| {
                c.kind = Text::borrowed("switch_policies");
                c.switch_policies = Some(switch);
            },
            row(&["commands.refused"], "refused `command.invalid`"),
        ),
        command(
            "a switch of policies to no set",
            |c| (c.kind, c.user_key) = (Text::borrowed("switch_policies"), Text::borrowed("")),
            row(&["commands.refused"], "refused `command.invalid`"),
        ),
        Case { value: None, ..of("no value", Vec::new(), dead!("commands", "DECODE", "record.empty")) },
        of("truncated", value[..7].to_vec(), dead!("commands", "DECODE", "record.truncated")),
        Case {
            partition: Some((partition_of(b"u1", PARTITIONS) + 1) % PARTITIONS),
            ..command(
                "wrong partition",
                |_| {},
                row(&["commands.rerouted", "commands.refused"], "moved to the right partition once, then refused"),
            )
        },
    ]
}

fn cases() -> Vec<Case> {
    [raw_cases(), framing_cases(), signal_cases(), key_cases(), directory_cases(), command_cases()]
        .into_iter()
        .flatten()
        .collect()
}

fn send(feed: &Feed, number: usize, case: &Case) {
    let number = number.to_string();
    let mut headers = case.headers.clone();
    headers.push((CASE, Box::leak(number.into_boxed_str()).as_bytes()));
    feed.send(Record {
        topic: case.topic,
        partition: case.partition,
        key: Some(&case.key),
        value: case.value.as_deref(),
        timestamp: (case.topic == "raw.code42").then_some(NOON_MS),
        headers: &headers,
    });
}

/// Dead letters by the case their record named.
fn letters(system: &System) -> BTreeMap<usize, OwnedMessage> {
    let mut letters = BTreeMap::new();
    for message in read_all(&system.kafka.bootstrap(), "dead-letters", Isolation::ReadCommitted) {
        let headers = reading::headers(&message);
        let case = match headers.get(CASE) {
            Some(case) => case.parse().expect("a number"),
            // A letter about a signal that the map role made names the raw record it was made from.
            None => continue,
        };
        assert!(letters.insert(case, message).is_none(), "case {case} has two dead letters");
    }
    letters
}

/// The letter a case must have left, if any, with its original bytes. The answer says what is wrong.
fn judge(case: &Case, letter: Option<&OwnedMessage>) -> Vec<String> {
    let mut wrong = Vec::new();
    // What the map role took and the engine refused: the letter holds the signal.
    let is_signal = case.becomes.map == Some("mapped");
    let (Some((stage, code)), Some(letter)) = (case.becomes.letter.filter(|_| !is_signal), letter) else {
        if letter.is_some() != (case.becomes.letter.is_some() && !is_signal) {
            let found = letter.map(|l| reading::headers(l)["casestream-dlq-code"].clone());
            wrong.push(format!("{}, {}: dead letter {found:?}", case.topic, case.what));
        }
        return wrong;
    };
    let headers = reading::headers(letter);
    let mut same = |what: &str, found: &str, expected: &str| {
        if found != expected {
            wrong.push(format!("{}, {}: {what} is {found}, not {expected}", case.topic, case.what));
        }
    };
    same("code", &headers["casestream-dlq-code"], code);
    same("stage", &headers["__connect.errors.stage"], stage);
    same("topic", &headers["__connect.errors.topic"], case.topic);
    if !case.is_emptied {
        assert_eq!(letter.payload(), case.value.as_deref(), "{}: original bytes", case.what);
    } else {
        assert_eq!(letter.payload(), None, "{}", case.what);
    }
    assert_eq!(letter.key(), Some(&case.key[..]), "{}: original key", case.what);
    wrong
}

fn add(total: &mut BTreeMap<String, i64>, row: &str) {
    *total.entry(row.to_owned()).or_default() += 1;
}

/// Every row the ledgers must show, map and engine.
fn expected_ledgers(cases: &[Case]) -> (BTreeMap<String, i64>, BTreeMap<String, i64>) {
    let (mut map, mut engine) = (BTreeMap::new(), BTreeMap::new());
    for case in cases {
        case.becomes.map.iter().for_each(|row| add(&mut map, row));
        for row in case.becomes.engine {
            let input = ["directory.", "commands."].into_iter().find(|input| row.starts_with(input)).unwrap_or("");
            add(&mut engine, row);
            add(&mut engine, &format!("{input}in"));
        }
    }
    // The first policy set was switched on, on every partition.
    for row in ["commands.in", "commands.accepted"] {
        *engine.entry(row.to_owned()).or_default() += i64::from(PARTITIONS);
    }
    // The fingerprint of the pseudonym key lies among the directory's records.
    for row in ["directory.in", "directory.ignored"] {
        *engine.entry(row.to_owned()).or_default() += 1;
    }
    (map, engine)
}

fn map_ledger(system: &System) -> BTreeMap<String, i64> {
    let mut total = BTreeMap::new();
    for committed in system.map_committed().into_iter().filter(|row| row.offset > 0) {
        let Ledger { taken, mapped, signals: _, ignored, dead } =
            Ledger::from_metadata(&committed.metadata).expect("a ledger");
        assert_eq!(taken, committed.offset, "every record is accounted for");
        *total.entry("mapped".to_owned()).or_default() += mapped;
        ignored.iter().for_each(|(reason, n)| *total.entry(format!("ignored.{reason}")).or_default() += n);
        dead.iter().for_each(|(code, n)| *total.entry(format!("dead.{code}")).or_default() += n);
    }
    total
}

fn page(cases: &[Case]) -> String {
    let mut page = String::from(
        "# Bad input\n\nEvery kind of broken record, and what becomes of it. Generated from `tests/bad_input.rs`, which sends them all\n\
         through a real broker, both roles and Redis; `UPDATE=1 cargo test --test bad_input` rewrites it. A dead letter keeps\n\
         the original key, value and headers; its headers say the code, the stage and where the record lay. Everything else\n\
         is a row of a ledger, and the ledgers add up: nothing is dropped silently, and nothing stops the others.\n",
    );
    let mut topic = "";
    for case in cases {
        if case.topic != topic {
            topic = case.topic;
            let title = if topic == "raw.code42" { "raw.<source>" } else { topic };
            page.push_str(&format!("\n## `{title}`\n\n| record | becomes | code | stage |\n|---|---|---|---|\n"));
        }
        let (code, stage) =
            case.becomes.letter.map_or((String::new(), ""), |(stage, code)| (format!("`{code}`"), stage));
        let words = if case.is_emptied { "dead letter without its value" } else { case.becomes.words };
        page.push_str(&format!("| {} | {words} | {code} | {stage} |\n", case.what));
    }
    page
}

/// Nothing that was accepted keeps a partition from being taken over again, from the changelog alone.
fn check_restore(system: &mut System, node: &mut Node, journals: &mut Journals) {
    node.kill();
    system.redis.restart();
    node.start_again(system);
    node.wait_ready();
    let (_, body) = node.get("/readyz");
    assert!(!body.contains(r#""halted":{""#), "{body}");
    system.wait_for_copy(journals);
    system.verify();
}

#[test]
fn every_bad_record_becomes_what_the_table_says() {
    let cases = cases();
    let mut system = System::start(PARTITIONS, ENGINE, &["example.com"]);
    let feed = Feed::new(&system.kafka.bootstrap());
    cases.iter().enumerate().for_each(|(number, case)| send(&feed, number, case));
    feed.flush();
    let mut node = Node::start(&system, 0, &[]);
    node.wait_ready();
    let (mut inputs, mut journals) = (Inputs::new(&system), Journals::new(&system));
    system.wait_until_drained(&mut inputs);
    system.wait_for_copy(&mut journals);

    let letters = letters(&system);
    let wrong: Vec<String> =
        cases.iter().enumerate().flat_map(|(number, case)| judge(case, letters.get(&number))).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let (map, engine) = expected_ledgers(&cases);
    assert_eq!(map_ledger(&system), map, "the map ledger");
    let mut found = BTreeMap::new();
    for (row, count) in journals.last.iter().flatten().flat_map(|journal| &journal.ledger) {
        *found.entry(row.clone()).or_default() += count;
    }
    assert_eq!(found, engine, "the engine's ledger");
    assert!(node.ended().is_none(), "{}", node.log());
    system.verify();
    check_restore(&mut system, &mut node, &mut journals);

    let page = page(&cases);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/bad-input.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &page).expect("could not write the page");
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), page, "UPDATE=1 cargo test --test bad_input");
}
