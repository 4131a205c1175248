//! A raw record through the configured mapping, here and now: what it gives, and whom it names. The mapping may have
//! changed since the map role ran it; the signal says which one did.

use super::Coordinate;
use crate::config::Config;
use crate::domain::Timestamp;
use crate::wire::mapping::Subject;

/// What the mapping makes of a record.
pub enum Mapped {
    /// Who acts in each signal.
    Signals(Vec<Subject>),
    Ignored(String),
    /// Code and message.
    Dead(String, String),
    /// Why it could not be run.
    Unknown(String),
}

/// Runs the mapping of the record's source.
#[cfg(feature = "vrl")]
pub fn run(config: &Config, at: &Coordinate, timestamp: Timestamp, value: &[u8]) -> Mapped {
    use crate::wire::mapping::{MapConfig, Mapping, Outcome, RawMeta};
    let Some(source) = config.map.sources.iter().find(|s| s.topic == at.topic) else {
        return Mapped::Unknown(format!("no source of the configuration reads {}", at.topic));
    };
    let mapping = match Mapping::load(std::path::Path::new(&source.mapping)) {
        Ok(mapping) => mapping,
        Err(error) => return Mapped::Unknown(error.to_string()),
    };
    let map = MapConfig { company_domains: config.map.company_domains.clone(), ..MapConfig::default() };
    let meta = RawMeta { topic: at.topic, partition: at.partition, offset: at.offset, timestamp };
    match mapping.with_config(&map).run(value, &meta) {
        Outcome::Signals(drafts) => Mapped::Signals(drafts.into_iter().map(|d| d.subject).collect()),
        Outcome::Ignored(reason) => Mapped::Ignored(reason.into_owned()),
        Outcome::Dead { code, message } => Mapped::Dead(code.as_str().to_owned(), message),
    }
}

/// Without the mapping language the signal is looked for everywhere.
#[cfg(not(feature = "vrl"))]
pub fn run(_: &Config, _: &Coordinate, _: Timestamp, _: &[u8]) -> Mapped {
    Mapped::Unknown("this binary was built without the feature `vrl`".to_owned())
}
