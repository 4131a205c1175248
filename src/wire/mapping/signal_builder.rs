//! From a program's result to signals: every field is read by name, typed, cleaned and bounded. A field this file does
//! not know is an error of the mapping, never copied. Pure: what is missing comes from the record's position.
//! Next: `identity.rs`, which finds the person.

use std::borrow::Cow;
use std::collections::BTreeMap;

use vrl::value::{ObjectMap, Value};

use super::identity::{self, KINDS};
use super::text::{NAME_BYTES_MAX, PATH_BYTES_MAX, clean, clean_id};
use super::{Code, Draft, Outcome, RawMeta, SIGNALS_MAX, Subject, when};
use crate::domain::signal::{Destination, InfoType, Op, RESOURCES_MAX, RawPosition, Resource, Signal};
use crate::domain::{Text, Timestamp};

/// Most labels, information types and attributes of one signal.
const LABELS_MAX: usize = 32;
const INFO_TYPES_MAX: usize = 64;
const ATTRIBUTES_MAX: usize = 32;
/// Longest indicator id.
const INDICATOR_BYTES_MAX: usize = 64;

const OUTCOMES: [&str; 7] = ["allowed", "audited", "warned", "overridden", "blocked", "failed_to_block", "unknown"];
const DESTINATION_KINDS: [&str; 7] = ["domain", "email", "device", "printer", "share", "app", "public_link"];
const DIRECTIONS: [&str; 3] = ["external", "internal", "unknown"];

/// Who made the signals: goes into each of them.
pub struct By<'a> {
    pub source: &'a str,
    pub mapping: &'a str,
    pub origin: &'a str,
}

/// A refusal: the code, and which field.
type Refused = (Code, String);
type Result<T> = std::result::Result<T, Refused>;

/// Reads what a program returned.
pub fn outcome(value: Value, by: &By<'_>, at: &RawMeta<'_>) -> Outcome {
    let Value::Object(mut result) = value else {
        return Outcome::dead(Code::MappingResult, "the program's last value is not an object");
    };
    if let Some(reason) = result.remove("ignored") {
        return match word(&reason) {
            Some(reason) => Outcome::Ignored(Cow::Owned(reason.to_owned())),
            None => Outcome::dead(Code::MappingResult, "`ignored` must be a reason of a-z, 0-9, '_' and '.'"),
        };
    }
    if let Some(reason) = result.remove("dead") {
        let reason = word(&reason).unwrap_or("unnamed").to_owned();
        return Outcome::dead(Code::MappingRejected, reason);
    }
    let Some(Value::Array(items)) = result.remove("signals") else {
        return Outcome::dead(Code::MappingResult, "the result has no `signals`, `ignored` or `dead`");
    };
    drafts(items, by, at).map_or_else(|(code, message)| Outcome::Dead { code, message }, Outcome::Signals)
}

fn drafts(items: Vec<Value>, by: &By<'_>, at: &RawMeta<'_>) -> Result<Vec<Draft>> {
    if items.is_empty() {
        return Err((Code::MappingResult, "`signals` is empty; say `ignored` and why".to_owned()));
    }
    if items.len() > SIGNALS_MAX {
        return Err((Code::SignalTooMany, format!("{} signals", items.len())));
    }
    let mut drafts: Vec<Draft> = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let draft = draft(item, index, by, at).map_err(|(code, what)| (code, format!("signal {index}: {what}")))?;
        if drafts.iter().any(|d| d.signal.signal_id == draft.signal.signal_id) {
            return Err(bad_field("source_event_id"));
        }
        drafts.push(draft);
    }
    Ok(drafts)
}

fn draft(item: Value, index: usize, by: &By<'_>, at: &RawMeta<'_>) -> Result<Draft> {
    let Value::Object(map) = item else { return Err((Code::MappingResult, "not an object".to_owned())) };
    let mut fields = Fields(map);
    let indicator = fields.indicator()?;
    let subject = fields.subject()?;
    let (occurred_at, from_record) = fields.occurred_at(at.timestamp)?;
    let source_event_id = fields.id("source_event_id")?.unwrap_or_else(|| position_id(at, index));
    let op = fields.closed("op", |w| Op::parse(w).is_some())?.unwrap_or_else(|| "create".to_owned());
    let (resources, total) = fields.resources()?;
    let resources_total = fields.integer("resources_total")?.unwrap_or(total).max(total);
    let mut attributes = fields.attributes()?;
    if from_record {
        attributes.insert(Text::borrowed("time_source"), Text::borrowed("record"));
    }
    let signal = Signal {
        signal_id: signal_id(by.source, &source_event_id, &op).into(),
        user_key: Text::default(),
        source: by.source.to_owned().into(),
        source_event_id: source_event_id.into(),
        activity_key: fields.id("activity_key")?.map(Text::from),
        op: op.into(),
        indicator: indicator.into(),
        occurred_at,
        ingested_at: at.timestamp,
        day: Text::default(),
        zone_offset_min: 0,
        outcome: fields.closed("outcome", |w| OUTCOMES.contains(&w))?.map_or(Text::borrowed("unknown"), Text::from),
        count: fields.integer("count")?.unwrap_or(1),
        bytes: fields.integer("bytes")?,
        confidence: fields.permille("confidence")?,
        vendor_severity: fields.text("vendor_severity", NAME_BYTES_MAX)?,
        policy_name: fields.text("policy_name", NAME_BYTES_MAX)?,
        labels: fields.labels()?,
        info_types: fields.info_types()?,
        destination: fields.destination()?,
        is_complete: resources_total <= resources.len() as i64,
        resources,
        resources_total,
        device_id: fields.id("device_id")?.map(Text::from),
        app: fields.text("app", NAME_BYTES_MAX)?,
        ip: fields.text("ip", 64)?,
        justification: fields.text("justification", NAME_BYTES_MAX)?,
        off_hours: fields.boolean("off_hours")?,
        raw: Some(RawPosition { topic: at.topic.to_owned().into(), partition: at.partition.into(), offset: at.offset }),
        source_url: fields.text("source_url", PATH_BYTES_MAX)?,
        mapping: by.mapping.to_owned().into(),
        origin: by.origin.to_owned().into(),
        attributes,
    };
    fields.nothing_left()?;
    Ok(Draft { signal, subject })
}

fn position_id(at: &RawMeta<'_>, index: usize) -> String {
    format!("{}:{}:{}:{index}", at.topic, at.partition, at.offset)
}

/// The same event of the same source makes the same id wherever and whenever it is mapped.
fn signal_id(source: &str, source_event_id: &str, op: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in [source, source_event_id, op] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

fn bad_field(name: &str) -> Refused {
    (Code::SignalBadField, format!("field `{name}`"))
}

/// A reason: short, lower case, without spaces.
fn word(value: &Value) -> Option<&str> {
    let text = value.to_str()?;
    let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'.');
    (!text.is_empty() && text.len() <= 48 && text.bytes().all(valid)).then_some(text)
}

fn is_indicator(text: &str) -> bool {
    text.len() <= INDICATOR_BYTES_MAX
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && !text.ends_with('_')
        && !text.contains("__")
}

/// The fields of one object, taken out by name.
struct Fields(ObjectMap);

impl Fields {
    /// The field, unless missing or null.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|v| !v.is_null())
    }

    fn nothing_left(self) -> Result<()> {
        match self.0.into_iter().next() {
            None => Ok(()),
            // Names come from the mapping, not from the event: safe to print.
            Some((name, _)) => Err(bad_field(name.as_str())),
        }
    }

    /// Text, or an integer as text; empty counts as missing.
    fn string(&mut self, name: &str, tidy: impl Fn(&str) -> String) -> Result<Option<String>> {
        let text = match self.take(name) {
            None => return Ok(None),
            Some(Value::Integer(number)) => number.to_string(),
            Some(value) => tidy(&value.to_str_lossy().ok_or_else(|| bad_field(name))?),
        };
        Ok(Some(text).filter(|t| !t.is_empty()))
    }

    fn text(&mut self, name: &str, max: usize) -> Result<Option<Text<'static>>> {
        Ok(self.string(name, |t| clean(t, max))?.map(Text::from))
    }

    fn id(&mut self, name: &str) -> Result<Option<String>> {
        self.string(name, clean_id)
    }

    fn closed(&mut self, name: &str, known: impl Fn(&str) -> bool) -> Result<Option<String>> {
        match self.string(name, |t| clean(t, NAME_BYTES_MAX))? {
            Some(word) if !known(&word) => Err(bad_field(name)),
            word => Ok(word),
        }
    }

    /// A whole number ≥ 0; digits in a string count, as vendors send both.
    fn integer(&mut self, name: &str) -> Result<Option<i64>> {
        let number = match self.take(name) {
            None => return Ok(None),
            Some(Value::Integer(number)) => Some(number),
            Some(Value::Float(number)) if number.fract() == 0.0 && number.abs() < 9e15 => Some(*number as i64),
            Some(value) => value.to_str().and_then(|t| t.trim().parse().ok()),
        };
        number.filter(|n| *n >= 0).map(Some).ok_or_else(|| bad_field(name))
    }

    fn permille(&mut self, name: &str) -> Result<Option<i64>> {
        match self.integer(name)? {
            Some(number) if number > 1000 => Err(bad_field(name)),
            number => Ok(number),
        }
    }

    fn boolean(&mut self, name: &str) -> Result<Option<bool>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Boolean(flag)) => Ok(Some(flag)),
            Some(_) => Err(bad_field(name)),
        }
    }

    fn object(&mut self, name: &str) -> Result<Option<Fields>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields(map))),
            Some(_) => Err(bad_field(name)),
        }
    }

    fn list(&mut self, name: &str) -> Result<Vec<Value>> {
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => Ok(items),
            Some(_) => Err(bad_field(name)),
        }
    }

    fn indicator(&mut self) -> Result<String> {
        let indicator = self.take("indicator").and_then(|v| v.to_str().map(str::to_owned));
        indicator.filter(|i| is_indicator(i)).ok_or_else(|| (Code::SignalBadIndicator, "field `indicator`".to_owned()))
    }

    /// One candidate or a list of them: the first that is somebody acted.
    fn subject(&mut self) -> Result<Subject> {
        let candidates = match self.take("subject") {
            None => Vec::new(),
            Some(Value::Array(items)) => items,
            Some(one) => vec![one],
        };
        for candidate in candidates {
            let Value::Object(map) = candidate else { return Err(bad_field("subject")) };
            if let Some(subject) = Fields(map).somebody()? {
                return Ok(subject);
            }
        }
        Err((Code::SignalNoUser, "field `subject`".to_owned()))
    }

    fn somebody(mut self) -> Result<Option<Subject>> {
        let kind = self.take("kind").ok_or_else(|| bad_field("subject.kind"))?;
        let kind = kind.to_str().and_then(|k| KINDS.into_iter().find(|known| *known == k));
        let kind = kind.ok_or_else(|| bad_field("subject.kind"))?;
        let value = self.id("value")?;
        self.nothing_left()?;
        Ok(value.and_then(|v| identity::canonical(&v)).map(|value| Subject { kind, value }))
    }

    /// The event's time, or the record's where the event has none; and whether it is the record's.
    fn occurred_at(&mut self, record: Timestamp) -> Result<(Timestamp, bool)> {
        let refuse = |bad: when::Bad| {
            let code = if bad == when::Bad::Sentinel { Code::SignalTimeSentinel } else { Code::SignalBadTime };
            (code, "field `occurred_at`".to_owned())
        };
        let given = match self.take("occurred_at") {
            Some(Value::Integer(ms)) => when::accept(ms),
            Some(Value::Timestamp(time)) => when::accept(time.timestamp_millis()),
            Some(value) => match value.to_str().map(str::trim) {
                Some("") => return record_time(record),
                Some(text) => when::parse(text),
                None => Err(when::Bad::Unreadable),
            },
            None => return record_time(record),
        };
        given.map(|time| (time, false)).map_err(refuse)
    }

    fn labels(&mut self) -> Result<Vec<Text<'static>>> {
        let mut labels = Vec::new();
        for item in self.list("labels")?.into_iter().filter(|v| !v.is_null()) {
            let label = clean(item.to_str().ok_or_else(|| bad_field("labels"))?, NAME_BYTES_MAX).to_lowercase();
            if !label.is_empty() && labels.len() < LABELS_MAX && !labels.iter().any(|l: &Text<'_>| *l == label.as_str())
            {
                labels.push(Text::from(label));
            }
        }
        Ok(labels)
    }

    fn info_types(&mut self) -> Result<Vec<InfoType<'static>>> {
        let mut types: Vec<InfoType<'static>> = Vec::new();
        for item in self.list("info_types")? {
            let Value::Object(map) = item else { return Err(bad_field("info_types")) };
            let mut fields = Fields(map);
            let Some(name) = fields.text("name", NAME_BYTES_MAX)? else { continue };
            let count = fields.integer("count")?.unwrap_or(1);
            let confidence = fields.permille("confidence")?.unwrap_or(1000);
            fields.nothing_left()?;
            // Found in several places of one content: counts add up, the surest finding stands.
            if let Some(known) = types.iter_mut().find(|t| t.name == name) {
                known.count = known.count.saturating_add(count);
                known.confidence = known.confidence.max(confidence);
            } else if types.len() < INFO_TYPES_MAX {
                types.push(InfoType { name, count, confidence });
            }
        }
        Ok(types)
    }

    fn destination(&mut self) -> Result<Option<Destination<'static>>> {
        let Some(mut fields) = self.object("destination")? else { return Ok(None) };
        let kind = fields.closed("kind", |w| DESTINATION_KINDS.contains(&w))?;
        let value = fields.text("value", NAME_BYTES_MAX)?;
        let direction = fields.closed("direction", |w| DIRECTIONS.contains(&w))?;
        fields.nothing_left()?;
        let Some(value) = value else { return Ok(None) };
        let kind = kind.ok_or_else(|| bad_field("destination.kind"))?;
        let direction = direction.map_or(Text::borrowed("unknown"), Text::from);
        Ok(Some(Destination { kind: kind.into(), value: Text::from(value.to_lowercase()), direction }))
    }

    /// The first `RESOURCES_MAX`, and how many there were.
    fn resources(&mut self) -> Result<(Vec<Resource<'static>>, i64)> {
        let items = self.list("resources")?;
        let mut resources = Vec::with_capacity(items.len().min(RESOURCES_MAX));
        let mut total = 0;
        for item in items {
            let Value::Object(map) = item else { return Err(bad_field("resources")) };
            if let Some(resource) = resource(Fields(map))? {
                total += 1;
                if resources.len() < RESOURCES_MAX {
                    resources.push(resource);
                }
            }
        }
        Ok((resources, total))
    }

    fn attributes(&mut self) -> Result<BTreeMap<Text<'static>, Text<'static>>> {
        let Some(fields) = self.object("attributes")? else { return Ok(BTreeMap::new()) };
        let mut attributes = BTreeMap::new();
        for (name, value) in fields.0.into_iter().filter(|(_, v)| !v.is_null()) {
            let text = match value {
                Value::Integer(number) => number.to_string(),
                Value::Boolean(flag) => flag.to_string(),
                value => clean(value.to_str().ok_or_else(|| bad_field("attributes"))?, NAME_BYTES_MAX),
            };
            if !is_indicator(name.as_str()) {
                return Err(bad_field("attributes"));
            }
            // One place is kept for `time_source`.
            if !text.is_empty() && attributes.len() + 1 < ATTRIBUTES_MAX {
                attributes.insert(Text::from(String::from(name)), Text::from(text));
            }
        }
        Ok(attributes)
    }
}

fn record_time(record: Timestamp) -> Result<(Timestamp, bool)> {
    let usable = when::accept(record.0).map_err(|_| (Code::SignalNoTime, "field `occurred_at`".to_owned()))?;
    Ok((usable, true))
}

/// A resource needs an id; a path or a name stands in for it. Without any of them there is none.
fn resource(mut fields: Fields) -> Result<Option<Resource<'static>>> {
    let id = fields.id("id")?;
    let name = fields.text("name", NAME_BYTES_MAX)?;
    let path = fields.text("path", PATH_BYTES_MAX)?;
    let kind = fields.text("kind", 64)?.unwrap_or(Text::borrowed("file"));
    let bytes = fields.integer("bytes")?;
    let label = fields.text("label", NAME_BYTES_MAX)?;
    let sha256 = fields.text("sha256", 64)?;
    fields.nothing_left()?;
    let stand_in = path.as_ref().or(name.as_ref()).map(|t| clean_id(t));
    let Some(id) = id.or(stand_in) else { return Ok(None) };
    Ok(Some(Resource { id: id.into(), name, path, kind, bytes, label, sha256 }))
}
