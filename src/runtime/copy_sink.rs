//! Where committed users go on their way to the readable copy, and where a worker finds them again. The worker calls
//! `dirty` after the commit, on its own thread: the other side keeps one entry per user (the newest) and never blocks.
//! It writes nothing itself; that is `checkpoint.rs`. Next: `status.rs`.

use std::sync::Arc;

use super::ports::{CopyMeta, CopyUser, Error};
use crate::domain::Timestamp;
use crate::wire::state::UserBytes;

/// From which changelog offset a copy is caught up: every record of `commit_no` and later, its meta record included, lies
/// at or above `offset`; every earlier one lies below. Taken by the worker between two transactions, for the next one,
/// so that catching up always meets a meta record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    pub commit_no: i64,
    pub offset: i64,
}

/// Where a partition stands after a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub partition: i32,
    /// +1 per assignment; the copy refuses a lower one.
    pub epoch: i64,
    /// The commit everything handed over so far belongs to.
    pub commit_no: i64,
    /// The newest mark. The copy may store its offset once it has applied its commit.
    pub mark: Mark,
    pub users: i64,
    pub cluster_id: Arc<str>,
    /// The batch's clock reading.
    pub now: Timestamp,
}

/// A user as last committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyUser {
    pub user_key: Arc<str>,
    /// Shared with the worker. No head: the user is gone.
    pub bytes: UserBytes,
    pub commit_no: i64,
}

/// How an assigned partition's state was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// From the copy and the changelog's tail. Users that were newer in the changelog follow through `dirty`.
    CaughtUp,
    /// From the changelog alone: the copy was absent or not trusted. Every user follows through `dirty`, under a new
    /// generation.
    Rebuilt,
}

/// The worker's side of the readable copy.
pub trait CopySink {
    /// What the copy says about a partition. An error means: not trusted.
    fn meta(&mut self, partition: i32) -> Result<Option<CopyMeta>, Error>;

    /// Every user in the copy, in any order, with segments.
    fn users(&mut self, partition: i32, each: &mut dyn FnMut(CopyUser)) -> Result<(), Error>;

    /// The partition is ours at this epoch. What an earlier assignment left to write is kept, unless `Rebuilt`.
    fn assigned(&mut self, standing: &Standing, loaded: Loaded);

    /// Users that changed with a commit (possibly none: then only the standing moved). One entry per user is kept.
    fn dirty(&mut self, standing: &Standing, users: Vec<DirtyUser>);

    /// The partition is no longer ours: forget what is not yet written, do not wait.
    fn revoked(&mut self, partition: i32);

    /// Partitions whose copy has lost data since the last call: the worker hands over every user again.
    fn lost(&mut self) -> Vec<i32>;
}
