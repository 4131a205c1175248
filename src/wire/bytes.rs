//! Variable-length integers: seven bits a byte, least significant first; signed ones zigzag first. Numbers that are
//! seldom small (times, hashes) are fixed and little-endian: cheaper to read.

use super::state::Error;
use crate::domain::decimal;

/// Appends integers to a buffer.
pub struct Writer<'a>(pub &'a mut Vec<u8>);

impl Writer<'_> {
    /// Seven bits a byte; most numbers are one byte.
    #[inline]
    pub fn u64(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// Zigzag.
    pub fn i64(&mut self, value: i64) {
        self.u64(((value << 1) ^ (value >> 63)) as u64);
    }

    /// One byte as it is.
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    /// Bytes as they are.
    #[inline]
    pub fn fixed(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Eight bytes.
    #[inline]
    pub fn long(&mut self, value: i64) {
        self.fixed(&value.to_le_bytes());
    }

    /// Absent is one zero byte.
    pub fn option(&mut self, value: Option<i64>) {
        self.u8(u8::from(value.is_some()));
        if let Some(value) = value {
            self.i64(value);
        }
    }
}

/// Takes integers off a slice.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// One byte as it is.
    #[inline]
    pub fn u8(&mut self) -> Result<u8, Error> {
        let (first, rest) = self.0.split_first().ok_or(SHORT)?;
        self.0 = rest;
        Ok(*first)
    }

    /// Seven bits a byte; most numbers are one byte.
    #[inline]
    pub fn u64(&mut self) -> Result<u64, Error> {
        if let Some((first, rest)) = self.0.split_first()
            && *first < 0x80
        {
            self.0 = rest;
            return Ok(u64::from(*first));
        }
        self.longer()
    }

    fn longer(&mut self) -> Result<u64, Error> {
        let (mut value, mut shift) = (0_u64, 0);
        for (n, byte) in self.0.iter().enumerate().take(10) {
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if *byte < 0x80 {
                self.0 = &self.0[n + 1..];
                return Ok(value);
            }
            shift += 7;
        }
        Err(if self.0.len() < 10 { SHORT } else { Error::Damaged { what: "integer too long" } })
    }

    /// Eight bytes.
    #[inline]
    pub fn long(&mut self) -> Result<i64, Error> {
        self.fixed().map(i64::from_le_bytes)
    }

    /// Zigzag.
    #[inline]
    pub fn i64(&mut self) -> Result<i64, Error> {
        let value = self.u64()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// A number that fits 32 bits.
    #[inline]
    pub fn u32(&mut self) -> Result<u32, Error> {
        u32::try_from(self.u64()?).map_err(|_| Error::Damaged { what: "integer out of range" })
    }

    /// A number that fits 16 bits.
    #[inline]
    pub fn u16(&mut self) -> Result<u16, Error> {
        u16::try_from(self.u64()?).map_err(|_| Error::Damaged { what: "integer out of range" })
    }

    /// A signed number that fits 32 bits.
    #[inline]
    pub fn i32(&mut self) -> Result<i32, Error> {
        i32::try_from(self.i64()?).map_err(|_| Error::Damaged { what: "integer out of range" })
    }

    /// Bytes as they are.
    #[inline]
    pub fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (first, rest) = self.0.split_first_chunk::<N>().ok_or(SHORT)?;
        self.0 = rest;
        Ok(*first)
    }

    /// See `Writer::option`.
    pub fn option(&mut self) -> Result<Option<i64>, Error> {
        match self.u8()? {
            0 => Ok(None),
            1 => self.i64().map(Some),
            _ => Err(Error::Damaged { what: "presence" }),
        }
    }

    /// A list's length; no list is longer than the bytes that hold it.
    #[inline]
    pub fn length(&mut self) -> Result<usize, Error> {
        let length = self.u64()? as usize;
        if length > self.0.len() {
            return Err(Error::Damaged { what: "list longer than its bytes" });
        }
        Ok(length)
    }

    /// Nothing may follow.
    pub fn end(&self) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::Damaged { what: "trailing bytes" }) }
    }
}

const SHORT: Error = Error::Damaged { what: "too short" };

/// Appends a number in decimal.
pub fn push_number(text: &mut Vec<u8>, number: i64) {
    text.extend_from_slice(decimal::text(number, &mut [0; 20]).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::push_number;

    #[test]
    fn numbers_are_written_as_the_formatter_would() {
        for number in [0, 7, -1, 9, 10, 99, 100, -101, 1_000, 12_345, 100_000, i64::MAX, i64::MIN] {
            let mut text = Vec::new();
            push_number(&mut text, number);
            assert_eq!(text, number.to_string().into_bytes());
        }
    }
}
