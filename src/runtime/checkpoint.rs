//! The writer of the readable copy in Redis. Workers hand it the users of each committed transaction and go on; it
//! writes the newest state of each user, at most once per interval, in bounded chunks. What it writes is already true
//! in Kafka, so a lost or repeated write costs freshness and nothing else.
//!
//! It never reads the log and never decides anything about a user. A copy that lost data is rebuilt by asking the owner
//! for every user of the partition under a new generation.
//! Next: `redis_store.rs`, how a chunk is written.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::copy_sink::{CopySink, DirtyUser, Loaded, Standing};
use super::ports::{Applied, Clock, CopyMeta, CopyUser, Error, Store};
use super::telemetry::{self, Limit};
use crate::domain::Timestamp;
use crate::domain::policy::PolicySet;
use crate::engine::state::{Head, hash64};
use crate::wire::state::{self, UserBytes};

/// Most users in one chunk; a script of this size holds the store for about 3 ms.
pub const CHUNK_USERS_MAX: usize = 500;
/// Most bytes in one chunk.
pub const CHUNK_BYTES_MAX: usize = 512 << 10;
/// The writer rests this many times as long as it wrote.
const REST: u32 = 3;
/// Changelog marks remembered until the copy has passed them.
const MARKS_MAX: usize = 64;
/// How often a copy with nothing to write is asked whether it still holds what it acknowledged.
const LOOK_EVERY_MS: i64 = 10_000;

/// How fresh a partition's copy is, for `/readyz` and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freshness {
    pub committed: i64,
    pub applied: i64,
    pub dirty_users: usize,
    pub rebuilding: bool,
    /// Since when something committed has not been applied.
    pub behind_since: Option<Timestamp>,
    /// Since when the copy has been behind without progress.
    pub failing_since: Option<Timestamp>,
}

impl Freshness {
    /// Commits the copy has not applied.
    pub fn commits_behind(&self) -> i64 {
        self.committed - self.applied.max(0)
    }

    /// For how long something has not been applied.
    pub fn behind(&self, now: Timestamp) -> Duration {
        let since = self.behind_since.unwrap_or(now);
        Duration::from_millis(u64::try_from(now.0.saturating_sub(since.0)).unwrap_or(0))
    }
}

/// Users waiting to be written, by key: one entry each, the newest.
type Waiting = BTreeMap<Arc<str>, (i64, UserBytes)>;

#[derive(Default)]
struct Copy {
    epoch: i64,
    generation: i64,
    cluster_id: String,
    users: i64,
    committed: i64,
    /// -1 until the store has acknowledged something of this generation.
    acknowledged: i64,
    /// commit_no → a changelog offset not after the records of later commits.
    marks: BTreeMap<i64, i64>,
    waiting: Waiting,
    /// Every user is needed before anything may be written.
    wants_all: bool,
    /// The owner has been told so: its next hand-over holds every user.
    asked: bool,
    /// Under a new generation: old leftovers are swept once everything is written.
    rebuilding: bool,
    behind_since: Option<Timestamp>,
    failing_since: Option<Timestamp>,
    /// When the store last answered for this partition.
    heard_at: Timestamp,
}

#[derive(Default)]
struct Shared {
    partitions: Mutex<BTreeMap<i32, Copy>>,
    policies: Mutex<BTreeMap<u64, String>>,
    wake: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What workers and the writer share.
#[derive(Clone, Default)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    /// Teaches the writer the ids of a set's policies, which the state holds as hashes.
    pub fn name_policies(&self, set: &PolicySet) {
        lock(&self.shared.policies).extend(set.policies.iter().map(|p| (hash64(&p.id), p.id.clone())));
    }

    /// How fresh each partition's copy is.
    pub fn freshness(&self) -> BTreeMap<i32, Freshness> {
        let report = |c: &Copy| Freshness {
            committed: c.committed,
            applied: c.acknowledged,
            dirty_users: c.waiting.len(),
            rebuilding: c.rebuilding,
            behind_since: c.behind_since,
            failing_since: c.failing_since,
        };
        lock(&self.shared.partitions).iter().map(|(p, c)| (*p, report(c))).collect()
    }

    /// Wakes the writer, for an orderly end.
    pub fn wake(&self) {
        self.shared.wake.notify_all();
    }

    fn assigned(&self, standing: &Standing, loaded: Loaded, found: Option<&CopyMeta>) {
        let mut partitions = lock(&self.shared.partitions);
        let mut before = partitions.remove(&standing.partition).unwrap_or_default();
        if before.epoch > standing.epoch {
            // Another worker of this process took the partition over while this one was held up.
            partitions.insert(standing.partition, before);
            return;
        }
        let trusted = found.filter(|_| loaded == Loaded::CaughtUp);
        if trusted.is_none() {
            before.waiting.clear();
        }
        let newest = found.map_or(0, |f| f.generation).max(before.generation);
        let copy = Copy {
            epoch: standing.epoch,
            generation: trusted.map_or(newest + 1, |f| f.generation),
            cluster_id: standing.cluster_id.to_string(),
            users: standing.users,
            committed: standing.commit_no,
            acknowledged: trusted.map_or(-1, |f| f.applied),
            marks: BTreeMap::from([(standing.mark.commit_no, standing.mark.offset)]),
            waiting: before.waiting,
            wants_all: trusted.is_none(),
            asked: trusted.is_none(),
            rebuilding: trusted.is_none(),
            behind_since: before.behind_since,
            failing_since: None,
            heard_at: standing.now,
        };
        partitions.insert(standing.partition, copy);
    }

    fn dirty(&self, standing: &Standing, users: Vec<DirtyUser>) {
        let mut partitions = lock(&self.shared.partitions);
        // A worker that was held up hands over what a later owner has read from the changelog.
        let ours = |c: &&mut Copy| c.epoch == standing.epoch;
        let Some(copy) = partitions.get_mut(&standing.partition).filter(ours) else { return };
        let (now, before) = (standing.commit_no, copy.committed);
        assert!(now >= before, "INV-4: commits are handed over in order: {now} after {before}");
        copy.committed = now;
        if now > copy.acknowledged {
            copy.behind_since.get_or_insert(standing.now);
        }
        copy.wants_all &= !std::mem::take(&mut copy.asked);
        copy.users = standing.users;
        copy.marks.insert(standing.mark.commit_no, standing.mark.offset);
        while copy.marks.len() > MARKS_MAX {
            copy.marks.pop_first();
            telemetry::limit(Limit::Marks);
        }
        copy.waiting.extend(users.into_iter().map(|u| (u.user_key, (u.commit_no, u.bytes))));
    }

    /// Forgets a partition, unless it has a later owner.
    fn revoked(&self, partition: i32, epoch: i64) {
        let mut partitions = lock(&self.shared.partitions);
        if partitions.get(&partition).is_some_and(|c| c.epoch <= epoch) {
            partitions.remove(&partition);
            telemetry::copy_gone(partition);
        }
    }

    /// Partitions among these (with the epoch of their owner) that lost data. The owner answers each with every user,
    /// through `dirty`.
    fn lost(&self, owned: &BTreeMap<i32, i64>) -> Vec<i32> {
        let mut lost = Vec::new();
        for (partition, copy) in lock(&self.shared.partitions).iter_mut() {
            if copy.wants_all && !copy.asked && owned.get(partition) == Some(&copy.epoch) {
                copy.asked = true;
                lost.push(*partition);
            }
        }
        lost
    }
}

/// A worker's side: hands over and returns at once; reads the copy only when it takes a partition over.
pub struct Copies<S: Store> {
    handle: Handle,
    store: S,
    found: BTreeMap<i32, CopyMeta>,
    /// Epoch of each partition this worker took over: other workers share the handle.
    owned: BTreeMap<i32, i64>,
}

impl<S: Store> Copies<S> {
    /// The sink of one worker, with a connection of its own for reading.
    pub fn new(handle: Handle, store: S) -> Copies<S> {
        Copies { handle, store, found: BTreeMap::new(), owned: BTreeMap::new() }
    }
}

impl<S: Store> CopySink for Copies<S> {
    fn meta(&mut self, partition: i32) -> Result<Option<CopyMeta>, Error> {
        self.found.remove(&partition);
        let meta = self.store.meta(partition)?;
        if let Some(found) = &meta {
            self.found.insert(partition, found.clone());
        }
        Ok(meta)
    }

    fn users(&mut self, partition: i32, each: &mut dyn FnMut(CopyUser)) -> Result<(), Error> {
        self.store.users(partition, each)
    }

    fn assigned(&mut self, standing: &Standing, loaded: Loaded) {
        self.owned.insert(standing.partition, standing.epoch);
        self.handle.assigned(standing, loaded, self.found.get(&standing.partition));
    }

    fn dirty(&mut self, standing: &Standing, users: Vec<DirtyUser>) {
        self.handle.dirty(standing, users);
    }

    fn revoked(&mut self, partition: i32) {
        if let Some(epoch) = self.owned.remove(&partition) {
            self.handle.revoked(partition, epoch);
        }
    }

    fn lost(&mut self) -> Vec<i32> {
        self.handle.lost(&self.owned)
    }
}

/// The writing side: one per process, on its own thread.
pub struct Writer<S: Store, C: Clock> {
    handle: Handle,
    store: S,
    clock: C,
    took: Duration,
}

/// What a round of writing did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    pub users: usize,
    /// Partitions that could not be written and will be tried again.
    pub failed: usize,
}

impl<S: Store, C: Clock> Writer<S, C> {
    /// A writer for what `handle` receives.
    pub fn new(handle: Handle, store: S, clock: C) -> Writer<S, C> {
        Writer { handle, store, clock, took: Duration::ZERO }
    }

    /// Writes what is dirty, once over all partitions.
    pub fn round(&mut self) -> Round {
        let partitions: Vec<(i32, bool)> = lock(&self.handle.shared.partitions)
            .iter()
            .filter(|(_, c)| !c.wants_all)
            .map(|(p, c)| (*p, c.committed > c.acknowledged || !c.waiting.is_empty() || c.rebuilding))
            .collect();
        let mut round = Round::default();
        for (partition, is_dirty) in partitions {
            let written = if is_dirty { self.flush(partition) } else { self.look(partition).map(|()| 0) };
            match written {
                Ok(users) => round.users += users,
                Err(error) => {
                    round.failed += 1;
                    self.note_failure(partition, &error);
                }
            }
        }
        self.tell_lag();
        round
    }

    fn tell_lag(&self) {
        let now = self.clock.now();
        for (partition, fresh) in self.handle.freshness() {
            telemetry::copy_lag(partition, fresh.commits_behind(), fresh.behind(now));
        }
    }

    /// A round after a rest of `interval`, or longer when the last round took long: under load the copy gets a quarter
    /// of the time, and more commits fold into one write of a user.
    pub fn paced_round(&mut self, interval: Duration) -> Round {
        self.wait(interval.max(REST * self.took));
        let began = self.clock.monotonic();
        let round = self.round();
        self.took = self.clock.monotonic() - began;
        round
    }

    fn wait(&self, interval: Duration) {
        let partitions = lock(&self.handle.shared.partitions);
        drop(self.handle.shared.wake.wait_timeout(partitions, interval));
    }

    fn note_failure(&self, partition: i32, error: &Error) {
        let now = self.clock.now();
        if let Some(copy) = lock(&self.handle.shared.partitions).get_mut(&partition)
            && copy.failing_since.is_none()
        {
            copy.failing_since = Some(now);
            tracing::warn!(partition, %error, "the copy in redis falls behind; scores and alerts go on");
        }
    }

    fn flush(&mut self, partition: i32) -> Result<usize, Error> {
        let Some((meta, waiting)) = self.take(partition) else { return Ok(0) };
        let total = waiting.len();
        let names = lock(&self.handle.shared.policies).clone();
        let mut rest: Vec<(Arc<str>, (i64, UserBytes))> = waiting.into_iter().collect();
        loop {
            let (chunk, taken) = chunk(&rest, &names);
            let last = taken == rest.len();
            let began = self.clock.monotonic();
            let applied = self.store.apply(partition, &chunk, &meta, last);
            telemetry::copy_applied(self.clock.monotonic() - began);
            if !last {
                telemetry::limit(Limit::Chunk);
            }
            match applied {
                Ok(Applied::Ok { .. }) if last => return self.finish(partition, &meta, total),
                Ok(Applied::Ok { .. }) => drop(rest.drain(..taken)),
                Ok(Applied::Fenced { epoch }) => {
                    tracing::info!(partition, epoch, "another worker writes this copy now");
                    telemetry::copy_write_stale();
                    self.handle.revoked(partition, meta.epoch);
                    return Ok(0);
                }
                Ok(Applied::Regressed) => {
                    self.regressed(partition, meta.epoch, rest);
                    return Ok(0);
                }
                Err(error) => {
                    self.put_back(partition, meta.epoch, rest);
                    return Err(error);
                }
            }
        }
    }

    /// Takes the dirty users and the meta that holds once they are written.
    fn take(&mut self, partition: i32) -> Option<(CopyMeta, Waiting)> {
        let now = self.clock.now();
        let mut partitions = lock(&self.handle.shared.partitions);
        let copy = partitions.get_mut(&partition)?;
        let mark = copy.marks.range(..=copy.committed).next_back().map(|(_, offset)| *offset);
        let meta = CopyMeta {
            applied: copy.committed,
            changelog_offset: mark.unwrap_or(0),
            applied_at: now,
            epoch: copy.epoch,
            generation: copy.generation,
            users: copy.users,
            cluster_id: copy.cluster_id.clone(),
            format: i64::from(state::FORMAT),
            rebuilding: copy.rebuilding,
            expected_applied: copy.acknowledged,
        };
        Some((meta, std::mem::take(&mut copy.waiting)))
    }

    fn finish(&mut self, partition: i32, meta: &CopyMeta, users: usize) -> Result<usize, Error> {
        // Before the sweep, which may fail: what the store said it holds is asked for from now on.
        self.update(partition, meta.epoch, |copy| {
            copy.acknowledged = meta.applied;
            copy.failing_since = None;
            copy.heard_at = meta.applied_at;
            copy.marks.retain(|commit_no, offset| *commit_no > meta.applied || *offset == meta.changelog_offset);
        });
        if meta.rebuilding {
            self.store.sweep(partition, meta)?;
            // The next round writes meta once more, no longer rebuilding.
            self.update(partition, meta.epoch, |copy| {
                copy.rebuilding = false;
                copy.acknowledged = meta.applied - 1;
            });
        }
        // What came while this was written waits since then at most.
        self.update(partition, meta.epoch, |copy| {
            copy.behind_since = (copy.committed > copy.acknowledged).then_some(meta.applied_at);
        });
        Ok(users)
    }

    /// Asks a copy that nothing is written to whether it still holds what it acknowledged: a store that was emptied
    /// would otherwise stay so until the partition's next commit.
    fn look(&mut self, partition: i32) -> Result<(), Error> {
        let now = self.clock.now();
        let copy = |c: &Copy| (c.epoch, c.generation, c.acknowledged, c.cluster_id.clone(), c.heard_at);
        let known = lock(&self.handle.shared.partitions).get(&partition).map(copy);
        let Some((epoch, generation, acknowledged, cluster_id, heard_at)) = known else { return Ok(()) };
        if now.0 - heard_at.0 < LOOK_EVERY_MS {
            return Ok(());
        }
        let found = self.store.meta(partition)?.unwrap_or_default();
        self.update(partition, epoch, |copy| copy.heard_at = now);
        if found.cluster_id == cluster_id && found.epoch > epoch {
            self.handle.revoked(partition, epoch);
        } else if found.cluster_id != cluster_id || found.generation != generation || found.applied < acknowledged {
            self.regressed(partition, epoch, Vec::new());
        }
        Ok(())
    }

    /// Changes what is known of a copy, unless the partition has a later owner.
    fn update(&self, partition: i32, epoch: i64, change: impl FnOnce(&mut Copy)) {
        if let Some(copy) = lock(&self.handle.shared.partitions).get_mut(&partition).filter(|c| c.epoch == epoch) {
            change(copy);
        }
    }

    /// The copy lost data: a new generation, for which the owner hands over everybody.
    fn regressed(&self, partition: i32, epoch: i64, rest: Vec<(Arc<str>, (i64, UserBytes))>) {
        self.put_back(partition, epoch, rest);
        self.update(partition, epoch, |copy| {
            copy.generation += 1;
            copy.acknowledged = -1;
            copy.rebuilding = true;
            copy.wants_all = true;
            copy.asked = false;
            tracing::warn!(partition, generation = copy.generation, "the copy in redis lost data and is rebuilt");
        });
        telemetry::copy_regressed();
    }

    /// Back into the dirty set, unless something newer has come meanwhile.
    fn put_back(&self, partition: i32, epoch: i64, rest: Vec<(Arc<str>, (i64, UserBytes))>) {
        self.update(partition, epoch, |copy| {
            for (user_key, user) in rest {
                copy.waiting.entry(user_key).or_insert(user);
            }
        });
    }
}

/// The first users that fit in a chunk, and how many they are. Always at least one, if there is one.
fn chunk(rest: &[(Arc<str>, (i64, UserBytes))], names: &BTreeMap<u64, String>) -> (Vec<CopyUser>, usize) {
    let mut users = Vec::with_capacity(rest.len().min(CHUNK_USERS_MAX));
    let mut bytes = 0;
    for (user_key, (commit_no, user)) in rest {
        let size = byte_len(user);
        if users.len() == CHUNK_USERS_MAX || (!users.is_empty() && bytes + size > CHUNK_BYTES_MAX) {
            break;
        }
        bytes += size;
        users.push(copy_user(user_key, *commit_no, user, names));
    }
    let taken = users.len();
    (users, taken)
}

fn byte_len(user: &UserBytes) -> usize {
    let days: usize = user.days.iter().map(|(_, value)| value.len()).sum();
    days + user.head.as_ref().map_or(0, |v| v.len()) + user.seen.as_ref().map_or(0, |v| v.len())
}

/// A user as the store keeps it: what score readers see, the open alert windows, and the engine's own bytes.
pub fn copy_user(user_key: &str, commit_no: i64, bytes: &UserBytes, names: &BTreeMap<u64, String>) -> CopyUser {
    let Some(head) = &bytes.head else {
        return CopyUser { user_key: user_key.to_owned(), commit_no, ..CopyUser::default() };
    };
    let head = state::decode_head(head).expect("a head this process has just written");
    let mut segments = vec![(String::new(), bytes.head.clone().expect("checked above"))];
    segments.extend(bytes.seen.iter().map(|seen| ("seen".to_owned(), seen.clone())));
    segments.extend(bytes.days.iter().map(|(day, value)| (day.0.to_string(), value.clone())));
    CopyUser {
        user_key: user_key.to_owned(),
        commit_no,
        score: score_fields(&head),
        windows: window_fields(&head, names),
        segments,
        top_milli: Some(head.published.score_milli),
    }
}

/// The fields of `r:`; names and units are a public contract (docs/redis.md).
fn score_fields(head: &Head) -> Vec<(&'static str, String)> {
    let p = &head.published;
    let review = if head.alerts.iter().any(|a| a.status.is_open()) { "alert" } else { "none" };
    vec![
        ("score_milli", p.score_milli.to_string()),
        ("level", p.level.as_str().to_owned()),
        ("enforcement_level", p.enforcement.as_str().to_owned()),
        ("as_of", p.as_of.0.to_string()),
        ("valid_until", p.valid_until.0.to_string()),
        ("next_level", p.next_fall_at.map_or(p.level, |_| p.next_level).as_str().to_owned()),
        ("review", review.to_owned()),
        ("revision", head.user_rev.to_string()),
    ]
}

/// The fields of `w:`: every open alert as JSON.
fn window_fields(head: &Head, names: &BTreeMap<u64, String>) -> Vec<(String, String)> {
    head.alerts
        .iter()
        .filter(|alert| alert.status.is_open())
        .map(|alert| {
            let window = serde_json::json!({
                "policy_id": names.get(&alert.policy).map_or("", String::as_str),
                "status": alert.status.as_str(),
                "severity": alert.severity.as_str(),
                "revision": alert.revision,
                "opened_at": alert.window.opened_at.0,
                "last_activity_at": alert.window.last_activity_at.0,
                "closes_at": alert.window.closes_at.0,
                "frozen": alert.window.frozen,
            });
            (uuid::Uuid::from_bytes(alert.id).to_string(), window.to_string())
        })
        .collect()
}
