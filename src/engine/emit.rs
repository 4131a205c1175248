//! Numbers, chains and hands out what one input publishes: envelope, event id, chronology number and hash.

use super::state::{Cause, Head};
use super::{Context, Position, Sink};
use crate::domain::chronology::{ChronologyEntry, chain_hash, link_digits};
use crate::domain::envelope::{self, Envelope};
use crate::domain::{Text, Timestamp, decimal, utf8};

/// The outputs of one input.
pub struct Emit<'a> {
    pub user_key: &'a str,
    pub ctx: &'a Context<'a>,
    pub sink: &'a mut dyn Sink,
    pub cause: Cause,
    /// Digits of the chain link before the latest entry, and of its own.
    links: [[u8; 32]; 2],
}

impl Cause {
    /// Makes this the cause of a record at a position; the same record makes the same ids on every replay.
    pub fn record(&mut self, kind: &'static str, id: &str, position: Option<&Position<'_>>, origin: &str) {
        self.id.clear();
        self.id.push_str(id);
        self.event_id.clear();
        // Once per user: growing by doubling costs several times as much.
        self.event_id.reserve(64);
        match position {
            Some(p) => {
                self.event_id.push_str(p.topic);
                for number in [i64::from(p.partition), p.offset] {
                    self.event_id.push(':');
                    push_number(&mut self.event_id, number);
                }
            }
            None => self.event_id.push_str(kind),
        }
        self.begin(kind, position, origin);
    }

    /// Makes this the cause of a timer of a user: one kind is due once at one instant.
    pub fn timer(&mut self, user_key: &str, kind: &str, due: Timestamp) {
        self.id.clear();
        self.id.push_str(kind);
        self.event_id.clear();
        for part in ["timer:", user_key, ":", kind, ":"] {
            self.event_id.push_str(part);
        }
        push_number(&mut self.event_id, due.0);
        self.begin("timer", None, "live");
    }

    fn begin(&mut self, kind: &'static str, position: Option<&Position<'_>>, origin: &str) {
        self.kind = kind;
        self.position = position.map(|p| (p.partition, p.offset));
        self.topic_len = position.map_or(0, |p| p.topic.len());
        self.base_len = self.event_id.len();
        self.index = 0;
        self.origin = match origin {
            "backfill" => "backfill",
            "test" => "test",
            _ => "live",
        };
    }

    /// Names nothing any more; keeps the memory.
    pub fn clear(&mut self) {
        self.id.clear();
        self.event_id.clear();
        (self.kind, self.position, self.index) = ("", None, 0);
    }

    /// What the ids of this input's records begin with.
    pub fn base(&self) -> &str {
        &self.event_id[..self.base_len]
    }

    /// Goes on to the next record of this input.
    pub fn advance(&mut self) {
        self.event_id.truncate(self.base_len);
        if self.index > 0 || self.position.is_some() {
            self.event_id.push(':');
            push_number(&mut self.event_id, self.index);
        }
        self.index += 1;
    }

    /// The envelope of the record that `advance` went on to.
    #[inline]
    pub fn envelope<'e>(
        &'e self,
        user_key: &'e str,
        user_rev: i64,
        at: Timestamp,
        ctx: &'e Context<'_>,
    ) -> Envelope<'e> {
        Envelope {
            event_id: Text::borrowed(&self.event_id),
            user_key: Text::borrowed(user_key),
            user_rev,
            step: self.index - 1,
            occurred_at: at,
            recorded_at: ctx.now,
            cause: envelope::Cause {
                kind: Text::borrowed(self.kind),
                id: Text::borrowed(&self.id),
                topic: self.position.map(|_| Text::borrowed(&self.event_id[..self.topic_len])),
                partition: self.position.map(|p| i64::from(p.0)),
                offset: self.position.map(|p| p.1),
            },
            policy_set: Text::borrowed(&ctx.policies.hash),
            origin: Text::borrowed(self.origin),
        }
    }
}

impl<'a> Emit<'a> {
    /// Nothing published yet.
    pub fn new(user_key: &'a str, ctx: &'a Context<'a>, sink: &'a mut dyn Sink, cause: Cause) -> Emit<'a> {
        Emit { user_key, ctx, sink, cause, links: [[0; 32]; 2] }
    }

    /// Completes an entry and hands it out.
    pub fn entry<'e>(&'e mut self, head: &mut Head, at: Timestamp, mut entry: ChronologyEntry<'e>) {
        self.complete(head, at, &mut entry);
    }

    /// Completes an entry where it lies and hands it out.
    pub fn complete<'e>(&'e mut self, head: &mut Head, at: Timestamp, entry: &mut ChronologyEntry<'e>) {
        self.cause.advance();
        head.seq += 1;
        let Emit { user_key, ctx, sink, cause, links: [before, after] } = self;
        entry.seq = head.seq;
        let cause = &*cause;
        entry.envelope = cause.envelope(user_key, head.user_rev, at, ctx);
        entry.entry_id = Text::borrowed(&cause.event_id);
        *before = link_digits(&head.chain);
        entry.prev_hash = Text::borrowed(digits(before));
        head.chain = chain_hash(&head.chain, entry);
        *after = link_digits(&head.chain);
        entry.hash = Text::borrowed(digits(after));
        sink.chronology(entry);
    }
}

/// Appends a number in decimal.
pub fn push_number(text: &mut String, number: i64) {
    text.push_str(decimal::text(number, &mut [0; 20]));
}

#[inline(always)]
fn digits(digits: &[u8]) -> &str {
    utf8::text(digits).expect("digits are text")
}

#[cfg(test)]
mod tests {
    use super::push_number;

    #[test]
    fn numbers_are_written_as_the_formatter_would() {
        for number in [0, 7, -1, 10, 99, 100, -305, 7_012, 12_345, i64::MAX, i64::MIN] {
            let mut text = String::new();
            push_number(&mut text, number);
            assert_eq!(text, number.to_string());
        }
    }
}
