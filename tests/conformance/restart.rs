//! SIGKILL of the broker between two answers.

use rdkafka::consumer::Consumer;
use rdkafka::producer::Producer;

use crate::client::{Broker, PATIENCE, at, flush, send, settle, unique};
use crate::support::Isolation::ReadCommitted;
use crate::support::wait_for;

pub fn what_was_acknowledged_survives_sigkill(broker: &mut Broker) {
    let mut broker = broker.own();
    let (input, output) = (broker.topic("input", 1, &[]), broker.topic("output", 1, &[("cleanup.policy", "compact")]));
    let (group, id) = (unique("group"), unique("txn"));
    let member = broker.member(&group, &input, &[]);
    settle(&[&member], &[1]);
    let producer = broker.transactional(&id);
    producer.begin_transaction().unwrap();
    send(&producer, &output, 0, "k", "committed");
    let metadata = member.0.group_metadata().unwrap();
    producer.send_offsets_to_transaction(&at(&input, &[(0, 9)]), &metadata, PATIENCE).unwrap();
    producer.commit_transaction(PATIENCE).unwrap();
    assert_eq!(broker.stable(&group, &input, 1), [Some(9)]);
    producer.begin_transaction().unwrap();
    send(&producer, &output, 0, "k", "open");
    producer.send_offsets_to_transaction(&at(&input, &[(0, 10)]), &metadata, PATIENCE).unwrap();
    flush(&producer);
    let cluster = cluster_id(&broker);

    broker.kill_and_restart();
    assert_eq!(cluster_id(&broker), cluster);
    assert_eq!(broker.ends(&output, "read_committed"), (0, 2), "what was open is open");
    assert_eq!(broker.ends(&output, "read_uncommitted"), (0, 3));
    let again = broker.transactional(&id);
    assert_eq!(broker.stable(&group, &input, 1), [Some(9)]);
    again.begin_transaction().unwrap();
    send(&again, &output, 0, "k", "afterwards");
    again.commit_transaction(PATIENCE).unwrap();
    let rows = broker.rows(&output, ReadCommitted);
    assert_eq!(rows, [(0, 0, "committed".into()), (0, 4, "afterwards".into())]);
    assert!(producer.commit_transaction(PATIENCE).is_err(), "the older producer is fenced");
    // The group goes on.
    settle(&[&member], &[1]);
    wait_for("a member that may commit", PATIENCE, || {
        member.poll();
        again.begin_transaction().unwrap();
        let metadata = member.0.group_metadata().unwrap();
        let sent = again.send_offsets_to_transaction(&at(&input, &[(0, 11)]), &metadata, PATIENCE);
        match sent {
            Ok(()) => again.commit_transaction(PATIENCE).ok(),
            Err(_) => {
                again.abort_transaction(PATIENCE).unwrap();
                None
            }
        }
    });
    assert_eq!(broker.stable(&group, &input, 1), [Some(11)]);
    member.close();
}

fn cluster_id(broker: &Broker) -> Option<String> {
    let client: rdkafka::consumer::BaseConsumer = broker.config().create().unwrap();
    client.client().fetch_cluster_id(PATIENCE)
}
