//! `docs/operations.md` explains every stable code: a code without a heading there fails here, and so does a heading
//! whose code is gone.

use std::collections::BTreeSet;
use std::{fs, path::Path};

use casestream::runtime::recovery::HaltCode;
use casestream::wire::mapping::Code;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("a file of this repository")
}

/// The source without its unit tests.
fn code_of(path: &str) -> String {
    read(path).split("#[cfg(test)]\nmod ").next().expect("a first part").to_owned()
}

fn headings() -> BTreeSet<String> {
    let page = read("docs/operations.md");
    let code = |line: &str| Some(line.strip_prefix("### `")?.strip_suffix('`')?.to_owned());
    page.lines().filter_map(code).collect()
}

/// Literals that are words joined by a dot, as codes are.
fn dotted(text: &str) -> BTreeSet<String> {
    let word = |w: &str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let is_code = |l: &&str| l.split_once('.').is_some_and(|(a, b)| word(a) && word(b));
    text.split('"').skip(1).step_by(2).filter(is_code).map(str::to_owned).collect()
}

/// Right-hand sides of `Type::Variant… => "code"`.
fn arms(text: &str, of: &str) -> BTreeSet<String> {
    let arm = |line: &str| {
        let (left, right) = line.trim().split_once(" => \"")?;
        left.starts_with(of).then(|| right.split('"').next().expect("a closing quote").to_owned())
    };
    text.lines().filter_map(arm).collect()
}

fn codes() -> BTreeSet<String> {
    let mut codes: BTreeSet<String> = HaltCode::ALL.iter().map(|code| code.as_str().to_owned()).collect();
    codes.extend(Code::ALL.iter().map(|code| code.as_str().to_owned()));
    let dead = arms(&code_of("src/engine/mod.rs"), "DeadCode::");
    assert!(dead.len() >= 8, "the engine's codes are no longer found: {dead:?}");
    codes.extend(dead);
    for (file, of) in [
        ("src/wire/avro.rs", "DecodeError::"),
        ("src/wire/avro.rs", "EncodeError::"),
        ("src/wire/mapping/program.rs", "Error::"),
        ("src/runtime/registry.rs", "Error::"),
        ("src/runtime/status.rs", "Hold::"),
        ("src/cli/demo/error.rs", "Error::"),
    ] {
        let found = arms(&code_of(file), of);
        assert!(!found.is_empty(), "{file} has no codes of {of}");
        codes.extend(found);
    }
    for file in ["src/runtime/partition/fold.rs", "src/runtime/worker.rs", "src/cli/pseudonym.rs"] {
        codes.extend(dotted(&code_of(file)));
    }
    codes
}

#[test]
fn every_code_is_explained_and_every_explanation_is_of_a_code() {
    let (codes, headings) = (codes(), headings());
    let missing: Vec<_> = codes.difference(&headings).collect();
    let stale: Vec<_> = headings.difference(&codes).collect();
    assert!(missing.is_empty(), "docs/operations.md does not explain {missing:?}");
    assert!(stale.is_empty(), "docs/operations.md explains what no code is: {stale:?}");
}

#[test]
fn every_exit_code_is_in_the_table() {
    let page = read("docs/operations.md");
    for code in 0..=5 {
        assert!(page.contains(&format!("\n| {code} |")), "exit code {code}");
    }
}
