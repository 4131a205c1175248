//! When news of an act arrives: each source has its own delay; some events come late, out of order or twice.
//! Memory holds one day's acts and what is still under way, never the whole activity.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use super::activity::{self, Act, Kind, Source};
use super::population::Population;
use super::prng::Prng;
use crate::domain::Timestamp;
use crate::domain::time::{DAY_MS, HOUR_MS, SECOND_MS};

/// Local midnights lie at most this long before those of UTC.
const EAST_MAX_MS: i64 = 14 * HOUR_MS;

/// One arrival of an act.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delivery {
    pub(super) arrival: Timestamp,
    pub(super) act: Act,
    again: bool,
}

impl Delivery {
    /// A total order that no two deliveries share.
    fn order(&self) -> (i64, u64, Kind, bool) {
        (self.arrival.0, self.act.id, self.act.kind, self.again)
    }
}

impl PartialEq for Delivery {
    fn eq(&self, other: &Delivery) -> bool {
        self.order() == other.order()
    }
}
impl Eq for Delivery {}
impl PartialOrd for Delivery {
    fn partial_cmp(&self, other: &Delivery) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Delivery {
    fn cmp(&self, other: &Delivery) -> Ordering {
        self.order().cmp(&other.order())
    }
}

/// Every delivery, in order of arrival.
pub(super) struct Deliveries<'p> {
    population: &'p Population,
    next_day: u32,
    acts: Vec<Act>,
    under_way: BinaryHeap<Reverse<Delivery>>,
}

/// All deliveries of a population's activity.
pub(super) fn deliveries(population: &Population) -> Deliveries<'_> {
    Deliveries { population, next_day: 0, acts: Vec::new(), under_way: BinaryHeap::new() }
}

impl Deliveries<'_> {
    fn live_another_day(&mut self) {
        for number in 0..self.population.people().len() as u32 {
            activity::day(self.population, number, self.next_day, &mut self.acts);
        }
        self.next_day += 1;
        for act in self.acts.drain(..) {
            dispatch(self.population, act, &mut self.under_way);
        }
    }

    /// Nothing of a day still to come can arrive before this.
    fn complete_until(&self) -> Timestamp {
        let config = self.population.config();
        config.start.plus_ms(i64::from(self.next_day) * DAY_MS - EAST_MAX_MS)
    }
}

fn dispatch(population: &Population, act: Act, under_way: &mut BinaryHeap<Reverse<Delivery>>) {
    let config = population.config();
    let mut prng = Prng::of(&[config.seed, 4, act.id, act.kind as u64]);
    let usual = match act.kind.source() {
        Source::M365 => 90 * SECOND_MS,
        Source::GoogleWorkspace => 45 * SECOND_MS,
        Source::Code42 => 20 * SECOND_MS,
    };
    let extra = if prng.chance(config.late_per_mille) {
        prng.between(HOUR_MS, 3 * DAY_MS)
    } else if prng.chance(config.out_of_order_per_mille) {
        prng.between(30 * SECOND_MS, 30 * 60 * SECOND_MS)
    } else {
        0
    };
    let arrival = act.at.plus_ms(usual + extra);
    under_way.push(Reverse(Delivery { arrival, act, again: false }));
    if prng.chance(config.duplicate_per_mille) {
        let arrival = arrival.plus_ms(prng.between(SECOND_MS, HOUR_MS));
        under_way.push(Reverse(Delivery { arrival, act, again: true }));
    }
}

impl Iterator for Deliveries<'_> {
    type Item = Delivery;

    fn next(&mut self) -> Option<Delivery> {
        while self.next_day < self.population.config().days
            && self.under_way.peek().is_none_or(|next| next.0.arrival >= self.complete_until())
        {
            self.live_another_day();
        }
        self.under_way.pop().map(|next| next.0)
    }
}
