//! Which schema a value was written with, and where its Avro body begins: Confluent's two forms.
//! Knows no schemas and decodes nothing. Next: `avro.rs`.

/// First byte of a value (or schema header) that names its schema by a registry's number.
pub const MAGIC_ID: u8 = 0;
/// First byte of a schema header that names its schema by GUID.
pub const MAGIC_GUID: u8 = 1;
/// Header that carries the schema's name, so that the value is the bare Avro body.
pub const SCHEMA_HEADER: &str = "__value_schema_id";
/// Bytes of `MAGIC_ID` and the number.
pub const PREFIX_BYTES: usize = 5;

/// How a record names the schema it was written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SchemaName {
    Id(u32),
    Guid([u8; 16]),
}

impl std::fmt::Display for SchemaName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SchemaName::Id(id) => write!(f, "id {id}"),
            SchemaName::Guid(guid) => write!(f, "guid {}", guid_text(guid)),
        }
    }
}

/// A GUID as registries print it: 8-4-4-4-12 lower-case hexadecimal digits.
pub fn guid_text(guid: &[u8; 16]) -> String {
    uuid::Uuid::from_bytes(*guid).to_string()
}

/// Why the framing cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramingError {
    /// Nothing at all.
    Empty,
    /// Neither form; the byte found.
    Magic(u8),
    /// The schema's name is cut off.
    Truncated,
}

/// The prefix of the id form.
pub const fn prefix(id: u32) -> [u8; PREFIX_BYTES] {
    let [a, b, c, d] = id.to_be_bytes();
    [MAGIC_ID, a, b, c, d]
}

/// Whether a header names the schema.
#[inline]
pub fn has_header(headers: &[(&str, Option<&[u8]>)]) -> bool {
    header(headers).is_some()
}

#[inline]
fn header<'a>(headers: &[(&str, Option<&'a [u8]>)]) -> Option<&'a [u8]> {
    headers.iter().find_map(|(key, name)| name.filter(|_| *key == SCHEMA_HEADER))
}

/// The schema's name and the Avro body. The header form wins where the header is present.
pub fn split<'a>(value: &'a [u8], headers: &[(&str, Option<&[u8]>)]) -> Result<(SchemaName, &'a [u8]), FramingError> {
    if let Some(name) = header(headers) {
        let (name, rest) = read_name(name)?;
        return if rest.is_empty() { Ok((name, value)) } else { Err(FramingError::Magic(rest[0])) };
    }
    match value.first() {
        Some(&MAGIC_ID) | None => read_name(value),
        Some(&other) => Err(FramingError::Magic(other)),
    }
}

fn read_name(bytes: &[u8]) -> Result<(SchemaName, &[u8]), FramingError> {
    let (magic, rest) = bytes.split_first().ok_or(FramingError::Empty)?;
    match *magic {
        MAGIC_ID => {
            let (id, body) = rest.split_first_chunk::<4>().ok_or(FramingError::Truncated)?;
            Ok((SchemaName::Id(u32::from_be_bytes(*id)), body))
        }
        MAGIC_GUID => {
            let (guid, body) = rest.split_first_chunk::<16>().ok_or(FramingError::Truncated)?;
            Ok((SchemaName::Guid(*guid), body))
        }
        other => Err(FramingError::Magic(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_told_apart() {
        let guid = [7; 16];
        let mut named = vec![MAGIC_GUID];
        named.extend(guid);
        let id_header = [0, 0, 0, 0, 9];
        let with_guid: &[(&str, Option<&[u8]>)] = &[(SCHEMA_HEADER, Some(&named))];
        let with_id: &[(&str, Option<&[u8]>)] = &[("other", None), (SCHEMA_HEADER, Some(&id_header))];
        let cut: &[(&str, Option<&[u8]>)] = &[(SCHEMA_HEADER, Some(&named[..16]))];
        let null: &[(&str, Option<&[u8]>)] = &[(SCHEMA_HEADER, None)];
        for (value, headers, expect) in [
            (&[0, 0, 0, 1, 2, 8][..], &[][..], Ok((SchemaName::Id(258), &[8][..]))),
            (&[0, 0, 0, 1, 2, 8], null, Ok((SchemaName::Id(258), &[8]))),
            (&[0, 8], with_guid, Ok((SchemaName::Guid(guid), &[0, 8]))),
            (&[0, 8], with_id, Ok((SchemaName::Id(9), &[0, 8]))),
            (&[0, 8], cut, Err(FramingError::Truncated)),
            (&[], &[], Err(FramingError::Empty)),
            (&[0, 0, 0, 1], &[], Err(FramingError::Truncated)),
            (&[1, 0, 0, 0, 1], &[], Err(FramingError::Magic(1))),
            (b"{\"a\":1}", &[], Err(FramingError::Magic(b'{'))),
        ] {
            assert_eq!(split(value, headers), expect, "{value:?} {headers:?}");
        }
        assert_eq!(prefix(258), [0, 0, 0, 1, 2]);
        assert_eq!(SchemaName::Guid(guid).to_string(), "guid 07070707-0707-0707-0707-070707070707");
    }
}
