//! Numbers in decimal, for ids and keys that are written by the million: the formatting machinery costs more than the
//! digits.

use super::utf8;

/// Room for the longest number and its sign.
pub type Room = [u8; 20];

/// The two digits of every number below 100.
const PAIRS: [[u8; 2]; 100] = {
    let (mut pairs, mut n) = ([[0; 2]; 100], 0);
    while n < 100 {
        pairs[n] = [b'0' + n as u8 / 10, b'0' + n as u8 % 10];
        n += 1;
    }
    pairs
};

/// A number as text, written into `room`.
#[inline]
pub fn text(number: i64, room: &mut Room) -> &str {
    let (mut rest, mut at) = (number.unsigned_abs(), room.len());
    while rest >= 10 {
        at -= 2;
        [room[at], room[at + 1]] = PAIRS[(rest % 100) as usize];
        rest /= 100;
    }
    if rest > 0 || number == 0 {
        at -= 1;
        room[at] = b'0' + rest as u8;
    }
    if number < 0 {
        at -= 1;
        room[at] = b'-';
    }
    utf8::text(&room[at..]).expect("digits are text")
}
