//! The command line: what is common to all commands. One variant of `Command` and one file below `cli/` per command;
//! no command holds logic that a library caller could want. Next: `check.rs`, the shortest command.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{Config, Layers};
use crate::runtime::client::Connection;
use crate::runtime::ports::{self, Clock, ErrorKind};
use crate::runtime::registry::{self, Registry};
use crate::wire::avro::Schemas;

pub mod bench;
pub mod check;
#[cfg(all(feature = "embedded", feature = "vrl"))]
pub mod demo;
#[cfg(feature = "embedded")]
pub mod devkit;
pub mod dlq;
pub mod explain;
pub mod generate;
pub mod output;
pub mod policy;
pub mod produce;
pub mod pseudonym;
pub mod run;
pub mod status;
pub mod topics;
pub mod trace;
pub mod verify;

pub use output::Output;

/// The commands `--help` shows; the others are under `--help all`.
const EVERYDAY: [&str; 6] = ["demo", "run", "check", "status", "explain", "trace"];

/// How a command ends, as the process's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Ok = 0,
    /// The command did its work and the answer is no, or it could not do its work.
    Failure = 1,
    Usage = 2,
    /// Configuration, policies or mappings are wrong.
    Config = 3,
    /// Kafka, Redis or the registry did not answer.
    Dependency = 4,
    /// Another process has the same ordinal.
    Fenced = 5,
}

/// Why a command could not end well.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    /// Printed to stderr.
    pub message: String,
}

impl Failure {
    /// A failure with its exit code.
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: message.into() }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::new(Exit::Failure, format!("could not write the answer: {error}"))
    }
}

impl From<ports::Error> for Failure {
    fn from(error: ports::Error) -> Failure {
        let exit = match error.kind {
            ErrorKind::Fenced => Exit::Fenced,
            ErrorKind::TooLarge => Exit::Failure,
            _ => Exit::Dependency,
        };
        Failure::new(exit, error.to_string())
    }
}

impl From<crate::config::Problem> for Failure {
    fn from(problem: crate::config::Problem) -> Failure {
        Failure::new(Exit::Config, problem.to_string())
    }
}

/// Turns policy risk signals from Kafka into risk scores, alerts and a chronology per user, exactly once.
#[derive(Parser)]
#[command(name = "casestream", version, arg_required_else_help = true, disable_help_subcommand = true)]
#[command(after_help = "More commands: casestream --help all\n\
    Exit codes: 0 ok, 1 failure, 2 usage, 3 configuration, 4 dependency, 5 fenced")]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command. Not printable: `--set` may hold secrets.
#[derive(clap::Args)]
pub struct Global {
    /// Configuration file [default: casestream.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE", env = "CASESTREAM_CONFIG", hide_env = true)]
    pub config: Option<PathBuf>,
    /// Sets one configuration value; may be repeated
    #[arg(long, global = true, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// How the answer is printed
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the whole product on this machine: a generated month of activity, scored, with nothing installed
    #[cfg(all(feature = "embedded", feature = "vrl"))]
    Demo(demo::Args),
    /// Run the roles of one process until it is told to stop
    Run(run::Args),
    /// Check configuration, policies and mappings, and print everything that is wrong
    Check(check::Args),
    /// Show whether it runs, how far it is behind, and whether every record is accounted for
    Status(status::Args),
    /// Take a user's score apart, and say what would change it
    Explain(explain::Args),
    /// Follow one record to its alert, or to where and why it stopped
    Trace(trace::Args),
    /// Plan or create the topics, and install the first policy set
    #[command(subcommand)]
    Topics(topics::Command),
    /// Show policies
    #[command(subcommand)]
    Policy(policy::Command),
    /// Show what was refused, why, and the original bytes
    #[command(subcommand)]
    Dlq(dlq::Command),
    /// Measure throughput, latency and state on the configured cluster
    Bench(bench::Args),
    /// Replay the journal over the retained input and compare every output, the state and Redis
    Verify(verify::Args),
    /// Write a seeded population's activity, with the truth beside it
    Generate(generate::Args),
    /// Write vendor events of your own to the topic of a source
    Produce(produce::Args),
    /// Run a small broker and store of our own on this machine, for trying out
    #[cfg(feature = "embedded")]
    Devkit(devkit::Args),
}

impl Command {
    fn run(&self, global: &Global) -> Result<Exit, Failure> {
        match self {
            #[cfg(all(feature = "embedded", feature = "vrl"))]
            Command::Demo(args) => demo::run(args, global),
            Command::Run(args) => run::run(args, global),
            Command::Check(args) => check::run(args, global),
            Command::Status(args) => status::run(args, global),
            Command::Explain(args) => explain::run(args, global),
            Command::Trace(args) => trace::run(args, global),
            Command::Topics(command) => topics::run(command, global),
            Command::Policy(command) => policy::run(command, global),
            Command::Dlq(command) => dlq::run(command, global),
            Command::Bench(args) => bench::run(args, global),
            Command::Verify(args) => verify::run(args, global),
            Command::Generate(args) => generate::run(args, global),
            Command::Produce(args) => produce::run(args, global),
            #[cfg(feature = "embedded")]
            Command::Devkit(args) => devkit::run(args, global),
        }
    }
}

impl Global {
    /// The configuration; every problem is one failure.
    pub fn config(&self) -> Result<Config, Failure> {
        let problems = match Layers::of_process(self.config.as_deref(), &self.set) {
            Ok(layers) => match Config::load(&layers) {
                Ok(config) => return Ok(config),
                Err(problems) => problems,
            },
            Err(problem) => vec![problem],
        };
        Err(Failure::new(Exit::Config, lines(&problems)))
    }
}

/// How to reach the configured cluster.
pub fn connection(config: &Config) -> Result<Connection, Failure> {
    let mut settings = config.kafka.client_settings()?;
    let bootstrap = settings.remove("bootstrap.servers").unwrap_or_default();
    Ok(Connection { bootstrap, properties: settings.into_iter().collect() })
}

/// Schemas and ids: the configured registry's, or the built-in ones.
pub fn schemas(config: &Config, clock: Arc<dyn Clock + Send + Sync>) -> Result<Arc<Schemas>, Failure> {
    if config.registry.url.is_empty() {
        return Ok(Schemas::built_in());
    }
    let optional = |text: &String| (!text.is_empty()).then(|| text.clone());
    let settings = registry::Settings {
        url: config.registry.url.expose().to_owned(),
        username: optional(&config.registry.username),
        password_file: optional(&config.registry.password_file).map(Into::into),
    };
    let lookup = Registry::new(&settings, clock).map_err(|e| Failure::new(Exit::Config, e.to_string()))?;
    Schemas::with_registry(lookup).map_err(|e| Failure::new(Exit::Dependency, e.to_string()))
}

/// One text of several problems.
pub fn lines<T: ToString>(problems: &[T]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// The parser as users see it. `all` shows every command.
pub fn parser(all: bool) -> clap::Command {
    Cli::command().mut_subcommands(|command| {
        let hidden = !all && !EVERYDAY.contains(&command.get_name());
        command.hide(hidden)
    })
}

/// The process: arguments in, exit code out.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    ExitCode::from(run(&arguments) as u8)
}

/// Runs one command line; the first argument is the program's name.
pub fn run(arguments: &[OsString]) -> Exit {
    let all = arguments.len() == 3 && (arguments[1] == "--help" || arguments[1] == "-h") && arguments[2] == "all";
    let asked = if all { &arguments[..2] } else { arguments };
    let parsed = parser(all).try_get_matches_from(asked).and_then(|m| Cli::from_arg_matches(&m));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to tell when even this cannot be printed.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Ok };
        }
    };
    match cli.command.run(&cli.global) {
        Ok(exit) => exit,
        Err(failure) => {
            eprintln!("{}", failure.message);
            failure.exit
        }
    }
}
