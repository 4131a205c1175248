//! The fingerprint of the pseudonym key, kept with the directory: one record of `user-directory` under a key that no
//! user can have. A process with another key would give every person a second name, so it does not start.
//! `topics apply` writes the record, the map role and `generate` compare. Next: `map_service.rs`.

use std::sync::Arc;
use std::time::Duration;

use super::first_policies::Write;
use super::ports::{Error, Log, Outgoing};
use crate::domain::Text;
use crate::domain::directory::Directory;
use crate::domain::partitioner::partition_of;
use crate::topology::Topic;
use crate::wire::avro::{Decoder, Encoder, Schemas};

/// The record's key. What begins with NUL in `user-directory` is nobody, and skipped by everyone who looks for people.
pub const RECORD_KEY: &[u8] = b"\0pseudonym-key";
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);

/// Whether the key of a directory record belongs to the directory itself, and not to a person.
pub fn is_internal(key: Option<&[u8]>) -> bool {
    key.is_some_and(|key| key.starts_with(b"\0"))
}

/// What the directory says about our key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No key has been used yet.
    None,
    Same,
    /// The fingerprint of another key.
    Other(String),
}

/// Compares a fingerprint with the directory's.
pub fn standing(log: &mut impl Log, schemas: &Arc<Schemas>, partitions: i32, ours: &str) -> Result<Standing, Error> {
    let (topic, partition) = (Topic::UserDirectory, partition_of(RECORD_KEY, partitions));
    let (start, end) = log.watermarks(topic.name(), partition)?;
    let (mut decoder, mut found) = (Decoder::new(schemas), Standing::None);
    log.read(topic.name(), partition, start, end, &mut |record| {
        if record.key != Some(RECORD_KEY) {
            return;
        }
        found = match decoder.decode::<Directory<'_>>(topic, record.value.unwrap_or_default(), record.headers) {
            Ok(record) if record.canonical_id == ours => Standing::Same,
            Ok(record) => Standing::Other(record.canonical_id.to_string()),
            // A tombstone: somebody has decided to begin anew.
            Err(_) => Standing::None,
        };
    })?;
    Ok(found)
}

/// Stores the fingerprint.
pub fn store(write: &mut impl Write, schemas: &Arc<Schemas>, partitions: i32, ours: &str) -> Result<(), Error> {
    let record = Directory { canonical_id: Text::borrowed(ours), ..Directory::default() };
    let mut value = Vec::new();
    let encoded = Encoder::new(schemas).encode(Topic::UserDirectory, &record, &mut value);
    encoded.expect("an almost empty record is small and has the schema's shape");
    write.send(&Outgoing {
        topic: Topic::UserDirectory.name(),
        partition: partition_of(RECORD_KEY, partitions),
        key: Some(RECORD_KEY),
        value: Some(&value),
        headers: &[],
        timestamp: None,
    })?;
    write.flush(FLUSH_TIMEOUT)
}
