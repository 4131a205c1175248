//! What flows into the demo: the people and their month as fast as it goes, then events of now at a low rate.
//! Next: `standing.rs`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cli::Failure;
use crate::cli::generate::Feed;
use crate::config::Config;
use crate::generate::{Live, Population, events};
use crate::runtime::clock::SystemClock;
use crate::runtime::ports::Clock;

/// Longest time without a look whether to stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often what was sent is waited for.
const FLUSH_EVERY: Duration = Duration::from_millis(500);

/// Writes who there is.
pub fn directory(config: &Config, population: &Population) -> Result<(), Failure> {
    Feed::new(config, 0)?.directory(population)
}

/// A feed in a thread of its own.
pub struct Flow {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), Failure>>,
}

impl Flow {
    /// The whole month.
    pub fn month(config: Config, population: Arc<Population>) -> std::io::Result<Flow> {
        Flow::spawn("month", move |sent, stop| {
            let mut feed = Feed::new(&config, 0)?;
            for event in events(&population) {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                feed.event(&event)?;
                sent.fetch_add(1, Ordering::Relaxed);
            }
            feed.flush()
        })
    }

    /// Events of now, so many a second, until it is stopped.
    pub fn live(config: Config, population: Arc<Population>, rate: u32) -> std::io::Result<Flow> {
        Flow::spawn("live", move |sent, stop| {
            let (mut feed, clock) = (Feed::new(&config, 0)?, SystemClock::new());
            let mut live = Live::new(&population, clock.now());
            let (began, mut flushed) = (Instant::now(), Instant::now());
            while !stop.load(Ordering::Relaxed) {
                let count = sent.load(Ordering::Relaxed);
                let due = Duration::from_secs_f64((count + 1) as f64 / f64::from(rate));
                let early = due.saturating_sub(began.elapsed());
                if early.is_zero() {
                    feed.event(&live.event(clock.now()))?;
                    sent.store(count + 1, Ordering::Relaxed);
                }
                if flushed.elapsed() >= FLUSH_EVERY {
                    feed.flush()?;
                    flushed = Instant::now();
                }
                std::thread::sleep(early.min(LOOK_EVERY));
            }
            feed.flush()
        })
    }

    fn spawn(
        name: &str,
        run: impl FnOnce(&AtomicU64, &AtomicBool) -> Result<(), Failure> + Send + 'static,
    ) -> std::io::Result<Flow> {
        let (sent, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (its_sent, its_stop) = (sent.clone(), stop.clone());
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || run(&its_sent, &its_stop))?;
        Ok(Flow { sent, stop, thread })
    }

    /// Events sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Whether it has sent everything, or failed.
    pub fn is_done(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends it; everything sent is delivered then.
    pub fn finish(self) -> Result<(), Failure> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| Err(Failure::new(crate::cli::Exit::Failure, "the feed panicked")))
    }
}

/// The configuration in a file, and nothing of the shell's environment.
pub fn config_of(path: &Path) -> Result<Config, Failure> {
    use crate::config::Layers;
    let layers = Layers { environment: Vec::new(), ..Layers::of_process(Some(path), &[])? };
    Config::load(&layers).map_err(|problems| Failure::new(crate::cli::Exit::Config, crate::cli::lines(&problems)))
}
