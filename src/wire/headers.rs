//! Headers of what we write: CloudEvents in binary mode, the trace of the cause, and where a record was first written.
//! Lists stay on the stack and borrow everything; nothing here makes an id.
//! Next: `dead_letter.rs`, headers of records nobody could read.

use smallvec::SmallVec;

use super::bytes::push_number;
use crate::topology::Topic;

/// Headers for `ports::Outgoing`; on the heap only when a foreign record brings many of its own.
pub type HeaderList<'a> = SmallVec<[(&'a str, &'a [u8]); 8]>;

/// Headers as they are read: Kafka allows a header without a value.
pub type ReadHeaders<'a> = [(&'a str, Option<&'a [u8]>)];

/// Media type of every value we encode.
pub const CONTENT_TYPE: (&str, &[u8]) = ("content-type", b"application/avro");
/// `<topic>/<partition>/<offset>` of the record that caused this one, or that this one was before it was moved.
pub const ORIGIN: &str = "casestream-origin";
/// Marks a record moved to its user's partition, so that it is moved once only.
pub const REROUTED: (&str, &[u8]) = ("casestream-rerouted", b"1");
/// W3C trace context of the cause.
pub const TRACEPARENT: &str = "traceparent";
/// Bytes of a version-0 `traceparent`; anything longer is not passed on.
const TRACEPARENT_BYTES: usize = 55;

/// The record's own id.
pub const EVENT_ID: &str = "ce_id";
const SPEC_VERSION: (&str, &[u8]) = ("ce_specversion", b"1.0");
const SOURCE: (&str, &[u8]) = ("ce_source", b"/casestream/engine");

/// `ce_type` of a topic's values. A major version is part of it; a new one comes only with a new topic.
pub const fn event_type(topic: Topic) -> &'static str {
    match topic {
        Topic::UserDirectory => "io.casestream.user_directory.v1",
        Topic::RiskSignals => "io.casestream.risk_signal.v1",
        Topic::CaseCommands => "io.casestream.case_command.v1",
        Topic::PeerBaselines => "io.casestream.peer_baseline.v1",
        Topic::PolicySets => "io.casestream.policy_set.v1",
        Topic::ActivityChronology => "io.casestream.chronology_entry.v1",
        Topic::RiskScores => "io.casestream.risk_score.v1",
        Topic::RiskLevels => "io.casestream.risk_level.v1",
        Topic::Alerts => "io.casestream.alert.v1",
        // The same record, but no consumer of events may take one for an alert.
        Topic::ShadowAlerts => "io.casestream.shadow_alert.v1",
        Topic::PartitionStatus => "io.casestream.partition_status.v1",
        Topic::CommandResults => "io.casestream.command_result.v1",
        Topic::DeadLetters => "io.casestream.dead_letter.v1",
        Topic::UserState => "io.casestream.user_state.v1",
        Topic::EngineJournal => "io.casestream.engine_journal.v1",
    }
}

/// The headers of every output record of a topic besides its id.
const fn fixed(topic: Topic) -> [(&'static str, &'static [u8]); 4] {
    [SPEC_VERSION, SOURCE, ("ce_type", event_type(topic).as_bytes()), CONTENT_TYPE]
}

/// Headers of an output record. `origin` is what `Origin::write` made of the cause; `None` for a timer.
pub fn event<'a>(
    topic: Topic,
    event_id: &'a str,
    origin: Option<&'a [u8]>,
    traceparent: Option<&'a [u8]>,
) -> HeaderList<'a> {
    let mut list = HeaderList::new();
    let [version, source, kind, content] = fixed(topic);
    list.extend([version, (EVENT_ID, event_id.as_bytes()), source, kind, content]);
    list.extend(origin.map(|origin| (ORIGIN, origin)));
    list.extend(traceparent.map(|traceparent| (TRACEPARENT, traceparent)));
    list
}

/// Headers of a record moved to its user's partition: its own, then where it was and that it was moved.
pub fn rerouted<'a>(original: &'a ReadHeaders<'a>, origin: &'a [u8]) -> HeaderList<'a> {
    let mut list: HeaderList<'a> =
        original.iter().filter(|(key, _)| *key != ORIGIN && *key != REROUTED.0).map(present).collect();
    list.extend([(ORIGIN, origin), REROUTED]);
    list
}

/// Whether the record has been moved already; a second mismatch is a loop.
pub fn is_rerouted(headers: &ReadHeaders<'_>) -> bool {
    find(headers, REROUTED.0).is_some()
}

/// The trace to pass on, where it has the length of one.
pub fn traceparent<'a>(headers: &ReadHeaders<'a>) -> Option<&'a [u8]> {
    find(headers, TRACEPARENT).filter(|value| value.len() == TRACEPARENT_BYTES)
}

/// The last value of a header, as Kafka clients read it.
pub fn find<'a>(headers: &ReadHeaders<'a>, key: &str) -> Option<&'a [u8]> {
    headers.iter().rev().find(|(name, _)| *name == key).and_then(|(_, value)| *value)
}

/// A header without a value is written with an empty one: the producer has no other way.
pub(super) fn present<'a>(header: &(&'a str, Option<&'a [u8]>)) -> (&'a str, &'a [u8]) {
    (header.0, header.1.unwrap_or_default())
}

/// Where a record was first written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
}

impl<'a> Origin<'a> {
    /// The origin a moved record carries, else the record's own position. A record that was not moved by us is not
    /// believed: outputs take their ids from here.
    pub fn of(headers: &ReadHeaders<'a>, topic: &'a str, partition: i32, offset: i64) -> Origin<'a> {
        let moved = if is_rerouted(headers) { find(headers, ORIGIN).and_then(Origin::parse) } else { None };
        moved.unwrap_or(Origin { topic, partition, offset })
    }

    /// Replaces the buffer's content by the header's value.
    pub fn write<'b>(&self, buffer: &'b mut Vec<u8>) -> &'b [u8] {
        buffer.clear();
        buffer.reserve(self.topic.len() + 42);
        buffer.extend_from_slice(self.topic.as_bytes());
        for number in [i64::from(self.partition), self.offset] {
            buffer.push(b'/');
            push_number(buffer, number);
        }
        buffer
    }

    /// Reads the header's value.
    pub fn parse(value: &'a [u8]) -> Option<Origin<'a>> {
        let mut parts = std::str::from_utf8(value).ok()?.split('/');
        let (topic, partition, offset) = (parts.next()?, parts.next()?, parts.next()?);
        let origin = Origin { topic, partition: partition.parse().ok()?, offset: offset.parse().ok()? };
        (parts.next().is_none() && !topic.is_empty() && origin.partition >= 0 && origin.offset >= 0).then_some(origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::TOPICS;

    fn text(list: &[(&str, &[u8])]) -> String {
        list.iter().map(|(key, value)| format!("{key}: {}\n", String::from_utf8_lossy(value))).collect()
    }

    #[test]
    fn an_event_carries_cloudevents_and_its_cause() {
        let mut buffer = b"left over".to_vec();
        let origin = Origin { topic: "risk-signals", partition: 17, offset: 4_211 };
        let trace = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let list = event(Topic::RiskScores, "risk-signals:17:4211:0", Some(origin.write(&mut buffer)), Some(trace));
        assert_eq!(
            text(&list),
            "ce_specversion: 1.0\nce_id: risk-signals:17:4211:0\nce_source: /casestream/engine\n\
             ce_type: io.casestream.risk_score.v1\ncontent-type: application/avro\n\
             casestream-origin: risk-signals/17/4211\n\
             traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\n"
        );
        assert!(!list.spilled());
        assert_eq!(event(Topic::Alerts, "timer:u:close:1", None, None).len(), 5);
    }

    #[test]
    fn event_types_follow_the_record_names() {
        for spec in TOPICS.iter().filter(|s| s.topic != Topic::ShadowAlerts) {
            let Some(record) = spec.schema else { continue };
            let mut snake = String::new();
            for c in record.chars() {
                if c.is_uppercase() && !snake.is_empty() {
                    snake.push('_');
                }
                snake.extend(c.to_lowercase());
            }
            assert_eq!(event_type(spec.topic), format!("io.casestream.{snake}.v1"));
        }
    }

    #[test]
    fn a_moved_record_keeps_its_headers_and_tells_where_it_was() {
        let original: &ReadHeaders<'_> =
            &[("a", Some(b"1")), (ORIGIN, Some(b"forged/0/0")), ("a", Some(b"2")), ("null", None)];
        let own = Origin { topic: "risk-signals", partition: 3, offset: 9 };
        assert_eq!(Origin::of(original, "risk-signals", 3, 9), own);
        let mut buffer = Vec::new();
        let list = rerouted(original, own.write(&mut buffer));
        assert_eq!(text(&list), "a: 1\na: 2\nnull: \ncasestream-origin: risk-signals/3/9\ncasestream-rerouted: 1\n");
        let read: Vec<(&str, Option<&[u8]>)> = list.iter().map(|(key, value)| (*key, Some(*value))).collect();
        assert!(is_rerouted(&read) && !is_rerouted(original));
        assert_eq!(Origin::of(&read, "risk-signals", 40, 77), own);
    }

    #[test]
    fn only_whole_origins_and_traces_are_read() {
        for bad in ["", "a", "a/1", "a/1/2/3", "/1/2", "a/-1/2", "a/1/-2", "a/1/x", "a/1/99999999999999999999"] {
            assert_eq!(Origin::parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(Origin::parse(&[0xFF, b'/', b'1', b'/', b'2']), None);
        assert_eq!(traceparent(&[(TRACEPARENT, Some(b"00-short"))]), None);
        assert_eq!(traceparent(&[(TRACEPARENT, None)]), None);
        assert_eq!(traceparent(&[(TRACEPARENT, Some(&[b'0'; 55]))]), Some(&[b'0'; 55][..]));
    }
}
