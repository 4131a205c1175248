//! The way of one record through the pipeline: raw event, mapping, signal, chronology entry, score, alert; or where and
//! why it stopped. A coordinate or a vendor's event id is enough. Looks only at the user's partition, and there only
//! from the time of the record on, so it answers within seconds on topics of any size.
//!
//! Joins no group and writes nothing. Prints no content of events: coordinates, ids and what the engine said.
//! Next: `trace/engine.rs`, what the engine made of a signal.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::client::Connection;
use super::clock::SystemClock;
use super::log::{KafkaLog, Span};
use super::lookup::Lookup;
use super::overview::committed;
use super::ports::{Clock, Error, RecordRef, TopicName};
use super::service::{engine_group, map_group};
use crate::config::Config;
use crate::domain::Timestamp;
use crate::domain::envelope::Envelope;
use crate::domain::partitioner::partition_of;
use crate::domain::signal::Signal;
use crate::domain::time::{DAY_MS, HOUR_MS};
use crate::topology::{self, Topic};
use crate::wire::avro::{Decoder, Schemas};
use crate::wire::dead_letter::DeadLetter;
use crate::wire::headers::{self, Origin};
use crate::wire::mapping::Subject;
use crate::wire::mapping::identity::{self, Pseudonym};

mod engine;
mod mapping;

use mapping::Mapped;

/// How far clocks of writers may differ: records are looked for from this long before their cause.
const SLACK_MS: i64 = 60_000;
/// How far back a vendor's event id is looked for, step by step; what is older is not searched.
const BACK_MS: [i64; 5] = [HOUR_MS, 6 * HOUR_MS, DAY_MS, 3 * DAY_MS, 30 * DAY_MS];
/// Most records that the search for an event id reads.
const SEARCHED_MAX: u64 = 3_000_000;

/// Where a trace ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// No record of that name.
    #[default]
    NotFound,
    /// It should be there and is not.
    Lost,
    /// The mapping found no risk signal in it.
    Ignored,
    /// It lies in `dead-letters`.
    Dead,
    /// Nobody has taken it yet.
    Waiting,
    /// The same signal had been counted before.
    Duplicate,
    /// It counts in the user's score; no alert took it.
    Scored,
    /// It is evidence of an alert.
    Alert,
}

/// The way of a record.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Trace {
    pub asked: String,
    pub end: End,
    /// The end in words.
    pub why: String,
    pub steps: Vec<Step>,
}

/// One step on the way.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Step {
    pub number: usize,
    /// Which of the record's signals it is about, from 1; 0 for the record itself.
    pub signal: usize,
    /// raw, mapping, dead_letter, signal, moved, chronology, score or alert.
    pub stage: &'static str,
    pub text: String,
    /// `<topic>:<partition>:<offset>`.
    pub coordinate: Option<String>,
    pub at: Option<Timestamp>,
    pub ids: BTreeMap<&'static str, String>,
}

/// A place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coordinate {
    pub topic: TopicName,
    pub partition: i32,
    pub offset: i64,
}

impl std::fmt::Display for Coordinate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.topic, self.partition, self.offset)
    }
}

impl Coordinate {
    fn of(record: &RecordRef<'_>) -> Coordinate {
        Coordinate { topic: record.topic, partition: record.partition, offset: record.offset }
    }

    /// As the header `casestream-origin` names it.
    fn header(&self) -> String {
        format!("{}/{}/{}", self.topic, self.partition, self.offset)
    }

    fn parse(text: &str) -> Option<(&str, i32, i64)> {
        let mut parts = text.rsplitn(3, ':');
        let (offset, partition, topic) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?);
        (offset >= 0 && partition >= 0 && !topic.is_empty()).then_some((topic, partition, offset))
    }
}

/// A signal as it lies on `risk-signals`.
#[derive(Clone, Debug)]
struct Found {
    at: Coordinate,
    /// What its outputs name as their cause: where it was first written.
    origin: String,
    written: Timestamp,
    user_key: String,
    signal_id: String,
    source: String,
    source_event_id: String,
    indicator: String,
    mapping: String,
    raw: Option<String>,
    is_moved: bool,
}

/// Follows records.
pub struct Tracer<'a> {
    config: &'a Config,
    log: KafkaLog,
    map_log: KafkaLog,
    lookup: Lookup,
    schemas: Arc<Schemas>,
    decoder: Decoder,
    pseudonym: Option<Pseudonym>,
    clock: SystemClock,
    trace: Trace,
}

impl<'a> Tracer<'a> {
    /// Connects; `key` is the pseudonym key.
    pub fn new(
        config: &'a Config,
        connection: &Connection,
        schemas: &Arc<Schemas>,
        key: Option<&[u8]>,
    ) -> Result<Tracer<'a>, Error> {
        Ok(Tracer {
            config,
            log: KafkaLog::new(connection, engine_group(config))?,
            map_log: KafkaLog::new(connection, map_group(config))?,
            lookup: Lookup::new(config, connection, schemas, key)?,
            schemas: schemas.clone(),
            decoder: Decoder::new(schemas),
            pseudonym: key.map(Pseudonym::new),
            clock: SystemClock::new(),
            trace: Trace::default(),
        })
    }

    /// Follows what was asked for: a coordinate of a topic that exists, else a vendor's event id.
    pub fn run(mut self, asked: &str) -> Result<Trace, Error> {
        asked.clone_into(&mut self.trace.asked);
        let counts: BTreeMap<String, i32> = self.log.partition_counts()?.into_iter().collect();
        let coordinate = Coordinate::parse(asked).filter(|(topic, ..)| counts.contains_key(*topic));
        match coordinate {
            Some((topic, partition, offset)) if partition < counts[topic] => {
                self.start(Coordinate { topic: topology::intern(topic), partition, offset })?;
            }
            Some((topic, ..)) => self.end(End::NotFound, format!("{topic} has {} partitions", counts[topic])),
            None => self.search(asked)?,
        }
        for (n, step) in self.trace.steps.iter_mut().enumerate() {
            step.number = n + 1;
        }
        Ok(self.trace)
    }

    /// The farthest end of any signal stands.
    fn end(&mut self, end: End, why: impl Into<String>) {
        if self.trace.why.is_empty() || end > self.trace.end {
            (self.trace.end, self.trace.why) = (end, why.into());
        }
    }

    fn step(&mut self, step: Step) {
        self.trace.steps.push(step);
    }

    fn start(&mut self, at: Coordinate) -> Result<(), Error> {
        match Topic::by_name(at.topic) {
            None => self.raw(&at),
            Some(Topic::RiskSignals) => match self.signal_at(&at)? {
                Some(found) => self.signals(vec![found]),
                None => self.missing(&at),
            },
            Some(_) => self.back(&at),
        }
    }

    /// From an output to the record that caused it.
    fn back(&mut self, at: &Coordinate) -> Result<(), Error> {
        let (mut cause, mut exists) = (None, false);
        let mut decoder = Decoder::new(&self.schemas);
        self.record(at, &mut |record| {
            exists = true;
            let letter = DeadLetter::parse(record.headers).map(|d| (d.topic.to_owned(), d.partition, d.offset));
            let origin = headers::find(record.headers, headers::ORIGIN).and_then(Origin::parse);
            let origin = origin.map(|o| (o.topic.to_owned(), o.partition, o.offset));
            cause = letter.or(origin).or_else(|| cause_of(&mut decoder, record));
        })?;
        match cause {
            Some((topic, partition, offset)) => {
                let text = format!("names {topic}:{partition}:{offset} as its cause");
                self.step(Step { stage: "output", text, coordinate: Some(at.to_string()), ..Step::default() });
                let known = Topic::by_name(&topic).is_none_or(|t| t == Topic::RiskSignals);
                match known {
                    true => self.start(Coordinate { topic: topology::intern(&topic), partition, offset }),
                    false => {
                        self.end(End::NotFound, format!("its cause is a record of {topic}, not a signal"));
                        Ok(())
                    }
                }
            }
            None if exists => {
                self.end(
                    End::NotFound,
                    format!("{at} names no record as its cause: a timer or its writer's own doing"),
                );
                Ok(())
            }
            None => self.missing(at),
        }
    }

    /// Says why there is nothing at a place.
    fn missing(&mut self, at: &Coordinate) -> Result<(), Error> {
        let start = self.log.starts(at.topic, &[at.partition])?[0];
        let end = self.log.ends(at.topic, &[at.partition])?[0];
        let why = if at.offset >= end {
            format!("{at} is not written yet: the partition ends at {end}")
        } else if at.offset < start {
            format!("{at} has aged out: the partition begins at {start}")
        } else {
            format!("{at} holds no committed record: a transaction's marker, an aborted record, or compacted away")
        };
        self.end(End::NotFound, why);
        Ok(())
    }

    /// Reads the record at a place, if there is one.
    fn record(&mut self, at: &Coordinate, each: &mut dyn FnMut(&RecordRef<'_>)) -> Result<(), Error> {
        let start = self.log.starts(at.topic, &[at.partition])?[0];
        let end = self.log.ends(at.topic, &[at.partition])?[0];
        if at.offset < start || at.offset >= end {
            return Ok(());
        }
        let span = Span { partition: at.partition, from: at.offset, until: at.offset + 1 };
        self.log.scan(at.topic, &[span], &mut |record| {
            each(&record);
            ControlFlow::Break(())
        })
    }

    fn signal_at(&mut self, at: &Coordinate) -> Result<Option<Found>, Error> {
        let mut copy = None;
        self.record(at, &mut |record| {
            let headers = record.headers.iter().map(|(n, v)| ((*n).to_owned(), v.map(<[u8]>::to_vec)));
            copy = Some((record.timestamp, record.value.unwrap_or_default().to_vec(), headers.collect::<Vec<_>>()));
        })?;
        let Some((timestamp, value, headers)) = copy else { return Ok(None) };
        let headers: Vec<(&str, Option<&[u8]>)> = headers.iter().map(|(n, v)| (n.as_str(), v.as_deref())).collect();
        let Coordinate { topic, partition, offset } = *at;
        let record =
            RecordRef { topic, partition, offset, timestamp, key: None, value: Some(&value), headers: &headers };
        Ok(Some(found(&mut self.decoder, &record).unwrap_or_else(|| unreadable(&record))))
    }

    fn raw(&mut self, at: &Coordinate) -> Result<(), Error> {
        let mut read = None;
        self.record(at, &mut |record| {
            read = Some((record.timestamp, record.value.unwrap_or_default().to_vec()));
        })?;
        let Some((timestamp, value)) = read else {
            self.missing(at)?;
            // Its signals may outlive it.
            let found = self.signals_of(at, Timestamp(0), &[])?;
            return self.signals(found);
        };
        self.step(Step {
            stage: "raw",
            text: format!("{} bytes", value.len()),
            coordinate: Some(at.to_string()),
            at: Some(timestamp),
            ..Step::default()
        });
        if self.is_waiting_for_mapping(at)? {
            return Ok(());
        }
        let mapped = mapping::run(self.config, at, timestamp, &value);
        self.mapping_step(&mapped);
        let from = timestamp.min(self.clock.now()).plus_ms(-SLACK_MS);
        let subjects = match mapped {
            Mapped::Signals(subjects) => subjects,
            Mapped::Ignored(reason) => {
                self.end(End::Ignored, format!("the mapping ignores it: {reason}"));
                return Ok(());
            }
            Mapped::Dead(code, message) => {
                return self.dead_letter(at, from, 0, &format!("the mapping refuses it: {code}, {message}"));
            }
            Mapped::Unknown(_) => Vec::new(),
        };
        let found = self.signals_of(at, from, &subjects)?;
        if found.is_empty() {
            return self.dead_letter(at, from, 0, "no signal of it is on risk-signals, and no dead letter tells of it");
        }
        self.signals(found)
    }

    fn is_waiting_for_mapping(&mut self, at: &Coordinate) -> Result<bool, Error> {
        let position = committed(&mut self.map_log, &[(at.topic, at.partition)], &self.clock)?.pop().flatten();
        if position.as_ref().is_some_and(|p| p.offset > at.offset) {
            return Ok(false);
        }
        let why = match position {
            None if !self.config.map.sources.iter().any(|s| s.topic == at.topic) => {
                format!("no source of the configuration reads {}", at.topic)
            }
            None => "the map role has not begun with its partition".to_owned(),
            Some(p) => format!("the map role stands at offset {}, {} before it", p.offset, at.offset + 1 - p.offset),
        };
        self.end(End::Waiting, why);
        Ok(true)
    }

    fn mapping_step(&mut self, mapped: &Mapped) {
        let text = match mapped {
            Mapped::Signals(subjects) => format!("maps to {} signal(s)", subjects.len()),
            Mapped::Ignored(reason) => format!("ignored: {reason}"),
            Mapped::Dead(code, _) => format!("dead letter: {code}"),
            Mapped::Unknown(why) => format!("not run here: {why}"),
        };
        self.step(Step { stage: "mapping", text, ..Step::default() });
    }

    /// The signals of a raw record: first on the partitions of those whom the mapping names by address, then of those
    /// whom the directory knows, then, as the directory may have changed, everywhere.
    fn signals_of(&mut self, raw: &Coordinate, from: Timestamp, subjects: &[Subject]) -> Result<Vec<Found>, Error> {
        let wanted = subjects.len().max(1);
        let addresses = subjects.iter().filter(|s| identity::is_address(&s.value));
        let keys = self.pseudonym.as_ref().map(|p| addresses.map(|s| p.user_key(&s.value)).collect::<Vec<_>>());
        let mut found = self.signals_on(raw, from, &keys.unwrap_or_default())?;
        if found.len() < wanted && !subjects.is_empty() {
            let index = self.lookup.directory()?;
            let known = subjects.iter().filter_map(|s| index.find(s.kind, &s.value));
            found = self.signals_on(raw, from, &known.map(|f| f.user_key.to_owned()).collect::<Vec<_>>())?;
        }
        if found.is_empty() {
            let all: Vec<i32> = (0..self.config.kafka.partitions).collect();
            found = self.signals_between(&all, from, wanted, &mut is_of(raw))?;
        }
        Ok(found)
    }

    fn signals_on(&mut self, raw: &Coordinate, from: Timestamp, keys: &[String]) -> Result<Vec<Found>, Error> {
        let mut partitions: Vec<i32> =
            keys.iter().map(|key| partition_of(key.as_bytes(), self.config.kafka.partitions)).collect();
        partitions.sort_unstable();
        partitions.dedup();
        self.signals_between(&partitions, from, keys.len(), &mut is_of(raw))
    }

    /// Signals that are wanted, from a time on, until there are enough.
    fn signals_between(
        &mut self,
        partitions: &[i32],
        from: Timestamp,
        enough: usize,
        wants: &mut dyn FnMut(&mut Decoder, &RecordRef<'_>) -> bool,
    ) -> Result<Vec<Found>, Error> {
        let mut hits = Vec::new();
        let spans = self.spans(Topic::RiskSignals, partitions, from)?;
        let Tracer { log, decoder, .. } = self;
        log.scan(Topic::RiskSignals.name(), &spans, &mut |record| {
            if wants(decoder, &record) {
                hits.extend(found(decoder, &record));
            }
            if hits.len() < enough { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        hits.sort_by_key(|f| (f.at.partition, f.at.offset));
        Ok(hits)
    }

    /// From a time to the end, per partition.
    fn spans(&mut self, topic: Topic, partitions: &[i32], from: Timestamp) -> Result<Vec<Span>, Error> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let starts = self.log.offsets_at(topic.name(), partitions, from)?;
        let ends = self.log.ends(topic.name(), partitions)?;
        let spans = partitions.iter().zip(starts).zip(ends);
        Ok(spans.map(|((p, from), until)| Span { partition: *p, from, until }).collect())
    }

    /// Looks for the dead letter of a record; without one, `otherwise` says what is known.
    fn dead_letter(&mut self, at: &Coordinate, from: Timestamp, signal: usize, otherwise: &str) -> Result<(), Error> {
        let partition = at.partition % self.config.kafka.partitions;
        let spans = self.spans(Topic::DeadLetters, &[partition], from)?;
        let mut letter = None;
        self.log.scan(Topic::DeadLetters.name(), &spans, &mut |record| {
            let Some(d) = DeadLetter::parse(record.headers) else { return ControlFlow::Continue(()) };
            if (d.topic, d.partition, d.offset) != (at.topic, at.partition, at.offset) {
                return ControlFlow::Continue(());
            }
            let text = format!("{} at {}: {}", d.code, d.stage.as_str(), d.message);
            letter = Some((d.code.to_owned(), text, Coordinate::of(&record).to_string(), record.timestamp));
            ControlFlow::Break(())
        })?;
        let Some((code, text, coordinate, written)) = letter else {
            self.end(End::Lost, otherwise);
            return Ok(());
        };
        self.end(End::Dead, format!("it is a dead letter: {code}; `casestream dlq show {coordinate}` shows it"));
        let at = Some(written);
        self.step(Step { signal, stage: "dead_letter", text, coordinate: Some(coordinate), at, ..Step::default() });
        Ok(())
    }

    /// By a vendor's event id, the newest first, step by step further back.
    fn search(&mut self, id: &str) -> Result<(), Error> {
        let all: Vec<i32> = (0..self.config.kafka.partitions).collect();
        let (topic, now) = (Topic::RiskSignals.name(), self.clock.now());
        let mut until = self.log.ends(topic, &all)?;
        let (mut read, mut reached) = (0_u64, now);
        for back in BACK_MS {
            reached = now.plus_ms(-back);
            let from = self.log.offsets_at(topic, &all, reached)?;
            let spans: Vec<Span> = all
                .iter()
                .map(|p| Span { partition: *p, from: from[*p as usize], until: until[*p as usize] })
                .collect();
            let mut hits = Vec::new();
            let Tracer { log, decoder, .. } = self;
            log.scan(topic, &spans, &mut |record| {
                read += 1;
                if has_event_id(decoder, &record, id) {
                    hits.extend(found(decoder, &record));
                }
                if read < SEARCHED_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            if !hits.is_empty() {
                hits.sort_by_key(|f| f.written);
                return self.signals(hits);
            }
            if read >= SEARCHED_MAX {
                break;
            }
            until = from;
        }
        self.end(
            End::NotFound,
            format!(
                "no signal has this event id among {read} records since {}; if the mapping ignored or refused the \
                 event, give the coordinate of the raw record",
                reached.rfc3339()
            ),
        );
        Ok(())
    }

    fn signals(&mut self, signals: Vec<Found>) -> Result<(), Error> {
        for (n, found) in signals.into_iter().enumerate() {
            self.signal_step(&found, n + 1);
            self.engine(found, n + 1)?;
        }
        Ok(())
    }

    fn signal_step(&mut self, found: &Found, signal: usize) {
        // Where the raw record was not the beginning, it is named as a link.
        if let Some(raw) = found.raw.clone().filter(|_| self.trace.steps.iter().all(|s| s.stage != "raw")) {
            let text = format!("mapped by {}", found.mapping);
            self.step(Step { signal, stage: "raw", text, coordinate: Some(raw), ..Step::default() });
        }
        let ids = [
            ("signal_id", &found.signal_id),
            ("user_key", &found.user_key),
            ("source_event_id", &found.source_event_id),
            ("mapping", &found.mapping),
        ];
        self.step(Step {
            signal,
            stage: "signal",
            text: format!("{} from {}", found.indicator, found.source),
            coordinate: Some(found.at.to_string()),
            at: Some(found.written),
            ids: ids.into_iter().map(|(name, id)| (name, id.clone())).collect(),
            ..Step::default()
        });
    }
}

/// The first field of every output, by itself.
#[derive(Deserialize)]
struct Headed<'a> {
    #[serde(borrow)]
    envelope: Envelope<'a>,
}

/// The record that an output's envelope names: latest values carry no header of one.
fn cause_of(decoder: &mut Decoder, record: &RecordRef<'_>) -> Option<(String, i32, i64)> {
    let topic = Topic::by_name(record.topic)?;
    let output: Headed<'_> = decoder.decode_any(topic, record.value?, record.headers).ok()?;
    let cause = output.envelope.cause;
    Some((cause.topic?.to_string(), i32::try_from(cause.partition?).ok()?, cause.offset?))
}

/// Whether a signal was mapped from a raw record: by its header, which costs no decoding, or by what it says itself.
fn is_of(raw: &Coordinate) -> impl FnMut(&mut Decoder, &RecordRef<'_>) -> bool {
    let (origin, raw) = (raw.header(), raw.clone());
    move |decoder, record| match headers::find(record.headers, headers::ORIGIN) {
        Some(value) if !headers::is_rerouted(record.headers) => value == origin.as_bytes(),
        _ => {
            let signal =
                decoder.decode::<Signal<'_>>(Topic::RiskSignals, record.value.unwrap_or_default(), record.headers);
            signal.is_ok_and(|s| {
                s.raw.is_some_and(|r| {
                    r.topic.as_str() == raw.topic && r.partition == i64::from(raw.partition) && r.offset == raw.offset
                })
            })
        }
    }
}

/// Whether a signal carries an event id; the bytes are looked through before anything is decoded.
fn has_event_id(decoder: &mut Decoder, record: &RecordRef<'_>, id: &str) -> bool {
    let (value, id) = (record.value.unwrap_or_default(), id.as_bytes());
    let Some(first) = id.first() else { return false };
    let is_inside = value.iter().enumerate().any(|(n, b)| b == first && value[n..].starts_with(id));
    is_inside
        && decoder
            .decode::<Signal<'_>>(Topic::RiskSignals, value, record.headers)
            .is_ok_and(|s| s.source_event_id.as_bytes() == id)
}

fn found(decoder: &mut Decoder, record: &RecordRef<'_>) -> Option<Found> {
    let signal: Signal<'_> =
        decoder.decode(Topic::RiskSignals, record.value.unwrap_or_default(), record.headers).ok()?;
    let raw = signal.raw.as_ref().map(|r| format!("{}:{}:{}", r.topic, r.partition, r.offset));
    Some(Found {
        user_key: signal.user_key.to_string(),
        signal_id: signal.signal_id.to_string(),
        source: signal.source.to_string(),
        source_event_id: signal.source_event_id.to_string(),
        indicator: signal.indicator.to_string(),
        mapping: signal.mapping.to_string(),
        raw,
        ..unreadable(record)
    })
}

/// What a record says of itself without its value.
fn unreadable(record: &RecordRef<'_>) -> Found {
    let origin = Origin::of(record.headers, record.topic, record.partition, record.offset);
    Found {
        at: Coordinate::of(record),
        origin: format!("{}/{}/{}", origin.topic, origin.partition, origin.offset),
        written: record.timestamp,
        user_key: String::new(),
        signal_id: String::new(),
        source: "an unreadable value".to_owned(),
        source_event_id: String::new(),
        indicator: "unknown".to_owned(),
        mapping: String::new(),
        raw: None,
        is_moved: headers::is_rerouted(record.headers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinates_are_told_from_event_ids() {
        assert_eq!(Coordinate::parse("raw.x:3:17"), Some(("raw.x", 3, 17)));
        assert_eq!(Coordinate::parse("a:b:3:17"), Some(("a:b", 3, 17)));
        for id in ["", "1:2", ":1:2", "x:1:y", "x:-1:2", "4f3c-11aa"] {
            assert_eq!(Coordinate::parse(id), None, "{id}");
        }
    }

    #[test]
    fn the_farthest_end_is_the_last_in_the_list() {
        assert!(End::Alert > End::Scored && End::Scored > End::Waiting && End::Waiting > End::Lost);
        assert_eq!(serde_json::to_string(&End::NotFound).unwrap(), "\"not_found\"");
    }
}
