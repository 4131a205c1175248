//! The worker's protocol under faults, without Kafka or Redis: the production worker and copy writer over ports in
//! memory, in an order drawn from a seed. `SEEDS=20000` runs more, `SEED=812` replays one and prints its last events.
//! Next: `schedule.rs`.

#[path = "../driver/mod.rs"]
mod driver;

mod broker;
mod check;
mod inputs;
mod ports;
mod schedule;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use schedule::{Outcome, run};
use world::{Hits, Mutation};

const SEEDS_DEFAULT: u64 = 500;

/// Seeds that once failed, with what they found. Their schedules change with the simulator; they are run all the same.
const REGRESSIONS: &[(u64, &str)] = &[
    (0, "users of a worker that was held up, handed over after a later owner's, stopped the process"),
    (91, "the probe after an abort ran on a producer whose end was still on its way"),
];

/// Faults that must have struck when a run of the default size is over.
const FAULTS: &[&str] = &[
    "abort in commit",
    "abort in send",
    "abort in send_offsets",
    "abort that comes late",
    "committed offsets timed out",
    "committed offsets unstable",
    "crash after commit",
    "crash before commit",
    "crash in abort",
    "crash in begin",
    "crash in committed",
    "crash in init",
    "crash in poll",
    "crash in read",
    "crash in seek",
    "crash in send",
    "crash in send_offsets",
    "crash in start",
    "crash in store.apply",
    "crash in store.meta",
    "crash in store.sweep",
    "crash in store.users",
    "crash in watermarks",
    "init failed",
    "late end accepted",
    "late end refused",
    "mapper aborts",
    "mapper leaves a transaction open",
    "offsets refused",
    "orderly restart",
    "policy set unavailable",
    "policy switch",
    "poll failed",
    "process killed between steps",
    "read pinned by an open transaction",
    "read timed out",
    "rebalance",
    "second process under the same names",
    "seek failed",
    "session expired",
    "session expired in the middle of a call",
    "start failed",
    "store answer lost",
    "store failed over to an older state",
    "store fenced a writer",
    "store flushed",
    "store had lost data",
    "store lost a generation",
    "store lost an epoch",
    "store timeout",
    "store unavailable",
    "transaction expired",
    "unknown commit that comes late",
    "unknown commit that did not happen",
    "unknown commit that happened",
    "watermarks timed out",
    "worker stopped",
];

/// Runs seeds on every core until one fails or `enough` says so.
fn run_all(seeds: std::ops::Range<u64>, mutation: Mutation, done: impl Fn(u64, &Outcome) -> bool + Sync) {
    let next = AtomicU64::new(seeds.start);
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get().min(8));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || done(seed, &run(seed, mutation, false)) {
                        next.store(seeds.end, Ordering::Relaxed);
                        return;
                    }
                }
            });
        }
    });
}

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

fn fail(seed: u64) -> ! {
    let Outcome { violations, trace, .. } = run(seed, Mutation::None, true);
    let (trace, violations) = (trace.join("\n"), violations.join("\n"));
    panic!("{trace}\n\n{violations}\n\nSEED={seed} cargo test --release --test simulation");
}

#[test]
fn every_seed_ends_as_a_plain_fold_would() {
    if let Some(seed) = env("SEED") {
        let outcome = run(seed, Mutation::None, true);
        if !outcome.violations.is_empty() {
            fail(seed);
        }
        return println!("{}\nseed {seed}: no violation", outcome.trace.join("\n"));
    }
    let seeds = env("SEEDS").unwrap_or(SEEDS_DEFAULT);
    let failed: Mutex<Option<u64>> = Mutex::new(None);
    let sums: Mutex<(Hits, i64, i64, i64)> = Mutex::default();
    run_all(0..seeds, Mutation::None, |seed, outcome| {
        let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
        outcome.hits.iter().for_each(|(what, n)| *sums.0.entry(what).or_default() += n);
        sums.1 += outcome.transactions;
        sums.2 += outcome.input_records;
        sums.3 += outcome.alerts;
        let broken = !outcome.violations.is_empty();
        if broken {
            failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(seed);
        }
        broken
    });
    if let Some(seed) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        fail(seed);
    }
    let (hits, transactions, records, alerts) = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("{seeds} seeds: {records} input records in {transactions} transactions, {alerts} alert records");
    hits.iter().for_each(|(what, n)| println!("{n:>8} {what}"));
    if seeds >= SEEDS_DEFAULT {
        let missed: Vec<_> = FAULTS.iter().filter(|f| !hits.contains_key(*f)).collect();
        assert!(missed.is_empty(), "faults that never struck: {missed:?}");
    }
}

#[test]
fn seeds_that_failed_once() {
    for (seed, found) in REGRESSIONS {
        let outcome = run(*seed, Mutation::None, false);
        assert!(outcome.violations.is_empty(), "SEED={seed} ({found}): {:?}", outcome.violations);
    }
}

#[test]
fn a_seed_replays_byte_for_byte() {
    for seed in [1, 2, 3] {
        let (once, again) = (run(seed, Mutation::None, false), run(seed, Mutation::None, true));
        assert_eq!((once.digest, once.hits), (again.digest, again.hits), "seed {seed}");
    }
}

/// A checker that cannot fail proves nothing: without a guard it must find what the guard is there for.
#[test]
fn each_guard_is_missed_when_it_is_gone() {
    const SEEDS_MAX: u64 = 400;
    let only = std::env::var("MUTATION").ok();
    for mutation in [
        Mutation::FreshMetadata,
        Mutation::NoEpochBump,
        Mutation::SeekIgnored,
        Mutation::StoreTakesOlder,
        Mutation::StoreForgets,
    ] {
        if only.as_ref().is_some_and(|only| *only != format!("{mutation:?}")) {
            continue;
        }
        let found: Mutex<Option<(u64, String)>> = Mutex::new(None);
        run_all(0..SEEDS_MAX, mutation, |seed, outcome| {
            let Some(first) = outcome.violations.first() else { return false };
            found.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((seed, first.clone()));
            true
        });
        let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (seed, what) = found.unwrap_or_else(|| panic!("{mutation:?} was not found in {SEEDS_MAX} seeds"));
        eprintln!("{mutation:?}: seed {seed}: {}", what.chars().take(200).collect::<String>());
    }
}
