//! How the pipeline stands, from what it left in Kafka and Redis: partition status, positions of both groups, both
//! ledgers, the copy. Joins no group and writes nothing; a process that is down is seen as well as one that runs.
//! Next: `status.rs`, which writes what is read here.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::batch::{INPUTS, input_name};
use super::client::Connection;
use super::clock::SystemClock;
use super::log::{KafkaLog, Span};
use super::map_worker::Ledger;
use super::partition::ledger;
use super::ports::{Clock, Error, ErrorKind, InputOffset, Log, Store, TopicName};
use super::redis_store::RedisStore;
use super::service::{engine_group, map_group};
use crate::config::Config;
use crate::domain::Timestamp;
use crate::domain::record::{Journal, PartitionStatus};
use crate::topology::{self, META_KEY, Topic};
use crate::wire::avro::{Decoder, Schemas};

/// A partition whose status is older than this is not being worked on.
pub const STALE_AFTER_MS: i64 = 30_000;
/// How far before the end of `user-state` the newest meta record is looked for, again and again further back.
const META_WITHIN: [i64; 3] = [16, 4_096, i64::MAX];
/// A lag up to this is counted record by record, because the markers of transactions take offsets too.
const COUNTED_LAG_MAX: i64 = 64;
/// How long a pending transaction may hide committed offsets.
const COMMITTED_FOR: Duration = Duration::from_secs(15);
const RETRY_EVERY: Duration = Duration::from_millis(100);

/// The pipeline at one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Overview {
    pub as_of: Timestamp,
    /// Nothing halted, nothing stale, every ledger balances.
    pub healthy: bool,
    pub balanced: bool,
    /// Records that nobody has taken yet, of both roles.
    pub lag: i64,
    pub map: Role,
    pub engine: Role,
    pub sources: Vec<SourceLine>,
    pub partitions: Vec<PartitionLine>,
    /// Why it is not healthy, in words.
    pub problems: Vec<String>,
}

/// One role's totals.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Role {
    pub lag: i64,
    /// What became of every record, by row; see `equation`.
    pub ledger: BTreeMap<String, i64>,
    /// The ledger as people check it.
    pub equation: String,
    pub balanced: bool,
}

/// One partition of a raw topic.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SourceLine {
    pub source: String,
    pub topic: String,
    pub partition: i32,
    /// Next offset to read; `None` before the first commit.
    pub position: Option<i64>,
    pub end: i64,
    pub lag: i64,
    pub ledger: Option<Ledger>,
    pub balanced: bool,
}

/// One partition of the engine.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PartitionLine {
    pub partition: i32,
    /// running, restoring, halted, or unknown when no status was ever written.
    pub state: String,
    pub halt_code: Option<String>,
    pub as_of: Option<Timestamp>,
    pub age_ms: Option<i64>,
    pub stale: bool,
    pub worker: String,
    pub epoch: i64,
    pub policy_set: String,
    pub commit_no: i64,
    pub users: i64,
    pub lag: i64,
    pub inputs: Vec<InputLine>,
    pub copy: Option<CopyLine>,
}

/// How far one input of a partition has been taken.
#[derive(Clone, Debug, Default, Serialize)]
pub struct InputLine {
    pub topic: String,
    pub position: Option<i64>,
    pub end: i64,
    pub lag: i64,
}

/// The copy of one partition in Redis.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CopyLine {
    /// The commit it has reached.
    pub applied: i64,
    /// Commits it has still to take.
    pub behind: i64,
    pub rebuilding: bool,
    /// Why it could not be read.
    pub error: Option<String>,
}

/// Reads it all.
pub fn read(config: &Config, connection: &Connection, schemas: &Arc<Schemas>) -> Result<Overview, Error> {
    let clock = SystemClock::new();
    let partitions: Vec<i32> = (0..config.kafka.partitions).collect();
    let mut log = KafkaLog::new(connection, engine_group(config))?;
    let mut overview = Overview::default();
    // What the map role has not taken first: then a lag of 0 in both says that everything has passed through both.
    map_role(&mut overview, config, connection, &mut log, &clock)?;
    engine_inputs(&mut overview, &mut log, &partitions, &clock)?;
    let mut decoder = Decoder::new(schemas);
    let metas = metas(&mut log, &mut decoder, &partitions)?;
    engine_ledger(&mut overview, &metas);
    overview.as_of = clock.now();
    statuses(&mut overview, &mut log, &mut decoder, &partitions)?;
    if config.redis.enabled {
        copies(&mut overview, config)?;
    }
    judge(&mut overview);
    Ok(overview)
}

fn map_role(
    overview: &mut Overview,
    config: &Config,
    connection: &Connection,
    log: &mut KafkaLog,
    clock: &SystemClock,
) -> Result<(), Error> {
    let mut group = KafkaLog::new(connection, map_group(config))?;
    let counts: BTreeMap<String, i32> = log.partition_counts()?.into_iter().collect();
    let mut total = Ledger::default();
    overview.map.balanced = true;
    for source in &config.map.sources {
        let topic = topology::intern(&source.topic);
        let partitions: Vec<i32> = (0..counts.get(topic).copied().unwrap_or(0)).collect();
        let inputs: Vec<(TopicName, i32)> = partitions.iter().map(|p| (topic, *p)).collect();
        let at = committed(&mut group, &inputs, clock)?;
        let lags = lags(log, topic, &partitions, &at)?;
        for ((partition, at), (end, lag)) in partitions.into_iter().zip(at).zip(lags) {
            let ledger = at.as_ref().and_then(|at| Ledger::from_metadata(&at.metadata));
            let balanced = ledger.is_some() || at.as_ref().is_none_or(|at| at.metadata.is_empty());
            total.add(&ledger.clone().unwrap_or_default());
            overview.map.balanced &= balanced;
            overview.map.lag += lag;
            overview.sources.push(SourceLine {
                source: source.name.clone(),
                topic: topic.to_owned(),
                partition,
                position: at.map(|at| at.offset),
                end,
                lag,
                ledger,
                balanced,
            });
        }
    }
    overview.map.ledger = map_rows(&total);
    overview.map.equation = equation(&overview.map.ledger);
    Ok(())
}

/// The rows of the map ledger under the names the engine's has, and the signals beside them.
fn map_rows(total: &Ledger) -> BTreeMap<String, i64> {
    let mut rows = BTreeMap::from([("in".to_owned(), total.taken), ("mapped".to_owned(), total.mapped)]);
    rows.extend(total.ignored.iter().map(|(reason, n)| (format!("ignored.{reason}"), *n)));
    rows.extend(total.dead.iter().map(|(code, n)| (format!("dead.{code}"), *n)));
    rows.insert("signals".to_owned(), total.signals);
    rows
}

fn engine_inputs(
    overview: &mut Overview,
    log: &mut KafkaLog,
    partitions: &[i32],
    clock: &SystemClock,
) -> Result<(), Error> {
    let line = |p: &i32| PartitionLine { partition: *p, state: "unknown".into(), ..PartitionLine::default() };
    overview.partitions = partitions.iter().map(line).collect();
    for n in 0..INPUTS {
        let topic = input_name(n);
        let inputs: Vec<(TopicName, i32)> = partitions.iter().map(|p| (topic, *p)).collect();
        let at = committed(log, &inputs, clock)?;
        let lags = lags(log, topic, partitions, &at)?;
        for ((line, at), (end, lag)) in overview.partitions.iter_mut().zip(at).zip(lags) {
            line.inputs.push(InputLine { topic: topic.to_owned(), position: at.map(|at| at.offset), end, lag });
            line.lag += lag;
            overview.engine.lag += lag;
        }
    }
    Ok(())
}

/// Committed offsets; while a transaction is pending they are asked for again.
pub(super) fn committed(
    log: &mut KafkaLog,
    inputs: &[(TopicName, i32)],
    clock: &SystemClock,
) -> Result<Vec<Option<InputOffset>>, Error> {
    if inputs.is_empty() {
        return Ok(Vec::new());
    }
    let deadline = clock.monotonic() + COMMITTED_FOR;
    loop {
        match log.committed(inputs) {
            Err(e)
                if matches!(e.kind, ErrorKind::Unstable | ErrorKind::Retriable | ErrorKind::Timeout)
                    && clock.monotonic() < deadline =>
            {
                clock.wait(RETRY_EVERY);
            }
            answer => return answer,
        }
    }
}

/// End and lag by partition. Where nothing is committed, everything there is lags.
fn lags(
    log: &mut KafkaLog,
    topic: TopicName,
    partitions: &[i32],
    at: &[Option<InputOffset>],
) -> Result<Vec<(i64, i64)>, Error> {
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let (starts, ends) = (log.starts(topic, partitions)?, log.ends(topic, partitions)?);
    let from: Vec<i64> = at.iter().zip(&starts).map(|(at, s)| at.as_ref().map_or(*s, |at| at.offset.max(*s))).collect();
    let mut lags: Vec<i64> = from.iter().zip(&ends).map(|(from, end)| (end - from).max(0)).collect();
    let few = |n: &usize| (1..=COUNTED_LAG_MAX).contains(&lags[*n]);
    let spans: Vec<Span> = (0..partitions.len())
        .filter(few)
        .map(|n| Span { partition: partitions[n], from: from[n], until: ends[n] })
        .collect();
    let mut counted: BTreeMap<i32, i64> = spans.iter().map(|s| (s.partition, 0)).collect();
    log.scan(topic, &spans, &mut |record| {
        *counted.entry(record.partition).or_default() += 1;
        ControlFlow::Continue(())
    })?;
    for (partition, lag) in partitions.iter().zip(&mut lags) {
        *lag = counted.get(partition).copied().unwrap_or(*lag);
    }
    Ok(ends.into_iter().zip(lags).collect())
}

/// The newest meta record of each partition.
pub(super) fn metas(
    log: &mut KafkaLog,
    decoder: &mut Decoder,
    partitions: &[i32],
) -> Result<BTreeMap<i32, Journal>, Error> {
    let topic = Topic::UserState.name();
    let (starts, ends) = (log.starts(topic, partitions)?, log.ends(topic, partitions)?);
    let mut found: BTreeMap<i32, Journal> = BTreeMap::new();
    for within in META_WITHIN {
        let spans: Vec<Span> = (0..partitions.len())
            .filter(|n| !found.contains_key(&partitions[*n]))
            .map(|n| Span {
                partition: partitions[n],
                from: starts[n].max(ends[n].saturating_sub(within)),
                until: ends[n],
            })
            .collect();
        let mut wrong = None;
        log.scan(topic, &spans, &mut |record| {
            let Some(value) = record.value.filter(|_| record.key == Some(META_KEY)) else {
                return ControlFlow::Continue(());
            };
            match decoder.decode::<Journal>(Topic::EngineJournal, value, &[]) {
                Ok(meta) => drop(found.insert(record.partition, meta)),
                Err(e) => wrong = Some((record.partition, e.to_string())),
            }
            ControlFlow::Continue(())
        })?;
        if let Some((partition, cause)) = wrong {
            let what = format!("could not read the meta record of partition {partition}");
            return Err(Error::new(ErrorKind::Fatal, what, cause).at(topic, partition));
        }
    }
    Ok(found)
}

fn engine_ledger(overview: &mut Overview, metas: &BTreeMap<i32, Journal>) {
    overview.engine.balanced = true;
    for line in &mut overview.partitions {
        let Some(meta) = metas.get(&line.partition) else { continue };
        (line.commit_no, line.users, line.epoch) = (meta.commit_no, meta.users, meta.epoch);
        line.policy_set.clone_from(&meta.policy_set);
        overview.engine.balanced &= ledger::balances(&meta.ledger);
        for (row, n) in &meta.ledger {
            *overview.engine.ledger.entry(row.clone()).or_default() += n;
        }
    }
    overview.engine.equation = equation(&overview.engine.ledger);
}

/// "10 in = 7 scored + 2 duplicate + 1 dead.in_future": the raw records or signals; other inputs have rows of their own.
fn equation(rows: &BTreeMap<String, i64>) -> String {
    const OTHER_INPUTS: [&str; 3] = ["directory.", "baselines.", "commands."];
    let own = |name: &str| name != "in" && name != "signals" && !OTHER_INPUTS.iter().any(|p| name.starts_with(p));
    let taken = rows.get("in").copied().unwrap_or(0);
    let mut parts: Vec<(&str, i64)> = rows.iter().filter(|(n, _)| own(n)).map(|(n, c)| (n.as_str(), *c)).collect();
    parts.sort_by_key(|(name, count)| (-count, *name));
    let parts: Vec<String> = parts.iter().map(|(name, count)| format!("{count} {name}")).collect();
    let right = if parts.is_empty() { "0".to_owned() } else { parts.join(" + ") };
    format!("{taken} in = {right}")
}

/// The newest status of each partition: the last record, as its key is the partition.
fn statuses(
    overview: &mut Overview,
    log: &mut KafkaLog,
    decoder: &mut Decoder,
    partitions: &[i32],
) -> Result<(), Error> {
    let topic = Topic::PartitionStatus.name();
    let (starts, ends) = (log.starts(topic, partitions)?, log.ends(topic, partitions)?);
    let spans: Vec<Span> = (0..partitions.len())
        .map(|n| Span { partition: partitions[n], from: starts[n].max(ends[n] - 2), until: ends[n] })
        .collect();
    let (lines, now) = (&mut overview.partitions, overview.as_of);
    log.scan(topic, &spans, &mut |record| {
        let value = record.value.unwrap_or_default();
        // A status that cannot be read is no status; the partition then shows as unknown.
        if let Ok(status) = decoder.decode::<PartitionStatus<'_>>(Topic::PartitionStatus, value, record.headers)
            && let Some(line) = lines.iter_mut().find(|l| l.partition == record.partition)
        {
            take_status(line, &status, now);
        }
        ControlFlow::Continue(())
    })
}

fn take_status(line: &mut PartitionLine, status: &PartitionStatus<'_>, now: Timestamp) {
    let age_ms = now.0.saturating_sub(status.as_of.0).max(0);
    line.state = status.state.to_string();
    line.halt_code = status.halt_code.as_ref().map(ToString::to_string);
    line.as_of = Some(status.as_of);
    line.age_ms = Some(age_ms);
    line.stale = age_ms > STALE_AFTER_MS;
    line.worker = status.worker.to_string();
    line.epoch = line.epoch.max(status.epoch);
}

fn copies(overview: &mut Overview, config: &Config) -> Result<(), Error> {
    let url = config.redis.address().map_err(|e| Error::new(ErrorKind::Fatal, "could not use the redis url", e))?;
    let mut store = RedisStore::new(url.expose())?;
    let mut down: Option<String> = None;
    for line in &mut overview.partitions {
        let meta = match &down {
            Some(why) => Err(why.clone()),
            None => store.meta(line.partition).map_err(|e| e.to_string()),
        };
        line.copy = Some(match meta {
            Ok(meta) => {
                let meta = meta.unwrap_or_default();
                let behind = (line.commit_no - meta.applied).max(0);
                CopyLine { applied: meta.applied, behind, rebuilding: meta.rebuilding, error: None }
            }
            Err(why) => {
                // One that does not answer is not asked once per partition.
                down = Some(why.clone());
                CopyLine { error: Some(why), ..CopyLine::default() }
            }
        });
    }
    Ok(())
}

fn judge(overview: &mut Overview) {
    overview.lag = overview.map.lag + overview.engine.lag;
    overview.balanced = overview.map.balanced && overview.engine.balanced;
    let mut problems = Vec::new();
    for line in &overview.partitions {
        let p = line.partition;
        match (line.state.as_str(), line.age_ms) {
            ("halted", _) => {
                problems.push(format!("partition {p} is halted: {}", line.halt_code.as_deref().unwrap_or("no code")));
            }
            (_, None) => problems.push(format!("partition {p} has no status: no engine has run")),
            (_, Some(age)) if line.stale => {
                problems.push(format!("partition {p} is stale: its last status is {} s old", age / 1_000));
            }
            _ => {}
        }
    }
    for (role, totals) in [("map", &overview.map), ("engine", &overview.engine)] {
        if !totals.balanced {
            problems.push(format!("the {role} ledger does not balance: {}", totals.equation));
        }
    }
    overview.healthy = problems.is_empty();
    overview.problems = problems;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_equation_names_the_largest_rows_first() {
        let rows = [("in", 10), ("scored", 7), ("duplicate", 2), ("dead.in_future", 1), ("directory.in", 4)];
        let rows: BTreeMap<String, i64> = rows.into_iter().map(|(n, c)| (n.to_owned(), c)).collect();
        assert_eq!(equation(&rows), "10 in = 7 scored + 2 duplicate + 1 dead.in_future");
        assert_eq!(equation(&BTreeMap::new()), "0 in = 0");
    }

    #[test]
    fn what_is_halted_stale_or_unbalanced_is_a_problem() {
        let line = |state: &str, age_ms: Option<i64>| PartitionLine {
            state: state.into(),
            stale: age_ms.is_some_and(|a| a > STALE_AFTER_MS),
            age_ms,
            ..PartitionLine::default()
        };
        let good = Role { balanced: true, ..Role::default() };
        for (partition, map, count) in [
            (line("running", Some(1)), good.clone(), 0),
            (line("restoring", Some(1)), good.clone(), 0),
            (line("halted", Some(1)), good.clone(), 1),
            (line("running", Some(30_001)), good.clone(), 1),
            (line("unknown", None), good.clone(), 1),
            (line("running", Some(1)), Role::default(), 1),
        ] {
            let engine = good.clone();
            let mut overview = Overview { map, engine, partitions: vec![partition], ..Overview::default() };
            judge(&mut overview);
            assert_eq!((overview.problems.len(), overview.healthy), (count, count == 0), "{:?}", overview.problems);
        }
    }
}
