//! The client against a server of a few lines on a free loopback port, and the built-in registry's answers; at last
//! the client against the built-in registry.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::domain::Timestamp;
use crate::domain::signal::Signal;
use crate::topology::Topic;
use crate::wire::avro::{Decoder, Encoder, RegistryError, Schemas, subject};

/// Time that moves when told to.
#[derive(Default)]
struct Hands(AtomicU64);

impl Hands {
    fn forward(&self, duration: Duration) {
        self.0.fetch_add(duration.as_millis() as u64, Ordering::SeqCst);
    }
}

impl Clock for Hands {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst) as i64)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }

    fn wait(&self, duration: Duration) {
        self.forward(duration);
    }
}

/// A request as the server saw it: `GET /path`, the authorization, the body.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    line: String,
    authorization: String,
    body: String,
}

type Answers = dyn Fn(&Seen) -> (u16, String) + Send + Sync;

/// A server that answers every request by a function and remembers what it was asked.
struct Stub {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Stub {
    fn start(answers: impl Fn(&Seen) -> (u16, String) + Send + Sync + 'static) -> Stub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (log, answers): (_, Arc<Answers>) = (seen.clone(), Arc::new(answers));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                serve(stream.unwrap(), &log, &*answers);
            }
        });
        Stub { url, seen }
    }

    fn registry(&self, clock: &Arc<Hands>) -> Registry {
        Registry::new(&Settings { url: format!("{}/", self.url), ..Settings::default() }, clock.clone()).unwrap()
    }

    fn lines(&self) -> Vec<String> {
        self.seen.lock().unwrap().drain(..).map(|seen| seen.line).collect()
    }
}

/// Serves one connection with one request.
fn serve(stream: TcpStream, log: &Mutex<Vec<Seen>>, answers: &Answers) {
    let mut reader = BufReader::new(stream);
    let mut seen = Seen { line: String::new(), authorization: String::new(), body: String::new() };
    let (mut line, mut length) = (String::new(), 0);
    while reader.read_line(&mut line).unwrap() > 0 && line != "\r\n" {
        let text = line.trim_end();
        match text.split_once(": ").map(|(name, value)| (name.to_lowercase(), value)) {
            Some((name, value)) if name == "authorization" => seen.authorization = value.into(),
            Some((name, value)) if name == "content-length" => length = value.parse().unwrap(),
            Some(_) => {}
            None => seen.line = text.trim_end_matches(" HTTP/1.1").into(),
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    seen.body = String::from_utf8(body).unwrap();
    let (status, text) = answers(&seen);
    log.lock().unwrap().push(seen);
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", text.len());
    reader.get_mut().write_all(format!("{head}{text}").as_bytes()).unwrap();
}

fn error_body(code: u32) -> String {
    json!({ "error_code": code, "message": "no" }).to_string()
}

#[test]
fn a_known_schema_is_asked_for_once() {
    let stub = Stub::start(|_| (200, r#"{"schema":"\"long\""}"#.into()));
    let registry = stub.registry(&Arc::default());
    for name in [SchemaName::Id(7), SchemaName::Id(7), SchemaName::Guid([0x1F; 16]), SchemaName::Guid([0x1F; 16])] {
        assert_eq!(registry.schema(name), Ok(Some("\"long\"".into())));
    }
    assert_eq!(stub.lines(), ["GET /schemas/ids/7", "GET /schemas/guids/1f1f1f1f-1f1f-1f1f-1f1f-1f1f1f1f1f1f"]);
}

#[test]
fn an_unknown_schema_is_asked_for_again_after_30_s() {
    let stub = Stub::start(|_| (404, error_body(40_403)));
    let clock: Arc<Hands> = Arc::default();
    let registry = stub.registry(&clock);
    for (forward, calls) in [(0, 1), (29_999, 0), (1, 1), (0, 0)] {
        clock.forward(Duration::from_millis(forward));
        assert_eq!(registry.schema(SchemaName::Id(7)), Ok(None));
        assert_eq!(stub.lines().len(), calls, "after {forward} ms");
    }
}

#[test]
fn after_a_failure_calls_wait_for_the_back_off() {
    let failing = Arc::new(AtomicU64::new(2));
    let left = failing.clone();
    let stub = Stub::start(move |_| {
        let failed = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        if failed { (500, "busy".into()) } else { (200, r#"{"schema":"\"long\""}"#.into()) }
    });
    let clock: Arc<Hands> = Arc::default();
    let registry = stub.registry(&clock);
    // 100 ms after the first failure, 200 ms after the second.
    for (forward, ok, calls) in [(0, false, 1), (99, false, 0), (1, false, 1), (199, false, 0), (1, true, 1)] {
        clock.forward(Duration::from_millis(forward));
        assert_eq!(registry.schema(SchemaName::Id(7)).is_ok(), ok, "after {forward} ms");
        assert_eq!(stub.lines().len(), calls, "after {forward} ms");
    }
    failing.store(1, Ordering::SeqCst);
    assert!(registry.schema(SchemaName::Id(7)).is_ok(), "known schemas need no registry");
    assert!(registry.schema(SchemaName::Id(8)).is_err());
    clock.forward(BACK_OFF_MIN);
    assert!(registry.schema(SchemaName::Id(8)).is_ok(), "a success starts the back-off anew");
}

#[test]
fn only_a_registrys_own_404_means_unknown() {
    for (status, body) in
        [(404, "<html>nginx</html>".to_owned()), (404, error_body(404)), (401, error_body(40_101)), (200, "{}".into())]
    {
        let stub = Stub::start(move |_| (status, body.clone()));
        let error = stub.registry(&Arc::default()).schema(SchemaName::Id(7)).unwrap_err();
        assert!(error.0.contains(&status.to_string()), "{error}");
    }
}

#[test]
fn an_unreachable_registry_is_unavailable() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = Settings { url: format!("http://{}", free.local_addr().unwrap()), ..Settings::default() };
    drop(free);
    let registry = Registry::new(&settings, Arc::new(Hands::default())).unwrap();
    assert!(registry.schema(SchemaName::Id(1)).is_err());
    assert!(matches!(Schemas::with_registry(registry), Err(RegistryError::Unavailable(_))));
}

#[test]
fn the_calls_of_push_are_confluents() {
    let stub = Stub::start(|seen| match seen.line.as_str() {
        "GET /subjects/s-value/versions/latest" => (200, json!({"version": 3, "id": 9, "schema": "x"}).to_string()),
        "PUT /config/s-value" => (200, r#"{"compatibility":"FULL_TRANSITIVE"}"#.into()),
        "POST /subjects/s-value/versions?normalize=true" => (200, r#"{"id":9}"#.into()),
        "POST /subjects/bad-value/versions?normalize=true" => (409, error_body(409)),
        "POST /compatibility/subjects/s-value/versions" => (200, r#"{"is_compatible":false}"#.into()),
        _ => (404, error_body(40_401)),
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "open sesame\n").unwrap();
    let settings = Settings {
        url: stub.url.clone(),
        username: Some("Aladdin".into()),
        password_file: Some(file.path().to_owned()),
    };
    let registry = Registry::new(&settings, Arc::new(Hands::default())).unwrap();
    assert_eq!(registry.latest("s-value"), Ok(Some(Registered { version: 3, id: 9, schema: "x".into() })));
    assert_eq!(registry.latest("none-value"), Ok(None));
    assert_eq!(registry.set_compatibility("s-value", "FULL_TRANSITIVE"), Ok(()));
    assert_eq!(registry.register("s-value", "\"long\""), Ok(9));
    let body = stub.seen.lock().unwrap().last().unwrap().body.clone();
    assert_eq!(body, r#"{"schema":"\"long\""}"#);
    assert_eq!(registry.register("bad-value", "\"long\"").unwrap_err().code(), "schema.refused");
    assert_eq!(registry.is_compatible("s-value", "\"long\""), Ok(false));
    assert_eq!(registry.is_compatible("none-value", "\"long\""), Ok(true));
    assert!(stub.seen.lock().unwrap().iter().all(|s| s.authorization == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="));

    let missing = Settings { password_file: Some(file.path().join("no")), ..settings };
    assert_eq!(Registry::new(&missing, Arc::new(Hands::default())).err().unwrap().code(), "config.password_file");
}

#[test]
fn base64_is_the_rfcs() {
    for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
        assert_eq!(base64(plain.as_bytes()), coded);
    }
    assert_eq!(base64(&[0xFB, 0xFF, 0xBF]), "+/+/");
}

#[test]
fn the_built_in_registry_answers_like_one() {
    let schemas = Schemas::built_in();
    let text = subject(Topic::RiskSignals).unwrap().latest().text;
    let versioned = json!({"subject": "risk-signals-value", "id": 4, "version": 1, "schema": text}).to_string();
    for (path, status, expect) in [
        ("/schemas/ids/4", 200, json!({ "schema": text }).to_string()),
        ("/schemas/ids/4?fetchMaxId=false&subject=risk-signals-value", 200, json!({ "schema": text }).to_string()),
        ("/schemas/ids/4/schema", 200, text.to_owned()),
        ("/schemas/ids/9/subjects", 200, r#"["alerts-value","shadow-alerts-value"]"#.into()),
        ("/schemas/ids/4/versions", 200, r#"[{"subject":"risk-signals-value","version":1}]"#.into()),
        ("/schemas/ids/999", 404, r#"{"error_code":40403,"message":"Schema not found."}"#.into()),
        ("/schemas/ids/x", 404, r#"{"error_code":40403,"message":"Schema not found."}"#.into()),
        ("/subjects/risk-signals-value/versions", 200, "[1]".into()),
        ("/subjects/risk-signals-value/versions/latest", 200, versioned.clone()),
        ("/subjects/risk-signals-value/versions/1", 200, versioned),
        (
            "/subjects/risk-signals-value/versions/2",
            404,
            r#"{"error_code":40402,"message":"Version not found."}"#.into(),
        ),
        ("/subjects/risk-signals-value/versions/1/schema", 200, text.to_owned()),
        ("/subjects/none/versions", 404, r#"{"error_code":40401,"message":"Subject not found."}"#.into()),
        ("/config/risk-signals-value", 200, r#"{"compatibilityLevel":"FULL_TRANSITIVE"}"#.into()),
        ("/mode", 200, r#"{"mode":"READONLY"}"#.into()),
        ("/", 200, "{}".into()),
        ("/elsewhere", 404, r#"{"error_code":404,"message":"Not found."}"#.into()),
    ] {
        assert_eq!(built_in_response(&schemas, path), (status, expect), "{path}");
    }
    assert_eq!(built_in_response(&schemas, "/subjects/risk-signals-value/versions/zero").0, 422);
    let names: Vec<String> = serde_json::from_str(&built_in_response(&schemas, "/subjects").1).unwrap();
    assert_eq!(names.len(), 13);
}

#[test]
fn a_process_reads_what_another_wrote_through_a_registry() {
    let stub = Stub::start(|seen| match seen.line.split_once(' ').unwrap() {
        // A registry that holds our schemas under ids of its own.
        ("POST", path) => {
            let name = path.trim_start_matches("/subjects/").trim_end_matches("?normalize=true");
            let (_, body) = built_in_response(&Schemas::built_in(), &format!("/subjects/{name}/versions/latest"));
            let mut known: serde_json::Value = serde_json::from_str(&body).unwrap();
            let asked: serde_json::Value = serde_json::from_str(&seen.body).unwrap();
            assert_eq!(asked["schema"], known["schema"]);
            known["id"] = (known["id"].as_u64().unwrap() + 100).into();
            (200, known.to_string())
        }
        (_, path) => {
            let id: u32 = path.trim_start_matches("/schemas/ids/").parse().unwrap();
            built_in_response(&Schemas::built_in(), &format!("/schemas/ids/{}", id.saturating_sub(100)))
        }
    });
    let schemas = Schemas::with_registry(stub.registry(&Arc::default())).unwrap();
    assert_eq!(schemas.id(Topic::RiskSignals), Some(104));
    assert_eq!(built_in_response(&schemas, "/subjects").0, 404, "local ids are not offered beside a registry");
    let (signal, mut bytes) = (Signal { user_key: "u".into(), ..Signal::default() }, Vec::new());
    Encoder::new(&schemas).encode(Topic::RiskSignals, &signal, &mut bytes).unwrap();
    let mut decoder = Decoder::new(&schemas);
    assert_eq!(decoder.decode::<Signal<'_>>(Topic::RiskSignals, &bytes, &[]).unwrap(), signal);
    bytes[4] = 99;
    let unknown = decoder.decode::<Signal<'_>>(Topic::RiskSignals, &bytes, &[]).unwrap_err();
    assert_eq!(unknown.code(), "schema.unknown");

    let empty = Stub::start(|_| (404, error_body(40_401)));
    let error = Schemas::with_registry(empty.registry(&Arc::default())).err().unwrap();
    assert_eq!(error, RegistryError::NotRegistered("user-directory-value".into()));
}
