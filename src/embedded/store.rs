//! A Redis-protocol store on loopback: the crate `kevy`, one shard, with an append-only file written before a command
//! is answered, so that it survives SIGKILL. It runs the scripts of `runtime/redis_store.rs` as they are and answers
//! `noeviction`. Holds everything in memory, has no password.
//!
//! The append-only file holds calls of scripts by their hash and not the scripts. Those it is given at start are kept
//! beside the file and known again before it is read; what was written by another client's `EVALSHA` is lost in a
//! restart. Next: `devkit.rs`.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kevy::{Argv, KevyCommands, KeyspaceStore};
use kevy_persist::Fsync;
use kevy_rt::Runtime;

/// Connections at a time.
pub const CONNECTIONS_MAX: usize = 512;
/// The append-only file is rewritten when it has doubled, and is at least so large.
const REWRITE_BYTES_MIN: u64 = 32 << 20;
const REWRITE_GROWTH_PERCENT: u32 = 100;
/// How long it may take to read its file and listen.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Idle loops before the thread sleeps, how long it sleeps at most, looks at the clock, and its queue: asleep when
/// nothing is asked, since it shares two cores with the pipeline.
const SPINS: u32 = 0;
const PARK_MS: u32 = 500;
const TICK_EVERY: u32 = 256;
const RING: usize = 1_024;

/// A running store.
pub struct Store {
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Store {
    /// Reads what a directory holds and listens. Port 0 takes a free one. `scripts` are those that will be called.
    pub fn start(dir: &Path, port: u16, scripts: &[&str]) -> io::Result<Store> {
        teach(&dir.join("scripts"), scripts)
            .map_err(|e| io::Error::new(e.kind(), format!("could not keep scripts in {}: {e}", dir.display())))?;
        let port = free_port(port)?;
        let stop = Arc::new(AtomicBool::new(false));
        let runtime = Runtime::new([127, 0, 0, 1], port, 1, KevyCommands)
            .with_data_dir(dir)
            .with_max_clients(CONNECTIONS_MAX)
            .with_aof(true)
            .with_appendfsync(Fsync::Always)
            .with_auto_aof_rewrite(REWRITE_GROWTH_PERCENT, REWRITE_BYTES_MIN)
            .with_advanced(SPINS, PARK_MS, TICK_EVERY, RING);
        let until_stopped = stop.clone();
        let thread = std::thread::Builder::new().name("store".into()).spawn(move || runtime.run(until_stopped))?;
        let mut store = Store { port, stop, thread: Some(thread) };
        store.wait_until_ready()?;
        Ok(store)
    }

    /// For `redis.url`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<io::Error> {
        let thread = self.thread.take_if(|thread| thread.is_finished())?;
        Some(match thread.join() {
            Ok(Ok(())) => io::Error::other("the store ended"),
            Ok(Err(error)) => error,
            Err(_) => io::Error::other("the store panicked"),
        })
    }

    fn wait_until_ready(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(error) = self.ended() {
                return Err(io::Error::new(error.kind(), format!("could not start the store: {error}")));
            }
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the store did not start in time"));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // It ends within a park; that it failed before is of no interest any more.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Keeps scripts in a directory and loads all that were ever kept there: an older binary may have called others.
fn teach(dir: &Path, scripts: &[&str]) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for script in scripts {
        std::fs::write(dir.join(format!("{:08x}.lua", crc32c::crc32c(script.as_bytes()))), script)?;
    }
    // Scripts belong to the process, not to a keyspace.
    let mut nowhere = KeyspaceStore::new();
    for entry in std::fs::read_dir(dir)? {
        let code = std::fs::read(entry?.path())?;
        kevy::dispatch(&mut nowhere, &Argv::from(vec![b"SCRIPT".to_vec(), b"LOAD".to_vec(), code]));
    }
    Ok(())
}

/// The port if nobody has it, or one that nobody has.
pub fn free_port(port: u16) -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let listener =
        listener.map_err(|e| io::Error::new(e.kind(), format!("could not listen on 127.0.0.1:{port}: {e}")))?;
    Ok(listener.local_addr()?.port())
}
