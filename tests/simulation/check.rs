//! What must hold once everything is at rest. `Verifier` replays the journal with the worker's own fold (INV-1 to 3);
//! what it takes for granted is checked here: that the journal covers every committed input exactly once, that the
//! group stands where it ends, that each epoch has one owner, and that a plain fold of the inputs, which knows neither
//! batches nor journals, ends at the same scores.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use casestream::domain::Timestamp;
use casestream::domain::alert::Alert;
use casestream::domain::chronology::ChronologyEntry;
use casestream::domain::directory::Directory;
use casestream::domain::record::Journal;
use casestream::domain::score::{RiskLevel, RiskScore};
use casestream::domain::signal::Signal;
use casestream::engine::{Context, Input, Numbers, Outcome as Folded, Position, Sink, User, fold};
use casestream::runtime::batch::{DIRECTORY, INPUTS, SIGNALS, input_name};
use casestream::topology::{META_KEY, Topic};
use casestream::verify::Verifier;
use casestream::wire::avro::{Decoder, Schemas};
use casestream::wire::state::{Segment, UserBytes, decode, parse_key};

use super::driver::law;
use super::inputs::{PARTITIONS, SETS, Sets, home, set};
use super::ports::{SimLog, SimStore};
use super::schedule::Outcome;
use super::world::{Client, Shared, lock};

/// Examples of what the verifier found that are kept.
const EXAMPLES: usize = 5;

/// Checks the world and adds what it finds to the outcome.
pub fn check(world: &Shared, schemas: &Arc<Schemas>, outcome: &mut Outcome) {
    verify(world, schemas, outcome);
    let mut decoder = Decoder::new(schemas);
    for partition in 0..PARTITIONS {
        let journal = journal(world, &mut decoder, partition);
        let condemned = coverage(world, partition, &journal, outcome);
        owners(partition, &journal, outcome);
        oracle(world, &mut decoder, partition, &condemned, outcome);
        outcome.alerts += lock(world).broker.committed(Topic::Alerts.name(), partition).len() as i64;
        let panics = lock(world).broker.committed(Topic::DeadLetters.name(), partition).into_iter().filter(|(_, r)| {
            r.headers.iter().any(|(n, v)| n == "casestream-dlq-code" && v.as_deref() == Some(b"engine.panic"))
        });
        outcome
            .violations
            .extend(panics.map(|(offset, _)| format!("the engine panicked: dead-letters-{partition}@{offset}")));
    }
}

fn verify(world: &Shared, schemas: &Arc<Schemas>, outcome: &mut Outcome) {
    let observer = Client::observer(world);
    let (mut log, mut store) = (SimLog { client: observer.clone() }, SimStore { client: observer });
    let mut sets = Sets::new(None);
    let report = Verifier::new(&mut log, Some(&mut store), &mut sets, schemas).run(PARTITIONS, |_, _| {});
    match report {
        Ok(report) => {
            outcome.transactions = report.transactions;
            outcome.input_records = report.input_records;
            outcome.violations.extend(report.examples.iter().take(EXAMPLES).cloned());
            outcome.violations.extend(report.unchecked.iter().map(|u| format!("not checked: {u}")));
        }
        Err(failure) => outcome.violations.push(failure.to_string()),
    }
}

fn journal(world: &Shared, decoder: &mut Decoder, partition: i32) -> Vec<Journal> {
    let records = lock(world).broker.committed(Topic::EngineJournal.name(), partition);
    let decode = |(_, r): &(i64, Arc<super::broker::Stored>)| {
        decoder.decode(Topic::EngineJournal, r.value.as_deref().unwrap_or_default(), &[]).expect("our own record")
    };
    records.iter().map(decode).collect()
}

/// Ranges follow each other from 0 to the group's offset, hold every committed record, and say how many. Returns the
/// records that were condemned: by input and offset.
fn coverage(world: &Shared, partition: i32, journal: &[Journal], outcome: &mut Outcome) -> BTreeSet<(usize, i64)> {
    let w = lock(world);
    let mut condemned = BTreeSet::new();
    for n in 0..INPUTS {
        let topic = input_name(n);
        let offsets: Vec<i64> = w.broker.committed(topic, partition).iter().map(|(offset, _)| *offset).collect();
        let mut at = 0;
        let mut wrong = |what: String| outcome.violations.push(format!("{topic}-{partition}: {what}"));
        for entry in journal {
            let range = entry.inputs.iter().find(|r| r.topic == topic).expect("every input is named");
            let inside: Vec<i64> = offsets.iter().copied().filter(|o| (range.from..range.to).contains(o)).collect();
            if range.from != at || range.to < at {
                wrong(format!(
                    "commit {} covers {}..{}, the one before ends at {at}",
                    entry.commit_no, range.from, range.to
                ));
            }
            if inside.len() as i64 != range.records {
                wrong(format!(
                    "commit {} counts {} records, there are {}",
                    entry.commit_no,
                    range.records,
                    inside.len()
                ));
            }
            if entry.condemned.is_some() {
                condemned.extend(inside.into_iter().map(|offset| (n, offset)));
            }
            at = range.to;
        }
        if let Some(last) = offsets.last().filter(|last| **last >= at) {
            wrong(format!("record {last} was not read, the journal ends at {at}"));
        }
        match w.broker.stable_offset(topic, partition) {
            Some(Some(committed)) if committed.offset == at => {}
            other => wrong(format!("the group stands at {other:?}, the journal at {at}")),
        }
    }
    condemned
}

/// INV-5.
fn owners(partition: i32, journal: &[Journal], outcome: &mut Outcome) {
    let mut owners: BTreeMap<i64, &str> = BTreeMap::new();
    let mut last = 0;
    for entry in journal {
        let owner = owners.entry(entry.epoch).or_insert(&entry.transactional_id);
        if entry.epoch < last || *owner != entry.transactional_id {
            outcome.violations.push(format!(
                "INV-5: partition {partition}, commit {}: epoch {} of {} after epoch {last} of {owner}",
                entry.commit_no, entry.epoch, entry.transactional_id
            ));
        }
        last = entry.epoch;
    }
}

/// A plain fold of the committed inputs of a partition, record after record.
fn oracle(
    world: &Shared,
    decoder: &mut Decoder,
    partition: i32,
    condemned: &BTreeSet<(usize, i64)>,
    outcome: &mut Outcome,
) {
    let expected = fold_all(world, decoder, partition, condemned);
    let recorded = recorded(world, partition);
    for key in expected.keys().chain(recorded.keys()).collect::<BTreeSet<_>>() {
        let nobody = User::default();
        let want = law(expected.get(key).unwrap_or(&nobody));
        let have = law(recorded.get(key).unwrap_or(&nobody));
        if want != have {
            outcome
                .violations
                .push(format!("oracle: user {key} of partition {partition}: {want:?}, recorded is {have:?}"));
        }
    }
}

fn fold_all(
    world: &Shared,
    decoder: &mut Decoder,
    partition: i32,
    condemned: &BTreeSet<(usize, i64)>,
) -> BTreeMap<String, User> {
    let policies = set(SETS[0]).expect("a set of ours");
    let mut users: BTreeMap<String, User> = BTreeMap::new();
    let (mut numbers, mut stream_time) = (Numbers::default(), Timestamp(0));
    for input in [SIGNALS, DIRECTORY] {
        let topic = input_name(input);
        for (offset, record) in lock(world).broker.committed(topic, partition) {
            let Some(value) = record.value.as_deref().filter(|_| !condemned.contains(&(input, offset))) else {
                continue;
            };
            let at_home = |user: &str| record.key.as_deref() == Some(user.as_bytes()) && home(user) == partition;
            let position = Position { topic, partition, offset };
            let mut apply = |user: &str, input: Input<'_>, time: Timestamp| {
                let ctx = Context {
                    policies: &policies,
                    partition,
                    now: record.timestamp,
                    stream_time: stream_time.max(time),
                    lateness_days: 30,
                    level_valid_ms: 1,
                };
                let user_state = users.entry(user.to_owned()).or_default();
                let folded = fold::apply(user_state, user, input, Some(&position), &ctx, &mut numbers, &mut Nowhere);
                if !matches!(folded, Folded::Dead(_)) {
                    stream_time = stream_time.max(time);
                }
            };
            match input {
                SIGNALS => {
                    let signal: Result<Signal<'_>, _> = decoder.decode(Topic::RiskSignals, value, &[]);
                    if let Ok(s) =
                        signal.as_ref().map_err(|_| ()).and_then(|s| at_home(&s.user_key).then_some(s).ok_or(()))
                    {
                        apply(&s.user_key, Input::Signal(s), s.occurred_at.min(record.timestamp));
                    }
                }
                _ => {
                    let directory: Result<Directory<'_>, _> = decoder.decode(Topic::UserDirectory, value, &[]);
                    if let Ok(d) =
                        directory.as_ref().map_err(|_| ()).and_then(|d| at_home(&d.user_key).then_some(d).ok_or(()))
                    {
                        apply(&d.user_key, Input::Directory(d), Timestamp(0));
                    }
                }
            }
        }
    }
    users
}

/// The users of a partition as `user-state` holds them.
fn recorded(world: &Shared, partition: i32) -> BTreeMap<String, User> {
    let mut bytes: HashMap<String, UserBytes> = HashMap::new();
    for (_, record) in lock(world).broker.committed(Topic::UserState.name(), partition) {
        let key = record.key.as_deref().unwrap_or_default();
        let Some((user, segment)) = parse_key(key).filter(|_| key != META_KEY) else { continue };
        let (user, value) = (bytes.entry(user.to_owned()).or_default(), record.value.as_deref().map(Arc::from));
        match segment {
            Segment::Head => user.head = value,
            Segment::Seen => user.seen = value,
            Segment::Day(day) => {
                user.days.retain(|(d, _)| *d != day);
                user.days.extend(value.map(|v| (day, v)));
                user.days.sort_by_key(|(d, _)| *d);
            }
        }
    }
    let there = bytes.into_iter().filter(|(_, b)| b.head.is_some());
    there.map(|(key, b)| (key, decode(&b).expect("our own state"))).collect()
}

/// A sink that keeps nothing.
struct Nowhere;

impl Sink for Nowhere {
    fn chronology(&mut self, _: &ChronologyEntry<'_>) {}
    fn alert(&mut self, _: &Alert<'_>, _: bool) {}
    fn score(&mut self, _: &RiskScore<'_>) {}
    fn level(&mut self, _: &RiskLevel<'_>) {}
    fn gone(&mut self, _: &str) {}
}
