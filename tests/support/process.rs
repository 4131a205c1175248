//! A child process with a directory of its own, both gone when the `Process` is dropped or the test process dies.
//!
//! Not `PR_SET_PDEATHSIG`: it fires when the *thread* that spawned the child ends, and libtest ends a thread after each test, which
//! would take a shared broker away from the next one. It leaves the directory behind, too. Instead a janitor, a shell
//! that waits for the end of its standard input, holds the other end of a pipe that only the test process has: however that process
//! ends (also by SIGKILL, also with the broker in a `static`, which is never dropped), the pipe closes and the janitor cleans up.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::wait_for;

/// `$1` is the directory. Removal is tried again for 10 s, because a JVM that has just been killed goes on creating files until its
/// last thread is gone.
const JANITOR: &str = r#"
cat >/dev/null
if [ -f "$1/pid" ]; then kill -9 "$(cat "$1/pid")"; fi
for try in $(seq 100); do rm -rf -- "$1" && break; sleep 0.1; done
"#;

/// Shown when a child ends too soon.
const LOG_LINES_MAX: usize = 20;

pub struct Process {
    name: String,
    dir: PathBuf,
    child: Option<Child>,
    janitor: Child,
}

/// How a start went.
#[derive(Debug, PartialEq, Eq)]
pub enum Start {
    Ready,
    /// Another process has the port; try again, or with another one.
    AddressTaken,
}

impl Process {
    /// Makes the directory; nothing runs yet.
    pub fn new(name: &str) -> Process {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("casestream-{name}-{}-{number}", std::process::id()));
        fs::create_dir(&dir).unwrap_or_else(|error| panic!("could not create {}: {error}", dir.display()));
        let janitor = Command::new("sh")
            .args(["-c", JANITOR, "janitor"])
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Out of the terminal's group: Ctrl-C ends the tests, and the janitor has to outlive them.
            .process_group(0)
            .spawn()
            .expect("could not run sh");
        Process { name: name.to_owned(), dir, child: None, janitor }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Starts the child; its output goes to a new log.
    pub fn spawn(&mut self, command: &mut Command) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::create(self.log_path()).expect("could not create the log");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("could not share the log")).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| {
            panic!("could not run {:?}: {error}; run scripts/install-services first", command.get_program())
        });
        fs::write(self.pid_path(), child.id().to_string()).expect("could not note the pid for the janitor");
        self.child = Some(child);
    }

    /// Starts the child and waits until it `answers`; panics with its log when it ends first for another reason than its port.
    pub fn start(&mut self, command: &mut Command, timeout: Duration, mut answers: impl FnMut() -> bool) -> Start {
        self.spawn(command);
        let what = format!("{} to answer", self.name);
        let ended = wait_for(&what, timeout, || match self.ended() {
            Some(status) => Some(Some(status)),
            None => answers().then_some(None),
        });
        let Some(status) = ended else { return Start::Ready };
        self.kill();
        if self.log().to_lowercase().contains("address already in use") {
            return Start::AddressTaken;
        }
        panic!("{} ended while starting ({status}):\n{}", self.name, self.log_tail());
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name)).id()
    }

    /// How the child ended, if it did by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().expect("could not ask for the child's state"))
    }

    /// Sends `STOP`, `CONT`, `TERM`…
    pub fn signal(&self, signal: &str) {
        let status =
            Command::new("sh").args(["-c", "kill -s \"$1\" \"$2\"", "kill", signal, &self.pid().to_string()]).status();
        assert!(status.expect("could not run sh").success(), "could not send {signal} to {}", self.name);
    }

    /// SIGKILL, and waits until the process is gone. Nothing happens when none runs.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // A failure means that it has ended already.
        let _ = child.kill();
        child.wait().expect("could not wait for the killed child");
        fs::remove_file(self.pid_path()).expect("could not take the pid back from the janitor");
    }

    pub fn log(&self) -> String {
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_MAX)..].join("\n")
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.name))
    }

    fn pid_path(&self) -> PathBuf {
        self.dir.join("pid")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        drop(self.janitor.stdin.take());
        // Nothing useful can be done about a janitor that fails, and a panic here would hide the test's own.
        let _ = self.janitor.wait();
    }
}
