//! Who a name is: canonical forms of aliases, the keyed pseudonym, and an index of the directory by alias.
//! Zones: fixed offsets and UTC only. Named zones need a zone database, which is not among our dependencies; people in
//! them count in UTC days, which moves a day's border but never a score's total.
//! Next: `runtime/map_worker.rs`, which asks.

use std::sync::Arc;

use hashbrown::HashMap;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use smallvec::SmallVec;

use super::text::clean;
use crate::domain::directory::Directory;

/// Kinds of alias a subject may be named by.
pub const KINDS: [&str; 8] = ["upn", "email", "sid", "domain_user", "login", "profile_id", "badge", "display_name"];

/// Most aliases of one person that are indexed.
pub const ALIASES_MAX: usize = 64;

/// Names that mean nobody. Compared after lower-casing.
const NOBODY: [&str; 27] = [
    "",
    "-",
    "--",
    "?",
    "*",
    "n/a",
    "na",
    "none",
    "null",
    "nil",
    "undefined",
    "unknown",
    "unknown user",
    "unknown_user",
    "name_not_available",
    "not available",
    "not_available",
    "anonymous",
    "redacted",
    "[redacted]",
    "<redacted>",
    "(empty)",
    "<empty>",
    "system",
    "localsystem",
    "local service",
    "network service",
];

/// Security identifiers and accounts of the machine itself.
const MACHINE: [&str; 5] = ["s-1-5-18", "s-1-5-19", "s-1-5-20", "nt authority", "window manager"];

/// The one form of a name under which a person is looked up and hashed; `None` if the name means nobody: a
/// placeholder, the system, a machine account.
pub fn canonical(alias: &str) -> Option<String> {
    let text = clean(alias, usize::MAX).to_lowercase();
    let text = unwrap(&text);
    let text = text.replace("\\\\", "\\");
    let account = text.rsplit('\\').next().unwrap_or_default();
    let authority = text.split('\\').next().unwrap_or_default();
    let machine = account.ends_with('$') || MACHINE.contains(&authority) || MACHINE.contains(&account);
    let nobody = NOBODY.contains(&text.as_str()) || NOBODY.contains(&account) || text.starts_with("deleted-object-");
    (!machine && !nobody).then_some(text)
}

/// Takes wrappings off: `Name <address>`, `smtp:address`, SharePoint claims such as `i:0h.f|membership|address`.
fn unwrap(text: &str) -> &str {
    let text = match text.rsplit_once('<') {
        Some((_, inner)) if inner.ends_with('>') && inner.contains('@') => &inner[..inner.len() - 1],
        _ => text,
    };
    let text = text.strip_prefix("smtp:").or_else(|| text.strip_prefix("mailto:")).unwrap_or(text);
    match text.rsplit_once('|') {
        Some((claim, inner)) if claim.starts_with("i:0") => inner,
        _ => text,
    }
    .trim()
}

/// Whether a canonical name is an address, so that it stands for itself when the directory does not know it.
pub fn is_address(canonical: &str) -> bool {
    let Some((local, domain)) = canonical.rsplit_once('@') else { return false };
    let domain_valid = domain.split('.').count() >= 2
        && domain
            .split('.')
            .all(|l| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b > 127));
    !local.is_empty() && !local.contains(char::is_whitespace) && domain_valid
}

/// The keyed pseudonym: real names stand in no key, label or log.
#[derive(Clone)]
pub struct Pseudonym {
    keyed: Hmac<Sha256>,
}

/// Shortest key that is accepted, in bytes.
pub const KEY_BYTES_MIN: usize = 16;

/// What the fingerprint is taken over: fixed, so that two processes can compare keys without showing them.
const FINGERPRINT_LABEL: &[u8] = b"casestream pseudonym key fingerprint v1";

impl Pseudonym {
    /// A pseudonym under a secret key.
    ///
    /// # Panics
    /// If the key is shorter than `KEY_BYTES_MIN`; configuration checks this first.
    pub fn new(key: &[u8]) -> Pseudonym {
        assert!(key.len() >= KEY_BYTES_MIN, "a pseudonym key has at least {KEY_BYTES_MIN} bytes");
        Pseudonym { keyed: Hmac::new_from_slice(key).expect("HMAC takes keys of any length") }
    }

    /// The user key of a canonical name: 26 characters of lower-case base32.
    pub fn user_key(&self, canonical: &str) -> String {
        base32(&self.digest(canonical.as_bytes()))
    }

    /// Sixteen hex digits that tell keys apart and give nothing away.
    pub fn fingerprint(&self) -> String {
        self.digest(FINGERPRINT_LABEL)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn digest(&self, data: &[u8]) -> [u8; 16] {
        let mut keyed = self.keyed.clone();
        keyed.update(data);
        let full = keyed.finalize().into_bytes();
        std::array::from_fn(|n| full[n])
    }
}

/// RFC 4648 base32, lower case, unpadded.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut out = String::with_capacity(bytes.len() * 8 / 5 + 1);
    let (mut bits, mut count) = (0u32, 0);
    for byte in bytes {
        bits = bits << 8 | u32::from(*byte);
        count += 8;
        while count >= 5 {
            count -= 5;
            out.push(ALPHABET[(bits >> count & 31) as usize] as char);
        }
    }
    if count > 0 {
        out.push(ALPHABET[(bits << (5 - count) & 31) as usize] as char);
    }
    out
}

/// A person found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    pub user_key: &'a str,
    pub zone_offset_min: i64,
}

/// The directory by alias. A name that two people carry belongs to neither.
#[derive(Default)]
pub struct Index {
    people: HashMap<Arc<str>, Person>,
    by_alias: HashMap<Box<str>, SmallVec<[Arc<str>; 1]>>,
}

struct Person {
    version: i64,
    zone_offset_min: i64,
    aliases: Vec<Box<str>>,
}

impl Index {
    /// How many people it holds.
    pub fn len(&self) -> usize {
        self.people.len()
    }

    /// Whether it holds nobody.
    pub fn is_empty(&self) -> bool {
        self.people.is_empty()
    }

    /// Takes a record; one older than what is known changes nothing.
    pub fn put(&mut self, record: &Directory<'_>) {
        if self.people.get(record.user_key.as_str()).is_some_and(|known| known.version > record.version) {
            return;
        }
        self.remove(&record.user_key);
        let key: Arc<str> = Arc::from(record.user_key.as_str());
        let aliases = aliases_of(record);
        for alias in &aliases {
            self.by_alias.entry(alias.clone()).or_default().push(key.clone());
        }
        let zone_offset_min = record.time_zone.as_ref().and_then(|zone| zone_offset_min(zone)).unwrap_or(0);
        self.people.insert(key, Person { version: record.version, zone_offset_min, aliases });
    }

    /// Forgets a person (a tombstone).
    pub fn remove(&mut self, user_key: &str) {
        let Some(person) = self.people.remove(user_key) else { return };
        for alias in person.aliases {
            let claims = self.by_alias.get_mut(&alias).expect("every alias of a person is indexed");
            claims.retain(|key| **key != *user_key);
            if claims.is_empty() {
                self.by_alias.remove(&alias);
            }
        }
    }

    /// The one person of an alias.
    pub fn find(&self, kind: &str, canonical: &str) -> Option<Found<'_>> {
        match self.by_alias.get(place(kind, canonical).as_str())?.as_slice() {
            [key] => Some(Found { user_key: key, zone_offset_min: self.people[key].zone_offset_min }),
            _ => None,
        }
    }
}

fn aliases_of(record: &Directory<'_>) -> Vec<Box<str>> {
    let own = [("upn", Some(&record.canonical_id)), ("email", record.email.as_ref())];
    let own = own.into_iter().filter_map(|(kind, value)| Some((kind, value?.as_str())));
    let more = record.aliases.iter().map(|alias| (alias.kind.as_str(), alias.value.as_str()));
    let mut aliases: Vec<Box<str>> = own
        .chain(more)
        .filter_map(|(kind, value)| Some(place(kind, &canonical(value)?).into_boxed_str()))
        .take(ALIASES_MAX)
        .collect();
    aliases.sort_unstable();
    aliases.dedup();
    aliases
}

/// Addresses share one space whatever the field is called; an opaque id is only unique within its kind.
fn place(kind: &str, canonical: &str) -> String {
    let space = if kind != "display_name" && canonical.contains('@') { "address" } else { kind };
    format!("{space}:{canonical}")
}

/// Minutes east of UTC of a zone with a fixed offset: `UTC`, `+02:00`, `UTC+2`, `Etc/GMT-2`.
pub fn zone_offset_min(zone: &str) -> Option<i64> {
    let zone = zone.trim();
    if ["UTC", "Etc/UTC", "GMT", "Etc/GMT", "Z", "Zulu"].contains(&zone) {
        return Some(0);
    }
    // POSIX counts westward: Etc/GMT-2 is two hours east.
    let (direction, text) = match zone.strip_prefix("Etc/GMT") {
        Some(rest) => (-1, rest),
        None => (1, zone.strip_prefix("UTC").or_else(|| zone.strip_prefix("GMT")).unwrap_or(zone)),
    };
    let (sign, digits) = match text.split_at_checked(1)? {
        ("+", digits) => (1, digits),
        ("-", digits) => (-1, digits),
        _ => return None,
    };
    let (hours, minutes) = match (digits.split_once(':'), digits.len()) {
        (Some((hours, minutes)), _) => (hours, minutes),
        (None, 4) => digits.split_at_checked(2)?,
        (None, _) => (digits, "0"),
    };
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<i64>().ok()).flatten();
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (hours <= 14 && minutes < 60).then_some(direction * sign * (hours * 60 + minutes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Text;
    use crate::domain::directory::Alias;

    #[test]
    fn canonical_names() {
        for (alias, expect) in [
            ("  ASR@TestSiem.Example ", Some("asr@testsiem.example")),
            ("Ann \u{200b}Example <Ann@Example.com>", Some("ann@example.com")),
            ("i:0h.f|membership|ann@example.com", Some("ann@example.com")),
            ("SMTP:ann@example.com", Some("ann@example.com")),
            ("CORP\\\\Ann", Some("corp\\ann")),
            ("1068824450489230065", Some("1068824450489230065")),
            ("NAME_NOT_AVAILABLE", None),
            ("Unknown User", None),
            ("N/A", None),
            ("redacted", None),
            (" \0 ", None),
            ("LAPTOP-1$", None),
            ("CORP\\LAPTOP-1$", None),
            ("NT AUTHORITY\\SYSTEM", None),
            ("S-1-5-18", None),
        ] {
            assert_eq!(canonical(alias).as_deref(), expect, "{alias:?}");
        }
    }

    #[test]
    fn addresses() {
        for (text, expect) in
            [("a@b.c", true), ("a@b", false), ("@b.c", false), ("a b@c.d", false), ("a@b..c", false), ("ab.c", false)]
        {
            assert_eq!(is_address(text), expect, "{text}");
        }
    }

    #[test]
    fn base32_equals_rfc_4648() {
        for (bytes, expect) in
            [("", ""), ("f", "my"), ("fo", "mzxq"), ("foo", "mzxw6"), ("foob", "mzxw6yq"), ("foobar", "mzxw6ytboi")]
        {
            assert_eq!(base32(bytes.as_bytes()), expect);
        }
    }

    #[test]
    fn pseudonyms_depend_on_key_and_name_only() {
        let (a, b) = (Pseudonym::new(&[1; 32]), Pseudonym::new(&[2; 32]));
        assert_eq!(a.user_key("ann@example.com"), a.user_key("ann@example.com"));
        assert_ne!(a.user_key("ann@example.com"), b.user_key("ann@example.com"));
        assert_ne!(a.fingerprint(), b.fingerprint());
        assert_eq!((a.user_key("x").len(), a.fingerprint().len()), (26, 16));
    }

    /// RFC 4231, test case 2: the digest is HMAC-SHA-256 of the name.
    #[test]
    fn pseudonym_is_the_first_half_of_hmac_sha256() {
        let key = *b"Jefe\0\0\0\0\0\0\0\0\0\0\0\0";
        let digest = Pseudonym::new(&key).digest(b"what do ya want for nothing?");
        assert_eq!(digest[..4], [0x5b, 0xdc, 0xc1, 0x46]);
    }

    fn person(key: &str, version: i64, aliases: &[(&str, &str)], zone: Option<&str>) -> Directory<'static> {
        let alias = |(kind, value): &(&str, &str)| Alias {
            kind: Text::from((*kind).to_owned()),
            value: Text::from((*value).to_owned()),
        };
        Directory {
            user_key: Text::from(key.to_owned()),
            canonical_id: Text::from(format!("{key}@example.com")),
            aliases: aliases.iter().map(alias).collect(),
            time_zone: zone.map(|z| Text::from(z.to_owned())),
            version,
            ..Directory::default()
        }
    }

    #[test]
    fn the_index_follows_the_directory() {
        let mut index = Index::default();
        index.put(&person("u1", 1, &[("email", "Ann@Example.org"), ("badge", "7")], Some("+02:00")));
        index.put(&person("u2", 1, &[("display_name", "Sam Lee"), ("profile_id", "7")], None));
        index.put(&person("u3", 1, &[("display_name", "Sam Lee")], None));
        let key = |index: &Index, kind: &str, value: &str| index.find(kind, value).map(|f| f.user_key.to_owned());
        assert_eq!(index.find("upn", "ann@example.org").unwrap().zone_offset_min, 120);
        assert_eq!(key(&index, "badge", "7").as_deref(), Some("u1"));
        assert_eq!(key(&index, "profile_id", "7").as_deref(), Some("u2"));
        assert_eq!(key(&index, "display_name", "sam lee"), None, "a name of two people belongs to neither");
        index.remove("u3");
        assert_eq!(key(&index, "display_name", "sam lee").as_deref(), Some("u2"));
        index.put(&person("u1", 0, &[("email", "old@example.org")], None));
        assert_eq!(key(&index, "email", "old@example.org"), None, "an older version changes nothing");
        index.put(&person("u1", 2, &[], None));
        assert_eq!(key(&index, "email", "ann@example.org"), None, "a newer version replaces all aliases");
        assert_eq!(index.len(), 2);
    }

    #[test]
    fn fixed_zones() {
        for (zone, expect) in [
            ("UTC", Some(0)),
            ("+05:30", Some(330)),
            ("-0800", Some(-480)),
            ("UTC+2", Some(120)),
            ("Etc/GMT+5", Some(-300)),
            ("Europe/Berlin", None),
            ("+25:00", None),
            ("", None),
            ("é", None),
        ] {
            assert_eq!(zone_offset_min(zone), expect, "{zone}");
        }
    }
}
