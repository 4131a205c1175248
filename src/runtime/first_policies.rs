//! The first policy set of an application: publishes it on `policy-sets` and puts every partition that has none under it
//! by a `switch_policies` command. A partition that has a set keeps it: what it stands under next is decided by people,
//! not by files that changed. Next: `worker.rs`, which obeys the command.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::ports::{Clock, Error, ErrorKind, Log, Outgoing};
use crate::domain::Text;
use crate::domain::command::{Actor, Command, SwitchPolicies};
use crate::domain::record::{Journal, PolicySetRecord};
use crate::topology::{META_KEY, Topic};
use crate::wire::avro::{Decoder, Encoder, Record, Schemas};

/// How long new topics may take until every broker knows them.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY_EVERY: Duration = Duration::from_millis(100);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);
/// The meta record is the last of its transaction, so it stands near the end of `user-state`.
const META_TAILS: [i64; 3] = [64, 4_096, i64::MAX];

/// Takes records for explicit partitions.
pub trait Write {
    /// Queues a record.
    fn send(&mut self, record: &Outgoing<'_>) -> Result<(), Error>;
    /// Waits until all are written.
    fn flush(&mut self, timeout: Duration) -> Result<(), Error>;
}

impl Write for super::transaction::KafkaProducer {
    fn send(&mut self, record: &Outgoing<'_>) -> Result<(), Error> {
        self.send(record)
    }

    fn flush(&mut self, timeout: Duration) -> Result<(), Error> {
        self.flush(timeout)
    }
}

/// What was found and done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// The set of every partition, as now readable.
    pub sets: BTreeMap<i32, String>,
    /// Whether the set had to be published.
    pub published: bool,
    /// Partitions that got the switch.
    pub switched: Vec<i32>,
}

/// Installs first sets.
pub struct Installer<'a, L, W, C> {
    log: &'a mut L,
    write: &'a mut W,
    clock: &'a C,
    partitions: i32,
    encoder: Encoder,
    decoder: Decoder,
}

impl<'a, L: Log, W: Write, C: Clock> Installer<'a, L, W, C> {
    /// An installer for this many partitions.
    pub fn new(log: &'a mut L, write: &'a mut W, clock: &'a C, schemas: &Arc<Schemas>, partitions: i32) -> Self {
        Installer { log, write, clock, partitions, encoder: Encoder::new(schemas), decoder: Decoder::new(schemas) }
    }

    /// Puts every partition that has no set under `first`, and returns when that can be read.
    /// If some partitions have a set already (an earlier call was interrupted), the others get the same.
    pub fn install(&mut self, first: &PolicySetRecord<'_>) -> Result<Installed, Error> {
        let before = self.sets()?;
        let without: Vec<i32> = (0..self.partitions).filter(|p| !before.contains_key(p)).collect();
        if without.is_empty() {
            return Ok(Installed { sets: before, ..Installed::default() });
        }
        let chosen = before.values().next().map_or(first.hash.as_str(), String::as_str);
        let published = !self.is_published(chosen)?;
        if published {
            if chosen != first.hash.as_str() {
                let cause = format!("set {chosen} is in force on some partitions and is not on policy-sets");
                return Err(Error::new(ErrorKind::Missing, "could not install policies", cause));
            }
            self.publish(first)?;
        }
        for partition in &without {
            self.switch(*partition, chosen)?;
        }
        self.write.flush(FLUSH_TIMEOUT)?;
        let sets = self.sets()?;
        if sets.len() != self.partitions as usize || !self.is_published(chosen)? {
            let cause = format!("{} of {} partitions have a set after the writes", sets.len(), self.partitions);
            return Err(Error::new(ErrorKind::Missing, "could not read the installed policies back", cause));
        }
        Ok(Installed { sets, published, switched: without })
    }

    /// The set of each partition that has one.
    pub fn sets(&mut self) -> Result<BTreeMap<i32, String>, Error> {
        let mut sets = BTreeMap::new();
        for partition in 0..self.partitions {
            if let Some(set) = self.patiently(|i| i.set_of(partition))? {
                sets.insert(partition, set);
            }
        }
        Ok(sets)
    }

    /// The last switch in sight; where retention may have removed it, what the engine says in its meta record.
    fn set_of(&mut self, partition: i32) -> Result<Option<String>, Error> {
        let topic = Topic::CaseCommands;
        let (start, end) = self.log.watermarks(topic.name(), partition)?;
        let (decoder, mut last) = (&mut self.decoder, None);
        self.log.read(topic.name(), partition, start, end, &mut |record| {
            let value = record.value.unwrap_or_default();
            // A command that does not decode is the engine's to dead-letter; it switches nothing.
            if let Ok(command) = decoder.decode::<Command<'_>>(topic, value, record.headers)
                && command.kind == "switch_policies"
                && command.user_key.is_empty()
                && let Some(switch) = command.switch_policies
            {
                last = Some(switch.policy_set.into_string());
            }
        })?;
        if last.is_some() || start == 0 { Ok(last) } else { self.set_in_meta(partition) }
    }

    fn set_in_meta(&mut self, partition: i32) -> Result<Option<String>, Error> {
        let topic = Topic::UserState.name();
        let (start, end) = self.log.watermarks(topic, partition)?;
        for tail in META_TAILS {
            let from = end.saturating_sub(tail).max(start);
            let (decoder, mut last) = (&mut self.decoder, None);
            self.log.read(topic, partition, from, end, &mut |record| {
                if record.key == Some(META_KEY) {
                    let value = record.value.unwrap_or_default();
                    last = Some(decoder.decode::<Journal>(Topic::EngineJournal, value, record.headers));
                }
            })?;
            match last {
                Some(Ok(meta)) => return Ok((!meta.policy_set.is_empty()).then_some(meta.policy_set)),
                Some(Err(error)) => {
                    let what = format!("could not read the meta record of {topic}[{partition}]");
                    return Err(Error::new(ErrorKind::Missing, what, error));
                }
                None if from == start => return Ok(None),
                None => {}
            }
        }
        Ok(None)
    }

    fn is_published(&mut self, hash: &str) -> Result<bool, Error> {
        self.patiently(|i| {
            let topic = Topic::PolicySets.name();
            let (start, end) = i.log.watermarks(topic, 0)?;
            let mut found = false;
            i.log.read(topic, 0, start, end, &mut |record| {
                if record.key == Some(hash.as_bytes()) {
                    found = record.value.is_some();
                }
            })?;
            Ok(found)
        })
    }

    fn publish(&mut self, set: &PolicySetRecord<'_>) -> Result<(), Error> {
        let mut value = Vec::new();
        self.encode(Topic::PolicySets, set, &mut value)?;
        self.put(Topic::PolicySets, 0, set.hash.as_bytes(), &value)?;
        // A switch must never name a set that is not there yet.
        self.write.flush(FLUSH_TIMEOUT)
    }

    fn switch(&mut self, partition: i32, hash: &str) -> Result<(), Error> {
        let command = Command {
            command_id: Text::from(format!("switch:{hash}:{partition}")),
            kind: Text::borrowed("switch_policies"),
            actor: Actor { id: Text::borrowed("system"), roles: Vec::new(), kind: Text::borrowed("system") },
            at: self.clock.now(),
            switch_policies: Some(SwitchPolicies { policy_set: Text::borrowed(hash) }),
            ..Command::default()
        };
        let mut value = Vec::new();
        self.encode(Topic::CaseCommands, &command, &mut value)?;
        self.put(Topic::CaseCommands, partition, b"", &value)
    }

    fn encode<T: Record>(&mut self, topic: Topic, record: &T, out: &mut Vec<u8>) -> Result<(), Error> {
        let encoded = self.encoder.encode(topic, record, out);
        encoded.map_err(|e| Error::new(ErrorKind::TooLarge, format!("could not write to {}", topic.name()), e))
    }

    fn put(&mut self, topic: Topic, partition: i32, key: &[u8], value: &[u8]) -> Result<(), Error> {
        let record = Outgoing {
            topic: topic.name(),
            partition,
            key: Some(key),
            value: Some(value),
            headers: &[("content-type", b"application/avro")],
            timestamp: None,
        };
        self.write.send(&record)
    }

    fn patiently<T>(&mut self, mut call: impl FnMut(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        let deadline = self.clock.monotonic() + PATIENCE;
        loop {
            match call(self) {
                Err(error) if error.kind == ErrorKind::Retriable && self.clock.monotonic() < deadline => {
                    self.clock.wait(RETRY_EVERY);
                }
                result => return result,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ports::{InputOffset, RecordRef, TopicName};
    use super::*;
    use crate::domain::Timestamp;
    use crate::policies::Files;
    use std::cell::{Cell, RefCell};

    type Key = (TopicName, i32);
    type Record = (Vec<u8>, Vec<u8>);

    /// Partitions as lists; `from` is the log start.
    #[derive(Default)]
    struct Broker {
        logs: RefCell<BTreeMap<Key, Vec<Record>>>,
        starts: RefCell<BTreeMap<Key, i64>>,
        refusals: Cell<u32>,
    }

    struct Reader<'a>(&'a Broker);
    struct Writer<'a>(&'a Broker);
    #[derive(Default)]
    struct Still(Cell<u64>);

    impl Log for Reader<'_> {
        fn committed(&mut self, inputs: &[(TopicName, i32)]) -> Result<Vec<Option<InputOffset>>, Error> {
            Ok(vec![None; inputs.len()])
        }

        fn watermarks(&mut self, topic: TopicName, partition: i32) -> Result<(i64, i64), Error> {
            if self.0.refusals.get() > 0 {
                self.0.refusals.set(self.0.refusals.get() - 1);
                return Err(Error::new(ErrorKind::Retriable, "could not ask", "unknown topic or partition"));
            }
            let start = self.0.starts.borrow().get(&(topic, partition)).copied().unwrap_or_default();
            let len = self.0.logs.borrow().get(&(topic, partition)).map_or(0, Vec::len) as i64;
            Ok((start, start.max(len)))
        }

        fn read(
            &mut self,
            topic: TopicName,
            partition: i32,
            from: i64,
            until: i64,
            each: &mut dyn FnMut(RecordRef<'_>),
        ) -> Result<(), Error> {
            let logs = self.0.logs.borrow();
            let records = logs.get(&(topic, partition)).into_iter().flatten().enumerate();
            for (offset, (key, value)) in records.map(|(n, r)| (n as i64, r)).filter(|(n, _)| (from..until).contains(n))
            {
                let (key, value) = (Some(key.as_slice()), Some(value.as_slice()));
                each(RecordRef { topic, partition, offset, timestamp: Timestamp(0), key, value, headers: &[] });
            }
            Ok(())
        }

        fn cluster_id(&mut self) -> Result<String, Error> {
            Ok("test".into())
        }
    }

    impl Write for Writer<'_> {
        fn send(&mut self, record: &Outgoing<'_>) -> Result<(), Error> {
            let entry = (record.key.unwrap_or_default().to_vec(), record.value.unwrap_or_default().to_vec());
            self.0.logs.borrow_mut().entry((record.topic, record.partition)).or_default().push(entry);
            Ok(())
        }

        fn flush(&mut self, _: Duration) -> Result<(), Error> {
            Ok(())
        }
    }

    impl Clock for Still {
        fn now(&self) -> Timestamp {
            Timestamp(1_800_000_000_000)
        }

        fn monotonic(&self) -> Duration {
            Duration::from_millis(self.0.get())
        }

        fn wait(&self, duration: Duration) {
            self.0.set(self.0.get() + duration.as_millis() as u64);
        }
    }

    fn install(broker: &Broker, files: &Files, partitions: i32) -> Result<Installed, Error> {
        let (mut log, mut write, clock) = (Reader(broker), Writer(broker), Still::default());
        Installer::new(&mut log, &mut write, &clock, &Schemas::built_in(), partitions).install(&files.to_record())
    }

    fn other_files() -> Files {
        let mut files = Files::built_in();
        files.0.values_mut().for_each(|content| content.push('\n'));
        files
    }

    fn hash(files: &Files) -> String {
        crate::policies::hash(files)
    }

    #[test]
    fn every_partition_gets_the_set_once() {
        let (broker, files) = (Broker::default(), Files::built_in());
        broker.refusals.set(3);
        let first = install(&broker, &files, 4).unwrap();
        assert!(first.published);
        assert_eq!(first.switched, [0, 1, 2, 3]);
        assert!(first.sets.values().all(|set| *set == hash(&files)));
        let again = install(&broker, &other_files(), 4).unwrap();
        assert_eq!(again, Installed { sets: first.sets, published: false, switched: vec![] });
        let logs = broker.logs.borrow();
        let sets = &logs[&(Topic::PolicySets.name(), 0)];
        assert_eq!(sets.len(), 1);
        assert_eq!(sets[0].0, hash(&files).as_bytes());
        let mut decoder = Decoder::new(&Schemas::built_in());
        let record: PolicySetRecord<'_> = decoder.decode(Topic::PolicySets, &sets[0].1, &[]).unwrap();
        assert_eq!(Files::from_record(&record), files);
        let commands = &logs[&(Topic::CaseCommands.name(), 3)];
        assert_eq!((commands.len(), commands[0].0.as_slice()), (1, &b""[..]));
    }

    #[test]
    fn an_interrupted_installation_is_completed_with_the_same_set() {
        let (broker, files) = (Broker::default(), Files::built_in());
        install(&broker, &files, 2).unwrap();
        let more = install(&broker, &other_files(), 4).unwrap();
        assert_eq!((more.published, more.switched), (false, vec![2, 3]));
        assert!(more.sets.values().all(|set| *set == hash(&files)));
    }

    #[test]
    fn a_switch_that_retention_removed_is_found_in_the_meta_record() {
        let broker = Broker::default();
        broker.starts.borrow_mut().insert((Topic::CaseCommands.name(), 0), 7);
        let meta = Journal { policy_set: "0123456789abcdef".into(), ..Journal::default() };
        let mut value = Vec::new();
        Encoder::new(&Schemas::built_in()).encode(Topic::EngineJournal, &meta, &mut value).unwrap();
        let mut state = vec![(META_KEY.to_vec(), value)];
        state.extend((0..100).map(|n| (format!("user-{n}").into_bytes(), Vec::new())));
        broker.logs.borrow_mut().insert((Topic::UserState.name(), 0), state);
        let found = install(&broker, &Files::built_in(), 1).unwrap();
        assert_eq!(found.sets[&0], "0123456789abcdef");
        assert!(!found.published && found.switched.is_empty());
    }

    #[test]
    fn patience_ends() {
        let broker = Broker::default();
        broker.refusals.set(u32::MAX);
        assert_eq!(install(&broker, &Files::built_in(), 1).unwrap_err().kind, ErrorKind::Retriable);
    }
}
