//! Dead letters of the engine: the original bytes and headers, with reason, stage and position beside them, on the
//! partition the record was read from. A record that is too large even for that is cut, and says so.

use super::outputs::{Outputs, RecordId};
use crate::runtime::batch::{BatchRecord, input_name};
use crate::topology::{INPUT_BYTES_MAX, OUTPUT_BYTES_MAX, Topic};

/// Room for the headers added here.
const ADDED_BYTES_MAX: usize = 64 << 10;

/// Writes one dead letter.
pub fn write(out: &mut Outputs, record: &BatchRecord<'_>, code: &str, why: &str) {
    let key_bytes = record.key.map_or(0, <[u8]>::len);
    let header_bytes: usize = record.headers().iter().map(|(n, v)| n.len() + v.map_or(0, <[u8]>::len)).sum();
    let value_bytes = record.value.map_or(0, <[u8]>::len);
    // A compressed record of the largest allowed size may be far larger once it is unpacked.
    let whole = key_bytes + header_bytes + value_bytes <= OUTPUT_BYTES_MAX - ADDED_BYTES_MAX;
    let cause = RecordId { input: record.input, partition: record.partition, offset: record.offset };
    let mut writer = out.record(Topic::DeadLetters, record.partition).cause(Some(cause));
    if whole {
        writer = writer.maybe_key(record.key);
        for (name, value) in record.headers() {
            writer = writer.foreign_header(name, value.unwrap_or_default());
        }
    } else {
        writer = writer
            .maybe_key(record.key.map(|k| &k[..k.len().min(INPUT_BYTES_MAX / 2)]))
            .header("casestream-dead-cut", (key_bytes + header_bytes + value_bytes).to_string().as_bytes());
    }
    let writer = writer
        .header("casestream-dead-reason", code.as_bytes())
        .header("casestream-dead-stage", b"engine")
        .header("casestream-dead-message", why.as_bytes())
        .header("casestream-dead-topic", input_name(record.input).as_bytes())
        .header("casestream-dead-partition", record.partition.to_string().as_bytes())
        .header("casestream-dead-offset", record.offset.to_string().as_bytes())
        .header("casestream-dead-timestamp", record.timestamp.0.to_string().as_bytes());
    let writer = match record.value {
        Some(value) if whole => writer.value(value),
        Some(value) => writer.value(&value[..value.len().min(INPUT_BYTES_MAX)]),
        None => writer,
    };
    writer.finish().expect("a dead letter was cut to fit");
}
