//! `policies/<id>.toml` → a policy and its tests. What the format describes and this release does not do is refused by
//! name, so that no file means less than it says. Next: `case.rs`.

use super::case::{self, Case};
use super::catalogue::{CAP_MILLI_MAX, WEIGHT_MILLI_MAX, check_cap};
use super::read::{Section, Word};
use crate::config::nearest;
use crate::domain::Level;
use crate::domain::indicator::Catalogue;
use crate::domain::policy::{Policy, PolicyIndicator, Status, Trigger};

/// The severities an alert may have.
pub const SEVERITIES: [&str; 4] = ["low", "medium", "high", "critical"];

const TEMPLATES: [&str; 4] = ["general-dlp", "data-leaks", "departing-users", "custom"];
const TRIGGERS: [&str; 3] = ["none", "leaving", "dlp_match"];

/// Reads one policy file. `stem` is the file's name without `.toml`.
pub fn read(root: &Section<'_, '_>, stem: &str, version: String, catalogue: &Catalogue) -> (Policy, Vec<Case>) {
    super::api_version(root);
    let id = super::id(root, "id", stem);
    if !id.is_empty() && id != stem {
        root.report_at(
            "id",
            format!("id `{id}` differs from the file's name `{stem}.toml`"),
            format!("write `id = \"{stem}\"`, or rename the file"),
        );
    }
    let (look_back_days, activation_days, gap_hours, max_days) = windows(root);
    let (open_at_milli, min_severity, expire_days) = alert(root);
    let policy = Policy {
        version,
        name: root.text("name", "Data leaks").to_owned(),
        template: root.word("template", &TEMPLATES, true).to_owned(),
        description: root.text("description", "what it is for, in a sentence").to_owned(),
        status: match root.word("status", &["on", "shadow", "off"], true) {
            "on" => Status::On,
            "shadow" => Status::Shadow,
            _ => Status::Off,
        },
        purpose: root.text("purpose", "why people are monitored").to_owned(),
        legal_basis: root.text("legal_basis", "GDPR Art. 6(1)(f), works agreement of …").to_owned(),
        owner: root.text("owner", "security@example.com").to_owned(),
        review_by: super::day(root, "review_by").iso(),
        groups: scope(root),
        trigger: trigger(root),
        look_back_days,
        activation_days,
        gap_hours,
        max_days,
        indicators: indicators(root, catalogue),
        open_at_milli,
        min_severity,
        expire_days,
        id,
    };
    let cases = root.tables("test").iter().map(|s| case::read(s, &policy.id, catalogue)).collect();
    for (key, instead) in [
        ("sequence", "remove it; single indicators and their sum are scored"),
        ("booster", "remove it; the catalogue's `[boosters]` apply to every policy"),
        ("exclude", "remove it; `factors.allowed_destinations` of the catalogue takes acts out for all policies"),
    ] {
        root.not_yet(key, instead);
    }
    root.finish();
    (policy, cases)
}

fn scope(root: &Section<'_, '_>) -> Vec<String> {
    let Some(section) = root.table("scope") else { return Vec::new() };
    let groups = super::groups(&section, "groups");
    for key in ["users", "exclude_groups", "exclude_users", "exclusions"] {
        section.not_yet(key, "remove it; limit the policy by `groups`");
    }
    section.finish();
    groups
}

fn trigger(root: &Section<'_, '_>) -> Trigger {
    let Some(section) = root.table("trigger") else { return Trigger::None };
    let kind = section.word("kind", &TRIGGERS, true);
    let trigger = match kind {
        "leaving" => Trigger::Leaving,
        "dlp_match" => Trigger::DlpMatch { severity: severity(&section, "severity", true) },
        _ => Trigger::None,
    };
    section.not_yet("policy", "remove it; possible kinds: none, leaving, dlp_match");
    section.finish();
    trigger
}

fn severity(section: &Section<'_, '_>, key: &str, required: bool) -> Level {
    Level::parse(section.word(key, &SEVERITIES, required)).expect("a word of the list")
}

/// look_back_days, activation_days, gap_hours, max_days.
fn windows(root: &Section<'_, '_>) -> (i64, i64, i64, i64) {
    let Some(section) = root.table("windows") else { return (90, 30, 72, 7) };
    let look_back = section.whole("look_back_days", 0..=90, Some(90));
    let activation = section.whole("activation_days", 1..=365, Some(30));
    let gap = section.whole("alert_gap_hours", 1..=168, Some(72));
    let max = section.whole("alert_max_days", 1..=30, Some(7));
    if gap > max * 24 {
        section.report_at(
            "alert_gap_hours",
            format!("a gap of {gap} hours never ends a window of {max} days"),
            format!("choose at most {} hours, or a longer `alert_max_days`", max * 24),
        );
    }
    section.finish();
    (look_back, activation, gap, max)
}

/// open_at, the lowest severity published, expire_days.
fn alert(root: &Section<'_, '_>) -> (i64, Level, i64) {
    let Some(section) = root.table("alert") else { return (40_000, Level::Low, 120) };
    let open_at = section.milli("open_at", 20_000..=99_000, Some(40_000));
    let severity = severity(&section, "min_severity", false);
    let expire = section.whole("expire_days", 1..=365, Some(120));
    section.not_yet("auto_case", "remove it; cases are opened by people");
    section.not_yet("severities", "remove it; `min_severity` names the lowest that is published");
    section.finish();
    (open_at, severity, expire)
}

fn indicators(root: &Section<'_, '_>, catalogue: &Catalogue) -> Vec<PolicyIndicator> {
    let Some(section) = root.table("indicators") else {
        root.report("`[indicators]` is missing", "name what counts, for example `cloud_upload = {}`");
        return Vec::new();
    };
    let mut indicators = Vec::new();
    for Word { text: id, at } in section.keys() {
        let Some(override_) = section.table(id) else { continue };
        let Some(position) = catalogue.position(id) else {
            let (message, fix) = unknown_indicator(id, catalogue);
            section.report_span(at, message, fix);
            continue;
        };
        let base = &catalogue.indicators[position];
        let cap_milli = override_.milli("cap", 1_000..=CAP_MILLI_MAX, Some(base.cap_milli));
        if override_.has("cap") {
            check_cap(&override_, id, base.category, cap_milli);
        }
        indicators.push(PolicyIndicator {
            position,
            weight_milli: override_.milli("weight", 1..=WEIGHT_MILLI_MAX, Some(base.weight_milli)),
            cap_milli,
        });
        override_.not_yet("thresholds", "remove it; `measure = \"steps\"` in the catalogue uses 10, 20, 30 a day");
        override_.finish();
    }
    if section.keys().is_empty() {
        section.report("a policy without indicators never alerts", "name at least one, such as `cloud_upload = {}`");
    }
    indicators.sort_by_key(|i| i.position);
    indicators
}

/// What is wrong with an indicator the catalogue does not have, and what to do.
pub fn unknown_indicator(id: &str, catalogue: &Catalogue) -> (String, String) {
    let fix = match nearest(id, catalogue.indicators.iter().map(|i| i.id.as_str())) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "use an id of `indicators.toml`, or define it there".to_owned(),
    };
    (format!("indicator `{id}` is not in the catalogue"), fix)
}
