//! One record into librdkafka's queue. Not through the binding's `send`, which for every record copies the topic's name,
//! looks the topic up and copies the name of each header: an eighth of a worker's time. Topics are found by handles
//! that are kept; librdkafka copies key, value and headers once. Next: `transaction.rs`.

use std::ffi::CString;
use std::ops::Deref;
use std::ptr;
use std::time::{Duration, Instant};

use rdkafka::bindings::rd_kafka_vtype_t::{
    RD_KAFKA_VTYPE_END, RD_KAFKA_VTYPE_HEADERS, RD_KAFKA_VTYPE_KEY, RD_KAFKA_VTYPE_MSGFLAGS, RD_KAFKA_VTYPE_PARTITION,
    RD_KAFKA_VTYPE_RKT, RD_KAFKA_VTYPE_TIMESTAMP, RD_KAFKA_VTYPE_VALUE,
};
use rdkafka::bindings::{
    RD_KAFKA_MSG_F_COPY, rd_kafka_header_add, rd_kafka_headers_destroy, rd_kafka_headers_new, rd_kafka_headers_t,
    rd_kafka_producev, rd_kafka_topic_destroy, rd_kafka_topic_new, rd_kafka_topic_t,
};
use rdkafka::error::{IsError, KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};

use super::client::Bounded;
use super::ports::Outgoing;

/// Longest wait for room in the producer's queue.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(8);

/// A producer and the topics it has written to.
pub(super) struct Queue<C: ProducerContext<DeliveryOpaque = ()> + 'static> {
    /// Goes before the producer does. As many as there are topics of ours.
    topics: Vec<Topic>,
    producer: Bounded<BaseProducer<C>>,
}

/// librdkafka's handle of a topic.
struct Topic {
    name: &'static str,
    handle: *mut rd_kafka_topic_t,
}

// SAFETY: librdkafka's handles may be used from any thread.
unsafe impl Send for Topic {}

impl Drop for Topic {
    fn drop(&mut self) {
        // SAFETY: the handle is ours alone, and the producer is alive: it lies behind the topics in `Queue`.
        unsafe { rd_kafka_topic_destroy(self.handle) };
    }
}

impl<C: ProducerContext<DeliveryOpaque = ()> + 'static> Deref for Queue<C> {
    type Target = BaseProducer<C>;

    fn deref(&self) -> &BaseProducer<C> {
        &self.producer
    }
}

impl<C: ProducerContext<DeliveryOpaque = ()> + 'static> Queue<C> {
    pub(super) fn new(producer: BaseProducer<C>) -> Queue<C> {
        Queue { topics: Vec::new(), producer: Bounded::new(producer, "producer") }
    }

    /// Hands a record over; waits while the queue is full. Without a partition, the key decides.
    pub(super) fn push(&mut self, record: &Outgoing<'_>, partition: Option<i32>) -> Result<(), KafkaError> {
        let topic = self.topic(record.topic)?;
        let mut headers = Headers::of(record.headers)?;
        let mut deadline = None;
        loop {
            match self.offer(topic, record, partition, &mut headers) {
                Err(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull))
                    if Instant::now() < *deadline.get_or_insert_with(|| Instant::now() + QUEUE_TIMEOUT) =>
                {
                    self.producer.poll(Duration::from_millis(1));
                }
                result => return result,
            }
        }
    }

    fn topic(&mut self, name: &'static str) -> Result<*mut rd_kafka_topic_t, KafkaError> {
        if let Some(known) = self.topics.iter().find(|topic| ptr::eq(topic.name, name) || topic.name == name) {
            return Ok(known.handle);
        }
        let text = CString::new(name)?;
        // SAFETY: the producer is alive, the name ends with a zero and is copied; no configuration means the default.
        let handle = unsafe { rd_kafka_topic_new(self.producer.client().native_ptr(), text.as_ptr(), ptr::null_mut()) };
        if handle.is_null() {
            return Err(KafkaError::MessageProduction(RDKafkaErrorCode::UnknownTopic));
        }
        self.topics.push(Topic { name, handle });
        Ok(handle)
    }

    fn offer(
        &self,
        topic: *mut rd_kafka_topic_t,
        record: &Outgoing<'_>,
        partition: Option<i32>,
        headers: &mut Headers,
    ) -> Result<(), KafkaError> {
        let bytes = |part: Option<&[u8]>| part.map_or((ptr::null(), 0), |bytes| (bytes.as_ptr(), bytes.len()));
        let ((key, key_size), (value, value_size)) = (bytes(record.key), bytes(record.value));
        // SAFETY: each tag is followed by the arguments librdkafka documents for it. It copies key and value before it
        // returns, and owns the headers from then on unless it fails.
        let answer = unsafe {
            rd_kafka_producev(
                self.producer.client().native_ptr(),
                RD_KAFKA_VTYPE_RKT,
                topic,
                RD_KAFKA_VTYPE_PARTITION,
                partition.unwrap_or(-1),
                RD_KAFKA_VTYPE_MSGFLAGS,
                RD_KAFKA_MSG_F_COPY,
                RD_KAFKA_VTYPE_VALUE,
                value,
                value_size,
                RD_KAFKA_VTYPE_KEY,
                key,
                key_size,
                RD_KAFKA_VTYPE_TIMESTAMP,
                record.timestamp.map_or(0, |at| at.0),
                RD_KAFKA_VTYPE_HEADERS,
                headers.0,
                RD_KAFKA_VTYPE_END,
            )
        };
        if answer.is_error() {
            return Err(KafkaError::MessageProduction(answer.into()));
        }
        headers.0 = ptr::null_mut();
        Ok(())
    }
}

/// Headers that librdkafka has not taken yet; null for none.
struct Headers(*mut rd_kafka_headers_t);

impl Headers {
    fn of(list: &[(&str, &[u8])]) -> Result<Headers, KafkaError> {
        if list.is_empty() {
            return Ok(Headers(ptr::null_mut()));
        }
        // SAFETY: librdkafka copies names and values, whose sizes are given.
        let headers = Headers(unsafe { rd_kafka_headers_new(list.len()) });
        for (name, value) in list {
            let answer = unsafe {
                rd_kafka_header_add(
                    headers.0,
                    name.as_ptr().cast(),
                    name.len() as isize,
                    value.as_ptr().cast(),
                    value.len() as isize,
                )
            };
            if answer.is_error() {
                return Err(KafkaError::MessageProduction(answer.into()));
            }
        }
        Ok(headers)
    }
}

impl Drop for Headers {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: not taken, so ours.
            unsafe { rd_kafka_headers_destroy(self.0) };
        }
    }
}
