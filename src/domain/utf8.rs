//! Bytes as text. Nearly all texts of a record are short and ASCII, where the general check costs more than all the
//! rest of reading them.

/// Longest text that `short_ascii` takes.
pub const SHORT: usize = 32;

/// The bytes as text; `None` where they are not UTF-8.
#[inline]
pub fn text(bytes: &[u8]) -> Option<&str> {
    short_ascii(bytes).or_else(|| std::str::from_utf8(bytes).ok())
}

/// The bytes as text where they are ASCII and at most `SHORT`: looked at through two words that overlap.
#[inline(always)]
pub fn short_ascii(bytes: &[u8]) -> Option<&str> {
    let is_ascii = match bytes.len() {
        8.. if bytes.len() > SHORT => false,
        8.. if bytes.len() > 16 => ends(bytes, |a, b| {
            let bits = u128::from_ne_bytes(a) | u128::from_ne_bytes(b);
            (bits as u64 | (bits >> 64) as u64) & HIGH == 0
        }),
        8.. => ends(bytes, |a, b| (u64::from_ne_bytes(a) | u64::from_ne_bytes(b)) & HIGH == 0),
        4.. => ends(bytes, |a, b| (u32::from_ne_bytes(a) | u32::from_ne_bytes(b)) & HIGH as u32 == 0),
        1.. => bytes[0] | bytes[bytes.len() / 2] | bytes[bytes.len() - 1] < 0x80,
        0 => true,
    };
    // SAFETY: no byte has its high bit set, so the text is ASCII, which is UTF-8.
    is_ascii.then(|| unsafe { std::str::from_utf8_unchecked(bytes) })
}

/// The high bits of eight bytes.
const HIGH: u64 = 0x8080_8080_8080_8080;

/// Whether the first and the last `N` bytes, which are all up to twice as many, are as they should.
#[inline(always)]
fn ends<const N: usize>(bytes: &[u8], are: impl Fn([u8; N], [u8; N]) -> bool) -> bool {
    matches!((bytes.first_chunk(), bytes.last_chunk()), (Some(first), Some(last)) if are(*first, *last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_general_check() {
        for len in 0..70 {
            let plain = vec![b'~'; len];
            assert_eq!(text(&plain), std::str::from_utf8(&plain).ok());
            for at in 0..len {
                for odd in [&[0x7F][..], &[0x80], &[0xFF], &[0xC3], "ß".as_bytes(), "€".as_bytes(), "🦀".as_bytes()]
                {
                    let mut bytes = plain.clone();
                    bytes.splice(at..len.min(at + odd.len()), odd.iter().copied());
                    assert_eq!(text(&bytes), std::str::from_utf8(&bytes).ok(), "{bytes:?}");
                }
            }
        }
    }
}
