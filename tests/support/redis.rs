//! One Redis server. It keeps nothing over a kill unless told to: the worst case, and the one casestream must survive.

use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use redis::{Client, Connection};

use super::{Process, Start, free_ports, wait_for};

const START_TIMEOUT: Duration = Duration::from_secs(30);

pub struct Redis {
    process: Process,
    port: u16,
    settings: Vec<String>,
}

impl Redis {
    /// The server of this test binary: for every test that neither kills nor flushes it. Use keys of your own.
    pub fn shared() -> &'static Redis {
        static SHARED: OnceLock<Redis> = OnceLock::new();
        SHARED.get_or_init(Redis::start)
    }

    /// A server of the caller's own, in memory only.
    pub fn start() -> Redis {
        Redis::start_with(&[])
    }

    /// The same with settings added, for example `("appendonly", "yes")`.
    pub fn start_with(settings: &[(&str, &str)]) -> Redis {
        let settings: Vec<String> =
            settings.iter().flat_map(|(key, value)| [format!("--{key}"), (*value).to_owned()]).collect();
        wait_for("a port that stays free until redis has it", START_TIMEOUT, || {
            let [port] = free_ports();
            let mut redis = Redis { process: Process::new("redis"), port, settings: settings.clone() };
            (redis.run() == Start::Ready).then_some(redis)
        })
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    pub fn connect(&self) -> Connection {
        self.try_connect().unwrap_or_else(|error| panic!("could not connect to {}: {error}", self.url()))
    }

    /// FLUSHALL.
    pub fn flush(&self) {
        redis::cmd("FLUSHALL").exec(&mut self.connect()).expect("could not flush");
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same port and directory; kills it first if it runs.
    pub fn restart(&mut self) {
        self.kill();
        // A client's connection may have been given the port meanwhile as its own end.
        wait_for("redis's port to be free again", START_TIMEOUT, || (self.run() == Start::Ready).then_some(()));
    }

    /// Stands still from here on (SIGSTOP), connections open, until `resume`.
    pub fn pause(&self) {
        self.process.signal("STOP");
    }

    pub fn resume(&self) {
        self.process.signal("CONT");
    }

    fn run(&mut self) -> Start {
        let mut command = Command::new("redis-server");
        command
            .args([
                "--port",
                &self.port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--maxmemory-policy",
                "noeviction",
            ])
            .arg("--dir")
            .arg(self.process.dir())
            .args(&self.settings);
        let client = self.client();
        self.process.start(&mut command, START_TIMEOUT, || {
            // PING is refused while an append-only file is being loaded.
            client.get_connection().is_ok_and(|mut connection| redis::cmd("PING").exec(&mut connection).is_ok())
        })
    }

    fn try_connect(&self) -> redis::RedisResult<Connection> {
        self.client().get_connection()
    }

    fn client(&self) -> Client {
        Client::open(self.url()).expect("the url is well formed")
    }
}
