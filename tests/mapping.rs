//! The committed mappings against their own examples, the vendors' samples (where present), and hostile input.
#![cfg(feature = "vrl")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use casestream::domain::Timestamp;
use casestream::wire::mapping::{
    Code, DENIED, Draft, MapConfig, Mapping, Outcome, RawMeta, check_examples, parse_examples,
};

const SOURCES: [(&str, &str); 3] = [
    ("m365-dlp", "m365_dlp_audit.ndjson"),
    ("google-workspace", "google_workspace_reports.ndjson"),
    ("code42", "code42_incydr_file_events.ndjson"),
];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn mapping(source: &str) -> Mapping {
    let path = repository().join("config/mappings").join(format!("{source}.toml"));
    Mapping::load(&path).unwrap_or_else(|e| panic!("{e}"))
}

fn samples(file: &str) -> Option<Vec<String>> {
    let folder = std::env::var("CASESTREAM_SAMPLES").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|_| repository().join("../shared/samples/vendor"));
    match std::fs::read_to_string(folder.join(file)) {
        Ok(text) => Some(text.lines().map(str::to_owned).collect()),
        Err(_) => {
            eprintln!("skipped: no {file}; name the folder in CASESTREAM_SAMPLES");
            None
        }
    }
}

fn at(offset: i64) -> RawMeta<'static> {
    RawMeta { topic: "raw.test", partition: 0, offset, timestamp: Timestamp(1_767_225_600_000) }
}

fn row(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Signals(drafts) => {
            let ids: Vec<&str> = drafts.iter().map(|d| d.signal.indicator.as_str()).collect();
            format!("signals {}", ids.join("+"))
        }
        Outcome::Ignored(reason) => format!("ignored {reason}"),
        Outcome::Dead { code, .. } => format!("dead {}", code.as_str()),
    }
}

#[test]
fn zz_dump() {
    for (source, file) in SOURCES {
        let config = MapConfig {
            company_domains: vec![
                "testsiem2.onmicrosoft.com".into(),
                "testsiem.onmicrosoft.com".into(),
                "cloud-response.com".into(),
                "example.com".into(),
            ],
            ..MapConfig::default()
        };
        let mapping = Mapping::load(&repository().join("config/mappings").join(format!("{source}.toml")));
        let mut mapping = match mapping {
            Ok(m) => m.with_config(&config),
            Err(e) => {
                eprintln!("{e}");
                continue;
            }
        };
        let Some(lines) = samples(file) else { continue };
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for (n, line) in lines.iter().enumerate() {
            let out = mapping.run(line.as_bytes(), &at(n as i64));
            *counts.entry(row(&out)).or_default() += 1;
            if let Outcome::Dead { message, code } = &out {
                eprintln!("{source} {n} {} {message}", code.as_str());
            }
        }
        eprintln!("{source} {counts:#?}");
    }
}
