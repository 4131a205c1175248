//! One record batch as it lies on the wire (format 2): its header, its records without copies, a control batch that
//! ends a transaction, and a batch with fewer records. Keeps batches as they came; opens one only for compaction and
//! for look-ups by time. Next: `log.rs`.

use std::io::Read;
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes before the records.
pub const HEADER_BYTES: usize = 61;
/// A batch may not grow to more than this when it is decompressed.
const OPENED_BYTES_MAX: u64 = 64 << 20;

const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;
const CODEC: i16 = 0x07;

/// What the header of a batch says.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub base: i64,
    /// Bytes of the whole batch.
    pub bytes: usize,
    attributes: i16,
    /// The last record's offset less the first's.
    pub delta: i32,
    first_timestamp: i64,
    pub max_timestamp: i64,
    pub producer: i64,
    pub epoch: i16,
    pub sequence: i32,
    pub records: i32,
}

impl Header {
    /// Reads and checks the header and the checksum of the batch at the start of `bytes`.
    pub fn read(bytes: &[u8]) -> Option<Header> {
        let length = usize::try_from(i32::from_be_bytes(field(bytes, 8)?)).ok()?.checked_add(12)?;
        if length < HEADER_BYTES || length > bytes.len() || bytes[16] != 2 {
            return None;
        }
        if crc32c::crc32c(&bytes[21..length]) != u32::from_be_bytes(field(bytes, 17)?) {
            return None;
        }
        let header = Header {
            base: i64::from_be_bytes(field(bytes, 0)?),
            bytes: length,
            attributes: i16::from_be_bytes(field(bytes, 21)?),
            delta: i32::from_be_bytes(field(bytes, 23)?),
            first_timestamp: i64::from_be_bytes(field(bytes, 27)?),
            max_timestamp: i64::from_be_bytes(field(bytes, 35)?),
            producer: i64::from_be_bytes(field(bytes, 43)?),
            epoch: i16::from_be_bytes(field(bytes, 51)?),
            sequence: i32::from_be_bytes(field(bytes, 53)?),
            records: i32::from_be_bytes(field(bytes, 57)?),
        };
        (header.delta >= 0 && header.records >= 0).then_some(header)
    }

    pub const fn transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether it is a marker and not data.
    pub const fn control(&self) -> bool {
        self.attributes & CONTROL != 0
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// A copy of the batch that starts at another offset. The checksum does not cover the offset.
pub fn rebased(batch: &[u8], base: i64) -> Bytes {
    let mut copy = BytesMut::from(batch);
    copy[0..8].copy_from_slice(&base.to_be_bytes());
    // Leader epoch: there is one leader for ever.
    copy[12..16].copy_from_slice(&0_i32.to_be_bytes());
    copy.freeze()
}

/// The control batch that ends a transaction on a partition.
pub fn marker(producer: i64, epoch: i16, commit: bool, timestamp: i64) -> Bytes {
    // Attributes, timestamp and offset deltas; the key (version, kind) and the value (version, coordinator's epoch).
    let mut record = vec![0, 0, 0, 8, 0, 0, 0, u8::from(commit), 12, 0, 0, 0, 0, 0, 0, 0];
    record.insert(0, (record.len() as u8) << 1);
    let header = Header {
        base: 0,
        bytes: 0,
        attributes: TRANSACTIONAL | CONTROL,
        delta: 0,
        first_timestamp: timestamp,
        max_timestamp: timestamp,
        producer,
        epoch,
        sequence: -1,
        records: 1,
    };
    write(&header, &record)
}

fn write(header: &Header, records: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER_BYTES + records.len());
    out.put_i64(header.base);
    out.put_i32((HEADER_BYTES - 12 + records.len()) as i32);
    out.put_i32(0);
    out.put_u8(2);
    out.put_u32(0);
    out.put_i16(header.attributes);
    out.put_i32(header.delta);
    out.put_i64(header.first_timestamp);
    out.put_i64(header.max_timestamp);
    out.put_i64(header.producer);
    out.put_i16(header.epoch);
    out.put_i32(header.sequence);
    out.put_i32(header.records);
    out.put_slice(records);
    let checksum = crc32c::crc32c(&out[21..]);
    out[17..21].copy_from_slice(&checksum.to_be_bytes());
    out.freeze()
}

/// One record of an opened batch.
#[derive(Debug)]
pub struct Entry {
    pub offset: i64,
    pub timestamp: i64,
    key: Option<Range<usize>>,
    pub tombstone: bool,
    whole: Range<usize>,
}

/// A batch with its records decompressed.
#[derive(Debug)]
pub struct Opened {
    header: Header,
    records: Bytes,
    pub entries: Vec<Entry>,
}

impl Opened {
    /// Opens a batch; nothing when it is not well formed or its codec is unknown.
    pub fn read(batch: &Bytes) -> Option<Opened> {
        let header = Header::read(batch)?;
        let packed = batch.slice(HEADER_BYTES..header.bytes);
        let records = match header.attributes & CODEC {
            0 => packed,
            codec => decompress(codec, &packed)?,
        };
        let entries = entries(&header, &records)?;
        Some(Opened { header, records, entries })
    }

    pub fn key(&self, entry: &Entry) -> Option<&[u8]> {
        Some(&self.records[entry.key.clone()?])
    }

    /// The batch with some of its records, uncompressed, at the offsets they had.
    pub fn keep(&self, keep: &[bool]) -> Bytes {
        let kept = || self.entries.iter().zip(keep).filter(|(_, keep)| **keep);
        let mut records = BytesMut::new();
        kept().for_each(|(entry, _)| records.put_slice(&self.records[entry.whole.clone()]));
        let mut header = self.header;
        header.attributes &= !CODEC;
        header.records = kept().count() as i32;
        write(&header, &records)
    }
}

fn decompress(codec: i16, packed: &Bytes) -> Option<Bytes> {
    let mut out = Vec::new();
    let read = match codec {
        1 => flate2::read::GzDecoder::new(&packed[..]).take(OPENED_BYTES_MAX).read_to_end(&mut out),
        2 => return snappy(packed).map(Bytes::from),
        3 => lz4_flex::frame::FrameDecoder::new(&packed[..]).take(OPENED_BYTES_MAX).read_to_end(&mut out),
        4 => zstd::stream::read::Decoder::new(&packed[..]).ok()?.take(OPENED_BYTES_MAX).read_to_end(&mut out),
        _ => return None,
    };
    read.ok()?;
    Some(Bytes::from(out))
}

/// Raw snappy, or the Java library's framing of it: a header of 16 bytes, then blocks with their length before them.
fn snappy(packed: &[u8]) -> Option<Vec<u8>> {
    const JAVA: &[u8] = b"\x82SNAPPY\0";
    let unpack = |block: &[u8]| {
        let length = snap::raw::decompress_len(block).ok()? as u64;
        if length > OPENED_BYTES_MAX {
            return None;
        }
        snap::raw::Decoder::new().decompress_vec(block).ok()
    };
    if !packed.starts_with(JAVA) {
        return unpack(packed);
    }
    let mut out = Vec::new();
    let mut rest = packed.get(16..)?;
    while !rest.is_empty() {
        let length = u32::from_be_bytes(field(rest, 0)?) as usize;
        out.extend_from_slice(&unpack(rest.get(4..length.checked_add(4)?)?)?);
        if out.len() as u64 > OPENED_BYTES_MAX {
            return None;
        }
        rest = &rest[4 + length..];
    }
    Some(out)
}

fn entries(header: &Header, records: &[u8]) -> Option<Vec<Entry>> {
    // A record takes at least seven bytes, so a count that lies reserves no memory.
    let mut entries = Vec::with_capacity((header.records as usize).min(records.len() / 7));
    let mut cursor = Cursor { bytes: records, at: 0 };
    for _ in 0..header.records {
        let start = cursor.at;
        let end = cursor.varint()?;
        let end = cursor.at.checked_add(usize::try_from(end).ok()?).filter(|end| *end <= records.len())?;
        cursor.at += 1;
        let timestamp = header.first_timestamp.checked_add(cursor.varint()?)?;
        let offset = header.base.checked_add(cursor.varint()?)?;
        let key = cursor.blob()?;
        let value = cursor.blob()?;
        cursor.at = end;
        entries.push(Entry { offset, timestamp, key, tombstone: value.is_none(), whole: start..end });
    }
    Some(entries)
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn varint(&mut self) -> Option<i64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes.get(self.at)?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        None
    }

    /// A place in the bytes; `Some(None)` where the length says that there is none.
    fn blob(&mut self) -> Option<Option<Range<usize>>> {
        let length = self.varint()?;
        if length < 0 {
            return Some(None);
        }
        let end = self.at.checked_add(usize::try_from(length).ok()?).filter(|end| *end <= self.bytes.len())?;
        let place = self.at..end;
        self.at = end;
        Some(Some(place))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A plain batch of keys and values at offset 0: fewer than 64 records of fewer than 64 bytes, so that every number
    /// of the format takes one byte.
    pub fn batch(records: &[(&str, Option<&str>)]) -> Bytes {
        let mut bytes = Vec::new();
        for (n, (key, value)) in records.iter().enumerate() {
            let mut record = vec![0, 0, (n as u8) << 1, (key.len() as u8) << 1];
            record.extend_from_slice(key.as_bytes());
            match value {
                Some(value) => {
                    record.push((value.len() as u8) << 1);
                    record.extend_from_slice(value.as_bytes());
                }
                None => record.push(1),
            }
            record.push(0);
            bytes.push((record.len() as u8) << 1);
            bytes.extend(record);
        }
        let header = Header {
            base: 0,
            bytes: 0,
            attributes: 0,
            delta: records.len() as i32 - 1,
            first_timestamp: 1_000,
            max_timestamp: 1_000,
            producer: -1,
            epoch: -1,
            sequence: -1,
            records: records.len() as i32,
        };
        write(&header, &bytes)
    }

    #[test]
    fn records_are_found_and_left_out() {
        let opened = Opened::read(&rebased(&batch(&[("a", Some("1")), ("b", None), ("c", Some("3"))]), 40)).unwrap();
        let keys: Vec<_> = opened.entries.iter().map(|e| (opened.key(e).unwrap(), e.offset, e.tombstone)).collect();
        assert_eq!(keys, [(&b"a"[..], 40, false), (b"b", 41, true), (b"c", 42, false)]);
        let fewer = Opened::read(&opened.keep(&[false, true, true])).unwrap();
        assert_eq!(fewer.entries.iter().map(|e| e.offset).collect::<Vec<_>>(), [41, 42]);
        assert_eq!((fewer.header.base, fewer.header.delta, fewer.header.records), (40, 2, 2));
    }

    #[test]
    fn every_prefix_and_every_flipped_byte_is_refused() {
        let good = batch(&[("a", Some("1")), ("b", Some("2"))]);
        assert!((0..good.len()).all(|end| Header::read(&good[..end]).is_none()));
        for at in 16..good.len() {
            let mut bad = good.to_vec();
            bad[at] ^= 0x41;
            assert!(Header::read(&bad).is_none(), "byte {at}");
        }
    }

    #[test]
    fn a_marker_is_a_control_batch_of_one_record() {
        let marker = marker(7, 3, true, 99);
        let header = Header::read(&marker).unwrap();
        assert!(header.control() && header.transactional());
        assert_eq!((header.producer, header.epoch, header.max_timestamp), (7, 3, 99));
        let opened = Opened::read(&marker).unwrap();
        assert_eq!(opened.key(&opened.entries[0]), Some(&[0, 0, 0, 1][..]));
    }
}
