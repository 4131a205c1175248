//! Groups: who reads what, who may commit.

use std::time::{Duration, Instant};

use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::Producer;

use crate::client::{Broker, Member, PATIENCE, at, flush, poll_for, send, settle, unique};
use crate::support::wait_for;

const RANGE: (&str, &str) = ("partition.assignment.strategy", "range");

fn filled(broker: &Broker, partitions: i32, each: i32) -> String {
    let topic = broker.topic("input", partitions, &[]);
    let producer = broker.producer(&[]);
    (0..partitions * each).for_each(|n| send(&producer, &topic, n % partitions, "k", &n.to_string()));
    flush(&producer);
    topic
}

pub fn two_members_share_and_one_takes_over(broker: &mut Broker) {
    let topic = filled(broker, 6, 10);
    let group = unique("group");
    let first = broker.member(&group, &topic, &[RANGE]);
    settle(&[&first], &[6]);
    let second = broker.member(&group, &topic, &[RANGE]);
    settle(&[&first, &second], &[3, 3]);
    assert_eq!([first.partitions(), second.partitions()].concat().len(), 6);
    assert!(first.partitions().iter().all(|p| !second.partitions().contains(p)));
    for member in [&first, &second] {
        let offsets: Vec<(i32, i64)> = member.partitions().iter().map(|p| (*p, 4)).collect();
        member.0.commit(&at(&topic, &offsets), CommitMode::Sync).unwrap();
    }
    second.close();
    settle(&[&first], &[6]);
    assert_eq!(broker.stable(&group, &topic, 6), [Some(4); 6]);
    first.close();
    // Another one goes on where they stopped.
    let third = broker.member(&group, &topic, &[RANGE]);
    let mut offsets = Vec::new();
    wait_for("the rest", PATIENCE, || {
        offsets.extend(third.poll().map(|message| rdkafka::Message::offset(&message.unwrap())));
        (offsets.len() == 36).then_some(())
    });
    assert_eq!(offsets.iter().min(), Some(&4));
    third.close();
}

pub fn cooperative_members_keep_what_they_have(broker: &mut Broker) {
    let topic = filled(broker, 4, 1);
    let group = unique("group");
    let sticky = ("partition.assignment.strategy", "cooperative-sticky");
    let first = broker.member(&group, &topic, &[sticky]);
    settle(&[&first], &[4]);
    let second = broker.member(&group, &topic, &[sticky]);
    settle(&[&first, &second], &[2, 2]);
    second.close();
    settle(&[&first], &[4]);
    first.close();
}

/// Members a and b of a topic of two partitions, each with one.
fn two_static_members(broker: &Broker, topic: &str, group: &str) -> (Member, Member) {
    let first = broker.member(group, topic, &[RANGE, ("group.instance.id", "a")]);
    settle(&[&first], &[2]);
    let second = broker.member(group, topic, &[RANGE, ("group.instance.id", "b")]);
    settle(&[&first, &second], &[1, 1]);
    (first, second)
}

pub fn a_static_member_that_returns_disturbs_nobody(broker: &mut Broker) {
    let (topic, group) = (filled(broker, 2, 1), unique("group"));
    let (first, second) = two_static_members(broker, &topic, &group);
    let (had, before) = (second.partitions(), first.rebalances());
    second.close();
    let again = broker.member(&group, &topic, &[RANGE, ("group.instance.id", "b")]);
    settle(&[&first, &again], &[1, 1]);
    assert_eq!(again.partitions(), had);
    poll_for(&[&first, &again], Duration::from_secs(1));
    assert_eq!(first.rebalances(), before, "the other noticed");
    again.close();
    first.close();
}

pub fn a_static_member_keeps_its_place_until_its_session_ends(broker: &mut Broker) {
    let (topic, group) = (filled(broker, 2, 1), unique("group"));
    let (first, second) = two_static_members(broker, &topic, &group);
    let closed = Instant::now();
    second.close();
    settle(&[&first], &[2]);
    assert!(closed.elapsed() > Duration::from_secs(4), "after {:?}", closed.elapsed());
    first.close();
}

pub fn a_second_holder_of_an_instance_fences_the_first(broker: &mut Broker) {
    let topic = filled(broker, 1, 1);
    let group = unique("group");
    let first = broker.member(&group, &topic, &[RANGE, ("group.instance.id", "a")]);
    settle(&[&first], &[1]);
    let second = broker.member(&group, &topic, &[RANGE, ("group.instance.id", "a")]);
    settle(&[&second], &[1]);
    let code = wait_for("the first to be fenced", PATIENCE, || match first.poll() {
        Some(Err(error)) => error.rdkafka_error_code().filter(|code| *code != RDKafkaErrorCode::PartitionEOF),
        _ => None,
    });
    assert!(matches!(code, RDKafkaErrorCode::FencedInstanceId | RDKafkaErrorCode::Fatal), "{code:?}");
    second.close();
    first.close();
}

pub fn a_member_that_stops_polling_loses_its_partitions(broker: &mut Broker) {
    let topic = filled(broker, 2, 1);
    let group = unique("group");
    let first = broker.member(&group, &topic, &[RANGE, ("max.poll.interval.ms", "6000")]);
    settle(&[&first], &[2]);
    let second = broker.member(&group, &topic, &[RANGE]);
    // Only the second polls from here on.
    settle(&[&second], &[2]);
    second.close();
    first.close();
}

pub fn an_older_generation_may_not_commit(broker: &mut Broker) {
    let topic = filled(broker, 2, 1);
    let group = unique("group");
    let first = broker.member(&group, &topic, &[RANGE]);
    settle(&[&first], &[2]);
    let stale = first.0.group_metadata().unwrap();
    let second = broker.member(&group, &topic, &[RANGE]);
    settle(&[&first, &second], &[1, 1]);
    let producer = broker.transactional(&unique("txn"));
    producer.begin_transaction().unwrap();
    let error = producer.send_offsets_to_transaction(&at(&topic, &[(0, 1)]), &stale, PATIENCE).unwrap_err();
    assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::IllegalGeneration), "{error}");
    producer.abort_transaction(PATIENCE).unwrap();
    assert_eq!(broker.stable(&group, &topic, 2), [None, None]);
    first.close();
    second.close();
}

pub fn a_member_that_left_may_not_commit(broker: &mut Broker) {
    let topic = filled(broker, 1, 1);
    let group = unique("group");
    let first = broker.member(&group, &topic, &[RANGE]);
    settle(&[&first], &[1]);
    let stale = first.0.group_metadata().unwrap();
    first.close();
    let second = broker.member(&group, &topic, &[RANGE]);
    settle(&[&second], &[1]);
    let producer = broker.transactional(&unique("txn"));
    producer.begin_transaction().unwrap();
    let error = producer.send_offsets_to_transaction(&at(&topic, &[(0, 1)]), &stale, PATIENCE).unwrap_err();
    assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::UnknownMemberId), "{error}");
    producer.abort_transaction(PATIENCE).unwrap();
    // The member that is there may.
    producer.begin_transaction().unwrap();
    let current = second.0.group_metadata().unwrap();
    producer.send_offsets_to_transaction(&at(&topic, &[(0, 1)]), &current, PATIENCE).unwrap();
    producer.commit_transaction(PATIENCE).unwrap();
    assert_eq!(broker.stable(&group, &topic, 1), [Some(1)]);
    second.close();
}

pub fn offsets_and_their_metadata_are_kept_per_group(broker: &mut Broker) {
    let topic = filled(broker, 2, 1);
    let (group, other) = (unique("group"), unique("group"));
    let client: rdkafka::consumer::BaseConsumer = broker.config().set("group.id", &group).create().unwrap();
    let mut list = at(&topic, &[(1, 7)]);
    list.set_partition_offset(&topic, 1, rdkafka::Offset::Offset(7)).unwrap();
    list.find_partition(&topic, 1).unwrap().set_metadata(r#"{"mapped":7}"#);
    client.commit(&list, CommitMode::Sync).unwrap();
    let found = client.committed_offsets(at(&topic, &[(1, 0)]), PATIENCE).unwrap();
    assert_eq!(found.elements()[0].metadata(), r#"{"mapped":7}"#);
    assert_eq!(broker.stable(&group, &topic, 2), [None, Some(7)]);
    assert_eq!(broker.stable(&other, &topic, 2), [None, None]);
}

pub fn groups_are_listed_with_their_state(broker: &mut Broker) {
    let topic = filled(broker, 1, 1);
    let group = unique("group");
    let member = broker.member(&group, &topic, &[RANGE, ("client.id", "reader")]);
    settle(&[&member], &[1]);
    let client: rdkafka::consumer::BaseConsumer = broker.config().create().unwrap();
    let look = || {
        let list = client.fetch_group_list(Some(&group), PATIENCE).unwrap();
        let row = list.groups().iter().find(|g| g.name() == group)?;
        let clients: Vec<String> = row.members().iter().map(|m| m.client_id().to_owned()).collect();
        Some((row.state().to_owned(), row.protocol_type().to_owned(), clients))
    };
    let stable = wait_for("a stable group", PATIENCE, || look().filter(|(state, ..)| state == "Stable"));
    assert_eq!(stable, ("Stable".to_owned(), "consumer".to_owned(), vec!["reader".to_owned()]));
    let all = client.fetch_group_list(None, PATIENCE).unwrap();
    assert!(all.groups().iter().any(|g| g.name() == group));
    member.close();
    wait_for("an empty group", PATIENCE, || look().filter(|(state, ..)| state == "Empty"));
}
