//! A Kafka-protocol broker on loopback, for trying casestream out with nothing installed. One node; the log in memory
//! under a cap, with a journal on disk that survives SIGKILL; classic groups, static members, transactions,
//! read-committed, compaction. No TLS, no access control, no replication, no `fsync`, no retention by time, no group
//! protocol of KIP-848. `tests/conformance.rs` asks it and Apache Kafka the same questions; claims about production
//! rest on Apache Kafka alone. Next: `batch.rs`.

mod admin;
mod batch;
mod codes;
mod compact;
mod connection;
mod groups;
mod journal;
mod log;
mod membership;
mod records;
mod state;
mod transactions;
mod wire;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::net::TcpListener;
use tokio::sync::Notify;

use groups::Groups;
use state::State;

/// The only address it listens on.
pub const HOST: &str = "127.0.0.1";
/// Connections at a time; more wait to be accepted.
pub const CONNECTIONS_MAX: usize = 512;
/// Topics.
pub const TOPICS_MAX: usize = 1_000;
/// Partitions of all topics together.
pub const PARTITIONS_MAX: usize = 20_000;

/// How much it may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of all logs. Above it the largest logs lose their oldest records; compacted ones never do.
    pub memory_bytes_max: usize,
    /// Bytes of one partition that is not compacted, unless the topic's `retention.bytes` is less.
    pub partition_bytes_max: usize,
}

impl Limits {
    /// So many bytes for all logs; one of them may take a quarter.
    pub const fn within(memory_bytes_max: usize) -> Limits {
        Limits { memory_bytes_max, partition_bytes_max: memory_bytes_max / 4 }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits::within(1 << 30)
    }
}

/// What requests read and change.
struct Core {
    state: State,
    groups: Groups,
}

/// A running broker.
pub struct Broker {
    core: Mutex<Core>,
    /// There are new records, topics or stable offsets.
    changed: Notify,
    /// There may be an earlier deadline.
    due: Notify,
    port: u16,
}

impl Broker {
    /// Reads the journal of a directory, if one is given, and listens. Port 0 takes a free one.
    pub async fn start(dir: Option<&Path>, port: u16, limits: Limits) -> io::Result<Arc<Broker>> {
        let state = State::open(dir, limits)?;
        let listener = TcpListener::bind((HOST, port)).await;
        let listener =
            listener.map_err(|e| io::Error::new(e.kind(), format!("could not listen on {HOST}:{port}: {e}")))?;
        let port = listener.local_addr()?.port();
        let core = Mutex::new(Core { state, groups: Groups::new(now_ms() as u64) });
        let broker = Arc::new(Broker { core, changed: Notify::new(), due: Notify::new(), port });
        tokio::spawn(connection::accept(broker.clone(), listener));
        Ok(broker)
    }

    /// Where it listens.
    pub fn bootstrap(&self) -> String {
        format!("{HOST}:{}", self.port)
    }

    /// Does what is due until the journal cannot be written. Sleeps when there is nothing to do.
    pub async fn run(&self) -> io::Error {
        loop {
            let next = {
                let core = &mut *self.core();
                let now = Instant::now();
                core.groups.tick(now);
                if core.state.abort_overdue(now) {
                    core.state.flush();
                    self.changed.notify_waiters();
                }
                if let Some(failure) = core.state.failure.as_ref() {
                    return io::Error::new(failure.kind(), failure.to_string());
                }
                core.groups.next_due().into_iter().chain(core.state.next_overdue()).min()
            };
            match next {
                Some(next) => tokio::select! {
                    () = tokio::time::sleep_until(next.into()) => {}
                    () = self.due.notified() => {}
                },
                None => self.due.notified().await,
            }
        }
    }

    /// Whether nothing is acknowledged any more.
    fn has_failed(&self) -> bool {
        let failed = self.core().state.failure.is_some();
        if failed {
            self.due.notify_one();
        }
        failed
    }

    /// A request that panicked has changed nothing by halves that others rely on: events are applied one by one.
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
