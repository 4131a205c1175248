//! The protocol over a broker of a few lines: two partitions, markers, aborts, lost answers. What happens under a
//! thousand interleavings is the simulator's matter.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use super::*;
use crate::domain::command::{Command, CommandResult, SwitchPolicies};
use crate::domain::indicator::{Boosters, Catalogue, Category, Factors, Indicator, Measure};
use crate::domain::partitioner::partition_of;
use crate::domain::policy::{Policy, PolicyIndicator, PolicySet, Status, Trigger};
use crate::domain::record::Journal;
use crate::domain::signal::Signal;
use crate::domain::time::{DAY_MS, HOUR_MS};
use crate::domain::{Level, Text};
use crate::runtime::copy_sink::{DirtyUser, Loaded};
use crate::runtime::partition::ledger::balances;
use crate::runtime::ports::{Changes, CopyMeta, CopyUser, Outgoing};
use crate::topology::{META_KEY, Topic};

const PARTITIONS: i32 = 2;
const NOW: i64 = 1_800_000_000_000;

#[derive(Clone)]
struct Rec {
    offset: i64,
    timestamp: Timestamp,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Vec<u8>)>,
}

/// A partition in the copy.
type Copied = (CopyMeta, BTreeMap<String, CopyUser>);

#[derive(Default)]
struct Topics {
    logs: BTreeMap<(TopicName, i32), (Vec<Rec>, i64)>,
    committed: BTreeMap<(TopicName, i32), i64>,
    /// One entry per commit to come: what the client is told, and whether the broker did it.
    commits: VecDeque<(ErrorKind, bool)>,
    /// Sends of a dead letter with this value fail, unless it is condemned.
    poison: Option<(Vec<u8>, ErrorKind)>,
    inits: usize,
    now: i64,
    positions: BTreeMap<(TopicName, i32), i64>,
    rebalances: VecDeque<Changes>,
    changes: Changes,
    /// Rebalance after this many polled records.
    rebalance_after: Option<(usize, Changes)>,
    copied: Vec<String>,
    /// What the copy holds, while it answers.
    copy: Option<BTreeMap<i32, Copied>>,
}

type Shared = Rc<RefCell<Topics>>;

impl Topics {
    fn append(&mut self, topic: TopicName, partition: i32, record: &Outgoing<'_>) {
        let now = self.now;
        let (log, end) = self.logs.entry((topic, partition)).or_default();
        log.push(Rec {
            offset: *end,
            timestamp: record.timestamp.unwrap_or(Timestamp(now)),
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: record.headers.iter().map(|(n, v)| ((*n).to_owned(), v.to_vec())).collect(),
        });
        *end += 1;
    }

    fn end(&self, topic: TopicName, partition: i32) -> i64 {
        self.logs.get(&(topic, partition)).map_or(0, |(_, end)| *end)
    }
}

fn hand_over(topic: TopicName, partition: i32, rec: &Rec, each: &mut dyn FnMut(RecordRef<'_>)) {
    let headers: Vec<(&str, Option<&[u8]>)> =
        rec.headers.iter().map(|(n, v)| (n.as_str(), Some(v.as_slice()))).collect();
    each(RecordRef {
        topic,
        partition,
        offset: rec.offset,
        timestamp: rec.timestamp,
        key: rec.key.as_deref(),
        value: rec.value.as_deref(),
        headers: &headers,
    });
}

struct MemGroup(Shared);

impl Group for MemGroup {
    type Metadata = ();

    fn poll(&mut self, _: Duration, each: &mut dyn FnMut(RecordRef<'_>)) -> Result<Polled, Error> {
        let mut topics = self.0.borrow_mut();
        if let Some((left, changes)) = topics.rebalance_after.take() {
            match left {
                0 => topics.rebalances.push_back(changes),
                _ => topics.rebalance_after = Some((left - 1, changes)),
            }
        }
        if let Some(changes) = topics.rebalances.pop_front() {
            for revoked in &changes.revoked {
                topics.positions.remove(revoked);
            }
            topics.changes = changes;
            return Ok(Polled::Rebalanced);
        }
        let inputs: Vec<_> = topics.positions.iter().map(|(i, p)| (*i, *p)).collect();
        for ((topic, partition), position) in inputs {
            let found = topics.logs.get(&(topic, partition)).and_then(|(l, _)| l.iter().find(|r| r.offset >= position));
            let Some(rec) = found.cloned() else { continue };
            topics.positions.insert((topic, partition), rec.offset + 1);
            drop(topics);
            hand_over(topic, partition, &rec, each);
            return Ok(Polled::Record);
        }
        Ok(Polled::Nothing)
    }

    fn changes(&mut self) -> Changes {
        std::mem::take(&mut self.0.borrow_mut().changes)
    }

    fn start(&mut self, positions: &[InputOffset]) -> Result<(), Error> {
        self.0.borrow_mut().positions = positions.iter().map(|o| ((o.topic, o.partition), o.offset)).collect();
        Ok(())
    }

    fn seek(&mut self, positions: &[InputOffset]) -> Result<(), Error> {
        self.0.borrow_mut().positions.extend(positions.iter().map(|o| ((o.topic, o.partition), o.offset)));
        Ok(())
    }

    fn metadata(&self) -> Result<(), Error> {
        Ok(())
    }

    fn owns(&self, topic: TopicName, partition: i32) -> bool {
        self.0.borrow().positions.contains_key(&(topic, partition))
    }

    fn close(&mut self) {}
}

type Sent = (TopicName, i32, Rec);

struct MemTxn {
    topics: Shared,
    pending: Vec<Sent>,
    offsets: Vec<InputOffset>,
}

impl MemTxn {
    fn apply(&mut self) {
        let mut topics = self.topics.borrow_mut();
        let mut touched = BTreeSet::new();
        for (topic, partition, rec) in self.pending.drain(..) {
            let headers: Vec<_> = rec.headers.iter().map(|(n, v)| (n.as_str(), v.as_slice())).collect();
            topics.append(
                topic,
                partition,
                &Outgoing {
                    topic,
                    partition,
                    key: rec.key.as_deref(),
                    value: rec.value.as_deref(),
                    headers: &headers,
                    timestamp: Some(rec.timestamp),
                },
            );
            touched.insert((topic, partition));
        }
        // The marker of the transaction takes an offset of its own.
        touched.into_iter().for_each(|log| topics.logs.get_mut(&log).unwrap().1 += 1);
        topics.committed.extend(self.offsets.drain(..).map(|o| ((o.topic, o.partition), o.offset)));
    }
}

impl Txn for MemTxn {
    type Metadata = ();

    fn init(&mut self) -> Result<(), Error> {
        self.topics.borrow_mut().inits += 1;
        self.pending.clear();
        self.offsets.clear();
        Ok(())
    }

    fn begin(&mut self) -> Result<(), Error> {
        assert!(self.pending.is_empty() && self.offsets.is_empty(), "one transaction at a time");
        Ok(())
    }

    fn send(&mut self, record: &Outgoing<'_>) -> Result<(), Error> {
        let condemned = record.headers.iter().any(|(_, v)| *v == b"record.poison");
        if let Some((poison, kind)) = &self.topics.borrow().poison
            && (record.topic, record.value, condemned) == ("dead-letters", Some(poison), false)
        {
            return Err(Error::new(*kind, "could not send", "poison"));
        }
        let rec = Rec {
            offset: 0,
            timestamp: record.timestamp.unwrap_or(Timestamp(NOW)),
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: record.headers.iter().map(|(n, v)| ((*n).to_owned(), v.to_vec())).collect(),
        };
        self.pending.push((record.topic, record.partition, rec));
        Ok(())
    }

    fn send_offsets(&mut self, offsets: &[InputOffset], (): &()) -> Result<(), Error> {
        self.offsets.extend_from_slice(offsets);
        Ok(())
    }

    fn commit(&mut self) -> Result<(), Error> {
        let told = self.topics.borrow_mut().commits.pop_front();
        match told {
            None => self.apply(),
            Some((kind, done)) => {
                if done {
                    self.apply();
                }
                return Err(Error::new(kind, "could not commit", "no answer"));
            }
        }
        Ok(())
    }

    fn abort(&mut self) -> Result<(), Error> {
        self.pending.clear();
        self.offsets.clear();
        Ok(())
    }

    fn wants_recycling(&self) -> bool {
        false
    }
}

struct MemLog(Shared);

impl Log for MemLog {
    fn committed(&mut self, inputs: &[(TopicName, i32)]) -> Result<Vec<Option<InputOffset>>, Error> {
        let topics = self.0.borrow();
        let offset = |(topic, partition): &(TopicName, i32)| {
            let offset = *topics.committed.get(&(*topic, *partition))?;
            Some(InputOffset { topic, partition: *partition, offset, metadata: String::new() })
        };
        Ok(inputs.iter().map(offset).collect())
    }

    fn watermarks(&mut self, topic: TopicName, partition: i32) -> Result<(i64, i64), Error> {
        Ok((0, self.0.borrow().end(topic, partition)))
    }

    fn read(
        &mut self,
        topic: TopicName,
        partition: i32,
        from: i64,
        until: i64,
        each: &mut dyn FnMut(RecordRef<'_>),
    ) -> Result<(), Error> {
        let topics = self.0.borrow();
        let log = topics.logs.get(&(topic, partition)).map_or(&[][..], |(log, _)| log);
        for rec in log.iter().filter(|r| (from..until).contains(&r.offset)) {
            hand_over(topic, partition, rec, each);
        }
        Ok(())
    }

    fn cluster_id(&mut self) -> Result<String, Error> {
        Ok("c1".into())
    }
}

struct MemClock(Shared);

impl Clock for MemClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.borrow().now)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis((self.0.borrow().now - NOW) as u64)
    }

    fn wait(&self, duration: Duration) {
        self.0.borrow_mut().now += duration.as_millis() as i64;
    }
}

struct MemCopy(Shared);

impl CopySink for MemCopy {
    fn meta(&mut self, partition: i32) -> Result<Option<CopyMeta>, Error> {
        let topics = self.0.borrow();
        Ok(topics.copy.as_ref().and_then(|c| c.get(&partition)).map(|(meta, _)| meta.clone()))
    }

    fn users(&mut self, partition: i32, each: &mut dyn FnMut(CopyUser)) -> Result<(), Error> {
        let topics = self.0.borrow();
        let users = topics.copy.as_ref().and_then(|c| c.get(&partition)).map(|(_, users)| users);
        users.into_iter().flat_map(|u| u.values().cloned()).for_each(each);
        Ok(())
    }

    fn assigned(&mut self, standing: &Standing, loaded: Loaded) {
        let line = format!("assigned {} epoch {} {loaded:?}", standing.partition, standing.epoch);
        self.0.borrow_mut().copied.push(line);
    }

    fn dirty(&mut self, standing: &Standing, users: Vec<DirtyUser>) {
        let line = format!("dirty {} commit {} users {}", standing.partition, standing.commit_no, users.len());
        let mut topics = self.0.borrow_mut();
        topics.copied.push(line);
        let Some(copy) = &mut topics.copy else { return };
        let (meta, known) = copy.entry(standing.partition).or_default();
        *meta = CopyMeta {
            applied: standing.commit_no,
            changelog_offset: match standing.mark.commit_no <= standing.commit_no {
                true => standing.mark.offset,
                false => meta.changelog_offset,
            },
            applied_at: standing.now,
            epoch: standing.epoch,
            users: standing.users,
            cluster_id: standing.cluster_id.to_string(),
            format: crate::wire::state::FORMAT.into(),
            ..CopyMeta::default()
        };
        for user in users {
            let mut segments: Vec<_> = user.bytes.days.iter().map(|(d, b)| (d.0.to_string(), b.clone())).collect();
            segments.extend(user.bytes.head.iter().map(|b| (String::new(), b.clone())));
            segments.extend(user.bytes.seen.iter().map(|b| ("seen".to_owned(), b.clone())));
            let user_key = user.user_key.to_string();
            let commit_no = user.commit_no;
            known.insert(user_key.clone(), CopyUser { user_key, commit_no, segments, ..CopyUser::default() });
        }
    }

    fn revoked(&mut self, partition: i32) {
        self.0.borrow_mut().copied.push(format!("revoked {partition}"));
    }

    fn lost(&mut self) -> Vec<i32> {
        Vec::new()
    }
}

/// Knows every set whose name begins with "set". Under `set-broken` the indicator `broken` makes the engine panic.
struct Sets;

impl PolicySource for Sets {
    fn set(&mut self, hash: &str) -> Option<Arc<PolicySet>> {
        hash.starts_with("set").then(|| Arc::new(policies(hash)))
    }
}

fn policies(hash: &str) -> PolicySet {
    let indicator = |code, id: &str| Indicator {
        code,
        id: id.into(),
        title: id.into(),
        category: Category::Exfiltration,
        weight_milli: 30_000,
        cap_milli: 60_000,
        half_life_days: 7,
        measure: Measure::Count,
    };
    let indicators = vec![indicator(1, "usb_copy"), indicator(2, "broken")];
    let catalogue = Catalogue::new(indicators, Factors::default(), Boosters::default(), BTreeMap::new());
    let policy = Policy {
        id: "leaks".into(),
        version: "leaks-1".into(),
        name: "Data leaks".into(),
        template: String::new(),
        description: String::new(),
        status: Status::On,
        purpose: String::new(),
        legal_basis: String::new(),
        owner: String::new(),
        review_by: String::new(),
        groups: vec![],
        trigger: Trigger::None,
        look_back_days: 90,
        activation_days: 30,
        gap_hours: 72,
        max_days: 7,
        indicators: vec![PolicyIndicator { position: 0, weight_milli: 30_000, cap_milli: 60_000 }],
        open_at_milli: 20_000,
        min_severity: Level::Low,
        expire_days: 120,
    };
    let mut set = PolicySet::new(hash.into(), catalogue, vec![policy]);
    if hash == "set-broken" {
        set.by_indicator.truncate(1);
    }
    set
}

type TestWorker = Worker<MemGroup, MemTxn, MemLog, MemClock, MemCopy>;

struct World {
    topics: Shared,
    encoder: Encoder,
    decoder: Decoder,
}

impl World {
    fn new() -> World {
        let schemas = Schemas::built_in();
        let topics = Topics { now: NOW, ..Topics::default() };
        World {
            topics: Rc::new(RefCell::new(topics)),
            encoder: Encoder::new(&schemas),
            decoder: Decoder::new(&schemas),
        }
    }

    /// A world whose partitions have the set `set-1` in force.
    fn with_policies() -> World {
        let mut world = World::new();
        (0..PARTITIONS).for_each(|p| world.switch(p, "set-1"));
        world
    }

    fn worker_with(&self, change: impl FnOnce(&mut Config)) -> TestWorker {
        let mut config =
            Config { partitions: PARTITIONS, status_every: Duration::from_secs(3_600), ..Config::default() };
        change(&mut config);
        let all = (0..PARTITIONS).flat_map(|p| (0..INPUTS).map(move |n| (input_name(n), p))).collect();
        let assigned = Changes { revoked: vec![], assigned: Some(all) };
        self.topics.borrow_mut().rebalances.push_back(assigned);
        let t = &self.topics;
        Worker::new(
            config,
            &Schemas::built_in(),
            MemGroup(t.clone()),
            MemTxn { topics: t.clone(), pending: vec![], offsets: vec![] },
            MemLog(t.clone()),
            MemClock(t.clone()),
            MemCopy(t.clone()),
            Box::new(Sets),
            Box::new(|_, _| {}),
        )
    }

    fn worker(&self) -> TestWorker {
        self.worker_with(|_| {})
    }

    fn put(&self, topic: Topic, partition: i32, key: &[u8], value: &[u8], headers: &[(&str, &[u8])]) {
        let (topic, key, value) = (topic.name(), Some(key), Some(value));
        let timestamp = Some(Timestamp(NOW));
        let record = Outgoing { topic, partition, key, value, headers, timestamp };
        self.topics.borrow_mut().append(topic, partition, &record);
    }

    fn switch(&mut self, partition: i32, set: &str) {
        let command = Command {
            command_id: Text::from(format!("switch-{partition}-{set}")),
            kind: Text::borrowed("switch_policies"),
            switch_policies: Some(SwitchPolicies { policy_set: Text::from(set) }),
            ..Command::default()
        };
        let mut value = Vec::new();
        self.encoder.encode(Topic::CaseCommands, &command, &mut value).unwrap();
        self.put(Topic::CaseCommands, partition, b"", &value, &[]);
    }

    fn signal(&mut self, partition: i32, user: &str, n: i64) {
        self.signal_at(partition, user, n, "usb_copy", Timestamp(NOW - 60_000 + n));
    }

    fn signal_at(&mut self, partition: i32, user: &str, n: i64, indicator: &str, at: Timestamp) {
        let signal = Signal {
            signal_id: Text::from(format!("s{n}")),
            user_key: Text::from(user),
            source: Text::borrowed("purview"),
            source_event_id: Text::from(format!("e{n}")),
            op: Text::borrowed("create"),
            indicator: Text::from(indicator),
            occurred_at: at,
            ingested_at: at,
            day: Text::from(at.day_at(0).iso()),
            outcome: Text::borrowed("allowed"),
            count: 1,
            is_complete: true,
            mapping: Text::borrowed("m@1"),
            origin: Text::borrowed("live"),
            ..Signal::default()
        };
        let mut value = Vec::new();
        self.encoder.encode(Topic::RiskSignals, &signal, &mut value).unwrap();
        self.put(Topic::RiskSignals, partition, user.as_bytes(), &value, &[]);
    }

    fn records(&self, topic: Topic, partition: i32) -> Vec<Rec> {
        self.topics.borrow().logs.get(&(topic.name(), partition)).map(|(log, _)| log.clone()).unwrap_or_default()
    }

    fn journal(&mut self, partition: i32) -> Vec<Journal> {
        let records = self.records(Topic::EngineJournal, partition);
        let decode = |r: &Rec| self.decoder.decode(Topic::EngineJournal, r.value.as_ref().unwrap(), &[]).unwrap();
        records.iter().map(decode).collect()
    }

    /// What every history must satisfy.
    fn check(&mut self) {
        for partition in 0..PARTITIONS {
            let journal = self.journal(partition);
            for (n, entry) in (1..).zip(&journal) {
                assert_eq!(entry.commit_no, n, "commit numbers have no gaps");
                assert!(balances(&entry.ledger), "{:?}", entry.ledger);
            }
            for pair in journal.windows(2) {
                for (a, b) in pair[0].inputs.iter().zip(&pair[1].inputs) {
                    assert_eq!(a.to, b.from, "ranges follow each other");
                }
            }
            let Some(last) = journal.last() else { continue };
            let state = self.records(Topic::UserState, partition);
            let meta = state.iter().rev().find(|r| r.key.as_deref() == Some(META_KEY)).unwrap();
            let meta: Journal = self.decoder.decode(Topic::EngineJournal, meta.value.as_ref().unwrap(), &[]).unwrap();
            assert_eq!(&meta, last, "meta is the last journal record");
            for range in &last.inputs {
                let topics = self.topics.borrow();
                let committed = topics.committed.iter().find(|((t, p), _)| *t == range.topic && *p == partition);
                assert_eq!(committed.map(|(_, o)| *o), Some(range.to), "{}-{partition}", range.topic);
            }
        }
    }

    fn ledger(&mut self, partition: i32) -> String {
        let ledger = self.journal(partition).pop().unwrap().ledger;
        ledger.iter().map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ")
    }

    fn codes(&self, partition: i32) -> Vec<String> {
        let code = |r: &Rec| {
            let (_, code) = r.headers.iter().find(|(n, _)| n == "casestream-dlq-code").unwrap();
            String::from_utf8(code.clone()).unwrap()
        };
        self.records(Topic::DeadLetters, partition).iter().map(code).collect()
    }

    fn results(&mut self, partition: i32) -> Vec<String> {
        let records = self.records(Topic::CommandResults, partition);
        let line = |r: &Rec| {
            let result: CommandResult<'_> =
                self.decoder.decode(Topic::CommandResults, r.value.as_ref().unwrap(), &[]).unwrap();
            format!("{} {} {}", result.command_id, result.outcome, result.code)
        };
        records.iter().map(line).collect()
    }
}

/// Steps until there is nothing left to do.
fn settle(worker: &mut TestWorker) -> Vec<Step> {
    let mut steps = Vec::new();
    for _ in 0..2_000 {
        let step = worker.step().expect("the worker goes on");
        steps.push(step);
        if step == Step::Idle && worker.is_ready() {
            return steps;
        }
    }
    panic!("the worker does not come to rest: {:?}", &steps[steps.len() - 10..]);
}

fn user_of(partition: i32, n: usize) -> String {
    (0..).map(|i| format!("u{i}")).filter(|u| partition_of(u.as_bytes(), PARTITIONS) == partition).nth(n).unwrap()
}

#[test]
fn two_partitions_run_stop_and_resume() {
    let mut world = World::with_policies();
    for n in 0..10 {
        let partition = (n % 2) as i32;
        let user = user_of(partition, n as usize % 3);
        world.signal(partition, &user, n);
    }
    world.put(Topic::RiskSignals, 0, b"k", b"not avro", &[]);
    let mut worker = world.worker();
    settle(&mut worker);
    world.check();
    assert_eq!(world.results(0), ["switch-0-set-1 accepted ok"]);
    assert_eq!(world.codes(0), ["schema.magic"]);
    let journal = world.journal(1);
    let last = journal.last().unwrap();
    assert_eq!((last.ledger["in"], last.ledger["commands.accepted"]), (5, 1));
    assert_eq!((last.policy_set.as_str(), last.epoch, journal[0].epoch), ("set-1", 1, 1));
    let before: Vec<_> = (0..PARTITIONS).map(|p| world.journal(p).len()).collect();

    let mut again = world.worker();
    settle(&mut again);
    world.check();
    let after: Vec<_> = (0..PARTITIONS).map(|p| world.journal(p).len()).collect();
    assert_eq!(after, before.iter().map(|n| n + 1).collect::<Vec<_>>(), "a restart writes the new epoch and no more");
    assert_eq!(again.running().map(|p| p.meta().epoch).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(world.topics.borrow().inits, 2);
}

#[test]
fn signals_wait_for_policies_and_are_not_lost() {
    let mut world = World::new();
    world.signal(0, &user_of(0, 0), 1);
    let mut worker = world.worker();
    settle(&mut worker);
    assert!(!world.journal(0).last().unwrap().ledger.contains_key("in"), "no signal is folded without policies");
    world.switch(0, "set-1");
    settle(&mut worker);
    settle(&mut worker);
    world.check();
    assert_eq!(world.journal(0).last().unwrap().ledger["in"], 1);
    // A switch to a set that cannot be loaded holds the partition before the command.
    world.switch(0, "gone");
    world.signal(0, &user_of(0, 0), 2);
    settle(&mut worker);
    world.topics.borrow_mut().now += 5_000;
    settle(&mut worker);
    world.check();
    let last = world.journal(0).pop().unwrap();
    assert_eq!((last.ledger["in"], last.policy_set.as_str()), (1, "set-1"));
}

#[test]
fn an_unknown_commit_is_asked_for_and_not_repeated() {
    for done in [true, false] {
        for at in 0..4 {
            let mut world = World::with_policies();
            (0..6).for_each(|n| world.signal(0, &user_of(0, 0), n));
            let mut worker = world.worker_with(|c| c.batch_records_max = 3);
            let mut plan: VecDeque<_> = VecDeque::new();
            for _ in 0..at {
                plan.push_back((ErrorKind::Abort, false));
            }
            plan.push_back((ErrorKind::Unknown, done));
            world.topics.borrow_mut().commits = plan;
            let steps = settle(&mut worker);
            world.check();
            assert!(steps.contains(&Step::Unknown), "at {at}");
            assert_eq!(world.topics.borrow().inits, 2, "the producer is made anew");
            assert_eq!(world.journal(0).last().unwrap().ledger["in"], 6, "at {at}, done {done}");
            assert_eq!(world.results(0).len(), 1);
        }
    }
}

#[test]
fn a_record_that_cannot_be_written_is_set_aside_alone() {
    for kind in [ErrorKind::Abort, ErrorKind::TooLarge] {
        let mut world = World::with_policies();
        for n in 0..20 {
            let value = if n == 7 { "poison".to_owned() } else { format!("bad {n}") };
            world.put(Topic::RiskSignals, 0, b"k", value.as_bytes(), &[]);
        }
        world.signal(1, &user_of(1, 0), 1);
        world.topics.borrow_mut().poison = Some((b"poison".to_vec(), kind));
        let mut worker = world.worker();
        settle(&mut worker);
        world.check();
        let codes = world.codes(0);
        assert_eq!(codes.iter().filter(|c| *c == "record.poison").count(), 1, "{codes:?}");
        assert_eq!(codes.iter().filter(|c| *c == "schema.magic").count(), 19);
        let alone = world.journal(0).into_iter().find(|j| j.ledger.contains_key("dead.record.poison")).unwrap();
        let records: i64 = alone.inputs.iter().map(|r| r.to - r.from).sum();
        assert_eq!(records, 1, "the poison stands alone in its transaction");
        assert_eq!(world.journal(1).last().unwrap().ledger["in"], 1);
    }
}

#[test]
fn a_broken_broker_costs_no_record() {
    let mut world = World::with_policies();
    (0..6).for_each(|n| world.signal(0, &user_of(0, 0), n));
    let mut worker = world.worker();
    while !worker.is_ready() {
        worker.step().unwrap();
    }
    world.topics.borrow_mut().commits = vec![(ErrorKind::Abort, false); 60].into();
    settle(&mut worker);
    world.check();
    assert_eq!(world.codes(0), Vec::<String>::new());
    assert_eq!(world.journal(0).last().unwrap().ledger["in"], 6);
}

#[test]
fn a_rebalance_while_gathering_drops_the_batch() {
    let mut world = World::with_policies();
    (0..6).for_each(|n| world.signal((n % 2) as i32, &user_of((n % 2) as i32, 0), n));
    let mut worker = world.worker();
    settle(&mut worker);
    (6..12).for_each(|n| world.signal((n % 2) as i32, &user_of((n % 2) as i32, 0), n));
    let lost: Vec<_> = (0..INPUTS).map(|n| (input_name(n), 1)).collect();
    let kept: Vec<_> = (0..INPUTS).map(|n| (input_name(n), 0)).collect();
    let changes = Changes { revoked: lost, assigned: Some(kept) };
    world.topics.borrow_mut().rebalance_after = Some((4, changes));
    let steps = settle(&mut worker);
    world.check();
    assert!(steps.contains(&Step::Rebalanced));
    assert_eq!(world.journal(0).last().unwrap().ledger["in"], 6, "partition 0 goes on");
    assert_eq!(world.journal(1).last().unwrap().ledger["in"], 3, "partition 1 is somebody else's");
    assert_eq!(worker.running().map(Partition::number).collect::<Vec<_>>(), [0]);
    assert!(world.topics.borrow().copied.contains(&"revoked 1".to_owned()));
}

/// As `KafkaGroup` tells it when the broker has fenced the member and it joins anew.
#[test]
fn losing_everything_and_getting_it_back_costs_no_record() {
    let mut world = World::with_policies();
    (0..6).for_each(|n| world.signal((n % 2) as i32, &user_of((n % 2) as i32, 0), n));
    let mut worker = world.worker();
    settle(&mut worker);
    (6..12).for_each(|n| world.signal((n % 2) as i32, &user_of((n % 2) as i32, 0), n));
    let all: Vec<_> = (0..PARTITIONS).flat_map(|p| (0..INPUTS).map(move |n| (input_name(n), p))).collect();
    world.topics.borrow_mut().rebalance_after = Some((4, Changes { revoked: all.clone(), assigned: None }));
    assert_eq!(worker.step().unwrap(), Step::Rebalanced);
    assert_eq!((worker.step().unwrap(), worker.running().count(), worker.is_ready()), (Step::Idle, 0, false));
    world.topics.borrow_mut().rebalances.push_back(Changes { revoked: Vec::new(), assigned: Some(all) });
    settle(&mut worker);
    world.check();
    let last = [0, 1].map(|p| world.journal(p).last().unwrap().clone());
    assert_eq!(last.map(|journal| (journal.ledger["in"], journal.epoch)), [(6, 2), (6, 2)]);
}

#[test]
fn a_record_on_the_wrong_partition_is_moved_once() {
    let mut world = World::with_policies();
    let user = user_of(1, 0);
    world.signal(0, &user, 1);
    let mut worker = world.worker();
    settle(&mut worker);
    settle(&mut worker);
    world.check();
    let moved = world.records(Topic::RiskSignals, 1).pop().unwrap();
    assert_eq!(moved.key.as_deref(), Some(user.as_bytes()));
    assert_eq!(moved.timestamp, Timestamp(NOW));
    assert_eq!(moved.value, world.records(Topic::RiskSignals, 0)[0].value);
    let headers: Vec<_> = moved.headers.iter().map(|(n, v)| format!("{n}={}", String::from_utf8_lossy(v))).collect();
    assert_eq!(headers, ["casestream-origin=risk-signals/0/0", "casestream-rerouted=1"]);
    assert_eq!(world.ledger(0), "commands.accepted 1, commands.in 1, in 1, rerouted 1");
    assert_eq!(world.journal(1).last().unwrap().ledger["in"], 1);
    // The same record once more on the wrong partition goes round no further.
    let (key, value) = (moved.key.unwrap(), moved.value.unwrap());
    world.put(Topic::RiskSignals, 0, &key, &value, &[("casestream-rerouted", b"1")]);
    settle(&mut worker);
    world.check();
    assert_eq!(world.codes(0), ["partition.loop"]);
}

#[test]
fn moved_offsets_halt_one_partition_and_the_other_goes_on() {
    let mut world = World::with_policies();
    settle(&mut world.worker());
    world.topics.borrow_mut().committed.insert(("risk-signals", 0), 99);
    world.signal(1, &user_of(1, 0), 1);
    let mut worker = world.worker();
    settle(&mut worker);
    let halted: Vec<_> = worker.halted().map(|h| (h.partition, h.code.as_str())).collect();
    assert_eq!(halted, [(0, "offsets.mismatch")]);
    assert_eq!(world.journal(1).last().unwrap().ledger["in"], 1);
}

#[test]
fn another_process_under_this_identity_stops_the_worker() {
    let mut world = World::with_policies();
    let mut worker = world.worker();
    world.topics.borrow_mut().commits = vec![(ErrorKind::Fenced, false)].into();
    let stopped = loop {
        match worker.step() {
            Ok(_) => {}
            Err(stop) => break stop,
        }
    };
    assert!(matches!(stopped, Stop::Fenced(_)), "{stopped}");
    world.check();
}

#[test]
fn commands_are_answered_once() {
    let mut world = World::with_policies();
    let user = user_of(0, 0);
    let command = Command {
        command_id: Text::borrowed("c1"),
        user_key: Text::from(user.as_str()),
        kind: Text::borrowed("open_case"),
        ..Command::default()
    };
    let mut value = Vec::new();
    world.encoder.encode(Topic::CaseCommands, &command, &mut value).unwrap();
    world.put(Topic::CaseCommands, 0, user.as_bytes(), &value, &[]);
    world.put(Topic::CaseCommands, 1, user.as_bytes(), &value, &[]);
    let mut worker = world.worker();
    settle(&mut worker);
    settle(&mut worker);
    world.check();
    assert_eq!(
        world.results(0),
        ["switch-0-set-1 accepted ok", "c1 refused command.unknown", "c1 refused command.unknown"]
    );
    assert_eq!(world.ledger(1), "commands.accepted 1, commands.in 2, commands.rerouted 1");
}

/// Every value of a topic as (key, value), the latest per key where it is compacted.
fn contents(world: &World, topic: Topic) -> Vec<(Vec<u8>, Vec<u8>)> {
    let all = (0..PARTITIONS).flat_map(|p| world.records(topic, p));
    all.map(|r| (r.key.unwrap_or_default(), r.value.unwrap_or_default())).collect()
}

/// The users of both partitions as resident, by key.
fn residents(worker: &TestWorker) -> BTreeMap<String, crate::wire::state::UserBytes> {
    worker.running().flat_map(|p| p.all_users()).map(|u| (u.user_key.to_string(), u.bytes)).collect()
}

fn month(world: &mut World) {
    for n in 0..120i64 {
        let partition = (n % 2) as i32;
        let user = user_of(partition, (n % 5) as usize);
        let at = Timestamp(NOW - 29 * DAY_MS + n * 5 * HOUR_MS);
        world.topics.borrow_mut().now = at.0;
        world.signal_at(partition, &user, n, "usb_copy", at);
    }
    world.topics.borrow_mut().now = NOW;
}

#[test]
fn a_restart_finds_exactly_the_state_that_was_written() {
    let mut world = World::with_policies();
    month(&mut world);
    let mut worker = world.worker();
    settle(&mut worker);
    world.check();
    let before = residents(&worker);
    assert_eq!(before.len(), 10);
    assert!(!contents(&world, Topic::Alerts).is_empty(), "the month opens windows");
    let timers: Vec<_> = worker.running().map(Partition::next_timer).collect();
    let mut again = world.worker();
    settle(&mut again);
    world.check();
    assert_eq!(residents(&again), before, "INV-2");
    assert_eq!(again.running().map(Partition::next_timer).collect::<Vec<_>>(), timers);
    let bytes = |w: &TestWorker| w.running().map(Partition::bytes).collect::<Vec<_>>();
    assert_eq!(bytes(&again), bytes(&worker));
}

#[test]
fn aborts_and_unknown_commits_change_no_output() {
    let run = |faults: Vec<(ErrorKind, bool)>| {
        let mut world = World::with_policies();
        month(&mut world);
        let mut worker = world.worker_with(|c| c.batch_records_max = 16);
        while !worker.is_ready() {
            worker.step().unwrap();
        }
        world.topics.borrow_mut().commits = faults.into();
        settle(&mut worker);
        world.check();
        let mut ids: Vec<_> = (0..PARTITIONS)
            .flat_map(|p| world.records(Topic::ActivityChronology, p))
            .map(|r| r.headers.iter().find(|(n, _)| n == "ce_id").unwrap().1.clone())
            .collect();
        ids.sort();
        let count = ids.len();
        ids.dedup();
        assert_eq!(ids.len(), count, "INV-1: an event was written twice");
        (ids, residents(&worker).keys().cloned().collect::<Vec<_>>())
    };
    let plain = run(vec![]);
    assert!(plain.0.len() >= 120);
    let (abort, lost, done) = ((ErrorKind::Abort, false), (ErrorKind::Unknown, false), (ErrorKind::Unknown, true));
    for faults in [vec![abort], vec![lost], vec![done], vec![done, lost, abort, done], vec![abort, done, done, lost]] {
        assert_eq!(run(faults.clone()), plain, "{faults:?}");
    }
}

#[test]
fn a_panic_of_the_engine_costs_the_record_alone() {
    let mut world = World::new();
    (0..PARTITIONS).for_each(|p| world.switch(p, "set-broken"));
    let user = user_of(0, 0);
    for n in 0..9 {
        let indicator = if n % 3 == 1 { "broken" } else { "usb_copy" };
        world.signal_at(0, &user, n, indicator, Timestamp(NOW - 1_000));
    }
    let mut worker = world.worker();
    settle(&mut worker);
    world.check();
    assert_eq!(world.codes(0), ["engine.panic"; 3]);
    let ledger = world.journal(0).pop().unwrap().ledger;
    assert_eq!((ledger["scored"], ledger["dead.engine.panic"]), (6, 3));
    assert_eq!(worker.running().map(|p| p.meta().users).sum::<i64>(), 1);
}

#[test]
fn timers_follow_the_clock_once_everything_is_read() {
    let mut world = World::with_policies();
    world.signal_at(0, &user_of(0, 0), 1, "usb_copy", Timestamp(NOW));
    let mut worker = world.worker();
    settle(&mut worker);
    let stream_time = world.journal(0).last().unwrap().stream_time;
    let commits = world.journal(0).len();
    world.topics.borrow_mut().now += 20 * DAY_MS;
    settle(&mut worker);
    world.check();
    let journal = world.journal(0);
    let last = journal.last().unwrap();
    assert!(journal.len() > commits && last.follows_clock, "the level falls without input");
    assert_eq!(last.stream_time.0, world.topics.borrow().now);
    assert!(stream_time.0 <= NOW);
    assert_eq!(world.journal(1).len(), 2, "an idle partition without changes does not write");
    // With something left to read, here held back, time stands still.
    world.switch(0, "gone");
    world.topics.borrow_mut().now += 60 * DAY_MS;
    settle(&mut worker);
    let held = world.journal(0).len();
    world.topics.borrow_mut().now += 60 * DAY_MS;
    settle(&mut worker);
    assert_eq!(world.journal(0).len(), held);
}

#[test]
fn a_timer_and_many_new_users_share_a_batch() {
    let mut world = World::with_policies();
    world.signal_at(0, &user_of(0, 0), 1, "usb_copy", Timestamp(NOW));
    world.topics.borrow_mut().now += 20 * DAY_MS;
    let later = Timestamp(NOW + 20 * DAY_MS);
    // The first batch moves stream time past the fall of the first user's level, the next ones begin with the timer.
    (1..60).for_each(|n| world.signal_at(0, &user_of(0, n), n as i64 + 1, "usb_copy", later));
    let mut worker = world.worker_with(|c| c.batch_records_max = 16);
    settle(&mut worker);
    world.check();
    assert_eq!(worker.halted().count(), 0);
    assert_eq!(world.journal(0).last().unwrap().users, 60);
}

#[test]
fn a_worker_without_memory_says_how_many_are_needed() {
    let mut world = World::with_policies();
    month(&mut world);
    settle(&mut world.worker());
    let mut worker = world.worker_with(|c| c.state_bytes_max = 10_000);
    settle(&mut worker);
    let halt = worker.halted().next().expect("a partition is refused");
    assert_eq!(halt.code.as_str(), "memory.full");
    assert!(halt.remedy.starts_with("run at least "), "{halt}");
}

#[test]
fn a_trusted_copy_and_the_changelog_tail_are_the_whole_state() {
    let mut world = World::with_policies();
    world.topics.borrow_mut().copy = Some(BTreeMap::new());
    month(&mut world);
    let mut worker = world.worker_with(|c| c.batch_records_max = 16);
    settle(&mut worker);
    world.topics.borrow_mut().now += 20_000;
    settle(&mut worker);
    // The copy stops here; what follows is found in the changelog only.
    let copy = world.topics.borrow_mut().copy.take();
    (200..210).for_each(|n| world.signal(0, &user_of(0, n as usize % 7), n));
    settle(&mut worker);
    let before = residents(&worker);
    let applied = copy.as_ref().map(|c| c[&0].0.applied).unwrap();
    assert!(applied < worker.running().next().unwrap().meta().commit_no, "the copy is behind");

    world.topics.borrow_mut().copy = copy;
    world.topics.borrow_mut().copied.clear();
    let mut again = world.worker();
    settle(&mut again);
    world.check();
    assert_eq!(residents(&again), before, "INV-2");
    let copied = world.topics.borrow().copied.clone();
    assert!(copied[0].starts_with("assigned 0 epoch 2 CaughtUp"), "{copied:?}");
    assert!(copied[1].ends_with("users 7"), "the users of the tail follow: {copied:?}");

    // A copy that lost users is noticed by their number, and the changelog is read from its start.
    if let Some((_, users)) = world.topics.borrow_mut().copy.as_mut().and_then(|c| c.get_mut(&1)) {
        users.pop_first();
    }
    let mut third = world.worker();
    settle(&mut third);
    world.check();
    assert_eq!(residents(&third), before);
    assert!(world.topics.borrow().copied.iter().any(|l| l.starts_with("assigned 1 epoch 3 Rebuilt")));
}

#[test]
fn at_a_first_start_the_directory_is_read_before_signals() {
    let mut world = World::with_policies();
    let user = user_of(0, 0);
    (0..40).for_each(|n| world.signal(0, &user, n));
    let directory = crate::domain::directory::Directory {
        user_key: Text::from(user.as_str()),
        canonical_id: Text::borrowed("x"),
        version: 1,
        ..Default::default()
    };
    let mut value = Vec::new();
    world.encoder.encode(Topic::UserDirectory, &directory, &mut value).unwrap();
    (0..9).for_each(|_| world.put(Topic::UserDirectory, 0, user.as_bytes(), &value, &[]));
    world.put(Topic::UserDirectory, 1, user.as_bytes(), &value, &[]);
    let mut worker = world.worker_with(|c| c.batch_records_max = 4);
    (0..3).for_each(|_| drop(settle(&mut worker)));
    world.check();
    let journal = world.journal(0);
    let first_signal = journal.iter().find(|j| j.ledger.contains_key("in")).unwrap();
    assert_eq!(first_signal.ledger["directory.in"], 9);
    let last = &journal.last().unwrap().ledger;
    assert_eq!((last["in"], last["directory.applied"], last["directory.unchanged"]), (40, 1, 8));
    assert_eq!(world.codes(1), ["directory.partition"]);
}
