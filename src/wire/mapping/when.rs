//! Reading the time of an event: ISO 8601 with 0–9 fraction digits, `T` or blank, `Z`, `±hh:mm`, `±hhmm`, or no zone
//! (UTC); or milliseconds. Other formats are declared in the mapping, never guessed here.

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
    fn seconds_given_as_milliseconds_are_a_sentinel_or_out_of_range() {
        assert_eq!(accept(1_700_000_000), Err(Bad::OutOfRange));
        assert_eq!(accept(0), Err(Bad::Sentinel));
        assert_eq!(accept(i64::MAX), Err(Bad::OutOfRange));
        assert_eq!(accept(i64::MIN), Err(Bad::Sentinel));
    }
}
