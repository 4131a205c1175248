//! How long a record takes from the moment it is produced until a read-committed consumer has what became of it, at a
//! steady rate: through the engine (a signal's score), and through the bare loop in the same run.
//! Next: `state.rs`.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::ceiling::{self, Limits};
use super::member::Member;
use super::observed::{Observer, quantile};
use super::pipeline;
use super::{BARE_INPUT, BARE_OUTPUT, Cluster, Error, FLUSH_TIMEOUT, Options, ends, now, outgoing};
use crate::domain::partitioner::partition_of;
use crate::generate::{bench_signals, bench_user_key};
use crate::runtime::ports::TopicName;
use crate::runtime::transaction::KafkaProducer;
use crate::topology::Topic;
use crate::wire::avro::{Encoder, Schemas};

/// Samples of the first seconds are left out: connections and caches warm up.
const WARM_UP: Duration = Duration::from_secs(3);
/// Between two looks at what is due to be sent.
const TICK: Duration = Duration::from_micros(500);
/// How long the last records may take to become visible.
const DRAIN_MAX: Duration = Duration::from_secs(15);
/// How long a loop may take to get ready.
const READY_MAX: Duration = Duration::from_secs(90);

/// What one run saw.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Figures {
    pub samples: usize,
    /// Sent and not seen again within the wait.
    pub unanswered: usize,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

/// The bare loop and the engine.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    pub rate_per_second: u64,
    pub seconds: u64,
    pub bare: Vec<Figures>,
    pub engine: Vec<Figures>,
    /// Best round of the engine to best round of the bare loop.
    pub p50_ratio: f64,
    pub p99_ratio: f64,
}

/// Records on their way. A user has at most one: the rate and the number of users keep them apart.
pub struct Flight {
    /// Nanoseconds since `epoch` of the sending; 0 when nothing is on its way.
    sent: Vec<AtomicU64>,
    numbers: HashMap<Vec<u8>, usize>,
    keys: Vec<String>,
    epoch: Instant,
    samples: Mutex<Vec<(u64, u64)>>,
}

impl Flight {
    fn new(users: u64) -> Flight {
        let keys: Vec<String> = (0..users).map(bench_user_key).collect();
        let numbers = keys.iter().enumerate().map(|(n, key)| (key.clone().into_bytes(), n)).collect();
        Flight {
            sent: (0..users).map(|_| AtomicU64::new(0)).collect(),
            numbers,
            keys,
            epoch: Instant::now(),
            samples: Mutex::default(),
        }
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    fn arrived(&self, key: &[u8]) {
        let Some(number) = self.numbers.get(key) else { return };
        let sent = self.sent[*number].swap(0, Ordering::AcqRel);
        if sent > 0 {
            let took = self.now() - sent;
            self.samples.lock().expect("nothing panics while it holds the samples").push((sent, took));
        }
    }

    fn waiting(&self) -> usize {
        self.sent.iter().filter(|sent| sent.load(Ordering::Acquire) > 0).count()
    }

    fn figures(&self) -> Figures {
        let samples = self.samples.lock().expect("nothing panics while it holds the samples");
        let first = samples.iter().map(|(sent, _)| *sent).min().unwrap_or(0) + WARM_UP.as_nanos() as u64;
        let mut took: Vec<u64> = samples.iter().filter(|(sent, _)| *sent >= first).map(|(_, took)| *took).collect();
        took.sort_unstable();
        let ms = |share| quantile(&took, share) as f64 / 1e6;
        Figures {
            samples: took.len(),
            unanswered: self.waiting(),
            p50_ms: ms(0.5),
            p90_ms: ms(0.9),
            p99_ms: ms(0.99),
            max_ms: ms(1.0),
        }
    }
}

/// Bare loop and engine in turn.
pub fn run(cluster: &Cluster, options: &Options) -> Result<Latency, Error> {
    cluster.install_policies(options.partitions)?;
    let (mut bare_runs, mut engine_runs) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        bare_runs.push(bare(cluster, options, round)?);
        engine_runs.push(engine(cluster, options, round)?);
    }
    let ratio = |pick: fn(&Figures) -> f64| best(&engine_runs, pick) / best(&bare_runs, pick);
    Ok(Latency {
        rate_per_second: options.rate,
        seconds: options.seconds,
        p50_ratio: ratio(|f| f.p50_ms),
        p99_ratio: ratio(|f| f.p99_ms),
        bare: bare_runs,
        engine: engine_runs,
    })
}

fn best(runs: &[Figures], pick: fn(&Figures) -> f64) -> f64 {
    runs.iter().map(pick).fold(f64::INFINITY, f64::min)
}

/// One round through the engine: from a signal to its user's score.
pub fn engine(cluster: &Cluster, options: &Options, round: u32) -> Result<Figures, Error> {
    let (input, output) = (Topic::RiskSignals.name(), Topic::RiskScores.name());
    let starts = ends(&mut cluster.log("bench")?, input, options.partitions)?;
    let observer = Observer::new(input, &starts, &cluster.meter);
    measure(cluster, options, input, output, round, |ready, stop| {
        let users = pipeline::with_engine(cluster, options, &observer, |running| {
            while !stop.load(Ordering::Acquire) && !running.failed() {
                if running.is_ready() {
                    ready.store(true, Ordering::Release);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        });
        users.map(|_| ())
    })
}

/// One round through the bare loop.
pub fn bare(cluster: &Cluster, options: &Options, round: u32) -> Result<Figures, Error> {
    let starts = ends(&mut cluster.log("bench")?, BARE_INPUT, options.partitions)?;
    let observer = Observer::new(BARE_INPUT, &starts, &cluster.meter);
    measure(cluster, options, BARE_INPUT, BARE_OUTPUT, round, |ready, stop| {
        let name = format!("bench-bare-{}-{round}", cluster.run);
        let share = options.partitions as usize;
        let mut member = Member::join(&cluster.connection, &name, BARE_INPUT, share, |p| starts[&p])?;
        let mut txn = ceiling::producer(cluster, &name, &observer)?;
        ready.store(true, Ordering::Release);
        ceiling::relay(&mut member, &mut txn, Limits::of(cluster), &|| stop.load(Ordering::Acquire))
    })
}

/// Runs `through` (told when to stop, telling when it is ready) between a paced producer and a reader.
pub fn measure(
    cluster: &Cluster,
    options: &Options,
    input: TopicName,
    output: TopicName,
    round: u32,
    through: impl FnOnce(&AtomicBool, &AtomicBool) -> Result<(), Error> + Send,
) -> Result<Figures, Error> {
    let flight = Flight::new(options.users);
    let starts = ends(&mut cluster.log("bench")?, output, options.partitions)?;
    let reader = format!("bench-reader-{}-{output}-{round}", cluster.run);
    let share = options.partitions as usize;
    let mut member = Member::join(&cluster.connection, &reader, output, share, |p| starts[&p])?;
    let (ready, stop, sent) = (AtomicBool::new(false), AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let loop_thread = scope.spawn(|| {
            let result = through(&ready, &stop);
            stop.store(true, Ordering::Release);
            result
        });
        let producer = scope.spawn(|| {
            let result = wait_for(&ready, &stop).and_then(|()| send_paced(cluster, options, input, &flight, &stop));
            sent.store(true, Ordering::Release);
            result
        });
        let read = read_until_answered(&mut member, &flight, &sent, &stop);
        stop.store(true, Ordering::Release);
        let (produced, looped) = (producer.join(), loop_thread.join());
        looped.expect("the loop does not panic")?;
        produced.expect("the producer does not panic")?;
        read
    })?;
    Ok(flight.figures())
}

fn wait_for(ready: &AtomicBool, stop: &AtomicBool) -> Result<(), Error> {
    let deadline = Instant::now() + READY_MAX;
    while !ready.load(Ordering::Acquire) {
        if stop.load(Ordering::Acquire) || Instant::now() > deadline {
            return Err(Error::failed("a latency run", "what is measured did not get ready"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn send_paced(
    cluster: &Cluster,
    options: &Options,
    input: TopicName,
    flight: &Flight,
    stop: &AtomicBool,
) -> Result<(), Error> {
    let mut encoder = Encoder::new(&Schemas::built_in());
    let mut producer = KafkaProducer::new(&cluster.connection)?;
    let mut stream = bench_signals(options.users, flight.now() ^ now().0 as u64);
    let (began, mut value, mut sent) = (Instant::now(), Vec::new(), 0);
    let total = options.rate * options.seconds;
    while sent < total && !stop.load(Ordering::Acquire) {
        let due = (began.elapsed().as_secs_f64() * options.rate as f64) as u64;
        while sent < due.min(total) {
            let number = sent as usize % flight.keys.len();
            let key = &flight.keys[number];
            let mut signal = stream.next_signal(now());
            signal.user_key = key.as_str().into();
            value.clear();
            encoder.encode(Topic::RiskSignals, &signal, &mut value)?;
            flight.sent[number].store(flight.now(), Ordering::Release);
            let partition = partition_of(key.as_bytes(), options.partitions);
            producer.send(&outgoing(input, partition, key.as_bytes(), &value))?;
            sent += 1;
        }
        std::thread::sleep(TICK);
    }
    Ok(producer.flush(FLUSH_TIMEOUT)?)
}

/// Reads until everything sent has come back, or does not come any more.
fn read_until_answered(
    member: &mut Member,
    flight: &Flight,
    sent: &AtomicBool,
    stop: &AtomicBool,
) -> Result<(), Error> {
    let mut deadline = None;
    while !stop.load(Ordering::Acquire) {
        let came = member.poll(Duration::from_millis(5), &mut |record| {
            if let Some(key) = record.key {
                flight.arrived(key);
            }
        })?;
        if !came && sent.load(Ordering::Acquire) {
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + DRAIN_MAX);
            if flight.waiting() == 0 || Instant::now() > deadline {
                return Ok(());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_answered_once_and_warm_up_is_left_out() {
        let flight = Flight::new(3);
        let warm = WARM_UP.as_nanos() as u64;
        flight.samples.lock().unwrap().extend([(1, 9_000_000), (warm + 1, 2_000_000), (warm + 2, 4_000_000)]);
        flight.sent[2].store(1, Ordering::Release);
        let figures = flight.figures();
        assert_eq!((figures.samples, figures.unanswered), (2, 1));
        assert_eq!((figures.p99_ms, figures.max_ms), (4.0, 4.0));
        flight.arrived(bench_user_key(2).as_bytes());
        flight.arrived(bench_user_key(2).as_bytes());
        flight.arrived(b"nobody");
        assert_eq!((flight.samples.lock().unwrap().len(), flight.waiting()), (4, 0));
    }
}
