//! A running process tells every metric of the table, with the labels of the table, and no other; and it refuses a
//! pseudonym key that is not the directory's.
#![cfg(feature = "vrl")]

#[path = "e2e/reading.rs"]
mod reading;
mod support;
#[path = "e2e/system.rs"]
mod system;

use std::collections::BTreeSet;
use std::fs;

use casestream::runtime::telemetry::{
    DLQ_RECORDS_TOTAL, METRICS, Metric, RECORDS_INVALID_TOTAL, REGISTRY_REQUESTS_TOTAL,
};
use support::wait_for;
use system::{Inputs, Node, PATIENCE, System, text};

const ENGINE: &str = "session_timeout_ms = 6000";
/// What a healthy run need not show: nothing is invalid, and no registry is configured.
const NOT_ALWAYS: [&str; 3] = [RECORDS_INVALID_TOTAL, DLQ_RECORDS_TOTAL, REGISTRY_REQUESTS_TOTAL];

/// The metric of a sample line.
fn metric_of(name: &str) -> Option<&'static Metric> {
    let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
    METRICS.iter().find(|m| m.name == name || Some(m.name) == base)
}

/// Samples as name and label names.
fn samples(page: &str) -> impl Iterator<Item = (&str, Vec<&str>)> {
    page.lines().filter(|line| line.starts_with("casestream_")).map(|line| {
        let (name, rest) = line.split_at(line.find(['{', ' ']).expect("a value"));
        let labels = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(labels, _)| labels);
        (name, labels.split("\",").filter_map(|label| Some(label.split_once('=')?.0)).collect())
    })
}

fn missing(page: &str) -> Vec<&'static str> {
    let told: BTreeSet<&str> = samples(page).filter_map(|(name, _)| Some(metric_of(name)?.name)).collect();
    METRICS.iter().map(|m| m.name).filter(|name| !told.contains(name) && !NOT_ALWAYS.contains(name)).collect()
}

fn check_labels(page: &str) {
    for (name, labels) in samples(page) {
        let metric = metric_of(name).unwrap_or_else(|| panic!("{name} is not in the table"));
        let known: BTreeSet<&str> = metric.labels.iter().copied().collect();
        let found: BTreeSet<&str> = labels.into_iter().filter(|label| *label != "le").collect();
        assert_eq!(found, known, "labels of {name}");
    }
}

#[test]
fn a_run_tells_every_metric_and_no_other() {
    let system = System::start(4, ENGINE, &["example.com"]);
    let generated = system.run(&["generate", "--users", "60", "--days", "20", "--insiders", "6"]);
    assert!(generated.status.success(), "{}", text(&generated.stderr));
    let mut node = Node::start(&system, 0, &[]);
    node.wait_ready();
    system.wait_until_drained(&mut Inputs::new(&system));
    let (status, schema) = node.get("/registry/schemas/ids/1?fetchMaxId=false&subject=risk-signals-value");
    assert_eq!((status, schema.starts_with("{\"schema\":")), (200, true), "{schema}");
    assert_eq!(node.get("/registry/").0, 200);
    let page = wait_for("every metric of the table", PATIENCE, || {
        let page = node.get("/metrics").1;
        missing(&page).is_empty().then_some(page)
    });
    check_labels(&page);
    let (status, ready) = node.get("/readyz");
    assert_eq!((status, ready.contains("\"copy\":{\"stale\":false,")), (200, true), "{ready}");

    // Another key: another person behind every name.
    let path = system.config_path().with_file_name("other-key");
    fs::write(&path, "another-key-of-thirty-two-bytes!").expect("could not write the key");
    let key = format!("identity.key_file={}", path.display());
    for arguments in
        [&["generate", "--users", "20", "--days", "1"][..], &["topics", "apply"], &["run", "--roles", "map"]]
    {
        let output = system.run(&[arguments, &["--set", &key]].concat());
        let message = text(&output.stderr);
        assert_eq!((output.status.code(), message.contains("identity.key)")), (Some(3), true), "{message}");
    }
}
