//! `casestream bench`: measures on the configured cluster and prints what it found. The measuring is `bench/`'s.

use std::io::IsTerminal;

use super::output::table;
use super::{Exit, Failure, Global};
use crate::bench::report::{Machine, Method, Report};
use crate::bench::{self, Cluster, Error, Options};
use crate::config::Config;
use crate::runtime::ports::ErrorKind;

/// What is measured, and how much of it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to measure
    #[arg(value_enum)]
    pub what: What,
    /// Signals of a throughput run
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(i64).range(10_000..))]
    pub signals: i64,
    /// Users the signals are of
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub users: u64,
    /// Partitions of the topics; even, for the two-thread runs
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(i32).range(2..=64))]
    pub partitions: i32,
    /// Length of a latency run
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(5..=3_600))]
    pub seconds: u64,
    /// Signals per second of a latency run
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub rate: u64,
    /// Runs of each kind; the best counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// People whose state is measured
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(500..=100_000))]
    pub people: u32,
    /// Days of their ordinary activity
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=365))]
    pub days: u32,
    /// Write into a cluster that holds state
    #[arg(long)]
    pub yes: bool,
}

/// The measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// The bare consume-produce loop: what this cluster can do
    Ceiling,
    /// The fold alone, in memory, on one thread
    Engine,
    /// Kafka to Kafka and Redis, against the ceiling
    Pipeline,
    /// From produced to visible, against the bare loop
    Latency,
    /// Bytes per user, in memory and in Redis
    State,
    /// Everything
    All,
}

/// Measures and prints.
pub fn run(args: &Args, global: &Global) -> Result<Exit, Failure> {
    if args.partitions % 2 != 0 {
        return Err(Failure::new(Exit::Usage, "could not bench on an odd number of partitions: choose an even one"));
    }
    let (config, options) = (global.config()?, options(args));
    let mut report = Report { machine: Machine::here(), method: method(&config, &options), ..Report::default() };
    measure(args.what, &config, &options, &mut report).map_err(failure)?;
    report.machine.finish();
    report.judge();
    global.output.print(&report, |report| {
        table(&["figure", "value", "remark"], report.rows().into_iter().map(|row| row.to_vec()))
    })?;
    Ok(Exit::Ok)
}

fn measure(what: What, config: &Config, options: &Options, report: &mut Report) -> Result<(), Error> {
    let wants = |one| what == one || what == What::All;
    // First, while the process is small: what others have freed would hide its growth.
    if wants(What::State) {
        tell("state");
        report.state = Some(bench::state::run(config, options)?);
    }
    if wants(What::Engine) {
        tell("engine");
        report.engine = Some(bench::engine::run(config, options)?);
    }
    if !matches!(what, What::State | What::Engine) {
        on_cluster(what, &Cluster::of(config, options)?, options, report)?;
    }
    Ok(())
}

fn on_cluster(what: What, cluster: &Cluster, options: &Options, report: &mut Report) -> Result<(), Error> {
    let wants = |one| what == one || what == What::All;
    cluster.prepare(options)?;
    if what == What::Ceiling {
        tell("ceiling");
        report.ceiling = Some(bench::ceiling::run(cluster, options)?);
    }
    if wants(What::Pipeline) {
        tell("ceiling and pipeline");
        let (ceiling, pipeline) = bench::pipeline::run(cluster, options)?;
        report.ceiling = Some(ceiling);
        report.pipeline = Some(pipeline);
    }
    if wants(What::Latency) {
        tell("latency");
        report.latency = Some(bench::latency::run(cluster, options)?);
    }
    Ok(())
}

fn options(args: &Args) -> Options {
    Options {
        signals: args.signals,
        users: args.users,
        partitions: args.partitions,
        seconds: args.seconds,
        rounds: args.rounds,
        rate: args.rate,
        people: args.people,
        days: args.days,
        yes: args.yes,
    }
}

fn method(config: &Config, options: &Options) -> Method {
    Method {
        signals: options.signals,
        users: options.users,
        partitions: options.partitions,
        seconds: options.seconds,
        rounds: options.rounds,
        batch_records_max: config.engine.batch_records_max,
        batch_ms_max: config.engine.batch_ms_max,
    }
}

/// Progress, for people only.
fn tell(what: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("measuring {what} ...");
    }
}

fn failure(error: Error) -> Failure {
    let exit = match &error {
        Error::Port(error) if error.kind == ErrorKind::Fenced => Exit::Fenced,
        Error::Port(_) => Exit::Dependency,
        Error::NotFresh | Error::Encode(_) | Error::Failed { .. } => Exit::Failure,
    };
    Failure::new(exit, error.to_string())
}
