//! `casestream status`: is it running, how far is it behind, and is every record accounted for? Exit code 1 when
//! something is halted or stale, or a ledger does not balance.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::output::table;
use super::{Exit, Failure, Global};
use crate::runtime::clock::SystemClock;
use crate::runtime::overview::{self, Overview, PartitionLine, Role, SourceLine};

/// No arguments of its own.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_: &Args, global: &Global) -> Result<Exit, Failure> {
    let config = global.config()?;
    let connection = super::connection(&config)?;
    let schemas = super::schemas(&config, Arc::new(SystemClock::new()))?;
    let overview = overview::read(&config, &connection, &schemas)?;
    global.output.print(&overview, text)?;
    Ok(if overview.healthy { Exit::Ok } else { Exit::Failure })
}

fn text(overview: &Overview) -> String {
    let word = if overview.healthy { "healthy" } else { "not healthy" };
    let mut parts = vec![format!("{word} at {}, lag {}", overview.as_of.rfc3339(), overview.lag)];
    if !overview.problems.is_empty() {
        parts.push(overview.problems.iter().map(|p| format!("  {p}")).collect::<Vec<_>>().join("\n"));
    }
    let roles = [("map", &overview.map), ("engine", &overview.engine)];
    parts.push(roles.map(|(name, role)| role_text(name, role)).join("\n"));
    if !overview.sources.is_empty() {
        let header = ["raw topic", "partitions", "taken", "lag"];
        parts.push(table(&header, topics(&overview.sources)));
    }
    let header = ["partition", "state", "lag", "age", "commit", "users", "copy", "epoch", "worker", "policy set"];
    parts.push(table(&header, overview.partitions.iter().map(partition_row)));
    let behind: Vec<String> = overview.partitions.iter().filter(|p| p.lag > 0).map(inputs).collect();
    if !behind.is_empty() {
        parts.push(behind.join("\n"));
    }
    parts.join("\n\n")
}

fn role_text(name: &str, role: &Role) -> String {
    let verdict = if role.balanced { "balances" } else { "does not balance" };
    let signals = role.ledger.get("signals").map_or(String::new(), |n| format!(" -> {n} signals"));
    format!("{name:<6} lag {}; ledger {verdict}:\n  {}{signals}", role.lag, wrap(&role.equation))
}

/// Breaks an equation before a `+`, so that it stays within 100 columns.
fn wrap(equation: &str) -> String {
    let mut lines = vec![String::new()];
    for (n, part) in equation.split(" + ").enumerate() {
        let part = if n == 0 { part.to_owned() } else { format!(" + {part}") };
        if lines.last().is_some_and(|line| line.len() + part.len() > 92) {
            lines.push(" ".repeat(6));
        }
        lines.last_mut().expect("there is one").push_str(&part);
    }
    lines.join("\n")
}

/// One row per topic; JSON has every partition.
fn topics(lines: &[SourceLine]) -> Vec<Vec<String>> {
    let mut topics: BTreeMap<&str, (usize, i64, i64)> = BTreeMap::new();
    for line in lines {
        let (partitions, taken, lag) = topics.entry(&line.topic).or_default();
        *partitions += 1;
        *taken += line.ledger.as_ref().map_or(0, |ledger| ledger.taken);
        *lag += line.lag;
    }
    let row = |(topic, (partitions, taken, lag)): (&str, (usize, i64, i64))| {
        vec![topic.to_owned(), partitions.to_string(), taken.to_string(), lag.to_string()]
    };
    topics.into_iter().map(row).collect()
}

fn partition_row(line: &PartitionLine) -> Vec<String> {
    let state = match &line.halt_code {
        Some(code) => format!("{} {code}", line.state),
        None if line.stale => format!("{} (stale)", line.state),
        None => line.state.clone(),
    };
    let copy = match &line.copy {
        None => "off".to_owned(),
        Some(copy) if copy.error.is_some() => "no answer".to_owned(),
        Some(copy) if copy.rebuilding => format!("rebuilding, {} behind", copy.behind),
        Some(copy) if copy.behind > 0 => format!("{} behind", copy.behind),
        Some(_) => "current".to_owned(),
    };
    let age = line.age_ms.map_or("-".to_owned(), |ms| format!("{} s", ms / 1_000));
    let set = if line.policy_set.is_empty() { "-".to_owned() } else { line.policy_set.chars().take(8).collect() };
    vec![
        line.partition.to_string(),
        state,
        line.lag.to_string(),
        age,
        line.commit_no.to_string(),
        line.users.to_string(),
        copy,
        line.epoch.to_string(),
        if line.worker.is_empty() { "-".to_owned() } else { line.worker.clone() },
        set,
    ]
}

fn inputs(line: &PartitionLine) -> String {
    let inputs = line.inputs.iter().filter(|i| i.lag > 0).map(|i| format!("{} {}", i.topic, i.lag));
    format!("partition {} lags: {}", line.partition, inputs.collect::<Vec<_>>().join(", "))
}
