//! The map role of a process: one worker per thread, each with its own compiled mappings.
//! Next: `map_worker.rs`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::clock::SystemClock;
use super::http::WorkerHealth;
use super::log::KafkaLog;
use super::map_worker::{Limits, MapWorker, People, Source, Stage};
use super::ports::{Error, ErrorKind};
use super::service::{self, Service, Shared, map_group};
use super::source::KafkaGroup;
use super::transaction::KafkaTxn;
use super::worker::Stop;
use crate::topology;
use crate::wire::avro::{Decoder, Encoder};
use crate::wire::mapping::identity::Pseudonym;
use crate::wire::mapping::{MapConfig, Mapping};

/// Starts the map workers. Without sources there is nothing to map, which is not an error.
pub fn start(service: &mut Service, shared: &Shared, key: &[u8]) -> Result<(), Error> {
    if shared.config.map.sources.is_empty() {
        tracing::info!("no sources are configured; the map role has nothing to do");
        return Ok(());
    }
    // Compiled here once so that a broken mapping ends the start, and again in each thread, which owns its programs.
    stage(shared, key)?;
    for n in 0..shared.config.map.workers {
        let name = format!("{}-map-{}-{n}", shared.config.app.id, shared.config.app.ordinal);
        let (shared, key) = (shared.clone(), key.to_vec());
        service.spawn(name.clone(), move |health| run(&shared, &name, &key, &health))?;
    }
    Ok(())
}

fn run(shared: &Shared, name: &str, key: &[u8], health: &Arc<WorkerHealth>) -> Result<(), Stop> {
    let group = map_group(&shared.config);
    let connection = &shared.connection;
    let make = || -> Result<_, Error> {
        let stage = stage(shared, key)?;
        let inputs = stage.sources.iter().map(|s| s.topic).collect();
        let member = KafkaGroup::join(connection, service::membership(&shared.config, &group, name, inputs))?;
        let txn = KafkaTxn::new(connection, name).with_timeout(service::transaction_timeout(&shared.config));
        let log = KafkaLog::new(connection, &group)?;
        Ok(MapWorker::new(member, txn, log, SystemClock::new(), stage, Limits::default()))
    };
    let mut worker = make().map_err(Stop::Failed)?;
    while !shared.stop.load(Ordering::Relaxed) {
        worker.step().map_err(|error| match error.kind {
            ErrorKind::Fenced => Stop::Fenced(error),
            _ => Stop::Failed(error),
        })?;
        health.polled();
        health.set_restored(worker.is_ready());
    }
    worker.close();
    Ok(())
}

fn stage(shared: &Shared, key: &[u8]) -> Result<Stage, Error> {
    let config = &shared.config;
    let (encoder, decoder) = (Encoder::new(&shared.schemas), Decoder::new(&shared.schemas));
    let map = MapConfig { company_domains: config.map.company_domains.clone(), ..MapConfig::default() };
    let mut sources = Vec::with_capacity(config.map.sources.len());
    for source in &config.map.sources {
        let mapping = Mapping::load(Path::new(&source.mapping))
            .map_err(|e| Error::new(ErrorKind::Fatal, format!("could not load the mapping of {}", source.name), e))?;
        let mapper = Box::new(mapping.with_config(&map));
        sources.push(Source { topic: topology::intern(&source.topic), mapper });
    }
    let people = People::new(Pseudonym::new(key), decoder, config.kafka.partitions);
    Ok(Stage { sources, people, encoder, partitions: config.kafka.partitions })
}
