//! The commands that answer questions, against a running pipeline: ten days of a small population go through map and
//! engine on a real Kafka and Redis, then every answer is checked against what went in.

#![cfg(feature = "vrl")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Message, OwnedMessage};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;

use support::{Isolation, Kafka, Process, Redis, read_all, wait_for};

/// Ten times what it takes on two busy cores.
const TIMEOUT: Duration = Duration::from_secs(180);
const MALFORMED: &str = "{\"Operation\": \u{1b}[2J";
const NOT_MAPPED: &str =
    r#"{"Id":"c0ffee","Operation":"NobodyMapsThis","CreationTime":"2026-11-20T10:00:00","UserId":"a@example.com"}"#;
const RAW: &str = "raw.m365-dlp";

/// The pipeline with everything taken; it runs until the test process ends.
struct Stand {
    kafka: &'static Kafka,
    dir: PathBuf,
    harmful: Vec<String>,
    records: i64,
    _process: Process,
}

fn stand() -> &'static Stand {
    static STAND: OnceLock<Stand> = OnceLock::new();
    STAND.get_or_init(start)
}

fn start() -> Stand {
    let (kafka, redis) = (Kafka::shared(), Redis::shared());
    let mut process = Process::new("pipeline");
    let dir = process.dir().to_owned();
    fs::write(dir.join("key"), "a key of thirty-two bytes, no less").unwrap();
    fs::write(dir.join("casestream.toml"), config(kafka, redis)).unwrap();
    expect(0, &command(&dir, &["topics", "apply"]));
    let generated = json(&command(&dir, &["generate", "--users", "40", "--days", "10", "--output", "json"]));
    let records = generated["records"].as_i64().unwrap() - generated["by_topic"]["user-directory"].as_i64().unwrap();
    produce(kafka, &[MALFORMED, NOT_MAPPED]);
    process.spawn(process_command(&dir).arg("run"));
    let stand = Stand {
        kafka,
        dir,
        harmful: serde_json::from_value(generated["harmful"].clone()).unwrap(),
        records: records + 2,
        _process: process,
    };
    wait_for("the pipeline to have taken everything", TIMEOUT, || {
        let output = stand.run(&["status", "--output", "json"]);
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        let copies = status["partitions"].as_array()?.iter().all(|p| p["copy"]["behind"] == 0);
        let done = status["lag"] == 0 && copies && output.status.success();
        (done && status["map"]["ledger"]["in"] == stand.records).then_some(())
    });
    stand
}

fn config(kafka: &Kafka, redis: &Redis) -> String {
    let root = env!("CARGO_MANIFEST_DIR");
    let source = |name: &str| {
        format!("{{ name = \"{name}\", topic = \"raw.{name}\", mapping = \"{root}/config/mappings/{name}.toml\" }}")
    };
    let sources = ["m365-dlp", "google-workspace", "code42"].map(source).join(",\n  ");
    format!(
        "[kafka]\nbootstrap_servers = \"{}\"\npartitions = 4\n[redis]\nurl = \"{}\"\n[identity]\nkey_file = \"key\"\n\
         [http]\nbind = \"127.0.0.1:0\"\n[map]\ncompany_domains = [\"example.com\"]\nsources = [\n  {sources}\n]\n",
        kafka.bootstrap(),
        redis.url()
    )
}

fn process_command(dir: &std::path::Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_casestream"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CASESTREAM_")) {
        command.env_remove(name);
    }
    command.current_dir(dir);
    command
}

fn command(dir: &std::path::Path, arguments: &[&str]) -> Output {
    process_command(dir).args(arguments).output().unwrap()
}

fn expect(code: i32, output: &Output) {
    let text = [&output.stdout, &output.stderr].map(|b| String::from_utf8_lossy(b).into_owned()).join("\n");
    assert_eq!(output.status.code(), Some(code), "{text}");
}

fn json(output: &Output) -> Value {
    let errors = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("no JSON document: {e}: {errors}"))
}

fn produce(kafka: &Kafka, values: &[&str]) {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create().expect("a producer");
    for value in values {
        producer.send(BaseRecord::to(RAW).key("k").payload(*value)).expect("could not queue");
    }
    producer.flush(TIMEOUT).expect("could not deliver");
}

impl Stand {
    fn run(&self, arguments: &[&str]) -> Output {
        command(&self.dir, arguments)
    }

    fn json(&self, code: i32, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--output", "json"]].concat());
        expect(code, &output);
        json(&output)
    }

    fn table(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        expect(code, &output);
        String::from_utf8(output.stdout).unwrap()
    }

    fn read(&self, topic: &str) -> Vec<OwnedMessage> {
        read_all(&self.kafka.bootstrap(), topic, Isolation::ReadCommitted)
    }

    fn raw(&self, value: &str) -> String {
        let all = self.read(RAW);
        place(all.iter().find(|m| m.payload() == Some(value.as_bytes())).expect("the record was produced"))
    }
}

fn place(message: &OwnedMessage) -> String {
    format!("{}:{}:{}", message.topic(), message.partition(), message.offset())
}

fn step<'v>(trace: &'v Value, stage: &str) -> &'v Value {
    let steps = trace["steps"].as_array().unwrap();
    steps.iter().find(|s| s["stage"] == stage).unwrap_or_else(|| panic!("no step {stage}: {trace:#}"))
}

fn sum(list: &Value, field: &str) -> i64 {
    list.as_array().unwrap().iter().map(|line| line[field].as_i64().unwrap()).sum()
}

#[test]
fn status_accounts_for_every_record() {
    let stand = stand();
    let status = stand.json(0, &["status"]);
    assert_eq!((&status["lag"], &status["balanced"], &status["healthy"]), (&0.into(), &true.into(), &true.into()));
    let (map, engine) = (&status["map"]["ledger"], &status["engine"]["ledger"]);
    assert_eq!(map["in"], stand.records);
    assert_eq!(map["dead.json.malformed"], 1);
    assert_eq!(map["signals"], engine["in"], "what one role wrote the other took");
    let partitions = status["partitions"].as_array().unwrap();
    assert_eq!(partitions.len(), 4);
    for partition in partitions {
        assert_eq!(
            (&partition["state"], &partition["copy"]["behind"]),
            (&"running".into(), &0.into()),
            "{partition:#}"
        );
        assert_eq!(partition["inputs"].as_array().unwrap().len(), 4);
    }
    let table = stand.table(0, &["status"]);
    assert!(table.starts_with("healthy at ") && table.contains("ledger balances"), "{table}");
}

#[test]
fn an_explanation_adds_up_and_is_found_by_name_or_key() {
    let stand = stand();
    let answer = stand.json(0, &["explain", &stand.harmful[0]]);
    let e = &answer["explanation"];
    assert!(e["score_milli"].as_i64() > Some(0), "{answer:#}");
    assert_eq!(sum(&e["indicators"], "share_milli") + sum(&e["boosters"], "share_milli"), e["score_milli"]);
    for indicator in e["indicators"].as_array().unwrap() {
        assert_eq!(sum(&indicator["insights"], "share_milli"), indicator["share_milli"], "{indicator:#}");
    }
    let by_key = stand.json(0, &["explain", e["user_key"].as_str().unwrap()]);
    assert_eq!(by_key["explanation"], answer["explanation"]);
    let later = stand.json(0, &["explain", &stand.harmful[0], "--at", "2100-01-01"]);
    assert_eq!(later["explanation"]["score_milli"], 0, "everything has decayed");
    let table = stand.table(0, &["explain", &stand.harmful[0]]);
    assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
    let nobody = stand.run(&["explain", "nobody@example.com"]);
    expect(1, &nobody);
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("hint: "));
    expect(2, &stand.run(&["explain", "x", "--at", "yesterday"]));
}

#[test]
fn an_event_that_became_an_alert_is_traced_from_every_end() {
    let stand = stand();
    let alerts = stand.read("alerts");
    // An alert's record names the user's last signal of its transaction, which may be evidence of another alert.
    let is_its_own = |trace: &Value, at: &str| {
        trace["steps"].as_array().unwrap().iter().any(|s| s["stage"] == "alert" && s["coordinate"] == at)
    };
    let traces = alerts.iter().map(|m| (place(m), stand.json(0, &["trace", &place(m)])));
    let found = traces.into_iter().find(|(at, trace)| is_its_own(trace, at));
    let (alert, from_alert) = found.expect("harmful people cause alerts");
    assert_eq!(from_alert["end"], "alert", "{from_alert:#}");
    let raw = step(&from_alert, "raw")["coordinate"].as_str().unwrap();
    let from_raw = stand.json(0, &["trace", raw]);
    assert_eq!(from_raw["end"], "alert", "{from_raw:#}");
    let stages: Vec<&str> =
        from_raw["steps"].as_array().unwrap().iter().map(|s| s["stage"].as_str().unwrap()).collect();
    assert!(stages.starts_with(&["raw", "mapping", "signal", "chronology"]), "{stages:?}");
    for stage in ["signal", "score", "alert"] {
        assert_eq!(step(&from_raw, stage)["ids"], step(&from_alert, stage)["ids"], "{stage}");
    }
    assert!(is_its_own(&from_raw, &alert), "{from_raw:#}");
    let event_id = step(&from_raw, "signal")["ids"]["source_event_id"].as_str().unwrap();
    let from_id = stand.json(0, &["trace", event_id]);
    assert_eq!(step(&from_id, "signal")["coordinate"], step(&from_raw, "signal")["coordinate"]);
    let table = stand.table(0, &["trace", raw]);
    assert!(table.contains(" 1. raw") && table.contains("it came through: it is evidence of alert "), "{table}");
}

#[test]
fn an_event_that_stopped_says_where_and_why() {
    let stand = stand();
    let ignored = stand.json(0, &["trace", &stand.raw(NOT_MAPPED)]);
    assert_eq!(ignored["end"], "ignored", "{ignored:#}");
    let dead = stand.json(0, &["trace", &stand.raw(MALFORMED)]);
    assert_eq!(dead["end"], "dead", "{dead:#}");
    let letters = stand.read("dead-letters");
    assert_eq!(step(&dead, "dead_letter")["coordinate"], place(&letters[0]));
    for (absent, why) in [
        (format!("{RAW}:0:99999999"), "is not written yet"),
        (format!("{RAW}:99:0"), "partitions"),
        ("no-such-event".to_owned(), "no signal has this event id"),
    ] {
        let trace = stand.json(1, &["trace", &absent]);
        assert_eq!(trace["end"], "not_found");
        assert!(trace["why"].as_str().unwrap().contains(why), "{trace:#}");
    }
}

#[test]
fn dead_letters_are_counted_and_shown_as_they_were() {
    let stand = stand();
    let list = stand.json(0, &["dlq", "list"]);
    assert_eq!((&list["total"], &list["left_out"]), (&1.into(), &0.into()), "{list:#}");
    assert_eq!(list["reasons"][0]["reason"], "json.malformed");
    assert_eq!(list["rows"][0]["origin"], stand.raw(MALFORMED));
    for (filter, total) in [
        (["--reason", "json"], 1),
        (["--reason", "signal"], 0),
        (["--source", "m365-dlp"], 1),
        (["--source", "code42"], 0),
        (["--since", "2100-01-01"], 0),
    ] {
        assert_eq!(stand.json(0, &["dlq", "list", filter[0], filter[1]])["total"], total, "{filter:?}");
    }
    let at = list["rows"][0]["coordinate"].as_str().unwrap();
    let letter = stand.json(0, &["dlq", "show", at]);
    assert_eq!(letter["value"]["text"], MALFORMED);
    let table = stand.table(0, &["dlq", "show", at]);
    assert!(table.contains("\\u{1b}[2J") && !table.contains('\u{1b}'), "control characters are spelled out: {table}");
    expect(1, &stand.run(&["dlq", "show", "dead-letters:0:99999999"]));
}

#[test]
fn a_replay_of_the_journal_finds_no_difference() {
    let report = stand().json(0, &["verify"]);
    assert_eq!(report["differences"], 0, "{report:#}");
    assert_eq!(report["unchecked"].as_array().unwrap().len(), 0, "{report:#}");
    assert!(report["copy_users"].as_i64() > Some(0), "{report:#}");
}
