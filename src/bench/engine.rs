//! The engine alone, on one thread and in memory: encoded signals through decode, fold and encode, in batches as the
//! worker takes them. No Kafka, no Redis. Next: `ceiling.rs`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::folder::{Folder, Spent};
use super::report::TopicLine;
use super::{Error, Options, now};
use crate::config::Config;
use crate::domain::Timestamp;
use crate::domain::partitioner::partition_of;
use crate::domain::signal::Signal;
use crate::generate::bench_signals;
use crate::runtime::batch::SIGNALS;
use crate::topology::Topic;
use crate::wire::avro::{Decoder, Encoder, Schemas};

/// The clock of the signals: as many a second as one busy process takes.
const SIGNALS_PER_SECOND: i64 = 100_000;

/// What the fold alone does.
#[derive(Clone, Debug, Serialize)]
pub struct Engine {
    pub signals: i64,
    /// Decode, fold, encode and merge, per second of processor time; the best round. On an idle machine it is the rate
    /// by the clock.
    pub per_second: f64,
    /// By the clock, in the same round.
    pub per_wall_second: f64,
    pub rounds_per_second: Vec<f64>,
    /// Nanoseconds per signal, of the best round.
    pub fold_ns: f64,
    pub merge_ns: f64,
    /// Copying records into the batch, which the worker does while it polls; not in `per_second`.
    pub gather_ns: f64,
    /// Decoding a signal and nothing else, measured by itself; part of `fold_ns`.
    pub decode_ns: f64,
    pub users: usize,
    pub open_alert_share: f64,
    pub outputs: Vec<TopicLine>,
    pub ledger: BTreeMap<String, i64>,
}

/// Encoded signals, one after the other.
struct Prepared {
    bytes: Vec<u8>,
    /// Partition, time, and where key and value begin; the value ends where the next key begins.
    records: Vec<(i32, Timestamp, usize, usize)>,
}

impl Prepared {
    fn new(options: &Options, from: Timestamp) -> Result<Prepared, Error> {
        let mut encoder = Encoder::new(&Schemas::built_in());
        let mut stream = bench_signals(options.users, 1);
        let mut prepared = Prepared { bytes: Vec::new(), records: Vec::with_capacity(options.signals as usize + 1) };
        for n in 0..options.signals {
            let at = from.plus_ms(n * 1_000 / SIGNALS_PER_SECOND);
            let signal = stream.next_signal(at);
            let key = signal.user_key.as_bytes();
            let key_at = prepared.bytes.len();
            prepared.bytes.extend_from_slice(key);
            prepared.records.push((partition_of(key, options.partitions), at, key_at, prepared.bytes.len()));
            encoder.encode(Topic::RiskSignals, &signal, &mut prepared.bytes)?;
        }
        prepared.records.push((0, from, prepared.bytes.len(), prepared.bytes.len()));
        Ok(prepared)
    }

    /// Records `from..to` as the folder takes them.
    fn range(&self, from: usize, to: usize) -> impl Iterator<Item = (i32, Timestamp, &[u8], &[u8])> {
        self.records[from..=to].windows(2).map(|pair| {
            let (partition, at, key, value) = pair[0];
            (partition, at, &self.bytes[key..value], &self.bytes[value..pair[1].2])
        })
    }

    fn len(&self) -> usize {
        self.records.len() - 1
    }
}

/// Folds everything, round after round on fresh state.
pub fn run(config: &Config, options: &Options) -> Result<Engine, Error> {
    let from = now().plus_ms(-options.signals * 1_000 / SIGNALS_PER_SECOND);
    let prepared = Prepared::new(options, from)?;
    let mut best: Option<Engine> = None;
    let mut rates = Vec::new();
    for _ in 0..options.rounds {
        let engine = round(config, options, &prepared, from)?;
        rates.push(engine.per_second);
        if best.as_ref().is_none_or(|best| engine.per_second > best.per_second) {
            best = Some(engine);
        }
    }
    let engine = best.ok_or_else(|| Error::failed("the engine's bench", "no round was asked for"))?;
    Ok(Engine { rounds_per_second: rates, decode_ns: decode_ns(&prepared)?, ..engine })
}

fn round(config: &Config, options: &Options, prepared: &Prepared, from: Timestamp) -> Result<Engine, Error> {
    let records_max = config.engine.batch_records_max;
    let mut folder = Folder::new(config, options.partitions, records_max, from)?;
    let (mut spent, mut written, mut at) = (Spent::default(), BTreeMap::new(), 0);
    while at < prepared.len() {
        let end = prepared.len().min(at + records_max);
        let now = prepared.records[end - 1].1;
        spent.add(folder.fold(SIGNALS, prepared.range(at, end), now)?);
        folder.count_outputs(&mut written);
        at = end;
    }
    let (signals, users) = (prepared.len() as i64, folder.users()?);
    let ns = |time: Duration| time.as_nanos() as f64 / signals as f64;
    Ok(Engine {
        signals,
        per_second: signals as f64 / spent.cpu.as_secs_f64(),
        per_wall_second: signals as f64 / (spent.fold + spent.merge).as_secs_f64(),
        rounds_per_second: Vec::new(),
        fold_ns: ns(spent.fold),
        merge_ns: ns(spent.merge),
        gather_ns: ns(spent.gather),
        decode_ns: 0.0,
        users: users.users,
        open_alert_share: users.with_open_alert as f64 / users.users.max(1) as f64,
        outputs: TopicLine::of(&written, signals),
        ledger: folder.ledger(),
    })
}

fn decode_ns(prepared: &Prepared) -> Result<f64, Error> {
    let mut decoder = Decoder::new(&Schemas::built_in());
    let (began, mut bytes) = (Instant::now(), 0);
    for (.., value) in prepared.range(0, prepared.len()) {
        let signal: Signal<'_> = decoder
            .decode(Topic::RiskSignals, value, &[])
            .map_err(|e| Error::failed("decoding a signal of our own", e))?;
        bytes += std::hint::black_box(&signal).signal_id.as_str().len();
    }
    std::hint::black_box(bytes);
    Ok(began.elapsed().as_nanos() as f64 / prepared.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options {
            signals: 300,
            users: 20,
            partitions: 2,
            seconds: 5,
            rounds: 1,
            rate: 1,
            people: 500,
            days: 1,
            yes: false,
        }
    }

    #[test]
    fn every_signal_is_folded_once() {
        let mut config = Config::default();
        config.engine.batch_records_max = 100;
        let engine = run(&config, &options()).unwrap();
        assert_eq!((engine.signals, engine.ledger["scored"]), (300, 300), "{:?}", engine.ledger);
        assert_eq!(engine.users, 20);
        let entries = engine.outputs.iter().find(|line| line.topic == "activity-chronology").unwrap();
        assert!(entries.records_per_signal >= 1.0);
    }
}
