//! Broker and store together, in this process or as a child of it. A child is the same binary again (`casestream
//! devkit`): killing a worker does not take the broker with it, and when the parent is gone, however it went, the
//! child's standard input closes and the child ends. Next: `cli/devkit.rs`.

use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::broker::{self, Broker, Limits};
use super::store::{self, Store};

/// How long a child may take to read its data and listen.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it may take to end by itself.
const END_TIMEOUT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often the store's thread is looked at.
const STORE_LOOK_EVERY: Duration = Duration::from_secs(1);

/// Where to listen and where the data lies.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// 0 takes a free port.
    pub kafka_port: u16,
    /// 0 takes a free port.
    pub redis_port: u16,
    pub dir: PathBuf,
    /// Bytes of all logs together; nothing takes the default.
    pub memory_bytes_max: Option<usize>,
    /// What clients of the store will call by hash: such writes survive a restart.
    pub scripts: Vec<&'static str>,
}

/// What somebody has to know to use it: the one line a child prints, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    pub bootstrap: String,
    pub redis_url: String,
    pub dir: PathBuf,
    pub limits: Vec<String>,
}

/// Broker and store in this process.
pub struct Running {
    broker: Arc<Broker>,
    store: Store,
    pub ready: Ready,
}

/// What the broker and the store do not do, in sentences.
pub fn limits(limits: Limits) -> Vec<String> {
    let Limits { memory_bytes_max, partition_bytes_max } = limits;
    vec![
        "for trying out, not for production: one node, on 127.0.0.1 only, no TLS, no passwords, no access control"
            .into(),
        format!(
            "logs are in memory, at most {} MiB and {} MiB of one partition; then the oldest records go; retention.ms is \
             not applied",
            memory_bytes_max >> 20,
            partition_bytes_max >> 20
        ),
        "compacted topics keep the latest record of each key".into(),
        "data survives a killed process, not a power failure".into(),
        "classic consumer groups only (no group.protocol=consumer)".into(),
        format!(
            "at most {} topics, {} partitions, {} connections to the broker and {} to the store",
            broker::TOPICS_MAX,
            broker::PARTITIONS_MAX,
            broker::CONNECTIONS_MAX,
            store::CONNECTIONS_MAX
        ),
    ]
}

impl Running {
    /// Starts both.
    pub async fn start(options: &Options) -> io::Result<Running> {
        // The broker's lock on its directory refuses a second devkit before the store touches anything.
        let limits = options.memory_bytes_max.map_or_else(Limits::default, Limits::within);
        let broker = Broker::start(Some(&options.dir.join("broker")), options.kafka_port, limits).await?;
        let store = Store::start(&options.dir.join("store"), options.redis_port, &options.scripts)?;
        let (bootstrap, redis_url) = (broker.bootstrap(), store.url());
        let ready = Ready { bootstrap, redis_url, dir: options.dir.clone(), limits: self::limits(limits) };
        Ok(Running { broker, store, ready })
    }

    /// Serves until one of them fails.
    pub async fn run(&mut self) -> io::Error {
        let mut look = tokio::time::interval(STORE_LOOK_EVERY);
        loop {
            tokio::select! {
                error = self.broker.run() => return error,
                _ = look.tick() => {}
            }
            if let Some(error) = self.store.ended() {
                return error;
            }
        }
    }
}

/// A devkit in a child process.
pub struct Devkit {
    /// For `bootstrap.servers`.
    pub bootstrap: String,
    /// For `redis.url`.
    pub redis_url: String,
    /// What it does not do, in sentences.
    pub limits: Vec<String>,
    pub child: Child,
}

impl Devkit {
    /// Runs this binary as `devkit` on free ports with its data in a directory, and waits until it answers.
    pub fn spawn(dir: &Path) -> io::Result<Devkit> {
        let options = Options { dir: dir.to_owned(), ..Options::default() };
        Devkit::spawn_with(&std::env::current_exe()?, &options)
    }

    /// The same with a binary, ports and memory (whole MiB) of the caller's choice. The scripts are the binary's.
    pub fn spawn_with(binary: &Path, options: &Options) -> io::Result<Devkit> {
        let Options { kafka_port, redis_port, dir, memory_bytes_max, scripts: _ } = options;
        let mut command = Command::new(binary);
        command.args(["devkit", "--output", "json", "--until-stdin-closes", "--dir"]).arg(dir);
        command.args(["--kafka-port", &kafka_port.to_string(), "--redis-port", &redis_port.to_string()]);
        if let Some(bytes) = memory_bytes_max {
            command.args(["--memory", &(bytes >> 20).to_string()]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Out of the terminal's group: Ctrl-C reaches the parent, which ends its workers before their broker.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn()?;
        match wait_until_ready(&mut child) {
            Ok(ready) => {
                let Ready { bootstrap, redis_url, limits, dir: _ } = ready;
                Ok(Devkit { bootstrap, redis_url, limits, child })
            }
            Err(error) => {
                // It may have ended by itself.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Asks it to end and waits; kills it if it does not.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + END_TIMEOUT;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        // It may have ended meanwhile.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Devkit {
    fn drop(&mut self) {
        self.end();
    }
}

/// Reads the child's document; when it ends without one, what it said instead.
fn wait_until_ready(child: &mut Child) -> io::Result<Ready> {
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(io::Error::other("the devkit's output is not connected"));
    };
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut document = String::new();
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            document.push_str(&line);
            if let Ok(ready) = serde_json::from_str::<Ready>(&document) {
                // The waiter may have given up.
                let _ = send.send(ready);
            }
        }
    });
    let complaint = std::thread::spawn(move || forward(stderr));
    match receive.recv_timeout(READY_TIMEOUT) {
        Ok(ready) => Ok(ready),
        Err(RecvTimeoutError::Timeout) => {
            Err(io::Error::new(io::ErrorKind::TimedOut, "the devkit did not start in time"))
        }
        Err(RecvTimeoutError::Disconnected) => {
            let said = complaint.join().unwrap_or_default();
            Err(io::Error::other(format!("the devkit ended while starting: {}", said.trim())))
        }
    }
}

/// Hands on what the child logs, and gives the last of it. The store's own small talk is left out.
fn forward(stderr: impl Read) -> String {
    let mut last = String::new();
    let lines = BufReader::new(stderr).lines().map_while(Result::ok);
    for line in lines.filter(|line| !line.starts_with("kevy: ")) {
        eprintln!("{line}");
        last = line;
    }
    last
}
