//! Records: what is written is what is read, at its offset; compaction.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders, Timestamp};
use rdkafka::producer::{BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::client::{Broker, PATIENCE, at, flush, send, unique};
use crate::support::Isolation::{ReadCommitted, ReadUncommitted};
use crate::support::{read_all, wait_for};

/// A time long gone.
const EPOCH: i64 = 1_700_000_000_000;

pub fn records_travel_whole_and_in_order(broker: &mut Broker) {
    let topic = broker.topic("topic", 1, &[]);
    let producer = broker.producer(&[]);
    for n in 0..100_i64 {
        let headers = OwnedHeaders::new()
            .insert(Header { key: "n", value: Some(&n.to_string()) })
            .insert(Header { key: "nothing", value: None::<&str> });
        let record = BaseRecord::to(&topic).key("key").payload("value").partition(0).headers(headers);
        producer.send(record.timestamp(EPOCH + n)).map_err(|(error, _)| error).unwrap();
    }
    let tombstone = BaseRecord::<str, str>::to(&topic).key("gone").partition(0);
    producer.send(tombstone).map_err(|(error, _)| error).unwrap();
    flush(&producer);
    let found = read_all(&broker.bootstrap(), &topic, ReadCommitted);
    assert_eq!(found.len(), 101);
    for (n, message) in found[..100].iter().enumerate() {
        assert_eq!(message.offset(), n as i64);
        assert_eq!(message.timestamp(), Timestamp::CreateTime(EPOCH + n as i64));
        let headers = message.headers().unwrap();
        assert_eq!(headers.get(0).value, Some(n.to_string().as_bytes()));
        assert_eq!((headers.count(), headers.get(1).value), (2, None));
    }
    assert_eq!((found[100].key(), found[100].payload()), (Some(&b"gone"[..]), None));
}

pub fn every_codec_is_kept(broker: &mut Broker) {
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let topic = broker.topic(codec, 1, &[]);
        let producer = broker.producer(&[("compression.type", codec), ("linger.ms", "20")]);
        let filler = "x".repeat(100);
        for n in 0..200 {
            let record = BaseRecord::to(&topic).key("k").payload(&filler).partition(0).timestamp(EPOCH + n);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        flush(&producer);
        assert_eq!(broker.values(&topic, ReadCommitted).len(), 200, "{codec}");
        // The batch has to be opened for this.
        let client: BaseConsumer = broker.config().create().unwrap();
        let found = client.offsets_for_times(at(&topic, &[(0, EPOCH + 150)]), PATIENCE).unwrap();
        assert_eq!(found.elements()[0].offset(), Offset::Offset(150), "{codec}");
    }
}

pub fn an_idempotent_producer_writes_once(broker: &mut Broker) {
    let topic = broker.topic("topic", 1, &[]);
    let producer = broker.producer(&[("enable.idempotence", "true"), ("batch.num.messages", "7")]);
    (0..500).for_each(|n| send(&producer, &topic, 0, "k", &n.to_string()));
    flush(&producer);
    let expected: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    assert_eq!(broker.values(&topic, ReadCommitted), expected);
}

pub fn offsets_are_found_by_time(broker: &mut Broker) {
    let topic = broker.topic("topic", 1, &[]);
    let producer = broker.producer(&[("compression.type", "lz4"), ("linger.ms", "20")]);
    for n in 0..100 {
        let record = BaseRecord::to(&topic).key("k").payload("v").partition(0).timestamp(EPOCH + n * 1_000);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        if n % 10 == 9 {
            flush(&producer);
        }
    }
    let client: BaseConsumer = broker.config().create().unwrap();
    let at_time = |ms: i64| {
        let found = client.offsets_for_times(at(&topic, &[(0, EPOCH + ms)]), PATIENCE).unwrap();
        found.elements()[0].offset()
    };
    assert_eq!(at_time(42_500), Offset::Offset(43), "inside a batch");
    assert_eq!(at_time(42_000), Offset::Offset(42));
    assert_eq!(at_time(-5), Offset::Offset(0));
    assert_eq!(at_time(99_001), Offset::End);
    assert_eq!(broker.ends(&topic, "read_committed"), (0, 100));
}

pub fn a_position_outside_the_log_is_an_error(broker: &mut Broker) {
    let topic = broker.topic("topic", 1, &[]);
    let producer = broker.producer(&[]);
    send(&producer, &topic, 0, "k", "v");
    flush(&producer);
    let mut config = broker.config();
    let client: BaseConsumer = config.set("group.id", "g").set("auto.offset.reset", "error").create().unwrap();
    client.assign(&at(&topic, &[(0, 50)])).unwrap();
    let error = wait_for("an error", PATIENCE, || client.poll(Duration::from_millis(50)).and_then(Result::err));
    assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::AutoOffsetReset), "{error}");
    client.assign(&TopicPartitionList::new()).unwrap();
    let absent = client.fetch_watermarks(&topic, 7, Duration::from_secs(5)).unwrap_err();
    assert_eq!(absent.rdkafka_error_code(), Some(RDKafkaErrorCode::UnknownPartition), "{absent}");
}

pub fn a_batch_too_large_is_refused(broker: &mut Broker) {
    let topic = broker.topic("topic", 1, &[("max.message.bytes", "2000")]);
    let id = unique("txn");
    let producer = broker.transactional(&id);
    producer.begin_transaction().unwrap();
    send(&producer, &topic, 0, "k", &"x".repeat(3_000));
    let error = producer.commit_transaction(PATIENCE).unwrap_err();
    assert!(matches!(error, KafkaError::Transaction(_)), "{error}");
    goes_on(broker, &id, &topic);
}

pub fn a_time_to_come_is_refused(broker: &mut Broker) {
    let topic = broker.topic("topic", 1, &[]);
    let id = unique("txn");
    let producer = broker.transactional(&id);
    producer.begin_transaction().unwrap();
    let tomorrow = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() + 86_400_000;
    let record = BaseRecord::to(&topic).key("k").payload("v").partition(0).timestamp(tomorrow as i64);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    let error = producer.commit_transaction(PATIENCE).unwrap_err();
    assert!(matches!(error, KafkaError::Transaction(_)), "{error}");
    goes_on(broker, &id, &topic);
}

/// The next producer of an id finds nothing of the last one's.
fn goes_on(broker: &Broker, id: &str, topic: &str) {
    let next = broker.transactional(id);
    next.begin_transaction().unwrap();
    send(&next, topic, 0, "k", "fits");
    next.commit_transaction(PATIENCE).unwrap();
    assert_eq!(broker.values(topic, ReadCommitted), ["fits"]);
}

pub fn the_latest_record_of_each_key_survives_compaction(broker: &mut Broker) {
    let settings = [("cleanup.policy", "compact"), ("segment.bytes", "1048576"), ("min.cleanable.dirty.ratio", "0.01")];
    let topic = broker.topic("table", 1, &settings);
    let (kept, dropped) = (broker.transactional("kept"), broker.transactional("dropped"));
    let mut latest = BTreeMap::new();
    for round in 0..30 {
        kept.begin_transaction().unwrap();
        for key in 0..50 {
            let value = format!("{round} {key} {}", "x".repeat(3_000));
            send(&kept, &topic, 0, &format!("key {key}"), &value);
            latest.insert(format!("key {key}"), value);
        }
        kept.commit_transaction(PATIENCE).unwrap();
        dropped.begin_transaction().unwrap();
        send(&dropped, &topic, 0, "key 0", "aborted");
        flush(&dropped);
        dropped.abort_transaction(PATIENCE).unwrap();
    }
    let end = broker.ends(&topic, "read_committed").1;
    assert_eq!(end, 30 * (51 + 2), "offsets are never reused");
    let found = wait_for("compaction", PATIENCE * 2, || {
        let found = read_all(&broker.bootstrap(), &topic, ReadCommitted);
        // The newest segment is not compacted: about a third.
        (found.len() < 1_000).then_some(found)
    });
    let mut read = BTreeMap::new();
    let mut last = -1;
    for message in &found {
        assert!(message.offset() > last && message.offset() < end);
        last = message.offset();
        let (key, value) = (message.key().unwrap(), message.payload().unwrap());
        read.insert(crate::client::text(key), crate::client::text(value));
        let value = crate::client::text(value);
        let mut numbers = value.split(' ').map(|number| number.parse::<i64>());
        let (round, key) = (numbers.next().unwrap().unwrap(), numbers.next().unwrap().unwrap());
        // Kafka may write the two markers of a round after the first records of the next.
        let written = round * 53 + key;
        assert!((written - 2..=written).contains(&message.offset()), "{written} has moved to {}", message.offset());
    }
    assert!(read == latest, "the latest values differ");
    let uncommitted = read_all(&broker.bootstrap(), &topic, ReadUncommitted);
    assert!(uncommitted.len() <= found.len() + 30);
}
