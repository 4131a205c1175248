//! One batch of one partition through the engine, into a copy-on-write overlay: timers due first, then directory,
//! baselines, commands, signals, each by offset. Pure: no I/O, no clock, no effect on the partition. The worker and
//! `verify` call the same function. What the fold judges is in `engine/fold.rs`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use hashbrown::HashTable;

use super::ledger::{Row, Tally};
use super::outputs::{Outputs, Publisher, RecordId};
use super::{Overlay, Partition, PolicySource, UserChange};
use crate::domain::command::{Command, CommandResult};
use crate::domain::directory::Directory;
use crate::domain::envelope::{Cause, Envelope};
use crate::domain::partitioner::partition_of;
use crate::domain::policy::PolicySet;
use crate::domain::record::{InputRange, Journal};
use crate::domain::signal::Signal;
use crate::domain::{Text, Timestamp};
use crate::engine::fold::{apply, finish};
use crate::engine::timer::next_due;
use crate::engine::{DeadCode, Input, Numbers, Outcome, Position, User, event_id};
use crate::runtime::batch::{BASELINES, BatchRecord, COMMANDS, DIRECTORY, INPUTS, Records, SIGNALS, input_name};
use crate::runtime::pseudonym_key::is_internal;
use crate::runtime::telemetry::Limit;
use crate::topology::{META_KEY, Topic};
use crate::wire::avro::{DecodeError, Decoder, Encoder, Take};
use crate::wire::dead_letter::Stage;
use crate::wire::headers::{self, Origin};
use crate::wire::state::{self, UserBytes};

/// Users whose timers run in one batch; the others follow in the next. Part of what `verify` repeats, so a constant.
pub const TIMERS_PER_BATCH_MAX: usize = 2_000;
/// Due instants of one user in one go; more means that the state cannot come to rest.
const DUES_PER_USER_MAX: usize = 10_000;

/// What the fold borrows from its caller; none of it is state of the partition.
pub struct Tools<'a> {
    pub encoder: &'a mut Encoder,
    pub decoder: &'a mut Decoder,
    pub policies: &'a mut dyn PolicySource,
    pub scratch: &'a mut Scratch,
}

/// Memory that is used again by the next batch. Nothing in it outlives one.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Decoded users, each in the place of its `Touched`; those beyond are spare.
    users: Vec<User>,
    /// The origin header of the current record.
    origin: Vec<u8>,
    /// Segments are encoded here.
    segment: Vec<u8>,
    /// Keys of segments are written here.
    key: Vec<u8>,
}

/// Why a user key is refused.
const INVALID_KEY: &str = "the user key is empty, longer than 256 bytes, or has a bar or a control character";

/// What is fixed for one batch besides its records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// The batch's clock reading.
    pub now: Timestamp,
    /// Every input is drained and has been for a while: timers run on the clock.
    pub follows_clock: bool,
    /// Inputs known to hold nothing to read below this offset, though the last record lies lower (markers).
    pub drained: [Option<i64>; INPUTS],
    /// The batch is the first transaction of an assignment: this epoch, no timers, no records.
    pub epoch: Option<i64>,
    /// The only record of the batch cannot be folded or written: it is dead-lettered with this code.
    pub condemned: Option<&'static str>,
}

/// Why a batch cannot be folded as it is: the worker halves it down to the record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("could not fold a batch of partition {partition}: {code} while publishing {user_hash:016x}")]
pub struct FoldError {
    pub partition: i32,
    pub code: &'static str,
    /// First 8 bytes of blake3 of the user key: enough to find the user, no key in a log.
    pub user_hash: u64,
}

/// Why records of an input were left unread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The partition has no policy set yet.
    NoPolicies,
    /// A switch names a set that cannot be loaded; the whole partition waits.
    UnknownSet(String),
    /// The schema registry cannot be asked.
    SchemaUnavailable(String),
}

/// Why one input could not be applied; its effects were taken back.
enum Trouble {
    /// Fold again with a snapshot before every input.
    Careful,
    Dead(&'static str),
}

/// What stands in the way of a whole pass.
enum Abandon {
    Careful,
    Error(FoldError),
}

/// Users for whom room is made at the start of a batch, and whose memory is kept at its end.
const TOUCHED_AT_ONCE: usize = 4_096;

struct Touched<'f> {
    key: Arc<str>,
    hash: u64,
    previous: &'f UserBytes,
    previous_due: Option<Timestamp>,
    resident: bool,
    due: Option<Timestamp>,
    /// `Head::limits` before the batch.
    limits: u32,
    /// Something was accepted: publish at the end.
    accepted: bool,
    /// Of the last accepted input; empty when it had none.
    traceparent: Vec<u8>,
}

/// Folds one batch. On an error nothing is left in `out`.
pub(super) fn run(
    partition: &Partition,
    records: Records<'_>,
    frame: &Frame,
    tools: &mut Tools<'_>,
    out: &mut Outputs,
) -> Result<Overlay, FoldError> {
    assert!(frame.condemned.is_none() || records.len() == 1, "only a record that stands alone is condemned");
    let mark = out.mark();
    let mut careful = false;
    loop {
        let result = Fold::new(partition, frame, tools, out, careful).pass(records.clone());
        match result {
            Ok(overlay) => return Ok(overlay),
            Err(Abandon::Careful) => careful = true,
            Err(Abandon::Error(error)) => {
                out.truncate(mark);
                return Err(error);
            }
        }
        out.truncate(mark);
    }
}

/// What a user who is not resident was written as.
static NOTHING: UserBytes = UserBytes { head: None, seen: None, days: Vec::new() };

struct Fold<'f, 't> {
    partition: &'f Partition,
    frame: &'f Frame,
    tools: &'f mut Tools<'t>,
    out: &'f mut Outputs,
    /// Snapshot each user before each input, because one of them panics.
    careful: bool,
    /// Places in `touched`, by hash of the user key.
    index: HashTable<u32>,
    touched: Vec<Touched<'f>>,
    policies: Option<Arc<PolicySet>>,
    switched: bool,
    numbers: Numbers,
    stream_time: Timestamp,
    /// Next offset to read, per input.
    next: [i64; INPUTS],
    holds: [Option<Hold>; INPUTS],
    tally: Tally,
    timers: u64,
}

/// What the outputs of an input take from its record.
struct From<'a> {
    origin: Origin<'a>,
    header: &'a [u8],
    cause: RecordId,
    trace: Option<&'a [u8]>,
}

impl<'f, 't> Fold<'f, 't> {
    fn new(
        partition: &'f Partition,
        frame: &'f Frame,
        tools: &'f mut Tools<'t>,
        out: &'f mut Outputs,
        careful: bool,
    ) -> Self {
        let meta = partition.meta();
        let follow = frame.follows_clock && frame.now > meta.stream_time;
        Fold {
            partition,
            frame,
            tools,
            out,
            careful,
            index: HashTable::new(),
            touched: Vec::new(),
            policies: partition.policies().cloned(),
            switched: false,
            numbers: Numbers { next_alert_no: meta.next_alert_no, next_case_no: meta.next_case_no },
            stream_time: if follow { frame.now } else { meta.stream_time },
            next: partition.positions(),
            holds: Default::default(),
            tally: Tally::default(),
            timers: 0,
        }
    }

    fn pass(mut self, records: Records<'_>) -> Result<Overlay, Abandon> {
        let room = records.len().min(TOUCHED_AT_ONCE);
        self.touched.reserve(room);
        self.index = HashTable::with_capacity(room);
        if self.frame.epoch.is_none() {
            self.run_timers()?;
        }
        for record in records {
            self.record(&record)?;
        }
        for (next, drained) in self.next.iter_mut().zip(self.frame.drained) {
            *next = drained.unwrap_or(*next).max(*next);
        }
        self.tally.assert_balanced(self.partition.number());
        self.close()
    }

    fn run_timers(&mut self) -> Result<(), Abandon> {
        if self.policies.is_none() {
            return Ok(());
        }
        let partition = self.partition;
        for (n, key) in partition.due_users(self.stream_time).enumerate() {
            if n == TIMERS_PER_BATCH_MAX {
                self.tally.observed.reach(Limit::Timers);
                break;
            }
            let at = self.touch(key);
            self.run_due(at)?;
        }
        Ok(())
    }

    /// Runs everything of one user that is due on stream time. Users with records need no such care later in the
    /// batch: the engine lets everything due before a record happen first.
    fn run_due(&mut self, at: usize) -> Result<(), Abandon> {
        let mut due = self.touched[at].due;
        for _ in 0..DUES_PER_USER_MAX {
            let Some(instant) = due.filter(|due| *due <= self.stream_time) else { return Ok(()) };
            match self.apply(at, Input::Timer { due: instant }, None) {
                Ok(Outcome::Scored) => self.timers += 1,
                Err(Trouble::Careful) => return Err(Abandon::Careful),
                Ok(_) | Err(Trouble::Dead(_)) => break,
            }
            due = self.due_of(at);
            self.touched[at].due = due;
        }
        // A timer that panics or does nothing would be due for ever: it waits for the user's next input instead.
        self.tally.observed.reach(Limit::TimersPerUser);
        let user = crate::engine::state::hash64(&self.touched[at].key);
        tracing::error!(partition = self.partition.number(), user_hash = %format_args!("{user:016x}"), code = "timer.stuck", "could not run a timer");
        self.touched[at].due = None;
        Ok(())
    }

    fn due_of(&self, at: usize) -> Option<Timestamp> {
        let policies = self.policies.as_deref()?;
        next_due(&self.tools.scratch.users[at], &self.partition.context(policies, self.frame.now, self.stream_time))
    }

    fn record(&mut self, record: &BatchRecord<'_>) -> Result<(), Abandon> {
        let number = self.partition.number();
        assert!(
            record.partition == number,
            "INV-8: a record of partition {} came to partition {number}",
            record.partition
        );
        assert!(
            record.offset >= self.next[record.input],
            "INV-4: offset {} of {}-{number} is below the position {}",
            record.offset,
            input_name(record.input),
            self.next[record.input]
        );
        if self.holds[record.input].is_some() {
            return Ok(());
        }
        if let Some(code) = self.frame.condemned {
            self.dead(record, None, code, "the transaction with this record alone kept failing");
        } else {
            match record.input {
                DIRECTORY => self.directory(record)?,
                BASELINES => self.count(BASELINES, None, Ok(Row::Ignored)),
                COMMANDS => self.command(record),
                SIGNALS => self.signal(record)?,
                other => unreachable!("the engine has no input {other}"),
            }
        }
        if self.holds[record.input].is_none() {
            self.next[record.input] = record.offset + 1;
        }
        Ok(())
    }

    fn directory(&mut self, record: &BatchRecord<'_>) -> Result<(), Abandon> {
        if self.policies.is_none() {
            self.holds[DIRECTORY] = Some(Hold::NoPolicies);
            return Ok(());
        }
        if record.value.is_none() || is_internal(record.key) {
            self.count(DIRECTORY, None, Ok(Row::Ignored));
            return Ok(());
        }
        let Some(directory) = self.decode::<Directory<'_>>(record, Topic::UserDirectory) else { return Ok(()) };
        if !state::is_user_key(&directory.user_key) {
            self.dead(record, None, "user_key.invalid", INVALID_KEY);
            return Ok(());
        }
        if !self.in_place(record, &directory.user_key) {
            self.dead(record, None, "directory.partition", "the record is not on the partition of its user");
            return Ok(());
        }
        let at = self.touch(&directory.user_key);
        match self.apply_record(at, Input::Directory(&directory), record) {
            Ok(Outcome::Scored) => self.count(DIRECTORY, None, Ok(Row::Applied)),
            Ok(Outcome::Dead(code)) => self.dead(record, None, code.as_str(), "the engine cannot take the record"),
            Ok(Outcome::Unscored | Outcome::Duplicate | Outcome::Unchanged) => {
                self.count(DIRECTORY, None, Ok(Row::Unchanged));
            }
            Err(Trouble::Careful) => return Err(Abandon::Careful),
            Err(Trouble::Dead(code)) => self.dead(record, None, code, "state is as it was before the record"),
        }
        Ok(())
    }

    fn signal(&mut self, record: &BatchRecord<'_>) -> Result<(), Abandon> {
        if self.policies.is_none() {
            self.holds[SIGNALS] = Some(Hold::NoPolicies);
            return Ok(());
        }
        let Some(signal) = self.decode::<Signal<'_>>(record, Topic::RiskSignals) else { return Ok(()) };
        let source = self.tally.source(&signal.source);
        if signal.user_key.is_empty() {
            let code = DeadCode::Unattributed.as_str();
            self.dead(record, Some(source), code, "the signal names no user");
            return Ok(());
        }
        if !state::is_user_key(&signal.user_key) {
            self.dead(record, Some(source), "user_key.invalid", INVALID_KEY);
            return Ok(());
        }
        if !self.in_place(record, &signal.user_key) {
            self.reroute(record, Some(source), Topic::RiskSignals, &signal.user_key);
            return Ok(());
        }
        let at = self.touch(&signal.user_key);
        let before = self.stream_time;
        self.stream_time = before.max(signal.occurred_at.min(record.timestamp));
        let outcome = self.apply_record(at, Input::Signal(&signal), record);
        if matches!(outcome, Ok(Outcome::Scored | Outcome::Unscored | Outcome::Duplicate)) {
            self.tally.observed.signal(&signal, self.frame.now);
        } else {
            self.stream_time = before;
        }
        match outcome {
            Ok(Outcome::Scored) => self.count(SIGNALS, Some(source), Ok(Row::Scored)),
            Ok(Outcome::Unscored) => self.count(SIGNALS, Some(source), Ok(Row::Unscored)),
            Ok(Outcome::Duplicate | Outcome::Unchanged) => self.count(SIGNALS, Some(source), Ok(Row::Duplicate)),
            Ok(Outcome::Dead(code)) => {
                self.dead(record, Some(source), code.as_str(), "the engine cannot take the signal");
            }
            Err(Trouble::Careful) => return Err(Abandon::Careful),
            Err(Trouble::Dead(code)) => self.dead(record, Some(source), code, "state is as it was before the record"),
        }
        let tally = &mut self.tally.sources[source];
        tally.watermark = tally.watermark.max(signal.occurred_at.min(record.timestamp));
        tally.skew_ms = tally.skew_ms.max(signal.occurred_at.0.saturating_sub(record.timestamp.0));
        Ok(())
    }

    fn command(&mut self, record: &BatchRecord<'_>) {
        let Some(command) = self.decode::<Command<'_>>(record, Topic::CaseCommands) else { return };
        if !command.user_key.is_empty() && !state::is_user_key(&command.user_key) {
            return self.dead(record, None, "user_key.invalid", INVALID_KEY);
        }
        if !command.user_key.is_empty() && !self.in_place(record, &command.user_key) {
            return self.reroute(record, None, Topic::CaseCommands, &command.user_key);
        }
        let answer = match (command.kind.as_str(), &command.switch_policies) {
            ("switch_policies", Some(switch)) if command.user_key.is_empty() => {
                let hash = switch.policy_set.as_str();
                let Some(set) = self.tools.policies.set(hash) else {
                    // The order of inputs within a transaction is free, their order against a switch is not: all wait.
                    self.holds =
                        [const { None }; INPUTS].map(|_: Option<Hold>| Some(Hold::UnknownSet(hash.to_owned())));
                    return;
                };
                assert!(set.hash == hash, "the set {} was loaded for {hash}", set.hash);
                self.policies = Some(set);
                self.switched = true;
                Answer {
                    row: Row::Accepted,
                    outcome: "accepted",
                    code: "ok",
                    message: "policies are switched",
                    hint: None,
                }
            }
            ("switch_policies", _) => Answer {
                row: Row::Refused,
                outcome: "refused",
                code: "command.invalid",
                message: "could not switch policies: the command is not one to a partition, or names no set",
                hint: Some("leave user_key empty and fill switch_policies"),
            },
            _ => Answer {
                row: Row::Refused,
                outcome: "refused",
                code: "command.unknown",
                message: "could not carry out the command: its kind is not known",
                hint: Some("use a release that knows this kind"),
            },
        };
        self.answer(record, &command, &answer);
        self.count(COMMANDS, None, Ok(answer.row));
    }

    /// At most one result per command: it is written where the command is consumed.
    fn answer(&mut self, record: &BatchRecord<'_>, command: &Command<'_>, answer: &Answer) {
        let position = position_of(record);
        let envelope = Envelope {
            event_id: event_id(&position, 0),
            user_key: command.user_key.reborrow(),
            user_rev: 0,
            step: 0,
            occurred_at: command.at,
            recorded_at: self.frame.now,
            cause: Cause {
                kind: Text::borrowed("command"),
                id: command.command_id.reborrow(),
                topic: Some(Text::borrowed(position.topic)),
                partition: Some(position.partition.into()),
                offset: Some(position.offset),
            },
            policy_set: Text::borrowed(self.policies.as_deref().map_or("", |p| &p.hash)),
            origin: Text::borrowed("live"),
        };
        let result = CommandResult {
            envelope,
            command_id: command.command_id.reborrow(),
            bulk_id: command.bulk_id.as_ref().map(Text::reborrow),
            outcome: Text::borrowed(answer.outcome),
            code: Text::borrowed(answer.code),
            message: Text::borrowed(answer.message),
            hint: answer.hint.map(Text::borrowed),
            ..CommandResult::default()
        };
        let original = record.headers();
        let trace = headers::traceparent(&original);
        let writer = self.out.record(Topic::CommandResults, self.partition.number()).cause(Some(id_of(record)));
        writer
            .key(command.user_key.as_bytes())
            .headers(&headers::event(Topic::CommandResults, &result.envelope.event_id, None, trace))
            .encoded(self.tools.encoder, &result)
            .and_then(super::outputs::Writer::finish)
            .expect("a result is smaller than its command, and has the schema's shape");
    }

    /// Decodes a value; what cannot be decoded is dealt with here.
    fn decode<'r, T: Take<'r>>(&mut self, record: &BatchRecord<'r>, topic: Topic) -> Option<T> {
        let Some(value) = record.value else {
            self.dead_undecoded(record, DecodeError::Empty.code(), "the record has no value");
            return None;
        };
        match self.tools.decoder.decode(topic, value, &record.headers()) {
            Ok(decoded) => Some(decoded),
            Err(DecodeError::Unavailable(why)) => {
                self.holds[record.input] = Some(Hold::SchemaUnavailable(why));
                None
            }
            Err(error) => {
                self.dead_undecoded(record, error.code(), &error.to_string());
                None
            }
        }
    }

    fn in_place(&self, record: &BatchRecord<'_>, user_key: &str) -> bool {
        record.key == Some(user_key.as_bytes()) && self.partition.holds_user(user_key)
    }

    /// Writes the record again where it belongs, once. The only output that may go to another partition.
    fn reroute(&mut self, record: &BatchRecord<'_>, source: Option<usize>, topic: Topic, user_key: &str) {
        let original = record.headers();
        if headers::is_rerouted(&original) {
            return self.dead(record, source, "partition.loop", "the record was re-routed before");
        }
        let to = partition_of(user_key.as_bytes(), self.partition.partitions());
        let origin = Origin::of(&original, input_name(record.input), record.partition, record.offset);
        let mut buffer = Vec::with_capacity(48);
        let headers = headers::rerouted(&original, origin.write(&mut buffer));
        let writer = self.out.record(topic, to).cause(Some(id_of(record))).key(user_key.as_bytes());
        let written =
            writer.headers(&headers).value(record.value.unwrap_or_default()).timestamp(record.timestamp).finish();
        match written {
            Ok(()) => self.count(record.input, source, Ok(Row::Rerouted)),
            Err(error) => self.dead(record, source, error.code(), "the record has too many headers to be re-routed"),
        }
    }

    fn dead_undecoded(&mut self, record: &BatchRecord<'_>, code: &'static str, why: &str) {
        let source = (record.input == SIGNALS).then(|| self.tally.source("unknown"));
        self.dead_at(record, source, Stage::Decode, code, why);
    }

    fn dead(&mut self, record: &BatchRecord<'_>, source: Option<usize>, code: &'static str, why: &str) {
        self.dead_at(record, source, Stage::Engine, code, why);
    }

    fn dead_at(
        &mut self,
        record: &BatchRecord<'_>,
        source: Option<usize>,
        stage: Stage,
        code: &'static str,
        why: &str,
    ) {
        super::letter::write(self.out, record, stage, code, why);
        let source = source.or_else(|| (record.input == SIGNALS).then(|| self.tally.source("unknown")));
        let late = record.input == SIGNALS && code == DeadCode::TooLate.as_str();
        self.count(record.input, source, if late { Ok(Row::Late) } else { Err(code) });
    }

    fn count(&mut self, input: usize, source: Option<usize>, became: Result<Row, &'static str>) {
        let by_source = source.map(|at| &mut self.tally.sources[at].counts);
        for counts in std::iter::once(&mut self.tally.inputs[input]).chain(by_source) {
            counts.enter();
            match became {
                Ok(row) => counts.row(row),
                Err(code) => counts.dead(code),
            }
        }
    }

    /// The user's place in the overlay, decoded on the first touch of the batch.
    fn touch(&mut self, user_key: &str) -> usize {
        let partition: &'f Partition = self.partition;
        let hash = partition.hash(user_key);
        if let Some(at) = self.index.find(hash, |at| *self.touched[*at as usize].key == *user_key) {
            return *at as usize;
        }
        let known = partition.user_at(hash, user_key);
        let (key, previous, due) = match known {
            Some(resident) => (resident.key.clone(), &resident.bytes, resident.next_due),
            None => (Arc::from(user_key), &NOTHING, None),
        };
        let at = self.touched.len();
        let users = &mut self.tools.scratch.users;
        if at == users.len() {
            users.push(User::default());
        }
        state::decode_into(previous, &mut users[at]).expect("resident state was read or written by this process");
        self.touched.push(Touched {
            key,
            hash,
            previous,
            previous_due: due,
            resident: known.is_some(),
            due,
            limits: users[at].head.limits,
            accepted: false,
            traceparent: Vec::new(),
        });
        self.index.insert_unique(hash, at as u32, |at| self.touched[*at as usize].hash);
        at
    }

    fn apply_record(&mut self, at: usize, input: Input<'_>, record: &BatchRecord<'_>) -> Result<Outcome, Trouble> {
        let headers = record.headers();
        let origin = Origin::of(&headers, input_name(record.input), record.partition, record.offset);
        let trace = headers::traceparent(&headers);
        let mut buffer = std::mem::take(&mut self.tools.scratch.origin);
        let from = From { origin, header: origin.write(&mut buffer), cause: id_of(record), trace };
        let outcome = self.apply(at, input, Some(&from));
        self.tools.scratch.origin = buffer;
        if let (Ok(Outcome::Scored), Some(trace)) = (&outcome, trace) {
            self.touched[at].traceparent.clear();
            self.touched[at].traceparent.extend_from_slice(trace);
        }
        outcome
    }

    /// Runs the engine on one input. A panic, or a record too large to write, leaves no trace of the input.
    fn apply(&mut self, at: usize, input: Input<'_>, from: Option<&From<'_>>) -> Result<Outcome, Trouble> {
        let mark = self.out.mark();
        let Tools { encoder, scratch, .. } = &mut *self.tools;
        let (key, user) = (&self.touched[at].key, &mut scratch.users[at]);
        let saved = self.careful.then(|| (user.clone(), self.numbers));
        let policies = self.policies.as_deref().expect("nothing is applied without policies");
        let context = self.partition.context(policies, self.frame.now, self.stream_time);
        let mut publisher = Publisher {
            outputs: self.out,
            encoder,
            partition: self.partition.number(),
            cause: from.map(|f| f.cause),
            origin: from.map(|f| f.header),
            traceparent: from.and_then(|f| f.trace),
            too_large: false,
        };
        let position =
            from.map(|f| Position { topic: f.origin.topic, partition: f.origin.partition, offset: f.origin.offset });
        let numbers = &mut self.numbers;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            apply(user, key, input, position.as_ref(), &context, numbers, &mut publisher)
        }));
        let trouble = match outcome {
            Ok(_) if publisher.too_large => "record.poison",
            Ok(outcome) => {
                self.touched[at].accepted |= matches!(outcome, Outcome::Scored | Outcome::Unscored);
                return Ok(outcome);
            }
            Err(_) => "engine.panic",
        };
        let Some((user, numbers)) = saved else { return Err(Trouble::Careful) };
        self.tools.scratch.users[at] = user;
        self.numbers = numbers;
        self.out.truncate(mark);
        Err(Trouble::Dead(trouble))
    }

    /// Publishes the latest values and the changed segments, user by user as they were touched; journal and meta come
    /// last.
    fn close(mut self) -> Result<Overlay, Abandon> {
        let commit_no = self.partition.meta().commit_no + 1;
        let mut touched = std::mem::take(&mut self.touched);
        let mut changes = Vec::with_capacity(touched.len());
        let mut users = self.partition.meta().users;
        for (at, touched) in touched.drain(..).enumerate() {
            let resident = touched.resident;
            let Some(change) = self.close_user(at, touched, commit_no)? else { continue };
            users += i64::from(change.bytes.head.is_some()) - i64::from(resident);
            changes.push(change);
        }
        self.tools.scratch.users.truncate(TOUCHED_AT_ONCE);
        let meta = self.meta(commit_no, users);
        let dirty = changes.iter().any(|c| c.written);
        let wrote = dirty || self.next != self.partition.positions() || self.frame.epoch.is_some();
        if wrote {
            self.write_meta(&meta);
        }
        Ok(Overlay {
            changes,
            meta,
            wrote,
            policies: self.policies,
            switched: self.switched,
            holds: self.holds,
            tally: self.tally,
            timers: self.timers,
        })
    }

    fn close_user(&mut self, at: usize, touched: Touched<'f>, commit_no: i64) -> Result<Option<UserChange>, Abandon> {
        let number = self.partition.number();
        let policies = self.policies.as_deref().expect("no user is touched without policies");
        let context = self.partition.context(policies, self.frame.now, self.stream_time);
        let Tools { encoder, scratch, .. } = &mut *self.tools;
        let user = &mut scratch.users[at];
        let mut publisher = Publisher {
            outputs: self.out,
            encoder,
            partition: number,
            cause: None,
            origin: None,
            traceparent: Some(touched.traceparent.as_slice()).filter(|t| !t.is_empty()),
            too_large: false,
        };
        let closed = catch_unwind(AssertUnwindSafe(|| {
            if touched.accepted {
                finish(user, &touched.key, &context, &mut publisher);
            }
            let changed = user.changes.is_written();
            let encoded = changed.then(|| {
                let (buffer, key) = (&mut scratch.segment, &mut scratch.key);
                state::encode_changed_in(buffer, user, touched.previous, commit_no, &mut |segment, value| {
                    key.clear();
                    state::write_key(&touched.key, segment, key);
                    publisher.state(key, value);
                })
            });
            (encoded, if changed || touched.accepted { next_due(user, &context) } else { touched.due })
        }));
        let too_large = publisher.too_large;
        let poison = |code| {
            let user_hash = crate::engine::state::hash64(&touched.key);
            Abandon::Error(FoldError { partition: number, code, user_hash })
        };
        let (encoded, next_due) = match closed {
            Err(_) => return Err(poison("engine.panic")),
            Ok(_) if too_large => return Err(poison("record.poison")),
            Ok(done) => done,
        };
        self.tally.observed.state_limits(touched.limits, user.head.limits);
        let written = encoded.is_some();
        if !written && (!touched.resident || next_due == touched.previous_due) {
            return Ok(None);
        }
        let bytes = encoded.unwrap_or_else(|| touched.previous.clone());
        assert!(
            self.partition.holds_user(&touched.key),
            "INV-8: a user of another partition would be written to partition {number}"
        );
        let Touched { key, hash, previous_due, .. } = touched;
        Ok(Some(UserChange { key, hash, bytes, previous_due, next_due, written }))
    }

    fn meta(&self, commit_no: i64, users: i64) -> Journal {
        let old = self.partition.meta();
        let from = self.partition.positions();
        let inputs = (0..INPUTS).map(|n| InputRange {
            topic: input_name(n).to_owned(),
            from: from[n],
            to: self.next[n],
            records: self.tally.inputs[n].records,
        });
        let mut ledger = old.ledger.clone();
        self.tally.add_to(&mut ledger);
        let identity = self.partition.identity();
        Journal {
            commit_no,
            inputs: inputs.collect(),
            now: self.frame.now,
            stream_time: self.stream_time,
            follows_clock: self.frame.follows_clock,
            condemned: self.frame.condemned.map(str::to_owned),
            lateness_days: identity.lateness_days,
            level_valid_ms: identity.level_valid_ms,
            policy_set: self.policies.as_deref().map_or(String::new(), |p| p.hash.clone()),
            epoch: self.frame.epoch.unwrap_or(old.epoch),
            transactional_id: identity.transactional_id.to_string(),
            partitions: identity.partitions.into(),
            cluster_id: identity.cluster_id.to_string(),
            users,
            next_case_no: self.numbers.next_case_no,
            next_alert_no: self.numbers.next_alert_no,
            format: state::FORMAT.into(),
            ledger,
        }
    }

    fn write_meta(&mut self, meta: &Journal) {
        let number = self.partition.number();
        let mut value = Vec::with_capacity(512);
        let encoded = self.tools.encoder.encode(Topic::EngineJournal, meta, &mut value);
        encoded.expect("the journal record is small and has the schema's shape");
        let key = number.to_string();
        let journal = self.out.record(Topic::EngineJournal, number).key(key.as_bytes()).value(&value);
        journal.finish().expect("the journal record is small");
        let meta = self.out.record(Topic::UserState, number).key(META_KEY).value(&value);
        meta.finish().expect("the meta record is small");
    }
}

struct Answer {
    row: Row,
    outcome: &'static str,
    code: &'static str,
    message: &'static str,
    hint: Option<&'static str>,
}

fn id_of(record: &BatchRecord<'_>) -> RecordId {
    RecordId { input: record.input, partition: record.partition, offset: record.offset }
}

/// Where a record was first written: ids must not change when it is re-routed.
fn position_of<'a>(record: &BatchRecord<'a>) -> Position<'a> {
    let origin = Origin::of(&record.headers(), input_name(record.input), record.partition, record.offset);
    Position { topic: origin.topic, partition: origin.partition, offset: origin.offset }
}
