//! `casestream produce SOURCE FILE`: vendor events of one's own, one JSON document a line, to the raw topic of a
//! configured source. Lines go as they are: what cannot be mapped is to be seen as a dead letter, not refused here.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::{Exit, Failure, Global};
use crate::config::{Config, nearest};
use crate::runtime::log::KafkaLog;
use crate::runtime::ports::{Outgoing, TopicName};
use crate::runtime::transaction::KafkaProducer;
use crate::topology;

/// Longest line: the largest record a raw topic takes.
const LINE_BYTES_MAX: usize = 1 << 20;
/// How long the last records may take to be delivered.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);

/// What to write, and where to.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of a configured source
    #[arg(value_name = "SOURCE")]
    source: String,
    /// File with one event a line; - is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// The answer.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Answer {
    topic: String,
    records: u64,
    /// Empty lines.
    skipped: u64,
    /// Where they went, for `trace`.
    partition: i32,
    /// The topic's next offset before the first record: theirs, if nobody else wrote meanwhile.
    first_offset: i64,
}

/// Runs the command.
pub fn run(args: &Args, global: &Global) -> Result<Exit, Failure> {
    let config = global.config()?;
    let topic = topic(&config, &args.source)?;
    let answer = match args.file == Path::new("-") {
        true => write(&config, topic, std::io::stdin().lock())?,
        false => write(&config, topic, BufReader::new(File::open(&args.file).map_err(|e| unreadable(args, &e))?))?,
    };
    global.output.print(&answer, text)?;
    Ok(Exit::Ok)
}

fn topic(config: &Config, name: &str) -> Result<TopicName, Failure> {
    let sources = &config.map.sources;
    if let Some(source) = sources.iter().find(|source| source.name == name) {
        return Ok(topology::intern(&source.topic));
    }
    let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
    let fix = match (nearest(name, names.iter().copied()), names.is_empty()) {
        (Some(near), _) => format!("did you mean {near}?"),
        (None, true) => "configure one under map.sources".to_owned(),
        (None, false) => format!("configured are {}", names.join(", ")),
    };
    Err(Failure::new(Exit::Usage, format!("could not produce: there is no source {name}\n  fix: {fix}")))
}

fn unreadable(args: &Args, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Failure, format!("could not read {}: {error}", args.file.display()))
}

/// All to one partition, so that they keep their order.
fn write(config: &Config, topic: TopicName, mut lines: impl BufRead) -> Result<Answer, Failure> {
    let connection = super::connection(config)?;
    let mut log = KafkaLog::new(&connection, format!("{}-produce", config.app.id))?;
    let partition = 0;
    let first_offset = log.ends(topic, &[partition])?[0];
    let mut producer = KafkaProducer::new(&connection)?;
    let mut answer = Answer { topic: topic.to_owned(), records: 0, skipped: 0, partition, first_offset };
    let mut line = Vec::new();
    while let Some(number) = next(&mut lines, &mut line, answer.records + answer.skipped)? {
        let value = line.trim_ascii();
        if value.is_empty() {
            answer.skipped += 1;
            continue;
        }
        if value.len() > LINE_BYTES_MAX {
            producer.flush(FLUSH_TIMEOUT)?;
            let what = format!("could not produce line {number}: it is longer than {LINE_BYTES_MAX} bytes");
            return Err(Failure::new(Exit::Failure, format!("{what}; the {} before it were", answer.records)));
        }
        let outgoing = Outgoing { topic, partition, key: None, value: Some(value), headers: &[], timestamp: None };
        producer.send(&outgoing)?;
        answer.records += 1;
    }
    producer.flush(FLUSH_TIMEOUT)?;
    Ok(answer)
}

/// The next line and its number, read no further than a line may be long.
fn next(lines: &mut impl BufRead, line: &mut Vec<u8>, before: u64) -> Result<Option<u64>, Failure> {
    line.clear();
    let read = lines.by_ref().take(LINE_BYTES_MAX as u64 + 2).read_until(b'\n', line);
    let read = read.map_err(|error| Failure::new(Exit::Failure, format!("could not read the events: {error}")))?;
    Ok((read > 0).then_some(before + 1))
}

fn text(answer: &Answer) -> String {
    let Answer { topic, records, skipped, partition, first_offset } = answer;
    let skipped = if *skipped > 0 { format!(" ({skipped} empty lines left out)") } else { String::new() };
    match records {
        0 => format!("nothing written to {topic}{skipped}"),
        1 => format!("1 record written to {topic}{skipped}: {topic}:{partition}:{first_offset}"),
        n => format!("{n} records written to {topic}{skipped}, from {topic}:{partition}:{first_offset} on"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_numbered_and_bounded() {
        let long = vec![b'x'; LINE_BYTES_MAX + 100];
        let (mut text, mut line) = ([b"{}\n\n".as_slice(), &long].concat(), Vec::new());
        text.push(b'\n');
        let mut lines = text.as_slice();
        for (before, bytes) in [(0, 3), (1, 1), (2, LINE_BYTES_MAX + 2)] {
            assert_eq!(next(&mut lines, &mut line, before).unwrap(), Some(before + 1));
            assert_eq!(line.len(), bytes);
        }
    }

    #[test]
    fn an_unknown_source_is_named_with_the_nearest() {
        let source =
            |name: &str| crate::config::Source { name: name.into(), topic: "raw.x".into(), mapping: "m".into() };
        let mut config = Config::default();
        let failure = |config: &Config| topic(config, "cod42").unwrap_err();
        assert!(failure(&config).message.contains("map.sources"));
        config.map.sources = vec![source("code42"), source("m365-dlp")];
        assert!(failure(&config).message.contains("did you mean code42?"));
        assert_eq!(failure(&config).exit, Exit::Usage);
        assert_eq!(topic(&config, "code42").unwrap(), "raw.x");
    }
}
