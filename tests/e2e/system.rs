//! The whole product as its users run it: a broker, a Redis, the topics, and `casestream` processes, each of its own
//! command line. It knows how to start, ask, wait for and end them, not what they should answer.

#![allow(dead_code, reason = "each test binary compiles this module and uses a part of it")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::Duration;

use casestream::domain::record::Journal;
use casestream::runtime::ports::{CopyMeta, Store};
use casestream::runtime::redis_store::RedisStore;
use casestream::topology::{ENGINE_INPUTS, META_KEY, Topic};
use casestream::wire::avro::{Decoder, Schemas};
use rdkafka::message::Message;

use super::reading::{Committed, Tail, ends};
use super::support::{Kafka, Process, Redis, create_topics, wait_for};

/// How long anything may take on a busy machine before the test gives up.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// Name of a source, and of its mapping; its topic is `raw.<name>`.
pub const SOURCES: [&str; 3] = ["m365-dlp", "google-workspace", "code42"];
pub const KEY: &str = "a-test-key-of-thirty-two-bytes!!";

/// Broker, Redis and a configuration. Fields are public so that a test can break them.
pub struct System {
    pub kafka: Kafka,
    pub redis: Redis,
    pub partitions: i32,
    dir: tempfile::TempDir,
}

impl System {
    /// Parts of its own, topics applied, raw topics made. `engine` is that section of the configuration.
    pub fn start(partitions: i32, engine: &str, company_domains: &[&str]) -> System {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let system = System { kafka: Kafka::start(), redis: Redis::start(), partitions, dir };
        fs::write(system.dir.path().join("key"), KEY).expect("could not write the key");
        fs::write(system.config_path(), system.config(engine, company_domains)).expect("could not write the file");
        let raw = SOURCES.map(|source| format!("raw.{source}"));
        // Owners of raw topics may allow more than we take. Tests write old records, which must stay.
        let settings: &[(&str, &str)] = &[("max.message.bytes", "4194304"), ("retention.ms", "-1")];
        let rows: Vec<_> = raw.iter().map(|name| (name.as_str(), partitions, settings)).collect();
        create_topics(&system.kafka, &rows);
        let applied = system.run(&["topics", "apply"]);
        assert!(applied.status.success(), "could not apply the topics: {}", text(&applied.stderr));
        system
    }

    fn config(&self, engine: &str, company_domains: &[&str]) -> String {
        let mappings = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/mappings");
        let source = |name: &&str| {
            let mapping = mappings.join(format!("{name}.toml"));
            format!("{{ name = {name:?}, topic = \"raw.{name}\", mapping = {:?} }}", mapping.to_string_lossy())
        };
        let sources = SOURCES.iter().map(source).collect::<Vec<_>>().join(", ");
        format!(
            "[kafka]\nbootstrap_servers = {:?}\npartitions = {}\n[redis]\nurl = {:?}\n[identity]\nkey_file = {:?}\n\
             [http]\nbind = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\nfilter = \"info\"\n[map]\ncompany_domains = \
             {company_domains:?}\nsources = [{sources}]\n[engine]\n{engine}\n",
            self.kafka.bootstrap(),
            self.partitions,
            self.redis.url(),
            self.dir.path().join("key").to_string_lossy(),
        )
    }

    pub fn config_path(&self) -> PathBuf {
        self.dir.path().join("casestream.toml")
    }

    /// The command, not yet run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_casestream"));
        command.arg("--config").arg(self.config_path()).args(arguments).current_dir(self.dir.path());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("could not run casestream")
    }

    /// `verify`, which must find nothing. The answer.
    pub fn verify(&self) -> serde_json::Value {
        let output = self.run(&["verify", "--output", "json"]);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("verify gave no document ({error}): {}{}", text(&output.stdout), text(&output.stderr))
        });
        assert_eq!(report["differences"], 0, "{report:#}");
        assert_eq!(report["unchecked"], serde_json::json!([]), "{report:#}");
        report
    }

    /// Where the map role stands, per source and partition.
    pub fn map_committed(&self) -> Vec<Committed> {
        let names = SOURCES.map(|source| format!("raw.{source}"));
        Committed::read(
            &self.kafka.bootstrap(),
            "casestream-map",
            &names.each_ref().map(String::as_str),
            self.partitions,
        )
    }

    /// Where the engine stands, per input and partition.
    pub fn engine_committed(&self) -> Vec<Committed> {
        let names = ENGINE_INPUTS.map(Topic::name);
        Committed::read(&self.kafka.bootstrap(), "casestream-engine", &names, self.partitions)
    }

    /// Waits until everything written to the inputs so far has been mapped, folded and committed.
    pub fn wait_until_drained(&self, inputs: &mut Inputs) {
        let bootstrap = self.kafka.bootstrap();
        for source in SOURCES {
            let topic = format!("raw.{source}");
            let ends = ends(&bootstrap, &topic, self.partitions);
            wait_for(&format!("{topic} to be mapped to {ends:?}"), PATIENCE, || {
                let all = self.map_committed();
                let mut at = all.iter().filter(|c| c.topic == topic);
                at.all(|c| c.offset >= ends[c.partition as usize]).then_some(())
            });
        }
        wait_for("the engine to commit everything", PATIENCE, || {
            // Asked first: what the transactions behind these offsets wrote lies below the ends read next.
            let committed = self.engine_committed();
            inputs.catch_up();
            committed.iter().all(|c| c.offset >= inputs.next(&c.topic, c.partition)).then_some(())
        });
    }

    /// Waits until Redis stands where the changelog does.
    pub fn wait_for_copy(&self, journals: &mut Journals) {
        let mut store = RedisStore::new(&self.redis.url()).expect("a store");
        wait_for("the copy to catch up", PATIENCE, || {
            journals.catch_up();
            let mut numbers = 0..self.partitions;
            let caught_up = |p: i32| match store.meta(p) {
                Ok(Some(CopyMeta { applied, rebuilding, .. })) => {
                    !rebuilding && journals.last[p as usize].as_ref().is_some_and(|j| j.commit_no == applied)
                }
                _ => false,
            };
            numbers.all(caught_up).then_some(())
        });
    }
}

/// The ends of the engine's inputs as a reader sees them: behind the last committed record, markers not counted.
pub struct Inputs(Vec<Tail>);

impl Inputs {
    pub fn new(system: &System) -> Inputs {
        let tail = |topic: Topic| Tail::new(&system.kafka.bootstrap(), topic.name(), system.partitions);
        Inputs(ENGINE_INPUTS.map(tail).into())
    }

    fn catch_up(&mut self) {
        self.0.iter_mut().for_each(|tail| tail.catch_up(&mut |_| {}));
    }

    fn next(&self, topic: &str, partition: i32) -> i64 {
        self.0.iter().find(|tail| tail.topic() == topic).expect("an input").next(partition)
    }
}

/// The last meta record of each partition.
pub struct Journals {
    tail: Tail,
    decoder: Decoder,
    pub last: Vec<Option<Journal>>,
}

impl Journals {
    pub fn new(system: &System) -> Journals {
        Journals {
            tail: Tail::new(&system.kafka.bootstrap(), Topic::UserState.name(), system.partitions),
            decoder: Decoder::new(&Schemas::built_in()),
            last: vec![None; system.partitions as usize],
        }
    }

    pub fn catch_up(&mut self) {
        let Journals { tail, decoder, last } = self;
        tail.catch_up(&mut |message| {
            if message.key() == Some(META_KEY) {
                let value = message.payload().expect("a meta record has a value");
                let journal: Journal = decoder.decode(Topic::EngineJournal, value, &[]).expect("a meta record");
                last[message.partition() as usize] = Some(journal);
            }
        });
    }

    /// A row of the engine's ledger, over all partitions.
    pub fn ledger(&self, row: &str) -> i64 {
        self.last.iter().flatten().filter_map(|journal| journal.ledger.get(row)).sum()
    }
}

/// One `casestream run`.
pub struct Node {
    process: Process,
    arguments: Vec<String>,
    /// Logs of earlier runs.
    earlier: String,
}

impl Node {
    /// Starts it; nothing is waited for.
    pub fn start(system: &System, ordinal: u32, settings: &[&str]) -> Node {
        let mut arguments = vec!["run".to_owned(), "--set".to_owned(), format!("app.ordinal={ordinal}")];
        settings.iter().for_each(|setting| arguments.extend(["--set".to_owned(), (*setting).to_owned()]));
        let mut node = Node { process: Process::new("run"), arguments, earlier: String::new() };
        node.start_again(system);
        node
    }

    /// Starts it once more after `kill` or an end.
    pub fn start_again(&mut self, system: &System) {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        self.process.spawn(&mut system.command(&arguments));
    }

    pub fn kill(&mut self) {
        self.process.kill();
        self.earlier.push_str(&self.process.log());
        self.earlier.push_str("---- killed\n");
    }

    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    pub fn wait_ready(&mut self) {
        let ready = wait_for("the process to be ready, or to end", PATIENCE, || match self.process.ended() {
            Some(status) => Some(Err(status)),
            None => (self.address().is_some() && self.get("/readyz").0 == 200).then_some(Ok(())),
        });
        ready.unwrap_or_else(|status| panic!("the process ended ({status}):\n{}", self.log()));
    }

    /// How it ended by itself, within the time.
    pub fn wait_end(&mut self, timeout: Duration) -> ExitStatus {
        let status = wait_for("the process to end", timeout, || self.process.ended());
        self.process.kill();
        status
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }

    /// Where it serves, as its log says.
    fn address(&self) -> Option<String> {
        let log = self.process.log();
        let line = log.lines().find(|line| line.contains("serving /metrics"))?;
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(line["fields"]["address"].as_str()?.to_owned())
    }

    /// Status and body of a page; 0 when there is none.
    pub fn get(&self, path: &str) -> (u16, String) {
        let Some(address) = self.address() else { return (0, String::new()) };
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(&address)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = ask().unwrap_or_default();
        let Some((head, body)) = answer.split_once("\r\n\r\n") else { return (0, String::new()) };
        (head.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0), body.to_owned())
    }

    /// Everything it logged, over all its runs.
    pub fn log(&self) -> String {
        format!("{}{}", self.earlier, self.process.log())
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
