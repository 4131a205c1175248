//! The machine's clock behind the `Clock` port. The only place of the worker that reads one.
//! Next: `telemetry.rs`.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::ports::Clock;
use crate::domain::Timestamp;

/// Wall clock and monotonic clock of this machine.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// A clock whose monotonic reading starts at zero now.
    pub fn new() -> SystemClock {
        SystemClock { started: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        // A clock before 1970 is a machine that has not set its time yet; 0 is then as good as any answer.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(since.as_millis() as i64)
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }

    fn wait(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_time_passes_while_waiting() {
        let clock = SystemClock::new();
        let before = clock.monotonic();
        clock.wait(Duration::from_millis(2));
        assert!(clock.monotonic() - before >= Duration::from_millis(2));
        assert!(clock.now() > Timestamp(1_700_000_000_000));
    }
}
