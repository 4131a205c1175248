//! Broker and store of our own, for trying casestream out on a machine where nothing is installed. The pipeline sees
//! `bootstrap.servers` and a `redis://` URL, nothing of this module. Never the basis of a claim about performance or
//! correctness: those come from Apache Kafka and Redis. Next: `broker/mod.rs`.

pub mod broker;
pub mod devkit;
pub mod store;

pub use devkit::Devkit;
