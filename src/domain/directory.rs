//! A directory record: who a pseudonym is, and the HR facts that bear on risk. Read by mapping (aliases) and
//! engine (dates, groups). The highest `version` wins, so order of arrival does not matter.

use serde::{Deserialize, Serialize};

use super::{Text, Timestamp};

/// The value of `user-directory`. Field order is the schema's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename = "UserDirectory")]
pub struct Directory<'a> {
    #[serde(borrow)]
    pub user_key: Text<'a>,
    #[serde(borrow)]
    pub canonical_id: Text<'a>,
    #[serde(borrow)]
    pub display_name: Option<Text<'a>>,
    #[serde(borrow)]
    pub email: Option<Text<'a>>,
    #[serde(borrow)]
    pub aliases: Vec<Alias<'a>>,
    #[serde(borrow)]
    pub department: Option<Text<'a>>,
    #[serde(borrow)]
    pub title: Option<Text<'a>>,
    #[serde(borrow)]
    pub manager_key: Option<Text<'a>>,
    #[serde(borrow)]
    pub site: Option<Text<'a>>,
    /// IANA name.
    #[serde(borrow)]
    pub time_zone: Option<Text<'a>>,
    #[serde(borrow)]
    pub work_schedule: Option<Text<'a>>,
    /// Thousandths of full time.
    pub fte: Option<i64>,
    #[serde(borrow)]
    pub groups: Vec<Text<'a>>,
    pub high_impact: bool,
    pub service_account: bool,
    pub leaving: Option<Leaving>,
    pub absences: Vec<Absence>,
    pub version: i64,
}

/// Another name of the same person.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Alias<'a> {
    /// upn, email, sid, domain_user, login, profile_id, badge or display_name.
    #[serde(borrow)]
    pub kind: Text<'a>,
    #[serde(borrow)]
    pub value: Text<'a>,
}

/// When a person's leaving was announced, and the last working day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    pub announced: Option<Timestamp>,
    pub last_day: Option<Timestamp>,
}

/// An absence; such days are not part of a baseline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absence {
    pub from: Timestamp,
    pub to: Timestamp,
}

/// Most groups of one person that are kept.
pub const GROUPS_MAX: usize = 64;
