//! The form of a record's value: a JSON object, a CEF line, a CSV line under known columns, or any text. Whatever the
//! form, the program sees an object. Next: `program.rs`, which runs it.

use serde::Deserialize;
use vrl::value::{ObjectMap, Value};

use super::{Code, formats, json};
use crate::topology::INPUT_BYTES_MAX;

/// `input` of a mapping file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// One JSON object.
    #[default]
    Json,
    /// One CEF line; the program sees its fields.
    Cef,
    /// One CSV line; the program sees an object under the names of `csv.columns`.
    Csv,
    /// Anything that is UTF-8: the program sees it as `.message`.
    Text,
}

/// `[csv]` of a mapping file: what a line does not say itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Csv {
    /// Names of the fields, in the order of the line.
    pub columns: Vec<String>,
    #[serde(default = "comma")]
    pub delimiter: char,
}

fn comma() -> char {
    ','
}

/// What a record holds.
pub enum Event {
    One(Value),
    /// A CSV line that repeats the names of the columns.
    Header,
}

/// How a mapping reads its records.
pub struct Input {
    form: Form,
    keys: json::Keys,
    csv: Option<Csv>,
}

impl Input {
    /// Refuses what does not fit together, saying what to change.
    pub fn new(form: Form, keys: json::Keys, csv: Option<Csv>) -> Result<Input, String> {
        match (&csv, form) {
            (None, Form::Csv) => return Err("`input = \"csv\"` needs a table `[csv]` with `csv.columns`".to_owned()),
            (Some(csv), Form::Csv) if csv.columns.is_empty() || csv.columns.iter().any(|c| c.trim().is_empty()) => {
                return Err("`csv.columns` must name every field of a line".to_owned());
            }
            (Some(csv), Form::Csv) if matches!(csv.delimiter, '"' | '\n' | '\r') => {
                return Err("`csv.delimiter` must be neither a quote nor the end of a line".to_owned());
            }
            (Some(_), Form::Json | Form::Cef | Form::Text) => {
                return Err("`[csv]` is for `input = \"csv\"`".to_owned());
            }
            _ => {}
        }
        Ok(Input { form, keys, csv })
    }

    /// Reads one record.
    pub fn read(&self, raw: &[u8]) -> Result<Event, Code> {
        if self.form == Form::Json {
            return json::parse_event(raw, self.keys).map(Event::One);
        }
        let text = plain(raw)?;
        let map = match (&self.csv, self.form) {
            (Some(csv), _) => match row(csv, text)? {
                Some(row) => row,
                None => return Ok(Event::Header),
            },
            (None, Form::Cef) => formats::cef(text).ok_or(Code::CefMalformed)?,
            (None, _) => ObjectMap::from([("message".into(), Value::from(text))]),
        };
        let map = if self.keys == json::Keys::Lower { super::functions::lower(map) } else { map };
        Ok(Event::One(Value::Object(map)))
    }
}

fn plain(raw: &[u8]) -> Result<&str, Code> {
    if raw.len() > INPUT_BYTES_MAX {
        return Err(Code::RecordTooLarge);
    }
    let text = std::str::from_utf8(raw).map_err(|_| Code::JsonNotUtf8)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim().is_empty() { Err(Code::RecordEmpty) } else { Ok(text) }
}

/// The line by its columns; `None` if it is the header.
fn row(csv: &Csv, text: &str) -> Result<Option<ObjectMap>, Code> {
    let fields = formats::csv(text, csv.delimiter).filter(|fields| fields.len() == csv.columns.len());
    let fields = fields.ok_or(Code::CsvMalformed)?;
    if fields.iter().zip(&csv.columns).all(|(field, column)| field.eq_ignore_ascii_case(column)) {
        return Ok(None);
    }
    let pairs = csv.columns.iter().zip(fields);
    Ok(Some(pairs.map(|(column, field)| (column.as_str().into(), Value::from(field))).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(form: Form, keys: json::Keys, csv: Option<Csv>, raw: &[u8]) -> String {
        match Input::new(form, keys, csv).expect("a sound input").read(raw) {
            Ok(Event::One(value)) => value.to_string(),
            Ok(Event::Header) => "header".to_owned(),
            Err(code) => code.as_str().to_owned(),
        }
    }

    #[test]
    fn forms_become_objects() {
        let csv = || Some(Csv { columns: vec!["Who".to_owned(), "What".to_owned()], delimiter: ';' });
        let (written, lower) = (json::Keys::AsWritten, json::Keys::Lower);
        for (form, keys, csv, raw, expect) in [
            (Form::Json, written, None, "{\"A\":1}", r#"{ "A": 1 }"#),
            (Form::Text, written, None, "\u{feff}any text", r#"{ "message": "any text" }"#),
            (Form::Text, written, None, " \n", "record.empty"),
            (Form::Csv, written, csv(), "ann;a;b", "csv.malformed"),
            (Form::Csv, written, csv(), "who;WHAT\r\n", "header"),
            (Form::Csv, written, csv(), "ann;\"a;b\"\n", r#"{ "What": "a;b", "Who": "ann" }"#),
            (Form::Csv, lower, csv(), "ann;a", r#"{ "what": "a", "who": "ann" }"#),
            (Form::Cef, written, None, "{\"A\":1}", "cef.malformed"),
        ] {
            assert_eq!(read(form, keys, csv, raw.as_bytes()), expect, "{raw:?}");
        }
        assert_eq!(read(Form::Text, written, None, b"\xff"), "json.not_utf8");
        assert_eq!(read(Form::Text, written, None, &vec![b'x'; INPUT_BYTES_MAX + 1]), "record.too_large");
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let csv = |columns: &[&str], delimiter| {
            Some(Csv { columns: columns.iter().map(|c| (*c).to_owned()).collect(), delimiter })
        };
        for (form, csv, part) in [
            (Form::Csv, None, "needs a table"),
            (Form::Csv, csv(&[], ','), "name every field"),
            (Form::Csv, csv(&["a", " "], ','), "name every field"),
            (Form::Csv, csv(&["a"], '"'), "csv.delimiter"),
            (Form::Json, csv(&["a"], ','), "is for"),
        ] {
            let error = Input::new(form, json::Keys::AsWritten, csv).err().expect("refused");
            assert!(error.contains(part), "{error}");
        }
    }
}
