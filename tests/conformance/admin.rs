//! Topics and their settings.

use std::collections::BTreeMap;

use rdkafka::admin::{AlterConfig, ConfigSource, NewPartitions, ResourceSpecifier};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;

use crate::client::{Broker, PATIENCE, block_on, options, unique};
use crate::support::wait_for;

fn partitions(broker: &Broker, topic: &str) -> Option<usize> {
    let client: BaseConsumer = broker.config().create().unwrap();
    let metadata = client.fetch_metadata(None, PATIENCE).unwrap();
    metadata.topics().iter().find(|t| t.name() == topic).map(|t| t.partitions().len())
}

type Settings = BTreeMap<String, (Option<String>, ConfigSource)>;

fn settings(broker: &Broker, topic: &str) -> Result<Settings, RDKafkaErrorCode> {
    let asked = [ResourceSpecifier::Topic(topic)];
    let answer = block_on(broker.admin().describe_configs(&asked, &options())).unwrap().remove(0)?;
    Ok(answer.entries.into_iter().map(|e| (e.name, (e.value, e.source))).collect())
}

pub fn topics_are_created_changed_and_deleted(broker: &mut Broker) {
    let topic = broker.topic("topic", 2, &[]);
    assert_eq!(partitions(broker, &topic), Some(2));
    let admin = broker.admin();
    let more = |count| {
        let asked = [NewPartitions::new(&topic, count)];
        block_on(admin.create_partitions(&asked, &options())).unwrap().remove(0).map_err(|(_, code)| code)
    };
    more(4).unwrap();
    wait_for("more partitions", PATIENCE, || (partitions(broker, &topic) == Some(4)).then_some(()));
    assert_eq!(more(3), Err(RDKafkaErrorCode::InvalidPartitions));
    block_on(admin.delete_topics(&[&topic], &options())).unwrap().remove(0).unwrap();
    wait_for("the topic to go", PATIENCE, || partitions(broker, &topic).is_none().then_some(()));
    let again = block_on(admin.delete_topics(&[&topic], &options())).unwrap().remove(0);
    assert_eq!(again.map_err(|(_, code)| code), Err(RDKafkaErrorCode::UnknownTopicOrPartition));
}

pub fn what_cannot_be_is_refused_with_the_same_code(broker: &mut Broker) {
    let topic = broker.topic("topic", 1, &[]);
    for (name, partitions, copies, settings, expected) in [
        (topic.as_str(), 1, 1, &[][..], RDKafkaErrorCode::TopicAlreadyExists),
        ("no spaces", 1, 1, &[], RDKafkaErrorCode::InvalidTopic),
        ("three-copies", 1, 3, &[], RDKafkaErrorCode::InvalidReplicationFactor),
        ("odd", 1, 1, &[("no.such.setting", "1")], RDKafkaErrorCode::InvalidConfig),
        ("odd", 1, 1, &[("retention.ms", "soon")], RDKafkaErrorCode::InvalidConfig),
        ("odd", 1, 1, &[("cleanup.policy", "shred")], RDKafkaErrorCode::InvalidConfig),
    ] {
        assert_eq!(broker.try_create(name, partitions, copies, settings), Err(expected), "{name} {settings:?}");
    }
    // Asking for a topic does not make it.
    let absent = unique("absent");
    let client: BaseConsumer = broker.config().create().unwrap();
    let metadata = client.fetch_metadata(Some(&absent), PATIENCE).unwrap();
    assert!(metadata.topics()[0].error().is_some());
    assert_eq!(partitions(broker, &absent), None);
    assert!(client.client().fetch_cluster_id(PATIENCE).is_some_and(|id| !id.is_empty()));
}

pub fn settings_are_shown_with_their_origin(broker: &mut Broker) {
    let topic = broker.topic("topic", 1, &[("cleanup.policy", "compact"), ("retention.ms", "600000")]);
    let found = settings(broker, &topic).unwrap();
    assert_eq!(found["cleanup.policy"], (Some("compact".into()), ConfigSource::DynamicTopic));
    assert_eq!(found["retention.ms"], (Some("600000".into()), ConfigSource::DynamicTopic));
    assert_eq!(found["retention.bytes"].0, Some("-1".into()));
    assert_ne!(found["retention.bytes"].1, ConfigSource::DynamicTopic);
    // All settings are replaced.
    let change = AlterConfig::new(ResourceSpecifier::Topic(&topic)).set("segment.ms", "3600000");
    block_on(broker.admin().alter_configs(&[change], &options())).unwrap().remove(0).unwrap();
    let changed = wait_for("the change", PATIENCE, || {
        settings(broker, &topic).ok().filter(|found| found["segment.ms"].1 == ConfigSource::DynamicTopic)
    });
    assert_eq!(changed["cleanup.policy"].0, Some("delete".into()));
}
