//! An alert: evidence under one policy about one user, gathered in a window. The life of an alert is the table
//! `TRANSITIONS`; the fold, the docs and the tests read it from there.

use serde::{Deserialize, Serialize};

use super::envelope::Envelope;
use super::{Text, Timestamp};

/// Where an alert stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    #[default]
    NeedsReview,
    Confirmed,
    Resolved,
    Dismissed,
    Expired,
    Withdrawn,
}

/// Every legal change of status.
pub const TRANSITIONS: &[(Status, Status, &str)] = &[
    (Status::NeedsReview, Status::Confirmed, "confirmed into a case"),
    (Status::Confirmed, Status::Resolved, "case closed"),
    (Status::Resolved, Status::Confirmed, "case reopened"),
    (Status::Confirmed, Status::NeedsReview, "detached from its case"),
    (Status::NeedsReview, Status::Dismissed, "dismissed"),
    (Status::Dismissed, Status::NeedsReview, "restored"),
    (Status::NeedsReview, Status::Expired, "not reviewed in time"),
    (Status::NeedsReview, Status::Withdrawn, "all evidence retracted"),
    (Status::Confirmed, Status::Withdrawn, "all evidence retracted"),
];

impl Status {
    /// Every status.
    pub const ALL: [Status; 6] = [
        Status::NeedsReview,
        Status::Confirmed,
        Status::Resolved,
        Status::Dismissed,
        Status::Expired,
        Status::Withdrawn,
    ];

    /// The word used on topics and pages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Status::NeedsReview => "needs_review",
            Status::Confirmed => "confirmed",
            Status::Resolved => "resolved",
            Status::Dismissed => "dismissed",
            Status::Expired => "expired",
            Status::Withdrawn => "withdrawn",
        }
    }

    /// Whether the table allows the change.
    pub fn may_become(self, next: Status) -> bool {
        TRANSITIONS.iter().any(|(from, to, _)| *from == self && *to == next)
    }

    /// Whether somebody still has to deal with the alert.
    pub const fn is_open(self) -> bool {
        matches!(self, Status::NeedsReview | Status::Confirmed)
    }
}

/// The value of `alerts` (and `shadow-alerts`). Field order is the schema's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename = "Alert")]
pub struct Alert<'a> {
    #[serde(borrow)]
    pub envelope: Envelope<'a>,
    #[serde(borrow)]
    pub alert_id: Text<'a>,
    /// `A<partition>-<n>`.
    #[serde(borrow)]
    pub alert_no: Text<'a>,
    pub revision: i64,
    /// opened, evidence_added, severity, status, late, retracted, assigned, snoozed or frozen; of several in one
    /// transaction opened, else the last.
    #[serde(borrow)]
    pub change: Text<'a>,
    #[serde(borrow)]
    pub status: Text<'a>,
    #[serde(borrow)]
    pub status_reason: Option<Text<'a>>,
    #[serde(borrow)]
    pub policy_id: Text<'a>,
    #[serde(borrow)]
    pub policy_version: Text<'a>,
    #[serde(borrow)]
    pub policy_title: Text<'a>,
    #[serde(borrow)]
    pub severity: Text<'a>,
    #[serde(borrow)]
    pub severity_peak: Text<'a>,
    pub score_milli: i64,
    /// At most 140 characters, from facts.
    #[serde(borrow)]
    pub headline: Text<'a>,
    #[serde(borrow)]
    pub trigger: Option<Trigger<'a>>,
    pub window: Window,
    /// `<indicator>@<day>`, the largest 100 by points.
    #[serde(borrow)]
    pub insight_ids: Vec<Text<'a>>,
    pub insights_total: i64,
    #[serde(borrow)]
    pub matched: Vec<Clause<'a>>,
    /// Adds up to `score_milli`.
    #[serde(borrow)]
    pub score_parts: Vec<ScorePart<'a>>,
    #[serde(borrow)]
    pub predecessor_id: Option<Text<'a>>,
    pub chronology_seq: i64,
}

/// What put the user in a policy's scope.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trigger<'a> {
    #[serde(borrow)]
    pub kind: Text<'a>,
    pub at: Timestamp,
}

/// The window in which an alert collects evidence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    pub opened_at: Timestamp,
    pub last_activity_at: Timestamp,
    pub closes_at: Timestamp,
    pub max_at: Timestamp,
    pub frozen: bool,
}

/// A clause of the policy that the evidence met, in words.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Clause<'a> {
    #[serde(borrow)]
    pub clause_id: Text<'a>,
    #[serde(borrow)]
    pub text: Text<'a>,
}

/// An insight's part of the alert's score.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ScorePart<'a> {
    #[serde(borrow)]
    pub insight_id: Text<'a>,
    pub share_milli: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_ends_stay_closed() {
        for end in [Status::Expired, Status::Withdrawn] {
            assert!(Status::ALL.iter().all(|next| !end.may_become(*next)), "{end:?} must be final");
        }
        assert!(Status::NeedsReview.may_become(Status::Expired));
        assert!(!Status::Dismissed.may_become(Status::Confirmed));
    }
}
