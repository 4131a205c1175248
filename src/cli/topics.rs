//! `casestream topics plan|apply`: the topology against the cluster. `apply` also installs the first policy set.

use std::sync::Arc;

use serde::Serialize;

use super::output::table;
use super::{Exit, Failure, Global, check, lines};
use crate::config::Config;
use crate::policies;
use crate::runtime::admin::{Admin, Finding, Step};
use crate::runtime::clock::SystemClock;
use crate::runtime::first_policies::{Installed, Installer};
use crate::runtime::log::KafkaLog;
use crate::runtime::ports;
use crate::runtime::transaction::KafkaProducer;

/// What to do with topics.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Show what differs between the topology and the cluster
    Plan,
    /// Create and set topics as planned, and install the first policy set
    Apply,
}

/// The answer.
#[derive(Debug, Default, Serialize)]
struct Answer {
    /// What differed before anything was done.
    steps: Vec<Line>,
    /// Whether the steps were carried out.
    applied: bool,
    policies: Option<Policies>,
}

#[derive(Debug, Serialize)]
struct Line {
    topic: String,
    /// missing, partitions or config.
    finding: &'static str,
    can_apply: bool,
    remedy: String,
}

#[derive(Debug, Serialize)]
struct Policies {
    /// The set in the files of this process.
    files: String,
    /// Whether it was published now.
    published: bool,
    /// Partitions that were put under a set now.
    switched: Vec<i32>,
    /// Sets in force, each with its number of partitions.
    in_force: std::collections::BTreeMap<String, usize>,
}

/// Runs the command.
pub fn run(command: &Command, global: &Global) -> Result<Exit, Failure> {
    let config = global.config()?;
    let answer = carry_out(&config, matches!(command, Command::Apply))?;
    global.output.print(&answer, text)?;
    Ok(if answer.is_possible() { Exit::Ok } else { Exit::Failure })
}

/// The same as `topics apply`, without an answer; what cannot be applied is a failure.
#[cfg(all(feature = "embedded", feature = "vrl"))]
pub(super) fn apply(config: &Config) -> Result<(), Failure> {
    let answer = carry_out(config, true)?;
    if answer.is_possible() { Ok(()) } else { Err(Failure::new(Exit::Failure, text(&answer))) }
}

fn carry_out(config: &Config, apply: bool) -> Result<Answer, Failure> {
    let admin = Admin::new(&super::connection(config)?)?;
    let raw: Vec<&str> = config.map.sources.iter().map(|s| s.topic.as_str()).collect();
    let plan = admin.plan(config.kafka.partitions, &raw).map_err(|error| unreachable(config, error))?;
    let mut answer = Answer { steps: plan.steps.iter().map(line).collect(), ..Answer::default() };
    if apply && answer.is_possible() {
        // Policies are compiled before anything is created: a broken file must not leave half an installation.
        let files = check::files(&config.policies.dir).map_err(broken)?;
        let set = policies::compile(&files).map_err(broken)?;
        admin.apply(&plan, config.kafka.replication)?;
        let installed = install(config, &files)?;
        if let Some(pseudonym) = super::pseudonym::configured(config)? {
            let schemas = super::schemas(config, Arc::new(SystemClock::new()))?;
            super::pseudonym::settle(config, &schemas, &pseudonym)?;
        }
        answer.applied = true;
        answer.policies = Some(describe(set.hash, installed));
    }
    Ok(answer)
}

impl Answer {
    /// Whether every difference can be done away with.
    fn is_possible(&self) -> bool {
        self.steps.iter().all(|step| step.can_apply)
    }
}

/// The first call: most likely the address is wrong or nothing listens there.
fn unreachable(config: &Config, error: ports::Error) -> Failure {
    let mut failure = Failure::from(error);
    let servers = &config.kafka.bootstrap_servers;
    failure.message +=
        &format!("\n  fix: see that kafka.bootstrap_servers ({servers}) is right and a broker answers there");
    failure
}

fn broken(problems: Vec<policies::Problem>) -> Failure {
    Failure::new(Exit::Config, lines(&problems))
}

fn install(config: &Config, files: &policies::Files) -> Result<Installed, Failure> {
    let clock = SystemClock::new();
    let schemas = super::schemas(config, Arc::new(clock))?;
    let connection = super::connection(config)?;
    let mut log = KafkaLog::new(&connection, format!("{}-topics", config.app.id))?;
    let mut producer = KafkaProducer::new(&connection)?;
    let mut installer = Installer::new(&mut log, &mut producer, &clock, &schemas, config.kafka.partitions);
    Ok(installer.install(&files.to_record())?)
}

fn describe(files: String, installed: Installed) -> Policies {
    let mut in_force = std::collections::BTreeMap::new();
    for set in installed.sets.into_values() {
        *in_force.entry(set).or_default() += 1;
    }
    Policies { files, published: installed.published, switched: installed.switched, in_force }
}

fn line(step: &Step) -> Line {
    let finding = match step.finding {
        Finding::Missing { .. } => "missing",
        Finding::Partitions { .. } => "partitions",
        Finding::Config { .. } => "config",
    };
    Line { topic: step.topic.clone(), finding, can_apply: step.can_apply(), remedy: step.remedy() }
}

fn text(answer: &Answer) -> String {
    let mut parts = Vec::new();
    if answer.steps.is_empty() {
        parts.push("topics are as the topology wants them".to_owned());
    } else {
        let rows = answer.steps.iter().map(|s| vec![s.topic.clone(), s.finding.into(), s.remedy.clone()]);
        parts.push(table(&["topic", "finding", "remedy"], rows));
    }
    if answer.steps.iter().any(|s| !s.can_apply) {
        parts.push("nothing was changed: see the remedy of `partitions`".to_owned());
    } else if answer.applied && !answer.steps.is_empty() {
        parts.push("done".to_owned());
    }
    if let Some(policies) = &answer.policies {
        parts.push(policies_text(policies));
    }
    parts.join("\n\n")
}

fn policies_text(policies: &Policies) -> String {
    let mut lines: Vec<String> =
        policies.in_force.iter().map(|(set, count)| format!("policy set {set} on {count} partitions")).collect();
    if !policies.switched.is_empty() {
        lines.push(format!("{} partitions were put under it now", policies.switched.len()));
    }
    if !policies.in_force.contains_key(&policies.files) {
        lines.push(format!("the files are another set, {}: partitions keep theirs until a switch", policies.files));
    }
    lines.join("\n")
}
