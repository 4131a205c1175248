//! Prints what mapping one raw event costs, per source: the best of many short rounds on one thread, so that
//! neighbours on the machine do not count. The events are those of `casestream generate`.
//! `cargo run --release --example map_cost`

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use casestream::domain::Timestamp;
use casestream::generate::{Config, Population, events};
use casestream::wire::mapping::{MapConfig, Mapping, Outcome, RawMeta};

const ROUNDS: u32 = 30;
/// Events of one source in a round.
const EVENTS_MAX: usize = 2_000;

fn mapping(source: &str) -> Mapping {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("config/mappings/{source}.toml"));
    let config = MapConfig { company_domains: vec!["example.com".to_owned()], ..MapConfig::default() };
    Mapping::load(&path).expect("a mapping of this repository").with_config(&config)
}

fn main() {
    let config = Config { users: 200, days: 10, ..Config::default() };
    let population = Population::new(&config).expect("a population");
    let mut by_source: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for event in events(&population) {
        let list = by_source.entry(event.source).or_default();
        if list.len() < EVENTS_MAX {
            list.push(event.json);
        }
    }
    println!("{:<18} {:>6} {:>7} {:>8} {:>9}", "source", "events", "bytes", "signals", "µs/event");
    for (source, list) in by_source {
        let mut mapping = mapping(source);
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
        println!("{source:<18} {events:>6} {bytes:>7.0} {:>8.2} {cost:>9.2}", signals as f64 / events);
    }
}
