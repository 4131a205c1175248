//! A user's state as bytes: the values of `user-state`. Each value begins with the format number and the commit that
//! wrote it, so that the newer of two copies can be told. The newest day lies with the head, because both change with
//! every signal; it gets a record of its own when another day comes after it.

use std::sync::Arc;

use super::bytes::{Reader, Writer, push_number};
use super::state_parts as parts;
use crate::domain::Day;
use crate::engine::User;
use crate::engine::state::{Changes, DaySegment, Head, LIMIT_BYTES, STATE_BYTES_MAX, Seen};

/// Format number of every value written.
pub const FORMAT: u8 = 2;

/// A user as resident bytes, shared with the writer of the copy. Values are exactly those of the topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserBytes {
    /// With the newest day.
    pub head: Option<Arc<[u8]>>,
    pub seen: Option<Arc<[u8]>>,
    /// The days before the newest, ascending.
    pub days: Vec<(Day, Arc<[u8]>)>,
}

/// A part of a user's state with a key of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Segment {
    Head,
    Seen,
    Day(Day),
}

/// What to write of a user: a part and its bytes, `None` for a tombstone.
pub type Records = Vec<(Segment, Option<Arc<[u8]>>)>;

/// Takes one record: a part and its bytes, `None` for a tombstone.
pub type Each<'a> = dyn FnMut(Segment, Option<&Arc<[u8]>>) + 'a;

/// Why bytes are not a state we can read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("state of format {found} cannot be read: this binary reads {FORMAT}")]
    Format { found: u8 },
    #[error("state is damaged: {what}")]
    Damaged { what: &'static str },
}

/// Appends the key of a segment: `<user_key>`, `<user_key>|seen` or `<user_key>|<day number>`.
pub fn write_key(user_key: &str, segment: Segment, out: &mut Vec<u8>) {
    out.extend_from_slice(user_key.as_bytes());
    match segment {
        Segment::Head => {}
        Segment::Seen => out.extend_from_slice(b"|seen"),
        Segment::Day(day) => {
            out.push(b'|');
            push_number(out, day.0.into());
        }
    }
}

/// Longest user key we accept, in bytes.
pub const USER_KEY_BYTES_MAX: usize = 256;

/// Whether a user's keys can be told from all others: not empty, not too long, no bar (it separates the segment) and no
/// control character (`\0…` keys are the partition's own).
pub fn is_user_key(text: &str) -> bool {
    let fits = !text.is_empty() && text.len() <= USER_KEY_BYTES_MAX;
    fits && !text.bytes().any(|b| b == b'|' || b.is_ascii_control())
}

/// Reads a key; `None` for `\0…` keys and anything that is not a user's.
pub fn parse_key(key: &[u8]) -> Option<(&str, Segment)> {
    let key = std::str::from_utf8(key).ok().filter(|k| !k.is_empty() && !k.starts_with('\0'))?;
    match key.rsplit_once('|') {
        None => Some((key, Segment::Head)),
        Some((user, "seen")) => Some((user, Segment::Seen)),
        Some((user, day)) => day.parse().ok().map(|d| (user, Segment::Day(Day(d)))),
    }
}

/// The commit that wrote a value.
pub fn commit_no(value: &[u8]) -> Result<i64, Error> {
    open(value).map(|(commit_no, _)| commit_no)
}

/// Decodes a whole user.
pub fn decode(bytes: &UserBytes) -> Result<User, Error> {
    let mut user = User::default();
    decode_into(bytes, &mut user)?;
    Ok(user)
}

/// `decode` in place of another user, into the same memory.
pub fn decode_into(bytes: &UserBytes, user: &mut User) -> Result<(), Error> {
    user.changes.clear();
    user.seen = bytes.seen.as_deref().map_or(Ok(Seen::default()), |seen| body(seen, parts::read_seen))?;
    for (n, (day, value)) in bytes.days.iter().enumerate() {
        let segment = segment(&mut user.days, n);
        body(value, |r| parts::read_day(r, segment))?;
        if segment.day != *day {
            return Err(Error::Damaged { what: "a day under another day's key" });
        }
    }
    let older = bytes.days.len();
    let Some(head) = &bytes.head else {
        user.head = Head::default();
        user.days.truncate(older);
        return Ok(());
    };
    let newest = body(head, |r| {
        user.head = parts::read_head(r)?;
        let newest = r.u8()? != 0;
        if newest {
            parts::read_day(r, segment(&mut user.days, older))?;
        }
        Ok(newest)
    })?;
    user.days.truncate(older + usize::from(newest));
    match user.days.is_sorted_by(|a, b| a.day < b.day) {
        true => Ok(()),
        false => Err(Error::Damaged { what: "days out of order" }),
    }
}

/// The segment at a place, made if there is none.
fn segment(days: &mut Vec<DaySegment>, n: usize) -> &mut DaySegment {
    if n == days.len() {
        days.push(DaySegment::default());
    }
    &mut days[n]
}

/// Decodes the head alone.
pub fn decode_head(value: &[u8]) -> Result<Head, Error> {
    parts::read_head(&mut open(value)?.1)
}

/// Encodes what changed, clears the change marks, and returns the new resident bytes with the records to write
/// (`None` is a tombstone). Unchanged segments share their bytes with `previous`.
pub fn encode_changed(user: &mut User, previous: &UserBytes, commit_no: i64) -> (UserBytes, Records) {
    let mut records = Vec::new();
    let now = encode_changed_in(&mut Vec::new(), user, previous, commit_no, &mut |segment, value| {
        records.push((segment, value.cloned()));
    });
    (now, records)
}

/// `encode_changed` with a buffer of the caller's, whose content is lost, and each record handed over as it is made.
pub fn encode_changed_in(
    buffer: &mut Vec<u8>,
    user: &mut User,
    previous: &UserBytes,
    commit_no: i64,
    each: &mut Each<'_>,
) -> UserBytes {
    let mut now = encode_parts(buffer, user, previous, commit_no);
    while size(&now) > STATE_BYTES_MAX && shed(user) {
        now = encode_parts(buffer, user, previous, commit_no);
    }
    let changes = &user.changes;
    let older = user.days.len().saturating_sub(1);
    for (day, _) in previous.days.iter().filter(|(day, _)| now.days.binary_search_by_key(day, |d| d.0).is_err()) {
        each(Segment::Day(*day), None);
    }
    for (n, segment) in user.days[..older].iter().enumerate() {
        let (day, value) = &now.days[n];
        let known = || previous.days.binary_search_by_key(day, |d| d.0).is_ok();
        if changes.days.binary_search(&segment.day).is_ok() || !known() {
            each(Segment::Day(*day), Some(value));
        }
    }
    if changes.seen && (now.seen.is_some() || previous.seen.is_some()) {
        each(Segment::Seen, now.seen.as_ref());
    }
    if is_head_written(user) && (now.head.is_some() || previous.head.is_some()) {
        each(Segment::Head, now.head.as_ref());
    }
    user.changes.clear();
    now
}

/// Whether the head, or the day that lies with it, must be written.
fn is_head_written(user: &User) -> bool {
    let Changes { head, days, dropped, .. } = &user.changes;
    *head || !dropped.is_empty() || user.days.last().is_some_and(|newest| days.binary_search(&newest.day).is_ok())
}

/// The user's resident bytes with the changed parts made anew. An empty head or seen has no bytes: a tombstone.
fn encode_parts(buffer: &mut Vec<u8>, user: &User, previous: &UserBytes, commit_no: i64) -> UserBytes {
    let (newest, older) = user.days.split_last().map_or((None, &[][..]), |(newest, older)| (Some(newest), older));
    let head = match is_head_written(user) {
        true if user.head == Head::default() => {
            assert!(newest.is_none(), "a user with a day has a head");
            None
        }
        true => Some(value(buffer, commit_no, |w| {
            parts::write_head(w, &user.head);
            w.u8(u8::from(newest.is_some()));
            newest.into_iter().for_each(|day| parts::write_day(w, day));
        })),
        false => previous.head.clone(),
    };
    let seen = match user.changes.seen {
        true if user.seen == Seen::default() => None,
        true => Some(value(buffer, commit_no, |w| parts::write_seen(w, &user.seen))),
        false => previous.seen.clone(),
    };
    let day = |segment: &DaySegment| {
        let changed = user.changes.days.binary_search(&segment.day).is_ok();
        let old = previous.days.binary_search_by_key(&segment.day, |d| d.0).ok().filter(|_| !changed);
        match old {
            Some(n) => previous.days[n].clone(),
            None => (segment.day, value(buffer, commit_no, |w| parts::write_day(w, segment))),
        }
    };
    UserBytes { head, seen, days: older.iter().map(day).collect() }
}

/// One value, in memory of its own.
fn value(buffer: &mut Vec<u8>, commit_no: i64, write: impl FnOnce(&mut Writer<'_>)) -> Arc<[u8]> {
    buffer.clear();
    let mut w = Writer(buffer);
    w.u8(FORMAT);
    w.i64(commit_no);
    write(&mut w);
    Arc::from(buffer.as_slice())
}

fn size(bytes: &UserBytes) -> usize {
    let single = [&bytes.head, &bytes.seen].into_iter().flatten().map(|b| b.len()).sum::<usize>();
    single + bytes.days.iter().map(|d| d.1.len()).sum::<usize>()
}

/// Makes the state smaller: the oldest day that still knows its single signals forgets them, the newest day only
/// those with the larger half of ids. `false` when there is nothing left to forget.
fn shed(user: &mut User) -> bool {
    let Some(n) = user.days.iter().position(|d| !d.signals.is_empty()) else { return false };
    let newest = n + 1 == user.days.len();
    let segment = &mut user.days[n];
    let keep = if newest { segment.signals.len() / 2 } else { 0 };
    segment.signals.truncate(keep);
    user.changes.mark_day(segment.day);
    user.changes.head = true;
    user.head.limits |= LIMIT_BYTES;
    true
}

/// The commit number and the body of a value.
fn open(value: &[u8]) -> Result<(i64, Reader<'_>), Error> {
    let mut r = Reader(value);
    match r.u8()? {
        FORMAT => Ok((r.i64()?, r)),
        found => Err(Error::Format { found }),
    }
}

fn body<T>(value: &[u8], read: impl FnOnce(&mut Reader<'_>) -> Result<T, Error>) -> Result<T, Error> {
    let (_, mut r) = open(value)?;
    let part = read(&mut r)?;
    r.end()?;
    Ok(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let mut user = User::default();
        user.head.user_rev = 7;
        user.changes.head = true;
        let (bytes, _) = encode_changed(&mut user, &UserBytes::default(), -3);
        let value = bytes.head.expect("a head was written");
        assert_eq!(commit_no(&value), Ok(-3));
        let whole = |head: &[u8]| decode(&UserBytes { head: Some(Arc::from(head)), ..UserBytes::default() });
        for end in 0..value.len() {
            assert!(whole(&value[..end]).is_err(), "cut at {end}");
        }
        let mut longer = value.to_vec();
        longer.push(0);
        assert_eq!(whole(&longer), Err(Error::Damaged { what: "trailing bytes" }));
        longer[0] = 9;
        assert_eq!(decode_head(&longer), Err(Error::Format { found: 9 }));
    }

    #[test]
    fn keys_are_read_back() {
        for segment in [Segment::Head, Segment::Seen, Segment::Day(Day(20_000))] {
            let mut key = Vec::new();
            write_key("u1", segment, &mut key);
            assert_eq!(parse_key(&key), Some(("u1", segment)));
        }
        assert_eq!(parse_key(b"\0meta"), None);
    }
}
