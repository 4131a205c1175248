//! What a source does: records to any topic, with the partition, time and headers a test wants.

#![allow(dead_code, reason = "each test binary compiles this module and uses a part of it")]

use std::time::Duration;

use casestream::topology::Topic;
use casestream::wire::avro::{self, Encoder, Schemas};
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);

/// A record to be written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Record<'a> {
    pub topic: &'a str,
    /// `None`: by the key, as Java's producer does.
    pub partition: Option<i32>,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    /// Milliseconds; `None` for now.
    pub timestamp: Option<i64>,
    pub headers: &'a [(&'a str, &'a [u8])],
}

/// A producer without transactions.
pub struct Feed(BaseProducer);

impl Feed {
    pub fn new(bootstrap: &str) -> Feed {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            // Sources exist that write what we refuse.
            .set("message.max.bytes", "4194304")
            .create()
            .expect("a producer");
        Feed(producer)
    }

    pub fn send(&self, record: Record<'_>) {
        let mut sent = BaseRecord::<[u8], [u8]>::to(record.topic);
        sent.partition = record.partition;
        sent.key = record.key;
        sent.payload = record.value;
        sent.timestamp = record.timestamp;
        let header =
            |list: OwnedHeaders, (key, value): &(&str, &[u8])| list.insert(Header { key, value: Some(*value) });
        sent.headers = (!record.headers.is_empty()).then(|| record.headers.iter().fold(OwnedHeaders::new(), header));
        self.0.send(sent).unwrap_or_else(|(error, _)| panic!("could not write to {}: {error}", record.topic));
    }

    /// Returns when everything is acknowledged.
    pub fn flush(&self) {
        self.0.flush(FLUSH_TIMEOUT).expect("could not flush");
    }
}

/// A value in our framing, with our schema.
pub fn encoded<T: avro::Record>(topic: Topic, value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    Encoder::new(&Schemas::built_in()).encode(topic, value, &mut bytes).expect("a valid record");
    bytes
}
