//! `casestream generate`: a seeded population into Kafka (or files): directory records, then vendor events or signals,
//! at a rate or as fast as possible, with the truth beside it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Exit, Failure, Global};
use crate::config::Config as Settings;
use crate::domain::Timestamp;
use crate::domain::time::DAY_MS;
use crate::generate::{Config, Insiders, Population, RawEvent, events, signals, truth};
use crate::runtime::clock::SystemClock;
use crate::runtime::ports::{Clock, Outgoing, TopicName};
use crate::runtime::transaction::KafkaProducer;
use crate::topology::{self, Topic};
use crate::wire::avro::{Encoder, Schemas};
use crate::wire::mapping::identity::Pseudonym;

/// How long the last records may take to be delivered.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);
/// Records between two looks at the pace.
const PACE_EVERY: u64 = 50;

/// What to generate.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Everything follows from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// People
    #[arg(long, default_value_t = 200)]
    users: u32,
    /// Days of activity
    #[arg(long, default_value_t = 30)]
    days: u32,
    /// First day, YYYY-MM-DD [default: so that the last day is yesterday]
    #[arg(long)]
    start: Option<String>,
    /// People who do harm
    #[arg(long, default_value_t = 4)]
    insiders: u32,
    /// What is written
    #[arg(long, value_enum, default_value_t = Form::Raw)]
    form: Form,
    /// Records per second; 0 for as fast as possible
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Write files to this folder instead of Kafka
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write who did harm, and by which events, to this file
    #[arg(long, value_name = "FILE")]
    truth: Option<PathBuf>,
}

/// What stands for an act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// Vendor events to `raw.<source>`, for the map role
    Raw,
    /// Signals to `risk-signals`
    Signals,
}

#[derive(Debug, Default, Serialize)]
struct Answer {
    people: usize,
    records: u64,
    by_topic: BTreeMap<String, u64>,
    seconds: f64,
    harmful: Vec<String>,
}

/// Runs the command.
pub fn run(args: &Args, global: &Global) -> Result<Exit, Failure> {
    let population = Population::new(&population_config(args)?)
        .map_err(|e| Failure::new(Exit::Usage, format!("{e} ({})", e.code())))?;
    let began = Instant::now();
    let mut answer = match &args.out {
        Some(dir) => to_files(&population, dir)?,
        None => to_kafka(args, &population, &global.config()?)?,
    };
    answer.seconds = (began.elapsed().as_millis() as f64) / 1000.0;
    let facts = truth(&population);
    answer.harmful = facts.iter().filter(|t| t.harmful).map(|t| t.canonical_id.clone()).collect();
    if let Some(path) = &args.truth {
        let text = serde_json::to_string_pretty(&facts).map_err(std::io::Error::from)?;
        fs::write(path, text).map_err(|e| file_failure(path, &e))?;
    }
    global.output.print(&answer, text)?;
    Ok(Exit::Ok)
}

fn population_config(args: &Args) -> Result<Config, Failure> {
    let start = match &args.start {
        Some(text) => crate::domain::Day::parse(text)
            .ok_or_else(|| Failure::new(Exit::Usage, format!("could not read --start {text}: use YYYY-MM-DD")))?
            .start(),
        None => Timestamp((SystemClock::new().now().0.div_euclid(DAY_MS) - i64::from(args.days)) * DAY_MS),
    };
    let insiders = Insiders::Count(args.insiders);
    Ok(Config { seed: args.seed, users: args.users, days: args.days, start, insiders, ..Config::default() })
}

fn file_failure(path: &std::path::Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Failure, format!("could not write {}: {error}", path.display()))
}

fn to_files(population: &Population, dir: &std::path::Path) -> Result<Answer, Failure> {
    fs::create_dir_all(dir).map_err(|e| file_failure(dir, &e))?;
    let mut answer = Answer { people: population.people().len(), ..Answer::default() };
    let mut files: BTreeMap<&str, BufWriter<File>> = BTreeMap::new();
    for event in events(population) {
        if !files.contains_key(event.source) {
            let path = dir.join(format!("{}.ndjson", event.source));
            files.insert(event.source, BufWriter::new(File::create(&path).map_err(|e| file_failure(&path, &e))?));
        }
        let file = files.get_mut(event.source).expect("just opened");
        writeln!(file, "{}", event.json)?;
        answer.count(event.source);
    }
    for mut file in files.into_values() {
        file.flush()?;
    }
    Ok(answer)
}

impl Answer {
    fn count(&mut self, topic: &str) {
        self.records += 1;
        match self.by_topic.get_mut(topic) {
            Some(count) => *count += 1,
            None => drop(self.by_topic.insert(topic.to_owned(), 1)),
        }
    }
}

/// Writes to the configured cluster at the asked pace.
pub(super) struct Feed<'a> {
    config: &'a Settings,
    schemas: Arc<Schemas>,
    pseudonym: Pseudonym,
    producer: KafkaProducer,
    topics: BTreeMap<&'a str, TopicName>,
    answer: Answer,
    rate: u64,
    began: Instant,
    clock: SystemClock,
}

impl<'a> Feed<'a> {
    /// Connects; `rate` is in records per second, 0 for as fast as possible.
    pub(super) fn new(config: &'a Settings, rate: u64) -> Result<Feed<'a>, Failure> {
        let clock = SystemClock::new();
        let schemas = super::schemas(config, Arc::new(clock))?;
        let sources = config.map.sources.iter();
        Ok(Feed {
            pseudonym: pseudonym(config, &schemas)?,
            producer: KafkaProducer::new(&super::connection(config)?)?,
            topics: sources.map(|s| (s.name.as_str(), topology::intern(&s.topic))).collect(),
            answer: Answer::default(),
            began: Instant::now(),
            config,
            schemas,
            rate,
            clock,
        })
    }

    /// Who there is. Delivered when this returns: it is there before the first event asks for it.
    pub(super) fn directory(&mut self, population: &Population) -> Result<(), Failure> {
        let (mut encoder, mut value) = (Encoder::new(&self.schemas), Vec::new());
        self.answer.people = population.people().len();
        let records: Vec<_> = population.directory(|id| self.pseudonym.user_key(id)).collect();
        for record in records {
            value.clear();
            encoder.encode(Topic::UserDirectory, &record, &mut value).map_err(encode_failure)?;
            self.send(Topic::UserDirectory.name(), &record.user_key, &value)?;
        }
        self.flush()
    }

    /// A vendor's event; one of a source that is not configured is left out.
    pub(super) fn event(&mut self, event: &RawEvent) -> Result<(), Failure> {
        let Some(topic) = self.topics.get(event.source) else { return Ok(()) };
        self.send(topic, &event.key, event.json.as_bytes())
    }

    fn signals(&mut self, population: &Population) -> Result<(), Failure> {
        let (mut encoder, mut value) = (Encoder::new(&self.schemas), Vec::new());
        let pseudonym = super::pseudonym::configured(self.config)?.expect("the feed was made with one");
        for signal in signals(population, |id| pseudonym.user_key(id)) {
            value.clear();
            encoder.encode(Topic::RiskSignals, &signal, &mut value).map_err(encode_failure)?;
            self.send(Topic::RiskSignals.name(), &signal.user_key, &value)?;
        }
        Ok(())
    }

    /// Waits until everything is delivered.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.producer.flush(FLUSH_TIMEOUT)?)
    }

    fn send(&mut self, topic: TopicName, key: &str, value: &[u8]) -> Result<(), Failure> {
        let headers = &[];
        let (key, value) = (Some(key.as_bytes()), Some(value));
        self.producer.send_by_key(&Outgoing { topic, partition: 0, key, value, headers, timestamp: None })?;
        self.answer.count(topic);
        let sent = self.answer.records;
        if self.rate > 0 && sent.is_multiple_of(PACE_EVERY) {
            let due = Duration::from_secs_f64(sent as f64 / self.rate as f64);
            self.clock.wait(due.saturating_sub(self.began.elapsed()));
        }
        Ok(())
    }
}

fn encode_failure(error: crate::wire::avro::EncodeError) -> Failure {
    Failure::new(Exit::Failure, error.to_string())
}

fn to_kafka(args: &Args, population: &Population, config: &Settings) -> Result<Answer, Failure> {
    let mut feed = Feed::new(config, args.rate)?;
    feed.directory(population)?;
    match args.form {
        Form::Raw => events(population).try_for_each(|event| feed.event(&event))?,
        Form::Signals => feed.signals(population)?,
    }
    feed.flush()?;
    Ok(feed.answer)
}

fn pseudonym(config: &Settings, schemas: &Arc<Schemas>) -> Result<Pseudonym, Failure> {
    let pseudonym = super::pseudonym::configured(config)?.ok_or_else(|| {
        let fix = "set identity.key_file to a file with at least 16 random bytes";
        Failure::new(Exit::Config, format!("could not make pseudonyms: no key is configured\n  fix: {fix}"))
    })?;
    super::pseudonym::compare(config, schemas, &pseudonym)?;
    Ok(pseudonym)
}

fn text(answer: &Answer) -> String {
    let mut lines = vec![format!("{} people, {} records in {:.1} s", answer.people, answer.records, answer.seconds)];
    lines.extend(answer.by_topic.iter().map(|(topic, count)| format!("  {topic}  {count}")));
    lines.push(format!("people who did harm: {}", answer.harmful.join(", ")));
    lines.join("\n")
}
