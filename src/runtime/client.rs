//! What all Kafka clients of ours share: how to reach the cluster, how librdkafka's errors read as ours, how a message
//! becomes a `RecordRef` without an allocation. No protocol here. Next: `source.rs`.

use std::ffi::CStr;
use std::ops::Deref;
use std::ptr;
use std::sync::mpsc;
use std::time::Duration;

use rdkafka::bindings::{rd_kafka_header_get_all, rd_kafka_headers_t, rd_kafka_message_headers, rd_kafka_resp_err_t};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::ports::{Error, ErrorKind, InputOffset, RecordRef, TopicName};
use crate::domain::Timestamp;

/// Longest wait for an answer to a request that changes nothing.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a client to go away; a client that does not is left to its thread.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How to reach the cluster.
#[derive(Clone, Debug)]
pub struct Connection {
    /// `bootstrap.servers`.
    pub bootstrap: String,
    /// Further librdkafka settings, such as TLS and SASL; they win over ours.
    pub properties: Vec<(String, String)>,
}

impl Connection {
    /// A cluster without further settings.
    pub fn new(bootstrap: impl Into<String>) -> Connection {
        Connection { bootstrap: bootstrap.into(), properties: Vec::new() }
    }

    /// The settings of a client that reads. What a broker said while it was coming back (no leader, no such topic, no
    /// brokers at all) is not believed for long: the defaults are 5 and 15 minutes. Not for producers: to find the
    /// brokers anew costs the connection that an end of a transaction waits on.
    pub(super) fn reading(&self, settings: &[(&str, &str)]) -> ClientConfig {
        let freshness = [
            ("topic.metadata.refresh.interval.ms", "5000"),
            ("metadata.max.age.ms", "10000"),
            ("metadata.recovery.rebootstrap.trigger.ms", "5000"),
        ];
        self.config(&[&freshness, settings].concat())
    }

    /// The settings of one client.
    pub(super) fn config(&self, settings: &[(&str, &str)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap).set("client.id", "casestream");
        // A broker that comes back is found soon; the default grows to 10 s.
        config.set("reconnect.backoff.ms", "50").set("reconnect.backoff.max.ms", "1000");
        let debugged = self.properties.iter().any(|(key, _)| key == "debug");
        config.set_log_level(if debugged { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Warning });
        for (key, value) in settings {
            config.set(*key, *value);
        }
        for (key, value) in &self.properties {
            config.set(key, value);
        }
        config
    }
}

/// Writes a line of librdkafka to our log.
pub(super) fn log_line(level: RDKafkaLogLevel, facility: &str, line: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            tracing::error!(target: "librdkafka", facility, "{line}");
        }
        RDKafkaLogLevel::Warning => tracing::warn!(target: "librdkafka", facility, "{line}"),
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => tracing::info!(target: "librdkafka", facility, "{line}"),
        RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", facility, "{line}"),
    }
}

/// An error of a read or of a client: which reaction its code asks for.
pub(super) fn error(what: impl Into<String>, cause: &KafkaError) -> Error {
    Error::new(kind(cause), what, cause)
}

/// Which reaction an error outside a transaction asks for.
fn kind(error: &KafkaError) -> ErrorKind {
    let fatal = matches!(
        error,
        KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) | KafkaError::MessageConsumptionFatal(_)
    );
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::FencedInstanceId) => ErrorKind::Fenced,
        _ if fatal => ErrorKind::Fatal,
        Some(RDKafkaErrorCode::UnstableOffsetCommit) => ErrorKind::Unstable,
        Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => ErrorKind::Missing,
        Some(
            RDKafkaErrorCode::Fatal
            | RDKafkaErrorCode::Authentication
            | RDKafkaErrorCode::SaslAuthenticationFailed
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed,
        ) => ErrorKind::Fatal,
        _ => ErrorKind::Retriable,
    }
}

/// A client that is dropped on a thread of its own, for a bounded time: librdkafka may wait for a broker that is gone.
pub(super) struct Bounded<T: Send + 'static> {
    /// `None` only while it is dropped.
    client: Option<T>,
    name: &'static str,
}

impl<T: Send + 'static> Bounded<T> {
    pub(super) fn new(client: T, name: &'static str) -> Bounded<T> {
        Bounded { client: Some(client), name }
    }
}

impl<T: Send + 'static> Deref for Bounded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.client.as_ref().expect("only drop takes the client")
    }
}

impl<T: Send + 'static> Drop for Bounded<T> {
    fn drop(&mut self) {
        let client = self.client.take();
        let (done, wait) = mpsc::channel();
        let spawned = std::thread::Builder::new().name(format!("close-{}", self.name)).spawn(move || {
            drop(client);
            // The waiter may have gone.
            let _ = done.send(());
        });
        if spawned.is_err() || wait.recv_timeout(CLOSE_TIMEOUT).is_err() {
            tracing::warn!(client = self.name, "client did not close within {CLOSE_TIMEOUT:?}; going on without it");
        }
    }
}

/// Offsets as librdkafka wants them.
pub(super) fn partition_list(offsets: &[InputOffset]) -> Result<TopicPartitionList, Error> {
    let mut list = TopicPartitionList::with_capacity(offsets.len());
    for input in offsets {
        let mut element = list.add_partition(input.topic, input.partition);
        element
            .set_offset(Offset::Offset(input.offset))
            .map_err(|e| error(format!("could not use offset {} of {}", input.offset, input.topic), &e))?;
        if !input.metadata.is_empty() {
            element.set_metadata(&input.metadata);
        }
    }
    Ok(list)
}

/// Reusable memory for the headers of a record.
#[derive(Debug, Default)]
pub(super) struct Scratch(Vec<(&'static str, Option<&'static [u8]>)>);

impl Scratch {
    /// Hands the message over as a record of a topic whose name is known.
    pub(super) fn hand_over(
        &mut self,
        message: &BorrowedMessage<'_>,
        topic: TopicName,
        each: &mut dyn FnMut(RecordRef<'_>),
    ) {
        let mut headers = shorten(std::mem::take(&mut self.0));
        read_headers(message, &mut headers);
        each(RecordRef {
            topic,
            partition: message.partition(),
            offset: message.offset(),
            timestamp: Timestamp(message.timestamp().to_millis().unwrap_or(0)),
            key: message.key(),
            value: message.payload(),
            headers: &headers,
        });
        self.0 = emptied(headers);
    }
}

type Headers<'a> = Vec<(&'a str, Option<&'a [u8]>)>;

/// An empty list in the same memory whose entries may live shorter.
fn shorten<'a>(headers: Headers<'static>) -> Headers<'a> {
    headers
}

/// An empty list in the same memory whose entries may live longer.
fn emptied(mut headers: Headers<'_>) -> Headers<'static> {
    headers.clear();
    headers.into_iter().map(|_| unreachable!("the list was cleared")).collect()
}

/// Appends the headers of a message. Not through the binding's own reader, which panics at a name that is not UTF-8;
/// such a name reads as U+FFFD.
fn read_headers<'a>(message: &'a BorrowedMessage<'_>, into: &mut Headers<'a>) {
    let mut headers: *mut rd_kafka_headers_t = ptr::null_mut();
    // SAFETY: the message is alive for 'a, and librdkafka parses its headers once and keeps them with it.
    let found = unsafe { rd_kafka_message_headers(message.ptr(), &mut headers) };
    if found != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        return;
    }
    for index in 0.. {
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
        // SAFETY: `headers` belongs to the message; the three places are ours.
        let got = unsafe { rd_kafka_header_get_all(headers, index, &mut name, &mut value, &mut size) };
        if got != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return;
        }
        // SAFETY: a header's name ends with a zero and its value has `size` bytes; both live as long as the message.
        let (name, value) = unsafe {
            let value = (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast::<u8>(), size));
            (CStr::from_ptr(name), value)
        };
        into.push((name.to_str().unwrap_or("\u{fffd}"), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_ask_for_reactions() {
        use RDKafkaErrorCode as Code;
        for (cause, expected) in [
            (KafkaError::MessageConsumption(Code::BrokerTransportFailure), ErrorKind::Retriable),
            (KafkaError::MessageConsumption(Code::AutoOffsetReset), ErrorKind::Missing),
            (KafkaError::MessageConsumptionFatal(Code::FencedInstanceId), ErrorKind::Fenced),
            (KafkaError::MessageConsumptionFatal(Code::InvalidArgument), ErrorKind::Fatal),
            (KafkaError::OffsetFetch(Code::UnstableOffsetCommit), ErrorKind::Unstable),
            (KafkaError::MetadataFetch(Code::TopicAuthorizationFailed), ErrorKind::Fatal),
            (KafkaError::ClientCreation("no".into()), ErrorKind::Fatal),
        ] {
            assert_eq!(kind(&cause), expected, "{cause}");
        }
    }

    #[test]
    fn scratch_memory_is_reused() {
        let mut headers: Headers<'static> = Vec::with_capacity(8);
        headers.push(("a", None));
        let memory = headers.as_ptr();
        let reused = emptied(shorten(headers));
        assert_eq!((reused.as_ptr(), reused.len()), (memory, 0));
    }
}
