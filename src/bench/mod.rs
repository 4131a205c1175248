//! `casestream bench`: what the engine costs, measured on a cluster of one's own. Ratios compare with a bare loop of
//! the same clients in the same run, so they hold on a busy machine where absolute rates do not. Method:
//! `benches/README.md`; figures: `docs/performance.md`. Judges nothing: the targets are only printed beside the figures.
//! Next: `cpu.rs`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::config::Config;
use crate::domain::Timestamp;
use crate::domain::command::{Actor, Command, SwitchPolicies};
use crate::domain::partitioner::partition_of;
use crate::generate::bench_signals;
use crate::policies::Files;
use crate::runtime::admin::{Admin, Finding, Plan, Step};
use crate::runtime::client::Connection;
use crate::runtime::clock::SystemClock;
use crate::runtime::first_policies::Installer;
use crate::runtime::log::KafkaLog;
use crate::runtime::ports::{self, Log, Outgoing, TopicName};
use crate::runtime::service::engine_group;
use crate::runtime::transaction::KafkaProducer;
use crate::topology::Topic;
use crate::wire::avro::{EncodeError, Encoder, Schemas};

pub mod ceiling;
pub mod cpu;
pub mod engine;
pub mod folder;
pub mod latency;
pub mod member;
pub mod observed;
pub mod pipeline;
pub mod report;
pub mod settled;
pub mod state;

/// Input and output of the bare loops; not topics of the product.
pub const BARE_INPUT: TopicName = "bench-input";
/// See `BARE_INPUT`.
pub const BARE_OUTPUT: TopicName = "bench-output";
/// How long one flush of prepared records may take.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a new topic may stay unknown to the brokers.
const NEW_TOPIC_MAX: Duration = Duration::from_secs(30);
/// How long the topics of the bench keep their records.
const RETENTION_MS: &str = "86400000";

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// Signals of a throughput run.
    pub signals: i64,
    pub users: u64,
    pub partitions: i32,
    /// Length of a latency run.
    pub seconds: u64,
    /// Runs of each kind; the best counts.
    pub rounds: u32,
    /// Signals per second of a latency run.
    pub rate: u64,
    /// People of the ordinary population of `state`.
    pub people: u32,
    /// Days of their activity.
    pub days: u32,
    /// Bench even on a cluster that holds state.
    pub yes: bool,
}

/// Why a bench could not end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "could not bench on this cluster: user-state holds records\n  \
         use a fresh cluster (scripts/services start --dir DIR), or add --yes to write into this one"
    )]
    NotFresh,
    #[error(transparent)]
    Port(#[from] ports::Error),
    #[error("could not encode a signal: {0}")]
    Encode(#[from] EncodeError),
    #[error("could not finish {what}: {cause}")]
    Failed { what: String, cause: String },
}

impl Error {
    /// A run that did not end as it should.
    pub fn failed(what: impl Into<String>, cause: impl ToString) -> Error {
        Error::Failed { what: what.into(), cause: cause.to_string() }
    }
}

/// The cluster under test.
pub struct Cluster {
    pub config: Config,
    pub connection: Connection,
    /// Address of Redis, when the copy is written.
    pub redis: Option<String>,
    pub meter: cpu::Meter,
    /// Distinguishes the groups of this run from those of earlier ones.
    pub run: String,
}

impl Cluster {
    /// The configured cluster, with the partitions and workers of the bench.
    pub fn of(config: &Config, options: &Options) -> Result<Cluster, Error> {
        let mut settings = config.kafka.client_settings().map_err(|p| Error::failed("reading the configuration", p))?;
        let bootstrap = settings.remove("bootstrap.servers").unwrap_or_default();
        let redis = config.redis.enabled.then(|| config.redis.address()).transpose();
        let redis =
            redis.map_err(|p| Error::failed("reading the configuration", p))?.map(|url| url.expose().to_owned());
        let redis_address = redis.as_deref().and_then(tcp_address);
        let meter = cpu::Meter::new(bootstrap.split(',').map(str::trim), redis_address.as_deref());
        let connection = Connection { bootstrap, properties: settings.into_iter().collect() };
        let mut config = config.clone();
        config.kafka.partitions = options.partitions;
        config.engine.workers = pipeline::WORKERS;
        Ok(Cluster { config, connection, redis, meter, run: now().0.to_string() })
    }

    /// Creates the topics of product and bench and refuses a cluster that is in use.
    pub fn prepare(&self, options: &Options) -> Result<(), Error> {
        let admin = Admin::new(&self.connection)?;
        let mut log = self.log("bench")?;
        if !options.yes && admin.partition_counts()?.contains_key(Topic::UserState.name()) {
            let ends = ends(&mut log, Topic::UserState.name(), options.partitions)?;
            if ends.values().any(|end| *end > 0) {
                return Err(Error::NotFresh);
            }
        }
        admin.apply(&admin.plan(options.partitions, &[])?, self.config.kafka.replication)?;
        let present = admin.partition_counts()?;
        let missing = [BARE_INPUT, BARE_OUTPUT].into_iter().filter(|topic| !present.contains_key(*topic));
        let steps = missing.map(|topic| {
            let config = vec![("retention.ms".to_owned(), RETENTION_MS.to_owned())];
            Step { topic: topic.to_owned(), finding: Finding::Missing { partitions: options.partitions, config } }
        });
        Ok(admin.apply(&Plan { steps: steps.collect() }, self.config.kafka.replication)?)
    }

    /// A reader that knows the offsets of a group.
    pub fn log(&self, group: &str) -> Result<KafkaLog, Error> {
        Ok(KafkaLog::new(&self.connection, group)?)
    }

    /// Puts every partition under the built-in policy set, unless it has one.
    pub fn install_policies(&self, partitions: i32) -> Result<(), Error> {
        let (mut log, mut producer) = (self.log(&self.group())?, KafkaProducer::new(&self.connection)?);
        let (clock, schemas) = (SystemClock::new(), Schemas::built_in());
        let mut installer = Installer::new(&mut log, &mut producer, &clock, &schemas, partitions);
        installer.install(&Files::built_in().to_record())?;
        Ok(())
    }

    /// The engine's consumer group.
    pub fn group(&self) -> String {
        engine_group(&self.config)
    }

    /// Appends signals to a topic, each on its user's partition. Returns the bytes of their values.
    pub fn fill(&self, topic: TopicName, options: &Options, signals: i64, seed: u64) -> Result<i64, Error> {
        let mut encoder = Encoder::new(&Schemas::built_in());
        let mut producer = KafkaProducer::new(&self.connection)?;
        let mut stream = bench_signals(options.users, seed);
        let (mut value, mut bytes) = (Vec::new(), 0);
        for _ in 0..signals {
            let signal = stream.next_signal(now());
            value.clear();
            encoder.encode(Topic::RiskSignals, &signal, &mut value)?;
            bytes += value.len() as i64;
            let key = signal.user_key.as_bytes();
            producer.send(&outgoing(topic, partition_of(key, options.partitions), key, &value))?;
        }
        producer.flush(FLUSH_TIMEOUT)?;
        Ok(bytes)
    }
}

/// The command that puts a partition under a policy set.
pub fn switch(hash: &str, partition: i32) -> Command<'_> {
    Command {
        command_id: format!("bench-{hash}-{partition}").into(),
        kind: "switch_policies".into(),
        actor: Actor { id: "bench".into(), roles: Vec::new(), kind: "system".into() },
        at: now(),
        switch_policies: Some(SwitchPolicies { policy_set: hash.into() }),
        ..Command::default()
    }
}

/// End of every partition of a topic.
pub fn ends(log: &mut KafkaLog, topic: TopicName, partitions: i32) -> Result<BTreeMap<i32, i64>, Error> {
    (0..partitions).map(|p| Ok((p, end(log, topic, p)?))).collect()
}

/// The end of one partition; a topic just created is not known at once.
fn end(log: &mut KafkaLog, topic: TopicName, partition: i32) -> Result<i64, Error> {
    let deadline = Instant::now() + NEW_TOPIC_MAX;
    loop {
        match log.watermarks(topic, partition) {
            Ok((_, end)) => return Ok(end),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn outgoing<'a>(topic: TopicName, partition: i32, key: &'a [u8], value: &'a [u8]) -> Outgoing<'a> {
    Outgoing { topic, partition, key: Some(key), value: Some(value), headers: &[], timestamp: None }
}

/// `host:port` of a Redis URL; other ways to reach Redis have no processor time.
fn tcp_address(url: &str) -> Option<String> {
    let client = redis::Client::open(url).ok()?;
    match client.get_connection_info().addr() {
        redis::ConnectionAddr::Tcp(host, port) => Some(format!("{host}:{port}")),
        _ => None,
    }
}

/// The wall clock.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(since.as_millis() as i64)
}
