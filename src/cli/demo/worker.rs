//! The worker: this binary once more, as `run`, in a process that anybody may kill. A thread starts it again. When this
//! process is gone, however it went, the worker's standard input closes and the worker ends. Next: `standing.rs`.

use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::error::Error;
use crate::domain::Timestamp;
use crate::runtime::clock::SystemClock;
use crate::runtime::ports::Clock;

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long an orderly end may take.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// A worker that lived so long had started well.
const WELL_AFTER: Duration = Duration::from_secs(10);
/// Starts in a row that may go wrong.
const FAILURES_MAX: u32 = 5;
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Keeps one worker running until it is dropped.
pub struct Supervisor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    pid: AtomicU32,
    /// When the process was started, in milliseconds since the epoch.
    since: AtomicI64,
    failed: Mutex<Option<Error>>,
}

/// How to run it.
struct Recipe {
    binary: PathBuf,
    config: PathBuf,
    log: PathBuf,
}

impl Supervisor {
    /// Starts the worker; `restarted` hears of each that had to be replaced: how it ended, and the new process.
    pub fn start(config: &Path, log: &Path, restarted: impl Fn(String) + Send + 'static) -> Result<Supervisor, Error> {
        let failed = |cause| Error::Disk { path: log.to_owned(), cause };
        File::create(log).map_err(failed)?;
        let binary = std::env::current_exe().map_err(failed)?;
        let recipe = Recipe { binary, config: config.to_owned(), log: log.to_owned() };
        let shared = Arc::new(Shared::default());
        let child = recipe.spawn(&shared).map_err(failed)?;
        let supervised = shared.clone();
        let thread = std::thread::Builder::new().name("supervisor".into());
        let thread = thread.spawn(move || supervise(&supervised, &recipe, child, restarted)).map_err(failed)?;
        Ok(Supervisor { shared, thread: Some(thread) })
    }

    /// The worker's process.
    pub fn pid(&self) -> u32 {
        self.shared.pid.load(Ordering::Relaxed)
    }

    /// When that process was started.
    pub fn since(&self) -> Timestamp {
        Timestamp(self.shared.since.load(Ordering::Relaxed))
    }

    /// Why it is not started again any more.
    pub fn failure(&self) -> Option<Error> {
        self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // It ends within `END_TIMEOUT`; a panic there was printed.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Recipe {
    fn spawn(&self, shared: &Shared) -> std::io::Result<Child> {
        let mut command = Command::new(&self.binary);
        command.args(["run", "--roles", "map,engine", "--until-stdin-closes", "--config"]).arg(&self.config);
        // The demo's file is the whole configuration; what the shell has set is for another pipeline.
        for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("CASESTREAM_")) {
            command.env_remove(name);
        }
        let log = OpenOptions::new().append(true).open(&self.log)?;
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        // Out of the terminal's group: Ctrl-C reaches the demo, which ends the worker before its broker.
        command.process_group(0);
        shared.since.store(SystemClock::new().now().0, Ordering::Relaxed);
        let child = command.spawn()?;
        shared.pid.store(child.id(), Ordering::Relaxed);
        Ok(child)
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().last().unwrap_or("it said nothing").to_owned()
    }
}

fn supervise(shared: &Shared, recipe: &Recipe, mut child: Child, restarted: impl Fn(String)) {
    let (mut began, mut failures) = (Instant::now(), 0);
    while !shared.stop.load(Ordering::Relaxed) {
        let Ok(Some(status)) = child.try_wait() else {
            std::thread::sleep(LOOK_EVERY);
            continue;
        };
        // Killed is not failed: that is what it is for.
        let is_well = began.elapsed() >= WELL_AFTER || status.code().is_none();
        failures = if is_well { 0 } else { failures + 1 };
        if failures > FAILURES_MAX {
            return shared.give_up(recipe.last_words(), recipe);
        }
        if failures > 0 {
            std::thread::sleep(RETRY_AFTER);
        }
        let before = shared.pid();
        match recipe.spawn(shared) {
            Ok(next) => child = next,
            Err(cause) => return shared.give_up(cause.to_string(), recipe),
        }
        began = Instant::now();
        restarted(format!("worker {before} ended ({}); started again as {}", how(status), shared.pid()));
    }
    end(child);
}

impl Shared {
    fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    fn give_up(&self, cause: String, recipe: &Recipe) {
        let error = Error::Worker { cause, log: recipe.log.clone() };
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

fn how(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("signal {signal}"),
        (None, code) => format!("exit code {}", code.unwrap_or_default()),
    }
}

/// Asks it to end by closing its standard input, and waits; kills it if it does not.
fn end(mut child: Child) {
    drop(child.stdin.take());
    let deadline = Instant::now() + END_TIMEOUT;
    while Instant::now() < deadline {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    // It may have ended meanwhile.
    let _ = child.kill();
    let _ = child.wait();
}
