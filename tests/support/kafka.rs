//! One Apache Kafka node, broker and controller in one JVM, set up by the same `server.properties` as `scripts/services`.
//!
//! Ready means that a metadata request names the broker: it is then registered and its logs are recovered, which an open port does
//! not say. The first transaction or group on a new broker still waits for its coordinator; clients retry by themselves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::{Process, Start, free_ports, wait_for};

/// The version that `scripts/install-services` installs.
const VERSION: &str = "4.3.1";
const PROPERTIES: &str = include_str!("../../scripts/kafka/server.properties");
const LOG_PROPERTIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/kafka/log4j2.properties");

/// Ten times what a start takes on two busy cores.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// What the controller logs when it has fenced the one broker.
const FENCED: &str = "Fencing broker 1 ";
const METADATA_TIMEOUT: Duration = Duration::from_millis(500);

pub struct Kafka {
    process: Process,
    port: u16,
    controller_port: u16,
}

impl Kafka {
    /// The broker of this test binary: for every test that does not kill it. Use topic names of your own.
    pub fn shared() -> &'static Kafka {
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        SHARED.get_or_init(Kafka::start)
    }

    /// A broker of the caller's own.
    pub fn start() -> Kafka {
        Kafka::start_with(&[])
    }

    /// The same with broker settings added, which win over those of `server.properties`.
    pub fn start_with(settings: &[(&str, &str)]) -> Kafka {
        wait_for("a port that stays free until kafka has it", START_TIMEOUT, || {
            let [port, controller_port] = free_ports();
            let mut kafka = Kafka { process: Process::new("kafka"), port, controller_port };
            kafka.configure(settings);
            kafka.format();
            (kafka.run() == Start::Ready).then_some(kafka)
        })
    }

    /// For `bootstrap.servers`.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// SIGKILL. What was acknowledged is in the page cache and so survives, as it would in any crash but the machine's.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again, on the same port and data; kills it first if it runs.
    pub fn restart(&mut self) {
        self.kill();
        self.fence();
        // A client's connection may have been given the port meanwhile as its own end.
        wait_for("kafka's port to be free again", START_TIMEOUT, || (self.run() == Start::Ready).then_some(()));
    }

    /// Stands still from here on (SIGSTOP), connections open, until `resume`.
    pub fn pause(&self) {
        self.process.signal("STOP");
    }

    pub fn resume(&self) {
        self.process.signal("CONT");
    }

    /// What the broker has logged since its last start: for a test's message. Not for assertions: some warnings are ordinary.
    pub fn log(&self) -> String {
        self.process.log()
    }

    fn configure(&self, settings: &[(&str, &str)]) {
        let data_dir = self.process.dir().join("data");
        let mut properties = PROPERTIES
            .replace("@PORT@", &self.port.to_string())
            .replace("@CONTROLLER_PORT@", &self.controller_port.to_string())
            .replace("@DATA_DIR@", data_dir.to_str().expect("the temporary directory is no UTF-8"));
        for (key, value) in settings {
            properties.push_str(&format!("{key}={value}\n"));
        }
        fs::write(self.properties_path(), properties).expect("could not write server.properties");
    }

    fn format(&self) {
        let output = java(&["kafka.tools.StorageTool", "format", "-t", &cluster_id(self.port), "-c"])
            .arg(self.properties_path())
            .output()
            .unwrap_or_else(|error| panic!("could not run java: {error}; run scripts/install-services first"));
        assert!(output.status.success(), "could not format kafka's storage: {output:?}");
    }

    fn run(&mut self) -> Start {
        let mut command = java(&["-Xmx512m", "kafka.Kafka"]);
        command.arg(self.properties_path());
        let client = metadata_client(&self.bootstrap());
        self.process.start(&mut command, START_TIMEOUT, || {
            client.fetch_metadata(None, METADATA_TIMEOUT).is_ok_and(|metadata| !metadata.brokers().is_empty())
        })
    }

    /// Lets the controller run alone until it has fenced the dead broker, as the controllers of a cluster do while a broker is away.
    ///
    /// A lone node that comes back believes its dead self to be alive for the 9 s of its session. Then a restart takes 12 s, and
    /// Kafka 4.3.1 loads the transactions twice; it can lose the markers of one that was committed just before the kill ("Couldn't
    /// find leader endpoint for partitions"), whose records no read-committed reader then ever sees.
    fn fence(&mut self) {
        let listener = format!("CONTROLLER://127.0.0.1:{}", self.controller_port);
        let changes = [
            "process.roles=controller",
            &format!("listeners={listener}"),
            "broker.session.timeout.ms=200",
            "broker.heartbeat.interval.ms=100",
        ];
        let properties = fs::read_to_string(self.properties_path()).expect("could not read server.properties");
        let kept = properties.lines().filter(|line| !line.starts_with("advertised.listeners="));
        let path = self.process.dir().join("controller.properties");
        fs::write(&path, kept.chain(changes).collect::<Vec<_>>().join("\n"))
            .expect("could not write controller.properties");
        let log = self.process.log_path();
        let metadata_log = self.process.dir().join("data/__cluster_metadata-0");
        wait_for("kafka's controller port to be free again", START_TIMEOUT, || {
            let mut size_when_decided = None;
            let start = self.process.start(java(&["-Xmx256m", "kafka.Kafka"]).arg(&path), START_TIMEOUT, || {
                // The line comes before the record; the log is written in order, so the record is there once the log has grown (a
                // controller without work adds to it twice a second).
                if size_when_decided.is_none() && fs::read_to_string(&log).is_ok_and(|log| log.contains(FENCED)) {
                    size_when_decided = Some(log_size(&metadata_log));
                }
                size_when_decided.is_some_and(|size| log_size(&metadata_log) > size)
            });
            self.process.kill();
            (start == Start::Ready).then_some(())
        });
    }

    fn properties_path(&self) -> PathBuf {
        self.process.dir().join("server.properties")
    }
}

fn log_size(topic_dir: &Path) -> u64 {
    let files = fs::read_dir(topic_dir).expect("could not list the metadata log").flatten();
    let segments = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "log"));
    segments.filter_map(|segment| segment.metadata().ok()).map(|metadata| metadata.len()).sum()
}

fn java(arguments: &[&str]) -> Command {
    let mut command = Command::new("java");
    command
        .arg("-cp")
        .arg(jars().join("*"))
        .arg(format!("-Dlog4j2.configurationFile={LOG_PROPERTIES}"))
        .args(arguments);
    command
}

fn jars() -> PathBuf {
    let services = std::env::var_os("CASESTREAM_SERVICES").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME")?;
        Some(PathBuf::from(home).join(".cache/casestream"))
    });
    let jars = services.expect("neither CASESTREAM_SERVICES nor HOME is set").join(format!("kafka-{VERSION}"));
    assert!(jars.is_dir(), "no kafka in {}: run scripts/install-services first", jars.display());
    jars
}

/// 16 bytes in base64, as Kafka wants it, of which hexadecimal digits are a part. No two brokers that live together share it:
/// a port belongs to one of them.
fn cluster_id(port: u16) -> String {
    format!("{:013x}{:08x}A", port, std::process::id())
}

fn metadata_client(bootstrap: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        // The broker is not there yet: ask again soon, not after the default's growing pause of up to 10 s.
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "100")
        .create()
        .expect("a client with three settings")
}
