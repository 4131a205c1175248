//! The parts of a user's state as bytes, field by field. Every struct is taken apart without `..`, so that a new field
//! does not compile until it is written and read here.

use smallvec::{Array, SmallVec};

use super::bytes::{Reader, Writer};
use super::state::Error;
use crate::domain::alert::{Status, Window};
use crate::domain::{Day, Level, Timestamp};
use crate::engine::state::{
    AlertState, Change, DaySegment, Directory, Head, Insight, Published, Seen, SignalEntry, Spent,
};

const CHANGES: [Change; 8] = [
    Change::None,
    Change::Opened,
    Change::EvidenceAdded,
    Change::Severity,
    Change::Status,
    Change::Late,
    Change::Retracted,
    Change::Frozen,
];

/// The part of a head that every user has: chain, six times, first day, score, five levels, flags.
const HEAD_BYTES: usize = 16 + 6 * 8 + 4 + 4 + 5 + 1;
const HAS_FIRST_DAY: u8 = 1;
const HAS_BELOW_SINCE: u8 = 2;
const HAS_NEXT_FALL: u8 = 4;
const HAS_DIRECTORY: u8 = 8;
/// Alerts, spent evidence, commands or triggers follow.
const HAS_LISTS: u8 = 16;

/// Appends a head.
pub fn write_head(w: &mut Writer<'_>, head: &Head) {
    let Head {
        user_rev,
        seq,
        chain,
        first_day,
        last_signal_at,
        directory,
        published,
        alerts,
        spent,
        commands,
        triggers,
        limits,
    } = head;
    let Published {
        score_milli,
        level,
        previous_level,
        level_changed_at,
        enforcement,
        previous_enforcement,
        below_since,
        as_of,
        valid_until,
        next_fall_at,
        next_level,
    } = published;
    let lists = !(alerts.is_empty() && spent.is_empty() && commands.is_empty() && triggers.is_empty());
    let flag = |bit: u8, set: bool| if set { bit } else { 0 };
    let mut fixed = [0; HEAD_BYTES];
    fixed[..16].copy_from_slice(chain);
    let times = [
        *last_signal_at,
        *level_changed_at,
        *as_of,
        *valid_until,
        below_since.unwrap_or_default(),
        next_fall_at.unwrap_or_default(),
    ];
    for (place, at) in fixed[16..64].chunks_exact_mut(8).zip(times) {
        place.copy_from_slice(&at.0.to_le_bytes());
    }
    fixed[64..68].copy_from_slice(&first_day.map_or(0, |day| day.0).to_le_bytes());
    fixed[68..72].copy_from_slice(&(*score_milli as i32).to_le_bytes());
    let levels = [level, previous_level, enforcement, previous_enforcement, next_level];
    fixed[72..77].copy_from_slice(&levels.map(|level| *level as u8));
    fixed[77] = flag(HAS_FIRST_DAY, first_day.is_some())
        | flag(HAS_BELOW_SINCE, below_since.is_some())
        | flag(HAS_NEXT_FALL, next_fall_at.is_some())
        | flag(HAS_DIRECTORY, directory.is_some())
        | flag(HAS_LISTS, lists);
    w.fixed(&fixed);
    w.i64(*user_rev);
    w.i64(*seq);
    w.u64((*limits).into());
    if let Some(directory) = directory {
        write_directory(w, directory);
    }
    if lists {
        w.u64(alerts.len() as u64);
        alerts.iter().for_each(|a| write_alert(w, a));
        w.u64(spent.len() as u64);
        spent.iter().for_each(|s| write_spent(w, s));
        for list in [commands, triggers] {
            w.u64(list.len() as u64);
            for (hash, at) in list {
                w.fixed(&hash.to_le_bytes());
                w.i64(at.0);
            }
        }
    }
}

/// Reads a head.
pub fn read_head(r: &mut Reader<'_>) -> Result<Head, Error> {
    let fixed: [u8; HEAD_BYTES] = r.fixed()?;
    let time = |n: usize| Timestamp(i64::from_le_bytes(part(&fixed, 16 + 8 * n)));
    let has = |bit: u8| fixed[77] & bit != 0;
    let [level, previous_level, enforcement, previous_enforcement, next_level] = part::<5>(&fixed, 72).map(level_of);
    let mut head = Head {
        user_rev: r.i64()?,
        seq: r.i64()?,
        limits: r.u32()?,
        chain: part(&fixed, 0),
        first_day: has(HAS_FIRST_DAY).then(|| Day(i32::from_le_bytes(part(&fixed, 64)))),
        last_signal_at: time(0),
        published: Published {
            score_milli: i32::from_le_bytes(part(&fixed, 68)).into(),
            level: level?,
            previous_level: previous_level?,
            level_changed_at: time(1),
            enforcement: enforcement?,
            previous_enforcement: previous_enforcement?,
            below_since: has(HAS_BELOW_SINCE).then(|| time(4)),
            as_of: time(2),
            valid_until: time(3),
            next_fall_at: has(HAS_NEXT_FALL).then(|| time(5)),
            next_level: next_level?,
        },
        ..Head::default()
    };
    if has(HAS_DIRECTORY) {
        head.directory = Some(read_directory(r)?);
    }
    if has(HAS_LISTS) {
        head.alerts = list(r, read_alert)?;
        head.spent = list(r, read_spent)?;
        head.commands = list(r, read_stamped)?;
        head.triggers = list(r, read_stamped)?;
    }
    Ok(head)
}

/// `N` bytes of a longer array; places are constants.
#[inline]
fn part<const N: usize>(bytes: &[u8; HEAD_BYTES], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("N bytes")
}

fn write_directory(w: &mut Writer<'_>, directory: &Directory) {
    let Directory { version, announced, last_day, high_impact, service_account, groups } = directory;
    w.i64(*version);
    w.option(announced.map(|t| t.0));
    w.option(last_day.map(|t| t.0));
    w.u8(u8::from(*high_impact) | u8::from(*service_account) << 1);
    w.u64(groups.len() as u64);
    groups.iter().for_each(|g| w.fixed(&g.to_le_bytes()));
}

fn read_directory(r: &mut Reader<'_>) -> Result<Directory, Error> {
    let (version, announced, last_day) = (r.i64()?, r.option()?.map(Timestamp), r.option()?.map(Timestamp));
    let bits = r.u8()?;
    let groups = list(r, |r| Ok(u64::from_le_bytes(r.fixed()?)))?;
    Ok(Directory { version, announced, last_day, high_impact: bits & 1 != 0, service_account: bits & 2 != 0, groups })
}

fn write_alert(w: &mut Writer<'_>, alert: &AlertState) {
    let AlertState {
        id,
        number,
        policy,
        status,
        revision,
        window,
        severity,
        severity_peak,
        score_milli,
        evidence,
        predecessor,
        change,
        expires_at,
    } = alert;
    let Window { opened_at, last_activity_at, closes_at, max_at, frozen } = window;
    w.fixed(id);
    w.i64(*number);
    w.fixed(&policy.to_le_bytes());
    w.u8(Status::ALL.iter().position(|s| s == status).expect("every status is listed") as u8);
    w.i64(*revision);
    for at in [opened_at, last_activity_at, closes_at, max_at, expires_at] {
        w.i64(at.0);
    }
    w.u8(u8::from(*frozen) | u8::from(predecessor.is_some()) << 1);
    w.fixed(&predecessor.unwrap_or_default()[..if predecessor.is_some() { 16 } else { 0 }]);
    w.u8(*severity as u8);
    w.u8(*severity_peak as u8);
    w.i64(*score_milli);
    w.u8(CHANGES.iter().position(|c| c == change).expect("every change is listed") as u8);
    w.u64(evidence.len() as u64);
    let mut before = 0;
    for (day, code) in evidence {
        w.i64(i64::from(day.0) - before);
        w.u64((*code).into());
        before = day.0.into();
    }
}

fn read_alert(r: &mut Reader<'_>) -> Result<AlertState, Error> {
    let (id, number, policy) = (r.fixed()?, r.i64()?, u64::from_le_bytes(r.fixed()?));
    let status = *Status::ALL.get(usize::from(r.u8()?)).ok_or(Error::Damaged { what: "status" })?;
    let revision = r.i64()?;
    let mut at = [Timestamp(0); 5];
    for at in &mut at {
        *at = Timestamp(r.i64()?);
    }
    let [opened_at, last_activity_at, closes_at, max_at, expires_at] = at;
    let bits = r.u8()?;
    let predecessor = if bits & 2 != 0 { Some(r.fixed()?) } else { None };
    let (severity, severity_peak, score_milli) = (read_level(r)?, read_level(r)?, r.i64()?);
    let change = *CHANGES.get(usize::from(r.u8()?)).ok_or(Error::Damaged { what: "change" })?;
    let mut before = 0_i32;
    let evidence = list(r, |r| {
        before = before.checked_add(r.i32()?).ok_or(Error::Damaged { what: "day" })?;
        Ok((Day(before), r.u16()?))
    })?;
    Ok(AlertState {
        id,
        number,
        policy,
        status,
        revision,
        window: Window { opened_at, last_activity_at, closes_at, max_at, frozen: bits & 1 != 0 },
        severity,
        severity_peak,
        score_milli,
        evidence,
        predecessor,
        change,
        expires_at,
    })
}

fn write_spent(w: &mut Writer<'_>, spent: &Spent) {
    let Spent { policy, day, code, count, magnitude_milli, bytes } = spent;
    w.fixed(&policy.to_le_bytes());
    w.i64(day.0.into());
    w.u64((*code).into());
    w.u64((*count).into());
    w.u64(*magnitude_milli);
    w.u64(*bytes);
}

fn read_spent(r: &mut Reader<'_>) -> Result<Spent, Error> {
    Ok(Spent {
        policy: u64::from_le_bytes(r.fixed()?),
        day: Day(r.i32()?),
        code: r.u16()?,
        count: r.u32()?,
        magnitude_milli: r.u64()?,
        bytes: r.u64()?,
    })
}

/// Appends the domains and devices seen.
pub fn write_seen(w: &mut Writer<'_>, seen: &Seen) {
    let Seen { domains, devices } = seen;
    for list in [domains, devices] {
        w.u64(list.len() as u64);
        for (hash, day) in list {
            w.fixed(&hash.to_le_bytes());
            w.i64(day.0.into());
        }
    }
}

/// Reads the domains and devices seen.
pub fn read_seen(r: &mut Reader<'_>) -> Result<Seen, Error> {
    let mut one = || short(r, |r| Ok((u32::from_le_bytes(r.fixed()?), Day(r.i32()?))));
    Ok(Seen { domains: one()?, devices: one()? })
}

/// Appends a day; times are relative to its start.
pub fn write_day(w: &mut Writer<'_>, segment: &DaySegment) {
    let DaySegment { day, insights, signals, hours } = segment;
    w.i64(day.0.into());
    w.u64(insights.len() as u64);
    insights.iter().for_each(|i| write_insight(w, i, day.start().0));
    w.u64(signals.len() as u64);
    signals.iter().for_each(|s| write_signal(w, s, day.start().0));
    w.u64(hours.len() as u64);
    for (hour, count) in hours {
        w.u8(*hour);
        w.u64((*count).into());
    }
}

/// Reads a day in place of what a segment held, into the same memory.
pub fn read_day(r: &mut Reader<'_>, segment: &mut DaySegment) -> Result<(), Error> {
    let DaySegment { day, insights, signals, hours } = segment;
    *day = Day(r.i32()?);
    let start = day.start().0;
    refill(r, insights, |r| read_insight(r, start))?;
    refill(r, signals, |r| read_signal(r, start))?;
    *hours = short(r, |r| Ok((hour(r.u8()?)?, r.u32()?)))?;
    Ok(())
}

fn hour(number: u8) -> Result<u8, Error> {
    if number < 24 { Ok(number) } else { Err(Error::Damaged { what: "hour" }) }
}

/// A time next to the day it belongs to takes four bytes.
fn near(at: Timestamp, start: i64) -> Option<i32> {
    i32::try_from(at.0.wrapping_sub(start)).ok()
}

/// An insight: flags (`FAR`), how many names, code, hours and time; then counters; then the names.
const INSIGHT_BYTES: usize = 12;

fn write_insight(w: &mut Writer<'_>, insight: &Insight, start: i64) {
    let Insight { code, revision, count, magnitude_milli, bytes, hours, last_at, destinations, devices } = insight;
    let last = near(*last_at, start);
    let mut fixed = [0; INSIGHT_BYTES];
    fixed[0] = if last.is_none() { FAR } else { 0 };
    fixed[1] = (destinations.len() | devices.len() << 4) as u8;
    fixed[2..4].copy_from_slice(&code.to_le_bytes());
    fixed[4..8].copy_from_slice(&hours.to_le_bytes());
    fixed[8..12].copy_from_slice(&last.unwrap_or(0).to_le_bytes());
    w.fixed(&fixed);
    if last.is_none() {
        w.long(last_at.0);
    }
    w.u64((*revision).into());
    w.u64((*count).into());
    w.u64(*magnitude_milli);
    w.u64(*bytes);
    for (hash, count) in destinations.iter().chain(devices) {
        w.fixed(&hash.to_le_bytes());
        w.u64((*count).into());
    }
}

fn read_insight(r: &mut Reader<'_>, start: i64) -> Result<Insight, Error> {
    let [flags, names, c0, c1, h0, h1, h2, h3, t0, t1, t2, t3]: [u8; INSIGHT_BYTES] = r.fixed()?;
    let last_at = match flags & FAR != 0 {
        true => r.long()?,
        false => start.wrapping_add(i32::from_le_bytes([t0, t1, t2, t3]).into()),
    };
    let mut insight = Insight {
        code: u16::from_le_bytes([c0, c1]),
        hours: u32::from_le_bytes([h0, h1, h2, h3]),
        last_at: Timestamp(last_at),
        revision: r.u32()?,
        count: r.u32()?,
        magnitude_milli: r.u64()?,
        bytes: r.u64()?,
        ..Insight::default()
    };
    for (list, length) in [(&mut insight.destinations, names & 15), (&mut insight.devices, names >> 4)] {
        for _ in 0..length {
            list.push((u32::from_le_bytes(r.fixed()?), r.u32()?));
        }
    }
    Ok(insight)
}

const HAS_ACTIVITY: u8 = 1;
const HAS_DESTINATION: u8 = 2;
const HAS_DEVICE: u8 = 4;
const HAS_BYTES: u8 = 8;
const HAS_REVISION: u8 = 16;
const RETRACTED: u8 = 32;
/// The time does not fit four bytes: it follows whole.
const FAR: u8 = 64;
/// The count is not one: it follows.
const MANY: u8 = 128;

/// A signal: id, flags, hour, code, factor and time; then what its flags name, in their order.
const SIGNAL_BYTES: usize = 18;

fn write_signal(w: &mut Writer<'_>, entry: &SignalEntry, start: i64) {
    let SignalEntry {
        id,
        activity,
        code,
        factor_milli,
        count,
        bytes,
        hour,
        destination,
        device,
        at,
        revised_at,
        retracted,
    } = entry;
    let close = near(*at, start);
    let flag = |bit: u8, set: bool| if set { bit } else { 0 };
    let mut fixed = [0; SIGNAL_BYTES];
    fixed[..8].copy_from_slice(&id.to_le_bytes());
    fixed[8] = flag(HAS_ACTIVITY, *activity != 0)
        | flag(HAS_DESTINATION, *destination != 0)
        | flag(HAS_DEVICE, *device != 0)
        | flag(HAS_BYTES, *bytes != 0)
        | flag(HAS_REVISION, revised_at.0 != 0)
        | flag(RETRACTED, *retracted)
        | flag(FAR, close.is_none())
        | flag(MANY, *count != 1);
    fixed[9] = *hour;
    fixed[10..12].copy_from_slice(&code.to_le_bytes());
    fixed[12..14].copy_from_slice(&factor_milli.to_le_bytes());
    fixed[14..].copy_from_slice(&close.unwrap_or(0).to_le_bytes());
    w.fixed(&fixed);
    if *activity != 0 {
        w.fixed(&activity.to_le_bytes());
    }
    if *destination != 0 {
        w.fixed(&destination.to_le_bytes());
    }
    if *device != 0 {
        w.fixed(&device.to_le_bytes());
    }
    if *bytes != 0 {
        w.u64(*bytes);
    }
    if revised_at.0 != 0 {
        w.long(revised_at.0);
    }
    if close.is_none() {
        w.long(at.0);
    }
    if *count != 1 {
        w.u64((*count).into());
    }
}

#[inline]
fn read_signal(r: &mut Reader<'_>, start: i64) -> Result<SignalEntry, Error> {
    let id = u64::from_le_bytes(r.fixed()?);
    let [bits, hours, c0, c1, f0, f1, t0, t1, t2, t3]: [u8; SIGNAL_BYTES - 8] = r.fixed()?;
    let has = |bit: u8| bits & bit != 0;
    let mut entry = SignalEntry {
        id,
        code: u16::from_le_bytes([c0, c1]),
        factor_milli: u16::from_le_bytes([f0, f1]),
        count: 1,
        hour: hour(hours)?,
        at: Timestamp(start.wrapping_add(i32::from_le_bytes([t0, t1, t2, t3]).into())),
        retracted: has(RETRACTED),
        ..SignalEntry::default()
    };
    if has(HAS_ACTIVITY) {
        entry.activity = u64::from_le_bytes(r.fixed()?);
    }
    if has(HAS_DESTINATION) {
        entry.destination = u32::from_le_bytes(r.fixed()?);
    }
    if has(HAS_DEVICE) {
        entry.device = u32::from_le_bytes(r.fixed()?);
    }
    if has(HAS_BYTES) {
        entry.bytes = r.u64()?;
    }
    if has(HAS_REVISION) {
        entry.revised_at = Timestamp(r.long()?);
    }
    if has(FAR) {
        entry.at = Timestamp(r.long()?);
    }
    if has(MANY) {
        entry.count = r.u32()?;
    }
    Ok(entry)
}

fn read_stamped(r: &mut Reader<'_>) -> Result<(u64, Timestamp), Error> {
    Ok((u64::from_le_bytes(r.fixed()?), Timestamp(r.i64()?)))
}

fn read_level(r: &mut Reader<'_>) -> Result<Level, Error> {
    level_of(r.u8()?)
}

fn level_of(number: u8) -> Result<Level, Error> {
    Level::ALL.get(usize::from(number)).copied().ok_or(Error::Damaged { what: "level" })
}

fn list<'a, T>(r: &mut Reader<'a>, mut one: impl FnMut(&mut Reader<'a>) -> Result<T, Error>) -> Result<Vec<T>, Error> {
    let length = r.length()?;
    let mut items = Vec::with_capacity(length);
    for _ in 0..length {
        items.push(one(r)?);
    }
    Ok(items)
}

/// A list in place of another, in the same memory.
fn refill<'a, T>(
    r: &mut Reader<'a>,
    items: &mut Vec<T>,
    mut one: impl FnMut(&mut Reader<'a>) -> Result<T, Error>,
) -> Result<(), Error> {
    let length = r.length()?;
    items.clear();
    // One more: what a touched user gets next.
    items.reserve(length + 1);
    for _ in 0..length {
        items.push(one(r)?);
    }
    Ok(())
}

/// A list that usually stays off the heap.
fn short<'a, A: Array>(
    r: &mut Reader<'a>,
    mut one: impl FnMut(&mut Reader<'a>) -> Result<A::Item, Error>,
) -> Result<SmallVec<A>, Error> {
    let length = r.length()?;
    let mut items = SmallVec::with_capacity(length);
    for _ in 0..length {
        items.push(one(r)?);
    }
    Ok(items)
}
