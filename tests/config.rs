//! Configuration: layers win in order, every problem names its origin, and the documented file equals the defaults.

use casestream::config::{Config, Layers, RANGES};

const SHIPPED: &str = include_str!("../config/casestream.toml");

fn layers(file: &str, environment: &[(&str, &str)], sets: &[&str]) -> Layers {
    Layers {
        file: (!file.is_empty()).then(|| ("casestream.toml".to_owned(), file.to_owned())),
        environment: environment.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
        sets: sets.iter().map(|s| (*s).to_owned()).collect(),
    }
}

fn problems(layers: &Layers) -> Vec<String> {
    match Config::load(layers) {
        Ok(config) => panic!("accepted: {config:?}"),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

fn leaves(prefix: &str, table: &toml::Table, keys: &mut Vec<(String, toml::Value)>) {
    for (name, value) in table {
        match value {
            toml::Value::Table(inner) => leaves(&format!("{prefix}{name}."), inner, keys),
            value => keys.push((format!("{prefix}{name}"), value.clone())),
        }
    }
}

#[test]
fn the_documented_file_has_every_key_with_its_default() {
    assert_eq!(Config::load(&layers(SHIPPED, &[], &[])).unwrap(), Config::default());
    let documented: toml::Table = SHIPPED.parse().unwrap();
    assert_eq!(documented, toml::Table::try_from(Config::default()).unwrap(), "every key is written down");
}

#[test]
fn every_number_has_a_range_and_a_default_inside_it() {
    let mut keys = Vec::new();
    leaves("", &toml::Table::try_from(Config::default()).unwrap(), &mut keys);
    let numbers: Vec<_> = keys.iter().filter_map(|(k, v)| Some((k.as_str(), v.as_integer()?))).collect();
    assert_eq!(numbers.len(), RANGES.len());
    for (key, default) in numbers {
        let (_, low, high) = RANGES.iter().find(|(k, _, _)| *k == key).unwrap_or_else(|| panic!("{key} has no range"));
        assert!((low..=high).contains(&&default), "{key}");
    }
}

#[test]
fn later_layers_win() {
    let file = "[engine]\nworkers = 2\nbatch_ms_max = 50\n[kafka]\nbootstrap_servers = \"a:1\"\n";
    let environment = [("CASESTREAM_ENGINE__WORKERS", "3"), ("CASESTREAM_KAFKA__SASL__USERNAME", "007")];
    let config = Config::load(&layers(file, &environment, &["engine.workers=4", "redis.enabled=false"])).unwrap();
    assert_eq!(config.engine.workers, 4);
    assert_eq!(config.engine.batch_ms_max, 50);
    assert_eq!(config.kafka.bootstrap_servers, "a:1");
    assert_eq!(config.kafka.sasl.username, "007", "a text stays a text");
    assert!(!config.redis.enabled);
    assert_eq!(config.engine.lateness_days, 30);
}

#[test]
fn lists_and_client_settings_come_through_every_layer() {
    let environment = [("CASESTREAM_KAFKA__CLIENT__STATISTICS_INTERVAL_MS", "0")];
    let file = "[kafka.client]\n\"socket.keepalive.enable\" = \"true\"\n";
    let sources = r#"map.sources=[{ name = "x", topic = "raw.x", mapping = "x.toml" }]"#;
    let sets = [sources, "kafka.client.linger.ms=5", r#"map.company_domains=["example.com"]"#];
    let config = Config::load(&layers(file, &environment, &sets)).unwrap();
    assert_eq!(config.map.sources[0].topic, "raw.x");
    assert_eq!(config.map.company_domains, ["example.com"]);
    let settings = config.kafka.client_settings().unwrap();
    assert_eq!(settings["socket.keepalive.enable"], "true");
    assert_eq!(settings["linger.ms"], "5");
    assert_eq!(settings["statistics.interval.ms"], "0");
    assert_eq!(settings["bootstrap.servers"], "127.0.0.1:9092");
}

#[test]
fn every_problem_names_origin_key_and_way_out() {
    let file = "[engine]\nworkers = 0\nbatch_ms = 5\nlateness_days = \"30\"\n[log]\nformat = \"yaml\"\n";
    let environment = [("CASESTREAM_REDIS__FLUSH_INTERVAL_MS", "many"), ("CASESTREAM_SERVICE_HOST", "10.0.0.1")];
    let found = problems(&layers(file, &environment, &["engine.lateness_days=99", "workers=1", "engine", "x"]));
    let expected = [
        "casestream.toml:2: engine.workers: is 0, outside 1 to 64\n  fix: choose a number from 1 to 64",
        "casestream.toml:3: engine.batch_ms: is not a key\n  fix: did you mean engine.batch_ms_max?",
        "casestream.toml:4: engine.lateness_days: is a text, not a whole number\n  fix: write a whole number",
        "casestream.toml:6: log.format: does not know \"yaml\"\n  fix: possible: text, json",
        "environment CASESTREAM_REDIS__FLUSH_INTERVAL_MS: redis.flush_interval_ms: is not a whole number\n  fix: write a whole number",
        "--set engine.lateness_days: engine.lateness_days: is 99, outside 1 to 60\n  fix: choose a number from 1 to 60",
        "--set workers: workers: is not a key\n  fix: did you mean engine.workers?",
        "--set engine: there is no `=`\n  fix: write --set section.key=value",
        "--set x: there is no `=`\n  fix: write --set section.key=value",
    ];
    assert_eq!(found, expected);
}

#[test]
fn rules_between_keys_are_checked() {
    for (set, expected) in [
        ("app.id=Big Corp", "--set app.id: app.id: \"Big Corp\" is not an id"),
        ("http.bind=localhost", "--set http.bind: http.bind: \"localhost\" is not an address and port"),
        ("engine.batch_ms_max=6000", "--set engine.batch_ms_max: engine.batch_ms_max: is more than half of"),
        ("kafka.client.isolation.level=x", "--set kafka.client.isolation.level: kafka.client.isolation.level: may not"),
        ("kafka.client.sasl.password=x", "--set kafka.client.sasl.password: kafka.client.sasl.password: may not be"),
        (
            "kafka.ssl.cert_file=x",
            "--set kafka.ssl.cert_file: kafka.ssl.cert_file: certificate and key belong together",
        ),
        ("redis.url=", "--set redis.url: redis.url: is empty"),
        ("kafka.bootstrap_servers=", "--set kafka.bootstrap_servers: kafka.bootstrap_servers: \"\" is not host:port"),
        (
            "kafka.bootstrap_servers=a:1,b",
            "--set kafka.bootstrap_servers: kafka.bootstrap_servers: \"b\" is not host:port",
        ),
        ("redis.url=hunter2", "--set redis.url: redis.url: is not an address"),
        ("registry.url=hunter2", "--set registry.url: registry.url: is not an address"),
        ("registry.username=x", "--set registry.username: registry.username: name and password belong together"),
        ("log.filter=info=loud", "--set log.filter: log.filter: is not a filter"),
        (r#"map.company_domains=["@Example.com"]"#, "--set map.company_domains: map.company_domains: \"@Example.com\""),
        (
            r#"map.sources=[{ name = "", topic = "t", mapping = "m" }]"#,
            "--set map.sources: map.sources: `name` of source 1",
        ),
        (r#"map.sources=[{ name = "a", topc = "t" }]"#, "--set map.sources: map.sources[0].topc: unknown field `topc`"),
    ] {
        let found = problems(&layers("", &[], &[set]));
        assert!(!found.concat().contains("hunter2"));
        assert!(found.len() == 1 && found[0].starts_with(expected), "{set}: {found:#?}");
    }
}

#[test]
fn secrets_are_read_from_files_and_never_printed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("url");
    std::fs::write(&path, "redis://app:hunter2@cache:6379\n").unwrap();
    let url_file = format!("redis.url_file={}", path.display());
    let config = Config::load(&layers("", &[], &[&url_file, "redis.url=redis://u:hunter2@h:1"])).unwrap();
    assert_eq!(config.redis.address().unwrap().expose(), "redis://app:hunter2@cache:6379");
    assert!(!format!("{config:?} {:?}", config.redis.address()).contains("hunter2"));
    let gone = Config::load(&layers("", &[], &["kafka.sasl.password_file=no/such/file"])).unwrap();
    let problem = gone.kafka.client_settings().unwrap_err();
    assert!(problem.to_string().starts_with("no/such/file: kafka.sasl.password_file: could not read it"));
}

#[test]
fn broken_toml_names_the_line() {
    let found = problems(&layers("[engine]\nworkers = \n[kafka\n", &[], &[]));
    assert!(found[0].starts_with("casestream.toml:2: "), "{found:#?}");
    assert!(found.iter().any(|p| p.starts_with("casestream.toml:3: ")), "{found:#?}");
}
