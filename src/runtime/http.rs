//! The small server of every process: metrics, liveness, readiness, and the built-in schema registry. It has a thread
//! and a runtime of its own, so that it answers while workers are busy. It knows nothing of what it serves: facts come
//! through `Health`, schemas through a closure. Next: `registry.rs`.

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use tokio::sync::oneshot;

use super::telemetry;

/// How often the recorder is kept from growing.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// How long `stop` waits for answers under way.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// What the workers of this process say about themselves.
pub struct Health {
    started: Instant,
    /// A worker that has not polled for so long is dead.
    silence_max: Duration,
    workers: Mutex<BTreeMap<String, Arc<WorkerHealth>>>,
    /// `None`: the process writes no copy.
    copy: Mutex<Option<CopyLag>>,
}

/// How far the copy in Redis is behind, over all partitions of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CopyLag {
    /// It cannot be written and falls behind.
    pub stale: bool,
    /// Partitions with commits the copy has not seen.
    pub partitions_behind: usize,
    /// Partitions written anew after Redis lost data, or for the first time.
    pub rebuilding: usize,
    /// Of the partition that is furthest behind.
    pub commits: i64,
    pub seconds: u64,
}

/// One worker's part, updated by the worker.
pub struct WorkerHealth {
    started: Instant,
    polled_ms: AtomicU64,
    restored: AtomicBool,
    halted: Mutex<BTreeMap<i32, String>>,
}

impl Health {
    /// Nothing known yet. `max_poll_interval` is that of the group members.
    pub fn new(max_poll_interval: Duration) -> Arc<Health> {
        Arc::new(Health {
            started: Instant::now(),
            silence_max: max_poll_interval / 2,
            workers: Mutex::default(),
            copy: Mutex::default(),
        })
    }

    /// Adds a worker, alive now and with nothing restored. The same name again replaces the earlier one.
    pub fn worker(&self, name: &str) -> Arc<WorkerHealth> {
        let worker = Arc::new(WorkerHealth {
            started: self.started,
            polled_ms: AtomicU64::new(0),
            restored: AtomicBool::new(false),
            halted: Mutex::default(),
        });
        worker.polled();
        lock(&self.workers).insert(name.to_owned(), Arc::clone(&worker));
        worker
    }

    /// How far the copy in Redis is behind; readers are told, readiness does not depend on it.
    pub fn set_copy(&self, lag: CopyLag) {
        *lock(&self.copy) = Some(lag);
    }

    /// The answer of `/healthz`: whether every worker has polled lately.
    pub fn alive(&self) -> Alive {
        let silent =
            |worker: &WorkerHealth| self.started.elapsed().saturating_sub(worker.last_poll()) > self.silence_max;
        let workers = lock(&self.workers);
        let silent: Vec<String> =
            workers.iter().filter(|(_, worker)| silent(worker)).map(|(name, _)| name.clone()).collect();
        Alive { alive: silent.is_empty(), silent }
    }

    /// The answer of `/readyz`: whether every worker has restored what it was assigned.
    pub fn ready(&self) -> Ready {
        let workers: Vec<WorkerReady> = lock(&self.workers)
            .iter()
            .map(|(name, worker)| WorkerReady {
                name: name.clone(),
                restored: worker.restored.load(Ordering::Relaxed),
                halted: lock(&worker.halted).clone(),
            })
            .collect();
        let ready = !workers.is_empty() && workers.iter().all(|worker| worker.restored);
        let copy = *lock(&self.copy);
        Ready { ready, redis_stale: copy.is_some_and(|copy| copy.stale), copy, workers }
    }
}

impl WorkerHealth {
    /// To be called at every poll, and while restoring with every partition.
    pub fn polled(&self) {
        self.polled_ms.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Whether all assigned partitions are restored, or none is assigned.
    pub fn set_restored(&self, restored: bool) {
        self.restored.store(restored, Ordering::Relaxed);
    }

    /// A partition stands still until someone acts; the code names the section of the runbook.
    pub fn halt(&self, partition: i32, code: &str) {
        lock(&self.halted).insert(partition, code.to_owned());
    }

    /// A new assignment: nothing is halted.
    pub fn clear_halted(&self) {
        lock(&self.halted).clear();
    }

    fn last_poll(&self) -> Duration {
        Duration::from_millis(self.polled_ms.load(Ordering::Relaxed))
    }
}

/// Body of `/healthz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Alive {
    pub alive: bool,
    /// Workers that have not polled for too long.
    pub silent: Vec<String>,
}

/// Body of `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ready {
    pub ready: bool,
    /// The copy cannot be written and falls behind.
    pub redis_stale: bool,
    /// `null` in a process that writes no copy.
    pub copy: Option<CopyLag>,
    pub workers: Vec<WorkerReady>,
}

/// One worker in `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WorkerReady {
    pub name: String,
    pub restored: bool,
    /// Halted partitions and why.
    pub halted: BTreeMap<i32, String>,
}

/// Answers a path below `/registry`, which begins with `/`, with a status and a JSON body.
pub type Registry = Arc<dyn Fn(&str) -> (u16, String) + Send + Sync>;

/// A server that runs.
pub struct Handle {
    pub addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    /// Stops the server and waits for its thread.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Either may be gone already: a thread that ended by itself has dropped its receiver.
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.end();
    }
}

/// Serves until stopped. Port 0 takes a free one.
pub fn serve(
    bind: SocketAddr,
    health: Arc<Health>,
    metrics: PrometheusHandle,
    registry: Registry,
) -> io::Result<Handle> {
    let listener = TcpListener::bind(bind)?;
    listener.set_nonblocking(true)?;
    let addr = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel();
    let upkeep = metrics.clone();
    let router = router(Served { health, metrics, registry });
    let thread = std::thread::Builder::new().name("http".to_owned()).spawn(move || {
        let served = runtime.block_on(async {
            tokio::spawn(keep_up(upkeep));
            run(listener, router, stopped).await
        });
        if let Err(error) = served {
            tracing::error!("the http server ended: {error}");
        }
    })?;
    Ok(Handle { addr, stop: Some(stop), thread: Some(thread) })
}

async fn run(listener: TcpListener, router: Router, stopped: oneshot::Receiver<()>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (closing, closed) = oneshot::channel::<()>();
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        // A dropped handle stops the server as well.
        let _ = stopped.await;
        let _ = closing.send(());
    });
    let late = async {
        let _ = closed.await;
        tokio::time::sleep(STOP_TIMEOUT).await;
    };
    // A client that keeps its connection busy does not keep the process alive.
    tokio::select! {
        result = server.into_future() => result,
        () = late => Ok(()),
    }
}

async fn keep_up(metrics: PrometheusHandle) {
    let mut every = tokio::time::interval(UPKEEP_EVERY);
    loop {
        every.tick().await;
        metrics.run_upkeep();
    }
}

#[derive(Clone)]
struct Served {
    health: Arc<Health>,
    metrics: PrometheusHandle,
    registry: Registry,
}

fn router(served: Served) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/registry", get(registry_root))
        .route("/registry/", get(registry_root))
        .route("/registry/{*path}", get(registry))
        .with_state(served)
}

async fn metrics(State(served): State<Served>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], served.metrics.render()).into_response()
}

async fn healthz(State(served): State<Served>) -> Response {
    let alive = served.health.alive();
    (status(alive.alive), axum::Json(alive)).into_response()
}

async fn readyz(State(served): State<Served>) -> Response {
    let ready = served.health.ready();
    (status(ready.ready), axum::Json(ready)).into_response()
}

async fn registry_root(State(served): State<Served>) -> Response {
    registry(State(served), Path(String::new())).await
}

async fn registry(State(served): State<Served>, Path(path): Path<String>) -> Response {
    let (code, body) = (served.registry)(&format!("/{path}"));
    telemetry::registry_served(code);
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (code, [(header::CONTENT_TYPE, "application/vnd.schemaregistry.v1+json")], body).into_response()
}

fn status(good: bool) -> StatusCode {
    if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn ask(addr: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = std::net::TcpStream::connect(addr).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    fn server(max_poll_interval: Duration) -> (Arc<Health>, Handle) {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        ::metrics::with_local_recorder(&recorder, || ::metrics::counter!("casestream_test_total").increment(3));
        let health = Health::new(max_poll_interval);
        let registry: Registry = Arc::new(|path| match path {
            "/schemas/ids/1" => (200, r#"{"schema":"\"string\""}"#.to_owned()),
            _ => (404, r#"{"error_code":40403}"#.to_owned()),
        });
        let bind = "127.0.0.1:0".parse().unwrap();
        let handle = serve(bind, Arc::clone(&health), recorder.handle(), registry).unwrap();
        (health, handle)
    }

    #[test]
    fn tells_what_workers_say() {
        let (health, handle) = server(Duration::from_secs(600));
        assert_eq!(ask(handle.addr, "/readyz").0, 503, "no worker yet");
        let worker = health.worker("engine-0");
        assert_eq!(ask(handle.addr, "/readyz").0, 503);
        worker.set_restored(true);
        worker.halt(3, "offsets.behind");
        assert!(ask(handle.addr, "/readyz").1.contains(r#""copy":null"#));
        health.set_copy(CopyLag { stale: true, partitions_behind: 2, rebuilding: 1, commits: 9, seconds: 31 });
        let body = r#"{"ready":true,"redis_stale":true,"copy":{"stale":true,"partitions_behind":2,"rebuilding":1,"commits":9,"seconds":31},"workers":[{"name":"engine-0","restored":true,"halted":{"3":"offsets.behind"}}]}"#;
        assert_eq!(ask(handle.addr, "/readyz"), (200, body.to_owned()));
        worker.clear_halted();
        assert!(ask(handle.addr, "/readyz").1.contains(r#""halted":{}"#));
        assert_eq!(ask(handle.addr, "/healthz"), (200, r#"{"alive":true,"silent":[]}"#.to_owned()));
        let (code, text) = ask(handle.addr, "/metrics");
        assert_eq!((code, text.contains("casestream_test_total 3")), (200, true), "{text}");
        handle.stop();
    }

    #[test]
    fn a_silent_worker_is_dead() {
        let (health, handle) = server(Duration::ZERO);
        health.worker("engine-0");
        let deadline = Instant::now() + Duration::from_secs(10);
        while health.alive().alive {
            assert!(Instant::now() < deadline);
        }
        assert_eq!(ask(handle.addr, "/healthz"), (503, r#"{"alive":false,"silent":["engine-0"]}"#.to_owned()));
    }

    #[test]
    fn the_registry_answers_below_its_prefix() {
        let (_, handle) = server(Duration::from_secs(600));
        assert_eq!(ask(handle.addr, "/registry/schemas/ids/1"), (200, r#"{"schema":"\"string\""}"#.to_owned()));
        assert_eq!(ask(handle.addr, "/registry/schemas/ids/2").0, 404);
        let addr = handle.addr;
        handle.stop();
        assert!(std::net::TcpStream::connect(addr).is_err(), "the port is free again");
    }
}
