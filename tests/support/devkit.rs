//! The embedded broker and store, as `casestream devkit` runs them: a process of its own with its data in a directory.

use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use super::{Process, Start, free_ports, wait_for};

const START_TIMEOUT: Duration = Duration::from_secs(60);

pub struct Devkit {
    process: Process,
    kafka_port: u16,
    redis_port: u16,
}

impl Devkit {
    /// The devkit of this test binary: for every test that does not kill it.
    pub fn shared() -> &'static Devkit {
        static SHARED: OnceLock<Devkit> = OnceLock::new();
        SHARED.get_or_init(Devkit::start)
    }

    /// A devkit of the caller's own.
    pub fn start() -> Devkit {
        wait_for("ports that stay free until the devkit has them", START_TIMEOUT, || {
            let [kafka_port, redis_port] = free_ports();
            let mut devkit = Devkit { process: Process::new("devkit"), kafka_port, redis_port };
            (devkit.run() == Start::Ready).then_some(devkit)
        })
    }

    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.kafka_port)
    }

    pub fn redis_url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.redis_port)
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn log(&self) -> String {
        self.process.log()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same ports and data; kills it first if it runs.
    pub fn restart(&mut self) {
        self.kill();
        wait_for("the devkit's ports to be free again", START_TIMEOUT, || (self.run() == Start::Ready).then_some(()));
    }

    fn run(&mut self) -> Start {
        let mut command = Command::new(env!("CARGO_BIN_EXE_casestream"));
        command.args(["devkit", "--output", "json", "--dir"]).arg(self.process.dir().join("data"));
        command.args(["--kafka-port", &self.kafka_port.to_string(), "--redis-port", &self.redis_port.to_string()]);
        let log = self.process.log_path();
        self.process.start(&mut command, START_TIMEOUT, || {
            // The document is printed when both listen.
            std::fs::read_to_string(&log).is_ok_and(|log| log.contains("\"pid\""))
        })
    }
}
