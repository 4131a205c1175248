//! Numbers, chains and hands out what one input publishes: envelope, event id, chronology number and hash.

use super::state::{Cause, Head};
use super::{Context, Position, Sink};
use crate::domain::chronology::{ChronologyEntry, chain_hash};
use crate::domain::envelope::{self, Envelope};
use crate::domain::{Text, Timestamp};

/// The outputs of one input.
pub struct Emit<'a> {
    pub user_key: &'a str,
    pub ctx: &'a Context<'a>,
    pub sink: &'a mut dyn Sink,
    pub cause: Cause,
}

impl Cause {
    /// A record at a position; the same record makes the same ids on every replay.
    pub fn record(kind: &'static str, id: &str, position: Option<&Position<'_>>, origin: &str) -> Cause {
        let mut base = String::with_capacity(40);
        let topic_len = position.map_or(0, |p| p.topic.len());
        match position {
            Some(p) => {
                base.push_str(p.topic);
                for number in [i64::from(p.partition), p.offset] {
                    base.push(':');
                    push_number(&mut base, number);
                }
            }
            None => base.push_str(kind),
        }
        Cause {
            kind,
            id: id.to_owned(),
            position: position.map(|p| (p.partition, p.offset)),
            base,
            topic_len,
            index: 0,
            origin: match origin {
                "backfill" => "backfill",
                "test" => "test",
                _ => "live",
            },
        }
    }

    /// A timer of a user: one kind is due once at one instant.
    pub fn timer(user_key: &str, kind: &str, due: Timestamp) -> Cause {
        Cause {
            kind: "timer",
            id: kind.to_owned(),
            position: None,
            base: format!("timer:{user_key}:{kind}:{}", due.0),
            topic_len: 0,
            index: 0,
            origin: "live",
        }
    }

    /// The id of the next record of this input.
    pub fn next_event_id(&mut self) -> String {
        let index = self.index;
        self.index += 1;
        let mut id = String::with_capacity(self.base.len() + 3);
        id.push_str(&self.base);
        if index > 0 || self.position.is_some() {
            id.push(':');
            push_number(&mut id, index);
        }
        id
    }

    /// The envelope of a record of this input.
    pub fn envelope<'e>(
        &'e self,
        user_key: &'e str,
        event_id: &'e str,
        user_rev: i64,
        at: Timestamp,
        ctx: &'e Context<'_>,
    ) -> Envelope<'e> {
        Envelope {
            event_id: Text::from(event_id),
            user_key: Text::from(user_key),
            user_rev,
            step: self.index - 1,
            occurred_at: at,
            recorded_at: ctx.now,
            cause: envelope::Cause {
                kind: Text::borrowed(self.kind),
                id: Text::from(self.id.as_str()),
                topic: self.position.map(|_| Text::from(&self.base[..self.topic_len])),
                partition: self.position.map(|p| i64::from(p.0)),
                offset: self.position.map(|p| p.1),
            },
            policy_set: Text::from(ctx.policies.hash.as_str()),
            origin: Text::borrowed(self.origin),
        }
    }
}

impl Emit<'_> {
    /// Completes an entry and hands it out.
    pub fn entry(&mut self, head: &mut Head, at: Timestamp, entry: ChronologyEntry<'_>) {
        let event_id = self.cause.next_event_id();
        let mut entry: ChronologyEntry<'_> = entry;
        head.seq += 1;
        entry.seq = head.seq;
        entry.envelope = self.cause.envelope(self.user_key, &event_id, head.user_rev, at, self.ctx);
        entry.entry_id = Text::from(event_id.as_str());
        let (mut before, mut after) = ([0; 32], [0; 32]);
        entry.prev_hash = Text::from(hex(&head.chain, &mut before));
        head.chain = chain_hash(&head.chain, &entry);
        entry.hash = Text::from(hex(&head.chain, &mut after));
        self.sink.chronology(&entry);
    }
}

/// Appends a number in decimal; the formatting machinery costs more than the digits.
pub fn push_number(text: &mut String, number: i64) {
    let mut digits = [0; 20];
    let (mut rest, mut at) = (number.unsigned_abs(), digits.len());
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        text.push('-');
    }
    text.push_str(std::str::from_utf8(&digits[at..]).expect("digits are text"));
}

fn hex<'t>(link: &[u8; 16], text: &'t mut [u8; 32]) -> &'t str {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (n, byte) in link.iter().enumerate() {
        text[2 * n] = DIGITS[usize::from(byte >> 4)];
        text[2 * n + 1] = DIGITS[usize::from(byte & 15)];
    }
    std::str::from_utf8(text).expect("digits are text")
}

#[cfg(test)]
mod tests {
    use super::push_number;

    #[test]
    fn numbers_are_written_as_the_formatter_would() {
        for number in [0, 7, -1, 10, 12_345, i64::MAX, i64::MIN] {
            let mut text = String::new();
            push_number(&mut text, number);
            assert_eq!(text, number.to_string());
        }
    }
}
