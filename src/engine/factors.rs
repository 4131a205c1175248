//! f(s): what one signal adds to the magnitude of its insight. Depends on the signal and the catalogue only, never on
//! what arrived before.

use smallvec::SmallVec;

use crate::domain::indicator::Factors;
use crate::domain::signal::{Destination, Signal};

/// The factors of a signal that are not 1, by name, and their product.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Within [250, 4000], or 0 for an allowed destination.
    pub factor_milli: u16,
    /// In the order they are multiplied.
    pub named: SmallVec<[(&'static str, i64); 4]>,
}

/// Multiplies the factors of a signal, each product rounded down to thousandths.
pub fn of(signal: &Signal<'_>, factors: &Factors) -> Applied {
    let mut applied = Applied::default();
    let place = signal.destination.as_ref().filter(|d| has_domain(d)).map(place).filter(|p| !p.is_empty());
    if place.is_some_and(|p| listed(&factors.allowed_destinations, p)) {
        applied.named.push(("allowed_destination", 0));
        return applied;
    }
    let unallowed = place.is_some_and(|p| listed(&factors.unallowed_destinations, p));
    let justified = signal.justification.as_deref().is_some_and(|j| !j.trim().is_empty());
    let each = [
        ("label", label(signal, factors)),
        ("info_types", info_types(signal, factors)),
        ("unallowed_destination", if unallowed { factors.unallowed_destination } else { 1_000 }),
        ("blocked", if signal.outcome == "blocked" { factors.blocked } else { 1_000 }),
        ("overridden", if signal.outcome == "overridden" && justified { factors.overridden } else { 1_000 }),
    ];
    let mut product = 1_000_i64;
    for (name, factor) in each.into_iter().filter(|(_, f)| *f != 1_000) {
        applied.named.push((name, factor));
        product = product.saturating_mul(factor) / 1_000;
    }
    applied.factor_milli = product.clamp(250, 4_000) as u16;
    applied
}

/// The largest factor of any label of the signal or of its resources.
fn label(signal: &Signal<'_>, factors: &Factors) -> i64 {
    let labels = signal.labels.iter().map(|l| l.as_str());
    let inside = signal.resources.iter().filter_map(|r| r.label.as_deref());
    labels.chain(inside).filter_map(|l| label_factor(l, factors)).max().unwrap_or(1_000)
}

fn label_factor(label: &str, factors: &Factors) -> Option<i64> {
    match factors.labels.get(label) {
        Some(factor) => Some(*factor),
        None if label.chars().any(char::is_uppercase) => factors.labels.get(&label.to_lowercase()).copied(),
        None => None,
    }
}

fn info_types(signal: &Signal<'_>, factors: &Factors) -> i64 {
    let confidence: i64 = signal.info_types.iter().map(|t| t.confidence.clamp(0, 1_000)).sum();
    (1_000 + factors.info_type_step * confidence / 1_000).min(factors.info_types_max.max(1_000))
}

fn has_domain(destination: &Destination<'_>) -> bool {
    !matches!(destination.kind.as_str(), "device" | "printer")
}

/// What tells a destination apart: the domain of an address or link, else the value itself.
pub fn place<'d>(destination: &'d Destination<'_>) -> &'d str {
    let value = destination.value.trim();
    if !has_domain(destination) {
        return value;
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    if value.bytes().all(plain) {
        return value.trim_end_matches('.');
    }
    let value = value.split_once("://").map_or(value, |(_, rest)| rest);
    let value = value.split(['/', '?', '#']).next().unwrap_or(value);
    let value = value.rsplit_once('@').map_or(value, |(_, domain)| domain);
    value.trim_end_matches('.')
}

/// Whether a domain or one of its parents is on the list.
fn listed(list: &[String], domain: &str) -> bool {
    list.iter().any(|entry| {
        let Some(start) = domain.len().checked_sub(entry.len()) else { return false };
        let (head, tail) = (&domain.as_bytes()[..start], &domain.as_bytes()[start..]);
        tail.eq_ignore_ascii_case(entry.as_bytes()) && head.last().is_none_or(|b| *b == b'.')
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Text;

    #[test]
    fn domains_match_on_dots() {
        let list = [String::from("example.com")];
        for (domain, hit) in [("example.com", true), ("a.Example.com", true), ("badexample.com", false), ("com", false)]
        {
            assert_eq!(listed(&list, domain), hit, "{domain}");
        }
    }

    #[test]
    fn places_of_destinations() {
        for (kind, value, expected) in [
            ("email", "bob@mail.example", "mail.example"),
            ("public_link", "https://drop.example/a/b?c", "drop.example"),
            ("domain", "drop.example", "drop.example"),
            ("device", "SanDisk/4C53", "SanDisk/4C53"),
        ] {
            let d = Destination { kind: kind.into(), value: value.into(), direction: Text::default() };
            assert_eq!(place(&d), expected);
        }
    }
}
