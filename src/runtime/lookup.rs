//! One user as the pipeline knows them: found by key, address or alias, with the state of the last commit and the
//! policies it stands under. Reads what is committed; joins no group, writes nothing. Next: `engine/explain.rs`.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::client::Connection;
use super::log::{KafkaLog, Span};
use super::overview::metas;
use super::partition::PolicySource;
use super::policy_source::LogPolicies;
use super::ports::{Error, ErrorKind};
use super::service::engine_group;
use crate::config::Config;
use crate::domain::directory::Directory;
use crate::domain::partitioner::partition_of;
use crate::domain::policy::PolicySet;
use crate::domain::record::Journal;
use crate::domain::time::HOUR_MS;
use crate::domain::{Day, Timestamp};
use crate::engine::explain::{Explanation, explain};
use crate::engine::state::AlertState;
use crate::engine::{Context, User};
use crate::topology::Topic;
use crate::wire::avro::{Decoder, Schemas};
use crate::wire::mapping::identity::{self, Index, KINDS, Pseudonym};
use crate::wire::state::{self, Segment, UserBytes};

/// Reads users, the directory and policies.
pub struct Lookup {
    log: KafkaLog,
    decoder: Decoder,
    policies: LogPolicies<KafkaLog>,
    pseudonym: Option<Pseudonym>,
    partitions: i32,
    level_valid_ms: i64,
    lateness_days: i64,
}

/// A user with all that their score depends on.
pub struct Known {
    pub user_key: String,
    pub partition: i32,
    pub user: User,
    /// The partition's last commit.
    pub meta: Journal,
    pub policies: Arc<PolicySet>,
    level_valid_ms: i64,
    lateness_days: i64,
}

/// What became of a search.
pub enum Found {
    User(Box<Known>),
    /// Nobody of that name has state.
    Unknown,
    /// The user's partition stands under no policies, or under a set that is not in `policy-sets`.
    NoPolicies {
        partition: i32,
        set: String,
    },
}

impl Lookup {
    /// Connects; `key` is the pseudonym key, without which addresses cannot be turned into user keys.
    pub fn new(
        config: &Config,
        connection: &Connection,
        schemas: &Arc<Schemas>,
        key: Option<&[u8]>,
    ) -> Result<Lookup, Error> {
        let group = engine_group(config);
        Ok(Lookup {
            log: KafkaLog::new(connection, &group)?,
            decoder: Decoder::new(schemas),
            policies: LogPolicies::new(KafkaLog::new(connection, &group)?, schemas, |_| {}),
            pseudonym: key.map(Pseudonym::new),
            partitions: config.kafka.partitions,
            level_valid_ms: config.engine.level_valid_hours * HOUR_MS,
            lateness_days: config.engine.lateness_days,
        })
    }

    /// Finds a user by key, else by the pseudonym of the name, else through the directory's aliases.
    pub fn find(&mut self, name: &str) -> Result<Found, Error> {
        let canonical = identity::canonical(name);
        let hashed = self.pseudonym.as_ref().zip(canonical.as_ref()).map(|(p, name)| p.user_key(name));
        for key in [Some(name.to_owned()), hashed].into_iter().flatten() {
            if let Some(bytes) = self.state(&key)? {
                return self.known(key, &bytes);
            }
        }
        let Some(canonical) = canonical else { return Ok(Found::Unknown) };
        let index = self.directory()?;
        let keys = KINDS.iter().filter_map(|kind| index.find(kind, &canonical)).map(|found| found.user_key.to_owned());
        let Some(key) = keys.into_iter().next() else { return Ok(Found::Unknown) };
        match self.state(&key)? {
            Some(bytes) => self.known(key, &bytes),
            None => Ok(Found::Unknown),
        }
    }

    /// The directory by alias.
    pub fn directory(&mut self) -> Result<Index, Error> {
        let topic = Topic::UserDirectory.name();
        let (spans, mut index) = (self.whole(topic)?, Index::default());
        let Lookup { log, decoder, .. } = self;
        log.scan(topic, &spans, &mut |record| {
            match record.value {
                None => {
                    if let Some(Ok(key)) = record.key.map(std::str::from_utf8) {
                        index.remove(key);
                    }
                }
                // What cannot be read is dead-lettered by the engine and known to nobody.
                Some(value) => {
                    if let Ok(person) = decoder.decode::<Directory<'_>>(topic_of(&record), value, record.headers) {
                        index.put(&person);
                    }
                }
            }
            ControlFlow::Continue(())
        })?;
        Ok(index)
    }

    fn whole(&mut self, topic: super::ports::TopicName) -> Result<Vec<Span>, Error> {
        let all: Vec<i32> = (0..self.partitions).collect();
        let (starts, ends) = (self.log.starts(topic, &all)?, self.log.ends(topic, &all)?);
        let span =
            |partition: i32| Span { partition, from: starts[partition as usize], until: ends[partition as usize] };
        Ok(all.into_iter().map(span).collect())
    }

    /// The user's latest values; `None` for one without a head.
    fn state(&mut self, user_key: &str) -> Result<Option<UserBytes>, Error> {
        let topic = Topic::UserState.name();
        let partition = partition_of(user_key.as_bytes(), self.partitions);
        let (from, until) = (self.log.starts(topic, &[partition])?[0], self.log.ends(topic, &[partition])?[0]);
        let mut bytes = UserBytes::default();
        self.log.scan(topic, &[Span { partition, from, until }], &mut |record| {
            let key = record.key.unwrap_or_default();
            if key.starts_with(user_key.as_bytes())
                && let Some((owner, segment)) = state::parse_key(key)
                && owner == user_key
            {
                set(&mut bytes, segment, record.value.map(Arc::from));
            }
            ControlFlow::Continue(())
        })?;
        Ok(bytes.head.is_some().then_some(bytes))
    }

    fn known(&mut self, user_key: String, bytes: &UserBytes) -> Result<Found, Error> {
        let partition = partition_of(user_key.as_bytes(), self.partitions);
        let damaged = |cause: &dyn ToString| {
            Error::new(ErrorKind::Fatal, format!("could not read the state of {user_key}"), cause.to_string())
        };
        let user = state::decode(bytes).map_err(|e| damaged(&e))?;
        let meta = metas(&mut self.log, &mut self.decoder, &[partition])?.remove(&partition);
        let meta = meta.ok_or_else(|| damaged(&"its partition has no meta record"))?;
        let Some(policies) = self.policies.set(&meta.policy_set) else {
            return Ok(Found::NoPolicies { partition, set: meta.policy_set });
        };
        let (level_valid_ms, lateness_days) = (self.level_valid_ms, self.lateness_days);
        Ok(Found::User(Box::new(Known { user_key, partition, user, meta, policies, level_valid_ms, lateness_days })))
    }
}

fn topic_of(record: &super::ports::RecordRef<'_>) -> Topic {
    Topic::by_name(record.topic).expect("a topic of the table")
}

fn set(bytes: &mut UserBytes, segment: Segment, value: Option<Arc<[u8]>>) {
    match segment {
        Segment::Head => bytes.head = value,
        Segment::Seen => bytes.seen = value,
        Segment::Day(day) => set_day(&mut bytes.days, day, value),
    }
}

fn set_day(days: &mut Vec<(Day, Arc<[u8]>)>, day: Day, value: Option<Arc<[u8]>>) {
    match (days.binary_search_by_key(&day, |(d, _)| *d), value) {
        (Ok(at), Some(value)) => days[at].1 = value,
        (Ok(at), None) => drop(days.remove(at)),
        (Err(at), Some(value)) => days.insert(at, (day, value)),
        (Err(_), None) => {}
    }
}

impl Known {
    /// The score taken apart at an instant, by default the partition's stream time. Another instant says what the
    /// state of now is worth then, not what was known then.
    pub fn explain(&self, at: Option<Timestamp>) -> Explanation {
        let stream_time = at.unwrap_or(self.meta.stream_time);
        let context = Context {
            policies: &self.policies,
            partition: self.partition,
            now: self.meta.now.max(stream_time),
            stream_time,
            lateness_days: self.lateness_days,
            level_valid_ms: self.level_valid_ms,
        };
        explain(&self.user, &self.user_key, &context)
    }

    /// Every alert still kept, with the policy it is of.
    pub fn alerts(&self) -> impl Iterator<Item = (&AlertState, Option<&str>)> {
        let name = |hash| self.policies.position_of_hash(hash).map(|n| self.policies.policies[n].id.as_str());
        self.user.head.alerts.iter().map(move |alert| (alert, name(alert.policy)))
    }

    /// What an indicator is called.
    pub fn title(&self, indicator: &str) -> &str {
        let catalogue = &self.policies.catalogue;
        catalogue.position(indicator).map_or("", |n| catalogue.indicators[n].title.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_each_segment_stands() {
        let mut bytes = UserBytes::default();
        let value = |b: u8| Some(Arc::from([b].as_slice()));
        for (segment, v) in [
            (Segment::Head, value(1)),
            (Segment::Day(Day(5)), value(2)),
            (Segment::Day(Day(3)), value(3)),
            (Segment::Head, value(4)),
            (Segment::Day(Day(5)), None),
            (Segment::Day(Day(3)), value(5)),
            (Segment::Day(Day(9)), None),
            (Segment::Seen, value(6)),
            (Segment::Seen, None),
        ] {
            set(&mut bytes, segment, v);
        }
        let expected = UserBytes { head: value(4), seen: None, days: vec![(Day(3), value(5).unwrap())] };
        assert_eq!(bytes, expected);
    }
}
