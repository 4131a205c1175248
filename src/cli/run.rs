//! `casestream run`: the roles of one process, until a signal ends it. Exit code 5 when another process has the same
//! ordinal, so that a supervisor can tell.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Exit, Failure, Global};
use crate::config::Config;
use crate::runtime::clock::SystemClock;
use crate::runtime::http::{self, Health};
use crate::runtime::registry::built_in_response;
use crate::runtime::service::{Ended, MAX_POLL_INTERVAL, STOP_TIMEOUT, Service, Shared};
use crate::runtime::telemetry::{self, LogFormat};

/// How often the process looks whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long it may take to end after whoever ran it. Its broker may be gone, too, and then nothing ends in order.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(4);

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Roles of this process
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Role::Map, Role::Engine])]
    roles: Vec<Role>,
    /// End when standard input does: for a process that runs this one
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

/// A role scales on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Role {
    /// Vendor events to signals
    Map,
    /// Signals to scores, alerts and chronology
    Engine,
}

/// Runs the command.
pub fn run(args: &Args, global: &Global) -> Result<Exit, Failure> {
    let config = global.config()?;
    let format = if config.log.format == "json" { LogFormat::Json } else { LogFormat::Text };
    telemetry::init_logs(format, &config.log.filter);
    let metrics = telemetry::install().map_err(|e| Failure::new(Exit::Failure, e.to_string()))?;
    let shared = shared(&config)?;
    if args.until_stdin_closes {
        end_with_parent(&shared.stop);
    }
    let schemas = shared.schemas.clone();
    let registry: http::Registry = Arc::new(move |path| built_in_response(&schemas, path));
    let bind = config.http.address();
    let server = http::serve(bind, shared.health.clone(), metrics, registry)
        .map_err(|e| Failure::new(Exit::Failure, format!("could not listen on {bind}: {e}")))?;
    tracing::info!(address = %server.addr, "serving /metrics, /healthz, /readyz and /registry");
    let mut service = Service::new(shared.clone());
    if args.roles.contains(&Role::Engine) {
        service.start_engine()?;
    }
    if args.roles.contains(&Role::Map) {
        start_map(&mut service, &shared)?;
    }
    let ended = wait(service, &shared.stop)?;
    server.stop();
    match ended {
        None => Ok(Exit::Ok),
        Some(Ended { role, fenced, cause }) => {
            let exit = if fenced { Exit::Fenced } else { Exit::Dependency };
            Err(Failure::new(exit, format!("{role}: {cause}")))
        }
    }
}

fn end_with_parent(stop: &Arc<AtomicBool>) {
    let stop = stop.clone();
    when_stdin_closes(move || {
        stop.store(true, Ordering::Relaxed);
        std::thread::sleep(ORPHAN_TIMEOUT);
        tracing::warn!("whoever ran this process is gone, and it could not end in order");
        std::process::exit(Exit::Failure as i32);
    });
}

/// Calls when nobody holds the other end of standard input any more; what is written there is not looked at. A thread
/// waits for it: standard input cannot be waited for otherwise.
pub(super) fn when_stdin_closes(then: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || {
        // An error is an end, too.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        then();
    });
}

/// What the roles share, from the configuration.
pub fn shared(config: &Config) -> Result<Shared, Failure> {
    let redis_url = config.redis.enabled.then(|| config.redis.address()).transpose()?;
    Ok(Shared {
        connection: super::connection(config)?,
        redis_url: redis_url.map(|url| url.expose().to_owned()),
        schemas: super::schemas(config, Arc::new(SystemClock::new()))?,
        health: Health::new(MAX_POLL_INTERVAL),
        stop: Arc::new(AtomicBool::new(false)),
        config: Arc::new(config.clone()),
    })
}

#[cfg(feature = "vrl")]
fn start_map(service: &mut Service, shared: &Shared) -> Result<(), Failure> {
    if let Some(pseudonym) = super::pseudonym::configured(&shared.config)? {
        super::pseudonym::compare(&shared.config, &shared.schemas, &pseudonym)?;
    }
    let Some(key) = shared.config.identity.key()? else {
        if shared.config.map.sources.is_empty() {
            return Ok(());
        }
        let hint = "set identity.key_file to a file with at least 16 random bytes";
        return Err(Failure::new(
            Exit::Config,
            format!("could not map: no pseudonym key is configured\n  fix: {hint}"),
        ));
    };
    Ok(crate::runtime::map_service::start(service, shared, key.expose().trim().as_bytes())?)
}

#[cfg(not(feature = "vrl"))]
fn start_map(_service: &mut Service, _shared: &Shared) -> Result<(), Failure> {
    Err(Failure::new(Exit::Config, "could not map: this binary was built without the feature `vrl`"))
}

/// Waits for a signal or the end of a role; a second signal, or too slow an end, leaves at once.
fn wait(service: Service, stop: &Arc<AtomicBool>) -> Result<Option<Ended>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
        let mut look = tokio::time::interval(LOOK_EVERY);
        while !stop.load(Ordering::Relaxed) {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = look.tick() => {}
            }
        }
        tracing::info!("stopping");
        let ended = tokio::task::spawn_blocking(move || service.stop());
        tokio::select! {
            ended = ended => Ok(ended.unwrap_or_default()),
            _ = terminate.recv() => std::process::exit(Exit::Failure as i32),
            _ = interrupt.recv() => std::process::exit(Exit::Failure as i32),
            () = tokio::time::sleep(STOP_TIMEOUT) => {
                tracing::warn!("could not stop in time; what is open is aborted by the broker");
                std::process::exit(Exit::Failure as i32)
            }
        }
    })
}
