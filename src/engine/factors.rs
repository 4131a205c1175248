//! f(s): what one signal adds to the magnitude of its insight. Depends on the signal and the catalogue only, never on
//! what arrived before.

use crate::domain::indicator::Factors;
use crate::domain::signal::{Destination, Signal};

/// Names of the factors, in the order they are multiplied.
const NAMES: [&str; 5] = ["label", "info_types", "unallowed_destination", "blocked", "overridden"];

/// The factors of a signal and their product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Within [250, 4000], or 0 for an allowed destination.
    pub factor_milli: u16,
    /// In the order of `NAMES`; `None` for an allowed destination.
    each: Option<[i64; 5]>,
}

impl Applied {
    /// The factors that are not 1, by name, in the order they are multiplied.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, i64)> {
        let allowed = self.each.is_none().then_some(("allowed_destination", 0));
        let each = NAMES.into_iter().zip(self.each.unwrap_or([1_000; 5]));
        allowed.into_iter().chain(each.filter(|(_, factor)| *factor != 1_000))
    }
}

/// Multiplies the factors of a signal, each product rounded down to thousandths. `place` is that of its destination.
pub fn of(signal: &Signal<'_>, place: &str, factors: &Factors) -> Applied {
    let place = signal.destination.as_ref().filter(|d| has_domain(d) && !place.is_empty()).map(|_| place);
    if place.is_some_and(|p| listed(&factors.allowed_destinations, p)) {
        return Applied { factor_milli: 0, each: None };
    }
    let unallowed = place.is_some_and(|p| listed(&factors.unallowed_destinations, p));
    let justified = signal.justification.as_deref().is_some_and(|j| !j.trim().is_empty());
    let each = [
        label(signal, factors),
        info_types(signal, factors),
        if unallowed { factors.unallowed_destination } else { 1_000 },
        if signal.outcome == "blocked" { factors.blocked } else { 1_000 },
        if signal.outcome == "overridden" && justified { factors.overridden } else { 1_000 },
    ];
    let times =
        |product: i64, factor: i64| if factor == 1_000 { product } else { product.saturating_mul(factor) / 1_000 };
    let product = each.into_iter().fold(1_000, times);
    Applied { factor_milli: product.clamp(250, 4_000) as u16, each: Some(each) }
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
    if signal.info_types.is_empty() {
        return 1_000;
    }
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
