//! Requests about topics, their settings, and the one node that is everything here. Next: `connection.rs`.

use std::collections::BTreeMap;

use kafka_protocol::messages::alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::CreatableTopicResult;
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{DescribeConfigsResourceResult, DescribeConfigsResult};
use kafka_protocol::messages::incremental_alter_configs_request::AlterConfigsResource;
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse as IncrementalResponse;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    AlterConfigsRequest, AlterConfigsResponse, BrokerId, CreatePartitionsRequest, CreatePartitionsResponse,
    CreateTopicsRequest, CreateTopicsResponse, DeleteTopicsRequest, DeleteTopicsResponse, DescribeClusterResponse,
    DescribeConfigsRequest, DescribeConfigsResponse, FindCoordinatorResponse, IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse, MetadataRequest, MetadataResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::state::{Event, State, Topic};
use super::wire::{text, topic_name};
use super::{Broker, HOST, PARTITIONS_MAX, TOPICS_MAX, codes};

/// The id of the one node.
const NODE: BrokerId = BrokerId(1);
const TOPIC_RESOURCE: i8 = 2;
const NAME_BYTES_MAX: usize = 249;
/// Longest value of a setting.
const VALUE_BYTES_MAX: usize = 1_024;
/// Where a setting's value comes from.
const SET_ON_TOPIC: i8 = 1;
const DEFAULT: i8 = 5;

/// Settings of topics and what they are unless set. Those that are applied: clean-up, retention by bytes, tombstones,
/// the size of a batch. The others are kept and shown.
const SETTINGS: &[(&str, &str)] = &[
    ("cleanup.policy", "delete"),
    ("compression.type", "producer"),
    ("delete.retention.ms", "86400000"),
    ("file.delete.delay.ms", "60000"),
    ("flush.messages", "9223372036854775807"),
    ("flush.ms", "9223372036854775807"),
    ("index.interval.bytes", "4096"),
    ("max.compaction.lag.ms", "9223372036854775807"),
    ("max.message.bytes", "1048588"),
    ("message.timestamp.after.max.ms", "3600000"),
    ("message.timestamp.before.max.ms", "9223372036854775807"),
    ("message.timestamp.type", "CreateTime"),
    ("min.cleanable.dirty.ratio", "0.5"),
    ("min.compaction.lag.ms", "0"),
    ("min.insync.replicas", "1"),
    ("preallocate", "false"),
    ("retention.bytes", "-1"),
    ("retention.ms", "604800000"),
    ("segment.bytes", "1073741824"),
    ("segment.index.bytes", "10485760"),
    ("segment.jitter.ms", "0"),
    ("segment.ms", "604800000"),
    ("unclean.leader.election.enable", "false"),
];

type Config = BTreeMap<String, String>;

impl Broker {
    pub(super) fn metadata(&self, request: &MetadataRequest, version: i16) -> MetadataResponse {
        let state = &self.core().state;
        let asked = request.topics.as_ref().filter(|topics| version > 0 || !topics.is_empty());
        let names: Vec<String> = match asked {
            Some(topics) => topics.iter().filter_map(|t| t.name.as_ref().map(|name| name.to_string())).collect(),
            None => state.topics.keys().cloned().collect(),
        };
        let topics = names.iter().map(|name| metadata_topic(name, state.topics.get(name), version)).collect();
        let node = MetadataResponseBroker::default().with_node_id(NODE).with_host(text(HOST));
        MetadataResponse::default()
            .with_brokers(vec![node.with_port(i32::from(self.port))])
            .with_cluster_id((version >= 2).then(|| text(&state.cluster_id)))
            .with_controller_id(NODE)
            .with_topics(topics)
    }

    pub(super) fn describe_cluster(&self) -> DescribeClusterResponse {
        let node = DescribeClusterBroker::default().with_broker_id(NODE).with_host(text(HOST));
        DescribeClusterResponse::default()
            .with_cluster_id(text(&self.core().state.cluster_id))
            .with_controller_id(NODE)
            .with_brokers(vec![node.with_port(i32::from(self.port))])
    }

    pub(super) fn find_coordinator(&self) -> FindCoordinatorResponse {
        let answer = FindCoordinatorResponse::default().with_node_id(NODE).with_host(text(HOST));
        answer.with_port(i32::from(self.port))
    }

    pub(super) fn create_topics(&self, request: &CreateTopicsRequest) -> CreateTopicsResponse {
        let state = &mut self.core().state;
        let mut rows = Vec::new();
        for topic in &request.topics {
            let row = CreatableTopicResult::default().with_name(topic.name.clone());
            rows.push(match new_topic(state, topic) {
                Ok(event) => {
                    if !request.validate_only {
                        state.record(event, &[]);
                    }
                    row
                }
                Err((error, message)) => row.with_error_code(error).with_error_message(Some(text(&message))),
            });
        }
        state.flush();
        self.changed.notify_waiters();
        CreateTopicsResponse::default().with_topics(rows)
    }

    pub(super) fn delete_topics(&self, request: &DeleteTopicsRequest) -> DeleteTopicsResponse {
        let state = &mut self.core().state;
        let mut rows = Vec::new();
        for name in &request.topic_names {
            let known = state.topics.contains_key(name.as_str());
            if known {
                state.record(Event::Delete { name: name.to_string() }, &[]);
            }
            let error = if known { codes::NONE } else { codes::UNKNOWN_TOPIC_OR_PARTITION };
            rows.push(DeletableTopicResult::default().with_name(Some(name.clone())).with_error_code(error));
        }
        state.flush();
        self.changed.notify_waiters();
        DeleteTopicsResponse::default().with_responses(rows)
    }

    pub(super) fn create_partitions(&self, request: &CreatePartitionsRequest) -> CreatePartitionsResponse {
        let state = &mut self.core().state;
        let mut rows = Vec::new();
        for topic in &request.topics {
            let error = match state.topics.get(topic.name.as_str()) {
                None => codes::UNKNOWN_TOPIC_OR_PARTITION,
                Some(found) if topic.count <= found.partitions.len() as i32 => codes::INVALID_PARTITIONS,
                Some(found) => room_for(state, topic.count as usize - found.partitions.len())
                    .map_or(codes::POLICY_VIOLATION, |()| codes::NONE),
            };
            if error == codes::NONE && !request.validate_only {
                state.record(Event::Partitions { name: topic.name.to_string(), partitions: topic.count }, &[]);
            }
            rows.push(CreatePartitionsTopicResult::default().with_name(topic.name.clone()).with_error_code(error));
        }
        state.flush();
        CreatePartitionsResponse::default().with_results(rows)
    }

    pub(super) fn describe_configs(&self, request: &DescribeConfigsRequest) -> DescribeConfigsResponse {
        let state = &self.core().state;
        let rows = request.resources.iter().map(|resource| describe(state, resource)).collect();
        DescribeConfigsResponse::default().with_results(rows)
    }

    /// Replaces all settings of topics.
    pub(super) fn alter_configs(&self, request: &AlterConfigsRequest) -> AlterConfigsResponse {
        let state = &mut self.core().state;
        let mut rows = Vec::new();
        for resource in &request.resources {
            let pairs = resource.configs.iter().map(|c| (c.name.as_str(), c.value.as_deref()));
            let config = settings(pairs);
            let result = set(state, resource.resource_type, &resource.resource_name, config, request.validate_only);
            let row = AlterConfigsResourceResponse::default().with_resource_type(resource.resource_type);
            let (error, message) = result.err().unzip();
            let row =
                row.with_resource_name(resource.resource_name.clone()).with_error_code(error.unwrap_or(codes::NONE));
            rows.push(row.with_error_message(message.map(|message| text(&message))));
        }
        state.flush();
        AlterConfigsResponse::default().with_responses(rows)
    }

    /// Changes some settings of topics.
    pub(super) fn incremental_alter_configs(
        &self,
        request: &IncrementalAlterConfigsRequest,
    ) -> IncrementalAlterConfigsResponse {
        let state = &mut self.core().state;
        let mut rows = Vec::new();
        for resource in &request.resources {
            let config = changed(state, resource);
            let result = set(state, resource.resource_type, &resource.resource_name, config, request.validate_only);
            let (error, message) = result.err().unzip();
            let row = IncrementalResponse::default().with_resource_type(resource.resource_type);
            let row =
                row.with_resource_name(resource.resource_name.clone()).with_error_code(error.unwrap_or(codes::NONE));
            rows.push(row.with_error_message(message.map(|message| text(&message))));
        }
        state.flush();
        IncrementalAlterConfigsResponse::default().with_responses(rows)
    }
}

fn metadata_topic(name: &str, topic: Option<&Topic>, version: i16) -> MetadataResponseTopic {
    let row = MetadataResponseTopic::default().with_name(Some(topic_name(name)));
    let Some(topic) = topic else { return row.with_error_code(codes::UNKNOWN_TOPIC_OR_PARTITION) };
    let partition = |number: usize| {
        MetadataResponsePartition::default()
            .with_partition_index(number as i32)
            .with_leader_id(NODE)
            .with_leader_epoch(if version >= 7 { 0 } else { -1 })
            .with_replica_nodes(vec![NODE])
            .with_isr_nodes(vec![NODE])
    };
    row.with_partitions((0..topic.partitions.len()).map(partition).collect())
}

type Refusal = (i16, String);

fn new_topic(state: &State, topic: &CreatableTopic) -> Result<Event, Refusal> {
    let name = topic.name.as_str();
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name == "." || name == ".." || !name.chars().all(legal) {
        return Err((codes::INVALID_TOPIC, format!("the name {name:?} is no topic's name")));
    }
    if state.topics.contains_key(name) {
        return Err((codes::TOPIC_ALREADY_EXISTS, format!("topic {name} exists")));
    }
    let partitions = match (topic.num_partitions, topic.assignments.len()) {
        (-1, 0) => 1,
        (-1, assigned) => assigned as i32,
        (partitions, _) => partitions,
    };
    if partitions < 1 {
        return Err((codes::INVALID_PARTITIONS, "a topic has at least one partition".to_owned()));
    }
    if topic.replication_factor > 1 {
        return Err((codes::INVALID_REPLICATION_FACTOR, "there is one node, so one copy".to_owned()));
    }
    if state.topics.len() >= TOPICS_MAX {
        return Err((
            codes::POLICY_VIOLATION,
            format!("there are {TOPICS_MAX} topics, the most of an embedded broker"),
        ));
    }
    room_for(state, partitions as usize)?;
    let config = settings(topic.configs.iter().map(|c| (c.name.as_str(), c.value.as_deref())))?;
    Ok(Event::Topic { name: name.to_owned(), partitions, config })
}

fn room_for(state: &State, partitions: usize) -> Result<(), Refusal> {
    let fits = state.partition_count().saturating_add(partitions) <= PARTITIONS_MAX;
    let message = || format!("an embedded broker has at most {PARTITIONS_MAX} partitions");
    if fits { Ok(()) } else { Err((codes::POLICY_VIOLATION, message())) }
}

/// Settings that are known, without those that are taken back.
fn settings<'a>(pairs: impl Iterator<Item = (&'a str, Option<&'a str>)>) -> Result<Config, Refusal> {
    let mut config = Config::new();
    for (name, value) in pairs {
        if !SETTINGS.iter().any(|(known, _)| *known == name) {
            return Err((codes::INVALID_CONFIG, format!("unknown topic config name: {name}")));
        }
        let Some(value) = value else { continue };
        check(name, value)?;
        config.insert(name.to_owned(), value.to_owned());
    }
    Ok(config)
}

fn check(name: &str, value: &str) -> Result<(), Refusal> {
    let policies = || value.split(',').all(|policy| ["compact", "delete"].contains(&policy.trim()));
    let (_, default) = SETTINGS.iter().find(|(known, _)| *known == name).unwrap_or(&("", ""));
    let valid = match name {
        "cleanup.policy" => policies(),
        _ if default.parse::<i64>().is_ok() => value.parse::<i64>().is_ok(),
        _ => true,
    };
    if valid && value.len() <= VALUE_BYTES_MAX {
        return Ok(());
    }
    Err((codes::INVALID_CONFIG, format!("invalid value {value:?} for configuration {name}")))
}

fn describe(state: &State, resource: &DescribeConfigsResource) -> DescribeConfigsResult {
    let row = DescribeConfigsResult::default().with_resource_type(resource.resource_type);
    let row = row.with_resource_name(resource.resource_name.clone());
    if resource.resource_type != TOPIC_RESOURCE {
        return row;
    }
    let Some(topic) = state.topics.get(resource.resource_name.as_str()) else {
        return row.with_error_code(codes::UNKNOWN_TOPIC_OR_PARTITION);
    };
    let asked =
        |name: &str| resource.configuration_keys.as_ref().is_none_or(|keys| keys.iter().any(|k| k.as_str() == name));
    let setting = |(name, default): &(&'static str, &str)| {
        let own = topic.config.get(*name);
        DescribeConfigsResourceResult::default()
            .with_name(StrBytes::from_static_str(name))
            .with_value(Some(text(own.map_or(default, String::as_str))))
            .with_config_source(if own.is_some() { SET_ON_TOPIC } else { DEFAULT })
    };
    row.with_configs(SETTINGS.iter().filter(|(name, _)| asked(name)).map(setting).collect())
}

fn set(
    state: &mut State,
    kind: i8,
    name: &str,
    config: Result<Config, Refusal>,
    validate_only: bool,
) -> Result<(), Refusal> {
    if kind != TOPIC_RESOURCE {
        return Err((codes::INVALID_REQUEST, "only topics have settings here".to_owned()));
    }
    if !state.topics.contains_key(name) {
        return Err((codes::UNKNOWN_TOPIC_OR_PARTITION, format!("no topic {name}")));
    }
    let config = config?;
    if !validate_only {
        state.record(Event::Config { name: name.to_owned(), config }, &[]);
    }
    Ok(())
}

fn changed(state: &State, resource: &AlterConfigsResource) -> Result<Config, Refusal> {
    const SET: i8 = 0;
    const DELETE: i8 = 1;
    let topic = state.topics.get(resource.resource_name.as_str());
    let mut config = topic.map(|topic| topic.config.clone()).unwrap_or_default();
    for change in &resource.configs {
        match (change.config_operation, change.value.as_deref()) {
            (SET, Some(value)) => {
                config.insert(change.name.to_string(), value.to_owned());
            }
            (DELETE, _) => {
                config.remove(change.name.as_str());
            }
            _ => return Err((codes::INVALID_REQUEST, format!("could not change {}: set or delete it", change.name))),
        }
    }
    settings(config.iter().map(|(name, value)| (name.as_str(), Some(value.as_str()))))
}
