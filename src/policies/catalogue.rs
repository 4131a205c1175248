//! `indicators.toml` → the catalogue. Next: `policy.rs`.

use std::collections::BTreeMap;

use super::read::{Milli, Section, Word};
use crate::domain::Day;
use crate::domain::indicator::{Boosters, Catalogue, Category, Factors, HALF_LIVES_DAYS, Indicator, Measure};

/// Most indicators of a catalogue: state keeps one bitset for each that a user has.
pub const INDICATORS_MAX: usize = 256;
/// Largest weight, in thousandths of a point.
pub const WEIGHT_MILLI_MAX: i64 = 50_000;
/// Largest cap, in thousandths of a point.
pub const CAP_MILLI_MAX: i64 = 200_000;
/// Evidence at which a score of 40 is reached (50·log2(1/0.6) = 36.85); the smooth cap is never reached, so an
/// indicator that must be able to alert alone needs a cap above it.
pub const ALERTING_CAP_MILLI: i64 = 37_000;
/// Most entries of a list in a file.
pub const LIST_MAX: usize = 500;
/// Longest id.
pub const ID_CHARS_MAX: usize = 40;

const MEASURES: [&str; 3] = ["count", "volume", "steps"];

/// Reads the whole file.
pub fn read(root: &Section<'_, '_>) -> Catalogue {
    super::api_version(root);
    let indicators = indicators(root);
    let factors = root.table("factors").map(|s| factors(&s)).unwrap_or_else(|| {
        root.report("`[factors]` is missing", "add the section; the built-in catalogue has a complete one");
        Factors::default()
    });
    let boosters = root.table("boosters").map(|s| boosters(&s)).unwrap_or_else(|| {
        root.report("`[boosters]` is missing", "add the section; the built-in catalogue has a complete one");
        Boosters::default()
    });
    let sources = root.table("sources").map(|s| sources(&s)).unwrap_or_default();
    root.finish();
    Catalogue::new(indicators, factors, boosters, sources)
}

fn indicators(root: &Section<'_, '_>) -> Vec<Indicator> {
    let sections = root.tables("indicator");
    if sections.is_empty() {
        root.report("no `[[indicator]]` in the catalogue", "add at least one indicator");
    }
    if sections.len() > INDICATORS_MAX {
        root.report(format!("{} indicators, more than {INDICATORS_MAX}", sections.len()), "remove some");
    }
    let mut by_code: BTreeMap<u16, Indicator> = BTreeMap::new();
    let mut lines: BTreeMap<String, usize> = BTreeMap::new();
    for section in sections {
        let mut indicator = indicator(&section);
        if let Some(line) = lines.insert(indicator.id.clone(), section.line()) {
            section.report_at(
                "id",
                format!("indicator `{}` is defined twice, first on line {line}", indicator.id),
                "remove one of the two",
            );
        }
        if let Some(other) = by_code.get(&indicator.code) {
            section.report_at(
                "code",
                format!("code {} belongs to `{}`; codes stand in stored state", indicator.code, other.id),
                "choose a number that was never used",
            );
            // A catalogue asserts unique codes; under any other code its policies can still be read.
            indicator.code =
                (1..=u16::MAX).rev().find(|c| !by_code.contains_key(c)).expect("fewer indicators than codes");
        }
        by_code.insert(indicator.code, indicator);
    }
    by_code.into_values().collect()
}

fn indicator(section: &Section<'_, '_>) -> Indicator {
    let id = super::id(section, "id", "cloud_upload");
    let categories = Category::ALL.map(Category::as_str);
    let category = Category::parse(section.word("category", &categories, true)).expect("a word of the list");
    let indicator = Indicator {
        code: section.whole("code", 1..=9_999, None) as u16,
        title: section.text("title", "Uploaded to cloud storage").to_owned(),
        category,
        weight_milli: section.milli("weight", 1..=WEIGHT_MILLI_MAX, None),
        cap_milli: section.milli("cap", 1_000..=CAP_MILLI_MAX, None),
        half_life_days: half_life(section),
        measure: match section.word("measure", &MEASURES, false) {
            "volume" => Measure::Volume,
            "steps" => Measure::Steps,
            _ => Measure::Count,
        },
        id,
    };
    check_cap(section, &indicator.id, category, indicator.cap_milli);
    section.finish();
    indicator
}

fn half_life(section: &Section<'_, '_>) -> u16 {
    let days = section.whole("half_life_days", 1..=30, None) as u16;
    if !HALF_LIVES_DAYS.contains(&days) {
        section.report_at(
            "half_life_days",
            format!("`half_life_days` is {days}; powers of two are tabled for a few half-lives only"),
            "choose 1, 3, 7, 14 or 30",
        );
    }
    days
}

/// Theft or evasion through one channel must be able to open an alert by itself.
pub fn check_cap(section: &Section<'_, '_>, id: &str, category: Category, cap_milli: i64) {
    if matches!(category, Category::Exfiltration | Category::Security) && cap_milli <= ALERTING_CAP_MILLI {
        section.report_at(
            "cap",
            format!(
                "`{id}` ({}) is capped at {}: alone it could never open an alert at 40",
                category.as_str(),
                Milli(cap_milli)
            ),
            format!("choose a cap above {}", Milli(ALERTING_CAP_MILLI)),
        );
    }
}

fn factors(section: &Section<'_, '_>) -> Factors {
    let factors = Factors {
        labels: section.table("labels").map(|s| labels(&s)).unwrap_or_default(),
        info_type_step: section.milli("info_type_step", 0..=1_000, None),
        info_types_max: section.milli("info_types_max", 1_000..=4_000, None),
        unallowed_destination: section.milli("unallowed_destination", 1_000..=4_000, None),
        blocked: section.milli("blocked", 0..=1_000, None),
        overridden: section.milli("overridden", 1_000..=4_000, None),
        allowed_destinations: domains(section, "allowed_destinations"),
        unallowed_destinations: domains(section, "unallowed_destinations"),
    };
    for domain in &factors.allowed_destinations {
        if factors.unallowed_destinations.contains(domain) {
            section.report_at(
                "unallowed_destinations",
                format!("`{domain}` is allowed and unallowed at once"),
                "remove it from one of the two lists",
            );
        }
    }
    section.finish();
    factors
}

fn labels(section: &Section<'_, '_>) -> BTreeMap<String, i64> {
    let mut labels = BTreeMap::new();
    for Word { text, at } in section.keys() {
        if text != text.to_lowercase() {
            section.report_span(
                at,
                format!("label `{text}` is not lower case; labels are compared in lower case"),
                format!("write \"{}\"", text.to_lowercase()),
            );
        }
        labels.insert(text.to_owned(), section.milli(text, 250..=4_000, None));
    }
    labels
}

fn domains(section: &Section<'_, '_>, key: &str) -> Vec<String> {
    let words = section.texts(key);
    if words.len() > LIST_MAX {
        section.report_at(
            key,
            format!("`{key}` has {} entries, more than {LIST_MAX}", words.len()),
            "shorten the list",
        );
    }
    for word in &words {
        let plain = word.text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b));
        let dotted = word.text.contains('.') && !word.text.starts_with('.') && !word.text.ends_with('.');
        if !plain || !dotted {
            section.report_span(
                word.at.clone(),
                format!("\"{}\" is not a domain in lower case", word.text),
                "write it like \"example.com\"; it covers its subdomains, so no `*.`",
            );
        }
    }
    words.into_iter().map(|w| w.text.to_owned()).collect()
}

fn boosters(section: &Section<'_, '_>) -> Boosters {
    let factor = 500..=2_500;
    let boosters = Boosters {
        leaving: section.milli("leaving", factor.clone(), None),
        leaving_before_days: section.whole("leaving_before_days", 0..=365, None),
        leaving_after_days: section.whole("leaving_after_days", 0..=365, None),
        violation: section.milli("violation", factor.clone(), None),
        violation_days: section.whole("violation_days", 1..=365, None),
        priority_group: section.milli("priority_group", factor.clone(), None),
        priority_groups: super::groups(section, "priority_groups"),
        high_impact: section.milli("high_impact", factor, None),
    };
    section.finish();
    boosters
}

fn sources(section: &Section<'_, '_>) -> BTreeMap<String, Day> {
    let mut sources = BTreeMap::new();
    for Word { text, .. } in section.keys() {
        sources.insert(text.to_owned(), super::day(section, text));
    }
    sources
}
