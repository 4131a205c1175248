//! A record that could not be processed, as data: the original key, value and headers stay byte for byte, and headers
//! with Kafka Connect's names say why, at which stage and where it lay. Existing tools read them.
//! Which records become dead letters is decided elsewhere; messages here must carry no field values.
//! Next: `mapping/mod.rs`, how a vendor's event becomes a signal.

use std::io::Write;
use std::ops::Range;

use super::headers::{HeaderList, ReadHeaders, find, present};

/// Longest message, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 500;

const CONNECT: &str = "__connect.errors.";
const TOPIC: &str = "__connect.errors.topic";
const PARTITION: &str = "__connect.errors.partition";
const OFFSET: &str = "__connect.errors.offset";
const CONNECTOR: (&str, &[u8]) = ("__connect.errors.connector.name", b"casestream");
/// Connect's readers expect a number; our work is split by partition, which has its own header.
const TASK: (&str, &[u8]) = ("__connect.errors.task.id", b"0");
const STAGE: &str = "__connect.errors.stage";
const CLASS: &str = "__connect.errors.class.name";
const EXCEPTION_CLASS: &str = "__connect.errors.exception.class.name";
const EXCEPTION_MESSAGE: &str = "__connect.errors.exception.message";
const OWN: &str = "casestream-dlq-";
const CODE: &str = "casestream-dlq-code";
const ATTEMPT: &str = "casestream-dlq-attempt";
const REDRIVEN: (&str, &[u8]) = ("casestream-dlq-redriven", b"1");

/// Where processing stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Decode,
    Map,
    Validate,
    Engine,
}

impl Stage {
    /// Every stage, in the order a record passes them.
    pub const ALL: [Stage; 4] = [Stage::Decode, Stage::Map, Stage::Validate, Stage::Engine];

    /// The word in the header.
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::Decode => "DECODE",
            Stage::Map => "MAP",
            Stage::Validate => "VALIDATE",
            Stage::Engine => "ENGINE",
        }
    }

    /// The part of casestream that gave up, where Connect names a class.
    const fn class(self) -> &'static str {
        match self {
            Stage::Decode => "casestream.wire",
            Stage::Map => "casestream.mapping",
            Stage::Validate | Stage::Engine => "casestream.engine",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Stage> {
        Stage::ALL.into_iter().find(|s| s.as_str() == word)
    }
}

/// Why and where a record failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter<'a> {
    /// Stable code, `record.truncated` and the like.
    pub code: &'a str,
    pub stage: Stage,
    /// In words, without field values; cut at `MESSAGE_BYTES_MAX`.
    pub message: &'a str,
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
    /// 1 for the first failure, +1 per redrive.
    pub attempt: u32,
}

impl<'a> DeadLetter<'a> {
    /// Headers of the dead letter: the original ones, then ours. What an earlier failure left is replaced, so a
    /// record that fails again and again does not grow. `buffer` holds the numbers.
    pub fn headers<'b>(&'b self, original: &'b ReadHeaders<'b>, buffer: &'b mut Vec<u8>) -> HeaderList<'b> {
        buffer.clear();
        let partition = number(buffer, self.partition.into());
        let offset = number(buffer, self.offset);
        let attempt = number(buffer, self.attempt.into());
        let buffer: &'b [u8] = buffer;
        let mut list = originals(original);
        list.extend([
            (TOPIC, self.topic.as_bytes()),
            (PARTITION, &buffer[partition]),
            (OFFSET, &buffer[offset]),
            CONNECTOR,
            TASK,
            (STAGE, self.stage.as_str().as_bytes()),
            (CLASS, self.stage.class().as_bytes()),
            (EXCEPTION_CLASS, self.code.as_bytes()),
            (EXCEPTION_MESSAGE, cut(self.message).as_bytes()),
            (CODE, self.code.as_bytes()),
            (ATTEMPT, &buffer[attempt]),
        ]);
        list
    }

    /// Reads the headers of a dead letter, ours or Kafka Connect's; `None` when it is neither.
    pub fn parse(headers: &ReadHeaders<'a>) -> Option<DeadLetter<'a>> {
        let text = |key: &str| find(headers, key).and_then(|value| std::str::from_utf8(value).ok());
        Some(DeadLetter {
            code: text(CODE).or_else(|| text(EXCEPTION_CLASS))?,
            // Connect's own stages (VALUE_CONVERTER and so on) all come before the record was understood.
            stage: text(STAGE).and_then(Stage::parse).unwrap_or(Stage::Decode),
            message: text(EXCEPTION_MESSAGE).unwrap_or_default(),
            topic: text(TOPIC)?,
            partition: text(PARTITION)?.parse().ok()?,
            offset: text(OFFSET)?.parse().ok()?,
            attempt: text(ATTEMPT).and_then(|n| n.parse().ok()).unwrap_or(1),
        })
    }
}

/// The headers the record had before it failed.
pub fn originals<'a>(headers: &ReadHeaders<'a>) -> HeaderList<'a> {
    headers.iter().filter(|(key, _)| !key.starts_with(CONNECT) && !key.starts_with(OWN)).map(present).collect()
}

/// Headers of a record sent back to its input: the original ones, and how often it has failed so far.
pub fn redriven<'a>(headers: &ReadHeaders<'a>, attempts: u32, buffer: &'a mut Vec<u8>) -> HeaderList<'a> {
    buffer.clear();
    let range = number(buffer, attempts.into());
    let mut list = originals(headers);
    list.extend([(ATTEMPT, &buffer[range]), REDRIVEN]);
    list
}

/// Which attempt at a record this is: 1, or more when it was redriven.
pub fn attempt(headers: &ReadHeaders<'_>) -> u32 {
    let failed = find(headers, ATTEMPT).and_then(|value| std::str::from_utf8(value).ok()?.parse().ok()).unwrap_or(0);
    u32::saturating_add(failed, 1)
}

fn number(buffer: &mut Vec<u8>, number: i64) -> Range<usize> {
    let start = buffer.len();
    write!(buffer, "{number}").expect("writing to a vector cannot fail");
    start..buffer.len()
}

fn cut(message: &str) -> &str {
    &message[..message.floor_char_boundary(MESSAGE_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<'a>(list: &[(&'a str, &'a [u8])]) -> Vec<(&'a str, Option<&'a [u8]>)> {
        list.iter().map(|(key, value)| (*key, Some(*value))).collect()
    }

    fn letter() -> DeadLetter<'static> {
        DeadLetter {
            code: "record.truncated",
            stage: Stage::Decode,
            message: "could not decode the record: it ends too early",
            topic: "risk-signals",
            partition: 17,
            offset: 9_223_372_036_854_775_807,
            attempt: 1,
        }
    }

    #[test]
    fn headers_have_connects_names_and_keep_the_original_ones() {
        let original: &ReadHeaders<'_> = &[("traceparent", Some(b"t")), ("bin", Some(&[0, 255])), ("bin", Some(b""))];
        let (letter, mut buffer) = (letter(), Vec::new());
        let list = letter.headers(original, &mut buffer);
        assert_eq!(list[..3], [("traceparent", &b"t"[..]), ("bin", &[0, 255]), ("bin", b"")]);
        let ours: String =
            list[3..].iter().map(|(key, value)| format!("{key}: {}\n", std::str::from_utf8(value).unwrap())).collect();
        assert_eq!(
            ours,
            "__connect.errors.topic: risk-signals\n__connect.errors.partition: 17\n\
             __connect.errors.offset: 9223372036854775807\n__connect.errors.connector.name: casestream\n\
             __connect.errors.task.id: 0\n__connect.errors.stage: DECODE\n\
             __connect.errors.class.name: casestream.wire\n\
             __connect.errors.exception.class.name: record.truncated\n\
             __connect.errors.exception.message: could not decode the record: it ends too early\n\
             casestream-dlq-code: record.truncated\ncasestream-dlq-attempt: 1\n"
        );
        assert_eq!(DeadLetter::parse(&read(&list)), Some(letter.clone()));
    }

    #[test]
    fn a_redriven_record_counts_its_attempts_and_does_not_grow() {
        let original: &ReadHeaders<'_> = &[("a", Some(b"1"))];
        let (letter, mut buffer, mut second) = (letter(), Vec::new(), Vec::new());
        let first = letter.headers(original, &mut buffer);
        let first = read(&first);
        let back = redriven(&first, letter.attempt, &mut second);
        let back = read(&back);
        assert_eq!(back.iter().map(|(key, _)| *key).collect::<Vec<_>>(), ["a", ATTEMPT, REDRIVEN.0]);
        assert_eq!((attempt(original), attempt(&back)), (1, 2));
        let (again, mut third) = (DeadLetter { attempt: attempt(&back), ..letter.clone() }, Vec::new());
        let again = again.headers(&back, &mut third);
        assert_eq!(again.len(), first.len());
        assert_eq!(DeadLetter::parse(&read(&again)).unwrap().attempt, 2);
    }

    #[test]
    fn connects_own_dead_letters_are_read_and_others_are_not() {
        let connect: &ReadHeaders<'_> = &[
            (TOPIC, Some(b"raw.x")),
            (PARTITION, Some(b"0")),
            (OFFSET, Some(b"5")),
            (STAGE, Some(b"VALUE_CONVERTER")),
            (EXCEPTION_CLASS, Some(b"org.apache.kafka.connect.errors.DataException")),
        ];
        let letter = DeadLetter::parse(connect).unwrap();
        assert_eq!((letter.code, letter.attempt), ("org.apache.kafka.connect.errors.DataException", 1));
        for missing in [0, 1, 2, 4] {
            let mut less = connect.to_vec();
            less.remove(missing);
            assert_eq!(DeadLetter::parse(&less), None, "without {}", connect[missing].0);
        }
        assert_eq!(DeadLetter::parse(&[]), None);
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let (message, mut buffer) = ("é".repeat(400), Vec::new());
        let letter = DeadLetter { message: &message[..], ..letter() };
        let letter = DeadLetter { message: &format!("x{}", letter.message), ..letter };
        let list = letter.headers(&[], &mut buffer);
        let value = find(&read(&list), EXCEPTION_MESSAGE).unwrap();
        assert_eq!(value.len(), 499);
        assert!(std::str::from_utf8(value).is_ok());
    }
}
