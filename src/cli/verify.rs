//! `casestream verify`: what the topics and Redis hold against a replay of the journal. Exit code 1 on a difference.

use std::sync::Arc;

use indicatif::{ProgressBar, ProgressDrawTarget};

use super::{Exit, Failure, Global};
use crate::config::Config;
use crate::runtime::clock::SystemClock;
use crate::runtime::log::KafkaLog;
use crate::runtime::policy_source::LogPolicies;
use crate::runtime::ports::Store;
use crate::runtime::redis_store::RedisStore;
use crate::runtime::service::engine_group;
use crate::verify::{Failure as Cause, Report, Verifier};

/// Times a verification is begun again because the engine wrote meanwhile.
const ATTEMPTS_MAX: u32 = 5;

/// What to verify.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave the copy in Redis out
    #[arg(long)]
    no_copy: bool,
}

/// Runs the command.
pub fn run(args: &Args, global: &Global) -> Result<Exit, Failure> {
    let config = global.config()?;
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let report = report(&config, args.no_copy, |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    global.output.print(&report, text)?;
    Ok(if report.differences == 0 { Exit::Ok } else { Exit::Failure })
}

/// Verifies the configured pipeline; begun again when the engine writes meanwhile.
pub(super) fn report(config: &Config, no_copy: bool, mut progress: impl FnMut(i32, i32)) -> Result<Report, Failure> {
    let connection = super::connection(config)?;
    let schemas = super::schemas(config, Arc::new(SystemClock::new()))?;
    let group = engine_group(config);
    let mut log = KafkaLog::new(&connection, &group)?;
    let mut policies = LogPolicies::new(KafkaLog::new(&connection, &group)?, &schemas, |_| {});
    let mut store = match config.redis.enabled && !no_copy {
        true => Some(RedisStore::new(config.redis.address()?.expose())?),
        false => None,
    };
    let mut attempt = 1;
    loop {
        let copy = store.as_mut().map(|s| s as &mut dyn Store);
        let verifier = Verifier::new(&mut log, copy, &mut policies, &schemas);
        match verifier.run(config.kafka.partitions, &mut progress) {
            Ok(report) => return Ok(report),
            Err(Cause::Moving { .. }) if attempt < ATTEMPTS_MAX => attempt += 1,
            Err(Cause::Port(error)) => return Err(error.into()),
            Err(cause) => return Err(Failure::new(Exit::Failure, cause.to_string())),
        }
    }
}

fn text(report: &Report) -> String {
    let mut lines = vec![format!(
        "replayed {} transactions of {} partitions over {} input records: {} output records, {} users, {} users in redis",
        report.transactions,
        report.partitions,
        report.input_records,
        report.output_records,
        report.users,
        report.copy_users
    )];
    lines.extend(report.unchecked.iter().map(|u| format!("not checked: {u}")));
    lines.extend(report.examples.iter().map(|e| format!("difference: {e}")));
    lines.push(format!("differences: {}", report.differences));
    lines.join("\n")
}
