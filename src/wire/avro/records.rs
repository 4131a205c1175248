//! The fields of every record that is read or written, in the order of its schema. A field of the type that is missing
//! here does not compile; the order is held by `tests/codec.rs`.

use super::plain::{Put, Reader, Record, Take};
use crate::domain::alert::{Alert, Clause, ScorePart, Trigger, Window};
use crate::domain::chronology::{ChronologyEntry, Insight, NameCount, Pivot, SignalFacts};
use crate::domain::command::{Actor, Command, CommandResult, SwitchPolicies};
use crate::domain::directory::{Absence, Alias, Directory, Leaving};
use crate::domain::envelope::{Cause, Envelope};
use crate::domain::record::{InputPosition, InputRange, Journal, PartitionStatus, PolicySetRecord, SourceStatus};
use crate::domain::score::{Booster, Contribution, LevelAhead, RiskLevel, RiskScore};
use crate::domain::signal::{Destination, InfoType, RawPosition, Resource, Signal};

/// Reads and writes a type field by field.
macro_rules! fields {
    ($($type:ty { $($field:ident)* })*) => {$(
        impl<'a> Put for $type {
            #[inline]
            fn put<'o>(&self, room: &'o mut [u8]) -> &'o mut [u8] {
                let Self { $($field),* } = self;
                $(let room = $field.put(room);)*
                room
            }
        }

        impl<'a> Take<'a> for $type {
            #[inline(always)]
            fn take(from: &mut Reader<'a>) -> Self {
                Self { $($field: Take::take(from)),* }
            }
        }
    )*};
}

/// Names the schema of a topic's value.
macro_rules! names {
    ($($type:ty: $name:literal)*) => {$(
        impl Record for $type {
            const NAME: &'static str = $name;
        }
    )*};
}

names! {
    Signal<'_>: "RiskSignal"
    ChronologyEntry<'_>: "ChronologyEntry"
    RiskScore<'_>: "RiskScore"
    RiskLevel<'_>: "RiskLevel"
    Alert<'_>: "Alert"
    Directory<'_>: "UserDirectory"
    Command<'_>: "CaseCommand"
    CommandResult<'_>: "CommandResult"
    PartitionStatus<'_>: "PartitionStatus"
    PolicySetRecord<'_>: "PolicySet"
    Journal: "EngineJournal"
}

fields! {
    Signal<'a> {
        signal_id user_key source source_event_id activity_key op indicator occurred_at ingested_at day
        zone_offset_min outcome count bytes confidence vendor_severity policy_name labels info_types destination
        resources resources_total is_complete device_id app ip justification off_hours raw source_url mapping origin
        attributes
    }
    InfoType<'a> {
        name count confidence
    }
    Destination<'a> {
        kind value direction
    }
    Resource<'a> {
        id name path kind bytes label sha256
    }
    RawPosition<'a> {
        topic partition offset
    }
    Envelope<'a> {
        event_id user_key user_rev step occurred_at recorded_at cause policy_set origin
    }
    Cause<'a> {
        kind id topic partition offset
    }
    ChronologyEntry<'a> {
        envelope entry_id seq hash prev_hash kind category indicator title headline day from to insight
        points_delta_milli signal score_before_milli score_after_milli level_before level_after supersedes alert_ids
        case_ids flags
    }
    Insight<'a> {
        id revision count magnitude_milli bytes points_milli pivots
    }
    Pivot<'a> {
        kind distinct top
    }
    NameCount<'a> {
        name count
    }
    SignalFacts<'a> {
        id at source source_event_id raw source_url outcome resources destination factors
    }
    RiskScore<'a> {
        envelope score_milli level previous_level changed_at as_of next_change_at levels_ahead contributions boosters
        muted_milli truncated chronology_seq
    }
    LevelAhead<'a> {
        level at
    }
    Contribution<'a> {
        indicator category points_milli share_milli insights last_at
    }
    Booster<'a> {
        kind factor_milli share_milli from until
    }
    RiskLevel<'a> {
        envelope level enforcement_level previous_level as_of valid_until review reason_codes
    }
    Alert<'a> {
        envelope alert_id alert_no revision change status status_reason policy_id policy_version policy_title severity
        severity_peak score_milli headline trigger window insight_ids insights_total matched score_parts
        predecessor_id chronology_seq
    }
    Trigger<'a> {
        kind at
    }
    Window {
        opened_at last_activity_at closes_at max_at frozen
    }
    Clause<'a> {
        clause_id text
    }
    ScorePart<'a> {
        insight_id share_milli
    }
    Directory<'a> {
        user_key canonical_id display_name email aliases department title manager_key site time_zone work_schedule fte
        groups high_impact service_account leaving absences version
    }
    Alias<'a> {
        kind value
    }
    Leaving {
        announced last_day
    }
    Absence {
        from to
    }
    Command<'a> {
        command_id user_key case_id kind actor at expires_at expected_version bulk_id reason switch_policies
    }
    Actor<'a> {
        id roles kind
    }
    SwitchPolicies<'a> {
        policy_set
    }
    CommandResult<'a> {
        envelope command_id bulk_id outcome code message hint case_id case_no version current_version event_ids
        chronology_seq
    }
    PartitionStatus<'a> {
        as_of state halt_code inputs sources worker epoch policy_set
    }
    InputPosition<'a> {
        topic position lag
    }
    SourceStatus<'a> {
        source watermark skew_ms silent counts
    }
    PolicySetRecord<'a> {
        hash files
    }
    Journal {
        commit_no inputs now stream_time follows_clock condemned policy_set lateness_days level_valid_ms epoch
        transactional_id partitions cluster_id users next_case_no next_alert_no format ledger
    }
    InputRange {
        topic from to records
    }
}
