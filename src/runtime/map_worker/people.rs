//! The directory as the map role sees it: read to its end before the first record, then followed. It is read beside
//! the group, because every map worker needs all of it, whatever it is assigned.

use std::time::Duration;

use crate::domain::directory::Directory;
use crate::runtime::ports::{Error, ErrorKind, Log, RecordRef};
use crate::runtime::pseudonym_key::is_internal;
use crate::topology::Topic;
use crate::wire::avro::Decoder;
use crate::wire::mapping::Subject;
use crate::wire::mapping::identity::{self, Index, Pseudonym};

/// How often the directory's end is looked at.
pub const CHECK_EVERY: Duration = Duration::from_secs(5);

/// Everyone the directory knows, and how far it has been read.
pub struct People {
    index: Index,
    decoder: Decoder,
    pseudonym: Pseudonym,
    /// Next offset per partition.
    positions: Vec<i64>,
    /// Records that could not be read; the engine dead-letters them.
    skipped: u64,
    next_check: Option<Duration>,
}

impl People {
    /// Nobody yet.
    pub fn new(pseudonym: Pseudonym, decoder: Decoder, partitions: i32) -> People {
        let positions = vec![0; usize::try_from(partitions).expect("a topic has at least one partition")];
        People { index: Index::default(), decoder, pseudonym, positions, skipped: 0, next_check: None }
    }

    /// Whether the directory has been read to its end once.
    pub fn is_ready(&self) -> bool {
        self.next_check.is_some()
    }

    /// Whether its end should be looked at now.
    pub fn is_due(&self, now: Duration) -> bool {
        self.next_check.is_none_or(|at| now >= at)
    }

    /// Looks at its end again after the usual time, for one that could not be followed now.
    pub fn postpone(&mut self, now: Duration) {
        self.next_check = Some(now + CHECK_EVERY);
    }

    /// How many people are known, and how many records could not be read.
    pub fn counts(&self) -> (usize, u64) {
        (self.index.len(), self.skipped)
    }

    /// Reads every partition from where it stands to its end.
    pub fn follow(&mut self, log: &mut impl Log, now: Duration) -> Result<(), Error> {
        let topic = Topic::UserDirectory.name();
        for partition in 0..self.positions.len() {
            let (start, end) = log.watermarks(topic, partition as i32)?;
            // An end that moved back is a topic made anew: read it all again.
            let position = if self.positions[partition] > end { 0 } else { self.positions[partition] };
            let from = position.max(start);
            if from < end {
                self.read(log, partition as i32, from, end)?;
            }
            self.positions[partition] = end;
        }
        self.next_check = Some(now + CHECK_EVERY);
        Ok(())
    }

    fn read(&mut self, log: &mut impl Log, partition: i32, from: i64, until: i64) -> Result<(), Error> {
        let People { index, decoder, skipped, .. } = self;
        let mut waiting = None;
        log.read(Topic::UserDirectory.name(), partition, from, until, &mut |record: RecordRef<'_>| {
            if is_internal(record.key) {
                return;
            }
            let Some(value) = record.value else {
                if let Some(Ok(key)) = record.key.map(std::str::from_utf8) {
                    index.remove(key);
                }
                return;
            };
            match decoder.decode::<Directory<'_>>(Topic::UserDirectory, value, record.headers) {
                Ok(person) => index.put(&person),
                Err(error) if error.retriable() => waiting = Some(error.to_string()),
                Err(_) => *skipped += 1,
            }
        })?;
        match waiting {
            None => Ok(()),
            Some(cause) => Err(Error::new(ErrorKind::Retriable, "could not read the directory", cause)),
        }
    }

    /// The key of the person a signal names, and their offset from UTC in minutes: from the directory, else an address
    /// stands for itself. `None`: unattributed.
    pub fn attribute(&self, subject: &Subject) -> Option<(String, i64)> {
        if let Some(found) = self.index.find(subject.kind, &subject.value) {
            return Some((found.user_key.to_owned(), found.zone_offset_min));
        }
        identity::is_address(&subject.value).then(|| (self.pseudonym.user_key(&subject.value), 0))
    }
}
