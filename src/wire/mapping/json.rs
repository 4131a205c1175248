//! A JSON reader for hostile input, straight into VRL values. It differs from the usual ones on purpose: nesting is
//! bounded, a number that fits neither 64-bit integers nor finite floats stays exact as text, of a repeated key the
//! last wins, and a lone surrogate becomes U+FFFD instead of an error. The text is copied once; every string without an
//! escape is a part of that copy, so that it costs no allocation to read, to clone or to drop.

use std::borrow::Cow;

use bytestring::ByteString;
use vrl::value::{KeyString, ObjectMap, Value};

use super::{Code, DEPTH_MAX, functions};
use crate::topology::INPUT_BYTES_MAX;

/// Which keys the program sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    AsWritten,
    /// In lower case, at every depth, as the function `lower_keys` makes them.
    Lower,
}

/// Reads one event: an object, and nothing after it.
pub fn parse_event(raw: &[u8], keys: Keys) -> Result<Value, Code> {
    if raw.len() > INPUT_BYTES_MAX {
        return Err(Code::RecordTooLarge);
    }
    let text = std::str::from_utf8(raw).map_err(|_| Code::JsonNotUtf8)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.bytes().all(is_blank) {
        return Err(Code::RecordEmpty);
    }
    let whole = ByteString::from(text);
    let mut reader = Reader { text: &whole, whole: &whole, at: 0, keys, collided: false };
    let value = reader.document()?;
    match value {
        Value::Object(_) if reader.collided => {
            // Which of two keys wins is decided by their original order, which only the whole object shows.
            let mut reader = Reader { at: 0, keys: Keys::AsWritten, ..reader };
            match reader.document()? {
                Value::Object(map) => Ok(Value::Object(functions::lower(map))),
                _ => Err(Code::JsonNotObject),
            }
        }
        Value::Object(_) => Ok(value),
        _ => Err(Code::JsonNotObject),
    }
}

struct Reader<'a> {
    text: &'a str,
    /// The same text, for strings to be parts of.
    whole: &'a ByteString,
    at: usize,
    keys: Keys,
    /// Two keys of one object were the same after lower-casing.
    collided: bool,
}

type Result<T, E = Code> = std::result::Result<T, E>;

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

impl<'a> Reader<'a> {
    fn document(&mut self) -> Result<Value> {
        let value = self.value(0)?;
        self.blanks();
        if self.at == self.text.len() { Ok(value) } else { Err(Code::JsonMalformed) }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn blanks(&mut self) {
        while self.peek().is_some_and(is_blank) {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> Result<()> {
        match self.peek() {
            Some(b) if b == byte => {
                self.at += 1;
                Ok(())
            }
            _ => Err(Code::JsonMalformed),
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value> {
        self.blanks();
        match self.peek().ok_or(Code::JsonMalformed)? {
            b'{' | b'[' if depth >= DEPTH_MAX => Err(Code::JsonTooDeep),
            b'{' => self.object(depth + 1),
            b'[' => self.array(depth + 1),
            b'"' => Ok(Value::String(match self.string()? {
                Cow::Borrowed(part) => self.whole.slice_ref(part),
                Cow::Owned(text) => text.into(),
            })),
            b't' => self.word("true", Value::Boolean(true)),
            b'f' => self.word("false", Value::Boolean(false)),
            b'n' => self.word("null", Value::Null),
            _ => self.number(),
        }
    }

    fn word(&mut self, word: &str, value: Value) -> Result<Value> {
        if !self.text.as_bytes()[self.at..].starts_with(word.as_bytes()) {
            return Err(Code::JsonMalformed);
        }
        self.at += word.len();
        Ok(value)
    }

    fn object(&mut self, depth: usize) -> Result<Value> {
        self.take(b'{')?;
        let mut map = ObjectMap::new();
        self.blanks();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Object(map));
        }
        loop {
            self.blanks();
            let key = self.key()?;
            self.blanks();
            self.take(b':')?;
            let value = self.value(depth)?;
            if map.insert(key, value).is_some() {
                self.collided |= self.keys == Keys::Lower;
            }
            self.blanks();
            match self.peek() {
                Some(b',') => self.at += 1,
                _ => break,
            }
        }
        self.take(b'}')?;
        Ok(Value::Object(map))
    }

    fn array(&mut self, depth: usize) -> Result<Value> {
        self.take(b'[')?;
        let mut items = Vec::new();
        self.blanks();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value(depth)?);
            self.blanks();
            match self.peek() {
                Some(b',') => self.at += 1,
                _ => break,
            }
        }
        self.take(b']')?;
        Ok(Value::Array(items))
    }

    fn key(&mut self) -> Result<KeyString> {
        let written = self.string()?;
        Ok(KeyString::from(match self.keys {
            Keys::AsWritten => written.into_owned(),
            Keys::Lower if written.is_ascii() => {
                let mut key = written.into_owned();
                key.make_ascii_lowercase();
                key
            }
            Keys::Lower => written.to_lowercase(),
        }))
    }

    /// The characters up to the next quote, escape or end.
    fn run(&mut self) -> &'a str {
        let start = self.at;
        let rest = &self.text.as_bytes()[start..];
        let length = rest.iter().position(|b| matches!(b, b'"' | b'\\' | 0..0x20)).unwrap_or(rest.len());
        self.at += length;
        // The run ends at an ASCII byte or the end, so both ends are character boundaries.
        &self.text[start..self.at]
    }

    fn string(&mut self) -> Result<Cow<'a, str>> {
        self.take(b'"')?;
        let run = self.run();
        if self.peek() == Some(b'"') {
            self.at += 1;
            return Ok(Cow::Borrowed(run));
        }
        let mut out = run.to_owned();
        loop {
            out.push_str(self.run());
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Cow::Owned(out));
                }
                Some(b'\\') => {
                    self.at += 1;
                    out.push(self.escape()?);
                }
                _ => return Err(Code::JsonMalformed),
            }
        }
    }

    fn escape(&mut self) -> Result<char> {
        let byte = self.peek().ok_or(Code::JsonMalformed)?;
        self.at += 1;
        Ok(match byte {
            b'"' | b'\\' | b'/' => byte as char,
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode(),
            _ => return Err(Code::JsonMalformed),
        })
    }

    fn unicode(&mut self) -> Result<char> {
        let high = self.hex4()?;
        if !(0xd800..0xdc00).contains(&high) || !self.text.as_bytes()[self.at..].starts_with(b"\\u") {
            return Ok(char::from_u32(high).unwrap_or('\u{fffd}'));
        }
        let rest = self.at;
        self.at += 2;
        let low = self.hex4()?;
        if !(0xdc00..0xe000).contains(&low) {
            self.at = rest;
            return Ok('\u{fffd}');
        }
        Ok(char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00)).unwrap_or('\u{fffd}'))
    }

    fn hex4(&mut self) -> Result<u32> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4).ok_or(Code::JsonMalformed)?;
        let code = digits.iter().try_fold(0, |n, b| (*b as char).to_digit(16).map(|d| n * 16 + d));
        self.at += 4;
        code.ok_or(Code::JsonMalformed)
    }

    fn number(&mut self) -> Result<Value> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        let leading_zero = self.peek() == Some(b'0');
        let whole = self.digits();
        if whole == 0 || (leading_zero && whole > 1) {
            return Err(Code::JsonMalformed);
        }
        let mut is_integer = true;
        if self.peek() == Some(b'.') {
            self.at += 1;
            is_integer = false;
            if self.digits() == 0 {
                return Err(Code::JsonMalformed);
            }
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            is_integer = false;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            if self.digits() == 0 {
                return Err(Code::JsonMalformed);
            }
        }
        Ok(exact(&self.text[start..self.at], is_integer))
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while self.peek().is_some_and(|b| b.is_ascii_digit()) {
            self.at += 1;
        }
        self.at - start
    }
}

fn exact(text: &str, is_integer: bool) -> Value {
    if is_integer {
        return text.parse().map_or_else(|_| Value::from(text.to_owned()), Value::Integer);
    }
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Value::from_f64_or_zero(number),
        _ => Value::from(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(raw: &str) -> &'static str {
        parse_event(raw.as_bytes(), Keys::AsWritten).map_or_else(Code::as_str, |_| "ok")
    }

    #[test]
    fn accepts_and_refuses() {
        let nested = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n));
        for (raw, expect) in [
            ("{}", "ok"),
            ("\u{feff} {\"a\": [1, 2.5, -0, true, null, \"\\u00e9\\ud83d\\ude00\"]} \n", "ok"),
            (&nested(DEPTH_MAX - 1), "ok"),
            (&nested(DEPTH_MAX), "json.too_deep"),
            (&"[".repeat(200_000), "json.too_deep"),
            ("", "record.empty"),
            (" \n\t", "record.empty"),
            ("[]", "json.not_object"),
            ("\"x\"", "json.not_object"),
            ("null", "json.not_object"),
            ("{\"a\":1", "json.malformed"),
            ("{\"a\":1}}", "json.malformed"),
            ("{\"a\":1} {}", "json.malformed"),
            ("{\"a\":01}", "json.malformed"),
            ("{\"a\":1.}", "json.malformed"),
            ("{\"a\":NaN}", "json.malformed"),
            ("{\"a\":\"\u{1}\"}", "json.malformed"),
            ("{\"a\":\"\0\"}", "json.malformed"),
            ("{\"a\":\"\\x\"}", "json.malformed"),
            ("{\"a\":\"\\u12\"}", "json.malformed"),
            ("{a:1}", "json.malformed"),
            ("{\"a\":1,}", "json.malformed"),
            ("nul", "json.malformed"),
        ] {
            assert_eq!(code(raw), expect, "{}", &raw[..raw.len().min(60)]);
        }
        assert_eq!(parse_event(b"{\"a\":\"\xff\"}", Keys::AsWritten), Err(Code::JsonNotUtf8));
        assert_eq!(parse_event(&vec![b' '; INPUT_BYTES_MAX + 1], Keys::AsWritten), Err(Code::RecordTooLarge));
    }

    #[test]
    fn numbers_stay_exact() {
        let raw = r#"{"a":9007199254740993,"b":18446744073709551616,"c":-9223372036854775808,"d":1e400,"e":0.5}"#;
        let value = parse_event(raw.as_bytes(), Keys::AsWritten).unwrap();
        let map = value.as_object().unwrap();
        assert_eq!(map["a"], Value::Integer(9_007_199_254_740_993));
        assert_eq!(map["b"], Value::from("18446744073709551616"));
        assert_eq!(map["c"], Value::Integer(i64::MIN));
        assert_eq!(map["d"], Value::from("1e400"));
        assert_eq!(map["e"], Value::from_f64_or_zero(0.5));
    }

    #[test]
    fn repeated_keys_and_lone_surrogates() {
        let value = parse_event(br#"{"a":1,"a":2,"s":"\ud800x\udc00\ud800\u0041"}"#, Keys::AsWritten).unwrap();
        assert_eq!(value.as_object().unwrap()["a"], Value::Integer(2));
        assert_eq!(value.as_object().unwrap()["s"], Value::from("\u{fffd}x\u{fffd}\u{fffd}A"));
    }

    #[test]
    fn keys_in_lower_case_are_those_of_the_function() {
        for raw in [
            r#"{"Id":1,"Sub":{"KEY":[{"In\u004eer":"X"}]},"ÄÖ":"\u00c4"}"#,
            r#"{"id":1,"Id":2,"ID":3}"#,
            r#"{"Id":1,"id":2,"A":{"b":1,"B":2},"a":3}"#,
            r#"{"a":1,"a":2}"#,
            "{}",
        ] {
            let Value::Object(written) = parse_event(raw.as_bytes(), Keys::AsWritten).unwrap() else { panic!("{raw}") };
            let lower = parse_event(raw.as_bytes(), Keys::Lower).unwrap();
            assert_eq!(lower, Value::Object(functions::lower(written)), "{raw}");
        }
    }
}
