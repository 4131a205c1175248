//! `casestream demo`: the whole product with nothing installed. Broker and store in one child process, map and engine in
//! another, a generated month through both, what came of it, and then events until a signal ends everything.
//! Steps only; what each is stands in the files below. Next: `demo/place.rs`.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

mod error;
mod feed;
mod place;
mod standing;
mod tell;
mod worker;

use error::Error;
use feed::Flow;
use place::{Place, Setting};
use standing::{Reader, Standing};
use worker::Supervisor;

use super::{Exit, Failure, Global, Output};
use crate::config::Config;
use crate::domain::Timestamp;
use crate::embedded::Devkit;
use crate::embedded::devkit::Options;
use crate::generate::{Population, Truth, truth};
use crate::runtime::clock::SystemClock;
use crate::runtime::overview::{Overview, PartitionLine};
use crate::runtime::ports::Clock;
use crate::runtime::telemetry::{self, LogFormat};
use crate::runtime::trace::Tracer;
use crate::verify::Report;
use crate::wire::avro::Schemas;
use crate::wire::mapping::identity::Pseudonym;

const USERS: u32 = 500;
const DAYS: u32 = 30;
const SEED: u64 = 1;
/// People of a demo: more belong on a real broker.
const USERS_MAX: u32 = 20_000;
/// Verifications before a difference is believed.
const VERIFY_ATTEMPTS_MAX: u32 = 3;
/// People shown as the riskiest.
const SHOWN: usize = 3;
/// Vendor events looked for until one is found.
const TRACED_MAX: usize = 3;
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often the topics are asked how far the pipeline is.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How long a process may take to end after what it causes is noticed.
const BLAME_AFTER: Duration = Duration::from_millis(500);
/// How long the pipeline may take for what is in the topics, without getting on.
const STUCK_AFTER: Duration = Duration::from_secs(120);

/// What the demo is made of.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// People [default: 500]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=i64::from(USERS_MAX)))]
    users: Option<u32>,
    /// Days of activity [default: 30]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=30))]
    days: Option<u32>,
    /// Everything generated follows from it [default: 1]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Start over instead of continuing
    #[arg(long)]
    fresh: bool,
    /// End by itself so long after the start, for example 30s or 5m; never before the month is through
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    time: Option<Duration>,
    /// Vendor events per second once the month is through
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rate: u32,
    /// Directory of the demo, which the next start continues
    #[arg(long, value_name = "DIR", default_value = ".casestream-demo")]
    dir: PathBuf,
    /// Port of the broker, on 127.0.0.1; 0 takes a free one
    #[arg(long, value_name = "P", default_value_t = 0)]
    kafka_port: u16,
    /// Port of the store, on 127.0.0.1; 0 takes a free one
    #[arg(long, value_name = "P", default_value_t = 0)]
    redis_port: u16,
    /// Memory for the logs of all topics, in MiB; then the oldest records go
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(64..=65_536))]
    memory: u32,
}

/// Reads "30s", "5m" or "2h".
fn duration(text: &str) -> Result<Duration, String> {
    let unit = text.chars().last().map(|unit| (unit, [('s', 1), ('m', 60), ('h', 3_600)]));
    let seconds = unit.and_then(|(unit, units)| units.into_iter().find(|(name, _)| *name == unit));
    let number = seconds.and_then(|(unit, seconds)| Some((text.strip_suffix(unit)?.parse::<u32>().ok()?, seconds)));
    let (number, seconds) = number.ok_or("use a number with s, m or h, such as 30s")?;
    Ok(Duration::from_secs(u64::from(number) * seconds))
}

/// Runs the command.
pub fn run(args: &Args, global: &Global) -> Result<Exit, Failure> {
    telemetry::init_logs(LogFormat::Text, "error");
    let began = Instant::now();
    let stop = stop_on_signal()?;
    let place = Place::take(&args.dir)?;
    let (setting, is_new) = setting(args, &place)?;
    let population =
        Population::new(&setting.population()).map_err(|e| Failure::new(Exit::Usage, format!("{e} ({})", e.code())))?;
    let mut demo = Demo::start(args, global.output, place, (population, is_new), stop)?;
    let deadline = args.time.map(|time| began + time);
    let outcome = demo.live(args.rate, is_new.then_some(setting), deadline);
    let outcome = outcome.map_err(|failure| demo.blame(failure));
    // Nothing runs any more when the answer is read.
    drop(demo);
    let Some(standing) = outcome? else {
        // A reader of JSON has no document.
        return Ok(if global.output == Output::Json { Exit::Failure } else { Exit::Ok });
    };
    global.output.print(&standing, tell::end)?;
    Ok(if standing.differences == 0 { Exit::Ok } else { Exit::Failure })
}

/// Ctrl-C, SIGTERM or a closed terminal asks for an orderly end; the second of them leaves at once, and the children
/// notice by themselves.
fn stop_on_signal() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut signals = {
        let _entered = runtime.enter();
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal)
    };
    for outcome in &mut signals {
        if let Err(error) = outcome {
            return Err(Failure::new(Exit::Failure, format!("could not listen to signals: {error}")));
        }
    }
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = signals else { return };
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
                if flag.swap(true, Ordering::Relaxed) {
                    std::process::exit(Exit::Failure as i32);
                }
            }
        });
    })?;
    Ok(stop)
}

/// What to make, or what was made here before; and whether it is to be made.
fn setting(args: &Args, place: &Place) -> Result<(Setting, bool), Failure> {
    let new = Setting::new(
        args.seed.unwrap_or(SEED),
        args.users.unwrap_or(USERS),
        args.days.unwrap_or(DAYS),
        SystemClock::new().now(),
    );
    match place.setting().filter(|_| !args.fresh) {
        Some(kept) => {
            let differs = args.seed.is_some_and(|n| n != kept.seed)
                || args.users.is_some_and(|n| n != kept.users)
                || args.days.is_some_and(|n| n != kept.days);
            if differs {
                return Err(Error::Other { dir: args.dir.clone(), was: kept.text() }.into());
            }
            Ok((kept, false))
        }
        None => {
            place.clear()?;
            place.keep(&new)?;
            Ok((new, true))
        }
    }
}

/// Everything that runs. Fields are dropped in order: the worker ends before its broker, the lock is the last to go.
struct Demo {
    worker: Supervisor,
    devkit: Devkit,
    config: Config,
    population: Arc<Population>,
    commands: tell::Commands,
    output: Output,
    stop: Arc<AtomicBool>,
    began: Instant,
    place: Place,
}

impl Demo {
    fn start(
        args: &Args,
        output: Output,
        place: Place,
        (population, is_new): (Population, bool),
        stop: Arc<AtomicBool>,
    ) -> Result<Demo, Failure> {
        let began = Instant::now();
        let devkit = start_devkit(args, &place)?;
        place.configure(&devkit.bootstrap, &devkit.redis_url)?;
        let config = feed::config_of(&place.config())?;
        super::topics::apply(&config)?;
        if is_new {
            feed::directory(&config, &population)?;
        }
        // Said on stderr: it may come at any time, and stdout may be one JSON document.
        let worker = Supervisor::start(&place.config(), &place.log(), |what| eprintln!("{what}"))?;
        let commands = tell::Commands::new(place.config_shown(), devkit.bootstrap.clone());
        let population = Arc::new(population);
        let demo = Demo { worker, devkit, config, population, commands, output, stop, began, place };
        demo.say(&tell::beginning(&demo.summary(), &demo.devkit.limits));
        Ok(demo)
    }

    /// The month, if it is still to be made, what came of it, and events until the deadline; what stands then. Nothing
    /// when a signal came first.
    fn live(
        &mut self,
        rate: u32,
        month: Option<Setting>,
        deadline: Option<Instant>,
    ) -> Result<Option<Standing>, Failure> {
        match month {
            Some(setting) => self.feed_month(setting)?,
            None => self.continue_it()?,
        }
        if self.output == Output::Table && !self.is_stopping() {
            self.tell(rate)?;
        }
        // Whoever wants one document and names no time has it as soon as there is something to say.
        let at_once = self.output == Output::Json && deadline.is_none();
        if !at_once {
            self.flow(rate, deadline)?;
        }
        if self.is_stopping() {
            self.say("stopping; the next start continues here");
            return Ok(None);
        }
        self.verified_standing().map(Some)
    }

    /// The cause behind a failure: when the broker is gone, that nothing can be asked any more says little.
    fn blame(&mut self, failure: Failure) -> Failure {
        self.pause(BLAME_AFTER);
        self.look_after().err().unwrap_or(failure)
    }

    fn summary(&self) -> String {
        let config = self.population.config();
        format!(
            "demo: {} people, {} days, three vendors, seed {}; worker {} in {}",
            config.users,
            config.days,
            config.seed,
            self.worker.pid(),
            self.place.config_shown().parent().unwrap_or(std::path::Path::new(".")).display(),
        )
    }

    /// Words for people; a JSON reader wants the document alone.
    fn say(&self, text: &str) {
        if self.output == Output::Table {
            // A closed terminal is no reason to leave children behind.
            let _ = self.output.print(&(), |()| text.to_owned());
        }
    }

    fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Fails when a process of ours is gone for good.
    fn look_after(&mut self) -> Result<(), Failure> {
        if let Some(error) = self.worker.failure() {
            return Err(error.into());
        }
        match self.devkit.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(Error::Devkit { cause: format!("it ended with {status}") }.into()),
            Err(cause) => Err(Error::Devkit { cause: cause.to_string() }.into()),
        }
    }

    /// Puts the month into the raw topics, while the worker takes it out of them.
    fn feed_month(&mut self, mut setting: Setting) -> Result<(), Failure> {
        let began = Instant::now();
        let flow = Flow::month(self.config.clone(), self.population.clone())?;
        self.wait_until_drained(Some(&flow))?;
        let sent = flow.sent();
        flow.finish()?;
        if !self.is_stopping() {
            setting.is_fed = true;
            self.place.keep(&setting)?;
            let seconds = began.elapsed().as_secs_f64();
            self.say(&format!("{sent} vendor events generated, mapped and scored in {seconds:.1} s\n"));
        }
        Ok(())
    }

    /// Takes up what an earlier start has left.
    fn continue_it(&mut self) -> Result<(), Failure> {
        self.wait_until_drained(None)?;
        self.say(&format!("continued after {:.1} s; --fresh starts over\n", self.began.elapsed().as_secs_f64()));
        Ok(())
    }

    /// Waits until everything is through map, engine and copy, or a signal came.
    fn wait_until_drained(&mut self, flow: Option<&Flow>) -> Result<(), Failure> {
        let bar = progress_bar();
        let (mut last, mut moved) = (0, Instant::now());
        while !self.is_stopping() {
            self.look_after()?;
            // Asked before the topics are: what is sent after that is not in them.
            let is_sent = flow.is_none_or(Flow::is_done);
            let overview = Reader::new(&self.config)?.overview()?;
            let taken = overview.map.ledger.get("in").copied().unwrap_or(0);
            let through = taken + overview.engine.ledger.get("in").copied().unwrap_or(0);
            bar.set_length((through + overview.lag).unsigned_abs());
            bar.set_position(through.unsigned_abs());
            if is_sent && is_drained(&overview, self.worker.since()) {
                break;
            }
            if through != last {
                (last, moved) = (through, Instant::now());
            } else if moved.elapsed() > STUCK_AFTER {
                let cause = format!("nothing happened for {} s, lag {}", STUCK_AFTER.as_secs(), overview.lag);
                return Err(Error::Worker { cause, log: self.place.log() }.into());
            }
            self.pause(ASK_EVERY);
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until && !self.is_stopping() {
            std::thread::sleep(LOOK_EVERY.min(time));
        }
    }

    /// What came of the month, and what to try.
    fn tell(&mut self, rate: u32) -> Result<(), Failure> {
        let reader = Reader::new(&self.config)?;
        let (standing, scores) = reader.standing()?;
        let pseudonym = self.pseudonym()?;
        let suspects = reader.suspects(&self.population, &pseudonym, &scores[..scores.len().min(SHOWN)])?;
        let user = suspects.first().map_or("USER", |suspect| suspect.name.as_str());
        let facts = truth(&self.population);
        let planted = |t: &Truth| format!("{} ({})", t.canonical_id, tell::scenario(t.scenario));
        let insiders: Vec<String> = facts.iter().filter(|t| t.harmful).map(planted).collect();
        let ids = facts.iter().filter(|t| t.canonical_id == user).chain(&facts);
        let record = self.raw_record(ids.flat_map(|t| t.harmful_event_ids.last()))?;
        // Verification takes longer than all of this, so it is waited for with something to read.
        self.say(&tell::month(&standing, &suspects, &insiders));
        let report = self.verify()?;
        self.say(&format!("\n{}\n", tell::verification(&report)));
        self.say(&tell::next(&self.commands, user, &record, self.worker.pid(), rate));
        Ok(())
    }

    fn pseudonym(&self) -> Result<Pseudonym, Failure> {
        Ok(super::pseudonym::configured(&self.config)?.expect("the demo's configuration names a key"))
    }

    /// Where the first of these vendor events stands that is found.
    fn raw_record<'a>(&self, ids: impl Iterator<Item = &'a String>) -> Result<String, Failure> {
        let key = self.config.identity.key()?;
        let key = key.as_ref().map(|key| key.expose().trim().as_bytes());
        let connection = super::connection(&self.config)?;
        for id in ids.take(TRACED_MAX) {
            let steps = Tracer::new(&self.config, &connection, &Schemas::built_in(), key)?.run(id)?.steps;
            if let Some(raw) = steps.into_iter().find(|step| step.stage == "raw").and_then(|step| step.coordinate) {
                return Ok(raw);
            }
        }
        Ok("raw.code42:0:0".to_owned())
    }

    /// Lets events flow until the deadline or a signal.
    fn flow(&mut self, rate: u32, deadline: Option<Instant>) -> Result<(), Failure> {
        let is_over = |stop: bool| stop || deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if is_over(self.is_stopping()) {
            return Ok(());
        }
        let flow = Flow::live(self.config.clone(), self.population.clone(), rate)?;
        while !is_over(self.is_stopping()) {
            self.look_after()?;
            if flow.is_done() {
                break;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        flow.finish()
    }

    /// Verifies with nothing under way. A timer may still write meanwhile, and the copy takes a moment to follow: a
    /// difference that is one is there the next time, too.
    fn verify(&mut self) -> Result<Report, Failure> {
        let mut report = Report::default();
        for _ in 0..VERIFY_ATTEMPTS_MAX {
            self.wait_until_drained(None)?;
            report = super::verify::report(&self.config, false, |_, _| {})?;
            if report.differences == 0 {
                break;
            }
        }
        Ok(report)
    }

    fn verified_standing(&mut self) -> Result<Standing, Failure> {
        let report = self.verify()?;
        let (mut standing, _) = Reader::new(&self.config)?.standing()?;
        standing.verified_by(&report);
        Ok(standing)
    }
}

/// A demo that was killed leaves its broker a moment: it ends by itself, and until then it holds the directory.
fn start_devkit(args: &Args, place: &Place) -> Result<Devkit, Failure> {
    for (name, port) in [("kafka", args.kafka_port), ("redis", args.redis_port)] {
        if port != 0 {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|cause| Error::Port { name, port, cause })?;
        }
    }
    let options = Options {
        kafka_port: args.kafka_port,
        redis_port: args.redis_port,
        dir: place.data(),
        memory_bytes_max: Some((args.memory as usize) << 20),
        scripts: Vec::new(),
    };
    let binary = std::env::current_exe()?;
    Ok(Devkit::spawn_with(&binary, &options).map_err(|cause| Error::Devkit { cause: cause.to_string() })?)
}

/// Nothing lags, in the topics and in the copy, and it is this worker that says so.
fn is_drained(overview: &Overview, since: Timestamp) -> bool {
    let copied = |p: &PartitionLine| {
        p.copy.as_ref().is_none_or(|copy| copy.behind == 0 && !copy.rebuilding && copy.error.is_none())
    };
    let running = |p: &PartitionLine| p.state == "running" && p.as_of.is_some_and(|at| at >= since);
    overview.lag == 0 && overview.balanced && overview.partitions.iter().all(|p| copied(p) && running(p))
}

/// On a terminal only.
fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    let style =
        ProgressStyle::with_template("{bar:40} {human_pos} of {human_len} records mapped and scored, {elapsed}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        for (text, seconds) in [("30s", 30), ("5m", 300), ("2h", 7_200), ("0s", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)));
        }
        for bad in ["", "30", "s", "-1s", "1.5m", "1d", "1é"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
