//! The activity as normalised signals, as a mapping of the vendor events would make them; noise leaves none.

use std::collections::BTreeMap;

use super::activity::{Act, Kind, Source, Target};
use super::delivery::{Delivery, deliveries};
use super::detail::{self, Finding};
use super::population::Population;
use super::prng::mix;
use crate::domain::signal::{Destination, InfoType, Resource, Signal};
use crate::domain::{Text, Timestamp};

/// Every signal in order of arrival, late, disordered and doubled like the events. `user_key` makes the pseudonym of a
/// canonical id.
pub fn signals<'p>(
    population: &'p Population,
    user_key: impl Fn(&str) -> String + 'p,
) -> impl Iterator<Item = Signal<'static>> + 'p {
    let keys: Vec<String> = population.people().iter().map(|person| user_key(&person.canonical_id)).collect();
    deliveries(population).filter_map(move |Delivery { arrival, act, .. }| {
        let indicator = act.kind.indicator()?;
        let user_key = keys[act.person as usize].clone();
        Some(signal(population, &act, indicator, user_key, arrival))
    })
}

fn signal(
    population: &Population,
    act: &Act,
    indicator: &'static str,
    user_key: String,
    arrival: Timestamp,
) -> Signal<'static> {
    let person = detail::person(population, act);
    let zone_offset_min = person.zone_offset_min();
    let occurred_at = act.occurred_at();
    let hour = occurred_at.local_hour(zone_offset_min);
    let source = act.kind.source();
    let dlp = matches!(act.kind, Kind::DlpEmail | Kind::DlpEmailUndo | Kind::DlpCloud);
    let op = if act.kind == Kind::DlpEmailUndo { "retract" } else { "create" };
    Signal {
        signal_id: format!("{:016x}{:016x}", act.id, mix(act.id ^ act.kind as u64)).into(),
        user_key: user_key.into(),
        source: source.as_str().into(),
        source_event_id: detail::event_id(act).into(),
        op: op.into(),
        indicator: indicator.into(),
        occurred_at,
        ingested_at: arrival,
        day: occurred_at.day_at(zone_offset_min).iso().into(),
        zone_offset_min,
        outcome: outcome(act).into(),
        count: 1,
        bytes: bytes(act),
        vendor_severity: dlp.then(|| severity(act).into()),
        policy_name: dlp.then(|| "Financial data".into()),
        labels: labels(act),
        info_types: if dlp { vec![info_type(act)] } else { Vec::new() },
        destination: destination(population, act),
        resources: vec![resource(act)],
        resources_total: 1,
        is_complete: true,
        device_id: (source == Source::Code42).then(|| person.device.clone().into()),
        ip: Some(detail::ip(act).into()),
        justification: act.overridden.then(|| "Needed to finish from home".into()),
        off_hours: Some(hour < person.starts_hour || hour >= person.starts_hour + person.hours),
        mapping: "generate@1".into(),
        origin: "live".into(),
        attributes: BTreeMap::new(),
        ..Signal::default()
    }
}

/// The word of the `outcome` field.
fn outcome(act: &Act) -> &'static str {
    match act.kind {
        _ if act.overridden => "overridden",
        Kind::DlpEmail | Kind::DlpEmailUndo | Kind::DlpCloud => "audited",
        _ => "allowed",
    }
}

/// The severity a DLP rule reports.
pub(super) fn severity(act: &Act) -> &'static str {
    if act.confidential { "High" } else { "Low" }
}

/// Google's feed has neither sizes nor labels; Microsoft's has the size of a message only.
fn bytes(act: &Act) -> Option<i64> {
    match act.kind {
        Kind::DlpEmail | Kind::DlpEmailUndo => Some(act.bytes),
        kind => (kind.source() == Source::Code42).then_some(act.bytes),
    }
}

fn labels(act: &Act) -> Vec<Text<'static>> {
    match act.kind.source() {
        Source::M365 | Source::Code42 if act.confidential => vec!["confidential".into()],
        _ => Vec::new(),
    }
}

fn info_type(act: &Act) -> InfoType<'static> {
    let Finding { name, count, confidence, .. } = detail::finding(act);
    InfoType { name: name.into(), count, confidence }
}

fn resource(act: &Act) -> Resource<'static> {
    Resource {
        id: detail::file_id(act).into(),
        name: Some(detail::file_name(act).into()),
        path: None,
        kind: "file".into(),
        bytes: bytes(act),
        label: labels(act).pop(),
        sha256: None,
    }
}

fn destination(population: &Population, act: &Act) -> Option<Destination<'static>> {
    let (kind, value) = match act.kind {
        Kind::RemovableMedia => ("device", detail::stick(act)),
        Kind::BrowserUpload | Kind::AppUpload => ("domain", detail::upload_domain(population, act)),
        Kind::Mail | Kind::DlpEmail | Kind::DlpEmailUndo | Kind::DriveShareExternal => {
            ("email", detail::recipient(population, act))
        }
        Kind::AnonymousLink | Kind::DrivePublicLink => ("public_link", "anyone".to_owned()),
        Kind::Print => ("printer", "PRN-01".to_owned()),
        Kind::ReportDownload | Kind::CodeClone => ("device", detail::person(population, act).device.clone()),
        _ => return None,
    };
    let inside = matches!(act.target, Target::Internal | Target::ItStick) && kind != "public_link";
    let direction = if inside { "internal" } else { "external" };
    Some(Destination { kind: kind.into(), value: value.into(), direction: direction.into() })
}
