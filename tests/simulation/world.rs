//! The ports of the worker over the broker in memory, with faults drawn from a seed: crashes at any call, refused and
//! unknown commits, ends of transactions that arrive late, a store that loses what it acknowledged.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use casestream::domain::Timestamp;
use casestream::runtime::ports::{
    Applied, Changes, Clock, CopyMeta, CopyUser, Error, ErrorKind, Group, InputOffset, Log, Outgoing, Polled, RecordRef,
    Store, TopicName, Txn,
};

use super::broker::{Broker, Refused, Stored};

/// Thrown through the worker in place of a crash of its process.
pub struct Crash;

/// splitmix64.
#[derive(Clone, Copy)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    /// True once in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        n > 0 && self.below(n) == 0
    }
}

/// Where faults strike, and how often each did: the run asserts that none was left out.
pub type Hits = BTreeMap<&'static str, u64>;

/// Everything outside the workers.
pub struct World {
    pub broker: Broker,
    pub copies: BTreeMap<i32, Copy>,
    pub rng: Rng,
    /// One fault in this many port calls; 0 for none.
    pub fault_one_in: u64,
    pub hits: Hits,
    /// Ends of transactions still on their way: id, epoch, commit.
    late: Vec<(String, i64, bool)>,
}

/// A partition of the store, with what an asynchronous replica had of it.
#[derive(Clone, Default)]
pub struct Copy {
    pub meta: Option<CopyMeta>,
    pub users: BTreeMap<String, (i64, CopyUser)>,
}

pub type Shared = Arc<Mutex<World>>;

impl World {
    pub fn new(broker: Broker, seed: u64) -> World {
        World {
            broker,
            copies: BTreeMap::new(),
            rng: Rng(seed),
            fault_one_in: 0,
            hits: Hits::new(),
            late: Vec::new(),
        }
    }

    fn strikes(&mut self) -> bool {
        let one_in = self.fault_one_in;
        self.rng.one_in(one_in)
    }

    fn hit(&mut self, what: &'static str) {
        *self.hits.entry(what).or_default() += 1;
    }

    /// Delivers an end of transaction that had been delayed. It must find its epoch fenced.
    fn deliver_late(&mut self) {
        if !self.late.is_empty() && self.rng.one_in(3) {
            let (id, epoch, commit) = self.late.remove(0);
            if self.broker.end_transaction(&id, epoch, commit).is_ok() {
                self.hit("late end accepted");
            } else {
                self.hit("late end fenced");
            }
        }
    }
}

fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Possibly crashes the caller.
fn maybe_crash(world: &Shared, point: &'static str) {
    let mut w = lock(world);
    w.deliver_late();
    let crash = w.strikes() && w.rng.one_in(3);
    if crash {
        w.hit(point);
        drop(w);
        std::panic::resume_unwind(Box::new(Crash));
    }
}

fn refused(what: &str, refused: Refused) -> Error {
    let kind = match refused {
        Refused::Fenced => ErrorKind::Fatal,
        Refused::StaleGeneration | Refused::NoTransaction => ErrorKind::Abort,
    };
    Error::new(kind, what, format!("{refused:?}"))
}

// -- group --------------------------------------------------------------------------------------------------------

pub struct SimGroup {
    world: Shared,
    id: String,
    positions: BTreeMap<(TopicName, i32), i64>,
    generation: i64,
    changes: Changes,
}

impl SimGroup {
    pub fn join(world: &Shared, id: &str) -> SimGroup {
        lock(world).broker.join(id);
        SimGroup {
            world: world.clone(),
            id: id.to_owned(),
            positions: BTreeMap::new(),
            generation: 0,
            changes: Changes::default(),
        }
    }
}

impl Group for SimGroup {
    type Metadata = i64;

    fn poll(&mut self, _wait: Duration, each: &mut dyn FnMut(RecordRef<'_>)) -> Result<Polled, Error> {
        maybe_crash(&self.world, "crash in poll");
        let mut w = lock(&self.world);
        let range = w.broker.range(&self.id);
        let generation = w.broker.generation;
        let Some(member) = w.broker.members.get_mut(&self.id) else {
            return Err(Error::new(ErrorKind::Fenced, "could not poll", "the member was removed"));
        };
        if member.must_revoke {
            member.must_revoke = false;
            self.changes.revoked.append(&mut member.assigned);
            self.positions.clear();
            return Ok(Polled::Rebalanced);
        }
        if member.must_join {
            member.must_join = false;
            member.assigned = range.clone();
            member.generation = generation;
            self.generation = generation;
            self.changes.assigned = Some(range);
            return Ok(Polled::Rebalanced);
        }
        for ((topic, partition), position) in &mut self.positions {
            let Some((offset, record)) = w.broker.next_committed(topic, *partition, *position) else { continue };
            *position = offset + 1;
            let record = record.clone();
            drop(w);
            hand_over(topic, *partition, offset, &record, each);
            return Ok(Polled::Record);
        }
        Ok(Polled::Nothing)
    }

    fn changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    fn start(&mut self, positions: &[InputOffset]) -> Result<(), Error> {
        maybe_crash(&self.world, "crash in start");
        self.positions = positions.iter().map(|p| ((p.topic, p.partition), p.offset)).collect();
        Ok(())
    }

    fn seek(&mut self, positions: &[InputOffset]) -> Result<(), Error> {
        maybe_crash(&self.world, "crash in seek");
        for p in positions {
            if let Some(at) = self.positions.get_mut(&(p.topic, p.partition)) {
                *at = p.offset;
            }
        }
        Ok(())
    }

    fn metadata(&self) -> Result<i64, Error> {
        Ok(self.generation)
    }

    fn owns(&self, topic: TopicName, partition: i32) -> bool {
        self.positions.contains_key(&(topic, partition))
    }

    fn close(&mut self) {
        lock(&self.world).broker.leave(&self.id);
    }
}

fn hand_over(topic: TopicName, partition: i32, offset: i64, record: &Stored, each: &mut dyn FnMut(RecordRef<'_>)) {
    let headers: Vec<(&str, Option<&[u8]>)> =
        record.headers.iter().map(|(k, v)| (k.as_str(), v.as_deref())).collect();
    each(RecordRef {
        topic,
        partition,
        offset,
        timestamp: record.timestamp,
        key: record.key.as_deref(),
        value: record.value.as_deref(),
        headers: &headers,
    });
}

// -- transactions -------------------------------------------------------------------------------------------------

pub struct SimTxn {
    world: Shared,
    id: String,
    epoch: i64,
    trouble: bool,
}

impl SimTxn {
    pub fn new(world: &Shared, id: &str) -> SimTxn {
        SimTxn { world: world.clone(), id: id.to_owned(), epoch: -1, trouble: false }
    }

    /// An error the client reports although nothing was lost: the transaction must be aborted.
    fn maybe_abort(&mut self, point: &'static str) -> Result<(), Error> {
        let mut w = lock(&self.world);
        if w.strikes() && w.rng.one_in(2) {
            w.hit(point);
            self.trouble = true;
            return Err(Error::new(ErrorKind::Abort, point, "injected"));
        }
        Ok(())
    }
}

impl Txn for SimTxn {
    type Metadata = i64;

    fn init(&mut self) -> Result<(), Error> {
        maybe_crash(&self.world, "crash in init");
        self.epoch = lock(&self.world).broker.init(&self.id);
        self.trouble = false;
        Ok(())
    }

    fn begin(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn send(&mut self, record: &Outgoing<'_>) -> Result<(), Error> {
        maybe_crash(&self.world, "crash in send");
        self.maybe_abort("abort in send")?;
        lock(&self.world).broker.send(&self.id, self.epoch, record).map_err(|r| refused("could not send", r))
    }

    fn send_offsets(&mut self, offsets: &[InputOffset], generation: &i64) -> Result<(), Error> {
        maybe_crash(&self.world, "crash in send_offsets");
        self.maybe_abort("abort in send_offsets")?;
        let sent = lock(&self.world).broker.send_offsets(&self.id, self.epoch, offsets, *generation);
        sent.map_err(|r| {
            self.trouble = true;
            refused("could not send offsets", r)
        })
    }

    fn commit(&mut self) -> Result<(), Error> {
        maybe_crash(&self.world, "crash before commit");
        self.maybe_abort("abort in commit")?;
        let mut w = lock(&self.world);
        if w.strikes() {
            self.trouble = true;
            match w.rng.below(3) {
                0 => {
                    w.hit("unknown commit that happened");
                    let _ = w.broker.end_transaction(&self.id, self.epoch, true);
                }
                1 => w.hit("unknown commit that did not happen"),
                _ => {
                    w.hit("unknown commit that comes late");
                    let late = (self.id.clone(), self.epoch, true);
                    w.late.push(late);
                }
            }
            return Err(Error::new(ErrorKind::Unknown, "could not commit", "injected"));
        }
        let ended = w.broker.end_transaction(&self.id, self.epoch, true).map_err(|r| refused("could not commit", r));
        drop(w);
        maybe_crash(&self.world, "crash after commit");
        ended
    }

    fn abort(&mut self) -> Result<(), Error> {
        maybe_crash(&self.world, "crash in abort");
        let mut w = lock(&self.world);
        match w.broker.end_transaction(&self.id, self.epoch, false) {
            Ok(()) | Err(Refused::NoTransaction) => Ok(()),
            Err(other) => Err(refused("could not abort", other)),
        }
    }

    fn wants_recycling(&self) -> bool {
        self.trouble
    }
}

// -- log ----------------------------------------------------------------------------------------------------------

pub struct SimLog {
    pub world: Shared,
}

impl Log for SimLog {
    fn committed(&mut self, inputs: &[(TopicName, i32)]) -> Result<Vec<Option<InputOffset>>, Error> {
        maybe_crash(&self.world, "crash in committed");
        let mut w = lock(&self.world);
        // Waiting is simulated by time going on: an orphan's transaction ends by itself.
        w.broker.now = w.broker.now.plus_ms(500);
        w.broker.expire_transactions();
        inputs
            .iter()
            .map(|(topic, partition)| {
                w.broker
                    .stable_offset(topic, *partition)
                    .ok_or_else(|| Error::new(ErrorKind::Unstable, "could not read offsets", "transaction pending"))
            })
            .collect()
    }

    fn watermarks(&mut self, topic: TopicName, partition: i32) -> Result<(i64, i64), Error> {
        maybe_crash(&self.world, "crash in watermarks");
        Ok((0, lock(&self.world).broker.end_offset(topic, partition)))
    }

    fn read(
        &mut self,
        topic: TopicName,
        partition: i32,
        from: i64,
        until: i64,
        each: &mut dyn FnMut(RecordRef<'_>),
    ) -> Result<(), Error> {
        maybe_crash(&self.world, "crash in read");
        let mut at = from;
        loop {
            let mut w = lock(&self.world);
            if w.broker.last_stable(topic, partition) < until.min(w.broker.end_offset(topic, partition)) {
                w.broker.now = w.broker.now.plus_ms(500);
                w.broker.expire_transactions();
            }
            let stable = w.broker.last_stable(topic, partition);
            let next = w.broker.next_committed(topic, partition, at).map(|(o, r)| (o, r.clone()));
            drop(w);
            match next {
                Some((offset, record)) if offset < until => {
                    hand_over(topic, partition, offset, &record, each);
                    at = offset + 1;
                }
                _ if stable >= until => return Ok(()),
                _ => {}
            }
        }
    }

    fn cluster_id(&mut self) -> Result<String, Error> {
        Ok("simulated".into())
    }
}

// -- store --------------------------------------------------------------------------------------------------------

#[derive(Clone)]
pub struct SimStore {
    pub world: Shared,
}

impl Store for SimStore {
    fn meta(&mut self, partition: i32) -> Result<Option<CopyMeta>, Error> {
        Ok(lock(&self.world).copies.get(&partition).and_then(|c| c.meta.clone()))
    }

    fn users(&mut self, partition: i32, each: &mut dyn FnMut(CopyUser)) -> Result<(), Error> {
        let users: Vec<CopyUser> = lock(&self.world)
            .copies
            .get(&partition)
            .map(|c| c.users.values().map(|(_, u)| u.clone()).collect())
            .unwrap_or_default();
        users.into_iter().for_each(each);
        Ok(())
    }

    fn apply(&mut self, partition: i32, users: &[CopyUser], meta: &CopyMeta, last: bool) -> Result<Applied, Error> {
        let mut w = lock(&self.world);
        if w.strikes() && w.rng.one_in(2) {
            w.hit("store timeout");
            return Err(Error::new(ErrorKind::Retriable, "could not apply", "injected"));
        }
        let copy = w.copies.entry(partition).or_default();
        if let Some(have) = &copy.meta {
            if have.epoch > meta.epoch {
                return Ok(Applied::Fenced { epoch: have.epoch });
            }
            if have.generation > meta.generation {
                return Ok(Applied::Regressed);
            }
        }
        let before = copy.meta.as_ref().map_or(-1, |m| m.applied);
        if meta.expected_applied >= 0 && before < meta.expected_applied {
            return Ok(Applied::Regressed);
        }
        for user in users {
            let older = copy.users.get(&user.user_key).is_some_and(|(_, have)| have.commit_no >= user.commit_no);
            if user.segments.is_empty() && user.score.is_empty() {
                if !older {
                    copy.users.remove(&user.user_key);
                }
            } else if !older || copy.users[&user.user_key].0 < meta.generation {
                copy.users.insert(user.user_key.clone(), (meta.generation, user.clone()));
            }
        }
        let mut kept = meta.clone();
        if !last {
            kept.applied = before;
            if let Some(have) = &copy.meta {
                kept.changelog_offset = have.changelog_offset;
            }
        }
        kept.expected_applied = -1;
        copy.meta = Some(kept);
        Ok(Applied::Ok { before })
    }

    fn sweep(&mut self, partition: i32, meta: &CopyMeta) -> Result<(), Error> {
        if let Some(copy) = lock(&self.world).copies.get_mut(&partition) {
            copy.users.retain(|_, (generation, _)| *generation >= meta.generation);
        }
        Ok(())
    }
}

// -- clock --------------------------------------------------------------------------------------------------------

#[derive(Clone)]
pub struct SimClock {
    pub world: Shared,
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        lock(&self.world).broker.now
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(lock(&self.world).broker.now.0 as u64)
    }

    fn wait(&self, duration: Duration) {
        let mut w = lock(&self.world);
        let now = w.broker.now.plus_ms((duration.as_millis() as i64).max(1));
        w.broker.now = now;
        w.broker.expire_transactions();
    }
}
