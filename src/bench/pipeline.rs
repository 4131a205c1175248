//! The engine as it runs: signals from Kafka, everything it publishes to Kafka, the readable copy to Redis. Workers and
//! writer are the production ones, started in this process so that their cost can be told. The ceiling is measured
//! before and after, in the same run. Next: `latency.rs`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::ceiling::{self, Ceiling, Progress};
use super::cpu::{self, Cost};
use super::folder::Users;
use super::observed::{Observed, Observer};
use super::report::TopicLine;
use super::settled::Settled;
use super::{Cluster, Error, Options, ends};
use crate::runtime::checkpoint::{Copies, Handle, Writer};
use crate::runtime::clock::SystemClock;
use crate::runtime::policy_source::LogPolicies;
use crate::runtime::redis_store::RedisStore;
use crate::runtime::service::{self, MAX_POLL_INTERVAL};
use crate::runtime::source::{KafkaGroup, Membership};
use crate::runtime::transaction::KafkaTxn;
use crate::runtime::worker::Worker;
use crate::topology::{ENGINE_INPUTS, Topic};
use crate::wire::avro::Schemas;

/// Worker threads of a pipeline run.
pub const WORKERS: usize = 2;
/// How long the copy may take to catch up after the last commit.
const COPY_MAX: Duration = Duration::from_secs(60);
/// Between two looks at how far a run is.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What one run saw.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Run {
    pub round: u32,
    pub signals: i64,
    pub seconds: f64,
    pub per_second: f64,
    /// Processor seconds per million signals, until the copy has caught up.
    pub cpu: Cost,
    /// The same of this process by kind of thread, over the whole life of the workers.
    pub cpu_by_thread: BTreeMap<String, f64>,
    pub commits: usize,
    pub commit_p50_ms: f64,
    pub commit_p99_ms: f64,
    /// From the last commit until the copy in Redis held it.
    pub copy_behind_ms: f64,
    pub users: usize,
    pub open_alert_share: f64,
    /// Written to Kafka, by topic, before compression.
    pub outputs: Vec<TopicLine>,
}

/// All runs.
#[derive(Clone, Debug, Serialize)]
pub struct Pipeline {
    pub workers: usize,
    pub runs: Vec<Run>,
    /// The best run, in signals per second.
    pub per_second: f64,
    /// To the ceiling of the same command.
    pub ceiling_ratio: f64,
    /// Client seconds per million of the cheapest run.
    pub client_cpu: f64,
}

/// Rounds of bare loops and engine in turn.
pub fn run(cluster: &Cluster, options: &Options) -> Result<(Ceiling, Pipeline), Error> {
    cluster.install_policies(options.partitions)?;
    let one = Options { rounds: 1, ..options.clone() };
    let (mut bare, mut runs) = (Vec::new(), Vec::new());
    let mut signal_bytes = 0.0;
    for round in 1..=options.rounds {
        let ceiling = ceiling::run(cluster, &one)?;
        if round == 1 {
            signal_bytes = ceiling.signal_bytes;
        }
        bare.extend(ceiling.runs.into_iter().map(|run| ceiling::Run { round, ..run }));
        runs.push(run_once(cluster, options, round)?);
    }
    let ceiling_rate = bare.iter().map(|r| r.per_second).fold(0.0, f64::max);
    let per_second = runs.iter().map(|r| r.per_second).fold(0.0, f64::max);
    let client_cpu = runs.iter().map(|r| r.cpu.client).fold(f64::INFINITY, f64::min);
    let ceiling = Ceiling { runs: bare, per_second: ceiling_rate, signal_bytes };
    let ceiling_ratio = per_second / ceiling_rate.max(1.0);
    Ok((ceiling, Pipeline { workers: WORKERS, runs, per_second, ceiling_ratio, client_cpu }))
}

fn run_once(cluster: &Cluster, options: &Options, round: u32) -> Result<Run, Error> {
    let input = Topic::RiskSignals.name();
    let starts = ends(&mut cluster.log("bench")?, input, options.partitions)?;
    cluster.fill(input, options, options.signals, 1_000 + u64::from(round))?;
    let observer = Observer::new(input, &starts, &cluster.meter);
    let (threads_before, progress) = (cpu::threads(), Progress::new(&observer));
    let mut run = Run { round, ..Run::default() };
    let users = with_engine(cluster, options, &observer, |engine| {
        while !progress.reached(options.signals) && !engine.failed() {
            std::thread::sleep(LOOK_EVERY);
        }
        run.copy_behind_ms = engine.wait_for_copy()?.as_secs_f64() * 1e3;
        let steady = observer.steady(&cluster.meter.read());
        let millions = options.signals as f64 / 1e6;
        run.cpu_by_thread = cpu::threads()
            .into_iter()
            .map(|(name, used)| (threads_before.get(&name).map_or(used, |before| used - before), name))
            .filter(|(used, _)| *used > 0.0)
            .map(|(used, name)| (name, used / millions))
            .collect();
        (run.signals, run.seconds, run.per_second, run.cpu) =
            (steady.records, steady.seconds, steady.per_second, steady.cost);
        Ok(())
    })?;
    progress.complete(options.signals)?;
    [run.commit_p50_ms, run.commit_p99_ms] = ceiling::commit_ms(&observer);
    run.commits = observer.seen().commits.len();
    run.users = users.users;
    run.open_alert_share = users.with_open_alert as f64 / users.users.max(1) as f64;
    run.outputs = TopicLine::of(&observer.seen().written, options.signals);
    Ok(run)
}

/// The running engine, as a run sees it.
pub struct Running<'a> {
    stop: AtomicBool,
    failed: AtomicBool,
    ready: AtomicUsize,
    copy: &'a Handle,
}

impl Running<'_> {
    /// Whether a worker ended on its own.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Whether every worker has all its partitions at work.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) == WORKERS
    }

    /// Waits until the copy holds the last commit; how long that took.
    fn wait_for_copy(&self) -> Result<Duration, Error> {
        let began = Instant::now();
        let behind = || self.copy.freshness().values().any(|f| f.dirty_users > 0 || f.applied < f.committed);
        while behind() && !self.failed() {
            if began.elapsed() > COPY_MAX {
                return Err(Error::failed("the copy in Redis", format!("it was still behind after {COPY_MAX:?}")));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(began.elapsed())
    }
}

/// Runs the engine while `during` runs; returns what its users amount to at the end.
pub fn with_engine(
    cluster: &Cluster,
    options: &Options,
    observer: &Observer,
    during: impl FnOnce(&Running<'_>) -> Result<(), Error>,
) -> Result<Users, Error> {
    let handle = Handle::default();
    let running = Running {
        stop: AtomicBool::new(false),
        failed: AtomicBool::new(false),
        ready: AtomicUsize::new(0),
        copy: &handle,
    };
    let needs = || Error::failed("a run of the engine", "redis.enabled is false; the copy is part of what is measured");
    let url = cluster.redis.as_deref().ok_or_else(needs)?;
    let writer = Writer::new(handle.clone(), RedisStore::new(url)?, SystemClock::new());
    std::thread::scope(|scope| {
        let running = &running;
        let threads: Vec<_> = (0..WORKERS)
            .map(|number| {
                let handle = handle.clone();
                named(scope, format!("engine-{number}"), move || {
                    let result = work(cluster, options, observer, number, handle, running);
                    running.failed.fetch_or(result.is_err(), Ordering::AcqRel);
                    result
                })
            })
            .collect();
        let interval = Duration::from_millis(cluster.config.redis.flush_interval_ms);
        let writer = named(scope, "copy-writer".into(), move || write(writer, running, interval));
        let outcome = during(running);
        running.stop.store(true, Ordering::Release);
        handle.wake();
        let mut users = Users::default();
        for thread in threads {
            users.join(thread.join().expect("a worker does not panic")?);
        }
        writer.join().expect("the writer does not panic");
        outcome.map(|()| users)
    })
}

fn named<'scope, T: Send + 'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    name: String,
    body: impl FnOnce() -> T + Send + 'scope,
) -> std::thread::ScopedJoinHandle<'scope, T> {
    std::thread::Builder::new().name(name).spawn_scoped(scope, body).expect("the system starts a thread")
}

fn write(mut writer: Writer<RedisStore, SystemClock>, running: &Running<'_>, interval: Duration) {
    while !running.stop.load(Ordering::Acquire) {
        writer.paced_round(interval);
    }
}

/// One worker, until told to stop. Wired as `run` wires it, but for the watching and for the settled start.
fn work(
    cluster: &Cluster,
    options: &Options,
    observer: &Observer,
    number: usize,
    handle: Handle,
    running: &Running<'_>,
) -> Result<Users, Error> {
    let (connection, group) = (&cluster.connection, cluster.group());
    let id = format!("{group}-{}-{number}", cluster.config.app.ordinal);
    let inputs = ENGINE_INPUTS.map(Topic::name).to_vec();
    let share = options.partitions as usize / WORKERS;
    let membership = Membership {
        session_timeout: Duration::from_millis(cluster.config.engine.session_timeout_ms),
        max_poll_interval: MAX_POLL_INTERVAL,
        ..Membership::new(&group, Some(id.clone()), inputs)
    };
    let member = KafkaGroup::join(connection, membership)?;
    let schemas = Schemas::built_in();
    let url = cluster.redis.as_deref().unwrap_or_default();
    let copies = Copies::new(handle.clone(), RedisStore::new(url)?);
    let policies = LogPolicies::new(cluster.log(&group)?, &schemas, move |set| handle.name_policies(set));
    let mut worker = Worker::new(
        service::worker_config(&cluster.config, &id),
        &schemas,
        Settled::new(member, share * ENGINE_INPUTS.len()),
        Observed::new(KafkaTxn::new(connection, id), observer),
        cluster.log(&group)?,
        SystemClock::new(),
        copies,
        Box::new(policies),
        Box::new(|_, _| {}),
    );
    let mut is_ready = false;
    while !running.stop.load(Ordering::Acquire) {
        worker.step().map_err(|stop| Error::failed("a worker's run", stop))?;
        if let Some(halt) = worker.halted().next() {
            return Err(Error::failed("a worker's run", halt));
        }
        if !is_ready && worker.is_ready() && worker.running().count() == share {
            is_ready = true;
            running.ready.fetch_add(1, Ordering::AcqRel);
        }
    }
    let mut users = Users::default();
    worker.running().try_for_each(|partition| users.add(partition))?;
    worker.close();
    Ok(users)
}
