//! What the demo has come to, read from the topics as any consumer could: the ledger, alerts, and the riskiest people
//! with a reason in one line. Next: `tell.rs`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use serde::Serialize;

use crate::cli::{self, Failure};
use crate::config::Config;
use crate::domain::alert::{Alert, Status};
use crate::domain::score::RiskScore;
use crate::generate::Population;
use crate::runtime::client::Connection;
use crate::runtime::log::{KafkaLog, Span};
use crate::runtime::lookup::{Found, Known, Lookup};
use crate::runtime::overview::{self, Overview};
use crate::runtime::ports::RecordRef;
use crate::topology::Topic;
use crate::verify::Report;
use crate::wire::avro::{Decoder, Schemas};
use crate::wire::mapping::identity::Pseudonym;

/// Indicators that a reason names.
const INDICATORS_NAMED: usize = 2;

/// The answer of `demo --output json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// Vendor events taken by the map role.
    pub events_in: i64,
    /// The engine's ledger: `signals_in` is the sum of the six that follow.
    pub signals_in: i64,
    pub scored: i64,
    pub unscored: i64,
    pub duplicates: i64,
    pub late: i64,
    pub rerouted: i64,
    pub dead_letters: i64,
    /// Vendor events that could not be mapped.
    pub events_dead: i64,
    /// Insights that count in a score.
    pub insights: i64,
    pub alerts_total: i64,
    pub alerts_open: i64,
    pub users: i64,
    pub highest: Option<Highest>,
    /// Between a replay of the journal and everything that was written.
    pub differences: i64,
    /// Nothing differs, and nothing had to be left out.
    pub verified: bool,
}

/// The riskiest user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Highest {
    pub user_key: String,
    pub score_milli: i64,
    pub level: String,
}

/// One of the riskiest people, for the terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    pub name: String,
    pub score_milli: i64,
    pub level: String,
    pub why: String,
}

/// Reads the topics of a configured pipeline.
pub struct Reader<'a> {
    config: &'a Config,
    connection: Connection,
    schemas: Arc<Schemas>,
}

impl<'a> Reader<'a> {
    /// Connects to nothing yet.
    pub fn new(config: &'a Config) -> Result<Reader<'a>, Failure> {
        Ok(Reader { config, connection: cli::connection(config)?, schemas: Schemas::built_in() })
    }

    /// Lags and ledgers.
    pub fn overview(&self) -> Result<Overview, Failure> {
        Ok(overview::read(self.config, &self.connection, &self.schemas)?)
    }

    /// Everything but the verification, and all scores, highest first.
    pub fn standing(&self) -> Result<(Standing, Vec<Highest>), Failure> {
        let mut standing = Standing::default();
        ledgers(&mut standing, &self.overview()?);
        let scores = self.scores(&mut standing)?;
        standing.highest = scores.first().cloned();
        let open = self.alerts()?;
        standing.alerts_total = open.len() as i64;
        standing.alerts_open = open.values().filter(|open| **open).count() as i64;
        Ok((standing, scores))
    }

    fn scores(&self, standing: &mut Standing) -> Result<Vec<Highest>, Failure> {
        let mut latest: BTreeMap<String, (Highest, i64)> = BTreeMap::new();
        self.table(Topic::RiskScores, |decoder, record, key| {
            let read = |value| decoder.decode::<RiskScore<'_>>(Topic::RiskScores, value, record.headers).ok();
            let Some(score) = record.value.and_then(read) else { return drop(latest.remove(key)) };
            let insights = score.contributions.iter().map(|c| c.insights).sum();
            let (score_milli, level) = (score.score_milli, score.level.to_string());
            latest.insert(key.to_owned(), (Highest { user_key: key.to_owned(), score_milli, level }, insights));
        })?;
        standing.insights = latest.values().map(|(_, insights)| insights).sum();
        let mut scores: Vec<Highest> = latest.into_values().map(|(score, _)| score).collect();
        scores.sort_by(|a, b| b.score_milli.cmp(&a.score_milli).then_with(|| a.user_key.cmp(&b.user_key)));
        Ok(scores)
    }

    /// Every alert, and whether somebody has still to deal with it.
    fn alerts(&self) -> Result<BTreeMap<String, bool>, Failure> {
        let mut alerts = BTreeMap::new();
        self.table(Topic::Alerts, |decoder, record, key| {
            let read = |value| decoder.decode::<Alert<'_>>(Topic::Alerts, value, record.headers).ok();
            let Some(alert) = record.value.and_then(read) else {
                alerts.remove(key);
                return;
            };
            let is_open = Status::ALL.iter().any(|s| s.is_open() && s.as_str() == &*alert.status);
            alerts.insert(key.to_owned(), is_open);
        })?;
        Ok(alerts)
    }

    /// Every record of a topic with a text for a key, in order.
    fn table(&self, topic: Topic, mut each: impl FnMut(&mut Decoder, &RecordRef<'_>, &str)) -> Result<(), Failure> {
        let mut log = KafkaLog::new(&self.connection, format!("{}-demo", self.config.app.id))?;
        let mut decoder = Decoder::new(&self.schemas);
        let all: Vec<i32> = (0..self.config.kafka.partitions).collect();
        let (starts, ends) = (log.starts(topic.name(), &all)?, log.ends(topic.name(), &all)?);
        let bounds = starts.into_iter().zip(ends);
        let spans: Vec<Span> =
            all.into_iter().zip(bounds).map(|(partition, (from, until))| Span { partition, from, until }).collect();
        log.scan(topic.name(), &spans, &mut |record| {
            if let Some(Ok(key)) = record.key.map(std::str::from_utf8) {
                each(&mut decoder, &record, key);
            }
            ControlFlow::Continue(())
        })?;
        Ok(())
    }

    /// The first of `scores` as people, each with a reason.
    pub fn suspects(
        &self,
        population: &Population,
        pseudonym: &Pseudonym,
        scores: &[Highest],
    ) -> Result<Vec<Suspect>, Failure> {
        let people = population.people().iter();
        let people: BTreeMap<String, &str> =
            people.map(|p| (pseudonym.user_key(&p.canonical_id), p.canonical_id.as_str())).collect();
        let mut lookup = Lookup::new(self.config, &self.connection, &self.schemas, None)?;
        let mut suspects = Vec::new();
        for Highest { user_key, score_milli, level } in scores {
            let why = match lookup.find(user_key)? {
                Found::User(known) => reason(&known),
                Found::Unknown | Found::NoPolicies { .. } => String::new(),
            };
            let name = people.get(user_key).map_or(user_key.as_str(), |name| name).to_owned();
            suspects.push(Suspect { name, score_milli: *score_milli, level: level.clone(), why });
        }
        Ok(suspects)
    }
}

impl Standing {
    /// Adds what verification found.
    pub fn verified_by(&mut self, report: &Report) {
        self.differences = report.differences;
        self.verified = report.differences == 0 && report.unchecked.is_empty();
    }
}

fn ledgers(standing: &mut Standing, overview: &Overview) {
    let row = |name: &str| overview.engine.ledger.get(name).copied().unwrap_or(0);
    let dead = |ledger: &BTreeMap<String, i64>| -> i64 {
        ledger.iter().filter(|(name, _)| name.starts_with("dead.")).map(|(_, n)| n).sum()
    };
    standing.events_in = overview.map.ledger.get("in").copied().unwrap_or(0);
    standing.events_dead = dead(&overview.map.ledger);
    standing.signals_in = row("in");
    (standing.scored, standing.unscored) = (row("scored"), row("unscored"));
    (standing.duplicates, standing.late, standing.rerouted) = (row("duplicate"), row("late"), row("rerouted"));
    standing.dead_letters = dead(&overview.engine.ledger);
    standing.users = overview.partitions.iter().map(|p| p.users).sum();
}

/// "Copied files to removable media (27), Downloaded files (14); leaving x1.5; 2 alerts open": the terms of `explain`,
/// rounded down.
fn reason(known: &Known) -> String {
    let explanation = known.explain(None);
    let indicators = explanation.indicators.iter().take(INDICATORS_NAMED);
    let indicators: Vec<String> = indicators
        .map(|line| {
            let title = known.title(&line.indicator);
            let title = if title.is_empty() { &line.indicator } else { title };
            format!("{title} ({})", line.share_milli / 1_000)
        })
        .collect();
    let mut parts = vec![indicators.join(", ")];
    let times = |milli: i64| format!("{}.{}", milli / 1_000, milli % 1_000 / 100);
    parts.extend(explanation.boosters.iter().map(|b| format!("{} x{}", b.kind, times(b.factor_milli))));
    let open = known.alerts().filter(|(alert, _)| alert.status.is_open()).count();
    if open > 0 {
        parts.push(format!("{open} alert{} open", if open == 1 { "" } else { "s" }));
    }
    parts.join("; ")
}
