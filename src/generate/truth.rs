//! What really happened: whose acts did harm and which events show it. For measuring recall and false alerts.

use serde::{Deserialize, Serialize};

use super::population::{Population, Scenario};
use super::{activity, detail};
use crate::domain::Timestamp;
use crate::domain::time::DAY_MS;

/// One person with a story, benign ones included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Truth {
    pub canonical_id: String,
    pub scenario: Scenario,
    /// Whether an alert would be right.
    pub harmful: bool,
    /// First instant of the first day of the story, UTC.
    pub from: Timestamp,
    /// First instant after its last day, UTC.
    pub to: Timestamp,
    /// Vendor ids of the events that show harm, in order of time; empty for a benign story.
    pub harmful_event_ids: Vec<String>,
}

/// The truth about everybody who has a story, in order of number.
pub fn truth(population: &Population) -> Vec<Truth> {
    let start = population.config().start;
    let midnight = |day: u32| start.plus_ms(i64::from(day) * DAY_MS);
    let people = population.people().iter().zip(0u32..);
    people
        .filter_map(|(person, number)| {
            let story = person.story?;
            let mut acts = Vec::new();
            for day in story.first_day..=story.last_day {
                activity::day(population, number, day, &mut acts);
            }
            acts.retain(|act| act.harmful);
            acts.sort_by_key(|act| (act.at, act.id));
            Some(Truth {
                canonical_id: person.canonical_id.clone(),
                scenario: story.scenario,
                harmful: story.scenario.is_harmful(),
                from: midnight(story.first_day),
                to: midnight(story.last_day + 1),
                harmful_event_ids: acts.iter().map(detail::event_id).collect(),
            })
        })
        .collect()
}
