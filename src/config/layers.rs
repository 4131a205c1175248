//! Layers of configuration: defaults < file < `CASESTREAM_A__B` environment < `--set a.b=c`. Every value remembers where
//! it came from, so that an error can say so; everything wrong is reported at once.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::{Config, RANGES, WORDS, nearest};

/// The file that is read when no other is named.
pub const FILE_DEFAULT: &str = "casestream.toml";
/// Start of every environment variable that configures.
pub const ENV_PREFIX: &str = "CASESTREAM_";

/// Start of keys that are librdkafka's.
const CLIENT: &str = "kafka.client.";

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    File { path: String, line: usize },
    Environment(String),
    Set(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line: 0 } => f.write_str(path),
            Origin::File { path, line } => write!(f, "{path}:{line}"),
            Origin::Environment(name) => write!(f, "environment {name}"),
            Origin::Set(key) => write!(f, "--set {key}"),
        }
    }
}

/// A value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `engine.workers`; empty when the layer as a whole is meant.
    pub key: String,
    pub origin: Origin,
    pub message: String,
    pub fix: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = if self.key.is_empty() { String::new() } else { format!("{}: ", self.key) };
        write!(f, "{}: {key}{}\n  fix: {}", self.origin, self.message, self.fix)
    }
}

/// What is laid over the defaults, lowest first. Not printable: it may hold secrets.
#[derive(Clone, Default)]
pub struct Layers {
    /// Path and content.
    pub file: Option<(String, String)>,
    pub environment: Vec<(String, String)>,
    /// `a.b=c` each.
    pub sets: Vec<String>,
}

impl Layers {
    /// The layers of this process. Without a named file, `casestream.toml` of the working directory is read if it exists.
    pub fn of_process(file: Option<&Path>, sets: &[String]) -> Result<Layers, Problem> {
        let path = file.unwrap_or(Path::new(FILE_DEFAULT));
        let name = path.display().to_string();
        let file = match std::fs::read_to_string(path) {
            Ok(text) => Some((name, text)),
            Err(e) if file.is_none() && e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => {
                return Err(Problem {
                    key: String::new(),
                    origin: Origin::File { path: name, line: 0 },
                    message: format!("could not read the configuration: {e}"),
                    fix: "name a readable file with --config".to_owned(),
                });
            }
        };
        let environment = std::env::vars_os().filter_map(|(n, v)| Some((n.into_string().ok()?, v.into_string().ok()?)));
        Ok(Layers { file, environment: environment.collect(), sets: sets.to_vec() })
    }
}

/// The tree that grows layer by layer.
struct Merge {
    known: Table,
    tree: Table,
    origins: BTreeMap<String, Origin>,
    problems: Vec<Problem>,
}

/// Puts the layers together.
pub fn load(layers: &Layers) -> Result<Config, Vec<Problem>> {
    let known = Table::try_from(Config::default()).expect("the defaults are plain values");
    let mut merge = Merge { known, tree: Table::new(), origins: BTreeMap::new(), problems: Vec::new() };
    if let Some((path, text)) = &layers.file {
        merge.file(path, text);
    }
    merge.environment(&layers.environment);
    for set in &layers.sets {
        merge.set(set);
    }
    if !merge.problems.is_empty() {
        return Err(merge.problems);
    }
    let Merge { tree, origins, .. } = merge;
    let config: Config = serde_path_to_error::deserialize(tree).map_err(|error| {
        let key = error.path().to_string();
        let origin = origin_of(&origins, &key);
        let message = error.inner().to_string().lines().next().unwrap_or_default().to_owned();
        vec![Problem { key, origin, message, fix: "see config/casestream.toml for the shape of this key".to_owned() }]
    })?;
    let problems: Vec<Problem> = config
        .disagreements()
        .into_iter()
        .map(|(key, message, fix)| Problem { origin: origin_of(&origins, &key), key, message, fix })
        .collect();
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

/// The origin of a key, or of the nearest table or list above it.
fn origin_of(origins: &BTreeMap<String, Origin>, key: &str) -> Origin {
    let mut key = key;
    loop {
        if let Some(origin) = origins.get(key) {
            return origin.clone();
        }
        match key.rfind(['.', '[']) {
            Some(end) => key = &key[..end],
            None => return Origin::Default,
        }
    }
}

impl Merge {
    fn report(&mut self, key: &str, origin: &Origin, message: impl Into<String>, fix: impl Into<String>) {
        let (message, fix) = (message.into(), fix.into());
        self.problems.push(Problem { key: key.to_owned(), origin: origin.clone(), message, fix });
    }

    fn file(&mut self, path: &str, text: &str) {
        let line_of = |at: usize| text.bytes().take(at).filter(|b| *b == b'\n').count() + 1;
        let (spanned, errors) = DeTable::parse_recoverable(text);
        let mut by_line: Vec<_> = errors.iter().collect();
        by_line.sort_by_key(|e| e.span().map_or(0, |s| s.start));
        for error in by_line {
            let origin = Origin::File { path: path.to_owned(), line: line_of(error.span().map_or(0, |s| s.start)) };
            self.report("", &origin, error.message().lines().collect::<Vec<_>>().join("; "), "correct the TOML syntax");
        }
        if !errors.is_empty() {
            return;
        }
        let mut lines = BTreeMap::new();
        collect_lines("", spanned.get_ref(), &line_of, &mut lines);
        let table: Table = match text.parse() {
            Ok(table) => table,
            Err(error) => {
                let origin = Origin::File { path: path.to_owned(), line: 0 };
                return self.report("", &origin, error.message().to_owned(), "correct the TOML syntax");
            }
        };
        self.table("", table, &|key| Origin::File {
            path: path.to_owned(),
            line: lines.get(key).copied().unwrap_or_default(),
        });
        self.problems.sort_by_key(|p| match p.origin {
            Origin::File { line, .. } => line,
            _ => 0,
        });
    }

    fn table(&mut self, prefix: &str, table: Table, origin: &dyn Fn(&str) -> Origin) {
        for (name, value) in table {
            let key = format!("{prefix}{name}");
            match value {
                Value::Table(inner) if self.expected(&key).is_some_and(|v| v.is_table()) => {
                    self.table(&format!("{key}."), inner, origin);
                }
                value => {
                    let origin = origin(&key);
                    self.put(&key, value, origin);
                }
            }
        }
    }

    fn environment(&mut self, environment: &[(String, String)]) {
        let mut environment: Vec<_> = environment.iter().collect();
        environment.sort();
        for (name, text) in environment {
            // Without `__` it names no key. Kubernetes sets such names itself for a service called casestream.
            let Some(path) = name.strip_prefix(ENV_PREFIX).filter(|p| p.contains("__")) else { continue };
            let mut key = path.to_lowercase().replace("__", ".");
            if key.starts_with(CLIENT) {
                // Names of variables have no dots, librdkafka's settings have.
                key = key.replace('_', ".");
            }
            self.text(&key, text, Origin::Environment(name.clone()));
        }
    }

    fn set(&mut self, set: &str) {
        match set.split_once('=') {
            Some((key, text)) => self.text(key.trim(), text, Origin::Set(key.trim().to_owned())),
            None => {
                self.report("", &Origin::Set(set.to_owned()), "there is no `=`", "write --set section.key=value");
            }
        }
    }

    /// A value given as text: read as TOML where the key holds a number, a flag or a list.
    fn text(&mut self, key: &str, text: &str, origin: Origin) {
        let value = match self.expected(key) {
            None | Some(Value::String(_)) => Value::String(text.to_owned()),
            Some(Value::Table(_)) => {
                return self.report(key, &origin, "is a section, not a key", format!("name a key: {key}.…"));
            }
            Some(expected) => match format!("v = {text}").parse::<Table>().ok().and_then(|mut t| t.remove("v")) {
                Some(value) => value,
                None => {
                    let wanted = kind(expected);
                    return self.report(key, &origin, format!("is not {wanted}"), format!("write {wanted}"));
                }
            },
        };
        self.put(key, value, origin);
    }

    /// The default of a key, which also says what kind of value it holds.
    fn expected(&self, key: &str) -> Option<&Value> {
        // Names of client settings contain dots themselves.
        if key.starts_with(CLIENT) {
            return None;
        }
        let mut parts = key.split('.');
        let first = self.known.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.as_table()?.get(part))
    }

    fn put(&mut self, key: &str, value: Value, origin: Origin) {
        if let Some(name) = key.strip_prefix(CLIENT) {
            return self.client_setting(key, name, value, origin);
        }
        let Some(expected) = self.expected(key).cloned() else {
            let fix = self.near(key);
            return self.report(key, &origin, "is not a key", fix);
        };
        if !expected.same_type(&value) {
            let message = format!("is {}, not {}", kind(&value), kind(&expected));
            return self.report(key, &origin, message, format!("write {}", kind(&expected)));
        }
        let range = RANGES.iter().find(|(k, _, _)| *k == key);
        if let (Value::Integer(n), Some((_, low, high))) = (&value, range)
            && !(low..=high).contains(&n)
        {
            let message = format!("is {n}, outside {low} to {high}");
            return self.report(key, &origin, message, format!("choose a number from {low} to {high}"));
        }
        let words = WORDS.iter().find(|(k, _)| *k == key);
        if let (Value::String(text), Some((_, words))) = (&value, words)
            && !words.contains(&text.as_str())
        {
            let list = words.iter().filter(|w| !w.is_empty()).copied().collect::<Vec<_>>().join(", ");
            return self.report(key, &origin, format!("does not know \"{text}\""), format!("possible: {list}"));
        }
        self.insert(key.split('.').collect(), value);
        self.origins.insert(key.to_owned(), origin);
    }

    fn client_setting(&mut self, key: &str, name: &str, value: Value, origin: Origin) {
        let text = match value {
            Value::String(text) => text,
            Value::Integer(n) => n.to_string(),
            Value::Boolean(b) => b.to_string(),
            other => {
                let message = format!("is {}, not a text", kind(&other));
                return self.report(
                    key,
                    &origin,
                    message,
                    "quote setting and value: \"socket.keepalive.enable\" = \"true\"",
                );
            }
        };
        self.insert(vec!["kafka", "client", name], Value::String(text));
        self.origins.insert(key.to_owned(), origin);
    }

    fn insert(&mut self, path: Vec<&str>, value: Value) {
        let (last, tables) = path.split_last().expect("a key has a name");
        let mut table = &mut self.tree;
        for name in tables {
            let entry = table.entry(*name).or_insert_with(|| Value::Table(Table::new()));
            table = entry.as_table_mut().expect("known keys are never both table and value");
        }
        table.insert((*last).to_owned(), value);
    }

    fn near(&self, key: &str) -> String {
        let mut keys = Vec::new();
        leaves("", &self.known, &mut keys);
        // A right name in the wrong section is as common as a misspelling.
        let name = key.rsplit('.').next().unwrap_or(key);
        let meant = nearest(key, keys.iter().map(String::as_str))
            .or_else(|| keys.iter().map(String::as_str).find(|k| k.rsplit('.').next() == Some(name)));
        match meant {
            Some(near) => format!("did you mean {near}?"),
            None => "remove it; config/casestream.toml lists every key".to_owned(),
        }
    }
}

fn leaves(prefix: &str, table: &Table, keys: &mut Vec<String>) {
    for (name, value) in table {
        match value {
            Value::Table(inner) => leaves(&format!("{prefix}{name}."), inner, keys),
            _ => keys.push(format!("{prefix}{name}")),
        }
    }
}

fn collect_lines(
    prefix: &str,
    table: &DeTable<'_>,
    line_of: &dyn Fn(usize) -> usize,
    lines: &mut BTreeMap<String, usize>,
) {
    for (name, value) in table {
        let key = format!("{prefix}{}", name.get_ref());
        if let DeValue::Table(inner) = value.get_ref() {
            collect_lines(&format!("{key}."), inner, line_of, lines);
        }
        lines.insert(key, line_of(name.span().start));
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a decimal number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a section",
    }
}
