//! The whole pipeline on the embedded broker and store, nothing else installed: topics, a generated population, both
//! roles, SIGKILL of the worker and of the devkit, and `verify` finds no difference.

#![cfg(all(feature = "embedded", feature = "vrl"))]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use support::{Devkit, Process, wait_for};

const PATIENCE: Duration = Duration::from_secs(240);
const SOURCES: [&str; 3] = ["m365-dlp", "google-workspace", "code42"];

struct System {
    devkit: Devkit,
    dir: tempfile::TempDir,
}

impl System {
    fn start() -> System {
        let system = System { devkit: Devkit::start(), dir: tempfile::tempdir().unwrap() };
        std::fs::write(system.dir.path().join("key"), "a-test-key-of-thirty-two-bytes!!").unwrap();
        std::fs::write(system.config_path(), system.config()).unwrap();
        system
    }

    fn config(&self) -> String {
        let source = |name: &&str| {
            let mapping = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("config/mappings/{name}.toml"));
            format!("{{ name = {name:?}, topic = \"raw.{name}\", mapping = {:?} }}", mapping.to_string_lossy())
        };
        format!(
            "[kafka]\nbootstrap_servers = {:?}\npartitions = 4\n[redis]\nurl = {:?}\n[identity]\nkey_file = {:?}\n\
             [http]\nbind = \"127.0.0.1:0\"\n[map]\nsources = [{}]\n[engine]\nsession_timeout_ms = 6000\n",
            self.devkit.bootstrap(),
            self.devkit.redis_url(),
            self.dir.path().join("key").to_string_lossy(),
            SOURCES.iter().map(source).collect::<Vec<_>>().join(", "),
        )
    }

    fn config_path(&self) -> PathBuf {
        self.dir.path().join("casestream.toml")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_casestream"));
        command.arg("--config").arg(self.config_path()).args(arguments).current_dir(self.dir.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn succeed(&self, arguments: &[&str]) {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn document(&self, arguments: &[&str]) -> Option<Value> {
        serde_json::from_slice(&self.run(arguments).stdout).ok()
    }

    fn status(&self) -> Option<Value> {
        self.document(&["status", "--output", "json"])
    }

    /// Signals that the engine has dealt with.
    fn scored(&self) -> i64 {
        let status = self.status().unwrap_or_default();
        status["engine"]["ledger"]["scored"].as_i64().unwrap_or(0)
    }

    fn wait_until_drained(&self) -> Value {
        wait_for("everything to be mapped and scored", PATIENCE, || {
            self.status().filter(|status| status["lag"] == 0 && status["balanced"] == true)
        })
    }
}

#[test]
fn a_population_is_scored_with_no_difference_through_kills() {
    let mut system = System::start();
    system.succeed(&["topics", "apply"]);
    system.succeed(&["generate", "--users", "60", "--days", "12", "--seed", "7"]);
    let mut node = Process::new("run");
    node.spawn(&mut system.command(&["run", "--roles", "map,engine"]));
    wait_for("the engine to begin", PATIENCE, || (system.scored() > 0).then_some(()));
    node.kill();
    node.spawn(&mut system.command(&["run", "--roles", "map,engine"]));
    // More to do while the broker and the store go away.
    system.succeed(&["generate", "--users", "60", "--days", "12", "--seed", "8", "--rate", "0"]);
    let before = system.scored();
    wait_for("the engine to go on", PATIENCE, || (system.scored() >= before).then_some(()));
    system.devkit.kill();
    system.devkit.restart();
    system.wait_until_drained();
    let report = wait_for("verify", PATIENCE, || system.document(&["verify", "--output", "json"]));
    assert_eq!(report["differences"], 0, "{report:#}\n{}", node.log());
    assert_eq!(report["unchecked"], serde_json::json!([]), "{report:#}");
    assert!(system.scored() > 100);
    assert!(node.ended().is_none(), "the worker outlived its broker:\n{}", node.log());
}
