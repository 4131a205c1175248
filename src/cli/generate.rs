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
use crate::generate::{Config, Insiders, Population, events, signals, truth};
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
struct Feed<'a> {
    producer: KafkaProducer,
    answer: Answer,
    rate: u64,
    began: Instant,
    clock: &'a SystemClock,
}

impl Feed<'_> {
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

fn to_kafka(args: &Args, population: &Population, config: &Settings) -> Result<Answer, Failure> {
    let clock = SystemClock::new();
    let schemas = super::schemas(config, std::sync::Arc::new(clock))?;
    let pseudonym = pseudonym(config, &schemas)?;
    let (mut encoder, mut value) = (Encoder::new(&schemas), Vec::new());
    let mut feed = Feed {
        producer: KafkaProducer::new(&super::connection(config)?)?,
        answer: Answer { people: population.people().len(), ..Answer::default() },
        rate: args.rate,
        began: Instant::now(),
        clock: &clock,
    };
    let encode_failure = |e: crate::wire::avro::EncodeError| Failure::new(Exit::Failure, e.to_string());
    for record in population.directory(|id| pseudonym.user_key(id)) {
        value.clear();
        encoder.encode(Topic::UserDirectory, &record, &mut value).map_err(encode_failure)?;
        feed.send(Topic::UserDirectory.name(), &record.user_key, &value)?;
    }
    // The directory is there before the first event asks for it.
    feed.producer.flush(FLUSH_TIMEOUT)?;
    match args.form {
        Form::Raw => {
            let sources = config.map.sources.iter();
            let topics: BTreeMap<&str, TopicName> =
                sources.map(|s| (s.name.as_str(), topology::intern(&s.topic))).collect();
            for event in events(population) {
                let Some(topic) = topics.get(event.source) else { continue };
                feed.send(topic, &event.key, event.json.as_bytes())?;
            }
        }
        Form::Signals => {
            for signal in signals(population, |id| pseudonym.user_key(id)) {
                value.clear();
                encoder.encode(Topic::RiskSignals, &signal, &mut value).map_err(encode_failure)?;
                feed.send(Topic::RiskSignals.name(), &signal.user_key, &value)?;
            }
        }
    }
    feed.producer.flush(FLUSH_TIMEOUT)?;
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
