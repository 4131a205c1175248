//! Transactions: all or nothing, in order, fenced.

use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::Producer;

use crate::client::{Broker, Member, PATIENCE, at, flush, send, settle, unique};
use crate::support::Isolation::{ReadCommitted, ReadUncommitted};
use crate::support::wait_for;

fn member(broker: &Broker, group: &str, topic: &str) -> Member {
    let member = broker.member(group, topic, &[("partition.assignment.strategy", "range")]);
    settle(&[&member], &[1]);
    member
}

pub fn a_commit_shows_records_and_offsets_together(broker: &mut Broker) {
    let input = broker.topic("input", 1, &[]);
    let (one, two) = (broker.topic("one", 2, &[]), broker.topic("two", 1, &[]));
    let group = unique("group");
    let member = member(broker, &group, &input);
    let producer = broker.transactional(&unique("txn"));
    for round in 0..3 {
        producer.begin_transaction().unwrap();
        for partition in 0..2 {
            send(&producer, &one, partition, "k", &format!("{round}"));
        }
        send(&producer, &two, 0, "k", &format!("{round}"));
        let metadata = member.0.group_metadata().unwrap();
        producer.send_offsets_to_transaction(&at(&input, &[(0, 10 + round)]), &metadata, PATIENCE).unwrap();
        producer.commit_transaction(PATIENCE).unwrap();
        assert_eq!(broker.stable(&group, &input, 1), [Some(10 + round)]);
    }
    assert_eq!(broker.values(&one, ReadCommitted), ["0", "1", "2", "0", "1", "2"]);
    // One marker behind each transaction.
    let rows = broker.rows(&two, ReadCommitted);
    assert_eq!(rows, [(0, 0, "0".into()), (0, 2, "1".into()), (0, 4, "2".into())]);
    assert_eq!(broker.ends(&two, "read_committed"), (0, 6));
    member.close();
}

pub fn an_abort_shows_nothing(broker: &mut Broker) {
    let (input, output) = (broker.topic("input", 1, &[]), broker.topic("output", 1, &[]));
    let group = unique("group");
    let member = member(broker, &group, &input);
    let producer = broker.transactional(&unique("txn"));
    for (round, commit) in [(0, true), (1, false), (2, true), (3, false)] {
        producer.begin_transaction().unwrap();
        send(&producer, &output, 0, "k", &round.to_string());
        flush(&producer);
        let metadata = member.0.group_metadata().unwrap();
        producer.send_offsets_to_transaction(&at(&input, &[(0, 10 + round)]), &metadata, PATIENCE).unwrap();
        match commit {
            true => producer.commit_transaction(PATIENCE).unwrap(),
            false => producer.abort_transaction(PATIENCE).unwrap(),
        }
        let expected = if round < 2 { 10 } else { 12 };
        assert_eq!(broker.stable(&group, &input, 1), [Some(expected)], "round {round}");
    }
    assert_eq!(broker.values(&output, ReadCommitted), ["0", "2"]);
    assert_eq!(broker.values(&output, ReadUncommitted), ["0", "1", "2", "3"]);
    member.close();
}

pub fn an_open_transaction_holds_read_committed_back(broker: &mut Broker) {
    let output = broker.topic("output", 1, &[]);
    let (open, plain) = (broker.transactional(&unique("txn")), broker.producer(&[]));
    send(&plain, &output, 0, "k", "before");
    flush(&plain);
    open.begin_transaction().unwrap();
    send(&open, &output, 0, "k", "open");
    flush(&open);
    send(&plain, &output, 0, "k", "after");
    flush(&plain);
    assert_eq!(broker.ends(&output, "read_committed"), (0, 1), "the last stable offset");
    assert_eq!(broker.ends(&output, "read_uncommitted"), (0, 3), "the high watermark");
    assert_eq!(broker.values(&output, ReadUncommitted), ["before", "open", "after"]);
    // A reader gets what is stable and no more, though it waits for more.
    let reader = broker.member(&unique("group"), &output, &[]);
    let mut seen = Vec::new();
    let mut poll = |until: usize| {
        wait_for("records", PATIENCE, || {
            seen.extend(reader.poll().map(|m| crate::client::text(rdkafka::Message::payload(&m.unwrap()).unwrap())));
            (seen.len() >= until).then(|| seen.clone())
        })
    };
    assert_eq!(poll(1), ["before"]);
    crate::client::poll_for(&[], Duration::from_millis(300));
    open.commit_transaction(PATIENCE).unwrap();
    assert_eq!(poll(3), ["before", "open", "after"]);
    reader.close();
}

pub fn transactions_interleave_on_one_partition(broker: &mut Broker) {
    let output = broker.topic("output", 1, &[]);
    let (kept, dropped) = (broker.transactional(&unique("txn")), broker.transactional(&unique("txn")));
    for round in 0..4 {
        kept.begin_transaction().unwrap();
        dropped.begin_transaction().unwrap();
        for n in 0..3 {
            send(&kept, &output, 0, "k", &format!("kept {round} {n}"));
            flush(&kept);
            send(&dropped, &output, 0, "k", "dropped");
            flush(&dropped);
        }
        match round % 2 {
            0 => {
                kept.commit_transaction(PATIENCE).unwrap();
                dropped.abort_transaction(PATIENCE).unwrap();
            }
            _ => {
                dropped.abort_transaction(PATIENCE).unwrap();
                kept.commit_transaction(PATIENCE).unwrap();
            }
        }
    }
    let expected: Vec<String> = (0..4).flat_map(|round| (0..3).map(move |n| format!("kept {round} {n}"))).collect();
    assert_eq!(broker.values(&output, ReadCommitted), expected);
}

pub fn a_newer_producer_fences_the_older_and_aborts_what_it_has_open(broker: &mut Broker) {
    let output = broker.topic("output", 1, &[]);
    let id = unique("txn");
    let old = broker.transactional(&id);
    old.begin_transaction().unwrap();
    send(&old, &output, 0, "k", "old");
    flush(&old);
    let new = broker.transactional(&id);
    let error = old.commit_transaction(PATIENCE).unwrap_err();
    assert_eq!(fatal_code(&old), Some(RDKafkaErrorCode::Fenced), "{error}");
    new.begin_transaction().unwrap();
    send(&new, &output, 0, "k", "new");
    new.commit_transaction(PATIENCE).unwrap();
    assert_eq!(broker.values(&output, ReadCommitted), ["new"]);
}

fn fatal_code(producer: &rdkafka::producer::BaseProducer) -> Option<RDKafkaErrorCode> {
    producer.client().fatal_error().map(|(code, _)| code)
}

pub fn an_orphan_is_aborted_in_time_and_fenced(broker: &mut Broker) {
    let output = broker.topic("output", 1, &[]);
    let id = unique("txn");
    let orphan = broker.producer(&[("transactional.id", &id), ("transaction.timeout.ms", "2000")]);
    orphan.init_transactions(PATIENCE).unwrap();
    orphan.begin_transaction().unwrap();
    send(&orphan, &output, 0, "k", "orphan");
    flush(&orphan);
    assert_eq!(broker.ends(&output, "read_committed"), (0, 0));
    // `read_all` waits for the end of what is open.
    assert_eq!(broker.values(&output, ReadCommitted), Vec::<String>::new());
    assert_eq!(broker.ends(&output, "read_committed"), (0, 2), "a record and a marker");
    let error = orphan.commit_transaction(PATIENCE).unwrap_err();
    assert!(error.rdkafka_error_code().is_some(), "{error}");
    let next = broker.transactional(&id);
    next.begin_transaction().unwrap();
    send(&next, &output, 0, "k", "next");
    next.commit_transaction(PATIENCE).unwrap();
    assert_eq!(broker.values(&output, ReadCommitted), ["next"]);
}

pub fn pending_offsets_are_unstable(broker: &mut Broker) {
    let input = broker.topic("input", 2, &[]);
    let group = unique("group");
    let member = broker.member(&group, &input, &[("partition.assignment.strategy", "range")]);
    settle(&[&member], &[2]);
    let producer = broker.transactional(&unique("txn"));
    producer.begin_transaction().unwrap();
    let metadata = member.0.group_metadata().unwrap();
    producer.send_offsets_to_transaction(&at(&input, &[(0, 3)]), &metadata, PATIENCE).unwrap();
    // The client asks again for as long as it may.
    let error = broker.committed(&group, &input, 1).unwrap_err();
    let code = error.rdkafka_error_code();
    assert!(
        matches!(code, Some(RDKafkaErrorCode::UnstableOffsetCommit | RDKafkaErrorCode::OperationTimedOut)),
        "{error}"
    );
    producer.commit_transaction(PATIENCE).unwrap();
    assert_eq!(broker.stable(&group, &input, 2), [Some(3), None]);
    member.close();
}

pub fn an_empty_transaction_commits(broker: &mut Broker) {
    let output = broker.topic("output", 1, &[]);
    let producer = broker.transactional(&unique("txn"));
    for _ in 0..2 {
        producer.begin_transaction().unwrap();
        producer.commit_transaction(PATIENCE).unwrap();
        producer.begin_transaction().unwrap();
        producer.abort_transaction(PATIENCE).unwrap();
    }
    producer.begin_transaction().unwrap();
    send(&producer, &output, 0, "k", "one");
    producer.commit_transaction(PATIENCE).unwrap();
    assert_eq!(broker.values(&output, ReadCommitted), ["one"]);
}
