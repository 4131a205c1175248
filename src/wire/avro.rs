//! The codec: domain records ↔ Avro in Confluent's framing. Decoding uses the writer's schema and borrows from the
//! slice; hostile bytes are an error, never a panic. What our own schemas wrote is read and written by `avro/plain.rs`.
//! It does no I/O: schemas of other writers come through `Lookup`.
//! Next: `headers.rs`, what travels beside a value.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::sync::{Arc, LazyLock, RwLock};

use apache_avro::schema_compatibility::{Compatibility, SchemaCompatibility};
use serde::Deserialize;
use serde_avro_fast::de::read::SliceRead;
use serde_avro_fast::de::{DeError, DeserializerConfig, DeserializerState};

use super::framing::{self, FramingError, PREFIX_BYTES, SchemaName};
use crate::topology::{INPUT_BYTES_MAX, OUTPUT_BYTES_MAX, TOPICS, Topic};

mod guard;
mod plain;
mod records;

pub use guard::{SCHEMA_BYTES_MAX, SCHEMA_DEPTH_MAX, SCHEMA_NODES_MAX, check as check_schema};
pub use plain::{Put, Reader, Record, Take, copy_into};

/// Most elements of one list or map.
pub const SEQUENCE_MAX: usize = 100_000;
/// Deepest nesting of a value.
pub const DEPTH_MAX: usize = 32;
/// Most writers' schemas a decoder keeps per topic; whoever writes a topic chooses how many there are.
pub const MET_MAX: usize = 64;

/// Released versions of every subject, oldest first; the last is what we write. A record stays readable for ever,
/// so versions are only ever added.
const HISTORY: [(Topic, &[&str]); 13] = [
    (Topic::UserDirectory, &[include_str!("../../schemas/history/user-directory-value/1.avsc")]),
    (Topic::PeerBaselines, &[include_str!("../../schemas/history/peer-baselines-value/1.avsc")]),
    (Topic::CaseCommands, &[include_str!("../../schemas/history/case-commands-value/1.avsc")]),
    (Topic::RiskSignals, &[include_str!("../../schemas/history/risk-signals-value/1.avsc")]),
    (Topic::PolicySets, &[include_str!("../../schemas/history/policy-sets-value/1.avsc")]),
    (Topic::ActivityChronology, &[include_str!("../../schemas/history/activity-chronology-value/1.avsc")]),
    (Topic::RiskScores, &[include_str!("../../schemas/history/risk-scores-value/1.avsc")]),
    (Topic::RiskLevels, &[include_str!("../../schemas/history/risk-levels-value/1.avsc")]),
    (Topic::Alerts, &[include_str!("../../schemas/history/alerts-value/1.avsc")]),
    (Topic::PartitionStatus, &[include_str!("../../schemas/history/partition-status-value/1.avsc")]),
    (Topic::CommandResults, &[include_str!("../../schemas/history/command-results-value/1.avsc")]),
    (Topic::ShadowAlerts, &[include_str!("../../schemas/history/shadow-alerts-value/1.avsc")]),
    (Topic::EngineJournal, &[include_str!("../../schemas/history/engine-journal-value/1.avsc")]),
];
/// Subject to the local id of each version, in the order of versions.
const IDS: &str = include_str!("../../schemas/ids.json");

/// One released version of a subject.
#[derive(Debug)]
pub struct Version {
    /// 1, 2, 3 …
    pub version: u32,
    /// Id used when no registry is configured.
    pub local_id: u32,
    /// The schema as JSON.
    pub text: &'static str,
}

/// A subject of ours with everything parsed.
pub struct Subject {
    /// The topic it is the value of.
    pub topic: Topic,
    /// `<topic>-value`.
    pub name: String,
    /// Oldest first, never empty.
    pub versions: Vec<Version>,
    reference: apache_avro::Schema,
}

impl Subject {
    /// The version we write.
    pub fn latest(&self) -> &Version {
        self.versions.last().expect("every subject has a version")
    }
}

static SUBJECTS: LazyLock<Vec<Subject>> = LazyLock::new(|| {
    let ids: BTreeMap<String, Vec<u32>> = serde_json::from_str(IDS).expect("ids.json maps subjects to lists of ids");
    HISTORY
        .iter()
        .map(|&(topic, texts)| {
            let name = format!("{}-value", topic.name());
            let ids = ids.get(&name).unwrap_or_else(|| panic!("ids.json has no {name}"));
            assert_eq!(ids.len(), texts.len(), "ids.json names every version of {name}");
            let versions: Vec<Version> = (1..)
                .zip(ids.iter().zip(texts))
                .map(|(version, (&local_id, &text))| Version { version, local_id, text })
                .collect();
            let text = texts.last().expect("every subject has a version");
            let reference =
                apache_avro::Schema::parse_str(text).unwrap_or_else(|e| panic!("the schema of {name} must parse: {e}"));
            Subject { topic, name, versions, reference }
        })
        .collect()
});

/// Every subject of ours, in a fixed order. Parsed once per process.
pub fn subjects() -> &'static [Subject] {
    &SUBJECTS
}

/// The subject of a topic; `None` where values are not Avro.
pub fn subject(topic: Topic) -> Option<&'static Subject> {
    SUBJECTS.iter().find(|s| s.topic == topic)
}

/// Largest value of a topic, in bytes.
pub const fn value_bytes_max(topic: Topic) -> usize {
    match topic {
        Topic::UserDirectory | Topic::PeerBaselines | Topic::CaseCommands | Topic::RiskSignals => INPUT_BYTES_MAX,
        _ => OUTPUT_BYTES_MAX,
    }
}

/// The registry could not be asked. Pause the input and try again; never a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("could not reach the schema registry: {0}")]
pub struct Unavailable(pub String);

/// Where schemas of other writers, and the ids of ours, come from. A registry's answer never changes, so
/// implementations may keep it for ever.
pub trait Lookup: Send + Sync {
    /// The schema of this name; `None` when the registry does not know it.
    fn schema(&self, name: SchemaName) -> Result<Option<String>, Unavailable>;
    /// The id under which this schema is registered for the subject; `None` when it is not.
    fn id_of(&self, subject: &str, schema: &str) -> Result<Option<u32>, Unavailable>;
}

/// Why ids could not be taken from a registry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error("could not find our schema under subject {0}: register it with `casestream schemas push`")]
    NotRegistered(String),
}

/// The verdict on a writer's schema for one topic.
#[derive(Clone)]
enum Writer {
    /// `ours`: it is the schema we write ourselves.
    Fits {
        schema: Arc<serde_avro_fast::Schema>,
        ours: bool,
    },
    Mismatch(Arc<str>),
}

/// Ids for writing and schemas for reading, shared by every encoder and decoder of the process.
pub struct Schemas {
    /// By `Topic as usize`.
    ids: [Option<u32>; TOPICS.len()],
    lookup: Option<Box<dyn Lookup>>,
    /// Verdicts reached so far; a decoder keeps its own copies, so the lock is taken once per decoder and schema.
    verdicts: RwLock<BTreeMap<(Topic, SchemaName), Writer>>,
}

impl Schemas {
    /// Ids from `schemas/ids.json`, no registry.
    pub fn built_in() -> Arc<Schemas> {
        let mut ids = [None; TOPICS.len()];
        for subject in subjects() {
            ids[subject.topic as usize] = Some(subject.latest().local_id);
        }
        Arc::new(Schemas { ids, lookup: None, verdicts: RwLock::default() })
    }

    /// Ids and schemas from a registry. Nothing is registered: a missing schema is an error that says how.
    pub fn with_registry(lookup: impl Lookup + 'static) -> Result<Arc<Schemas>, RegistryError> {
        let mut ids = [None; TOPICS.len()];
        for subject in subjects() {
            let id = lookup.id_of(&subject.name, subject.latest().text)?;
            ids[subject.topic as usize] = Some(id.ok_or_else(|| RegistryError::NotRegistered(subject.name.clone()))?);
        }
        Ok(Arc::new(Schemas { ids, lookup: Some(Box::new(lookup)), verdicts: RwLock::default() }))
    }

    /// Whether ids are the local ones of `schemas/ids.json`.
    pub fn is_built_in(&self) -> bool {
        self.lookup.is_none()
    }

    /// The id written in front of values of a topic; `None` where values are not Avro.
    pub fn id(&self, topic: Topic) -> Option<u32> {
        self.ids[topic as usize]
    }

    fn writer(&self, topic: Topic, name: SchemaName) -> Result<Writer, DecodeError> {
        if let Some(writer) = self.verdicts.read().expect("no holder panics").get(&(topic, name)) {
            return Ok(writer.clone());
        }
        let writer = match &self.lookup {
            None => judge(topic, local_schema(name).ok_or(DecodeError::UnknownSchema(name))?),
            Some(lookup) => {
                let text = lookup.schema(name).map_err(|e| DecodeError::Unavailable(e.0))?;
                judge(topic, &text.ok_or(DecodeError::UnknownSchema(name))?)
            }
        };
        self.verdicts.write().expect("no holder panics").insert((topic, name), writer.clone());
        Ok(writer)
    }
}

fn local_schema(name: SchemaName) -> Option<&'static str> {
    let SchemaName::Id(id) = name else { return None };
    subjects().iter().flat_map(|s| &s.versions).find(|v| v.local_id == id).map(|v| v.text)
}

/// Whether what this schema writes can be read as the topic's record. Asked once per schema, so that a record of
/// another shape has one stable code whatever its bytes.
fn judge(topic: Topic, text: &str) -> Writer {
    let verdict = (|| -> Result<_, String> {
        let subject = subject(topic).ok_or_else(|| format!("{} carries no avro", topic.name()))?;
        guard::check(text).map_err(|e| e.to_string())?;
        let parsed = apache_avro::Schema::parse_str(text).map_err(|_| "it does not parse".to_owned())?;
        if parsed.name() != subject.reference.name() {
            return Err("it is another record".to_owned());
        }
        match SchemaCompatibility::can_read(&parsed, &subject.reference) {
            Ok(Compatibility::Full) => {}
            // Partial: some values of that shape could not be read. Refused at once, not record by record.
            Ok(Compatibility::Partial) | Err(_) => return Err("its shape is incompatible".to_owned()),
        }
        let ours = parsed.canonical_form() == subject.reference.canonical_form();
        let schema = text.parse::<serde_avro_fast::Schema>().map_err(|_| "it does not parse".to_owned())?;
        Ok((ours, Arc::new(schema)))
    })();
    match verdict {
        Ok((ours, schema)) => Writer::Fits { schema, ours },
        Err(why) => Writer::Mismatch(why.into()),
    }
}

/// Why a value could not be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("could not encode a {topic} record: {bytes} bytes, at most {max} are allowed")]
    TooLarge { topic: &'static str, bytes: usize, max: usize },
    /// The value has not the schema's shape: a bug of ours.
    #[error("could not encode a {topic} record: {cause}")]
    Shape { topic: &'static str, cause: String },
}

impl EncodeError {
    /// The stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            EncodeError::TooLarge { .. } => "record.too_large",
            EncodeError::Shape { .. } => "record.shape",
        }
    }
}

/// Bytes to write into at first; most values are smaller.
const ROOM: usize = 2_048;

/// Writes values.
pub struct Encoder {
    /// What stands in front of a topic's values, and the name of their record, by `Topic as usize`.
    heads: [Option<([u8; PREFIX_BYTES], &'static str)>; TOPICS.len()],
}

impl Encoder {
    /// An encoder that writes the ids of `schemas`.
    pub fn new(schemas: &Schemas) -> Encoder {
        let mut heads = [None; TOPICS.len()];
        for subject in subjects() {
            let name = subject.reference.name().expect("the value of a topic is a record").name();
            heads[subject.topic as usize] = schemas.id(subject.topic).map(|id| (framing::prefix(id), name));
        }
        Encoder { heads }
    }

    /// Appends the framed value to `out`, which is left as it was on an error.
    pub fn encode<T: Record>(&mut self, topic: Topic, value: &T, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let (start, mut room) = (out.len(), ROOM);
        loop {
            out.resize(start + room, 0);
            let written = self.write(topic, value, &mut out[start..]).transpose();
            match written {
                Some(Ok(bytes)) => out.truncate(start + bytes),
                Some(Err(_)) => out.truncate(start),
                None => {
                    room *= 4;
                    continue;
                }
            }
            return written.unwrap_or(Ok(0)).map(|_| ());
        }
    }

    /// Writes the framed value to the beginning of `room`, and returns its length; `None` where the room is too small.
    #[inline]
    pub fn write<T: Record>(&self, topic: Topic, value: &T, room: &mut [u8]) -> Result<Option<usize>, EncodeError> {
        let prefix = match &self.heads[topic as usize] {
            Some((prefix, name)) if *name == T::NAME => prefix,
            head => return Err(another_shape(topic, head.map(|(_, name)| name), T::NAME)),
        };
        let Some((head, body)) = room.split_first_chunk_mut() else { return Ok(None) };
        *head = *prefix;
        let Some(bytes) = plain::write(value, body) else { return Ok(None) };
        let (bytes, max) = (PREFIX_BYTES + bytes, value_bytes_max(topic));
        if bytes > max { Err(EncodeError::TooLarge { topic: topic.name(), bytes, max }) } else { Ok(Some(bytes)) }
    }
}

#[cold]
fn another_shape(topic: Topic, expected: Option<&str>, found: &str) -> EncodeError {
    let cause = match expected {
        Some(expected) => format!("a {found} is no {expected}"),
        None => "the topic carries no avro".to_owned(),
    };
    EncodeError::Shape { topic: topic.name(), cause }
}

/// Why a value could not be read. Messages carry no field values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("could not decode the record: it is empty")]
    Empty,
    #[error("could not decode the record: {bytes} bytes, at most {max} are allowed")]
    TooLarge { bytes: usize, max: usize },
    #[error("could not decode the record: it begins with byte {0}, not with a schema id")]
    Magic(u8),
    #[error("could not decode the record: no schema has {0}")]
    UnknownSchema(SchemaName),
    #[error("could not decode the record: the schema with {name} does not fit the topic: {why}")]
    Mismatch { name: SchemaName, why: Arc<str> },
    #[error("could not decode the record: it ends too early")]
    Truncated,
    #[error("could not decode the record: {0}")]
    Malformed(&'static str),
    #[error("could not decode the record: {0} bytes follow it")]
    Trailing(usize),
    /// Pause the input and try again; never a dead letter.
    #[error("could not reach the schema registry: {0}")]
    Unavailable(String),
}

impl DecodeError {
    /// The stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            DecodeError::Empty => "record.empty",
            DecodeError::TooLarge { .. } => "record.too_large",
            DecodeError::Magic(_) => "schema.magic",
            DecodeError::UnknownSchema(_) => "schema.unknown",
            DecodeError::Mismatch { .. } => "schema.mismatch",
            DecodeError::Truncated => "record.truncated",
            DecodeError::Malformed(_) => "record.malformed",
            DecodeError::Trailing(_) => "record.trailing",
            DecodeError::Unavailable(_) => "schema.unavailable",
        }
    }

    /// Whether the same bytes may decode later: the caller waits instead of writing a dead letter.
    pub const fn retriable(&self) -> bool {
        matches!(self, DecodeError::Unavailable(_))
    }
}

impl From<FramingError> for DecodeError {
    fn from(error: FramingError) -> DecodeError {
        match error {
            FramingError::Empty => DecodeError::Empty,
            FramingError::Magic(byte) => DecodeError::Magic(byte),
            FramingError::Truncated => DecodeError::Truncated,
        }
    }
}

/// Reads values; keeps the writers' schemas it has met.
pub struct Decoder {
    schemas: Arc<Schemas>,
    /// By `Topic as usize`; at most `MET_MAX` each, usually one.
    met: [Vec<(SchemaName, Writer)>; TOPICS.len()],
    /// What stands in front of a value that was written with our own schema, once one was met, by `Topic as usize`.
    ours: [Option<[u8; PREFIX_BYTES]>; TOPICS.len()],
}

impl Decoder {
    /// A decoder of what `schemas` knows.
    pub fn new(schemas: &Arc<Schemas>) -> Decoder {
        let (met, ours) = ([const { Vec::new() }; TOPICS.len()], [None; TOPICS.len()]);
        Decoder { schemas: schemas.clone(), met, ours }
    }

    /// Reads one value, borrowing from it.
    #[inline]
    pub fn decode<'a, T: Take<'a>>(
        &mut self,
        topic: Topic,
        value: &'a [u8],
        headers: &[(&str, Option<&[u8]>)],
    ) -> Result<T, DecodeError> {
        if let Some((prefix, body)) = value.split_first_chunk()
            && self.ours[topic as usize].as_ref() == Some(prefix)
            && value.len() <= value_bytes_max(topic)
            && !framing::has_header(headers)
            && let Ok(read) = plain::read(body)
        {
            return Ok(read);
        }
        self.decode_slowly(topic, value, headers)
    }

    /// What `decode` does not see to be our own and as usual.
    #[inline(never)]
    fn decode_slowly<'a, T: Take<'a>>(
        &mut self,
        topic: Topic,
        value: &'a [u8],
        headers: &[(&str, Option<&[u8]>)],
    ) -> Result<T, DecodeError> {
        let (schema, ours, body) = self.open(topic, value, headers)?;
        // What the short way refuses is read again the long way, which knows why.
        if ours { plain::read(body).or_else(|_| read(schema, body)) } else { read(schema, body) }
    }

    /// Reads a value into a type with only some of the record's fields.
    pub fn decode_any<'a, T: Deserialize<'a>>(
        &mut self,
        topic: Topic,
        value: &'a [u8],
        headers: &[(&str, Option<&[u8]>)],
    ) -> Result<T, DecodeError> {
        let (schema, _, body) = self.open(topic, value, headers)?;
        read(schema, body)
    }

    /// The schema a value was written with, whether it is the one we write, and the value's body.
    fn open<'a>(
        &mut self,
        topic: Topic,
        value: &'a [u8],
        headers: &[(&str, Option<&[u8]>)],
    ) -> Result<(&serde_avro_fast::Schema, bool, &'a [u8]), DecodeError> {
        let (bytes, max) = (value.len(), value_bytes_max(topic));
        if bytes > max {
            return Err(DecodeError::TooLarge { bytes, max });
        }
        let (name, body) = framing::split(value, headers)?;
        match self.writer(topic, name)? {
            Writer::Fits { schema, ours } => Ok((schema, *ours, body)),
            Writer::Mismatch(why) => Err(DecodeError::Mismatch { name, why: why.clone() }),
        }
    }

    fn writer(&mut self, topic: Topic, name: SchemaName) -> Result<&Writer, DecodeError> {
        let met = &mut self.met[topic as usize];
        let at = match met.iter().position(|(known, _)| *known == name) {
            Some(at) => at,
            None => {
                let writer = self.schemas.writer(topic, name)?;
                if met.len() >= MET_MAX {
                    met.clear();
                }
                if let (Writer::Fits { ours: true, .. }, SchemaName::Id(id)) = (&writer, name) {
                    self.ours[topic as usize] = Some(framing::prefix(id));
                }
                met.push((name, writer));
                met.len() - 1
            }
        };
        Ok(&met[at].1)
    }
}

fn read<'a, T: Deserialize<'a>>(schema: &serde_avro_fast::Schema, body: &'a [u8]) -> Result<T, DecodeError> {
    let mut config = DeserializerConfig::new(schema);
    config.max_seq_size = SEQUENCE_MAX;
    config.allowed_depth = DEPTH_MAX;
    let mut state = DeserializerState::with_config(SliceRead::new(body), config);
    let result = T::deserialize(state.deserializer());
    let left = state.into_reader().fill_buf().map_or(0, <[u8]>::len);
    match result {
        Ok(value) if left == 0 => Ok(value),
        Ok(_) => Err(DecodeError::Trailing(left)),
        Err(error) => Err(classify(&error, left)),
    }
}

/// Longest varint of a 64-bit number, in bytes.
const VARINT_BYTES_MAX: usize = 10;

/// The library's errors are text, which may quote a value; only what is recognised is passed on, in our words.
fn classify(error: &DeError, left: usize) -> DecodeError {
    let text = error.to_string();
    let has = |part: &str| text.contains(part);
    if has("MSB set") {
        // The same error for a number cut off by the end and for one longer than any number.
        return if left < VARINT_BYTES_MAX {
            DecodeError::Truncated
        } else {
            DecodeError::Malformed("a number is too long")
        };
    }
    if has("Unexpected end of slice") || error.io_error().is_some() {
        return DecodeError::Truncated;
    }
    DecodeError::Malformed(if has("utf-8") {
        "a text is not utf-8"
    } else if has("max sequence size") {
        "a list is longer than 100000"
    } else if has("Invalid buffer length") || has("block length") || has("array length") {
        "a length is negative"
    } else if has("discriminant") {
        "a union has no such branch"
    } else if has("depth") {
        "it is nested too deeply"
    } else {
        "its bytes do not fit its schema"
    })
}
