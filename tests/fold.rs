//! The laws of the fold: what depends on the set of signals does not depend on their order, what is written down is
//! read back, and what is shown adds up.

mod driver;

use casestream::domain::Timestamp;
use casestream::domain::directory::{Directory, Leaving};
use casestream::domain::signal::Signal;
use casestream::domain::time::{DAY_MS, HOUR_MS};
use casestream::engine::explain::explain;
use casestream::engine::score::Curve;
use casestream::engine::{Outcome, User};
use casestream::wire::state::{UserBytes, decode, encode_changed};
use driver::{Driver, START, domain, law, policies, signal};
use proptest::prelude::*;

/// Hours that all signals of a case lie within; less than the lateness horizon.
const SPAN: i64 = 600;
const INDICATORS: [&str; 7] =
    ["usb_copy", "cloud_upload", "mass_download", "archive", "log_deletion", "sign_in_anomaly", "unknown_thing"];

/// One activity and everything a source may say about it.
#[derive(Clone, Debug)]
struct Act {
    hours: i64,
    indicator: usize,
    count: i64,
    bytes: i64,
    secret: bool,
    place: u8,
    activity: u8,
    repeats: usize,
    revised: Option<(i64, i64, usize)>,
    retracted: bool,
}

fn act() -> impl Strategy<Value = Act> {
    let what = (0..SPAN, 0..INDICATORS.len(), 1..40_i64, 0..3_000_000_000_i64, any::<bool>(), 0..24_u8);
    let said = (
        0..6_u8,
        1..3_usize,
        proptest::option::weighted(0.3, (0..SPAN, 1..40_i64, 0..INDICATORS.len())),
        proptest::bool::weighted(0.25),
    );
    (what, said).prop_map(
        |((hours, indicator, count, bytes, secret, place), (activity, repeats, revised, retracted))| Act {
            hours,
            indicator,
            count,
            bytes,
            secret,
            place,
            activity,
            repeats,
            revised,
            retracted,
        },
    )
}

fn said(n: usize, act: &Act) -> Vec<Signal<'static>> {
    let mut create = signal(&format!("e{n}"), INDICATORS[act.indicator], act.hours);
    create.count = act.count;
    create.bytes = Some(act.bytes);
    create.destination = domain(&format!("d{}.example", act.place));
    create.device_id = Some(format!("pc-{}", act.place / 8).into());
    if act.secret {
        create.labels.push("Secret".into());
    }
    if act.activity < 3 {
        create.activity_key = Some(format!("k{}", act.activity).into());
    }
    let mut all = vec![create.clone(); act.repeats];
    if let Some((hours, count, indicator)) = act.revised {
        let mut revise = signal(&format!("e{n}"), INDICATORS[indicator], hours);
        revise.op = "revise".into();
        revise.count = count;
        revise.destination = domain("revised.example");
        all.push(revise);
    }
    if act.retracted {
        let mut retract = create;
        retract.op = "retract".into();
        all.push(retract);
    }
    all
}

fn everything(acts: &[Act]) -> Vec<Signal<'static>> {
    acts.iter().enumerate().flat_map(|(n, act)| said(n, act)).collect()
}

fn fold(signals: &[Signal<'_>]) -> Driver {
    let mut driver = Driver::new(policies());
    driver.stream_time = START.plus_ms((SPAN + 10) * HOUR_MS);
    for signal in signals {
        let outcome = driver.signal(signal);
        assert!(!matches!(outcome, Outcome::Dead(_)), "{outcome:?}");
    }
    driver
}

fn scores(driver: &Driver) -> Vec<i64> {
    let from = START.plus_ms((SPAN + 10) * HOUR_MS).hour();
    let curve = Curve::new(&driver.user, &driver.policies.catalogue, from);
    (0..12).map(|n| curve.at(from + n * n * 20).score_milli).collect()
}

/// Sorts by a key drawn from a seed: a shuffle that shrinks well.
fn shuffled<'s>(signals: &[Signal<'s>], seed: u64) -> Vec<Signal<'s>> {
    let mut keyed: Vec<(u64, Signal<'s>)> = signals
        .iter()
        .enumerate()
        .map(|(n, s)| {
            ((n as u64 + 1).wrapping_mul(seed | 1).rotate_left(23).wrapping_mul(0x9e37_79b9_7f4a_7c15), s.clone())
        })
        .collect();
    keyed.sort_by_key(|k| k.0);
    keyed.into_iter().map(|k| k.1).collect()
}

fn round_trip(user: &User) -> User {
    let mut copy = user.clone();
    copy.changes = Default::default();
    copy.changes.head = true;
    copy.changes.seen = true;
    let days: Vec<_> = copy.days.iter().map(|d| d.day).collect();
    days.into_iter().for_each(|d| copy.changes.mark_day(d));
    let (bytes, _) = encode_changed(&mut copy, &UserBytes::default(), 1);
    decode(&bytes).expect("what was written can be read")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_order_of_arrival_does_not_matter(acts in prop::collection::vec(act(), 1..12), seed in any::<u64>()) {
        let signals = everything(&acts);
        let (one, other) = (fold(&signals), fold(&shuffled(&signals, seed)));
        prop_assert_eq!(law(&one.user), law(&other.user));
        prop_assert_eq!(scores(&one), scores(&other));
    }

    #[test]
    fn kept_terms_are_those_made_anew(acts in prop::collection::vec(act(), 1..12), seed in any::<u64>(), live: bool) {
        let mut signals = shuffled(&everything(&acts), seed);
        if live {
            signals.sort_by_key(|s| s.ingested_at);
        }
        let mut driver = Driver::new(policies());
        for signal in &signals {
            let accepted = matches!(driver.signal(signal), Outcome::Scored | Outcome::Unscored);
            let hour = driver.stream_time.hour();
            let kept = driver.user.changes.known.clone().take(&driver.policies, hour);
            prop_assert!(kept.is_some() || !accepted, "an accepted signal leaves terms behind");
            if let Some((terms, whole)) = kept {
                let curve = Curve::new(&driver.user, &driver.policies.catalogue, hour);
                prop_assert_eq!(&terms, &curve.terms);
                prop_assert_eq!(whole, curve.at(hour));
            }
        }
    }

    #[test]
    fn a_retraction_leaves_what_the_others_add_up_to(acts in prop::collection::vec(act(), 2..10)) {
        let mut acts = acts;
        acts[0].retracted = true;
        let with = fold(&everything(&acts));
        let mut without = Driver::new(policies());
        without.stream_time = with.stream_time;
        for (n, act) in acts.iter().enumerate().skip(1) {
            said(n, act).iter().for_each(|s| { without.signal(s); });
        }
        let insights = |user: &User| -> Vec<_> {
            let all = user.days.iter().flat_map(|d| d.insights.iter().map(|i| (d.day, i.clone())));
            let mut live: Vec<_> = all.filter(|(_, i)| i.count > 0).collect();
            live.iter_mut().for_each(|(_, i)| i.revision = 0);
            live
        };
        prop_assert_eq!(insights(&with.user), insights(&without.user));
        let hours = |user: &User| -> Vec<_> {
            user.days.iter().filter(|d| !d.hours.is_empty()).map(|d| (d.day, d.hours.clone())).collect()
        };
        prop_assert_eq!(hours(&with.user), hours(&without.user));
    }

    #[test]
    fn state_is_read_back_as_it_was_written(acts in prop::collection::vec(act(), 1..12)) {
        let mut driver = fold(&everything(&acts));
        prop_assert_eq!(&round_trip(&driver.user).days, &driver.user.days);
        driver.finish();
        let mut user = driver.user.clone();
        user.changes = Default::default();
        prop_assert_eq!(round_trip(&user), user);
    }

    #[test]
    fn what_is_shown_adds_up(acts in prop::collection::vec(act(), 1..12), leaving in any::<bool>()) {
        let mut driver = fold(&everything(&acts));
        if leaving {
            let last_day = Some(driver.stream_time.plus_ms(DAY_MS));
            driver.directory(&Directory {
                version: 1,
                high_impact: true,
                leaving: Some(Leaving { announced: None, last_day }),
                ..Directory::default()
            });
        }
        // The sink checks the published parts.
        driver.finish();
        let told = explain(&driver.user, driver::USER, &driver.context());
        let shares: i64 = told.indicators.iter().map(|i| i.share_milli).sum();
        let boosts: i64 = told.boosters.iter().map(|b| b.share_milli).sum();
        prop_assert_eq!(shares + boosts, told.score_milli);
        prop_assert!((0..=100_000).contains(&told.score_milli));
        for line in &told.indicators {
            prop_assert_eq!(line.insights.iter().map(|i| i.share_milli).sum::<i64>(), line.share_milli);
        }
        prop_assert_eq!(told.score_milli, driver.user.head.published.score_milli);
        prop_assert!(told.without.iter().all(|w| w.score_milli <= told.score_milli));
        if let Some(next) = told.next {
            prop_assert!(next.points_milli > 0);
        }
    }

    #[test]
    fn more_evidence_never_lowers_a_score_and_time_never_raises_it(acts in prop::collection::vec(act(), 1..8), more in 1..50_i64) {
        // All on one day: on later days more before means less now, which is meant.
        let mut acts = acts;
        acts.iter_mut().for_each(|a| {
            a.hours %= 24;
            a.revised = None;
            a.retracted = false;
            a.activity = 9;
            a.place = 1;
        });
        let before = fold(&everything(&acts));
        acts[0].count += more;
        if acts[0].indicator == 1 {
            acts[0].bytes += more * 1_000_000_000;
            acts[0].count -= more;
        }
        let after = fold(&everything(&acts));
        let (before, after) = (scores(&before), scores(&after));
        prop_assert!(before.iter().zip(&after).all(|(b, a)| b <= a), "{:?} {:?}", before, after);
        prop_assert!(after.windows(2).all(|w| w[0] >= w[1]));
    }
}

#[test]
fn a_day_holds_a_bounded_number_of_signals_and_says_so() {
    let mut driver = Driver::new(policies());
    for n in 0..2_100 {
        driver.signal(&signal(&format!("n{n}"), "usb_copy", 1));
    }
    driver.finish();
    let day = driver.user.day(driver::day(1)).expect("the day is there");
    assert_eq!((day.signals.len(), day.insights[0].count), (2_048, 2_100));
    assert!(driver.kept.lines.iter().any(|l| l.ends_with("[dedupe_full]")));
    assert!(driver.kept.lines.iter().any(|l| l.contains("alert A3-1")), "an alert opened");
    let mut retract = signal("n5", "usb_copy", 1);
    retract.op = "retract".into();
    driver.signal(&retract);
    let day = driver.user.day(driver::day(1)).expect("the day is there");
    assert_eq!(day.insights[0].count, 2_099, "what is no longer remembered is not lost by a retraction");
}

#[test]
fn state_stays_below_its_cap() {
    let mut driver = Driver::new(policies());
    for n in 0..6_000_i64 {
        let mut s = signal(&format!("n{n}"), "cloud_upload", n / 100);
        s.activity_key = Some(format!("k{n}").into());
        s.bytes = Some(n * 1_000_003);
        s.destination = domain(&format!("d{n}.example"));
        driver.signal(&s);
    }
    driver.finish();
    let (bytes, records) = encode_changed(&mut driver.user, &UserBytes::default(), 1);
    let size: usize = records.iter().filter_map(|r| r.1.as_ref()).map(|b| b.len()).sum();
    assert!(size <= 64 << 10, "{size}");
    let mut user = decode(&bytes).expect("readable");
    assert_eq!(user, driver.user);
    assert!(user.days.iter().any(|d| d.signals.is_empty()) && user.seen.domains.len() == 128);
    assert_eq!(encode_changed(&mut user, &bytes, 2).1, [], "nothing changed, nothing is written");
}

#[test]
fn what_is_published_does_not_depend_on_whether_a_timer_or_a_record_came_first() {
    let run = |with_timers: bool| {
        let mut driver = Driver::new(policies());
        let mut first = signal("a", "usb_copy", 0);
        first.count = 60;
        driver.signal(&first);
        let mut second = signal("b", "cloud_upload", 1);
        second.bytes = Some(900_000_000);
        driver.signal(&second);
        driver.finish();
        if with_timers {
            driver.until(START.plus_ms(399 * HOUR_MS));
        }
        driver.signal(&signal("c", "archive", 399));
        driver.finish();
        let is_entry = |l: &&String| !l.starts_with(' ');
        driver.kept.lines.iter().filter(is_entry).cloned().collect::<Vec<_>>()
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn event_ids_are_unique_and_the_same_on_replay() {
    let run = || {
        let mut driver = Driver::new(policies());
        for n in 0..40 {
            let mut s = signal(&format!("n{n}"), INDICATORS[n as usize % 6], n * 14);
            s.count = 20;
            driver.until(s.occurred_at);
            driver.signal(&s);
            driver.finish();
        }
        driver.until(Timestamp(START.0 + 200 * DAY_MS));
        assert!(driver.kept.gone, "a user without evidence is forgotten");
        driver.kept.event_ids
    };
    let ids = run();
    let unique: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!(unique.len(), ids.len());
    assert_eq!(run(), ids);
}

#[test]
fn an_alert_that_outlives_its_evidence_still_ends_in_public() {
    let mut policies = policies();
    policies.policies.iter_mut().for_each(|p| p.expire_days = 200);
    let mut driver = Driver::new(policies);
    let mut first = signal("a", "usb_copy", 0);
    first.count = 60;
    driver.signal(&first);
    let mut second = signal("b", "cloud_upload", 1);
    second.bytes = Some(900_000_000);
    driver.signal(&second);
    driver.finish();
    driver.until(START.plus_ms(180 * DAY_MS));
    assert!(driver.user.days.is_empty() && !driver.kept.gone, "the open alert keeps the user");
    driver.until(START.plus_ms(210 * DAY_MS));
    let ended = driver.kept.lines.iter().position(|l| l.contains("leaks status expired"));
    assert!(ended.is_some_and(|n| n < driver.kept.lines.len() - 1), "{:?}", driver.kept.lines.last());
    assert!(driver.kept.gone);
    let (bytes, records) = encode_changed(&mut driver.user, &UserBytes::default(), 9);
    assert_eq!((bytes, records), (UserBytes::default(), Vec::new()), "nothing is left, and nothing was there before");
}
