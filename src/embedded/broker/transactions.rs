//! Requests about transactions. A producer is fenced by its epoch; an open transaction is aborted when a newer
//! producer of the same id comes or its time is up. Next: `records.rs`.

use std::time::{Duration, Instant};

use kafka_protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
};
use kafka_protocol::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddOffsetsToTxnResponse, AddPartitionsToTxnRequest, AddPartitionsToTxnResponse,
    EndTxnRequest, EndTxnResponse, InitProducerIdRequest, InitProducerIdResponse, ProducerId, TxnOffsetCommitRequest,
    TxnOffsetCommitResponse,
};

use super::groups::Who;
use super::membership::commit;
use super::state::{Event, Place, State};
use super::{Broker, codes, now_ms};

/// Kafka's `transaction.max.timeout.ms`.
const TIMEOUT_MS_MAX: i32 = 900_000;
/// Transactional ids remembered.
const IDS_MAX: usize = 10_000;

impl State {
    /// Whether a producer is the one of its transactional id.
    pub(super) fn check_producer(&self, id: &str, producer: i64, epoch: i16) -> i16 {
        match self.transactions.get(id) {
            Some(transaction) if transaction.producer != producer => codes::INVALID_PRODUCER_ID_MAPPING,
            Some(transaction) if transaction.epoch != epoch => codes::PRODUCER_FENCED,
            Some(_) => codes::NONE,
            None => codes::INVALID_PRODUCER_ID_MAPPING,
        }
    }

    /// Aborts what a transactional id has open and gives the id another epoch, or another producer id when the epochs
    /// are used up. The producer that had it is fenced.
    fn supersede(&mut self, id: &str, timeout_ms: i64) -> (i64, i16) {
        let current = self.transactions.get(id).map(|t| (t.producer, t.epoch, t.started.is_some()));
        let (producer, epoch) = match current {
            Some((producer, epoch, _)) if epoch < i16::MAX - 1 => (producer, epoch + 1),
            _ => (self.new_producer(), 0),
        };
        if current.is_some_and(|(_, _, open)| open) {
            self.record(Event::TransactionEnd { id: id.to_owned(), commit: false, timestamp: now_ms() }, &[]);
        }
        self.record(Event::Transaction { id: id.to_owned(), producer, epoch, timeout_ms }, &[]);
        (producer, epoch)
    }

    /// Aborts transactions whose time is up; says whether there were any.
    pub(super) fn abort_overdue(&mut self, now: Instant) -> bool {
        let due = |t: &super::state::Transaction| deadline(t).is_some_and(|deadline| now >= deadline);
        let overdue: Vec<(String, i64)> =
            self.transactions.iter().filter(|(_, t)| due(t)).map(|(id, t)| (id.clone(), t.timeout_ms)).collect();
        for (id, timeout_ms) in &overdue {
            self.supersede(id, *timeout_ms);
        }
        !overdue.is_empty()
    }

    /// When the first open transaction's time is up.
    pub(super) fn next_overdue(&self) -> Option<Instant> {
        self.transactions.values().filter_map(deadline).min()
    }
}

fn deadline(transaction: &super::state::Transaction) -> Option<Instant> {
    Some(transaction.started? + Duration::from_millis(transaction.timeout_ms.max(0) as u64))
}

impl Broker {
    pub(super) fn init_producer(&self, request: &InitProducerIdRequest) -> InitProducerIdResponse {
        let refuse = |error| {
            let none = InitProducerIdResponse::default().with_producer_id(ProducerId(-1)).with_producer_epoch(-1);
            none.with_error_code(error)
        };
        let state = &mut self.core().state;
        let (producer, epoch) = match request.transactional_id.as_ref().map(|id| id.to_string()) {
            None => (state.new_producer(), 0),
            Some(id) => {
                if !(1..=TIMEOUT_MS_MAX).contains(&request.transaction_timeout_ms) {
                    return refuse(codes::INVALID_TRANSACTION_TIMEOUT);
                }
                if id.is_empty() || (!state.transactions.contains_key(&id) && state.transactions.len() >= IDS_MAX) {
                    return refuse(codes::INVALID_REQUEST);
                }
                // A producer that goes on after an error names itself; one that was replaced meanwhile is fenced.
                if request.producer_id.0 >= 0 {
                    let error = state.check_producer(&id, request.producer_id.0, request.producer_epoch);
                    if error != codes::NONE {
                        return refuse(error);
                    }
                }
                state.supersede(&id, i64::from(request.transaction_timeout_ms))
            }
        };
        state.flush();
        self.changed.notify_waiters();
        InitProducerIdResponse::default().with_producer_id(ProducerId(producer)).with_producer_epoch(epoch)
    }

    pub(super) fn add_partitions(&self, request: &AddPartitionsToTxnRequest) -> AddPartitionsToTxnResponse {
        let id = request.v3_and_below_transactional_id.to_string();
        let topics = &request.v3_and_below_topics;
        let state = &mut self.core().state;
        let (producer, epoch) = (request.v3_and_below_producer_id.0, request.v3_and_below_producer_epoch);
        let refusal = state.check_producer(&id, producer, epoch);
        let parts: Vec<Place> =
            topics.iter().flat_map(|t| t.partitions.iter().map(|p| (t.name.to_string(), *p))).collect();
        let unknown = parts.iter().any(|(topic, partition)| state.partition(topic, *partition).is_none());
        let error = if refusal == codes::NONE && unknown { codes::UNKNOWN_TOPIC_OR_PARTITION } else { refusal };
        if error == codes::NONE {
            state.record(Event::TransactionParts { id, parts }, &[]);
            state.flush();
            self.due.notify_one();
        }
        let results = topics.iter().map(|topic| {
            let row = |p: &i32| {
                let row = AddPartitionsToTxnPartitionResult::default().with_partition_index(*p);
                row.with_partition_error_code(error)
            };
            let rows = topic.partitions.iter().map(row).collect();
            AddPartitionsToTxnTopicResult::default().with_name(topic.name.clone()).with_results_by_partition(rows)
        });
        AddPartitionsToTxnResponse::default().with_results_by_topic_v3_and_below(results.collect())
    }

    pub(super) fn add_offsets(&self, request: &AddOffsetsToTxnRequest) -> AddOffsetsToTxnResponse {
        let id = request.transactional_id.to_string();
        let state = &mut self.core().state;
        let error = state.check_producer(&id, request.producer_id.0, request.producer_epoch);
        if error == codes::NONE {
            let group = request.group_id.to_string();
            state.record(Event::TransactionOffsets { id, group, commits: Vec::new() }, &[]);
            state.flush();
            self.due.notify_one();
        }
        AddOffsetsToTxnResponse::default().with_error_code(error)
    }

    pub(super) fn txn_offset_commit(&self, request: &TxnOffsetCommitRequest) -> TxnOffsetCommitResponse {
        let id = request.transactional_id.to_string();
        let core = &mut *self.core();
        let mut refusal = match core.state.check_producer(&id, request.producer_id.0, request.producer_epoch) {
            // This request has no code of its own for it.
            codes::PRODUCER_FENCED => codes::INVALID_PRODUCER_EPOCH,
            codes::NONE if core.state.transactions[&id].started.is_none() => codes::INVALID_TXN_STATE,
            error => error,
        };
        if refusal == codes::NONE {
            let who = Who {
                group: &request.group_id,
                member: &request.member_id,
                instance: request.group_instance_id.as_deref(),
                generation: request.generation_id,
            };
            refusal = core.groups.may_commit(who, true, Instant::now());
        }
        let mut commits = Vec::new();
        let mut topics = Vec::new();
        for topic in &request.topics {
            let mut rows = Vec::new();
            for p in &topic.partitions {
                let metadata = p.committed_metadata.as_deref().unwrap_or("");
                let commit = commit(&core.state, &topic.name, p.partition_index, p.committed_offset, metadata);
                let error = if refusal == codes::NONE { commit.as_ref().err().copied() } else { Some(refusal) };
                commits.extend(commit);
                let row = TxnOffsetCommitResponsePartition::default().with_partition_index(p.partition_index);
                rows.push(row.with_error_code(error.unwrap_or(codes::NONE)));
            }
            topics.push(TxnOffsetCommitResponseTopic::default().with_name(topic.name.clone()).with_partitions(rows));
        }
        if refusal == codes::NONE {
            let group = request.group_id.to_string();
            core.state.record(Event::TransactionOffsets { id, group, commits }, &[]);
            core.state.flush();
        }
        TxnOffsetCommitResponse::default().with_topics(topics)
    }

    pub(super) fn end_txn(&self, request: &EndTxnRequest) -> EndTxnResponse {
        let id = request.transactional_id.to_string();
        let state = &mut self.core().state;
        let error = match state.check_producer(&id, request.producer_id.0, request.producer_epoch) {
            codes::NONE => {
                let transaction = &state.transactions[&id];
                match (transaction.started.is_some(), transaction.last_end) {
                    (true, _) => {
                        let parts: Vec<Place> = transaction.parts.iter().cloned().collect();
                        let timestamp = now_ms();
                        state.record(Event::TransactionEnd { id, commit: request.committed, timestamp }, &[]);
                        state.maintain(&parts, timestamp);
                        state.flush();
                        codes::NONE
                    }
                    // The answer was lost and is asked for again.
                    (false, Some(commit)) if commit == request.committed => codes::NONE,
                    _ => codes::INVALID_TXN_STATE,
                }
            }
            error => error,
        };
        self.changed.notify_waiters();
        EndTxnResponse::default().with_error_code(error)
    }
}
