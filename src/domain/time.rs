//! Instants and calendar days as plain integers. Nothing here reads a clock.

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

/// One second in milliseconds.
pub const SECOND_MS: i64 = 1_000;
/// One hour in milliseconds.
pub const HOUR_MS: i64 = 3_600_000;
/// One day in milliseconds.
pub const DAY_MS: i64 = 86_400_000;

/// The earliest event time we accept: 2000-01-01. Earlier values are sentinels ("never"), not events.
pub const EVENT_TIME_MIN: Timestamp = Timestamp(946_684_800_000);
/// The latest event time we accept: 2106-02-07, where 32-bit seconds end.
pub const EVENT_TIME_MAX: Timestamp = Timestamp(4_294_967_295_000);

impl Timestamp {
    /// This instant moved by `ms`, saturating.
    pub const fn plus_ms(self, ms: i64) -> Timestamp {
        Timestamp(self.0.saturating_add(ms))
    }

    /// The start of this instant's hour; scores move on whole hours.
    pub const fn hour(self) -> i64 {
        self.0.div_euclid(HOUR_MS)
    }

    /// The calendar day of this instant at an offset from UTC.
    pub const fn day_at(self, zone_offset_min: i64) -> Day {
        Day((self.0 + zone_offset_min * 60_000).div_euclid(DAY_MS) as i32)
    }

    /// The hour of the local day, 0..24.
    pub const fn local_hour(self, zone_offset_min: i64) -> u8 {
        ((self.0 + zone_offset_min * 60_000).rem_euclid(DAY_MS) / HOUR_MS) as u8
    }

    /// RFC 3339 in UTC with milliseconds.
    pub fn rfc3339(self) -> String {
        chrono::DateTime::from_timestamp_millis(self.0)
            .map(|t| t.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
            .unwrap_or_else(|| format!("{} ms", self.0))
    }
}

/// A calendar day: days since 1970-01-01.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Day(pub i32);

impl Day {
    /// Parses `YYYY-MM-DD`; anything else, or a date outside 2000..=2106, is `None`.
    pub fn parse(text: &str) -> Option<Day> {
        let bytes = text.as_bytes();
        if bytes.len() != 10 || bytes[4] != b'-' || bytes[7] != b'-' {
            return None;
        }
        let number = |range: std::ops::Range<usize>| -> Option<i32> {
            bytes[range].iter().try_fold(0, |n, b| b.is_ascii_digit().then(|| n * 10 + i32::from(b - b'0')))
        };
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        if !(2000..=2106).contains(&year) {
            return None;
        }
        let date = chrono::NaiveDate::from_ymd_opt(year, month as u32, day as u32)?;
        Some(Day(date.signed_duration_since(chrono::NaiveDate::default()).num_days() as i32))
    }

    /// `YYYY-MM-DD`.
    pub fn iso(self) -> String {
        let epoch = chrono::NaiveDate::default();
        epoch
            .checked_add_signed(chrono::Duration::days(self.0.into()))
            .map(|d| d.format("%Y-%m-%d").to_string())
            .unwrap_or_else(|| format!("day {}", self.0))
    }

    /// The first instant of the day, in UTC.
    pub const fn start(self) -> Timestamp {
        Timestamp(self.0 as i64 * DAY_MS)
    }

    /// The first instant after the day, in UTC. Decay of the day's insights starts here, whatever the person's
    /// zone: a day has one end, so the score does not depend on which signal of the day came first.
    pub const fn end(self) -> Timestamp {
        Timestamp((self.0 as i64 + 1) * DAY_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_parse_and_print() {
        for (text, day) in
            [("1999-12-31", None), ("2026-02-30", None), ("2026-1-01", None), ("2106-02-07", Some(49_710))]
        {
            assert_eq!(Day::parse(text).map(|d| d.0), day, "{text}");
        }
        for n in Day::parse("2000-01-01").unwrap().0..=Day::parse("2106-12-31").unwrap().0 {
            assert_eq!(Day::parse(&Day(n).iso()), Some(Day(n)));
        }
        for text in ["2100-02-29", "2025-02-29", "2024-04-31", "2024-00-10", "2024-13-01", "2024-01-00", "2024-0a-01"] {
            assert_eq!(Day::parse(text), None, "{text}");
        }
        assert!(Day::parse("2000-02-29").is_some() && Day::parse("2104-02-29").is_some());
        let day = Day::parse("2026-11-24").unwrap();
        assert_eq!(day.iso(), "2026-11-24");
        assert_eq!(day.end().day_at(0), Day(day.0 + 1));
        assert_eq!(day.start().day_at(-60), Day(day.0 - 1));
        assert_eq!(day.start().local_hour(-60), 23);
    }
}
