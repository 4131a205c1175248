//! Requests about records: produce, fetch, offsets by time, deleting from the front. Next: `admin.rs`.

use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult};
use kafka_protocol::messages::fetch_request::FetchPartition;
use kafka_protocol::messages::fetch_response::{AbortedTransaction, FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::list_offsets_request::ListOffsetsPartition;
use kafka_protocol::messages::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{
    BrokerId, DeleteRecordsRequest, DeleteRecordsResponse, FetchRequest, FetchResponse, ListOffsetsRequest,
    ListOffsetsResponse, ProduceRequest, ProduceResponse, ProducerId,
};

use super::batch::Header;
use super::log::{Partition, Sequence};
use super::state::{Event, Place, State};
use super::wire::INTEGER_MAX;
use super::{Broker, codes, now_ms};

/// Most bytes of one answer to a fetch.
const FETCH_BYTES_MAX: usize = 16 << 20;
/// Longest wait of a fetch.
const FETCH_WAIT_MAX: Duration = Duration::from_secs(60);
const READ_COMMITTED: i8 = 1;

impl Broker {
    /// Appends; nothing is answered when the producer wants none.
    pub(super) fn produce(&self, request: &ProduceRequest, version: i16) -> Option<ProduceResponse> {
        let transactional_id = request.transactional_id.as_ref().map(|id| id.as_str());
        let state = &mut self.core().state;
        let mut touched = Vec::new();
        let mut topics = Vec::new();
        for topic in &request.topic_data {
            let mut rows = Vec::new();
            for part in &topic.partition_data {
                let place = (topic.name.to_string(), part.index);
                let result = append(state, transactional_id, &place, part.records.as_ref());
                let start = state.partition(&place.0, place.1).map_or(-1, |log| log.facts.start);
                let (error, base) = result.map_or_else(|error| (error, -1), |base| (codes::NONE, base));
                let row = PartitionProduceResponse::default().with_index(part.index).with_error_code(error);
                let row = row.with_base_offset(base).with_log_append_time_ms(-1);
                rows.push(row.with_log_start_offset(if version >= 5 { start } else { -1 }));
                touched.push(place);
            }
            topics.push(TopicProduceResponse::default().with_name(topic.name.clone()).with_partition_responses(rows));
        }
        state.maintain(&touched, now_ms());
        state.flush();
        self.changed.notify_waiters();
        (request.acks != 0).then(|| ProduceResponse::default().with_responses(topics))
    }

    /// Answers when there is enough, at an error, or when the wait is over.
    pub(super) async fn fetch(&self, request: &FetchRequest, version: i16) -> FetchResponse {
        let wait = Duration::from_millis(request.max_wait_ms.max(0) as u64).min(FETCH_WAIT_MAX);
        let until = tokio::time::Instant::now() + wait;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on a change is noticed, so none is missed between the look and the wait.
            changed.as_mut().enable();
            let (answer, bytes, at_once) = fetch_now(&self.core().state, request, version);
            let enough = bytes >= request.min_bytes.max(1) as usize;
            if at_once || enough || tokio::time::Instant::now() >= until {
                return answer;
            }
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    pub(super) fn list_offsets(&self, request: &ListOffsetsRequest, version: i16) -> ListOffsetsResponse {
        let state = &self.core().state;
        let topics = request.topics.iter().map(|topic| {
            let row = |part: &ListOffsetsPartition| {
                let log = state.partition(&topic.name, part.partition_index);
                list_one(log, part, request.isolation_level, version)
            };
            let rows = topic.partitions.iter().map(row).collect();
            ListOffsetsTopicResponse::default().with_name(topic.name.clone()).with_partitions(rows)
        });
        ListOffsetsResponse::default().with_topics(topics.collect())
    }

    pub(super) fn delete_records(&self, request: &DeleteRecordsRequest) -> DeleteRecordsResponse {
        let state = &mut self.core().state;
        let mut topics = Vec::new();
        for topic in &request.topics {
            let mut rows = Vec::new();
            for part in &topic.partitions {
                let row = DeleteRecordsPartitionResult::default().with_partition_index(part.partition_index);
                rows.push(match delete_before(state, &topic.name, part.partition_index, part.offset) {
                    Ok(start) => row.with_low_watermark(start),
                    Err(error) => row.with_low_watermark(-1).with_error_code(error),
                });
            }
            topics.push(DeleteRecordsTopicResult::default().with_name(topic.name.clone()).with_partitions(rows));
        }
        state.flush();
        DeleteRecordsResponse::default().with_topics(topics)
    }
}

/// Appends the batches of one partition and gives the first offset.
fn append(state: &mut State, id: Option<&str>, place: &Place, records: Option<&Bytes>) -> Result<i64, i16> {
    let topic = state.topics.get(&place.0).ok_or(codes::UNKNOWN_TOPIC_OR_PARTITION)?;
    let (bytes_max, latest) = (topic.batch_bytes_max(), now_ms().saturating_add(topic.ahead_ms_max()));
    if state.partition(&place.0, place.1).is_none() {
        return Err(codes::UNKNOWN_TOPIC_OR_PARTITION);
    }
    if !state.has_room() {
        return Err(codes::KAFKA_STORAGE_ERROR);
    }
    let mut rest = records.cloned().unwrap_or_default();
    let mut first = None;
    while !rest.is_empty() {
        let header = Header::read(&rest).ok_or(codes::CORRUPT_MESSAGE)?;
        if header.bytes > bytes_max {
            return Err(codes::MESSAGE_TOO_LARGE);
        }
        if header.max_timestamp > latest {
            return Err(codes::INVALID_TIMESTAMP);
        }
        let batch = rest.split_to(header.bytes);
        let base = append_batch(state, id, place, &header, &batch)?;
        first.get_or_insert(base);
    }
    first.ok_or(codes::CORRUPT_MESSAGE)
}

fn append_batch(state: &mut State, id: Option<&str>, place: &Place, header: &Header, batch: &[u8]) -> Result<i64, i16> {
    if header.control() {
        return Err(codes::INVALID_REQUEST);
    }
    if header.transactional() {
        check_transaction(state, id, place, header)?;
    }
    if header.producer >= 0 {
        let log = state.partition(&place.0, place.1).ok_or(codes::UNKNOWN_TOPIC_OR_PARTITION)?;
        match log.sequence(header) {
            Sequence::Next => {}
            Sequence::Duplicate(base) => return Ok(base),
            Sequence::OutOfOrder => return Err(codes::OUT_OF_ORDER_SEQUENCE),
            Sequence::Fenced => return Err(codes::INVALID_PRODUCER_EPOCH),
        }
    }
    Ok(state.record(Event::Append { topic: place.0.clone(), partition: place.1 }, batch))
}

fn check_transaction(state: &State, id: Option<&str>, place: &Place, header: &Header) -> Result<(), i16> {
    let id = id.ok_or(codes::INVALID_TXN_STATE)?;
    match state.check_producer(id, header.producer, header.epoch) {
        codes::NONE => {}
        codes::PRODUCER_FENCED => return Err(codes::INVALID_PRODUCER_EPOCH),
        error => return Err(error),
    }
    let part_of_it = state.transactions.get(id).is_some_and(|transaction| transaction.parts.contains(place));
    if part_of_it { Ok(()) } else { Err(codes::INVALID_TXN_STATE) }
}

/// The answer as of now, its bytes, and whether it cannot wait.
fn fetch_now(state: &State, request: &FetchRequest, version: i16) -> (FetchResponse, usize, bool) {
    // A number that large may have been cut on its way in; all partitions of a client should fit in one answer.
    let mut left = match request.max_bytes {
        INTEGER_MAX.. => FETCH_BYTES_MAX,
        bytes => bytes.max(0) as usize,
    };
    let (mut bytes, mut at_once) = (0, false);
    let mut topics = Vec::new();
    for topic in &request.topics {
        let mut rows = Vec::new();
        for part in &topic.partitions {
            let log = state.partition(&topic.topic, part.partition);
            let row = fetch_one(log, part, request.isolation_level, left, bytes == 0, version);
            let read = row.records.as_ref().map_or(0, Bytes::len);
            bytes += read;
            left = left.saturating_sub(read);
            at_once |= row.error_code != codes::NONE;
            rows.push(row);
        }
        topics.push(FetchableTopicResponse::default().with_topic(topic.topic.clone()).with_partitions(rows));
    }
    (FetchResponse::default().with_responses(topics), bytes, at_once || request.topics.is_empty())
}

fn fetch_one(
    log: Option<&Partition>,
    part: &FetchPartition,
    isolation: i8,
    bytes_max: usize,
    first: bool,
    version: i16,
) -> PartitionData {
    let row = PartitionData::default().with_partition_index(part.partition);
    let row = row.with_preferred_read_replica(BrokerId(-1)).with_records(Some(Bytes::new()));
    let Some(log) = log else {
        return row.with_error_code(codes::UNKNOWN_TOPIC_OR_PARTITION).with_high_watermark(-1);
    };
    let (facts, stable) = (&log.facts, log.last_stable());
    let row = row.with_high_watermark(facts.next).with_last_stable_offset(stable);
    let row = row.with_log_start_offset(if version >= 5 { facts.start } else { -1 });
    if !(facts.start..=facts.next).contains(&part.fetch_offset) {
        return row.with_error_code(codes::OFFSET_OUT_OF_RANGE);
    }
    let committed = isolation == READ_COMMITTED;
    let end = if committed { stable } else { facts.next };
    let own_max = bytes_max.min(part.partition_max_bytes.max(0) as usize);
    let (records, next) = log.read(part.fetch_offset, end, own_max, first);
    let aborted = committed.then(|| {
        let row = |a: &super::log::Aborted| {
            AbortedTransaction::default().with_producer_id(ProducerId(a.producer)).with_first_offset(a.first)
        };
        log.aborted(part.fetch_offset, next).map(row).collect()
    });
    row.with_aborted_transactions(aborted).with_records(Some(records))
}

fn list_one(
    log: Option<&Partition>,
    part: &ListOffsetsPartition,
    isolation: i8,
    version: i16,
) -> ListOffsetsPartitionResponse {
    const LATEST: i64 = -1;
    const EARLIEST: i64 = -2;
    let row = ListOffsetsPartitionResponse::default().with_partition_index(part.partition_index).with_timestamp(-1);
    let row = row.with_leader_epoch(if version >= 4 { 0 } else { -1 }).with_offset(-1);
    let Some(log) = log else { return row.with_error_code(codes::UNKNOWN_TOPIC_OR_PARTITION) };
    match part.timestamp {
        EARLIEST => row.with_offset(log.facts.start),
        LATEST if isolation == READ_COMMITTED => row.with_offset(log.last_stable()),
        LATEST => row.with_offset(log.facts.next),
        time => match log.at_time(time) {
            Some((timestamp, offset)) => row.with_timestamp(timestamp).with_offset(offset),
            None => row.with_leader_epoch(-1),
        },
    }
}

/// Moves a log's start; -1 means its end.
fn delete_before(state: &mut State, topic: &str, partition: i32, offset: i64) -> Result<i64, i16> {
    let log = state.partition(topic, partition).ok_or(codes::UNKNOWN_TOPIC_OR_PARTITION)?;
    let start = if offset == -1 { log.facts.next } else { offset };
    if start > log.facts.next || start < 0 {
        return Err(codes::OFFSET_OUT_OF_RANGE);
    }
    state.record(Event::Trim { topic: topic.to_owned(), partition, start }, &[]);
    state.partition(topic, partition).map(|log| log.facts.start).ok_or(codes::UNKNOWN_TOPIC_OR_PARTITION)
}
