//! The ports of the worker: what it needs from a log, a consumer group, a transaction, a store and a clock.
//! Synchronous on purpose. rdkafka and Redis stand behind them in production, a simulator in tests, and the worker
//! cannot tell which. Next: `worker.rs`, the protocol.

use std::time::Duration;

use crate::domain::Timestamp;

/// A topic's name. Names live as long as the process: they come from `topology` or are interned once at start.
pub type TopicName = &'static str;

/// A record as it lies in the log, borrowed until the next poll.
#[derive(Clone, Copy, Debug)]
pub struct RecordRef<'a> {
    pub topic: TopicName,
    pub partition: i32,
    pub offset: i64,
    pub timestamp: Timestamp,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: &'a [(&'a str, Option<&'a [u8]>)],
}

/// A record to write. `partition` is always explicit: a user's outputs lie on the user's partition.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub topic: TopicName,
    pub partition: i32,
    pub key: Option<&'a [u8]>,
    /// `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    pub headers: &'a [(&'a str, &'a [u8])],
    /// `None`: the time of writing.
    pub timestamp: Option<Timestamp>,
}

/// A position in an input to be committed: the next offset to read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InputOffset {
    pub topic: TopicName,
    pub partition: i32,
    pub offset: i64,
    /// Ledger counters of the map role; below 1 KB.
    pub metadata: String,
}

/// What a poll did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polled {
    /// Nothing within the wait. Not the same as idle: a rebalance may be under way.
    Nothing,
    /// One record was handed over.
    Record,
    /// Membership changed: every record gathered so far must be discarded, then `Group::changes` read.
    Rebalanced,
}

/// What membership asks for, once after `Polled::Rebalanced`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Partitions (of all inputs) taken away; already unassigned.
    pub revoked: Vec<(TopicName, i32)>,
    /// The whole new assignment, to be answered by `Group::start` after recovery. `None`: nothing assigned yet.
    pub assigned: Option<Vec<(TopicName, i32)>>,
}

/// Membership in the consumer group, and the inputs it brings.
pub trait Group {
    /// Opaque proof of membership at one generation.
    type Metadata: Clone;

    /// Waits for at most one record and hands it to `each`. Callbacks of membership run only in here.
    fn poll(&mut self, wait: Duration, each: &mut dyn FnMut(RecordRef<'_>)) -> Result<Polled, Error>;

    /// What changed, once per `Polled::Rebalanced`.
    fn changes(&mut self) -> Changes;

    /// Completes an assignment: consumption starts at these offsets.
    fn start(&mut self, positions: &[InputOffset]) -> Result<(), Error>;

    /// Moves the next poll of these inputs to these offsets, dropping what was fetched ahead.
    fn seek(&mut self, positions: &[InputOffset]) -> Result<(), Error>;

    /// Proof of membership as of the last poll. Taken once per batch, never after another poll.
    fn metadata(&self) -> Result<Self::Metadata, Error>;

    /// Whether the input is assigned now.
    fn owns(&self, topic: TopicName, partition: i32) -> bool;

    /// Leaves the group within a bounded time.
    fn close(&mut self);
}

/// A transactional producer under one stable id.
pub trait Txn {
    /// Must be the group's.
    type Metadata;

    /// Makes a producer with the same id: finishes or aborts what an older one left, and fences it.
    fn init(&mut self) -> Result<(), Error>;
    fn begin(&mut self) -> Result<(), Error>;
    fn send(&mut self, record: &Outgoing<'_>) -> Result<(), Error>;
    /// Waits for every delivery, then adds the offsets under the batch's proof of membership.
    fn send_offsets(&mut self, offsets: &[InputOffset], metadata: &Self::Metadata) -> Result<(), Error>;
    /// `ErrorKind::Unknown` when the outcome cannot be told.
    fn commit(&mut self) -> Result<(), Error>;
    fn abort(&mut self) -> Result<(), Error>;
    /// Whether anything happened (error, slow call, lost connection, retries) after which a late end of this
    /// transaction could hit the next one: the worker then calls `init` again before the next batch.
    fn wants_recycling(&self) -> bool;
}

/// Reading the log outside the group: recovery, restore, verification.
pub trait Log {
    /// Stable committed offsets of a group; `ErrorKind::Unstable` while a transaction is pending.
    fn committed(&mut self, inputs: &[(TopicName, i32)]) -> Result<Vec<Option<InputOffset>>, Error>;
    /// `[start, end)` as a read-uncommitted client sees it.
    fn watermarks(&mut self, topic: TopicName, partition: i32) -> Result<(i64, i64), Error>;
    /// Reads committed records from `from` until nothing below `until` remains, however many markers lie between.
    /// Blocks until then; `ErrorKind::Timeout` when an open transaction pins the end for too long.
    fn read(
        &mut self,
        topic: TopicName,
        partition: i32,
        from: i64,
        until: i64,
        each: &mut dyn FnMut(RecordRef<'_>),
    ) -> Result<(), Error>;
    /// Identity of the cluster.
    fn cluster_id(&mut self) -> Result<String, Error>;
}

/// What the store says about a partition's copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyMeta {
    /// commit_no the copy has reached.
    pub applied: i64,
    /// Changelog offset from which catching up starts.
    pub changelog_offset: i64,
    /// When `applied` was reached, by the clock of the writer.
    pub applied_at: Timestamp,
    pub epoch: i64,
    pub generation: i64,
    pub users: i64,
    pub cluster_id: String,
    pub format: i64,
    pub rebuilding: bool,
    /// With `apply`: the copy must hold this generation and cluster and have reached this commit, as the caller was
    /// told before, or it has lost data. -1: no expectation. Never stored.
    pub expected_applied: i64,
}

/// One user as the store keeps it. All values are absolute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyUser {
    pub user_key: String,
    pub commit_no: i64,
    /// Fields of `r:`; empty means the user is gone and every key of it is removed.
    pub score: Vec<(&'static str, String)>,
    /// Alert id to JSON, the whole of `w:`.
    pub windows: Vec<(String, String)>,
    /// Changelog values by suffix: "" for the head, "seen", or the day.
    pub segments: Vec<(String, std::sync::Arc<[u8]>)>,
    /// Refreshes `top` when present.
    pub top_milli: Option<i64>,
}

/// The answer to an apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Written; the copy stood at this commit before.
    Ok { before: i64 },
    /// Refused: a higher epoch has written.
    Fenced { epoch: i64 },
    /// The copy lost data: another generation or cluster, or less than was acknowledged.
    Regressed,
}

/// The readable copy.
pub trait Store: Send {
    fn meta(&mut self, partition: i32) -> Result<Option<CopyMeta>, Error>;
    /// Every user's segments in the copy, in any order.
    fn users(&mut self, partition: i32, each: &mut dyn FnMut(CopyUser)) -> Result<(), Error>;
    /// Writes one chunk; `meta.applied` advances only with `last`.
    fn apply(&mut self, partition: i32, users: &[CopyUser], meta: &CopyMeta, last: bool) -> Result<Applied, Error>;
    /// Removes users that carry an older generation than the meta's; the end of a rebuild.
    fn sweep(&mut self, partition: i32, meta: &CopyMeta) -> Result<(), Error>;
}

/// Time, injected.
pub trait Clock {
    /// Wall clock.
    fn now(&self) -> Timestamp;
    /// A clock that never goes back, for deadlines.
    fn monotonic(&self) -> Duration;
    /// Waits, or moves simulated time.
    fn wait(&self, duration: Duration);
}

/// Which reaction an error asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Try the same call again.
    Retriable,
    /// The transaction must be aborted; the batch is then tried again.
    Abort,
    /// A commit whose outcome cannot be told.
    Unknown,
    /// Another process took this identity: exit.
    Fenced,
    /// A pending transaction hides the answer: ask again.
    Unstable,
    /// A record is larger than the broker takes: a bad record, not a bad batch.
    TooLarge,
    /// Nothing came in time.
    Timeout,
    /// Data is missing where it must be: halt the partition.
    Missing,
    /// The producer (or client) is no longer usable.
    Fatal,
}

/// What went wrong at a port: attempted what, on what.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what}: {cause}")]
pub struct Error {
    pub kind: ErrorKind,
    pub what: String,
    pub cause: String,
    /// The partition it is about, when it is about one.
    pub at: Option<(TopicName, i32)>,
}

impl Error {
    /// An error of a kind.
    pub fn new(kind: ErrorKind, what: impl Into<String>, cause: impl ToString) -> Error {
        Error { kind, what: what.into(), cause: cause.to_string(), at: None }
    }

    /// The same error, about one partition.
    pub fn at(mut self, topic: TopicName, partition: i32) -> Error {
        self.at = Some((topic, partition));
        self
    }
}
