//! Configuration of the process: every key, its default and its range. Layers (defaults < file < environment < `--set`)
//! are put together in `config/layers.rs`; inside the program values are valid. Every key is described in
//! `config/casestream.toml`, which a test keeps equal to the defaults. An empty text means "not set".
//! What a policy or an indicator is worth is not configuration: see `policies.rs`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub mod layers;
mod nearest;
mod secret;

pub use layers::{Layers, Origin, Problem};
pub use nearest::nearest;
pub use secret::Secret;

/// Everything that can be configured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub app: App,
    pub kafka: Kafka,
    pub redis: Redis,
    pub registry: Registry,
    pub engine: Engine,
    pub map: Map,
    pub identity: Identity,
    pub commands: Commands,
    pub http: Http,
    pub log: Log,
    pub policies: Policies,
}

/// Who this process is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct App {
    /// Prefix of group and transactional ids; another id is another application.
    pub id: String,
    /// Number of this process among those of the same id; two processes never share one.
    pub ordinal: u32,
}

/// How to reach Kafka.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kafka {
    pub bootstrap_servers: String,
    /// Partitions of every topic keyed by user.
    pub partitions: i32,
    pub replication: i32,
    pub security_protocol: String,
    pub sasl: Sasl,
    pub ssl: Ssl,
    /// Further librdkafka settings, for what this file has no key for.
    pub client: BTreeMap<String, String>,
}

/// Kafka authentication by SASL.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sasl {
    pub mechanism: String,
    pub username: String,
    pub password_file: String,
}

/// Kafka transport security.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ssl {
    pub ca_file: String,
    pub cert_file: String,
    pub key_file: String,
}

/// The readable copy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Redis {
    pub enabled: bool,
    pub url: Secret,
    /// A file that holds the URL; wins over `url`.
    pub url_file: String,
    pub flush_interval_ms: u64,
}

/// The schema registry; without a URL the built-in schemas are used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registry {
    pub url: Secret,
    pub username: String,
    pub password_file: String,
}

/// The scoring workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Engine {
    pub workers: usize,
    pub batch_records_max: usize,
    pub batch_ms_max: u64,
    pub lateness_days: i64,
    /// Encoded user state resident in this process.
    pub state_bytes_max: u64,
    /// How long inputs must be drained before stream time follows the clock.
    pub idle_follow_ms: i64,
    pub transaction_timeout_ms: u64,
    pub session_timeout_ms: u64,
    pub level_valid_hours: i64,
}

/// The mapping workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Map {
    pub workers: usize,
    /// Domains that are the organisation's own.
    pub company_domains: Vec<String>,
    pub sources: Vec<Source>,
}

/// A vendor's topic and the program that maps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    pub name: String,
    pub topic: String,
    /// Path of the mapping file.
    pub mapping: String,
}

/// Pseudonyms.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Identity {
    /// The key of the keyed pseudonym.
    pub key_file: String,
}

/// Commands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Commands {
    /// Why a command is believed: `acl` means that the topic's ACL admits trusted writers only.
    pub trust: String,
}

/// Metrics, health and the built-in schema registry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    pub bind: String,
}

/// Logging, to stderr.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    pub format: String,
    pub filter: String,
}

/// Where policies come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policies {
    /// Directory with `indicators.toml` and `policies/`; empty: the set the binary was built with.
    pub dir: String,
}

impl Default for App {
    fn default() -> App {
        App { id: "casestream".into(), ordinal: 0 }
    }
}

impl Default for Kafka {
    fn default() -> Kafka {
        Kafka {
            bootstrap_servers: "127.0.0.1:9092".into(),
            partitions: crate::topology::PARTITIONS_DEFAULT,
            replication: 1,
            security_protocol: "plaintext".into(),
            sasl: Sasl::default(),
            ssl: Ssl::default(),
            client: BTreeMap::new(),
        }
    }
}

impl Default for Redis {
    fn default() -> Redis {
        Redis {
            enabled: true,
            url: Secret::new("redis://127.0.0.1:6379"),
            url_file: String::new(),
            flush_interval_ms: 200,
        }
    }
}

impl Default for Engine {
    fn default() -> Engine {
        Engine {
            workers: 1,
            batch_records_max: 20_000,
            batch_ms_max: 100,
            lateness_days: 30,
            state_bytes_max: 4 << 30,
            idle_follow_ms: 30_000,
            transaction_timeout_ms: 10_000,
            session_timeout_ms: 15_000,
            level_valid_hours: 24,
        }
    }
}

impl Default for Map {
    fn default() -> Map {
        Map { workers: 1, company_domains: Vec::new(), sources: Vec::new() }
    }
}

impl Default for Commands {
    fn default() -> Commands {
        Commands { trust: "acl".into() }
    }
}

impl Default for Http {
    fn default() -> Http {
        Http { bind: "127.0.0.1:9464".into() }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log { format: "text".into(), filter: "info".into() }
    }
}

/// The range of every number, both ends included. Checked before values get their type, so an error can name the range.
pub const RANGES: &[(&str, i64, i64)] = &[
    ("app.ordinal", 0, 9_999),
    ("kafka.partitions", 1, 4_096),
    ("kafka.replication", 1, 15),
    ("redis.flush_interval_ms", 10, 60_000),
    ("engine.workers", 1, 64),
    ("engine.batch_records_max", 1, 1_000_000),
    ("engine.batch_ms_max", 1, 30_000),
    ("engine.lateness_days", 1, 60),
    ("engine.state_bytes_max", 64 << 20, 1 << 40),
    ("engine.idle_follow_ms", 0, 3_600_000),
    ("engine.transaction_timeout_ms", 2_000, 900_000),
    ("engine.session_timeout_ms", 6_000, 1_800_000),
    ("engine.level_valid_hours", 1, 720),
    ("map.workers", 1, 64),
];

/// The words of every closed list.
pub const WORDS: &[(&str, &[&str])] = &[
    ("kafka.security_protocol", &["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"]),
    ("kafka.sasl.mechanism", &["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]),
    ("commands.trust", &["acl"]),
    ("log.format", &["text", "json"]),
];

/// Client settings that carry the guarantees, or have a key of their own here.
const CLIENT_SETTINGS_RESERVED: &[&str] = &[
    "acks",
    "auto.offset.reset",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "isolation.level",
    "partition.assignment.strategy",
    "partitioner",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.password",
    "sasl.username",
    "security.protocol",
    "session.timeout.ms",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.key.pem",
    "transaction.timeout.ms",
    "transactional.id",
];

impl Config {
    /// Puts the layers together and validates the result; everything wrong at once.
    pub fn load(layers: &Layers) -> Result<Config, Vec<Problem>> {
        layers::load(layers)
    }

    /// Rules between keys: (key, what is wrong, what to do).
    fn disagreements(&self) -> Vec<(String, String, String)> {
        let mut found = Vec::new();
        let mut wrong = |key: &str, message: String, fix: &str| found.push((key.to_owned(), message, fix.to_owned()));
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.app.id.is_empty() || self.app.id.len() > 40 || !self.app.id.chars().all(plain) {
            wrong(
                "app.id",
                format!("\"{}\" is not an id", self.app.id),
                "use lower-case letters, digits and `-`, at most 40",
            );
        }
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log.filter) {
            wrong("log.filter", format!("is not a filter: {error}"), "write for example \"info,casestream=debug\"");
        }
        if self.http.bind.parse::<SocketAddr>().is_err() {
            wrong(
                "http.bind",
                format!("\"{}\" is not an address and port", self.http.bind),
                "write for example \"127.0.0.1:9464\"; port 0 takes a free one",
            );
        }
        if self.engine.batch_ms_max * 2 > self.engine.transaction_timeout_ms {
            wrong(
                "engine.batch_ms_max",
                format!("is more than half of engine.transaction_timeout_ms ({})", self.engine.transaction_timeout_ms),
                "lower it: a batch must end well before its transaction does",
            );
        }
        self.kafka_disagreements(&mut wrong);
        self.map_disagreements(&mut wrong);
        self.address_disagreements(&mut wrong);
        if self.redis.enabled && self.redis.url.is_empty() && self.redis.url_file.is_empty() {
            wrong("redis.url", "is empty".into(), "set it or redis.url_file, or write redis.enabled = false");
        }
        found
    }

    /// Addresses may hold secrets, so what is wrong is said without them.
    fn address_disagreements(&self, wrong: &mut impl FnMut(&str, String, &str)) {
        let begins = |url: &Secret, schemes: &[&str]| schemes.iter().any(|s| url.expose().starts_with(s));
        if !self.redis.url.is_empty() && !begins(&self.redis.url, &["redis://", "rediss://", "unix://"]) {
            wrong(
                "redis.url",
                "is not an address".into(),
                "write redis://host:port, rediss://… with TLS, or unix://path",
            );
        }
        if !self.registry.url.is_empty() && !begins(&self.registry.url, &["http://", "https://"]) {
            wrong("registry.url", "is not an address".into(), "write http://host:port or https://host:port");
        }
        if self.registry.username.is_empty() != self.registry.password_file.is_empty() {
            wrong("registry.username", "name and password belong together".into(), "set both, or none");
        }
        let port = |server: &str| {
            server
                .trim()
                .rsplit_once(':')
                .and_then(|(host, port)| (!host.is_empty()).then(|| port.parse::<u16>().ok()).flatten())
        };
        for server in self.kafka.bootstrap_servers.split(',').filter(|server| port(server).is_none()) {
            let message = format!("\"{server}\" is not host:port");
            wrong("kafka.bootstrap_servers", message, "write host:port, several separated by commas");
        }
    }

    fn kafka_disagreements(&self, wrong: &mut impl FnMut(&str, String, &str)) {
        let Kafka { sasl, ssl, client, security_protocol, .. } = &self.kafka;
        if security_protocol.starts_with("sasl") {
            for (key, value) in [
                ("kafka.sasl.mechanism", &sasl.mechanism),
                ("kafka.sasl.username", &sasl.username),
                ("kafka.sasl.password_file", &sasl.password_file),
            ] {
                if value.is_empty() {
                    wrong(key, format!("is empty, but kafka.security_protocol is {security_protocol}"), "set it");
                }
            }
        }
        if security_protocol != "plaintext" && !cfg!(feature = "kafka-tls") {
            wrong(
                "kafka.security_protocol",
                format!("{security_protocol} is not in this build"),
                "use a binary built with the feature `kafka-tls`",
            );
        }
        if ssl.cert_file.is_empty() != ssl.key_file.is_empty() {
            wrong("kafka.ssl.cert_file", "certificate and key belong together".into(), "set both, or none");
        }
        for name in client.keys().filter(|n| CLIENT_SETTINGS_RESERVED.contains(&n.as_str())) {
            wrong(
                &format!("kafka.client.{name}"),
                "may not be overridden".into(),
                "remove it: it carries the guarantees, or has a key of its own in this file",
            );
        }
    }

    fn map_disagreements(&self, wrong: &mut impl FnMut(&str, String, &str)) {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        for domain in &self.map.company_domains {
            if !domain.contains('.') || !domain.chars().all(plain) {
                let message = format!("\"{domain}\" is not a domain in lower case");
                wrong("map.company_domains", message, "write it like \"example.com\"; it covers its subdomains");
            }
        }
        for (n, source) in self.map.sources.iter().enumerate() {
            let earlier = &self.map.sources[..n];
            if earlier.iter().any(|s| s.name == source.name) {
                let message = format!("two sources are named \"{}\"", source.name);
                wrong("map.sources", message, "give each source its own name");
            }
            if earlier.iter().any(|s| s.topic == source.topic) {
                let message = format!("two sources read \"{}\"", source.topic);
                wrong("map.sources", message, "one mapping may make several kinds of signal: join the two");
            }
            for (key, value) in [("name", &source.name), ("topic", &source.topic), ("mapping", &source.mapping)] {
                if value.trim().is_empty() {
                    wrong("map.sources", format!("`{key}` of source {} is empty", n + 1), "set it");
                }
            }
        }
    }
}

impl Kafka {
    /// librdkafka settings of every client. Holds the password: never log it.
    pub fn client_settings(&self) -> Result<BTreeMap<String, String>, Problem> {
        let mut settings = self.client.clone();
        let mut set = |name: &str, value: &str| {
            if !value.is_empty() {
                settings.insert(name.to_owned(), value.to_owned());
            }
        };
        set("bootstrap.servers", &self.bootstrap_servers);
        set("security.protocol", &self.security_protocol);
        set("sasl.mechanism", &self.sasl.mechanism);
        set("sasl.username", &self.sasl.username);
        set("ssl.ca.location", &self.ssl.ca_file);
        set("ssl.certificate.location", &self.ssl.cert_file);
        set("ssl.key.location", &self.ssl.key_file);
        if let Some(password) = read_file("kafka.sasl.password_file", &self.sasl.password_file)? {
            set("sasl.password", password.expose());
        }
        Ok(settings)
    }
}

impl Redis {
    /// The address, from the file when one is named.
    pub fn address(&self) -> Result<Secret, Problem> {
        Ok(read_file("redis.url_file", &self.url_file)?.unwrap_or_else(|| self.url.clone()))
    }
}

impl Registry {
    /// The password, when one is configured.
    pub fn password(&self) -> Result<Option<Secret>, Problem> {
        read_file("registry.password_file", &self.password_file)
    }
}

impl Identity {
    /// The key of the keyed pseudonym, when one is configured.
    pub fn key(&self) -> Result<Option<Secret>, Problem> {
        read_file("identity.key_file", &self.key_file)
    }
}

impl Http {
    /// The address to listen on.
    pub fn address(&self) -> SocketAddr {
        self.bind.parse().expect("validated on load")
    }
}

fn read_file(key: &str, path: &str) -> Result<Option<Secret>, Problem> {
    if path.is_empty() {
        return Ok(None);
    }
    Secret::read(Path::new(path)).map(Some).map_err(|error| Problem {
        key: key.to_owned(),
        origin: Origin::File { path: path.to_owned(), line: 0 },
        message: format!("could not read it: {error}"),
        fix: "create the file, or make it readable to this user".to_owned(),
    })
}
