//! The committed mappings against their own examples, the vendors' samples (where present), and hostile input.
#![cfg(feature = "vrl")]

#[path = "mapping/mutate.rs"]
mod mutate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use casestream::domain::Timestamp;
use casestream::domain::signal::RESOURCES_MAX;
use casestream::wire::mapping::{
    Code, DENIED, Draft, Error, Example, MapConfig, Mapping, Outcome, RawMeta, UNBOUNDED, check_examples, describe,
    parse_examples,
};

/// Mapping files below `config/mappings`, and the vendors' sample each is run over.
const SOURCES: [(&str, Option<&str>); 25] = [
    ("m365-dlp", Some("m365_dlp_audit.ndjson")),
    ("google-workspace", Some("google_workspace_reports.ndjson")),
    ("code42", Some("code42_incydr_file_events.ndjson")),
    ("box", Some("box_events.ndjson")),
    ("okta", Some("okta_system_log.ndjson")),
    ("github", Some("github_audit.ndjson")),
    ("netskope", Some("netskope.ndjson")),
    ("entra", Some("entra_signin_audit.ndjson")),
    ("contrib/aws-cloudtrail", Some("aws_cloudtrail_s3_exfil.ndjson")),
    ("contrib/code42-alerts", Some("code42_incydr_alerts.ndjson")),
    ("contrib/code42-v1", Some("code42_security_events_v1.ndjson")),
    ("contrib/m365-audit", Some("m365_audit_panther.ndjson")),
    ("contrib/onepassword", Some("onepassword_audit.ndjson")),
    ("contrib/purview-badging", Some("purview_physical_badging.ndjson")),
    ("contrib/purview-hr", Some("purview_hr_connector.ndjson")),
    ("contrib/salesforce", Some("salesforce_setup_audit_trail.ndjson")),
    ("contrib/slack", Some("slack_audit.ndjson")),
    ("contrib/symantec-dlp", Some("symantec_dlp_cef.ndjson")),
    ("contrib/workday", Some("workday_activity.ndjson")),
    ("contrib/zscaler", Some("zscaler_nss.ndjson")),
    ("generic/cef", None),
    ("generic/hr-csv", None),
    ("generic/indicators-csv", None),
    ("generic/ocsf", None),
    ("generic/plain-json", None),
];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn mapping(source: &str) -> Mapping {
    let path = repository().join("config/mappings").join(format!("{source}.toml"));
    Mapping::load(&path).unwrap_or_else(|e| panic!("{e}"))
}

/// The mapping under the configuration of its examples, and the examples.
fn with_examples(source: &str) -> (Mapping, Vec<Example>) {
    let file = format!("config/mappings/{source}.test.toml");
    let text = std::fs::read_to_string(repository().join(&file)).unwrap();
    let (config, examples) = parse_examples(&file, &text).unwrap_or_else(|e| panic!("{e}"));
    (mapping(source).with_config(&config), examples)
}

fn samples(file: &str) -> Option<Vec<String>> {
    let folder = std::env::var("CASESTREAM_SAMPLES").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|_| repository().join("../shared/samples/vendor"));
    match std::fs::read_to_string(folder.join(file)) {
        Ok(text) => Some(text.lines().map(str::to_owned).collect()),
        Err(_) => {
            eprintln!("skipped: no {file}; name its folder in CASESTREAM_SAMPLES");
            None
        }
    }
}

/// Domains of the lab tenants in the samples.
fn samples_config() -> MapConfig {
    let domains = ["testsiem.onmicrosoft.com", "testsiem2.onmicrosoft.com", "cloud-response.com", "example.com"];
    MapConfig { company_domains: domains.map(str::to_owned).to_vec(), ..MapConfig::default() }
}

fn at(offset: i64) -> RawMeta<'static> {
    RawMeta { topic: "raw.test", partition: 0, offset, timestamp: Timestamp(1_767_225_600_000) }
}

fn row(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Signals(drafts) => {
            let op = if drafts[0].signal.op == "create" { String::new() } else { format!("{} ", drafts[0].signal.op) };
            let ids: Vec<&str> = drafts.iter().map(|d| d.signal.indicator.as_str()).collect();
            format!("{op}{}", ids.join("+"))
        }
        Outcome::Ignored(reason) => format!("ignored {reason}"),
        Outcome::Dead { code, .. } => format!("dead {}", code.as_str()),
    }
}

/// Every mapping file is listed above: none is untested.
#[test]
fn every_mapping_is_listed() {
    let root = repository().join("config/mappings");
    let mut found = Vec::new();
    for folder in ["", "contrib", "generic"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if let Some(name) = name.strip_suffix(".toml").filter(|n| !n.ends_with(".test")) {
                found.push(if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") });
            }
        }
    }
    found.sort();
    let mut listed = SOURCES.map(|(source, _)| source.to_owned());
    listed.sort();
    assert_eq!(found, listed);
    for (source, _) in SOURCES {
        assert_eq!(mapping(source).source(), source.rsplit('/').next().unwrap(), "the file is named as its source");
    }
}

#[test]
fn examples_hold() {
    let mut differences = Vec::new();
    for (source, _) in SOURCES {
        let (mut mapping, examples) = with_examples(source);
        assert!(examples.len() >= 6, "{source} has examples");
        let outcomes: Vec<String> = examples.iter().flat_map(|e| e.expect.clone()).collect();
        for start in ["create ", "ignored ", "dead "] {
            let shown = outcomes.iter().any(|line| line.starts_with(start));
            assert!(shown || (start == "ignored " && source == "generic/plain-json"), "{source} shows `{start}`");
        }
        differences.extend(check_examples(&mut mapping, &examples).into_iter().map(|d| format!("{source}: {d}")));
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// What a mapping calls an act, the catalogue knows: an unknown word would score nothing.
#[test]
fn indicators_are_in_the_catalogue() {
    let set = casestream::policies::compile(&casestream::policies::Files::built_in()).unwrap();
    let known = |word: &str| set.catalogue.indicators.iter().any(|i| i.id == word);
    let mut unknown = Vec::new();
    for (source, _) in SOURCES {
        let text = std::fs::read_to_string(repository().join(format!("config/mappings/{source}.toml"))).unwrap();
        let file: toml::Table = text.parse().unwrap();
        let tables = file.get("tables").and_then(toml::Value::as_table).cloned().unwrap_or_default();
        let words = tables.iter().filter(|(name, _)| !["ignored", "outcome", "severity"].contains(&name.as_str()));
        let words =
            words.flat_map(|(_, rows)| rows.as_table().unwrap().values()).map(|v| v.as_str().unwrap().to_owned());
        let literal = |start: &'static str| {
            let after = text.split(start).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
            after.filter(|word| !word.is_empty()).collect::<Vec<_>>()
        };
        let literals = [literal("indicator = \""), literal("\"indicator\": \"")].concat();
        unknown.extend(words.chain(literals).filter(|word| !known(word)).map(|word| format!("{source}: {word}")));
    }
    assert!(unknown.is_empty(), "{unknown:?}");
}

/// What every line of the vendors' samples becomes, counted. `UPDATE=1 cargo test --test mapping` rewrites the golden.
#[test]
fn samples_are_all_accounted_for() {
    let mut page = String::new();
    for (source, file) in SOURCES {
        let Some(file) = file else { continue };
        let Some(lines) = samples(file) else { return };
        let mut mapping = mapping(source).with_config(&samples_config());
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for (n, line) in lines.iter().enumerate() {
            *counts.entry(row(&mapping.run(line.as_bytes(), &at(n as i64)))).or_default() += 1;
        }
        let rows = |start: &str| counts.iter().filter(|(r, _)| r.starts_with(start)).map(|(_, n)| n).sum::<u32>();
        let (ignored, dead) = (rows("ignored "), rows("dead "));
        let mapped = lines.len() as u32 - ignored - dead;
        page += &format!("{source}: {} in = {mapped} mapped + {ignored} ignored + {dead} dead\n", lines.len());
        page.extend(counts.iter().map(|(row, n)| format!("  {n:>3} {row}\n")));
    }
    let path = repository().join("tests/golden/mapping-samples.txt");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), page, "UPDATE=1 cargo test --test mapping");
}

/// An undo carries the id of the match it undoes, and two records of one incident share an activity.
#[test]
fn samples_keep_acts_together() {
    let Some(lines) = samples("m365_dlp_audit.ndjson") else { return };
    let mut mapping = mapping("m365-dlp").with_config(&samples_config());
    let mut first = |n: usize| match mapping.run(lines[n].as_bytes(), &at(0)) {
        Outcome::Signals(mut drafts) => drafts.remove(0),
        other => panic!("line {n}: {other:?}"),
    };
    let (matched, undone) = (first(0), first(1));
    assert_eq!(matched.signal.source_event_id, undone.signal.source_event_id);
    assert_ne!(matched.signal.signal_id, undone.signal.signal_id);
    assert_eq!(matched.subject.value, "asr@testsiem2.onmicrosoft.com");
    assert_eq!((matched.signal.vendor_severity, matched.signal.count), (Some("High".into()), 1));
    let (high, low) = (first(3), first(4));
    assert_ne!(high.signal.source_event_id, low.signal.source_event_id);
    assert!(high.signal.activity_key.is_some() && high.signal.activity_key == low.signal.activity_key);
}

const NO_MAPPING: &str = r#"
id = "t"
source = "t"
description = "for tests"
event_id = "none"
program = '''
PROGRAM
'''
"#;

fn inline(program: &str) -> Result<Mapping, Error> {
    Mapping::parse("t.toml", &NO_MAPPING.replace("PROGRAM", program))
}

#[test]
fn what_would_not_replay_does_not_compile() {
    for name in DENIED.into_iter().chain(UNBOUNDED) {
        let error =
            inline(&format!("x = {name}!(.a)\n{{ \"signals\": [x] }}")).err().unwrap_or_else(|| panic!("{name}"));
        assert!(
            error.to_string().contains(&format!("undefined function: {name}"))
                || error.code() == "mapping_file.program"
        );
        assert!(error.to_string().contains("call to undefined function"), "{name}: {error}");
    }
    for call in ["parse_timestamp!(.a, \"%F\", timezone: \"local\")", "format_timestamp!(.a, \"%F\", \"local\")"] {
        let error = inline(&format!("x = {call}\n{{ \"signals\": [x] }}")).err().unwrap_or_else(|| panic!("{call}"));
        assert_eq!(error.code(), "mapping_file.program", "{call}");
    }
}

#[test]
fn errors_name_file_line_and_cause() {
    let cases: [(&str, &str, &[&str]); 10] = [
        ("id = 1", "mapping_file.malformed", &["t.toml, line 1"]),
        ("id = \"t\"\nsourc = \"t\"", "mapping_file.malformed", &["line 2", "sourc"]),
        (&NO_MAPPING.replace("\"t\"", "\"T \""), "mapping_file.invalid", &["`id` must be"]),
        (&NO_MAPPING.replace("for tests", " "), "mapping_file.invalid", &["`description`"]),
        (
            &NO_MAPPING.replace("PROGRAM", "\n\nx = nonsense(1)"),
            "mapping_file.program",
            &["t.toml", ":9:5", "nonsense"],
        ),
        (
            &NO_MAPPING.replace("id = \"t\"", "id = \"t\"\ninput = \"xml\""),
            "mapping_file.malformed",
            &["line 3", "xml"],
        ),
        (
            &NO_MAPPING.replace("id = \"t\"", "id = \"t\"\ninput = \"csv\""),
            "mapping_file.invalid",
            &["csv.columns", "[csv]"],
        ),
        (&NO_MAPPING.replace("PROGRAM", "x = time(.a, \"seconds\")"), "mapping_file.program", &["`form` must be"]),
        (&NO_MAPPING.replace("PROGRAM", "x = time(.a, \"s\", \"CET\")"), "mapping_file.program", &["`zone` must be"]),
        (&NO_MAPPING.replace("PROGRAM", "%kafka.offset = 1\n{}"), "mapping_file.program", &[":7:", "read-only"]),
    ];
    for (text, code, parts) in cases {
        let error = Mapping::parse("t.toml", text).err().unwrap_or_else(|| panic!("{text}"));
        assert_eq!(error.code(), code, "{error}");
        for part in parts {
            assert!(error.to_string().contains(part), "{part} in {error}");
        }
    }
    let error = Mapping::load(Path::new("no/such/file.toml")).err().unwrap();
    assert!(error.to_string().starts_with("could not read mapping no/such/file.toml"), "{error}");
}

/// A failing program names its line and function, never the event's values.
#[test]
fn program_failures_keep_values_to_themselves() {
    let mut mapping = inline("x = parse_timestamp!(.when, \"%F %T\")\n{ \"signals\": [x] }").unwrap();
    let Outcome::Dead { code, message } = mapping.run(br#"{"when":"secret value"}"#, &at(0)) else { panic!("no") };
    assert_eq!(code, Code::MappingError);
    assert!(message.contains("line 7: parse_timestamp failed"), "{message}");
    assert!(!message.contains("secret"), "{message}");
}

/// What the builder makes of one signal's fields.
#[test]
fn the_builder_accepts_and_refuses() {
    let base = r#""indicator": "print", "occurred_at": "2026-01-02T03:04:05Z", "subject": {"kind": "email", "value": "A@b.example"}"#;
    for (fields, expect) in [
        ("", "ok"),
        (r#", "count": "14", "bytes": 5.0, "confidence": 1000, "labels": ["A", "a", null], "op": "revise""#, "ok"),
        (r#", "occurred_at": 1767225600000"#, "ok"),
        (r#", "occurred_at": 1767225600"#, "signal.bad_time"),
        (r#", "occurred_at": 0"#, "signal.time_sentinel"),
        (r#", "occurred_at": "1601-01-01T00:00:00Z""#, "signal.time_sentinel"),
        (r#", "occurred_at": "2106-12-31T00:00:00Z""#, "signal.bad_time"),
        (r#", "occurred_at": "yesterday""#, "signal.bad_time"),
        (r#", "occurred_at": ["x"]"#, "signal.bad_time"),
        (r#", "occurred_at": null"#, "ok"),
        (r#", "subject": null"#, "signal.no_user"),
        (r#", "subject": []"#, "signal.no_user"),
        (r#", "subject": [{"kind": "email", "value": "N/A"}, {"kind": "sid", "value": "S-1-5-18"}]"#, "signal.no_user"),
        (r#", "subject": {"kind": "nickname", "value": "a"}"#, "signal.bad_field"),
        (r#", "indicator": "Print!""#, "signal.bad_indicator"),
        (r#", "indicator": null"#, "signal.bad_indicator"),
        (r#", "indicator": "some_new_thing""#, "ok"),
        (r#", "count": -1"#, "signal.bad_field"),
        (r#", "count": "many""#, "signal.bad_field"),
        (r#", "confidence": 1001"#, "signal.bad_field"),
        (r#", "outcome": "perhaps""#, "signal.bad_field"),
        (r#", "op": "undo""#, "signal.bad_field"),
        (r#", "secret_extra": "x""#, "signal.bad_field"),
        (r#", "labels": "x""#, "signal.bad_field"),
        (r#", "resources": [{"name": "a", "password": "x"}]"#, "signal.bad_field"),
        (r#", "destination": {"kind": "planet", "value": "x"}"#, "signal.bad_field"),
        (r#", "attributes": {"Odd Key": "x"}"#, "signal.bad_field"),
    ] {
        let event = format!("{{{base}{fields}}}");
        let outcome = inline("{ \"signals\": [.] }").unwrap().run(event.as_bytes(), &at(0));
        let got = if let Outcome::Signals(drafts) = &outcome { drafts.len().to_string() } else { row(&outcome) };
        assert_eq!(got, if expect == "ok" { "1".to_owned() } else { format!("dead {expect}") }, "{event}");
    }
}

#[test]
fn results_of_another_shape_are_dead_letters() {
    for (program, expect) in [
        ("[1]", "dead mapping.result"),
        ("{}", "dead mapping.result"),
        ("{ \"signals\": [] }", "dead mapping.result"),
        ("{ \"signals\": [1] }", "dead mapping.result"),
        ("{ \"ignored\": \"Not a word!\" }", "dead mapping.result"),
        ("{ \"ignored\": \"noise\" }", "ignored noise"),
        ("{ \"dead\": \"odd\" }", "dead mapping.rejected"),
        ("abort", "dead mapping.error"),
    ] {
        assert_eq!(row(&inline(program).unwrap().run(b"{}", &at(0))), expect, "{program}");
    }
}

/// A program that runs away is stopped after a number of steps, not after a time.
#[test]
fn steps_are_bounded() {
    let program = "n = 0\nfor_each(array!(.a)) -> |_, _| { for_each(array!(.a)) -> |_, _| { n = n + 1 } }\n{ \"ignored\": \"x\" }";
    let event = format!("{{\"a\":[{}0]}}", "0,".repeat(20_000));
    assert_eq!(row(&inline(program).unwrap().run(event.as_bytes(), &at(0))), "dead mapping.budget");
}

#[test]
fn hostile_input_ends_with_a_code() {
    let person = r#""actor":{"email":"ann@example.com"}"#;
    let download = |id: &str, actor: &str| {
        format!(
            r#"{{"id":{{"applicationName":"drive","uniqueQualifier":1{id}}}{actor},"events":[{{"name":"download"}}]}}"#
        )
    };
    let person_after = format!(",{person}");
    let nested = format!("{{\"a\":{}{}}}", "[".repeat(100), "]".repeat(100));
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(1 << 20));
    let huge_number =
        download(r#","x":123456789012345678901234567890e999,"time":"2026-01-02T03:04:05Z""#, &person_after);
    let mut mapping = mapping("google-workspace");
    for (raw, expect) in [
        (&b""[..], "dead record.empty"),
        (b" \r\n", "dead record.empty"),
        (b"{\"id\":{\"appli", "dead json.malformed"),
        (b"{\"a\":1}{\"a\":2}", "dead json.malformed"),
        (b"{\"a\":\"\0\"}", "dead json.malformed"),
        (b"{\"a\":\"\xc3\x28\"}", "dead json.not_utf8"),
        (b"\xff\xfe{\0}\0", "dead json.not_utf8"),
        (b"[{\"a\":1}]", "dead json.not_object"),
        (b"42", "dead json.not_object"),
        (b"{}", "dead mapping.rejected"),
        (b"{\"id\":[],\"events\":{\"a\":1},\"actor\":7}", "dead mapping.rejected"),
        (nested.as_bytes(), "dead json.too_deep"),
        (large.as_bytes(), "dead record.too_large"),
        (huge_number.as_bytes(), "download"),
        (download(r#","time":"2026-01-02T03:04:05Z""#, "").as_bytes(), "dead signal.no_user"),
        (
            download(r#","time":"2026-01-02T03:04:05Z""#, r#","actor":{"email":"\u0000 "}"#).as_bytes(),
            "dead signal.no_user",
        ),
        (download("", &person_after).as_bytes(), "download"),
        (download(r#","time":"0001-01-01T00:00:00Z""#, &person_after).as_bytes(), "dead signal.time_sentinel"),
        (download(r#","time":"1970-01-01T00:00:00Z""#, &person_after).as_bytes(), "dead signal.time_sentinel"),
        (download(r#","time":"2106-12-31T00:00:00Z""#, &person_after).as_bytes(), "dead signal.bad_time"),
        (download(r#","time":"31/12/2025""#, &person_after).as_bytes(), "dead signal.bad_time"),
    ] {
        assert_eq!(row(&mapping.run(raw, &at(0))), expect, "{}", String::from_utf8_lossy(&raw[..raw.len().min(120)]));
    }
    let sentinel = RawMeta { timestamp: Timestamp(0), ..at(0) };
    assert_eq!(row(&mapping.run(download("", &person_after).as_bytes(), &sentinel)), "dead signal.no_time");
    // What came before leaves no trace.
    assert_eq!(row(&mapping.run(download("", &person_after).as_bytes(), &at(0))), "download");
}

/// Own examples and, where present, the samples.
fn corpus(source: &str, file: Option<&str>) -> Vec<String> {
    let examples = with_examples(source).1.into_iter().map(|example| example.event);
    examples.chain(file.and_then(samples).unwrap_or_default()).collect()
}

/// How many mutated events are run over all sources; `CASESTREAM_MUTATIONS` and `CASESTREAM_SEED` choose other ones.
fn mutations() -> (u64, u64) {
    let number = |name: &str, or: u64| std::env::var(name).ok().map_or(or, |n| n.parse().expect("a number"));
    (number("CASESTREAM_MUTATIONS", 50_000), number("CASESTREAM_SEED", 20_261_124))
}

/// A mutated event; of a CEF or CSV line the text is mutated.
fn mutated(event: &serde_json::Value, random: &mut mutate::Random) -> Vec<u8> {
    let bytes = mutate::mutate(event, random);
    match (event, serde_json::from_slice(&bytes)) {
        (serde_json::Value::String(_), Ok(serde_json::Value::String(text))) => text.into_bytes(),
        _ => bytes,
    }
}

#[test]
fn mutated_events_never_panic_and_stay_in_bounds() {
    let (total, seed) = mutations();
    let mut random = mutate::Random::new(seed);
    for (source, file) in SOURCES {
        let mut mapping = with_examples(source).0;
        let parsed = |event: &String| serde_json::from_str(event).unwrap_or_else(|_| event.as_str().into());
        let corpus: Vec<serde_json::Value> = corpus(source, file).iter().map(parsed).collect();
        let mut rows: BTreeMap<String, u32> = BTreeMap::new();
        for n in 0..total / SOURCES.len() as u64 + 1 {
            let event = mutated(&corpus[random.below(corpus.len())], &mut random);
            let outcome = mapping.run(&event, &at(n as i64));
            let broken = [Code::MappingPanic, Code::MappingBudget, Code::MappingResult, Code::MappingError];
            match &outcome {
                Outcome::Signals(drafts) => drafts.iter().for_each(in_bounds),
                Outcome::Dead { code, message } if broken.contains(code) => {
                    panic!("{source}: {} {message}: {}", code.as_str(), String::from_utf8_lossy(&event))
                }
                _ => {}
            }
            *rows.entry(row(&outcome)).or_default() += 1;
        }
        assert!(rows.len() > 4, "{source}: the mutations reach many outcomes: {rows:?}");
    }
}

fn in_bounds(draft: &Draft) {
    let s = &draft.signal;
    assert!((Timestamp(946_684_800_000)..=Timestamp(4_294_967_295_000)).contains(&s.occurred_at));
    assert!(!s.indicator.is_empty() && !s.source_event_id.is_empty() && s.source_event_id.len() <= 256);
    assert!(s.resources.len() <= RESOURCES_MAX && s.attributes.len() <= 32 && s.labels.len() <= 32);
    assert!(s.count >= 0 && s.bytes.is_none_or(|b| b >= 0) && !draft.subject.value.is_empty());
    let texts = s.attributes.values().chain(&s.labels).chain(s.resources.iter().filter_map(|r| r.name.as_ref()));
    for text in texts.chain(&s.policy_name).chain(&s.app).chain(s.destination.as_ref().map(|d| &d.value)) {
        assert!(text.len() <= 512 && !text.contains(['\0', '\u{200b}', '\u{202e}']), "{text}");
    }
}

/// The child half of `replays_alike`: prints a hash of every outcome.
#[test]
fn digest_of_outcomes() {
    let mut hasher = blake3::Hasher::new();
    for (source, file) in SOURCES {
        let mut mapping = with_examples(source).0;
        for (n, event) in corpus(source, file).iter().enumerate() {
            hasher.update(format!("{:?}", mapping.run(event.as_bytes(), &at(n as i64))).as_bytes());
        }
    }
    println!("digest={}", hasher.finalize().to_hex());
}

/// The same bytes give the same signals in another time zone, locale and process, at another time.
#[test]
fn replays_alike() {
    let digest = |zone: &str| {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let command = command.args(["--exact", "digest_of_outcomes", "--nocapture"]);
        let output = command.env("TZ", zone).env("LC_ALL", "C").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().find_map(|l| l.split_once("digest=").map(|(_, d)| d.to_owned())).expect("the child prints one")
    };
    assert_eq!(digest("Asia/Tokyo"), digest("America/Los_Angeles"));
}

#[test]
fn identity_of_a_mapping_is_id_and_content() {
    let one = inline("{ \"ignored\": \"x\" }").unwrap();
    let two = inline("{ \"ignored\": \"y\" }").unwrap();
    assert!(one.id_at_hash().starts_with("t@") && one.id_at_hash().len() == 14);
    assert_ne!(one.id_at_hash(), two.id_at_hash());
    assert_eq!(one.id_at_hash(), inline("{ \"ignored\": \"x\" }").unwrap().id_at_hash());
}

#[test]
fn every_code_is_documented() {
    let text = std::fs::read_to_string(repository().join("docs/mappings.md")).unwrap();
    for code in Code::ALL {
        let line = format!("| `{}` | {} | {} |", code.as_str(), code.lane(), code.meaning());
        assert!(text.contains(&line), "docs/mappings.md lacks: {line}");
    }
}

/// Several signals of one record are told apart, and what is said twice of one event is refused.
#[test]
fn a_record_maps_whole_or_not_at_all() {
    let one =
        r#"{"indicator": "print", "subject": {"kind": "email", "value": "a@b.example"}, "source_event_id": "e-1"}"#;
    let other = one.replace("e-1", "e-2");
    let mut mapping = inline("{ \"signals\": .list }").unwrap();
    let mut run = |list: &str| describe(&mapping.run(format!("{{\"list\":[{list}]}}").as_bytes(), &at(0))).join(" / ");
    assert!(run(&format!("{one},{other}")).contains("id e-2"));
    assert!(run(&format!("{one},{one}")).starts_with("dead signal.bad_field"));
    let broken = one.replace("print", "P");
    assert!(run(&format!("{one},{broken}")).starts_with("dead signal.bad_indicator (signal 1"));
    assert!(run(&vec![one; 101].join(",")).starts_with("dead signal.too_many"));
}

fn example_file(name: &str) -> String {
    std::fs::read_to_string(repository().join("examples/plain-json").join(name)).unwrap()
}

/// The plain form's mapping, with a program in front that shapes the event first.
fn plain_json_behind(program: &str) -> Mapping {
    let text = std::fs::read_to_string(repository().join("config/mappings/generic/plain-json.toml")).unwrap();
    let text = text.replacen("program = '''\n", &format!("program = '''\n{program}\n"), 1);
    Mapping::parse("plain-json.toml", &text).unwrap_or_else(|e| panic!("{e}"))
}

/// What the collectors of `examples/plain-json` write is what the plain form reads. Vector's program is the same
/// language: it runs here as it stands.
#[test]
fn collectors_write_the_plain_form() {
    let vector: toml::Table = example_file("vector.toml").parse().unwrap();
    let source = vector["transforms"]["plain"]["source"].as_str().unwrap();
    let input = vector["tests"][0]["inputs"][0]["value"].as_str().unwrap();
    let event = serde_json::json!({ "message": input }).to_string();
    for (name, mut mapping, event, expect) in [
        (
            "vector",
            plain_json_behind(source),
            event,
            "create removable_media_copy by sid:s-1-5-21-7 at 2026-03-02T08:15:30.000Z id u-1 blocked bytes 2048 to external device:sn-42 file [plan.xlsx]",
        ),
        (
            "fluent-bit",
            plain_json_behind(""),
            example_file("fluent-bit.expected.json"),
            "create print by upn:ann@example.com at 2026-03-02T07:15:30.000Z id job-7 allowed document=plan.xlsx printer=2nd floor",
        ),
        (
            "kafka-connect",
            plain_json_behind(""),
            example_file("kafka-connect.expected.json"),
            "create badge_denied by upn:ann@example.com at 2026-03-02T08:15:30.000Z id 4711 blocked",
        ),
    ] {
        assert_eq!(describe(&mapping.run(event.as_bytes(), &at(0))), [expect], "{name}");
    }
    let connect: serde_json::Value = serde_json::from_str(&example_file("kafka-connect.json")).unwrap();
    let query = connect["config"]["query"].as_str().unwrap();
    let event: serde_json::Value = serde_json::from_str(&example_file("kafka-connect.expected.json")).unwrap();
    for field in event.as_object().unwrap().keys() {
        assert!(query.contains(field), "the query selects `{field}`");
    }
}

/// The schema of the plain form names what its mapping reads, and the page explains each.
#[test]
fn the_plain_form_is_described() {
    let schema: serde_json::Value = serde_json::from_str(&example_file("schema.json")).unwrap();
    let mapping = std::fs::read_to_string(repository().join("config/mappings/generic/plain-json.toml")).unwrap();
    let page = std::fs::read_to_string(repository().join("docs/plain-json.md")).unwrap();
    let read = |name: &str| mapping.contains(&format!(".{name}"));
    for name in schema["properties"].as_object().unwrap().keys() {
        assert!(read(name) && page.contains(&format!("| `{name}` |")), "{name}");
    }
    let event = page.split("```json\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let outcome = plain_json_behind("").run(event.as_bytes(), &at(0));
    assert!(matches!(&outcome, Outcome::Signals(drafts) if drafts.len() == 1), "{:?}", describe(&outcome));
}

/// Every source has a part in docs/sources.md.
#[test]
fn every_source_is_documented() {
    let page = std::fs::read_to_string(repository().join("docs/sources.md")).unwrap();
    for (source, _) in SOURCES {
        assert!(
            page.contains(&format!("\n## {}\n", source.rsplit('/').next().unwrap())),
            "docs/sources.md lacks {source}"
        );
    }
}
