//! The command line: help as it is printed, exit codes, and one JSON document on stdout.

use std::process::{Command, Output};

use casestream::cli::parser;

fn casestream(arguments: &[&str]) -> Output {
    let empty = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_casestream"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CASESTREAM_") {
            command.env_remove(name);
        }
    }
    command.current_dir(empty.path()).args(arguments).output().unwrap()
}

fn golden(name: &str, found: &str) {
    let path = format!("{}/tests/golden/cli/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), found, "{name}: UPDATE=1 rewrites it");
}

#[test]
fn the_parser_is_consistent() {
    parser(false).debug_assert();
    parser(true).debug_assert();
}

#[test]
fn help_shows_the_everyday_commands_and_all_the_rest() {
    for (name, arguments) in [("help", vec!["--help"]), ("help_all", vec!["--help", "all"])] {
        let output = casestream(&arguments);
        assert_eq!(output.status.code(), Some(0));
        golden(name, &String::from_utf8(output.stdout).unwrap());
    }
}

#[test]
fn exit_codes_say_what_went_wrong() {
    for (arguments, code) in [
        (&["check"][..], 0),
        (&["check", "--set", "engine.workers=0"], 3),
        (&["check", "--set", "policies.dir=no-such-directory"], 3),
        (&["check", "--config", "no-such-file.toml"], 3),
        (&["check", "--set", "redis.url_file=no-such-file"], 3),
        (&["policy", "show"], 0),
        (&["policy", "show", "no-such-policy"], 1),
        (&["policy", "show", "--set", "engine.workers=0"], 3),
        (&["no-such-command"], 2),
        (&["explain"], 2),
        (&["explain", "x", "--at", "yesterday"], 2),
        (&["dlq", "show", "alerts:0:0"], 2),
        (&["dlq", "list", "--since", "2026-13-01"], 2),
        (&["status", "--set", "engine.workers=0"], 3),
        (&["trace", "x", "--set", "identity.key_file=no-such-file"], 3),
        (&["check", "--output", "yaml"], 2),
        (&[], 2),
    ] {
        let output = casestream(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn json_is_one_document_and_nothing_else() {
    let good = casestream(&["check", "--output", "json"]);
    let document: serde_json::Value = serde_json::from_slice(&good.stdout).unwrap();
    assert_eq!(document["ok"], true);
    assert_eq!(document["policies"].as_array().unwrap().len(), 3);
    let bad = casestream(&["check", "--output", "json", "--set", "engine.workers=0", "--set", "x.y=1"]);
    let document: serde_json::Value = serde_json::from_slice(&bad.stdout).unwrap();
    assert_eq!(document["problems"].as_array().unwrap().len(), 2);
    assert_eq!(document["problems"][0]["key"], "engine.workers");
    assert_eq!(document["problems"][0]["origin"], "--set engine.workers");
    let shown = casestream(&["policy", "show", "general-dlp", "--output", "json"]);
    let document: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(document["policies"][0]["open_at_milli"], 40_000);
}

#[test]
fn check_reports_broken_policies_and_broken_configuration_together() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("policies")).unwrap();
    std::fs::write(dir.path().join("indicators.toml"), "api_version = \"casestream/v1\"\n").unwrap();
    let set = format!("policies.dir={}", dir.path().display());
    let output = casestream(&["check", "--set", &set, "--set", "kafka.sasl.password_file=gone"]);
    let text = String::from_utf8(output.stdout).unwrap();
    for part in ["gone: kafka.sasl.password_file: could not read it", "no `[[indicator]]`", "the set has no policy"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn check_runs_the_tests_that_policies_carry() {
    let dir = tempfile::tempdir().unwrap();
    let shipped = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    std::fs::create_dir(dir.path().join("policies")).unwrap();
    for name in ["indicators.toml", "policies/general-dlp.toml"] {
        let text = std::fs::read_to_string(shipped.join(name)).unwrap();
        std::fs::write(dir.path().join(name), text.replace("alert = true", "alert = false")).unwrap();
    }
    let set = format!("policies.dir={}", dir.path().display());
    let output = casestream(&["check", "--set", &set]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("policies/general-dlp.toml") && text.contains("expected no alert, found one"), "{text}");
}

#[cfg(feature = "vrl")]
#[test]
fn check_compiles_mappings_and_runs_their_examples() {
    let root = env!("CARGO_MANIFEST_DIR");
    let source = |mapping: &str| {
        format!("map.sources=[{{ name = \"m365-dlp\", topic = \"raw.m365-dlp\", mapping = \"{mapping}\" }}]")
    };
    let shipped = source(&format!("{root}/config/mappings/m365-dlp.toml"));
    let good = casestream(&["check", "--output", "json", "--set", &shipped]);
    let document: serde_json::Value = serde_json::from_slice(&good.stdout).unwrap();
    assert_eq!(good.status.code(), Some(0), "{document:#}");
    assert_eq!(document["mappings"][0]["source"], "m365-dlp");
    assert!(document["mappings"][0]["examples"].as_u64() > Some(0), "{document:#}");
    let bad = casestream(&["check", "--set", &source("no-such-mapping.toml")]);
    assert_eq!(bad.status.code(), Some(3));
    assert!(String::from_utf8(bad.stdout).unwrap().contains("could not read mapping no-such-mapping.toml"));
}
