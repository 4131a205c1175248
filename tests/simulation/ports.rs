//! The worker's ports over the world. Each call begins with `Client::call`: others may run first, the caller may die.
//! Next: `inputs.rs`.

use std::collections::BTreeMap;
use std::time::Duration;

use casestream::domain::Timestamp;
use casestream::runtime::ports::{
    Applied, Changes, Clock, CopyMeta, CopyUser, Error, ErrorKind, Group, InputOffset, Log, Outgoing, Polled,
    RecordRef, Store, TopicName, Txn,
};

use super::broker::{Refused, Stored};
use super::world::{Client, Mutation, World};

fn refused(what: &str, refused: Refused) -> Error {
    let kind = match refused {
        Refused::Fenced => ErrorKind::Fenced,
        Refused::Expired => ErrorKind::Fatal,
        Refused::StaleGeneration | Refused::NoTransaction => ErrorKind::Abort,
    };
    Error::new(kind, what, format!("{refused:?}"))
}

fn hand_over(topic: TopicName, partition: i32, offset: i64, record: &Stored, each: &mut dyn FnMut(RecordRef<'_>)) {
    let headers: Vec<(&str, Option<&[u8]>)> = record.headers.iter().map(|(k, v)| (k.as_str(), v.as_deref())).collect();
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

// -- group --------------------------------------------------------------------------------------------------------

pub struct SimGroup {
    client: Client,
    assigned: Vec<(TopicName, i32)>,
    positions: BTreeMap<(TopicName, i32), i64>,
    generation: i64,
    changes: Changes,
    /// Polls until the member notices that the group went on without it.
    unaware: Option<u64>,
}

impl SimGroup {
    pub fn join(client: &Client) -> SimGroup {
        client.lock().broker.join(&client.id, client.number);
        SimGroup {
            client: client.clone(),
            assigned: Vec::new(),
            positions: BTreeMap::new(),
            generation: 0,
            changes: Changes::default(),
            unaware: None,
        }
    }

    fn revoke(&mut self) {
        self.changes.revoked.append(&mut self.assigned);
        self.positions.clear();
    }

    /// What membership asks for, before any record.
    fn membership(&mut self, w: &mut World) -> Result<Option<Polled>, Error> {
        let range = w.broker.range(&self.client.id);
        let generation = w.broker.generation;
        match w.broker.members.get_mut(&self.client.id) {
            Some(member) if member.client != self.client.number => {
                Err(Error::new(ErrorKind::Fenced, "could not poll", "another client holds the membership"))
            }
            Some(member) if member.must_revoke => {
                member.must_revoke = false;
                self.revoke();
                Ok(Some(Polled::Rebalanced))
            }
            Some(member) if member.must_join => {
                member.must_join = false;
                member.assigned.clone_from(&range);
                self.assigned.clone_from(&range);
                self.generation = generation;
                self.changes.assigned = Some(range);
                Ok(Some(Polled::Rebalanced))
            }
            Some(_) => Ok(None),
            None => {
                let left = self.unaware.unwrap_or_else(|| w.rng.below(20));
                self.unaware = left.checked_sub(1);
                if left > 0 {
                    return Ok(None);
                }
                self.revoke();
                w.broker.join(&self.client.id, self.client.number);
                Ok(Some(Polled::Rebalanced))
            }
        }
    }
}

impl Group for SimGroup {
    type Metadata = i64;

    fn poll(&mut self, _wait: Duration, each: &mut dyn FnMut(RecordRef<'_>)) -> Result<Polled, Error> {
        let client = self.client.clone();
        let mut w = client.call("crash in poll", 4);
        client.refuse(&mut w, "poll failed", ErrorKind::Retriable, 4)?;
        if let Some(polled) = self.membership(&mut w)? {
            return Ok(polled);
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
        let mut w = self.client.call("crash in start", 1);
        self.client.refuse(&mut w, "start failed", ErrorKind::Retriable, 2)?;
        self.positions = positions.iter().map(|p| ((p.topic, p.partition), p.offset)).collect();
        Ok(())
    }

    fn seek(&mut self, positions: &[InputOffset]) -> Result<(), Error> {
        let mut w = self.client.call("crash in seek", 1);
        self.client.refuse(&mut w, "seek failed", ErrorKind::Retriable, 2)?;
        if w.mutation == Mutation::SeekIgnored {
            return Ok(());
        }
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
        self.client.lock().broker.leave(&self.client.id);
    }
}

// -- transactions -------------------------------------------------------------------------------------------------

pub struct SimTxn {
    client: Client,
    epoch: i64,
    trouble: bool,
}

impl SimTxn {
    pub fn new(client: &Client) -> SimTxn {
        SimTxn { client: client.clone(), epoch: -1, trouble: false }
    }

    fn after(&mut self, what: &str, answer: Result<(), Refused>) -> Result<(), Error> {
        self.trouble |= answer.is_err();
        answer.map_err(|r| refused(what, r))
    }

    /// An error the client reports although nothing was lost: the transaction must be aborted.
    fn must_abort(&mut self, point: &'static str, rarer: u64) -> Result<(), Error> {
        let refusal = self.client.refuse(&mut self.client.lock(), point, ErrorKind::Abort, rarer);
        self.trouble |= refusal.is_err();
        refusal
    }

    fn unknown(&mut self, w: &mut World) -> Error {
        self.trouble = true;
        let Client { id, number, .. } = &self.client;
        match w.rng.below(3) {
            0 => {
                w.hit("unknown commit that happened");
                // Refused or not: the client does not hear of it.
                let _ = w.broker.end_transaction(id, *number, self.epoch, true);
            }
            1 => w.hit("unknown commit that did not happen"),
            _ => {
                w.hit("unknown commit that comes late");
                w.delay_end(id, *number, self.epoch, true);
            }
        }
        Error::new(ErrorKind::Unknown, "could not commit", "injected")
    }
}

impl Txn for SimTxn {
    type Metadata = i64;

    fn init(&mut self) -> Result<(), Error> {
        let mut w = self.client.call("crash in init", 2);
        self.client.refuse(&mut w, "init failed", ErrorKind::Timeout, 2)?;
        self.epoch = w.broker.init(&self.client.id, self.client.number);
        self.trouble = false;
        w.note(|| format!("{} has epoch {}", self.client.id, self.epoch));
        Ok(())
    }

    fn begin(&mut self) -> Result<(), Error> {
        drop(self.client.call("crash in begin", 1));
        Ok(())
    }

    fn send(&mut self, record: &Outgoing<'_>) -> Result<(), Error> {
        drop(self.client.call("crash in send", 8));
        self.must_abort("abort in send", 20)?;
        let sent = self.client.lock().broker.send(&self.client.id, self.client.number, self.epoch, record);
        self.after("could not send", sent)
    }

    fn send_offsets(&mut self, offsets: &[InputOffset], generation: &i64) -> Result<(), Error> {
        drop(self.client.call("crash in send_offsets", 1));
        self.must_abort("abort in send_offsets", 2)?;
        let Client { id, number, .. } = self.client.clone();
        let sent = self.client.lock().broker.send_offsets(&id, number, self.epoch, offsets, *generation);
        if sent.is_err() {
            self.client.lock().hit("offsets refused");
        }
        self.after("could not send offsets", sent)
    }

    fn commit(&mut self) -> Result<(), Error> {
        drop(self.client.call("crash before commit", 1));
        self.must_abort("abort in commit", 2)?;
        let client = self.client.clone();
        let mut w = client.lock();
        if w.strikes(1) {
            return Err(self.unknown(&mut w));
        }
        let ended = w.broker.end_transaction(&client.id, client.number, self.epoch, true);
        w.note(|| format!("{} commits: {ended:?}", client.id));
        drop(w);
        self.after("could not commit", ended)?;
        drop(self.client.call("crash after commit", 1));
        Ok(())
    }

    fn abort(&mut self) -> Result<(), Error> {
        let client = self.client.clone();
        let mut w = client.call("crash in abort", 1);
        if w.strikes(1) {
            w.hit("abort that comes late");
            self.trouble = true;
            w.delay_end(&client.id, client.number, self.epoch, false);
            return Err(Error::new(ErrorKind::Timeout, "could not abort", "injected"));
        }
        let ended = match w.broker.end_transaction(&client.id, client.number, self.epoch, false) {
            Err(Refused::NoTransaction) => Ok(()),
            other => other,
        };
        w.note(|| format!("{} aborts: {ended:?}", client.id));
        self.after("could not abort", ended)
    }

    fn wants_recycling(&self) -> bool {
        self.trouble
    }
}

// -- log ----------------------------------------------------------------------------------------------------------

pub struct SimLog {
    pub client: Client,
}

/// How long a wait for the last stable offset takes between two looks.
const LOOK_MS: i64 = 500;
/// Looks until a read gives up.
const LOOKS_MAX: u32 = 40;

impl Log for SimLog {
    fn committed(&mut self, inputs: &[(TopicName, i32)]) -> Result<Vec<Option<InputOffset>>, Error> {
        let mut w = self.client.call("crash in committed", 2);
        self.client.refuse(&mut w, "committed offsets timed out", ErrorKind::Timeout, 2)?;
        let mut found = Vec::with_capacity(inputs.len());
        for (topic, partition) in inputs {
            match w.broker.stable_offset(topic, *partition) {
                Some(offset) => found.push(offset),
                None => {
                    w.hit("committed offsets unstable");
                    return Err(Error::new(ErrorKind::Unstable, "could not read offsets", "transaction pending"));
                }
            }
        }
        Ok(found)
    }

    fn watermarks(&mut self, topic: TopicName, partition: i32) -> Result<(i64, i64), Error> {
        let mut w = self.client.call("crash in watermarks", 8);
        self.client.refuse(&mut w, "watermarks timed out", ErrorKind::Timeout, 8)?;
        Ok((0, w.broker.end_offset(topic, partition)))
    }

    fn read(
        &mut self,
        topic: TopicName,
        partition: i32,
        from: i64,
        until: i64,
        each: &mut dyn FnMut(RecordRef<'_>),
    ) -> Result<(), Error> {
        let (mut at, mut looks) = (from, 0);
        let mut w = self.client.call("crash in read", 2);
        self.client.refuse(&mut w, "read timed out", ErrorKind::Timeout, 2)?;
        drop(w);
        loop {
            let mut w = self.client.lock();
            let stable = w.broker.last_stable(topic, partition);
            match w.broker.next_committed(topic, partition, at).filter(|(offset, _)| *offset < until) {
                Some((offset, record)) => {
                    let record = record.clone();
                    drop(w);
                    hand_over(topic, partition, offset, &record, each);
                    at = offset + 1;
                }
                None if stable >= until => return Ok(()),
                None if looks == LOOKS_MAX => {
                    return Err(Error::new(ErrorKind::Timeout, "could not read", "an open transaction pins the end"));
                }
                None => {
                    if looks == 0 {
                        w.hit("read pinned by an open transaction");
                    }
                    looks += 1;
                    w.advance(LOOK_MS);
                }
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
    pub client: Client,
}

fn gone() -> Error {
    Error::new(ErrorKind::Retriable, "could not reach the store", "injected")
}

impl SimStore {
    fn up(&self, point: &'static str) -> Result<std::sync::MutexGuard<'_, World>, Error> {
        let mut w = self.client.call(point, 1);
        if w.store_down {
            w.hit("store unavailable");
            return Err(gone());
        }
        self.client.refuse(&mut w, "store timeout", ErrorKind::Retriable, 2)?;
        Ok(w)
    }

    /// What the script of the store does.
    fn write(w: &mut World, partition: i32, users: &[CopyUser], meta: &CopyMeta, last: bool) -> Applied {
        let (takes_older, forgets) = (w.mutation == Mutation::StoreTakesOlder, w.mutation == Mutation::StoreForgets);
        let copy = w.copies.entry(partition).or_default();
        let have = copy.meta.clone().unwrap_or_default();
        let same_cluster = have.cluster_id == meta.cluster_id;
        let same_copy = same_cluster && have.generation == meta.generation;
        if same_cluster && have.epoch > meta.epoch && !takes_older {
            return Applied::Fenced { epoch: have.epoch };
        }
        if meta.expected_applied >= 0 && !(same_copy && have.applied >= meta.expected_applied) && !forgets {
            return Applied::Regressed;
        }
        let mut kept = meta.clone();
        kept.expected_applied = -1;
        if !last {
            let old = if same_copy { have.clone() } else { CopyMeta::default() };
            let CopyMeta { applied, changelog_offset, applied_at, users, .. } = old;
            kept = CopyMeta { applied, changelog_offset, applied_at, users, ..kept };
        }
        copy.meta = Some(kept);
        for user in users {
            let newer = copy
                .users
                .get(&user.user_key)
                .is_some_and(|(generation, known)| *generation == meta.generation && known.commit_no >= user.commit_no);
            if newer && !takes_older {
                continue;
            }
            if let Some((generation, known)) = copy.users.get(&user.user_key)
                && *generation == meta.generation
                && known.commit_no > user.commit_no
            {
                let (key, from, to) = (&user.user_key, known.commit_no, user.commit_no);
                w.broker.violations.push(format!("INV-3: {key} in the copy went back from commit {from} to {to}"));
            }
            if user.segments.is_empty() && user.score.is_empty() {
                copy.users.remove(&user.user_key);
            } else {
                copy.users.insert(user.user_key.clone(), (meta.generation, user.clone()));
            }
        }
        Applied::Ok { before: if same_copy { have.applied } else { 0 } }
    }
}

impl Store for SimStore {
    fn meta(&mut self, partition: i32) -> Result<Option<CopyMeta>, Error> {
        Ok(self.up("crash in store.meta")?.copies.get(&partition).and_then(|c| c.meta.clone()))
    }

    fn users(&mut self, partition: i32, each: &mut dyn FnMut(CopyUser)) -> Result<(), Error> {
        let copy = self.up("crash in store.users")?.copies.get(&partition).cloned().unwrap_or_default();
        copy.users.into_values().for_each(|(_, user)| each(user));
        Ok(())
    }

    fn apply(&mut self, partition: i32, users: &[CopyUser], meta: &CopyMeta, last: bool) -> Result<Applied, Error> {
        let mut w = self.up("crash in store.apply")?;
        let applied = SimStore::write(&mut w, partition, users, meta, last);
        w.note(|| {
            let keys: Vec<&str> = users.iter().map(|u| u.user_key.as_str()).collect();
            format!(
                "{} writes copy {partition} to {} (epoch {}, generation {}, expected {}): {applied:?} {keys:?}",
                self.client.id, meta.applied, meta.epoch, meta.generation, meta.expected_applied
            )
        });
        match applied {
            Applied::Ok { .. } => {}
            Applied::Fenced { .. } => w.hit("store fenced a writer"),
            Applied::Regressed => w.hit("store had lost data"),
        }
        self.client.refuse(&mut w, "store answer lost", ErrorKind::Retriable, 2)?;
        Ok(applied)
    }

    fn sweep(&mut self, partition: i32, meta: &CopyMeta) -> Result<(), Error> {
        let mut w = self.up("crash in store.sweep")?;
        let copy = w.copies.entry(partition).or_default();
        if copy.users.is_empty() {
            return Ok(());
        }
        let have = copy.meta.clone().unwrap_or_default();
        if (have.epoch, have.generation) != (meta.epoch, meta.generation) {
            return Err(Error::new(ErrorKind::Abort, "could not sweep", "the copy is another's"));
        }
        copy.users.retain(|_, (generation, _)| *generation == meta.generation);
        Ok(())
    }
}

// -- clock --------------------------------------------------------------------------------------------------------

#[derive(Clone)]
pub struct SimClock {
    pub client: Client,
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        self.client.lock().now()
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.client.lock().now().0.unsigned_abs())
    }

    fn wait(&self, duration: Duration) {
        self.client.lock().advance((duration.as_millis() as i64).max(1));
    }
}
