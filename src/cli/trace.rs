//! `casestream trace`: the way of one record, step by step, or where and why it stopped. Exit code 1 when there is no
//! such record, or when what should be there is not.

use std::sync::Arc;

use super::output::{plain, time};
use super::{Exit, Failure, Global};
use crate::runtime::clock::SystemClock;
use crate::runtime::trace::{End, Step, Trace, Tracer};

/// What to follow.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// TOPIC:PARTITION:OFFSET of a raw record, a signal or an output, or the vendor's event id
    #[arg(value_name = "RECORD")]
    record: String,
}

/// Runs the command.
pub fn run(args: &Args, global: &Global) -> Result<Exit, Failure> {
    let config = global.config()?;
    let connection = super::connection(&config)?;
    let schemas = super::schemas(&config, Arc::new(SystemClock::new()))?;
    let key = config.identity.key()?;
    let key = key.as_ref().map(|key| key.expose().trim().as_bytes());
    let trace = Tracer::new(&config, &connection, &schemas, key)?.run(&args.record)?;
    global.output.print(&trace, text)?;
    Ok(if matches!(trace.end, End::NotFound | End::Lost) { Exit::Failure } else { Exit::Ok })
}

fn text(trace: &Trace) -> String {
    let mut lines: Vec<String> = Vec::new();
    for step in &trace.steps {
        lines.extend(step_lines(step));
    }
    let word = match trace.end {
        End::Alert | End::Scored => "it came through",
        End::Waiting => "it waits",
        End::NotFound => "not found",
        _ => "it stopped",
    };
    lines.push(format!("{word}: {}", plain(&trace.why)));
    lines.join("\n")
}

fn step_lines(step: &Step) -> Vec<String> {
    let at = step.at.map_or(String::new(), |at| format!("  {}", time(at)));
    let place = step.coordinate.as_deref().map_or(String::new(), plain);
    let mut lines = vec![format!("{:>2}. {:<11} {place}{at}", step.number, step.stage).trim_end().to_owned()];
    lines.push(format!("{:16}{}", "", plain(&step.text)));
    lines.extend(
        step.ids.iter().filter(|(_, id)| !id.is_empty()).map(|(name, id)| format!("{:16}{name} {}", "", plain(id))),
    );
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Timestamp;

    #[test]
    fn steps_are_numbered_and_the_end_stands_last() {
        let step = Step {
            number: 1,
            stage: "raw",
            text: "12 bytes".into(),
            coordinate: Some("raw.x:0:5".into()),
            at: Some(Timestamp(0)),
            ids: [("event_id", "a\u{1b}b".to_owned())].into(),
            ..Step::default()
        };
        let trace = Trace {
            asked: String::new(),
            end: End::Ignored,
            why: "the mapping ignores it: read".into(),
            steps: vec![step],
        };
        assert_eq!(
            text(&trace),
            " 1. raw         raw.x:0:5  1970-01-01 00:00:00Z\n                12 bytes\n                \
             event_id a\\u{1b}b\nit stopped: the mapping ignores it: read"
        );
    }
}
