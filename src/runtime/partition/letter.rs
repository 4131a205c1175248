//! Dead letters of the engine: the original bytes and headers, with reason, stage and position beside them, on the
//! partition the record was read from. A record that is too large even for that is cut, and says so.

use super::outputs::{Outputs, RecordId};
use crate::runtime::batch::{BatchRecord, input_name};
use crate::topology::{INPUT_BYTES_MAX, OUTPUT_BYTES_MAX, Topic};
use crate::wire::dead_letter::{DeadLetter, Stage, attempt};

/// Room for the headers added here.
const ADDED_BYTES_MAX: usize = 64 << 10;

/// Writes one dead letter.
pub fn write(out: &mut Outputs, record: &BatchRecord<'_>, stage: Stage, code: &str, why: &str) {
    let headers = record.headers();
    let key_bytes = record.key.map_or(0, <[u8]>::len);
    let header_bytes: usize = headers.iter().map(|(n, v)| n.len() + v.map_or(0, <[u8]>::len)).sum();
    let bytes = key_bytes + header_bytes + record.value.map_or(0, <[u8]>::len);
    let letter = DeadLetter {
        code,
        stage,
        message: why,
        topic: input_name(record.input),
        partition: record.partition,
        offset: record.offset,
        attempt: attempt(&headers),
    };
    let cause = RecordId { input: record.input, partition: record.partition, offset: record.offset };
    let writer = out.record(Topic::DeadLetters, record.partition).cause(Some(cause));
    let mut buffer = Vec::with_capacity(64);
    // A compressed record of the largest allowed size may be far larger once it is unpacked.
    let writer = if bytes <= OUTPUT_BYTES_MAX - ADDED_BYTES_MAX {
        let writer = writer.maybe_key(record.key).headers(&letter.headers(&headers, &mut buffer));
        match record.value {
            Some(value) => writer.value(value),
            None => writer,
        }
    } else {
        let head = |bytes: Option<&[u8]>, max: usize| bytes.map(|b| b[..b.len().min(max)].to_vec());
        writer
            .maybe_key(head(record.key, INPUT_BYTES_MAX / 2).as_deref())
            .headers(&letter.headers(&[], &mut buffer))
            .headers(&[("casestream-dlq-cut", bytes.to_string().as_bytes())])
            .value(&head(record.value, INPUT_BYTES_MAX).unwrap_or_default())
    };
    writer.finish().expect("a dead letter was cut to fit");
}
