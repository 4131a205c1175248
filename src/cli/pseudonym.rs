//! The configured pseudonym key against the fingerprint that is kept with the directory, for the commands that make
//! pseudonyms. Writes nothing unless told to.

use super::{Exit, Failure};
use crate::config::Config;
use crate::runtime::log::KafkaLog;
use crate::runtime::pseudonym_key::{self, Standing};
use crate::runtime::transaction::KafkaProducer;
use crate::wire::avro::Schemas;
use crate::wire::mapping::identity::Pseudonym;
use std::sync::Arc;

/// The stable code of a process with another key than the directory's.
pub const CODE: &str = "identity.key";

/// The pseudonym under the configured key; `None` if no key is configured.
pub fn configured(config: &Config) -> Result<Option<Pseudonym>, Failure> {
    Ok(config.identity.key()?.map(|key| Pseudonym::new(key.expose().trim().as_bytes())))
}

/// Refuses a key that is not the directory's. A directory without a fingerprint has not met a key yet.
pub fn compare(config: &Config, schemas: &Arc<Schemas>, pseudonym: &Pseudonym) -> Result<(), Failure> {
    match standing(config, schemas, pseudonym)? {
        Standing::Same => Ok(()),
        Standing::None => {
            tracing::warn!(
                "the directory holds no fingerprint of the pseudonym key; `casestream topics apply` writes it"
            );
            Ok(())
        }
        Standing::Other(theirs) => Err(refusal(&theirs, pseudonym)),
    }
}

/// Compares, and stores the fingerprint where there is none yet.
pub fn settle(config: &Config, schemas: &Arc<Schemas>, pseudonym: &Pseudonym) -> Result<(), Failure> {
    match standing(config, schemas, pseudonym)? {
        Standing::Same => Ok(()),
        Standing::Other(theirs) => Err(refusal(&theirs, pseudonym)),
        Standing::None => {
            let mut producer = KafkaProducer::new(&super::connection(config)?)?;
            Ok(pseudonym_key::store(&mut producer, schemas, config.kafka.partitions, &pseudonym.fingerprint())?)
        }
    }
}

fn standing(config: &Config, schemas: &Arc<Schemas>, pseudonym: &Pseudonym) -> Result<Standing, Failure> {
    let mut log = KafkaLog::new(&super::connection(config)?, format!("{}-identity", config.app.id))?;
    Ok(pseudonym_key::standing(&mut log, schemas, config.kafka.partitions, &pseudonym.fingerprint())?)
}

fn refusal(theirs: &str, pseudonym: &Pseudonym) -> Failure {
    let ours = pseudonym.fingerprint();
    let message = format!(
        "could not make pseudonyms: the directory was written under the key {theirs}, identity.key_file holds {ours} \
         ({CODE})\n  fix: configure the key of this installation; another key would make every person a second one"
    );
    Failure::new(Exit::Config, message)
}
