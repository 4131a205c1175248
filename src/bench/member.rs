//! A member of a consumer group that starts where it is told, once it has its share of the partitions. The bare loops
//! and the latency reader use it; it has the engine's own client settings, because it is the engine's own client. A
//! rebalance afterwards is an error: it would spoil the figures. Next: `ceiling.rs`.

use std::time::{Duration, Instant};

use super::Error;
use crate::runtime::client::Connection;
use crate::runtime::ports::{Group, InputOffset, Polled, RecordRef, TopicName};
use crate::runtime::source::{GroupMetadata, KafkaGroup, Membership};

/// How long the group may take to give every member its share.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);

/// A member at work.
pub struct Member {
    group: KafkaGroup,
    name: String,
}

impl Member {
    /// Joins `group` and waits until exactly `share` partitions of `input` are assigned; each starts at `from`.
    pub fn join(
        connection: &Connection,
        group: &str,
        input: TopicName,
        share: usize,
        from: impl Fn(i32) -> i64,
    ) -> Result<Member, Error> {
        let membership = Membership::new(group, None, vec![input]);
        let mut member = Member { group: KafkaGroup::join(connection, membership)?, name: group.to_owned() };
        let deadline = Instant::now() + JOIN_TIMEOUT;
        while Instant::now() < deadline {
            if member.group.poll(Duration::from_millis(20), &mut |_| {})? != Polled::Rebalanced {
                continue;
            }
            let assigned = member.group.changes().assigned.unwrap_or_default();
            if assigned.len() == share {
                let start = |(topic, partition)| InputOffset {
                    topic,
                    partition,
                    offset: from(partition),
                    metadata: String::new(),
                };
                member.group.start(&assigned.into_iter().map(start).collect::<Vec<_>>())?;
                return Ok(member);
            }
            // Taken up with nothing: the client joins no further rebalance while an assignment is unanswered.
            member.group.start(&[])?;
        }
        Err(Error::failed(format!("group {group}"), format!("no {share} partitions were assigned within a minute")))
    }

    /// Waits for at most one record; whether one came.
    pub fn poll(&mut self, wait: Duration, each: &mut dyn FnMut(RecordRef<'_>)) -> Result<bool, Error> {
        match self.group.poll(wait, each)? {
            Polled::Record => Ok(true),
            Polled::Nothing => Ok(false),
            Polled::Rebalanced => Err(Error::failed(format!("group {}", self.name), "its members changed meanwhile")),
        }
    }

    /// Proof of membership as of the last poll.
    pub fn metadata(&self) -> Result<GroupMetadata, Error> {
        Ok(self.group.metadata()?)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.group.close();
    }
}
