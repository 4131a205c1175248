//! Bytes of the protocol: which requests in which versions, frames in and out. Versions are those without compact
//! arrays wherever the older ones say enough, because a length can be checked in them before memory is reserved for
//! it (see `Guarded`). Next: `connection.rs`.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::{ApiKey, ApiVersionsResponse, RequestHeader, ResponseHeader, TopicName};
use kafka_protocol::protocol::buf::ByteBuf;
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes};

/// Longest request.
pub const FRAME_BYTES_MAX: usize = 16 << 20;
/// Integers above this are cut where fewer bytes are left: no array can be so long, and as a time-out it is over an hour.
pub const INTEGER_MAX: i32 = 4 << 20;
/// Elements of a compact array.
const COMPACT_MAX: u64 = 100_000;

/// What is understood: request, oldest and newest version.
pub const APIS: &[(ApiKey, i16, i16)] = &[
    (ApiKey::Produce, 3, 8),
    (ApiKey::Fetch, 4, 11),
    (ApiKey::ListOffsets, 1, 5),
    (ApiKey::Metadata, 0, 8),
    (ApiKey::OffsetCommit, 2, 7),
    (ApiKey::OffsetFetch, 1, 7),
    (ApiKey::FindCoordinator, 0, 2),
    (ApiKey::JoinGroup, 0, 5),
    (ApiKey::Heartbeat, 0, 3),
    (ApiKey::LeaveGroup, 0, 3),
    (ApiKey::SyncGroup, 0, 3),
    (ApiKey::DescribeGroups, 0, 4),
    (ApiKey::ListGroups, 0, 2),
    (ApiKey::ApiVersions, 0, 3),
    (ApiKey::CreateTopics, 2, 4),
    (ApiKey::DeleteTopics, 1, 3),
    (ApiKey::InitProducerId, 0, 4),
    (ApiKey::AddPartitionsToTxn, 0, 2),
    (ApiKey::AddOffsetsToTxn, 0, 2),
    (ApiKey::EndTxn, 0, 2),
    (ApiKey::TxnOffsetCommit, 0, 3),
    (ApiKey::DescribeConfigs, 1, 3),
    (ApiKey::AlterConfigs, 0, 1),
    (ApiKey::IncrementalAlterConfigs, 0, 0),
    (ApiKey::CreatePartitions, 0, 1),
    (ApiKey::DeleteGroups, 0, 1),
    (ApiKey::DeleteRecords, 0, 1),
    (ApiKey::DescribeCluster, 0, 1),
];

/// One request: its header and, undecoded, its body.
#[derive(Debug)]
pub struct Request {
    pub api: ApiKey,
    pub version: i16,
    pub correlation: i32,
    pub client: String,
    body: Bytes,
}

/// Why a connection is closed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the frame holds no request that is understood")]
    Malformed,
    #[error("request {0} in version {1} is not understood")]
    Unsupported(i16, i16),
    #[error("could not encode an answer to {0:?}: {1}")]
    Encode(ApiKey, String),
    #[error("nothing is acknowledged any more")]
    Stopped,
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl Request {
    /// Reads the header of a frame. `ApiVersions` is accepted in any version: the answer says which are understood.
    pub fn read(frame: Bytes) -> Result<Request, Error> {
        if frame.len() < 8 {
            return Err(Error::Malformed);
        }
        let mut peek = &frame[..8];
        let (key, version, correlation) = (peek.get_i16(), peek.get_i16(), peek.get_i32());
        let api = ApiKey::try_from(key).map_err(|()| Error::Unsupported(key, version))?;
        if api == ApiKey::ApiVersions {
            return Ok(Request { api, version, correlation, client: String::new(), body: Bytes::new() });
        }
        let known = APIS.iter().any(|(known, min, max)| *known == api && (*min..=*max).contains(&version));
        if !known {
            return Err(Error::Unsupported(key, version));
        }
        let mut body = frame;
        let header =
            RequestHeader::decode(&mut body, api.request_header_version(version)).map_err(|_| Error::Malformed)?;
        let client = header.client_id.map(|id| id.to_string()).unwrap_or_default();
        Ok(Request { api, version, correlation, client, body })
    }

    /// Decodes the body.
    pub fn body<T: Decodable>(&self) -> Result<T, Error> {
        let compact = match self.api {
            ApiKey::TxnOffsetCommit if self.version >= 3 => Some("ssLHIssA[sA[ILIs]]"),
            ApiKey::OffsetFetch if self.version >= 6 => Some("sA[sA[I]]"),
            _ => None,
        };
        if compact.is_some_and(|shape| !fits(shape, &self.body)) {
            return Err(Error::Malformed);
        }
        T::decode(&mut Guarded(self.body.clone()), self.version).map_err(|_| Error::Malformed)
    }

    /// A frame with the answer.
    pub fn answer<T: Encodable + HeaderVersion>(&self, answer: &T) -> Result<Bytes, Error> {
        self.answer_in(self.version, answer)
    }

    /// The answer to `ApiVersions`, in a version that everybody reads where the asked one is unknown.
    pub fn answer_versions(&self) -> Result<Bytes, Error> {
        let row = |(api, min, max): &(ApiKey, i16, i16)| {
            ApiVersion::default().with_api_key(*api as i16).with_min_version(*min).with_max_version(*max)
        };
        let answer = ApiVersionsResponse::default().with_api_keys(APIS.iter().map(row).collect());
        match (0..=3).contains(&self.version) {
            true => self.answer_in(self.version, &answer),
            false => self.answer_in(0, &answer.with_error_code(super::codes::UNSUPPORTED_VERSION)),
        }
    }

    fn answer_in<T: Encodable + HeaderVersion>(&self, version: i16, answer: &T) -> Result<Bytes, Error> {
        let mut out = BytesMut::new();
        out.put_i32(0);
        let header = ResponseHeader::default().with_correlation_id(self.correlation);
        let header = header.encode(&mut out, T::header_version(version));
        let encoded = header.and_then(|()| answer.encode(&mut out, version));
        encoded.map_err(|error| Error::Encode(self.api, error.to_string()))?;
        let length = (out.len() - 4) as i32;
        out[0..4].copy_from_slice(&length.to_be_bytes());
        Ok(out.freeze())
    }
}

/// Walks the lengths of a body in a compact version: `s` a text or bytes, `L`, `I`, `H` integers of 8, 4 and 2 bytes,
/// `A[…]` an array. Behind each element of more than one field, and at the end, stand tagged fields, which reserve
/// nothing. What follows the shape is left to the decoder.
fn fits(shape: &str, body: &Bytes) -> bool {
    fn walk(shape: &[u8], body: &mut Bytes) -> Option<()> {
        let mut at = 0;
        while let Some(field) = shape.get(at) {
            match field {
                b'L' => skip(body, 8)?,
                b'I' => skip(body, 4)?,
                b'H' => skip(body, 2)?,
                b's' => {
                    let length = varint(body)?.saturating_sub(1);
                    skip(body, usize::try_from(length).ok()?)?;
                }
                _ => {
                    let end = at + closing(&shape[at..])?;
                    let count = varint(body)?.saturating_sub(1);
                    let element = &shape[at + 2..end];
                    if count > COMPACT_MAX {
                        return None;
                    }
                    for _ in 0..count {
                        walk(element, body)?;
                        if element.len() > 1 {
                            tags(body)?;
                        }
                    }
                    at = end;
                }
            }
            at += 1;
        }
        Some(())
    }
    walk(shape.as_bytes(), &mut body.clone()).is_some()
}

fn closing(shape: &[u8]) -> Option<usize> {
    let mut depth = 0;
    shape.iter().position(|c| {
        depth += i32::from(*c == b'[') - i32::from(*c == b']');
        *c == b']' && depth == 0
    })
}

fn tags(body: &mut Bytes) -> Option<()> {
    for _ in 0..varint(body)? {
        varint(body)?;
        let length = varint(body)?;
        skip(body, usize::try_from(length).ok()?)?;
    }
    Some(())
}

fn skip(body: &mut Bytes, bytes: usize) -> Option<()> {
    (body.len() >= bytes).then(|| body.advance(bytes))
}

fn varint(body: &mut Bytes) -> Option<u64> {
    let mut value = 0;
    for shift in (0..35).step_by(7) {
        let byte = body.try_get_u8().ok()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// A body whose integers cannot make the decoder reserve more memory than the request has bytes: it reserves an array
/// by its announced length before it reads an element, and a failed reservation ends the process.
struct Guarded(Bytes);

impl Buf for Guarded {
    fn remaining(&self) -> usize {
        self.0.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.0.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.0.advance(count);
    }

    fn try_get_i32(&mut self) -> Result<i32, bytes::TryGetError> {
        let value = self.0.try_get_i32()?;
        let left = i32::try_from(self.0.remaining()).unwrap_or(i32::MAX);
        Ok(value.min(left.max(INTEGER_MAX)))
    }
}

impl ByteBuf for Guarded {
    fn peek_bytes(&mut self, range: std::ops::Range<usize>) -> Bytes {
        self.0.slice(range)
    }

    fn get_bytes(&mut self, size: usize) -> Bytes {
        self.0.split_to(size)
    }
}

/// A text of the protocol.
pub fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// A topic's name in the protocol.
pub fn topic_name(name: &str) -> TopicName {
    TopicName(text(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_that_lies_about_its_length_is_refused() {
        // Metadata, version 1: two thousand million topics.
        let mut frame = BytesMut::new();
        frame.put_i16(3);
        frame.put_i16(1);
        frame.put_i32(1);
        frame.put_i16(-1);
        frame.put_i32(i32::MAX);
        let request = Request::read(frame.freeze()).unwrap();
        let body = request.body::<kafka_protocol::messages::MetadataRequest>();
        assert!(matches!(body, Err(Error::Malformed)), "{body:?}");
    }

    #[test]
    fn the_shape_of_a_compact_request_is_checked() {
        let good = [&[3, b'g', b'r', 2, 2, b't', 2, 0, 0, 0, 0, 0, 0, 1][..]].concat();
        assert!(fits("sA[sA[I]]", &Bytes::from(good)));
        let lies = [3, b'g', b'r', 0xff, 0xff, 0xff, 0xff, 0x0f];
        assert!(!fits("sA[sA[I]]", &Bytes::copy_from_slice(&lies)));
    }

    #[test]
    fn noise_is_refused_without_a_crash() {
        use kafka_protocol::messages as m;
        let mut seed = 7_u64;
        let mut noise = |api: ApiKey, version: i16| {
            let mut frame = BytesMut::new();
            frame.put_i16(api as i16);
            frame.put_i16(version);
            frame.put_i32(1);
            // No client id, and no tagged fields where there may be some.
            frame.put_i16(-1);
            frame.put_u8(0);
            for _ in 0..64 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                // Short texts and long arrays get the decoder deep into the request.
                let byte = (seed >> 56) as u8;
                frame.put_u8(if byte.is_multiple_of(3) { byte % 4 } else { byte });
            }
            Request::read(frame.freeze()).unwrap()
        };
        for _ in 0..5_000 {
            // Any answer is fine; what counts is that there is one.
            let _ = noise(ApiKey::Produce, 8).body::<m::ProduceRequest>();
            let _ = noise(ApiKey::Fetch, 11).body::<m::FetchRequest>();
            let _ = noise(ApiKey::OffsetFetch, 7).body::<m::OffsetFetchRequest>();
            let _ = noise(ApiKey::TxnOffsetCommit, 3).body::<m::TxnOffsetCommitRequest>();
            let _ = noise(ApiKey::InitProducerId, 4).body::<m::InitProducerIdRequest>();
            let _ = noise(ApiKey::DescribeCluster, 1).body::<m::DescribeClusterRequest>();
            let _ = noise(ApiKey::CreateTopics, 4).body::<m::CreateTopicsRequest>();
            let _ = noise(ApiKey::JoinGroup, 5).body::<m::JoinGroupRequest>();
        }
    }
}
