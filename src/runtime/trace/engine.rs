//! What the engine made of a signal: its chronology entries, the score after it, the alerts it is evidence of; or the
//! dead letter, or the earlier signal that it repeats.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::{Coordinate, End, Found, SLACK_MS, Step, Tracer};
use crate::domain::alert::Alert;
use crate::domain::chronology::ChronologyEntry;
use crate::domain::partitioner::partition_of;
use crate::domain::score::RiskScore;
use crate::domain::{Text, Timestamp};
use crate::runtime::log::Span;
use crate::runtime::overview::committed;
use crate::runtime::ports::Error;
use crate::topology::Topic;
use crate::wire::headers;

/// Newest chronology records among which the first count of a repeated signal is looked for.
const REPEATS_MAX: i64 = 200_000;

/// What later steps need of a signal's entries.
struct Entered {
    user_rev: i64,
    seq: i64,
    written: Timestamp,
    alert_ids: Vec<String>,
}

impl Tracer<'_> {
    /// Follows one signal through the engine.
    pub(super) fn engine(&mut self, found: Found, signal: usize) -> Result<(), Error> {
        let mut found = found;
        let home = partition_of(found.user_key.as_bytes(), self.config.kafka.partitions);
        if self.is_waiting(&found)? {
            return Ok(());
        }
        if home != found.at.partition && !found.is_moved && !found.user_key.is_empty() {
            match self.moved(&found, home)? {
                Some(moved) => {
                    let text = format!("to the partition of its user, {home}");
                    let (coordinate, at) = (Some(moved.at.to_string()), Some(moved.written));
                    self.step(Step { signal, stage: "moved", text, coordinate, at, ..Step::default() });
                    found = moved;
                    if self.is_waiting(&found)? {
                        return Ok(());
                    }
                }
                None => return self.unaccounted(&found, signal),
            }
        }
        match self.entries(&found, signal)? {
            Some(entered) => self.consequences(&found, &entered, signal),
            None => self.unaccounted(&found, signal),
        }
    }

    fn is_waiting(&mut self, found: &Found) -> Result<bool, Error> {
        let input = (Topic::RiskSignals.name(), found.at.partition);
        let position = committed(&mut self.log, &[input], &self.clock)?.pop().flatten();
        let why = match position {
            Some(p) if p.offset > found.at.offset => return Ok(false),
            Some(p) => {
                format!("the engine stands at offset {}, {} before it", p.offset, found.at.offset + 1 - p.offset)
            }
            None => format!("the engine has not begun with partition {}", found.at.partition),
        };
        self.end(End::Waiting, why);
        Ok(true)
    }

    /// The signal after it was moved to its user's partition.
    fn moved(&mut self, from: &Found, home: i32) -> Result<Option<Found>, Error> {
        let origin = from.at.header();
        let mut is_it = |_: &mut _, record: &crate::runtime::ports::RecordRef<'_>| {
            headers::is_rerouted(record.headers)
                && headers::find(record.headers, headers::ORIGIN) == Some(origin.as_bytes())
        };
        let since = from.written.plus_ms(-SLACK_MS);
        Ok(self.signals_between(&[home], since, 1, &mut is_it)?.pop())
    }

    /// Every chronology entry the signal caused. They are written together, so the first one of another cause ends it.
    fn entries(&mut self, found: &Found, signal: usize) -> Result<Option<Entered>, Error> {
        let spans = self.spans(Topic::ActivityChronology, &[found.at.partition], found.written.plus_ms(-SLACK_MS))?;
        let (mut steps, mut entered): (Vec<Step>, Option<Entered>) = (Vec::new(), None);
        let Tracer { log, decoder, .. } = self;
        log.scan(Topic::ActivityChronology.name(), &spans, &mut |record| {
            if headers::find(record.headers, headers::ORIGIN) != Some(found.origin.as_bytes()) {
                return if entered.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
            }
            let value = record.value.unwrap_or_default();
            let Ok(entry) = decoder.decode::<ChronologyEntry<'_>>(Topic::ActivityChronology, value, record.headers)
            else {
                return ControlFlow::Continue(());
            };
            // What was due before the signal came is published beside it; it is not its doing.
            if entry.envelope.cause.kind != "signal" {
                return ControlFlow::Continue(());
            }
            let entered = entered.get_or_insert_with(|| Entered {
                user_rev: entry.envelope.user_rev,
                seq: entry.seq,
                written: record.timestamp,
                alert_ids: Vec::new(),
            });
            for id in &entry.alert_ids {
                if !entered.alert_ids.iter().any(|known| *known == id.as_str()) {
                    entered.alert_ids.push(id.to_string());
                }
            }
            steps.push(entry_step(&entry, Coordinate::of(&record).to_string(), signal));
            ControlFlow::Continue(())
        })?;
        self.trace.steps.extend(steps);
        Ok(entered)
    }

    fn consequences(&mut self, found: &Found, entered: &Entered, signal: usize) -> Result<(), Error> {
        self.score(found, entered, signal)?;
        let mut seen: Vec<String> = Vec::new();
        for topic in [Topic::Alerts, Topic::ShadowAlerts] {
            if seen.len() < entered.alert_ids.len() {
                self.alerts(topic, found, entered, signal, &mut seen)?;
            }
        }
        if let Some(number) = seen.first() {
            self.end(End::Alert, format!("it is evidence of alert {number}"));
        } else if entered.alert_ids.is_empty() {
            self.end(End::Scored, "it counts in the user's score; no policy's alert took it as evidence");
        } else {
            let why = "it is evidence of an alert below the lowest severity its policy publishes, or compacted away";
            self.end(End::Scored, why);
        }
        Ok(())
    }

    /// The first published score that takes the signal in.
    fn score(&mut self, found: &Found, entered: &Entered, signal: usize) -> Result<(), Error> {
        let spans = self.spans(Topic::RiskScores, &[found.at.partition], entered.written.plus_ms(-SLACK_MS))?;
        let mut step = None;
        let Tracer { log, decoder, .. } = self;
        log.scan(Topic::RiskScores.name(), &spans, &mut |record| {
            let Some(value) = record.value.filter(|_| record.key == Some(found.user_key.as_bytes())) else {
                return ControlFlow::Continue(());
            };
            match decoder.decode::<RiskScore<'_>>(Topic::RiskScores, value, record.headers) {
                Ok(score) if score.envelope.user_rev >= entered.user_rev => {
                    step = Some(Step {
                        signal,
                        stage: "score",
                        text: format!("{} {}", points(score.score_milli), score.level),
                        coordinate: Some(Coordinate::of(&record).to_string()),
                        at: Some(record.timestamp),
                        ids: BTreeMap::from([("event_id", score.envelope.event_id.to_string())]),
                        ..Step::default()
                    });
                    ControlFlow::Break(())
                }
                _ => ControlFlow::Continue(()),
            }
        })?;
        self.trace.steps.extend(step);
        Ok(())
    }

    /// The first record of each alert after the signal.
    fn alerts(
        &mut self,
        topic: Topic,
        found: &Found,
        entered: &Entered,
        signal: usize,
        seen: &mut Vec<String>,
    ) -> Result<(), Error> {
        let spans = self.spans(topic, &[found.at.partition], entered.written.plus_ms(-SLACK_MS))?;
        let mut left: Vec<&str> = entered.alert_ids.iter().map(String::as_str).collect();
        let mut steps = Vec::new();
        let Tracer { log, decoder, .. } = self;
        log.scan(topic.name(), &spans, &mut |record| {
            // `alerts` are keyed by alert, `shadow-alerts` by user.
            let key = record.key.unwrap_or_default();
            let may_be = left.iter().any(|id| id.as_bytes() == key) || key == found.user_key.as_bytes();
            if let Some(value) = record.value.filter(|_| may_be)
                && let Ok(alert) = decoder.decode::<Alert<'_>>(topic, value, record.headers)
                && alert.chronology_seq >= entered.seq
                && let Some(n) = left.iter().position(|id| *id == alert.alert_id.as_str())
            {
                left.swap_remove(n);
                let shadow = topic == Topic::ShadowAlerts;
                steps.push(alert_step(&alert, shadow, Coordinate::of(&record).to_string(), record.timestamp, signal));
                seen.push(alert.alert_no.to_string());
            }
            if left.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        self.trace.steps.extend(steps);
        Ok(())
    }

    /// Taken, and no entry: a dead letter, a repeat, or aged out.
    fn unaccounted(&mut self, found: &Found, signal: usize) -> Result<(), Error> {
        if let Some((entry, coordinate)) = self.counted_before(found)? {
            let text = format!("the same signal was counted before, as {entry}");
            self.end(End::Duplicate, text.clone());
            let coordinate = Some(coordinate);
            self.step(Step { signal, stage: "chronology", text, coordinate, ..Step::default() });
            return Ok(());
        }
        let otherwise = "the engine took it, and neither a chronology entry nor a dead letter is left of it: it was a \
                         repeat, or they have aged out";
        self.dead_letter(&found.at, found.written.plus_ms(-SLACK_MS), signal, otherwise)
    }

    /// The entry of the signal that this one repeats, among the newest of the partition.
    fn counted_before(&mut self, found: &Found) -> Result<Option<(String, String)>, Error> {
        if found.user_key.is_empty() {
            return Ok(None);
        }
        let topic = Topic::ActivityChronology.name();
        let partition = partition_of(found.user_key.as_bytes(), self.config.kafka.partitions);
        let (start, until) = (self.log.starts(topic, &[partition])?[0], self.log.ends(topic, &[partition])?[0]);
        let span = Span { partition, from: start.max(until - REPEATS_MAX), until };
        let mut first = None;
        let Tracer { log, decoder, .. } = self;
        log.scan(topic, &[span], &mut |record| {
            if record.key != Some(found.user_key.as_bytes()) {
                return ControlFlow::Continue(());
            }
            let value = record.value.unwrap_or_default();
            match decoder.decode::<ChronologyEntry<'_>>(Topic::ActivityChronology, value, record.headers) {
                Ok(e) if e.signal.as_ref().is_some_and(|s| s.id.as_str() == found.signal_id) => {
                    first = Some((e.entry_id.to_string(), Coordinate::of(&record).to_string()));
                    ControlFlow::Break(())
                }
                _ => ControlFlow::Continue(()),
            }
        })?;
        Ok(first)
    }
}

fn entry_step(entry: &ChronologyEntry<'_>, coordinate: String, signal: usize) -> Step {
    let mut ids = BTreeMap::from([("entry_id", entry.entry_id.to_string())]);
    if let Some(insight) = &entry.insight {
        ids.insert("insight_id", insight.id.to_string());
    }
    if !entry.alert_ids.is_empty() {
        ids.insert("alert_ids", entry.alert_ids.iter().map(Text::as_str).collect::<Vec<_>>().join(" "));
    }
    let moves = format!("{} -> {}", points(entry.score_before_milli), points(entry.score_after_milli));
    let flags = match entry.flags.is_empty() {
        true => String::new(),
        false => format!(" [{}]", entry.flags.iter().map(Text::as_str).collect::<Vec<_>>().join(" ")),
    };
    Step {
        signal,
        stage: "chronology",
        text: format!("{}: {}; score {moves}{flags}", entry.kind, entry.headline),
        coordinate: Some(coordinate),
        at: Some(entry.envelope.recorded_at),
        ids,
        ..Step::default()
    }
}

fn alert_step(alert: &Alert<'_>, shadow: bool, coordinate: String, at: Timestamp, signal: usize) -> Step {
    let ids = [("alert_id", &alert.alert_id), ("alert_no", &alert.alert_no), ("policy_id", &alert.policy_id)];
    let shadow = if shadow { " (shadow)" } else { "" };
    Step {
        signal,
        stage: "alert",
        text: format!(
            "{}{shadow} revision {}, {}: {}, severity {}, score {}",
            alert.alert_no,
            alert.revision,
            alert.change,
            alert.policy_title,
            alert.severity,
            points(alert.score_milli)
        ),
        coordinate: Some(coordinate),
        at: Some(at),
        ids: ids.into_iter().map(|(name, id)| (name, id.to_string())).collect(),
        ..Step::default()
    }
}

/// Thousandths with one decimal, rounded down like every score that is shown.
fn points(milli: i64) -> String {
    format!("{}.{}", milli / 1_000, milli % 1_000 / 100)
}
