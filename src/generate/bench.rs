//! An endless stream of signals for load: small, varied enough, and cheap enough to drive hundreds of thousands a
//! second. No story and no habits; the realistic activity is `signals.rs`.
//!
//! 99 of 100 users do only two ordinary things, with the own laptop as destination. Their indicators' caps keep the
//! evidence below an alert's at any rate, so that a bench measures the steady state and not a storm of alerts.

use super::prng::{Prng, mix};
use crate::domain::signal::{Destination, Resource, Signal};
use crate::domain::{Day, Text, Timestamp};

/// Length of a user key, and of a signal's id.
const KEY_BYTES: usize = 32;
/// Length of a source's event id, which is the file's too.
const ID_BYTES: usize = 16;
/// Every so many-th user is risky.
const RISKY_EVERY: u64 = 100;

/// What distinguishes one prepared signal from another.
struct Template {
    source: &'static str,
    indicator: &'static str,
    kind: &'static str,
    value: &'static str,
    direction: &'static str,
    label: Option<&'static str>,
}

const fn inside(source: &'static str, indicator: &'static str) -> Template {
    Template { source, indicator, kind: "device", value: "laptop-own", direction: "internal", label: None }
}

/// The first two are users' main act, one each; the third is everybody's other.
const ORDINARY: [Template; 3] =
    [inside("code42", "download"), inside("m365-dlp", "sensitive_read"), inside("code42", "file_deleted")];
const RISKY: [Template; 2] = [
    Template {
        source: "code42",
        indicator: "removable_media_copy",
        kind: "device",
        value: "AA00C0FFEE",
        direction: "external",
        label: Some("confidential"),
    },
    Template {
        source: "code42",
        indicator: "cloud_upload",
        kind: "domain",
        value: "dropbox.com",
        direction: "external",
        label: None,
    },
];

/// The stream. It holds no user's data: keys are computed from the user's number.
pub struct BenchSignals {
    users: u64,
    seed: u64,
    number: u64,
    prng: Prng,
    day: Day,
    day_text: String,
    user_key: [u8; KEY_BYTES],
    event_id: [u8; ID_BYTES],
    signal_id: [u8; KEY_BYTES],
}

/// A stream over `users` users. Ids never repeat within a stream, and differ between seeds.
pub fn bench_signals(users: u64, seed: u64) -> BenchSignals {
    assert!(users > 0, "a stream has at least one user");
    let zeros = [b'0'; KEY_BYTES];
    let (day, day_text) = (Day(0), Day(0).iso());
    let prng = Prng::of(&[seed, 5]);
    BenchSignals {
        users,
        seed,
        number: 0,
        prng,
        day,
        day_text,
        user_key: zeros,
        event_id: [b'0'; ID_BYTES],
        signal_id: zeros,
    }
}

/// The key of user `number` in every stream: 32 hexadecimal digits.
pub fn bench_user_key(number: u64) -> String {
    let mut key = [0; KEY_BYTES];
    write_user_key(number, &mut key);
    ascii(&key).to_owned()
}

fn write_user_key(number: u64, key: &mut [u8; KEY_BYTES]) {
    write_hex(mix(number ^ 0x7573_6572), &mut key[..16]);
    write_hex(mix(number), &mut key[16..]);
}

fn write_hex(mut n: u64, digits: &mut [u8]) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(n & 15) as usize];
        n >>= 4;
    }
}

fn ascii(digits: &[u8]) -> &str {
    std::str::from_utf8(digits).expect("hexadecimal digits are text")
}

impl BenchSignals {
    /// Whether a user does anything risky.
    pub const fn is_risky(user: u64) -> bool {
        user % RISKY_EVERY == RISKY_EVERY - 1
    }

    /// The next signal, of an act at `at` in UTC. It borrows from the stream: encode it, then ask for the next.
    /// Spreading `at` over days makes habits; a constant day makes few, large insights.
    pub fn next_signal(&mut self, at: Timestamp) -> Signal<'_> {
        let (template, bytes) = self.draw(at);
        build(
            template,
            at,
            bytes,
            Ids {
                signal: ascii(&self.signal_id).into(),
                user: ascii(&self.user_key).into(),
                event: ascii(&self.event_id).into(),
                file: ascii(&self.event_id).into(),
                day: self.day_text.as_str().into(),
            },
        )
    }

    /// The same as `next_signal`, for callers that keep signals.
    pub fn next_owned(&mut self, at: Timestamp) -> Signal<'static> {
        let (template, bytes) = self.draw(at);
        let text = |digits: &[u8]| Text::from(ascii(digits).to_owned());
        build(
            template,
            at,
            bytes,
            Ids {
                signal: text(&self.signal_id),
                user: text(&self.user_key),
                event: text(&self.event_id),
                file: text(&self.event_id),
                day: self.day_text.clone().into(),
            },
        )
    }

    fn draw(&mut self, at: Timestamp) -> (&'static Template, i64) {
        let user = self.prng.below(self.users);
        let bits = self.prng.next();
        self.number += 1;
        write_user_key(user, &mut self.user_key);
        // The mix is a bijection of the number, so neither id repeats.
        let id = mix(self.number ^ mix(self.seed));
        write_hex(id, &mut self.event_id);
        write_hex(mix(id), &mut self.signal_id[..16]);
        write_hex(id ^ self.seed, &mut self.signal_id[16..]);
        if at.day_at(0) != self.day {
            self.day = at.day_at(0);
            self.day_text = self.day.iso();
        }
        (template(user, bits), 2_000 + (bits >> 40) as i64 % 500_000)
    }
}

fn template(user: u64, bits: u64) -> &'static Template {
    if BenchSignals::is_risky(user) && bits & 3 == 0 {
        return &RISKY[(bits >> 2) as usize & 1];
    }
    match (bits >> 3) & 7 {
        0 => &ORDINARY[2],
        _ => &ORDINARY[(mix(user) & 1) as usize],
    }
}

struct Ids<'a> {
    signal: Text<'a>,
    user: Text<'a>,
    event: Text<'a>,
    file: Text<'a>,
    day: Text<'a>,
}

fn build<'a>(template: &'static Template, at: Timestamp, bytes: i64, ids: Ids<'a>) -> Signal<'a> {
    let destination =
        Destination { kind: template.kind.into(), value: template.value.into(), direction: template.direction.into() };
    let file = Resource { id: ids.file, kind: "file".into(), bytes: Some(bytes), ..Resource::default() };
    Signal {
        signal_id: ids.signal,
        user_key: ids.user,
        source: template.source.into(),
        source_event_id: ids.event,
        op: "create".into(),
        indicator: template.indicator.into(),
        occurred_at: at,
        ingested_at: at,
        day: ids.day,
        outcome: "allowed".into(),
        count: 1,
        bytes: Some(bytes),
        labels: template.label.map(Text::borrowed).into_iter().collect(),
        destination: Some(destination),
        resources: vec![file],
        resources_total: 1,
        is_complete: true,
        device_id: Some(Text::borrowed("LT-0001")),
        off_hours: Some(false),
        mapping: Text::borrowed("bench@0000000001"),
        origin: Text::borrowed("live"),
        ..Signal::default()
    }
}
