//! The resident state of one partition: every user's encoded bytes, when each is next due, and the meta record of the
//! last commit. A batch is folded into an `Overlay` beside it and merged only once it is committed; an overlay that is
//! dropped leaves no trace. No I/O here, and no clock: `verify` drives the same functions. Next: `partition/fold.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::DefaultHashBuilder;
use hashbrown::hash_table::{Entry, HashTable};

use super::batch::{INPUTS, Records, input_name};
use super::copy_sink::DirtyUser;
use crate::domain::Timestamp;
use crate::domain::partitioner::partition_of;
use crate::domain::policy::PolicySet;
use crate::domain::record::{InputRange, Journal};
use crate::engine::Context;
use crate::engine::timer::next_due;
use crate::wire::state::{self, UserBytes};

pub mod fold;
pub mod ledger;
mod letter;
pub mod outputs;

pub use fold::{FoldError, Frame, Hold, Scratch, Tools};
pub use ledger::{Row, Tally};
pub use outputs::{Outputs, RecordId};

/// Bytes a resident user costs besides key and values: map entry, timer entry, allocations.
pub const USER_BYTES_OVERHEAD: usize = 200;
/// A source is silent when its watermark is this far behind the clock.
pub const SILENT_MS: i64 = 60 * 60 * 1_000;

/// Policy sets by content hash. A set never changes, so an answer may be kept.
pub trait PolicySource {
    /// The set of this hash; `None` when it cannot be loaded now.
    fn set(&mut self, hash: &str) -> Option<Arc<PolicySet>>;
}

/// What does not change while a partition is owned.
#[derive(Clone, Debug)]
pub struct Identity {
    pub number: i32,
    /// Partitions of every topic keyed by user.
    pub partitions: i32,
    pub cluster_id: Arc<str>,
    pub transactional_id: Arc<str>,
    /// Signals older than this many days (against stream time) are too late.
    pub lateness_days: i64,
    /// How long a published level may be relied on, in milliseconds.
    pub level_valid_ms: i64,
}

/// A user as kept between batches.
#[derive(Clone, Debug)]
pub struct Resident {
    pub key: Arc<str>,
    /// Of the key, by the partition's hasher.
    hash: u64,
    pub bytes: UserBytes,
    pub next_due: Option<Timestamp>,
}

/// A user after a batch.
#[derive(Clone, Debug)]
pub struct UserChange {
    pub key: Arc<str>,
    hash: u64,
    /// No head: the user is gone.
    pub bytes: UserBytes,
    previous_due: Option<Timestamp>,
    next_due: Option<Timestamp>,
    /// The bytes differ from the resident ones and are among the batch's outputs.
    written: bool,
}

/// The effect of one batch, not yet committed.
#[derive(Debug)]
pub struct Overlay {
    changes: Vec<UserChange>,
    meta: Journal,
    wrote: bool,
    policies: Option<Arc<PolicySet>>,
    switched: bool,
    holds: [Option<Hold>; INPUTS],
    tally: Tally,
    timers: u64,
}

impl Overlay {
    /// Whether the batch has outputs, at least journal and meta. Otherwise there is nothing to commit.
    pub fn wrote(&self) -> bool {
        self.wrote
    }

    /// The meta record after the batch.
    pub fn meta(&self) -> &Journal {
        &self.meta
    }

    /// Next offset to read, per input.
    pub fn positions(&self) -> [i64; INPUTS] {
        positions(&self.meta.inputs)
    }

    /// Inputs whose records were left unread from `positions` on, and why.
    pub fn holds(&self) -> &[Option<Hold>; INPUTS] {
        &self.holds
    }

    /// What became of the records.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Timers that did something.
    pub fn timers(&self) -> u64 {
        self.timers
    }

    /// Users written.
    pub fn users_written(&self) -> usize {
        self.changes.iter().filter(|c| c.written).count()
    }
}

/// What one source did since the partition was assigned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceFacts {
    pub watermark: Timestamp,
    pub skew_ms: i64,
    pub counts: BTreeMap<String, i64>,
}

/// The resident state of one partition.
pub struct Partition {
    identity: Identity,
    users: HashTable<Resident>,
    hasher: DefaultHashBuilder,
    timers: BTreeSet<(Timestamp, Arc<str>)>,
    meta: Journal,
    positions: [i64; INPUTS],
    policies: Option<Arc<PolicySet>>,
    bytes: usize,
    sources: BTreeMap<String, SourceFacts>,
}

impl Partition {
    /// A partition that stands at a meta record, without users yet.
    pub fn new(identity: Identity, meta: Journal, policies: Option<Arc<PolicySet>>) -> Partition {
        let set = policies.as_deref().map_or("", |p| p.hash.as_str());
        assert!(set == meta.policy_set, "the partition stands under the set {:?}, not {set:?}", meta.policy_set);
        let positions = positions(&meta.inputs);
        Partition {
            identity,
            users: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            timers: BTreeSet::new(),
            meta,
            positions,
            policies,
            bytes: 0,
            sources: BTreeMap::new(),
        }
    }

    /// The state before the first commit: these positions, nothing else.
    pub fn fresh(identity: Identity, positions: [i64; INPUTS]) -> Partition {
        let range = |n: usize| {
            let topic = input_name(n).to_owned();
            InputRange { topic, from: positions[n], to: positions[n], records: 0 }
        };
        let meta = Journal {
            inputs: (0..INPUTS).map(range).collect(),
            partitions: identity.partitions.into(),
            cluster_id: identity.cluster_id.to_string(),
            next_case_no: 1,
            next_alert_no: 1,
            format: state::FORMAT.into(),
            ..Journal::default()
        };
        Partition::new(identity, meta, None)
    }

    /// The partition under another owner or other settings; for replays, which pass through several.
    pub fn owned_by(&mut self, identity: Identity) {
        let (now, then) = (&identity, &self.identity);
        assert!((now.number, now.partitions) == (then.number, then.partitions), "another partition is not this one");
        self.identity = identity;
    }

    /// Adds a user as restored.
    pub fn insert(&mut self, key: Arc<str>, bytes: UserBytes) -> Result<(), state::Error> {
        if !self.holds_user(&key) {
            return Err(state::Error::Damaged { what: "a user of another partition" });
        }
        let user = state::decode(&bytes)?;
        let due = self.policies.as_deref().and_then(|p| next_due(&user, &self.resting_context(p)));
        if let Some(due) = due {
            self.timers.insert((due, key.clone()));
        }
        self.bytes += resident_bytes(&key, &bytes);
        let hash = self.hash(&key);
        assert!(self.user_at(hash, &key).is_none(), "a user was restored twice");
        self.users.insert_unique(hash, Resident { key, hash, bytes, next_due: due }, |resident| resident.hash);
        Ok(())
    }

    /// Folds one batch, without an effect on the partition. On an error nothing is left in `out`.
    pub fn fold_batch(
        &self,
        records: Records<'_>,
        frame: &Frame,
        tools: &mut Tools<'_>,
        out: &mut Outputs,
    ) -> Result<Overlay, FoldError> {
        fold::run(self, records, frame, tools, out)
    }

    /// Makes a committed batch the state. Returns the users the copy's writer must see.
    pub fn merge(&mut self, overlay: Overlay) -> Vec<DirtyUser> {
        let Overlay { changes, meta, wrote, policies, switched, holds: _, tally, timers: _ } = overlay;
        if wrote {
            self.advance(meta);
        }
        let mut dirty = Vec::with_capacity(changes.len());
        for change in changes {
            let written = change.written.then(|| change.bytes.clone());
            let user_key = change.key.clone();
            self.merge_user(change);
            if let Some(bytes) = written {
                dirty.push(DirtyUser { user_key, bytes, commit_no: self.meta.commit_no });
            }
        }
        self.add_sources(&tally);
        if switched {
            self.policies = policies;
            self.recompute_dues();
        }
        assert!(
            self.users.len() as i64 == self.meta.users,
            "INV-2: {} users resident, {} written",
            self.users.len(),
            self.meta.users
        );
        dirty
    }

    fn advance(&mut self, meta: Journal) {
        let next = positions(&meta.inputs);
        assert!(
            meta.commit_no == self.meta.commit_no + 1,
            "INV-4: commit {} of partition {} follows {}",
            meta.commit_no,
            self.identity.number,
            self.meta.commit_no
        );
        assert!(
            next.iter().zip(self.positions).all(|(next, now)| *next >= now),
            "INV-4: partition {} would go back from {:?} to {next:?}",
            self.identity.number,
            self.positions
        );
        assert!(
            ledger::balances(&meta.ledger),
            "INV-7: the ledger of partition {} loses records",
            self.identity.number
        );
        self.positions = next;
        self.meta = meta;
    }

    fn merge_user(&mut self, change: UserChange) {
        let UserChange { key, hash, bytes, previous_due, next_due, written: _ } = change;
        let next_due = next_due.filter(|_| bytes.head.is_some());
        if previous_due != next_due {
            let mut entry = (previous_due.unwrap_or_default(), key.clone());
            if previous_due.is_some() {
                self.timers.remove(&entry);
            }
            if let Some(due) = next_due {
                entry.0 = due;
                self.timers.insert(entry);
            }
        }
        match self.users.entry(hash, |resident| *resident.key == *key, |resident| resident.hash) {
            Entry::Occupied(mut known) => {
                self.bytes -= resident_bytes(&key, &known.get().bytes);
                if bytes.head.is_some() {
                    self.bytes += resident_bytes(&key, &bytes);
                    let resident = known.get_mut();
                    (resident.bytes, resident.next_due) = (bytes, next_due);
                } else {
                    known.remove();
                }
            }
            Entry::Vacant(place) if bytes.head.is_some() => {
                self.bytes += resident_bytes(&key, &bytes);
                place.insert(Resident { key, hash, bytes, next_due });
            }
            Entry::Vacant(_) => {}
        }
    }

    fn add_sources(&mut self, tally: &Tally) {
        for source in &tally.sources {
            let full = self.sources.len() >= ledger::SOURCES_MAX && !self.sources.contains_key(&source.source);
            let name = if full { "other" } else { &source.source };
            let facts = self.sources.entry(name.to_owned()).or_default();
            facts.watermark = facts.watermark.max(source.watermark);
            facts.skew_ms = facts.skew_ms.max(source.skew_ms);
            source.counts.add_to("", &mut facts.counts);
        }
    }

    /// After a switch: the due times of all users, as a restore under the same set would find them.
    fn recompute_dues(&mut self) {
        let Some(policies) = self.policies.clone() else { return };
        let context = Context { stream_time: self.meta.stream_time, ..self.resting_context(&policies) };
        self.timers.clear();
        for resident in &mut self.users {
            let user = state::decode(&resident.bytes).expect("resident state was read or written by this process");
            resident.next_due = next_due(&user, &context);
            if let Some(due) = resident.next_due {
                self.timers.insert((due, resident.key.clone()));
            }
        }
    }

    /// Every user, as the copy's writer takes them.
    pub fn all_users(&self) -> Vec<DirtyUser> {
        let commit_no = self.meta.commit_no;
        let user = |resident: &Resident| DirtyUser {
            user_key: resident.key.clone(),
            bytes: resident.bytes.clone(),
            commit_no,
        };
        self.users.iter().map(user).collect()
    }

    /// The partition's number.
    pub fn number(&self) -> i32 {
        self.identity.number
    }

    /// Partitions of every topic keyed by user.
    pub fn partitions(&self) -> i32 {
        self.identity.partitions
    }

    /// What does not change while the partition is owned.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The meta record of the last commit.
    pub fn meta(&self) -> &Journal {
        &self.meta
    }

    /// Next offset to read, per input.
    pub fn positions(&self) -> [i64; INPUTS] {
        self.positions
    }

    /// The set in force; `None` while the partition waits for its first.
    pub fn policies(&self) -> Option<&Arc<PolicySet>> {
        self.policies.as_ref()
    }

    /// A resident user.
    pub fn user(&self, user_key: &str) -> Option<&Resident> {
        self.user_at(self.hash(user_key), user_key)
    }

    /// A resident user, by the hash of the key as well.
    fn user_at(&self, hash: u64, user_key: &str) -> Option<&Resident> {
        self.users.find(hash, |resident| *resident.key == *user_key)
    }

    /// Where a user is found: differs from process to process.
    fn hash(&self, user_key: &str) -> u64 {
        self.hasher.hash_one(user_key)
    }

    /// When the first timer is due.
    pub fn next_timer(&self) -> Option<Timestamp> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// Users with a timer due at or before an instant, the earliest first.
    pub fn due_users(&self, at: Timestamp) -> impl Iterator<Item = &Arc<str>> {
        self.timers.iter().take_while(move |(due, _)| *due <= at).map(|(_, key)| key)
    }

    /// Whether the user belongs here.
    pub fn holds_user(&self, user_key: &str) -> bool {
        partition_of(user_key.as_bytes(), self.identity.partitions) == self.identity.number
    }

    /// Memory the users take, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What each source did since the partition was assigned.
    pub fn sources(&self) -> &BTreeMap<String, SourceFacts> {
        &self.sources
    }

    /// The engine's view of a moment on this partition.
    pub fn context<'a>(&self, policies: &'a PolicySet, now: Timestamp, stream_time: Timestamp) -> Context<'a> {
        Context {
            policies,
            partition: self.identity.number,
            now,
            stream_time,
            lateness_days: self.identity.lateness_days,
            level_valid_ms: self.identity.level_valid_ms,
        }
    }

    fn resting_context<'a>(&self, policies: &'a PolicySet) -> Context<'a> {
        self.context(policies, self.meta.now, self.meta.stream_time)
    }
}

/// Memory a user takes, in bytes.
pub fn resident_bytes(key: &str, bytes: &UserBytes) -> usize {
    let segments = bytes.head.iter().chain(&bytes.seen).chain(bytes.days.iter().map(|(_, b)| b));
    segments.map(|b| b.len() + 16).sum::<usize>() + key.len() + USER_BYTES_OVERHEAD
}

/// Next offset to read of every input, from a meta record.
pub fn positions(inputs: &[InputRange]) -> [i64; INPUTS] {
    std::array::from_fn(|n| {
        let range = inputs.iter().find(|r| r.topic == input_name(n));
        range.unwrap_or_else(|| panic!("the meta record names no offset of {}", input_name(n))).to
    })
}
