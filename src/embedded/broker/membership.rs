//! Requests about groups: members (`groups.rs`) and offsets (`state.rs`). Next: `transactions.rs`.

use std::time::Instant;

use bytes::Bytes;
use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::offset_commit_request::OffsetCommitRequestTopic;
use kafka_protocol::messages::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
use kafka_protocol::messages::offset_fetch_response::{OffsetFetchResponsePartition, OffsetFetchResponseTopic};
use kafka_protocol::messages::{
    DeleteGroupsRequest, DeleteGroupsResponse, DescribeGroupsRequest, DescribeGroupsResponse, GroupId,
    HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse,
    ListGroupsResponse, OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse,
    SyncGroupRequest, SyncGroupResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::groups::{Join, Joined, Who};
use super::state::{Commit, Event, State};
use super::wire::{text, topic_name};
use super::{Broker, codes};

/// Longest text beside a committed offset, as in Kafka.
pub const METADATA_BYTES_MAX: usize = 4_096;

impl Broker {
    /// Answers when the group is complete.
    pub(super) async fn join_group(&self, request: JoinGroupRequest, client: &str, version: i16) -> JoinGroupResponse {
        let join = Join {
            group: request.group_id.to_string(),
            member: request.member_id.to_string(),
            instance: request.group_instance_id.map(|instance| instance.to_string()),
            client: client.to_owned(),
            kind: request.protocol_type.to_string(),
            session_ms: request.session_timeout_ms,
            rebalance_ms: request.rebalance_timeout_ms,
            protocols: request.protocols.into_iter().map(|p| (p.name.to_string(), p.metadata)).collect(),
            id_first: version >= 4,
        };
        let member = join.member.clone();
        let joining = self.core().groups.join(join, Instant::now());
        self.due.notify_one();
        let joined = match joining {
            // The other end goes when the member was removed meanwhile.
            Ok(answer) => answer.await.unwrap_or_else(|_| Joined {
                error: codes::UNKNOWN_MEMBER_ID,
                generation: -1,
                member,
                ..Joined::default()
            }),
            Err(refusal) => refusal,
        };
        join_response(joined)
    }

    /// Answers when the leader has assigned.
    pub(super) async fn sync_group(&self, request: SyncGroupRequest) -> SyncGroupResponse {
        let assignments = request.assignments.into_iter().map(|a| (a.member_id.to_string(), a.assignment)).collect();
        let who = Who {
            group: &request.group_id,
            member: &request.member_id,
            instance: request.group_instance_id.as_deref(),
            generation: request.generation_id,
        };
        let syncing = self.core().groups.sync(who, assignments, Instant::now());
        self.due.notify_one();
        let assignment = match syncing {
            Ok(answer) => answer.await.unwrap_or(Err(codes::REBALANCE_IN_PROGRESS)),
            Err(error) => Err(error),
        };
        match assignment {
            Ok(assignment) => SyncGroupResponse::default().with_assignment(assignment),
            Err(error) => SyncGroupResponse::default().with_error_code(error).with_assignment(Bytes::new()),
        }
    }

    pub(super) fn heartbeat(&self, request: &HeartbeatRequest) -> HeartbeatResponse {
        let who = Who {
            group: &request.group_id,
            member: &request.member_id,
            instance: request.group_instance_id.as_deref(),
            generation: request.generation_id,
        };
        HeartbeatResponse::default().with_error_code(self.core().groups.heartbeat(who, Instant::now()))
    }

    pub(super) fn leave_group(&self, request: &LeaveGroupRequest, version: i16) -> LeaveGroupResponse {
        let members: Vec<(String, Option<String>)> = match version {
            0..=2 => vec![(request.member_id.to_string(), None)],
            _ => request
                .members
                .iter()
                .map(|m| (m.member_id.to_string(), m.group_instance_id.as_ref().map(|i| i.to_string())))
                .collect(),
        };
        let errors = self.core().groups.leave(&request.group_id, &members, Instant::now());
        self.due.notify_one();
        if version <= 2 {
            return LeaveGroupResponse::default().with_error_code(errors[0]);
        }
        let row = |((member, instance), error): (&(String, Option<String>), i16)| {
            let row = MemberResponse::default().with_member_id(text(member)).with_error_code(error);
            row.with_group_instance_id(instance.as_deref().map(text))
        };
        LeaveGroupResponse::default().with_members(members.iter().zip(errors).map(row).collect())
    }

    pub(super) fn offset_commit(&self, request: &OffsetCommitRequest) -> OffsetCommitResponse {
        let who = Who {
            group: &request.group_id,
            member: &request.member_id,
            instance: request.group_instance_id.as_deref(),
            generation: request.generation_id_or_member_epoch,
        };
        let core = &mut *self.core();
        let refusal = core.groups.may_commit(who, false, Instant::now());
        let mut commits = Vec::new();
        let mut topics = Vec::new();
        for OffsetCommitRequestTopic { name, partitions, .. } in &request.topics {
            let mut rows = Vec::new();
            for p in partitions {
                let metadata = p.committed_metadata.as_deref().unwrap_or("");
                let commit = commit(&core.state, name, p.partition_index, p.committed_offset, metadata);
                let error = if refusal == codes::NONE { commit.as_ref().err().copied() } else { Some(refusal) };
                commits.extend(commit);
                let row = OffsetCommitResponsePartition::default().with_partition_index(p.partition_index);
                rows.push(row.with_error_code(error.unwrap_or(codes::NONE)));
            }
            topics.push(OffsetCommitResponseTopic::default().with_name(name.clone()).with_partitions(rows));
        }
        if refusal == codes::NONE && !commits.is_empty() {
            core.state.record(Event::Offsets { group: request.group_id.to_string(), commits }, &[]);
            core.state.flush();
        }
        OffsetCommitResponse::default().with_topics(topics)
    }

    pub(super) fn offset_fetch(&self, request: &OffsetFetchRequest) -> OffsetFetchResponse {
        let state = &self.core().state;
        let group = request.group_id.as_str();
        let wanted: Vec<(String, Vec<i32>)> = match &request.topics {
            Some(topics) => topics.iter().map(|t| (t.name.to_string(), t.partition_indexes.clone())).collect(),
            None => {
                let all = state.offsets.get(group).into_iter().flatten();
                all.map(|((topic, partition), _)| (topic.clone(), vec![*partition])).collect()
            }
        };
        let topics = wanted.iter().map(|(topic, partitions)| {
            let row = |partition: &i32| fetched(state, group, topic, *partition, request.require_stable);
            let rows = partitions.iter().map(row).collect();
            OffsetFetchResponseTopic::default().with_name(topic_name(topic)).with_partitions(rows)
        });
        OffsetFetchResponse::default().with_topics(topics.collect())
    }

    pub(super) fn list_groups(&self) -> ListGroupsResponse {
        let core = self.core();
        let mut names: Vec<&String> = core.groups.names().chain(core.state.offsets.keys()).collect();
        names.sort();
        names.dedup();
        let rows = names.into_iter().map(|name| {
            let kind = core.groups.describe(name).map(|group| group.kind).unwrap_or_default();
            ListedGroup::default().with_group_id(GroupId(text(name))).with_protocol_type(text(&kind))
        });
        ListGroupsResponse::default().with_groups(rows.collect())
    }

    pub(super) fn describe_groups(&self, request: &DescribeGroupsRequest) -> DescribeGroupsResponse {
        let core = self.core();
        let rows = request.groups.iter().map(|id| {
            let row = DescribedGroup::default().with_group_id(id.clone());
            let Some(group) = core.groups.describe(id) else {
                let state = if core.state.offsets.contains_key(id.as_str()) { "Empty" } else { "Dead" };
                return row.with_group_state(text(state));
            };
            let member = |(id, instance, client, metadata, assignment): (String, Option<String>, String, _, _)| {
                DescribedGroupMember::default()
                    .with_member_id(text(&id))
                    .with_group_instance_id(instance.as_deref().map(text))
                    .with_client_id(text(&client))
                    .with_client_host(text("/127.0.0.1"))
                    .with_member_metadata(metadata)
                    .with_member_assignment(assignment)
            };
            row.with_group_state(text(group.state))
                .with_protocol_type(text(&group.kind))
                .with_protocol_data(text(&group.protocol))
                .with_members(group.members.into_iter().map(member).collect())
        });
        DescribeGroupsResponse::default().with_groups(rows.collect())
    }

    pub(super) fn delete_groups(&self, request: &DeleteGroupsRequest) -> DeleteGroupsResponse {
        let core = &mut *self.core();
        let mut rows = Vec::new();
        for id in &request.groups_names {
            let has_offsets = core.state.offsets.contains_key(id.as_str());
            let error = match core.groups.delete(id) {
                codes::GROUP_ID_NOT_FOUND if has_offsets => codes::NONE,
                error => error,
            };
            if error == codes::NONE && has_offsets {
                core.state.record(Event::DeleteGroup { group: id.to_string() }, &[]);
                core.state.flush();
            }
            rows.push(DeletableGroupResult::default().with_group_id(id.clone()).with_error_code(error));
        }
        DeleteGroupsResponse::default().with_results(rows)
    }
}

fn join_response(joined: Joined) -> JoinGroupResponse {
    let row = |(id, instance, metadata): (String, Option<String>, Bytes)| {
        let row = JoinGroupResponseMember::default().with_member_id(text(&id)).with_metadata(metadata);
        row.with_group_instance_id(instance.as_deref().map(text))
    };
    JoinGroupResponse::default()
        .with_error_code(joined.error)
        .with_generation_id(joined.generation)
        .with_protocol_name(Some(text(&joined.protocol)))
        .with_leader(text(&joined.leader))
        .with_member_id(text(&joined.member))
        .with_members(joined.members.into_iter().map(row).collect())
}

/// A commit that is in order, or why it is not.
pub(super) fn commit(state: &State, topic: &str, partition: i32, offset: i64, metadata: &str) -> Result<Commit, i16> {
    if state.partition(topic, partition).is_none() {
        return Err(codes::UNKNOWN_TOPIC_OR_PARTITION);
    }
    if metadata.len() > METADATA_BYTES_MAX {
        return Err(codes::OFFSET_METADATA_TOO_LARGE);
    }
    Ok(Commit { topic: topic.to_owned(), partition, offset, metadata: metadata.to_owned() })
}

fn fetched(state: &State, group: &str, topic: &str, partition: i32, stable: bool) -> OffsetFetchResponsePartition {
    let place = (topic.to_owned(), partition);
    let pending = || {
        let offsets = state.transactions.values().flat_map(|transaction| &transaction.offsets);
        offsets.filter(|(owner, _)| owner == group).flat_map(|(_, commits)| commits)
    };
    let row = OffsetFetchResponsePartition::default().with_partition_index(partition).with_committed_leader_epoch(-1);
    let nothing = row.clone().with_committed_offset(-1).with_metadata(Some(StrBytes::default()));
    if stable && pending().any(|commit| commit.topic == topic && commit.partition == partition) {
        return nothing.with_error_code(codes::UNSTABLE_OFFSET_COMMIT);
    }
    match state.offsets.get(group).and_then(|offsets| offsets.get(&place)) {
        Some((offset, metadata)) => row.with_committed_offset(*offset).with_metadata(Some(text(metadata))),
        None => nothing,
    }
}
