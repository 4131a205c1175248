//! The repository's rules, as tests: arrows between modules go down only, the core has no clock, randomness or hash
//! order, every file says what it is, and the docs' links lead somewhere.

use std::fs;
use std::path::{Path, PathBuf};

/// Module → what it may use of this crate, besides itself.
const LAYERS: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("engine", &["domain"]),
    ("topology", &["domain"]),
    ("policies", &["domain", "topology", "config"]),
    ("config", &["domain", "topology"]),
    ("wire", &["domain", "engine", "topology"]),
    ("generate", &["domain"]),
    ("embedded", &[]),
    ("runtime", &["domain", "engine", "topology", "wire", "config", "policies"]),
    ("verify", &["domain", "engine", "topology", "wire", "config", "policies", "runtime"]),
    ("bench", &["domain", "engine", "topology", "wire", "config", "policies", "runtime", "generate"]),
    (
        "cli",
        &[
            "domain", "engine", "topology", "wire", "config", "policies", "runtime", "generate", "verify", "bench",
            "embedded",
        ],
    ),
];

/// Words that have no place in `domain` and `engine` outside tests.
const BANNED_IN_CORE: &[&str] = &[
    "SystemTime",
    "Instant::now",
    "Utc::now",
    "rand::",
    "std::fs",
    "std::net",
    "HashSet",
    " f64",
    " f32",
    "rdkafka",
    "redis::",
];

/// Longest function the tree may hold; only ever lowered.
const FUNCTION_LINES_MAX: usize = 120;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(dir).expect("source folder").map(|e| e.expect("entry").path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Every source file: path below `src/`, module it belongs to, text without its unit tests.
fn sources() -> Vec<(String, String, String)> {
    let mut files = Vec::new();
    rust_files(&root().join("src"), &mut files);
    files
        .into_iter()
        .map(|path| {
            let relative = path.strip_prefix(root().join("src")).expect("below src").to_string_lossy().into_owned();
            let module = relative.split('/').next().expect("a name").trim_end_matches(".rs").to_owned();
            let text = fs::read_to_string(&path).expect("readable source");
            let code = text.split("#[cfg(test)]\nmod ").next().expect("a first part").to_owned();
            (relative, module, code)
        })
        .collect()
}

/// The modules named in `crate::…` paths of a line.
fn uses(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap_or("");
    code.match_indices("crate::")
        .flat_map(|(at, _)| {
            let rest = &code[at + "crate::".len()..];
            let names = match rest.strip_prefix('{') {
                Some(group) => group.split(['}', ';']).next().unwrap_or("").split(',').collect::<Vec<_>>(),
                None => vec![rest],
            };
            names
                .into_iter()
                .map(|n| n.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>())
                .filter(|n| !n.is_empty())
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn arrows_between_modules_go_down_only() {
    let mut wrong = Vec::new();
    for (file, module, code) in sources() {
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == module) else {
            assert!(
                ["lib", "main"].contains(&module.as_str()),
                "src/{file}: module `{module}` is not in the layer table"
            );
            continue;
        };
        for (n, line) in code.lines().enumerate() {
            for used in uses(line) {
                if used != module && !allowed.contains(&used.as_str()) {
                    wrong.push(format!("src/{file}:{}: `{module}` may not use `{used}`", n + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_core_has_no_clock_randomness_or_io() {
    let mut wrong = Vec::new();
    for (file, module, code) in sources().into_iter().filter(|(_, m, _)| m == "domain" || m == "engine") {
        for (n, line) in code.lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            for word in BANNED_IN_CORE.iter().filter(|w| code.contains(**w)) {
                wrong.push(format!("src/{file}:{}: `{module}` may not contain `{word}`", n + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_is() {
    let silent: Vec<String> =
        sources().into_iter().filter(|(_, _, code)| !code.starts_with("//!")).map(|(file, ..)| file).collect();
    assert!(silent.is_empty(), "files without a `//!` header: {silent:?}");
}

#[test]
fn functions_fit_a_screen() {
    let mut long = Vec::new();
    for (file, _, code) in sources() {
        let lines: Vec<&str> = code.lines().collect();
        let mut start = None;
        for (n, line) in lines.iter().enumerate() {
            let trimmed = line.trim_start();
            let indent = line.len() - trimmed.len();
            let is_fn =
                ["fn ", "pub fn ", "pub(crate) fn ", "pub(super) fn ", "async fn ", "pub async fn ", "unsafe fn "]
                    .iter()
                    .any(|p| trimmed.starts_with(p));
            if is_fn && !trimmed.ends_with(';') {
                start = Some((n, indent));
            }
            if let Some((from, depth)) = start
                && trimmed == "}"
                && indent == depth
            {
                if n - from > FUNCTION_LINES_MAX {
                    long.push(format!("src/{file}:{}: {} lines", from + 1, n - from));
                }
                start = None;
            }
        }
    }
    assert!(long.is_empty(), "functions over {FUNCTION_LINES_MAX} lines:\n{}", long.join("\n"));
}

#[test]
fn links_in_the_docs_lead_somewhere() {
    let mut pages = vec![root().join("README.md"), root().join("CHANGELOG.md")];
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("docs folder") {
            let path = entry.expect("entry").path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|e| e == "md") => pages.push(path),
                false => {}
            }
        }
    }
    let mut broken = Vec::new();
    for page in pages {
        let text = fs::read_to_string(&page).expect("readable page");
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split([')', '#', ' ']).next().unwrap_or("");
            if target.is_empty() || target.contains("://") {
                continue;
            }
            if !page.parent().expect("a folder").join(target).exists() {
                broken.push(format!("{}: {target}", page.strip_prefix(root()).expect("below root").display()));
            }
        }
    }
    assert!(broken.is_empty(), "links to nowhere:\n{}", broken.join("\n"));
}
