//! Kill rounds: two `run` processes under load, and in each round something breaks, chosen by a seed. After the round
//! nothing may be lost, doubled or different: `verify` replays the journal, and the test's own ledger, which knows
//! nothing of the journal, finds every act it produced exactly once in the chronology.
//!
//! ROUNDS=100 SEED=7 cargo test --release --test chaos -- --nocapture, and FAULT=KillBroker for one kind only.

#[path = "e2e/reading.rs"]
mod reading;
mod support;
#[path = "e2e/system.rs"]
mod system;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use casestream::domain::chronology::ChronologyEntry;
use casestream::domain::partitioner::partition_of;
use casestream::domain::signal::Signal;
use casestream::domain::{Text, Timestamp};
use casestream::generate::bench_signals;
use casestream::topology::Topic;
use casestream::wire::avro::{Decoder, Encoder, Schemas};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use reading::{Tail, ends};
use system::{Inputs, Journals, Node, PATIENCE, SOURCES, System};

const PARTITIONS: i32 = 8;
const USERS: u64 = 3_000;
/// Records per second, in all, until a round has had its share; then it drips. `verify` reads everything every round,
/// and an outage may be long.
const RATE: u64 = 2_000;
const RECORDS_PER_ROUND: u64 = 6_000;
const DRIP: u64 = 100;
/// 2026-02-02.
const FIRST_DAY_MS: i64 = 1_769_990_400_000;
/// Event time runs so much faster than the clock, so that windows close and levels fall while the test runs.
const TIME_FACTOR: i64 = 2_000;
/// The configuration of both processes.
const ENGINE: &str = "session_timeout_ms = 6000\ntransaction_timeout_ms = 6000\nidle_follow_ms = 3600000";

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// splitmix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// What was produced, by the test's own count.
#[derive(Default)]
struct Ledger {
    /// Source's event id → how often it was sent.
    acts: HashMap<String, u32>,
    /// Values nobody can read, each sent once.
    junk: HashMap<Vec<u8>, u32>,
    moved: u64,
    sent: u64,
}

/// Counts what the broker did not take.
#[derive(Clone, Default)]
struct Refusals(Arc<AtomicU64>);

impl ClientContext for Refusals {
    fn error(&self, _: rdkafka::error::KafkaError, _: &str) {}
    fn log(&self, _: rdkafka::config::RDKafkaLogLevel, _: &str, _: &str) {}
}

impl ProducerContext for Refusals {
    type DeliveryOpaque = ();
    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_err() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Generated load, on until it is paused.
struct Load {
    running: Arc<AtomicBool>,
    idle: Arc<AtomicBool>,
    end: Arc<AtomicBool>,
    ledger: Arc<Mutex<Ledger>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Load {
    fn start(bootstrap: &str, seed: u64) -> Load {
        let (running, idle, end) = (Arc::<AtomicBool>::default(), Arc::new(AtomicBool::new(true)), Arc::default());
        let ledger: Arc<Mutex<Ledger>> = Arc::default();
        let mut writer = Writer::new(bootstrap, seed, ledger.clone());
        let (on, rests, over) = (running.clone(), idle.clone(), Arc::<AtomicBool>::clone(&end));
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::SeqCst) {
                if on.load(Ordering::SeqCst) {
                    rests.store(false, Ordering::SeqCst);
                    writer.second_tenth();
                } else {
                    writer.flush();
                    rests.store(true, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        });
        Load { running, idle, end, ledger, thread: Some(thread) }
    }

    fn resume(&self) {
        self.idle.store(false, Ordering::SeqCst);
        self.running.store(true, Ordering::SeqCst);
    }

    /// Returns when everything sent is acknowledged.
    fn pause(&self) {
        self.running.store(false, Ordering::SeqCst);
        support::wait_for("the load to rest", PATIENCE, || self.idle.load(Ordering::SeqCst).then_some(()));
    }

    fn run_for(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Makes records and writes them.
struct Writer {
    producer: BaseProducer<Refusals>,
    refusals: Refusals,
    ledger: Arc<Mutex<Ledger>>,
    dice: Dice,
    signals: casestream::generate::BenchSignals,
    encoder: Encoder,
    /// The latest sent, to be sent again: topic, key, value, event id.
    recent: Vec<(String, String, Vec<u8>, String)>,
    began: Instant,
    number: u64,
    /// `number` when the load last rested.
    round_began_at: u64,
}

impl Writer {
    fn new(bootstrap: &str, seed: u64, ledger: Arc<Mutex<Ledger>>) -> Writer {
        let refusals = Refusals::default();
        let producer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .set("message.timeout.ms", "120000")
            .set("linger.ms", "5")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "500")
            .create_with_context(refusals.clone())
            .expect("a producer");
        Writer {
            producer,
            refusals,
            ledger,
            dice: Dice(seed),
            signals: bench_signals(USERS, seed),
            encoder: Encoder::new(&Schemas::built_in()),
            recent: Vec::new(),
            began: Instant::now(),
            number: 0,
            round_began_at: 0,
        }
    }

    fn second_tenth(&mut self) {
        let until = Instant::now() + Duration::from_millis(100);
        let rate = if self.number - self.round_began_at < RECORDS_PER_ROUND { RATE } else { DRIP };
        for _ in 0..rate / 10 {
            self.one();
        }
        self.producer.poll(Duration::ZERO);
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }

    fn flush(&mut self) {
        self.producer.flush(PATIENCE * 2).expect("could not flush the load");
        self.round_began_at = self.number;
        assert_eq!(self.refusals.0.load(Ordering::Relaxed), 0, "the broker refused records of the load");
    }

    fn one(&mut self) {
        self.number += 1;
        let at = Timestamp(FIRST_DAY_MS + self.began.elapsed().as_millis() as i64 * TIME_FACTOR);
        match self.dice.below(100) {
            0..60 => self.signal(at, None),
            60..63 => {
                let shift = 1 + self.dice.below(PARTITIONS as u64 - 1) as i32;
                self.signal(at, Some(shift));
            }
            63..66 => self.again(),
            66..68 => self.junk(),
            68..70 => self.unknown(at),
            _ => self.raw(at),
        }
    }

    /// A signal of a producer that writes them itself; with a shift, to a partition of another user.
    fn signal(&mut self, at: Timestamp, shift: Option<i32>) {
        let signal = self.signals.next_owned(at);
        self.send_signal(signal, shift);
    }

    fn unknown(&mut self, at: Timestamp) {
        let signal = self.signals.next_owned(at);
        self.send_signal(Signal { indicator: Text::borrowed("not_in_the_catalogue"), ..signal }, None);
    }

    fn send_signal(&mut self, signal: Signal<'static>, shift: Option<i32>) {
        let (key, id) = (signal.user_key.to_string(), signal.source_event_id.to_string());
        let mut value = Vec::new();
        self.encoder.encode(Topic::RiskSignals, &signal, &mut value).expect("a valid signal");
        let partition = shift.map(|s| (partition_of(key.as_bytes(), PARTITIONS) + s) % PARTITIONS);
        self.act("risk-signals", partition, key, value, id);
    }

    fn raw(&mut self, at: Timestamp) {
        let id = format!("raw-{}", self.number);
        let person = self.dice.below(USERS);
        let time = at.rfc3339();
        let value = format!(
            r#"{{"@timestamp":"{time}","event":{{"id":"{id}","action":"removable-media-created","observer":"Endpoint"}},"user":{{"email":"p{person}@example.com","deviceUid":"d{person}"}},"file":{{"name":"plan.xlsx","category":"Spreadsheet","sizeInBytes":4748}},"destination":{{"removableMedia":{{"serialNumber":"SN-{person}"}}}}}}"#
        );
        self.act("raw.code42", None, format!("p{person}"), value.into_bytes(), id);
    }

    fn again(&mut self) {
        if self.recent.is_empty() {
            return;
        }
        let n = self.dice.below(self.recent.len() as u64) as usize;
        let (topic, key, value, id) = self.recent[n].clone();
        self.act(&topic, None, key, value, id);
    }

    fn junk(&mut self) {
        let topic = if self.dice.below(2) == 0 { "risk-signals" } else { "raw.code42" };
        let value = format!("junk {}", self.number).into_bytes();
        self.send(topic, None, "junk", &value);
        let mut ledger = self.ledger.lock().expect("no holder panics");
        *ledger.junk.entry(value).or_default() += 1;
        ledger.sent += 1;
    }

    fn act(&mut self, topic: &str, partition: Option<i32>, key: String, value: Vec<u8>, id: String) {
        self.send(topic, partition, &key, &value);
        {
            let mut ledger = self.ledger.lock().expect("no holder panics");
            *ledger.acts.entry(id.clone()).or_default() += 1;
            ledger.moved += u64::from(partition.is_some());
            ledger.sent += 1;
        }
        let row = (topic.to_owned(), key, value, id);
        if self.recent.len() < 1_000 {
            self.recent.push(row);
        } else {
            let n = self.dice.below(1_000) as usize;
            self.recent[n] = row;
        }
    }

    fn send(&mut self, topic: &str, partition: Option<i32>, key: &str, value: &[u8]) {
        let mut record = BaseRecord::to(topic).key(key).payload(value);
        record.partition = partition;
        let mut left = Some(record);
        while let Some(record) = left.take() {
            if let Err((error, back)) = self.producer.send(record) {
                assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::QueueFull), "{error}");
                self.producer.poll(Duration::from_millis(10));
                left = Some(back);
            }
        }
    }
}

/// What the topics say happened.
struct Observed {
    chronology: Tail,
    letters: Tail,
    decoder: Decoder,
    /// Source's event id → activity entries.
    acts: HashMap<String, u32>,
    junk: HashMap<Vec<u8>, u32>,
    /// User → last seq.
    seqs: HashMap<String, i64>,
    event_ids: u64,
}

impl Observed {
    fn new(system: &System) -> Observed {
        let tail = |topic: Topic| Tail::new(&system.kafka.bootstrap(), topic.name(), PARTITIONS);
        Observed {
            chronology: tail(Topic::ActivityChronology),
            letters: tail(Topic::DeadLetters),
            decoder: Decoder::new(&Schemas::built_in()),
            acts: HashMap::new(),
            junk: HashMap::new(),
            seqs: HashMap::new(),
            event_ids: 0,
        }
    }

    fn catch_up(&mut self) {
        let Observed { chronology, letters, decoder, acts, junk, seqs, event_ids } = self;
        chronology.catch_up(&mut |message| {
            let value = message.payload().expect("an entry has a value");
            let entry: ChronologyEntry<'_> = decoder.decode(Topic::ActivityChronology, value, &[]).expect("an entry");
            let last = seqs.entry(entry.envelope.user_key.to_string()).or_default();
            assert_eq!(entry.seq, *last + 1, "the chronology of {} has a gap or a double", entry.envelope.user_key);
            *last = entry.seq;
            *event_ids += 1;
            if let (true, Some(signal)) = (entry.kind == "activity", &entry.signal) {
                *acts.entry(signal.source_event_id.to_string()).or_default() += 1;
            }
        });
        letters.catch_up(&mut |message| {
            *junk.entry(message.payload().unwrap_or_default().to_vec()).or_default() += 1;
        });
    }

    /// The whole count, without the journal: nothing missing, nothing twice, nothing else.
    fn compare(&self, ledger: &Ledger, journals: &Journals) {
        let mut wrong = Vec::new();
        for id in ledger.acts.keys() {
            match self.acts.get(id) {
                Some(1) => {}
                other => wrong.push(format!("{id}: {} entries", other.unwrap_or(&0))),
            }
        }
        wrong
            .extend(self.acts.keys().filter(|id| !ledger.acts.contains_key(*id)).map(|id| format!("{id}: never sent")));
        for (value, sent) in &ledger.junk {
            let found = self.junk.get(value).copied().unwrap_or(0);
            if found != *sent {
                wrong.push(format!("{}: {found} dead letters", String::from_utf8_lossy(value)));
            }
        }
        wrong.sort();
        assert!(wrong.is_empty(), "{} differences, the first: {:#?}", wrong.len(), &wrong[..wrong.len().min(10)]);
        assert_eq!(self.junk.len(), ledger.junk.len(), "dead letters of records that were not junk");
        let doubles: i64 = ledger.acts.values().map(|sent| i64::from(*sent) - 1).sum();
        assert_eq!(journals.ledger("duplicate"), doubles, "duplicates");
        assert_eq!(journals.ledger("rerouted"), ledger.moved as i64, "re-routed");
    }
}

/// What a round breaks.
#[derive(Clone, Copy, Debug)]
enum Fault {
    KillOne(usize),
    KillBoth,
    /// Stands still for so many milliseconds: less, or more, than the session.
    Pause(usize, u64),
    FlushRedis,
    KillRedis,
    KillBroker,
    /// The broker stands still, longer than a transaction may be open.
    PauseBroker(u64),
}

impl Fault {
    /// By chance, or the one that is asked for.
    fn choose(dice: &mut Dice, asked: Option<&str>) -> Fault {
        loop {
            let fault = Fault::any(dice);
            if asked.is_none_or(|name| fault.name() == name) {
                return fault;
            }
        }
    }

    fn any(dice: &mut Dice) -> Fault {
        match dice.below(20) {
            0..5 => Fault::KillOne(dice.below(2) as usize),
            5..9 => Fault::KillBoth,
            9..13 => Fault::Pause(dice.below(2) as usize, 1_000 + dice.below(8_000)),
            13..15 => Fault::FlushRedis,
            15..17 => Fault::KillRedis,
            17..19 => Fault::KillBroker,
            _ => Fault::PauseBroker(2_000 + dice.below(7_000)),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Fault::KillOne(_) => "KillOne",
            Fault::KillBoth => "KillBoth",
            Fault::Pause(..) => "Pause",
            Fault::FlushRedis => "FlushRedis",
            Fault::KillRedis => "KillRedis",
            Fault::KillBroker => "KillBroker",
            Fault::PauseBroker(_) => "PauseBroker",
        }
    }

    /// Breaks it and lets it come back. Returns when the cause is gone.
    fn inflict(self, system: &mut System, nodes: &mut [Node; 2], dice: &mut Dice) {
        let pause = |ms| std::thread::sleep(Duration::from_millis(ms));
        match self {
            Fault::KillOne(n) => {
                nodes[n].kill();
                pause(dice.below(2_000));
                nodes[n].start_again(system);
            }
            Fault::KillBoth => {
                nodes.iter_mut().for_each(Node::kill);
                nodes.iter_mut().for_each(|node| node.start_again(system));
            }
            Fault::Pause(n, ms) => {
                nodes[n].signal("STOP");
                pause(ms);
                nodes[n].signal("CONT");
            }
            Fault::FlushRedis => system.redis.flush(),
            Fault::KillRedis => {
                system.redis.kill();
                pause(1_000);
                system.redis.restart();
            }
            Fault::KillBroker => {
                system.kafka.kill();
                system.kafka.restart();
            }
            Fault::PauseBroker(ms) => {
                system.kafka.pause();
                pause(ms);
                system.kafka.resume();
            }
        }
    }
}

/// Waits until everything written by the end of the fault is mapped and folded, under load. A process that ended by itself is
/// started again, as a supervisor would; that it ended is counted.
fn wait_for_recovery(system: &System, nodes: &mut [Node; 2], ends_of: &[(String, Vec<i64>)]) -> usize {
    let mut restarts = 0;
    let deadline = Instant::now() + PATIENCE;
    loop {
        for node in nodes.iter_mut() {
            if let Some(status) = node.ended() {
                restarts += 1;
                eprintln!("a process ended ({status}): {}", node.log().lines().last().unwrap_or_default());
                node.kill();
                node.start_again(system);
            }
        }
        let behind = behind(system, ends_of);
        if behind.is_empty() {
            return restarts;
        }
        if Instant::now() > deadline {
            let pages: Vec<_> = nodes.iter().map(|node| node.get("/readyz").1).collect();
            let log = system.kafka.log();
            let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
            let last = &warnings[warnings.len().saturating_sub(10)..];
            panic!("not recovered in {PATIENCE:?}: {behind:#?}\n{pages:#?}\nkafka: {last:#?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Inputs that are not yet committed to where they ended.
fn behind(system: &System, ends_of: &[(String, Vec<i64>)]) -> Vec<String> {
    let committed: Vec<_> = system.map_committed().into_iter().chain(system.engine_committed()).collect();
    let mut behind = Vec::new();
    for (topic, ends) in ends_of {
        for (partition, end) in (0..).zip(ends) {
            let at = committed.iter().find(|c| c.topic == *topic && c.partition == partition).map_or(0, |c| c.offset);
            if at < *end {
                behind.push(format!("{topic}-{partition} at {at} of {end}"));
            }
        }
    }
    behind
}

/// Keeps what the processes logged when the test fails.
struct Logs {
    seed: u64,
    nodes: [Node; 2],
}

impl Drop for Logs {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
        for (n, node) in self.nodes.iter().enumerate() {
            let path = dir.join(format!("chaos-{}-{n}.log", self.seed));
            match std::fs::write(&path, node.log()) {
                Ok(()) => eprintln!("log of process {n}: {}", path.display()),
                Err(error) => eprintln!("could not keep the log of process {n}: {error}"),
            }
        }
        eprintln!("SEED={} cargo test --release --test chaos -- --nocapture", self.seed);
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent).div_ceil(100).saturating_sub(1)]
}

#[test]
fn nothing_is_lost_or_doubled_whatever_breaks() {
    let (rounds, seed) = (from_env("ROUNDS", 20), from_env("SEED", 1));
    let mut dice = Dice(seed);
    let mut system = System::start(PARTITIONS, ENGINE, &["example.com"]);
    let nodes = [0, 1].map(|ordinal| Node::start(&system, ordinal, &[]));
    let mut logs = Logs { seed, nodes };
    logs.nodes.iter_mut().for_each(Node::wait_ready);
    let load = Load::start(&system.kafka.bootstrap(), seed);
    let (mut inputs, mut journals, mut observed) =
        (Inputs::new(&system), Journals::new(&system), Observed::new(&system));
    let (mut recoveries, mut by_fault, mut restarts_in_all) = (Vec::new(), BTreeMap::<&str, u32>::new(), 0);
    for round in 1..=rounds {
        let began = Instant::now();
        load.resume();
        load.run_for(Duration::from_millis(1_000 + dice.below(2_000)));
        let fault = Fault::choose(&mut dice, std::env::var("FAULT").ok().as_deref());
        let broke = Instant::now();
        fault.inflict(&mut system, &mut logs.nodes, &mut dice);
        let back = Instant::now();
        // Taken now and not before the fault, so that it takes the processes that came back to get there.
        let topics = SOURCES.map(|source| format!("raw.{source}")).into_iter().chain(["risk-signals".to_owned()]);
        let bootstrap = system.kafka.bootstrap();
        let ends_of: Vec<_> = topics.map(|topic| (topic.clone(), ends(&bootstrap, &topic, PARTITIONS))).collect();
        let restarts = wait_for_recovery(&system, &mut logs.nodes, &ends_of);
        let (recovery, outage) = (back.elapsed(), back - broke);
        recoveries.push(recovery);
        restarts_in_all += restarts;
        load.pause();
        let rested = Instant::now();
        system.wait_until_drained(&mut inputs);
        system.wait_for_copy(&mut journals);
        let settled = rested.elapsed();
        let report = system.verify();
        observed.catch_up();
        let ledger = load.ledger.lock().expect("no holder panics");
        observed.compare(&ledger, &journals);
        *by_fault.entry(fault.name()).or_default() += 1;
        eprintln!(
            "round {round}: {fault:?}, away {outage:.1?}, recovered {recovery:.1?} later, settled {settled:.1?}, \
             {restarts} restarts, {} sent, {} transactions, 0 differences, {:.1?} in all",
            ledger.sent,
            report["transactions"],
            began.elapsed()
        );
    }
    recoveries.sort();
    let ledger = load.ledger.lock().expect("no holder panics");
    eprintln!(
        "{rounds} rounds {by_fault:?}: {} records, {} acts, {} chronology entries, 0 lost, 0 doubled, \
         {restarts_in_all} restarts; recovery p50 {:.1?}, p99 {:.1?}",
        ledger.sent,
        ledger.acts.len(),
        observed.event_ids,
        percentile(&recoveries, 50),
        percentile(&recoveries, 99)
    );
}
