//! `casestream check`: is what this process would start with valid? Reads files only; asks no broker.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::output::table;
use super::policy::status_word;
use super::{Exit, Failure, Global};
use crate::config::{self, Config, Layers};
use crate::domain::{Day, Timestamp};
use crate::policies::{self, Compiled, Files};
use crate::runtime::policy_tests;

mod mappings;

/// No arguments of its own.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// The answer.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub ok: bool,
    pub policy_set: Option<String>,
    pub indicators: usize,
    pub policies: Vec<PolicyLine>,
    /// Tests that the policy files carry; those that fail are problems.
    pub tests: usize,
    pub mappings: Vec<MappingLine>,
    pub warnings: Vec<String>,
    pub problems: Vec<ProblemLine>,
}

/// A policy in the answer.
#[derive(Debug, Serialize)]
pub struct PolicyLine {
    pub id: String,
    pub version: String,
    pub status: &'static str,
    pub review_by: String,
}

/// The mapping of a configured source in the answer.
#[derive(Debug, Serialize)]
pub struct MappingLine {
    pub source: String,
    pub topic: String,
    /// `id@hash`.
    pub mapping: String,
    /// Examples beside the mapping.
    pub examples: usize,
}

/// A problem in the answer.
#[derive(Debug, Serialize)]
pub struct ProblemLine {
    /// File, environment variable or option.
    pub origin: String,
    /// 0 when the origin as a whole is meant.
    pub line: usize,
    pub column: usize,
    /// Configuration key, empty for a policy file.
    pub key: String,
    pub message: String,
    pub fix: String,
    /// As people read it.
    #[serde(skip)]
    text: String,
}

impl ProblemLine {
    fn of_file(file: &str, message: &str, fix: &str) -> ProblemLine {
        of_policies(&policies::Problem::of_file(file, message, fix))
    }
}

/// Checks everything and prints everything.
pub fn run(_: &Args, global: &Global) -> Result<Exit, Failure> {
    let mut report = Report::default();
    let config = match Layers::of_process(global.config.as_deref(), &global.set) {
        Ok(layers) => Config::load(&layers),
        Err(problem) => Err(vec![problem]),
    };
    // Broken configuration does not say where policies are; the rest is still checked against the built-in set.
    let dir = config.as_ref().map(|c| c.policies.dir.clone()).unwrap_or_default();
    report.problems.extend(match &config {
        Ok(config) => secrets(config).iter().map(of_config).collect::<Vec<_>>(),
        Err(problems) => problems.iter().map(of_config).collect(),
    });
    match load(&dir) {
        Ok(compiled) => {
            describe(&mut report, &compiled, today());
            let failed = policies::run_tests(&compiled.set, &compiled.tests, policy_tests::verdict);
            report.problems.extend(failed.iter().map(of_policies));
        }
        Err(problems) => report.problems.extend(problems.iter().map(of_policies)),
    }
    if let Ok(config) = &config {
        let (lines, problems) = mappings::check(config);
        report.mappings = lines;
        report.problems.extend(problems);
    }
    report.ok = report.problems.is_empty();
    global.output.print(&report, text)?;
    Ok(if report.ok { Exit::Ok } else { Exit::Config })
}

/// The files of a configured directory, or the built-in ones, compiled.
pub fn load(dir: &str) -> Result<Compiled, Vec<policies::Problem>> {
    policies::compile_with_tests(&files(dir)?)
}

/// The files of a configured directory, or the built-in ones.
pub fn files(dir: &str) -> Result<Files, Vec<policies::Problem>> {
    if dir.is_empty() { Ok(Files::built_in()) } else { Files::read_dir(Path::new(dir)) }
}

/// Files with secrets that are named and cannot be read.
fn secrets(config: &Config) -> Vec<config::Problem> {
    let checks = [
        config.kafka.client_settings().err(),
        config.redis.address().err(),
        config.registry.password().err(),
        config.identity.key().err(),
    ];
    checks.into_iter().flatten().collect()
}

fn describe(report: &mut Report, compiled: &Compiled, today: Day) {
    report.policy_set = Some(compiled.set.hash.clone());
    report.indicators = compiled.set.catalogue.indicators.len();
    report.tests = compiled.tests.len();
    for policy in &compiled.set.policies {
        if Day::parse(&policy.review_by).is_some_and(|day| day < today) {
            report.warnings.push(format!("policy {} was to be reviewed by {}", policy.id, policy.review_by));
        }
        report.policies.push(PolicyLine {
            id: policy.id.clone(),
            version: policy.version.clone(),
            status: status_word(policy.status),
            review_by: policy.review_by.clone(),
        });
    }
}

fn today() -> Day {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(since.as_millis() as i64).day_at(0)
}

fn of_config(problem: &config::Problem) -> ProblemLine {
    ProblemLine {
        origin: problem.origin.to_string(),
        line: 0,
        column: 0,
        key: problem.key.clone(),
        message: problem.message.clone(),
        fix: problem.fix.clone(),
        text: problem.to_string(),
    }
}

fn of_policies(problem: &policies::Problem) -> ProblemLine {
    ProblemLine {
        origin: problem.file.clone(),
        line: problem.line,
        column: problem.column,
        key: String::new(),
        message: problem.message.clone(),
        fix: problem.fix.clone(),
        text: problem.to_string(),
    }
}

fn text(report: &Report) -> String {
    let mut parts: Vec<String> = report.problems.iter().map(|p| p.text.clone()).collect();
    parts.extend(report.warnings.iter().map(|w| format!("warning: {w}")));
    if let Some(hash) = &report.policy_set {
        parts.push(format!("policy set {hash}: {} indicators, {} tests", report.indicators, report.tests));
        parts.push(table(
            &["policy", "status", "version", "review by"],
            report.policies.iter().map(|p| vec![p.id.clone(), p.status.into(), p.version.clone(), p.review_by.clone()]),
        ));
    }
    if !report.mappings.is_empty() {
        let rows = report.mappings.iter();
        let rows = rows.map(|m| vec![m.source.clone(), m.topic.clone(), m.mapping.clone(), m.examples.to_string()]);
        parts.push(table(&["source", "topic", "mapping", "examples"], rows));
    }
    parts.push(match report.problems.len() {
        0 => "ok".to_owned(),
        1 => "1 problem".to_owned(),
        n => format!("{n} problems"),
    });
    parts.join("\n\n")
}
