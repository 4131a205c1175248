//! `schemas/score-vectors.json`: both tables and states with the scores they add up to, so that a program in any
//! language can check its own arithmetic. `UPDATE=1` writes it; `examples/verify_score.py` recomputes it.

mod driver;

use std::path::Path;
use std::process::Command;

use casestream::domain::indicator::Category;
use casestream::domain::time::HOUR_MS;
use casestream::domain::{Day, Timestamp};
use casestream::engine::User;
use casestream::engine::math::{EXP2, LOG2};
use casestream::engine::score::Curve;
use casestream::engine::state::{DaySegment, Directory, Insight, hash64};
use driver::{START, policies};
use serde_json::{Value, json};

#[test]
fn the_published_vectors_are_what_the_engine_computes() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/score-vectors.json");
    let actual = document();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&file, &actual).expect("writable");
    }
    let expected = std::fs::read_to_string(&file).expect("schemas/score-vectors.json is there");
    assert!(expected == actual, "the vectors differ; UPDATE=1 cargo test --test vectors writes them anew");
}

#[test]
fn another_language_computes_the_same() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = folder.join("examples/verify_score.py");
    let run = Command::new("python3").arg(&script).arg(folder.join("schemas/score-vectors.json")).output();
    // A machine without Python has nothing to say about Python.
    let Ok(run) = run else { return };
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}{}", String::from_utf8_lossy(&run.stderr));
    assert!(said.contains(&format!("{} cases", cases().len())), "{said}");
}

fn document() -> String {
    let policies = policies();
    let catalogue = &policies.catalogue;
    let indicators: serde_json::Map<String, Value> = catalogue
        .indicators
        .iter()
        .map(|i| {
            let line = json!({
                "code": i.code, "category": i.category.as_str(), "weight_milli": i.weight_milli,
                "cap_milli": i.cap_milli, "half_life_days": i.half_life_days,
                "measure": format!("{:?}", i.measure).to_lowercase(),
            });
            (i.id.clone(), line)
        })
        .collect();
    let caps: serde_json::Map<String, Value> =
        Category::ALL.iter().map(|c| (c.as_str().to_owned(), json!(c.cap_milli()))).collect();
    let cases: Vec<String> = cases().iter().map(|(name, user, hour)| case(name, user, *hour).to_string()).collect();
    format!(
        "{{\n\"about\": {},\n\"exp2_q32\": {},\n\"log2_q16\": {},\n\"indicators\": {},\n\"category_caps_milli\": {},\n\"cases\": [\n{}\n]\n}}\n",
        json!("See docs/scoring.md. exp2_q32[n] = 2^(-n/1024) * 2^32; log2_q16[n] = log2(1 + n/1024) * 2^16."),
        json!(EXP2.to_vec()),
        json!(LOG2.to_vec()),
        Value::Object(indicators),
        Value::Object(caps),
        cases.join(",\n"),
    )
}

fn case(name: &str, user: &User, hour: i64) -> Value {
    let policies = policies();
    let catalogue = &policies.catalogue;
    let curve = Curve::new(user, catalogue, hour);
    let sum = curve.at(hour);
    let days: Vec<Value> = user
        .days
        .iter()
        .map(|d| {
            let insights: Vec<Value> = d
                .insights
                .iter()
                .map(|i| {
                    let n = catalogue.position_of_code(i.code).expect("known");
                    json!({
                        "indicator": catalogue.indicators[n].id, "count": i.count,
                        "magnitude_milli": i.magnitude_milli, "bytes": i.bytes, "hours": i.hours,
                        "destinations": i.destinations.as_slice(), "devices": i.devices.as_slice(),
                    })
                })
                .collect();
            json!({"day": d.day.0, "hours": d.hours.as_slice(), "insights": insights})
        })
        .collect();
    let pairs = |list: &[(u32, Day)]| -> Vec<Value> { list.iter().map(|(hash, day)| json!([hash, day.0])).collect() };
    let parts: Vec<Value> =
        sum.parts.iter().map(|p| json!([catalogue.indicators[p.position].id, p.sum_q16, p.capped_milli])).collect();
    let categories: Vec<Value> = Category::ALL
        .iter()
        .filter(|c| sum.categories[**c as usize] != 0)
        .map(|c| json!([c.as_str(), sum.categories[*c as usize]]))
        .collect();
    let boosts: Vec<i64> = curve.boosts_at(hour).map(|b| b.factor_milli).collect();
    json!({
        "name": name, "hour": hour, "first_day": user.head.first_day.map(|d| d.0), "boosters_milli": boosts,
        "seen": {"domains": pairs(&user.seen.domains), "devices": pairs(&user.seen.devices)}, "days": days,
        "expect": {
            "q_q16": curve.terms.iter().map(|t| t.q_q16).collect::<Vec<_>>(), "indicators": parts,
            "categories": categories, "evidence_milli": sum.evidence_milli, "boost_milli": sum.boost_milli,
            "score_milli": sum.score_milli,
        }
    })
}

/// States drawn from a fixed sequence, of growing size, plus the corners.
fn cases() -> Vec<(String, User, i64)> {
    let first = START.day_at(0);
    let end = first.end().hour();
    let mut cases = vec![("nothing".to_owned(), User::default(), end)];
    let one = |code: u16, count: u32, magnitude: u64, bytes: u64| {
        let mut user = User::default();
        add(&mut user, first, insight(code, count, magnitude, bytes, 9));
        user
    };
    for (name, user, hours) in [
        ("one act", one(1, 1, 1_000, 0), 0),
        ("one act after one half-life", one(1, 1, 1_000, 0), 168),
        ("one act at twelve half-lives", one(6, 5, 5_000, 0), 864),
        ("one act past twelve half-lives", one(6, 5, 5_000, 0), 865),
        ("worth nothing", one(1, 3, 0, 0), 0),
        ("nine are below the first step", one(3, 9, 9_000, 0), 0),
        ("twenty are two steps", one(3, 20, 20_000, 0), 0),
        ("a volume", one(2, 4, 5_500, 2_123_456_789), 30),
        ("a volume beyond 64 bits", one(2, 1, 4_000, u64::MAX), 30),
        ("at the cap", one(1, 1_000_000, 4_000_000_000, 0), 1),
    ] {
        cases.push((name.to_owned(), user, end + hours));
    }
    let mut draw = Draw(0x5eed);
    for n in 0..30 {
        cases.push((format!("drawn {n}"), drawn(&mut draw, first, n), end + 24 * 70 + draw.below(400) as i64));
    }
    cases
}

struct Draw(u64);

impl Draw {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

fn insight(code: u16, count: u32, magnitude_milli: u64, bytes: u64, hour: u8) -> Insight {
    Insight { code, revision: 1, count, magnitude_milli, bytes, hours: 1 << hour, ..Insight::default() }
}

fn add(user: &mut User, day: Day, insight: Insight) {
    let hour = insight.hours.trailing_zeros() as u8;
    let segment = match user.days.iter_mut().position(|d| d.day == day) {
        Some(n) => &mut user.days[n],
        None => {
            user.days.push(DaySegment { day, ..DaySegment::default() });
            user.days.sort_by_key(|d| d.day);
            user.days.iter_mut().find(|d| d.day == day).expect("just added")
        }
    };
    if let Err(n) = segment.insights.binary_search_by_key(&insight.code, |i| i.code) {
        segment.insights.insert(n, insight);
        match segment.hours.binary_search_by_key(&hour, |h| h.0) {
            Ok(n) => segment.hours[n].1 += 1,
            Err(n) => segment.hours.insert(n, (hour, 1)),
        }
    }
    user.head.first_day = user.days.first().map(|d| d.day);
}

fn drawn(draw: &mut Draw, first: Day, n: i32) -> User {
    let mut user = User::default();
    for _ in 0..=n * 2 {
        let day = Day(first.0 + draw.below(80) as i32);
        let hour = if draw.below(8) == 0 { draw.below(24) } else { 8 + draw.below(9) } as u8;
        let count = 1 + draw.below(40) as u32;
        let factor = 250 + draw.below(3_751);
        let code = 1 + draw.below(6) as u16;
        let mut i = insight(code, count, u64::from(count) * factor, draw.below(5_000_000_000), hour);
        let (place, device) = (1 + draw.below(5) as u32, 1 + draw.below(3) as u32);
        i.destinations.push((place, 1 + draw.below(count.into()) as u32));
        i.devices.push((device, 1 + draw.below(count.into()) as u32));
        for (list, name) in [(&mut user.seen.domains, place), (&mut user.seen.devices, device)] {
            match list.binary_search_by_key(&name, |s| s.0) {
                Ok(n) => list[n].1 = list[n].1.min(day),
                Err(n) => list.insert(n, (name, day)),
            }
        }
        add(&mut user, day, i);
    }
    user.head.directory = (n % 3 == 1).then(|| Directory {
        version: 1,
        last_day: (n % 2 == 0).then_some(Timestamp((first.end().hour() + 24 * 90) * HOUR_MS)),
        high_impact: n % 4 != 0,
        groups: vec![hash64("vip")],
        ..Directory::default()
    });
    user
}
