//! The words of the trade and their rules: signals, indicators, policies, alerts, scores, the chronology.
//! No clock, no randomness, no I/O, no hash order; scores are integers in thousandths.
//! Next: `signal.rs`, what comes in.

pub mod alert;
pub mod chronology;
pub mod command;
pub mod decimal;
pub mod directory;
pub mod envelope;
pub mod indicator;
pub mod level;
pub mod partitioner;
pub mod policy;
pub mod record;
pub mod score;
pub mod signal;
pub mod text;
pub mod time;
pub mod utf8;

pub use level::Level;
pub use text::Text;
pub use time::{Day, Timestamp};
