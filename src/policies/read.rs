//! Reading one TOML file with everything wrong in it reported at once: each problem with line, column, the line itself
//! and what to do. A reader returns a default after a problem and goes on; the caller looks at the problems last.
//! Numbers of points become thousandths here, digit by digit, so nothing is rounded. Next: `catalogue.rs`.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::nearest;

/// Something wrong in a file, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub file: String,
    /// From 1; 0 when the file as a whole is meant.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The line, without its end.
    pub excerpt: String,
    /// Characters to underline.
    pub width: usize,
    pub message: String,
    /// What to do; never empty.
    pub fix: String,
}

impl Problem {
    /// A problem of the file as a whole.
    pub fn of_file(file: &str, message: impl Into<String>, fix: impl Into<String>) -> Problem {
        Problem {
            file: file.to_owned(),
            line: 0,
            column: 0,
            excerpt: String::new(),
            width: 0,
            message: message.into(),
            fix: fix.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            writeln!(f, "{}: {}", self.file, self.message)?;
        } else {
            writeln!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)?;
            writeln!(f, "  {:>4} | {}", self.line, self.excerpt)?;
            writeln!(f, "       | {}{}", " ".repeat(self.column - 1), "^".repeat(self.width.max(1)))?;
        }
        write!(f, "  fix: {}", self.fix)
    }
}

/// One file under the reader.
pub struct Sheet<'a> {
    name: &'a str,
    text: &'a str,
    problems: RefCell<Vec<Problem>>,
}

impl<'a> Sheet<'a> {
    /// A file to be read.
    pub fn new(name: &'a str, text: &'a str) -> Sheet<'a> {
        Sheet { name, text, problems: RefCell::new(Vec::new()) }
    }

    /// Parses the file; every syntax error becomes a problem.
    pub fn parse(&self) -> Spanned<DeTable<'a>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            let at = error.span().unwrap_or(0..0);
            self.report(at, error.message().lines().collect::<Vec<_>>().join("; "), "correct the TOML syntax here");
        }
        table
    }

    /// The whole file as a section.
    pub fn root<'s>(&'s self, table: &'s Spanned<DeTable<'a>>) -> Section<'s, 'a> {
        Section {
            sheet: self,
            path: String::new(),
            table: table.get_ref(),
            span: 0..0,
            asked: RefCell::default(),
            refused: RefCell::default(),
        }
    }

    /// Notes a problem at these bytes.
    pub fn report(&self, at: Range<usize>, message: impl Into<String>, fix: impl Into<String>) {
        // Spans of syntax errors may lie inside a character.
        let start = self.text.floor_char_boundary(at.start);
        let line_start = self.text[..start].rfind('\n').map_or(0, |n| n + 1);
        let excerpt = self.text[line_start..].lines().next().unwrap_or("").to_owned();
        let column = self.text[line_start..start].chars().count() + 1;
        let end = self.text.floor_char_boundary(at.end).min(line_start + excerpt.len()).max(start);
        self.problems.borrow_mut().push(Problem {
            file: self.name.to_owned(),
            line: self.text[..start].matches('\n').count() + 1,
            column,
            width: self.text[start..end].chars().count(),
            excerpt,
            message: message.into(),
            fix: fix.into(),
        });
    }

    /// Whether anything is wrong so far.
    pub fn is_broken(&self) -> bool {
        !self.problems.borrow().is_empty()
    }

    /// Everything found, in the order of the file.
    pub fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|p| (p.line, p.column));
        problems
    }
}

/// A table of the file. Keys that were asked for are known; `finish` reports the others.
pub struct Section<'s, 'a> {
    sheet: &'s Sheet<'a>,
    path: String,
    table: &'s DeTable<'a>,
    span: Range<usize>,
    asked: RefCell<BTreeSet<String>>,
    /// Keys reported already as not implemented.
    refused: RefCell<BTreeSet<String>>,
}

/// A text and where it stands.
pub struct Word<'s> {
    pub text: &'s str,
    pub at: Range<usize>,
}

impl<'s, 'a> Section<'s, 'a> {
    /// Notes a problem of the section itself, at its heading.
    pub fn report(&self, message: impl Into<String>, fix: impl Into<String>) {
        if self.path.is_empty() {
            // The file as a whole has no heading to point at.
            let problem = Problem::of_file(self.sheet.name, message, fix);
            return self.sheet.problems.borrow_mut().push(problem);
        }
        self.sheet.report(self.span.clone(), message, fix);
    }

    /// Notes a problem at a key's value, or at the heading when the key is absent.
    pub fn report_at(&self, key: &str, message: impl Into<String>, fix: impl Into<String>) {
        match self.table.get(key) {
            Some(value) => self.sheet.report(value.span(), message, fix),
            None => self.report(message, fix),
        }
    }

    /// Notes a problem at these bytes.
    pub fn report_span(&self, at: Range<usize>, message: impl Into<String>, fix: impl Into<String>) {
        self.sheet.report(at, message, fix);
    }

    /// The line on which the section stands, from 1.
    pub fn line(&self) -> usize {
        self.sheet.text.bytes().take(self.span.start).filter(|b| *b == b'\n').count() + 1
    }

    /// Whether the key is written.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// The keys, in the order of their names.
    pub fn keys(&self) -> Vec<Word<'s>> {
        self.table.keys().map(|k| Word { text: k.get_ref().as_ref(), at: k.span() }).collect()
    }

    fn value(&self, key: &str) -> Option<&'s Spanned<DeValue<'a>>> {
        self.asked.borrow_mut().insert(key.to_owned());
        self.table.get(key)
    }

    fn missing(&self, key: &str, example: &str) {
        self.report(format!("`{}{key}` is missing", self.path), format!("add `{key} = {example}`"));
    }

    fn wrong_type(&self, key: &str, value: &Spanned<DeValue<'a>>, wanted: &str, example: &str) {
        let found = value.get_ref().type_str();
        self.sheet.report(
            value.span(),
            format!("`{}{key}` must be {wanted}, not {found}", self.path),
            format!("write `{key} = {example}`"),
        );
    }

    /// A text that must be there and not be blank.
    pub fn text(&self, key: &str, example: &str) -> &'s str {
        let quoted = format!("\"{example}\"");
        match self.value(key) {
            None => {
                self.missing(key, &quoted);
                ""
            }
            Some(value) => match value.get_ref().as_str() {
                Some(text) if !text.trim().is_empty() => text,
                Some(_) => {
                    self.sheet.report(
                        value.span(),
                        format!("`{}{key}` is empty", self.path),
                        format!("write for example `{key} = {quoted}`"),
                    );
                    ""
                }
                None => {
                    self.wrong_type(key, value, "a text", &quoted);
                    ""
                }
            },
        }
    }

    /// One of a closed list of words; the first is the default unless the key is required.
    pub fn word(&self, key: &str, words: &[&'static str], required: bool) -> &'static str {
        let Some(value) = self.value(key) else {
            if required {
                self.missing(key, &format!("\"{}\"", words[0]));
            }
            return words[0];
        };
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(key, value, "a text", &format!("\"{}\"", words[0]));
            return words[0];
        };
        if let Some(word) = words.iter().find(|w| **w == text) {
            return word;
        }
        let list = words.join(", ");
        let fix = match nearest(text, words.iter().copied()) {
            Some(near) => format!("did you mean \"{near}\"? possible: {list}"),
            None => format!("possible: {list}"),
        };
        self.sheet.report(value.span(), format!("`{}{key}` does not know \"{text}\"", self.path), fix);
        words[0]
    }

    /// A list of texts, with positions; absent means empty.
    pub fn texts(&self, key: &str) -> Vec<Word<'s>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(key, value, "a list of texts", "[\"…\"]");
            return Vec::new();
        };
        let mut words = Vec::new();
        for item in array.iter() {
            match item.get_ref().as_str() {
                Some(text) if !text.trim().is_empty() => words.push(Word { text, at: item.span() }),
                _ => self.sheet.report(
                    item.span(),
                    format!("`{}{key}` may hold texts only, none of them empty", self.path),
                    "quote the value or remove it",
                ),
            }
        }
        words
    }

    /// True or false; absent means the default.
    pub fn flag(&self, key: &str, default: bool) -> bool {
        let Some(value) = self.value(key) else { return default };
        value.get_ref().as_bool().unwrap_or_else(|| {
            self.wrong_type(key, value, "true or false", "true");
            default
        })
    }

    /// A whole number in a range; absent means the default, or a problem when there is none.
    pub fn whole(&self, key: &str, range: RangeInclusive<i64>, default: Option<i64>) -> i64 {
        let fallback = default.unwrap_or(*range.start());
        let Some(value) = self.value(key) else {
            if default.is_none() {
                self.missing(key, &range.start().to_string());
            }
            return fallback;
        };
        let Some(number) = value.get_ref().as_integer() else {
            self.wrong_type(key, value, "a whole number", &fallback.to_string());
            return fallback;
        };
        match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(n) if range.contains(&n) => n,
            _ => {
                self.out_of_range(key, value, number.as_str(), range.start(), range.end());
                fallback
            }
        }
    }

    fn out_of_range(
        &self,
        key: &str,
        value: &Spanned<DeValue<'a>>,
        found: &str,
        low: &dyn fmt::Display,
        high: &dyn fmt::Display,
    ) {
        self.sheet.report(
            value.span(),
            format!("`{}{key}` is {found}, outside {low} to {high}", self.path),
            format!("choose a number from {low} to {high}"),
        );
    }

    /// A number with up to three decimals, as thousandths; the range is in thousandths too.
    pub fn milli(&self, key: &str, range: RangeInclusive<i64>, default: Option<i64>) -> i64 {
        let fallback = default.unwrap_or(*range.start());
        let (low, high) = (Milli(*range.start()), Milli(*range.end()));
        let Some(value) = self.value(key) else {
            if default.is_none() {
                self.missing(key, &Milli(fallback).to_string());
            }
            return fallback;
        };
        let text = match value.get_ref() {
            DeValue::Integer(n) if n.radix() == 10 => n.as_str(),
            DeValue::Float(n) => n.as_str(),
            _ => {
                self.wrong_type(key, value, "a number", &Milli(fallback).to_string());
                return fallback;
            }
        };
        match Milli::parse(text) {
            Some(Milli(n)) if range.contains(&n) => n,
            Some(_) => {
                self.out_of_range(key, value, text, &low, &high);
                fallback
            }
            None => {
                self.sheet.report(
                    value.span(),
                    format!("`{}{key}` is {text}, finer than a thousandth or not a plain decimal", self.path),
                    format!("write at most three decimals, from {low} to {high}"),
                );
                fallback
            }
        }
    }

    /// A table below this one; absent is `None`.
    pub fn table(&self, key: &str) -> Option<Section<'s, 'a>> {
        let value = self.value(key)?;
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(key, value, "a table", "{ … }");
            return None;
        };
        let path = format!("{}{key}.", self.path);
        let span = self.table.get_key_value(key).map_or(value.span(), |(k, _)| k.span());
        Some(Section { sheet: self.sheet, path, table, span, asked: RefCell::default(), refused: RefCell::default() })
    }

    /// A list of tables; absent means empty.
    pub fn tables(&self, key: &str) -> Vec<Section<'s, 'a>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(key, value, "a list of tables", "[{ … }]");
            return Vec::new();
        };
        let mut sections = Vec::new();
        for item in array.iter() {
            match item.get_ref().as_table() {
                Some(table) => sections.push(Section {
                    sheet: self.sheet,
                    path: format!("{}{key}.", self.path),
                    table,
                    span: item.span(),
                    asked: RefCell::default(),
                    refused: RefCell::default(),
                }),
                None => self.wrong_type(key, item, "a list of tables", "[{ … }]"),
            }
        }
        sections
    }

    /// Makes an optional key known although nobody read it.
    pub fn know(&self, key: &str) {
        self.asked.borrow_mut().insert(key.to_owned());
    }

    /// Refuses a key that the format describes and this release does not do yet.
    pub fn not_yet(&self, key: &str, instead: &str) {
        if let Some((name, _)) = self.table.get_key_value(key) {
            self.refused.borrow_mut().insert(key.to_owned());
            self.sheet.report(name.span(), format!("`{}{key}` is not implemented in this release", self.path), instead);
        }
    }

    /// Reports every key nobody asked for.
    pub fn finish(&self) {
        let asked = self.asked.borrow();
        for name in self.table.keys() {
            let text = name.get_ref().as_ref();
            if asked.contains(text) || self.refused.borrow().contains(text) {
                continue;
            }
            let fix = match nearest(text, asked.iter().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("remove it; known here: {}", asked.iter().cloned().collect::<Vec<_>>().join(", ")),
            };
            self.sheet.report(name.span(), format!("unknown key `{}{text}`", self.path), fix);
        }
    }
}

/// Thousandths, printed and parsed as a plain decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Milli(pub i64);

impl Milli {
    /// Reads a plain decimal with at most three decimals.
    pub fn parse(text: &str) -> Option<Milli> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let fraction = fraction.trim_end_matches('0');
        let plain = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || whole.len() > 12 || fraction.len() > 3 || !plain(whole) || !plain(fraction) {
            return None;
        }
        let thousandths: i64 = format!("{fraction:0<3}").parse().ok()?;
        let value = whole.parse::<i64>().ok()? * 1000 + thousandths;
        Some(Milli(if negative { -value } else { value }))
    }
}

impl fmt::Display for Milli {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, value) = (if self.0 < 0 { "-" } else { "" }, self.0.unsigned_abs());
        let text = format!("{sign}{}.{:03}", value / 1000, value % 1000);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_exact() {
        for (text, milli) in [
            ("1.75", Some(1750)),
            ("0.5", Some(500)),
            ("37", Some(37_000)),
            ("-2.001", Some(-2001)),
            ("1.7500", Some(1750)),
            ("1.0005", None),
            ("1e3", None),
            ("inf", None),
            (".5", None),
        ] {
            assert_eq!(Milli::parse(text).map(|m| m.0), milli, "{text}");
        }
        assert_eq!(Milli(36_850).to_string(), "36.85");
        assert_eq!(Milli(-500).to_string(), "-0.5");
    }
}
