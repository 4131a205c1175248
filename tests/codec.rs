//! The codec against its oracle: whatever apache-avro writes, we read and write back, and the other way round.
//! Then hostile bytes, foreign schemas, and limits.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use casestream::domain::alert::Alert;
use casestream::domain::chronology::ChronologyEntry;
use casestream::domain::command::{Command, CommandResult};
use casestream::domain::directory::Directory;
use casestream::domain::record::{Journal, PartitionStatus, PolicySetRecord};
use casestream::domain::score::{RiskLevel, RiskScore};
use casestream::domain::signal::{Destination, InfoType, RawPosition, Resource, Signal};
use casestream::domain::{Text, Timestamp};
use casestream::topology::{INPUT_BYTES_MAX, OUTPUT_BYTES_MAX, Topic};
use casestream::wire::avro::{self, DecodeError, Decoder, EncodeError, Encoder, Lookup, Record, Schemas, Unavailable};
use casestream::wire::framing::{SCHEMA_HEADER, SchemaName};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

type Headers<'a> = &'a [(&'a str, Option<&'a [u8]>)];

/// The same values on every run: a failure is reproduced by running again.
fn runner(cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

/// Any value of a schema.
fn any_value(schema: &Schema) -> BoxedStrategy<Value> {
    match schema {
        Schema::Boolean => any::<bool>().prop_map(Value::Boolean).boxed(),
        Schema::Long => any_long().prop_map(Value::Long).boxed(),
        Schema::TimestampMillis => any_long().prop_map(Value::TimestampMillis).boxed(),
        Schema::String => any_text().prop_map(Value::String).boxed(),
        Schema::Array(array) => prop::collection::vec(any_value(&array.items), 0..3).prop_map(Value::Array).boxed(),
        Schema::Map(map) => prop::collection::vec((any_text(), any_value(&map.types)), 0..3)
            .prop_map(|entries| Value::Map(entries.into_iter().collect::<HashMap<_, _>>()))
            .boxed(),
        Schema::Union(union) => {
            let some = any_value(&union.variants()[1]).prop_map(|value| Value::Union(1, Box::new(value)));
            prop_oneof![Just(Value::Union(0, Box::new(Value::Null))), some].boxed()
        }
        Schema::Record(record) => {
            let fields: Vec<_> = record.fields.iter().map(|f| (Just(f.name.clone()), any_value(&f.schema))).collect();
            fields.prop_map(Value::Record).boxed()
        }
        other => panic!("a type outside the subset: {other:?}"),
    }
}

fn any_long() -> impl Strategy<Value = i64> {
    prop_oneof![any::<i64>(), -200i64..200, Just(i64::MIN), Just(i64::MAX)]
}

fn any_text() -> impl Strategy<Value = String> {
    prop::collection::vec(any::<char>(), 0..8).prop_map(|chars| chars.into_iter().collect())
}

/// Whether bytes may differ: maps have no order.
fn has_unordered_map(value: &Value) -> bool {
    match value {
        Value::Map(entries) => entries.len() > 1 || entries.values().any(has_unordered_map),
        Value::Array(items) => items.iter().any(has_unordered_map),
        Value::Union(_, inner) => has_unordered_map(inner),
        Value::Record(fields) => fields.iter().any(|(_, v)| has_unordered_map(v)),
        _ => false,
    }
}

fn reference(topic: Topic) -> Schema {
    Schema::parse_str(avro::subject(topic).unwrap().latest().text).unwrap()
}

fn framed(topic: Topic, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(Schemas::built_in().id(topic).unwrap().to_be_bytes());
    bytes.extend(body);
    bytes
}

/// apache-avro writes a value; we read it into the domain and write it; apache-avro reads the same value.
macro_rules! agrees {
    ($test:ident, $topic:expr, $record:ty) => {
        #[test]
        fn $test() {
            let (topic, schema) = ($topic, reference($topic));
            let schemas = Schemas::built_in();
            let (mut encoder, mut decoder) = (Encoder::new(&schemas), Decoder::new(&schemas));
            let writer = GenericDatumWriter::builder(&schema).build().unwrap();
            let reader = GenericDatumReader::builder(&schema).build().unwrap();
            let check = |value: Value| {
                let theirs = framed(topic, &writer.write_value_ref_to_vec(&value));
                let record: $record = decoder.decode(topic, &theirs, &[]).map_err(|e| fail(&e))?;
                let cut = 5 + theirs.len().wrapping_mul(7_919) % (theirs.len() - 5);
                prop_assert!(decoder.decode::<$record>(topic, &theirs[..cut], &[]).is_err(), "a part is no record");
                let mut ours = vec![0xAA];
                encoder.encode(topic, &record, &mut ours).map_err(|e| fail(&e))?;
                prop_assert_eq!(ours[0], 0xAA, "encode appends");
                if !has_unordered_map(&value) {
                    prop_assert_eq!(&ours[1..], &theirs[..]);
                }
                prop_assert_eq!(reader.read_value(&mut &ours[6..]).map_err(|e| fail(&e))?, value);
                Ok(())
            };
            let check = std::cell::RefCell::new(check);
            runner(256).run(&any_value(&schema), |value| (check.borrow_mut())(value)).unwrap();
        }
    };
}

trait WriteToVec {
    fn write_value_ref_to_vec(&self, value: &Value) -> Vec<u8>;
}

impl WriteToVec for GenericDatumWriter<'_> {
    fn write_value_ref_to_vec(&self, value: &Value) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write_value_ref(&mut bytes, value).unwrap();
        bytes
    }
}

fn fail(error: &dyn std::fmt::Display) -> TestCaseError {
    TestCaseError::fail(error.to_string())
}

agrees!(user_directory_agrees_with_the_oracle, Topic::UserDirectory, Directory<'_>);
agrees!(case_commands_agree_with_the_oracle, Topic::CaseCommands, Command<'_>);
agrees!(risk_signals_agree_with_the_oracle, Topic::RiskSignals, Signal<'_>);
agrees!(policy_sets_agree_with_the_oracle, Topic::PolicySets, PolicySetRecord<'_>);
agrees!(chronology_agrees_with_the_oracle, Topic::ActivityChronology, ChronologyEntry<'_>);
agrees!(risk_scores_agree_with_the_oracle, Topic::RiskScores, RiskScore<'_>);
agrees!(risk_levels_agree_with_the_oracle, Topic::RiskLevels, RiskLevel<'_>);
agrees!(alerts_agree_with_the_oracle, Topic::Alerts, Alert<'_>);
agrees!(shadow_alerts_agree_with_the_oracle, Topic::ShadowAlerts, Alert<'_>);
agrees!(partition_status_agrees_with_the_oracle, Topic::PartitionStatus, PartitionStatus<'_>);
agrees!(command_results_agree_with_the_oracle, Topic::CommandResults, CommandResult<'_>);
agrees!(engine_journal_agrees_with_the_oracle, Topic::EngineJournal, Journal);

fn signal() -> Signal<'static> {
    Signal {
        signal_id: "s-1".into(),
        user_key: "u7q2m5kx3n4t6w8y".into(),
        source: "purview-dlp".into(),
        source_event_id: "9c1f7a52-3f0e-4c76-9d70-4f5d1c9a2b11".into(),
        op: "create".into(),
        indicator: "usb_copy".into(),
        occurred_at: Timestamp(1_795_500_000_000),
        ingested_at: Timestamp(1_795_500_001_250),
        day: "2026-11-24".into(),
        outcome: "audited".into(),
        count: 3,
        bytes: Some(48_210),
        confidence: Some(850),
        labels: vec!["confidential".into()],
        info_types: vec![InfoType { name: "credit_card".into(), count: 2, confidence: 900 }],
        destination: Some(Destination {
            kind: "device".into(),
            value: "usb-4411".into(),
            direction: "external".into(),
        }),
        resources: vec![Resource {
            id: "f-1".into(),
            name: Some("q3-forecast.xlsx".into()),
            kind: "file".into(),
            bytes: Some(48_210),
            ..Resource::default()
        }],
        resources_total: 1,
        is_complete: true,
        device_id: Some("lap-0142".into()),
        raw: Some(RawPosition { topic: "raw.purview".into(), partition: 3, offset: 918_221 }),
        mapping: "purview@4f0a91".into(),
        origin: "live".into(),
        attributes: BTreeMap::from([("workload".into(), "endpoint".into())]),
        ..Signal::default()
    }
}

#[test]
fn peer_baselines_decode_though_nothing_uses_them_yet() {
    let schema = reference(Topic::PeerBaselines);
    let writer = GenericDatumWriter::builder(&schema).build().unwrap();
    let mut decoder = Decoder::new(&Schemas::built_in());
    let decoder = std::cell::RefCell::new(&mut decoder);
    let check = |value: Value| {
        let bytes = framed(Topic::PeerBaselines, &writer.write_value_ref_to_vec(&value));
        let read = decoder.borrow_mut().decode_any::<serde::de::IgnoredAny>(Topic::PeerBaselines, &bytes, &[]);
        read.map(|_| ()).map_err(|e| fail(&e))
    };
    runner(256).run(&any_value(&schema), check).unwrap();
}

/// The bytes of the sample signal, so that a change of what is on the wire is seen in review.
#[test]
fn the_bytes_of_a_signal_are_golden() {
    let bytes = encoded(Topic::RiskSignals, &signal());
    let line = |chunk: &[u8]| chunk.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ") + "\n";
    let text: String = bytes.chunks(32).map(line).collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/codec-risk-signal.hex");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).unwrap();
        std::fs::write(path, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), text, "run UPDATE=1 cargo test --test codec");
}

fn encoded(topic: Topic, value: &impl Record) -> Vec<u8> {
    let mut out = Vec::new();
    Encoder::new(&Schemas::built_in()).encode(topic, value, &mut out).unwrap();
    out
}

fn decode_signal(bytes: &[u8], headers: Headers<'_>) -> Result<Signal<'static>, DecodeError> {
    let owned: &'static [u8] = Box::leak(bytes.into());
    Decoder::new(&Schemas::built_in()).decode(Topic::RiskSignals, owned, headers)
}

#[test]
fn a_decoded_signal_borrows_every_text() {
    let bytes = encoded(Topic::RiskSignals, &signal());
    let inside = |text: &Text<'_>| bytes.as_ptr_range().contains(&text.as_ptr());
    let decoded: Signal<'_> = Decoder::new(&Schemas::built_in()).decode(Topic::RiskSignals, &bytes, &[]).unwrap();
    assert_eq!(decoded, signal());
    assert!(inside(&decoded.user_key));
    assert!(inside(decoded.device_id.as_ref().unwrap()));
    assert!(inside(&decoded.labels[0]));
    assert!(inside(decoded.resources[0].name.as_ref().unwrap()));
    assert!(inside(&decoded.raw.as_ref().unwrap().topic));
    let (key, value) = decoded.attributes.first_key_value().unwrap();
    assert!(inside(key) && inside(value));
}

/// Bytes of a signal up to the field `labels`, whose list begins next: the place to put hostile lengths.
fn signal_up_to_labels() -> Vec<u8> {
    let (one, two) = (Signal { labels: vec!["A".into()], ..signal() }, Signal { labels: vec!["B".into()], ..signal() });
    let (one, two) = (encoded(Topic::RiskSignals, &one), encoded(Topic::RiskSignals, &two));
    let differs = one.iter().zip(&two).position(|(a, b)| a != b).unwrap();
    // Before the differing letter stand the list's count and the text's length.
    one[..differs - 2].to_vec()
}

#[test]
fn hostile_bytes_have_stable_codes() {
    let good = encoded(Topic::RiskSignals, &signal());
    let with = |tail: &[u8]| [signal_up_to_labels(), tail.to_vec()].concat();
    let mut not_utf8 = good.clone();
    not_utf8[6] = 0xFF;
    let mut no_branch = good.clone();
    let activity_key = 5 + 4 + 17 + 12 + 37;
    assert_eq!(no_branch[activity_key], 0, "the null branch of activity_key");
    no_branch[activity_key] = 4;
    let i64_max = [0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01];
    let i64_min = [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01];
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing", vec![], "record.empty"),
        ("json", b"{\"user\":1}".to_vec(), "schema.magic"),
        ("single-object encoding", vec![0xC3, 0x01, 1, 2, 3, 4, 5, 6, 7, 8], "schema.magic"),
        ("a cut id", vec![0, 0, 0], "record.truncated"),
        ("an unknown id", vec![0, 0, 0, 0, 99, 1], "schema.unknown"),
        ("the largest id", vec![0, 0xFF, 0xFF, 0xFF, 0xFF, 1], "schema.unknown"),
        ("another record of ours", encoded(Topic::EngineJournal, &Journal::default()), "schema.mismatch"),
        ("only an id", good[..5].to_vec(), "record.truncated"),
        ("cut in half", good[..good.len() / 2].to_vec(), "record.truncated"),
        ("cut by one", good[..good.len() - 1].to_vec(), "record.truncated"),
        ("one byte more", [&good[..], &[0]].concat(), "record.trailing"),
        ("two records", [&good[..], &good[..]].concat(), "record.trailing"),
        ("invalid utf-8", not_utf8, "record.malformed"),
        ("no such branch", no_branch, "record.malformed"),
        ("a list of 2^63-1", with(&i64_max), "record.malformed"),
        ("a list of -2^63", with(&[&i64_min[..], &[2]].concat()), "record.malformed"),
        ("a list of 100001", with(&[0xC2, 0x9A, 0x0C]), "record.malformed"),
        ("a text of 2^63-1", with(&[&[2][..], &i64_max].concat()), "record.truncated"),
        ("a text of -1", with(&[2, 1]), "record.malformed"),
        ("an endless number", with(&[0xFF; 64]), "record.malformed"),
        ("a number cut off", with(&[0xFF, 0xFF]), "record.truncated"),
        ("1 MiB of list blocks", with(&[1, 0].repeat(500_000)), "record.malformed"),
        ("too large", vec![0; INPUT_BYTES_MAX + 1], "record.too_large"),
    ];
    for (name, bytes, code) in cases {
        let error = decode_signal(&bytes, &[]).map(|_| ()).expect_err(name);
        assert_eq!(error.code(), code, "{name}: {error}");
        assert!(!error.retriable(), "{name}");
    }
}

#[test]
fn a_negative_block_count_is_legal_avro() {
    let one = Signal { labels: vec!["A".into()], ..signal() };
    let bytes = encoded(Topic::RiskSignals, &one);
    let at = signal_up_to_labels().len();
    assert_eq!(bytes[at..at + 4], [2, 2, b'A', 0]);
    // Count -1, then the block's size in bytes.
    let blocks = [&bytes[..at], &[1, 4, 2, b'A', 0], &bytes[at + 4..]].concat();
    assert_eq!(decode_signal(&blocks, &[]).unwrap(), one);
}

#[test]
fn mutated_signals_never_panic() {
    let good = encoded(Topic::RiskSignals, &signal());
    let schemas = Schemas::built_in();
    let mut decoder = Decoder::new(&schemas);
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let mut codes: BTreeMap<&str, u32> = BTreeMap::new();
    for _ in 0..20_000 {
        let mut bytes = good.clone();
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] ^= 1 << random(8),
                1 => bytes[at] = random(256) as u8,
                2 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, 0xFF),
            }
        }
        let code = decoder.decode::<Signal<'_>>(Topic::RiskSignals, &bytes, &[]).map_or_else(|e| e.code(), |_| "ok");
        *codes.entry(code).or_default() += 1;
    }
    for code in ["ok", "record.truncated", "record.malformed", "record.trailing", "schema.unknown", "schema.mismatch"] {
        assert!(codes.contains_key(code), "the mutations reach {code}: {codes:?}");
    }
}

#[test]
fn too_large_a_value_is_refused_and_leaves_the_buffer_alone() {
    let schemas = Schemas::built_in();
    let mut encoder = Encoder::new(&schemas);
    for (topic, max) in [(Topic::RiskSignals, INPUT_BYTES_MAX), (Topic::PolicySets, OUTPUT_BYTES_MAX)] {
        let mut out = vec![1, 2, 3];
        let text = Text::from("x".repeat(max));
        let error = match topic {
            Topic::RiskSignals => encoder.encode(topic, &Signal { mapping: text, ..signal() }, &mut out),
            _ => encoder.encode(topic, &PolicySetRecord { hash: text, ..PolicySetRecord::default() }, &mut out),
        }
        .unwrap_err();
        assert_eq!((error.code(), &out[..]), ("record.too_large", &[1, 2, 3][..]));
    }
}

#[test]
fn a_value_of_another_shape_is_refused() {
    let schemas = Schemas::built_in();
    let mut encoder = Encoder::new(&schemas);
    for topic in [Topic::RiskSignals, Topic::UserState] {
        let mut out = vec![];
        let error = encoder.encode(topic, &Journal::default(), &mut out).unwrap_err();
        assert!(matches!(error, EncodeError::Shape { .. }), "{error}");
        assert!(out.is_empty());
    }
    let mut out = vec![];
    encoder.encode(Topic::RiskSignals, &signal(), &mut out).unwrap();
    assert_eq!(out, encoded(Topic::RiskSignals, &signal()), "an encoder works on after an error");
}

/// A registry in a table.
#[derive(Clone, Default)]
struct Table {
    schemas: Vec<(SchemaName, String)>,
    down: Arc<std::sync::atomic::AtomicBool>,
}

impl Lookup for Table {
    fn schema(&self, name: SchemaName) -> Result<Option<String>, Unavailable> {
        if self.down.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(Unavailable("down".into()));
        }
        Ok(self.schemas.iter().find(|(known, _)| *known == name).map(|(_, text)| text.clone()))
    }

    fn id_of(&self, subject: &str, _: &str) -> Result<Option<u32>, Unavailable> {
        Ok((subject != "missing").then_some(1_000))
    }
}

fn edited(edit: impl FnOnce(&mut serde_json::Value)) -> String {
    let mut schema: serde_json::Value =
        serde_json::from_str(avro::subject(Topic::RiskSignals).unwrap().latest().text).unwrap();
    edit(&mut schema);
    schema.to_string()
}

#[test]
fn foreign_schemas_are_read_or_refused_by_their_shape() {
    let field = |schema: &mut serde_json::Value, at: usize| -> serde_json::Value { schema["fields"][at].take() };
    let compatible = [
        ("as ours", edited(|_| {})),
        (
            "a new field with a default",
            edited(|s| {
                let fields = s["fields"].as_array_mut().unwrap();
                fields.insert(
                    3,
                    serde_json::json!({"name": "novel", "type": {"type": "array", "items": "string"}, "default": []}),
                );
            }),
        ),
        (
            "an optional field missing",
            edited(|s| {
                s["fields"].as_array_mut().unwrap().retain(|f| f["name"] != "ip");
            }),
        ),
        (
            "other order",
            edited(|s| {
                s["fields"].as_array_mut().unwrap().swap(0, 9);
            }),
        ),
        ("int for long", edited(|s| s["fields"][12]["type"] = "int".into())),
        ("required for optional", edited(|s| s["fields"][13] = serde_json::json!({"name": "bytes", "type": "long"}))),
    ];
    let incompatible = [
        ("another name", edited(|s| s["name"] = "Other".into())),
        (
            "a required field missing",
            edited(|s| {
                s["fields"].as_array_mut().unwrap().retain(|f| f["name"] != "op");
            }),
        ),
        ("another type", edited(|s| s["fields"][12]["type"] = "string".into())),
        ("optional for required", edited(|s| s["fields"][12]["type"] = serde_json::json!(["null", "long"]))),
        ("not a schema", "{".to_owned()),
        (
            "recursive",
            edited(|s| {
                let mut f = field(s, 4);
                f["type"] = serde_json::json!(["null", "RiskSignal"]);
                s["fields"][4] = f;
            }),
        ),
    ];
    let names = |n: usize| SchemaName::Id(n as u32);
    let texts: Vec<(&str, String)> = compatible.iter().chain(&incompatible).cloned().collect();
    let table = Table {
        schemas: texts.iter().enumerate().map(|(n, (_, t))| (names(n), t.clone())).collect(),
        ..Table::default()
    };
    let schemas = Schemas::with_registry(table).unwrap();
    assert_eq!(schemas.id(Topic::RiskSignals), Some(1_000));
    let mut decoder = Decoder::new(&schemas);
    for (n, (name, text)) in texts.iter().enumerate() {
        let mut bytes = vec![0];
        bytes.extend((n as u32).to_be_bytes());
        if n < compatible.len() {
            bytes.extend(written_with(text));
            let decoded: Signal<'_> =
                decoder.decode(Topic::RiskSignals, &bytes, &[]).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(decoded, signal(), "{name}");
        } else {
            for _ in 0..2 {
                let error = decoder.decode::<Signal<'_>>(Topic::RiskSignals, &bytes, &[]).unwrap_err();
                assert_eq!(error.code(), "schema.mismatch", "{name}");
            }
        }
    }
}

/// The sample signal as a writer with this schema writes it: the generic value resolved to that schema.
fn written_with(text: &str) -> Vec<u8> {
    let bytes = encoded(Topic::RiskSignals, &signal());
    let (ours, theirs) = (reference(Topic::RiskSignals), Schema::parse_str(text).unwrap());
    let value = GenericDatumReader::builder(&ours).build().unwrap().read_value(&mut &bytes[5..]).unwrap();
    let value = value.resolve(&theirs).unwrap();
    GenericDatumWriter::builder(&theirs).build().unwrap().write_value_ref_to_vec(&value)
}

#[test]
fn the_header_form_needs_a_registry() {
    let bytes = encoded(Topic::RiskSignals, &signal());
    let guid = [[1].as_slice(), &[7; 16]].concat();
    let headers: Headers<'_> = &[("ce_id", Some(b"x")), (SCHEMA_HEADER, Some(&guid))];
    assert_eq!(decode_signal(&bytes[5..], headers).unwrap_err().code(), "schema.unknown");
    let id = [0, 0, 0, 0, 4];
    assert_eq!(decode_signal(&bytes[5..], &[(SCHEMA_HEADER, Some(&id))]).unwrap(), signal());

    let table = Table { schemas: vec![(SchemaName::Guid([7; 16]), edited(|_| {}))], ..Table::default() };
    let schemas = Schemas::with_registry(table).unwrap();
    let decoded: Signal<'_> = Decoder::new(&schemas).decode(Topic::RiskSignals, &bytes[5..], headers).unwrap();
    assert_eq!(decoded, signal());
}

#[test]
fn an_unreachable_registry_is_never_a_dead_letter() {
    let table = Table { schemas: vec![(SchemaName::Id(4), edited(|_| {}))], ..Table::default() };
    let schemas = Schemas::with_registry(table.clone()).unwrap();
    let mut decoder = Decoder::new(&schemas);
    let bytes = encoded(Topic::RiskSignals, &signal());
    table.down.store(true, std::sync::atomic::Ordering::Relaxed);
    let error = decoder.decode::<Signal<'_>>(Topic::RiskSignals, &bytes, &[]).unwrap_err();
    assert!(error.retriable());
    table.down.store(false, std::sync::atomic::Ordering::Relaxed);
    decoder.decode::<Signal<'_>>(Topic::RiskSignals, &bytes, &[]).unwrap();
    table.down.store(true, std::sync::atomic::Ordering::Relaxed);
    decoder.decode::<Signal<'_>>(Topic::RiskSignals, &bytes, &[]).expect("a schema once met is kept");
}

#[test]
fn many_schemas_on_one_topic_stay_readable() {
    let many = avro::MET_MAX as u32 * 2 + 1;
    let table =
        Table { schemas: (0..many).map(|id| (SchemaName::Id(id), edited(|_| {}))).collect(), ..Table::default() };
    let schemas = Schemas::with_registry(table).unwrap();
    let mut decoder = Decoder::new(&schemas);
    let mut bytes = encoded(Topic::RiskSignals, &signal());
    for id in (0..many).chain(0..many) {
        bytes[1..5].copy_from_slice(&id.to_be_bytes());
        assert_eq!(decoder.decode::<Signal<'_>>(Topic::RiskSignals, &bytes, &[]).unwrap(), signal());
    }
}
