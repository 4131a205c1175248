//! `casestream devkit`: the embedded broker and store until a signal ends them, for trying out. Says where they listen
//! and what they do not do.

use std::path::PathBuf;

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, Failure, Global};
use crate::embedded::devkit::{Options, Ready, Running};
use crate::runtime::redis_store::SCRIPTS;
use crate::runtime::telemetry::{self, LogFormat};

/// Where to listen and where the data lies.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Port of the broker, on 127.0.0.1; 0 takes a free one
    #[arg(long, value_name = "P", default_value_t = 0)]
    kafka_port: u16,
    /// Port of the store, on 127.0.0.1; 0 takes a free one
    #[arg(long, value_name = "P", default_value_t = 0)]
    redis_port: u16,
    /// Directory for the data of both, which later runs find again
    #[arg(long, value_name = "DIR", default_value = "casestream-devkit")]
    dir: PathBuf,
    /// Memory for the logs of all topics, in MiB, 64 to 65536; then the oldest records go
    #[arg(long, value_name = "MIB", default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(64..=65_536))]
    memory: u32,
    /// End when standard input does: for a process that runs this one
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    ready: &'a Ready,
    pid: u32,
}

/// Runs the command.
pub fn run(args: &Args, global: &Global) -> Result<Exit, Failure> {
    telemetry::init_logs(LogFormat::Text, "warn");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(args, global))
}

async fn serve(args: &Args, global: &Global) -> Result<Exit, Failure> {
    let options = Options {
        kafka_port: args.kafka_port,
        redis_port: args.redis_port,
        dir: args.dir.clone(),
        memory_bytes_max: Some((args.memory as usize) << 20),
        scripts: SCRIPTS.to_vec(),
    };
    let failed = |error: std::io::Error| Failure::new(Exit::Dependency, error.to_string());
    // Heeded before anything is announced: whoever reads the address may send one at once.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut running = Running::start(&options).await.map_err(failed)?;
    let answer = Answer { ready: &running.ready.clone(), pid: std::process::id() };
    global.output.print(&answer, |answer| text(answer.ready))?;
    tokio::select! {
        error = running.run() => Err(failed(error)),
        _ = terminate.recv() => Ok(Exit::Ok),
        _ = interrupt.recv() => Ok(Exit::Ok),
        () = stdin_closed(), if args.until_stdin_closes => Ok(Exit::Ok),
    }
}

/// Returns when nobody holds the other end any more.
async fn stdin_closed() {
    let (send, receive) = tokio::sync::oneshot::channel();
    super::run::when_stdin_closes(move || {
        // The process may be ending already.
        let _ = send.send(());
    });
    // The thread sends before it ends.
    let _ = receive.await;
}

fn text(ready: &Ready) -> String {
    let mut lines = vec![
        format!("bootstrap.servers  {}", ready.bootstrap),
        format!("redis              {}", ready.redis_url),
        format!("data               {}", ready.dir.display()),
        "for this shell".to_owned(),
        format!("  export CASESTREAM_KAFKA__BOOTSTRAP_SERVERS={}", ready.bootstrap),
        format!("  export CASESTREAM_REDIS__URL={}", ready.redis_url),
        "limits".to_owned(),
    ];
    lines.extend(ready.limits.iter().map(|limit| format!("  {limit}")));
    lines.push("Ctrl-C ends both".to_owned());
    lines.join("\n")
}
