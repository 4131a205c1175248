//! Reading the time of an event: ISO 8601 with 0–9 fraction digits, `T` or blank, `Z`, `±hh:mm`, `±hhmm`, or no zone
//! (UTC); or milliseconds. Other forms are declared in the mapping (`Form`), never guessed here.

use crate::domain::Timestamp;
use crate::domain::time::{DAY_MS, EVENT_TIME_MAX, EVENT_TIME_MIN};

/// Why a time is no event time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// Not a time in an accepted form.
    Unreadable,
    /// A time outside what we accept.
    OutOfRange,
    /// A stand-in for "never".
    Sentinel,
}

/// 1601-01-01, where Windows file times begin.
const WINDOWS_EPOCH_MS: i64 = -11_644_473_600_000;
/// 0002-01-01: everything before is the year 1 or 0.
const YEAR_TWO_MS: i64 = -62_104_060_800_000;

/// Accepts a time within the range, naming sentinels.
pub fn accept(ms: i64) -> Result<Timestamp, Bad> {
    let sentinel = ms < YEAR_TWO_MS || (0..DAY_MS).contains(&ms) || (0..DAY_MS).contains(&(ms - WINDOWS_EPOCH_MS));
    match Timestamp(ms) {
        _ if sentinel => Err(Bad::Sentinel),
        t if (EVENT_TIME_MIN..=EVENT_TIME_MAX).contains(&t) => Ok(t),
        _ => Err(Bad::OutOfRange),
    }
}

/// Reads text as a time and accepts it.
pub fn parse(text: &str) -> Result<Timestamp, Bad> {
    accept(parse_ms(text.trim()).ok_or(Bad::Unreadable)?)
}

/// How a vendor writes a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// A count of units since 1970; so many make one second.
    Count { per_second: i64 },
    /// ISO 8601.
    Iso,
    /// A pattern of `%` fields; without fields of the day's time it is midnight.
    Pattern { text: String, zoned: bool },
}

impl Form {
    /// The form a word or a pattern names.
    pub fn parse(text: &str) -> Option<Form> {
        Some(match text {
            "s" => Form::Count { per_second: 1 },
            "ms" => Form::Count { per_second: 1_000 },
            "us" => Form::Count { per_second: 1_000_000 },
            "ns" => Form::Count { per_second: 1_000_000_000 },
            "iso" => Form::Iso,
            pattern => {
                use chrono::format::{Item, StrftimeItems};
                let fields = StrftimeItems::new(pattern);
                let is_field = |item: &Item<'_>| matches!(item, Item::Numeric(..) | Item::Fixed(_));
                if !pattern.contains('%')
                    || !fields.clone().any(|i| is_field(&i))
                    || fields.clone().any(|i| i == Item::Error)
                {
                    return None;
                }
                Form::Pattern { text: pattern.to_owned(), zoned: pattern.contains("%z") || pattern.contains("%:z") }
            }
        })
    }

    /// Milliseconds of a count; a count in a form that is none means milliseconds.
    pub fn of_number(&self, number: i64) -> Option<i64> {
        match self {
            Form::Count { per_second } if *per_second >= 1_000 => Some(number / (per_second / 1_000)),
            Form::Count { .. } => number.checked_mul(1_000),
            Form::Iso | Form::Pattern { .. } => Some(number),
        }
    }

    /// Milliseconds of a count with a fraction.
    pub fn of_float(&self, number: f64) -> Option<i64> {
        let per_second = if let Form::Count { per_second } = self { *per_second as f64 } else { 1_000.0 };
        let ms = (number / per_second * 1_000.0).round();
        (ms.abs() < 1e15).then_some(ms as i64)
    }

    /// Milliseconds of a text in this form; `zone_min` is the offset of a text that names none.
    pub fn of_text(&self, text: &str, zone_min: i64) -> Option<i64> {
        match self {
            Form::Count { .. } => match text.parse::<i64>() {
                Ok(number) => self.of_number(number),
                Err(_) => self.of_float(text.parse::<f64>().ok().filter(|n| n.is_finite())?),
            },
            Form::Iso => {
                let zoned = text.get(19..)?.contains(['Z', 'z', '+', '-', 'U']);
                Some(parse_ms(text)? - if zoned { 0 } else { zone_min * 60_000 })
            }
            Form::Pattern { text: pattern, zoned: true } => {
                Some(chrono::DateTime::parse_from_str(text, pattern).ok()?.timestamp_millis())
            }
            Form::Pattern { text: pattern, zoned: false } => {
                let local = chrono::NaiveDateTime::parse_from_str(text, pattern)
                    .ok()
                    .or_else(|| chrono::NaiveDate::parse_from_str(text, pattern).ok()?.and_hms_opt(0, 0, 0))?;
                Some(local.and_utc().timestamp_millis() - zone_min * 60_000)
            }
        }
    }
}

/// Minutes east of UTC of an offset such as `+05:30`, `-0800` or `Z`.
pub fn offset_minutes(text: &str) -> Option<i64> {
    if text.is_empty() { None } else { zone_minutes(text.as_bytes()) }
}

fn parse_ms(text: &str) -> Option<i64> {
    let b = text.as_bytes();
    if b.len() < 19 || !text.is_ascii() {
        return None;
    }
    let separators = b[4] == b'-' && b[7] == b'-' && matches!(b[10], b'T' | b't' | b' ') && b[13] == b':';
    if !separators || b[16] != b':' {
        return None;
    }
    let date = chrono::NaiveDate::from_ymd_opt(digits(&b[0..4])? as i32, digits(&b[5..7])?, digits(&b[8..10])?)?;
    let (hour, minute, second) = (digits(&b[11..13])?, digits(&b[14..16])?, digits(&b[17..19])?);
    // A leap second is the last millisecond of its minute; later days must not move.
    let time = match second {
        60 => chrono::NaiveTime::from_hms_milli_opt(hour, minute, 59, 999)?,
        _ => chrono::NaiveTime::from_hms_opt(hour, minute, second)?,
    };
    let (fraction_ms, rest) = fraction(&b[19..])?;
    let whole = date.and_time(time).and_utc().timestamp_millis();
    Some(whole + fraction_ms - zone_minutes(rest)? * 60_000)
}

fn digits(bytes: &[u8]) -> Option<u32> {
    bytes.iter().try_fold(0u32, |n, b| b.is_ascii_digit().then(|| n * 10 + u32::from(b - b'0')))
}

fn fraction(rest: &[u8]) -> Option<(i64, &[u8])> {
    let [b'.' | b',', tail @ ..] = rest else { return Some((0, rest)) };
    let len = tail.iter().take_while(|b| b.is_ascii_digit()).count();
    if len == 0 || len > 9 {
        return None;
    }
    let ms = (0..3).fold(0, |ms, n| ms * 10 + i64::from(tail[..len].get(n).map_or(0, |b| b - b'0')));
    Some((ms, &tail[len..]))
}

fn zone_minutes(rest: &[u8]) -> Option<i64> {
    let (sign, digits_at) = match rest {
        [] | [b'Z' | b'z'] => return Some(0),
        [b' ', b'U', b'T', b'C'] => return Some(0),
        [b'+', tail @ ..] => (1, tail),
        [b'-', tail @ ..] => (-1, tail),
        _ => return None,
    };
    let (hours, minutes) = match digits_at {
        [h1, h2] => (digits(&[*h1, *h2])?, 0),
        [h1, h2, m1, m2] | [h1, h2, b':', m1, m2] => (digits(&[*h1, *h2])?, digits(&[*m1, *m2])?),
        _ => return None,
    };
    (hours <= 18 && minutes < 60).then_some(sign * (i64::from(hours) * 60 + i64::from(minutes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_forms_vendors_use() {
        for (text, expect) in [
            ("2022-12-09T19:03:11.954000Z", Ok("2022-12-09T19:03:11.954Z")),
            ("2020-02-24T20:11:15", Ok("2020-02-24T20:11:15.000Z")),
            ("2020-02-24 20:11:15.5", Ok("2020-02-24T20:11:15.500Z")),
            ("2020-02-24T20:11:15+0130", Ok("2020-02-24T18:41:15.000Z")),
            ("2020-02-24T20:11:15.123456789-05:00", Ok("2020-02-25T01:11:15.123Z")),
            ("2016-12-31T23:59:60Z", Ok("2016-12-31T23:59:59.999Z")),
            ("0001-01-01T00:00:00", Err(Bad::Sentinel)),
            ("1601-01-01T00:00:00Z", Err(Bad::Sentinel)),
            ("1970-01-01T00:00:00Z", Err(Bad::Sentinel)),
            ("1999-12-31T23:59:59Z", Err(Bad::OutOfRange)),
            ("2106-02-08T00:00:00Z", Err(Bad::OutOfRange)),
            ("9999-12-31T23:59:59Z", Err(Bad::OutOfRange)),
            ("2020-02-30T00:00:00Z", Err(Bad::Unreadable)),
            ("2020-02-24T25:00:00Z", Err(Bad::Unreadable)),
            ("24.02.2020 20:11:15", Err(Bad::Unreadable)),
            ("2020-02-24T20:11:15.Z", Err(Bad::Unreadable)),
            ("", Err(Bad::Unreadable)),
            ("２０２０-02-24T20:11:15", Err(Bad::Unreadable)),
        ] {
            assert_eq!(parse(text).map(|t| t.rfc3339()), expect.map(str::to_owned), "{text}");
        }
    }

    #[test]
    fn declared_forms() {
        let at = |form: &str, text: &str, zone: &str| {
            let form = Form::parse(form).unwrap();
            form.of_text(text, offset_minutes(zone).unwrap()).map(|ms| Timestamp(ms).rfc3339())
        };
        for (form, text, zone, expect) in [
            ("s", "1767323045", "Z", Some("2026-01-02T03:04:05.000Z")),
            ("s", "1767323045.25", "Z", Some("2026-01-02T03:04:05.250Z")),
            ("ms", "1767323045006", "Z", Some("2026-01-02T03:04:05.006Z")),
            ("us", "1767323045006999", "Z", Some("2026-01-02T03:04:05.006Z")),
            ("ns", "1767323045006999999", "Z", Some("2026-01-02T03:04:05.006Z")),
            ("iso", "2026-01-02T03:04:05", "+05:30", Some("2026-01-01T21:34:05.000Z")),
            ("iso", "2026-01-02T03:04:05Z", "+05:30", Some("2026-01-02T03:04:05.000Z")),
            ("%d/%m/%Y %H:%M", "02/01/2026 03:04", "Z", Some("2026-01-02T03:04:00.000Z")),
            ("%m/%d/%Y, %I:%M:%S%.f %p", "01/02/2026, 03:04:05.006 PM", "-05:00", Some("2026-01-02T20:04:05.006Z")),
            ("%a %b %d %H:%M:%S %Y", "Fri Jan  2 03:04:05 2026", "Z", Some("2026-01-02T03:04:05.000Z")),
            ("%B %d, %Y %I:%M:%S %p", "January 2, 2026 12:04:05 AM", "Z", Some("2026-01-02T00:04:05.000Z")),
            ("%d %b %Y %H:%M:%S %z", "2 Jan 2026 03:04:05 +0100", "Z", Some("2026-01-02T02:04:05.000Z")),
            ("%d.%m.%Y", "02.01.2026", "+01:00", Some("2026-01-01T23:00:00.000Z")),
            ("%d/%m/%Y", "31/02/2026", "Z", None),
            ("s", "soon", "Z", None),
            ("s", "NaN", "Z", None),
            ("iso", "é", "Z", None),
        ] {
            assert_eq!(at(form, text, zone).as_deref(), expect, "{form} {text}");
        }
        assert_eq!(Form::parse("us").unwrap().of_number(1_767_323_045_006_999), Some(1_767_323_045_006));
        assert_eq!(Form::parse("s").unwrap().of_number(i64::MAX), None);
        for no in ["", "seconds", "%", "%Q"] {
            assert_eq!(Form::parse(no), None, "{no}");
        }
        assert_eq!(offset_minutes("Europe/Berlin"), None);
    }

    #[test]
    fn seconds_given_as_milliseconds_are_a_sentinel_or_out_of_range() {
        assert_eq!(accept(1_700_000_000), Err(Bad::OutOfRange));
        assert_eq!(accept(0), Err(Bad::Sentinel));
        assert_eq!(accept(i64::MAX), Err(Bad::OutOfRange));
        assert_eq!(accept(i64::MIN), Err(Bad::Sentinel));
    }
}
