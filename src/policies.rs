//! Policies as files: reading a whole set (the catalogue and every policy), validating it at once, and naming it by the
//! hash of its content. Nothing here scores; a compiled set is `domain::policy::PolicySet`. Next: `policies/read.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::domain::policy::{Policy, PolicySet};
use crate::domain::record::PolicySetRecord;
use crate::domain::{Day, Text};

pub mod case;
pub mod catalogue;
pub mod policy;
pub mod read;

pub use case::{Case, run_tests};
pub use read::Problem;

/// The catalogue's file.
pub const CATALOGUE_FILE: &str = "indicators.toml";
/// The only format there is.
pub const API_VERSION: &str = "casestream/v1";
/// Most policies of a set.
pub const POLICIES_MAX: usize = 64;
/// Largest set, in bytes: it travels as one record.
pub const SET_BYTES_MAX: usize = 1 << 20;

/// The files of a set: name (`indicators.toml`, `policies/data-leaks.toml`) to content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files(pub BTreeMap<String, String>);

/// A compiled set with the tests its files carry.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    pub set: PolicySet,
    pub tests: Vec<Case>,
}

impl Files {
    /// The files the binary was built with.
    pub fn built_in() -> Files {
        let files = [
            (CATALOGUE_FILE, include_str!("../config/indicators.toml")),
            ("policies/data-leaks.toml", include_str!("../config/policies/data-leaks.toml")),
            ("policies/departing-users.toml", include_str!("../config/policies/departing-users.toml")),
            ("policies/general-dlp.toml", include_str!("../config/policies/general-dlp.toml")),
        ];
        Files(files.into_iter().map(|(name, content)| (name.to_owned(), content.to_owned())).collect())
    }

    /// Reads `indicators.toml` and `policies/*.toml` below a directory.
    pub fn read_dir(dir: &Path) -> Result<Files, Vec<Problem>> {
        let (mut files, mut problems) = (BTreeMap::new(), Vec::new());
        let mut names = vec![CATALOGUE_FILE.to_owned()];
        match std::fs::read_dir(dir.join("policies")) {
            Ok(entries) => names.extend(entries.flatten().filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                (name.ends_with(".toml") && !name.starts_with('.')).then(|| format!("policies/{name}"))
            })),
            Err(e) => problems.push(unreadable("policies", dir, &e)),
        }
        for name in names {
            match std::fs::read_to_string(dir.join(&name)) {
                Ok(content) => drop(files.insert(name, content)),
                Err(e) => problems.push(unreadable(&name, dir, &e)),
            }
        }
        problems.sort();
        if problems.is_empty() { Ok(Files(files)) } else { Err(problems) }
    }

    /// The files of a published set.
    pub fn from_record(record: &PolicySetRecord<'_>) -> Files {
        Files(record.files.iter().map(|(name, content)| (name.to_string(), content.to_string())).collect())
    }

    /// The record that publishes these files.
    pub fn to_record(&self) -> PolicySetRecord<'_> {
        PolicySetRecord {
            hash: Text::from(hash(self)),
            files: self.0.iter().map(|(n, c)| (Text::borrowed(n), Text::borrowed(c))).collect(),
        }
    }
}

fn unreadable(name: &str, dir: &Path, error: &std::io::Error) -> Problem {
    let message = format!("could not read it below {}: {error}", dir.display());
    Problem::of_file(
        name,
        message,
        "create it, make it readable as UTF-8, or leave out `policies.dir` for the built-in set",
    )
}

/// The name of a set: the first 16 hex digits of blake3 over names and contents.
pub fn hash(files: &Files) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in files.0.iter().flat_map(|(name, content)| [name, content]) {
        // Lengths keep two sets apart whose concatenation is the same.
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

/// Validates a whole set; everything wrong at once.
pub fn compile(files: &Files) -> Result<PolicySet, Vec<Problem>> {
    compile_with_tests(files).map(|compiled| compiled.set)
}

/// Validates a whole set and keeps the tests its files carry.
pub fn compile_with_tests(files: &Files) -> Result<Compiled, Vec<Problem>> {
    let mut problems = check_files(files);
    let catalogue = match files.0.get(CATALOGUE_FILE) {
        Some(text) => read_file(CATALOGUE_FILE, text, &mut problems, catalogue::read),
        None => None,
    };
    let usable = catalogue.is_some();
    let catalogue = catalogue.unwrap_or_default();
    let (mut policies, mut tests) = (Vec::new(), Vec::new());
    for (name, text) in &files.0 {
        // Without a catalogue every indicator of every policy would be reported as unknown.
        let Some(stem) = policy_stem(name).filter(|_| usable) else { continue };
        let version = blake3::hash(text.as_bytes()).to_hex()[..16].to_owned();
        let read = read_file(name, text, &mut problems, |root| policy::read(root, stem, version, &catalogue));
        if let Some((policy, cases)) = read {
            policies.push(policy);
            tests.extend(cases);
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    policies.sort_by(|a: &Policy, b: &Policy| a.id.cmp(&b.id));
    Ok(Compiled { set: PolicySet::new(hash(files), catalogue, policies), tests })
}

fn check_files(files: &Files) -> Vec<Problem> {
    let mut problems = Vec::new();
    if !files.0.contains_key(CATALOGUE_FILE) {
        problems.push(Problem::of_file(CATALOGUE_FILE, "the set has no catalogue", "add the file"));
    }
    let policies = files.0.keys().filter(|n| policy_stem(n).is_some()).count();
    if policies == 0 {
        problems.push(Problem::of_file("policies", "the set has no policy", "add `policies/<id>.toml`"));
    }
    if policies > POLICIES_MAX {
        let message = format!("{policies} policies, more than {POLICIES_MAX}");
        problems.push(Problem::of_file("policies", message, "remove some, or merge them by scope"));
    }
    let bytes: usize = files.0.iter().map(|(n, c)| n.len() + c.len()).sum();
    if bytes > SET_BYTES_MAX {
        let message = format!("the set has {bytes} bytes, more than {SET_BYTES_MAX}");
        problems.push(Problem::of_file("policies", message, "shorten the files; a set travels as one record"));
    }
    for name in files.0.keys().filter(|n| *n != CATALOGUE_FILE && policy_stem(n).is_none()) {
        let fix = format!("only `{CATALOGUE_FILE}` and `policies/<id>.toml` belong to a set");
        problems.push(Problem::of_file(name, "this file does not belong to a set", fix));
    }
    problems
}

/// `policies/data-leaks.toml` → `data-leaks`.
fn policy_stem(name: &str) -> Option<&str> {
    name.strip_prefix("policies/")?.strip_suffix(".toml").filter(|stem| !stem.is_empty() && !stem.contains('/'))
}

fn read_file<T>(
    name: &str,
    text: &str,
    problems: &mut Vec<Problem>,
    read: impl FnOnce(&read::Section<'_, '_>) -> T,
) -> Option<T> {
    let sheet = read::Sheet::new(name, text);
    let table = sheet.parse();
    // After a syntax error the rest of the tree is guesswork; complaints about it would mislead.
    let value = (!sheet.is_broken()).then(|| read(&sheet.root(&table)));
    problems.extend(sheet.into_problems());
    value
}

fn api_version(root: &read::Section<'_, '_>) {
    root.word("api_version", &[API_VERSION], true);
}

/// An id: lower-case words joined by `-` or `_`.
fn id(section: &read::Section<'_, '_>, key: &str, example: &str) -> String {
    let id = section.text(key, example);
    let starts_well = id.starts_with(|c: char| c.is_ascii_lowercase());
    let plain = id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
    if !id.is_empty() && (!starts_well || !plain || id.len() > catalogue::ID_CHARS_MAX) {
        section.report_at(
            key,
            format!("\"{id}\" is not an id"),
            format!("use lower-case letters, digits, `-` and `_`, at most {} of them", catalogue::ID_CHARS_MAX),
        );
    }
    id.to_owned()
}

/// A calendar day as text.
fn day(section: &read::Section<'_, '_>, key: &str) -> Day {
    let text = section.text(key, "2027-06-30");
    Day::parse(text).unwrap_or_else(|| {
        if !text.is_empty() {
            section.report_at(key, format!("\"{text}\" is not a day"), "write it as \"YYYY-MM-DD\", 2000 to 2106");
        }
        Day::default()
    })
}

/// A list of directory groups, each once.
fn groups(section: &read::Section<'_, '_>, key: &str) -> Vec<String> {
    let words = section.texts(key);
    let mut seen = BTreeSet::new();
    for word in &words {
        if !seen.insert(word.text) {
            section.report_span(word.at.clone(), format!("`{}` stands in `{key}` twice", word.text), "remove one");
        }
    }
    if words.len() > catalogue::LIST_MAX {
        let message = format!("`{key}` has {} entries, more than {}", words.len(), catalogue::LIST_MAX);
        section.report_at(key, message, "shorten the list");
    }
    words.into_iter().map(|w| w.text.to_owned()).collect()
}
