//! The population's ordinary activity as if it happened now, without an end: for a feed that is watched. Nobody's
//! story goes on here, and far more happens than in a real day. Ids follow from the instants asked for, so a feed that
//! is begun again repeats none.

use super::activity::{self, Act, Kind};
use super::population::Population;
use super::prng::{Prng, mix};
use super::vendor::{self, RawEvent};
use crate::domain::Timestamp;
use crate::domain::time::SECOND_MS;

/// Events of now, one after another.
pub struct Live<'p> {
    population: &'p Population,
    prng: Prng,
    /// The next day to take acts from.
    day: u32,
    /// What is left of the day before it.
    acts: Vec<Act>,
    sent: u64,
}

impl<'p> Live<'p> {
    /// A feed that begins at an instant.
    pub fn new(population: &'p Population, begin: Timestamp) -> Live<'p> {
        let prng = Prng::of(&[population.config().seed, 5, begin.0 as u64]);
        Live { population, prng, day: 0, acts: Vec::new(), sent: 0 }
    }

    /// One more event, of now.
    pub fn event(&mut self, now: Timestamp) -> RawEvent {
        while self.acts.is_empty() {
            self.live_a_day();
        }
        let at = self.prng.below(self.acts.len() as u64) as usize;
        let mut act = self.acts.swap_remove(at);
        self.sent += 1;
        act.id = mix(act.id ^ mix(now.0 as u64) ^ self.sent);
        act.at = Timestamp(now.0 - now.0.rem_euclid(SECOND_MS));
        vendor::event(self.population, &act, now)
    }

    fn live_a_day(&mut self) {
        for (number, person) in self.population.people().iter().enumerate() {
            // Stories are of the month that was generated; a backup does not happen at any time of the day.
            if person.story.is_none() && !person.service_account {
                activity::day(self.population, number as u32, self.day, &mut self.acts);
            }
        }
        // An undo takes back an event of a known id.
        self.acts.retain(|act| act.kind != Kind::DlpEmailUndo);
        self.day = (self.day + 1) % super::DAYS_MAX;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::generate::Config;

    fn lines(begin: i64, count: i64) -> Vec<RawEvent> {
        let population = Population::new(&Config { users: 30, ..Config::default() }).unwrap();
        let mut live = Live::new(&population, Timestamp(begin));
        (0..count).map(|n| live.event(Timestamp(begin + n))).collect()
    }

    #[test]
    fn events_are_of_now_and_repeat_no_id() {
        let (begin, count) = (1_770_000_000_500, 3_000);
        let (first, again) = (lines(begin, count), lines(begin + count, count));
        let all: BTreeSet<&str> = first.iter().chain(&again).map(|event| event.json.as_str()).collect();
        assert_eq!(all.len() as i64, 2 * count);
        assert!(first.iter().all(|event| event.at.0 % SECOND_MS == 0 && event.arrival.0 - event.at.0 < SECOND_MS));
        assert_eq!(first, lines(begin, count), "the same instants give the same events");
    }
}
