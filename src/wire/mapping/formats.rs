//! Text forms other than JSON that products write: a CEF line, a `KEY=value;` list, a CSV line. Pure, linear in the
//! length of the text, without guessing: what is not of the form is `None` or stays part of the value before it.
//! Next: `input.rs`, which reads whole records in these forms.

use vrl::value::{KeyString, ObjectMap, Value};

/// Names of the seven fields in front of the extension.
const CEF_HEADER: [&str; 7] =
    ["cefVersion", "deviceVendor", "deviceProduct", "deviceVersion", "deviceEventClassId", "name", "severity"];
/// Most fields of one line or list.
const FIELDS_MAX: usize = 1_000;

/// A CEF line, after whatever a relay put in front of `CEF:`. Extension fields stand under their keys; a custom field
/// (`cs1`, `cn2` …) stands also under its label in `custom`. Of a repeated key or label the last wins.
pub fn cef(text: &str) -> Option<ObjectMap> {
    let mut rest = text.split_once("CEF:")?.1.trim_end();
    let mut map = ObjectMap::new();
    for name in CEF_HEADER {
        let (field, after) = match unescaped(rest, b'|') {
            Some(at) => (&rest[..at], &rest[at + 1..]),
            // A line without an extension may lack the last bar.
            None if name == "severity" => (rest, ""),
            None => return None,
        };
        map.insert(name.into(), Value::from(unescape(field.trim())));
        rest = after;
    }
    for (key, value) in extension(rest) {
        map.insert(key.into(), Value::from(unescape(value)));
    }
    let custom: ObjectMap = map.iter().filter_map(|(key, label)| custom_field(&map, key, label)).collect();
    map.insert("custom".into(), Value::Object(custom));
    Some(map)
}

fn custom_field(map: &ObjectMap, key: &KeyString, label: &Value) -> Option<(KeyString, Value)> {
    let value = map.get(key.as_str().strip_suffix("Label")?)?;
    Some((label.to_str()?.into(), value.clone()))
}

/// Where a byte stands that no backslash precedes.
fn unescaped(text: &str, wanted: u8) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 1,
            byte if byte == wanted => return Some(at),
            _ => {}
        }
        at += 1;
    }
    None
}

/// `key=value key=value`: a key follows a blank, and a value may hold blanks and signs of equality.
fn extension(text: &str) -> Vec<(&str, &str)> {
    let mut starts: Vec<(usize, usize)> = Vec::new();
    let (mut at, bytes) = (0, text.as_bytes());
    while let Some(found) = text.get(at..).and_then(|rest| unescaped(rest, b'=')) {
        let equals = at + found;
        let is_key = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'[' | b']');
        let length = bytes[..equals].iter().rev().take_while(|b| is_key(b)).count();
        let start = equals - length;
        if length > 0 && (start == 0 || bytes[start - 1] == b' ') && starts.len() < FIELDS_MAX {
            starts.push((start, equals));
        }
        at = equals + 1;
    }
    let ends = starts.iter().skip(1).map(|(start, _)| *start).chain([text.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|((start, equals), end)| (&text[*start..*equals], text[equals + 1..end].trim()))
        .collect()
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n' | 'r') => out.push(' '),
                Some(other @ ('\\' | '=' | '|')) => out.push(other),
                Some(other) => out.extend(['\\', other]),
                None => out.push('\\'),
            },
            other => out.push(other),
        }
    }
    out
}

/// A `KEY=value;KEY=value` list. A value may hold semicolons: a piece that begins with no key (letters, digits and `_`
/// in front of a sign of equality) belongs to the value before it. Of a repeated key the last wins.
pub fn pairs(text: &str) -> ObjectMap {
    let mut found: Vec<(&str, usize, usize)> = Vec::new();
    let mut at = 0;
    for piece in text.split(';') {
        let end = at + piece.len();
        match key_of(piece) {
            Some(key) if found.len() < FIELDS_MAX => {
                let value = at + piece.find('=').expect("a key ends at one") + 1;
                found.push((key, value, end));
            }
            _ => {
                if let Some(last) = found.last_mut() {
                    last.2 = end;
                }
            }
        }
        at = end + 1;
    }
    found.into_iter().map(|(key, from, to)| (key.into(), Value::from(text[from..to].trim()))).collect()
}

fn key_of(piece: &str) -> Option<&str> {
    let key = piece.split_once('=')?.0.trim();
    let valid = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (key.starts_with(|c: char| c.is_ascii_alphabetic()) && key.bytes().all(valid)).then_some(key)
}

/// The fields of one CSV line as RFC 4180 quotes them; `None` if a quote is left open or text follows a closed one.
pub fn csv(line: &str, delimiter: char) -> Option<Vec<String>> {
    let mut fields = Vec::new();
    let mut rest = line.strip_suffix('\n').unwrap_or(line);
    rest = rest.strip_suffix('\r').unwrap_or(rest);
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted)?,
            None => {
                let end = rest.find([delimiter, '\n', '\r']).unwrap_or(rest.len());
                (rest[..end].trim().to_owned(), &rest[end..])
            }
        };
        fields.push(field);
        match after.chars().next() {
            None => return Some(fields),
            Some(c) if c == delimiter && fields.len() < FIELDS_MAX => rest = &after[c.len_utf8()..],
            // A second line, text after a quoted field, or no end of fields.
            Some(_) => return None,
        }
    }
}

/// The field behind an opening quote, and what follows its closing one.
fn quoted_field(text: &str) -> Option<(String, &str)> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let (part, after) = rest.split_once('"')?;
        field.push_str(part);
        match after.strip_prefix('"') {
            Some(more) => {
                field.push('"');
                rest = more;
            }
            None => return Some((field, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(map: &ObjectMap) -> String {
        map.iter().map(|(k, v)| format!("{k}={}", v.to_str().unwrap_or("{}"))).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn cef_lines() {
        let line = r"<134>1 2026-03-02T08:00:00Z dlp CEF:0|Acme|DLP|1.0|42|USB \| copy|7|suser=EX\\ann fname=plan a=b.xlsx act=blocked cs1Label=Policy cs1=Devices request=https://a.test/?x=1 msg=two\=2\nlines";
        let map = cef(line).unwrap();
        for (key, expect) in [
            ("deviceVendor", "Acme"),
            ("name", "USB | copy"),
            ("severity", "7"),
            ("suser", "EX\\ann"),
            ("fname", "plan"),
            ("a", "b.xlsx"),
            ("act", "blocked"),
            ("request", "https://a.test/?x=1"),
            ("msg", "two=2 lines"),
        ] {
            assert_eq!(map.get(key).and_then(Value::to_str), Some(expect), "{key}");
        }
        assert_eq!(shown(map.get("custom").and_then(Value::as_object).unwrap()), "Policy=Devices");
        assert_eq!(cef("CEF:0|a|b|c|d|e|5").unwrap().len(), 8);
        for no in ["", "CEF:0|a|b", "LEEF:1.0|a", "cef"] {
            assert!(cef(no).is_none(), "{no}");
        }
    }

    #[test]
    fn lists_of_pairs() {
        for (text, expect) in [
            ("A=1;B=two ;C=", "A=1; B=two; C="),
            ("URL=;https://a.test/?x(1)=;b.c=2;NEXT=3", "NEXT=3; URL=;https://a.test/?x(1)=;b.c=2"),
            ("noise;A=1", "A=1"),
            ("A=1;A=2", "A=2"),
            ("", ""),
        ] {
            assert_eq!(shown(&pairs(text)), expect, "{text}");
        }
    }

    #[test]
    fn csv_lines() {
        let some = |fields: &[&str]| Some(fields.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>());
        for (line, expect) in [
            ("a, b ,c\r\n", some(&["a", "b", "c"])),
            ("\"a,\"\"1\"\"\",\"two\nlines\",", some(&["a,\"1\"", "two\nlines", ""])),
            ("", some(&[""])),
            ("a\nb", None),
            ("\"open", None),
            ("\"a\"b,c", None),
        ] {
            assert_eq!(csv(line, ','), expect, "{line:?}");
        }
        assert_eq!(csv("ä;ö", ';'), some(&["ä", "ö"]));
    }
}
