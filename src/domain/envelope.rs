//! What every output record begins with: which event, whose, in which order, caused by what.

use serde::{Deserialize, Serialize};

use super::{Text, Timestamp};

/// First field of every output record. Field order is the schema's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Envelope<'a> {
    /// Equal to the `ce_id` header: `<topic>:<partition>:<offset>:<index>` of the input record as first written, or
    /// `timer:<user_key>:<kind>:<due>`. The same input makes the same id on every replay.
    #[serde(borrow)]
    pub event_id: Text<'a>,
    #[serde(borrow)]
    pub user_key: Text<'a>,
    /// +1 per accepted input of the user.
    pub user_rev: i64,
    /// Order among the records of one `user_rev`.
    pub step: i64,
    pub occurred_at: Timestamp,
    pub recorded_at: Timestamp,
    #[serde(borrow)]
    pub cause: Cause<'a>,
    #[serde(borrow)]
    pub policy_set: Text<'a>,
    /// live, backfill or test.
    #[serde(borrow)]
    pub origin: Text<'a>,
}

/// Why the event happened.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cause<'a> {
    /// signal, directory, baseline, command or timer.
    #[serde(borrow)]
    pub kind: Text<'a>,
    /// signal_id, command_id, directory version or timer kind.
    #[serde(borrow)]
    pub id: Text<'a>,
    #[serde(borrow)]
    pub topic: Option<Text<'a>>,
    pub partition: Option<i64>,
    pub offset: Option<i64>,
}
