//! What the tests of the copy write, on Redis and on the embedded store alike.

use casestream::domain::Timestamp;
use casestream::runtime::ports::{CopyMeta, CopyUser, Store};
use casestream::runtime::redis_store::{COPY_FORMAT, RedisStore};

pub fn meta(epoch: i64, applied: i64) -> CopyMeta {
    CopyMeta {
        applied,
        changelog_offset: 10 * applied,
        applied_at: Timestamp(applied),
        epoch,
        generation: 1,
        users: 1,
        cluster_id: "cluster".to_owned(),
        format: COPY_FORMAT,
        rebuilding: false,
        expected_applied: -1,
    }
}

pub fn user(user_key: &str, commit_no: i64) -> CopyUser {
    CopyUser {
        user_key: user_key.to_owned(),
        commit_no,
        score: vec![("score_milli", commit_no.to_string()), ("level", "low".to_owned())],
        windows: vec![(format!("alert-{commit_no}"), "{}".to_owned())],
        segments: vec![(String::new(), vec![0, 255, commit_no as u8].into()), (commit_no.to_string(), vec![1].into())],
        top_milli: Some(commit_no),
    }
}

pub fn gone(user_key: &str, commit_no: i64) -> CopyUser {
    CopyUser { user_key: user_key.to_owned(), commit_no, ..CopyUser::default() }
}

/// Key, commit and number of segments of each.
pub fn users(store: &mut RedisStore, partition: i32) -> Vec<(String, i64, usize)> {
    let mut users = Vec::new();
    store.users(partition, &mut |user| users.push((user.user_key, user.commit_no, user.segments.len()))).unwrap();
    users.sort();
    users
}
