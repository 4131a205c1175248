//! casestream: policy risk signals in; per-user risk scores, alerts and a chronology out, exactly once.
//!
//! The tour of one signal: `wire/mapping` makes it from a vendor's event, `runtime/worker` reads it in a transaction,
//! `engine/fold` judges it, `engine/score` adds it up, `wire/avro` writes what is published, and `runtime/checkpoint`
//! copies the user to Redis.

pub mod bench;
pub mod cli;
pub mod config;
pub mod domain;
#[cfg(feature = "embedded")]
pub mod embedded;
pub mod engine;
pub mod generate;
pub mod policies;
pub mod runtime;
pub mod topology;
pub mod verify;
pub mod wire;
