//! Avro bodies by position: the record types of ours list their fields in the order of their schema, and every union
//! is null or one other type, so the bytes follow from the types alone. Many times as fast as walking the schema.
//! Reading refuses whatever is unusual; the caller then takes the general way, which also knows what is wrong.
//! `tests/codec.rs` holds both ways against the reference implementation, record type by record type.
//! Next: `records.rs`, the fields of every record.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;

use super::SEQUENCE_MAX;
use crate::domain::{Text, Timestamp};
use crate::wire::utf8;

/// Not to be read this way.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused;

/// What can be written.
pub trait Put {
    /// Writes the value and returns the room behind it; none is left when there was too little.
    fn put<'o>(&self, room: &'o mut [u8]) -> &'o mut [u8];
}

/// What can be read, borrowing from the bytes; in the general way too.
pub trait Take<'a>: Deserialize<'a> {
    /// Reads the next value; any value once the reader has refused.
    fn take(from: &mut Reader<'a>) -> Self;
}

/// A value of a topic.
pub trait Record: Put {
    /// The name of its schema, without the namespace.
    const NAME: &'static str;
}

/// Reads a whole body written with the very schema that the type follows.
#[inline]
pub fn read<'a, T: Take<'a>>(body: &'a [u8]) -> Result<T, Refused> {
    let mut reader = Reader { rest: body, refused: false };
    let value = T::take(&mut reader);
    if reader.rest.is_empty() && !reader.refused { Ok(value) } else { Err(Refused) }
}

/// Bytes not read yet. Everything that takes one by reference is inlined, so that it stays in registers. That a value
/// was refused is looked at once, at the end: until then there is nothing left to read, and values are empty.
pub struct Reader<'a> {
    rest: &'a [u8],
    refused: bool,
}

impl<'a> Reader<'a> {
    #[inline(always)]
    fn refuse(&mut self) {
        (self.rest, self.refused) = (&[], true);
    }

    #[inline(always)]
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else {
            self.refuse();
            return 0;
        };
        self.rest = rest;
        *first
    }

    #[inline(always)]
    fn long(&mut self) -> i64 {
        let number = match self.rest.split_first() {
            Some((first, rest)) if *first < 0x80 => {
                self.rest = rest;
                u64::from(*first)
            }
            _ => {
                let (number, bytes) = number(self.rest);
                match self.rest.get(bytes..) {
                    Some(rest) if bytes > 0 => self.rest = rest,
                    _ => self.refuse(),
                }
                number
            }
        };
        (number >> 1) as i64 ^ -((number & 1) as i64)
    }

    #[inline(always)]
    fn length(&mut self) -> usize {
        usize::try_from(self.long()).unwrap_or_else(|_| {
            self.refuse();
            0
        })
    }

    #[inline(always)]
    fn text(&mut self) -> &'a str {
        // The length of a short text is one byte: twice as much, so that the lowest bit is the sign.
        if let Some((first, rest)) = self.rest.split_first()
            && let length = first.rotate_right(1) as usize
            && length <= utf8::SHORT
            && let Some((text, rest)) = rest.split_at_checked(length)
            && let Some(text) = utf8::short_ascii(text)
        {
            self.rest = rest;
            return text;
        }
        let (text, rest) = long_text(self.rest);
        self.rest = rest;
        text.unwrap_or_else(|| {
            self.refuse();
            ""
        })
    }

    /// The elements of a list or map, in blocks with their number in front, up to a block of none.
    #[inline(always)]
    fn blocks(&mut self, mut each: impl FnMut(&mut Self, usize)) {
        // Most lists are empty.
        if let Some((0, rest)) = self.rest.split_first() {
            self.rest = rest;
            return;
        }
        let mut total = 0_usize;
        loop {
            let count = self.length();
            total = total.saturating_add(count);
            if count == 0 || total > SEQUENCE_MAX {
                self.refused |= count > 0;
                return;
            }
            for left in (1..=count).rev() {
                each(self, left);
                if self.refused {
                    return;
                }
            }
        }
    }
}

/// A text of any length, and what follows it.
#[inline(never)]
fn long_text(bytes: &[u8]) -> (Option<&str>, &[u8]) {
    let mut reader = Reader { rest: bytes, refused: false };
    let length = reader.length();
    match reader.rest.split_at_checked(length) {
        Some((text, rest)) if !reader.refused => (utf8::text(text), rest),
        _ => (None, &[]),
    }
}

/// Seven bits a byte, least significant first, up to 63 bits; and how many bytes, 0 where it is no such number.
#[inline(never)]
fn number(bytes: &[u8]) -> (u64, usize) {
    if let Some(eight) = bytes.first_chunk() {
        let word = u64::from_le_bytes(*eight);
        let ends = !word & 0x8080_8080_8080_8080;
        if ends != 0 {
            // What lies below the first byte without its high bit, and that byte; then the gaps are closed in pairs.
            let sevens = word & (ends ^ (ends - 1)) & 0x7F7F_7F7F_7F7F_7F7F;
            let pairs = (sevens & 0x007F_007F_007F_007F) | ((sevens & 0x7F00_7F00_7F00_7F00) >> 1);
            let fours = (pairs & 0x0000_3FFF_0000_3FFF) | ((pairs & 0x3FFF_0000_3FFF_0000) >> 2);
            let eights = (fours & 0x0FFF_FFFF) | ((fours & 0x0FFF_FFFF_0000_0000) >> 4);
            return (eights, ends.trailing_zeros() as usize / 8 + 1);
        }
    }
    let mut value = 0;
    for (n, byte) in bytes.iter().enumerate().take(9) {
        value |= u64::from(byte & 0x7F) << (7 * n);
        if *byte < 0x80 {
            return (value, n + 1);
        }
    }
    (0, 0)
}

impl<'a> Take<'a> for i64 {
    #[inline(always)]
    fn take(from: &mut Reader<'a>) -> i64 {
        from.long()
    }
}

impl<'a> Take<'a> for Timestamp {
    #[inline(always)]
    fn take(from: &mut Reader<'a>) -> Timestamp {
        Timestamp(from.long())
    }
}

impl<'a> Take<'a> for bool {
    #[inline(always)]
    fn take(from: &mut Reader<'a>) -> bool {
        let byte = from.byte();
        if byte > 1 {
            from.refuse();
        }
        byte == 1
    }
}

impl<'a> Take<'a> for Text<'a> {
    #[inline(always)]
    fn take(from: &mut Reader<'a>) -> Text<'a> {
        Text::borrowed(from.text())
    }
}

impl<'a> Take<'a> for String {
    #[inline(always)]
    fn take(from: &mut Reader<'a>) -> String {
        from.text().to_owned()
    }
}

impl<'a, T: Take<'a>> Take<'a> for Option<T> {
    #[inline(always)]
    fn take(from: &mut Reader<'a>) -> Option<T> {
        match from.byte() {
            0 => None,
            2 => Some(T::take(from)),
            _ => {
                from.refuse();
                None
            }
        }
    }
}

/// Most elements for which room is made before they are read: a length is only a claim.
const ROOM_MAX: usize = 32;

impl<'a, T: Take<'a>> Take<'a> for Vec<T> {
    #[inline(always)]
    fn take(from: &mut Reader<'a>) -> Vec<T> {
        let mut list = Vec::new();
        from.blocks(|from, left| {
            if list.is_empty() {
                list = Vec::with_capacity(left.min(ROOM_MAX));
            }
            list.push(T::take(from));
        });
        list
    }
}

impl<'a, T: Take<'a> + Clone> Take<'a> for Cow<'a, [T]> {
    #[inline(always)]
    fn take(from: &mut Reader<'a>) -> Cow<'a, [T]> {
        Cow::Owned(Vec::take(from))
    }
}

impl<'a, K: Take<'a> + Ord, V: Take<'a>> Take<'a> for BTreeMap<K, V> {
    #[inline(always)]
    fn take(from: &mut Reader<'a>) -> BTreeMap<K, V> {
        let mut map = BTreeMap::new();
        from.blocks(|from, _| {
            let key = K::take(from);
            map.insert(key, V::take(from));
        });
        map
    }
}

/// Writes a whole body. The number of its bytes, or `None` where the room may have been too small.
#[inline]
pub fn write<T: Put>(value: &T, room: &mut [u8]) -> Option<usize> {
    let before = room.len();
    let left = value.put(room).len();
    (left > 0).then_some(before - left)
}

#[inline(always)]
fn put_byte(byte: u8, room: &mut [u8]) -> &mut [u8] {
    match room.split_first_mut() {
        Some((first, rest)) => {
            *first = byte;
            rest
        }
        None => &mut [],
    }
}

#[inline(always)]
fn put_number(number: u64, room: &mut [u8]) -> &mut [u8] {
    if number < 0x80 { put_byte(number as u8, room) } else { put_large_number(number, room) }
}

/// Seven bits a byte, least significant first.
#[inline(never)]
fn put_large_number(mut number: u64, mut room: &mut [u8]) -> &mut [u8] {
    if let Some(eight) = room.first_chunk_mut() {
        if number < 1 << 14 {
            (eight[0], eight[1]) = (number as u8 | 0x80, (number >> 7) as u8);
            return &mut room[2..];
        }
        if number < 1 << 56 {
            // Apart by halves until every seven bits have a byte; then the high bit of all but the last that counts.
            let fours = (number & 0x0FFF_FFFF) | ((number & 0x00FF_FFFF_F000_0000) << 4);
            let pairs = (fours & 0x0000_3FFF_0000_3FFF) | ((fours & 0x0FFF_C000_0FFF_C000) << 2);
            let sevens = (pairs & 0x007F_007F_007F_007F) | ((pairs & 0x3F80_3F80_3F80_3F80) << 1);
            let last = sevens.ilog2() / 8;
            *eight = (sevens | (0x0080_8080_8080_8080 & ((1 << (8 * last)) - 1))).to_le_bytes();
            return &mut room[last as usize + 1..];
        }
    }
    while number >= 0x80 {
        room = put_byte(number as u8 | 0x80, room);
        number >>= 7;
    }
    put_byte(number as u8, room)
}

#[inline(always)]
fn put_length(length: usize, room: &mut [u8]) -> &mut [u8] {
    put_number((length as u64) << 1, room)
}

impl Put for i64 {
    #[inline(always)]
    fn put<'o>(&self, room: &'o mut [u8]) -> &'o mut [u8] {
        put_number(((self << 1) ^ (self >> 63)) as u64, room)
    }
}

impl Put for Timestamp {
    #[inline(always)]
    fn put<'o>(&self, room: &'o mut [u8]) -> &'o mut [u8] {
        self.0.put(room)
    }
}

impl Put for bool {
    #[inline(always)]
    fn put<'o>(&self, room: &'o mut [u8]) -> &'o mut [u8] {
        put_byte(u8::from(*self), room)
    }
}

/// Longest text that is copied in place, without a call.
const SHORT: usize = 32;

impl Put for str {
    #[inline(always)]
    fn put<'o>(&self, room: &'o mut [u8]) -> &'o mut [u8] {
        let text = self.as_bytes();
        if text.len() <= SHORT
            && let Some([length, to @ ..]) = room.first_chunk_mut::<{ 1 + SHORT }>()
        {
            *length = (text.len() << 1) as u8;
            copy_short(text, to);
            return &mut room[1 + text.len()..];
        }
        put_long(text, room)
    }
}

#[inline(never)]
fn put_long<'o>(text: &[u8], room: &'o mut [u8]) -> &'o mut [u8] {
    match put_length(text.len(), room).split_at_mut_checked(text.len()) {
        Some((to, rest)) => {
            to.copy_from_slice(text);
            rest
        }
        None => &mut [],
    }
}

/// Copies bytes to the beginning of a room that is no smaller; few of them without a call.
#[inline]
pub fn copy_into(from: &[u8], room: &mut [u8]) {
    match room.first_chunk_mut() {
        Some(to) if from.len() <= SHORT => copy_short(from, to),
        _ => room[..from.len()].copy_from_slice(from),
    }
}

/// Copies at most `SHORT` bytes, by their first and last words, which overlap.
#[inline(always)]
fn copy_short(from: &[u8], to: &mut [u8; SHORT]) {
    #[inline(always)]
    fn ends<const N: usize>(from: &[u8], to: &mut [u8; SHORT]) {
        let last = from.len() - N;
        to[..N].copy_from_slice(&from[..N]);
        to[last..last + N].copy_from_slice(&from[last..]);
    }
    match from.len() {
        8.. => {
            if from.len() > 16 {
                ends::<16>(from, to)
            } else {
                ends::<8>(from, to)
            }
        }
        4.. => ends::<4>(from, to),
        1.. => {
            let (middle, last) = (from.len() / 2, from.len() - 1);
            (to[0], to[middle], to[last]) = (from[0], from[middle], from[last]);
        }
        0 => {}
    }
}

impl Put for Text<'_> {
    #[inline(always)]
    fn put<'o>(&self, room: &'o mut [u8]) -> &'o mut [u8] {
        self.as_str().put(room)
    }
}

impl Put for String {
    #[inline(always)]
    fn put<'o>(&self, room: &'o mut [u8]) -> &'o mut [u8] {
        self.as_str().put(room)
    }
}

impl<T: Put> Put for Option<T> {
    #[inline(always)]
    fn put<'o>(&self, room: &'o mut [u8]) -> &'o mut [u8] {
        match self {
            None => put_byte(0, room),
            Some(value) => value.put(put_byte(2, room)),
        }
    }
}

impl<T: Put> Put for Vec<T> {
    #[inline(always)]
    fn put<'o>(&self, room: &'o mut [u8]) -> &'o mut [u8] {
        self.as_slice().put(room)
    }
}

impl<T: Put + Clone> Put for Cow<'_, [T]> {
    #[inline(always)]
    fn put<'o>(&self, room: &'o mut [u8]) -> &'o mut [u8] {
        self.as_ref().put(room)
    }
}

impl<T: Put> Put for [T] {
    #[inline(always)]
    fn put<'o>(&self, mut room: &'o mut [u8]) -> &'o mut [u8] {
        if !self.is_empty() {
            room = put_length(self.len(), room);
            for value in self {
                room = value.put(room);
            }
        }
        put_byte(0, room)
    }
}

impl<K: Put, V: Put> Put for BTreeMap<K, V> {
    #[inline(always)]
    fn put<'o>(&self, mut room: &'o mut [u8]) -> &'o mut [u8] {
        if !self.is_empty() {
            room = put_length(self.len(), room);
            for (key, value) in self {
                room = value.put(key.put(room));
            }
        }
        put_byte(0, room)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DecodeError, read as read_slowly, subject};
    use super::*;
    use crate::domain::chronology::{ChronologyEntry, Insight, SignalFacts};
    use crate::domain::envelope::{Cause, Envelope};
    use crate::domain::signal::{Destination, InfoType, RawPosition, Resource, Signal};
    use crate::topology::Topic;

    fn signal() -> Signal<'static> {
        let resource =
            Resource { id: "f-1".into(), name: Some("q3.xlsx".into()), bytes: Some(-1), ..Resource::default() };
        Signal {
            signal_id: "0123456789abcdef0123456789abcdef".into(),
            user_key: "u7q2m5kx3n4t6w8y".into(),
            indicator: "zażółć gęślą".into(),
            occurred_at: Timestamp(1_795_500_000_000),
            bytes: Some(48_210),
            vendor_severity: Some("a text that is longer than what is copied and checked in one go".into()),
            labels: vec!["".into(), "x".into(), "secret".into()],
            info_types: vec![InfoType { name: "card".into(), count: i64::MAX, confidence: i64::MIN }],
            destination: Some(Destination { kind: "device".into(), value: "usb".into(), direction: "external".into() }),
            resources: vec![resource.clone(), resource],
            is_complete: true,
            off_hours: Some(false),
            raw: Some(RawPosition { topic: "raw.x".into(), partition: 3, offset: 918_221 }),
            attributes: BTreeMap::from([("workload".into(), "endpoint".into()), ("z".into(), "".into())]),
            ..Signal::default()
        }
    }

    fn entry() -> ChronologyEntry<'static> {
        let signal = signal();
        let cause = Cause { kind: "signal".into(), id: "1".into(), topic: Some("t".into()), ..Cause::default() };
        ChronologyEntry {
            envelope: Envelope { event_id: "risk-signals:17:4211:0".into(), cause, ..Envelope::default() },
            seq: 1 << 55,
            insight: Some(Insight { id: "download@2026-11-24".into(), revision: 64, ..Insight::default() }),
            signal: Some(SignalFacts {
                resources: signal.resources.into(),
                factors: signal.attributes,
                ..Default::default()
            }),
            flags: vec!["late".into()],
            ..ChronologyEntry::default()
        }
    }

    fn written(value: &impl Put) -> Vec<u8> {
        let mut room = vec![0; 4_096];
        let bytes = write(value, &mut room).unwrap();
        room.truncate(bytes);
        room
    }

    #[test]
    fn the_room_does_not_change_what_is_written() {
        fn check(value: &impl Put) {
            let bytes = written(value);
            for size in 0..bytes.len() + 50 {
                let mut room = vec![0xAA; size];
                match write(value, &mut room) {
                    None => assert!(size <= bytes.len(), "{size} is enough for {}", bytes.len()),
                    Some(written) => assert_eq!(room[..written], bytes),
                }
            }
        }
        check(&signal());
        check(&entry());
        for bits in 0..64 {
            for number in [1_i64 << bits, (1_i64 << bits).wrapping_sub(1), -1 << bits] {
                check(&number);
                let bytes = written(&number);
                assert_eq!(read(&bytes), if bytes.len() < 10 { Ok(number) } else { Err(Refused) });
            }
        }
        for length in (0..70).chain([127, 128, 200, 3_000]) {
            check(&Text::from("~".repeat(length)));
        }
    }

    /// Whatever is read in the short way is read in the general way too, to the same value.
    #[test]
    fn both_ways_of_reading_agree_on_damaged_bytes() {
        fn check<'a, T: Take<'a> + PartialEq + std::fmt::Debug>(topic: Topic, good: &[u8]) {
            let schema: serde_avro_fast::Schema = subject(topic).unwrap().latest().text.parse().unwrap();
            let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
            let mut random = move |below: usize| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                (seed % below as u64) as usize
            };
            let (mut same, mut refused) = (0, 0);
            for _ in 0..20_000 {
                let mut bytes = good.to_vec();
                for _ in 0..=random(2) {
                    let at = random(bytes.len());
                    match random(5) {
                        0 => bytes[at] ^= 1 << random(8),
                        1 => bytes[at] = random(256) as u8,
                        2 => bytes.truncate(at.max(1)),
                        3 => bytes.insert(at, 0xFF),
                        _ => drop(bytes.splice(at..at, [0xFE, 0xFF, 0xFF, 0xFF, 0x0F])),
                    }
                }
                let bytes: &'static [u8] = bytes.leak();
                let slow: Result<T, DecodeError> = read_slowly(&schema, bytes);
                match read::<T>(bytes) {
                    Ok(value) => assert_eq!(Ok(value), slow, "{bytes:?}"),
                    // It may refuse what is only unusual, such as blocks with their size in front.
                    Err(Refused) => refused += i32::from(slow.is_err()),
                }
                same += 1;
            }
            assert!(refused > 1_000 && same - refused > 1_000, "{same} {refused}");
        }
        check::<Signal<'_>>(Topic::RiskSignals, &written(&signal()));
        check::<ChronologyEntry<'_>>(Topic::ActivityChronology, &written(&entry()));
    }
}
