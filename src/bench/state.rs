//! What a user costs to keep: bytes of state after a month of ordinary activity, encoded, resident and in Redis.
//! Folded in memory; Redis is only asked when one is configured and answers, under a partition number no topic has.
//! Next: `report.rs`.

use serde::Serialize;

use super::folder::{Folder, Spent};
use super::{Error, Options, cpu, now};
use crate::config::Config;
use crate::domain::Timestamp;
use crate::domain::partitioner::partition_of;
use crate::domain::time::DAY_MS;
use crate::generate::{self, Insiders, Population, signals};
use crate::runtime::batch::SIGNALS;
use crate::runtime::checkpoint::{CHUNK_USERS_MAX, copy_user};
use crate::runtime::partition::Partition;
use crate::runtime::ports::{CopyMeta, Store};
use crate::runtime::redis_store::{RedisStore, keys};
use crate::topology::Topic;
use crate::wire::avro::{Encoder, Schemas};

/// Stands for a partition in Redis; far above any partition count.
const REDIS_PARTITION: i32 = 1_000_000;
/// How much is folded at once: what so many people do in about an hour.
const BATCH_RECORDS: usize = 1_000;

/// Bytes per user.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct State {
    pub users: usize,
    pub days: u32,
    pub signals: i64,
    pub day_segments_per_user: f64,
    pub open_alert_share: f64,
    /// Head, seen and day segments: what the changelog and Redis carry.
    pub encoded_bytes: f64,
    /// What the worker accounts for, key and overhead included.
    pub accounted_bytes: f64,
    /// Growth of this process's resident memory over the fold; allocator's slack included.
    pub resident_bytes: Option<f64>,
    /// Growth of Redis's memory, keys, score, windows and `top` included.
    pub redis_bytes: Option<f64>,
    /// Signals per second of processor time of one thread while users had up to a month of state.
    pub fold_per_second: f64,
}

/// Folds the month and counts.
pub fn run(config: &Config, options: &Options) -> Result<State, Error> {
    let before = cpu::resident_bytes();
    let (partitions, mut state) = fold(config, options)?;
    state.resident_bytes = before
        .and_then(|before| Some(cpu::resident_bytes()?.saturating_sub(before) as f64 / state.users.max(1) as f64));
    state.redis_bytes = match redis_url(config)? {
        Some(url) => in_redis(&url, &partitions)?,
        None => None,
    };
    Ok(state)
}

fn fold(config: &Config, options: &Options) -> Result<(Vec<Partition>, State), Error> {
    let population = population(options)?;
    let start = population.config().start;
    let mut folder = Folder::new(config, options.partitions, BATCH_RECORDS, start)?;
    let mut encoder = Encoder::new(&Schemas::built_in());
    let (mut spent, mut count) = (Spent::default(), 0);
    let mut waiting: Vec<(i32, Timestamp, Vec<u8>, Vec<u8>)> = Vec::with_capacity(BATCH_RECORDS);
    for signal in signals(&population, |id| blake3::hash(id.as_bytes()).to_hex()[..32].to_owned()) {
        let key = signal.user_key.as_bytes();
        let mut value = Vec::new();
        encoder.encode(Topic::RiskSignals, &signal, &mut value)?;
        waiting.push((partition_of(key, options.partitions), signal.ingested_at, key.to_vec(), value));
        count += 1;
        if waiting.len() == BATCH_RECORDS {
            spent.add(fold_waiting(&mut folder, &mut waiting)?);
        }
    }
    spent.add(fold_waiting(&mut folder, &mut waiting)?);
    let users = folder.users()?;
    let per_user = |bytes: usize| bytes as f64 / users.users.max(1) as f64;
    let state = State {
        users: users.users,
        days: options.days,
        signals: count,
        day_segments_per_user: per_user(users.day_segments),
        open_alert_share: per_user(users.with_open_alert),
        encoded_bytes: per_user(users.encoded_bytes),
        accounted_bytes: per_user(users.resident_bytes),
        resident_bytes: None,
        redis_bytes: None,
        fold_per_second: count as f64 / spent.cpu.as_secs_f64().max(1e-9),
    };
    Ok((folder.into_partitions(), state))
}

fn fold_waiting(folder: &mut Folder, waiting: &mut Vec<(i32, Timestamp, Vec<u8>, Vec<u8>)>) -> Result<Spent, Error> {
    let Some(now) = waiting.last().map(|(_, at, ..)| *at) else { return Ok(Spent::default()) };
    let spent = folder.fold(SIGNALS, waiting.iter().map(|(p, at, key, value)| (*p, *at, &key[..], &value[..])), now)?;
    waiting.clear();
    Ok(spent)
}

/// Ordinary people: nobody means harm. The last day of their activity is today.
fn population(options: &Options) -> Result<Population, Error> {
    let today = now().day_at(0).start();
    let config = generate::Config {
        users: options.people,
        days: options.days,
        start: today.plus_ms(-i64::from(options.days) * DAY_MS),
        insiders: Insiders::Count(0),
        ..generate::Config::default()
    };
    Population::new(&config).map_err(|e| Error::failed("making a population", e))
}

fn redis_url(config: &Config) -> Result<Option<String>, Error> {
    if !config.redis.enabled {
        return Ok(None);
    }
    let url = config.redis.address().map_err(|p| Error::failed("reading the configuration", p))?;
    Ok(Some(url.expose().to_owned()))
}

/// Growth of Redis's memory per user; `None` when no Redis answers. Everything is removed again.
fn in_redis(url: &str, partitions: &[Partition]) -> Result<Option<f64>, Error> {
    let failed = |e: redis::RedisError| Error::failed("measuring Redis", e);
    let client = redis::Client::open(url).map_err(failed)?;
    let Ok(mut connection) = client.get_connection_with_timeout(std::time::Duration::from_secs(2)) else {
        return Ok(None);
    };
    let before = used_memory(&mut connection).map_err(failed)?;
    let users = write(url, partitions);
    let after = used_memory(&mut connection).map_err(failed)?;
    remove(&mut connection, partitions).map_err(failed)?;
    Ok(Some((after - before) as f64 / users?.max(1) as f64))
}

fn write(url: &str, partitions: &[Partition]) -> Result<usize, Error> {
    let mut store = RedisStore::new(url)?;
    let all: Vec<_> = partitions.iter().flat_map(Partition::all_users).collect();
    let meta = CopyMeta { applied: i64::MAX, epoch: 1, expected_applied: -1, ..CopyMeta::default() };
    for chunk in all.chunks(CHUNK_USERS_MAX) {
        let users: Vec<_> = chunk
            .iter()
            .map(|user| copy_user(&user.user_key, user.commit_no, &user.bytes, &Default::default()))
            .collect();
        store.apply(REDIS_PARTITION, &users, &meta, false)?;
    }
    Ok(all.len())
}

fn remove(connection: &mut redis::Connection, partitions: &[Partition]) -> Result<(), redis::RedisError> {
    let mut names = vec![keys::meta(REDIS_PARTITION), keys::top(REDIS_PARTITION)];
    for user in partitions.iter().flat_map(Partition::all_users) {
        let key = &user.user_key;
        names.extend([keys::score, keys::windows, keys::state].map(|name| name(REDIS_PARTITION, key)));
    }
    names.chunks(CHUNK_USERS_MAX).try_for_each(|chunk| redis::cmd("UNLINK").arg(chunk).exec(connection))
}

fn used_memory(connection: &mut redis::Connection) -> Result<i64, redis::RedisError> {
    let info: String = redis::cmd("INFO").arg("memory").query(connection)?;
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")?.trim().parse().ok());
    Ok(used.unwrap_or(0))
}
