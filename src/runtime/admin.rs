//! Topics as the topology wants them against topics as the cluster has them: what differs, what to do, and doing it.
//! Never deletes a topic, never changes a partition count, never touches settings that the topology does not name.
//! Next: `cli`.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigResource, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;

use super::client::{self, Connection, REQUEST_TIMEOUT};
use super::ports::{Error, ErrorKind};
use crate::topology::{Spec, TOPICS};

/// How long the brokers may take to create topics.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);
/// What a raw topic is created with, where its owner has not made it.
const RAW_RETENTION_MS: &str = "604800000";

/// One difference between topology and cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub topic: String,
    pub finding: Finding,
}

/// What differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// To be created, with these settings.
    Missing { partitions: i32, config: Vec<(String, String)> },
    /// Cannot be mended in place: users would move, their state would not.
    Partitions { found: i32, wanted: i32 },
    /// To be set.
    Config { key: String, found: Option<String>, wanted: String },
}

/// Everything that differs, in the order of the topology; empty when all is well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
}

impl Step {
    /// What to do about it, in a sentence.
    pub fn remedy(&self) -> String {
        let topic = &self.topic;
        match &self.finding {
            Finding::Missing { partitions, .. } => {
                format!("`topics apply` creates {topic} with {partitions} partitions")
            }
            Finding::Partitions { found, wanted } => format!(
                "{topic} has {found} partitions where {wanted} are configured: configure {found} partitions, or use a \
                 new application id with new topics and replay the inputs"
            ),
            Finding::Config { key, wanted, .. } => format!("`topics apply` sets {key}={wanted} on {topic}"),
        }
    }

    /// Whether `apply` can do it.
    pub const fn can_apply(&self) -> bool {
        !matches!(self.finding, Finding::Partitions { .. })
    }
}

/// Administers the topics of one cluster.
pub struct Admin {
    client: AdminClient<DefaultClientContext>,
    runtime: tokio::runtime::Runtime,
}

impl Admin {
    /// A client of the cluster; connects with its first call.
    pub fn new(connection: &Connection) -> Result<Admin, Error> {
        let client =
            connection.config(&[]).create().map_err(|e| client::error("could not make an admin client", &e))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|e| Error::new(ErrorKind::Fatal, "could not start the admin client's runtime", e))?;
        Ok(Admin { client, runtime })
    }

    /// Compares the topology with the cluster. Raw topics belong to their owners, so only their existence is looked at.
    pub fn plan(&self, partitions: i32, raw_topics: &[&str]) -> Result<Plan, Error> {
        let found = self.partition_counts()?;
        let present = || TOPICS.iter().filter(|spec| found.contains_key(spec.name));
        let names: Vec<&str> = present().map(|spec| spec.name).collect();
        let configs = self.configs(&names)?;
        let mut steps = Vec::new();
        for spec in &TOPICS {
            match found.get(spec.name) {
                None => steps.push(missing(spec, partitions)),
                Some(count) => steps.extend(differences(spec, partitions, *count, &configs)),
            }
        }
        for topic in raw_topics.iter().filter(|topic| !found.contains_key(**topic)) {
            let config = vec![("retention.ms".to_owned(), RAW_RETENTION_MS.to_owned())];
            steps.push(Step { topic: (*topic).to_owned(), finding: Finding::Missing { partitions, config } });
        }
        Ok(Plan { steps })
    }

    /// Does what a plan says. Refuses a plan with a step it cannot do, before it does any.
    pub fn apply(&self, plan: &Plan, replication: i32) -> Result<(), Error> {
        if let Some(step) = plan.steps.iter().find(|step| !step.can_apply()) {
            return Err(Error::new(ErrorKind::Fatal, "could not apply the plan", step.remedy()));
        }
        self.create(plan, replication)?;
        self.configure(plan)
    }

    /// Partition counts by topic.
    pub fn partition_counts(&self) -> Result<BTreeMap<String, i32>, Error> {
        let metadata = self.client.inner().fetch_metadata(None, REQUEST_TIMEOUT);
        let metadata = metadata.map_err(|e| client::error("could not list the topics", &e))?;
        Ok(metadata.topics().iter().map(|t| (t.name().to_owned(), t.partitions().len() as i32)).collect())
    }

    /// What is set on a topic itself, defaults left out.
    pub fn settings(&self, topic: &str) -> Result<Vec<(String, String)>, Error> {
        let configs = self.configs(&[topic])?;
        let entries = configs.into_values().flat_map(|config| config.entries);
        let own = entries.filter(|entry| entry.source == ConfigSource::DynamicTopic);
        Ok(own.filter_map(|entry| Some((entry.name, entry.value?))).collect())
    }

    fn configs(&self, topics: &[&str]) -> Result<BTreeMap<String, ConfigResource>, Error> {
        if topics.is_empty() {
            return Ok(BTreeMap::new());
        }
        let resources: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        let answer = self.runtime.block_on(self.client.describe_configs(&resources, &options()));
        let answer = answer.map_err(|e| client::error("could not read the settings of the topics", &e))?;
        topics
            .iter()
            .zip(answer)
            .map(|(topic, resource)| match resource {
                Ok(resource) => Ok(((*topic).to_owned(), resource)),
                Err(code) => Err(refused(format!("could not read the settings of {topic}"), code)),
            })
            .collect()
    }

    fn create(&self, plan: &Plan, replication: i32) -> Result<(), Error> {
        let mut topics = Vec::new();
        for step in &plan.steps {
            if let Finding::Missing { partitions, config } = &step.finding {
                let topic = NewTopic::new(&step.topic, *partitions, TopicReplication::Fixed(replication));
                topics.push(config.iter().fold(topic, |topic, (key, value)| topic.set(key, value)));
            }
        }
        if topics.is_empty() {
            return Ok(());
        }
        let answer = self.runtime.block_on(self.client.create_topics(&topics, &options()));
        for result in answer.map_err(|e| client::error("could not create topics", &e))? {
            match result {
                // Another `apply` may be under way.
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => return Err(refused(format!("could not create {topic}"), code)),
            }
        }
        Ok(())
    }

    /// The request replaces all settings of a topic, so those that are set on it and not ours are sent again.
    fn configure(&self, plan: &Plan) -> Result<(), Error> {
        let mut wanted: BTreeMap<&str, BTreeMap<String, String>> = BTreeMap::new();
        for step in &plan.steps {
            if let Finding::Config { key, wanted: value, .. } = &step.finding {
                wanted.entry(&step.topic).or_default().insert(key.clone(), value.clone());
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let topics: Vec<&str> = wanted.keys().copied().collect();
        for (topic, settings) in &mut wanted {
            for (key, value) in self.settings(topic)? {
                settings.entry(key).or_insert(value);
            }
        }
        let changes: Vec<AlterConfig<'_>> =
            wanted.iter().map(|(topic, settings)| alteration(topic, settings)).collect();
        let answer = self.runtime.block_on(self.client.alter_configs(&changes, &options()));
        for (topic, result) in topics.iter().zip(answer.map_err(|e| client::error("could not set topics", &e))?) {
            result.map_err(|(_, code)| refused(format!("could not set {topic}"), code))?;
        }
        Ok(())
    }
}

/// What `Admin::plan` finds, for those who do it once.
pub fn plan(connection: &Connection, partitions: i32, raw_topics: &[&str]) -> Result<Plan, Error> {
    Admin::new(connection)?.plan(partitions, raw_topics)
}

fn alteration<'a>(topic: &'a str, settings: &'a BTreeMap<String, String>) -> AlterConfig<'a> {
    let change = AlterConfig::new(ResourceSpecifier::Topic(topic));
    settings.iter().fold(change, |change, (key, value)| change.set(key, value))
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(OPERATION_TIMEOUT)).operation_timeout(Some(OPERATION_TIMEOUT))
}

fn refused(what: String, code: RDKafkaErrorCode) -> Error {
    Error::new(ErrorKind::Fatal, what, code)
}

fn wanted_partitions(spec: &Spec, partitions: i32) -> i32 {
    if spec.per_partition { partitions } else { 1 }
}

fn missing(spec: &Spec, partitions: i32) -> Step {
    let config = spec.config().into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let finding = Finding::Missing { partitions: wanted_partitions(spec, partitions), config };
    Step { topic: spec.name.to_owned(), finding }
}

fn differences(
    spec: &Spec,
    partitions: i32,
    found: i32,
    configs: &BTreeMap<String, ConfigResource>,
) -> impl Iterator<Item = Step> {
    let wanted = wanted_partitions(spec, partitions);
    let count = (found != wanted).then_some(Finding::Partitions { found, wanted });
    let settings = spec.config().into_iter().filter_map(move |(key, wanted)| {
        let entry = configs.get(spec.name).and_then(|config| config.get(key));
        let found = entry.and_then(|entry| entry.value.clone());
        let same = found.as_deref().is_some_and(|found| same_setting(found, &wanted));
        (!same).then_some(Finding::Config { key: key.to_owned(), found, wanted })
    });
    count.into_iter().chain(settings).map(|finding| Step { topic: spec.name.to_owned(), finding })
}

/// Lists such as `compact,delete` have no order.
fn same_setting(found: &str, wanted: &str) -> bool {
    let sorted = |text: &str| {
        let mut parts: Vec<String> = text.split(',').map(|part| part.trim().to_owned()).collect();
        parts.sort_unstable();
        parts
    };
    sorted(found) == sorted(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Topic;

    #[test]
    fn lists_compare_without_order() {
        assert!(same_setting("delete,compact", "compact,delete"));
        assert!(same_setting("0.1", "0.1"));
        assert!(!same_setting("compact", "compact,delete"));
    }

    #[test]
    fn a_wrong_count_cannot_be_applied() {
        let spec = Topic::PolicySets.spec();
        let steps: Vec<Step> = differences(spec, 64, 3, &BTreeMap::new()).collect();
        assert_eq!(steps[0].finding, Finding::Partitions { found: 3, wanted: 1 });
        assert!(!steps[0].can_apply());
        assert!(steps[1..].iter().all(Step::can_apply));
        assert!(steps[0].remedy().contains("configure 3 partitions"), "{}", steps[0].remedy());
    }
}
