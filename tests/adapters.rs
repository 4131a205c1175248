//! The production adapters against a real broker and a real Redis: each claim of the ports, one test.

#[path = "conformance/copies.rs"]
mod copies;
mod support;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use casestream::domain::Timestamp;
use casestream::runtime::admin::{Admin, Finding, Step};
use casestream::runtime::client::Connection;
use casestream::runtime::log::KafkaLog;
use casestream::runtime::ports::{
    Changes, ErrorKind, Group, InputOffset, Log, Outgoing, Polled, RecordRef, TopicName, Txn,
};
use casestream::runtime::source::{KafkaGroup, Membership};
use casestream::runtime::transaction::{KafkaProducer, KafkaTxn};
use casestream::topology::{TOPICS, intern};
use support::{Isolation, Kafka, create_topics, read_all, wait_for};

/// Shortest silence a broker allows by default.
const SESSION: Duration = Duration::from_secs(6);
const PATIENCE: Duration = Duration::from_secs(60);

fn unique(name: &str) -> &'static str {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    intern(&format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed)))
}

fn topic(kafka: &Kafka, name: &str, partitions: i32) -> TopicName {
    let topic = unique(name);
    create_topics(kafka, &[(topic, partitions, &[])]);
    topic
}

fn connection(kafka: &Kafka) -> Connection {
    Connection::new(kafka.bootstrap())
}

fn record<'a>(topic: TopicName, partition: i32, value: &'a [u8]) -> Outgoing<'a> {
    Outgoing { topic, partition, key: Some(b"key"), value: Some(value), headers: &[], timestamp: None }
}

fn at(topic: TopicName, partition: i32, offset: i64) -> InputOffset {
    InputOffset { topic, partition, offset, metadata: String::new() }
}

fn write(kafka: &Kafka, topic: TopicName, partition: i32, values: std::ops::Range<u32>) {
    let mut producer = KafkaProducer::new(&connection(kafka)).unwrap();
    for value in values {
        producer.send(&record(topic, partition, value.to_string().as_bytes())).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
}

fn join(kafka: &Kafka, group: &str, instance: Option<&str>, inputs: &[TopicName]) -> KafkaGroup {
    let mut membership = Membership::new(group, instance.map(str::to_owned), inputs.to_vec());
    membership.session_timeout = SESSION;
    KafkaGroup::join(&connection(kafka), membership).unwrap()
}

/// Polls until membership changed to an assignment of so many partitions.
fn assigned(group: &mut KafkaGroup, partitions: usize) -> Changes {
    wait_for("an assignment", PATIENCE, || {
        let polled = group.poll(Duration::from_millis(100), &mut |_| {}).unwrap();
        let changes = (polled == Polled::Rebalanced).then(|| group.changes())?;
        changes.assigned.as_ref().is_some_and(|list| list.len() == partitions).then_some(changes)
    })
}

fn text(record: RecordRef<'_>) -> String {
    String::from_utf8(record.value.unwrap().to_vec()).unwrap()
}

fn next_values(group: &mut KafkaGroup, count: usize) -> Vec<String> {
    let mut values = Vec::new();
    wait_for("records", PATIENCE, || {
        group.poll(Duration::from_millis(100), &mut |record| values.push(text(record))).unwrap();
        (values.len() >= count).then_some(())
    });
    values
}

fn values(log: &mut KafkaLog, topic: TopicName, from: i64, until: i64) -> Vec<String> {
    let mut values = Vec::new();
    log.read(topic, 0, from, until, &mut |record| values.push(text(record))).unwrap();
    values
}

fn log(kafka: &Kafka, group: &str) -> KafkaLog {
    KafkaLog::new(&connection(kafka), group).unwrap()
}

fn members(kafka: &Kafka, group: &str) -> usize {
    let client: rdkafka::consumer::BaseConsumer =
        rdkafka::ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create().unwrap();
    let groups = rdkafka::consumer::Consumer::fetch_group_list(&client, Some(group), PATIENCE).unwrap();
    groups.groups().iter().map(|group| group.members().len()).sum()
}

#[test]
fn an_assignment_waits_for_its_start_and_outlives_the_session() {
    let kafka = Kafka::shared();
    let (one, two) = (topic(kafka, "one", 2), topic(kafka, "two", 2));
    write(kafka, one, 0, 0..5);
    let group_id = unique("group");
    let mut group = join(kafka, group_id, Some("w0"), &[one, two]);
    let changes = assigned(&mut group, 4);
    assert!(changes.revoked.is_empty());
    assert!(group.owns(one, 0) && group.owns(two, 1) && !group.owns(one, 2) && !group.owns("other", 0));
    // Recovery may take longer than the session, without a poll; the broker must go on seeing the member.
    let until = Instant::now() + SESSION + Duration::from_secs(2);
    while Instant::now() < until {
        assert_eq!(members(kafka, group_id), 1);
    }
    // The new generation's proof of membership is good before the start: recovery commits the epoch with it.
    let mut txn = KafkaTxn::new(&connection(kafka), unique("txn"));
    txn.init().unwrap();
    txn.begin().unwrap();
    txn.send_offsets(&[at(one, 0, 2)], &group.metadata().unwrap()).unwrap();
    txn.commit().unwrap();
    // Nothing was fetched meanwhile, and membership did not change.
    assert_eq!(group.poll(Duration::from_millis(200), &mut |_| panic!("not started")).unwrap(), Polled::Nothing);
    group.start(&[at(one, 0, 2), at(one, 1, 0), at(two, 0, 0), at(two, 1, 0)]).unwrap();
    assert_eq!(next_values(&mut group, 3), ["2", "3", "4"]);
    group.seek(&[at(one, 0, 1)]).unwrap();
    assert_eq!(next_values(&mut group, 4), ["1", "2", "3", "4"]);
    group.close();
    assert_eq!(group.metadata().map(|_| ()).unwrap_err().kind, ErrorKind::Fatal);
}

/// Polls each member in turn, starting whatever it is assigned at offset 0, until each has so many partitions.
fn settle(members: &mut [&mut KafkaGroup], input: TopicName, partitions: usize, each: usize) -> Vec<Changes> {
    let mut log = vec![Vec::new(); members.len()];
    wait_for("the group to settle", PATIENCE, || {
        for (member, log) in members.iter_mut().zip(&mut log) {
            if member.poll(Duration::from_millis(20), &mut |_| {}).unwrap() == Polled::Rebalanced {
                let changes = member.changes();
                if let Some(assigned) = &changes.assigned {
                    member.start(&assigned.iter().map(|(t, p)| at(t, *p, 0)).collect::<Vec<_>>()).unwrap();
                }
                log.push(changes);
            }
        }
        let owned = |member: &KafkaGroup| (0..partitions as i32).filter(|p| member.owns(input, *p)).count();
        members.iter().all(|member| owned(member) == each).then_some(())
    });
    log.into_iter().flatten().collect()
}

#[test]
fn a_second_member_takes_over_and_back() {
    let kafka = Kafka::shared();
    let input = topic(kafka, "input", 2);
    write(kafka, input, 0, 0..3);
    write(kafka, input, 1, 10..13);
    let group_id = unique("group");
    let mut first = join(kafka, group_id, Some("w0"), &[input]);
    settle(&mut [&mut first], input, 2, 2);
    let mut second = join(kafka, group_id, Some("w1"), &[input]);
    let log = settle(&mut [&mut first, &mut second], input, 2, 1);
    assert!(log.iter().any(|changes| changes.revoked.len() == 2), "eager: the first gives up all, {log:?}");
    let owned = |member: &KafkaGroup| (0..2).find(|p| member.owns(input, *p)).unwrap();
    assert_ne!(owned(&first), owned(&second));
    // A static member that closes is waited for; the other takes over when its session is over.
    first.close();
    settle(&mut [&mut second], input, 2, 2);
    assert_eq!(members(kafka, group_id), 1);
}

#[test]
fn a_fenced_holder_of_an_instance_joins_anew_but_not_for_ever() {
    let kafka = Kafka::shared();
    let input = topic(kafka, "input", 1);
    let group_id = unique("group");
    let mut first = join(kafka, group_id, Some("w0"), &[input]);
    settle(&mut [&mut first], input, 1, 1);
    let mut second = join(kafka, group_id, Some("w0"), &[input]);
    settle(&mut [&mut second], input, 1, 1);
    // Alone it would be a member the broker had forgotten: it gives up everything and joins anew.
    let changes = wait_for("the first to be fenced", PATIENCE, || {
        let polled = first.poll(Duration::from_millis(50), &mut |_| {}).unwrap();
        (polled == Polled::Rebalanced).then(|| first.changes())
    });
    assert_eq!((changes.revoked, first.owns(input, 0)), (vec![(input, 0)], false));
    // Two that take it from each other are told apart from that.
    let error = wait_for("one of the twins to be told", PATIENCE, || {
        [&mut first, &mut second].into_iter().find_map(|member| {
            let polled = member.poll(Duration::from_millis(20), &mut |_| {});
            if let Ok(Polled::Rebalanced) = polled {
                let assigned = member.changes().assigned.unwrap_or_default();
                member.start(&assigned.iter().map(|(t, p)| at(t, *p, 0)).collect::<Vec<_>>()).unwrap();
            }
            polled.err()
        })
    });
    assert_eq!(error.kind, ErrorKind::Fenced, "{error}");
}

#[test]
fn an_offset_outside_the_log_is_missing() {
    let kafka = Kafka::shared();
    let input = topic(kafka, "input", 2);
    write(kafka, input, 1, 0..3);
    let mut group = join(kafka, unique("group"), None, &[input]);
    assigned(&mut group, 2);
    group.start(&[at(input, 0, 0), at(input, 1, 1000)]).unwrap();
    let error = wait_for("an error", PATIENCE, || group.poll(Duration::from_millis(50), &mut |_| {}).err());
    assert_eq!((error.kind, error.at), (ErrorKind::Missing, Some((input, 1))), "{error}");
    assert!(error.to_string().contains("from offset 1000: the log holds 0..3"), "{error}");
    let mut log = log(kafka, "nobody");
    let error = log.read(input, 1, 500, 600, &mut |_| {}).unwrap_err();
    assert_eq!((error.kind, error.at), (ErrorKind::Missing, Some((input, 1))), "{error}");
}

#[test]
fn records_travel_whole() {
    let kafka = Kafka::shared();
    let output = topic(kafka, "output", 3);
    let headers: [(&str, &[u8]); 2] = [("ce_id", b"1"), ("casestream-origin", b"live")];
    let mut producer = KafkaProducer::new(&connection(kafka)).unwrap();
    let stamped = Outgoing {
        topic: output,
        partition: 2,
        key: Some(b"u1"),
        value: None,
        headers: &headers,
        timestamp: Some(Timestamp(1_700_000_000_123)),
    };
    producer.send(&stamped).unwrap();
    producer.send_by_key(&Outgoing { value: Some(b"by key"), headers: &[], ..stamped }).unwrap();
    producer.flush(PATIENCE).unwrap();
    let by_key = casestream::domain::partitioner::partition_of(b"u1", 3);
    let found = read_all(&kafka.bootstrap(), output, Isolation::ReadCommitted);
    let by_key_found = found.iter().find(|m| rdkafka::Message::payload(*m) == Some(b"by key")).unwrap();
    assert_eq!(rdkafka::Message::partition(by_key_found), by_key);

    let mut seen = 0;
    log(kafka, "nobody")
        .read(output, 2, 0, 1, &mut |record| {
            seen += 1;
            assert_eq!((record.key, record.value), (Some(&b"u1"[..]), None));
            assert_eq!(record.timestamp, Timestamp(1_700_000_000_123));
            assert_eq!(record.headers, [("ce_id", Some(&b"1"[..])), ("casestream-origin", Some(&b"live"[..]))]);
        })
        .unwrap();
    assert_eq!(seen, 1);
}

#[test]
fn a_commit_shows_all_and_an_abort_nothing() {
    let kafka = Kafka::shared();
    let (input, output) = (topic(kafka, "input", 1), topic(kafka, "output", 1));
    let group_id = unique("group");
    let mut group = join(kafka, group_id, None, &[input]);
    assigned(&mut group, 1);
    let mut log = log(kafka, group_id);
    assert_eq!(log.committed(&[(input, 0)]).unwrap(), [None]);

    let mut txn = KafkaTxn::new(&connection(kafka), unique("txn"));
    assert_eq!(txn.begin().unwrap_err().kind, ErrorKind::Fatal, "not initialised");
    txn.init().unwrap();
    assert!(!txn.wants_recycling());
    txn.begin().unwrap();
    txn.send(&record(output, 0, b"yes")).unwrap();
    let offset = InputOffset { metadata: r#"{"mapped":7}"#.to_owned(), ..at(input, 0, 5) };
    txn.send_offsets(std::slice::from_ref(&offset), &group.metadata().unwrap()).unwrap();
    let error = log.committed(&[(input, 0)]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unstable, "{error}");
    txn.commit().unwrap();
    assert!(!txn.wants_recycling());
    let committed = wait_for("stable offsets", PATIENCE, || log.committed(&[(input, 0)]).ok());
    assert_eq!(committed, [Some(offset.clone())]);

    txn.begin().unwrap();
    txn.send(&record(output, 0, b"no")).unwrap();
    txn.send_offsets(&[at(input, 0, 9)], &group.metadata().unwrap()).unwrap();
    txn.abort().unwrap();
    assert!(txn.wants_recycling());
    // Also with records in flight.
    txn.init().unwrap();
    txn.begin().unwrap();
    txn.send(&record(output, 0, b"nor this")).unwrap();
    txn.abort().unwrap();
    let committed = wait_for("stable offsets", PATIENCE, || log.committed(&[(input, 0)]).ok());
    assert_eq!(committed, [Some(offset)]);
    let (start, end) = log.watermarks(output, 0).unwrap();
    assert!(end >= 4, "markers and aborted records count: {end}");
    assert_eq!(values(&mut log, output, start, end), ["yes"]);
}

#[test]
fn a_newer_producer_of_the_same_id_fences_the_older() {
    let kafka = Kafka::shared();
    let output = topic(kafka, "output", 1);
    let id = unique("txn");
    let mut old = KafkaTxn::new(&connection(kafka), id);
    old.init().unwrap();
    old.begin().unwrap();
    old.send(&record(output, 0, b"old")).unwrap();
    let mut new = KafkaTxn::new(&connection(kafka), id);
    new.init().unwrap();
    assert_eq!(old.commit().unwrap_err().kind, ErrorKind::Fenced);
    assert!(old.wants_recycling());
    new.begin().unwrap();
    new.send(&record(output, 0, b"new")).unwrap();
    new.commit().unwrap();
    let mut log = log(kafka, "nobody");
    let (_, end) = log.watermarks(output, 0).unwrap();
    assert_eq!(values(&mut log, output, 0, end), ["new"]);
}

#[test]
fn proof_of_an_older_generation_aborts() {
    let kafka = Kafka::shared();
    let input = topic(kafka, "input", 2);
    let group_id = unique("group");
    let mut first = join(kafka, group_id, None, &[input]);
    settle(&mut [&mut first], input, 2, 2);
    let stale = first.metadata().unwrap();
    let mut second = join(kafka, group_id, None, &[input]);
    settle(&mut [&mut first, &mut second], input, 2, 1);
    let mut txn = KafkaTxn::new(&connection(kafka), unique("txn"));
    txn.init().unwrap();
    txn.begin().unwrap();
    let error = txn.send_offsets(&[at(input, 0, 1)], &stale).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Abort, "{error}");
    txn.abort().unwrap();
}

#[test]
fn a_record_too_large_is_told_from_a_bad_batch() {
    let kafka = Kafka::shared();
    let small = unique("small");
    create_topics(kafka, &[(small, 1, &[("max.message.bytes", "1000")])]);
    let mut txn = KafkaTxn::new(&connection(kafka), unique("txn"));
    txn.init().unwrap();
    txn.begin().unwrap();
    // Noise, which lz4 cannot make smaller.
    let noise: Vec<u8> = (0..3_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    txn.send(&record(small, 0, &noise)).unwrap();
    assert_eq!(txn.commit().unwrap_err().kind, ErrorKind::TooLarge, "refused by the broker");
    txn.abort().unwrap();
    txn.init().unwrap();
    txn.begin().unwrap();
    let error = txn.send(&record(small, 0, &vec![0; 3 << 20])).unwrap_err();
    assert_eq!((error.kind, error.at), (ErrorKind::TooLarge, Some((small, 0))), "refused by the client");
    txn.abort().unwrap();
    txn.init().unwrap();
    txn.begin().unwrap();
    txn.send(&record(small, 0, b"fits")).unwrap();
    txn.commit().unwrap();
}

#[test]
fn a_commit_without_an_answer_is_unknown_and_init_settles_it() {
    let kafka = Kafka::start();
    let (input, output) = (topic(&kafka, "input", 1), topic(&kafka, "output", 1));
    let group_id = unique("group");
    let mut group = join(&kafka, group_id, None, &[input]);
    assigned(&mut group, 1);
    let mut txn = KafkaTxn::new(&connection(&kafka), unique("txn"));
    txn.init().unwrap();
    txn.begin().unwrap();
    txn.send(&record(output, 0, b"perhaps")).unwrap();
    txn.send_offsets(&[at(input, 0, 1)], &group.metadata().unwrap()).unwrap();
    kafka.pause();
    let error = txn.commit().unwrap_err();
    kafka.resume();
    assert_eq!(error.kind, ErrorKind::Unknown, "{error}");
    assert!(txn.wants_recycling());
    txn.init().unwrap();
    let mut log = log(&kafka, group_id);
    let committed = wait_for("stable offsets", PATIENCE, || log.committed(&[(input, 0)]).ok());
    let (_, end) = log.watermarks(output, 0).unwrap();
    let seen = values(&mut log, output, 0, end);
    assert_eq!(committed[0].is_some(), seen == ["perhaps"], "offsets and outputs agree: {committed:?} {seen:?}");
}

#[test]
fn a_read_ends_behind_markers_and_aborted_records() {
    let kafka = Kafka::shared();
    let output = topic(kafka, "output", 1);
    let mut txn = KafkaTxn::new(&connection(kafka), unique("txn"));
    txn.init().unwrap();
    let mut log = log(kafka, "nobody");
    for (value, commits) in [("1", true), ("no", false), ("2", true), ("nor", false)] {
        let (_, before) = log.watermarks(output, 0).unwrap();
        txn.begin().unwrap();
        txn.send(&record(output, 0, value.as_bytes())).unwrap();
        // Delivered, so that an abort leaves it in the log.
        wait_for("delivery", PATIENCE, || (log.watermarks(output, 0).unwrap().1 > before).then_some(()));
        if commits {
            txn.commit().unwrap()
        } else {
            txn.abort().unwrap()
        }
        // Waits for the markers.
        txn.init().unwrap();
    }
    let (_, end) = log.watermarks(output, 0).unwrap();
    assert_eq!(values(&mut log, output, 0, end), ["1", "2"]);
    assert_eq!(values(&mut log, output, end - 1, end), [""; 0]);
    assert_eq!(values(&mut log, output, 0, 1), ["1"]);
    assert_eq!(values(&mut log, output, end, end), [""; 0]);
}

#[test]
fn an_open_transaction_holds_a_read_back() {
    let kafka = Kafka::shared();
    let output = topic(kafka, "output", 1);
    write(kafka, output, 0, 0..2);
    let mut open = KafkaTxn::new(&connection(kafka), unique("txn"));
    open.init().unwrap();
    open.begin().unwrap();
    open.send(&record(output, 0, b"open")).unwrap();
    let mut reader = log(kafka, "nobody");
    wait_for("the open record", PATIENCE, || (reader.watermarks(output, 0).unwrap().1 == 3).then_some(()));
    write(kafka, output, 0, 2..4);
    let (_, end) = reader.watermarks(output, 0).unwrap();
    assert_eq!(end, 5);

    let mut hasty = log(kafka, "nobody").stall_max(Duration::from_millis(300));
    let mut seen = Vec::new();
    let error = hasty.read(output, 0, 0, end, &mut |record| seen.push(text(record))).unwrap_err();
    assert_eq!((error.kind, error.at), (ErrorKind::Timeout, Some((output, 0))), "{error}");
    assert_eq!(seen, ["0", "1"], "what is stable was read");

    let mut seen = Vec::new();
    std::thread::scope(|scope| {
        let mut open = Some(open);
        reader
            .read(output, 0, 0, end, &mut |record| {
                seen.push(text(record));
                // The reader has begun and will meet the pinned end first.
                if let Some(mut open) = open.take() {
                    scope.spawn(move || open.abort().unwrap());
                }
            })
            .unwrap();
    });
    assert_eq!(seen, ["0", "1", "2", "3"]);
}

#[test]
fn topics_are_planned_applied_and_then_as_wanted() {
    let kafka = Kafka::shared();
    let foreign = [("segment.ms", "3600000"), ("cleanup.policy", "delete")];
    create_topics(kafka, &[("risk-scores", 3, &foreign)]);
    let admin = Admin::new(&connection(kafka)).unwrap();
    let plan = admin.plan(3, &["raw.dlp"]).unwrap();
    let missing = |step: &&Step| matches!(step.finding, Finding::Missing { .. });
    assert_eq!(plan.steps.iter().filter(missing).count(), TOPICS.len() - 1 + 1);
    let cleanup =
        plan.steps.iter().find(|step| step.topic == "risk-scores" && step.remedy().contains("cleanup.policy"));
    assert_eq!(cleanup.unwrap().remedy(), "`topics apply` sets cleanup.policy=compact on risk-scores");
    admin.apply(&plan, 1).unwrap();
    wait_for("the plan to be done", PATIENCE, || admin.plan(3, &["raw.dlp"]).unwrap().steps.is_empty().then_some(()));
    assert_eq!(admin.partition_counts().unwrap()["policy-sets"], 1);

    // A setting that is not ours has stayed: were it lost, setting it again would be the only way to see it.
    let wrong = admin.plan(4, &[]).unwrap();
    let count = Finding::Partitions { found: 3, wanted: 4 };
    assert!(wrong.steps.contains(&Step { topic: "alerts".to_owned(), finding: count }), "{wrong:?}");
    let error = admin.apply(&wrong, 1).unwrap_err();
    assert!(error.to_string().contains("configure 3 partitions"), "{error}");
    assert_eq!(setting(kafka, "risk-scores", "segment.ms").as_deref(), Some("3600000"));
    assert!(!log(kafka, "nobody").cluster_id().unwrap().is_empty());
}

fn setting(kafka: &Kafka, topic: &str, key: &str) -> Option<String> {
    let config = Admin::new(&connection(kafka)).unwrap().settings(topic).unwrap();
    config.into_iter().find(|(name, _)| name == key).map(|(_, value)| value)
}

mod copy {
    //! The readable copy.

    use super::*;
    use casestream::runtime::ports::{Applied, CopyMeta, CopyUser, Store};
    use casestream::runtime::redis_store::{RedisStore, keys};
    use copies::{gone, meta, user, users};
    use support::Redis;

    fn fields(redis: &Redis, key: &str) -> Vec<(String, Vec<u8>)> {
        let mut fields: Vec<(String, Vec<u8>)> = redis::cmd("HGETALL").arg(key).query(&mut redis.connect()).unwrap();
        fields.sort();
        fields
    }

    fn found(commit_no: i64) -> (String, i64, usize) {
        ("u".to_owned(), commit_no, 2)
    }

    #[test]
    fn values_are_absolute_and_older_ones_are_skipped() {
        let redis = Redis::shared();
        let mut store = RedisStore::new(&redis.url()).unwrap();
        store.check_policy().unwrap();
        assert_eq!(store.meta(1).unwrap(), None);
        assert_eq!(store.apply(1, &[user("u", 5)], &meta(1, 5), true).unwrap(), Applied::Ok { before: 0 });
        assert_eq!(store.apply(1, &[user("u", 6)], &meta(1, 6), true).unwrap(), Applied::Ok { before: 5 });
        let windows = fields(redis, &keys::windows(1, "u"));
        assert_eq!(windows, [("alert-6".to_owned(), b"{}".to_vec())], "the older window is gone");
        let state: Vec<String> = fields(redis, &keys::state(1, "u")).into_iter().map(|(field, _)| field).collect();
        assert_eq!(state, ["6", "commit_no", "generation", "head", "top", "windows"]);

        // The same chunk again, and a late one.
        store.apply(1, &[user("u", 6)], &meta(1, 6), true).unwrap();
        store.apply(1, &[user("u", 4), gone("u", 3)], &meta(1, 6), true).unwrap();
        assert_eq!(users(&mut store, 1), [found(6)]);
        let mut read = Vec::new();
        store.users(1, &mut |user| read.extend(user.segments)).unwrap();
        read.sort();
        assert_eq!(read[0], (String::new(), vec![0, 255, 6].into()));

        // Only the last chunk of several moves `applied`.
        store.apply(1, &[user("v", 7)], &meta(1, 7), false).unwrap();
        assert_eq!(store.meta(1).unwrap().unwrap(), meta(1, 6));
    }

    #[test]
    fn an_older_epoch_is_refused() {
        let mut store = RedisStore::new(&Redis::shared().url()).unwrap();
        store.apply(2, &[user("u", 5)], &meta(4, 5), true).unwrap();
        let zombie = store.apply(2, &[user("u", 6)], &meta(3, 6), true).unwrap();
        assert_eq!(zombie, Applied::Fenced { epoch: 4 });
        assert_eq!(users(&mut store, 2), [found(5)]);
        // A copy of another cluster fences nobody.
        let ours = CopyMeta { cluster_id: "other".to_owned(), generation: 2, ..meta(1, 1) };
        assert_eq!(store.apply(2, &[user("u", 1)], &ours, true).unwrap(), Applied::Ok { before: 0 });
        assert_eq!(users(&mut store, 2), [found(1)]);
    }

    #[test]
    fn a_user_who_left_is_removed() {
        let redis = Redis::shared();
        let mut store = RedisStore::new(&redis.url()).unwrap();
        store.apply(3, &[user("u", 5), user("v", 5)], &meta(1, 5), true).unwrap();
        store.apply(3, &[gone("u", 6)], &meta(1, 6), true).unwrap();
        assert_eq!(users(&mut store, 3), [("v".to_owned(), 5, 2)]);
        for key in [keys::score(3, "u"), keys::windows(3, "u"), keys::state(3, "u")] {
            assert_eq!(fields(redis, &key), [], "{key}");
        }
    }

    #[test]
    fn lost_data_is_noticed_and_rebuilt() {
        let mut redis = Redis::start();
        let mut store = RedisStore::new(&redis.url()).unwrap();
        store.apply(4, &[user("u", 5), user("left", 5)], &meta(1, 5), true).unwrap();
        let expecting = |applied: i64, expected_applied: i64| CopyMeta { expected_applied, ..meta(1, applied) };
        assert_eq!(store.apply(4, &[user("u", 6)], &expecting(6, 5), true).unwrap(), Applied::Ok { before: 5 });
        // Behind what was acknowledged, another generation, another cluster, nothing at all.
        assert_eq!(store.apply(4, &[user("u", 8)], &expecting(8, 7), true).unwrap(), Applied::Regressed);
        let newer = CopyMeta { generation: 2, ..expecting(8, 5) };
        assert_eq!(store.apply(4, &[user("u", 8)], &newer, true).unwrap(), Applied::Regressed);
        let other = CopyMeta { cluster_id: "other".to_owned(), ..expecting(8, 5) };
        assert_eq!(store.apply(4, &[user("u", 8)], &other, true).unwrap(), Applied::Regressed);
        assert_eq!(users(&mut store, 4)[1], found(6));

        // A rebuild: a new generation writes all it has, the same commits included, then sweeps.
        let rebuild = CopyMeta { generation: 2, rebuilding: true, ..meta(1, 6) };
        store.apply(4, &[user("u", 6)], &rebuild, false).unwrap();
        let half = store.meta(4).unwrap().unwrap();
        assert_eq!((half.applied, half.changelog_offset, half.rebuilding), (0, 0, true), "not to be trusted");
        store.apply(4, &[], &CopyMeta { rebuilding: false, ..rebuild.clone() }, true).unwrap();
        store.sweep(4, &rebuild).unwrap();
        assert_eq!(users(&mut store, 4), [found(6)]);
        let error = store.sweep(4, &meta(1, 6)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Abort, "only the owner of the copy sweeps");

        // A restarted server knows neither data nor script; the first call meets a broken connection.
        redis.restart();
        let applied = wait_for("redis", PATIENCE, || store.apply(4, &[user("u", 7)], &expecting(7, 6), true).ok());
        assert_eq!(applied, Applied::Regressed);
        assert_eq!(store.meta(4).unwrap(), None);
    }

    #[test]
    fn many_users_and_fields_fit() {
        let mut store = RedisStore::new(&Redis::shared().url()).unwrap();
        for chunk in 0..3 {
            let mut users: Vec<CopyUser> = (0..500).map(|n| user(&format!("u{}", chunk * 500 + n), 5)).collect();
            users[0].segments = (0..2_500).map(|n| (format!("day-{n}"), vec![7].into())).collect();
            users[1].top_milli = None;
            store.apply(5, &users, &meta(1, 5), chunk == 2).unwrap();
        }
        let all = users(&mut store, 5);
        assert_eq!((all.len(), all[0].clone()), (1_500, ("u0".to_owned(), 5, 2_500)));
    }

    #[test]
    fn a_server_that_evicts_is_refused() {
        let redis = Redis::start_with(&[("maxmemory-policy", "allkeys-lru")]);
        let error = RedisStore::new(&redis.url()).unwrap().check_policy().unwrap_err();
        assert_eq!(error.kind, ErrorKind::Fatal);
        assert!(error.to_string().ends_with("maxmemory-policy is allkeys-lru; set it to noeviction"), "{error}");
        // Where CONFIG is forbidden INFO answers.
        redis::cmd("ACL").arg("SETUSER").arg("default").arg("-config").exec(&mut redis.connect()).unwrap();
        let error = RedisStore::new(&redis.url()).unwrap().check_policy().unwrap_err();
        assert!(error.to_string().contains("allkeys-lru"), "{error}");
    }

    #[test]
    fn a_silent_server_is_given_up_in_time() {
        let mut redis = Redis::start();
        let mut store = RedisStore::new(&redis.url()).unwrap();
        store.meta(6).unwrap();
        redis.pause();
        for _ in 0..2 {
            let began = Instant::now();
            assert_eq!(store.meta(6).unwrap_err().kind, ErrorKind::Retriable);
            assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        }
        redis.resume();
        assert_eq!(store.meta(6).unwrap(), None);
        redis.kill();
        assert_eq!(store.meta(6).unwrap_err().kind, ErrorKind::Retriable);
    }
}
