//! Everything that runs: the worker and its ports, Kafka and Redis behind them, the map role, telemetry.
//! Next: `ports.rs`.

pub mod admin;
pub mod batch;
pub mod checkpoint;
pub mod client;
pub mod clock;
pub mod copy_sink;
pub mod dead_letters;
pub mod first_policies;
pub mod http;
pub mod log;
pub mod lookup;
#[cfg(feature = "vrl")]
pub mod map_service;
pub mod map_worker;
pub mod no_copy;
pub mod observe;
pub mod overview;
pub mod partition;
pub mod policy_source;
pub mod policy_tests;
pub mod ports;
pub mod pseudonym_key;
mod queue;
pub mod recovery;
pub mod redis_store;
pub mod registry;
pub mod service;
pub mod source;
pub mod status;
pub mod telemetry;
pub mod trace;
pub mod transaction;
pub mod worker;
