//! The protocol against a broker in memory whose calls fail as told. The oracle: every raw record is accounted for
//! once, in the ledger and in what was written.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use super::*;
use crate::domain::directory::{Alias, Directory};
use crate::domain::partitioner::partition_of;
use crate::domain::signal::Signal;
use crate::domain::{Text, Timestamp};
use crate::runtime::ports::{Changes, Outgoing, RecordRef, TopicName};
use crate::topology::Topic;
use crate::wire::avro::{Decoder, Encoder, Schemas};
use crate::wire::headers::{ORIGIN, find};
use crate::wire::mapping::identity::Pseudonym;
use crate::wire::mapping::{Code, Draft, Mapper, Outcome, RawMeta, Subject};

const RAW: TopicName = "raw.test";
const PARTITIONS: i32 = 4;
const INPUT: Input = (RAW, 0);

/// `signal <kind> <who>`, `ignore <reason>` or `dead`; several by `;`.
struct WordMapper;

impl Mapper for WordMapper {
    fn run(&mut self, raw: &[u8], at: &RawMeta<'_>) -> Outcome {
        let text = std::str::from_utf8(raw).unwrap();
        let words: Vec<&str> = text.split(' ').collect();
        match words[..] {
            ["ignore", reason] => Outcome::Ignored(reason.to_owned().into()),
            ["signal", ..] => Outcome::Signals(text.split(';').map(|one| draft(one, at)).collect()),
            _ => Outcome::dead(Code::JsonMalformed, "told to"),
        }
    }
}

fn draft(text: &str, at: &RawMeta<'_>) -> Draft {
    let words: Vec<&str> = text.split(' ').collect();
    let kind = crate::wire::mapping::identity::KINDS.into_iter().find(|k| *k == words[1]).unwrap();
    let signal = Signal {
        source_event_id: Text::from(format!("e{}", at.offset)),
        occurred_at: Timestamp(1_767_300_000_000),
        ..Signal::default()
    };
    Draft { signal, subject: Subject { kind, value: words[2].to_owned() } }
}

#[derive(Clone, Debug, PartialEq)]
struct Written {
    topic: TopicName,
    partition: i32,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Vec<u8>)>,
}

/// What the next poll does besides delivering records.
enum Turn {
    Rebalanced(Changes),
}

#[derive(Default)]
struct Broker {
    raw: Vec<&'static str>,
    raw_start: i64,
    directory: Vec<(String, Option<Vec<u8>>)>,
    position: i64,
    owned: bool,
    changes: Option<Changes>,
    /// Before which delivery (counted from 0 over the broker's life) a turn happens.
    turns: VecDeque<(u32, Turn)>,
    deliveries: u32,
    committed: Option<InputOffset>,
    written: Vec<Written>,
    pending: Vec<Written>,
    pending_offsets: Vec<InputOffset>,
    /// Errors by call name; `commit+` fails after the commit has happened.
    faults: BTreeMap<&'static str, VecDeque<ErrorKind>>,
    inits: u32,
    seeks: u32,
    clock: Duration,
}

impl Broker {
    fn fault(&mut self, call: &'static str) -> Result<(), Error> {
        match self.faults.get_mut(call).and_then(VecDeque::pop_front) {
            Some(kind) => Err(Error::new(kind, call, "told to")),
            None => Ok(()),
        }
    }
}

#[derive(Clone, Default)]
struct Shared(Rc<RefCell<Broker>>);

impl Group for Shared {
    type Metadata = ();

    fn poll(&mut self, _: Duration, each: &mut dyn FnMut(RecordRef<'_>)) -> Result<Polled, Error> {
        let mut broker = self.0.borrow_mut();
        let deliveries = broker.deliveries;
        if broker.turns.front().is_some_and(|(at, _)| *at <= deliveries) {
            let (_, Turn::Rebalanced(changes)) = broker.turns.pop_front().unwrap();
            broker.owned = false;
            broker.changes = Some(changes);
            return Ok(Polled::Rebalanced);
        }
        let position = broker.position;
        let value = broker.raw.get(position as usize).copied();
        let Some(value) = value.filter(|_| broker.owned) else { return Ok(Polled::Nothing) };
        broker.position += 1;
        broker.deliveries += 1;
        each(RecordRef {
            topic: RAW,
            partition: 0,
            offset: position,
            timestamp: Timestamp(1_767_300_000_000),
            key: Some(b"k"),
            value: Some(value.as_bytes()),
            headers: &[("own", Some(b"header"))],
        });
        Ok(Polled::Record)
    }

    fn changes(&mut self) -> Changes {
        self.0.borrow_mut().changes.take().unwrap_or_default()
    }

    fn start(&mut self, positions: &[InputOffset]) -> Result<(), Error> {
        let mut broker = self.0.borrow_mut();
        broker.fault("start")?;
        broker.owned = true;
        broker.position = positions[0].offset;
        Ok(())
    }

    fn seek(&mut self, positions: &[InputOffset]) -> Result<(), Error> {
        let mut broker = self.0.borrow_mut();
        broker.seeks += 1;
        broker.fault("seek")?;
        broker.position = positions[0].offset;
        Ok(())
    }

    fn metadata(&self) -> Result<(), Error> {
        self.0.borrow_mut().fault("metadata")
    }

    fn owns(&self, topic: TopicName, partition: i32) -> bool {
        (topic, partition) == INPUT && self.0.borrow().owned
    }

    fn close(&mut self) {}
}

impl Txn for Shared {
    type Metadata = ();

    fn init(&mut self) -> Result<(), Error> {
        let mut broker = self.0.borrow_mut();
        broker.fault("init")?;
        broker.inits += 1;
        broker.pending.clear();
        broker.pending_offsets.clear();
        Ok(())
    }

    fn begin(&mut self) -> Result<(), Error> {
        self.0.borrow_mut().fault("begin")
    }

    fn send(&mut self, record: &Outgoing<'_>) -> Result<(), Error> {
        let mut broker = self.0.borrow_mut();
        broker.fault("send")?;
        assert_eq!(record.timestamp, None, "outputs carry the time of writing");
        broker.pending.push(Written {
            topic: record.topic,
            partition: record.partition,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: record.headers.iter().map(|(key, value)| ((*key).to_owned(), value.to_vec())).collect(),
        });
        Ok(())
    }

    fn send_offsets(&mut self, offsets: &[InputOffset], (): &()) -> Result<(), Error> {
        let mut broker = self.0.borrow_mut();
        broker.fault("send_offsets")?;
        broker.pending_offsets = offsets.to_vec();
        Ok(())
    }

    fn commit(&mut self) -> Result<(), Error> {
        let mut broker = self.0.borrow_mut();
        broker.fault("commit")?;
        let pending = std::mem::take(&mut broker.pending);
        broker.written.extend(pending);
        if let Some(offset) = broker.pending_offsets.pop() {
            broker.committed = Some(offset);
        }
        broker.fault("commit+")
    }

    fn abort(&mut self) -> Result<(), Error> {
        let mut broker = self.0.borrow_mut();
        broker.pending.clear();
        broker.pending_offsets.clear();
        broker.fault("abort")
    }

    fn wants_recycling(&self) -> bool {
        false
    }
}

impl Log for Shared {
    fn committed(&mut self, inputs: &[Input]) -> Result<Vec<Option<InputOffset>>, Error> {
        let mut broker = self.0.borrow_mut();
        broker.fault("committed")?;
        Ok(inputs.iter().map(|_| broker.committed.clone()).collect())
    }

    fn watermarks(&mut self, topic: TopicName, partition: i32) -> Result<(i64, i64), Error> {
        let mut broker = self.0.borrow_mut();
        if topic == RAW {
            broker.fault("watermarks")?;
        }
        Ok(match topic {
            RAW => (broker.raw_start, broker.raw.len() as i64),
            _ if partition == 0 => (0, broker.directory.len() as i64),
            _ => (0, 0),
        })
    }

    fn read(
        &mut self,
        topic: TopicName,
        partition: i32,
        from: i64,
        until: i64,
        each: &mut dyn FnMut(RecordRef<'_>),
    ) -> Result<(), Error> {
        let mut broker = self.0.borrow_mut();
        broker.fault("read")?;
        for offset in from..until {
            let (key, value) = &broker.directory[offset as usize];
            let (key, value) = (Some(key.as_bytes()), value.as_deref());
            each(RecordRef { topic, partition, offset, timestamp: Timestamp(0), key, value, headers: &[] });
        }
        Ok(())
    }

    fn cluster_id(&mut self) -> Result<String, Error> {
        Ok("test".to_owned())
    }
}

impl Clock for Shared {
    fn now(&self) -> Timestamp {
        Timestamp(1_767_300_000_000)
    }

    fn monotonic(&self) -> Duration {
        self.0.borrow().clock
    }

    fn wait(&self, duration: Duration) {
        self.0.borrow_mut().clock += duration;
    }
}

type Worker = MapWorker<Shared, Shared, Shared, Shared>;

fn pseudonym() -> Pseudonym {
    Pseudonym::new(&[7; 32])
}

fn worker(shared: &Shared) -> Worker {
    let schemas = Schemas::built_in();
    let stage = Stage {
        sources: vec![Source { topic: RAW, mapper: Box::new(WordMapper) }],
        people: People::new(pseudonym(), Decoder::new(&schemas), PARTITIONS),
        encoder: Encoder::new(&schemas),
        partitions: PARTITIONS,
    };
    shared.0.borrow_mut().turns.push_front((0, assign()));
    let limits = Limits { records: 4, ..Limits::default() };
    MapWorker::new(shared.clone(), shared.clone(), shared.clone(), shared.clone(), stage, limits)
}

fn assign() -> Turn {
    Turn::Rebalanced(Changes { revoked: vec![INPUT], assigned: Some(vec![INPUT]) })
}

fn broker(raw: &[&'static str]) -> Shared {
    Shared(Rc::new(RefCell::new(Broker { raw: raw.to_vec(), ..Broker::default() })))
}

/// Steps until there is nothing left, and says what happened, assignments left out.
fn drain(worker: &mut Worker) -> Vec<Step> {
    let mut steps = Vec::new();
    for _ in 0..100 {
        match worker.step().unwrap() {
            Step::Idle => return steps,
            step => steps.push(step),
        }
    }
    panic!("does not come to rest: {steps:?}");
}

/// Source event ids of the signals written, decoded, and codes of the dead letters.
fn outputs(shared: &Shared) -> (Vec<String>, Vec<String>) {
    let mut decoder = Decoder::new(&Schemas::built_in());
    let (mut signals, mut dead) = (Vec::new(), Vec::new());
    for written in &shared.0.borrow().written {
        let headers: Vec<(&str, Option<&[u8]>)> =
            written.headers.iter().map(|(key, value)| (key.as_str(), Some(value.as_slice()))).collect();
        if written.topic == Topic::DeadLetters.name() {
            dead.push(String::from_utf8(find(&headers, "casestream-dlq-code").unwrap().to_vec()).unwrap());
            continue;
        }
        let value = written.value.as_deref().unwrap();
        let signal: Signal<'_> = decoder.decode(Topic::RiskSignals, value, &headers).unwrap();
        assert_eq!(written.key.as_deref(), Some(signal.user_key.as_bytes()));
        assert_eq!(written.partition, partition_of(signal.user_key.as_bytes(), PARTITIONS));
        assert!(find(&headers, ORIGIN).unwrap().starts_with(b"raw.test/0/"));
        signals.push(signal.source_event_id.to_string());
    }
    (signals, dead)
}

const RAWS: [&str; 6] = [
    "signal email a@example.com",
    "ignore noise",
    "dead",
    "signal email a@example.com;signal email b@example.com",
    "signal login nobody-knows",
    "ignore noise",
];

/// Whatever went wrong on the way, this is what six records come to.
fn check_outcome(shared: &Shared, worker: &Worker) {
    let (signals, dead) = outputs(shared);
    assert_eq!(signals, ["e0", "e3", "e3"]);
    assert_eq!(dead, ["json.malformed", "unattributed"]);
    let ledger = worker.ledger(INPUT).unwrap();
    let json = r#"{"in":6,"mapped":2,"signals":3,"ignored":{"noise":2},"dead":{"json.malformed":1,"unattributed":1}}"#;
    assert_eq!(ledger.to_metadata(), json);
    let committed = shared.0.borrow().committed.clone().unwrap();
    assert_eq!((committed.offset, committed.metadata.as_str()), (6, json));
}

#[test]
fn commits_in_batches() {
    let shared = broker(&RAWS);
    let mut worker = worker(&shared);
    assert_eq!(drain(&mut worker), [Step::Rebalanced, Step::Committed(4), Step::Committed(2)]);
    check_outcome(&shared, &worker);
}

#[test]
fn dead_letters_keep_the_original_and_say_why() {
    let shared = broker(&["dead", "signal login nobody-knows"]);
    drain(&mut worker(&shared));
    let broker = shared.0.borrow();
    let of = |n: usize, name: &str| {
        let found = broker.written[n].headers.iter().find(|(key, _)| key == name);
        String::from_utf8(found.unwrap().1.clone()).unwrap()
    };
    assert_eq!(broker.written[0].value.as_deref(), Some(b"dead".as_slice()));
    assert_eq!(broker.written[0].key.as_deref(), Some(b"k".as_slice()));
    assert_eq!((of(0, "own"), of(0, "__connect.errors.stage")), ("header".into(), "DECODE".into()));
    assert_eq!(
        (of(0, "casestream-dlq-lane"), of(1, "casestream-dlq-lane")),
        ("rejected".into(), "unattributed".into())
    );
    assert_eq!(of(1, "__connect.errors.offset"), "1");
}

#[test]
fn an_abort_brings_the_batch_again() {
    for call in ["begin", "send", "send_offsets", "commit"] {
        let shared = broker(&RAWS);
        shared.0.borrow_mut().faults.insert(call, [ErrorKind::Abort].into());
        let mut worker = worker(&shared);
        let steps = drain(&mut worker);
        assert_eq!(
            steps[..3],
            [Step::Rebalanced, Step::Aborted, Step::Committed(2)],
            "{call}: a smaller batch follows"
        );
        check_outcome(&shared, &worker);
    }
}

#[test]
fn a_retriable_error_is_retried_in_place() {
    for call in ["begin", "send", "send_offsets", "commit"] {
        let shared = broker(&RAWS);
        shared.0.borrow_mut().faults.insert(call, [ErrorKind::Retriable, ErrorKind::Unstable].into());
        let mut worker = worker(&shared);
        assert_eq!(drain(&mut worker), [Step::Rebalanced, Step::Committed(4), Step::Committed(2)], "{call}");
        check_outcome(&shared, &worker);
    }
}

#[test]
fn what_cannot_be_read_yet_is_waited_for_however_long_it_takes() {
    for call in ["committed", "watermarks", "start", "init", "read"] {
        let shared = broker(&RAWS);
        let faults = std::iter::repeat_n(ErrorKind::Retriable, 100).chain([ErrorKind::Timeout, ErrorKind::Unstable]);
        shared.0.borrow_mut().faults.insert(call, faults.collect());
        shared.0.borrow_mut().directory = vec![person("u-ann", "ann", "UTC")];
        let mut worker = worker(&shared);
        for n in 0..102 {
            assert_eq!((n, worker.step().unwrap(), worker.is_ready()), (n, Step::Waiting, false), "{call}");
        }
        assert_eq!(drain(&mut worker), [Step::Rebalanced, Step::Committed(4), Step::Committed(2)], "{call}");
        assert!(worker.is_ready(), "{call}");
        check_outcome(&shared, &worker);
    }
}

#[test]
fn an_assignment_revoked_while_it_waits_is_forgotten() {
    let shared = broker(&RAWS);
    shared.0.borrow_mut().faults.insert("committed", [ErrorKind::Retriable].into());
    let mut worker = worker(&shared);
    assert_eq!(worker.step().unwrap(), Step::Waiting);
    shared.0.borrow_mut().turns.push_back((0, Turn::Rebalanced(Changes { revoked: vec![INPUT], assigned: None })));
    assert_eq!(worker.step().unwrap(), Step::Rebalanced);
    assert_eq!((worker.step().unwrap(), worker.is_ready()), (Step::Idle, false));
    shared.0.borrow_mut().turns.push_back((0, assign()));
    drain(&mut worker);
    check_outcome(&shared, &worker);
}

#[test]
fn a_seek_that_fails_costs_the_assignment_and_no_record() {
    let shared = broker(&RAWS);
    shared.0.borrow_mut().faults.extend([("send", [ErrorKind::Abort].into()), ("seek", [ErrorKind::Retriable].into())]);
    let mut worker = worker(&shared);
    assert_eq!(drain(&mut worker)[..3], [Step::Rebalanced, Step::Aborted, Step::Rebalanced]);
    check_outcome(&shared, &worker);
}

#[test]
fn an_unknown_commit_is_neither_lost_nor_doubled() {
    for call in ["commit", "commit+"] {
        let shared = broker(&RAWS);
        shared.0.borrow_mut().faults.insert(call, [ErrorKind::Unknown].into());
        let mut worker = worker(&shared);
        assert_eq!(drain(&mut worker)[1], Step::Recovered, "{call}");
        check_outcome(&shared, &worker);
        assert_eq!(shared.0.borrow().inits, 2, "{call}: a new producer");
    }
}

#[test]
fn a_failed_abort_recovers() {
    let shared = broker(&RAWS);
    shared.0.borrow_mut().faults.extend([("send", [ErrorKind::Abort].into()), ("abort", [ErrorKind::Fatal].into())]);
    let mut worker = worker(&shared);
    assert_eq!(drain(&mut worker)[1], Step::Recovered);
    check_outcome(&shared, &worker);
}

#[test]
fn lost_membership_drops_the_batch_before_it_begins() {
    let shared = broker(&RAWS);
    shared.0.borrow_mut().faults.insert("metadata", [ErrorKind::Abort].into());
    let mut worker = worker(&shared);
    assert_eq!(drain(&mut worker)[..2], [Step::Rebalanced, Step::Aborted]);
    check_outcome(&shared, &worker);
}

#[test]
fn a_rebalance_discards_what_was_gathered() {
    let shared = broker(&RAWS);
    let mut worker = worker(&shared);
    shared.0.borrow_mut().turns.push_back((2, assign()));
    let steps = drain(&mut worker);
    assert_eq!(steps, [Step::Rebalanced, Step::Rebalanced, Step::Committed(4), Step::Committed(2)]);
    assert_eq!(shared.0.borrow().deliveries, 8, "two records came twice");
    check_outcome(&shared, &worker);
}

#[test]
fn being_fenced_ends_the_worker() {
    let shared = broker(&RAWS);
    shared.0.borrow_mut().faults.insert("commit", [ErrorKind::Fenced].into());
    let mut worker = worker(&shared);
    assert_eq!(worker.step().unwrap(), Step::Rebalanced);
    assert_eq!(worker.step().unwrap_err().kind, ErrorKind::Fenced);
}

#[test]
fn a_restart_goes_on_with_offset_and_ledger() {
    let shared = broker(&RAWS[..3]);
    drain(&mut worker(&shared));
    shared.0.borrow_mut().raw.extend(&RAWS[3..]);
    let mut second = worker(&shared);
    drain(&mut second);
    check_outcome(&shared, &second);
}

#[test]
fn without_a_committed_offset_the_log_start_is_the_beginning() {
    let shared = broker(&RAWS);
    shared.0.borrow_mut().raw_start = 4;
    let mut worker = worker(&shared);
    drain(&mut worker);
    assert_eq!(worker.ledger(INPUT).unwrap().taken, 2);
}

#[test]
fn an_offset_behind_the_end_asks_for_an_operator() {
    let shared = broker(&RAWS);
    let metadata = String::new();
    shared.0.borrow_mut().committed = Some(InputOffset { topic: RAW, partition: 0, offset: 7, metadata });
    let error = worker(&shared).step().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Missing);
    assert!(error.to_string().contains("raw.test/0 at offset 7"), "{error}");
}

fn person(user_key: &str, login: &str, zone: &str) -> (String, Option<Vec<u8>>) {
    let text = |t: &str| Text::from(t.to_owned());
    let record = Directory {
        user_key: text(user_key),
        canonical_id: text(&format!("{login}@example.com")),
        aliases: vec![Alias { kind: text("login"), value: text(login) }],
        time_zone: Some(text(zone)),
        version: 1,
        ..Directory::default()
    };
    let mut value = Vec::new();
    Encoder::new(&Schemas::built_in()).encode(Topic::UserDirectory, &record, &mut value).unwrap();
    (user_key.to_owned(), Some(value))
}

/// Keys, days and offsets of the signals written.
fn who(shared: &Shared) -> Vec<(String, String, i64)> {
    let mut decoder = Decoder::new(&Schemas::built_in());
    let broker = shared.0.borrow();
    let signals = broker.written.iter().filter(|w| w.topic == Topic::RiskSignals.name());
    signals
        .map(|w| {
            let signal: Signal<'_> = decoder.decode(Topic::RiskSignals, w.value.as_deref().unwrap(), &[]).unwrap();
            (signal.user_key.to_string(), signal.day.to_string(), signal.zone_offset_min)
        })
        .collect()
}

#[test]
fn people_come_from_the_directory_and_addresses_stand_for_themselves() {
    let shared = broker(&["signal login ann", "signal email stranger@example.org"]);
    shared.0.borrow_mut().directory = vec![person("u-ann", "ann", "-23:00"), person("u-ann", "ann", "-12:00")];
    drain(&mut worker(&shared));
    let stranger = pseudonym().user_key("stranger@example.org");
    assert_eq!(who(&shared), [("u-ann".into(), "2026-01-01".into(), -720), (stranger, "2026-01-01".into(), 0)]);
}

#[test]
fn the_directory_is_followed() {
    let shared = broker(&["signal login ann"]);
    let mut worker = worker(&shared);
    drain(&mut worker);
    let grow = |raw: &'static str, person: (String, Option<Vec<u8>>)| {
        let mut broker = shared.0.borrow_mut();
        broker.directory.push(person);
        broker.raw.push(raw);
        broker.clock += people::CHECK_EVERY;
    };
    grow("signal login ann", person("u-ann", "ann", "UTC"));
    drain(&mut worker);
    grow("signal login ann", ("u-ann".to_owned(), None));
    drain(&mut worker);
    assert_eq!(who(&shared).len(), 1, "known only between her record and its tombstone");
    assert_eq!(outputs(&shared).1, ["unattributed", "unattributed"]);
}
