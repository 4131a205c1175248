//! `casestream demo` as a stranger meets it: the JSON document, the README's first ten minutes line by line, a killed
//! worker, a killed demo, and what is said when it cannot start.

#![cfg(all(feature = "embedded", feature = "vrl"))]

mod support;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use support::{Process, wait_for};

/// Many times what it takes on two busy cores.
const PATIENCE: Duration = Duration::from_secs(180);
const SMALL: [&str; 4] = ["--users", "40", "--days", "5"];

fn demo(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_casestream"));
    command.arg("demo").args(arguments).current_dir(dir).env_remove("CASESTREAM_CONFIG");
    command
}

fn run(dir: &Path, arguments: &[&str]) -> Output {
    demo(dir, arguments).output().unwrap()
}

fn document(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

/// Processes that were given a path below the directory: the demo's children are.
fn children(dir: &Path) -> Vec<String> {
    let dir = dir.canonicalize().unwrap().to_string_lossy().into_owned();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.contains(&dir) && line.contains("--until-stdin-closes")).collect()
}

fn wait_until_alone(dir: &Path) {
    wait_for("every child to end", PATIENCE, || children(dir).is_empty().then_some(()));
}

#[test]
fn json_is_one_document_that_adds_up_and_the_next_start_continues() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = [&SMALL[..], &["--for", "1s", "--output", "json"]].concat();
    let first = document(&run(dir.path(), &arguments));
    let number = |document: &Value, name: &str| document[name].as_i64().unwrap_or_else(|| panic!("{name}: {document}"));
    let rows = ["scored", "unscored", "duplicates", "late", "rerouted", "dead_letters"];
    assert_eq!(number(&first, "signals_in"), rows.iter().map(|row| number(&first, row)).sum::<i64>(), "{first:#}");
    for more in ["events_in", "scored", "insights", "alerts_total", "alerts_open", "users"] {
        assert!(number(&first, more) > 0, "{more}: {first:#}");
    }
    for none in ["events_dead", "dead_letters", "differences"] {
        assert_eq!(number(&first, none), 0, "{none}: {first:#}");
    }
    assert_eq!(number(&first, "users"), 40);
    assert_eq!(first["verified"], true);
    let highest = &first["highest"];
    assert!(highest["user_key"].is_string() && highest["level"].is_string(), "{first:#}");
    assert!((1..=100_000).contains(&number(highest, "score_milli")), "{first:#}");
    assert_eq!(children(dir.path()), Vec::<String>::new());

    let again = document(&run(dir.path(), &["--for", "1s", "--output", "json"]));
    assert!(number(&again, "events_in") >= number(&first, "events_in"), "{again:#}");
    assert_eq!((&again["users"], &again["differences"]), (&first["users"], &first["differences"]));

    let other = run(dir.path(), &["--users", "41", "--for", "1s"]);
    assert_eq!(other.status.code(), Some(2));
    let said = String::from_utf8_lossy(&other.stderr);
    assert!(said.contains("demo.other") && said.contains("--users 40 --days 5 --seed 1"), "{said}");
}

/// What a reader copies from the demo's words.
struct Printed {
    who: String,
    record: String,
    broker: String,
    worker: u32,
}

fn after<'a>(log: &'a str, marker: &str) -> Option<&'a str> {
    log.split_once(marker)?.1.split_whitespace().next()
}

fn printed(log: &str) -> Option<Printed> {
    // The last of the words.
    log.contains("keep flowing").then(|| Printed {
        who: after(log, " explain ").unwrap().to_owned(),
        record: after(log, " trace ").unwrap().to_owned(),
        broker: after(log, "kcat -C -b ").unwrap().to_owned(),
        worker: after(log, "kill -9 ").unwrap().parse().unwrap(),
    })
}

/// The README's lines for the second terminal, with what the demo has printed.
fn readme(printed: &Printed) -> Vec<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let section = text.split("## The first ten minutes").nth(1).unwrap().split("\n## ").next().unwrap();
    let blocks: Vec<&str> = section.split("```sh\n").skip(1).map(|part| part.split("```").next().unwrap()).collect();
    assert_eq!(blocks[0].trim(), "cargo run --release -- demo");
    let mut lines = Vec::new();
    for line in blocks[1..].iter().flat_map(|block| block.lines()).filter(|line| !line.is_empty()) {
        let value = match line.split('=').next().unwrap() {
            "alias casestream" => continue,
            "who" => &printed.who,
            "record" => &printed.record,
            "broker" => &printed.broker,
            "worker" => &printed.worker.to_string(),
            _ => {
                lines.push(line.to_owned());
                continue;
            }
        };
        lines.push(format!("{}={value}", line.split('=').next().unwrap()));
    }
    lines
}

/// Runs one line after what the lines before it have set.
fn shell(dir: &Path, before: &[String], line: &str) -> Output {
    let binary = env!("CARGO_BIN_EXE_casestream");
    let script = format!("casestream() {{ {binary:?} \"$@\"; }}\n{}\n{line}\n", before.join("\n"));
    Command::new("sh").args(["-c", &script]).current_dir(dir).output().unwrap()
}

/// What must stand in the answer to a line, by what the line begins with.
const SHAPES: &[(&str, &[&str])] = &[
    ("casestream explain $who", &["score  ", "POINTS  INDICATOR AND DAY", "= score", "POLICY", "WITHOUT"]),
    ("casestream trace $record", &[" 1. raw         raw.", "2. mapping", "risk-signals:", "it came through"]),
    ("kcat -C -b $broker -t risk-levels", &[" bytes\n"]),
    ("kcat -C -b $broker -t alerts", &[" bytes\n"]),
    ("kill -9 $worker", &[]),
    ("casestream status", &["healthy at ", "ledger balances"]),
    ("printf ", &[]),
    ("casestream produce", &["1 record written to raw.code42: raw.code42:0:"]),
    (
        "casestream trace mine-1",
        &[" 1. raw         raw.code42:", "removable_media_copy from code42", "it came through"],
    ),
    ("casestream explain me@example.com", &["removable_media_copy", "= score"]),
];

#[test]
fn the_first_ten_minutes_go_as_the_readme_says() {
    let mut process = Process::new("demo");
    let dir = process.dir().to_owned();
    process.spawn(&mut demo(&dir, &[&SMALL[..], &["--rate", "5"]].concat()));
    let words = wait_for("the demo's last words", PATIENCE, || printed(&process.log()));
    let log = process.log();
    for part in ["for trying out, not for production", "ledger: ", "the riskiest people", "differences: 0"] {
        assert!(log.contains(part), "{part}: {log}");
    }

    let second = run(&dir, &["--for", "1s"]);
    assert_eq!(second.status.code(), Some(4), "{second:?}");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("demo.running") && said.contains(&process.pid().to_string()), "{said}");

    let (mut set, mut shapes) = (Vec::new(), SHAPES.iter());
    for line in readme(&words) {
        if line.starts_with("export ") || line.split('=').next().is_some_and(|name| !name.contains(' ')) {
            set.push(line);
            continue;
        }
        let (begins, parts) = shapes.next().unwrap_or_else(|| panic!("no shape is expected of: {line}"));
        assert!(line.starts_with(begins), "the README says {line}, the test expects {begins}");
        // What was just written takes a moment, and so does a worker that was just killed.
        wait_for(&format!("{line} to answer as expected"), PATIENCE, || {
            let output = shell(&dir, &set, &line);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let good = output.status.success() && parts.iter().all(|part| text.contains(part));
            good.then_some(())
        });
    }
    assert!(shapes.next().is_none(), "the README has lost lines");
    wait_for("the killed worker to be replaced", PATIENCE, || {
        process.log().contains(&format!("worker {} ended (signal 9); started again as ", words.worker)).then_some(())
    });

    // SIGKILL of the demo itself, in the middle of everything.
    process.kill();
    wait_until_alone(&dir);
    let standing = document(&run(&dir, &["--for", "1s", "--output", "json"]));
    assert_eq!((&standing["differences"], &standing["verified"]), (&Value::from(0), &Value::from(true)));
    assert_eq!(standing["users"], 41, "the reader is one of them now: {standing:#}");
    assert_eq!(children(&dir), Vec::<String>::new());
}

#[test]
fn sigterm_ends_it_in_order_and_half_a_month_is_made_anew() {
    let mut process = Process::new("demo");
    let dir = process.dir().to_owned();
    process.spawn(&mut demo(&dir, &["--users", "300"]));
    wait_for("the worker to run", PATIENCE, || process.log().contains("worker ").then_some(()));
    process.signal("TERM");
    let status = wait_for("the demo to end", PATIENCE, || process.ended());
    assert!(status.success(), "{status}: {}", process.log());
    assert_eq!(children(&dir), Vec::<String>::new());
    let standing = document(&run(&dir, &[&SMALL[..], &["--output", "json"]].concat()));
    assert_eq!((&standing["users"], &standing["differences"]), (&Value::from(40), &Value::from(0)));
}

#[test]
fn what_keeps_it_from_starting_is_said_with_a_code() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    fs::write(dir.path().join("file"), "").unwrap();
    for (arguments, exit, parts) in [
        (&["--kafka-port", &port][..], 4, &["demo.port", "--kafka-port", &port][..]),
        (&["--redis-port", &port], 4, &["demo.port", "--redis-port"]),
        (&["--dir", "file/below"], 4, &["demo.disk", "file/below"]),
        (&["--for", "soon"], 2, &["30s"]),
        (&["--users", "1"], 2, &["--users"]),
    ] {
        let output = run(dir.path(), arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{arguments:?}: {said}");
    }
}

#[test]
fn a_full_disk_ends_it_with_a_code_and_leaves_nothing_running() {
    let dir = tempfile::tempdir().unwrap();
    // No file may grow beyond 1 MiB: the broker's journal must.
    let script = format!(
        "trap '' XFSZ; ulimit -f 2048; exec {:?} demo --users 100 --days 30 --output json",
        env!("CARGO_BIN_EXE_casestream")
    );
    let output = Command::new("sh").args(["-c", &script]).current_dir(dir.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("(demo.devkit)"), "{said}");
    wait_until_alone(dir.path());
}
