//! Client of a Confluent-compatible schema registry: schemas by name for reading, ids for writing, and what
//! `schemas push` needs. A call never retries or sleeps: after a failure every call fails at once until the back-off
//! has passed, so a worker pauses the input and asks again. It registers nothing on its own.
//! Next: `registry/built_in.rs`, the answers given when no registry is configured.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use ureq::http::Response;
use ureq::{Agent, Body};

use super::ports::Clock;
use super::telemetry::{self, Limit};
use crate::wire::avro::{Lookup, SCHEMA_BYTES_MAX, Unavailable};
use crate::wire::framing::{SchemaName, guid_text};

mod built_in;

pub use built_in::built_in_response;

/// How long one call may take, connection and answer together.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an unknown schema stays unknown without asking again.
pub const UNKNOWN_FOR: Duration = Duration::from_secs(30);
/// Most unknown names kept; they come from records, so somebody else chooses how many there are.
pub const UNKNOWN_MAX: usize = 1_000;
/// Pause after a first failed call; doubled by each further one.
pub const BACK_OFF_MIN: Duration = Duration::from_millis(100);
/// Longest pause after a failed call.
pub const BACK_OFF_MAX: Duration = Duration::from_secs(10);
/// Largest answer read. A schema travels as JSON text inside JSON, which at worst doubles it.
const ANSWER_BYTES_MAX: u64 = 2 * SCHEMA_BYTES_MAX as u64 + 4_096;
const MEDIA_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// Where the registry is and who we are to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Base address, without a trailing slash.
    pub url: String,
    pub username: Option<String>,
    /// File that holds the password; read once.
    pub password_file: Option<PathBuf>,
}

/// What went wrong with a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No answer, or one that says nothing about the question: asking later may help.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The registry understood and said no.
    #[error("could not {what}: the registry answered {status}: {message}")]
    Refused { what: String, status: u16, message: String },
    #[error("could not read the registry's password file {0}")]
    Password(PathBuf),
}

impl Error {
    /// The stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Error::Unavailable(_) => "schema.unavailable",
            Error::Refused { .. } => "schema.refused",
            Error::Password(_) => "config.password_file",
        }
    }
}

/// A schema as the registry holds it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Registered {
    pub version: u32,
    pub id: u32,
    pub schema: String,
}

/// A registry. Shared by the workers of a process: one call is under way at a time, so a schema that all of them
/// meet at once is fetched once.
pub struct Registry {
    agent: Agent,
    url: String,
    authorization: Option<String>,
    clock: Arc<dyn Clock + Send + Sync>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// A registry never changes what a name means.
    known: HashMap<SchemaName, String>,
    /// When a name was found unknown, by the monotonic clock.
    unknown: HashMap<SchemaName, Duration>,
    /// Calls failed in a row.
    failures: u32,
    /// No call before this instant.
    closed_until: Duration,
    last_failure: String,
}

impl State {
    fn failed(&mut self, now: Duration, cause: String) -> Unavailable {
        let pause = BACK_OFF_MIN.saturating_mul(1 << self.failures.min(16)).min(BACK_OFF_MAX);
        self.failures = self.failures.saturating_add(1);
        self.closed_until = now + pause;
        self.last_failure.clone_from(&cause);
        Unavailable(cause)
    }
}

/// An answer worth reading: success, or a refusal that is about the question.
struct Answer {
    status: u16,
    body: String,
}

impl Registry {
    /// A client; makes no call yet.
    pub fn new(settings: &Settings, clock: Arc<dyn Clock + Send + Sync>) -> Result<Registry, Error> {
        let password = match &settings.password_file {
            None => String::new(),
            Some(file) => std::fs::read_to_string(file).map_err(|_| Error::Password(file.clone()))?,
        };
        let authorization = settings.username.as_ref().map(|user| {
            let credentials = format!("{user}:{}", password.trim_end_matches(['\r', '\n']));
            format!("Basic {}", base64(credentials.as_bytes()))
        });
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(CALL_TIMEOUT))
            .user_agent(concat!("casestream/", env!("CARGO_PKG_VERSION")))
            .build();
        let url = settings.url.trim_end_matches('/').to_owned();
        Ok(Registry { agent: config.into(), url, authorization, clock, state: Mutex::default() })
    }

    /// The newest version of a subject; `None` when there is none.
    pub fn latest(&self, subject: &str) -> Result<Option<Registered>, Error> {
        let answer = self.get(&mut self.state(), &format!("/subjects/{subject}/versions/latest"))?;
        found(answer, &format!("read the latest version of {subject}"))
    }

    /// Whether the schema may become the next version of the subject under the compatibility set for it.
    pub fn is_compatible(&self, subject: &str, schema: &str) -> Result<bool, Error> {
        #[derive(Deserialize)]
        struct Verdict {
            is_compatible: bool,
        }
        let path = format!("/compatibility/subjects/{subject}/versions");
        let answer = self.send(&mut self.state(), "POST", &path, &json!({ "schema": schema }))?;
        let verdict: Option<Verdict> = found(answer, &format!("check a schema against {subject}"))?;
        // A subject without versions accepts anything.
        Ok(verdict.is_none_or(|v| v.is_compatible))
    }

    /// Sets the compatibility of a subject, `FULL_TRANSITIVE` for ours.
    pub fn set_compatibility(&self, subject: &str, level: &str) -> Result<(), Error> {
        let body = json!({ "compatibility": level });
        let answer = self.send(&mut self.state(), "PUT", &format!("/config/{subject}"), &body)?;
        done::<serde_json::Value>(answer, &format!("set the compatibility of {subject}")).map(|_| ())
    }

    /// Registers a schema and returns its id; the same schema again returns the same id.
    pub fn register(&self, subject: &str, schema: &str) -> Result<u32, Error> {
        let path = format!("/subjects/{subject}/versions?normalize=true");
        let answer = self.send(&mut self.state(), "POST", &path, &json!({ "schema": schema }))?;
        done::<Id>(answer, &format!("register a schema under {subject}")).map(|id| id.id)
    }

    /// The id under which a schema is registered for a subject; `None` when it is not.
    pub fn find(&self, subject: &str, schema: &str) -> Result<Option<u32>, Error> {
        let path = format!("/subjects/{subject}?normalize=true");
        let answer = self.send(&mut self.state(), "POST", &path, &json!({ "schema": schema }))?;
        let id: Option<Id> = found(answer, &format!("look up a schema under {subject}"))?;
        Ok(id.map(|id| id.id))
    }

    fn schema_of(&self, name: SchemaName) -> Result<Option<String>, Error> {
        #[derive(Deserialize)]
        struct Text {
            schema: String,
        }
        let mut state = self.state();
        if let Some(schema) = state.known.get(&name) {
            return Ok(Some(schema.clone()));
        }
        let now = self.clock.monotonic();
        if state.unknown.get(&name).is_some_and(|since| now < *since + UNKNOWN_FOR) {
            return Ok(None);
        }
        let path = match name {
            SchemaName::Id(id) => format!("/schemas/ids/{id}"),
            SchemaName::Guid(guid) => format!("/schemas/guids/{}", guid_text(&guid)),
        };
        let answer = self.get(&mut state, &path)?;
        let text: Option<Text> = found(answer, &format!("read the schema with {name}"))?;
        match &text {
            Some(text) => {
                state.known.insert(name, text.schema.clone());
            }
            None => {
                if state.unknown.len() >= UNKNOWN_MAX {
                    state.unknown.clear();
                    telemetry::limit(Limit::UnknownSchemas);
                }
                state.unknown.insert(name, now);
            }
        }
        Ok(text.map(|text| text.schema))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    fn get(&self, state: &mut State, path: &str) -> Result<Answer, Error> {
        self.call(state, || {
            let request = self.agent.get(format!("{}{path}", self.url)).header("accept", MEDIA_TYPE);
            match &self.authorization {
                Some(authorization) => request.header("authorization", authorization).call(),
                None => request.call(),
            }
        })
    }

    fn send(&self, state: &mut State, method: &str, path: &str, body: &serde_json::Value) -> Result<Answer, Error> {
        self.call(state, || {
            let url = format!("{}{path}", self.url);
            let request = if method == "PUT" { self.agent.put(url) } else { self.agent.post(url) };
            let request = request.header("accept", MEDIA_TYPE).header("content-type", MEDIA_TYPE);
            match &self.authorization {
                Some(authorization) => request.header("authorization", authorization).send(body.to_string()),
                None => request.send(body.to_string()),
            }
        })
    }

    /// One call, unless the back-off of an earlier one is still running.
    fn call(
        &self,
        state: &mut State,
        call: impl FnOnce() -> Result<Response<Body>, ureq::Error>,
    ) -> Result<Answer, Error> {
        if self.clock.monotonic() < state.closed_until {
            return Err(Unavailable(format!("waiting after: {}", state.last_failure)).into());
        }
        let answer = call().and_then(answer_of);
        telemetry::registry_request(match &answer {
            Ok(answer) if says_nothing(answer.status) => "failed",
            Ok(answer) if answer.status >= 400 => "refused",
            Ok(_) => "answered",
            Err(_) => "failed",
        });
        match answer {
            Ok(answer) if !says_nothing(answer.status) => {
                state.failures = 0;
                Ok(answer)
            }
            Ok(answer) => Err(state.failed(self.clock.monotonic(), format!("it answered {}", answer.status)).into()),
            Err(error) => Err(state.failed(self.clock.monotonic(), error.to_string()).into()),
        }
    }
}

impl Lookup for Registry {
    fn schema(&self, name: SchemaName) -> Result<Option<String>, Unavailable> {
        self.schema_of(name).map_err(unavailable)
    }

    fn id_of(&self, subject: &str, schema: &str) -> Result<Option<u32>, Unavailable> {
        self.find(subject, schema).map_err(unavailable)
    }
}

/// A refusal to tell (rights, a strange answer) is not "unknown": nothing may be dead-lettered for it.
fn unavailable(error: Error) -> Unavailable {
    match error {
        Error::Unavailable(unavailable) => unavailable,
        other => Unavailable(other.to_string()),
    }
}

#[derive(Deserialize)]
struct Id {
    id: u32,
}

fn answer_of(mut response: Response<Body>) -> Result<Answer, ureq::Error> {
    let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string()?;
    Ok(Answer { status: response.status().as_u16(), body })
}

/// Statuses of a registry that is overloaded, starting or broken.
const fn says_nothing(status: u16) -> bool {
    status >= 500 || status == 429 || status == 408
}

fn done<T: for<'a> Deserialize<'a>>(answer: Answer, what: &str) -> Result<T, Error> {
    let refused = |message: String| Error::Refused { what: what.to_owned(), status: answer.status, message };
    if answer.status != 200 {
        return Err(refused(message_of(&answer.body)));
    }
    serde_json::from_str(&answer.body).map_err(|e| refused(format!("an answer that cannot be read: {e}")))
}

fn found<T: for<'a> Deserialize<'a>>(answer: Answer, what: &str) -> Result<Option<T>, Error> {
    // Only the registry's own words for "no such subject, version or schema": the 404 of a proxy or of a wrong
    // base address must not turn good records into dead letters.
    if answer.status == 404 && matches!(error_code(&answer.body), Some(40_401..=40_403)) {
        return Ok(None);
    }
    done(answer, what).map(Some)
}

fn error_code(body: &str) -> Option<i64> {
    serde_json::from_str::<serde_json::Value>(body).ok()?["error_code"].as_i64()
}

fn message_of(body: &str) -> String {
    let parsed: Option<serde_json::Value> = serde_json::from_str(body).ok();
    let message = parsed.as_ref().and_then(|v| v["message"].as_str()).unwrap_or("no message");
    message.chars().take(300).collect()
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for n in 0..4 {
            let digit = ALPHABET[(group >> (18 - 6 * n) & 63) as usize] as char;
            text.push(if n <= chunk.len() { digit } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests;
