//! Commands: what analysts and the system ask for, and the answer. Only the policy switch is known so far; every
//! other kind is refused `command.unknown`.

use serde::{Deserialize, Serialize};

use super::envelope::Envelope;
use super::{Text, Timestamp};

/// The value of `case-commands`. Field order is the schema's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename = "CaseCommand")]
pub struct Command<'a> {
    #[serde(borrow)]
    pub command_id: Text<'a>,
    /// Empty for a command to the whole partition.
    #[serde(borrow)]
    pub user_key: Text<'a>,
    #[serde(borrow)]
    pub case_id: Option<Text<'a>>,
    #[serde(borrow)]
    pub kind: Text<'a>,
    #[serde(borrow)]
    pub actor: Actor<'a>,
    pub at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub expected_version: Option<i64>,
    #[serde(borrow)]
    pub bulk_id: Option<Text<'a>>,
    #[serde(borrow)]
    pub reason: Option<Text<'a>>,
    /// Payload of kind `switch_policies`.
    #[serde(borrow)]
    pub switch_policies: Option<SwitchPolicies<'a>>,
}

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Actor<'a> {
    #[serde(borrow)]
    pub id: Text<'a>,
    #[serde(borrow)]
    pub roles: Vec<Text<'a>>,
    /// person or system.
    #[serde(borrow)]
    pub kind: Text<'a>,
}

/// From this offset on, the partition folds under the named set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SwitchPolicies<'a> {
    #[serde(borrow)]
    pub policy_set: Text<'a>,
}

/// The value of `command-results`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CommandResult<'a> {
    #[serde(borrow)]
    pub envelope: Envelope<'a>,
    #[serde(borrow)]
    pub command_id: Text<'a>,
    #[serde(borrow)]
    pub bulk_id: Option<Text<'a>>,
    /// accepted, refused or duplicate.
    #[serde(borrow)]
    pub outcome: Text<'a>,
    #[serde(borrow)]
    pub code: Text<'a>,
    #[serde(borrow)]
    pub message: Text<'a>,
    #[serde(borrow)]
    pub hint: Option<Text<'a>>,
    #[serde(borrow)]
    pub case_id: Option<Text<'a>>,
    #[serde(borrow)]
    pub case_no: Option<Text<'a>>,
    pub version: Option<i64>,
    pub current_version: Option<i64>,
    #[serde(borrow)]
    pub event_ids: Vec<Text<'a>>,
    pub chronology_seq: Option<i64>,
}
