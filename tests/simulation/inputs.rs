//! What the outside world writes: signals of every kind, directory records, commands, and a mapper that writes in
//! transactions some of which it aborts or leaves open. Next: `schedule.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;

use casestream::domain::command::{Command, SwitchPolicies};
use casestream::domain::directory::{Directory, Leaving};
use casestream::domain::partitioner::partition_of;
use casestream::domain::policy::PolicySet;
use casestream::domain::signal::Signal;
use casestream::domain::time::{DAY_MS, HOUR_MS};
use casestream::domain::{Text, Timestamp};
use casestream::runtime::partition::PolicySource;
use casestream::runtime::ports::Outgoing;
use casestream::topology::Topic;
use casestream::wire::avro::{Encoder, Record, Schemas};

use super::driver;
use super::world::{Rng, Shared, World, lock};

pub const PARTITIONS: i32 = 4;
pub const SETS: [&str; 2] = ["set-1", "set-2"];
const USERS: u64 = 20;
const MAPPER: &str = "mapper";
const MAPPER_CLIENT: u64 = u64::MAX;

/// The sets by name: the second opens alerts earlier and leaves one policy out.
pub fn set(hash: &str) -> Option<Arc<PolicySet>> {
    let which = SETS.iter().position(|s| *s == hash)?;
    let PolicySet { catalogue, mut policies, .. } = driver::policies();
    if which == 1 {
        policies.remove(0);
        policies.iter_mut().for_each(|p| p.open_at_milli /= 2);
    }
    Some(Arc::new(PolicySet::new(hash.into(), catalogue, policies)))
}

/// The sets, which cannot be had at times. `None` for an observer.
pub struct Sets {
    world: Option<Shared>,
    known: BTreeMap<String, Arc<PolicySet>>,
}

impl Sets {
    pub fn new(world: Option<Shared>) -> Sets {
        Sets { world, known: BTreeMap::new() }
    }
}

impl PolicySource for Sets {
    fn set(&mut self, hash: &str) -> Option<Arc<PolicySet>> {
        if let Some(world) = &self.world {
            let mut w = lock(world);
            if w.policies_down {
                w.hit("policy set unavailable");
                return None;
            }
        }
        if let Some(set) = self.known.get(hash) {
            return Some(set.clone());
        }
        let found = set(hash)?;
        Some(self.known.entry(hash.to_owned()).or_insert(found).clone())
    }
}

/// A record about to be written.
struct Ready {
    topic: Topic,
    partition: i32,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

/// Writes inputs, from a seed.
pub struct Producer {
    rng: Rng,
    encoder: Encoder,
    number: u64,
    sent: Vec<Signal<'static>>,
    /// The mapper's epoch; `None` while it has no producer.
    epoch: Option<i64>,
}

impl Producer {
    pub fn new(seed: u64, schemas: &Arc<Schemas>) -> Producer {
        Producer { rng: Rng(seed), encoder: Encoder::new(schemas), number: 0, sent: Vec::new(), epoch: None }
    }

    /// Writes a few records.
    pub fn produce(&mut self, w: &mut World) {
        match self.rng.below(12) {
            0 => self.directory(w),
            1 => self.command(w),
            2 => self.malformed(w),
            _ => self.signals(w),
        }
    }

    /// The switch to a set, on every partition.
    pub fn switch(&mut self, w: &mut World, set: &'static str) {
        for partition in 0..PARTITIONS {
            self.number += 1;
            let command = Command {
                command_id: Text::from(format!("switch-{}", self.number)),
                kind: Text::borrowed("switch_policies"),
                switch_policies: Some(SwitchPolicies { policy_set: Text::borrowed(set) }),
                at: w.now(),
                ..Command::default()
            };
            let record = self.ready(Topic::CaseCommands, partition, "", &command);
            write(w, &record);
        }
    }

    /// One plain signal on every partition.
    pub fn one_each(&mut self, w: &mut World) {
        for partition in 0..PARTITIONS {
            let user = (0..).map(|n| format!("u{n}")).find(|u| home(u) == partition).expect("users are spread");
            let signal = self.signal(&user, w.now());
            let record = self.ready(Topic::RiskSignals, partition, &user, &signal);
            write(w, &record);
        }
    }

    fn ready<T: Record>(&mut self, topic: Topic, partition: i32, key: &str, value: &T) -> Ready {
        let mut bytes = Vec::new();
        self.encoder.encode(topic, value, &mut bytes).expect("the input has the schema's shape");
        Ready { topic, partition, key: key.as_bytes().to_vec(), value: Some(bytes) }
    }

    fn signal(&mut self, user: &str, now: Timestamp) -> Signal<'static> {
        const INDICATORS: [&str; 6] =
            ["usb_copy", "cloud_upload", "mass_download", "archive", "log_deletion", "sign_in_anomaly"];
        self.number += 1;
        let indicator = INDICATORS[self.rng.below(6) as usize];
        let mut signal = driver::signal(&self.number.to_string(), indicator, 0);
        let at = now.plus_ms(-(self.rng.below(5 * 24) as i64) * HOUR_MS);
        signal.user_key = Text::from(user.to_owned());
        (signal.occurred_at, signal.ingested_at) = (at, now);
        signal.day = Text::from(at.day_at(0).iso());
        signal.count = 1 + self.rng.below(9) as i64;
        signal.bytes = Some(self.rng.below(1 << 30) as i64);
        signal.destination = driver::domain(&format!("d{}.example", self.rng.below(9)));
        signal.device_id = Some(Text::from(format!("pc-{}", self.rng.below(5))));
        if self.rng.one_in(4) {
            signal.labels.push(Text::borrowed("secret"));
        }
        if self.rng.one_in(3) {
            signal.activity_key = Some(Text::from(format!("k{}", self.rng.below(4))));
        }
        signal
    }

    /// A signal that is well, or one of the kinds that are not.
    fn any_signal(&mut self, now: Timestamp) -> Ready {
        let user = format!("u{}", self.rng.below(USERS));
        let mut signal = self.signal(&user, now);
        let (mut partition, mut key) = (home(&user), user.clone());
        let before = |s: &mut Self| {
            let n = s.rng.below(s.sent.len().max(1) as u64) as usize;
            s.sent.get(n).cloned()
        };
        match self.rng.below(20) {
            0 | 1 => signal = before(self).unwrap_or(signal),
            kind @ (2 | 3) => {
                signal = before(self).unwrap_or(signal);
                signal.op = Text::borrowed(if kind == 2 { "retract" } else { "revise" });
                (signal.count, signal.ingested_at) = (signal.count + 1, now);
            }
            4 => signal.indicator = Text::borrowed("nobody_knows"),
            5 => partition = (partition + 1) % PARTITIONS,
            6 => key = "another".into(),
            7 => shift(&mut signal, -200),
            8 => shift(&mut signal, 400),
            9 => signal.op = Text::borrowed("undo"),
            10 => signal.count = 0,
            _ => self.sent.push(signal.clone()),
        }
        if *signal.user_key != *user {
            (partition, key) = (home(&signal.user_key), signal.user_key.to_string());
        }
        self.ready(Topic::RiskSignals, partition, &key, &signal)
    }

    /// Signals of the mapper: in a transaction, mostly.
    fn signals(&mut self, w: &mut World) {
        let now = w.now();
        let records: Vec<Ready> = (0..1 + self.rng.below(10)).map(|_| self.any_signal(now)).collect();
        if self.rng.one_in(4) {
            return records.iter().for_each(|r| write(w, r));
        }
        let epoch = *self.epoch.get_or_insert_with(|| w.broker.init(MAPPER, MAPPER_CLIENT));
        let done = records.iter().try_for_each(|r| w.broker.send(MAPPER, MAPPER_CLIENT, epoch, &outgoing(r)));
        if done.is_err() {
            self.epoch = None;
            return;
        }
        let fate = match self.rng.below(10) {
            0 => {
                w.hit("mapper leaves a transaction open");
                return;
            }
            1 | 2 => {
                w.hit("mapper aborts");
                false
            }
            _ => true,
        };
        if w.broker.end_transaction(MAPPER, MAPPER_CLIENT, epoch, fate).is_err() {
            self.epoch = None;
        }
    }

    fn directory(&mut self, w: &mut World) {
        let user = format!("u{}", self.rng.below(USERS));
        self.number += 1;
        let last_day = self.rng.one_in(2).then(|| w.now().plus_ms(self.rng.below(20) as i64 * DAY_MS));
        let record = Directory {
            user_key: Text::from(user.clone()),
            canonical_id: Text::from(user.clone()),
            groups: vec![Text::borrowed("vip")],
            leaving: last_day.map(|last| Leaving { announced: Some(w.now()), last_day: Some(last) }),
            // Not always the newest.
            version: 1 + self.rng.below(self.number) as i64,
            ..Directory::default()
        };
        let wrong = i32::from(self.rng.one_in(8));
        let record = self.ready(Topic::UserDirectory, (home(&user) + wrong) % PARTITIONS, &user, &record);
        write(w, &record);
    }

    fn command(&mut self, w: &mut World) {
        let user = format!("u{}", self.rng.below(USERS));
        self.number += 1;
        let command = Command {
            command_id: Text::from(format!("c{}", self.number)),
            user_key: Text::from(user.clone()),
            kind: Text::borrowed("assign"),
            at: w.now(),
            ..Command::default()
        };
        let wrong = i32::from(self.rng.one_in(4));
        let record = self.ready(Topic::CaseCommands, (home(&user) + wrong) % PARTITIONS, &user, &command);
        write(w, &record);
    }

    fn malformed(&mut self, w: &mut World) {
        let topic = [Topic::RiskSignals, Topic::CaseCommands, Topic::UserDirectory][self.rng.below(3) as usize];
        let partition = self.rng.below(PARTITIONS as u64) as i32;
        let value = (!self.rng.one_in(3)).then(|| b"not what you think".to_vec());
        write(w, &Ready { topic, partition, key: b"u1".to_vec(), value });
    }
}

/// The partition of a user.
pub fn home(user: &str) -> i32 {
    partition_of(user.as_bytes(), PARTITIONS)
}

fn shift(signal: &mut Signal<'_>, days: i64) {
    signal.occurred_at = signal.occurred_at.plus_ms(days * DAY_MS);
    signal.day = Text::from(signal.occurred_at.day_at(0).iso());
}

fn outgoing(record: &Ready) -> Outgoing<'_> {
    Outgoing {
        topic: record.topic.name(),
        partition: record.partition,
        key: Some(&record.key),
        value: record.value.as_deref(),
        headers: &[("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")],
        timestamp: None,
    }
}

fn write(w: &mut World, record: &Ready) {
    let out = outgoing(record);
    let stored = super::broker::Stored {
        timestamp: w.now(),
        key: out.key.map(<[u8]>::to_vec),
        value: out.value.map(<[u8]>::to_vec),
        headers: out.headers.iter().map(|(k, v)| ((*k).to_owned(), Some(v.to_vec()))).collect(),
    };
    w.broker.produce(out.topic, out.partition, stored);
}
