//! The fixture itself: a broker and a store that start, forget and remember as the other tests on real parts rely on.
//!
//! Nothing of casestream is tested here. Next: `support/mod.rs`.

mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use support::{Isolation, Kafka, Process, Redis, create_topics, read_all, wait_for};

const TIMEOUT: Duration = Duration::from_secs(30);

#[test]
fn committed_records_are_still_there_after_kill_9_of_the_broker() {
    let mut kafka = Kafka::start();
    create_topics(&kafka, &[("kept", 3, &[("cleanup.policy", "compact")])]);
    let producer = transactional(&kafka, "kept-writer");
    write(&producer, "kept", 0..100);
    producer.commit_transaction(TIMEOUT).expect("could not commit");

    kafka.kill();
    kafka.restart();

    assert_eq!(values(&kafka, "kept", Isolation::ReadCommitted), (0..100).collect::<Vec<_>>());
}

#[test]
fn an_aborted_transaction_is_seen_only_by_a_read_uncommitted_reader() {
    let kafka = Kafka::shared();
    create_topics(kafka, &[("torn", 2, &[])]);
    let producer = transactional(kafka, "torn-writer");
    write(&producer, "torn", 0..10);
    producer.commit_transaction(TIMEOUT).expect("could not commit");
    write(&producer, "torn", 10..20);
    producer.abort_transaction(TIMEOUT).expect("could not abort");

    assert_eq!(values(kafka, "torn", Isolation::ReadCommitted), (0..10).collect::<Vec<_>>());
    assert_eq!(values(kafka, "torn", Isolation::ReadUncommitted), (0..20).collect::<Vec<_>>());
}

#[test]
fn an_empty_topic_is_read_to_its_end() {
    let kafka = Kafka::shared();
    create_topics(kafka, &[("empty", 8, &[])]);
    assert_eq!(values(kafka, "empty", Isolation::ReadCommitted), Vec::<u32>::new());
}

#[test]
fn redis_forgets_on_flush_and_on_kill() {
    let mut redis = Redis::start();
    set(&redis, "1");
    redis.flush();
    assert_eq!(get(&redis), None);

    set(&redis, "2");
    redis.restart();
    assert_eq!(get(&redis), None);
}

#[test]
fn redis_with_an_append_only_file_remembers_over_kill_9() {
    let mut redis = Redis::start_with(&[("appendonly", "yes"), ("appendfsync", "always")]);
    set(&redis, "1");
    redis.kill();
    redis.restart();
    assert_eq!(get(&redis), Some("1".to_owned()));
}

/// Runs this binary again with the helper below as its only test, and kills it.
#[test]
fn a_child_and_its_directory_go_when_the_test_process_is_killed() {
    let mut helper = Command::new(std::env::current_exe().expect("this binary has a path"))
        .args(["--ignored", "--exact", "helper_that_is_killed", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("could not run this binary again");
    let output = BufReader::new(helper.stdout.take().expect("its output is piped"));
    let line = output
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.split_once("child: ").map(|(_, rest)| rest.to_owned()));
    let line = line.expect("the helper ended without naming its child");
    let (pid, dir) = line.split_once(' ').expect("a pid and a directory");
    assert!(is_alive(pid) && Path::new(dir).is_dir());

    helper.kill().expect("could not kill the helper");
    helper.wait().expect("could not wait for the helper");

    wait_for("the child's end", TIMEOUT, || (!is_alive(pid)).then_some(()));
    wait_for("the directory's removal", TIMEOUT, || (!Path::new(dir).exists()).then_some(()));
}

#[test]
#[ignore = "the other half of a_child_and_its_directory_go_when_the_test_process_is_killed"]
fn helper_that_is_killed() {
    let mut process = Process::new("orphan");
    process.spawn(Command::new("sleep").arg("600"));
    println!("child: {} {}", process.pid(), process.dir().display());
    wait_for("the kill", Duration::from_secs(60), || None::<()>);
}

/// A process that nobody has waited for yet is still listed, as `Z`.
fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn transactional(kafka: &Kafka, id: &str) -> BaseProducer {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("transactional.id", id)
        .create()
        .expect("a producer");
    producer.init_transactions(TIMEOUT).expect("could not start transactions");
    producer
}

/// Begins a transaction and writes the numbers into it; all are delivered on return, nothing is decided.
fn write(producer: &BaseProducer, topic: &str, numbers: std::ops::Range<u32>) {
    producer.begin_transaction().expect("could not begin");
    for number in numbers {
        let text = number.to_string();
        producer.send(BaseRecord::to(topic).key(&text).payload(&text)).expect("could not queue");
    }
    wait_for("deliveries", TIMEOUT, || {
        producer.poll(Duration::from_millis(1));
        (producer.in_flight_count() == 0).then_some(())
    });
}

fn values(kafka: &Kafka, topic: &str, isolation: Isolation) -> Vec<u32> {
    let messages = read_all(&kafka.bootstrap(), topic, isolation);
    let payloads = messages.iter().map(|message| message.payload().expect("a value"));
    let mut values: Vec<u32> =
        payloads.map(|bytes| std::str::from_utf8(bytes).expect("text").parse().expect("a number")).collect();
    values.sort_unstable();
    values
}

fn set(redis: &Redis, value: &str) {
    redis::cmd("SET").arg("key").arg(value).exec(&mut redis.connect()).expect("could not set");
}

fn get(redis: &Redis) -> Option<String> {
    redis::cmd("GET").arg("key").query(&mut redis.connect()).expect("could not get")
}
