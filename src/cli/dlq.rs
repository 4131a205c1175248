//! `casestream dlq`: what was refused, why, and the original bytes. Reads only.

use super::explain::instant;
use super::output::{plain, table, time};
use super::{Exit, Failure, Global};
use crate::domain::Timestamp;
use crate::runtime::dead_letters::{self, Content, Filter, Letter, Listing};
use crate::runtime::log::KafkaLog;
use crate::runtime::service::engine_group;
use crate::topology::Topic;

/// Bytes of a value that the table shows; JSON has all.
const SHOWN_BYTES_MAX: usize = 16 << 10;

/// What to do with dead letters.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Count dead letters by reason, and list the newest
    List {
        /// Only this reason, or all that begin with it up to a dot
        #[arg(long)]
        reason: Option<String>,
        /// Only records of this source or topic
        #[arg(long)]
        source: Option<String>,
        /// Only dead letters written at or after: RFC 3339, or YYYY-MM-DD
        #[arg(long, value_name = "TIME", value_parser = instant)]
        since: Option<Timestamp>,
        /// Most rows
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Show one dead letter with its original bytes
    Show {
        /// dead-letters:PARTITION:OFFSET
        #[arg(value_name = "TOPIC:PARTITION:OFFSET", value_parser = coordinate)]
        at: (i32, i64),
    },
}

fn coordinate(text: &str) -> Result<(i32, i64), String> {
    let name = Topic::DeadLetters.name();
    let parsed = text.strip_prefix(name).and_then(|rest| rest.strip_prefix(':')).and_then(|rest| {
        let (partition, offset) = rest.split_once(':')?;
        Some((partition.parse().ok()?, offset.parse().ok()?))
    });
    parsed.filter(|(p, o): &(i32, i64)| *p >= 0 && *o >= 0).ok_or_else(|| format!("use {name}:PARTITION:OFFSET"))
}

/// Runs the command.
pub fn run(command: &Command, global: &Global) -> Result<Exit, Failure> {
    let config = global.config()?;
    let mut log = KafkaLog::new(&super::connection(&config)?, engine_group(&config))?;
    match command {
        Command::List { reason, source, since, limit } => {
            let filter = Filter { reason: reason.clone(), source: source.clone(), since: *since, limit: *limit };
            let listing = dead_letters::list(&mut log, config.kafka.partitions, &filter)?;
            global.output.print(&listing, list_text)?;
        }
        Command::Show { at: (partition, offset) } => {
            let letter = match *partition < config.kafka.partitions {
                true => dead_letters::show(&mut log, *partition, *offset)?,
                false => None,
            };
            let Some(letter) = letter else {
                let hint = "`casestream dlq list` prints coordinates; dead letters are kept for 14 days";
                let what = format!("no dead letter at {}:{partition}:{offset}", Topic::DeadLetters.name());
                return Err(Failure::new(Exit::Failure, format!("{what}\n  hint: {hint}")));
            };
            global.output.print(&letter, show_text)?;
        }
    }
    Ok(Exit::Ok)
}

fn list_text(listing: &Listing) -> String {
    let mut parts = vec![format!("{} dead letters among {} records read", listing.total, listing.read)];
    if listing.left_out > 0 {
        parts[0].push_str(&format!("; {} older records were not read (narrow --since)", listing.left_out));
    }
    if listing.total == 0 {
        return parts.remove(0);
    }
    let rows = listing.reasons.iter();
    let rows =
        rows.map(|r| vec![r.count.to_string(), plain(&r.reason), r.first.coordinate.clone(), r.meaning.to_owned()]);
    parts.push(table(&["count", "reason", "first example", "meaning"], rows));
    let rows = listing.rows.iter().map(|r| {
        let origin = r.origin.as_deref().unwrap_or("-");
        vec![time(r.at), r.coordinate.clone(), plain(&r.reason), plain(origin), plain(&r.message)]
    });
    parts.push(table(&["at", "dead letter", "reason", "record", "message"], rows));
    parts.join("\n\n")
}

fn show_text(letter: &Letter) -> String {
    let row = &letter.row;
    let facts = [
        ("dead letter", format!("{} at {}", row.coordinate, time(row.at))),
        ("reason", format!("{}: {}", plain(&row.reason), letter.meaning)),
        ("message", plain(&row.message)),
        ("record", plain(row.origin.as_deref().unwrap_or("unknown"))),
        ("attempt", row.attempt.to_string()),
    ];
    let facts: Vec<String> = facts.iter().map(|(name, value)| format!("{name:<12} {value}")).collect();
    let rows = letter.headers.iter();
    let rows = rows.map(|h| vec![plain(&h.name), plain(&h.value), h.meaning.to_owned()]);
    let headers = table(&["header", "value", "meaning"], rows);
    let (key, value) = (content("key", letter.key.as_ref()), content("value", letter.value.as_ref()));
    format!("{}\n\n{headers}\n\n{key}\n\n{value}", facts.join("\n"))
}

fn content(name: &str, content: Option<&Content>) -> String {
    let Some(content) = content else { return format!("{name}: none") };
    let mut end = content.text.len().min(SHOWN_BYTES_MAX);
    while !content.text.is_char_boundary(end) {
        end -= 1;
    }
    let more = if end < content.text.len() { "\n… (--output json has all of it)" } else { "" };
    format!("{name}: {} bytes, {}\n{}{more}", content.bytes, content.encoding, plain(&content.text[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dead_letters_are_shown() {
        assert_eq!(coordinate("dead-letters:3:17"), Ok((3, 17)));
        for bad in ["", "dead-letters", "dead-letters:3", "dead-letters:-1:0", "dead-letters:1:x", "alerts:1:2"] {
            assert!(coordinate(bad).is_err(), "{bad}");
        }
    }
}
