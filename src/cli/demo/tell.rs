//! The demo's words on a terminal. Commands are printed as they can be pasted.

use std::path::{Path, PathBuf};

use super::standing::{Standing, Suspect};
use crate::cli::output::points;
use crate::generate::Scenario;
use crate::verify::Report;

/// Longest reason printed.
const WHY_CHARS: usize = 110;

/// What is needed to print commands.
pub struct Commands {
    /// This binary, as the shell finds it.
    pub program: PathBuf,
    pub config: PathBuf,
    pub bootstrap: String,
}

impl Commands {
    /// Commands of this process for a configuration.
    pub fn new(config: PathBuf, bootstrap: String) -> Commands {
        let program = std::env::current_exe().unwrap_or_else(|_| "casestream".into());
        let here = std::env::current_dir().unwrap_or_default();
        let program = program.strip_prefix(&here).map_or_else(|_| program.clone(), Path::to_owned);
        Commands { program, config, bootstrap }
    }

    fn command(&self, words: &str) -> String {
        format!("{} --config {} {words}", self.program.display(), self.config.display())
    }

    fn kcat(&self, topic: &str) -> String {
        let format = "%k  partition %p offset %o  %S bytes  %h\\n";
        format!("kcat -C -b {} -t {topic} -o beginning -X isolation.level=read_committed -f '{format}'", self.bootstrap)
    }
}

/// Before anything happens.
pub fn beginning(what: &str, limits: &[String]) -> String {
    let mut lines = vec![what.to_owned(), "the broker and the store of this demo".to_owned()];
    lines.extend(limits.iter().map(|limit| format!("  {limit}")));
    lines.join("\n")
}

/// The ledger as an equation that people can check.
pub fn ledger(standing: &Standing) -> String {
    let Standing { signals_in, scored, unscored, duplicates, late, rerouted, dead_letters, .. } = standing;
    format!(
        "ledger: {} vendor events -> {signals_in} signals in = {scored} scored + {unscored} unscored + {duplicates} \
         duplicate + {late} late + {rerouted} rerouted + {dead_letters} dead",
        standing.events_in
    )
}

/// The month as it went.
pub fn month(standing: &Standing, suspects: &[Suspect], insiders: &[String]) -> String {
    let Standing { users, insights, alerts_total, alerts_open, .. } = standing;
    let mut lines = vec![
        ledger(standing),
        format!("{users} people with {insights} insights; {alerts_total} alerts, {alerts_open} of them open"),
        String::new(),
        "the riskiest people".to_owned(),
    ];
    for Suspect { name, score_milli, level, why } in suspects {
        lines.push(format!("  {:>7}  {level:<8}  {name}", points(*score_milli)));
        lines.push(format!("           {}", cut(why)));
    }
    lines.push("planted by the generator".to_owned());
    lines.extend(insiders.iter().map(|insider| format!("  {insider}")));
    lines.join("\n")
}

/// "verified: … differences: 0".
pub fn verification(report: &Report) -> String {
    let Report { transactions, input_records, output_records, differences, .. } = report;
    let mut lines = vec![format!(
        "verified: {transactions} transactions replayed over {input_records} input records, {output_records} output \
         records compared; differences: {differences}"
    )];
    lines.extend(report.unchecked.iter().map(|u| format!("  not checked: {u}")));
    lines.extend(report.examples.iter().map(|e| format!("  difference: {e}")));
    lines.join("\n")
}

/// How to subscribe and what to try.
pub fn next(commands: &Commands, user: &str, record: &str, worker: u32, rate: u32) -> String {
    let mut lines = vec!["subscribe (Avro values; the ids are those of schemas/ids.json)".to_owned()];
    lines.extend(["risk-levels", "alerts"].map(|topic| format!("  {}", commands.kcat(topic))));
    lines.push("in a second terminal".to_owned());
    for words in [&format!("explain {user}"), &format!("trace {record}"), "status"] {
        lines.push(format!("  {}", commands.command(words)));
    }
    lines.push("kill the worker, and see it return with nothing lost".to_owned());
    lines.push(format!("  kill -9 {worker}"));
    lines.push(format!(
        "{rate} vendor event(s) a second keep flowing until Ctrl-C; `demo --for 5s` then verifies all of it again"
    ));
    lines.join("\n")
}

/// What an insider is up to, in words.
pub fn scenario(scenario: Scenario) -> &'static str {
    match scenario {
        Scenario::Leaver => "steals before leaving",
        Scenario::JobHunter => "copies more every week",
        Scenario::Slip => "mails one file home",
        Scenario::Administrator => "covers tracks",
        Scenario::HonestLeaver => "leaves with nothing",
        Scenario::Migration => "moves to a new laptop",
    }
}

/// How it stands at the end of `--for`.
pub fn end(standing: &Standing) -> String {
    format!("{}\nverified; differences: {}", ledger(standing), standing.differences)
}

fn cut(text: &str) -> String {
    match text.chars().count() > WHY_CHARS {
        true => text.chars().take(WHY_CHARS - 1).chain(['…']).collect(),
        false => text.to_owned(),
    }
}
