//! Answers on stdout: a table for people, or one JSON document and nothing else. Progress and errors go to stderr.

use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::domain::Timestamp;

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    Table,
    Json,
}

impl Output {
    /// Prints an answer: the document as JSON, or what `text` makes of it.
    pub fn print<T: Serialize>(self, document: &T, text: impl FnOnce(&T) -> String) -> io::Result<()> {
        let answer = match self {
            Output::Json => serde_json::to_string_pretty(document)?,
            Output::Table => text(document),
        };
        match writeln!(io::stdout().lock(), "{}", answer.trim_end()) {
            // A reader that has seen enough, such as `head`, is no failure.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }
}

/// Rows under a header, aligned, without lines.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|h| h.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Thousandths of a point with all three decimals, so that columns add up by eye.
pub fn points(milli: i64) -> String {
    let sign = if milli < 0 { "-" } else { "" };
    format!("{sign}{}.{:03}", milli.unsigned_abs() / 1_000, milli.unsigned_abs() % 1_000)
}

/// "2026-11-24 10:00:00Z".
pub fn time(at: Timestamp) -> String {
    let text = at.rfc3339();
    text.get(..19).map_or(text.clone(), |second| format!("{}Z", second.replace('T', " ")))
}

/// Text of others on a terminal: control characters and what turns text around are spelled out, so that no record can
/// move the cursor, hide a line or set a title.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => out.push(c),
            c if c.is_control()
                || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                out.extend(c.escape_unicode());
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_has_no_trailing_spaces() {
        let rows = [vec!["a".into(), "long text".into()], vec!["bcd".into(), "x".into()]];
        assert_eq!(table(&["id", "name"], rows), "ID   NAME\na    long text\nbcd  x");
    }

    #[test]
    fn foreign_text_cannot_steer_a_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\r\n\tc\u{202e}"), "a\\u{1b}[2Jb\\u{d}\n\tc\\u{202e}");
    }

    #[test]
    fn points_have_three_decimals() {
        assert_eq!([points(72_400), points(-5), points(0)], ["72.400", "-0.005", "0.000"]);
    }
}
