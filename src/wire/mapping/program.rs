//! A mapping file and its compiled program: load, compile, run one record. The program sees the event as `.`, where
//! the record lies as `%kafka`, the deployment as `%config` and the file's lists as `%lists`; all of `%` is read-only.
//! Next: `signal_builder.rs`, which turns its result into signals.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde::Deserialize;
use vrl::compiler::runtime::{Runtime, Terminate};
use vrl::compiler::state::ExternalEnv;
use vrl::compiler::{CompileConfig, Program, TargetValueRef, TimeZone};
use vrl::diagnostic::Formatter;
use vrl::path::OwnedTargetPath;
use vrl::value::{ObjectMap, Secrets, Value};

use super::functions::TableNames;
use super::input::{Csv, Event, Form, Input};
use super::{Code, MapConfig, Mapper, Outcome, RawMeta, STEPS_MAX, json, profile, signal_builder};

/// Largest mapping file, in bytes.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Why a mapping file is not usable. Messages name the file, the line and what to change.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not read mapping {file}: {cause}")]
    Read { file: String, cause: String },
    #[error("could not parse mapping {file}, line {line}: {cause}")]
    Toml { file: String, line: usize, cause: String },
    #[error("could not accept mapping {file}: {cause}")]
    Invalid { file: String, cause: String },
    #[error("could not compile the program of mapping {file} (line numbers are the file's): {diagnostics}")]
    Program { file: String, diagnostics: String },
}

impl Error {
    /// The stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Error::Read { .. } => "mapping_file.unreadable",
            Error::Toml { .. } => "mapping_file.malformed",
            Error::Invalid { .. } => "mapping_file.invalid",
            Error::Program { .. } => "mapping_file.program",
        }
    }
}

/// The file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    id: String,
    source: String,
    description: String,
    /// What makes `source_event_id` unique and stable; read by people.
    event_id: String,
    #[serde(default)]
    lists: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    tables: BTreeMap<String, BTreeMap<String, String>>,
    /// The program sees all keys in lower case.
    #[serde(default)]
    lower_keys: bool,
    /// What a record's value is.
    #[serde(default)]
    input: Form,
    csv: Option<Csv>,
    program: toml::Spanned<String>,
}

/// A compiled mapping. Not shared between threads: a run keeps its variables here.
pub struct Mapping {
    source: String,
    id_at_hash: String,
    origin: String,
    /// The program behind as many newlines as stand before it in the file.
    padded: String,
    program: Program,
    input: Input,
    runtime: Runtime,
    metadata: Value,
    utc: TimeZone,
}

impl Mapping {
    /// Reads and compiles a file.
    pub fn load(path: &Path) -> Result<Mapping, Error> {
        let file = path.display().to_string();
        let size = std::fs::metadata(path).map_or(0, |m| m.len());
        if size > FILE_BYTES_MAX {
            return Err(Error::Read { file, cause: format!("{size} bytes, at most {FILE_BYTES_MAX} are read") });
        }
        match std::fs::read_to_string(path) {
            Ok(text) => Mapping::parse(&file, &text),
            Err(e) => Err(Error::Read { file, cause: e.to_string() }),
        }
    }

    /// Compiles the text of a file; `name` stands in errors.
    pub fn parse(name: &str, text: &str) -> Result<Mapping, Error> {
        let file = name.to_owned();
        let raw: RawFile = toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(1, |s| line_of(text, s.start));
            Error::Toml { file: file.clone(), line, cause: first_line(e.message()) }
        })?;
        for (field, value) in [("id", &raw.id), ("source", &raw.source)] {
            if !is_slug(value) {
                let cause = format!("`{field}` must be 1 to 64 of a-z, 0-9, '-' and '_', starting with a letter");
                return Err(Error::Invalid { file, cause });
            }
        }
        if raw.description.trim().is_empty() || raw.event_id.trim().is_empty() {
            let cause = "`description` and `event_id` must say something".to_owned();
            return Err(Error::Invalid { file, cause });
        }
        let keys = if raw.lower_keys { json::Keys::Lower } else { json::Keys::AsWritten };
        let input =
            Input::new(raw.input, keys, raw.csv).map_err(|cause| Error::Invalid { file: file.clone(), cause })?;
        let padded = padded_program(text, &raw.program);
        let program = compile(&file, &padded, raw.tables.keys().cloned().collect())?;
        let hash = blake3::hash(text.as_bytes()).to_hex();
        let mapping = Mapping {
            id_at_hash: format!("{}@{}", raw.id, &hash[..12]),
            source: raw.source,
            origin: String::new(),
            padded,
            program,
            input,
            runtime: Runtime::default(),
            metadata: metadata(&raw.lists, &raw.tables),
            utc: TimeZone::parse("UTC").expect("a zone every build knows"),
        };
        Ok(mapping.with_config(&MapConfig::default()))
    }

    /// The same mapping under a deployment's configuration.
    pub fn with_config(mut self, config: &MapConfig) -> Mapping {
        let domains: Vec<Value> = config.company_domains.iter().map(|d| Value::from(d.to_lowercase())).collect();
        let mut map = ObjectMap::new();
        map.insert("company_domains".into(), Value::Array(domains));
        self.metadata.as_object_mut().expect("made as an object").insert("config".into(), Value::Object(map));
        self.origin = config.origin.to_string();
        self
    }

    /// The source whose raw topic this maps.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// `id@hash`: the mapping's id and twelve hex digits of its text's BLAKE3, as in the signal's `mapping` field.
    pub fn id_at_hash(&self) -> &str {
        &self.id_at_hash
    }

    /// What becomes of one raw record. Never panics; what a library panics on is a dead letter.
    pub fn run(&mut self, raw: &[u8], at: &RawMeta<'_>) -> Outcome {
        let event = match self.input.read(raw) {
            Ok(Event::One(event)) => event,
            Ok(Event::Header) => return Outcome::Ignored("csv_header".into()),
            Err(code) => return Outcome::dead(code, format!("{} bytes", raw.len())),
        };
        let result = catch_unwind(AssertUnwindSafe(|| self.run_event(event, at)));
        // A panic may leave variables behind.
        self.runtime.clear();
        result.unwrap_or_else(|_| Outcome::dead(Code::MappingPanic, self.id_at_hash.as_str()))
    }

    fn run_event(&mut self, mut event: Value, at: &RawMeta<'_>) -> Outcome {
        self.set_position(at);
        let mut secrets = Secrets::default();
        let mut target = TargetValueRef { value: &mut event, metadata: &mut self.metadata, secrets: &mut secrets };
        let mut steps = 0u64;
        let mut budget = || {
            steps += 1;
            if steps > STEPS_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        match self.runtime.resolve_with_control(&mut target, &self.program, &self.utc, &mut budget) {
            Ok(value) => {
                let by = signal_builder::By { source: &self.source, mapping: &self.id_at_hash, origin: &self.origin };
                signal_builder::outcome(value, &by, at)
            }
            Err(Terminate::Interrupted) => Outcome::dead(Code::MappingBudget, format!("more than {STEPS_MAX} steps")),
            Err(Terminate::Abort(e) | Terminate::Error(e)) => {
                Outcome::dead(Code::MappingError, self.where_it_failed(&e.to_string()))
            }
        }
    }

    fn set_position(&mut self, at: &RawMeta<'_>) {
        let kafka = self.metadata.as_object_mut().and_then(|all| all.get_mut("kafka")).and_then(Value::as_object_mut);
        let kafka = kafka.expect("made with the mapping, and read-only to its program");
        for (name, value) in [
            ("partition", Value::Integer(at.partition.into())),
            ("offset", Value::Integer(at.offset)),
            ("timestamp", Value::Integer(at.timestamp.0)),
        ] {
            *kafka.get_mut(name).expect("made with the mapping") = value;
        }
        let topic = kafka.get_mut("topic").expect("made with the mapping");
        if topic.to_str() != Some(at.topic) {
            *topic = Value::from(at.topic);
        }
    }

    /// The line, and the function if it was one. VRL's own text may quote the event, so it is not passed on.
    fn where_it_failed(&self, message: &str) -> String {
        let function = message.strip_prefix("function call error for \"").and_then(|rest| rest.split('"').next());
        let at = message.split_once(" at (").and_then(|(_, rest)| rest.split(':').next()?.parse::<usize>().ok());
        let line = at.map(|offset| line_of(&self.padded, offset));
        match (function, line) {
            (Some(function), Some(line)) => format!("{} line {line}: {function} failed", self.id_at_hash),
            (_, Some(line)) => format!("{} line {line}", self.id_at_hash),
            _ => self.id_at_hash.clone(),
        }
    }
}

impl Mapper for Mapping {
    fn run(&mut self, raw: &[u8], at: &RawMeta<'_>) -> Outcome {
        Mapping::run(self, raw, at)
    }
}

fn metadata(lists: &BTreeMap<String, Vec<String>>, tables: &BTreeMap<String, BTreeMap<String, String>>) -> Value {
    let entries = lists.iter().map(|(name, items)| {
        (name.as_str().into(), Value::Array(items.iter().map(|item| Value::from(item.as_str())).collect()))
    });
    let tables = tables.iter().map(|(name, rows)| {
        let rows = rows.iter().map(|(key, text)| (key.as_str().into(), Value::from(text.as_str())));
        (name.as_str().into(), Value::Object(rows.collect()))
    });
    let position = ["topic", "partition", "offset", "timestamp"].map(|name| (name.into(), Value::Null));
    let mut map = ObjectMap::new();
    map.insert("lists".into(), Value::Object(entries.collect()));
    map.insert("tables".into(), Value::Object(tables.collect()));
    map.insert("kafka".into(), Value::Object(position.into_iter().collect()));
    Value::Object(map)
}

/// Newlines in front of the program make VRL count lines as the file does.
fn padded_program(text: &str, program: &toml::Spanned<String>) -> String {
    let opening = &text[program.span()];
    let skipped = usize::from(opening.starts_with("'''\n") || opening.starts_with("\"\"\"\n"));
    let lines = line_of(text, program.span().start) - 1 + skipped;
    format!("{}{}", "\n".repeat(lines), program.get_ref())
}

fn compile(file: &str, padded: &str, tables: BTreeSet<String>) -> Result<Program, Error> {
    let mut config = CompileConfig::default();
    config.set_read_only_path(OwnedTargetPath::metadata_root(), true);
    config.set_custom(TableNames(tables));
    let compiled = vrl::compiler::compile_with_external(padded, &profile::functions(), &ExternalEnv::default(), config);
    let diagnostics = match compiled {
        Ok(result) if result.warnings.is_empty() => return Ok(result.program),
        Ok(result) => result.warnings,
        Err(diagnostics) => diagnostics,
    };
    let diagnostics = Formatter::new(padded, diagnostics).to_string();
    Err(Error::Program { file: file.to_owned(), diagnostics })
}

/// TOML errors may quote a whole program.
pub(super) fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().chars().take(160).collect()
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|b| **b == b'\n').count()
}

fn is_slug(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= 64
        && bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
}
