//! What the bench answers: figures with the machine they were taken on, and the targets beside them. The document is
//! JSON; `rows` is the same for people. Next: `cli/bench.rs`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::ceiling::Ceiling;
use super::cpu::Cost;
use super::engine::Engine;
use super::latency::{Figures, Latency};
use super::observed::Written;
use super::pipeline::{Pipeline, Run};
use super::state::State;
use crate::runtime::ports::TopicName;

/// Where the figures come from. Rates of a busy machine compare with nothing but each other.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Machine {
    pub cores: usize,
    pub processor: String,
    pub memory_bytes: u64,
    /// Load average of one minute, before and after.
    pub load_before: f64,
    pub load_after: f64,
    /// Whether others kept the cores busy before the bench began.
    pub busy: bool,
    pub version: &'static str,
}

/// What was asked for; repeated so that a document says how to get it again.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Method {
    pub signals: i64,
    pub users: u64,
    pub partitions: i32,
    pub seconds: u64,
    pub rounds: u32,
    pub batch_records_max: usize,
    pub batch_ms_max: u64,
}

/// Everything measured in one run of the command.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub machine: Machine,
    pub method: Method,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<Engine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ceiling: Option<Ceiling>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<Pipeline>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    pub targets: Vec<Target>,
}

/// What one signal causes in one topic, before compression.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TopicLine {
    pub topic: TopicName,
    pub records_per_signal: f64,
    pub bytes_per_signal: f64,
}

impl TopicLine {
    /// Per signal what was written in all.
    pub fn of(written: &BTreeMap<TopicName, Written>, signals: i64) -> Vec<TopicLine> {
        let per = |count: i64| count as f64 / signals.max(1) as f64;
        let line = |(topic, written): (&TopicName, &Written)| TopicLine {
            topic,
            records_per_signal: per(written.records),
            bytes_per_signal: per(written.bytes),
        };
        written.iter().map(line).collect()
    }

    fn row(&self) -> [String; 3] {
        let value = format!("{} records/signal", number(self.records_per_signal));
        row(format!("  to {}", self.topic), value, format!("{} bytes/signal", number(self.bytes_per_signal)))
    }
}

/// A figure against what it should be.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    pub name: &'static str,
    pub found: f64,
    pub bound: Bound,
    /// What has to be met.
    pub gate: f64,
    /// What is aimed at beyond it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stretch: Option<f64>,
    pub verdict: Verdict,
}

/// On which side of a target a figure should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    AtLeast,
    AtMost,
}

/// How a figure stands to its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Missed,
    Met,
    Stretch,
}

impl Target {
    /// Judges a figure.
    pub fn new(name: &'static str, found: f64, bound: Bound, gate: f64, stretch: Option<f64>) -> Target {
        let holds = |limit: f64| match bound {
            Bound::AtLeast => found >= limit,
            Bound::AtMost => found <= limit,
        };
        let verdict = match (holds(gate), stretch.is_some_and(holds)) {
            (true, true) => Verdict::Stretch,
            (true, false) => Verdict::Met,
            (false, _) => Verdict::Missed,
        };
        Target { name, found, bound, gate, stretch, verdict }
    }

    fn row(&self) -> [String; 3] {
        let sign = if self.bound == Bound::AtLeast { ">=" } else { "<=" };
        let stretch = self.stretch.map(|s| format!(", stretch {}", number(s))).unwrap_or_default();
        let verdict = match self.verdict {
            Verdict::Missed => "missed",
            Verdict::Met => "met",
            Verdict::Stretch => "stretch met",
        };
        [
            format!("target: {}", self.name),
            number(self.found),
            format!("{sign} {}{stretch}: {verdict}", number(self.gate)),
        ]
    }
}

impl Machine {
    /// This machine as it is before the bench.
    pub fn here() -> Machine {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let load_before = load();
        Machine {
            cores,
            processor: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into()),
            memory_bytes: field("/proc/meminfo", "MemTotal")
                .and_then(|text| text.split(' ').next()?.parse::<u64>().ok())
                .unwrap_or(0)
                * 1024,
            load_before,
            load_after: load_before,
            busy: load_before > cores as f64 / 4.0,
            version: env!("CARGO_PKG_VERSION"),
        }
    }

    /// Notes the load at the end.
    pub fn finish(&mut self) {
        self.load_after = load();
    }
}

fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

fn field(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

impl Report {
    /// Name, value and remark of every figure, in order of measuring.
    pub fn rows(&self) -> Vec<[String; 3]> {
        let mut rows = self.about();
        rows.extend(self.state.iter().flat_map(State::rows));
        rows.extend(self.engine.iter().flat_map(Engine::rows));
        rows.extend(self.ceiling.iter().flat_map(Ceiling::rows));
        rows.extend(self.pipeline.iter().flat_map(Pipeline::rows));
        rows.extend(self.latency.iter().flat_map(Latency::rows));
        rows.extend(self.targets.iter().map(Target::row));
        rows
    }

    /// Puts the targets beside what was measured.
    pub fn judge(&mut self) {
        use Bound::{AtLeast, AtMost};
        let mut targets = Vec::new();
        if let Some(engine) = &self.engine {
            targets.push(Target::new("engine signals/s", engine.per_second, AtLeast, 300_000.0, None));
        }
        if let Some(pipeline) = &self.pipeline {
            let (ratio, cpu) = (pipeline.ceiling_ratio, pipeline.client_cpu);
            let open = pipeline.runs.iter().map(|run| run.open_alert_share).fold(0.0, f64::max);
            targets.push(Target::new("pipeline share of the ceiling", ratio, AtLeast, 0.4, Some(0.6)));
            targets.push(Target::new("pipeline client CPU s per million", cpu, AtMost, 9.0, Some(6.0)));
            targets.push(Target::new("pipeline users with an open alert", open, AtMost, 0.02, None));
        }
        if let Some(latency) = &self.latency {
            let best = |pick: fn(&Figures) -> f64| latency.engine.iter().map(pick).fold(f64::INFINITY, f64::min);
            targets.push(Target::new("latency p50 to bare loop", latency.p50_ratio, AtMost, 1.5, None));
            targets.push(Target::new("latency p99 to bare loop", latency.p99_ratio, AtMost, 2.0, None));
            targets.push(Target::new("latency p50 ms (aim)", best(|f| f.p50_ms), AtMost, 20.0, None));
            targets.push(Target::new("latency p99 ms (aim)", best(|f| f.p99_ms), AtMost, 60.0, None));
        }
        if let Some(state) = &self.state {
            if let Some(bytes) = state.redis_bytes {
                targets.push(Target::new("redis bytes per user (aim)", bytes, AtMost, 2_500.0, None));
            }
            targets.push(Target::new("resident bytes per user (aim)", state.accounted_bytes, AtMost, 1_500.0, None));
        }
        self.targets = targets;
    }

    fn about(&self) -> Vec<[String; 3]> {
        let (machine, method) = (&self.machine, &self.method);
        let busy = if machine.busy { "busy: trust ratios and processor time, not rates" } else { "" };
        vec![
            row("machine", format!("{} cores", machine.cores), machine.processor.clone()),
            row("load average", format!("{:.1} to {:.1}", machine.load_before, machine.load_after), busy),
            row(
                "method",
                format!("{} signals", method.signals),
                format!(
                    "{} users, {} partitions, batches of {} records or {} ms, {} rounds",
                    method.users, method.partitions, method.batch_records_max, method.batch_ms_max, method.rounds
                ),
            ),
        ]
    }
}

/// One line of a report.
pub fn row(name: impl Into<String>, value: impl Into<String>, remark: impl Into<String>) -> [String; 3] {
    [name.into(), value.into(), remark.into()]
}

/// A figure with as many digits as mean something.
pub fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1_000.0 => thousands(value.round() as i64),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn thousands(value: i64) -> String {
    let digits = value.unsigned_abs().to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|g| std::str::from_utf8(g).expect("digits are text")).collect();
    format!("{}{}", if value < 0 { "-" } else { "" }, groups.join(","))
}

/// Processor time in words.
pub fn cost(cost: &Cost) -> String {
    let known = |seconds: Option<f64>| seconds.map_or_else(|| "unknown".to_owned(), number);
    format!(
        "CPU s per million: client {}, broker {}, redis {}",
        number(cost.client),
        known(cost.broker),
        known(cost.redis)
    )
}

impl Ceiling {
    fn rows(&self) -> Vec<[String; 3]> {
        let mut rows = vec![row("ceiling", format!("{}/s", number(self.per_second)), "best of the runs below")];
        rows.extend(self.runs.iter().map(|run| {
            row(
                format!("  {} thread{}, round {}", run.threads, if run.threads == 1 { "" } else { "s" }, run.round),
                format!("{}/s", number(run.per_second)),
                format!(
                    "{}; commit p50 {} ms, p99 {} ms",
                    cost(&run.cpu),
                    number(run.commit_p50_ms),
                    number(run.commit_p99_ms)
                ),
            )
        }));
        rows.push(row("  signal", format!("{} bytes", number(self.signal_bytes)), "mean of the values"));
        rows
    }
}

impl Engine {
    fn rows(&self) -> Vec<[String; 3]> {
        let rounds: Vec<String> = self.rounds_per_second.iter().map(|rate| number(*rate)).collect();
        let mut rows = vec![
            row(
                "engine alone",
                format!("{}/s", number(self.per_second)),
                format!("per second of processor time; rounds: {}", rounds.join(", ")),
            ),
            row("  by the clock", format!("{}/s", number(self.per_wall_second)), "what others left of the core"),
            row("  decode, fold, encode", format!("{} ns/signal", number(self.fold_ns)), "one thread"),
            row("    of which decode", format!("{} ns/signal", number(self.decode_ns)), "measured by itself"),
            row("  merge", format!("{} ns/signal", number(self.merge_ns)), ""),
            row("  gather", format!("{} ns/signal", number(self.gather_ns)), "copying into the batch; not in the rate"),
            row("  users", self.users.to_string(), open_alerts(self.open_alert_share)),
        ];
        rows.extend(self.outputs.iter().map(TopicLine::row));
        rows.extend(self.ledger.iter().map(|(name, count)| row(format!("  ledger {name}"), count.to_string(), "")));
        rows
    }
}

fn open_alerts(share: f64) -> String {
    format!("{:.2} % with an open alert", share * 100.0)
}

impl Pipeline {
    fn rows(&self) -> Vec<[String; 3]> {
        let mut rows = vec![row(
            "pipeline",
            format!("{}/s", number(self.per_second)),
            format!("{:.0} % of the ceiling; {} workers", self.ceiling_ratio * 100.0, self.workers),
        )];
        rows.extend(self.runs.iter().flat_map(Run::rows));
        rows
    }
}

impl Run {
    fn rows(&self) -> Vec<[String; 3]> {
        let ms = format!("p50 {} ms, p99 {} ms", number(self.commit_p50_ms), number(self.commit_p99_ms));
        let mut rows = vec![
            row(format!("  round {}", self.round), format!("{}/s", number(self.per_second)), cost(&self.cpu)),
            row("    commit", ms, format!("{} transactions", self.commits)),
            row("    copy in redis", format!("{} ms behind", number(self.copy_behind_ms)), "after the last commit"),
            row("    users", self.users.to_string(), open_alerts(self.open_alert_share)),
        ];
        rows.extend(self.cpu_by_thread.iter().map(|(name, used)| {
            row(format!("    thread {name}"), format!("{} CPU s/million", number(*used)), "whole life of the workers")
        }));
        rows.extend(self.outputs.iter().map(TopicLine::row));
        rows
    }
}

impl State {
    fn rows(&self) -> Vec<[String; 3]> {
        let bytes =
            |known: Option<f64>| known.map_or_else(|| "unknown".into(), |b| format!("{} bytes/user", number(b)));
        let remark = format!(
            "{} users, {} days, {} signals, {} day segments per user",
            self.users,
            self.days,
            self.signals,
            number(self.day_segments_per_user)
        );
        vec![
            row("state, encoded", bytes(Some(self.encoded_bytes)), remark),
            row("  resident, as accounted", bytes(Some(self.accounted_bytes)), open_alerts(self.open_alert_share)),
            row("  resident, as the process grew", bytes(self.resident_bytes), "allocator's slack included"),
            row("  redis", bytes(self.redis_bytes), "growth of used_memory; state, score, windows, top"),
            row("  fold", format!("{}/s", number(self.fold_per_second)), "one thread, users with up to all their days"),
        ]
    }
}

impl Latency {
    fn rows(&self) -> Vec<[String; 3]> {
        let line = |name: &str, round: usize, figures: &Figures| {
            row(
                format!("  {name}, round {}", round + 1),
                format!("p50 {} ms, p99 {} ms", number(figures.p50_ms), number(figures.p99_ms)),
                format!(
                    "p90 {} ms, max {} ms, {} samples, {} unanswered",
                    number(figures.p90_ms),
                    number(figures.max_ms),
                    figures.samples,
                    figures.unanswered
                ),
            )
        };
        let mut rows = vec![row(
            format!("latency at {}/s", self.rate_per_second),
            format!("{}x p50, {}x p99", number(self.p50_ratio), number(self.p99_ratio)),
            "produced until visible to a read-committed consumer; engine to bare loop",
        )];
        rows.extend(self.bare.iter().enumerate().map(|(n, figures)| line("bare loop", n, figures)));
        rows.extend(self.engine.iter().enumerate().map(|(n, figures)| line("engine", n, figures)));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_missed_met_or_met_at_full_stretch() {
        let verdict = |found, bound| Target::new("t", found, bound, 9.0, Some(6.0)).verdict;
        assert_eq!(verdict(10.0, Bound::AtMost), Verdict::Missed);
        assert_eq!(verdict(9.0, Bound::AtMost), Verdict::Met);
        assert_eq!(verdict(6.0, Bound::AtMost), Verdict::Stretch);
        assert_eq!(Target::new("t", 9.0, Bound::AtLeast, 9.0, None).verdict, Verdict::Met);
    }

    #[test]
    fn numbers_have_the_digits_that_count() {
        let written = [0.123, 12.34, 234.5, 1_234.4, 1_234_567.0].map(number);
        assert_eq!(written, ["0.12", "12.3", "234", "1,234", "1,234,567"]);
    }

    #[test]
    fn this_machine_has_cores_and_memory() {
        let machine = Machine::here();
        assert!(machine.cores > 0 && machine.memory_bytes > 1 << 20);
    }
}
