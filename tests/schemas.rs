//! The schemas as a contract: same fields and order as the domain, only types every library reads, documented,
//! identical where shared, compatible across all released versions, and listed in `ids.json` and `enums.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use apache_avro::Schema;
use apache_avro::schema_compatibility::{Compatibility, SchemaCompatibility};
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use casestream::domain::alert::{self, Alert};
use casestream::domain::chronology::ChronologyEntry;
use casestream::domain::command::{Command, CommandResult};
use casestream::domain::directory::Directory;
use casestream::domain::indicator::Category;
use casestream::domain::record::{Journal, PartitionStatus, PolicySetRecord};
use casestream::domain::score::{RiskLevel, RiskScore};
use casestream::domain::signal::{Op, RESOURCES_MAX, Signal};
use casestream::domain::{Level, directory, score};
use casestream::topology::{TOPICS, Topic};
use casestream::wire::avro::{self, Decoder, Schemas};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Json;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = directory().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn json(text: &str) -> Json {
    serde_json::from_str(text).unwrap()
}

#[test]
fn every_topic_with_a_schema_has_its_files_and_ids() {
    let ids: BTreeMap<String, Vec<u32>> = serde_json::from_str(&read("ids.json")).unwrap();
    let with_schema: Vec<_> = TOPICS.iter().filter(|s| s.schema.is_some()).collect();
    assert_eq!(ids.len(), with_schema.len());
    assert_eq!(avro::subjects().len(), with_schema.len());
    let mut files =
        BTreeSet::from(["ids.json", "enums.json", "score-vectors.json", "history", "README.md"].map(str::to_owned));
    for spec in with_schema {
        let subject = avro::subject(spec.topic).unwrap();
        assert_eq!(subject.name, format!("{}-value", spec.name));
        let current = read(format!("{}.avsc", spec.name));
        assert_eq!(json(&current)["name"], spec.schema.unwrap(), "{}", spec.name);
        assert_eq!(current, subject.latest().text, "{}: the last released version is what we write", spec.name);
        let released = std::fs::read_dir(directory().join("history").join(&subject.name)).unwrap().count();
        assert_eq!(released, subject.versions.len(), "{}: every released version is embedded", spec.name);
        for version in &subject.versions {
            assert_eq!(read(format!("history/{}/{}.avsc", subject.name, version.version)), version.text);
        }
        files.insert(format!("{}.avsc", spec.name));
    }
    for entry in std::fs::read_dir(directory()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(files.contains(&name), "schemas/{name} belongs to no topic");
    }
}

#[test]
fn one_id_means_one_schema() {
    let mut texts: BTreeMap<u32, &str> = BTreeMap::new();
    for version in avro::subjects().iter().flat_map(|s| &s.versions) {
        assert!(version.local_id >= 1);
        assert_eq!(*texts.entry(version.local_id).or_insert(version.text), version.text, "id {}", version.local_id);
    }
    let distinct: BTreeSet<&str> = texts.values().copied().collect();
    assert_eq!(distinct.len(), texts.len(), "one schema has one id");
}

#[test]
fn every_version_reads_every_other() {
    for subject in avro::subjects() {
        let parsed: Vec<Schema> = subject.versions.iter().map(|v| Schema::parse_str(v.text).unwrap()).collect();
        for (a, one) in parsed.iter().enumerate() {
            for (b, other) in parsed.iter().enumerate() {
                let verdict = SchemaCompatibility::mutual_read(one, other);
                assert!(
                    matches!(verdict, Ok(Compatibility::Full)),
                    "{} {} {}: {verdict:?}",
                    subject.name,
                    a + 1,
                    b + 1
                );
            }
        }
    }
}

#[test]
fn the_guards_admit_our_own_schemas() {
    for version in avro::subjects().iter().flat_map(|s| &s.versions) {
        avro::check_schema(version.text).unwrap();
    }
}

/// Calls `each` with every record of a schema, outermost first.
fn records(schema: &Json, each: &mut dyn FnMut(&Json)) {
    match schema {
        Json::Array(branches) => branches.iter().for_each(|branch| records(branch, each)),
        Json::Object(object) => {
            if object["type"] == "record" {
                each(schema);
                for field in object["fields"].as_array().unwrap() {
                    records(&field["type"], each);
                }
            }
            for inner in ["items", "values"].iter().filter_map(|key| object.get(*key)) {
                records(inner, each);
            }
        }
        _ => {}
    }
}

fn in_the_subset(kind: &Json) -> bool {
    match kind {
        Json::String(name) => ["string", "long", "double", "boolean"].contains(&name.as_str()),
        Json::Array(branches) => branches.len() == 2 && branches[0] == "null" && in_the_subset(&branches[1]),
        Json::Object(object) => match object["type"].as_str().unwrap() {
            "record" => true,
            "array" => in_the_subset(&object["items"]),
            "map" => in_the_subset(&object["values"]),
            "long" => object["logicalType"] == "timestamp-millis",
            _ => false,
        },
        _ => false,
    }
}

#[test]
fn conventions_hold_in_every_record() {
    let mut shared: BTreeMap<String, Json> = BTreeMap::new();
    for subject in avro::subjects() {
        let root = json(subject.latest().text);
        assert_eq!(root["namespace"], "io.casestream", "{}", subject.name);
        records(&root, &mut |record| {
            let name = record["name"].as_str().unwrap().to_owned();
            let mut body = record.clone();
            body.as_object_mut().unwrap().remove("namespace");
            assert_eq!(*shared.entry(name.clone()).or_insert(body.clone()), body, "{name} is the same everywhere");
            assert!(record["doc"].as_str().is_some_and(|doc| doc.ends_with('.')), "{name} has a doc");
            for field in record["fields"].as_array().unwrap() {
                let at = format!("{name}.{}", field["name"].as_str().unwrap());
                assert!(in_the_subset(&field["type"]), "{at}: {}", field["type"]);
                assert!(field["doc"].as_str().is_some_and(|doc| doc.ends_with('.')), "{at} has a doc");
                let is_optional = field["type"].is_array();
                assert_eq!(
                    field.get("default"),
                    is_optional.then_some(&Json::Null),
                    "{at}: optional means default null"
                );
                if field["type"].to_string().contains("timestamp-millis") && !is_record(&field["type"]) {
                    assert!(
                        field["doc"].as_str().unwrap().to_lowercase().contains("milliseconds since the epoch"),
                        "{at}"
                    );
                }
            }
        });
    }
}

fn is_record(kind: &Json) -> bool {
    kind.to_string().contains("\"fields\"")
}

/// `Record.field` to the values its doc closes, written `One of: a, b, c.`
fn closed_lists() -> BTreeMap<String, Vec<String>> {
    let mut lists = BTreeMap::new();
    for subject in avro::subjects() {
        records(&json(subject.latest().text), &mut |record| {
            for field in record["fields"].as_array().unwrap() {
                if let Some((_, list)) = field["doc"].as_str().unwrap().split_once("One of: ") {
                    let values = list.trim_end_matches('.').split(", ").map(str::to_owned).collect();
                    let name = format!("{}.{}", record["name"].as_str().unwrap(), field["name"].as_str().unwrap());
                    lists.insert(name, values);
                }
            }
        });
    }
    lists
}

#[test]
fn enums_json_lists_the_closed_values_of_the_docs() {
    let mut text = String::from("{\n");
    let lists = closed_lists();
    for (n, (name, values)) in lists.iter().enumerate() {
        let comma = if n + 1 < lists.len() { "," } else { "" };
        text += &format!("  {}: {}{comma}\n", Json::from(name.as_str()), Json::from(values.clone()));
    }
    text += "}\n";
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(directory().join("enums.json"), &text).unwrap();
    }
    assert_eq!(read("enums.json"), text, "run UPDATE=1 cargo test --test schemas");
}

#[test]
fn closed_lists_are_the_domains() {
    let lists = closed_lists();
    let levels: Vec<&str> = Level::ALL.iter().map(|l| l.as_str()).collect();
    let categories: Vec<&str> = Category::ALL.iter().map(|c| c.as_str()).collect();
    let statuses: Vec<&str> = alert::Status::ALL.iter().map(|s| s.as_str()).collect();
    for (name, values) in [
        ("RiskScore.level", &levels),
        ("RiskLevel.enforcement_level", &levels),
        ("Alert.severity", &levels),
        ("LevelAhead.level", &levels),
        ("ChronologyEntry.level_after", &levels),
        ("ChronologyEntry.category", &categories),
        ("RiskLevel.reason_codes", &categories),
        ("Alert.status", &statuses),
    ] {
        assert_eq!(lists[name], **values, "{name}");
    }
    assert!(lists["RiskSignal.op"].iter().all(|word| Op::parse(word).is_some()));
    let doc_of = |topic: Topic, name: &str| {
        let schema = json(avro::subject(topic).unwrap().latest().text);
        let fields = schema["fields"].as_array().unwrap().clone();
        fields.iter().find(|f| f["name"] == name).unwrap()["doc"].as_str().unwrap().to_owned()
    };
    assert!(doc_of(Topic::RiskSignals, "resources").contains(&RESOURCES_MAX.to_string()));
    assert!(doc_of(Topic::UserDirectory, "groups").contains(&directory::GROUPS_MAX.to_string()));
    assert!(doc_of(Topic::RiskScores, "contributions").contains(&score::CONTRIBUTIONS_MAX.to_string()));
}

/// Field names in order, with what stands inside each.
#[derive(Debug, PartialEq)]
struct Shape(Vec<(String, Shape)>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any json")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Shape, E> {
        Ok(Shape(vec![]))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Shape, E> {
        Ok(Shape(vec![]))
    }

    fn visit_str<E>(self, _: &str) -> Result<Shape, E> {
        Ok(Shape(vec![]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Shape, A::Error> {
        let first = items.next_element()?.expect("one element");
        assert!(items.next_element::<Shape>()?.is_none());
        Ok(first)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Shape, A::Error> {
        let mut shape = Shape(vec![]);
        while let Some(entry) = entries.next_entry()? {
            shape.0.push(entry);
        }
        Ok(shape)
    }
}

/// A value with every option set and one element in every list; a map's only key is `*`.
fn full(schema: &Schema) -> Value {
    match schema {
        Schema::Boolean => Value::Boolean(true),
        Schema::Long => Value::Long(1),
        Schema::TimestampMillis => Value::TimestampMillis(1),
        Schema::String => Value::String("x".into()),
        Schema::Array(array) => Value::Array(vec![full(&array.items)]),
        Schema::Map(map) => Value::Map([("*".to_owned(), full(&map.types))].into()),
        Schema::Union(union) => Value::Union(1, Box::new(full(&union.variants()[1]))),
        Schema::Record(record) => {
            Value::Record(record.fields.iter().map(|f| (f.name.clone(), full(&f.schema))).collect())
        }
        other => panic!("a type outside the subset: {other:?}"),
    }
}

fn shape(schema: &Schema) -> Shape {
    match schema {
        Schema::Array(array) => shape(&array.items),
        Schema::Map(map) => Shape(vec![("*".into(), shape(&map.types))]),
        Schema::Union(union) => shape(&union.variants()[1]),
        Schema::Record(record) => Shape(record.fields.iter().map(|f| (f.name.clone(), shape(&f.schema))).collect()),
        _ => Shape(vec![]),
    }
}

/// Every released version decodes into the domain; the latest has the domain's fields in the domain's order.
macro_rules! mirrors {
    ($topic:expr, $record:ty) => {
        let (topic, subject) = ($topic, avro::subject($topic).unwrap());
        for version in &subject.versions {
            let schema = Schema::parse_str(version.text).unwrap();
            let mut bytes = vec![0];
            bytes.extend(version.local_id.to_be_bytes());
            let writer = GenericDatumWriter::builder(&schema).build().unwrap();
            writer.write_value_ref(&mut bytes, &full(&schema)).unwrap();
            let record: $record = Decoder::new(&Schemas::built_in())
                .decode(topic, &bytes, &[])
                .unwrap_or_else(|e| panic!("{} {}: {e}", subject.name, version.version));
            if version.version == subject.latest().version {
                let text = serde_json::to_string(&record).unwrap();
                assert_eq!(serde_json::from_str::<Shape>(&text).unwrap(), shape(&schema), "{}", subject.name);
            }
        }
    };
}

#[test]
fn fields_and_their_order_are_the_domains() {
    mirrors!(Topic::UserDirectory, Directory<'_>);
    mirrors!(Topic::CaseCommands, Command<'_>);
    mirrors!(Topic::RiskSignals, Signal<'_>);
    mirrors!(Topic::PolicySets, PolicySetRecord<'_>);
    mirrors!(Topic::ActivityChronology, ChronologyEntry<'_>);
    mirrors!(Topic::RiskScores, RiskScore<'_>);
    mirrors!(Topic::RiskLevels, RiskLevel<'_>);
    mirrors!(Topic::Alerts, Alert<'_>);
    mirrors!(Topic::ShadowAlerts, Alert<'_>);
    mirrors!(Topic::PartitionStatus, PartitionStatus<'_>);
    mirrors!(Topic::CommandResults, CommandResult<'_>);
    mirrors!(Topic::EngineJournal, Journal);
}
