//! `casestream policy show`: the policies in the files, as they were understood.

use serde::Serialize;

use super::output::table;
use super::{Exit, Failure, Global, check, lines};
use crate::domain::policy::{Policy, PolicySet, Status, Trigger};
use crate::policies::read::Milli;

/// What to do with policies.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Show every policy, or one with its indicators
    Show {
        /// Id of a policy
        id: Option<String>,
    },
}

/// A policy in the answer. Points are in thousandths.
#[derive(Debug, Serialize)]
struct Line {
    id: String,
    version: String,
    name: String,
    description: String,
    status: &'static str,
    trigger: String,
    purpose: String,
    legal_basis: String,
    owner: String,
    review_by: String,
    groups: Vec<String>,
    look_back_days: i64,
    activation_days: i64,
    alert_gap_hours: i64,
    alert_max_days: i64,
    open_at_milli: i64,
    min_severity: &'static str,
    expire_days: i64,
    indicators: Vec<Indicator>,
}

#[derive(Debug, Serialize)]
struct Indicator {
    id: String,
    title: String,
    category: &'static str,
    weight_milli: i64,
    cap_milli: i64,
    half_life_days: u16,
}

#[derive(Debug, Serialize)]
struct Answer {
    policy_set: String,
    policies: Vec<Line>,
}

/// Runs the command.
pub fn run(command: &Command, global: &Global) -> Result<Exit, Failure> {
    let Command::Show { id } = command;
    let dir = global.config()?.policies.dir;
    let set = check::load(&dir).map_err(|problems| Failure::new(Exit::Config, lines(&problems)))?.set;
    let chosen = set.policies.iter().filter(|p| id.as_ref().is_none_or(|id| *id == p.id));
    let answer = Answer { policy_set: set.hash.clone(), policies: chosen.map(|p| line(p, &set)).collect() };
    match id {
        Some(id) if answer.policies.is_empty() => {
            let known = set.policies.iter().map(|p| p.id.as_str()).collect::<Vec<_>>().join(", ");
            Err(Failure::new(Exit::Failure, format!("no policy `{id}` that is on or in shadow; known: {known}")))
        }
        Some(_) => Ok(global.output.print(&answer, |a| one(&a.policies[0])).map(|()| Exit::Ok)?),
        None => Ok(global.output.print(&answer, all).map(|()| Exit::Ok)?),
    }
}

/// The word of a status, as in the file.
pub fn status_word(status: Status) -> &'static str {
    match status {
        Status::On => "on",
        Status::Shadow => "shadow",
        Status::Off => "off",
    }
}

fn trigger_word(trigger: &Trigger) -> String {
    match trigger {
        Trigger::None => "none".to_owned(),
        Trigger::Leaving => "leaving".to_owned(),
        Trigger::DlpMatch { severity } => format!("dlp_match {}", severity.as_str()),
    }
}

fn line(policy: &Policy, set: &PolicySet) -> Line {
    let indicators = policy.indicators.iter().map(|counted| {
        let known = &set.catalogue.indicators[counted.position];
        Indicator {
            id: known.id.clone(),
            title: known.title.clone(),
            category: known.category.as_str(),
            weight_milli: counted.weight_milli,
            cap_milli: counted.cap_milli,
            half_life_days: known.half_life_days,
        }
    });
    Line {
        id: policy.id.clone(),
        version: policy.version.clone(),
        name: policy.name.clone(),
        description: policy.description.clone(),
        status: status_word(policy.status),
        trigger: trigger_word(&policy.trigger),
        purpose: policy.purpose.clone(),
        legal_basis: policy.legal_basis.clone(),
        owner: policy.owner.clone(),
        review_by: policy.review_by.clone(),
        groups: policy.groups.clone(),
        look_back_days: policy.look_back_days,
        activation_days: policy.activation_days,
        alert_gap_hours: policy.gap_hours,
        alert_max_days: policy.max_days,
        open_at_milli: policy.open_at_milli,
        min_severity: policy.min_severity.as_str(),
        expire_days: policy.expire_days,
        indicators: indicators.collect(),
    }
}

fn points(milli: i64) -> String {
    Milli(milli).to_string()
}

fn all(answer: &Answer) -> String {
    let rows = answer.policies.iter().map(|p| {
        let open_at = points(p.open_at_milli);
        vec![
            p.id.clone(),
            p.status.into(),
            p.trigger.clone(),
            p.indicators.len().to_string(),
            open_at,
            p.version.clone(),
        ]
    });
    let header = ["policy", "status", "trigger", "indicators", "open at", "version"];
    format!("policy set {}\n\n{}", answer.policy_set, table(&header, rows))
}

fn one(policy: &Line) -> String {
    let groups = if policy.groups.is_empty() { "everybody".to_owned() } else { policy.groups.join(", ") };
    let facts = [
        ("policy", format!("{} ({})", policy.id, policy.name)),
        ("description", policy.description.clone()),
        ("status", policy.status.to_owned()),
        ("purpose", policy.purpose.clone()),
        ("legal basis", policy.legal_basis.clone()),
        ("owner", format!("{}, review by {}", policy.owner, policy.review_by)),
        ("who", groups),
        ("trigger", format!("{}, active for {} days", policy.trigger, policy.activation_days)),
        ("look back", format!("{} days", policy.look_back_days)),
        ("alert", format!("opens at {}, published from {}", points(policy.open_at_milli), policy.min_severity)),
        ("window", format!("{} h without activity, at most {} days", policy.alert_gap_hours, policy.alert_max_days)),
        ("review", format!("within {} days, then it expires", policy.expire_days)),
        ("version", policy.version.clone()),
    ];
    let facts: Vec<String> = facts.iter().map(|(name, value)| format!("{name:<12} {value}")).collect();
    let rows = policy.indicators.iter().map(|i| {
        let (weight, cap) = (points(i.weight_milli), points(i.cap_milli));
        vec![i.id.clone(), i.category.into(), weight, cap, format!("{} d", i.half_life_days), i.title.clone()]
    });
    let header = ["indicator", "category", "weight", "cap", "half-life", "title"];
    format!("{}\n\n{}", facts.join("\n"), table(&header, rows))
}
