//! The generated population: the same bytes for a seed, the promised disorder, and nobody unknown to the directory.
//! `UPDATE=1 cargo test --test generate` rewrites the goldens.

use std::collections::{BTreeMap, BTreeSet};

use casestream::domain::Timestamp;
use casestream::domain::signal::{Op, Signal};
use casestream::domain::time::{DAY_MS, HOUR_MS};
use casestream::generate::{
    BenchSignals, Config, Error, Insiders, Population, RawEvent, Scenario, bench_signals, bench_user_key, events,
    signals, truth,
};
use serde_json::Value;

fn population(config: &Config) -> Population {
    Population::new(config).expect("the configuration is valid")
}

fn key(canonical_id: &str) -> String {
    format!("key-{canonical_id}")
}

/// Compares with a golden file, or rewrites it.
fn check(name: &str, text: &str) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let path = folder.join(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(&folder).expect("the golden folder can be made");
        std::fs::write(&path, text).expect("the golden file can be written");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    for (line, (expected, found)) in golden.lines().zip(text.lines()).enumerate() {
        assert_eq!(expected, found, "{name} line {}; look, then UPDATE=1", line + 1);
    }
    assert_eq!(golden.lines().count(), text.lines().count(), "{name}: lines; look, then UPDATE=1");
}

/// One hash over every field of every event, in order.
fn hash_of(config: &Config) -> String {
    let mut hasher = blake3::Hasher::new();
    for event in events(&population(config)) {
        let RawEvent { source, at, arrival, key, json } = event;
        hasher.update(format!("{source} {} {} {key} {json}\n", at.0, arrival.0).as_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

#[test]
fn a_seed_gives_the_same_bytes_everywhere() {
    let config = Config { users: 60, days: 30, ..Config::default() };
    let events = hash_of(&config);
    assert_ne!(hash_of(&Config { seed: 2, ..config.clone() }), hash_of(&config));

    let mut hasher = blake3::Hasher::new();
    for signal in signals(&population(&config), key) {
        hasher.update(&serde_json::to_vec(&signal).expect("a signal is serialisable"));
    }
    let signals = &hasher.finalize().to_hex()[..16];
    check("generate-hashes.txt", &format!("events {events}\nsignals {signals}\n"));
}

/// What happened, in the vendor's words.
fn kind_of(event: &RawEvent, json: &Value) -> String {
    let text = |pointer: &str| json.pointer(pointer).and_then(Value::as_str).unwrap_or("").to_owned();
    match event.source {
        "m365-dlp" => {
            let suffix = if json.pointer("/ExceptionInfo").is_some() { " overridden" } else { "" };
            format!("{} {} {}{suffix}", event.source, text("/Workload"), text("/Operation"))
        }
        "google-workspace" => {
            let suspicious = json.pointer("/events/0/parameters/2/boolValue") == Some(&Value::Bool(true));
            let suffix = match (text("/events/0/name").as_str(), text("/events/0/parameters/1/value").as_str()) {
                ("login_success", _) if suspicious => " suspicious",
                ("change_user_access", "external") => " external",
                _ => "",
            };
            format!("{} {}{suffix}", event.source, text("/events/0/name"))
        }
        _ => match text("/event/action").as_str() {
            action @ ("file-created" | "file-downloaded") => {
                let report = if json.pointer("/report/id") == Some(&Value::Null) { "" } else { " report" };
                format!("{} {action} {}{report}", event.source, text("/file/category"))
            }
            "file-deleted" if text("/file/directory").contains("/Logs/") => format!("{} log deleted", event.source),
            action => format!("{} {action}", event.source),
        },
    }
}

#[test]
fn first_event_of_each_kind() {
    let population = population(&Config { users: 120, days: 60, ..Config::default() });
    let mut first: BTreeMap<String, String> = BTreeMap::new();
    for event in events(&population) {
        let json: Value = serde_json::from_str(&event.json).expect("every event is JSON");
        assert!(!event.json.contains('\n'), "an event is one line");
        first.entry(kind_of(&event, &json)).or_insert(event.json);
    }
    let text: String = first.into_iter().map(|(kind, json)| format!("{kind}\n{json}\n")).collect();
    check("generate-first-events.txt", &text);
}

#[test]
fn disorder_is_as_configured() {
    let config = Config { users: 400, days: 15, ..Config::default() };
    let (mut all, mut late, mut doubled, mut disordered) = (0, 0, 0, 0);
    let mut previous = Timestamp::default();
    let mut newest: BTreeMap<&str, Timestamp> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for event in events(&population(&config)) {
        assert!(event.arrival >= previous && event.arrival > event.at, "events come in order of arrival");
        previous = event.arrival;
        if !seen.insert(blake3::hash(event.json.as_bytes()).to_hex()) {
            doubled += 1;
            continue;
        }
        all += 1;
        let newest = newest.entry(event.source).or_default();
        if event.arrival.0 - event.at.0 > HOUR_MS {
            late += 1;
            assert!(event.arrival.0 - event.at.0 < 3 * DAY_MS + HOUR_MS);
        } else if event.at < *newest {
            disordered += 1;
        }
        *newest = event.at.max(*newest);
    }
    let per_mille = |count: u32| count * 1_000 / all;
    assert!(all > 50_000, "{all} events are too few to judge shares");
    assert!((28..=32).contains(&per_mille(late)), "late: {} per mille", per_mille(late));
    assert!((4..=6).contains(&per_mille(doubled)), "doubled: {} per mille", per_mille(doubled));
    assert!((90..=105).contains(&per_mille(disordered)), "out of order: {} per mille", per_mille(disordered));
}

#[test]
fn order_is_kept_when_no_disorder_is_asked_for() {
    let calm = Config { late_per_mille: 0, duplicate_per_mille: 0, out_of_order_per_mille: 0, ..Config::default() };
    let calm = Config { days: 15, ..calm };
    let mut newest: BTreeMap<&str, Timestamp> = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for event in events(&population(&calm)) {
        let newest = newest.entry(event.source).or_default();
        assert!(event.at >= *newest);
        *newest = event.at;
        assert!(ids.insert(event.json), "no event comes twice");
    }
}

/// Every name in the place where a source names the acting person.
fn actor(event: &RawEvent, json: &Value) -> String {
    let pointers: &[&str] = match event.source {
        "m365-dlp" => &["/ExchangeMetaData/From", "/SharePointMetaData/From", "/UserId"],
        "google-workspace" => &["/actor/email", "/actor/profileId"],
        _ => &["/user/email"],
    };
    let found = pointers.iter().find_map(|pointer| json.pointer(pointer)?.as_str());
    found.expect("every event names somebody").to_lowercase()
}

#[test]
fn the_directory_knows_every_actor_and_each_name_once() {
    let population = population(&Config { users: 2_500, days: 2, ..Config::default() });
    let mut people: BTreeMap<String, String> = BTreeMap::new();
    let mut keys = BTreeSet::new();
    let directory: Vec<_> = population.directory(key).collect();
    for record in &directory {
        assert!(keys.insert(record.user_key.to_string()), "{} has a record of its own", record.canonical_id);
        for alias in &record.aliases {
            let owner = people.entry(alias.value.to_lowercase()).or_insert(record.canonical_id.to_string());
            assert_eq!(*owner, record.canonical_id.to_string(), "{} names one person", alias.value);
        }
    }
    assert_eq!(directory.iter().filter(|record| record.service_account).count(), 1);
    for record in directory.iter().filter_map(|record| record.manager_key.as_ref()) {
        assert!(keys.contains(record.as_str()), "a manager has a record");
    }
    for event in events(&population) {
        let json: Value = serde_json::from_str(&event.json).expect("every event is JSON");
        let name = actor(&event, &json);
        assert_eq!(people.get(&name), Some(&event.key), "{name} is in the directory");
    }
    assert!(signals(&population, key).all(|signal| keys.contains(signal.user_key.as_str())));
}

/// The vendor's id of an event.
fn id_of(event: &RawEvent, json: &Value) -> String {
    let pointer = match event.source {
        "m365-dlp" => "/Id",
        "google-workspace" => "/id/uniqueQualifier",
        _ => "/event/id",
    };
    json.pointer(pointer).and_then(Value::as_str).expect("every event has an id").to_owned()
}

#[test]
fn signals_and_truth_tell_of_the_same_events() {
    let population = population(&Config { users: 120, days: 60, insiders: Insiders::Count(8), ..Config::default() });
    let ids: BTreeSet<String> = events(&population)
        .map(|event| {
            let json = serde_json::from_str(&event.json).expect("every event is JSON");
            id_of(&event, &json)
        })
        .collect();
    let all: Vec<Signal> = signals(&population, key).collect();
    let signalled: BTreeSet<&str> = all.iter().map(|signal| signal.source_event_id.as_str()).collect();
    for signal in &all {
        assert!(ids.contains(signal.source_event_id.as_str()));
        assert!(Op::parse(&signal.op).is_some());
        assert_eq!(signal.day.as_str(), signal.occurred_at.day_at(signal.zone_offset_min).iso());
    }
    // Noise is about half; it leaves no signal.
    assert!(signalled.len() * 10 > ids.len() * 4 && signalled.len() * 10 < ids.len() * 6);

    let indicators: BTreeSet<&str> = all.iter().map(|signal| signal.indicator.as_str()).collect();
    let expected = "cloud_upload control_disabled dlp_cloud_match dlp_email_match download external_email \
        external_share file_archived file_deleted log_deleted print public_link removable_media_copy report_download \
        sensitive_read sign_in_unusual source_code_clone";
    assert_eq!(indicators.into_iter().collect::<Vec<_>>().join(" "), expected);

    let created: BTreeMap<&str, &Signal> = all
        .iter()
        .filter(|signal| signal.op == "create")
        .map(|signal| (signal.source_event_id.as_str(), signal))
        .collect();
    let retracted: Vec<&Signal> = all.iter().filter(|signal| signal.op == "retract").collect();
    assert!(!retracted.is_empty());
    for retraction in retracted {
        let act = created[retraction.source_event_id.as_str()];
        assert_eq!((&retraction.day, retraction.occurred_at), (&act.day, act.occurred_at));
        assert!(retraction.ingested_at > act.occurred_at && retraction.signal_id != act.signal_id);
    }

    let truths = truth(&population);
    assert_eq!(truths.iter().filter(|truth| truth.harmful).count(), 8);
    for truth in &truths {
        assert_eq!(truth.harmful_event_ids.is_empty(), !truth.harmful, "{truth:?}");
        assert!(truth.from < truth.to);
        assert!(truth.harmful_event_ids.iter().all(|id| signalled.contains(id.as_str())), "harm can be seen");
    }
    let scenarios: BTreeSet<Scenario> = truths.iter().map(|truth| truth.scenario).collect();
    assert_eq!(scenarios.len(), 6, "every scenario is played");
    let json = serde_json::to_string(&truths).expect("truth is serialisable");
    assert!(json.contains(r#""scenario":"job_hunter""#));
}

#[test]
fn most_people_do_little_and_a_few_do_much() {
    let population = population(&Config { users: 1_000, days: 5, insiders: Insiders::Count(0), ..Config::default() });
    let mut acts: BTreeMap<String, u32> = BTreeMap::new();
    for signal in signals(&population, key) {
        *acts.entry(signal.user_key.to_string()).or_default() += 1;
    }
    // Five working days.
    let (usual, power) = acts.values().fold((0, 0), |(usual, power), count| match count / 5 {
        0..=10 => (usual + 1, power),
        25.. => (usual, power + 1),
        _ => (usual, power),
    });
    assert!((750..=880).contains(&usual), "{usual} of 1000 people with up to ten acts a day");
    assert!((25..=80).contains(&power), "{power} of 1000 people with many acts a day");
}

#[test]
fn impossible_configurations_are_refused_with_a_code() {
    let good = Config::default();
    let cases: Vec<(Config, &str)> = vec![
        (Config { users: 0, ..good.clone() }, "generate.users"),
        (Config { days: 3_651, ..good.clone() }, "generate.days"),
        (Config { start: Timestamp(good.start.0 + 1), ..good.clone() }, "generate.start"),
        (Config { company_domain: "Exa\"mple".to_owned(), ..good.clone() }, "generate.domain"),
        (Config { insiders: Insiders::PerMille(1_000), ..good.clone() }, "generate.insiders"),
        (Config { late_per_mille: 1_001, ..good.clone() }, "generate.share"),
    ];
    for (config, code) in cases {
        assert_eq!(Population::new(&config).err().as_ref().map(Error::code), Some(code));
    }
    for (users, days) in [(1, 1), (2, 1), (30, 7)] {
        let small = Config { users, days, insiders: Insiders::Count(users / 2), ..good.clone() };
        assert!(events(&population(&small)).count() > 0, "{users} users, {days} days");
    }
}

fn avro_long(n: i64) -> usize {
    let zigzag = ((n << 1) ^ (n >> 63)) as u64;
    (64 - zigzag.leading_zeros()).div_ceil(7).max(1) as usize
}

fn avro_text(text: &str) -> usize {
    avro_long(text.len() as i64) + text.len()
}

/// Length of the Avro body of a bench signal. Fields that bench signals leave empty take one byte each.
fn avro_len(signal: &Signal) -> usize {
    let required = [&signal.signal_id, &signal.user_key, &signal.source, &signal.source_event_id, &signal.op];
    let more = [&signal.indicator, &signal.day, &signal.outcome, &signal.mapping, &signal.origin];
    let longs = [signal.occurred_at.0, signal.ingested_at.0, signal.zone_offset_min, signal.count, 1];
    let texts: usize = required.iter().chain(&more).map(|text| avro_text(text)).sum();
    let longs: usize = longs.iter().map(|n| avro_long(*n)).sum();
    let list = |items: usize| if items == 0 { 1 } else { 2 + items };
    let labels = list(signal.labels.iter().map(|label| avro_text(label)).sum());
    let destination = signal.destination.as_ref().expect("a bench signal goes somewhere");
    let destination =
        1 + avro_text(&destination.kind) + avro_text(&destination.value) + avro_text(&destination.direction);
    let file = &signal.resources[0];
    let bytes = 1 + avro_long(signal.bytes.expect("a bench signal has a size"));
    let resource = list(avro_text(&file.id) + avro_text(&file.kind) + bytes + 4);
    let device = 1 + avro_text(signal.device_id.as_ref().expect("a bench signal has a device"));
    // activity_key, confidence, vendor_severity, policy_name, info_types, app, ip, justification, raw, source_url and
    // attributes are empty; is_complete takes one byte, off_hours two.
    texts + longs + labels + destination + resource + device + bytes + 11 + 1 + 2
}

#[test]
fn bench_signals_are_small_distinct_and_mostly_harmless() {
    let (users, count) = (1_000, 50_000);
    let mut stream = bench_signals(users, 7);
    let at = Config::default().start;
    let (mut size, mut risky_users, mut ids) = (0, BTreeSet::new(), BTreeSet::new());
    let keys: BTreeSet<String> = (0..users).map(bench_user_key).collect();
    for _ in 0..count {
        let signal = stream.next_signal(at);
        size += avro_len(&signal);
        assert!(keys.contains(signal.user_key.as_str()));
        assert!(ids.insert(signal.source_event_id.to_string()), "no id comes twice");
        if signal.destination.as_ref().is_some_and(|destination| destination.direction == "external") {
            risky_users.insert(signal.user_key.to_string());
        }
    }
    let mean = size / count;
    assert!((250..=258).contains(&mean), "{mean} bytes is not about 254");
    let expected: BTreeSet<String> = (0..users).filter(|n| BenchSignals::is_risky(*n)).map(bench_user_key).collect();
    assert_eq!(risky_users, expected);
    assert!(expected.len() * 1_000 <= users as usize * 20, "at most 2 % of the users may come to an alert");

    let (mut first, mut second) = (bench_signals(users, 7), bench_signals(users, 7));
    for n in 0..1_000 {
        let at = at.plus_ms(n * HOUR_MS);
        assert_eq!(first.next_signal(at), second.next_owned(at));
    }
}
