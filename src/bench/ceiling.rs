//! The bare loop: consume, produce 200 bytes per record, commit in transactions. The engine's own clients and batch
//! limits, and no work between. What it reaches is the ceiling of the engine on this cluster at this moment.
//! Next: `pipeline.rs`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::cpu::Cost;
use super::member::Member;
use super::observed::{Observed, Observer, Steady, quantile};
use super::{BARE_INPUT, BARE_OUTPUT, Cluster, Error, Options, ends};
use crate::runtime::ports::{ErrorKind, InputOffset, Outgoing, RecordRef, TopicName, Txn};
use crate::runtime::transaction::KafkaTxn;

/// Bytes of every record the loop writes: the first of what it read, so that they compress as real ones do.
const OUTPUT_BYTES: usize = 200;
/// How long the loop waits for a record when it has none.
const POLL_WAIT: Duration = Duration::from_millis(50);
/// A run that commits nothing for this long has failed.
const STALL_MAX: Duration = Duration::from_secs(60);
/// How many records are gathered between two looks at the clock.
const RECORDS_PER_CLOCK: usize = 64;
/// How long a call that may be retried is retried.
const RETRY_MAX: Duration = Duration::from_secs(20);

/// One run of the loop.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Run {
    pub threads: usize,
    pub round: u32,
    pub records: i64,
    pub seconds: f64,
    pub per_second: f64,
    /// Processor seconds per million records.
    pub cpu: Cost,
    pub commit_p50_ms: f64,
    pub commit_p99_ms: f64,
}

/// All runs.
#[derive(Clone, Debug, Serialize)]
pub struct Ceiling {
    pub runs: Vec<Run>,
    /// The best of them, in records per second.
    pub per_second: f64,
    pub signal_bytes: f64,
}

/// When a batch is full.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub records_max: usize,
    pub hold: Duration,
}

impl Limits {
    /// The engine's own.
    pub fn of(cluster: &Cluster) -> Limits {
        let engine = &cluster.config.engine;
        Limits { records_max: engine.batch_records_max, hold: Duration::from_millis(engine.batch_ms_max) }
    }
}

/// Runs the loop with one and with two threads, round after round.
pub fn run(cluster: &Cluster, options: &Options) -> Result<Ceiling, Error> {
    let signal_bytes = fill_once(cluster, options)?;
    let mut runs = Vec::new();
    for round in 1..=options.rounds {
        for threads in [1, 2] {
            runs.push(run_once(cluster, options, threads, round)?);
        }
    }
    let per_second = runs.iter().map(|r| r.per_second).fold(0.0, f64::max);
    Ok(Ceiling { runs, per_second, signal_bytes })
}

/// Signals for all rounds, written once. Returns their mean size.
fn fill_once(cluster: &Cluster, options: &Options) -> Result<f64, Error> {
    let present: i64 = ends(&mut cluster.log("bench")?, BARE_INPUT, options.partitions)?.values().sum();
    let missing = (options.signals - present).max(0);
    // The sizes differ by a few bytes; a sample is enough when nothing is missing.
    let bytes = cluster.fill(BARE_INPUT, options, missing.max(1), present as u64 + 1)?;
    Ok(bytes as f64 / missing.max(1) as f64)
}

/// One run over everything in the input.
pub fn run_once(cluster: &Cluster, options: &Options, threads: usize, round: u32) -> Result<Run, Error> {
    let total: i64 = ends(&mut cluster.log("bench")?, BARE_INPUT, options.partitions)?.values().sum();
    let observer = Observer::new(BARE_INPUT, &Default::default(), &cluster.meter);
    let (failed, progress) = (AtomicBool::new(false), Progress::new(&observer));
    let share = options.partitions as usize / threads;
    let results = std::thread::scope(|scope| {
        let spawn = |thread: usize| {
            let (observer, failed, progress) = (&observer, &failed, &progress);
            scope.spawn(move || {
                let name = format!("bench-ceiling-{}-{threads}-{round}", cluster.run);
                let done = || failed.load(Ordering::Acquire) || progress.reached(total);
                let result =
                    Member::join(&cluster.connection, &name, BARE_INPUT, share, |_| 0).and_then(|mut member| {
                        let mut txn = producer(cluster, &format!("{name}-{thread}"), observer)?;
                        relay(&mut member, &mut txn, Limits::of(cluster), &done)
                    });
                failed.fetch_or(result.is_err(), Ordering::AcqRel);
                result
            })
        };
        let threads: Vec<_> = (0..threads).map(spawn).collect();
        threads.into_iter().map(|thread| thread.join().expect("the loop does not panic")).collect::<Vec<_>>()
    });
    results.into_iter().collect::<Result<Vec<()>, Error>>()?;
    progress.complete(total)?;
    Ok(figures(&observer, threads, round, cluster))
}

fn figures(observer: &Observer, threads: usize, round: u32, cluster: &Cluster) -> Run {
    let Steady { records, seconds, per_second, cost: cpu } = observer.steady(&cluster.meter.read());
    let [commit_p50_ms, commit_p99_ms] = commit_ms(observer);
    Run { threads, round, records, seconds, per_second, cpu, commit_p50_ms, commit_p99_ms }
}

/// Median and 99th percentile of what the end of a transaction took.
pub fn commit_ms(observer: &Observer) -> [f64; 2] {
    let mut took: Vec<Duration> = observer.seen().commits.iter().map(|c| c.took).collect();
    took.sort_unstable();
    [0.5, 0.99].map(|share| quantile(&took, share).as_secs_f64() * 1e3)
}

/// A watched producer, ready to begin.
pub fn producer(cluster: &Cluster, id: &str, observer: &Observer) -> Result<Observed<KafkaTxn>, Error> {
    let mut txn = Observed::new(KafkaTxn::new(&cluster.connection, id), observer);
    retrying(|| txn.init())?;
    Ok(txn)
}

/// Consume, produce, commit until `done`, which is asked between two transactions.
pub fn relay<T>(member: &mut Member, txn: &mut T, limits: Limits, done: &dyn Fn() -> bool) -> Result<(), Error>
where
    T: Txn<Metadata = crate::runtime::source::GroupMetadata>,
{
    while !done() {
        let offsets = gather(member, txn, limits)?;
        if offsets.is_empty() {
            continue;
        }
        let metadata = member.metadata()?;
        retrying(|| txn.send_offsets(&offsets, &metadata))?;
        retrying(|| txn.commit())?;
    }
    Ok(())
}

/// One batch, gathered as the engine gathers: until full, old, or the queue is empty. Returns the offsets to commit.
fn gather<T: Txn>(member: &mut Member, txn: &mut T, limits: Limits) -> Result<Vec<InputOffset>, Error> {
    let mut next: Vec<Option<(TopicName, i64)>> = Vec::new();
    let (mut count, mut wait, began) = (0, POLL_WAIT, Instant::now());
    loop {
        let mut sent = Ok(());
        let came = member.poll(wait, &mut |record| sent = pass_on(txn, &record, count == 0, &mut next))?;
        sent?;
        if !came {
            break;
        }
        count += 1;
        wait = Duration::ZERO;
        let old = count % RECORDS_PER_CLOCK == 0 && began.elapsed() >= limits.hold;
        if old || count >= limits.records_max {
            break;
        }
    }
    let offset = |(partition, next): (usize, Option<(TopicName, i64)>)| {
        let (topic, offset) = next?;
        Some(InputOffset { topic, partition: partition as i32, offset, metadata: String::new() })
    };
    Ok(next.into_iter().enumerate().filter_map(offset).collect())
}

fn pass_on<T: Txn>(
    txn: &mut T,
    record: &RecordRef<'_>,
    first: bool,
    next: &mut Vec<Option<(TopicName, i64)>>,
) -> Result<(), Error> {
    if first {
        retrying(|| txn.begin())?;
    }
    let outgoing = Outgoing {
        topic: BARE_OUTPUT,
        partition: record.partition,
        key: record.key,
        value: record.value.map(|value| &value[..value.len().min(OUTPUT_BYTES)]),
        headers: &[],
        timestamp: None,
    };
    retrying(|| txn.send(&outgoing))?;
    let partition = record.partition as usize;
    next.resize(next.len().max(partition + 1), None);
    next[partition] = Some((record.topic, record.offset + 1));
    Ok(())
}

fn retrying(mut call: impl FnMut() -> Result<(), crate::runtime::ports::Error>) -> Result<(), Error> {
    let deadline = Instant::now() + RETRY_MAX;
    loop {
        match call() {
            Err(error) if error.kind == ErrorKind::Retriable && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return Ok(result?),
        }
    }
}

/// How far a run is, and whether it still moves.
pub struct Progress {
    observer: Observer,
    moved: std::sync::Mutex<(i64, Instant)>,
}

impl Progress {
    /// The progress of what an observer sees.
    pub fn new(observer: &Observer) -> Progress {
        Progress { observer: observer.clone(), moved: std::sync::Mutex::new((0, Instant::now())) }
    }

    /// Whether nothing is left to wait for: all is committed, or nothing was for too long.
    pub fn reached(&self, total: i64) -> bool {
        let committed = self.observer.committed();
        let mut moved = self.moved.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if committed > moved.0 {
            *moved = (committed, Instant::now());
        }
        committed >= total || moved.1.elapsed() > STALL_MAX
    }

    /// An error unless all is committed, once and no more.
    pub fn complete(&self, total: i64) -> Result<(), Error> {
        let committed = self.observer.committed();
        if committed == total {
            return Ok(());
        }
        Err(Error::failed("a run", format!("{committed} of {total} records were committed")))
    }
}
