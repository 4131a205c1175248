//! Policy sets by content hash, read from the `policy-sets` topic. A partition names the set it stands under; this is
//! where a worker, `explain` and `verify` find it. Local files are never taken in its place.
//! Next: `partition.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::partition::PolicySource;
use super::ports::{Error, Log, RecordRef};
use super::telemetry::{self, Limit};
use crate::domain::policy::PolicySet;
use crate::domain::record::PolicySetRecord;
use crate::policies::{self, Files};
use crate::topology::Topic;
use crate::wire::avro::{Decoder, Schemas};

/// Compiled sets kept; more than were ever in force at once on one worker.
const SETS_MAX: usize = 32;

/// Sets as the topic holds them, each read and compiled once.
pub struct LogPolicies<L: Log> {
    log: L,
    decoder: Decoder,
    sets: BTreeMap<String, Arc<PolicySet>>,
    loaded: Box<dyn FnMut(&PolicySet) + Send>,
}

impl<L: Log> LogPolicies<L> {
    /// A source on `log`; `loaded` hears of each set once.
    pub fn new(log: L, schemas: &Arc<Schemas>, loaded: impl FnMut(&PolicySet) + Send + 'static) -> LogPolicies<L> {
        LogPolicies { log, decoder: Decoder::new(schemas), sets: BTreeMap::new(), loaded: Box::new(loaded) }
    }

    fn load(&mut self, hash: &str) -> Result<Option<PolicySet>, Error> {
        let topic = Topic::PolicySets.name();
        let (from, until) = self.log.watermarks(topic, 0)?;
        let (mut found, decoder) = (None, &mut self.decoder);
        self.log.read(topic, 0, from, until, &mut |record| {
            if record.key == Some(hash.as_bytes()) {
                found = compile(decoder, hash, &record);
            }
        })?;
        Ok(found)
    }
}

fn compile(decoder: &mut Decoder, hash: &str, record: &RecordRef<'_>) -> Option<PolicySet> {
    let set: PolicySetRecord<'_> = decoder
        .decode(Topic::PolicySets, record.value?, record.headers)
        .inspect_err(|error| tracing::error!(hash, %error, "could not read the policy set"))
        .ok()?;
    match policies::compile(&Files::from_record(&set)) {
        Ok(set) if set.hash == hash => Some(set),
        Ok(set) => {
            tracing::error!(hash, content = set.hash, "the policy set is not what its key says");
            None
        }
        Err(problems) => {
            let first = problems.first().map(ToString::to_string).unwrap_or_default();
            tracing::error!(hash, first, "this version cannot compile the policy set");
            None
        }
    }
}

impl<L: Log> PolicySource for LogPolicies<L> {
    fn set(&mut self, hash: &str) -> Option<Arc<PolicySet>> {
        if let Some(set) = self.sets.get(hash) {
            return Some(set.clone());
        }
        let set = self
            .load(hash)
            .inspect_err(|error| tracing::warn!(hash, %error, "could not look for the policy set"))
            .ok()
            .flatten()?;
        (self.loaded)(&set);
        let set = Arc::new(set);
        while self.sets.len() >= SETS_MAX {
            self.sets.pop_first();
            telemetry::limit(Limit::PolicySets);
        }
        self.sets.insert(hash.to_owned(), set.clone());
        Some(set)
    }
}
