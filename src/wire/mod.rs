//! Bytes ↔ domain: Avro and its framing, the state's own format, mappings, dead letters. The only place that knows
//! how anything is written down.

pub mod avro;
pub mod bytes;
pub mod dead_letter;
pub mod framing;
pub mod headers;
pub mod mapping;
pub mod state;
mod state_parts;
pub use crate::domain::utf8;
