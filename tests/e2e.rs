//! Three sources in, exact outputs out, on a real broker and a real Redis: what any consumer reads is compared with a
//! golden file, and with itself (chains, ids, ledgers, the copy). `UPDATE=1 cargo test --test e2e` rewrites the golden.
#![cfg(feature = "vrl")]

#[path = "e2e/reading.rs"]
mod reading;
mod support;
#[path = "e2e/system.rs"]
mod system;
#[path = "e2e/writing.rs"]
mod writing;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use casestream::domain::chronology::{ChronologyEntry, chain_hash, link_hex};
use casestream::domain::directory::{Alias, Directory, Leaving};
use casestream::domain::partitioner::partition_of;
use casestream::domain::{Text, Timestamp};
use casestream::runtime::map_worker::Ledger;
use casestream::runtime::redis_store::keys;
use casestream::topology::Topic;
use casestream::wire::avro::{Decoder, Schemas};
use casestream::wire::mapping::identity::Pseudonym;
use casestream::wire::mapping::parse_examples;
use rdkafka::message::{Message, OwnedMessage};
use serde_json::Value;
use support::{Isolation, read_all, wait_for};
use system::{Inputs, Journals, KEY, Node, PATIENCE, SOURCES, System};
use writing::{Feed, Record, encoded};

const PARTITIONS: i32 = 4;
/// Time stands still between records: the outputs depend on event times only.
const ENGINE: &str = "session_timeout_ms = 6000\nidle_follow_ms = 3600000";
/// 2026-03-03T00:00:00Z: when the raw records were written.
const WRITTEN_MS: i64 = 1_772_496_000_000;
const DAY_MS: i64 = 86_400_000;
/// People of the directory; the last one is about to leave.
const PEOPLE: [&str; 4] = ["ann@example.com", "ann.example@example.com", "bob@example.com", "lena@example.com"];
const OUTPUTS: [Topic; 5] =
    [Topic::ActivityChronology, Topic::RiskScores, Topic::RiskLevels, Topic::Alerts, Topic::CommandResults];

fn user_key(name: &str) -> String {
    Pseudonym::new(KEY.as_bytes()).user_key(name)
}

fn write_directory(feed: &Feed) {
    for name in PEOPLE {
        let key = user_key(name);
        let text = |text: &str| Text::from(text.to_owned());
        let announced = Timestamp(WRITTEN_MS - 10 * DAY_MS);
        let leaving = Leaving { announced: Some(announced), last_day: Some(Timestamp(WRITTEN_MS + 20 * DAY_MS)) };
        let record = Directory {
            user_key: text(&key),
            canonical_id: text(name),
            email: Some(text(name)),
            aliases: vec![Alias { kind: text("email"), value: text(name) }],
            leaving: (name == "lena@example.com").then_some(leaving),
            version: 1,
            ..Directory::default()
        };
        let value = encoded(Topic::UserDirectory, &record);
        feed.send(Record {
            topic: "user-directory",
            key: Some(key.as_bytes()),
            value: Some(&value),
            ..Record::default()
        });
    }
    feed.flush();
}

/// What a leaver does: packs, copies, uploads, shares with the world.
fn story(source: &str) -> Vec<String> {
    let at = |hour: usize, minute: usize| format!("2026-03-02T{hour:02}:{minute:02}:00Z");
    let user = r#""user":{"email":"lena@example.com","deviceUid":"dev-9"}"#;
    match source {
        "m365-dlp" => vec![format!(
            r#"{{"CreationTime":"{}","Id":"l-mail","Operation":"DlpRuleMatch","Workload":"Exchange","UserId":"DlpAgent","IncidentId":"l-1","ExchangeMetaData":{{"From":"lena@example.com","To":["lena@home.test"],"FileSize":90000,"MessageID":"<l1@example.com>"}},"PolicyDetails":[{{"PolicyId":"p","PolicyName":"Cards","Rules":[{{"RuleId":"r","RuleName":"many","RuleMode":"Enable","Severity":"High","Actions":["NotifyUser"],"ConditionsMatched":{{"SensitiveInformation":[{{"SensitiveType":"t-card","SensitiveInformationTypeName":"Credit Card Number","Count":40,"Confidence":85}}]}}}}]}}]}}"#,
            "2026-03-02T09:00:00"
        )],
        "google-workspace" => vec![format!(
            r#"{{"id":{{"time":"{}","uniqueQualifier":"-9","applicationName":"drive","customerId":"C0"}},"actor":{{"email":"lena@example.com"}},"ipAddress":"192.0.2.9","events":[{{"type":"acl_change","name":"change_user_access","parameters":[{{"name":"primary_event","boolValue":true}},{{"name":"target_user","value":"lena@home.test"}},{{"name":"new_value","multiValue":["can_edit"]}},{{"name":"old_value","multiValue":["none"]}},{{"name":"doc_id","value":"d-9"}},{{"name":"doc_type","value":"document"}},{{"name":"doc_title","value":"Customers"}},{{"name":"owner","value":"lena@example.com"}}]}}]}}"#,
            at(10, 0)
        )],
        _ => {
            let archive = |n: usize| {
                format!(
                    r#"{{"@timestamp":"{}","event":{{"id":"l-zip-{n}","action":"file-created","observer":"Endpoint"}},{user},"file":{{"name":"all-{n}.zip","category":"Archive","sizeInBytes":900000}}}}"#,
                    at(11, n)
                )
            };
            let copy = |n: usize| {
                format!(
                    r#"{{"@timestamp":"{}","event":{{"id":"l-usb-{n}","action":"removable-media-created","observer":"Endpoint"}},{user},"file":{{"name":"plan-{n}.xlsx","category":"Spreadsheet","sizeInBytes":4748,"classifications":[{{"value":"Confidential"}}]}},"destination":{{"removableMedia":{{"serialNumber":"SN-9"}}}}}}"#,
                    at(12, n)
                )
            };
            (0..2).map(archive).chain((0..10).map(copy)).collect()
        }
    }
}

/// The events of a source: the examples of its mapping, then the story.
fn events(source: &str) -> Vec<String> {
    let file = format!("config/mappings/{source}.test.toml");
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(&file)).expect("examples");
    let (_, examples) = parse_examples(&file, &text).expect("examples");
    examples.into_iter().map(|example| example.event).chain(story(source)).collect()
}

/// One source after the other, each from one partition, so that the order is fixed.
fn write_raw(feed: &Feed, source: &str, events: &[String]) {
    let topic = format!("raw.{source}");
    for event in events {
        let value = Some(event.as_bytes());
        feed.send(Record {
            topic: &topic,
            partition: Some(0),
            value,
            timestamp: Some(WRITTEN_MS),
            ..Record::default()
        });
    }
    feed.flush();
}

/// Values read the way any Avro consumer reads them: the schema by its id from the process's own registry.
struct Consumer<'a> {
    system: &'a System,
    node: &'a Node,
    schemas: BTreeMap<u32, Schema>,
    names: BTreeMap<String, &'static str>,
}

impl<'a> Consumer<'a> {
    fn new(system: &'a System, node: &'a Node) -> Consumer<'a> {
        let names = PEOPLE.iter().map(|name| (user_key(name), *name)).collect();
        Consumer { system, node, schemas: BTreeMap::new(), names }
    }

    fn read(&self, topic: &str) -> Vec<OwnedMessage> {
        read_all(&self.system.kafka.bootstrap(), topic, Isolation::ReadCommitted)
    }

    fn decode(&mut self, value: &[u8]) -> Value {
        assert_eq!(value[0], 0, "Confluent's framing");
        let id = u32::from_be_bytes(value[1..5].try_into().expect("four bytes"));
        let node = self.node;
        let schema = self.schemas.entry(id).or_insert_with(|| {
            let (status, body) = node.get(&format!("/registry/schemas/ids/{id}"));
            assert_eq!(status, 200, "{body}");
            let answer: Value = serde_json::from_str(&body).expect("a JSON answer");
            Schema::parse_str(answer["schema"].as_str().expect("a schema")).expect("a schema that parses")
        });
        let reader = GenericDatumReader::builder(schema).build().expect("a reader");
        let decoded = reader.read_value(&mut &value[5..]).expect("a value of its schema");
        Value::try_from(decoded).expect("every value reads as JSON")
    }

    /// The records of a topic with a value, after the checks every output must pass.
    fn records(&mut self, topic: Topic) -> Vec<(i32, Value)> {
        let mut ids = BTreeSet::new();
        let mut records = Vec::new();
        for message in self.read(topic.name()) {
            let Some(value) = message.payload() else { continue };
            let record = self.decode(value);
            let headers = reading::headers(&message);
            let event_id = record["envelope"]["event_id"].as_str().expect("an event id").to_owned();
            assert_eq!(headers["ce_specversion"], "1.0");
            assert_eq!(headers["ce_id"], event_id);
            assert_eq!(headers["ce_source"], "/casestream/engine");
            assert!(headers["ce_type"].starts_with("io.casestream."), "{headers:?}");
            assert_eq!(headers["content-type"], "application/avro");
            assert!(ids.insert(event_id.clone()), "{} holds {event_id} twice", topic.name());
            records.push((message.partition(), record));
        }
        records
    }

    fn name(&self, key: &str) -> String {
        self.names.get(key).map_or_else(|| key.to_owned(), |name| (*name).to_owned())
    }
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_else(|| panic!("no text {field} in {value}"))
}

/// The latest record per key, where later records win.
fn latest(records: Vec<(i32, Value)>, key: impl Fn(&Value) -> String) -> BTreeMap<String, (i32, Value)> {
    records.into_iter().map(|(partition, record)| (key(&record), (partition, record))).collect()
}

fn user_of(record: &Value) -> String {
    text(&record["envelope"], "user_key").to_owned()
}

/// Everything observable that does not depend on when the test runs.
fn observe(consumer: &mut Consumer<'_>, journals: &Journals) -> String {
    let mut out = String::new();
    write_ledgers(&mut out, consumer.system, journals);
    write_signals(&mut out, consumer);
    write_chronology(&mut out, consumer);
    write_alerts(&mut out, consumer);
    write_scores(&mut out, consumer);
    out
}

fn write_ledgers(out: &mut String, system: &System, journals: &Journals) {
    for row in system.map_committed().into_iter().filter(|row| row.offset > 0) {
        let ledger = Ledger::from_metadata(&row.metadata).expect("the map ledger travels with the offset");
        let Ledger { taken, mapped, signals, ignored, dead } = &ledger;
        assert_eq!(*taken, row.offset, "every record of {} is accounted for", row.topic);
        let (ignored, dead) = (serde_json::json!(ignored), serde_json::json!(dead));
        writeln!(out, "{}: {taken} in, {mapped} mapped to {signals}, ignored {ignored}, dead {dead}", row.topic)
            .unwrap();
    }
    let mut total = BTreeMap::<&str, i64>::new();
    for (row, count) in journals.last.iter().flatten().flat_map(|journal| &journal.ledger) {
        *total.entry(row).or_default() += count;
    }
    writeln!(out, "engine: {}", serde_json::json!(total)).unwrap();
}

fn write_signals(out: &mut String, consumer: &mut Consumer<'_>) {
    let mut rows = Vec::new();
    for message in consumer.read("risk-signals") {
        let signal = consumer.decode(message.payload().expect("a signal"));
        assert!(reading::headers(&message).contains_key("casestream-origin"));
        let name = consumer.name(text(&signal, "user_key"));
        let (source, op, indicator) = (text(&signal, "source"), text(&signal, "op"), text(&signal, "indicator"));
        rows.push(format!("{source} {op} {indicator} {} by {name}", text(&signal, "source_event_id")));
    }
    rows.sort();
    writeln!(out, "\n{} signals", rows.len()).unwrap();
    rows.iter().for_each(|row| writeln!(out, "{row}").unwrap());
}

fn write_chronology(out: &mut String, consumer: &mut Consumer<'_>) {
    let mut by_user: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (_, entry) in consumer.records(Topic::ActivityChronology) {
        by_user.entry(consumer.name(&user_of(&entry))).or_default().push(entry);
    }
    for (name, entries) in by_user {
        writeln!(out, "\nchronology of {name}").unwrap();
        for entry in entries {
            let indicator = entry["indicator"].as_str().unwrap_or("-");
            let (seq, kind, headline) = (&entry["seq"], text(&entry, "kind"), text(&entry, "headline"));
            let (score, level) = (&entry["score_after_milli"], text(&entry, "level_after"));
            writeln!(out, "{seq} {kind} {indicator}: {headline} → {score} {level}").unwrap();
        }
    }
}

fn write_alerts(out: &mut String, consumer: &mut Consumer<'_>) {
    let alerts = latest(consumer.records(Topic::Alerts), |alert| text(alert, "alert_id").to_owned());
    let row = |(_, alert): &(i32, Value)| {
        let (policy, severity, status) = (text(alert, "policy_id"), text(alert, "severity"), text(alert, "status"));
        let name = consumer.name(&user_of(alert));
        let (revision, headline) = (&alert["revision"], text(alert, "headline"));
        format!("{name}: {policy} {severity} {status}, revision {revision}: {headline}")
    };
    let mut rows: Vec<String> = alerts.values().map(row).collect();
    rows.sort();
    writeln!(out, "\n{} alerts", rows.len()).unwrap();
    rows.iter().for_each(|row| writeln!(out, "{row}").unwrap());
}

fn write_scores(out: &mut String, consumer: &mut Consumer<'_>) {
    let levels = latest(consumer.records(Topic::RiskLevels), user_of);
    writeln!(out, "\nscores").unwrap();
    let mut rows = Vec::new();
    for (user, (_, score)) in latest(consumer.records(Topic::RiskScores), user_of) {
        let level = &levels[&user].1;
        assert_eq!(score["level"], level["level"], "score and level agree");
        let enforcement = text(level, "enforcement_level");
        rows.push(format!(
            "{}: {} {}, enforced {enforcement}",
            consumer.name(&user),
            score["score_milli"],
            text(&score, "level")
        ));
    }
    rows.sort();
    rows.iter().for_each(|row| writeln!(out, "{row}").unwrap());
}

/// Every user's chronology: numbered without gaps, each entry chained to the one before.
fn check_chains(consumer: &Consumer<'_>) {
    let mut decoder = Decoder::new(&Schemas::built_in());
    let mut last: BTreeMap<String, (i64, [u8; 16])> = BTreeMap::new();
    for message in consumer.read(Topic::ActivityChronology.name()) {
        let value = message.payload().expect("an entry");
        let entry: ChronologyEntry<'_> = decoder.decode(Topic::ActivityChronology, value, &[]).expect("an entry");
        let (seq, link) = last.entry(entry.envelope.user_key.to_string()).or_default();
        assert_eq!(entry.seq, *seq + 1, "a gap");
        if *seq > 0 {
            assert_eq!(entry.prev_hash.as_str(), link_hex(link), "the chain is broken at {}", entry.seq);
        }
        let hash = chain_hash(link, &entry);
        assert_eq!(entry.hash.as_str(), link_hex(&hash), "entry {} is altered", entry.seq);
        (*seq, *link) = (entry.seq, hash);
    }
    assert!(!last.is_empty());
}

/// Redis holds what the topics hold.
fn check_copy(consumer: &mut Consumer<'_>) {
    let mut redis = consumer.system.redis.connect();
    let mut ask = |key: String| -> BTreeMap<String, String> {
        redis::cmd("HGETALL").arg(&key).query(&mut redis).unwrap_or_else(|e| panic!("{key}: {e}"))
    };
    let levels = latest(consumer.records(Topic::RiskLevels), user_of);
    for (user, (partition, score)) in latest(consumer.records(Topic::RiskScores), user_of) {
        let copied = ask(keys::score(partition, &user));
        assert_eq!(copied["score_milli"], score["score_milli"].to_string());
        assert_eq!(copied["level"], score["level"]);
        assert_eq!(copied["revision"], score["envelope"]["user_rev"].to_string());
        assert_eq!(copied["enforcement_level"], levels[&user].1["enforcement_level"]);
        let state = ask_bytes(consumer.system, &keys::state(partition, &user));
        assert!(state.contains(&"commit_no".to_owned()), "{state:?}");
        assert_eq!(partition, partition_of(user.as_bytes(), PARTITIONS));
    }
    let mut copied_alerts = 0;
    for (alert_id, (partition, alert)) in latest(consumer.records(Topic::Alerts), |a| text(a, "alert_id").to_owned()) {
        let windows = ask(keys::windows(partition, &user_of(&alert)));
        let is_open = ["needs_review", "confirmed"].contains(&text(&alert, "status"));
        assert_eq!(windows.contains_key(&alert_id), is_open, "{alert_id}");
        let Some(window) = windows.get(&alert_id) else { continue };
        let window: Value = serde_json::from_str(window).expect("JSON");
        for field in ["policy_id", "status", "severity", "revision"] {
            assert_eq!(window[field], alert[field], "{field} of {alert_id}");
        }
        for field in ["opened_at", "last_activity_at", "closes_at", "frozen"] {
            assert_eq!(window[field], alert["window"][field], "{field} of {alert_id}");
        }
        copied_alerts += 1;
    }
    assert!(copied_alerts > 0, "no alert is open");
}

/// The field names of a hash whose values are bytes.
fn ask_bytes(system: &System, key: &str) -> Vec<String> {
    redis::cmd("HKEYS").arg(key).query(&mut system.redis.connect()).unwrap_or_else(|e| panic!("{key}: {e}"))
}

fn check_pages(node: &Node) {
    assert_eq!(node.get("/healthz").0, 200);
    assert_eq!(node.get("/readyz").0, 200);
    let (status, metrics) = node.get("/metrics");
    assert_eq!(status, 200);
    for name in [
        "casestream_map_records_total{topic=\"raw.code42\",outcome=\"mapped\"}",
        "casestream_map_signals_total{topic=\"raw.code42\"}",
        "casestream_records_consumed_total{topic=\"risk-signals\"}",
        "casestream_txn_total{outcome=\"committed\"}",
        "casestream_txn_commit_seconds_bucket",
        "casestream_batch_records_bucket",
        "casestream_rebalances_total",
    ] {
        assert!(metrics.contains(name), "no {name} in\n{metrics}");
    }
}

fn check_golden(text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/e2e.txt");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, text).expect("could not write the golden");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    for (n, (expected, found)) in golden.lines().zip(text.lines()).enumerate() {
        assert_eq!(expected, found, "e2e.txt line {}; look, then UPDATE=1", n + 1);
    }
    assert_eq!(golden.lines().count(), text.lines().count(), "lines; look, then UPDATE=1");
}

fn samples(source: &str) -> Option<Vec<String>> {
    let file = match source {
        "m365-dlp" => "m365_dlp_audit.ndjson",
        "google-workspace" => "google_workspace_reports.ndjson",
        _ => "code42_incydr_file_events.ndjson",
    };
    let folder = std::env::var("CASESTREAM_SAMPLES").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|_| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/samples/vendor"));
    let Ok(text) = std::fs::read_to_string(folder.join(file)) else {
        eprintln!("skipped: no {file}; name its folder in CASESTREAM_SAMPLES");
        return None;
    };
    Some(text.lines().map(str::to_owned).collect())
}

#[test]
fn three_sources_in_exact_outputs_out() {
    let system = System::start(PARTITIONS, ENGINE, &["example.com"]);
    let feed = Feed::new(&system.kafka.bootstrap());
    write_directory(&feed);
    let mut node = Node::start(&system, 0, &[]);
    node.wait_ready();
    let (mut inputs, mut journals) = (Inputs::new(&system), Journals::new(&system));
    system.wait_until_drained(&mut inputs);
    for source in SOURCES {
        write_raw(&feed, source, &events(source));
        system.wait_until_drained(&mut inputs);
    }
    system.wait_for_copy(&mut journals);
    let mut consumer = Consumer::new(&system, &node);
    let observed = observe(&mut consumer, &journals);
    check_chains(&consumer);
    check_copy(&mut consumer);
    check_pages(&node);
    system.verify();
    check_golden(&observed);

    // What vendors really send, where it is at hand: nothing is lost, and the whole still verifies.
    for source in SOURCES {
        let Some(lines) = samples(source) else { continue };
        write_raw(&feed, source, &lines);
    }
    system.wait_until_drained(&mut inputs);
    system.wait_for_copy(&mut journals);
    let mut more = String::new();
    write_ledgers(&mut more, &system, &journals);
    eprintln!("{more}");
    OUTPUTS.into_iter().for_each(|topic| drop(consumer.records(topic)));
    check_chains(&consumer);
    system.verify();
}

/// A copy that is ours, a stick a minute: enough to see that a process works.
fn write_one(feed: &Feed, number: usize) {
    let event = format!(
        r#"{{"@timestamp":"2026-03-02T13:{number:02}:00Z","event":{{"id":"one-{number}","action":"removable-media-created","observer":"Endpoint"}},"user":{{"email":"bob@example.com"}},"file":{{"name":"a","sizeInBytes":1}},"destination":{{"removableMedia":{{"serialNumber":"SN-1"}}}}}}"#
    );
    write_raw(feed, "code42", &[event]);
}

fn entries(system: &System) -> usize {
    read_all(&system.kafka.bootstrap(), "activity-chronology", Isolation::ReadCommitted).len()
}

#[test]
fn processes_start_stop_and_give_way() {
    let system = System::start(PARTITIONS, ENGINE, &["example.com"]);
    let feed = Feed::new(&system.kafka.bootstrap());
    let mut inputs = Inputs::new(&system);
    let mut node = Node::start(&system, 0, &[]);
    node.wait_ready();
    write_one(&feed, 1);
    system.wait_until_drained(&mut inputs);

    // A signal ends it cleanly, and the next start does not wait for the session of the last.
    let stopped = Instant::now();
    node.signal("TERM");
    let status = node.wait_end(Duration::from_secs(15));
    assert_eq!(status.code(), Some(0), "{}", node.log());
    let took = stopped.elapsed();
    let restarted = Instant::now();
    node.start_again(&system);
    write_one(&feed, 2);
    node.wait_ready();
    system.wait_until_drained(&mut inputs);
    eprintln!("stopped in {took:.1?}, resumed in {:.1?}", restarted.elapsed());
    assert!(restarted.elapsed() < Duration::from_secs(15), "resuming took {:?}", restarted.elapsed());
    assert_eq!(entries(&system), 2);

    // Another process with its ordinal takes over; the older one says why it ends.
    let mut twin = Node::start(&system, 0, &[]);
    let status = node.wait_end(PATIENCE);
    assert_eq!(status.code(), Some(5), "{}", node.log());
    assert!(node.log().contains("give every process its own ordinal"), "{}", node.log());
    twin.wait_ready();
    write_one(&feed, 3);
    system.wait_until_drained(&mut inputs);
    assert_eq!(entries(&system), 3);
    system.wait_for_copy(&mut Journals::new(&system));
    system.verify();
}

#[test]
fn the_engine_needs_no_redis_but_refuses_one_that_evicts() {
    let mut system = System::start(PARTITIONS, ENGINE, &["example.com"]);
    let set = |policy: &str| redis::cmd("CONFIG").arg(&["SET", "maxmemory-policy", policy]).clone();
    set("allkeys-lru").exec(&mut system.redis.connect()).expect("could not set the policy");
    let feed = Feed::new(&system.kafka.bootstrap());
    let (mut inputs, mut journals) = (Inputs::new(&system), Journals::new(&system));
    let mut node = Node::start(&system, 0, &[]);
    let status = node.wait_end(PATIENCE);
    assert_eq!(status.code(), Some(4), "{}", node.log());
    assert!(node.log().contains("maxmemory-policy is allkeys-lru; set it to noeviction"), "{}", node.log());

    // Down at the start: scores and alerts all the same, and the page says that the copy is stale.
    system.redis.kill();
    node.start_again(&system);
    node.wait_ready();
    write_one(&feed, 1);
    system.wait_until_drained(&mut inputs);
    assert_eq!(entries(&system), 1);
    wait_for("the page to say that the copy is stale", PATIENCE, || {
        let (status, body) = node.get("/readyz");
        (status == 200 && body.contains("\"redis_stale\":true")).then_some(())
    });

    // Back, and as it should be: written without being asked.
    system.redis.restart();
    system.wait_for_copy(&mut journals);
    system.verify();
}
