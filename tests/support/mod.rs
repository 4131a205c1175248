//! Real parts for integration tests: an Apache Kafka broker and a Redis server of the test's own, on free loopback ports, with
//! their data in a temporary directory. Everything ends with the test process, however that ends (see `process`).
//!
//! It installs nothing (`scripts/install-services` does) and knows nothing of casestream.
//!
//! Use: `mod support;` in `tests/<name>.rs`. `Kafka::shared()` for most tests; `Kafka::start()` for those that kill the broker.

#![allow(dead_code, unused_imports, reason = "each test binary compiles this module and uses a part of it")]

mod devkit;
mod kafka;
mod process;
mod redis;
mod topics;

pub use devkit::Devkit;
pub use kafka::Kafka;
pub use process::{Process, Start};
pub use redis::Redis;
pub use topics::{Isolation, create_topics, read_all};

use std::net::TcpListener;
use std::time::{Duration, Instant};

/// Between two looks at a fact: short beside what is waited for, long beside the cost of a look.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks until there is an answer; panics with `what` when there is none in time.
pub fn wait_for<T>(what: &str, timeout: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(answer) = look() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {timeout:?} in vain for: {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Ports that were free a moment ago. All are held while the next is asked for, so they differ; that another process takes one
/// before its user does is possible, and `Start::AddressTaken` is the answer to it.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let held = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").expect("no free port on loopback"));
    held.map(|listener| listener.local_addr().expect("a bound listener has an address").port())
}
