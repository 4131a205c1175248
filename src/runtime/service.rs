//! A process's roles put together: engine workers with the copy's writer behind them, and map workers. Everything is
//! made here and handed in; no role looks anything up. Threads end when told to, or at the first that cannot go on.
//! Next: `worker.rs`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::checkpoint::{Copies, Handle as CopyHandle, Writer};
use super::client::Connection;
use super::clock::SystemClock;
use super::copy_sink::CopySink;
use super::http::{CopyLag, Health, WorkerHealth};
use super::log::KafkaLog;
use super::no_copy::NoCopy;
use super::observe::{Observer, Seen};
use super::policy_source::LogPolicies;
use super::ports::{Clock, Error, ErrorKind, Outgoing, TopicName};
use super::redis_store::RedisStore;
use super::source::{KafkaGroup, Membership};
use super::status::StatusSink;
use super::transaction::{KafkaProducer, KafkaTxn};
use super::worker::{self, Stop, Worker};
use crate::config::Config;
use crate::domain::Timestamp;
use crate::domain::time::HOUR_MS;
use crate::topology::{ENGINE_INPUTS, Topic};
use crate::wire::avro::{Encoder, Schemas};

/// How long an orderly end may take before the process leaves without it.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(25);
/// Longest time between two polls, a restore included.
pub const MAX_POLL_INTERVAL: Duration = Duration::from_secs(300);
/// The copy counts as stale when its writer has failed for so long.
const COPY_STALE_AFTER_MS: i64 = 5_000;

/// What every role needs.
#[derive(Clone)]
pub struct Shared {
    pub config: Arc<Config>,
    pub connection: Connection,
    /// Where the copy lives; `None` when it is switched off.
    pub redis_url: Option<String>,
    pub schemas: Arc<Schemas>,
    pub health: Arc<Health>,
    pub stop: Arc<AtomicBool>,
}

/// Why a role ended before it was told to.
#[derive(Debug)]
pub struct Ended {
    pub role: String,
    pub fenced: bool,
    pub cause: String,
}

/// Threads of one process.
pub struct Service {
    shared: Shared,
    threads: Vec<JoinHandle<()>>,
    ended: Receiver<Ended>,
    report: Sender<Ended>,
    copy: CopyHandle,
    writer: Option<JoinHandle<()>>,
    writer_stop: Arc<AtomicBool>,
}

impl Service {
    /// A process without roles yet.
    pub fn new(shared: Shared) -> Service {
        let (report, ended) = channel();
        Service {
            shared,
            threads: Vec::new(),
            ended,
            report,
            copy: CopyHandle::default(),
            writer: None,
            writer_stop: Arc::default(),
        }
    }

    /// How fresh the copy is.
    pub fn copy(&self) -> &CopyHandle {
        &self.copy
    }

    /// Starts the engine's workers and the copy's writer.
    pub fn start_engine(&mut self) -> Result<(), Error> {
        if let Some(url) = self.shared.redis_url.clone() {
            self.start_writer(&url)?;
        }
        let status = Status::new(&self.shared)?;
        for n in 0..self.shared.config.engine.workers {
            let name = format!("{}-engine-{}-{n}", self.shared.config.app.id, self.shared.config.app.ordinal);
            let (shared, copy, status) = (self.shared.clone(), self.copy.clone(), status.sink());
            self.spawn(name.clone(), move |health| run_engine(&shared, &name, copy, status, health))?;
        }
        Ok(())
    }

    /// Starts a role's thread under its name; the first error ends the process.
    pub fn spawn(
        &mut self,
        name: String,
        run: impl FnOnce(Arc<WorkerHealth>) -> Result<(), Stop> + Send + 'static,
    ) -> Result<(), Error> {
        let (health, report, stop) = (self.shared.health.worker(&name), self.report.clone(), self.shared.stop.clone());
        let role = name.clone();
        let thread = std::thread::Builder::new().name(short(&name)).spawn(move || {
            if let Err(stopped) = run(health) {
                let fenced = matches!(stopped, Stop::Fenced(_));
                tracing::error!(role, %stopped, "a worker cannot go on");
                // The receiver lives as long as the process.
                let _ = report.send(Ended { role, fenced, cause: stopped.to_string() });
                stop.store(true, Ordering::Relaxed);
            }
        });
        let spawned = thread.map_err(|e| Error::new(ErrorKind::Fatal, format!("could not start {name}"), e))?;
        self.threads.push(spawned);
        Ok(())
    }

    fn start_writer(&mut self, url: &str) -> Result<(), Error> {
        let mut store = RedisStore::new(url)?;
        match store.check_policy() {
            Err(error) if error.kind == ErrorKind::Fatal => return Err(error),
            Err(error) => tracing::warn!(%error, "redis does not answer; scores and alerts go on without the copy"),
            Ok(()) => {}
        }
        let interval = Duration::from_millis(self.shared.config.redis.flush_interval_ms);
        let (health, stop) = (self.shared.health.clone(), self.writer_stop.clone());
        let (clock, copy) = (SystemClock::new(), self.copy.clone());
        let run = move || {
            let mut writer = Writer::new(copy.clone(), store, clock);
            while !stop.load(Ordering::Relaxed) {
                writer.paced_round(interval);
                health.set_copy(copy_lag(&copy, clock.now()));
            }
            // What an orderly end leaves unwritten would only have to be read back from the changelog.
            writer.round();
        };
        let thread = std::thread::Builder::new().name("copy-writer".into()).spawn(run);
        self.writer = Some(thread.map_err(|e| Error::new(ErrorKind::Fatal, "could not start the copy's writer", e))?);
        Ok(())
    }

    /// Whether a role has ended by itself or the process was told to stop.
    pub fn is_stopping(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    /// Ends every role in order: workers leave the group, then the writer writes what is left.
    pub fn stop(mut self) -> Option<Ended> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
        self.writer_stop.store(true, Ordering::Relaxed);
        self.copy.wake();
        if let Some(writer) = self.writer.take() {
            drop(writer.join());
        }
        self.ended.try_recv().ok()
    }
}

/// Linux shows 15 bytes of a thread's name.
fn short(name: &str) -> String {
    name.rsplit('-').take(3).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("-")
}

/// The copy as a whole: its worst partition counts.
fn copy_lag(copy: &CopyHandle, now: Timestamp) -> CopyLag {
    let mut lag = CopyLag::default();
    for fresh in copy.freshness().into_values() {
        lag.stale |= fresh.failing_since.is_some_and(|since| now.0 - since.0 >= COPY_STALE_AFTER_MS);
        lag.partitions_behind += usize::from(fresh.commits_behind() > 0);
        lag.rebuilding += usize::from(fresh.rebuilding);
        lag.commits = lag.commits.max(fresh.commits_behind());
        lag.seconds = lag.seconds.max(fresh.behind(now).as_secs());
    }
    lag
}

/// The group of the engine's workers.
pub fn engine_group(config: &Config) -> String {
    format!("{}-engine", config.app.id)
}

/// The group of the map workers.
pub fn map_group(config: &Config) -> String {
    format!("{}-map", config.app.id)
}

fn run_engine(
    shared: &Shared,
    name: &str,
    copy: CopyHandle,
    status: StatusSink,
    health: Arc<WorkerHealth>,
) -> Result<(), Stop> {
    match &shared.redis_url {
        Some(url) => {
            let store = RedisStore::new(url).map_err(Stop::Failed)?;
            work(shared, name, Copies::new(copy.clone(), store), copy, status, &health)
        }
        None => work(shared, name, NoCopy, copy, status, &health),
    }
}

fn work<W: CopySink>(
    shared: &Shared,
    name: &str,
    sink: W,
    copy: CopyHandle,
    status: StatusSink,
    health: &WorkerHealth,
) -> Result<(), Stop> {
    let mut worker = make_worker(shared, name, sink, copy, status).map_err(Stop::Failed)?;
    let (mut halted, clock, mut observer) = (0, SystemClock::new(), Observer::new(name));
    while !shared.stop.load(Ordering::Relaxed) {
        let step = worker.step()?;
        health.polled();
        health.set_restored(worker.is_ready());
        let count = worker.halted().count();
        if count != halted {
            health.clear_halted();
            worker.halted().for_each(|h| health.halt(h.partition, h.code.as_str()));
            halted = count;
        }
        let seen = Seen { step, ready: worker.is_ready(), halted };
        if observer.step(seen, clock.monotonic()) {
            observer.look(worker.running(), clock.now());
        }
    }
    worker.close();
    Ok(())
}

type KafkaWorker<W> = Worker<KafkaGroup, KafkaTxn, KafkaLog, SystemClock, W>;

fn make_worker<W: CopySink>(
    shared: &Shared,
    name: &str,
    sink: W,
    copy: CopyHandle,
    status: StatusSink,
) -> Result<KafkaWorker<W>, Error> {
    let (config, connection) = (&shared.config, &shared.connection);
    let group = engine_group(config);
    let membership = membership(config, &group, name, ENGINE_INPUTS.map(Topic::name).to_vec());
    let policies = LogPolicies::new(KafkaLog::new(connection, &group)?, &shared.schemas, move |set| {
        copy.name_policies(set);
    });
    Ok(Worker::new(
        worker_config(config, name),
        &shared.schemas,
        KafkaGroup::join(connection, membership)?,
        KafkaTxn::new(connection, name).with_timeout(transaction_timeout(config)),
        KafkaLog::new(connection, &group)?,
        SystemClock::new(),
        sink,
        Box::new(policies),
        status,
    ))
}

/// How a worker of either role takes part in its group.
pub fn membership(config: &Config, group: &str, name: &str, inputs: Vec<TopicName>) -> Membership {
    Membership {
        session_timeout: Duration::from_millis(config.engine.session_timeout_ms),
        max_poll_interval: MAX_POLL_INTERVAL,
        ..Membership::new(group, Some(name.to_owned()), inputs)
    }
}

/// How long the transactions of either role may be open.
pub fn transaction_timeout(config: &Config) -> Duration {
    Duration::from_millis(config.engine.transaction_timeout_ms)
}

/// The worker's part of the configuration.
pub fn worker_config(config: &Config, name: &str) -> worker::Config {
    let engine = &config.engine;
    worker::Config {
        worker: name.to_owned(),
        transactional_id: name.to_owned(),
        partitions: config.kafka.partitions,
        batch_records_max: engine.batch_records_max,
        batch_hold: Duration::from_millis(engine.batch_ms_max),
        transaction_timeout: transaction_timeout(config),
        idle_follow_ms: engine.idle_follow_ms,
        state_bytes_max: usize::try_from(engine.state_bytes_max).unwrap_or(usize::MAX) / engine.workers,
        lateness_days: engine.lateness_days,
        level_valid_ms: engine.level_valid_hours * HOUR_MS,
        ..worker::Config::default()
    }
}

/// Writes `partition-status`, outside transactions: one producer for all workers of the process.
struct Status(Arc<Mutex<(KafkaProducer, Encoder, Vec<u8>)>>);

impl Status {
    fn new(shared: &Shared) -> Result<Status, Error> {
        let producer = KafkaProducer::new(&shared.connection)?;
        Ok(Status(Arc::new(Mutex::new((producer, Encoder::new(&shared.schemas), Vec::new())))))
    }

    fn sink(&self) -> StatusSink {
        let shared = self.0.clone();
        Box::new(move |partition, record| {
            let mut guard = shared.lock().unwrap_or_else(PoisonError::into_inner);
            let (producer, encoder, value) = &mut *guard;
            value.clear();
            if let Err(error) = encoder.encode(Topic::PartitionStatus, record, value) {
                return tracing::warn!(partition, %error, "could not encode the partition's status");
            }
            let key = partition.to_string();
            let outgoing = Outgoing {
                topic: Topic::PartitionStatus.name(),
                partition,
                key: Some(key.as_bytes()),
                value: Some(value),
                headers: &[],
                timestamp: None,
            };
            if let Err(error) = producer.send(&outgoing) {
                tracing::warn!(partition, %error, "could not write the partition's status");
            }
        })
    }
}
