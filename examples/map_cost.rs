//! Prints what mapping one raw event costs, per source: the best of many short rounds on one thread, so that
//! neighbours on the machine do not count. The events are those of `casestream generate`; of sources that it does not
//! make, those of the mapping's own examples, which are mostly signals: a feed's usual noise costs less.
//! `cargo run --release --example map_cost`

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Instant;

use casestream::domain::Timestamp;
use casestream::generate::{Config, Population, events};
use casestream::wire::mapping::{MapConfig, Mapping, Outcome, RawMeta, parse_examples};

const ROUNDS: u32 = 30;
/// Events of one source in a round.
const EVENTS_MAX: usize = 2_000;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/mappings")
}

fn mapping(source: &str) -> Mapping {
    let config = MapConfig { company_domains: vec!["example.com".to_owned()], ..MapConfig::default() };
    let path = folder().join(format!("{source}.toml"));
    Mapping::load(&path).expect("a mapping of this repository").with_config(&config)
}

/// Events of the examples beside each mapping.
fn examples() -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::new();
    for part in ["", "contrib/", "generic/"] {
        for entry in std::fs::read_dir(folder().join(part)).expect("a folder of mappings") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|n| n.to_str()).expect("a name").to_owned();
            if let Some(source) = name.strip_suffix(".test.toml") {
                let text = std::fs::read_to_string(&path).expect("a readable file");
                let (_, examples) = parse_examples(&name, &text).expect("examples");
                found.insert(format!("{part}{source}"), examples.into_iter().map(|e| e.event).collect());
            }
        }
    }
    found
}

fn main() {
    let config = Config { users: 200, days: 10, ..Config::default() };
    let population = Population::new(&config).expect("a population");
    let mut generated: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for event in events(&population) {
        let list = generated.entry(event.source.to_owned()).or_default();
        if list.len() < EVENTS_MAX {
            list.push(event.json);
        }
    }
    let mut by_source = examples();
    by_source.extend(generated);
    println!("{:<24} {:>6} {:>7} {:>8} {:>9}", "source", "events", "bytes", "signals", "µs/event");
    for (source, list) in by_source {
        let mut mapping = mapping(&source);
        let topic = format!("raw.{source}");
        let mut round = || {
            let (start, mut signals) = (Instant::now(), 0);
            for (offset, event) in (0..).zip(&list) {
                let at = RawMeta { topic: &topic, partition: 0, offset, timestamp: Timestamp(1_767_225_600_000) };
                if let Outcome::Signals(drafts) = black_box(mapping.run(black_box(event.as_bytes()), &at)) {
                    signals += drafts.len();
                }
            }
            (start.elapsed(), signals)
        };
        let (best, signals) = (0..ROUNDS).map(|_| round()).min().expect("at least one round");
        let events = list.len() as f64;
        let bytes = list.iter().map(String::len).sum::<usize>() as f64 / events;
        let cost = best.as_secs_f64() * 1e6 / events;
        println!("{source:<24} {events:>6} {bytes:>7.0} {:>8.2} {cost:>9.2}", signals as f64 / events);
    }
}
